"""The same numbers on a GPU: losses, gradients, runs and scores against those of the CPU. Skipped
without one.

Run by ``make test-gpu``: other tests do not see a GPU (conftest.py).
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import configured

from mmlib.data.prepared import PreparedDataset, collate
from mmlib.evaluation.subsets import evaluate_subsets
from mmlib.segmentation import step as stepping
from mmlib.segmentation.network import NetworkConfig, Segmenter, load_segmenter
from mmlib.segmentation.objective import ObjectiveConfig, subset_cross_entropy
from mmlib.segmentation.regularizer import PROBED, Regularizer, RegularizerConfig
from mmlib.segmentation.step import TrainConfig, learning_rate
from mmlib.segmentation.train import train
from mmlib.unsupervised.inference import SegmentConfig, segment
from mmlib.unsupervised.train import Model, cluster, measure_shifts, step_loss

pytestmark = [
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use, and make test-gpu"
    ),
    pytest.mark.usefixtures("own_cache"),
]


def outcome(loss, network) -> dict[str, torch.Tensor]:
    gradients = {n: p.grad.cpu().clone() for n, p in network.named_parameters() if p.grad is not None}
    return {"loss": loss.detach().cpu(), **gradients}


def same(here: dict, there: dict, **tolerance):
    assert here.keys() == there.keys() and any(x.abs().max() > 1e-6 for x in here.values())
    for name in here:
        torch.testing.assert_close(
            there[name], here[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance
        )


@pytest.mark.parametrize(
    "fusion, reading",
    [
        ("mean", {}),
        ("mean", {"prediction": "unimodal-logit", "features": "kl"}),
        ("mean", {"prediction": "input"}),
        ("mean", {"prediction": "consistency"}),
        ("mean", {"features": "decoder"}),
        ("cmx", {}),
        ("cmx", {"prediction": "input"}),
        ("centred", {}),
    ],
    ids=str,
)
def test_loss_information_and_gradients_are_those_of_the_cpu(data, fusion, reading):
    """Every kind of fusion and reading of the regulariser in float64, on the same random numbers."""
    samples = PreparedDataset(data, "train")
    batch = collate([samples[i] for i in range(4)])
    classes, palette = samples.description.classes, samples.description.palette
    torch.manual_seed(0)
    kind = NetworkConfig(fusion=fusion, dropout=0.0)
    network = Segmenter(samples.modalities, classes, palette, kind).double()
    objective = ObjectiveConfig(subsets="all-subsets" if fusion == "mean" else "full")
    found = []
    for device in ("cpu", "cuda"):
        term = Regularizer(RegularizerConfig(**reading, delay=0.0, probe_crop=1.0))
        network.to(device).zero_grad()
        images = {name: image.to(device, torch.float64) for name, image in batch["images"].items()}
        label = batch["label"].to(device)
        logits, features = network(images, fuse=False)
        valid = (label != 255).sum()
        loss = subset_cross_entropy(logits, label, objective, valid, np.random.default_rng(0))["supervised"]
        if term.config.readings - PROBED:
            own = term.read(logits, features, label)
            loss = loss + sum(term.terms(own, own))
        if term.due(0):
            whole = batch | {"images": images, "label": label, "present": torch.ones(4, len(images)).bool()}
            loss = loss + sum(term.probe(network, whole, 0))
        loss.backward()
        found.append(outcome(loss, network))
    same(*found, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", ["unim2", "stego", "depthg", "coral", "mmd", "cosine"])
def test_the_loss_of_a_clustering_method_is_that_of_the_cpu(data, shared, monkeypatch, method):
    """In float32, on the same tokens. EAGLE is not among them: its clustering of rounded values jumps."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plan, prepared = shared(method)
    found = []
    for device in ("cpu", "cuda"):
        there = replace(prepared, tokens=replace(prepared.tokens, device=device))
        torch.manual_seed(0)
        model = Model(configured(data, method=method), plan, there.tokens.channels, 3).to(device)
        model.eval()  # without dropout
        loss, _ = step_loss(model, there, measure_shifts(model, there), 0)
        loss.backward()
        found.append(outcome(loss, model))
    same(*found, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_segmenter_trained_there_learns_resumes_and_scores_the_same_here(
    data, tmp_path, monkeypatch, precision
):
    config = TrainConfig(
        data, str(tmp_path / "run"), epochs=20, save_every=1, precision=precision, progress=False, cache=True
    )

    class Killed(BaseException):
        pass

    def dying(step, *rest):
        if step == 31:
            raise Killed
        return learning_rate(step, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(stepping, "learning_rate", dying)
        train(config)
    report = train(config)  # goes on where it stopped
    assert report["steps"] == 60 and report["scores"]["summary"]["all"]["mean"] > 60
    samples, scores = PreparedDataset(data, "val"), []
    for device in ("cpu", "cuda"):
        network = load_segmenter(tmp_path / "run" / "last.safetensors").to(device)
        scores.append(evaluate_subsets(**network.scoring(), dataset=samples, device=device, batch_size=2))
    here, there = (s.summary()["mean"] for s in scores)
    assert there == pytest.approx(here, abs=0.5)


def test_a_clustering_trained_there_names_the_same_pixels_here(data, tmp_path):
    report = cluster(configured(data, tmp_path / "run", device="cuda", steps=40))
    for device in ("cuda", "cpu"):
        again = segment(
            SegmentConfig(
                str(tmp_path / "run"),
                data,
                str(tmp_path / f"maps_{device}"),
                "val",
                device=device,
                progress=False,
            )
        )
        assert again["miou"]["all"] == pytest.approx(report["scores"]["miou"]["all"], abs=1)
