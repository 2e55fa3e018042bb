"""Malformed inputs, well over a hundred: each ends in one clear error that names the file or the flag, and
changes nothing on disk.

A case is a sound file and what is done to it; readers are called as the commands call them.
"""

import json
import os
import shutil
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import toy
from killing import SERVER
from PIL import Image

from mmlib import cli
from mmlib.data.prepared import Description, PreparedDataset, Writer
from mmlib.modalities import SENSORS, Modality
from mmlib.runtime import LOCK, read_json, write_json

HEIGHT, WIDTH = 32, 40


def listing(root: Path) -> dict:
    """What lies below ``root``: the bytes of small files; size and time of large ones."""

    def what(path: Path):
        stat = path.lstat()
        if not path.is_file():
            return stat.st_mode
        return path.read_bytes() if stat.st_size < 10**5 else (stat.st_size, stat.st_mtime_ns)

    paths = [path for path in root.rglob("*") if path.name != LOCK]
    return {str(path.relative_to(root)): what(path) for path in paths}


def refused(call, message: str, *names, around: Path) -> str:
    """``call`` raises ValueError or OSError: one line that matches ``message`` and has all ``names``; no file
    around changes.
    """
    before = listing(around)
    with pytest.raises((ValueError, OSError), match=message) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
    text = str(error.value)
    assert "\n" not in text.strip() and all(str(name) in text for name in names), text
    assert listing(around) == before
    return text


# ---- what is done to a file ----


def holds(content: bytes):
    return lambda path: path.write_bytes(content)


def cut(share: float):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def becomes_a_folder(path: Path):
    path.unlink()
    path.mkdir()


def goes(path: Path):
    path.unlink()


def becomes_a_pipe(path: Path):
    path.unlink()
    os.mkfifo(path)


def links_to(target: str):
    def change(path):
        path.unlink()
        path.symlink_to(target)

    return change


def links_to_itself(path: Path):
    links_to(path.name)(path)


def grown(change, size: int = 2**40):
    """A file that is sparse from where it ended before."""
    return lambda path: (change(path), os.truncate(path, size))


def saved(array: np.ndarray, pickled: bool = False):
    """As .npy."""

    def change(path):
        with open(path, "wb") as file:
            np.save(file, array, allow_pickle=pickled)

    return change


def announced(shape: tuple, kind: str = "|u1"):
    """An .npy header without the data that it announces."""

    def change(path):
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": kind, "fortran_order": False, "shape": shape}
            )

    return change


def drawn(mode: str, size=(WIDTH, HEIGHT), format: str = "PNG"):
    return lambda path: Image.new(mode, size).save(path, format)


def png(width: int, height: int, depth: int, colour: int, rows: bytes = b""):
    """A PNG of any header, sound by its checksums."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return holds(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def edited(**changes):
    """A JSON object with other values; ... = without the key; "modality.scale" = of the first modality."""

    def change(path):
        values = json.loads(path.read_text())
        for key, value in changes.items():
            target = values["modalities"][0] if key.startswith("modality_") else values
            key = key.removeprefix("modality_")
            if value is ...:
                del target[key]
            else:
                target[key] = value
        path.write_text(json.dumps(values))

    return change


def replaced(old: str, new: str):
    def change(path):
        text = path.read_text()
        assert old in text
        path.write_bytes(text.replace(old, new).encode("latin-1"))

    return change


# ---- prepared data ----

MODALITIES = {
    "rgb": SENSORS["rgb"],
    "depth": SENSORS["depth"],
    "aolp": SENSORS["aolp"],
    "gas": Modality("gas", "G", 1, dtype="float32"),
    "sonar": Modality("sonar", "S", 1, "m", dtype="float32", picture="range", sparse=True),
}


def sample(seed: int) -> tuple[dict, np.ndarray]:
    images, label = toy.sample(seed, (HEIGHT, WIDTH))
    return images | {
        "gas": images["depth"].astype(np.float32) / 7,
        "sonar": images["depth"].astype(np.float32),
    }, label


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    with Writer(root, Description("small", toy.CLASSES, toy.PALETTE, MODALITIES)) as writer:
        for i in range(3):
            writer.add(f"t{i}", "train", *sample(i))
            writer.add(f"v{i}", "val", *sample(100 + i))
    return root


@pytest.fixture
def data(clean, tmp_path) -> Path:
    return shutil.copytree(clean, tmp_path / "data")


def read(root: Path) -> None:
    for split in ("train", "val"):
        split = PreparedDataset(root, split)
        for index in range(len(split)):
            split[index]


DAMAGED = "not an index|not a valid description"
DESCRIPTION = [
    ("empty", holds(b""), DAMAGED),
    ("half", cut(0.5), DAMAGED),
    ("not UTF-8", holds(b"\xff\xfe\x00{"), DAMAGED),
    ("a folder", becomes_a_folder, DAMAGED),
    ("a list", holds(b"[1]"), DAMAGED),
    ("null", holds(b"null"), DAMAGED),
    ("a million brackets", holds(b"[" * 10**6), DAMAGED),
    ("gone", goes, "not a prepared data set"),
    ("a pipe", becomes_a_pipe, "a pipe or a device"),
    ("a device", links_to("/dev/zero"), "a pipe or a device"),
    ("a link to itself", links_to_itself, "not a prepared data set"),
    ("another format", edited(format=2), "reads format 1"),
    ("no format", edited(format=...), "reads format 1"),
    ("no classes", edited(classes=...), "classes"),
    ("an escape sequence in a class", edited(classes=["a\x1b[2J", "b", "c"]), "without control characters"),
    ("an escape sequence in a unit", edited(modality_unit="\x9b2J"), "without control characters"),
    ("classes in a word", edited(classes="abc"), "classes"),
    ("a class that is a number", edited(classes=["a", "b", 3]), "classes"),
    ("too few colours", edited(palette=[[0, 0, 0]]), "3 classes"),
    ("a colour of two", edited(palette=[[0, 0, 0], [0, 0], [0, 0, 0]]), "palette"),
    ("a colour of 300", edited(palette=[[0, 0, 0], [0, 0, 300], [0, 0, 0]]), "palette"),
    ("colours by name", edited(palette=["red", "green", "blue"]), "palette"),
    ("no modality", edited(modalities=[]), "no modality"),
    ("modalities by name", edited(modalities=["rgb"]), DAMAGED),
    ("modalities in a dict", edited(modalities={"rgb": {}}), DAMAGED),
    ("two of a name", edited(modality_name="depth", modality_symbol="X"), "depth.*twice"),
    ("a modality called label", edited(modality_name="label"), "label"),
    ("a path for a name", edited(modality_name="../rgb"), "identifier"),
    ("an upper-case name", edited(modality_name="RGB"), "lower-case"),
    ("a number for a name", edited(modality_name=3), DAMAGED),
    ("no name", edited(modality_name=...), "name"),
    ("an unknown field", edited(modality_gamma=2.2), "gamma"),
    *(
        (f"a modality called {name}", edited(modality_name=name), f"cannot be called {name}")
        for name in ("keys", "type", "float", "forward", "training")
    ),
    ("no channel", edited(modality_channels=0), "channels"),
    ("65 channels", edited(modality_channels=65), "channels 65: expected 1 or more, at most 64"),
    ("10^12 channels", edited(modality_channels=10**12), "at most 64"),
    ("a number of 400 digits", edited(modality_channels=10**400), "expected a finite number"),
    ("a word for false", edited(modality_compress="false"), "compress false: expected true or false"),
    ("a number for true", edited(modality_sparse=1), "sparse 1: expected true or false"),
    ("a colour by name", edited(modality_colour="red"), "expected #rrggbb"),
    ("a script for a colour", edited(modality_colour="#123456'><script>"), "expected #rrggbb"),
    ("two names of three channels", edited(modality_channel_names=["a", "b"]), "channel_names"),
    ("scale 1e-300", edited(modality_scale=1e-300), "scale 1e-300; expected a number that is not 0"),
    ("scale 1e39", edited(modality_scale=1e39), "scale"),
    ("offset -1e39", edited(modality_offset=-1e39), "offset"),
    ("mean 1e39", edited(modality_mean=[0, 0, 1e39]), "mean"),
    ("std 1e-60", edited(modality_std=[1, 1, 1e-60]), "std"),
    ("half a channel", edited(modality_channels=2.5), "channels"),
    ("channels in words", edited(modality_channels="three"), "channels|not a valid"),
    ("float64", edited(modality_dtype="float64"), "dtype"),
    ("scale 0", edited(modality_scale=0), "scale"),
    ("scale NaN", edited(modality_scale=float("nan")), "scale"),
    ("scale in words", edited(modality_scale="1/255"), "scale|not a valid"),
    ("offset infinite", edited(modality_offset=float("inf")), "offset"),
    ("range backwards", edited(modality_low=1, modality_high=0), "low"),
    ("mean NaN", edited(modality_mean=[0, 0, float("nan")]), "mean"),
    ("two means of three", edited(modality_mean=[0, 0]), "mean"),
    ("std 0", edited(modality_std=[1, 0, 1]), "std"),
    ("std negative", edited(modality_std=[1, -1, 1]), "std"),
    ("means in words", edited(modality_mean=["a", "b", "c"]), "mean|not a valid"),
    ("an unknown picture", edited(modality_picture="hologram"), "picture"),
    ("flip of channel 9", edited(modality_flip_negates=[9]), "flip"),
    ("two of a symbol", edited(modality_symbol="D"), "share a symbol"),
    ("a long symbol", edited(modality_symbol="RGB"), "one capital letter"),
]
INDEX = [
    ("empty", holds(b""), "expected the columns"),
    ("no row", holds(b"id,split,condition,case\n"), "at least one row"),
    ("another separator", replaced(",", ";"), "expected the columns"),
    ("a column less", replaced("split", "part"), "expected the columns"),
    ("not UTF-8", replaced("t0", "t\xe9"), DAMAGED),
    ("a NUL", replaced("t0", "t\0"), "a safe id|" + DAMAGED),
    ("a folder", becomes_a_folder, DAMAGED),
    ("an id twice", replaced("t1", "t0"), "'t0' .* that no other row has"),
    ("an id that climbs", replaced("t0", "../t0"), "and a safe id"),
    ("an absolute id", replaced("t0", "/etc/passwd"), "and a safe id"),
    ("an id with a backslash", replaced("t0", "..\\t0"), "and a safe id"),
    ("a hidden id", replaced("t0", ".t0"), "and a safe id"),
    ("an empty id", replaced("t0,", ","), "and a safe id"),
    ("an id of two lines", replaced("t0,", '"t0\nt1",'), "and a safe id"),
    ("a row that ends early", replaced("t0,train,,", "t0,train"), "a value for each column"),
    ("a row that goes on", replaced("t0,train,,", "t0,train,,,more"), "a value for each column"),
    ("a quote that stays open", replaced("t0,train,,", '"t0,train,,'), DAMAGED + "|a safe id"),
    ("a row without a split", replaced("t0,train", "t0,"), "split"),
    ("an id that has no files", replaced("t0", "t9"), "t9.*no such file"),
    ("an escape sequence in a condition", replaced("t0,train,", "t0,train,\x1b[2J"), "all printable"),
    ("a pipe", becomes_a_pipe, "a pipe or a device"),
    ("a link to itself", links_to_itself, "Too many levels of symbolic links"),
    ("a field of a megabyte", replaced("t0,train", "t0," + "x" * 10**6), DAMAGED),
]
RGB, DEPTH, AOLP, GAS, LABEL = "rgb/t0.png", "depth/t0.png", "aolp/t0.npy", "gas/t0.npy", "label/t0.png"
FILES = [
    (RGB, "gone", goes, "no such file"),
    (RGB, "empty", holds(b""), "cannot be read"),
    (RGB, "half", cut(0.5), "cannot be read"),
    (RGB, "a header alone", cut(0.1), "cannot be read"),
    (RGB, "text", holds(b"P6 but not really"), "cannot be read"),
    (RGB, "a folder", becomes_a_folder, "cannot be read"),
    (RGB, "a pipe", becomes_a_pipe, "a pipe or a device"),
    (RGB, "a device", links_to("/dev/zero"), "a pipe or a device"),
    (RGB, "a link to itself", links_to_itself, "Too many levels of symbolic links"),
    (RGB, "of a terabyte, sparse", grown(lambda path: None), "an image of 1.1e.03 GB"),
    (RGB, "grey", drawn("L"), "uint8 with 3 channels"),
    (RGB, "with alpha", drawn("RGBA"), "uint8 with 3 channels"),
    (RGB, "of a palette", drawn("P"), "uint8 with 3 channels"),
    (RGB, "black and white", drawn("1"), "uint8 with 3 channels"),
    (RGB, "a JPEG", drawn("RGB", format="JPEG"), "not uint8 with . channels?, or damaged"),
    (RGB, "a TIFF", drawn("RGB", format="TIFF"), "not uint8 with . channels?, or damaged"),
    (RGB, "of another size", drawn("RGB", (WIDTH, HEIGHT - 1)), "one size"),
    (RGB, "of 16 bits", png(WIDTH, HEIGHT, 16, 2, (b"\0" + b"\1\2" * 3 * WIDTH) * HEIGHT), "16"),
    (RGB, "of 60,000 pixels a side, it says", png(60_000, 60_000, 8, 2), "cannot be read"),
    (RGB, "of 2^31 pixels a side, it says", png(2**31 - 1, 2**31 - 1, 8, 2), "cannot be read"),
    (RGB, "of no pixel", png(0, HEIGHT, 8, 2), "cannot be read"),
    (DEPTH, "of 8 bits", drawn("L"), "uint16 with 1 channel"),
    (DEPTH, "of 32 bits", drawn("I", format="TIFF"), "uint16 with 1 channel"),
    (DEPTH, "in colour", drawn("RGB"), "uint16 with 1"),
    (DEPTH, "of floats", drawn("F", format="TIFF"), "uint16 with 1 channel"),
    (AOLP, "gone", goes, "no such file"),
    (AOLP, "empty", holds(b""), "cannot be read"),
    (AOLP, "half", cut(0.5), "cannot be read"),
    (AOLP, "a byte short", cut(0.9999), "cannot be read"),
    (AOLP, "of another magic", holds(b"\x93NUMPZ" + bytes(200)), "cannot be read"),
    (AOLP, "of version 9", holds(b"\x93NUMPY\x09\0" + bytes(200)), "cannot be read"),
    (AOLP, "a folder", becomes_a_folder, "cannot be read"),
    (AOLP, "of floats", saved(np.zeros((HEIGHT, WIDTH, 2))), "uint8"),
    (AOLP, "of three channels", saved(np.zeros((HEIGHT, WIDTH, 3), "u1")), "2 c"),
    (AOLP, "channels first", saved(np.zeros((2, HEIGHT, WIDTH), "u1")), "2 channels"),
    (AOLP, "flat", saved(np.zeros(80, "u1")), r"\(H, W, C\)"),
    (AOLP, "a single number", saved(np.uint8(3)), r"\(H, W, C\)"),
    (AOLP, "no pixel", saved(np.zeros((0, 0, 2), "u1")), r"shape \(0, 0, 2\)"),
    (AOLP, "of objects", saved(np.array([{}], object), pickled=True), "cannot be read"),
    (AOLP, "of records", saved(np.zeros((HEIGHT, WIDTH, 2), [("a", "u1")])), "expected numbers"),
    (AOLP, "of 10 TB, it says", announced((10**7, 10**6, 1)), "cannot be read"),
    (AOLP, "of 1 TB, sparse", grown(announced((10**6, 10**6, 1))), "an image of 1.1e.03 GB"),
    (AOLP, "of 2^70 values, it says", announced((2**70,)), "cannot"),
    (AOLP, "of a negative size", announced((-1, WIDTH, 2)), "cannot be read"),
    (AOLP, "a zip", lambda path: zipfile.ZipFile(path, "w").close(), "cannot|uint8"),
    (GAS, "NaN", saved(np.full((HEIGHT, WIDTH, 1), np.nan, "f4")), "NaN or infinite"),
    (GAS, "infinite", saved(np.full((HEIGHT, WIDTH, 1), np.inf, "f4")), "NaN or infinite"),
    (GAS, "of half precision", saved(np.zeros((HEIGHT, WIDTH, 1), "f2")), "float32"),
    (GAS, "complex", saved(np.zeros((HEIGHT, WIDTH, 1), "c8")), "expected numbers"),
    ("sonar/t0.npy", "behind the camera", saved(np.full((HEIGHT, WIDTH, 1), -1, "f4")), "negative range"),
    (LABEL, "gone", goes, "no such file"),
    (LABEL, "empty", holds(b""), "cannot be read"),
    (LABEL, "in colour", drawn("RGB"), "uint8 with 1 channel"),
    (LABEL, "of a palette", drawn("P"), "uint8 with 1 channel"),
    (LABEL, "of 16 bits", drawn("I;16"), "uint8 with 1 channel"),
    (LABEL, "a JPEG", drawn("L", format="JPEG"), "not uint8 with . channels?, or damaged"),
    (LABEL, "of another size", drawn("L", (HEIGHT, WIDTH)), "one size"),
    (
        LABEL,
        "of class 3 of 3",
        lambda path: Image.new("L", (WIDTH, HEIGHT), 3).save(path),
        "label id 3 out of range",
    ),
    ("label", "a link to itself", lambda path: (shutil.rmtree(path), path.symlink_to("label")), "Too many"),
    ("label", "a file", lambda path: (shutil.rmtree(path), path.write_text("")), "label"),
]


def named(cases):
    return [
        pytest.param(*case[:-3], *case[-2:], id=" ".join([*(f"{c}:" for c in case[:-3]), case[-3]]))
        for case in cases
    ]


@pytest.mark.parametrize("change, message", named(DESCRIPTION))
def test_descriptions(data, change, message):
    change(data / "dataset.json")
    refused(lambda: read(data), message, data / "dataset.json", around=data.parent)


@pytest.mark.parametrize("change, message", named(INDEX))
def test_indices(data, change, message):
    change(data / "index.csv")
    refused(lambda: read(data), message, data, around=data.parent)


@pytest.mark.parametrize("file, change, message", named(FILES))
def test_images_and_labels(data, file, change, message):
    change(data / file)
    refused(lambda: read(data), message, data, Path(file).stem, file.split("/")[0], around=data.parent)


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    report = tmp_path / "report.json"
    write_json(report, {"data": "\x1b[2J"})
    refused(lambda: read_json(report, "a report"), "control characters", report, around=tmp_path)
    with pytest.raises(SystemExit, match="^error: [^\x1b\n]+$"):
        cli.main(["compare", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: --data  \[2J: expected text without control characters"):
        cli.main(["train", "--data", "\x1b[2J", "--out", "new"])


def read_unreadable(answer, folder: str, file: str) -> None:
    """As a user who may not read ``file``: whoever runs the tests, or nobody, for root may read all."""
    os.chdir(folder)
    read(Path("data"))  # imports what it needs
    os.chmod(file, 0)
    if os.geteuid() == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
        except OSError:
            return answer.send("")
    for call in (lambda: read(Path("data")), lambda: write_json("data/new.json", {})):
        try:
            answer.send(call())
        except (ValueError, OSError) as error:
            answer.send(str(error))


@pytest.mark.parametrize("file", ["dataset.json", "index.csv", RGB, AOLP, LABEL])
def test_files_that_may_not_be_read_and_folders_that_may_not_be_written(data, file):
    data.parent.chmod(0o755)
    data.chmod(0o555)
    receiver, sender = SERVER.Pipe(False)
    process = SERVER.Process(target=read_unreadable, args=(sender, str(data.parent), f"data/{file}"))
    process.start()
    sender.close()
    said = receiver.recv()
    if not said:
        pytest.skip("root may read all files, and cannot become another user here")
    assert f"data/{file}: " in said and "Permission denied" in said
    said = receiver.recv()
    assert (
        said.startswith("data/new.json: could not be written (Permission denied")
        and "choose another folder" in said
    )
    process.join(60)
    data.chmod(0o755)
