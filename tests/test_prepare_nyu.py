"""The NYU converter: official files as MATLAB writes them, extracted frames, HHA. Every pixel accounted for;
bad input explained.
"""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import script
import tyro
from PIL import Image
from scipy.io import savemat

from mmlib.data.prepared import DataError, PreparedDataset, read_description, read_index

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "data_scripts" / "prepare_nyu.py"
REAL = ROOT.parent / "shared" / "data" / "nyuv2-train"
sys.path.insert(0, str(SCRIPT.parent))

import common  # noqa: E402
import hha as depth_to_hha  # noqa: E402
import prepare_nyu as nyu  # noqa: E402

# ---- the official files ----

# What the official tables say of a few raw labels: (raw id, name, class of the 40, class of the 13), classes
# from 1.
KNOWN = [
    (3, "cabinet", 3, 6),
    (4, "ceiling", 22, 3),
    (5, "chair", 5, 4),
    (11, "floor", 2, 5),
    (19, "table", 7, 10),
    (21, "wall", 1, 12),
    (28, "door", 8, 12),
    (59, "window", 9, 13),
    (64, "picture", 11, 8),
    (83, "sofa", 6, 9),
    (85, "books", 23, 2),
    (157, "bed", 4, 1),
    (172, "television", 25, 11),
    (331, "person", 31, 7),
]
OTHER = (40, 7)  # "otherprop", which is an object: all other labels of the fixtures


def write_cells(file: h5py.File, name: str, texts: list[str]) -> None:
    """A MATLAB cell array of texts: references to columns of uint16 characters in the group #refs#."""
    group = file.require_group("#refs#")
    references = np.empty((1, len(texts)), h5py.ref_dtype)
    for i, text in enumerate(texts):
        item = group.create_dataset(
            f"{name}{i}", data=np.array([[ord(letter)] for letter in text], np.uint16)
        )
        item.attrs["MATLAB_class"] = np.bytes_("char")
        references[0, i] = item.ref
    file.create_dataset(name, data=references).attrs["MATLAB_class"] = np.bytes_("cell")


def matlab_arrays(count: int, size, seed=0) -> dict[str, np.ndarray]:
    """Arrays as MATLAB shows them, frames along the last axis. No two pixels of an image are alike by
    construction of the noise.
    """
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 0, 300, 600, 894, *(raw for raw, *_ in KNOWN)], (*size, count)).astype(np.uint16)
    depths = rng.uniform(0.72, 9.99, (*size, count)).astype(np.float32)
    return {
        "images": rng.integers(0, 256, (*size, 3, count)).astype(np.uint8),
        "depths": depths,
        "rawDepths": np.where(rng.random(depths.shape) < 0.3, np.float32(0), depths),
        "labels": labels,
    }


def write_mat(path: Path, arrays: dict[str, np.ndarray], chunks=None) -> None:
    """A version 7.3 file: HDF5 after 512 bytes of MATLAB's header, every array with its axes in reverse."""
    count = arrays["images"].shape[-1]
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            options = {} if chunks is None else {"chunks": chunks[name], "compression": "gzip"}
            written = file.create_dataset(name, data=array.T, **options)
            written.attrs["MATLAB_class"] = np.bytes_(
                {"float32": "single"}.get(str(array.dtype), str(array.dtype))
            )
        names = [f"thing {raw}" for raw in range(1, 895)]
        for raw, name, *_ in KNOWN:
            names[raw - 1] = name
        write_cells(file, "names", names)
        write_cells(file, "sceneTypes", [("kitchen", "home_office")[i % 2] for i in range(count)])
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(512))


def write_tables(folder: Path, train, test) -> None:
    to40 = np.full(894, OTHER[0], np.uint8)
    for raw, _, class40, _ in KNOWN:
        to40[raw - 1] = class40
    savemat(
        folder / "classMapping40.mat",
        {"mapClass": to40[None], "className": np.array(nyu.OFFICIAL[40].classes, object)[None]},
    )
    savemat(
        folder / "splits.mat",
        {"trainNdxs": np.array(train, np.uint16)[:, None], "testNdxs": np.array(test, np.uint16)[:, None]},
    )


run = partial(script.run, nyu)


def convert(*arguments) -> None:
    options = tyro.cli(nyu.Options, args=[*map(str, arguments), "--no-progress"])
    common.check_options(options)  # as ``common.start`` does
    nyu.prepare(options)


SMALL, CUT = (20, 28), 3
NUMBERS = np.random.default_rng(3).permutation(40) + 1
TRAIN, TEST = sorted(NUMBERS[:24].tolist()), sorted(NUMBERS[24:].tolist())


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A folder of official files with 40 frames of 20 x 28, in chunks that hold parts of three frames."""
    for name, value in {
        "SIZE": SMALL,
        "FRAMES": 40,
        "COUNTS": {"train": 24, "test": 16},
        "BLOCK": 2,
    }.items():
        monkeypatch.setattr(nyu, name, value)
    monkeypatch.setattr(
        common, "contact_sheet", lambda root: "not drawn in this test"
    )  # half of the time; drawn at full size below
    folder = tmp_path / "official"
    folder.mkdir()
    chunks = {"images": (3, 2, 11, 9)} | dict.fromkeys(("depths", "rawDepths", "labels"), (3, 11, 9))
    write_mat(folder / "nyu_depth_v2_labeled.mat", matlab_arrays(40, SMALL), chunks)
    write_tables(folder, TRAIN, TEST)
    return folder


def expected_labels(raw: np.ndarray, classes: int) -> np.ndarray:
    meaning = {raw: (class40, class13) for raw, _, class40, class13 in KNOWN}
    pick = lambda raw: 255 if raw == 0 else meaning.get(int(raw), OTHER)[classes == 13] - 1
    return np.vectorize(pick)(raw)


@pytest.mark.parametrize("classes", [13, 40])
def test_every_pixel_of_the_official_file(small, tmp_path, classes):
    convert(small, "--out", tmp_path / "out", "--classes", classes, "--border", CUT)
    arrays, rows = matlab_arrays(40, SMALL), read_index(tmp_path / "out")
    # Blocks of two training frames in order; of every eight blocks the fourth is val.
    val = [TRAIN[i] for i in (6, 7, 22, 23)]
    assert sorted(int(r["id"]) for r in rows if r["split"] == "val") == val
    assert sorted(int(r["id"]) for r in rows if r["split"] == "test") == TEST
    assert sorted(int(r["id"]) for r in rows if r["split"] == "train") == [n for n in TRAIN if n not in val]
    inside = np.s_[CUT:-CUT, CUT:-CUT]
    for split in ("train", "val", "test"):
        data = PreparedDataset(tmp_path / "out", split)
        for i, row in enumerate(data.rows):
            frame = int(row["id"]) - 1
            images, label = data.stored(i)
            assert np.array_equal(images["rgb"], arrays["images"][..., frame][inside])
            assert (
                np.abs(data.physical(i)[0]["depth"][0].numpy() - arrays["depths"][..., frame][inside]).max()
                <= 0.0005 + 1e-6
            )
            assert np.array_equal(label, expected_labels(arrays["labels"][..., frame][inside], classes))
            assert row["condition"] == ("kitchen", "home_office")[frame % 2]
    description = read_description(tmp_path / "out")
    assert len(description.classes) == classes and description.extra["val"].startswith("own")
    column = 2 if classes == 40 else 3
    assert all(
        description.classes[entry[column] - 1] == entry[1]
        for entry in KNOWN
        if entry[1] in ("bed", "books", "ceiling", "wall")
    )
    assert len(set(description.palette)) == classes


def test_the_fixture_catches_the_naive_readers(small):
    """Turning instead of transposing, 8-bit labels, tables without void, splits from zero: each gives
    something else here.
    """
    arrays = matlab_arrays(40, SMALL)
    with h5py.File(small / "nyu_depth_v2_labeled.mat") as file:
        stored, raw = file["images"][4], file["labels"][4]
    right = arrays["images"][..., 4]
    turned = np.rot90(stored.transpose(1, 2, 0), -1)
    assert (
        turned.shape == right.shape
        and not np.array_equal(turned, right)
        and np.array_equal(turned[:, ::-1], right)
    )  # mirrored
    assert not np.array_equal(raw.T.astype(np.uint8), raw.T)
    table = np.full(895, 40)
    table[[r for r, *_ in KNOWN]] = [c for _, _, c, _ in KNOWN]
    assert not np.array_equal(
        table[1:][raw.T.clip(0, 893)], table[raw.T]
    )  # no 0 in front: every label is its neighbour's
    assert {n - 1 for n in TEST} != set(TEST) and {n - 1 for n in TEST} & set(
        TRAIN
    )  # training frames end up in test


def test_val_is_taken_from_train_or_left_out(small, tmp_path):
    convert(small, "--out", tmp_path / "whole", "--val", "none")
    rows = read_index(tmp_path / "whole")
    assert {r["split"] for r in rows} == {"train", "test"} and sum(r["split"] == "train" for r in rows) == 24
    assert read_description(tmp_path / "whole").extra["val"] == "none"


def test_official_counts():
    numbers = np.random.default_rng(0).permutation(np.arange(1, 1450))
    splits = {"train": np.sort(numbers[:795]), "test": np.sort(numbers[795:])}
    for val, counts in (("blocks", [690, 105, 654]), ("none", [795, 0, 654])):
        found = nyu.official_samples(splits, [], 1449, replace(nyu.Options(), val=val))
        assert [sum(sample.split == name for sample in found) for name in ("train", "val", "test")] == counts
        assert {int(s.id) for s in found if s.split == "test"} == set(splits["test"].tolist())


def test_forms_of_depth_and_holes(small, tmp_path):
    convert(
        small / "nyu_depth_v2_labeled.mat",
        "--out",
        tmp_path / "out",
        "--depth",
        "metres",
        "inverse",
        "hha",
        "--raw-depth",
        "--border",
        0,
    )
    data, raw = PreparedDataset(tmp_path / "out", "test"), matlab_arrays(40, SMALL)["rawDepths"]
    assert [m.symbol for m in data.modalities.values()] == ["R", "D", "I", "H"] and all(
        data.modalities[n].sparse for n in ("depth", "hha")
    )
    for i, row in enumerate(data.rows):
        images, metres = data.physical(i)[0], raw[..., int(row["id"]) - 1]
        hole = metres == 0
        assert 0.25 < hole.mean() < 0.35 and np.array_equal(images["depth"][0].numpy() == 0, hole)
        assert (
            np.array_equal(images["inverse_depth"][0].numpy() == 0, hole)
            and (images["hha"][:, hole] == 0).all()
        )
        assert (
            np.abs(images["inverse_depth"][0].numpy()[~hole] - 1 / metres[~hole].astype(float)).max()
            <= 0.5 / 16384 + 1e-6
        )
        near, seen = np.minimum(1, 1 / np.maximum(metres, 1e-6)), images["hha"][0].numpy() > 0
        assert seen.mean() > 0.5 and np.abs(images["hha"][0].numpy() - near)[seen].max() <= 0.5 / 255 + 1e-6


def test_full_size_from_the_command_line(tmp_path):
    """480 x 640, three frames, --partial; then --check, and a damaged result."""
    folder, out = tmp_path / "official", tmp_path / "out"
    folder.mkdir()
    arrays = matlab_arrays(3, (480, 640))
    write_mat(folder / "nyu_depth_v2_labeled.mat", arrays)
    numbers = np.random.default_rng(0).permutation(np.arange(3, 1450))
    write_tables(folder, [1, 2, *numbers[:793]], numbers[793:])
    done = run(folder, "--out", out)
    assert (
        done.returncode == 1
        and "samples; complete the download, or give --partial" in done.stderr
        and not out.exists()
    )
    done = run(folder, "--out", out, "--partial", "--size", 60, 80)
    assert done.returncode == 0, done.stderr
    assert (
        out / "contact_sheet.png"
    ).exists() and "train: 2 samples, home_office 1, kitchen 1" in done.stdout
    data = PreparedDataset(out, "train")
    assert [row["id"] for row in data.rows][:2] == ["0001", "0002"] and data.stored(0)[1].shape == (60, 80)
    levels = np.round(arrays["depths"][8:-8, 8:-8, 0] * 1000.0)
    assert np.isin(data.stored(0)[0]["depth"], levels).all()  # no depth between two
    assert run(folder, "--out", out, "--partial", "--size", 60, 80).stdout.startswith(
        f"{out} is prepared already"
    )
    assert (
        "prepared with other options (border 8, not 0"
        in run(folder, "--out", out, "--partial", "--size", 60, 80, "--border", 0).stderr
    )
    assert "every file as it should be" in run("--out", out, "--check", "--partial", "--size", 60, 80).stdout
    assert "classes 13, not 40" in run("--out", out, "--check", "--partial", "--classes", 40).stderr
    (out / "depth" / "0001.png").write_bytes((out / "depth" / "0001.png").read_bytes()[:500])
    done = run("--out", out, "--check", "--partial", "--size", 60, 80)
    assert done.returncode == 1 and "0001.png: cannot be read" in done.stderr


def test_the_official_division():
    splits = [nyu.division(position) for position in range(795)]
    assert [splits.count(name) for name in ("train", "val", "test")] == [600, 105, 90]
    assert all(len(set(splits[first : first + 15])) == 1 for first in range(0, 795, 15))


def test_chunks_are_unpacked_once(tmp_path):
    """The cache holds all chunks that a frame touches, so its neighbours in them cost nothing. Here: 8 frames
    a chunk, 7.4 MB in all.
    """
    with h5py.File(tmp_path / "big.mat", "w") as file:
        file.create_dataset("images", (8, 3, 640, 480), "uint8", chunks=(8, 1, 320, 480))
        file.create_dataset("depths", (8, 640, 480), "float32", chunks=(1, 640, 480))
        file.create_dataset("labels", (8, 640, 480), "uint16")
    wanted = {"images": ((3, 640, 480), "uint8"), "depths": ((640, 480), "float32")}
    with nyu.open_arrays(tmp_path / "big.mat", wanted, "a file") as file:
        _, slots, size, _ = file.id.get_access_plist().get_cache()
    assert (
        2 * 8 * 3 * 640 * 480 <= size < 1 << 26 and slots > 600
    )  # twice, for threads at the border of two chunks


def rewrite(name, change):
    """Damage one array of the big file."""

    def damage(folder):
        path = folder / "nyu_depth_v2_labeled.mat"
        with h5py.File(path, "r+") as file:
            array = change(file[name][()])
            del file[name]
            if array is not None:
                file[name] = array

    return damage


def put(value):
    def change(array):
        array[7, 4, 5] = value
        return array

    return change


def lead_away(folder):
    """The labels are the bytes of another file of the user's."""
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "r+") as file:
        shape, dtype, size = file["labels"].shape, file["labels"].dtype, file["labels"].nbytes
        (folder / "secret").write_bytes(bytes(size))
        del file["labels"]
        file.create_dataset("labels", shape, dtype, external=[(str(folder / "secret"), 0, size)])


def corrupt(folder):
    with h5py.File(folder / "nyu_depth_v2_labeled.mat") as file:
        info = file["labels"].id.get_chunk_info(0)
    with open(folder / "nyu_depth_v2_labeled.mat", "r+b") as file:
        file.seek(info.byte_offset + info.size // 2)
        file.write(b"\xff" * 40)


def cut_off(folder):
    path = folder / "nyu_depth_v2_labeled.mat"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def tables(**changes):
    return lambda folder: [savemat(folder / f"{file}.mat", content) for file, content in changes.items()]


SHIFTED = np.roll(np.arange(894) % 40 + 1, 1)
BAD = {
    "cut off": (cut_off, "nyu_depth_v2_labeled.mat: cannot be read"),
    "not HDF5": (
        lambda f: (f / "nyu_depth_v2_labeled.mat").write_bytes(b"MATLAB 5.0 MAT-file" * 100),
        "not MATLAB 7.3 (HDF5)",
    ),
    "a damaged chunk": (corrupt, "frame 0001: cannot be read"),
    "another file": (rewrite("labels", lambda a: None), "labels"),
    "axes in order": (
        rewrite("depths", lambda a: a.transpose(0, 2, 1)),
        "depths is float32 (40, 20, 28); expected float32 (40, 28, 20)",
    ),
    "labels of 8 bits": (rewrite("labels", lambda a: a.astype(np.uint8)), "labels is uint8"),
    "frames missing": (rewrite("labels", lambda a: a[:39]), "labels is uint16 (39, 28, 20)"),
    "unknown label": (rewrite("labels", put(895)), "frame 0008: label id 895,"),
    "NaN depth": (rewrite("depths", put(np.nan)), "frame 0008: label id 894, depths from nan"),
    "negative depth": (rewrite("depths", put(-0.5)), "frame 0008: label id 894, depths from -0.5"),
    "millimetres": (rewrite("depths", lambda a: a * 1000), "and metres between 0 and 10"),
    "no tables": (lambda f: (f / "splits.mat").unlink(), "indoor_seg_sup/splits.mat"),
    "splits from 0": (
        tables(splits={"trainNdxs": np.array(TRAIN)[:, None] - 1, "testNdxs": np.array(TEST)[:, None] - 1}),
        "splits.mat: {'train': 24, 'test': 16}; expected",
    ),
    "leaking splits": (tables(splits={"trainNdxs": TRAIN, "testNdxs": TRAIN[:16]}), "each once"),
    "other splits": (
        tables(splits={"trainNdxs": TRAIN + TEST[:1], "testNdxs": TEST[1:]}),
        "splits.mat: {'train': 25, 'test': 15}",
    ),
    "fractions": (tables(splits={"trainNdxs": np.array(TRAIN) + 0.5, "testNdxs": TEST}), "not whole numbers"),
    "a short table": (
        tables(classMapping40={"mapClass": SHIFTED[:893]}),
        "mapClass has 893 values; expected 894",
    ),
    "a table with 0": (tables(classMapping40={"mapClass": SHIFTED - 1}), "between 1 and 40"),
    "a table of other labels": (
        tables(classMapping40={"mapClass": SHIFTED}),
        "to another class than its own",
    ),
    "labels of another file": (lead_away, "labels leads out of the file"),
    "no table": (
        lambda f: (f / "classMapping40.mat").write_bytes(b"x" * 300),
        "classMapping40.mat: cannot be read",
    ),
}


@pytest.mark.parametrize("damage, message", BAD.values(), ids=BAD)
def test_bad_official_files(small, tmp_path, damage, message):
    damage(small)
    with pytest.raises(DataError) as error:
        convert(small, "--out", tmp_path / "out")
    assert message in str(error.value) and ("nyu_depth" in str(error.value) or ".mat" in str(error.value))
    assert not (tmp_path / "out" / "index.csv").exists()


def test_options_that_cannot_be(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        ([], "name the archive or the unpacked folder"),
        ([empty], "--download fetches"),
        (["--download"], "name the folder to fetch into"),
        ([empty, "--border", 240], "--border 240: expected 0 or more, at most 239"),
        ([empty, "--depth", "hha", "hha"], "each depth once"),
        (["--frames", empty, "--classes", 40, "--raw-depth"], "it takes no classes and no raw_depth"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(*arguments, "--out", tmp_path / "out")
    with pytest.raises(DataError, match="--out is missing"):
        convert(empty)


def test_nothing_is_fetched_without_being_asked(small, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(
        nyu,
        "fetch",
        lambda url, path, size, sha256, progress: fetched.append((url, path.name, size, len(sha256))),
    )
    convert(small, "--out", tmp_path / "out")
    assert not fetched
    convert(small, "--out", tmp_path / "other", "--download")
    assert [name for _, name, _, _ in fetched] == [
        "nyu_depth_v2_labeled.mat",
        "splits.mat",
        "classMapping40.mat",
    ]
    assert all(url.startswith("https://") and url.endswith(name) for url, name, _, _ in fetched) and fetched[
        0
    ][2:] == (2972037809, 64)


# ---- HHA ----

KINECT = nyu.KINECT


def scene(shape, *planes):
    """Depth (H, W) of planes (normal towards the camera, distance): the nearest one ahead; and which plane it
    is.
    """
    fx, fy, cx, cy = KINECT
    x, y = np.meshgrid((np.arange(1, shape[1] + 1) - cx) / fx, (np.arange(1, shape[0] + 1) - cy) / fy)
    depths = [-d / (n[0] * x + n[1] * y + n[2]) for n, d in planes]
    depths = np.array([np.where((z > 0) & np.isfinite(z), z, np.inf) for z in depths])
    return depths.min(0), depths.argmin(0)


def tilted(pitch, roll):
    """Up, in the frame of a camera that looks down by ``pitch`` degrees and leans by ``roll``."""
    p, r = np.radians([pitch, roll])
    return np.array([-np.sin(r), -np.cos(r) * np.cos(p), -np.cos(r) * np.sin(p)])


def away_from_edges(which, margin):
    from scipy.ndimage import maximum_filter, minimum_filter

    return maximum_filter(which, 2 * margin + 1) == minimum_filter(which, 2 * margin + 1)


@pytest.mark.parametrize("pitch, roll", [(0, 0), (20, 0), (-5, 0), (15, 12)])
def test_hha_of_floor_wall_and_ceiling(pitch, roll):
    """A room whose answer is known: height 0 and 0° on the floor, 90° on walls, 180° under the ceiling,
    disparity 1/z.
    """
    up = tilted(pitch, roll)
    side = np.cross(up, (0, 0, 1.0)) / np.linalg.norm(np.cross(up, (0, 0, 1.0)))
    back = np.cross(up, side)
    back = back if back[2] < 0 else -back
    depth, which = scene((480, 640), (up, 1.4), (-up, 1.1), (back, 6.0), (side, 2.0))
    found, flat = depth_to_hha.hha(depth, KINECT, up), away_from_edges(which, 3)
    assert np.allclose(found[..., 0], 1 / depth)
    for plane, angle in ((0, 0), (1, 180), (2, 90), (3, 90)):
        inside = flat & (which == plane)
        if inside.sum() > 1000:
            assert np.abs(found[..., 2][inside] - angle).max() < 1e-4
    assert (which == 0).mean() > 0.02 and np.abs(found[..., 1][which == 0]).max() < 1e-6
    assert (which == 1).sum() < 1000 or np.allclose(found[..., 1][which == 1], 2.5)  # 1.4 below, 1.1 above
    fx, fy, cx, cy = KINECT  # height by hand at one pixel: metres along up, plus the camera's 1.4
    row, column = 200, 320
    point = depth[row, column] * np.array([(column + 1 - cx) / fx, (row + 1 - cy) / fy, 1])
    assert np.isclose(found[row, column, 1], point @ up + 1.4, atol=1e-6)
    # Gravity, found from the image alone, is up to within what the windows across edges cost.
    estimate = depth_to_hha.gravity(depth_to_hha.normals(depth, KINECT, 10))
    assert np.degrees(np.arccos(estimate @ up)) < 1.0
    level = np.degrees(np.arccos(np.array(depth_to_hha.LEVEL) @ up))
    assumed = depth_to_hha.hha(depth, KINECT, depth_to_hha.LEVEL)
    assert np.isclose(
        np.median(assumed[..., 2][flat & (which == 0)]), level, atol=1e-4
    )  # what "level" leaves as an error


def test_normals_are_least_squares_planes():
    """Against numpy's solver, window by window, on a noisy depth with holes."""
    rng = np.random.default_rng(0)
    depth = scene((24, 32), (tilted(30, 10), 1.0))[0]
    depth = np.where(np.isfinite(depth), depth, 3.0) * rng.uniform(0.97, 1.03, depth.shape)
    depth[rng.random(depth.shape) < 0.2] = 0
    found, radius = depth_to_hha.normals(depth, KINECT, 2), 2
    fx, fy, cx, cy = KINECT
    assert (found[0, 0] == 0).all() and (
        depth[:3, :3] > 0
    ).sum() == 5  # too few points for a plane that means anything
    for row, column in [(5, 5), (10, 20), (23, 31), (12, 3)]:
        rows, columns = (
            np.arange(max(0, i - radius), min(n, i + radius + 1)) for i, n in ((row, 24), (column, 32))
        )
        r, c = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
        r, c = r[depth[r, c] > 0], c[depth[r, c] > 0]
        design = np.stack([(c + 1 - cx) / fx, (r + 1 - cy) / fy, np.ones(len(r))], 1)
        plane = -np.linalg.lstsq(design, 1 / depth[r, c], rcond=None)[0]
        assert np.allclose(found[row, column], plane / np.linalg.norm(plane), atol=1e-6)


@pytest.mark.parametrize("pitch, roll", [(0, 0), (25, 5), (-30, 10)])
def test_gravity_of_floors_of_walls_and_beside_a_ramp(pitch, roll):
    """Floors alone fix it, two directions of walls alone fix it, and what is neither, a ramp of 30 degrees,
    does not move it.
    """
    up = tilted(pitch, roll)
    side = np.cross(up, (0, 0.1, 1.0)) / np.linalg.norm(np.cross(up, (0, 0.1, 1.0)))
    back, ramp = np.cross(side, up), np.cos(np.radians(30)) * up + np.sin(np.radians(30)) * side

    def error(*normals):
        found = depth_to_hha.gravity(
            np.concatenate([np.tile(normal, (count, 1)) for normal, count in normals])
        )
        assert np.isclose(np.linalg.norm(found), 1)
        return np.degrees(np.arccos(min(1.0, found @ up)))

    assert error((up, 50)) < 0.1 and error((-up, 30), (up, 20)) < 0.1
    assert error((side, 40), (back, 40)) < 0.1 and error((side, 10), (back, 40), (up, 5)) < 0.1
    assert error((up, 50), (side, 30), (back, 30), (ramp, 25)) < 0.1


def test_gravity_is_not_guessed_where_nothing_shows_it():
    wall = scene((120, 160), (np.array([0, 0, -1.0]), 2.0))[0]
    assert np.allclose(
        depth_to_hha.gravity(depth_to_hha.normals(wall, KINECT, 5)), depth_to_hha.LEVEL, atol=1e-6
    )
    assert np.allclose(depth_to_hha.gravity(np.zeros((4, 4, 3))), depth_to_hha.LEVEL)
    found = depth_to_hha.hha(wall, KINECT)  # no floor in view: the camera is 1.3 m above it
    assert np.allclose(found[..., 2], 90, atol=1e-4)
    rows = np.arange(1, 121)
    assert np.allclose(found[:, 0, 1], np.maximum(1.3 - 2 * (rows - KINECT[3]) / KINECT[1], 0), atol=1e-6)
    assert (depth_to_hha.hha(np.zeros((8, 8)), KINECT) == 0).all()


# ---- extracted frames ----


def frames(folder: Path, count) -> Path:
    """Frames in the documented layout. Every label pixel encodes its own position; depth is a known ramp."""
    rng = np.random.default_rng(0)
    for name in ("rgb", "depth", "label13"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        stem = f"{i + 3:04d}"
        Image.fromarray(np.full((480, 640, 3), i, np.uint8)).save(folder / "rgb" / f"{stem}.jpg", quality=95)
        Image.fromarray(np.tile(np.arange(480) * 255 // 479, (640, 1)).T.astype(np.uint8)).save(
            folder / "depth" / f"{stem}.png"
        )
        label = rng.integers(0, 13, (480, 640)).astype(np.uint8)
        label[:100, :100] = 255
        Image.fromarray(label).save(folder / "label13" / f"{stem}.png")
    return folder


def test_every_pixel_inside_the_rim_comes_through(tmp_path):
    source = frames(tmp_path / "frames", 2)
    done = run("--frames", source, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    data = PreparedDataset(tmp_path / "out", "train")
    for i, row in enumerate(data.rows):
        images, label = data.physical(i)
        original = np.array(Image.open(source / "label13" / f"{row['id']}.png"))
        assert np.array_equal(label.numpy(), original[8:-8, 8:-8])
        metres = np.array(Image.open(source / "depth" / f"{row['id']}.png"))[8:-8, 8:-8] * 9.99547 / 255
        assert np.abs(images["depth"][0].numpy() - metres).max() < 0.5 / 256 + 1e-6  # half a stored step
    assert (
        "prepared with other options (size [0, 0], not [60, 80])"
        in run("--frames", source, "--out", tmp_path / "out", "--size", 60, 80).stderr
    )


def test_resized_frames_are_means_of_colour_and_unmixed_classes_and_depths(tmp_path):
    source = frames(tmp_path / "frames", 1)
    colour = np.random.default_rng(1).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    Image.fromarray(colour).save(source / "rgb" / "0003.jpg", quality=95)
    convert(
        "--frames", source, "--out", tmp_path / "out", "--size", 58, 78
    )  # eighths: each new pixel covers 8 x 8 old ones
    images, label = PreparedDataset(tmp_path / "out", "train").physical(0)
    assert tuple(label.shape) == (58, 78) and set(np.unique(label)) <= {*range(13), 255}
    levels = np.arange(256) * 9.99547 / 255
    assert all(
        np.abs(levels - value).min() < 0.5 / 256 + 1e-6 for value in images["depth"].unique().tolist()
    )  # no depth between two
    decoded = np.array(Image.open(source / "rgb" / "0003.jpg"))[8:-8, 8:-8].astype(float)
    assert (
        np.abs(
            images["rgb"].numpy() * 255 - decoded.reshape(58, 8, 78, 8, 3).mean((1, 3)).transpose(2, 0, 1)
        ).max()
        <= 1.0
    )
    assert np.array_equal(
        label.numpy(), np.array(Image.open(source / "label13" / "0003.png"))[8:-8, 8:-8][4::8, 4::8]
    )


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "depth" / "0003.png").unlink(), "0003.png: no such file"),
        (lambda f: (f / "rgb" / "0003.jpg").write_bytes(b"x"), "0003.jpg: cannot be read"),
        (
            lambda f: Image.fromarray(np.zeros((480, 640), np.uint8)).save(f / "rgb" / "0003.jpg"),
            "expected uint8 with 3 channels, found uint8 with 1",
        ),
        (
            lambda f: Image.fromarray(np.zeros((100, 640), np.uint8)).save(f / "label13" / "0003.png"),
            "100 × 640 pixels; expected 480 × 640",
        ),
        (
            lambda f: Image.fromarray(np.full((480, 640), 40, np.uint8)).save(f / "label13" / "0003.png"),
            "label id 40 out of range; expected 0 to 12",
        ),
    ],
)
def test_bad_frames_are_named_and_nothing_is_taken_for_whole(tmp_path, damage, message):
    source = frames(tmp_path / "frames", 2)
    damage(source)
    done = run("--frames", source, "--out", tmp_path / "out")
    assert (
        done.returncode != 0
        and done.stderr.startswith("error: ")
        and message in done.stderr
        and "Traceback" not in done.stderr
    )
    with pytest.raises(ValueError):
        PreparedDataset(tmp_path / "out")


def test_a_wrong_folder_is_explained(tmp_path):
    (tmp_path / "empty").mkdir()
    command = [sys.executable, SCRIPT, "--frames", tmp_path / "empty", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "no sample found" in done.stderr
    shown = run("--help")
    assert shown.returncode == 0 and all(
        flag in shown.stdout for flag in ("--frames", "--download", "--raw-depth", "--val {blocks,none}")
    )


def test_the_description_of_extracted_frames_stays():
    """Runs that were recorded on them compare by these words and numbers."""
    found = nyu.description(replace(nyu.Options(), frames="somewhere"))
    assert found.name == "nyu-depth-v2-13" and found.extra == {
        "division": "blocks of 15 consecutive frames, own division"
    }
    assert found.modalities["depth"].scale == 1 / 256 and found.modalities["depth"].high == 10.0


@pytest.mark.skipif(
    not REAL.is_dir(), reason="the real NYU frames are not on this machine (they may not be distributed)"
)
def test_real_frames(tmp_path):
    source = tmp_path / "frames"
    for name in ("rgb", "depth", "label13"):
        (source / name).mkdir(parents=True)
        for path in sorted((REAL / name).iterdir())[:5]:
            (source / name / path.name).symlink_to(path)
    done = run("--frames", source, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    data = PreparedDataset(tmp_path / "out")
    images, label = data.physical(0)
    assert (
        images["rgb"].shape == (3, 464, 624)
        and 0.3 < float(images["depth"].min())
        and float(images["depth"].max()) < 10
    )
    assert set(label.unique().tolist()) <= {*range(13), 255} and 0.2 < float((label != 255).float().mean())


@pytest.mark.skipif(
    not REAL.is_dir(), reason="the real NYU frames are not on this machine (they may not be distributed)"
)
def test_real_frames_stand_upright():
    """Floors lie below and look up, walls look sideways: an image that is mirrored passes, one that is turned
    or upside down does not.
    """
    angles, heights = {4: [], 11: []}, {4: [], 11: []}
    for path in sorted((REAL / "label13").iterdir())[::80]:
        metres = np.array(Image.open(REAL / "depth" / path.name)) * 9.99547 / 255
        label, found = np.array(Image.open(path)), depth_to_hha.hha(metres, KINECT)
        for id in angles:
            angles[id].append(found[..., 2][label == id])
            heights[id].append(found[..., 1][label == id])
    floor, wall = (np.median(np.concatenate(angles[id])) for id in (4, 11))
    assert floor < 25 and 75 < wall < 105  # steps of 4 cm in these depths allow no more
    assert np.median(np.concatenate(heights[4])) < 0.15 < 0.8 < np.median(np.concatenate(heights[11])) < 2.0
