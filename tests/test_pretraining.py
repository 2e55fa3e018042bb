"""The recipe of the small transformer that comes with the library: its parts in closed form, the same bits
when repeated, and that it learns without collapse.
"""

import copy
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mmlib.runtime import derived_seed, read_tensor_header, read_tensors, seed_everything
from mmlib.unsupervised.backbone import SHIPPED, load_backbone

sys.path.insert(0, str(Path(__file__).parents[1] / "notebooks" / "results"))

import pretrain as recipe  # noqa: E402

PretrainConfig, pretrain = recipe.PretrainConfig, recipe.pretrain
window, sinkhorn = recipe.window, recipe.sinkhorn

SMALL = dict(
    modalities=("rgb", "depth"),
    size=(32, 48),
    batch_size=4,
    channels=24,
    depth=1,
    heads=3,
    prototypes=8,
    device="cpu",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(toy.make(tmp_path_factory.mktemp("toy"), labels=False))


def configured(data, out, steps=12, **options) -> PretrainConfig:
    return PretrainConfig(str(out), (data,), steps=steps, progress=False, **SMALL | options)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 99), st.sampled_from([0.05, 0.5]))
@settings(max_examples=20, deadline=None)
def test_sinkhorn_is_the_alternating_scaling_of_a_matrix(seed, temperature):
    scores = torch.rand(12, 4, generator=generator(seed)) * 2 - 1
    matrix = np.exp(scores.double().numpy() / temperature)
    for _ in range(3):
        matrix /= matrix.sum(0)
        matrix /= matrix.sum(1, keepdims=True)
    found = sinkhorn(scores, temperature)
    np.testing.assert_allclose(found.numpy(), matrix, atol=1e-5)
    balanced = sinkhorn(scores, temperature, 3000)
    np.testing.assert_allclose(balanced.sum(1), np.ones(12), atol=1e-5)
    np.testing.assert_allclose(balanced.sum(0), np.full(4, 3.0), atol=0.02)


def test_sinkhorn_uses_prototypes_that_nobody_prefers():
    scores = torch.zeros(8, 4)
    scores[:, 0] = 1.0
    assert torch.allclose(sinkhorn(scores, 0.05), torch.full((8, 4), 0.25))
    assert torch.isfinite(sinkhorn(scores * 1e4, 0.05)).all()


def test_a_mask_hides_what_is_below_it():
    torch.manual_seed(0)
    network = recipe.Assigner(configured("data", "out")).eval()
    images = torch.rand(1, 3, 64, 64)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 2:6, 2:6] = True
    changed = images.clone()
    changed[..., 28:36, 28:36] = (
        0.0  # deep inside: the stem's receptive field of 15 pixels does not reach a visible token
    )
    with torch.no_grad():
        # GroupNorm sees the whole picture, so only its statistics pass the mask; without it nothing does.
        for layer in network.vit.stem:
            if isinstance(layer, torch.nn.GroupNorm):
                layer.forward = lambda x: x
        assert torch.equal(network(images, mask)[1], network(changed, mask)[1])
        assert not torch.allclose(network(images)[1], network(changed)[1], atol=1e-3)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 1), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_masks_have_exactly_their_share(h, w, share, seed):
    masks = recipe.random_masks(3, (h, w), share, generator(seed))
    assert masks.shape == (3, h, w) and masks.sum((1, 2)).tolist() == [round(share * h * w)] * 3
    assert torch.equal(masks, recipe.random_masks(3, (h, w), share, generator(seed)))


def test_masks_are_blocks_and_cover_every_place():
    masks = recipe.random_masks(400, (8, 8), 0.4, generator()).float()
    share = round(0.4 * 64) / 64
    together = (masks[:, :, 1:] * masks[:, :, :-1]).mean()
    assert (
        together > 1.3 * share**2
    )  # independent patches would have share² of their neighbours masked with them
    assert 0.04 < masks.mean(0).min() and masks.mean(0).max() < 0.7


def test_windows_are_pieces_of_the_picture():
    y, x = torch.meshgrid(torch.arange(32), torch.arange(48), indexing="ij")
    picture = torch.stack([y * 4, x * 4, torch.full_like(x, 7)]).to(torch.uint8)
    whole = PretrainConfig("", size=(32, 48), zoom=1.0)
    found = [window(picture, whole, generator(seed)) for seed in range(20)]
    plain = picture / 255
    mirrored = [bool(torch.equal(view, plain.flip(-1))) for view in found]
    assert all(m or torch.equal(view, plain) for m, view in zip(mirrored, found)) and 4 < sum(mirrored) < 16
    zoomed = [window(picture, replace(whole, size=(16, 24), zoom=0.5), generator(seed)) for seed in range(20)]
    for view in zoomed:
        assert view.shape == (3, 16, 24) and torch.allclose(view[2], torch.full((16, 24), 7 / 255))
        steps = [
            view[0].diff(dim=0).mean() * 255 / 4,
            view[1].diff(dim=1).mean().abs() * 255 / 4,
        ]  # pixels of the source per pixel
        assert all(0.9 < step < 2.1 for step in steps)
    assert len({float(view[0].mean()) for view in zoomed}) > 10


def test_light_changes_by_at_most_what_is_asked():
    images = torch.rand(64, 3, 8, 8, generator=generator())
    still = recipe.relight(images, 0.0, generator(1))
    assert (still - images).abs().max() < 0.12 and (still - images).abs().mean() < 0.02
    lit = recipe.relight(images, 0.4, generator(1))
    assert 0 <= lit.min() and lit.max() <= 1 and lit.mean((1, 2, 3)).std() > 3 * images.mean((1, 2, 3)).std()
    grey = recipe.relight(torch.full((200, 3, 1, 1), 0.5), 0.4, generator(2)).mean((2, 3))
    darkest, brightest = 0.5**1.4 * 0.6 * 0.8, 0.5 ** (1 / 1.4) * 1.4 * 1.2
    assert (
        darkest - 0.1 < grey.min()
        and grey.max() < min(1.0, brightest) + 0.1
        and (grey.max(1)[0] - grey.min(1)[0]).mean() > 0.05
    )


def test_schedule():
    config = PretrainConfig("", steps=100, lr=2.0, warmup=0.1, momentum=0.9)
    values = {step: recipe.schedule(step, config) for step in (0, 9, 50, 55, 99)}
    assert values[0] == pytest.approx((0.2, 0.9)) and values[9][0] == pytest.approx(2.0)
    assert values[55][0] == pytest.approx(1.0) and values[50][1] == pytest.approx(0.95)
    assert 0 < values[99][0] < 0.01 and 0.999 < values[99][1] < 1
    assert recipe.schedule(0, replace(config, warmup=0.0))[0] == 2.0
    assert recipe.schedule(99, replace(config, warmup=1.0))[0] == 2.0


def test_diagnostics_tell_a_collapse():
    config = PretrainConfig("", prototypes=4)
    tokens = torch.randn(4000, 6, generator=generator())
    even = torch.eye(4).repeat(1000, 1)
    healthy = recipe.diagnostics(even, tokens, config)
    assert (
        healthy["usage"] == pytest.approx(1, abs=1e-5)
        and healthy["sharpness"] > 0.99
        and healthy["rank"] == pytest.approx(6, abs=0.1)
    )
    lopsided = recipe.diagnostics(even, tokens * torch.tensor([2.0, 1, 0, 0, 0, 0]), config)[
        "rank"
    ]  # variances 4 and 1
    assert lopsided == pytest.approx(math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2))), abs=0.03)
    one = torch.zeros(4000, 4)
    one[:, 2] = 1
    line = torch.outer(torch.randn(4000, generator=generator()), torch.ones(6))
    collapsed = recipe.diagnostics(one, line, config)
    assert collapsed["usage"] == pytest.approx(0, abs=1e-5) and collapsed["rank"] == pytest.approx(
        1, abs=0.01
    )
    assert recipe.diagnostics(torch.zeros(4000, 4), tokens, config)["sharpness"] == pytest.approx(0, abs=1e-5)
    # cosines ±c at the teacher's temperature: entropy of two halves of the prototypes, by hand
    split = torch.tensor([[0.05, 0.05, -0.05, -0.05]]).repeat(50, 1)
    p = np.exp([1, 1, -1, -1]) / np.exp([1, 1, -1, -1]).sum()
    expected = 1 + (p * np.log(p)).sum() / math.log(4)
    assert recipe.diagnostics(split, tokens, config)["sharpness"] == pytest.approx(expected, abs=1e-5)


def test_the_teacher_is_a_running_mean_of_the_student(data, tmp_path, monkeypatch):
    networks = []

    def deepcopy(student):
        networks.extend([student, copy.deepcopy(student)])
        return networks[1]

    monkeypatch.setattr(recipe, "copy", SimpleNamespace(deepcopy=deepcopy))
    config = configured(data, tmp_path, steps=1, momentum=0.75, lr=0.01, warmup=0.0)
    pretrain(config)
    student, teacher = (network.state_dict() for network in networks)
    seed_everything(derived_seed(0, "weights"))
    moved = 0
    for name, start in recipe.Assigner(config).state_dict().items():
        torch.testing.assert_close(teacher[name], 0.75 * start + 0.25 * student[name])
        moved += float((student[name] - start).abs().max()) > 1e-3
    assert moved > 20
    assert student["vit.mask_token"].abs().max() > 1e-3  # used: patches were masked from the student
    saved = read_tensors(tmp_path / "vit.safetensors")
    assert saved and all(torch.equal(value, teacher[f"vit.{name}"].half()) for name, value in saved.items())


def test_it_learns_without_collapse_and_leaves_a_complete_record(data, tmp_path):
    report = pretrain(configured(data, tmp_path, steps=100, lr=1e-2, momentum=0.9))
    written = json.loads((tmp_path / "report.json").read_text())
    history = written.pop("history")
    assert [line["step"] for line in history] == [20, 40, 60, 80, 100]
    assert history[-1]["loss"] < 0.75 * math.log(8) and history[-1]["loss"] < history[0]["loss"] - 0.2
    assert history[-1]["usage"] > 0.5 and history[-1]["rank"] > 1.5
    header = read_tensor_header(tmp_path / "vit.safetensors")
    assert header["recipe"] == json.loads(json.dumps(report)) == written
    assert report["pictures"] == 24 and report["steps"] == 100 and report["provenance"]["seed"] == 0
    assert str(tmp_path) not in json.dumps(header) and data not in json.dumps(header)  # no machine's paths
    made = load_backbone("descriptors+vit", tmp_path / "vit.safetensors")
    assert made.channels == 40 + 24 and made.extract(torch.rand(1, 3, 16, 24)).shape == (1, 64, 2, 3)


def test_the_same_seed_gives_the_same_bits(data, tmp_path):
    weights = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        torch.manual_seed(len(weights))  # the caller's generator plays no part
        pretrain(configured(data, tmp_path / name, steps=3, seed=seed))
        weights.append(load_file(tmp_path / name / "vit.safetensors"))
    first, again, other = weights
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


def test_only_training_frames_of_the_sensors_asked_for_are_read(tmp_path):
    root = toy.make(tmp_path / "toy", train=3, val=2)
    for path in [*root.glob("*/val_*"), *(root / "aolp").iterdir(), *(root / "label").iterdir()]:
        path.write_bytes(b"unreadable")
    pictures = recipe.load_pictures(configured(str(root), tmp_path))
    assert len(pictures) == 3 * 2 and all(p.shape == (3, 32, 48) and p.dtype == torch.uint8 for p in pictures)
    stored, _ = toy.sample(0)
    assert torch.equal(pictures[0], torch.from_numpy(stored["rgb"]).permute(2, 0, 1))


def test_the_shipped_weights_were_made_with_the_defaults():
    """So that the command in their header, which names no settings, is the recipe."""
    header = read_tensor_header(SHIPPED)["recipe"]
    defaults = json.loads(json.dumps(asdict(PretrainConfig(""))))
    for name in ("out", "progress", "device"):
        del defaults[name]
    assert {name: header["config"][name] for name in defaults} == defaults
    assert header["steps"] == defaults["steps"]
