"""Prepare NYU-Depth-v2 (Silberman et al., ECCV 2012), 13 classes, RGB and depth.

    python data_scripts/prepare_nyu.py --frames DIR --out DIR [--size 120 160]

``--frames`` reads a folder of extracted frames of the official training split:

    rgb/NNNN.jpg      480 x 640 colour
    depth/NNNN.png    uint8, metres = value * 9.99547 / 255
    label13/NNNN.png  uint8, 0..12 = the 13 classes, 255 = ignore

``NNNN`` is the official 1-based index. Consecutive frames often show one room from nearby viewpoints, so a random division would leak:
the division into train, val and test takes whole blocks of 15 consecutive frames (of every 8 blocks the 4th is val, the 8th test). All
three come from the official training split and none of their scores compares with published test scores.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from tqdm.auto import tqdm

from mmlib.data.prepared import DataError, Description, Writer, read_array
from mmlib.modalities import SENSORS

CLASSES = ["bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv", "wall", "window"]
PALETTE = [(0, 0, 255), (232, 88, 47), (0, 217, 0), (148, 0, 240), (222, 241, 23), (255, 205, 205), (0, 223, 228), (106, 135, 204),
           (116, 28, 41), (240, 35, 235), (0, 166, 156), (249, 139, 0), (225, 228, 194)]  # fmt: skip
METRES = 9.99547 / 255
BORDER = 8  # rows and columns at the rim are white in RGB and void in the labels
BLOCK = 15


@dataclass(frozen=True)
class Options:
    """Convert frames of NYU-Depth-v2 to the prepared layout; goes on where an earlier run stopped."""

    frames: str
    """Folder with rgb/, depth/ and label13/."""
    out: str
    """Folder to write."""
    size: tuple[int, int] = (0, 0)
    """Height and width to resize to after the 8-pixel rim is cut off; 0 0 = keep 464 x 624. 120 160 suits a CPU."""
    progress: bool = True
    """Show a progress bar."""


def division(position: int) -> str:
    """Split of the frame at this position in the sorted list."""
    return {3: "val", 7: "test"}.get(position // BLOCK % 8, "train")


def read_frame(folder: Path, stem: str, size: tuple[int, int]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Stored arrays and label of one frame, cropped and resized.

    Raises:
        DataError: a file is missing, damaged, or not of the documented kind and size.
    """
    path = folder / "rgb" / f"{stem}.jpg"
    try:
        with Image.open(path) as image:
            if image.mode != "RGB":
                raise DataError(f"{path}: expected an RGB image, found mode {image.mode}")
            rgb = np.array(image)
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    metres = read_array(folder / "depth" / f"{stem}.png", "uint8", 1)[..., 0].astype(np.float64) * METRES
    label = read_array(folder / "label13" / f"{stem}.png", "uint8", 1)[..., 0]
    for name, array in (("rgb", rgb), ("depth", metres), ("label13", label)):
        if array.shape[:2] != (480, 640):
            raise DataError(f"{folder / name}, frame {stem}: {array.shape[:2]}; expected (480, 640)")
    rgb, metres, label = (array[BORDER:-BORDER, BORDER:-BORDER] for array in (rgb, metres, label))
    if any(size):
        height, width = size
        rgb = np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BOX))
        rows = ((np.arange(height) + 0.5) * label.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * label.shape[1] / width).astype(int)
        metres, label = metres[rows][:, columns], label[rows][:, columns]
    return {"rgb": rgb, "depth": MODALITIES["depth"].to_stored(metres[..., None])}, np.ascontiguousarray(label)


MODALITIES = {"rgb": SENSORS["rgb"], "depth": replace(SENSORS["depth"], high=10.0)}


def prepare(options: Options) -> None:
    """Convert all frames.

    Raises:
        DataError: the folder does not look as documented, or a file is unreadable.
    """
    folder = Path(options.frames)
    stems = sorted(path.stem for path in (folder / "rgb").glob("*.jpg"))
    if not stems:
        raise DataError(f"{folder / 'rgb'}: no .jpg frame found; --frames needs a folder with rgb/, depth/ and label13/")
    description = Description(
        "nyu-depth-v2-13", CLASSES, PALETTE, MODALITIES, source="NYU-Depth-v2, Silberman et al., ECCV 2012; official training split",
        licence="none stated by the authors; research use", extra={"division": f"blocks of {BLOCK} consecutive frames, own division"},
    )  # fmt: skip
    with Writer(options.out, description) as writer:
        for position, stem in enumerate(tqdm(stems, "prepare", disable=not options.progress)):
            if stem not in writer.done:
                images, label = read_frame(folder, stem, options.size)
                writer.add(stem, division(position), images, label)
    pixels = np.zeros(256, np.int64)
    for path in (Path(options.out) / "label").glob("*.png"):
        pixels += np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
    splits = [division(position) for position in range(len(stems))]
    print(f"{len(stems)} frames: " + ", ".join(f"{splits.count(name)} {name}" for name in ("train", "val", "test")))
    print("share of labelled pixels in %: " + ", ".join(f"{name} {100 * n / pixels[:255].sum():.1f}" for name, n in zip(CLASSES, pixels)))
    print(f"ignored: {100 * pixels[255] / pixels.sum():.1f} % of all pixels")


if __name__ == "__main__":
    try:
        prepare(tyro.cli(Options, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
