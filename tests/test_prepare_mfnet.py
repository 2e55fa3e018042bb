"""The MFNet converter: every pixel of the official layout accounted for, each trap shown to fool the naive
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
import prepare_mfnet as mfnet  # noqa: E402

OFFICIAL_SIZE, OFFICIAL_TOTALS, OFFICIAL_DIVISION = mfnet.SIZE, mfnet.TOTALS, mfnet.DIVISION
SIZE = (24, 32)
SPLITS = {"train": ["00001D", "00004N", "00093D"], "val": ["00006N"], "test": ["00007D", "00010N"]}


def make(root, size=SIZE) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The official layout under ``root``; returns stem -> (image (H, W, 4), label (H, W)). 00093D has no
    annotation.
    """
    rng = np.random.default_rng(2)
    raw = {}
    for folder in ("images", "labels", "anno_json"):
        (root / folder).mkdir(parents=True)
    for stem in sum(SPLITS.values(), []):
        image = rng.integers(0, 256, (*size, 4)).astype(
            np.uint8
        )  # thermal is 0 in places: as opacity it would hide the colour
        image[: size[0] // 4, :, 3] = 0
        label = rng.integers(0, 9, size).astype(np.uint8) * (stem != "00093D")
        Image.fromarray(image).save(root / "images" / f"{stem}.png")
        Image.fromarray(label).save(root / "labels" / f"{stem}.png")
        raw[stem] = image, label
    for split, stems in SPLITS.items():
        names = [name for stem in stems for name in (stem, f"{stem}_flip")] if split == "train" else stems
        (root / f"{split}.txt").write_text("\n".join(names) + "\n")
    (root / "test_day.txt").write_bytes(b"00007D\r\n")
    (root / "test_night.txt").write_text("00010N")
    (root / "black_list.txt").write_text("00093D.png\n01599D.png\n")
    (root / "make_flip.py").write_text("")
    return raw


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tiny images and the counts of SPLITS in place of the official ones."""
    monkeypatch.setattr(mfnet, "SIZE", SIZE)
    monkeypatch.setattr(
        mfnet.common, "contact_sheet", lambda root: root
    )  # slow; the command line draws it below
    monkeypatch.setattr(mfnet, "TOTALS", {"day": 3, "night": 3})
    monkeypatch.setattr(mfnet, "DIVISION", {"train": 3, "val": 1, "test": 2})


def prepare(source, out, **options):
    mfnet.prepare(mfnet.Options(source=str(source), out=str(out), progress=False, workers=1, **options))


def rows(out):
    with open(out / "index.csv", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def stored(out, stem):
    data = PreparedDataset(out, rows(out)[stem]["split"])
    return data.stored([row["id"] for row in data.rows].index(stem))


@pytest.mark.parametrize("classes", [8, 9])
def test_every_pixel_comes_through(tmp_path, classes):
    raw = make(tmp_path / "ir_seg_dataset")
    prepare(tmp_path / "ir_seg_dataset", tmp_path / "out", classes=classes)
    assert len(PreparedDataset(tmp_path / "out").description.classes) == classes
    for stem, (image, label) in raw.items():
        images, found = stored(tmp_path / "out", stem)
        assert np.array_equal(images["rgb"], image[..., :3]) and np.array_equal(
            images["thermal"], image[..., 3:]
        )
        for id in range(9):
            expected = id if classes == 9 else 255 if id == 0 else id - 1
            assert (found[label == id] == expected).all()
    physical, _ = PreparedDataset(tmp_path / "out").physical(0)
    assert np.allclose(physical["thermal"][0], raw["00001D"][0][..., 3] / 255, atol=1e-6)


def test_names_of_the_classes_keep_their_ids(tmp_path):
    make(tmp_path / "ir_seg_dataset")
    for classes in (8, 9):
        prepare(tmp_path / "ir_seg_dataset", tmp_path / str(classes), classes=classes)
        description = PreparedDataset(tmp_path / str(classes)).description
        colours = dict(zip(description.classes, description.palette))
        assert (
            colours["car"] == (64, 0, 128)
            and colours["bump"] == (192, 64, 0)
            and ("unlabelled" in colours) == (classes == 9)
        )
        assert description.classes.index("person") == 1 + (classes == 9)


def test_splits_conditions_and_cases(tmp_path, capsys):
    root = tmp_path / "above" / "ir_seg_dataset"
    make(root)
    prepare(tmp_path / "above", tmp_path / "out")  # the folder above, too
    found = rows(tmp_path / "out")
    assert {split: sorted(id for id in found if found[id]["split"] == split) for split in SPLITS} == SPLITS
    assert {id: row["condition"] for id, row in found.items()} == {
        id: {"D": "day", "N": "night"}[id[-1]] for id in found
    }
    assert [id for id, row in found.items() if row["case"]] == ["00093D"] and found["00093D"][
        "case"
    ] == "unannotated"
    out = capsys.readouterr().out
    assert (
        "mirrored copies left out: 3 in train.txt" in out
        and "without annotation: 1 samples" in out
        and "warning" not in out
    )
    naive = (
        root.joinpath("train.txt").read_text().split()
    )  # the list as it stands: twice the images, half of them not on disk
    assert len(naive) == 6 and not all((root / "images" / f"{name}.png").exists() for name in naive)
    assert {name[-1] for name in naive} == {"D", "N", "p"}  # and the last letter is no longer day or night


def test_thermal_is_no_opacity(tmp_path):
    raw = make(tmp_path / "ir_seg_dataset")
    prepare(tmp_path / "ir_seg_dataset", tmp_path / "out", size=(12, 16))
    for stem, (image, _) in raw.items():
        images, _ = stored(tmp_path / "out", stem)

        def alone(plane):
            return np.array(
                Image.fromarray(np.ascontiguousarray(plane)).resize((16, 12), Image.Resampling.BILINEAR)
            ).astype(int)

        colour = alone(image[..., :3])
        assert (
            np.abs(images["rgb"] - colour).max() <= 1
            and np.abs(images["thermal"][..., 0] - alone(image[..., 3])).max() <= 1
        )
        path = tmp_path / "ir_seg_dataset" / "images" / f"{stem}.png"
        naive = np.array(Image.open(path).resize((16, 12), Image.Resampling.BILINEAR))[..., :3].astype(int)
        assert np.abs(naive - colour).max() > 10  # the published readers resize all four planes at once
        assert (
            np.array(Image.open(path).convert("RGB")).shape[2] == 3
        )  # and a conversion has no thermal plane left


def edited(name, old, new):
    return lambda root: (root / name).write_text((root / name).read_text().replace(old, new))


def image(name, array):
    return lambda root: Image.fromarray(array).save(root / name)


def cut(name):
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-60])


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            image("images/00004N.png", np.zeros((*SIZE, 3), np.uint8)),
            "00004N.png: expected uint8 with 4 channels, found uint8 with 3",
        ),
        (
            image("images/00004N.png", np.zeros((32, 24, 4), np.uint8)),
            "00004N.png: 32 × 24 pixels; expected 24 × 32",
        ),
        (image("labels/00004N.png", np.full(SIZE, 9, np.uint8)), "labels/00004N.png: unknown label id 9"),
        (image("labels/00004N.png", np.full(SIZE, 255, np.uint8)), "labels/00004N.png: unknown label id 255"),
        (
            image("labels/00004N.png", np.zeros((*SIZE, 3), np.uint8)),
            "labels/00004N.png: expected an image with 1 channel, found uint8 with 3",
        ),
        (cut("images/00004N.png"), "00004N.png: cannot be read"),
        (
            lambda root: (root / "labels/00006N.png").unlink(),
            "labels/00006N.png: not found; 1 of 6 samples lack files",
        ),
        (
            lambda root: (root / "val.txt").unlink(),
            "no folder in it holds images, labels, train.txt, val.txt, test.txt",
        ),
        (lambda root: (root / "test_day.txt").unlink(), "test_day.txt: not found"),
        (
            edited("test_night.txt", "00010N", "00007D"),
            "test_night.txt: 00007D is in only one of this list and test.txt; expected the N stems of test.txt",
        ),
        (
            edited("test_night.txt", "00010N", ""),
            "test_night.txt: 00010N is in only one of this list and test.txt",
        ),
        (
            edited("test_day.txt", "00007D", "00007D\n00001D"),
            "test_day.txt: 00001D is in only one of this list and test.txt; expected the D stems of test.txt",
        ),
        (edited("val.txt", "00006N", "00006N.png"), "val.txt: '00006N.png'; expected stems such as 00001D"),
        (edited("val.txt", "00006N", "00004N"), "'00004N' is listed twice"),
        (edited("val.txt", "00006N", "00006N\n00006N"), "val.txt: '00006N'; expected stems"),
        (edited("train.txt", "00004N\n", ""), "train.txt: lists the mirrored 00004N alone"),
        (
            edited("val.txt", "00006N", "val/00006N.png"),
            "val.txt: 'val/00006N.png'; expected stems such as 00001D",
        ),
        (edited("train.txt", "00093D\n00093D_flip\n", ""), "found day: 2 of 3 samples"),
    ],
)
def test_what_does_not_belong_is_named_and_nothing_is_taken_for_whole(tmp_path, damage, message):
    make(tmp_path / "ir_seg_dataset")
    damage(tmp_path / "ir_seg_dataset")
    with pytest.raises(ValueError) as caught:
        prepare(tmp_path / "ir_seg_dataset", tmp_path / "out")
    assert message in str(caught.value)
    with pytest.raises(ValueError):
        PreparedDataset(tmp_path / "out")


def test_another_division_is_a_warning(tmp_path, capsys):
    make(tmp_path / "ir_seg_dataset")
    edited("train.txt", "00093D\n00093D_flip\n", "")(tmp_path / "ir_seg_dataset")
    edited("val.txt", "00006N", "00006N\n00093D")(tmp_path / "ir_seg_dataset")
    prepare(tmp_path / "ir_seg_dataset", tmp_path / "out")
    out = capsys.readouterr().out
    assert (
        "divided into {'train': 2, 'val': 2, 'test': 2}; published scores use {'train': 3, 'val': 1, 'test': 2}"
        in out
    )


def test_check_partial_and_second_run(tmp_path, capsys):
    make(tmp_path / "ir_seg_dataset")
    (tmp_path / "ir_seg_dataset/images/00006N.png").unlink()
    (tmp_path / "ir_seg_dataset/black_list.txt").unlink()
    prepare(tmp_path / "ir_seg_dataset", tmp_path / "out", partial=True)
    out = capsys.readouterr().out
    assert (
        "left out: 1 of 6 samples" in out
        and "there is no black_list.txt" in out
        and "00006N" not in rows(tmp_path / "out")
    )
    prepare("", tmp_path / "out", check=True, partial=True)
    assert "5 samples of 24 × 32 pixels, every file as it should be" in capsys.readouterr().out
    with pytest.raises(ValueError, match="night: 2 of 3"):
        prepare("", tmp_path / "out", check=True)
    with pytest.raises(ValueError, match="classes 8, not 9"):  # not "prepared already"
        prepare(tmp_path / "ir_seg_dataset", tmp_path / "out", partial=True, classes=9)
    prepare(tmp_path / "ir_seg_dataset", tmp_path / "out", partial=True)
    assert "is prepared already" in capsys.readouterr().out
    path = tmp_path / "out" / "label" / "00007D.png"
    Image.fromarray(np.full(SIZE, 8, np.uint8)).save(path)
    with pytest.raises(ValueError, match="00007D.: label id 8 out of range; expected 0 to 7"):
        prepare("", tmp_path / "out", check=True, partial=True)


def test_official_numbers():
    assert sum(OFFICIAL_TOTALS.values()) == sum(OFFICIAL_DIVISION.values()) == 1569
    assert OFFICIAL_TOTALS == {"day": 820, "night": 749} and OFFICIAL_SIZE == (480, 640)


def test_command_line_at_the_official_size(tmp_path, monkeypatch):
    monkeypatch.undo()  # the official size and counts
    run = partial(script.run, mfnet, "--out", tmp_path / "out")
    raw = make(tmp_path / "ir_seg_dataset", (480, 640))
    done = run(tmp_path / "ir_seg_dataset")
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: ")
        and "day: 3 of 820, night: 3 of 749" in done.stderr
    )
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    done = run(tmp_path / "ir_seg_dataset", "--partial", "--classes", "9")
    assert done.returncode == 0, done.stderr
    assert (
        "test: 2 samples, day 1, night 1" in done.stdout
        and "unlabelled" in done.stdout
        and (tmp_path / "out/contact_sheet.png").exists()
    )
    images, label = stored(tmp_path / "out", "00010N")
    assert np.array_equal(np.dstack([images["rgb"], images["thermal"]]), raw["00010N"][0]) and np.array_equal(
        label, raw["00010N"][1]
    )
