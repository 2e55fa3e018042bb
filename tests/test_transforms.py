"""Joint augmentation and failing sensors, against plain indexing and closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlib.data.missing import PROTOCOLS, degrade, remove
from mmlib.data.transforms import Augment, crop_or_pad, flip, resize
from mmlib.modalities import SENSORS

MODALITIES = {name: SENSORS[name] for name in ("rgb", "depth", "aolp")}


def scene(height=12, width=16):
    """Images in which every pixel carries its own row and column, so that any misalignment shows."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    code = (rows * width + columns + 1).float()
    images = {"rgb": code[None].repeat(3, 1, 1), "depth": code[None].clone(), "aolp": torch.stack([code, code])}
    return images, (code.long() - 1) % 200


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(12, 16), (8, 8), (16, 20)]))
def test_modalities_and_label_stay_aligned(seed, crop):
    images, label = Augment(crop=crop)(*scene(), np.random.default_rng(seed), MODALITIES)
    assert tuple(label.shape) == crop == tuple(images["rgb"].shape[-2:])
    inside = label != 255
    assert torch.equal(label[inside], (images["depth"][0][inside].long() - 1) % 200)
    assert torch.equal(images["rgb"][0], images["depth"][0]) and torch.equal(images["aolp"][0], images["depth"][0])
    assert torch.equal(images["aolp"][1].abs(), images["aolp"][0])
    assert bool((images["depth"][0][~inside] == 0).all())  # padding is ignored


def test_a_mirror_negates_the_sine_and_only_the_sine():
    images, label = scene()
    flipped, mirrored = flip(images, label, MODALITIES)
    assert torch.equal(mirrored, label.flip(-1)) and torch.equal(flipped["aolp"][0], images["aolp"][0].flip(-1))
    assert torch.equal(flipped["aolp"][1], -images["aolp"][1].flip(-1))
    again, _ = flip(flipped, mirrored, MODALITIES)
    assert all(torch.equal(again[n], images[n]) for n in images)
    # an angle of polarisation phi becomes -phi in a mirror
    phi = torch.tensor(0.3)
    image = {"aolp": torch.stack([(2 * phi).cos(), (2 * phi).sin()])[:, None, None]}
    found = flip(image, torch.zeros(1, 1), MODALITIES)[0]["aolp"].squeeze()
    assert torch.allclose(torch.atan2(found[1], found[0]) / 2, -phi)


def test_flips_happen_half_of_the_time():
    images, label = scene()
    first = [int(Augment()(images, label, np.random.default_rng(s), MODALITIES)[1][0, 0]) for s in range(400)]
    assert 150 < first.count(int(label[0, 0])) < 250 and set(first) == {int(label[0, 0]), int(label[0, -1])}


def test_sparse_sensors_are_never_interpolated():
    image = torch.zeros(1, 8, 8)
    image[0, ::3, ::3] = 10.0
    assert set(resize(image, (13, 11), sparse=True).unique().tolist()) == {0.0, 10.0}
    assert len(resize(image, (13, 11), sparse=False).unique()) > 2
    assert torch.equal(resize(image, (8, 8), False), image)


def test_zoom_moves_labels_with_pixels():
    images, label = scene(24, 32)
    label = (images["depth"][0] > 400).long()
    zoomed, found = Augment(crop=(24, 32), scale=(1.7, 1.7), mirror=0)(images, label, np.random.default_rng(3), MODALITIES)
    assert ((zoomed["depth"][0] > 400).long() == found).float().mean() > 0.99


def test_the_same_seed_gives_the_same_sample():
    augment = Augment(crop=(8, 8), scale=(0.5, 2), jitter=0.4)
    a, b = (augment(*scene(), np.random.default_rng(5), MODALITIES) for _ in range(2))
    assert all(torch.equal(a[0][n], b[0][n]) for n in a[0]) and torch.equal(a[1], b[1])


def test_jitter_touches_colour_only_and_stays_in_range():
    images = {"rgb": torch.rand(3, 6, 6), "depth": torch.rand(1, 6, 6)}
    for seed in range(20):
        found, _ = Augment(mirror=0, jitter=0.9)(images, torch.zeros(6, 6), np.random.default_rng(seed), MODALITIES)
        assert torch.equal(found["depth"], images["depth"]) and 0 <= found["rgb"].min() and found["rgb"].max() <= 1


def test_crop_or_pad_is_pad_then_slice():
    image = torch.rand(2, 5, 6)
    padded = F.pad(image, (0, 10, 0, 10), value=7.0)
    assert torch.equal(crop_or_pad(image, 1, 2, (8, 3), 7.0), padded[:, 1:9, 2:5])


def test_dimming():
    thermal = torch.full((1, 4, 4), 20.0)
    half = degrade(thermal, SENSORS["thermal"], gain=0.5)
    low = SENSORS["thermal"].low
    assert torch.allclose(half, low + 0.5 * (thermal - low))  # a dark thermal image is cold, not 0 degrees
    rgb = torch.rand(3, 4, 4)
    assert torch.allclose(degrade(rgb, SENSORS["rgb"], gain=0.3), 0.3 * rgb)
    assert torch.equal(degrade(rgb, SENSORS["rgb"]), rgb) and bool((degrade(rgb, SENSORS["rgb"], gain=0.0) == 0).all())
    assert torch.allclose(degrade(torch.ones(2, 4, 4), SENSORS["aolp"], gain=0.5), torch.full((2, 4, 4), 0.5))


def test_a_dim_sparse_sensor_sees_fewer_points_at_the_same_range():
    lidar = torch.zeros(3, 100, 100)
    lidar[:, ::2] = 30.0
    found = degrade(lidar, SENSORS["lidar"], gain=0.25)
    seen = (found != 0).any(0)
    assert set(found.unique().tolist()) == {0.0, 30.0} and not seen[1::2].any()
    assert 0.2 < seen.sum() / 5000 < 0.3
    noisy = degrade(lidar, SENSORS["lidar"], noise=0.1)
    assert not (noisy[:, 1::2] != 0).any() and (noisy[:, ::2] != 30).any()


def test_noise_has_the_size_it_says_and_a_seed():
    image = torch.full((1, 200, 200), 20.0)
    found = degrade(image, SENSORS["thermal"], noise=0.1, seed=1)
    assert abs((found - image).std() - 0.1 * (SENSORS["thermal"].high - SENSORS["thermal"].low)) < 0.1
    assert torch.equal(found, degrade(image, SENSORS["thermal"], noise=0.1, seed=1))
    assert not torch.equal(found, degrade(image, SENSORS["thermal"], noise=0.1, seed=2))


@pytest.mark.parametrize("gain, noise", [(-0.1, 0), (1.1, 0), (float("nan"), 0), (1, -1), (1, float("nan"))])
def test_degrade_refuses(gain, noise):
    with pytest.raises(ValueError, match="expected 0"):
        degrade(torch.zeros(3, 2, 2), SENSORS["rgb"], gain, noise)


def test_missing_protocols_differ_and_are_exact():
    from dataclasses import replace

    modalities = {
        "rgb": replace(SENSORS["rgb"], mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2)),
        "depth": replace(SENSORS["depth"], mean=(1.0,), std=(1.0,)),
    }
    images = {"rgb": torch.rand(2, 3, 4, 4), "depth": torch.rand(2, 1, 4, 4)}
    gone = {protocol: remove(images, ["rgb"], protocol, modalities) for protocol in PROTOCOLS}
    assert set(gone["drop"]) == {"depth"} and all(g["depth"] is images["depth"] for g in gone.values())
    assert bool((gone["zero"]["rgb"] == 0).all())
    assert torch.allclose(gone["black"]["rgb"][:, 1], torch.tensor(-0.5 / 0.2))
    assert gone["noise"]["rgb"].shape == images["rgb"].shape and gone["noise"]["rgb"].std() > 0.5
    with pytest.raises(ValueError, match="keep at least one"):
        remove(images, ["rgb", "depth"], "drop", modalities)
    with pytest.raises(ValueError, match="expected one of drop, zero, black, noise"):
        remove(images, ["rgb"], "blank", modalities)
    with pytest.raises(ValueError, match="unknown modality lidar"):
        remove(images, ["lidar"], "zero", modalities)
