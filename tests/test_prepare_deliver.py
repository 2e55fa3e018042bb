"""The DELIVER converter: every pixel of the official layout accounted for, each trap shown to fool the naive
reader, bad files named.
"""

import csv
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import script
from PIL import Image

from mmlib.data.prepared import PreparedDataset

SCRIPTS = Path(__file__).parents[1] / "data_scripts"
sys.path.insert(0, str(SCRIPTS))
import prepare_deliver as deliver  # noqa: E402

OFFICIAL_SIZE, OFFICIAL_COUNTS = deliver.SIZE, deliver.COUNTS
SIZE = (40, 56)
FRAMES = [  # condition, split, scene, frame, case
    ("cloud", "train", "MAP_10_point102", "045050", ""),
    ("rain", "train", "MAP_1_point12_motionblur", "045050", "motionblur"),
    ("sun", "train", "MAP_1_point12_eventlowres", "110100", "eventlowres"),
    ("night", "val", "MAP_1_point12", "045050", ""),
    ("rain", "test", "MAP_3_point7_lidarjitter", "000250", "lidarjitter"),
]
PLACES = [
    ("rgb", "img", "rgb"),
    ("hha", "hha", "depth"),
    ("depth", "depth", "depth"),
    ("event", "event", "event"),
    ("lidar", "lidar", "lidar"),
    ("label", "semantic", "semantic"),
]  # sensor, folder, word in the file's name


def write(root, folder, frame, word, array):
    condition, split, scene, number, _ = frame
    path = root / folder / condition / split / scene / f"{number}_{word}_front.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def make(root, frames=FRAMES, size=SIZE, event_size=None) -> dict[tuple, dict[str, np.ndarray]]:
    """The official layout under ``root``; returns the raw arrays of every frame. Labels hold 0, 1..25 and 255
    in the red plane.
    """
    rng = np.random.default_rng(1)
    raw = {}
    for index, frame in enumerate(frames):

        def noise(*shape):
            return rng.integers(0, 256, shape).astype(np.uint8)

        arrays = {
            "rgb": noise(*size, 3 + index % 2),
            "hha": noise(*size, 3),
            "depth": noise(*size),
            "event": noise(*(event_size or size), 3),
            "lidar": noise(*size) if index % 2 else noise(*size, 3),
        }
        arrays["label"] = noise(*size, 4 - index % 2)
        arrays["label"][..., 0] = rng.choice([0, *range(1, 26), 255], size)
        for key, folder, word in PLACES:
            write(root, folder, frame, word, arrays[key])
        raw[frame] = arrays
    return raw


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tiny images and the counts of FRAMES in place of the official ones."""
    monkeypatch.setattr(deliver, "SIZE", SIZE)
    monkeypatch.setattr(
        deliver.common, "contact_sheet", lambda root: root
    )  # slow; the command line draws it below
    counts = {}
    for split, failing in {"train": 2, "val": 0, "test": 1}.items():
        frames = [condition for condition, its_split, *_ in FRAMES if its_split == split]
        counts |= {f"{split} {condition}": frames.count(condition) for condition in deliver.CONDITIONS}
        counts |= {split: len(frames), f"{split} failing": failing, f"{split} healthy": len(frames) - failing}
    monkeypatch.setattr(deliver, "COUNTS", counts)


def prepare(source, out, **options):
    deliver.prepare(deliver.Options(source=str(source), out=str(out), progress=False, workers=1, **options))


def rows(out):
    with open(out / "index.csv", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def name_of(frame):
    return f"{frame[1]}_{frame[0]}_{frame[2]}_{frame[3]}"


def stored(out, frame):
    data = PreparedDataset(out, frame[1])
    return data.stored([row["id"] for row in data.rows].index(name_of(frame)))


def test_every_pixel_comes_through(tmp_path):
    raw = make(tmp_path / "DELIVER")
    prepare(tmp_path / "DELIVER", tmp_path / "out", depth="both")
    assert set(rows(tmp_path / "out")) == {name_of(frame) for frame in FRAMES}
    for frame, arrays in raw.items():
        row = rows(tmp_path / "out")[name_of(frame)]
        assert (row["condition"], row["split"], row["case"]) == (frame[0], frame[1], frame[4])
        images, label = stored(tmp_path / "out", frame)
        for name in ("rgb", "hha", "event"):
            assert np.array_equal(images[name], arrays[name][..., :3])
        assert np.array_equal(images["depth"][..., 0], arrays["depth"])
        lidar = arrays["lidar"]
        assert np.array_equal(images["lidar"], np.dstack([lidar] * 3) if lidar.ndim == 2 else lidar)
        for value in range(256):  # pixel by pixel: class = id - 1, void otherwise
            assert (
                (label == value)
                == (
                    (arrays["label"][..., 0] == value + 1)
                    if value < 25
                    else np.isin(arrays["label"][..., 0], (0, 255))
                    if value == 255
                    else False
                )
            ).all()
    for name, shown in PreparedDataset(
        tmp_path / "out", "train"
    ).modalities.items():  # statistics over the split "train" only
        pixels = np.concatenate(
            [stored(tmp_path / "out", frame)[0][name].reshape(-1, shown.channels) for frame in FRAMES[:3]]
        )
        scale = 255 if name == "rgb" else 1
        assert np.allclose(shown.mean, pixels.mean(0, dtype=float) / scale, atol=1e-4)
        assert np.allclose(shown.std, pixels.std(0, dtype=float) / scale, atol=1e-4)


def test_which_depth_image(tmp_path):
    raw = make(tmp_path / "DELIVER")
    for depth, names, symbols in (
        ("hha", "rgb hha event lidar", "RDEL"),
        ("depth", "rgb depth event lidar", "RDEL"),
        ("both", "rgb hha depth event lidar", "RHDEL"),
    ):
        prepare(tmp_path / "DELIVER", tmp_path / depth, depth=depth)
        data = PreparedDataset(tmp_path / depth, "val")
        assert (
            list(data.modalities) == names.split()
            and "".join(m.symbol for m in data.modalities.values()) == symbols
        )
    # The file names are the same in both folders: only the folder tells them apart.
    assert np.array_equal(stored(tmp_path / "hha", FRAMES[3])[0]["hha"], raw[FRAMES[3]]["hha"])
    assert np.array_equal(stored(tmp_path / "depth", FRAMES[3])[0]["depth"][..., 0], raw[FRAMES[3]]["depth"])


def test_conditions_are_components_and_not_substrings(tmp_path):
    root = tmp_path / "train_rain" / "img" / "sun_eventlowres"  # a place whose name holds every trap
    make(root)
    files = sorted(map(str, root.glob("img/*/train/*/*.png")))
    relative = [str(Path(file).relative_to(root)) for file in files]
    assert (
        len([file for file in relative if "rain" in file]) == 3
    )  # the published filter keeps all of train, where 1 is rain
    assert not Path(
        files[0].replace("/img", "/lidar").replace("_rgb", "_lidar")
    ).exists()  # and its paths lead nowhere
    prepare(root, tmp_path / "out")
    train = [row for row in rows(tmp_path / "out").values() if row["split"] == "train"]
    assert sorted(row["condition"] for row in train) == ["cloud", "rain", "sun"]
    assert sorted(row["case"] for row in train) == ["", "eventlowres", "motionblur"]


def test_labels_lie_in_the_red_plane(tmp_path):
    raw = make(tmp_path / "DELIVER")
    path = write(tmp_path / "DELIVER", "semantic", FRAMES[0], "semantic", raw[FRAMES[0]]["label"])
    ids = raw[FRAMES[0]]["label"][..., 0].astype(int)
    truth = np.where((ids == 0) | (ids == 255), 255, ids - 1)
    grey = np.array(Image.open(path).convert("L")).astype(int)
    assert not np.array_equal(
        np.where((grey == 0) | (grey == 255), 255, grey - 1), truth
    )  # a colour conversion mixes the planes
    assert not np.array_equal(
        (ids.astype(np.uint8) - np.uint8(1)), truth
    )  # the wrap-around alone makes 254 of 255
    prepare(tmp_path / "DELIVER", tmp_path / "out")
    assert np.array_equal(stored(tmp_path / "out", FRAMES[0])[1], truth)


def test_an_unknown_id_is_an_error_where_wrapping_makes_a_class_of_it(tmp_path):
    raw = make(tmp_path / "DELIVER")
    label = raw[FRAMES[4]]["label"].copy()
    label[3, 5, 0] = 26
    wrapped = label[..., 0].copy()
    wrapped[wrapped == 255] = 0
    wrapped -= 1  # the published reader
    assert wrapped[3, 5] == 25  # one class too many, and no word about it
    path = write(tmp_path / "DELIVER", "semantic", FRAMES[4], "semantic", label)
    with pytest.raises(ValueError, match=f"{path}: unknown label id 26"):
        prepare(tmp_path / "DELIVER", tmp_path / "out")


def test_opacity_does_not_change_colours(tmp_path):
    raw = make(tmp_path / "DELIVER")
    prepare(tmp_path / "DELIVER", tmp_path / "out", size=(20, 28))
    rgba = raw[FRAMES[1]]["rgb"]
    assert rgba.shape[2] == 4
    ours = stored(tmp_path / "out", FRAMES[1])[0]["rgb"].astype(int)
    alone = np.array(
        Image.fromarray(np.ascontiguousarray(rgba[..., :3])).resize((28, 20), Image.Resampling.BILINEAR)
    ).astype(int)
    naive = np.array(Image.fromarray(rgba).resize((28, 20), Image.Resampling.BILINEAR))[..., :3].astype(int)
    assert np.abs(ours - alone).max() <= 1 and np.abs(naive - alone).max() > 10


@pytest.mark.parametrize("event_size", [(13, 21), (20, 28), (77, 90)])
def test_events_of_another_size_take_the_nearest_value(tmp_path, event_size):
    raw = make(tmp_path / "DELIVER", event_size=event_size)
    prepare(tmp_path / "DELIVER", tmp_path / "out")
    event, images = raw[FRAMES[0]]["event"], stored(tmp_path / "out", FRAMES[0])[0]
    (h, w), (height, width) = event_size, SIZE
    nearest = lambda i, new, old: min(
        range(old), key=lambda j: (abs((i + 0.5) / new - (j + 0.5) / old) > 0.5 / old + 1e-9, -j)
    )
    expected = [
        [event[nearest(y, height, h), nearest(x, width, w)] for x in range(width)] for y in range(height)
    ]
    assert np.array_equal(images["event"], expected)
    blended = np.array(Image.fromarray(event).resize((width, height), Image.Resampling.BILINEAR))
    assert not np.array_equal(blended, expected)


def replaced(folder, word, array, frame=FRAMES[0]):
    return lambda root: write(root, folder, frame, word, array)


def truncated(root):
    path = root / "lidar/cloud/train/MAP_10_point102/045050_lidar_front.png"
    path.write_bytes(path.read_bytes()[:-200])


def palette(root):
    path = root / "lidar/cloud/train/MAP_10_point102/045050_lidar_front.png"
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).quantize(4).save(path)


def renamed(old, new):
    return lambda root: (
        (root / new).parent.mkdir(parents=True, exist_ok=True),
        (root / old).rename(root / new),
    )


def moved(new):
    """The first frame's scene under another name, of all sensors."""
    return lambda root: [renamed(f"{folder}/{FIRST}", f"{folder}/{new}")(root) for _, folder, _ in PLACES]


FIRST = "cloud/train/MAP_10_point102"


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            replaced("img", "rgb", np.zeros((39, 56, 3), np.uint8)),
            "045050_rgb_front.png: 39 × 56 pixels; expected 40 × 56",
        ),
        (
            replaced("semantic", "semantic", np.zeros((20, 28, 3), np.uint8)),
            "045050_semantic_front.png: 20 × 28 pixels; expected 40 × 56",
        ),
        (
            replaced("img", "rgb", np.zeros(SIZE, np.uint8)),
            "045050_rgb_front.png: expected uint8 with 3 or 4 channels, found uint8 with 1",
        ),
        (
            replaced("lidar", "lidar", np.zeros(SIZE, np.uint16)),
            "_lidar_front.png: expected uint8 with 1 or 3 or 4 channels, found uint16",
        ),
        (
            replaced("depth", "depth", np.random.default_rng(0).integers(0, 9, (*SIZE, 3)).astype(np.uint8)),
            "planes that differ",
        ),
        (palette, "channel and a palette"),
        (truncated, "045050_lidar_front.png: cannot be read"),
        (
            lambda root: (root / f"lidar/{FIRST}/045050_lidar_front.png").unlink(),
            "_lidar_front.png: not found; 1 of 5 samples lack files",
        ),
        (
            renamed(f"img/{FIRST}", "img/hail/train/MAP_10_point102"),
            "img/hail/train/MAP_10_point102/045050_rgb_front.png: expected img/CONDITION",
        ),
        (
            renamed(f"img/{FIRST}", f"img/{FIRST}_fogginess"),
            "_fogginess/045050_rgb_front.png: expected img/CONDITION",
        ),
        (
            renamed(f"img/{FIRST}/045050_rgb_front.png", f"img/{FIRST}/045050_rgb_rear.png"),
            "045050_rgb_rear.png: expected img/CONDITION",
        ),
        (moved("fog/train/MAP_10_point102"), "train cloud: 0 of 1, train fog: 1 of 0 samples"),
        (moved(f"{FIRST}_underexposure"), "train failing: 3 of 2, train healthy: 0 of 1 samples"),
    ],
)
def test_what_does_not_belong_is_named_and_nothing_is_taken_for_whole(tmp_path, damage, message):
    make(tmp_path / "DELIVER")
    damage(tmp_path / "DELIVER")
    with pytest.raises(ValueError) as caught:
        prepare(tmp_path / "DELIVER", tmp_path / "out", depth="both")
    assert message in str(caught.value)
    with pytest.raises(ValueError):
        PreparedDataset(tmp_path / "out")


def test_a_missing_source_is_told_where_to_get_it(tmp_path):
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "nowhere", "nowhere' is not found"),
        (tmp_path / "empty", "event, hha, img, lidar, semantic"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            prepare(source, tmp_path / "out")
        assert "12.2 GB" in str(caught.value) and "Licence" in str(caught.value)


def test_partial_leaves_out_what_lacks_a_file_and_says_so(tmp_path, capsys):
    make(tmp_path / "DELIVER")
    (tmp_path / f"DELIVER/lidar/{FIRST}/045050_lidar_front.png").unlink()
    prepare(tmp_path / "DELIVER", tmp_path / "out", partial=True)
    assert "left out: 1 of 5 samples" in capsys.readouterr().out
    assert set(rows(tmp_path / "out")) == {name_of(frame) for frame in FRAMES[1:]}
    with pytest.raises(ValueError, match="train cloud: 0 of 1"):
        prepare("", tmp_path / "out", check=True)


def test_check_and_second_run(tmp_path, capsys):
    make(tmp_path / "DELIVER")
    prepare(tmp_path / "DELIVER", tmp_path / "out")
    prepare(tmp_path / "DELIVER", tmp_path / "out")
    assert "is prepared already" in capsys.readouterr().out
    prepare("", tmp_path / "out", check=True)
    out = capsys.readouterr().out
    assert "train: 3 samples, cloud 1, eventlowres 1, motionblur 1, rain 1, sun 1" in out
    assert "5 samples of 40 × 56 pixels, every file as it should be" in out
    for options in ({"depth": "depth"}, {"depth": "depth", "check": True}, {"size": (20, 28)}):
        with pytest.raises(ValueError, match="other options"):
            prepare(tmp_path / "DELIVER", tmp_path / "out", **options)
    index = tmp_path / "out" / "index.csv"
    whole = index.read_text()
    index.write_text(whole.replace("train,cloud,", "train,fog,"))
    with pytest.raises(ValueError, match="train cloud: 0 of 1, train fog: 1 of 0"):
        prepare("", tmp_path / "out", check=True)
    index.write_text(whole)
    path = tmp_path / "out" / "lidar" / f"{name_of(FRAMES[4])}.png"
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(ValueError, match=path.name):
        prepare("", tmp_path / "out", check=True)


def test_official_numbers():
    counts, splits = OFFICIAL_COUNTS, {}
    for split in ("train", "val", "test"):
        splits[split] = sum(counts[f"{split} {condition}"] for condition in deliver.CONDITIONS)
        assert splits[split] == counts[split] == counts[f"{split} failing"] + counts[f"{split} healthy"]
    assert splits == {"train": 3983, "val": 2005, "test": 1897} and sum(splits.values()) == 7885
    assert {split: counts[f"{split} healthy"] for split in splits} == {
        "train": 2585,
        "val": 1298,
        "test": 1198,
    }
    assert len(deliver.OFFICIAL.classes) == len(set(deliver.OFFICIAL.palette)) == 25 and OFFICIAL_SIZE == (
        1042,
        1042,
    )


def test_command_line_at_the_official_size(tmp_path, monkeypatch):
    monkeypatch.undo()  # the official size and counts
    run = partial(script.run, deliver, "--out", tmp_path / "out")
    raw = make(tmp_path / "data" / "DELIVER", FRAMES[:1], (1042, 1042), (521, 521))
    done = run(tmp_path / "data")
    assert (
        done.returncode == 1 and done.stderr.startswith("error: ") and "train cloud: 1 of 794" in done.stderr
    )
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    done = run(tmp_path / "data", "--partial")
    assert done.returncode == 0, done.stderr
    assert (
        "train: 1 samples, cloud 1" in done.stdout
        and "Building" in done.stdout
        and (tmp_path / "out" / "contact_sheet.png").exists()
    )
    images, _ = stored(tmp_path / "out", FRAMES[0])
    assert np.array_equal(images["event"], raw[FRAMES[0]]["event"].repeat(2, 0).repeat(2, 1))
    assert np.array_equal(images["rgb"], raw[FRAMES[0]]["rgb"])
