"""Joint augmentation and failing sensors, against plain indexing and closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlib.data.missing import FAULTS, PROTOCOLS, SEVERITIES, degrade, faulty, remove
from mmlib.data.transforms import Augment, flip, resize
from mmlib.modalities import SENSORS

MODALITIES = {name: SENSORS[name] for name in ("rgb", "depth", "aolp")}


def scene(height=12, width=16):
    """Images in which every pixel carries its own row and column, so that any misalignment shows."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    code = (rows * width + columns + 1).float()
    images = {
        "rgb": code[None].repeat(3, 1, 1),
        "depth": code[None].clone(),
        "aolp": torch.stack([code, code]),
    }
    return images, (code.long() - 1) % 200


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([(12, 16), (8, 8), (16, 20)]))
def test_modalities_and_label_stay_aligned(seed, crop):
    images, label = Augment(crop=crop)(*scene(), np.random.default_rng(seed), MODALITIES)
    assert tuple(label.shape) == crop == tuple(images["rgb"].shape[-2:])
    inside = label != 255
    assert torch.equal(label[inside], (images["depth"][0][inside].long() - 1) % 200)
    assert torch.equal(images["rgb"][0], images["depth"][0]) and torch.equal(
        images["aolp"][0], images["depth"][0]
    )
    assert torch.equal(images["aolp"][1].abs(), images["aolp"][0])
    assert bool((images["depth"][0][~inside] == 0).all())  # padding is ignored


def test_a_mirror_negates_the_sine_and_only_the_sine():
    images, label = scene()
    flipped, mirrored = flip(images, label, MODALITIES)
    assert torch.equal(mirrored, label.flip(-1)) and torch.equal(
        flipped["aolp"][0], images["aolp"][0].flip(-1)
    )
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
    zoomed, found = Augment(crop=(24, 32), scale=(1.7, 1.7), mirror=0)(
        images, label, np.random.default_rng(3), MODALITIES
    )
    assert ((zoomed["depth"][0] > 400).long() == found).float().mean() > 0.99


def test_the_same_seed_gives_the_same_sample():
    augment = Augment(crop=(8, 8), scale=(0.5, 2), jitter=0.4)
    a, b = (augment(*scene(), np.random.default_rng(5), MODALITIES) for _ in range(2))
    assert all(torch.equal(a[0][n], b[0][n]) for n in a[0]) and torch.equal(a[1], b[1])


def test_jitter_touches_colour_only_and_stays_in_range():
    images = {"rgb": torch.rand(3, 6, 6), "depth": torch.rand(1, 6, 6)}
    for seed in range(20):
        found, _ = Augment(mirror=0, jitter=0.9)(
            images, torch.zeros(6, 6), np.random.default_rng(seed), MODALITIES
        )
        assert (
            torch.equal(found["depth"], images["depth"])
            and 0 <= found["rgb"].min()
            and found["rgb"].max() <= 1
        )


def test_a_crop_is_pad_then_slice():
    """The place of the crop is that of the second and third number of the draw."""
    images, label = {"rgb": torch.rand(3, 5, 6)}, torch.arange(30).reshape(5, 6)
    for seed in range(5):
        _, x, y, *_ = np.random.default_rng(seed).random(6)
        found, cut = Augment(crop=(8, 3), mirror=0)(images, label, np.random.default_rng(seed), MODALITIES)
        left = int(x * 4)
        assert torch.equal(found["rgb"], F.pad(images["rgb"], (0, 0, 0, 3))[..., left : left + 3])
        assert torch.equal(cut, F.pad(label, (0, 0, 0, 3), value=255)[:, left : left + 3])


def test_dimming():
    thermal = torch.full((1, 4, 4), 20.0)
    half = degrade(thermal, SENSORS["thermal"], gain=0.5)
    low = SENSORS["thermal"].low
    assert torch.allclose(half, low + 0.5 * (thermal - low))  # a dark thermal image is cold, not 0 degrees
    rgb = torch.rand(3, 4, 4)
    assert torch.allclose(degrade(rgb, SENSORS["rgb"], gain=0.3), 0.3 * rgb)
    assert torch.equal(degrade(rgb, SENSORS["rgb"]), rgb) and bool(
        (degrade(rgb, SENSORS["rgb"], gain=0.0) == 0).all()
    )
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
    lidar[
        2, ::2
    ] = (
        -1.5
    )  # the road lies below the sensor: noise spreads heights, it does not lift them to the sensor's level
    height = degrade(lidar, SENSORS["lidar"], noise=0.01)[2, ::2]
    assert abs(float(height.mean()) + 1.5) < 0.05 and abs(float(height.std()) - 0.8) < 0.05


def test_noise_has_the_size_it_says_and_a_seed():
    image = torch.full((1, 200, 200), 20.0)
    found = degrade(image, SENSORS["thermal"], noise=0.1, seed=1)
    assert abs((found - image).std() - 0.1 * (SENSORS["thermal"].high - SENSORS["thermal"].low)) < 0.1
    assert torch.equal(found, degrade(image, SENSORS["thermal"], noise=0.1, seed=1))
    assert not torch.equal(found, degrade(image, SENSORS["thermal"], noise=0.1, seed=2))


@pytest.mark.parametrize("gain, noise", [(-0.1, 0), (1.1, 0), (float("nan"), 0), (1, -1), (1, float("nan"))])
def test_degrade_refuses(gain, noise):
    with pytest.raises(ValueError, match="(gain|noise) .*: expected (0 or more|a finite number)"):
        degrade(torch.zeros(3, 2, 2), SENSORS["rgb"], gain, noise)


def test_missing_protocols_differ_and_are_exact():
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
    with pytest.raises(KeyError, match="lidar"):
        remove(images, ["lidar"], "zero", modalities)


THERMAL = replace(SENSORS["thermal"], mean=(20.0,), std=(4.0,))
LIDAR = replace(SENSORS["lidar"], mean=(0.5, 0.2, 0.1), std=(1.0, 0.5, 0.3))


def columns(channels=1, size=(32, 64)):
    """Every column its own value, every row the same."""
    return torch.arange(1.0, size[1] + 1).expand(channels, *size).clone()


@pytest.mark.parametrize("modality", [THERMAL, LIDAR], ids=["dense", "sparse"])
def test_faults_differ_from_the_image_and_from_each_other(modality):
    generator = torch.Generator().manual_seed(0)
    image, other = (20 + 5 * torch.rand(modality.channels, 32, 64, generator=generator) for _ in range(2))
    found = {(f, s): faulty(image, modality, f, s, other) for f in FAULTS for s in SEVERITIES}
    before = image.clone()
    every = [image, *found.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(every) for b in every[:i])
    assert all(
        x.shape == image.shape and x.dtype == torch.float32 and bool(x.isfinite().all()) for x in every
    )
    assert torch.equal(image, before), "the image that is passed in stays as it is"
    for (fault, severity), x in found.items():
        assert torch.equal(x, faulty(image, modality, fault, severity, other)), "the same every time"
        changed = (modality.to_network(x) - modality.to_network(image)).pow(2).mean()
        if (
            severity == "gross" and fault != "shift"
        ):  # an image of noise is as far from itself by one step as by ten
            assert (
                changed
                > (modality.to_network(found[fault, "mild"]) - modality.to_network(image)).pow(2).mean()
            )


def test_dark_blank_and_other_are_what_they_say():
    image, other = torch.full((1, 8, 8), 25.0), torch.full((1, 8, 8), 7.0)
    low = THERMAL.low
    assert torch.allclose(faulty(image, THERMAL, "dark", "mild"), torch.tensor(low + 0.25 * (25 - low)))
    assert torch.equal(faulty(image, THERMAL, "dark", "gross"), torch.full((1, 8, 8), low))
    for fault, value in (("blank", 20.0), ("other", 7.0)):
        gross, mild = (faulty(image, THERMAL, fault, severity, other) for severity in ("gross", "mild"))
        assert torch.equal(gross, torch.full((1, 8, 8), value))
        assert torch.equal(mild[:, :4], image[:, :4]) and torch.equal(mild[:, 4:], gross[:, 4:]), (
            "mild: the lower half only"
        )
    blank = LIDAR.to_network(faulty(columns(3), LIDAR, "blank", "gross"))
    assert torch.allclose(blank, torch.zeros_like(blank), atol=1e-6), (
        "the network sees the training mean, through the logarithm, too"
    )
    assert faulty(image, THERMAL, "other", "gross", torch.full((1, 5, 9), 7.0)).shape == image.shape


def test_a_shift_moves_columns_by_a_share_of_the_width():
    for modality, edge in ((THERMAL, 1.0), (LIDAR, 0.0)):
        image = columns(modality.channels)
        for severity, step in (("mild", 2), ("gross", 8)):
            found = faulty(image, modality, "shift", severity)
            assert torch.equal(found[..., step:], image[..., :-step])
            assert bool((found[..., :step] == edge).all()), "a sparse sensor has measured nothing there"


def test_blur_keeps_the_mean_of_a_dense_sensor_and_the_values_of_a_sparse_one():
    image = 20 + 5 * torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    mild, gross = (faulty(image, THERMAL, "blur", severity) for severity in SEVERITIES)
    assert abs(mild.mean() - image.mean()) < 0.05 and image.std() > 2 * mild.std() > 2 * gross.std()
    sparse = torch.zeros(3, 32, 64)
    sparse[:, ::3, ::5] = 30.0
    found = faulty(sparse, LIDAR, "blur", "mild")
    assert set(found.unique().tolist()) == {0.0, 30.0}
    assert all(len(block.unique()) == 1 for rows in found[0].split(4, 0) for block in rows.split(4, 1)), (
        "4 by 4 pixels are one"
    )


def test_noise_has_its_size_in_network_space_and_a_seed():
    image = columns(3, (100, 100))
    usual = LIDAR.to_network(image)
    added = LIDAR.to_network(faulty(image, LIDAR, "noise", "mild")) - usual
    assert abs(added.std() - 0.5) < 0.01 and abs(added.mean()) < 0.02
    only = LIDAR.to_network(faulty(image, LIDAR, "noise", "gross"))
    assert (
        abs(only.std() - 1) < 0.02
        and abs(float(torch.corrcoef(torch.stack([only.ravel(), usual.ravel()]))[0, 1])) < 0.02
    )
    assert not torch.equal(
        faulty(image, LIDAR, "noise", "gross"), faulty(image, LIDAR, "noise", "gross", seed=1)
    )


def test_faulty_refuses():
    image = torch.rand(1, 8, 8)
    with pytest.raises(
        ValueError, match="fault rain: expected one of dark, noise, shift, blur, blank, other"
    ):
        faulty(image, THERMAL, "rain", "mild")
    with pytest.raises(ValueError, match="severity total: expected one of mild, gross"):
        faulty(image, THERMAL, "dark", "total")
    with pytest.raises(ValueError, match="image of another scene"):
        faulty(image, THERMAL, "other", "mild")
    for fault in ("noise", "blank"):
        with pytest.raises(ValueError, match="has no statistics"):
            faulty(image, SENSORS["thermal"], fault, "gross")
