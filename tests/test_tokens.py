"""Pictures of sensors, five crops, the token cache (kills, races, damage, full disks), post-processing and
neighbours.
"""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from killing import in_a_process
from sklearn.decomposition import PCA
from torchvision.transforms import functional as tv

from mmlib.data.prepared import PreparedDataset, Writer
from mmlib.modalities import SENSORS, Modality
from mmlib.runtime import read_tensors, save_tensors
from mmlib.unsupervised import extraction, pictures
from mmlib.unsupervised.extraction import TokenConfig, extract_tokens
from mmlib.unsupervised.pictures import as_picture, five_crop, resize_picture
from mmlib.unsupervised.tokens import TokenChain, Tokens, image_means, nearest_neighbours


class MeanColour:
    """A frozen backbone: the mean colour of each patch. Counts the pictures it sees, keeps them, and can fail
    on one.
    """

    name, channels = "mean-colour", 3

    def __init__(self, patch=8, key="0", gain=1.0, fail_after=None, pause=0.0):
        self.device = "cpu"
        self.patch, self.key, self.gain, self.fail_after, self.pause = patch, key, gain, fail_after, pause
        self.seen = []

    def extract(self, images):
        time.sleep(self.pause)
        if self.fail_after is not None and len(self.seen) >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += list(images)
        return self.gain * torch.nn.functional.avg_pool2d(images, self.patch)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("MMLIB_DATA", str(tmp_path / "cache"))
    return PreparedDataset(toy.make(tmp_path / "toy", train=7, val=3), "train")


def extract(data, backbone, *args, **options):
    """Tokens by the settings among the options; pictures of their own size where none is given."""
    options = {"progress": False} | options
    own = {key: options.pop(key) for key in {*options} & {field.name for field in fields(TokenConfig)}}
    names = options.pop("names", args[0] if args else None)
    return extract_tokens(data, backbone, names, TokenConfig(**{"size": (32, 48)} | own), **options)


# ---- pictures ----


def test_values_go_from_their_physical_range_to_the_unit_interval():
    thermal = torch.tensor([-5.0, 20.0, 45.0, 99.0, -50.0]).reshape(1, 1, 5)
    assert torch.allclose(
        as_picture(SENSORS["thermal"], thermal)[:, 0], torch.tensor([[0, 0.5, 1, 1, 0]] * 3)
    )
    rgb = torch.rand(2, 3, 4, 5)
    assert torch.equal(as_picture(SENSORS["rgb"], rgb), rgb)
    angle = torch.rand(1) * torch.pi
    aolp = torch.stack([torch.cos(2 * angle), torch.sin(2 * angle)])[..., None]
    sine, cosine = (1 + torch.sin(2 * angle)) / 2, (1 + torch.cos(2 * angle)) / 2
    assert torch.allclose(as_picture(SENSORS["aolp"], aolp)[:, 0, 0], torch.cat([sine, cosine, sine]))
    events = torch.tensor([0.0, 6.0]).reshape(2, 1, 1)
    assert torch.allclose(as_picture(SENSORS["event"], events)[:, 0, 0], torch.tensor([0.0, 1, 0]))


def test_forms_of_depth_follow_their_formulas():
    depth = torch.tensor([[0.5, 1.0, 4.0, 80.0, 100.0]]).reshape(1, 1, 5)
    inverse, log = (as_picture(SENSORS["depth"], depth, form)[:, 0] for form in ("inverse", "log"))
    assert torch.allclose(inverse, torch.tensor([[1, 1, 0.25, 1 / 80, 0.01]] * 3))
    assert torch.allclose(
        log, torch.tensor([[1, 1, 1 - np.log(4) / np.log(80), 0, 0]] * 3).float(), atol=1e-6
    )
    assert torch.equal(as_picture(SENSORS["depth"], depth), as_picture(SENSORS["depth"], depth, "inverse"))


def test_holes_take_the_mean_of_measured_neighbours_and_the_rest_is_black():
    depth = torch.zeros(1, 5, 6)
    depth[0, 1, 1], depth[0, 1, 3] = 2.0, 4.0
    found = as_picture(SENSORS["depth"], depth)[0]
    assert (
        found[1, 1] == 0.5 and found[1, 3] == 0.25 and torch.isclose(found[1, 2], torch.tensor(1 / 3))
    )  # between 2 m and 4 m
    assert (found[:3, :5] > 0).all() and (found[3:] == 0).all() and (found[:, 5] == 0).all()
    lidar = torch.zeros(3, 3, 7)
    lidar[:, 1, 1] = torch.tensor([5.0, 40.0, 2.0])
    shown = as_picture(SENSORS["lidar"], lidar)
    assert torch.allclose(
        shown[:, 0, 0], torch.tensor([0.2, np.log1p(40) / np.log1p(80), np.log1p(2) / np.log1p(80)]).float()
    )
    assert (shown[..., 3:] == 0).all()


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(SENSORS)),
    st.sampled_from(["inverse", "log"]),
    st.integers(0, 9),
    st.booleans(),
)
def test_every_picture_is_three_channels_in_the_unit_interval(name, form, seed, batched):
    modality = SENSORS[name]
    physical = 300 * torch.randn(2, modality.channels, 9, 11, generator=torch.Generator().manual_seed(seed))
    found = as_picture(modality, physical if batched else physical[0], form)
    assert found.shape == (*((2,) if batched else ()), 3, 9, 11) and found.dtype == torch.float32
    assert found.isfinite().all() and found.min() >= 0 and found.max() <= 1
    if batched:
        assert torch.equal(found[1], as_picture(modality, physical[1], form))


def test_only_distances_of_one_channel_have_forms():
    for name in ("thermal", "rgb", "lidar"):
        physical = 5 * torch.rand(SENSORS[name].channels, 4, 4)
        assert torch.equal(as_picture(SENSORS[name], physical, "log"), as_picture(SENSORS[name], physical))


@pytest.mark.parametrize(
    ("name", "physical", "options", "message"),
    [
        ("depth", torch.zeros(1, 4, 4), {"depth_form": "hah"}, "expected one of inverse, log"),
        ("rgb", torch.zeros(4, 4), {}, r"expected \(..., 3, H, W\)"),
        ("rgb", torch.zeros(1, 4, 4), {}, r"expected \(..., 3, H, W\)"),
    ],
)
def test_what_no_picture_can_be_made_of_is_refused(name, physical, options, message):
    with pytest.raises(ValueError, match=message):
        as_picture(SENSORS[name], physical, **options)


def test_more_than_three_channels_are_refused():
    with pytest.raises(ValueError, match="a modality of their own"):
        as_picture(Modality("spectrum", "S", 7), torch.zeros(7, 4, 4))


# ---- crops ----


@settings(max_examples=60)
@given(st.integers(2, 40), st.integers(2, 40))
def test_five_crops_lie_at_the_corners_and_in_the_middle(height, width):
    image = torch.rand(3, height, width)
    h, w = height // 2, width // 2
    a, b, c, d, centre = five_crop(image)
    assert torch.equal(a, image[:, :h, :w]) and torch.equal(b, image[:, :h, width - w :])
    assert torch.equal(c, image[:, height - h :, :w]) and torch.equal(d, image[:, height - h :, width - w :])
    top, left = round((height - h) / 2), round((width - w) / 2)
    assert torch.equal(centre, image[:, top : top + h, left : left + w])


def test_quadrants_tile_an_even_image():
    image = torch.rand(2, 3, 12, 20)
    a, b, c, d, centre = five_crop(image)
    assert torch.equal(torch.cat([torch.cat([a, b], -1), torch.cat([c, d], -1)], -2), image)
    assert torch.equal(centre, image[..., 3:9, 5:15])


# ---- extraction ----


def by_hand(data, name, index, patch=8):
    """Mean colour per patch of one whole image, in numpy and from the stored file: (3, h, w)."""
    stored = data.stored(index)[0][name].astype(np.float64)
    values = {
        "rgb": lambda: stored.transpose(2, 0, 1) / 255,
        "aolp": lambda: np.stack([stored[..., 1] / 255, stored[..., 0] / 255, stored[..., 1] / 255]),
    }[name]()
    _, h, w = values.shape
    return values.reshape(3, h // patch, patch, w // patch, patch).mean((2, 4))


def test_tokens_are_what_the_backbone_says(data):
    found = extract(data, MeanColour(), ["rgb", "aolp", "rgb+aolp"])
    assert (list(found.arrays), found.shape) == (["rgb", "aolp", "rgb+aolp"], (7, 3, 4, 6))
    assert found.crops == 1
    batch = found.batch([4, 0, 4])
    for position, index in enumerate((4, 0, 4)):
        rgb, aolp = by_hand(data, "rgb", index), by_hand(data, "aolp", index)
        for name, expected in (("rgb", rgb), ("aolp", aolp), ("rgb+aolp", (rgb + aolp) / 2)):
            assert batch[name].dtype == torch.float32
            assert np.allclose(batch[name][position], expected, atol=1e-3)  # float16 on disk


def test_crops_are_numbered_five_i_plus_k_and_resized(data):
    backbone = MeanColour(patch=4)
    found = extract(data, backbone, ["rgb"], size=(8, 12), crops=5, extract_batch=1000)
    assert len(found) == 35 and found.crops == 5
    for i in (0, 3):
        image = torch.from_numpy(data.stored(i)[0]["rgb"].transpose(2, 0, 1) / 255).float()
        for k, crop in enumerate(tv.five_crop(image, (16, 24))):
            expected = tv.resize(crop, [8, 12], antialias=True)
            assert torch.allclose(backbone.seen[5 * i + k], expected, atol=1e-6)
            assert torch.allclose(
                found.batch([5 * i + k])["rgb"][0], torch.nn.functional.avg_pool2d(expected, 4), atol=1e-3
            )


def test_a_second_call_never_runs_the_backbone(data):
    first = extract(data, backbone := MeanColour(), ["rgb", "aolp"])
    assert len(backbone.seen) == 14
    second = extract(data, backbone, ["aolp", "rgb"], extract_batch=3)
    assert len(backbone.seen) == 14 and list(second.arrays) == ["aolp", "rgb"]
    assert all(np.array_equal(first.arrays[n][:], second.arrays[n][:]) for n in ("rgb", "aolp"))
    # another modality extracts itself alone
    extract(data, backbone, ["rgb", "depth", "aolp"])
    assert len(backbone.seen) == 21
    assert [p.suffix for p in first.arrays["rgb"].files[0].parent.iterdir()] == [
        ".npy"
    ] * 21  # one file for an image and a sensor


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": MeanColour(key="1")},
        {"size": (16, 24)},
        {"crops": 5},
        {"version": 2},
        {"split": "val"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_tokens_of_other_weights_pictures_or_data_are_never_used(data, change, monkeypatch):
    plain = extract(data, MeanColour(), ["rgb"])
    change = dict(change)
    backbone = change.pop("backbone", MeanColour())
    monkeypatch.setattr(pictures, "VERSION", change.pop("version", pictures.VERSION))
    other = PreparedDataset(data.root, change.pop("split", "train"))
    found = extract(other, backbone, ["rgb"], **change)
    assert len(backbone.seen) == len(found)
    assert not set(found.arrays["rgb"].files) & set(plain.arrays["rgb"].files)


def test_form_of_one_modality_leaves_the_others_cached(data):
    extract(data, backbone := MeanColour(), ["rgb", "depth"])
    before = len(backbone.seen)
    extract(data, backbone, ["rgb", "depth"], depth_form="log")
    assert len(backbone.seen) == before + 7
    before = len(backbone.seen)
    extract(data, backbone, ["rgb", "depth"], depth_form="inverse")  # the default, spelled out
    assert len(backbone.seen) == before


def rewritten(data, root, change) -> PreparedDataset:
    """A copy with the same description and statistics, whose stored images went through ``change``."""
    with Writer(root, data.description) as writer:
        for i, row in enumerate(data.rows):
            images, label = data.stored(i)
            change(i, images)
            writer.add(row["id"], "train", images, label, row["condition"], row["case"])
    assert (root / "dataset.json").read_bytes() == (data.root / "dataset.json").read_bytes()
    return PreparedDataset(root)


@pytest.mark.parametrize("place", [0, 3, 6])
def test_any_changed_image_is_noticed_and_the_others_stay_cached(data, tmp_path, place):
    before = extract(data, backbone := MeanColour(), ["rgb", "aolp"])

    def change(i, images):
        images["rgb"][:8, :8] = 255 - images["rgb"][:8, :8] if i == place else images["rgb"][:8, :8]

    other = rewritten(data, tmp_path / "again", change)
    after = extract(other, backbone, ["rgb", "aolp"])
    assert len(backbone.seen) == 14 + 1
    assert np.allclose(after.batch([place])["rgb"][0], by_hand(other, "rgb", place), atol=1e-3)
    same = [after.arrays["rgb"].files[i] == before.arrays["rgb"].files[i] for i in range(7)]
    assert (
        same == [i != place for i in range(7)] and after.arrays["aolp"].files == before.arrays["aolp"].files
    )


def test_images_are_read_again_only_where_their_size_or_times_changed(data, monkeypatch):
    """To open what is cached takes no reading of images. A touched image keeps its tokens, an edited one gets
    new ones, even where its size stays and its time of change was put back.
    """
    digested, genuine, age = [], extraction.digest_files, [10]
    count = lambda root, paths: digested.append(paths) or genuine(root, paths)
    monkeypatch.setattr(extraction, "digest_files", count)
    genuine_time = time.time
    monkeypatch.setattr(extraction, "time", SimpleNamespace(time=lambda: genuine_time() + age[0]))

    def opened(**options):
        """How many images were read, and how many were extracted."""
        digested.clear()
        extract(data, backbone := MeanColour(), ["rgb", "aolp"], **options)
        return len(digested), len(backbone.seen)

    assert opened() == (14, 14) and opened() == (0, 0)
    os.utime(data.files(1)["rgb"][0])
    assert opened() == (1, 0) and opened() == (0, 0)
    edited = data.files(2)["aolp"][0]
    status = edited.stat()
    np.save(edited, 255 - np.load(edited))
    os.utime(edited, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (edited.stat().st_size, edited.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert opened() == (1, 1) and opened() == (0, 0)
    assert opened(crops=5) == (0, 70)
    # Of an image that changed just now a second change within a tick of the disk's clock would not be seen.
    (memory,) = (Path(os.environ["MMLIB_DATA"]) / "tokens").glob("*.json")
    memory.unlink()
    age[0] = -(10**6)
    assert opened() == (14, 0) and opened() == (14, 0) and not memory.exists()
    age[0] = 10
    memory.write_text("{")
    assert opened() == (14, 0) and opened() == (0, 0)


def test_data_without_labels_has_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv("MMLIB_DATA", str(tmp_path / "cache"))
    assert len(extract(PreparedDataset(toy.make(tmp_path / "toy", 3, 1, labels=False)), MeanColour())) == 3


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_an_interrupted_extraction_goes_on_where_it_stopped(data, tmp_path, monkeypatch, batch_size):
    whole = extract(data, MeanColour(), ["rgb", "aolp"])
    monkeypatch.setenv("MMLIB_DATA", str(tmp_path / "second"))
    with pytest.raises(KeyboardInterrupt):
        extract(data, killed := MeanColour(fail_after=9), ["rgb", "aolp"], extract_batch=2)
    files = list(Path(os.environ["MMLIB_DATA"]).rglob("*.npy"))
    assert [len([f for f in files if f.name.startswith(name)]) for name in ("rgb", "aolp")] == [7, 2]
    extract(data, MeanColour(), ["depth"])  # something else in between
    found = extract(data, rest := MeanColour(), ["rgb", "aolp"], extract_batch=batch_size)
    assert len(killed.seen) + len(rest.seen) == 14
    assert all(np.array_equal(found.arrays[n][:], whole.arrays[n][:]) for n in ("rgb", "aolp"))
    assert {path.suffix for path in found.arrays["rgb"].files[0].parent.iterdir()} == {".npy"}


def test_who_comes_second_waits_and_reads(data):
    first, second = MeanColour(pause=0.1), MeanColour()
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(extract, data, first, ["rgb"], extract_batch=1)
        while not first.seen:
            time.sleep(0.01)
        two = pool.submit(extract, data, second, ["rgb"])
        assert np.array_equal(one.result().arrays["rgb"][:], two.result().arrays["rgb"][:])
    assert (len(first.seen), len(second.seen)) == (7, 0)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "other shape"])
def test_a_damaged_file_is_extracted_again(data, damage):
    whole = extract(data, MeanColour(), ["rgb", "aolp"]).arrays["rgb"]
    expected, path = whole[:], whole.files[3]
    content = {"truncated": path.read_bytes()[:-5], "empty": b"", "text": b"not an array"}.get(damage)
    path.unlink()
    if content is None:
        np.save(path, expected[:1, :, 1:])
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name}: cannot be read"):  # while a run is reading
        whole[3:4][0, 0, 3, 5]
    found = extract(data, backbone := MeanColour(), ["rgb", "aolp"])
    assert len(backbone.seen) == 1 and np.array_equal(found.arrays["rgb"][:], expected)


def test_too_little_room_is_said_before_the_first_image(data, monkeypatch):
    monkeypatch.setattr(extraction.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"no room for 0.0 MB of tokens.*MMLIB_DATA"):
        extract(data, backbone := MeanColour(), ["rgb"])
    assert not backbone.seen


def extract_without_room(root: str, cache: str):
    """After four pictures no file of this process may grow any more: a write then fails as on a full disk."""
    import resource

    os.environ["MMLIB_DATA"] = cache
    backbone = MeanColour()

    def limited(images, extract=backbone.extract):
        if len(backbone.seen) == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        return extract(images)

    backbone.extract = limited
    extract(PreparedDataset(root), backbone, ["rgb", "depth", "aolp"], extract_batch=1)


def test_a_disk_that_fills_up_leaves_no_file_that_looks_whole(data):
    said = in_a_process(extract_without_room, str(data.root), os.environ["MMLIB_DATA"])
    assert re.search(r"npy: could not be written .*MB free", said)
    assert len(list(Path(os.environ["MMLIB_DATA"]).rglob("*.npy"))) == 4
    found = extract(data, backbone := MeanColour(), ["rgb"])  # room was made
    assert len(backbone.seen) == 3
    assert np.allclose(found.batch([1])["rgb"][0], by_hand(data, "rgb", 1), atol=1e-3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_cache_that_cannot_be_written_is_one_line(data):
    whole = extract(data, MeanColour(), ["rgb"])
    whole.arrays["rgb"].files[0].parent.parent.chmod(0o500)
    assert len(extract(data, MeanColour(), ["rgb"])) == 7  # reading needs no lock
    with pytest.raises(OSError, match="lock"):
        extract(data, MeanColour(), ["depth"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"names": ["rgb", "sonar"]},
            "unknown modality 'sonar'; .*toy has rgb, depth, aolp",
        ),
        ({"names": ["rgb+sonar"]}, "unknown modality 'sonar'"),
        ({"size": (30, 48)}, "30 x 48 pixels .* whole patches of 8 x 8; resize to 32 x 48"),
        ({"size": (4, 48)}, "whole patches of 8 x 8; resize to 8 x 48"),
        ({"size": (0, 48)}, "--size: 0 x 48 pixels .* resize to 8 x 48"),
        ({"size": (-8, 48)}, "--size -8: expected 0 or more"),
        ({"crops": 4}, "--crops 4: expected one of 1, 5"),
        ({"extract_batch": 0}, "--extract-batch 0: expected 1 or more"),
        ({"depth_form": "cubic"}, "--depth-form cubic: expected one of inverse"),
    ],
)
def test_errors_name_what_works(data, options, message):
    with pytest.raises(ValueError, match=message):
        extract(data, MeanColour(), **options)


def test_without_a_size_pictures_are_enlarged_and_made_of_whole_patches(data, tmp_path):
    """Eight times 32 pixels and fifteen times 16 are the smallest heights of at least 240."""
    for patch, crops, size in (
        (8, 1, (256, 384)),
        (64, 1, (256, 384)),
        (24, 5, (240, 360)),
        (32, 5, (256, 352)),
    ):
        found = extract(data, backbone := MeanColour(patch), ["rgb"], size=(0, 0), crops=crops)
        assert backbone.seen[0].shape == (3, *size)
        assert found.grid == (size[0] // patch, size[1] // patch)
        own = resize_picture(torch.from_numpy(data.stored(1)[0]["rgb"].transpose(2, 0, 1) / 255)[None], size)
        if crops == 1:
            torch.testing.assert_close(backbone.seen[1].double(), own[0], atol=1e-3, rtol=0)
    mixed = tmp_path / "mixed"
    with Writer(mixed, data.description) as writer:
        for k, size in enumerate([(32, 48), (32, 56)]):
            writer.add(f"s{k}", "train", *toy.sample(k, size))
    with pytest.raises(ValueError, match=r"'s1': \(32, 56\) pixels, not \(32, 48\).*--size for all"):
        extract(PreparedDataset(mixed), MeanColour(), size=(0, 0))
    assert len(extract(PreparedDataset(mixed), MeanColour(), size=(32, 48))) == 2


@pytest.mark.parametrize("gain", [float("nan"), float("inf"), 1e6])
def test_tokens_that_are_not_finite_in_float16_are_refused(data, gain):
    with pytest.raises(ValueError, match="tokens of rgb, image 'train_000': not finite in float16"):
        extract(data, MeanColour(gain=gain), ["rgb"])
    assert not list(Path(os.environ["MMLIB_DATA"]).rglob("*.npy"))


def test_a_backbone_of_another_shape_and_a_missing_image(data):
    wrong = MeanColour()
    wrong.channels = 5
    tokens = extract(data, wrong, ["rgb"])
    with pytest.raises(ValueError, match=r"rgb-.*npy: cannot be read .*not tokens of shape \(1, 5, 4, 6\)"):
        tokens.batch([0])
    (data.root / "rgb" / f"{data.rows[3]['id']}.png").unlink()
    with pytest.raises(ValueError, match="train_003.png: no such file"):
        extract(data, MeanColour(), ["rgb"])


# ---- post-processing ----


def random_tokens(seed=0, n=9, channels=5, grid=(4, 6), **options):
    rng = np.random.default_rng(seed)
    scale, shift = rng.uniform(0.1, 9, (1, channels, 1, 1)), rng.uniform(-20, 20, (1, channels, 1, 1))
    arrays = {
        name: (shift + scale * rng.standard_normal((n, channels, *grid)) ** 3).astype(np.float16)
        for name in ("rgb", "depth")
    }
    return Tokens(arrays, **options)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_statistics_are_those_of_numpy(monkeypatch, chunk):
    monkeypatch.setattr("mmlib.unsupervised.tokens.CHUNK", chunk)
    tokens = random_tokens()
    tokens.arrays["depth"][:, 2] = 7.0  # a constant channel
    found = TokenChain().fit(tokens)
    for name, array in tokens.arrays.items():
        expected = array.astype(np.float64).transpose(1, 0, 2, 3).reshape(5, -1)
        mean, std = found.statistics[name]
        assert np.allclose(mean, expected.mean(1), rtol=1e-6)
        assert np.allclose(
            std,
            [1.0 if name == "depth" and c == 2 else expected[c].std() for c in range(5)],
            rtol=1e-6,
        )
    assert (replace(tokens, chain=found).batch([0])["depth"][0, 2] == 0).all()


@settings(max_examples=40)
@given(
    arrays(np.float16, (4, 3, 3, 5), elements=st.floats(-100, 100, width=16)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
)
def test_a_batch_is_the_plain_computation(raw, standardize, smooth, centre, indices):
    tokens = Tokens({"rgb": raw}, chain=TokenChain(smooth=smooth, centre=centre))
    x = raw.astype(np.float64)
    if standardize:
        tokens = replace(tokens, chain=tokens.chain.fit(tokens))
        std = x.std((0, 2, 3), keepdims=True)
        x = np.clip(
            (x - x.mean((0, 2, 3), keepdims=True))
            / np.where(std > 1e-6 * (1 + abs(x.mean((0, 2, 3), keepdims=True))), std, 1),
            -3,
            3,
        )
    if smooth:
        smoothed = np.empty_like(x)
        for i in range(3):
            for j in range(5):  # the patches around (i, j) that exist
                smoothed[:, :, i, j] = x[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((2, 3))
        x = smoothed
    x = x - centre * x.mean((2, 3), keepdims=True)
    assert np.allclose(tokens.batch(indices)["rgb"], x[indices], atol=2e-3)


@pytest.mark.parametrize("chunk", [2, 64])
@pytest.mark.parametrize(
    "chain", [TokenChain(), TokenChain(smooth=True, centre=1.0), TokenChain(centre=0.5)], ids=str
)
def test_whitening_is_that_of_scikit_learn(monkeypatch, chain, chunk):
    """Behind all other steps, each sensor by itself, with covariance 1 over the training tokens."""
    monkeypatch.setattr("mmlib.unsupervised.tokens.CHUNK", chunk)
    tokens = random_tokens()
    chain = chain.fit(tokens)
    plain = replace(tokens, chain=chain).batch(range(9))
    tokens = replace(tokens, chain=chain.whiten(tokens, 3))
    assert tokens.channels == 3 and tokens.grid == (4, 6)
    batch = tokens.batch(range(9), ["rgb", "depth", "rgb&depth"])
    rows = lambda maps: maps.double().movedim(1, -1).flatten(0, -2).numpy()
    for name, before in plain.items():
        model = PCA(3, whiten=True, svd_solver="full").fit(rows(before))
        expected = model.transform(rows(before)) * (216 / 215) ** 0.5  # divided by n here, there by n - 1
        sign = np.sign(np.take_along_axis(model.components_, abs(model.components_).argmax(1)[:, None], 1))
        np.testing.assert_allclose(rows(batch[name]), expected * sign.T, atol=2e-4)
        np.testing.assert_allclose(np.cov(rows(batch[name]).T, bias=True), np.eye(3), atol=1e-4)
    assert torch.allclose(batch["rgb&depth"], batch["rgb"] + batch["depth"], atol=1e-5)
    memory = tokens.in_memory()
    assert memory.channels == 3 and torch.allclose(memory.batch([4])["rgb"], batch["rgb"][4], atol=1e-5)


def test_whitening_to_more_directions_than_there_are_is_refused():
    tokens = random_tokens(n=2, grid=(1, 2))
    with pytest.raises(
        ValueError, match="--whiten 4: the tokens of rgb vary along 3 directions; .* 3 at most"
    ):
        TokenChain().whiten(tokens, 4)
    with pytest.raises(ValueError, match="--whiten 6: .* vary along 5 directions"):
        TokenChain().whiten(random_tokens(), 6)


def test_names_choose_and_add_modalities():
    tokens = random_tokens()
    tokens = replace(tokens, chain=TokenChain(smooth=True, centre=0.5).fit(tokens))
    batch = tokens.batch(torch.tensor([3, 1]), ["depth", "rgb&depth"])
    assert list(batch) == ["depth", "rgb&depth"]
    assert torch.allclose(batch["rgb&depth"], tokens.batch([3, 1])["rgb"] + batch["depth"], atol=1e-6)
    assert list(tokens.batch(np.array([0]))) == ["rgb", "depth"] and tokens.batch(range(9))["rgb"].shape == (
        9,
        5,
        4,
        6,
    )


def test_statistics_of_train_serve_other_splits_and_are_saved(tmp_path):
    train, val = random_tokens(0), random_tokens(1)
    chain = TokenChain().fit(train)
    chain = chain.whiten(train, 4)
    save_tensors(tmp_path / "run.safetensors", chain.to_tensors() | {"weight": torch.ones(2)}, {})
    loaded = TokenChain().with_tensors(read_tensors(tmp_path / "run.safetensors"))
    found, expected = (replace(val, chain=each).batch([2])["rgb"] for each in (loaded, chain))
    assert found.shape == (1, 4, 4, 6) and torch.equal(found, expected)
    found = replace(val, chain=replace(loaded, whitening={})).batch([2])["rgb"][0]
    x = train.arrays["rgb"].astype(np.float64)
    expected = (val.arrays["rgb"][2] - x.mean((0, 2, 3))[:, None, None]) / x.std((0, 2, 3))[:, None, None]
    assert np.allclose(found, expected.clip(-3, 3), atol=1e-4) and set(loaded.statistics) == {"rgb", "depth"}


def test_bad_requests_are_refused():
    tokens = random_tokens()
    for indices, kind, message in (
        ([9], IndexError, "9 is out of bounds"),
        ([0.5], IndexError, "integer"),
    ):
        with pytest.raises(kind, match=message):
            tokens.batch(indices)
    with pytest.raises(ValueError, match="unknown modality 'sonar'; there are rgb, depth"):
        tokens.batch([0], ["rgb&sonar"])
    other = TokenChain().fit(Tokens({"depth": tokens.arrays["depth"]}))
    with pytest.raises(ValueError, match="no statistics of 'rgb'"):
        replace(tokens, chain=other).batch([0])
    tokens.arrays["depth"][5, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="depth: a token is not finite"):
        TokenChain().fit(tokens)


# ---- neighbours ----


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(6, 30), st.integers(1, 4), st.booleans(), st.integers(1, 40))
def test_neighbours_are_those_of_brute_force(seed, n, k, grouped, chunk):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, 6))
    group = np.arange(n) // 2 if grouped else np.arange(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmlib.unsupervised.tokens.ROWS", chunk)
        found = nearest_neighbours(torch.from_numpy(features).float(), k, group)
    assert found.shape == (n, k) and found.dtype == torch.int64
    for i in range(n):
        cosine = [
            features[i] @ features[j] / np.linalg.norm(features[i]) / np.linalg.norm(features[j])
            for j in range(n)
        ]
        allowed = [j for j in range(n) if group[j] != group[i]]
        best = sorted((cosine[j] for j in allowed), reverse=True)[:k]
        assert np.allclose([cosine[j] for j in found[i]], best, atol=1e-5)
        assert set(found[i].tolist()) <= set(allowed) and len(set(found[i].tolist())) == k


def test_neighbours_that_do_not_exist():
    features = torch.rand(10, 3)
    assert nearest_neighbours(features, 9, np.arange(10)).shape == (10, 9)
    with pytest.raises(ValueError, match="--neighbours 10: 10 entries leave 9 outside .*choose from 1 to 9"):
        nearest_neighbours(features, 10, np.arange(10))
    with pytest.raises(ValueError, match="--neighbours 6: 10 entries leave 5"):
        nearest_neighbours(features, 6, np.arange(10) // 5)
    with pytest.raises(ValueError, match="1 entries leave 0"):
        nearest_neighbours(features[:1], 1, np.arange(1))


def test_image_means_ignore_centring(monkeypatch):
    monkeypatch.setattr("mmlib.unsupervised.tokens.CHUNK", 4)
    tokens = random_tokens(chain=TokenChain(smooth=True, centre=1.0))
    found = image_means(tokens, ("rgb", "depth"))
    means = [tokens.arrays[n].astype(np.float64).mean((2, 3)) for n in ("rgb", "depth")]
    expected = np.concatenate([m / np.linalg.norm(m, axis=1, keepdims=True) for m in means], 1)
    assert np.allclose(found, expected, atol=1e-5)
    assert torch.equal(image_means(tokens, ["rgb"]), found[:, :5])
