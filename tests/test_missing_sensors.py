"""Training on samples that lack sensors: each has the loss and the information of its own sensors, however
samples are divided over micro-batches and processes, and nothing in the place of a missing image counts.
"""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from pairs import together
from safetensors.torch import load_file

from mmlib import loop
from mmlib.data.prepared import Description, PreparedDataset, Writer, collate
from mmlib.modalities import SENSORS
from mmlib.runtime import derived_seed
from mmlib.segmentation import information
from mmlib.segmentation.dry_run import dry_run
from mmlib.segmentation.information import combine, measure_information
from mmlib.segmentation.network import NetworkConfig
from mmlib.segmentation.objective import ObjectiveConfig, draw_subset, parts, restricted, subset_cross_entropy
from mmlib.segmentation.regularizer import Regularizer, RegularizerConfig
from mmlib.segmentation.step import TrainConfig, set_up, train_step
from mmlib.segmentation.train import train

MODALITIES = toy.MODALITIES | {"thermal": SENSORS["thermal"]}
NAMES = list(MODALITIES)
# Every sample lacks something; the last four training samples repeat sets of sensors.
SETS = [
    "rgb+depth+aolp",
    "rgb",
    "depth+aolp+thermal",
    "thermal",
    "rgb+thermal",
    "aolp",
    "depth+thermal",
    "rgb+depth",
]
SETS += ["rgb+depth+aolp", "rgb", "rgb+thermal", "aolp+thermal"]
WEIGHT = ObjectiveConfig().full_weight


def make(root, sets=SETS):
    """The toy data with a fourth sensor, of which each sample has a few."""
    with Writer(root, Description("toy", toy.CLASSES, toy.PALETTE, MODALITIES)) as writer:
        for split, start, count in (("train", 0, len(sets)), ("val", 1000, 6)):
            for i in range(count):
                images, label = toy.sample(start + i)
                images["thermal"] = MODALITIES["thermal"].to_stored(5.0 + 20 * images["rgb"][..., :1] / 255)
                has = {name: images[name] for name in sets[i].split("+")}
                label[:, : 3 * i] = 255  # numbers of labelled pixels differ
                writer.add(f"{split}_{i:03d}", split, has, label)
    return str(root)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("missing") / "toy")


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def configured(data, out="unused", **changes) -> TrainConfig:
    settings = dict(
        batch_size=12,
        epochs=6,
        clip=1e9,
        network=NetworkConfig(dropout=0.0),
        objective=ObjectiveConfig(pixels=1),
        information_samples=2,
        eval_every=0,
        progress=False,
    )
    return TrainConfig(str(data), str(out), **(settings | changes))


class Recorder:
    """In the place of the optimizer: keeps the gradients of each step."""

    def __init__(self, run):
        self.run, self.steps, self.param_groups = run, [], [{"factor": 1.0}]

    def step(self):
        named = self.run.network.named_parameters()
        self.steps.append({name: None if p.grad is None else p.grad.clone() for name, p in named})

    def zero_grad(self):
        self.run.network.zero_grad()


def recorded(config: TrainConfig):
    run = set_up(config, resumed=False)
    run.network.double()
    run.optimizer = Recorder(run)
    return run


def batch_of(run, indices, blank=torch.nan) -> dict:
    """A batch in double precision, ``blank`` in the place of images that are missing."""
    batch = collate([run.data[int(index)] for index in indices])
    for m, (name, image) in enumerate(batch["images"].items()):
        image[~batch["present"][:, m]] = blank
        batch["images"][name] = image.double()
    return batch


def each(batch):
    """The samples of a batch one by one: (images of the sensors that it has, label)."""
    for b, present in enumerate(batch["present"]):
        images = {
            n: x[b : b + 1]
            for n, x, there in zip(batch["images"], batch["images"].values(), present)
            if there
        }
        yield images, batch["label"][b : b + 1]


def cross_entropy(network, images, label, subset, evidence="sum"):
    """Summed over pixels, by one forward pass for each sensor alone."""
    logits = [network({name: images[name]}) for name in subset]
    fused = sum(logits) / (1 if evidence == "sum" else len(logits))
    return F.cross_entropy(fused, label, ignore_index=255, reduction="sum")


def loss_by_hand(run, batch, step):
    """Sample by sample and subset by subset, as the lattice of each sample's own sensors has it."""
    kind, total, valid = run.config.objective.subsets, 0.0, (batch["label"] != 255).sum()
    drawn = draw_subset(NAMES, np.random.default_rng(derived_seed(run.config.seed, "subset", step)))
    for images, label in each(batch):
        own, lattice = list(images), {}
        if kind == "all-subsets":
            for size in range(1, len(own)):
                lattice |= dict.fromkeys(combinations(own, size), 1.0)
        if kind == "singles" and len(own) > 1:
            lattice = dict.fromkeys([(name,) for name in own], 1.0)
        lattice[tuple(own)] = WEIGHT
        if kind == "dropout":
            lattice = {tuple(name for name in own if name in drawn) or tuple(own): 1.0}
        evidence = "sum" if kind in ("all-subsets", "singles") else "mean"
        if kind == "selection":
            logits = run.network({name: image for name, image in images.items()}, fuse=False)[0]
            shares = subset_cross_entropy(logits, label, run.config.objective, torch.tensor(1.0), None)
            total = total + shares["supervised"] / valid
            continue
        terms = [w * cross_entropy(run.network, images, label, s, evidence) for s, w in lattice.items()]
        total = total + sum(terms) / sum(lattice.values()) / valid
    return total


def gradients(network, loss) -> dict:
    named = dict(network.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, [*named.values()], allow_unused=True)))


def assert_equal(found: dict, expected: dict, tolerance: float):
    assert found.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values() if g is not None)
    assert scale > 0
    for name, gradient in expected.items():
        if gradient is None or found[name] is None:
            assert gradient is None and found[name] is None, name
        else:
            assert float((found[name] - gradient).abs().max()) < tolerance * scale, name


def test_a_batch_is_divided_into_samples_with_the_same_sensors():
    present = torch.tensor([[1, 0, 1], [1, 1, 1], [1, 0, 1], [0, 0, 1]]).bool()
    images = {name: torch.arange(4) + 10 * m for m, name in enumerate("RDE")}
    batch = {"present": present, "images": images, "label": torch.arange(4)}
    found = {
        "".join(part): (label.tolist(), part["E"].tolist()) for part, label in map(dict.values, parts(batch))
    }
    assert found == {"RE": ([0, 2], [20, 22]), "RDE": ([1], [21]), "E": ([3], [23])}
    (alike,) = parts(batch | {"present": present[[0, 2, 0, 2]]})
    assert list(alike["images"]) == ["R", "E"] and len(alike["label"]) == 4
    assert alike["images"]["R"].data_ptr() == images["R"].data_ptr()  # a view, no copy
    assert restricted(batch, "RD")["present"].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert restricted(batch, "RDE")["present"].equal(present)


@pytest.mark.parametrize("kind", ["all-subsets", "singles", "dropout", "full", "selection"])
def test_the_loss_of_a_sample_is_that_of_its_own_sensors(data, double, kind):
    run = recorded(configured(data, objective=ObjectiveConfig(kind, pixels=1)))
    batch = batch_of(run, range(12))
    for step in range(3):
        terms, norm, _ = train_step(run, step, [batch])
        loss = loss_by_hand(run, batch, step)
        assert float(terms["supervised"]) == pytest.approx(float(loss.detach()), rel=1e-12)
        assert_equal(run.optimizer.steps[step], gradients(run.network, loss), 1e-12)
    if kind in ("all-subsets", "singles", "selection"):
        full = sum(cross_entropy(run.network, x, y, list(x), "mean") for x, y in each(batch))
        assert float(terms["full"]) == pytest.approx(
            float(full.detach() / (batch["label"] != 255).sum()), rel=1e-12
        )


def test_micro_batches_add_up_and_a_sensor_that_is_not_there_gets_no_gradient(data, double):
    settings = configured(data, batch_size=4, accumulate=2, regularizer=closed_form())
    run = recorded(settings)
    indices = [i for i in range(12) if "aolp" not in SETS[i]]
    assert len(indices) == 7
    parts = indices[:4], indices[4:] + indices[:1]
    train_step(run, 0, [batch_of(run, part, 1e6) for part in parts], 1.0)
    large = recorded(replace(settings, batch_size=8, accumulate=1))
    train_step(large, 0, [batch_of(large, sum(parts, []))], 1.0)
    assert_equal(run.optimizer.steps[0], large.optimizer.steps[0], 1e-12)
    missing = {name for name, gradient in run.optimizer.steps[0].items() if gradient is None}
    assert missing and all(name.startswith("stems.aolp") for name in missing)


def closed_form(**changes) -> RegularizerConfig:
    return RegularizerConfig("unimodal-logit", "kl", delay=0.0, cap=1e9, **changes)


@pytest.mark.parametrize("form", ["balance", "share", "inverse"])
def test_information_in_closed_form_is_that_of_each_sample_alone(data, double, form):
    """The mean of a sensor is over the samples that have it, before it is inverted."""
    run = recorded(configured(data, regularizer=closed_form(form=form)))
    batch = batch_of(run, range(12))
    terms, *_ = train_step(run, 0, [batch], 1.0)
    values = {}
    for images, label in each(batch):
        tables = Regularizer(run.config.regularizer).read(*run.network(images, fuse=False), label)
        assert len(tables) == (1 if len(images) == 1 else 5)  # a sensor alone is its own mean
        for term, table in tables.items():
            for name, value in zip(images, table[:, 0]):
                values.setdefault(term, {}).setdefault(name, []).append(value)
    assert [len(values["unimodal-logit"][name]) for name in NAMES] == [
        sum(n in s.split("+") for s in SETS) for n in NAMES
    ]
    loss = loss_by_hand(run, batch, 0)
    for term, own in values.items():
        means = torch.stack([torch.stack(own[name]).mean() for name in NAMES])
        assert torch.allclose(run.regularizer.information[term], means.detach(), rtol=1e-12)
        weight = (
            run.config.regularizer.lambda_p if term == "unimodal-logit" else run.config.regularizer.lambda_f
        )
        loss = loss + weight * combine(means + 1e-6 * means.detach().mean(), form)
    assert float(terms["supervised"] + terms["regularizer"]) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert_equal(run.optimizer.steps[0], gradients(run.network, loss), 1e-11)
    assert run.regularizer.counts == {"probes": 0, "capped": 0, "empty": 4 * 4, "nonfinite": 0}


def test_a_probe_reads_each_sample_with_its_own_sensors(data, double, monkeypatch):
    """With noise that depends on the image alone, so that a sample has the same in any batch."""
    noise = lambda images, sigma, seed: {
        n: (x + sigma * torch.sin(9 * x)).requires_grad_() for n, x in images.items()
    }
    monkeypatch.setattr(information, "noisy", noise)
    for prediction in ("input", "consistency"):
        regularizer = RegularizerConfig(
            prediction, "decoder", probe_every=1, probe_samples=12, probe_crop=1.0, delay=0.0, cap=1e9
        )
        run = recorded(configured(data, regularizer=regularizer))
        batch = batch_of(run, range(12))
        train_step(run, 0, [batch], 1.0)
        values, scales = {}, {}
        for images, label in each(batch):
            found, _ = information.input_information(run.network, images, label, reading=prediction)
            features = run.network.features(images)
            coarsest = information.decoder_information(run.network.head, features, label, len(images))[-1]
            for m, name in enumerate(images):
                values.setdefault(name, []).append(found[m])
                scales.setdefault(name, []).append(coarsest[m])
        for term, own in ((prediction, values), ("decoder scale 4", scales)):
            # A sensor alone agrees with the fused prediction up to the noise; its information counts too.
            expected = torch.stack([torch.stack(own[name]).mean() for name in NAMES])
            assert torch.allclose(run.regularizer.information[term], expected, rtol=1e-9), term
        assert all(g is None or g.isfinite().all() for g in run.optimizer.steps[0].values())
    # A few samples of the batch: with NaN in the place of missing images, one wrong sensor would be counted.
    run = recorded(configured(data, regularizer=replace(regularizer, probe_samples=3)))
    for step in range(4):
        train_step(run, step, [batch_of(run, range(12))], 1.0)
    assert run.regularizer.counts == {"probes": 4, "capped": 0, "empty": 0, "nonfinite": 0}


def step_in_process(rank: int, data: str, kind: str) -> list:
    """The gradients of three steps, after their exchange."""
    torch.set_default_dtype(torch.float64)
    config = configured(
        data, batch_size=2, objective=ObjectiveConfig(kind, pixels=1), regularizer=closed_form()
    )
    run = recorded(config)
    for step in range(3):
        train_step(run, step, [batch_of(run, range(4 * step + 2 * rank, 4 * step + 2 * rank + 2), 1e6)], 1.0)
    return run.optimizer.steps


@pytest.mark.parametrize("kind", ["all-subsets", "dropout"])
def test_two_processes_are_one(data, double, kind):
    """Also where they have different sensors, and different numbers of sets of sensors: the gradients are the
    same to the last digits.
    """
    first, second = together(step_in_process, data, kind)
    run = recorded(
        configured(data, batch_size=4, objective=ObjectiveConfig(kind, pixels=1), regularizer=closed_form())
    )
    for step in range(3):
        train_step(run, step, [batch_of(run, range(4 * step, 4 * step + 4))], 1.0)
        assert_equal(first[step], run.optimizer.steps[step], 1e-11)
        assert_equal(second[step], run.optimizer.steps[step], 1e-11)


def test_a_resumed_run_is_the_same_run(data, tmp_path, monkeypatch):
    """With dropout in the network, probes and closed forms; and what it wrote is scored by sensor."""
    regularizer = RegularizerConfig("input", "kl", delay=0.0, probe_every=2, probe_samples=3)
    settings = dict(batch_size=4, network=NetworkConfig(), regularizer=regularizer, save_every=2)
    whole = train(configured(data, tmp_path / "whole", **settings))
    save = loop.save_state

    def stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "save_state", stop)
        train(configured(data, tmp_path / "parts", **settings))
    parts = train(configured(data, tmp_path / "parts", **settings))
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert parts["scores"] == whole["scores"] and parts["guards"] == whole["guards"]
    assert whole["guards"]["probes"] == 9 and whole["guards"]["nonfinite"] == 0
    for name in ("whole", "parts"):
        lines = [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        assert {"supervised", "full", "regularizer"} <= lines[0].keys() and len(
            lines[0]["regularized"]["input"]
        ) == 4


def test_the_information_of_a_sensor_is_the_mean_over_samples_that_have_it(data):
    network, val = toy.untrained(PreparedDataset(data, "train", NAMES[:1])), PreparedDataset(data, "val")
    torch.manual_seed(0)
    network = type(network)(val.modalities, toy.CLASSES, toy.PALETTE).eval()
    found = measure_information(network, val, 100)
    own = {}
    for index in range(len(val)):
        batch = collate([val[index]])
        values, _ = information.input_information(
            network, batch["images"], batch["label"], seed=derived_seed(0, index)
        )
        for name, value in zip(val.present(index), values[:, 0]):
            own.setdefault(name, []).append(value.item())
    assert found == pytest.approx({name: np.mean(own[name]) for name in NAMES})
    val.rows = [row for row in val.rows if row["sensors"] == "rgb"]
    assert list(measure_information(network, val)) == ["rgb"]


def test_what_cannot_be_trained_is_refused(data, tmp_path):
    never = make(tmp_path / "never", ["rgb", "rgb+depth", "depth", "rgb", "depth+aolp", "aolp"])
    with pytest.raises(ValueError, match="no training sample has thermal.*leave it out with --modalities"):
        set_up(configured(never))
    with pytest.raises(
        ValueError, match="gat reads a batch as a whole, but samples lack rgb, depth, aolp, thermal"
    ):
        set_up(configured(data, regularizer=RegularizerConfig("gat")))
    assert "of 12 samples lack 5 rgb, 7 depth, 7 aolp, 6 thermal" in str(set_up(configured(data)))


def test_a_dry_run_measures_it(data):
    cost = dry_run(configured(data, batch_size=3, accumulate=2))
    assert cost["flops"]["plain"] > 0 and cost["in all"] > 0
