"""Predictions on files against the network run by hand, what a second run does, and every way in which files
can be wrong.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from PIL import Image
from scipy.special import softmax
from torch.nn import functional as F

from mmlib import cli
from mmlib.data.images import write_image
from mmlib.data.prepared import Description, PreparedDataset, Writer
from mmlib.modalities import subsets
from mmlib.segmentation.network import load_segmenter, save_segmenter
from mmlib.segmentation.predict import PredictConfig, Source, network_input, outputs, predict

NAMES = ["rgb", "depth", "aolp"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint, the data it knows the statistics of, and a folder of files for each sensor."""
    root = tmp_path_factory.mktemp("predict")
    data = PreparedDataset(toy.make(root / "toy"), "val")
    save_segmenter(toy.untrained(data), root / "net.safetensors")
    for name in NAMES:
        (root / "files" / name).mkdir(parents=True)
        for file in (root / "toy" / name).glob("val_*"):
            shutil.copy(file, root / "files" / name)
    return root


def configured(root, out, *names, files=None, **changes) -> PredictConfig:
    folder = files or root / "files"
    return PredictConfig(
        str(root / "net.safetensors"),
        str(out),
        tuple(f"{n}={folder / n}" for n in names),
        device="cpu",
        **({"progress": False, "sheet": 0} | changes),
    )


def by_hand(root, stem, names, files=None) -> np.ndarray:
    """Logits (K, H, W) of the mean over ``names``: files decoded, scaled, normalised and upsampled here."""
    network, each = load_segmenter(root / "net.safetensors"), []
    for name in names:
        path = next((files or root / "files").joinpath(name).glob(f"{stem}.*"))
        stored = np.load(path) if path.suffix == ".npy" else np.array(Image.open(path))
        m = network.modalities[name]
        values = (stored.astype(np.float64) * m.scale + m.offset).reshape(*stored.shape[:2], m.channels)
        values = np.sign(values) * np.log1p(np.abs(values)) if m.compress else values
        image = torch.from_numpy(((values - m.mean) / m.std).transpose(2, 0, 1)[None]).float()
        with torch.no_grad():
            each.append(
                F.interpolate(
                    network.modality_logits({name: image})[name], stored.shape[:2], mode="bilinear"
                )[0].numpy()
            )
    return np.mean(each, 0)


def read(out, stem):
    return [np.array(Image.open(path)) for path in outputs(Path(out), stem)]


@pytest.mark.parametrize("names", subsets(NAMES))
def test_every_subset_of_sensors_gives_the_networks_own_prediction(trained, tmp_path, names):
    files = predict(configured(trained, tmp_path, *reversed(names))).files
    assert {tuple(of) for of in files.values()} == {names} and len(files) == 5  # in the network's order
    for stem in list(files)[:2]:
        mask, overlay, confidence = read(tmp_path, stem)
        logits = by_hand(trained, stem, names)
        sure = np.diff(np.sort(logits, 0)[-2:], axis=0)[0] > 1e-3
        assert (
            sure.mean() > 0.98
            and mask.dtype == np.uint8
            and np.array_equal(mask[sure], logits.argmax(0)[sure])
        )
        assert (
            confidence.dtype == np.uint16
            and np.abs(confidence / 65535 - softmax(logits.astype(float), 0).max(0)).max() < 1e-4
        )
        assert overlay.shape == (*mask.shape, 3)
    record = json.loads((tmp_path / "classes.json").read_text())
    assert [entry["name"] for entry in record["classes"]] == toy.CLASSES and record["classes"][1][
        "colour"
    ] == list(toy.PALETTE[1])
    assert record["samples"]["val_000"] == {
        "sensors": list(names),
        "absent": [n for n in NAMES if n not in names],
        "digest": record["samples"]["val_000"]["digest"],
    }
    assert list(record["samples"]["val_000"]["digest"]) == list(names)
    assert record["fusion"] == "mean" and record["protocol"].startswith("drop")


def test_the_overlay_is_the_first_sensors_picture_half_covered(trained, tmp_path):
    predict(configured(trained, tmp_path, "depth", "rgb"))
    mask, overlay, _ = read(tmp_path, "val_001")
    picture = np.array(Image.open(trained / "files" / "rgb" / "val_001.png")).astype(float)
    assert (
        np.abs(overlay - (picture + np.array(toy.PALETTE)[mask]) / 2).max() <= 1
    )  # reflectance 1 is drawn as 255


def test_sensors_may_be_missing_sample_by_sample_and_sizes_may_differ(trained, tmp_path, capsys):
    files = tmp_path / "files"
    shutil.copytree(trained / "files", files)
    (files / "rgb" / "val_001.png").unlink()
    (files / "aolp" / "val_003.npy").unlink()
    for name, array in toy.sample(7, (40, 32))[0].items():
        write_image(next((files / name).glob("val_002.*")), array)
    (files / "rgb" / "notes.txt").write_text("not an image")
    out = tmp_path / "out"
    arguments = [
        "predict",
        str(trained / "net.safetensors"),
        *(f"{n}={files / n}" for n in NAMES),
        "--out",
        str(out),
        "--no-progress",
    ]
    cli.main([*arguments, "--batch-size", "3", "--device", "cpu"])
    expected = {
        "val_000": NAMES,
        "val_001": NAMES[1:],
        "val_002": NAMES,
        "val_003": NAMES[:2],
        "val_004": NAMES,
    }
    for stem, names in expected.items():
        mask, logits = read(out, stem)[0], by_hand(trained, stem, names, files)
        assert mask.shape == logits.shape[1:] and (mask != logits.argmax(0)).mean() < 0.01
    assert {
        s: part["sensors"] for s, part in json.loads((out / "classes.json").read_text())["samples"].items()
    } == expected
    printed = capsys.readouterr().out
    assert (
        "3 samples from rgb, depth, aolp\n" in printed
        and "1 sample from depth, aolp; no rgb: val_001" in printed
    )
    assert Image.open(out / "sheet.png").size[0] > 600
    assert not [path for path in out.rglob("*") if ".tmp" in path.name]


def test_single_files_are_one_sample_whatever_their_names(trained, tmp_path):
    shutil.copy(trained / "files" / "rgb" / "val_000.png", tmp_path / "left.png")
    shutil.copy(trained / "files" / "depth" / "val_000.png", tmp_path / "range.png")
    given = (f"depth={tmp_path / 'range.png'}", f"rgb={tmp_path / 'left.png'}")
    files = predict(replace(configured(trained, tmp_path / "out"), sensors=given)).files
    assert list(files) == ["left"] and list(files["left"]) == ["rgb", "depth"]
    predict(configured(trained, tmp_path / "folder", "rgb", "depth"))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(read(tmp_path / "out", "left"), read(tmp_path / "folder", "val_000"))
    )


def test_a_prepared_data_set_gives_what_its_files_give(trained, tmp_path):
    predict(configured(trained, tmp_path / "a", *NAMES))
    predict(configured(trained, tmp_path / "b", data=str(trained / "toy"), split="val"))
    for i in range(5):
        assert all(
            np.array_equal(a, b)
            for a, b in zip(read(tmp_path / "a", f"val_{i:03d}"), read(tmp_path / "b", f"val_{i:03d}"))
        )


def stored_otherwise(root, scale=1 / 64, unit="m"):
    """The toy's val split with depth stored at another scale, or in another unit; without aolp."""
    depth = replace(toy.MODALITIES["depth"], scale=scale, unit=unit)
    modalities = {"rgb": toy.MODALITIES["rgb"], "depth": depth}
    with Writer(root, Description("other", toy.CLASSES, toy.PALETTE, modalities)) as writer:
        for i in range(5):
            images, label = toy.sample(1000 + i)
            metres = toy.MODALITIES["depth"].to_physical(images["depth"])
            writer.add(f"val_{i:03d}", "val", {"rgb": images["rgb"], "depth": depth.to_stored(metres)}, label)
            writer.add(
                f"train_{i:03d}", "train", {"rgb": images["rgb"], "depth": depth.to_stored(metres)}, label
            )
    return root


def test_data_stored_at_another_scale_are_the_same_metres(trained, tmp_path):
    other = stored_otherwise(tmp_path / "other")
    source = predict(configured(trained, tmp_path / "b", data=str(other), split="val"))
    assert {tuple(files) for files in source.files.values()} == {("rgb", "depth")}
    predict(configured(trained, tmp_path / "a", "rgb", "depth"))
    for i in range(5):
        a, b = (read(tmp_path / run, f"val_{i:03d}")[2].astype(int) for run in "ab")
        assert np.abs(a - b).max() < 200  # the coarser scale rounds 4 m and 10 m to themselves
    with pytest.raises(
        ValueError, match=r"depth: the network was trained on 1 channel.* in m, .* has 1 channel.* in mm"
    ):
        predict(
            configured(
                trained, tmp_path / "c", data=str(stored_otherwise(tmp_path / "mm", 1.0, "mm")), split="val"
            )
        )


@pytest.mark.parametrize("changes", [{"fusion": "agreement"}, {"window": (32, 32)}, {"size": (16, 24)}])
def test_options_change_the_prediction_but_not_its_size(trained, tmp_path, changes):
    predict(configured(trained, tmp_path / "plain", *NAMES))
    predict(configured(trained, tmp_path / "other", *NAMES, **changes))
    plain, other = (read(tmp_path / run, "val_000") for run in ("plain", "other"))
    assert other[0].shape == plain[0].shape and not np.array_equal(plain[2], other[2])


def test_resizing_is_undone_at_the_files_own_size(trained, tmp_path):
    """Images of one value each: whatever resizes them, the network sees that value on 16 × 24, and the mask
    is 32 × 48.
    """
    stored = {"rgb": np.uint8([70, 150, 200]), "depth": np.uint16([2000]), "aolp": np.uint8([20, 220])}
    for name, pixel in stored.items():
        write_image(tmp_path / name / f"s.{'npy' if name == 'aolp' else 'png'}", np.tile(pixel, (32, 48, 1)))
    network, images = load_segmenter(trained / "net.safetensors"), {}
    for name, m in network.modalities.items():
        value = torch.from_numpy(m.to_physical(stored[name]))[:, None, None].expand(-1, 16, 24)
        images[name] = m.to_network(value)[None]
    with torch.no_grad():
        logits = torch.stack(list(network.modality_logits(images).values())).mean(0)
    large = F.interpolate(logits, (32, 48), mode="bilinear")[0]
    predict(configured(trained, tmp_path / "out", *NAMES, files=tmp_path, size=(16, 24)))
    mask, _, confidence = read(tmp_path / "out", "s")
    assert np.array_equal(mask, large.argmax(0).numpy())
    assert np.abs(confidence / 65535 - large.softmax(0).amax(0).numpy()).max() < 1e-4 and confidence.std() > 0


def test_sparse_sensors_are_resized_without_inventing_ranges_colours_by_averaging(trained):
    """Returns of 4 m between pixels without any: halves between them would be ranges that nobody measured.
    Stripes become grey.
    """
    modalities = load_segmenter(trained / "net.safetensors").modalities
    ranges = 4.0 * (torch.rand(1, 32, 48, generator=torch.Generator().manual_seed(0)) < 0.3)
    stripes = (torch.arange(48) % 2).float().expand(3, 32, 48)
    seen = network_input({"s": {"rgb": stripes, "depth": ranges}}, modalities, (16, 24), "cpu")
    none, four = modalities["depth"].to_network(torch.tensor([[[0.0, 4.0]]])).flatten().tolist()
    assert seen["depth"].shape == (1, 1, 16, 24) and set(seen["depth"].unique().tolist()) == {none, four}
    grey = modalities["rgb"].to_network(torch.full((3, 1, 1), 0.5))
    assert (
        (seen["rgb"][0] - grey).abs().max() < 0.5 < (modalities["rgb"].to_network(stripes) - grey).abs().max()
    )


def times(out):
    return {
        path.relative_to(out).as_posix(): path.stat().st_mtime_ns
        for path in out.rglob("*.png")
        if path.name != "sheet.png"
    }


def test_a_second_run_does_only_what_is_missing(trained, tmp_path):
    out, files = tmp_path / "out", tmp_path / "files"
    shutil.copytree(trained / "files", files)
    (files / "depth" / "val_001.png").rename(tmp_path / "kept.png")
    run = configured(trained, out, "rgb", "depth", files=files)
    predict(run)
    before = times(out)
    predict(run)
    assert times(out) == before
    (out / "confidence" / "val_003.png").unlink()
    (tmp_path / "kept.png").rename(
        files / "depth" / "val_001.png"
    )  # the sample has one sensor more: its masks are of another kind now
    predict(run)
    changed = {name.split("/")[1] for name, time in times(out).items() if before.get(name) != time}
    assert changed == {"val_001.png", "val_003.png"}
    with pytest.raises(ValueError, match="holds predictions of another fusion.*--overwrite"):
        predict(replace(run, fusion="agreement"))
    predict(replace(run, fusion="agreement", overwrite=True, sensors=run.sensors[:1]))
    assert not set(times(out).values()) & set(before.values()) and len(times(out)) == len(before)
    record = json.loads((out / "classes.json").read_text())
    assert record["fusion"] == "agreement" and all(
        part["sensors"] == ["rgb"] for part in record["samples"].values()
    )
    (out / "classes.json").write_text("{")
    with pytest.raises(
        ValueError, match="classes.json: .*not a record of predictions .*--overwrite.*damaged"
    ):
        predict(run)
    (out / "classes.json").unlink()
    for overwrite in (False, True):  # these may be anybody's
        with pytest.raises(ValueError, match="that this command did not make"):
            predict(replace(run, overwrite=overwrite))
    assert len(times(out)) == len(before)


@pytest.mark.parametrize("kind", ["files", "data"])
def test_other_images_under_the_same_names_are_predicted_anew(trained, tmp_path, kind):
    """Masks of images that are no longer there would pass for masks of those that are."""
    shutil.copytree(trained / "files", tmp_path / "files")
    shutil.copytree(trained / "toy", tmp_path / "toy")
    run = configured(trained, tmp_path / "out", "rgb", "depth", files=tmp_path / "files")
    if kind == "data":
        run = replace(run, sensors=(), data=str(tmp_path / "toy"), split="val")
    predict(run)
    before, image = times(tmp_path / "out"), tmp_path / ("toy" if kind == "data" else kind) / "rgb"
    shutil.copy(image / "val_001.png", image / "val_003.png")
    os.utime(image / "val_002.png")  # touched, with the same content
    predict(run)
    changed = {name for name, time in times(tmp_path / "out").items() if before[name] != time}
    assert changed == {f"{folder}/val_003.png" for folder in ("masks", "overlays", "confidence")}
    if kind == "data":  # the same files, read by another scale
        path = tmp_path / "toy" / "dataset.json"
        path.write_text(path.read_text().replace("0.00390625", "0.005"))
        before = times(tmp_path / "out")
        predict(run)
        assert not set(before.items()) & set(times(tmp_path / "out").items())
    predict(replace(run, out=str(tmp_path / "fresh")))
    for fresh, again in zip(read(tmp_path / "fresh", "val_003"), read(tmp_path / "out", "val_003")):
        assert np.array_equal(fresh, again)


@pytest.mark.parametrize("options", [{}, {"fusion": "agreement"}, {"window": (32, 32)}])
def test_logits_that_are_not_finite_are_of_no_class(trained, tmp_path, options):
    """Finite weights, whose logits overflow: no mask is written, and the error names the samples."""
    network = load_segmenter(trained / "net.safetensors")
    with torch.no_grad():
        network.head.classify.weight *= 1e37
    save_segmenter(network, tmp_path / "net.safetensors")
    run = replace(configured(trained, tmp_path / "out", *NAMES, **options), batch_size=1)
    with pytest.raises(ValueError, match="val_000: .*logits.* not finite"):
        predict(replace(run, checkpoint=str(tmp_path / "net.safetensors")))
    assert not (tmp_path / "out" / "masks").exists()
    with pytest.raises(SystemExit, match="error: val_000.*logits.* not finite"):
        cli.main(
            f"evaluate {tmp_path}/net.safetensors --data {trained}/toy --no-progress --device cpu".split()
        )


@pytest.mark.parametrize("kind", ["files", "data"])
def test_images_unlike_those_of_the_training_are_pointed_out(trained, tmp_path, kind, capsys):
    """Depth of files, and of a data set, that are a thousandth of what they were: another unit."""
    if kind == "files":
        shutil.copytree(trained / "files", tmp_path / "files")
        for file in (tmp_path / "files" / "depth").iterdir():
            write_image(file, (np.array(Image.open(file)) // 1000)[..., None])
        where = [f"{name}={tmp_path}/files/{name}" for name in NAMES]
    else:
        shutil.copytree(trained / "toy", tmp_path / "toy")
        description = json.loads((tmp_path / "toy" / "dataset.json").read_text())
        description["modalities"][1]["scale"] /= 1000
        (tmp_path / "toy" / "dataset.json").write_text(json.dumps(description))
        where = ["--data", str(tmp_path / "toy"), "--split", "val"]
    command = ["predict", str(trained / "net.safetensors"), *where, "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="error: depth has values of 0 to .* m, in training .* to "):
        cli.main([*command, "--strict"])
    assert not (tmp_path / "out" / "masks").exists()
    cli.main(command)
    assert "warning: depth has values of " in capsys.readouterr().err
    cli.main(
        [*command[:2], *(f"{n}={trained}/files/{n}" for n in NAMES), "--out", f"{tmp_path}/b", "--strict"]
    )
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("writes", [1, 2, 3, 5])
def test_a_run_that_was_cut_off_goes_on_to_the_same_end(trained, tmp_path, monkeypatch, writes):
    run, plain, count = configured(trained, tmp_path / "out", *NAMES), Image.Image.save, []

    def save(self, path, *arguments, **options):
        count.append(path)
        if len(count) == writes:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        return plain(self, path, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(KeyboardInterrupt):
        predict(run)
    monkeypatch.setattr(Image.Image, "save", plain)
    assert len(times(tmp_path / "out")) == writes - 1
    predict(run)
    predict(replace(run, out=str(tmp_path / "whole")))
    for name in times(tmp_path / "whole"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def spoil(files: Path, problem: str) -> None:
    """Make one file of the folder wrong."""
    rgb, depth, aolp = (
        files / "rgb" / "val_000.png",
        files / "depth" / "val_000.png",
        files / "aolp" / "val_000.npy",
    )
    if problem == "grey":
        Image.open(rgb).convert("L").save(rgb)
    elif problem == "alpha":
        Image.open(rgb).convert("RGBA").save(rgb)
    elif problem == "palette":
        Image.open(rgb).convert("P").save(rgb)
    elif problem == "8 bit":
        Image.fromarray(np.zeros((32, 48), np.uint8)).save(depth)
    elif problem == "four bits":  # values 0 to 15, which Pillow opens as 0 to 255
        rgb.write_bytes(png(np.zeros((32, 24), np.uint8), (32, 48), bits=4, kind=0))
    elif problem == "16 bit colour":
        rgb.write_bytes(png(np.full((32, 48, 3), 40000, np.uint16)))
    elif problem == "sideways":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(rgb).save(rgb.with_suffix(".jpg"), exif=exif)
        rgb.unlink()
    elif problem == "pages":
        Image.open(rgb).save(rgb.with_suffix(".tif"), save_all=True, append_images=[Image.open(rgb)])
        rgb.unlink()
    elif problem == "half":
        rgb.write_bytes(rgb.read_bytes()[:300])
    elif problem == "text":
        rgb.write_text("not an image")
    elif problem == "huge":
        rgb.write_bytes(png(np.zeros((1, 1, 3), np.uint16), (2**20, 2**20)))
    elif problem == "size":
        Image.open(rgb).resize((24, 16)).save(rgb)
    elif problem == "twice":
        Image.open(rgb).save(rgb.with_suffix(".jpg"))
    elif problem == "names":
        for file in (files / "depth").iterdir():
            file.rename(file.with_name(f"depth_{file.name}"))
    elif problem == "empty":
        for file in (files / "depth").iterdir():
            file.unlink()
    elif problem == "float64":
        np.save(aolp, np.zeros((32, 48, 2)))
    elif problem == "channels":
        np.save(aolp, np.zeros((32, 48, 3), np.uint8))
    elif problem == "dimensions":
        np.save(aolp, np.zeros((1, 32, 48, 2), np.uint8))
    elif problem == "pickle":
        np.save(aolp, np.array([{"a": 1}], object))
    elif problem == "header":
        aolp.write_bytes(aolp.read_bytes().replace(b"(32, 48, 2)", b"(32, 48000000, 2)"[:11]))
        aolp.write_bytes(aolp.read_bytes()[:1000])


def png(array: np.ndarray, claimed=None, bits=16, kind=2) -> bytes:
    """A PNG that Pillow does not write: by default 16 bits a colour channel. Its header may claim another
    size.
    """
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = claimed or array.shape[:2]
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in array)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "problem, message",
    [
        (
            "grey",
            "rgb/val_000.png: expected uint8 with 3 channels, found uint8 with 1 channel; convert the file",
        ),
        ("alpha", "rgb/val_000.png: expected uint8 with 3 channels, found uint8 with 4"),
        ("palette", "found uint8 with 1 channel and a palette"),
        ("four bits", "found uint8 of 4 bits with 1"),
        ("8 bit", "depth/val_000.png: expected uint16 with 1 channel, found uint8 with 1"),
        ("16 bit colour", "found uint16 with 3"),
        ("sideways", "val_000.jpg: stored on its side"),
        ("pages", "val_000.tif: holds 2 images; store one"),
        ("half", "rgb/val_000.png: cannot be read"),
        ("text", "rgb/val_000.png: cannot be read"),
        ("huge", "rgb/val_000.png: cannot be read (DecompressionBombError"),
        (
            "size",
            "val_000: {{'{files}/rgb/val_000.png': (16, 24), '{files}/depth/val_000.png': (32, 48)",
        ),
        ("twice", "val_000.jpg and val_000.png are one sample's name twice"),
        (
            "names",
            "share the name of a sample ({{'depth': 'depth_val_000', 'rgb': 'val_000'}}); name the files",
        ),
        ("empty", "depth: no image; expected a file, or a folder of files, of .png"),
        ("float64", "aolp/val_000.npy: expected uint8 with 2 channels, found float64 with 2"),
        ("channels", "found uint8 with 3"),
        (
            "dimensions",
            "aolp/val_000.npy: values of type uint8, shape (1, 32, 48, 2); expected numbers (H, W) or (H, W, C)",
        ),
        ("pickle", "aolp/val_000.npy: cannot be read"),
        ("header", "aolp/val_000.npy: cannot be read"),
    ],
)
def test_a_wrong_file_is_named_and_nothing_is_written(trained, tmp_path, problem, message):
    files = tmp_path / "files"
    shutil.copytree(trained / "files", files)
    spoil(files, problem)
    names = ["rgb", "depth"] if problem == "names" else NAMES
    with pytest.raises(SystemExit) as end:
        cli.main(
            [
                "predict",
                str(trained / "net.safetensors"),
                *(f"{n}={files / n}" for n in names),
                "--out",
                str(tmp_path / "out"),
            ]
        )
    assert (
        end.value.code.startswith("error: ")
        and "\n" not in end.value.code
        and message.format(files=files) in end.value.code
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "either as SENSOR=PATH or by --data, one of them"),
        (("rgb={files}/rgb", "--data", "{toy}"), "either as SENSOR=PATH or by --data, one of them"),
        (("rgb",), "'rgb': expected SENSOR=PATH, once for each sensor that is there: rgb, depth, aolp"),
        (("sonar={files}/rgb",), "rgb': expected SENSOR=PATH, once for each sensor"),
        (("rgb={files}/rgb", "rgb={files}/rgb"), "rgb': expected SENSOR=PATH, once for each sensor"),
        (("rgb={files}/nowhere",), "nowhere: no image; expected a file, or a folder of files"),
        (("rgb={toy}/dataset.json",), "dataset.json: no image; expected a file"),
        (("rgb={files}/rgb", "--window", "33", "32"), "--window 33: expected a multiple of 32"),
        (("rgb={files}/rgb", "--stride", "32", "32"), "--stride 32 32 without --window"),
        (("rgb={files}/rgb", "--size", "0", "24"), "--size 0 24: expected two numbers above 0, or 0 0"),
        (("rgb={files}/rgb", "--batch-size", "0"), "--batch-size 0: expected 1 or more"),
        (("--data", "{toy}", "--split", "nowhere"), "no sample in split 'nowhere'"),
        (("--data", "{files}"), "is not a prepared data set"),
    ],
)
def test_wrong_arguments_end_in_one_line(trained, tmp_path, arguments, message):
    filled = [a.format(files=trained / "files", toy=trained / "toy") for a in arguments]
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", str(trained / "net.safetensors"), *filled, "--out", str(tmp_path / "out")])
    assert (
        end.value.code.startswith("error: ") and message in end.value.code and not (tmp_path / "out").exists()
    )


def read_file(path, modality):
    return Source({"x": {"depth": path}}, {"depth": modality}).read("x")["depth"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(trained, tmp_path):
    path = tmp_path / "a.png"
    shutil.copy(trained / "files" / "rgb" / "val_000.png", path)
    path.chmod(0)
    with pytest.raises(ValueError, match="a.png: cannot be read"):
        read_file(path, toy.MODALITIES["rgb"])


@pytest.mark.parametrize(
    "dtype, suffix",
    [
        ("uint8", ".png"),
        ("uint8", ".tif"),
        ("uint16", ".png"),
        ("uint16", ".tif"),
        ("float32", ".tif"),
        ("uint8", ".npy"),
        ("uint16", ".npy"),
        ("float32", ".npy"),
    ],
)
def test_every_stored_type_comes_back_in_physical_units(tmp_path, dtype, suffix):
    modality = replace(toy.MODALITIES["depth"], dtype=dtype, scale=0.5, offset=3.0)
    stored = (np.arange(30).reshape(5, 6) * (1000 if dtype == "uint16" else 1)).astype(dtype)
    path = tmp_path / f"x{suffix}"
    np.save(path, stored) if suffix == ".npy" else Image.fromarray(stored).save(path)
    assert np.array_equal(read_file(path, modality)[0].numpy(), stored * np.float32(0.5) + np.float32(3))


@pytest.mark.parametrize(
    "value, message", [(np.nan, "x.npy: NaN or infinite values"), (-0.5, "x.npy: depth has a negative range")]
)
def test_values_that_cannot_be_are_refused(tmp_path, value, message):
    modality, values = (
        replace(toy.MODALITIES["depth"], dtype="float32", scale=1.0),
        np.ones((5, 6), np.float32),
    )
    values[3, 4] = value
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(ValueError, match=message):
        read_file(tmp_path / "x.npy", modality)
