"""Folders of a user's own images: every value accounted for, nothing read as something else than it is, and
all the way to clusters.
"""

import re
import shlex
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import script
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmlib import cli
from mmlib.data.prepared import PreparedDataset, read_description, read_index

SCRIPT = Path(__file__).parents[1] / "data_scripts" / "prepare_folders.py"
sys.path.insert(0, str(SCRIPT.parent))

import common  # noqa: E402
import folders  # noqa: E402
import prepare_folders as own  # noqa: E402

SIZE = (12, 16)


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """The contact sheet takes most of the time of a small conversion; it is drawn in one test."""
    if "trained" not in request.node.name:
        monkeypatch.setattr(common, "contact_sheet", lambda root: "not drawn in this test")


run = partial(script.run, own)


def convert(*arguments):
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


def noise(i, dtype="uint8", planes=0, low=1, high=250):
    shape = (*SIZE, planes) if planes else SIZE
    rng = np.random.default_rng(i)
    return (
        rng.uniform(low, high, shape).astype(dtype)
        if dtype.startswith("float")
        else rng.integers(low, high, shape).astype(dtype)
    )


def fill(
    root: Path, name: str, count=12, suffix=".png", make=lambda i: noise(i, planes=3), stem="{:04d}"
) -> str:
    for i in range(count):
        save(root / name / f"{stem.format(i)}{suffix}", make(i))
    return f"{name}={root / name}"


def stored(out) -> dict[str, tuple]:
    """Everything that was written, by id: split, stored arrays, label."""
    found = {}
    for split in {row["split"] for row in read_index(out)}:
        data = PreparedDataset(out, split)
        found |= {row["id"]: (split, *data.stored(i)) for i, row in enumerate(data.rows)}
    return found


# ---- values ----


def big_endian_tiff(path: Path, array: np.ndarray) -> None:
    """16-bit TIFF as microscopes and thermal cameras write it, most significant byte first; written by hand."""
    height, width = array.shape
    tags = [
        (256, 3, width),
        (257, 3, height),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, height),
        (279, 4, array.nbytes),
    ]
    body = array.astype(">u2").tobytes()
    entries = b"".join(
        tag.to_bytes(2)
        + kind.to_bytes(2)
        + (1).to_bytes(4)
        + (value.to_bytes(2) + b"\0\0" if kind == 3 else value.to_bytes(4))
        for tag, kind, value in tags
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"MM\0*" + (8 + len(body)).to_bytes(4) + body + len(tags).to_bytes(2) + entries + bytes(4)
    )


def deep_png(path: Path, array: np.ndarray) -> None:
    """16-bit RGB PNG, which Pillow can neither write nor read whole; written by hand."""
    import zlib

    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    chunks = [
        (b"IHDR", width.to_bytes(4) + height.to_bytes(4) + bytes([16, 2, 0, 0, 0])),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in chunks
        )
    )


def test_every_value_of_every_format(tmp_path):
    sensors = {  # what is on disk, and what must be stored
        "colour": (".png", lambda i: noise(i, planes=3)),
        "grey": (".png", lambda i: noise(i)),
        "deep": (".png", lambda i: noise(i, "uint16", high=65535)),
        "tiff": (".tif", lambda i: noise(i, "uint16", high=65535)),
        "floats": (".tiff", lambda i: noise(i, "float32", low=-40, high=80)),
        "five": (".npy", lambda i: noise(i, "float64", planes=5)),
        "counts": (".npy", lambda i: noise(i, "int32", high=100_000)),
        "flat": (".npy", lambda i: noise(i, "uint16", high=65535)),
    }
    words = [fill(tmp_path, name, 11, suffix, make) for name, (suffix, make) in sensors.items()]
    for i in range(11):
        big_endian_tiff(tmp_path / "big" / f"{i:04d}.tif", noise(i, "uint16", high=65535))
        deep_png(tmp_path / "rgb" / f"{i:04d}.png", noise(i, "uint16", planes=3, high=65535))
    shown = convert(*words, f"big={tmp_path / 'big'}", f"rgb={tmp_path / 'rgb'}", "--out", tmp_path / "out")
    sensors |= {
        "big": ("", sensors["deep"][1]),
        "rgb": ("", lambda i: noise(i, "uint16", planes=3, high=65535)),
    }
    found, known = stored(tmp_path / "out"), read_description(tmp_path / "out").modalities
    assert len(found) == 11 and not (tmp_path / "out" / "label").exists()
    for id, (_, images, label) in found.items():
        for name, (_, make) in sensors.items():
            array = make(int(id)).reshape(*SIZE, -1)
            assert np.array_equal(images[name], array.astype(images[name].dtype)), name
            assert images[name].dtype == (np.float32 if name in ("floats", "five", "counts") else array.dtype)
        assert (label == 255).all()
    # The naive readers that this fixture is for: a big-endian file taken for a little-endian one, the high
    # byte of 16-bit colour.
    assert not np.array_equal(noise(0, "uint16", high=65535).byteswap(), found["0000"][1]["big"][..., 0])
    with Image.open(tmp_path / "rgb" / "0000.png") as image:
        assert np.array(image).dtype == np.uint8
    assert known["rgb"].scale == 1 / 65535 and known["rgb"].symbol == "R" and known["rgb"].picture == "colour"
    symbols = [m.symbol for m in known.values()]
    assert (
        len(set(symbols)) == len(symbols)
        and "--clusters 16" in shown
        and "--modalities" in shown
        and "train --data" not in shown
    )
    values = np.concatenate(
        [
            noise(int(id), "float32", low=-40, high=80).ravel()
            for id, entry in found.items()
            if entry[0] == "train"
        ]
    )
    assert np.allclose(known["floats"].mean, values.mean(), atol=1e-3) and np.allclose(
        known["floats"].std, values.std(), atol=1e-3
    )


def test_what_is_known_said_and_measured(tmp_path):
    def holes(i):
        return np.where(
            np.random.default_rng(i).random(SIZE) < 0.4, 0, noise(i, "uint16", low=900, high=7000)
        ).astype(np.uint16)

    words = [fill(tmp_path, name, make=lambda i: holes(i)) for name in ("depth", "lidar", "sonar")]
    words += [
        fill(tmp_path, "thermal", make=lambda i: noise(i, "uint16", low=29000, high=31000)),
        fill(tmp_path, "rgb", suffix=".jpg"),
    ]
    words += [
        fill(tmp_path, "night", make=lambda i: noise(i, low=0, high=60)),
        fill(tmp_path, "aolp", suffix=".npy", make=lambda i: noise(i, planes=2)),
    ]
    words += [
        "depth:scale=1/1000,unit=m",
        "thermal:scale=0.01,unit=K,low=280,high=320,symbol=Q,colour=#123456",
    ]
    shown = convert(*words, "--out", tmp_path / "out")
    known = read_description(tmp_path / "out").modalities
    assert (
        known["depth"].scale,
        known["depth"].unit,
        known["depth"].picture,
        known["depth"].sparse,
        known["depth"].compress,
    ) == (0.001, "m", "range", True, True)
    assert 6.5 < known["depth"].high <= 7.0 and known["depth"].low == 0
    # A lidar of one plane is not the usual one; a sonar is unknown: zeros that stand apart are taken for
    # holes, dark pixels are not.
    assert (
        known["lidar"].symbol == "L"
        and known["lidar"].scale == 1
        and known["lidar"].unit == ""
        and "not the 3 planes" in shown
    )
    assert (
        known["sonar"].sparse
        and known["sonar"].symbol == "S"
        and known["sonar"].picture == "grey"
        and not known["night"].sparse
    )
    assert "sonar:sparse=no if wrong" in shown and "night:sparse if wrong" in shown
    share = np.mean([(holes(i) == 0).mean() for i in range(12)])
    assert f"{100 * share:.1f} % zeros, which mean nothing measured (a guess" in shown
    assert (
        known["thermal"].unit,
        known["thermal"].low,
        known["thermal"].symbol,
        known["thermal"].colour,
    ) == ("K", 280, "Q", "#123456")
    assert "thermal (Q): 1 × uint16; 290 to 310 K (as you say)" in shown
    assert (known["rgb"].low, known["rgb"].high, known["rgb"].scale) == (0, 1, 1 / 255) and known[
        "aolp"
    ].flip_negates == (1,)
    assert convert(*words[4:5], words[2], "rgb:scale=1/4000", "sonar:symbol=R", "--out", tmp_path / "said")
    said = read_description(tmp_path / "said").modalities
    assert (said["rgb"].low, said["rgb"].high, said["rgb"].symbol, said["sonar"].symbol) == (
        0,
        1,
        "G",
        "R",
    )  # R is taken: the next letter
    # Depths without a word about their unit are no metres: neither scaled by a guess nor shown as ranges.
    shown = convert(words[0], "--out", tmp_path / "plain")
    plain = read_description(tmp_path / "plain").modalities["depth"]
    assert (plain.scale, plain.unit, plain.picture, plain.sparse) == (
        1.0,
        "",
        "grey",
        True,
    ) and "ranges want metres" in shown


def test_planes_of_one_file_are_two_sensors(tmp_path):
    """RGBA with thermal for opacity: the naive reader drops it, or premultiplies when it resizes."""
    rgba = lambda i: noise(i, planes=4, low=0)
    word = fill(tmp_path, "rgb", make=rgba)
    refused = run(word, "--out", tmp_path / "out")
    assert (
        refused.returncode == 1
        and "0000.png: has an opacity plane; keep the others with rgb:planes=0+1+2" in refused.stderr
    )
    assert "thermal:planes=3" in refused.stderr and not (tmp_path / "out").exists()
    convert(
        word, "rgb:planes=0+1+2", f"thermal={tmp_path / 'rgb'}", "thermal:planes=3", "--out", tmp_path / "out"
    )
    for id, (_, images, _) in stored(tmp_path / "out").items():
        assert np.array_equal(np.concatenate([images["rgb"], images["thermal"]], 2), rgba(int(id)))
    resized = np.array(Image.fromarray(rgba(0)).resize((8, 6)))
    assert not np.array_equal(resized[..., :3], np.array(Image.fromarray(rgba(0)[..., :3]).resize((8, 6))))


def test_size_brings_sensors_together_without_mixing_what_must_not_mix(tmp_path):
    words = [
        fill(tmp_path, "rgb", make=lambda i: noise(i, planes=3).repeat(2, 0).repeat(2, 1)),
        fill(tmp_path, "sonar", make=lambda i: (noise(i, "uint16", low=0, high=3) * 1000).astype(np.uint16)),
        fill(tmp_path, "label", make=lambda i: noise(i, low=0, high=3)),
    ]
    refused = run(*words, "--out", tmp_path / "out")
    assert (
        refused.returncode == 1
        and "rgb/0000.png is 24 × 32" in refused.stderr
        and "sonar/0000.png is 12 × 16" in refused.stderr
    )
    assert "give --size H W" in refused.stderr
    convert(*words, "--size", 6, 8, "--out", tmp_path / "out")
    for id, (_, images, label) in stored(tmp_path / "out").items():
        assert (
            images["rgb"].shape == (6, 8, 3)
            and set(np.unique(images["sonar"])) <= {0, 1000, 2000}
            and set(np.unique(label)) <= {0, 1, 2}
        )
        middle = np.s_[
            1:-1, 1:-1
        ]  # an antialiased half is a weighted mean around its pixels: its mean over the image stays
        assert abs(images["rgb"][middle].mean() - noise(int(id), planes=3)[2:-2, 2:-2].mean()) < 8


# ---- labels ----

IDS = [3, 7, 11, 255]


def ids(i):
    return np.random.default_rng(100 + i).choice(IDS, SIZE).astype(np.uint8)


@pytest.fixture
def rgb(tmp_path):
    return fill(tmp_path, "rgb")


def labels_of(out):
    return {id: entry[2] for id, entry in stored(out).items()}


def test_ids_are_measured(tmp_path, rgb):
    shown = convert(rgb, fill(tmp_path, "label", make=ids), "--out", tmp_path / "out")
    description = read_description(tmp_path / "out")
    assert description.classes == ["class_3", "class_7", "class_11"] and len(set(description.palette)) == 3
    assert "class_3, class_7, class_11; 255 is ignored" in shown
    for id, label in labels_of(tmp_path / "out").items():
        raw = ids(int(id))
        assert np.array_equal(label, np.select([raw == 3, raw == 7, raw == 11], [0, 1, 2], 255))


TABLE = "name,ids,colours\nroad,7,#804080\nperson,3 11,#dc143c #ff0000\nignore,255,#000000\n"
COLOUR = {7: (0x80, 0x40, 0x80), 3: (0xDC, 0x14, 0x3C), 11: (0xFF, 0, 0), 255: (0, 0, 0)}


def coloured(i):
    return np.array([[COLOUR[int(raw)] for raw in row] for row in ids(i)], np.uint8)


def with_palette(path, i):
    """A palette whose order has nothing to do with the classes: read as ids, it means something else."""
    order = [11, 255, 7, 3]
    image = Image.fromarray(np.vectorize(order.index)(ids(i)).astype(np.uint8), mode="P")
    image.putpalette([part for raw in order for part in COLOUR[raw]])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.mark.parametrize("form", ["ids", "npy", "colours", "palette", "one plane of three"])
def test_a_table_of_classes(tmp_path, rgb, form):
    table, extra = tmp_path / "classes.csv", []
    table.write_text(TABLE)
    if form == "ids":
        word = fill(tmp_path, "label", make=ids)
    elif form == "npy":
        word = fill(tmp_path, "label", suffix=".npy", make=lambda i: ids(i).astype(np.int64))
    elif form == "colours":
        word = fill(tmp_path, "label", make=coloured)
    elif form == "palette":
        table.write_text(
            "name;colours\r\nroad;#804080\r\nperson;#DC143C #ff0000\r\nIgnore;#000000\r\n",
            encoding="utf-8-sig",
        )  # as Excel has it
        word = f"label={tmp_path / 'label'}"
        for i in range(12):
            with_palette(tmp_path / "label" / f"{i:04d}.png", i)
        with Image.open(tmp_path / "label" / "0000.png") as image:
            assert image.mode == "P" and set(np.unique(np.array(image))) == {
                0,
                1,
                2,
                3,
            }  # ids 0 to 3 to a naive reader
    else:
        word, extra = (
            fill(tmp_path, "label", make=lambda i: np.stack([ids(i), ids(i) // 2, noise(i)], 2)),
            ["label:planes=0"],
        )
    shown = convert(rgb, word, *extra, "--classes", table, "--out", tmp_path / "out")
    description = read_description(tmp_path / "out")
    assert description.classes == ["road", "person"] and description.palette == [
        (128, 64, 128),
        (220, 20, 60),
    ]
    for id, label in labels_of(tmp_path / "out").items():
        raw = ids(int(id))
        assert np.array_equal(label, np.select([raw == 7, raw == 255], [0, 255], 1))
    assert "train --data" in shown


def test_grey_labels_of_few_bits_keep_their_ids(tmp_path, rgb):
    """4-bit grey: readers spread 0..15 over 0..255, so id 3 comes as 51."""
    import zlib

    for i in range(12):
        label = np.random.default_rng(i).integers(0, 4, SIZE).astype(np.uint8)
        rows = b"".join(b"\0" + bytes(row[0::2] << 4 | row[1::2]) for row in label)
        chunks = [
            (b"IHDR", SIZE[1].to_bytes(4) + SIZE[0].to_bytes(4) + bytes([4, 0, 0, 0, 0])),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        ]
        path = tmp_path / "label" / f"{i:04d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(
                len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)
                for kind, data in chunks
            )
        )
    with Image.open(tmp_path / "label" / "0000.png") as image:
        assert np.array(image).max() == 51
    convert(rgb, f"label={tmp_path / 'label'}", "--out", tmp_path / "out")
    assert read_description(tmp_path / "out").classes == ["class_0", "class_1", "class_2", "class_3"]
    for id, label in labels_of(tmp_path / "out").items():
        assert np.array_equal(label, np.random.default_rng(int(id)).integers(0, 4, SIZE))


def test_rows_are_ids_where_the_table_has_neither(tmp_path, rgb):
    (tmp_path / "classes.csv").write_text("name\nsky\nignore\nroad\n")
    convert(
        rgb,
        fill(tmp_path, "label", make=lambda i: noise(i, low=0, high=3)),
        "--classes",
        tmp_path / "classes.csv",
        "--out",
        tmp_path / "out",
    )
    for id, label in labels_of(tmp_path / "out").items():
        assert np.array_equal(label, np.array([0, 255, 1], np.uint8)[noise(int(id), low=0, high=3)])


# ---- names, splits, conditions ----


def test_suffixes_subfolders_and_strange_names(tmp_path):
    for drive in ("drive 1", "drive2"):
        fill(tmp_path / "a", drive, 10, stem="f{}_rgb")
        fill(tmp_path / "b", drive, 10, ".npy", lambda i: noise(i), stem="f{}_heat")
    (tmp_path / "a" / "drive2" / ".f0_rgb.png").write_bytes(b"hidden")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    words = [
        f"rgb={tmp_path / 'a'}",
        f"heat={tmp_path / 'b'}",
        "rgb:suffix=_rgb",
        "heat:suffix=_heat",
        "--out",
        tmp_path / "out",
    ]
    assert "give --recursive" in run(*words).stderr
    convert(*words, "--recursive", "--block", 3)
    found = stored(tmp_path / "out")
    assert set(found) == {f"{drive}-f{i}" for drive in ("drive_1", "drive2") for i in range(10)}
    for id, (_, images, _) in found.items():
        assert np.array_equal(images["heat"][..., 0], noise(int(id[-1])))


def test_splits_by_folder(tmp_path):
    for split, count in (("train", 5), ("val", 3), ("test", 2)):
        fill(tmp_path / "rgb", split, count)
        fill(tmp_path / "label", split, count, make=ids)
    shown = convert(f"rgb={tmp_path / 'rgb'}", f"label={tmp_path / 'label'}", "--out", tmp_path / "out")
    assert "splits: by the folders" in shown
    assert (
        all(id.startswith(f"{split}-") for id, (split, *_) in stored(tmp_path / "out").items())
        and len(stored(tmp_path / "out")) == 10
    )
    assert "blocks" in convert(f"rgb={tmp_path / 'rgb'}", "--split", "blocks", "--out", tmp_path / "blocks")


def test_splits_and_conditions_by_table(tmp_path, rgb):
    lists = tmp_path / "lists"
    lists.mkdir()
    expected = {f"{i:04d}": ("train", "val", "test")[i % 3] for i in range(12)}
    for name in ("train", "val", "test"):
        (lists / f"{name}.txt").write_text(
            "\n".join(id + ".png" * (id < "0005") for id, split in expected.items() if split == name) + "\n"
        )
    (tmp_path / "split.csv").write_text(
        "id,split\n"
        + "".join(f"{id},{'unused' if id == '0011' else split}\n" for id, split in expected.items())
    )
    (tmp_path / "conditions.csv").write_text("id, condition, case\n0001, night, broken\n0002, day,\n")
    convert(rgb, "--split", lists, "--conditions", tmp_path / "conditions.csv", "--out", tmp_path / "out")
    rows = {row["id"]: row for row in read_index(tmp_path / "out")}
    assert {id: row["split"] for id, row in rows.items()} == expected
    assert [(rows[id]["condition"], rows[id]["case"]) for id in ("0000", "0001", "0002")] == [
        ("", ""),
        ("night", "broken"),
        ("day", ""),
    ]
    convert(rgb, "--split", tmp_path / "split.csv", "--out", tmp_path / "table")
    assert {r["id"]: r["split"] for r in read_index(tmp_path / "table")} == expected | {"0011": "unused"}


@settings(max_examples=60)
@given(
    st.integers(10, 400),
    st.integers(1, 40),
    st.tuples(st.integers(1, 8), st.integers(1, 4), st.integers(0, 4)),
)
def test_blocks_keep_neighbours_together_and_shares(count, block, shares):
    stems = [f"f{i}" for i in range(count)]
    try:
        found, how = own.divide(stems, own.Options(fractions=tuple(map(float, shares)), block=block))
    except ValueError as error:
        assert (
            "too few" in str(error)
            and min(share for share in shares if share) / sum(shares) * count
            < 1.5 * max(1, min(block, count // 10)) * 3
        )
        return
    length = max(1, min(block, count // 10))
    assert list(found) == stems and f"blocks of {length}" in how
    runs = [len({found[stem] for stem in stems[first : first + length]}) for first in range(0, count, length)]
    assert set(runs) == {1}  # no block is torn
    for split, share in zip(("train", "val", "test"), shares):
        got = sum(value == split for value in found.values())
        assert abs(got - count * share / sum(shares)) <= 2 * length and (got > 0) == (share > 0)


def test_blocks_end_where_a_folder_ends():
    stems = [
        f"{drive}/{i:02d}" for drive in "abcdefgh" for i in range(5)
    ]  # the last of one drive is no neighbour of the next one's first
    found, _ = own.divide(stems, own.Options(fractions=(0.5, 0.5, 0.0), block=4))
    assert all(
        len({found[stem] for stem in part}) == 1
        for d in range(0, 40, 5)
        for part in (stems[d : d + 4], stems[d + 4 : d + 5])
    )
    assert len({found[f"{drive}/04"] for drive in "abcdefgh"}) == 2


def test_frames_are_in_natural_order():
    stems = [f"drive{d}/frame_{i}" for d in (10, 2) for i in range(12)]
    every = folders.Folder("rgb", Path("x"), {}, dict.fromkeys(stems, Path("y")), {})
    assert folders.match([every], False, False) == [f"drive{d}/frame_{i}" for d in (2, 10) for i in range(12)]


# ---- what goes wrong ----


def pack(**files):
    def build(root):
        for name, make in files.items():
            folder, stem, suffix = name.split("__")
            save(root / folder / f"{stem}.{suffix}", make)

    return build


def text(name, content):
    return lambda root: (root / name).write_text(content)


def turned(root):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(noise(0, planes=3)).save(root / "rgb" / "0003.jpg", exif=exif)
    (root / "rgb" / "0003.png").unlink()


def many_pages(root):
    (root / "rgb" / "0003.png").unlink()
    pages = [Image.fromarray(noise(i, planes=3)) for i in range(2)]
    pages[0].save(root / "rgb" / "0003.tif", save_all=True, append_images=pages[1:])


def huge(root):
    path = root / "rgb" / "0003.png"
    content = bytearray(path.read_bytes())
    content[16:24] = (100_000).to_bytes(4) * 2
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4)
    path.write_bytes(content)


def paletted(root):
    for path in (root / "rgb").iterdir():
        Image.fromarray(noise(0, planes=3)).quantize(16).save(path)


THREE = np.zeros((*SIZE, 3), np.uint8)
OK, ALL = ["rgb=rgb", "label=label"], ["--fractions", "1", "0", "0"]


def twelve(folder, suffix, make):
    return lambda root: [save(root / folder / f"{i:04d}{suffix}", make(i)) for i in range(12)]


def cut(root):
    path = root / "rgb" / "0003.png"
    path.write_bytes(path.read_bytes()[:200])


ONLY_TEST = "id,split\n" + "".join(f"{i:04d},test\n" for i in range(12))
CASES = {
    "no word": ([], None, "and at least one sensor's"),
    "only labels": (["label=label"], None, "and at least one sensor's"),
    "no name": (["rgb"], None, "'rgb': expected NAME=FOLDER"),
    "capitals": (["RGB=rgb"], None, "a name in small letters"),
    "twice": (["rgb=rgb", "rgb=label"], None, "and one folder for each name"),
    "settings alone": (["rgb=rgb", "radar:sparse"], None, "settings for radar: expected a folder for each"),
    "unknown setting": (["rgb=rgb", "rgb:gamma=2"], None, "cannot read the setting 'gamma=2'"),
    "no number": (["rgb=rgb", "rgb:scale=wide"], None, "cannot read the setting 'scale=wide'"),
    "division by zero": (["rgb=rgb", "rgb:scale=1/0"], None, "cannot read the setting"),
    "NaN": (["rgb=rgb", "rgb:low=nan"], None, "cannot read the setting"),
    "no colour": (["rgb=rgb", "rgb:colour=red"], None, "colour (#332288)"),
    "no picture": (["rgb=rgb", "rgb:picture=heatmap"], None, "cannot read the setting 'picture=heatmap'"),
    "no folder": (["rgb=nowhere"], None, "rgb=nowhere: no such folder, or no image"),
    "empty folder": (
        ["rgb=empty"],
        lambda r: (r / "empty").mkdir(),
        "rgb=empty: no such folder, or no image",
    ),
    "scale 0": (["rgb=rgb", "rgb:scale=0"], None, "scale 0.0; expected"),
    "sparse with offset": (
        ["rgb=rgb", "rgb:sparse,offset=-273.15"],
        None,
        "a unit whose 0 is never measured (kelvin)",
    ),
    "colours above 1": (["rgb=rgb", "rgb:scale=1"], None, "expected 0 to 1; give rgb:scale=1/255"),
    "low above high": (["rgb=rgb", "rgb:low=1,high=0"], None, "low 1.0 is not below high 0.0"),
    "an angle of one plane": (["rgb=rgb", "rgb:picture=angle,planes=0"], None, "an angle has two"),
    "no such plane": (["rgb=rgb", "rgb:planes=0+3"], None, "has planes 0 to 2; rgb:planes=0+3"),
    "no such mirror plane": (
        ["rgb=rgb", "rgb:flip_negates=3"],
        None,
        "flip_negates (3,); channels count from 0",
    ),
    "missing": (
        OK,
        lambda r: (r / "label" / "0003.png").unlink(),
        "label=label: nothing for 1 of 12 names, such as 0003;",
    ),
    "other names": (
        ["rgb=rgb", "heat=heat"],
        pack(heat__0001_heat__png=noise(0)),
        "nothing for 1 of 13 names",
    ),
    "duplicate": (OK, pack(rgb__0003__jpg=THREE), "rgb/0003.png: rgb/0003.jpg has the same name"),
    "wrong suffix": ([*OK, "rgb:suffix=_rgb"], None, "rgb/0000.png: does not end in '_rgb'"),
    "ids that collide": (
        ["rgb=rgb"],
        pack(**{"rgb__a b__png": THREE, "rgb__a+b__png": THREE}),
        "would both become 'a_b'",
    ),
    "mixed planes": (
        OK,
        pack(rgb__0003__png=noise(0)),
        "11 are uint8 with 3 channels, such as rgb/0011.png; 1 are uint8 with 1 channel, such as rgb/0003.png",
    ),
    "mixed depths": (["x=label"], pack(label__0003__png=noise(0, "uint16")), "such as label/0003.png"),
    "another size": (
        OK,
        pack(label__0003__png=np.zeros((12, 15), np.uint8)),
        "0003.png is 12 × 15; images of one name need one size",
    ),
    "another view": (
        [*OK, "--size", "6", "8"],
        pack(label__0003__png=np.zeros((12, 12), np.uint8)),
        "register and crop them first",
    ),
    "truncated": (OK, cut, "rgb/0003.png: cannot be read"),
    "no image": (
        OK,
        lambda r: (r / "rgb" / "0003.png").write_bytes(b"hello"),
        "rgb/0003.png: cannot be read",
    ),
    "empty file": (OK, lambda r: (r / "rgb" / "0003.png").write_bytes(b""), "rgb/0003.png: cannot be read"),
    "huge": (OK, huge, "rgb/0003.png: cannot be read (DecompressionBombError"),
    "turned": (["rgb=rgb"], turned, "rgb/0003.jpg: stored on its side (EXIF orientation)"),
    "many pages": (["rgb=rgb"], many_pages, "rgb/0003.tif: holds 2 images"),
    "a palette": (["rgb=rgb"], paletted, "rgb/0000.png: has a palette"),
    "NaN values": (
        ["heat=heat", *ALL],
        pack(heat__0001__npy=np.full(SIZE, np.nan)),
        "heat/0001.npy: NaN or infinite",
    ),
    "planes first": (
        ["heat=heat"],
        pack(heat__0001__npy=np.zeros((3, 40, 50))),
        "shape (3, 40, 50) looks like (planes, height",
    ),
    "four axes": (
        ["heat=heat"],
        pack(heat__0001__npy=np.zeros((3, 4, 5, 6))),
        "heat/0001.npy: values of type float64, shape (3, 4, 5, 6); expected numbers (H, W) or (H, W, C)",
    ),
    "complex": (
        ["heat=heat"],
        pack(heat__0001__npy=np.zeros(SIZE, complex)),
        "heat/0001.npy: values of type complex128",
    ),
    "an object": (
        ["heat=heat"],
        pack(heat__0001__npy=np.full(SIZE, {}, object)),
        "heat/0001.npy: cannot be read",
    ),
    "too large integers": (
        ["heat=heat", *ALL],
        pack(heat__0001__npy=np.full(SIZE, 2**30)),
        "integers above 2^24",
    ),
    "coloured labels": (OK, pack(label__0003__png=THREE), "11 are uint8 with 1 channel"),
    "colours without a table": (["x=label", "label=rgb"], None, "rgb/0000.png: coloured labels, such as #"),
    "jpeg labels": (["rgb=rgb", "label=lossy"], twelve("lossy", ".jpg", ids), "a JPEG blurs the ids"),
    "a mask of 0 and 255": (
        ["rgb=rgb", "label=m"],
        twelve("m", ".png", lambda i: (ids(i) > 9) * np.uint8(255)),
        "label=m: 2 ids from 0 to 255; without a table 255 is ignored",
    ),
    "labels of fractions": (
        ["rgb=rgb", "label=f"],
        twelve("f", ".npy", lambda i: ids(i) + 0.5),
        "f/0000.npy: float32 with 1 channel; expected one plane of ids",
    ),
    "negative labels": (
        ["rgb=rgb", "label=f"],
        twelve("f", ".npy", lambda i: ids(i).astype(int) - 9),
        "none negative",
    ),
    "an unknown id": (
        [*OK, "--classes", "c.csv"],
        text("c.csv", "name,ids\na,3\nb,7\n"),
        "by the table of --classes: unknown label id 11",
    ),
    "an unknown colour": (
        ["x=label", "label=rgb", "--classes", "c.csv"],
        text("c.csv", "name,colours\na,#000000\n"),
        "by the table of --classes: unknown label colour #",
    ),
    "an id twice": (
        [*OK, "--classes", "c.csv"],
        text("c.csv", "name,ids\na,3 7\nb,7 11\n"),
        "an id or a colour belongs to another class",
    ),
    "a class twice": ([*OK, "--classes", "c.csv"], text("c.csv", "name,ids\na,3\na,7 11\n"), "there twice"),
    "no column": (
        [*OK, "--classes", "c.csv"],
        text("c.csv", "class,id\na,3\n"),
        "expected a header with name",
    ),
    "too many fields": (
        [*OK, "--classes", "c.csv"],
        text("c.csv", "name,ids\na,3,7\n"),
        "'a,3,7' has 3 fields",
    ),
    "a bad colour": (
        [*OK, "--classes", "c.csv"],
        text("c.csv", "name,colours\na,red\n"),
        "not ids as 7 8 and colours as #804080",
    ),
    "no table": ([*OK, "--classes", "c.csv"], None, "c.csv"),
    "no text": (
        [*OK, "--classes", "c.csv"],
        lambda r: (r / "c.csv").write_bytes(b"\xff\xfe\0"),
        "not a text file in UTF-8",
    ),
    "an unknown name": (
        [*OK, "--split", "s.csv"],
        text("s.csv", "id,split\n9999,train\n"),
        "'9999' is not among the 12 names",
    ),
    "half a list": (
        [*OK, "--split", "s.csv"],
        text("s.csv", "id,split\n0001,train\n"),
        "has no split for 11 of 12 names, such as '0000'",
    ),
    "in two splits": (
        [*OK, "--split", "s.csv"],
        text("s.csv", "id,split\n0001,train\n0001,test\n"),
        "is listed as 'train' and as 'test'",
    ),
    "no lists": ([*OK, "--split", "rgb"], None, "rgb: has no split for"),
    "nothing to train on": (
        [*OK, "--split", "s.csv"],
        text("s.csv", ONLY_TEST),
        "no image of rgb is in train",
    ),
    "bad shares": ([*OK, "--fractions", "1", "-1", "0"], None, "--fractions -1.0: expected 0 or more"),
    "too few": (
        [*OK, "--fractions", "0.98", "0.01", "0.01"],
        None,
        "12 images are too few for --fractions",
    ),
    "an unknown condition": (
        [*OK, "--conditions", "c.csv"],
        text("c.csv", "id,condition\n77,night\n"),
        "'77' is not among",
    ),
}


@pytest.mark.parametrize("words, damage, message", CASES.values(), ids=CASES)
def test_what_is_wrong_is_said_and_nothing_is_left(tmp_path, monkeypatch, words, damage, message):
    monkeypatch.chdir(tmp_path)
    fill(Path(), "rgb")
    fill(Path(), "label", make=ids)
    if damage:
        damage(Path())
    done = run(*words, "--out", "out")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and message in done.stderr, done.stderr
    assert not (tmp_path / "out" / "index.csv").exists() and "--out is missing" in run(*words).stderr


def test_partial_leaves_incomplete_samples_out(tmp_path, rgb):
    word = fill(tmp_path, "label", 14, make=ids)
    (tmp_path / "label" / "0003.png").unlink()
    shown = convert(rgb, word, "--partial", "--out", tmp_path / "out")
    assert (
        "left out: 3 of 14 names" in shown
        and len(stored(tmp_path / "out")) == 11
        and "0003" not in stored(tmp_path / "out")
    )


def test_samples_that_lack_sensors_are_kept_where_asked_for(tmp_path):
    """Every sample lacks one of three sensors: all that is there, and the statistics of train by hand."""
    makes = {
        "rgb": lambda i: noise(i, planes=3),
        "thermal": lambda i: noise(i, "uint16", low=27000, high=31000),
        "grey": lambda i: noise(100 + i),
    }
    words = [fill(tmp_path, name, 18, make=make) for name, make in makes.items()]
    words += [fill(tmp_path, "label", 18, make=ids), "--out", tmp_path / "out"]
    having = {f"{i:04d}": [name for j, name in enumerate(makes) if j != i % 3] for i in range(18)}
    for stem, names in having.items():
        (tmp_path / ({*makes} - {*names}).pop() / f"{stem}.png").unlink()
    refused = run(*words)
    assert refused.returncode == 1 and "nothing for 6 of 18 names, such as 0000" in refused.stderr
    assert "or --allow-missing to keep samples that lack sensors" in refused.stderr
    shown = convert(*words, "--allow-missing")
    assert len(re.findall("; in 12 of 18 samples", shown)) == 3
    found = stored(tmp_path / "out")
    assert {id: [*images] for id, (_, images, _) in found.items()} == having
    index = {row["id"]: row["sensors"].split("+") for row in read_index(tmp_path / "out")}
    assert index == having
    for id, (_, images, label) in found.items():
        for name, image in images.items():
            assert np.array_equal(image, makes[name](int(id)).reshape(image.shape))
        assert np.array_equal(label != 255, ids(int(id)) != 255)
    for name, modality in read_description(tmp_path / "out").modalities.items():
        parts = [images[name] for split, images, _ in found.values() if split == "train" and name in images]
        values = np.concatenate([modality.to_physical(part).reshape(-1, modality.channels) for part in parts])
        values = modality.compressed(values).astype(float)
        assert modality.mean == pytest.approx(values.mean(0), abs=2e-6 * abs(values).max())
        assert modality.std == pytest.approx(values.std(0), rel=1e-4)
    assert "is prepared already" in convert(*words, "--allow-missing")
    assert "every file as it should be" in convert("--check", "--out", tmp_path / "out")


def test_what_a_sample_may_not_lack(tmp_path, rgb):
    thermal, label = fill(tmp_path, "thermal", make=noise), fill(tmp_path, "label", 13, make=ids)
    words = [rgb, thermal, label, "--allow-missing", "--out", tmp_path / "out"]
    (tmp_path / "label" / "0004.png").unlink()
    assert "label: nothing for 1 of 13 names, such as 0004; complete it" in run(*words).stderr
    for i in range(1, 12):
        (tmp_path / "thermal" / f"{i:04d}.png").unlink()
    lines = [f"{i:04d},{'train' if i else 'val'}" for i in range(12) if i != 4]
    (tmp_path / "s.csv").write_text("\n".join(["id,split", *lines]))
    done = run(*words, "--partial", "--split", tmp_path / "s.csv")
    assert "no image of thermal is in train, where its statistics are measured" in done.stderr, done.stderr


def test_check_and_second_run(tmp_path, rgb):
    words = [rgb, fill(tmp_path, "label", make=ids), "--out", tmp_path / "out"]
    convert(*words)
    assert "is prepared already" in convert(*words) and "every file as it should be" in convert(
        "--check", *words[2:]
    )
    assert "every file as it should be" in convert("--check", *words)
    assert "prepared with other options" in run(*words, "--size", 6, 8).stderr
    assert "prepared with other options" in run("rgb:symbol=Q", *words).stderr
    save(tmp_path / "out" / "label" / "0003.png", np.full(SIZE, 9, np.uint8))
    assert "label id 9 out of range" in run("--check", *words[2:]).stderr


def world(root: Path, i: int) -> None:
    """One moment of a small world: a warm square over ground, under a sky."""
    rng, label = np.random.default_rng(i), np.zeros((32, 48), np.uint8)
    label[12:] = 4
    top, left = rng.integers(6, 14), rng.integers(2, 30)
    label[top : top + 14, left : left + 14] = 9
    grey = np.select([label == 0, label == 4], [200, 90], 40)[..., None] + rng.integers(0, 20, (32, 48, 3))
    save(root / "rgb" / f"frame{i}.jpg", grey.astype(np.uint8))
    save(
        root / "thermal" / f"frame{i}.png",
        (29000 + 900 * (label == 9) + rng.integers(0, 90, label.shape)).astype(np.uint16),
    )
    save(root / "sonar" / f"frame{i}.npy", np.where(rng.random(label.shape) < 0.5, 0, 5.0 + label)[..., None])
    save(root / "label" / f"frame{i}.png", label)


def test_from_folders_to_a_trained_evaluated_clustered_model(tmp_path, monkeypatch, capsys):
    """The commands that the script prints at its end, given as they are printed (and made short)."""
    monkeypatch.chdir(tmp_path)
    for i in range(24):
        world(tmp_path, i)
    sensors = ["rgb=rgb", "thermal=thermal", "thermal:scale=0.01,offset=-273.15,unit=°C", "sonar=sonar"]
    printed = convert(*sensors, "label=label", "--out", "mine")
    assert Image.open("mine/contact_sheet.png").size[0] > 400
    commands = [shlex.split(line)[3:] for line in re.findall(r"^  (python -m mmlib .*)$", printed, re.M)]
    assert [command[0] for command in commands] == ["train", "evaluate", "cluster"]
    short = {
        "train": ["--epochs", "1"],
        "evaluate": ["--device", "cpu"],
        "cluster": (
            "--steps 3 --backbone test_efficientnet --backbone-weights random --dim 8 --neighbours 3 --batch-size 4 "
            "--repeats 1 --restarts 1 --points 12 --device cpu"
        ).split(),
    }
    for command in commands:
        cli.main([*command, *short[command[0]], "--no-progress"])
        shown = capsys.readouterr().out
        assert {"train": "mIoU in % on val", "evaluate": "RTS", "cluster": "effective rank"}[
            command[0]
        ] in shown
    assert (tmp_path / "runs" / "mine" / "report.json").exists() and (
        tmp_path / "runs" / "mine-clusters" / "report.json"
    ).exists()
    # The same without labels: only part B is offered, with a number of clusters.
    printed = convert(*sensors, "--out", "unlabelled")
    (command,) = [shlex.split(line)[3:] for line in re.findall(r"^  (python -m mmlib .*)$", printed, re.M)]
    assert command[0] == "cluster" and command[-2:] == ["--clusters", "16"]
    cli.main([*command, *short["cluster"], "--method", "kmeans", "--no-progress"])
    assert "mIoU" not in capsys.readouterr().out and list(
        (tmp_path / "runs" / "unlabelled-clusters" / "maps").glob("*.png")
    )
