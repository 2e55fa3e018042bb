"""The MUSES converter: every pixel of the official layout accounted for, each trap shown to fool the naive
reader, bad files named.
"""

import json
import math
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import script
from PIL import Image
from scipy.spatial.transform import Rotation

from mmlib.data.prepared import PreparedDataset, read_description, read_index

SCRIPTS = Path(__file__).parents[1] / "data_scripts"
sys.path.insert(0, str(SCRIPTS))
import common  # noqa: E402
import prepare_muses as muses  # noqa: E402

OFFICIAL_SIZE, OFFICIAL_COUNTS = muses.SIZE, muses.COUNTS
SIZE = (36, 64)
SCENES = [  # name, split, weather, time of day
    ("REC0001_frame_000100", "train", "clear", "day"),
    ("REC0002_frame_000200", "train", "fog", "night"),
    ("REC0475_frame_000247", "val", "rain", "night"),
    ("REC0006_frame_042692", "test", "snow", "day"),
]
LAST = 1_668_000_000_100_000  # µs, of each scene's last event; the exposure ends 20 ms before
KEYS = {
    "frame_camera": "_frame_camera.png",
    "event_camera": "_event_camera.h5",
    "lidar": "_lidar.bin",
    "gnss": "_gnss.txt",
}


def rigid(rotation: Rotation, shift) -> list:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation.as_matrix(), shift
    return matrix.tolist()


def calibration(size) -> dict:
    height, width = size
    f = 0.8 * width
    camera = [[f, 0, width / 2 - 0.7], [0, 0.99 * f, height / 2 + 0.4], [0, 0, 1]]
    event = [[0.7 * f, 0, width / 3], [0, 0.7 * f, height / 3], [0, 0, 1]]
    axes = Rotation.from_matrix([[0, -1, 0], [0, 0, -1], [1, 0, 0]])
    return {
        "intrinsics": {"rgb": {"K": camera}, "event": {"K": event}},
        "extrinsics": {
            "lidar2rgb": rigid(Rotation.from_rotvec([0.01, -0.02, 0.01]) * axes, [0.1, -0.3, 0.2]),
            "event2rgb": rigid(Rotation.from_rotvec([-0.02, 0.01, 0.02]), [0.1, 0, 0]),
            "lidar2gnss": rigid(Rotation.from_euler("x", math.pi), [1.0, 0, -1.2]),
        },
    }


def place(folder: str, scene, ending: str) -> str:
    name, split, weather, time = scene
    return f"{folder}/{split}/{weather}/{time}/{name}{ending}"


def points(rng, count) -> np.ndarray:
    """float64 (N, 6): before and behind the car, at its place, several in one direction; heights on both
    sides of 0.
    """
    made = np.empty((count, 6))
    made[:, :3] = np.c_[np.ones(count), rng.uniform(-0.7, 0.7, (count, 2))] * rng.choice(
        [-20, 0.5, 3, 17, 90], (count, 1)
    )
    made[:, 3], made[:, 4] = rng.integers(0, 256, count), rng.integers(0, 5, count)
    made[:, 5] = LAST / 1e6 - rng.uniform(0, 0.1, count)
    return made


def events(rng, count, size):
    """x, y, t, p in no order over 100 ms; 300 of one polarity in one pixel within the last 30 ms."""
    x, y = rng.integers(0, size[1] * 2 // 3, count), rng.integers(0, size[0] * 2 // 3, count)
    t, p = rng.integers(LAST - 100_000, LAST, count), rng.integers(0, 2, count)
    x[:300], y[:300], p[:300], t[:300] = size[1] // 3, size[0] // 3, 1, LAST - np.arange(300)
    return x, y, t, p


def make(root: Path, size=SIZE, scenes=SCENES, test_labels=False, count=900) -> dict:
    """The official layout under ``root``; returns the raw arrays of every scene by its name."""
    rng, raw, meta = np.random.default_rng(4), {}, {}
    for scene in scenes:
        name, split, weather, time = scene
        paths = {folder: place(folder, scene, ending) for folder, ending in KEYS.items()}
        labels = place("gt_semantic", scene, "_gt_labelTrainIds.png")
        for path in (*paths.values(), *([labels] if split != "test" or test_labels else [])):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
        rgb = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        label = rng.choice([*range(19), 255], size).astype(np.uint8)
        cloud, (x, y, t, p) = points(rng, count), events(rng, 2 * count, size)
        raw[name] = {"rgb": rgb, "label": label, "lidar": cloud, "event": (x, y, t, p)}
        Image.fromarray(rgb).save(root / paths["frame_camera"])
        if split != "test" or test_labels:
            Image.fromarray(label).save(root / labels)
            Image.fromarray(label + np.uint8(7)).save(
                root / labels.replace("TrainIds", "Ids")
            )  # the other encodings lie beside it
            Image.fromarray(rgb).save(root / labels.replace("TrainIds", "Color"))
        cloud.tofile(root / paths["lidar"])
        with h5py.File(root / paths["event_camera"], "w") as file:
            for key, values, dtype in zip("xytp", (x, y, t, p), ("u2", "u2", "i8", "u1")):
                file.create_dataset(
                    f"events/{key}", data=values.astype(dtype), **hdf5plugin.Blosc(cname="zstd")
                )
        numbers = [0] * 28
        numbers[23], numbers[19] = (
            14_000,
            2_000_000,
        )  # gSpeed 14 m/s, angular_rate_heading 20 deg/s to the right
        (root / paths["gnss"]).write_text(" ".join(map(str, numbers)) + "\n")
        meta[name] = {
            "split": split,
            "weather": weather,
            "time_of_day": time,
            "reference_frame_available": "No",
            "frame_camera_exposure_start_timestamp_us": str(LAST - 30_000),
            "frame_camera_exposure_end_timestamp_us": LAST - 20_000,
            **{f"path_to_{folder}": path for folder, path in paths.items()},
        }
    (root / "meta.json").write_text(json.dumps(meta))
    (root / "calib.json").write_text(json.dumps(calibration(size)))
    return raw


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tiny images and the counts of SCENES in place of the official ones."""
    monkeypatch.setattr(muses, "SIZE", SIZE)
    monkeypatch.setattr(muses, "COUNTS", {"train": 2, "val": 1, "test": 1})


def prepare(source, out, **options):
    options = muses.Options(source=str(source), out=str(out), progress=False, workers=1, **options)
    common.check_options(options)  # as ``common.start`` does
    muses.prepare(options)


def stored(out, name) -> tuple[dict, np.ndarray]:
    row = next(row for row in read_index(out) if row["id"] == name)
    data = PreparedDataset(out, row["split"])
    return data.stored([r["id"] for r in data.rows].index(name))


# ---- what must come out, one point and one event after the other
# --------------------------------------------------------------------


def scaled(matrix, native, size):
    """Camera matrix of the resized image, from the edges: u + 1/2 grows with the width."""
    (a, s, c), (_, b, d), last = matrix
    sy, sx = size[0] / native[0], size[1] / native[1]
    return [[a * sx, s * sx, (c + 0.5) * sx - 0.5], [0, b * sy, (d + 0.5) * sy - 0.5], last]


def expected_lidar(cloud, calib, size, native=SIZE) -> np.ndarray:
    """uint16 image: value = 128 · (v + 128), so "no point" is 16384."""
    camera, nearest = scaled(calib["intrinsics"]["rgb"]["K"], native, size), {}
    for x, y, z, intensity, *_ in cloud.tolist():
        distance = math.sqrt(x * x + y * y + z * z)
        a, b, c = (
            sum(t * v for t, v in zip(row, (x, y, z, 1.0))) for row in calib["extrinsics"]["lidar2rgb"][:3]
        )
        if c > 0 and distance >= 1:
            pixel = tuple(
                math.floor(f * v / c + shift + 0.5)
                for f, v, shift in ((camera[1][1], b, camera[1][2]), (camera[0][0], a, camera[0][2]))
            )
            if distance < nearest.get(pixel, (math.inf,))[0]:
                nearest[pixel] = (distance, intensity, z)
    image = np.full((*size, 3), 128 * 128, np.uint16)
    for (row, column), values in nearest.items():
        if 0 <= row < size[0] and 0 <= column < size[1]:
            image[row, column] = [round(128 * (value + 128)) for value in values]
    return image


def expected_counts(x, y, t, p, calib, size, native=SIZE, window=30_000) -> np.ndarray:
    camera, event = (
        np.array(scaled(calib["intrinsics"]["rgb"]["K"], native, size)),
        np.array(calib["intrinsics"]["event"]["K"]),
    )
    turn, counts = np.array(calib["extrinsics"]["event2rgb"])[:3, :3], np.zeros((*size, 2), int)
    for u, v, time, polarity in zip(x.tolist(), y.tolist(), t.tolist(), p.tolist()):
        ray = turn @ [
            (u - event[0, 2]) / event[0, 0],
            (v - event[1, 2]) / event[1, 1],
            1,
        ]  # a far point in the camera's frame
        column, row = (math.floor(value + 0.5) for value in (camera @ ray / ray[2])[:2])
        if time >= LAST - window and 0 <= row < size[0] and 0 <= column < size[1]:
            counts[row, column, 0 if polarity else 1] += 1
    return counts


def test_every_pixel_comes_through(tmp_path, capsys):
    raw, calib = make(tmp_path / "muses"), calibration(SIZE)
    prepare(tmp_path / "muses", tmp_path / "out")
    assert [(row["id"], row["split"], row["condition"]) for row in read_index(tmp_path / "out")] == [
        ("REC0001_frame_000100", "train", "clear-day"),
        ("REC0002_frame_000200", "train", "fog-night"),
        ("REC0475_frame_000247", "val", "rain-night"),
    ]
    for name in [row["id"] for row in read_index(tmp_path / "out")]:
        images, label = stored(tmp_path / "out", name)
        assert np.array_equal(images["rgb"], raw[name]["rgb"]) and np.array_equal(label, raw[name]["label"])
        lidar, counts = (
            expected_lidar(raw[name]["lidar"], calib, SIZE),
            expected_counts(*raw[name]["event"], calib, SIZE),
        )
        assert np.array_equal(images["lidar"], lidar) and (lidar != 16384).any(2).sum() > 100
        assert np.array_equal(images["event"], np.minimum(counts, 255)) and counts.sum() > 500
    description = read_description(tmp_path / "out")
    physical = description.modalities["lidar"].to_physical(lidar)
    assert (physical[(lidar == 16384).all(2)] == 0).all()  # no point is exactly 0
    assert (
        description.classes[0] == "road"
        and len(description.classes) == 19
        and "may not be shared" in description.licence
    )
    assert [m.symbol for m in description.modalities.values()] == ["R", "E", "L"]
    capsys.readouterr()
    prepare("", tmp_path / "out", check=True)
    assert "every file as it should be" in capsys.readouterr().out
    assert (tmp_path / "out" / "contact_sheet.png").exists()


def test_statistics_are_those_of_every_file_of_the_training_split(tmp_path):
    make(tmp_path / "muses")
    prepare(tmp_path / "muses", tmp_path / "out")
    counts = [stored(tmp_path / "out", name)[0]["event"] for name, split, *_ in SCENES if split == "train"]
    values = np.log1p(np.array(counts, float).reshape(-1, 2))
    event = read_description(tmp_path / "out").modalities["event"]
    assert np.allclose(event.mean, values.mean(0), atol=2e-6) and np.allclose(
        event.std, values.std(0), atol=2e-6
    )


def test_traps_of_the_raw_sensors_fool_the_naive_reader(tmp_path):
    raw, calib = make(tmp_path / "muses"), calibration(SIZE)
    prepare(tmp_path / "muses", tmp_path / "out")
    name = SCENES[0][0]
    images, label = stored(tmp_path / "out", name)
    counts = expected_counts(*raw[name]["event"], calib, SIZE)
    assert (
        counts.max() >= 300 > 255 and counts.astype(np.uint8).max() < 255
    )  # a cast wraps the brightest pixel to a small count
    assert images["event"].max() == 255
    few = expected_counts(
        *raw[name]["event"], calib, SIZE, window=30
    )  # 30 of the file's units: microseconds, not milliseconds
    assert few.sum() < counts.sum() / 5
    void = raw[name]["label"] == 255
    naive = np.where(void, 0, raw[name]["label"])
    assert void.any() and (label[void] == 255).all() and (naive != label).any()  # 255 made 0 is road
    heights = raw[name]["lidar"][:, 2]
    shown = images["lidar"][..., 2] / 128 - 128
    assert heights.min() < -5 and shown.min() < -5  # an unsigned store without offset has no place for these
    assert np.clip(np.rint(heights * 200), 0, 65535).min() == 0


def test_a_smaller_size_projects_anew_instead_of_thinning_points_out(tmp_path):
    raw, calib, size = make(tmp_path / "muses"), calibration(SIZE), (12, 16)
    prepare(tmp_path / "muses", tmp_path / "out", size=size)
    images, label = stored(tmp_path / "out", SCENES[0][0])
    assert label.shape == images["rgb"].shape[:2] == size
    assert np.array_equal(images["lidar"], expected_lidar(raw[SCENES[0][0]]["lidar"], calib, size))
    assert np.array_equal(
        images["event"], np.minimum(expected_counts(*raw[SCENES[0][0]]["event"], calib, size), 255)
    )
    thinned = expected_lidar(raw[SCENES[0][0]]["lidar"], calib, SIZE)[1::3, 2::4]
    assert (images["lidar"] != 16384).any(2).sum() > 1.5 * (thinned != 16384).any(2).sum()


def test_what_there_is_comes_from_meta_json_not_from_the_folders(tmp_path):
    make(tmp_path / "muses")
    stray = (
        tmp_path
        / "muses"
        / place("frame_camera", ("REC9999_frame_000001", "train", "clear", "day"), "_frame_camera.png")
    )
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(stray)
    prepare(tmp_path / "muses", tmp_path / "out", sensors=("lidar",))
    assert len(list((tmp_path / "muses").glob("frame_camera/train/*/*/*.png"))) == 3
    assert "REC9999_frame_000001" not in {row["id"] for row in read_index(tmp_path / "out")}
    assert list(read_description(tmp_path / "out").modalities) == ["lidar"]


def test_motion_compensation_with_a_relative_folder(tmp_path, monkeypatch):
    raw, calib = make(tmp_path / "muses"), calibration(SIZE)
    monkeypatch.chdir(tmp_path)  # a root that is joined twice is found only where it is absolute
    prepare("muses", "out", sensors=("lidar",), motion_compensation=True)
    name, middle, rate, speed = SCENES[0][0], LAST / 1e6 - 0.025, math.radians(20), 14.0
    cloud = raw[name]["lidar"].copy()
    for point in cloud:  # LiDAR (z up) to car (z down), along the circle the car drives, and back
        x, y, z, t = point[0] + 1.0, -point[1], -point[2] - 1.2, point[5] - middle
        sine, cosine = math.sin(rate * t), math.cos(rate * t)
        x, y = (
            cosine * x - sine * y + speed / rate * sine,
            sine * x + cosine * y + speed / rate * (1 - cosine),
        )
        point[:3] = x - 1.0, -y, -(z + 1.2)
    found = stored(tmp_path / "out", name)[0]["lidar"]
    assert np.abs(found.astype(int) - expected_lidar(cloud, calib, SIZE)).max() <= 1
    assert (found != expected_lidar(raw[name]["lidar"], calib, SIZE)).any(2).sum() > 100


def test_enlarged_points_hide_what_is_farther(tmp_path):
    make(tmp_path / "muses")
    for out, enlarge in (("one", 1), ("three", 3)):
        prepare(tmp_path / "muses", tmp_path / out, sensors=("lidar",), enlarge=enlarge)
    one, three = (
        stored(tmp_path / out, SCENES[0][0])[0]["lidar"][..., 0].astype(float) for out in ("one", "three")
    )
    distance = np.pad(np.where(one == 16384, np.inf, one), 1, constant_values=np.inf)
    around = np.min([distance[r : r + SIZE[0], c : c + SIZE[1]] for r in range(3) for c in range(3)], 0)
    assert (
        np.array_equal(three, np.where(np.isinf(around), 16384, around))
        and (three != 16384).sum() > 2 * (one != 16384).sum()
    )
    with pytest.raises(ValueError, match="prepared with other options .enlarge 3, not 2"):
        prepare(tmp_path / "muses", tmp_path / "three", sensors=("lidar",), enlarge=2)


# ---- splits
# -------------------------------------------------------------------------------------------------------------------------


def test_test_split_with_labels_and_without(tmp_path):
    make(tmp_path / "labelled", test_labels=True)
    prepare(tmp_path / "labelled", tmp_path / "all", splits=("train", "val", "test"), sensors=("rgb",))
    assert [row["split"] for row in read_index(tmp_path / "all")] == ["test", "train", "train", "val"]
    raw = make(tmp_path / "withheld")
    with pytest.raises(
        ValueError, match=r"gt_semantic/test: not found; without test labels write --splits train val"
    ):
        prepare(tmp_path / "withheld", tmp_path / "none", splits=("train", "val", "test"))
    prepare(tmp_path / "withheld", tmp_path / "apart", splits=("test",), sensors=("rgb", "lidar"))
    images, label = stored(tmp_path / "apart", SCENES[3][0])
    assert np.array_equal(images["rgb"], raw[SCENES[3][0]]["rgb"]) and (label == 255).all()
    assert not (tmp_path / "apart" / "label").exists()
    make(tmp_path / "lost", test_labels=True)
    next((tmp_path / "lost").rglob("gt_semantic/val/**/*TrainIds.png")).unlink()
    with pytest.raises(ValueError, match=r"gt_labelTrainIds.png: not found; 1 of 3 samples"):
        prepare(tmp_path / "lost", tmp_path / "none")


def test_official_numbers():
    assert OFFICIAL_SIZE == (1080, 1920) and OFFICIAL_COUNTS == {"train": 1500, "val": 250, "test": 750}
    assert sum(OFFICIAL_COUNTS.values()) == 2500


def test_fewer_samples_need_partial(tmp_path, capsys):
    make(tmp_path / "muses", scenes=SCENES[1:])
    with pytest.raises(ValueError, match="train: 1 of 2"):
        prepare(tmp_path / "muses", tmp_path / "out", sensors=("rgb",))
    next((tmp_path / "muses").rglob("frame_camera/val/**/*.png")).unlink()
    prepare(tmp_path / "muses", tmp_path / "out", sensors=("rgb",), partial=True)
    assert [row["id"] for row in read_index(tmp_path / "out")] == ["REC0002_frame_000200"]
    assert "left out: 1 of 2 samples" in capsys.readouterr().out


def test_a_folder_of_zip_files_is_unpacked_into_one(tmp_path):
    raw = make(tmp_path / "muses")
    (tmp_path / "zips").mkdir()
    for archive, folders in (
        ("RGB", ("frame_camera",)),
        ("Semantic", ("gt_semantic",)),
        ("Rest", ("lidar", "event_camera")),
    ):
        with zipfile.ZipFile(tmp_path / "zips" / f"{archive}.zip", "w") as file:
            for path in (
                *(tmp_path / "muses").glob("*.json"),
                *(p for f in folders for p in (tmp_path / "muses" / f).rglob("*.*")),
            ):
                file.write(path, path.relative_to(tmp_path))
    prepare(tmp_path / "zips", tmp_path / "out")
    assert np.array_equal(stored(tmp_path / "out", SCENES[0][0])[0]["rgb"], raw[SCENES[0][0]]["rgb"])


# ---- files of the authors' tool
# -----------------------------------------------------------------------------------------------------


def png16(path: Path, array: np.ndarray) -> None:
    """A 16-bit RGB PNG of the planes in the order given, written by hand: Pillow cannot."""
    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def project_as_the_tool(root: Path, folder: Path, suffix: str) -> dict:
    """projected_to_rgb/: float32 LiDAR and uint8 event images of three planes; in a .png BGR, and LiDAR as (v
    + 100) · 150.
    """
    rng, made = np.random.default_rng(6), {}
    for scene in SCENES:
        empty = rng.random(SIZE) < 0.7
        lidar = np.stack(
            [rng.uniform(1, 90, SIZE), rng.integers(0, 256, SIZE), rng.uniform(-3, 9, SIZE)], 2
        ).astype(np.float32)
        lidar[empty] = 0
        event = np.dstack([rng.integers(0, 9, (*SIZE, 2)), np.zeros(SIZE)]).astype(np.uint8)
        made[scene[0]] = lidar, event
        paths = [folder / place(kind, scene, f"_{kind}{suffix}") for kind in ("lidar", "event_camera")]
        for path, array in zip(paths, made[scene[0]]):
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix == ".npz":
                np.savez_compressed(path, array)
            elif suffix == ".npy":
                np.save(path, array)
            elif array.dtype == np.uint8:
                Image.fromarray(np.ascontiguousarray(array[..., ::-1])).save(path)
            else:
                png16(path, ((array + 100) * 150).astype(np.uint16)[..., ::-1])
    return made


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".png"])
def test_files_of_the_authors_tool(tmp_path, suffix):
    make(tmp_path / "muses")
    for folder in ("event_camera", "lidar"):
        assert (tmp_path / "muses" / folder).rename(tmp_path / folder)
    (tmp_path / "muses" / "calib.json").unlink()
    made = project_as_the_tool(tmp_path / "muses", tmp_path / "projected", suffix)
    prepare(tmp_path / "muses", tmp_path / "out", projected=str(tmp_path / "projected"))
    lidar, event = made[SCENES[1][0]]
    images = stored(tmp_path / "out", SCENES[1][0])[0]
    assert np.array_equal(images["event"], event[..., :2])
    assert str(tmp_path) not in (tmp_path / "out" / "dataset.json").read_text()
    found = images["lidar"] / 128 - 128
    step = 1 / 256 + (1 / 150 if suffix == ".png" else 0)  # half a stored step, and what the .png cut off
    assert np.abs(found - lidar).max() <= step + 1e-5 and np.array_equal(found == 0, lidar == 0)
    if suffix == ".png":
        path = next((tmp_path / "projected").rglob(f"{SCENES[1][0]}_lidar.png"))
        with Image.open(path) as image:
            naive = np.array(image)
        assert (
            naive.dtype == np.uint8 and np.abs(naive / 150.0 - 100 - lidar).max() > 50
        )  # the high byte only
        forward = ((lidar + 100) * 150).astype(np.uint16)[..., ::-1] / 150 - 100
        assert (
            np.abs(forward - lidar).max() > 50
        )  # right bits, planes in the file's order: the height taken for the range


# ---- what is wrong is named
# ---------------------------------------------------------------------------------------------------------


def at(root, folder, ending, scene=SCENES[1]):
    return root / place(folder, scene, ending)


def rewrite(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def events_gone(path):
    with h5py.File(path, "r+") as file:
        del file["events/t"]


LABEL, LIDAR, EVENT, FRAME = (
    ("gt_semantic", "_gt_labelTrainIds.png"),
    ("lidar", "_lidar.bin"),
    ("event_camera", "_event_camera.h5"),
    ("frame_camera", "_frame_camera.png"),
)


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda r: at(r, *LIDAR).write_bytes(at(r, *LIDAR).read_bytes()[:-20]),
            "REC0002_frame_000200_lidar.bin: cannot be read",
        ),
        (lambda r: (np.full((40, 6), 1e5)).tofile(at(r, *LIDAR)), "_lidar.bin: range 0 to 1.732e+05"),
        (lambda r: at(r, *LIDAR).unlink(), "_lidar.bin: not found; 1 of 3 samples"),
        (
            lambda r: at(r, *EVENT).write_bytes(at(r, *EVENT).read_bytes()[:3000]),
            "it is not HDF5 with events/x, y, t, p, or damaged",
        ),
        (lambda r: events_gone(at(r, *EVENT)), "it is not HDF5 with events/x, y, t, p, or damaged"),
        (
            lambda r: Image.fromarray(np.full(SIZE, 33, np.uint8)).save(at(r, *LABEL)),
            "_gt_labelTrainIds.png: unknown label id 33",
        ),
        (
            lambda r: Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(at(r, *LABEL)),
            "_gt_labelTrainIds.png: expected an image with 1 channel",
        ),
        (
            lambda r: Image.fromarray(np.zeros((*SIZE, 4), np.uint8)).save(at(r, *FRAME)),
            "_frame_camera.png: expected uint8 with 3",
        ),
        (
            lambda r: Image.fromarray(np.zeros((9, 64, 3), np.uint8)).save(at(r, *FRAME)),
            "_frame_camera.png: 9 × 64 pixels; expected 36 × 64",
        ),
        (
            lambda r: at(r, *FRAME).write_bytes(at(r, *FRAME).read_bytes()[:2000]),
            "_frame_camera.png: cannot be read",
        ),
        (
            lambda r: rewrite(r / "calib.json", lambda c: c["extrinsics"].pop("event2rgb")),
            "calib.json, extrinsics/event2rgb: cannot be read",
        ),
        (lambda r: (r / "calib.json").unlink(), "calib.json: no such file"),
        (lambda r: (r / "meta.json").write_text("[]"), "it is not the list of samples"),
        (lambda r: (r / "meta.json").write_text('{"a"'), "it is not the list of samples"),
        (
            lambda r: rewrite(r / "meta.json", lambda m: m[SCENES[1][0]].update(weather="hail")),
            "weather is 'hail'; expected clear, fog",
        ),
        (
            lambda r: rewrite(
                r / "meta.json", lambda m: m[SCENES[1][0]].update(path_to_lidar="../../etc/passwd")
            ),
            "expected a path below",
        ),
        (
            lambda r: rewrite(r / "meta.json", lambda m: m[SCENES[1][0]].pop("path_to_event_camera")),
            "path_to_event_camera is None",
        ),
        (
            lambda r: (r / "lidar").rename(r / "Lidar"),
            "no folder in it holds meta.json, frame_camera, event_camera, lidar",
        ),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_finished(tmp_path, monkeypatch, damage, message):
    make(tmp_path / "muses")
    damage(tmp_path / "muses")
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "prepare",
            str(tmp_path / "muses"),
            "--out",
            str(tmp_path / "out"),
            "--no-progress",
            "--workers",
            "1",
        ],
    )
    with pytest.raises(SystemExit) as stopped:
        common.start(muses.prepare, muses.Options, "")
    assert str(stopped.value).startswith("error: ") and message in str(stopped.value)
    assert not (tmp_path / "out" / "index.csv").exists()


def saved(array, key="arr_0"):
    return lambda path: np.savez(path, **{key: array})


@pytest.mark.parametrize(
    "content, message",
    [
        (saved(np.full((*SIZE, 3), -1, np.float32)), "_lidar.npz: range -1 to 0"),
        (saved(np.full((*SIZE, 3), np.nan, np.float32)), "_lidar.npz: range nan"),
        (saved(np.zeros((*SIZE, 3))), "_lidar.npz: float64 .* expected float32"),
        (saved(np.zeros((9, 9, 3), np.float32)), "_lidar.npz: float32 .9, 9, 3."),
        (saved(np.zeros((*SIZE, 3), np.float32), "depth"), "_lidar.npz: cannot be read"),
        (lambda path: path.write_bytes(b"PK\3\4 not a zip"), "_lidar.npz: cannot be read"),
        (lambda path: path.unlink(), "_lidar.npz: (not found|no such file)"),
    ],
)
def test_bad_files_of_the_tool_are_named(tmp_path, content, message):
    make(tmp_path / "muses")
    project_as_the_tool(tmp_path / "muses", tmp_path / "projected", ".npz")
    content(at(tmp_path / "projected", "lidar", "_lidar.npz"))
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "muses", tmp_path / "out", projected=str(tmp_path / "projected"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"projected": "x", "enlarge": 2}, "--projected reads finished images"),
        ({"enlarge": 0}, "--enlarge 0: expected 1 or more"),
        ({"window": float("nan")}, "--window nan: expected a finite number"),
        ({"sensors": ()}, "no modality"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    make(tmp_path / "muses")
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "muses", tmp_path / "out", **options)


def test_exposures_are_needed_for_motion(tmp_path):
    make(tmp_path / "muses")
    rewrite(
        tmp_path / "muses" / "meta.json",
        lambda m: m[SCENES[0][0]].pop("frame_camera_exposure_end_timestamp_us"),
    )
    with pytest.raises(
        ValueError,
        match="REC0001_frame_000100': cannot be read .*frame_camera_exposure_start_timestamp_us and",
    ):
        prepare(tmp_path / "muses", tmp_path / "out", motion_compensation=True)


def test_from_the_command_line_at_full_size(tmp_path, monkeypatch):
    monkeypatch.undo()  # the official size and counts
    raw = make(tmp_path / "muses", OFFICIAL_SIZE, SCENES[2:3], count=20_000)
    done = script.run(muses, tmp_path / "muses", "--out", tmp_path / "out", "--partial")
    assert done.returncode == 0, done.stderr
    (name, scene), calib = next(iter(raw.items())), calibration(OFFICIAL_SIZE)
    images, label = stored(tmp_path / "out", name)
    assert np.array_equal(images["rgb"], scene["rgb"]) and np.array_equal(label, scene["label"])
    assert np.array_equal(
        images["lidar"], expected_lidar(scene["lidar"], calib, OFFICIAL_SIZE, OFFICIAL_SIZE)
    )
    counts = expected_counts(*scene["event"], calib, OFFICIAL_SIZE, OFFICIAL_SIZE)
    assert np.array_equal(images["event"], np.minimum(counts, 255)) and counts.max() >= 300
