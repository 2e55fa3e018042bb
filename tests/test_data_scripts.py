"""What the data scripts share: ids and sizes, the source, and a conversion that resumes, checks and reports."""

import importlib
import json
import os
import random
import shutil
import sys
import time
import zipfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import contents, kill_after
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))
import common  # noqa: E402

from mmlib.data.images import DataError  # noqa: E402
from mmlib.data.prepared import Description, PreparedDataset, read_description, read_index  # noqa: E402
from mmlib.modalities import Modality  # noqa: E402

# ---- ids and sizes ----


@settings(max_examples=50)
@given(st.dictionaries(st.integers(0, 900), st.integers(0, 255), min_size=1, max_size=40), st.data())
def test_ids_are_mapped_one_by_one(table, data):
    ids = np.array(
        data.draw(st.lists(st.sampled_from(sorted(table)), min_size=6, max_size=6)), np.uint16
    ).reshape(2, 3)
    found = common.map_ids(ids, table, "x.png")
    assert found.dtype == np.uint8 and found.tolist() == [[table[id] for id in row] for row in ids.tolist()]
    ids[1, 2] = 901
    with pytest.raises(DataError, match="x.png: unknown label id 901; expected "):
        common.map_ids(ids, table, "x.png")


def test_unknown_ids_are_listed_and_halves_are_no_ids():
    with pytest.raises(DataError, match="x: unknown label id 4, 7; expected one of 0, 1, 2, 3"):
        common.map_ids(np.array([[0, 7, 4]]), dict.fromkeys(range(4), 0), "x")
    with pytest.raises(DataError, match="x: unknown label id -1; expected one of 0, 2"):
        common.map_ids(np.array([[0, -1]]), {0: 0, 2: 1}, "x")
    with pytest.raises(DataError, match="x: unknown label id 0.5"):
        common.map_ids(np.array([[0.5]], np.float32), {0: 0}, "x")


SPARSE = Modality("lidar", "L", 2, dtype="float32", sparse=True)
DENSE = Modality("heat", "H", 1, "°C", dtype="uint16", scale=0.01, offset=-100.0)


@settings(max_examples=25)
@given(
    st.integers(2, 9),
    st.integers(2, 9),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(0, 999),
)
def test_resized_labels_and_sparse_images_hold_what_was_there(height, width, size, seed):
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 3, 18, 255], (height, width)).astype(np.uint8)
    sparse = rng.standard_normal((height, width, 2)).astype(np.float32) * 1e5
    heat = np.full((height, width, 1), rng.integers(0, 65536), np.uint16)
    images, small = common.resized(
        {"lidar": sparse, "heat": heat}, label, {"lidar": SPARSE, "heat": DENSE}, size
    )
    assert (
        small.shape == images["heat"].shape[:2] == images["lidar"].shape[:2] == size
        and small.dtype == np.uint8
    )
    for r, c in product(*map(range, size)):
        at = (
            int((r + 0.5) * height / size[0]),
            int((c + 0.5) * width / size[1]),
        )  # the pixel whose area holds the new one's centre
        assert small[r, c] == label[at] and (images["lidar"][r, c] == sparse[at]).all()
    assert (images["heat"] == heat[0, 0]).all() and images[
        "heat"
    ].dtype == np.uint16  # a mean of equal values is that value
    assert common.resized({"heat": heat}, None, {"heat": DENSE}, (0, 0))[0]["heat"] is heat


# ---- where the data are ----


def test_the_source_is_found(tmp_path):
    out = str(tmp_path / "out")
    deep = tmp_path / "source" / "one" / "two" / "three"
    for folder in (
        deep / "rgb",
        deep / "gt",
        tmp_path / "source" / "__MACOSX" / "rgb",
        tmp_path / "source" / "__MACOSX" / "gt",
    ):
        folder.mkdir(parents=True)
    assert common.locate(common.Options(str(tmp_path / "source"), out), ["rgb", "gt"], "HOW") == deep
    assert common.locate(common.Options(str(deep), out), ["rgb", "gt"], "HOW") == deep
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("x/rgb/1.png", "x/gt/1.png", "__MACOSX/x/rgb/._1.png", "__MACOSX/x/gt/._1.png"):
            file.writestr(name, name)
    assert common.locate(
        common.Options(str(archive), f"{out}/", progress=False), ["rgb", "gt"], "HOW"
    ) == Path(f"{out}-source/x")
    shutil.move(archive, tmp_path / "source" / "one" / "set.zip")
    for source, to, message in [
        ("", out, r"name the archive or the unpacked folder; '' is not found.\nHOW"),
        ("nowhere", out, r"name the archive or the unpacked folder; 'nowhere' is not found.\nHOW"),
        (deep / "rgb", out, "no folder in it holds rgb, gt"),
        (
            tmp_path / "source" / "one",
            out,
            r"no folder in it holds rgb, gt, depth \(archives in it must .*\).\nHOW",
        ),
    ]:
        with pytest.raises(DataError, match=message):
            common.locate(
                common.Options(str(source), to),
                ["rgb", "gt", "depth"] if Path(source).name == "one" else ["rgb", "gt"],
                "HOW",
            )


def test_errors_end_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def fail(error):
        def main(options):
            assert options == common.Options("folder", "out", size=(4, 5), partial=True)
            raise error

        monkeypatch.setattr(
            sys, "argv", ["prepare", "folder", "--out", "out", "--size", "4", "5", "--partial"]
        )
        common.start(main, common.Options, "doc")

    for error, message in (
        (DataError("x"), "error: x"),
        (FileNotFoundError(2, "No such file", "y"), r"error: .*'y'"),
        (KeyboardInterrupt(), "130"),
    ):
        with pytest.raises(SystemExit, match=message) as end:
            fail(error)
        # A text is printed by Python on stderr, and ends it with exit code 1.
        assert isinstance(end.value.code, str) or capsys.readouterr().err.startswith(
            "interrupted; what --out"
        )
    assert not any(tmp_path.iterdir()), "nothing was written, so nothing is left"
    with pytest.raises(ZeroDivisionError):  # a defect of the script is not hidden
        fail(ZeroDivisionError())
    monkeypatch.setenv("MMLIB_DEBUG", "1")
    with pytest.raises(DataError):
        fail(DataError("x"))


# ---- the conversion ----

SPLIT = ("train", "train", "val", "test")
SAMPLES = [
    common.Sample(f"s{i:02d}", SPLIT[i % 4], ("day", "night")[i % 2], ("", "broken")[i % 3 == 0])
    for i in range(16)
]
COUNTS = {"train": 8, "val": 4, "test": 4}
DESCRIPTION = Description("toy", toy.CLASSES, toy.PALETTE, toy.MODALITIES, extra={"void": "none"})


def read(sample: common.Sample):
    return toy.sample(int(sample.id[1:]), (16, 24))


def prepare(out, samples=SAMPLES, read=read, expected=COUNTS, description=DESCRIPTION, **options):
    options = common.Options("source", str(out), progress=False, **options)
    common.check_options(options)  # as ``common.start`` does
    common.run(options, description, samples, read, expected)


@pytest.fixture
def no_sheet(monkeypatch):
    """For tests that do not look at it: drawing it takes longer than all else."""
    monkeypatch.setattr(common, "contact_sheet", lambda root: "none")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Prepared by one thread, in order, undisturbed."""
    prepare(tmp_path_factory.getbasetemp() / "whole", workers=1)
    return tmp_path_factory.getbasetemp() / "whole"


def test_every_pixel_and_every_row_comes_through(whole):
    rows = read_index(whole)
    assert {(r["id"], r["split"], r["condition"], r["case"]) for r in rows} == {
        (s.id, s.split, s.condition, s.case) for s in SAMPLES
    }
    for split in COUNTS:
        data = PreparedDataset(whole, split)
        for i, row in enumerate(data.rows):
            (images, label), (want, ids) = data.stored(i), toy.sample(int(row["id"][1:]), (16, 24))
            assert np.array_equal(label, ids) and all(
                np.array_equal(images[name], want[name]) for name in want
            )
    found = read_description(whole)
    assert found.extra.pop("source digest")
    assert found.extra == {"void": "none", "options": {"size": [0, 0]}}
    train = (
        np.concatenate([toy.sample(i, (16, 24))[0]["rgb"].reshape(-1, 3) for i in range(16) if i % 4 < 2])
        / 255
    )
    rgb = found.modalities["rgb"]
    assert np.allclose(rgb.mean, train.mean(0), atol=1e-5) and np.allclose(rgb.std, train.std(0), atol=1e-5)
    assert set(contents(whole)) == {"dataset.json", "index.csv", "contact_sheet.png"} | {
        f"{folder}/{s.id}.{'npy' if folder == 'aolp' else 'png'}"
        for s in SAMPLES
        for folder in ("rgb", "depth", "aolp", "label")
    }


def test_threads_and_order_change_no_byte(whole, tmp_path):
    rng, mixed = random.Random(0), SAMPLES.copy()
    rng.shuffle(mixed)
    prepare(
        tmp_path / "out", mixed, lambda sample: time.sleep(rng.uniform(0, 0.01)) or read(sample), workers=6
    )
    assert contents(tmp_path / "out") == contents(whole)


def _prepare_slowly(out):
    """At least 0.15 s on any machine."""
    prepare(out, read=lambda sample: time.sleep(0.03) or read(sample), workers=3)


def test_a_conversion_killed_at_random_moments(whole, tmp_path):
    rng, out, codes, done = random.Random(1), tmp_path / "out", [], set()
    wanted = contents(whole)
    for attempt in range(12):  # longer and longer, so that some come to something on a busy machine too
        codes.append(kill_after(rng.uniform(0.02, 0.03 * 1.25**attempt), _prepare_slowly, out))
        found = {n: c for n, c in contents(out).items() if "." not in (part[0] for part in Path(n).parts)}
        assert all(wanted[name] == content for name, content in found.items())  # whole, or not there
        done.add(len([name for name in found if name.startswith("label/")]))
    assert set(codes) <= {-9, 0} and codes.count(-9) >= 4 and done - {0, 16}, "the moments were badly chosen"
    assert kill_after(120, _prepare_slowly, out) == 0
    assert contents(out) == wanted  # and no temporary file


def test_a_bad_sample_is_named_and_the_rest_can_go_on(whole, tmp_path):
    asked = []

    def damaged(sample):
        asked.append(sample.id)
        if sample.id == "s05":
            raise DataError("folder/s05.png: damaged")
        time.sleep(0.05 * (sample.id > "s05"))
        return read(sample)

    out = tmp_path / "out"
    with pytest.raises(DataError, match="folder/s05.png: damaged"):
        prepare(out, read=damaged, workers=2)
    assert "s15" not in asked  # it ends at once
    with pytest.raises(DataError, match="unfinished"):
        PreparedDataset(out)
    with pytest.raises(DataError, match="unfinished"):
        prepare(out, check=True)
    asked.clear()
    prepare(out, read=lambda sample: asked.append(sample.id) or read(sample))
    assert contents(out) == contents(whole) and len(asked) < 16


def test_one_folder_holds_one_setting(whole, tmp_path):
    with pytest.raises(DataError, match=r"prepared with other options \(size \[0, 0\], not \[8, 12\]\)"):
        prepare(whole, size=(8, 12))
    with pytest.raises(DataError, match="other options"):
        prepare(whole, size=(8, 12), check=True)
    with pytest.raises(DataError, match="class names"):
        prepare(whole, description=replace(DESCRIPTION, classes=["a", "b", "c"]))
    with pytest.raises(DataError, match="modality rgb"):
        prepare(
            whole,
            description=replace(
                DESCRIPTION, modalities=toy.MODALITIES | {"rgb": replace(toy.MODALITIES["rgb"], scale=1.0)}
            ),
        )
    with pytest.raises(DataError, match="holds other samples .'s15' was .*, is None"):
        prepare(whole, SAMPLES[:-1], partial=True)
    with pytest.raises(DataError, match="holds other samples .'s00' was .'train', 'day', 'broken'., is"):
        prepare(whole, [replace(SAMPLES[0], condition="dusk"), *SAMPLES[1:]])

    def stop(sample):
        if sample.id == "s08":
            raise DataError("stop")
        return read(sample)

    with pytest.raises(DataError, match="stop"):
        prepare(tmp_path, read=stop, workers=1)
    with pytest.raises(DataError, match="with another description .size .0, 0., not .8, 12"):
        prepare(tmp_path, size=(8, 12))
    moved = [
        replace(SAMPLES[0], split="val"),
        replace(SAMPLES[2], split="train"),
        *SAMPLES[1:2],
        *SAMPLES[3:],
    ]
    with pytest.raises(DataError, match="holds other samples \\('s00' was .*'train'"):
        prepare(tmp_path, moved)
    prepare(tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_one_folder_holds_one_source(tmp_path, monkeypatch, no_sheet):
    """Begun with one source and continued, or asked for again, with another; one without a memory of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.txt").write_text("one")

    def stop(sample):
        raise DataError("stop")

    with pytest.raises(DataError, match="stop"):
        prepare("out", read=stop, workers=1)
    (tmp_path / "source").rename("first")
    shutil.copytree("first", "source")
    os.utime("source/a.txt", (1, 1))
    with pytest.raises(DataError, match="unfinished data set with another description .source digest"):
        prepare("out")
    shutil.rmtree("source")
    (tmp_path / "first").rename("source")
    prepare("out")
    prepare("out")
    (tmp_path / "source/b.txt").write_text("two")
    with pytest.raises(DataError, match="other options .digest of the source"):
        prepare("out")
    prepare("out", check=True)
    description = json.loads((tmp_path / "out/dataset.json").read_text())
    del description["extra"]["source digest"]
    (tmp_path / "out/dataset.json").write_text(json.dumps(description))
    prepare("out")


def test_another_size(tmp_path, no_sheet):
    prepare(tmp_path, size=(8, 12))
    prepare(tmp_path, size=(8, 12), check=True)
    stored, label = PreparedDataset(tmp_path, "val").stored(0)
    source, ids = toy.sample(2, (16, 24))
    assert label.shape == (8, 12) and set(np.unique(label)) <= set(np.unique(ids))
    assert set(np.unique(stored["depth"])) <= set(np.unique(source["depth"]))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"samples": []}, "found test: 0 of 4, train: 0 of 8, val: 0 of 4 samples"),
        ({"samples": [], "expected": {}}, "source: no sample found"),
        ({"samples": SAMPLES[1:]}, "found train: 7 of 8 samples; complete the download, or give --partial"),
        ({"samples": [*SAMPLES, replace(SAMPLES[0], id="s99")]}, "found train: 9 of 8"),
        ({"samples": [*SAMPLES, replace(SAMPLES[0], id="s99")], "partial": True}, "found train: 9 of 8"),
        ({"samples": [*SAMPLES, replace(SAMPLES[0], id="s99", split="trial")]}, "found trial: 1 of 0"),
        ({"samples": [*SAMPLES, SAMPLES[0]], "expected": {}}, "'s00' is listed twice"),
        ({"size": (0, 5)}, "--size 0 5"),
        ({"size": (-3, 5)}, "--size -3: expected 0 or more"),
        ({"out": ""}, "--out is missing"),
    ],
)
def test_wrong_counts_and_options(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        prepare(**({"out": tmp_path / "out"} | change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "out", ["mine", "mine/rgb", "mine/rgb/out", "mine/rgb/../rgb/", "link", "mine/set.zip"]
)
@pytest.mark.parametrize("script", ["folders", "nyu", "deliver", "muses"])
def test_an_output_that_could_overwrite_an_input_is_refused(tmp_path, monkeypatch, script, out):
    """Where the output is, holds or lies in what is read, nothing changes, whatever the script."""
    monkeypatch.chdir(tmp_path)
    for name in ("rgb/0001.png", "rgb/img/0001.png", "set.zip"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(b"an original")
    (tmp_path / "link").symlink_to("mine/rgb")
    module = importlib.import_module(f"prepare_{script}")
    source = "mine/set.zip" if out.endswith("zip") else "mine/rgb"
    words = {"folders": [f"rgb={source}"], "nyu": ["--frames", source]}.get(script, [source])
    before = contents(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *words, "--out", out])
    with pytest.raises(
        SystemExit, match="error: --out .*: is, holds or lies in the input .*choose a folder beside"
    ):
        common.start(module.prepare, module.Options, "")
    assert contents(tmp_path) == before


def test_partial_data_are_accepted_where_asked_for(tmp_path, no_sheet):
    prepare(tmp_path / "out", SAMPLES[1:], partial=True)
    prepare(tmp_path / "out", partial=True, check=True)
    with pytest.raises(DataError, match="train: 7 of 8"):
        prepare(tmp_path / "out", check=True)
    there = [replace(sample, files={"rgb": tmp_path / sample.id}) for sample in SAMPLES[:3]]
    (tmp_path / "s01").touch()
    with pytest.raises(
        DataError, match="s00: not found; 2 of 3 samples lack files; complete the download, or give --partial"
    ):
        common.complete(there, common.Options())
    assert [sample.id for sample in common.complete(there, common.Options(partial=True))] == ["s01"]


def damage(root: Path, what: str) -> None:
    label = root / "label" / "s04.png"
    if what == "one bit":
        content = bytearray(label.read_bytes())
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        label.write_bytes(content)
    elif what == "cut":
        label.write_bytes(label.read_bytes()[:-1])
    elif what == "missing":
        (root / "depth" / "s04.png").unlink()
    elif what == "class id":
        Image.fromarray(np.full((16, 24), 3, np.uint8)).save(label)
    elif what == "planes":
        Image.fromarray(np.zeros((16, 24), np.uint8)).save(root / "rgb" / "s04.png")
    elif what == "size":
        Image.fromarray(np.zeros((16, 25), np.uint8)).save(label)
    elif what == "short array":
        path = root / "aolp" / "s04.npy"
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "stranger":
        shutil.copy(label, root / "label" / "s4.png")
    elif what == "no labels":
        shutil.rmtree(root / "label")
    elif what == "index":
        lines = (root / "index.csv").read_text().splitlines(True)
        (root / "index.csv").write_text("".join(line for line in lines if not line.startswith("s04")))


@pytest.mark.parametrize(
    "what, message",
    [
        ("one bit", "s04.png"),
        ("one bit", "s04.png"),
        ("one bit", "s04.png"),
        ("cut", "s04.png: (damaged|cannot be read)"),
        ("missing", "depth.s04.png: no such file"),
        ("class id", "'s04': label id 3 out of range"),
        ("planes", "s04.png: expected uint8 with 3"),
        ("size", r"'s04': .*'label': \(16, 25\)"),
        ("short array", "s04.npy: cannot be read"),
        ("stranger", "s4.png: not in index.csv"),
        ("index", "found train: 7 of 8"),
        ("no labels", "label: not found, though this data set has labels"),
    ],
)
def test_check_finds_what_is_wrong(whole, tmp_path, what, message):
    shutil.copytree(whole, tmp_path / "copy")
    damage(tmp_path / "copy", what)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "copy", check=True)


def test_the_report_counts_right(whole, capsys):
    prepare(whole, check=True)
    said = capsys.readouterr().out
    assert f"{whole}: 16 samples of 16 × 24 pixels, every file as it should be" in said
    assert (
        "test: 4 samples, broken 2, night 4" in said and "train: 8 samples, broken 3, day 4, night 4" in said
    )
    labels = np.stack([toy.sample(i, (16, 24))[1] for i in range(16)])
    shares = ", ".join(
        f"{name} {100 * (labels == k).sum() / (labels != 255).sum():.2f}"
        for k, name in enumerate(toy.CLASSES)
    )
    assert (
        f"share of the labelled pixels in %: {shares}" in said
        and f"ignored: {100 * (labels == 255).mean():.1f} % of all pixels" in said
    )
    metres = np.stack([toy.sample(i, (16, 24))[0]["depth"] for i in range(16) if i % 4 < 2]) / 256
    assert (
        f"depth (1 × uint16, log(1 + |x|) of m): mean {np.log1p(metres).mean():.4g}; std {np.log1p(metres).std():.4g}"
        in said
    )


def test_a_lost_contact_sheet_is_drawn_again_and_never_by_halves(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / "contact_sheet.png").unlink()

    def stop(figure, path, **options):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("matplotlib.figure.Figure.savefig", stop)
        prepare(tmp_path / "copy")
    assert set(contents(whole)) - set(contents(tmp_path / "copy")) == {"contact_sheet.png"}
    prepare(tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(whole)


def test_the_contact_sheet_shows_the_sensors(whole):
    with Image.open(whole / "contact_sheet.png") as image:
        sheet = np.array(image.convert("RGB"))
    assert sheet.shape[0] > 300 and sheet.shape[1] > 500
    for colour in toy.PALETTE:
        assert (np.abs(sheet.astype(int) - colour).sum(2) < 6).any()


def test_unlabelled_data(tmp_path, no_sheet, capsys):
    prepare(tmp_path, read=lambda sample: (read(sample)[0], None), expected={})
    prepare(tmp_path, check=True, expected={})
    assert not (tmp_path / "label").exists() and "no labels" in capsys.readouterr().out
