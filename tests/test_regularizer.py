"""The regulariser: its forms, its weight in time, its guards, and the three lines that add it to anybody's
loop.
"""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from pairs import together
from torch import nn

from mmlib.loop import read_history
from mmlib.modalities import SENSORS
from mmlib.segmentation.information import (
    combine,
    feature_information,
    input_information,
    logit_information,
    nearest,
    term as information_term,
)
from mmlib.segmentation.network import NetworkConfig, Segmenter
from mmlib.segmentation.objective import ObjectiveConfig
from mmlib.segmentation.regularizer import Regularizer, RegularizerConfig
from mmlib.segmentation.train import TrainConfig, train

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("rgb", "depth", "event")
MODALITIES = {
    n: replace(SENSORS[n], mean=(0.0,) * SENSORS[n].channels, std=(1.0,) * SENSORS[n].channels) for n in NAMES
}


def network(**options) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(
        MODALITIES, ["a", "b", "c", "d"], [(i, i, i) for i in range(4)], NetworkConfig(**options)
    ).eval()


def batch(count=2, size=(64, 48)):
    generator = torch.Generator().manual_seed(3)
    images = {n: torch.randn(count, m.channels, *size, generator=generator) for n, m in MODALITIES.items()}
    return images, torch.randint(0, 4, (count, *size), generator=generator)


def regularizer(**options) -> Regularizer:
    return Regularizer(RegularizerConfig(**{"delay": 0.0, "cap": 1e9} | options))


def closed_form(term: Regularizer, logits, features, label) -> torch.Tensor:
    """R_p + R_f of the readings in closed form."""
    own = term.read(logits, features, label)
    return sum(term.terms(own, own))


positive = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6)


@given(positive, st.floats(1e-3, 1e3))
def test_forms(values, factor):
    """Sum of inverses >= M² / sum (equality only where all are equal); balance and share ignore a common
    factor; balance = share form.
    """
    information = torch.tensor(values, dtype=torch.float64)
    count = len(values)
    inverse, balance, share = (float(combine(information, form)) for form in ("inverse", "balance", "share"))
    assert inverse == pytest.approx(sum(1 / v for v in values))
    assert inverse >= count**2 / sum(values) * (1 - 1e-9)
    assert balance >= -1e-9 and share >= -1e-9
    shares = information / information.sum()
    assert balance == pytest.approx(float((1 / (count * shares)).mean()) - 1, rel=1e-6, abs=1e-9)
    assert share == pytest.approx(-float((count * shares).log().mean()), rel=1e-6, abs=1e-9)
    assert balance >= share - 1e-9  # x − 1 >= ln x
    for form, value in (("balance", balance), ("share", share)):
        assert float(combine(information * factor, form)) == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert float(combine(information * factor, "inverse")) == pytest.approx(inverse / factor)


@pytest.mark.parametrize("form", ["inverse", "balance", "share"])
def test_every_form_pushes_the_weakest_modality_up_most(form):
    information = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(combine(information, form), information)
    assert gradient[0] < 0 and gradient[0] == gradient.min()
    if form != "inverse":
        assert gradient[2] > 0  # and the strongest down; the sum of inverses pushes all of them up
    else:
        assert (gradient < 0).all()


def test_three_lines_in_anybodys_loop():
    """A network that is not ours: concatenation, three strided convolutions, logits. The term goes into its
    optimizer step.
    """

    class Concatenation(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(5, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 3, 3, 1, 1))

        def forward(self, images):
            return self.net(torch.cat([images["camera"], images["radar"]], 1))

    torch.manual_seed(0)
    model = Concatenation()
    model.net[0].weight.data[:, 3:] *= 0.05  # it hardly looks at the radar
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    images = {"camera": torch.randn(4, 3, 40, 40), "radar": torch.randn(4, 2, 40, 40)}
    label = (images["camera"][:, 0] + images["radar"][:, 0] > 0).long()
    term = Regularizer(
        RegularizerConfig(
            prediction="input", probe_every=1, probe_samples=4, probe_crop=1.0, delay=0.0, lambda_p=0.1
        )
    )
    gaps = []
    for _ in range(30):
        loss = F.cross_entropy(F.interpolate(model(images), label.shape[-2:], mode="bilinear"), label)
        loss = loss + term(model, images, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gaps.append(float(term.information["input"].max() / term.information["input"].min()))
    assert term.counts["probes"] == 30 and gaps[0] > 20 and gaps[-1] < gaps[0] / 2


def test_terms_are_the_information_combined():
    net, (images, label) = network(), batch()
    logits, features = net(images, fuse=False)
    assert (
        logits["rgb"][0, 0].numel() > 256 and features[-4][0, 0].numel() > 64
    )  # larger than what the closed forms read
    found = regularizer(prediction="unimodal-logit", features="kl", lambda_p=0.5, lambda_f=0.25)(
        net, images, label, logits=logits, features=features
    )
    thin = {
        name: value[..., 1::2, 1::2] for name, value in logits.items()
    }  # 32 x 24 positions, every second row and column
    expected = 0.5 * combine(
        logit_information(thin, nearest(label, (32, 24))[..., 1::2, 1::2]).mean(1), "balance"
    )
    maps = [features[-4][..., 1::2, 1::2], *features[-3:]]
    for values in feature_information(maps, 3):
        expected = expected + 0.25 * combine(values.mean(1), "balance")
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_the_probe_is_lazy_and_amortised():
    net, (images, label) = network(), batch(3)
    lazy = regularizer(prediction="input", probe_every=4, probe_samples=3, probe_crop=1.0, lambda_p=1.0)
    every = regularizer(prediction="input", probe_every=1, probe_samples=3, probe_crop=1.0, lambda_p=1.0)
    values = [float(lazy(net, images, label).detach()) for _ in range(9)]
    assert [v > 0 for v in values] == [s % 4 == 0 for s in range(9)] and lazy.counts["probes"] == 3
    assert values[0] == pytest.approx(4 * float(every(net, images, label, step=0).detach()), rel=1e-5)
    again = regularizer(prediction="input", probe_every=4, probe_samples=3, probe_crop=1.0, lambda_p=1.0)
    assert (
        float(again(net, images, label, step=8).detach()) == values[8]
    )  # a function of the step, not of the past


def test_a_single_modality_gives_no_balance_term():
    net, (images, label) = network(), batch()
    alone = regularizer(prediction="input", lambda_p=1.0)(net, {"rgb": images["rgb"]}, label)
    assert abs(float(alone.detach())) < 1e-5


def test_delay_then_ramp():
    term = Regularizer(RegularizerConfig(prediction="input", delay=0.2))
    assert [term.strength(p) for p in (0.0, 0.19, 0.2, 0.3, 0.4, 1.0)] == pytest.approx([0, 0, 0, 0.5, 1, 1])
    net, (images, label) = network(), batch()
    assert float(term(net, images, label, progress=0.1)) == 0 and term.counts["probes"] == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(lambda_p=-0.1), "0 or more"),
        (dict(lambda_f=-1.0), "0 or more"),
        (dict(lambda_p=float("nan")), "a finite number"),
        (dict(sigma=0.0), "above 0"),
        (dict(sigma=float("nan")), "a finite number"),
        (dict(probe_every=0), "1 or more"),
        (dict(probe_crop=0.0), "--probe-crop 0.0: expected above 0, at most 1"),
        (dict(cap=0.0), "--cap 0.0: expected above 0"),
        (dict(delay=1.0), "0 or more and below 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Regularizer(RegularizerConfig(**options))


def test_the_features_of_eq_7_have_four_scales_in_every_reading():
    """Those of the encoder's four stages; the residual encoder's fifth, finer map is its stem's."""
    net, (images, label) = network(), batch()
    logits, features = net(images, fuse=False)
    assert len(features) == 5
    for reading in ("kl", "ce", "decoder"):
        term = regularizer(features=reading, probe_every=1, probe_crop=1.0, probe_samples=2)
        term(net, images, label, features=features)
        assert sorted(term.information) == [f"{reading} scale {j}" for j in (1, 2, 3, 4)]


def test_missing_tensors_are_asked_for():
    net, (images, label) = network(), batch()
    for options, what in ((dict(prediction="unimodal-logit"), "logits="), (dict(features="kl"), "features=")):
        with pytest.raises(ValueError, match=what):
            regularizer(**options)(net, images, label)


READINGS = [dict(prediction=p) for p in ("input", "consistency", "unimodal-logit")] + [
    dict(features=f) for f in ("kl", "ce", "decoder")
]


@pytest.mark.parametrize("form", ["balance", "share", "inverse"])
@pytest.mark.parametrize("options", READINGS, ids=str)
def test_hard_input_is_counted_and_never_reaches_the_weights(options, form):
    """All pixels ignored, a constant zero modality, one sample: finite gradients, and a count where something
    was left out.
    """
    for case in ("ignored", "half ignored", "constant", "one sample", "all constant"):
        net, (images, label) = network().train(), batch(1 if case == "one sample" else 2)
        if case == "ignored":
            label[:] = 255
        elif case == "half ignored":
            label[0] = 255
        elif case == "constant":
            images["depth"] = torch.zeros_like(images["depth"])
        elif case == "all constant":
            images = {n: torch.zeros_like(x) for n, x in images.items()}
        term = regularizer(
            **options, form=form, probe_samples=2, probe_every=1, cap=10.0, lambda_p=0.3, lambda_f=0.3
        )
        logits, features = net(images, fuse=False)
        value = term(net, images, label, logits=logits, features=features)
        (value + 0 * sum(z.sum() for z in logits.values())).backward()
        assert torch.isfinite(value) and all(
            torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None
        ), case
        labelled = not {"kl", "ce", "consistency"} & set(options.values())  # the others have no target in it
        assert term.counts["empty"] == (
            0
            if not labelled
            else {"ignored": 2, "half ignored": 1}.get(case, 0)
            * (4 if options.get("features") == "decoder" else 1)
        ), case


def test_a_nan_in_an_image_is_counted_and_gives_no_term():
    net, (images, label) = network(), batch(2)
    images["depth"][0, 0, 3, 3] = float("nan")
    term = regularizer(prediction="input", probe_samples=2, probe_every=1, probe_crop=1.0)
    value = term(net, images, label)
    assert torch.isfinite(value) and term.counts["nonfinite"] >= 1


@pytest.mark.parametrize("form", ["balance", "share", "inverse"])
def test_an_information_whose_inverse_has_no_finite_gradient_is_left_out(form):
    """Large features that agree: probabilities of 1 and e^-45, so that I is about 1e-33."""
    features = torch.zeros(2, 8, 3, 3)
    features[:, 0] = 45
    features[1, 1] = 1
    features.requires_grad_()
    information = feature_information([features], 2)[0]
    assert ((information > 0) & (information < 1e-30)).all()
    value, _, _ = information_term(information, information, form, 10.0)
    (gradient,) = torch.autograd.grad(value, features)
    assert value == 0 and torch.isfinite(gradient).all()


def test_the_cap_is_counted_and_keeps_the_direction():
    net, (images, label) = network(), batch()
    options = dict(prediction="input", form="inverse", probe_every=1, lambda_p=1.0)
    gradients = []
    for cap in (1e9, 0.5):
        term = regularizer(**options, cap=cap)
        value = term(net, images, label)
        gradients.append(torch.autograd.grad(value, net.head.classify.weight)[0])
        assert term.counts["capped"] == (cap == 0.5)
    assert float(value.detach()) == pytest.approx(0.5, rel=1e-5)
    assert F.cosine_similarity(*(g.flatten() for g in gradients), dim=0) == pytest.approx(1.0, abs=1e-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(toy.make(tmp_path_factory.mktemp("toy")))


def settings_for(data, out, **options):
    base = dict(
        data=data,
        out=str(out),
        epochs=3,
        batch_size=2,
        eval_every=0,
        save_every=1,
        progress=False,
        lr=1e-3,
        information_samples=2,
    )
    return TrainConfig(**base | options)


@pytest.mark.parametrize(
    "options",
    [
        dict(prediction="input", features="kl"),
        dict(prediction="gat", lambda_p=1e-10),
        dict(prediction="consistency", features="decoder"),
        dict(prediction="unimodal-logit", features="ce", form="inverse"),
        dict(prediction="input", variance=True, form="share"),
    ],
    ids=str,
)
def test_training_with_every_reading(options, data, tmp_path):
    config = settings_for(
        data, tmp_path / "run", regularizer=RegularizerConfig(delay=0.0, probe_every=2, **options)
    )
    report = train(config)
    steps, evaluations = read_history(tmp_path / "run" / "history.jsonl")
    assert np.isfinite(report["scores"]["summary"]["all"]["mean"]) and steps[-1]["skipped"] == 0
    assert set(evaluations[-1]["information"]) == set(toy.MODALITIES)
    probed = options.get("prediction") in ("input", "gat", "consistency")
    assert report["guards"]["probes"] == (9 if probed else 0)
    plain = train(settings_for(data, tmp_path / "plain"))
    assert plain["scores"] != report["scores"] or plain["information"] != report["information"]


def test_bf16_training_keeps_the_probe_in_full_precision(data, tmp_path):
    """The same step: information in float32, whatever the precision of the rest. pvt_v2 with checkpointed
    activations.
    """
    found = {}
    for precision in ("no", "bf16"):
        options = dict(precision=precision, network=NetworkConfig("pvt_v2_b0", checkpointing=True))
        term = RegularizerConfig("input", delay=0.0, probe_every=100)
        train(settings_for(data, tmp_path / precision, epochs=0.1, regularizer=term, **options))
        found[precision] = read_history(tmp_path / precision / "history.jsonl")[0][-1]
    assert (
        found["no"]["regularized"] == found["bf16"]["regularized"]
        and found["no"]["probe"] == found["bf16"]["probe"] > 0
    )
    assert found["no"]["supervised"] != found["bf16"]["supervised"]


TRAINER = """
import sys
sys.path.insert(0, {root!r})
from mmlib.cli import main
main(sys.argv[1:])
"""


def test_two_processes_train_with_probe_dropout_and_accumulation(data, tmp_path):
    """Unused stems, a probe outside of the wrapped network, two micro-batches: the gradient exchange must
    still come out even.
    """
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER.format(root=str(ROOT)))
    options = (
        "--epochs 2 --batch-size 1 --accumulate 2 --subsets dropout --prediction input --features kl "
        "--probe-every 2 --delay 0 --eval-every 0 --no-progress"
    ).split()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += [str(script), "train", "--data", data, "--out", str(tmp_path / "two"), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert finished.returncode == 0, finished.stderr[-2000:]
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["steps"] == 6 and report["guards"]["probes"] == 3 and report["guards"]["nonfinite"] == 0


def test_resumed_run_is_the_same_run(data, tmp_path):
    """With probes: their noise, crops and counts belong to the step. The history names the latest probe, also
    where that was before the run was stopped.
    """
    term = RegularizerConfig(prediction="input", features="kl", delay=0.0, probe_every=10)
    options = dict(regularizer=term, epochs=3, save_every=2)
    whole = train(settings_for(data, tmp_path / "whole", **options))
    from mmlib import loop

    original, seen = loop.save_state, []

    def stop(*arguments):
        original(*arguments)
        seen.append(1)
        if len(seen) == 1:
            raise KeyboardInterrupt

    loop.save_state = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            train(settings_for(data, tmp_path / "parts", **options))
    finally:
        loop.save_state = original
    parts = train(settings_for(data, tmp_path / "parts", **options))
    assert (
        parts["scores"] == whole["scores"]
        and parts["information"] == whole["information"]
        and parts["guards"] == whole["guards"]
    )
    steps = [read_history(tmp_path / name / "history.jsonl")[0] for name in ("whole", "parts")]
    for line in itertools.chain(*steps):
        del line["seconds"]
    assert steps[0] == steps[1] and {"input", "kl scale 1"} <= set(steps[0][-1]["regularized"])


def test_accumulated_closed_form_is_the_mean_over_micro_batches(data, tmp_path):
    """Two identical micro-batches give the gradient of one."""
    net, (images, label) = network(), batch()
    found = []
    for count in (1, 2):
        net.zero_grad()
        for _ in range(count):
            logits, features = net(images, fuse=False)
            (closed_form(regularizer(features="kl"), logits, features, label) / count).backward()
        found.append(net.encoder.stages[0].body[0].weight.grad.clone())
    assert torch.allclose(*found, rtol=1e-4, atol=1e-8)


def gradients_after_exchange(rank: int) -> list[float]:
    """In each of two processes: the sum of every parameter's gradient."""
    accelerator = Accelerator(cpu=True)
    net = network()
    model = accelerator.prepare(net)
    images, label = batch(4)
    mine = slice(2 * rank, 2 * rank + 2)
    images, label = {n: x[mine] for n, x in images.items()}, label[mine]
    term = regularizer(prediction="input", features="kl", probe_every=1, probe_samples=2, probe_crop=1.0)
    with accelerator.no_sync(model):
        whole = {"images": images, "label": label, "present": torch.ones(2, len(images)).bool()}
        accelerator.backward(term.probe(net, whole, 0)[0])
    logits, features = model(images, fuse=False)
    accelerator.backward(
        closed_form(term, logits, features, label) + 0 * sum(z.sum() for z in logits.values())
    )
    accelerator.end_training()
    return [float(p.grad.double().sum()) for p in net.parameters()]


def test_two_processes_average_their_terms():
    """The gradient after the exchange is the mean of what each process has from its own samples."""
    exchanged, exchanged_too = together(gradients_after_exchange)
    assert exchanged == exchanged_too
    apart = []
    for rank in range(2):
        net, (images, label) = network(), batch(4)
        mine = slice(2 * rank, 2 * rank + 2)
        images, label = {n: x[mine] for n, x in images.items()}, label[mine]
        term = regularizer(prediction="input", features="kl", probe_every=1, probe_samples=2, probe_crop=1.0)
        logits, features = net(images, fuse=False)
        (
            term(net, images, label, logits=logits, features=features, step=0)
            + 0 * sum(z.sum() for z in logits.values())
        ).backward()
        apart.append([float(p.grad.double().sum()) for p in net.parameters()])
    scale = max(abs(v) for v in exchanged)
    assert np.allclose(exchanged, np.mean(apart, 0), rtol=1e-3, atol=1e-5 * scale)
    assert not np.allclose(apart[0], apart[1], rtol=1e-2, atol=1e-4 * scale)


def test_objectives_with_the_regulariser_share_a_command_line(data, tmp_path, monkeypatch):
    """The paper's objective in one line: modality dropout, R_p and R_f as printed."""
    from mmlib import cli

    configs = []
    monkeypatch.setattr(cli, "train", configs.append)
    flags = "--subsets dropout --prediction unimodal-logit --features ce --form inverse"
    weights = "--lambda-p 0.3 --lambda-f 0.02"
    cli.main(["train", "--data", data, "--out", str(tmp_path), *flags.split(), *weights.split()])
    assert configs[0].objective == ObjectiveConfig(subsets="dropout")
    assert configs[0].regularizer == RegularizerConfig(
        "unimodal-logit", "ce", "inverse", lambda_p=0.3, lambda_f=0.02
    )


def test_input_term_lowers_the_gap_it_measures():
    """A few steps on the term alone bring the information of the modalities together."""
    net, (images, label) = network(), batch(2, (32, 32))
    net.stems["rgb"][0].weight.data *= 8
    net.stems["rgb"][1].weight.data *= 3
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def gap():
        values = input_information(net, images, label, seed=1)[0].detach().mean(1)
        return float(values.max() / values.min())

    term = regularizer(
        prediction="input", probe_every=1, probe_samples=2, probe_crop=1.0, form="share", lambda_p=1.0
    )
    before = gap()
    for _ in range(40):
        optimizer.zero_grad()
        term(net, images, label).backward()
        optimizer.step()
    assert before > 2 and 1 <= gap() < 1 + 0.5 * (before - 1)
