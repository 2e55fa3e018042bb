"""Self-distillation of the small transformer: its parts in closed form, exact resume, and that it learns
without collapse.
"""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mmlib import world
from mmlib.runtime import derived_seed, read_tensor_header, read_tensors, seed_everything
from mmlib.state import read_history
from mmlib.unsupervised import pretraining
from mmlib.unsupervised.backbone import SHIPPED, load_backbone
from mmlib.unsupervised.pretraining import (
    Assigner,
    PretrainConfig,
    check,
    diagnostics,
    load_pictures,
    pretrain,
    random_masks,
    relight,
    schedule,
    sinkhorn,
    window,
)

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


def config(data, out, steps=12, **options) -> PretrainConfig:
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


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 1), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_masks_have_exactly_their_share(h, w, share, seed):
    masks = random_masks(3, (h, w), share, generator(seed))
    assert masks.shape == (3, h, w) and masks.sum((1, 2)).tolist() == [round(share * h * w)] * 3
    assert torch.equal(masks, random_masks(3, (h, w), share, generator(seed)))


def test_masks_are_blocks_and_cover_every_place():
    masks = random_masks(400, (8, 8), 0.4, generator()).float()
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
    still = relight(images, 0.0, generator(1))
    assert (still - images).abs().max() < 0.12 and (still - images).abs().mean() < 0.02
    lit = relight(images, 0.4, generator(1))
    assert 0 <= lit.min() and lit.max() <= 1 and lit.mean((1, 2, 3)).std() > 3 * images.mean((1, 2, 3)).std()
    grey = relight(torch.full((200, 3, 1, 1), 0.5), 0.4, generator(2)).mean((2, 3))
    darkest, brightest = 0.5**1.4 * 0.6 * 0.8, 0.5 ** (1 / 1.4) * 1.4 * 1.2
    assert (
        darkest - 0.1 < grey.min()
        and grey.max() < min(1.0, brightest) + 0.1
        and (grey.max(1)[0] - grey.min(1)[0]).mean() > 0.05
    )


def test_contrast_is_a_power_of_brightness():
    images = torch.full((200, 3, 16, 16), 0.1)
    images[..., 8:] = 0.3
    lit = relight(images, 0.4, generator(3))
    powers = (lit[..., 8:].mean((2, 3)) / lit[..., :8].mean((2, 3))).log() / math.log(
        3
    )  # gain and cast cancel
    assert 1 / 1.45 < powers.min() < 0.75 and 1.3 < powers.max() < 1.5
    assert (powers.amax(1) - powers.amin(1)).max() < 0.15  # one power for the three channels


def test_schedule():
    given = PretrainConfig("", steps=100, lr=2.0, warmup=0.1, momentum=0.9)
    assert schedule(0, given) == pytest.approx((0.2, 0.9)) and schedule(9, given)[0] == pytest.approx(2.0)
    assert schedule(55, given)[0] == pytest.approx(1.0) and schedule(50, given)[1] == pytest.approx(0.95)
    rate, momentum = schedule(99, given)
    assert 0 < rate < 0.01 and 0.999 < momentum < 1
    assert (
        schedule(0, replace(given, warmup=0.0))[0] == 2.0
        and schedule(99, replace(given, warmup=1.0))[0] == 2.0
    )


def test_diagnostics_tell_a_collapse():
    given = PretrainConfig("", prototypes=4)
    tokens = torch.randn(4000, 6, generator=generator())
    even = torch.eye(4).repeat(1000, 1)
    healthy = diagnostics(even, tokens, given)
    assert (
        healthy["usage"] == pytest.approx(1, abs=1e-5)
        and healthy["sharpness"] > 0.99
        and healthy["rank"] == pytest.approx(6, abs=0.1)
    )
    lopsided = diagnostics(even, tokens * torch.tensor([2.0, 1, 0, 0, 0, 0]), given)[
        "rank"
    ]  # variances 4 and 1
    assert lopsided == pytest.approx(math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2))), abs=0.03)
    one = torch.zeros(4000, 4)
    one[:, 2] = 1
    line = torch.outer(torch.randn(4000, generator=generator()), torch.ones(6))
    collapsed = diagnostics(one, line, given)
    assert collapsed["usage"] == pytest.approx(0, abs=1e-5) and collapsed["rank"] == pytest.approx(
        1, abs=0.01
    )
    assert diagnostics(torch.zeros(4000, 4), tokens, given)["sharpness"] == pytest.approx(0, abs=1e-5)
    # cosines ±c at the teacher's temperature: entropy of two halves of the prototypes, by hand
    split = torch.tensor([[0.05, 0.05, -0.05, -0.05]]).repeat(50, 1)
    p = np.exp([1, 1, -1, -1]) / np.exp([1, 1, -1, -1]).sum()
    expected = 1 + (p * np.log(p)).sum() / math.log(4)
    assert diagnostics(split, tokens, given)["sharpness"] == pytest.approx(expected, abs=1e-5)


def test_the_teacher_is_a_running_mean_of_the_student(data, tmp_path):
    given = config(data, tmp_path, steps=1, momentum=0.75, lr=0.01, warmup=0.0)
    pretrain(given)
    state = load_file(tmp_path / "resume.safetensors")
    seed_everything(derived_seed(0, "weights"))
    moved = 0
    for name, start in Assigner(given).state_dict().items():
        student, teacher = state[f"model.student.{name}"], state[f"model.teacher.{name}"]
        torch.testing.assert_close(teacher, 0.75 * start + 0.25 * student)
        moved += float((student - start).abs().max()) > 1e-3
    assert moved > 20
    assert (
        state["model.student.vit.mask_token"].abs().max() > 1e-3
    )  # it was used: patches were masked from the student
    shipped = read_tensors(tmp_path / "vit.safetensors")
    assert shipped and all(
        torch.equal(value, state[f"model.teacher.vit.{name}"].half()) for name, value in shipped.items()
    )


def test_it_learns_without_collapse_and_leaves_a_complete_record(data, tmp_path):
    given = config(data, tmp_path, steps=100, lr=1e-2, momentum=0.9)
    report = pretrain(given)
    steps, _ = read_history(tmp_path / "history.jsonl")
    assert [line["step"] for line in steps] == [20, 40, 60, 80, 100]
    assert steps[-1]["loss"] < 0.75 * math.log(8) and steps[-1]["loss"] < steps[0]["loss"] - 0.2
    assert steps[-1]["usage"] > 0.5 and steps[-1]["rank"] > 1.5
    header = read_tensor_header(tmp_path / "vit.safetensors")
    assert (
        header["recipe"]
        == json.loads(json.dumps(report))
        == json.loads((tmp_path / "report.json").read_text())
    )
    assert report["pictures"] == 24 and report["steps"] == 100 and report["provenance"]["seed"] == 0
    assert str(tmp_path) not in json.dumps(header) and data not in json.dumps(header)  # no machine's paths
    with open(tmp_path / "config.json") as file:
        assert json.load(file)["steps"] == 100
    made = load_backbone("descriptors+vit", tmp_path / "vit.safetensors")
    assert made.channels == 40 + 24 and made.extract(torch.rand(1, 3, 16, 24)).shape == (1, 64, 2, 3)
    again = pretrain(given)  # a finished run is not trained again
    assert again["last"] == report["last"] and len(read_history(tmp_path / "history.jsonl")[0]) == 5


def test_a_run_killed_between_states_ends_in_the_same_bits(data, tmp_path, monkeypatch):
    given = config(data, tmp_path / "whole", steps=45, save_every=7)
    pretrain(given)

    class Killed(BaseException):
        pass

    def dying(step, settings):
        if step == 33:  # after line 20 and five steps after the last state
            raise Killed
        return schedule(step, settings)

    cut = replace(given, out=str(tmp_path / "cut"))
    monkeypatch.setattr(pretraining, "schedule", dying)
    with pytest.raises(Killed):
        pretrain(cut)
    monkeypatch.setattr(pretraining, "schedule", schedule)
    torch.manual_seed(1234)  # another process has another generator
    pretrain(cut)
    for file in ("vit.safetensors", "resume.safetensors"):
        whole, resumed = load_file(tmp_path / "whole" / file), load_file(tmp_path / "cut" / file)
        assert whole.keys() == resumed.keys() and all(
            torch.equal(whole[name], resumed[name]) for name in whole
        )
    lines = [
        [
            {k: v for k, v in line.items() if k != "seconds"}
            for line in read_history(tmp_path / n / "history.jsonl")[0]
        ]
        for n in ("whole", "cut")
    ]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == [20, 40, 45]
    other = config(data, tmp_path / "other", steps=45, seed=1)
    pretrain(other)
    a, b = (
        load_file(tmp_path / "whole" / "vit.safetensors"),
        load_file(tmp_path / "other" / "vit.safetensors"),
    )
    assert not torch.equal(a["stem.0.weight"], b["stem.0.weight"])


def test_only_training_frames_of_the_sensors_asked_for_are_read(tmp_path):
    root = toy.make(tmp_path / "toy", train=3, val=2)
    for path in [*root.glob("*/val_*"), *(root / "aolp").iterdir(), *(root / "label").iterdir()]:
        path.write_bytes(b"unreadable")
    pictures = load_pictures(config(str(root), tmp_path))
    assert len(pictures) == 3 * 2 and all(p.shape == (3, 32, 48) and p.dtype == torch.uint8 for p in pictures)
    stored, _ = toy.sample(0)
    assert torch.equal(pictures[0], torch.from_numpy(stored["rgb"]).permute(2, 0, 1))


def test_the_sensor_world_is_rendered_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MMLIB_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    small = PretrainConfig("", ("room", "street"), ("rgb", "thermal"), frames=2, progress=False)
    pictures = load_pictures(small)
    assert len(pictures) == 2 * 2 * 2 and {tuple(p.shape) for p in pictures} == {(3, 96, 128)}
    frame = world.render_frame("street", 0, "day", modalities=("rgb", "thermal"))
    assert torch.equal(pictures[4], torch.from_numpy(frame.images["rgb"]).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(steps=0), "too few steps: at least 1"),
        (dict(data=()), "too few data sets"),
        (dict(modalities=()), "too few modalities"),
        (dict(prototypes=1), "too few prototypes: .*2"),
        (dict(size=(30, 48)), "multiples of 8"),
        (dict(channels=32), "32 channels: must be a multiple of 4 and of the 3 heads"),
        (dict(mask=0.0), "mask 0.0: expected a number from 0 to 1, not 0"),
        (dict(zoom=1.5), "zoom 1.5"),
        (dict(momentum=-0.1), "momentum -0.1"),
        (dict(temperature=0.0), "temperature 0.0"),
    ],
)
def test_settings_that_cannot_work(change, message):
    check(PretrainConfig("out"))
    with pytest.raises(ValueError, match=message):
        check(replace(PretrainConfig("out"), **change))


def test_the_shipped_weights_were_made_with_the_defaults():
    """So that the command in their header, which names no settings, is the recipe."""
    recipe = read_tensor_header(SHIPPED)["recipe"]
    ours = {
        key: value
        for key, value in asdict(PretrainConfig("")).items()
        if key not in ("out", "progress", "device")
    }
    assert recipe["config"] == json.loads(json.dumps(ours)) and recipe["steps"] == ours["steps"]


def test_another_configuration_does_not_overwrite_a_run(data, tmp_path):
    given = config(data, tmp_path, steps=2)
    pretrain(given)
    with pytest.raises(ValueError, match="another configuration .*mask was 0.4, is 0.5"):
        pretrain(replace(given, mask=0.5))
