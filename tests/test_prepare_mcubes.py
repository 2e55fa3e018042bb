"""The MCubeS converter on files in the official layout: every pixel accounted for, each trap with what the
naive reader makes of it.
"""

import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import script
import torch
from PIL import Image
from test_images import png

SCRIPTS = Path(__file__).parents[1] / "data_scripts"
sys.path.insert(0, str(SCRIPTS))
import prepare_mcubes as mcubes  # noqa: E402

from mmlib.data.prepared import PreparedDataset, is_finished, read_description, read_index  # noqa: E402
from mmlib.data.transforms import flip, resize  # noqa: E402

common = mcubes.common  # the script's own, whichever copy of it another test has imported

LISTS = {"train": 6, "val": 2, "test": 3}  # and three images that are in no list but all.txt
ALL = sum(LISTS.values()) + 3
SIZE = (12, 192 + 20)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small images and few of them; the 192 columns are real. One test draws the contact sheet, which takes
    longer than all else.
    """
    monkeypatch.setattr(mcubes, "SIZE", SIZE)
    monkeypatch.setattr(mcubes, "COUNTS", LISTS | {"train": 9})
    monkeypatch.setattr(mcubes, "LISTED", 6)
    monkeypatch.setattr(common, "contact_sheet", lambda root: "none")


def scene(seed: int, size=SIZE, deep=False) -> dict[str, np.ndarray]:
    """What the sensors saw: everything differs at every pixel; angles in radians from 0 to pi."""
    rng = np.random.default_rng(seed)
    top, dtype = (65536, np.uint16) if deep else (256, np.uint8)
    label = rng.integers(0, 20, size).astype(np.uint8)
    label[rng.random(size) < 0.1] = 255
    return {
        "rgb": rng.integers(0, top, (*size, 3)).astype(dtype),
        "nir": rng.integers(0, top, size).astype(dtype),
        "dolp": rng.random(size),
        "angle": rng.uniform(0, np.pi, size),
        "label": label,
        "mask": np.where(rng.random(size) < 0.2, 255, 0).astype(np.uint8),
    }


def write(root: Path, stem: str, seen: dict, angle="double", dtype=np.float64) -> None:
    """One image set as the archive has it."""
    shown = {
        "double": 2 * seen["angle"],
        "0 to 180": seen["angle"],
        "-90 to 90": (seen["angle"] + np.pi / 2) % np.pi - np.pi / 2,
    }[angle]
    for folder, array in (
        ("polL_dolp", seen["dolp"]),
        ("polL_aolp_sin", np.sin(shown)),
        ("polL_aolp_cos", np.cos(shown)),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        np.save(root / folder / f"{stem}.npy", array.astype(dtype))
    for folder, key in (
        ("polL_color", "rgb"),
        ("NIR_warped", "nir"),
        ("NIR_warped_mask", "mask"),
        ("GT", "label"),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        array = seen[key] if seen[key].ndim == 3 else seen[key][..., None]
        (root / folder / f"{stem}.png").write_bytes(png(array, 16 if array.dtype == np.uint16 else 8))


def stem(i: int) -> str:
    return f"outscene1208_{i // 3}_{i:010d}"


def make(root: Path, angle="double", deep=lambda i: False, change=lambda seen, i: None) -> Path:
    """The unpacked folder: ALL images, of which the lists name all but three. ``deep``: which have 16 bits."""
    split, first = {}, 0
    for name, count in LISTS.items():
        split[name] = range(first, first := first + count)
    for i in range(ALL):
        seen = scene(i, deep=deep(i))
        change(seen, i)
        write(root, stem(i), seen, angle)
    (root / "list_folder").mkdir()
    for name, members in (split | {"all": range(ALL)}).items():
        (root / "list_folder" / f"{name}.txt").write_text("".join(f"{stem(i)}\n" for i in members))
    return root


def run(source, out, **options):
    mcubes.prepare(mcubes.Options(str(source), str(out), progress=False, workers=2, **options))


def each(out: Path):
    """(number of the image, stored images, label, physical images) of every sample."""
    for split in sorted({row["split"] for row in read_index(out)}):
        data = PreparedDataset(out, split)
        for k, row in enumerate(data.rows):
            yield (
                int(row["id"][-10:]),
                *data.stored(k),
                {name: image.numpy().transpose(1, 2, 0) for name, image in data.physical(k)[0].items()},
            )


HALF = 0.5 / 32767 + 1e-6  # half a stored step, and float32


@pytest.mark.parametrize("angle", ["double", "0 to 180", "-90 to 90"])
def test_every_pixel_comes_through(tmp_path, angle, capsys):
    run(make(tmp_path / "above" / "multimodal_dataset", angle), tmp_path / "out")
    found = {}
    for i, stored, label, physical in each(tmp_path / "out"):
        seen = {name: image[:, 192:] for name, image in scene(i).items()}
        assert np.array_equal(stored["rgb"], seen["rgb"]) and np.array_equal(
            stored["nir"][..., 0], seen["nir"]
        )
        assert np.abs(physical["dolp"][..., 0] - seen["dolp"]).max() <= HALF
        assert (
            np.abs(
                physical["aolp"] - np.stack([np.cos(2 * seen["angle"]), np.sin(2 * seen["angle"])], 2)
            ).max()
            <= HALF
        )
        assert np.array_equal(label, np.where(seen["mask"] > 0, 255, seen["label"]))
        assert not np.array_equal(label, seen["label"])  # the naive reader, which never applies the mask
        found[i] = stored["rgb"].shape
    assert found == dict.fromkeys(range(ALL), (12, 20, 3))
    said = capsys.readouterr().out
    assert (
        "lists: all.txt 14, train.txt 6, val.txt 2, test.txt 3; 3 of all.txt in no other list; train = rest"
        in said
    )
    assert "the signs say " + ("double" if angle == "double" else "single") in said
    assert (
        "2 of 3 test images come from a sequence with training images" in said
    )  # 9 and 10, with the training image 11
    rows = {int(row["id"][-10:]): row["split"] for row in read_index(tmp_path / "out")}
    assert [rows[i] for i in range(ALL)] == ["train"] * 6 + ["val"] * 2 + ["test"] * 3 + ["train"] * 3
    description = read_description(tmp_path / "out")
    assert (
        description.classes[0] == "asphalt"
        and description.classes[19] == "sky"
        and len(description.classes) == 20
    )
    assert description.modalities["aolp"].flip_negates == (1,)
    run("", tmp_path / "out", check=True)  # without the source
    run(tmp_path / "above", tmp_path / "out")
    assert "is prepared already" in capsys.readouterr().out


def test_the_official_size(tmp_path, monkeypatch):
    monkeypatch.setattr(mcubes, "SIZE", (1024, 1224))
    root, seen = tmp_path / "set", scene(0, (1024, 1224))
    write(root, stem(0), seen, dtype=np.float32)
    (root / "list_folder").mkdir()
    for name in ("all", "train", "val", "test"):
        (root / "list_folder" / f"{name}.txt").write_text(f"{stem(0)}\r\n" * (name in ("all", "train")))
    run(root, tmp_path / "out", partial=True)
    _, stored, label, physical = next(each(tmp_path / "out"))
    assert (
        stored["rgb"].shape == (1024, 1032, 3)
        and stored["aolp"].shape == (1024, 1032, 2)
        and label.shape == (1024, 1032)
    )
    assert (
        np.array_equal(stored["rgb"], seen["rgb"][:, 192:])
        and np.abs(physical["dolp"][..., 0] - seen["dolp"][:, 192:]).max() <= HALF
    )


def test_sixteen_bits_stay_sixteen(tmp_path):
    """And one image of 8 bits among them is the same brightness, exactly."""
    root = make(tmp_path / "set", deep=lambda i: i != 3)
    run(root, tmp_path / "out")
    assert [read_description(tmp_path / "out").modalities[name].dtype for name in ("rgb", "nir")] == [
        "uint16",
        "uint16",
    ]
    for i, stored, _, physical in each(tmp_path / "out"):
        for name in ("rgb", "nir"):
            seen = scene(i, deep=i != 3)[name][:, 192:]
            want = seen.astype(int) * (257 if i == 3 else 1)
            assert stored[name].dtype == np.uint16 and np.array_equal(stored[name].squeeze(), want)
            assert np.abs(physical[name].squeeze() - seen / (255 if i == 3 else 65535)).max() < 1e-6
    with Image.open(root / "polL_color" / f"{stem(0)}.png") as image:  # the naive reader keeps the high byte
        assert np.array_equal(np.array(image), scene(0, deep=True)["rgb"] >> 8)


def test_the_degree_of_polarisation_is_absolute(tmp_path):
    """A road by noon and the same road at a third of its polarisation, and noise above 1: per-image scaling
    makes them equal.
    """

    def change(seen, i):
        seen["dolp"] = scene(0)["dolp"] * (1 / 3 if i == 1 else 1.4)

    run(make(tmp_path / "set", change=change), tmp_path / "out")
    strong, weak = (
        next(physical["dolp"][..., 0] for k, _, _, physical in each(tmp_path / "out") if k == i)
        for i in (0, 1)
    )
    truth = scene(0)["dolp"][:, 192:]
    assert (
        np.abs(strong - 1.4 * truth).max() <= HALF
        and np.abs(weak - truth / 3).max() <= HALF
        and strong.max() > 1.2
    )
    scaled = [(image - image.min()) / (image.max() - image.min()) for image in (strong, weak)]
    assert np.abs(scaled[0] - scaled[1]).max() < 1e-3


def test_a_resize_never_mixes_angles(tmp_path):
    """Columns of 1° and 179°, two degrees apart as orientations: naive means are 90°, or of length zero."""

    def change(seen, i):
        seen["angle"] = np.deg2rad(np.where(np.arange(SIZE[1]) % 2, 1.0, 179.0)) + np.zeros(SIZE)
        if i == 0:  # so that the signs of the set can be told
            seen["angle"] = scene(0)["angle"]

    root = make(tmp_path / "set", "0 to 180", change=change)
    run(root, tmp_path / "out", size=(6, 10))
    sine, cosine = (
        np.load(root / f"polL_aolp_{name}" / f"{stem(1)}.npy")[:, 192:] for name in ("sin", "cos")
    )
    half = resize(torch.from_numpy(np.stack([cosine, sine])).float(), (6, 10), False).numpy()[:, 2:-2, 2:-2]
    assert np.hypot(*half).max() < 0.3  # naive: next to nothing is left,
    assert np.abs(np.rad2deg(np.arctan2(half[1], half[0])) - 90).max() < 75  # of an angle that no pixel had
    _, _, _, physical = next(entry for entry in each(tmp_path / "out") if entry[0] == 1)
    cosine, sine = physical["aolp"][2:-2, 2:-2].transpose(2, 0, 1)
    assert (
        np.hypot(cosine, sine).min() > 0.99 and np.abs(np.rad2deg(np.arctan2(sine, cosine)) / 2).max() < 1.01
    )


@pytest.mark.parametrize(
    "angle, keep, channel",
    [
        ("double", False, 1),
        ("double", True, 1),
        ("0 to 180", False, 1),
        ("-90 to 90", False, 1),
        ("0 to 180", True, 0),
        ("-90 to 90", True, 1),
    ],
)
def test_a_mirrored_image_is_what_a_mirrored_camera_would_store(tmp_path, angle, keep, channel):
    """Oracle: each pixel's direction of polarisation, mirrored as a vector, and stored anew."""
    run(make(tmp_path / "set", angle), tmp_path / "out", keep_angle=keep)
    data = PreparedDataset(tmp_path / "out", "val")
    assert data.modalities["aolp"].flip_negates == (channel,)
    seen = scene(int(data.rows[0]["id"][-10:]))["angle"][:, 192:]
    direction = np.stack([-np.cos(seen), np.sin(seen)])[
        :, :, ::-1
    ]  # x changes sign, and so does the order of columns
    mirrored = np.arctan2(direction[1], direction[0]) % np.pi
    if angle == "double" or not keep:
        mirrored = 2 * mirrored
    elif angle == "-90 to 90":
        mirrored = (mirrored + np.pi / 2) % np.pi - np.pi / 2
    images, label = data.physical(0)
    flipped = flip(images, label, data.modalities)[0]["aolp"].numpy()
    assert np.abs(flipped - np.stack([np.cos(mirrored), np.sin(mirrored)])).max() <= HALF
    assert (
        np.abs(images["aolp"].flip(-1).numpy() - np.stack([np.cos(mirrored), np.sin(mirrored)])).max() > 1
    )  # published code only mirrors


def test_lists(tmp_path, capsys):
    root = make(tmp_path / "set")
    run(root, tmp_path / "list", train="list")
    assert [row["split"] for row in read_index(tmp_path / "list")].count(
        "train"
    ) == 6  # the naive reader's training set
    run("", tmp_path / "list", train="list", check=True)
    with pytest.raises(ValueError, match="prepared with other options \\(train list, not rest\\)"):
        run("", tmp_path / "list", check=True)
    (root / "list_folder" / "train.txt").write_text(
        "".join(f"{stem(i)}\n" for i in (*range(6), 11, 12, 13))
    )  # a copy that names all
    run(root, tmp_path / "full", train="list")
    run(root, tmp_path / "rest")
    assert (tmp_path / "full/index.csv").read_bytes() == (tmp_path / "rest/index.csv").read_bytes()
    (root / "list_folder" / "train.txt").write_text(
        "".join(f"{stem(i)}\n" for i in range(5))
    )  # neither: cut short
    with pytest.raises(ValueError, match="train: 5 of 9"):
        run(root, tmp_path / "cut", train="list")


def test_the_mask_can_be_left_out_and_may_have_colours(tmp_path):
    root = make(tmp_path / "set")
    run(root, tmp_path / "keep", nir_mask="keep")
    for i, _, label, _ in each(tmp_path / "keep"):
        assert np.array_equal(label, scene(i)["label"][:, 192:])
    for i in range(ALL):
        mask = scene(i)["mask"]
        path = root / "NIR_warped_mask" / f"{stem(i)}.png"
        if i % 3 == 0:  # white on opaque black
            Image.fromarray(np.dstack([mask, mask, mask, np.full(SIZE, 255, np.uint8)])).save(path)
        elif i % 3 == 1:
            Image.fromarray(mask > 0).save(path)  # 1 bit
        else:
            Image.fromarray(np.where(mask > 0, 1, 0).astype(np.uint8)).save(path)  # any value above 0 counts
    run(root, tmp_path / "ignore")
    for i, _, label, _ in each(tmp_path / "ignore"):
        seen = scene(i)
        assert np.array_equal(label, np.where(seen["mask"] > 0, 255, seen["label"])[:, 192:])


def test_an_archive_and_missing_files(tmp_path, capsys):
    root = make(tmp_path / "multimodal_dataset")
    (root / "polL_dolp" / f"{stem(7)}.npy").unlink()
    with zipfile.ZipFile(tmp_path / "multimodal_dataset.zip", "w") as file:
        for path in sorted(root.rglob("*")):
            file.write(path, path.relative_to(tmp_path))
    shutil.rmtree(root)
    with pytest.raises(
        ValueError, match=f"polL_dolp/{stem(7)}.npy: not found; 1 of 14 samples lack files"
    ):  # others skip it silently
        run(tmp_path / "multimodal_dataset.zip", tmp_path / "out")
    run(tmp_path / "multimodal_dataset.zip", tmp_path / "out", partial=True)
    assert (
        len(read_index(tmp_path / "out")) == ALL - 1
        and "left out: 1 of 14 samples" in capsys.readouterr().out
    )
    assert Path(f"{tmp_path / 'out'}-source/multimodal_dataset/GT/{stem(0)}.png").exists()


def spoiled(root: Path, what: str) -> None:
    path = {
        key: root / folder / f"{stem(4)}.{'npy' if key in ('dolp', 'sine', 'cosine') else 'png'}"
        for key, folder in mcubes.FOLDERS.items()
    }
    degree, lists = np.load(path["dolp"]), root / "list_folder"
    match what:
        case "unknown id":
            Image.fromarray(
                np.where(np.arange(SIZE[1]) == 200, 20, 3).astype(np.uint8) + np.zeros((SIZE[0], 1), np.uint8)
            ).save(path["label"])
        case "size":
            Image.fromarray(np.zeros((SIZE[0], SIZE[1] - 192), np.uint8)).save(path["label"])
        case "planes":
            Image.fromarray(scene(4)["nir"]).save(path["rgb"])
        case "truncated":
            path["nir"].write_bytes(path["nir"].read_bytes()[:-40])
        case "nan":
            np.save(path["dolp"], np.where(degree > 0.9, np.nan, degree))
        case "percent":
            np.save(path["dolp"], degree * 100)
        case "negative":
            np.save(path["dolp"], degree - 0.5)
        case "transposed":
            np.save(path["sine"], np.load(path["sine"]).T)
        case "pickled":
            np.save(path["cosine"], np.array([path], dtype=object), allow_pickle=True)
        case "no angle":
            np.save(path["sine"], np.load(path["sine"]) * 0.8)
        case "flat angles":
            for i in range(ALL):
                for name in ("sin", "cos"):
                    np.save(root / f"polL_aolp_{name}" / f"{stem(i)}.npy", np.full(SIZE, np.sqrt(0.5)))
        case "escape":
            (lists / "all.txt").write_text("../../etc/passwd\n")
        case "overlap":
            (lists / "val.txt").write_text((lists / "test.txt").read_text())
        case "twice":
            (lists / "test.txt").write_text((lists / "test.txt").read_text() * 2)
        case "stranger":
            (lists / "test.txt").write_text("outscene9_9_9\n")
        case "no list":
            (lists / "val.txt").unlink()
        case "no folder":
            shutil.rmtree(root / "NIR_warped")


@pytest.mark.parametrize(
    "what, message",
    [
        ("unknown id", f"GT/{stem(4)}.png: unknown label id 20; expected one of 0, 1, .*, 19, 255"),
        ("size", f"GT/{stem(4)}.png: 12 × 20 pixels; expected 12 × 212"),
        ("planes", f"polL_color/{stem(4)}.png: expected uint8 with 3 channels"),
        ("truncated", f"NIR_warped/{stem(4)}.png: cannot be read"),
        ("nan", f"polL_dolp/{stem(4)}.npy: NaN or infinite"),
        ("percent", f"polL_dolp/{stem(4)}.npy: .* to .*; expected fractions"),
        ("negative", f"polL_dolp/{stem(4)}.npy: -0.* expected fractions"),
        ("transposed", rf"polL_aolp_sin/{stem(4)}.npy: 212 × 12 pixels; expected 12 × 212"),
        ("pickled", f"polL_aolp_cos/{stem(4)}.npy: cannot be read"),
        ("no angle", f"polL_aolp_sin/{stem(4)}.npy and .*sine² .* is 0.64 to 1"),
        (
            "flat angles",
            "polL_aolp_sin and polL_aolp_cos: by their signs they hold nothing clear; .* give --angle",
        ),
        ("escape", "all.txt: '../../etc/passwd'; expected stems"),
        ("overlap", f"'{stem(8)}' is listed twice"),
        ("twice", f"test.txt: '{stem(8)}'; expected .* each once"),
        ("stranger", "test.txt: outscene9_9_9 is not in all.txt"),
        ("no list", "val.txt: not found"),
        ("no folder", "no folder in it holds list_folder, .*NIR_warped"),
    ],
)
def test_malformed_sources_are_named(tmp_path, monkeypatch, what, message):
    spoiled(make(tmp_path / "set"), what)
    monkeypatch.setattr(
        sys,
        "argv",
        ["prepare_mcubes.py", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--no-progress"],
    )
    with pytest.raises(SystemExit, match=f"(?s)error: .*{message}") as end:
        common.start(mcubes.prepare, mcubes.Options, mcubes.__doc__)
    assert isinstance(end.value.code, str) and not is_finished(tmp_path / "out")


def test_what_the_signs_cannot_tell_is_asked_for(tmp_path):
    root = make(tmp_path / "set")
    spoiled(root, "flat angles")
    run(root, tmp_path / "single", angle="single")  # sine = cosine = 0.707: 45°, doubled 90°
    assert all(np.abs(physical["aolp"] - (0, 1)).max() <= HALF for *_, physical in each(tmp_path / "single"))
    run(root, tmp_path / "double", angle="double")
    assert all(
        np.abs(physical["aolp"] - np.sqrt(0.5)).max() <= HALF for *_, physical in each(tmp_path / "double")
    )
    with pytest.raises(ValueError, match="no --keep-angle where the signs are not clear"):
        run(root, tmp_path / "kept", angle="single", keep_angle=True)
    with pytest.raises(ValueError, match="by their signs they hold single, 0 to 180°; --angle says double"):
        run(make(tmp_path / "other", "0 to 180"), tmp_path / "contradicted", angle="double")


def test_a_worn_angle_is_accepted_where_asked_for(tmp_path):
    root = make(tmp_path / "set")
    spoiled(root, "no angle")
    run(root, tmp_path / "out", tolerance=0.4)
    run("", tmp_path / "out", check=True)


def test_the_contact_sheet(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(mcubes, "SIZE", (90, 192 + 120))
    monkeypatch.setattr(mcubes, "COUNTS", {"train": 2, "val": 0, "test": 0})
    rows, columns = np.mgrid[:90, :312] / 30.0
    for i in range(
        2
    ):  # rings of angle, ramps of the rest, a chequered label: what the sheet must show in order
        seen = {
            "rgb": np.stack([rows * 80, columns * 24, rows * 0 + 60 + 60 * i], 2),
            "nir": columns * 24,
            "mask": (rows > 2.6) * 255,
            "label": (rows.astype(int) * 5 + columns.astype(int)) % 20,
        }
        seen = {name: image.astype(np.uint8) for name, image in seen.items()}
        seen |= {"dolp": rows / 3, "angle": np.arctan2(rows - 1.5, columns - 8.4) / 2 % np.pi}
        write(tmp_path / "set", stem(i), seen)
    (tmp_path / "set" / "list_folder").mkdir()
    for name in ("all", "train", "val", "test"):
        (tmp_path / "set" / "list_folder" / f"{name}.txt").write_text(
            "".join(f"{stem(i)}\n" for i in range(2)) * (name in ("all", "train"))
        )
    run(tmp_path / "set", tmp_path / "out")
    with Image.open(tmp_path / "out" / "contact_sheet.png") as image:
        assert image.size[0] > 500


def test_the_command(tmp_path):
    done = script.run(mcubes, "--out", tmp_path / "out")
    assert done.returncode == 1 and done.stderr.startswith(
        "error: name the archive or the unpacked folder; '' is not found.\nMCubeS: multimodal_dataset.zip"
    )
    assert "9.27 GB" in done.stderr and "Licence: " in done.stderr and not (tmp_path / "out").exists()
