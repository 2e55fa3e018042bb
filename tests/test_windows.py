"""Sliding windows against the whole image, against loops over pixels, and at the edges of what fits."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mmlib.data.images import write_image
from mmlib.data.prepared import PreparedDataset
from mmlib.evaluation import windows
from mmlib.evaluation.subsets import evaluate_subsets
from mmlib.evaluation.windows import positions, sliding


def pointwise(stride=1, classes=3):
    """A network that looks at one place at a time: 1×1 convolution at a stride, two separate sensors."""
    torch.manual_seed(0)
    layers = nn.ModuleDict(
        {"rgb": nn.Conv2d(3, classes, 1, stride), "depth": nn.Conv2d(1, classes, 1, stride)}
    )

    def encode(images):
        with torch.no_grad():
            return {name: layers[name](image) for name, image in images.items()}

    return encode


def random_images(batch, height, width):
    generator = torch.Generator().manual_seed(1)
    return {
        "rgb": torch.randn(batch, 3, height, width, generator=generator),
        "depth": torch.randn(batch, 1, height, width, generator=generator),
    }


sides = st.integers(1, 40)
# Windows on a finer grid than that of our encoders, for small images.
fine = patch.object(windows, "ALIGN", 4)


@settings(max_examples=60)
@given(
    sides,
    sides,
    st.sampled_from([(8, 12), (16, 8), (4, 20)]),
    st.sampled_from([(4, 4), (0, 0), (4, 8)]),
    st.sampled_from([1, 2, 4]),
)
def test_a_network_without_a_view_sees_no_windows(height, width, window, stride, head_stride):
    """Whatever the sizes: exactly the whole image's logits, at the head's resolution."""
    encode, images = pointwise(head_stride), random_images(2, height, width)
    whole = encode(images)
    with fine:
        found = sliding(encode, window, stride)(images)
    assert list(found) == list(whole)
    for name in whole:
        assert found[name].shape == whole[name].shape and torch.allclose(found[name], whole[name], atol=1e-6)


@fine
def test_a_network_with_a_small_view_agrees_away_from_the_windows_edges():
    """Two 3×3 convolutions at stride 2 see 3 pixels to each side: in the image's middle, which both windows
    hold well inside, nothing differs; at the windows' edges it does, as it must.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, 2, 1)).eval()
    encode = lambda images: {"rgb": net(images["rgb"]).detach()}
    images = {"rgb": random_images(1, 32, 48)["rgb"]}
    found, whole = sliding(encode, (32, 32), (16, 16))(images)["rgb"], encode(images)["rgb"]
    assert torch.allclose(found[..., 5:7], whole[..., 5:7], atol=1e-6) and not torch.allclose(
        found, whole, atol=1e-4
    )


@pytest.mark.parametrize("size", [(19, 30), (9, 21), (8, 33)])
@fine
def test_blending_is_the_weighted_mean_computed_by_hand(size):
    """Every window answers with numbers of its own; each cell is their mean, weighted by the distance to the
    window's edge.
    """
    window, stride, k = (8, 12), (4, 8), 2
    calls = []

    def encode(images):  # a constant per window, from its content, so that a loop can repeat it
        calls.append(len(images["rgb"]))
        level = images["rgb"].mean((1, 2, 3))
        height, width = (-(-length // k) for length in images["rgb"].shape[-2:])
        return {
            "rgb": level[:, None, None, None].expand(-1, 2, height, width)
            * torch.tensor([1.0, -2.0])[None, :, None, None]
        }

    images = {"rgb": random_images(2, *size)["rgb"]}
    found = sliding(encode, window, stride)(images)["rgb"].numpy()
    array = images["rgb"].numpy()
    starts = [positions(length, side, step) for length, side, step in zip(size, window, stride)]
    expected = np.zeros((2, 2, -(-size[0] // k), -(-size[1] // k)))
    total = np.zeros_like(expected)
    for b in range(2):
        for top in starts[0]:
            for left in starts[1]:
                piece = np.zeros((3, *window))
                real = array[b, :, top : top + window[0], left : left + window[1]]
                piece[:, : real.shape[1], : real.shape[2]] = real
                for r in range(window[0] // k):
                    for c in range(window[1] // k):
                        y, x = top // k + r, left // k + c
                        if y < expected.shape[2] and x < expected.shape[3]:
                            weight = min(r + 0.5, window[0] // k - r - 0.5) * min(
                                c + 0.5, window[1] // k - c - 0.5
                            )
                            expected[b, :, y, x] += weight * piece.mean() * np.array([1, -2])
                            total[b, :, y, x] += weight
    assert (total > 0).all() and np.allclose(found, expected / total, atol=1e-6)
    assert sum(calls) == 2 * len(starts[0]) * len(starts[1]) and max(calls) == 2


@given(st.integers(1, 300), st.integers(1, 12), st.data())
def test_positions_reach_the_end_in_even_steps(length, units, data):
    window = 4 * units
    stride = data.draw(st.integers(1, units)) * 4
    with fine:
        found = positions(length, window, stride)
    assert found[0] == 0 and all(start % 4 == 0 for start in found)
    steps = np.diff(found)
    assert (steps > 0).all() and (steps <= stride).all()
    covered = np.zeros(length, bool)
    for start in found:
        covered[start : start + window] = True
    assert covered.all() and found[-1] + window - max(length, window) < 4
    if (
        len(found) > 1
    ):  # none is superfluous, and none begins so late that the one before it had reached the end
        assert found[-2] + window < length and steps.max() - steps.min() <= 4


def test_windows_no_larger_than_needed_and_the_default_step():
    assert positions(1080, 1024) == [0, 64] and positions(1024, 1024) == [0]
    assert positions(1920, 1024) == [0, 448, 896]  # two thirds of 1024, to multiples of 32: at most 672
    assert positions(1042, 1024, 1024) == [0, 32]


@pytest.mark.parametrize(
    "window, stride, message",
    [
        ((1000, 1024), (0, 0), r"--window 1000: expected a multiple of 32.*give 992"),
        ((0, 64), (0, 0), "give 32"),
        ((64, 64), (96, 64), "--stride 96: expected 32 to 64"),
        ((64, 64), (64, 8), "--stride 8: expected 32 to 64"),
    ],
)
def test_windows_that_do_not_fit_are_refused_at_once(window, stride, message):
    with pytest.raises(ValueError, match=message):
        sliding(pointwise(), window, stride)


@fine
def test_a_grid_that_windows_would_miss_is_refused():
    encode = lambda images: {"rgb": F.avg_pool2d(images["rgb"], 8)}
    with pytest.raises(ValueError, match="expected a stride that divides 4"):
        sliding(encode, (8, 8))({"rgb": torch.zeros(1, 3, 8, 20)})


def test_scores_through_windows_at_native_sizes(tmp_path):
    """A pointwise network scores the same through windows as without, in the same pass over images of
    different sizes.
    """
    data = PreparedDataset(toy.make(tmp_path), "val", ["rgb", "depth"])
    images, label = toy.sample(5, (40, 96))
    for name, array in (images | {"label": label[..., None]}).items():
        write_image(next((tmp_path / name).glob("val_002.*")), array)
    encode = pointwise(2)
    whole = evaluate_subsets(encode, data)
    windows = evaluate_subsets(sliding(encode, (32, 32)), data)
    assert np.abs(whole.counts["all"] - windows.counts["all"]).sum() <= 4  # sums in another order
    assert windows.counts["all"][-1].sum() == 4 * (32 * 48 - 1) + 40 * 96 - 1
    assert len({tuple(m.ravel()) for m in whole.counts["all"]}) == 3  # a network whose subsets differ
