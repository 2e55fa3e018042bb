"""The NYU converter: every pixel accounted for, blocks kept together, bad folders explained. Real frames where they are at hand."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmlib.data.prepared import PreparedDataset

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "data_scripts" / "prepare_nyu.py"
REAL = ROOT.parent / "shared" / "data" / "nyuv2-train"


def frames(folder: Path, count) -> Path:
    """Frames in the documented layout. Every label pixel encodes its own position; depth is a known ramp."""
    rng = np.random.default_rng(0)
    for name in ("rgb", "depth", "label13"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        stem = f"{i + 3:04d}"
        Image.fromarray(np.full((480, 640, 3), i, np.uint8)).save(folder / "rgb" / f"{stem}.jpg", quality=95)
        Image.fromarray(np.tile(np.arange(480) * 255 // 479, (640, 1)).T.astype(np.uint8)).save(folder / "depth" / f"{stem}.png")
        label = rng.integers(0, 13, (480, 640)).astype(np.uint8)
        label[:100, :100] = 255
        Image.fromarray(label).save(folder / "label13" / f"{stem}.png")
    return folder


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments), "--no-progress"], capture_output=True, text=True)


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


def test_resized_frames_keep_classes_and_depths_unmixed(tmp_path):
    done = run("--frames", frames(tmp_path / "frames", 1), "--out", tmp_path / "out", "--size", 60, 80)
    assert done.returncode == 0, done.stderr
    images, label = PreparedDataset(tmp_path / "out", "train").physical(0)
    assert tuple(label.shape) == (60, 80) and set(np.unique(label)) <= {*range(13), 255}
    levels = np.arange(256) * 9.99547 / 255
    assert all(np.abs(levels - value).min() < 0.5 / 256 + 1e-6 for value in images["depth"].unique().tolist())  # no depth between two


def test_division_keeps_neighbours_together():
    spec = importlib.util.spec_from_file_location("prepare_nyu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["prepare_nyu"] = module
    spec.loader.exec_module(module)
    splits = [module.division(position) for position in range(795)]
    assert [splits.count(name) for name in ("train", "val", "test")] == [600, 105, 90]
    assert all(len(set(splits[first : first + 15])) == 1 for first in range(0, 795, 15))


@pytest.mark.parametrize("damage, message", [
    (lambda f: (f / "depth" / "0003.png").unlink(), "0003.png: not found"),
    (lambda f: (f / "rgb" / "0003.jpg").write_bytes(b"x"), "0003.jpg: cannot be read"),
    (lambda f: Image.fromarray(np.zeros((480, 640), np.uint8)).save(f / "rgb" / "0003.jpg"), "expected an RGB image"),
    (lambda f: Image.fromarray(np.zeros((100, 640), np.uint8)).save(f / "label13" / "0003.png"), "(100, 640); expected (480, 640)"),
    (lambda f: Image.fromarray(np.full((480, 640), 40, np.uint8)).save(f / "label13" / "0003.png"),
     "label id 40 out of range; expected 0 to 12"),
])  # fmt: skip
def test_bad_frames_are_named_and_nothing_is_taken_for_whole(tmp_path, damage, message):
    source = frames(tmp_path / "frames", 2)
    damage(source)
    done = run("--frames", source, "--out", tmp_path / "out")
    assert done.returncode != 0 and done.stderr.startswith("error: ") and message in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(ValueError):
        PreparedDataset(tmp_path / "out")


def test_a_wrong_folder_is_explained(tmp_path):
    done = run("--frames", tmp_path, "--out", tmp_path / "out")
    assert done.returncode != 0 and "no .jpg frame found; --frames needs a folder with rgb/, depth/ and label13/" in done.stderr


@pytest.mark.skipif(not REAL.is_dir(), reason="the real NYU frames are not on this machine (they may not be distributed)")
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
    assert images["rgb"].shape == (3, 464, 624) and 0.3 < float(images["depth"].min()) and float(images["depth"].max()) < 10
    assert set(label.unique().tolist()) <= {*range(13), 255} and 0.2 < float((label != 255).float().mean())
