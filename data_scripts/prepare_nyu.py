"""Prepare NYU-Depth-v2 (Silberman et al., ECCV 2012): colour and depth of rooms, 13 or 40 classes.

    python data_scripts/prepare_nyu.py FOLDER --out DIR [--classes 13|40] [--depth metres inverse hha]
                                       [--raw-depth] [--download]
    python data_scripts/prepare_nyu.py --frames FOLDER --out DIR [--size 120 160]

FOLDER holds nyu_depth_v2_labeled.mat (1449 frames of 480 x 640), splits.mat and classMapping40.mat;
--download fetches what is missing. The first is HDF5 and so has MATLAB's axes in reverse: frames are
transposed, never turned, and read one by one. Its labels, 0 to 894, go to 40 classes by classMapping40.mat
and on to 13; 0, void, becomes 255. The rim of 8 pixels, white in colour and void in the labels, is cut off.

The official splits, numbered from 1, are train (795) and test (654); there is no val. --val blocks, the
default, takes it out of train in blocks of 15 consecutive frames, since neighbours often show one room: 690,
105 and 654 frames. --val none leaves the 795 whole.

--frames reads a folder of extracted frames of the official training split, of which all of train, val and
test are made:

    rgb/NNNN.jpg      480 x 640 colour; NNNN is the official number
    depth/NNNN.png    uint8, metres = value * 9.99547 / 255
    label13/NNNN.png  uint8, 0..12 = the 13 classes, 255 = ignore

Licence: none stated; research use.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import common
import numpy as np
import tyro
from common import Arrays, Sample
from files import fetch
from hha import LEVEL, hha
from matlab import cells, open_arrays, read_mat
from numpy import ndarray
from PIL import Image

from mmlib.config import Between
from mmlib.data.images import DataError, read_image
from mmlib.data.prepared import Description
from mmlib.modalities import IGNORE_INDEX, SENSORS, Modality

CLASSES = (
    "bed, books, ceiling, chair, floor, furniture, objects, picture, sofa, table, tv, wall, window"
).split(", ")
PALETTE = common.palette(
    "#0000ff #e8582f #00d900 #9400f0 #def117 #ffcdcd #00dfe4 #6a87cc #741c29 #f023eb #00a69c #f98b00 #e1e4c2"
)
CLASSES40 = (
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk, "
    "shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refridgerator, "
    "television, paper, towel, shower curtain, box, whiteboard, person, night stand, toilet, sink, lamp, "
    "bathtub, bag, otherstructure, otherfurniture, otherprop"
).split(", ")
# Class of the 13, from 1, for each of the 40: class13Mapping.mat.
TO_13 = [
    int(word)
    for word in (
        "12 5 6 1 4 9 10 12 13 6 8 6 13 10 6 13 6 7 7 5 7 3 2 6 11 7 7 7 7 7 7 6 7 7 7 7 7 7 6 7"
    ).split()
]
FRAMES, RAW_IDS, OFFICIAL = 1449, 894, {"train": 795, "test": 654}
SIZE = (480, 640)
# fx, fy, cx, cy of the colour camera, to which the depth is registered.
KINECT = (518.857901, 519.469611, 325.582449, 253.736166)
METRES = 9.99547 / 255  # a step of --frames' depth
BORDER = 8
BLOCK = 15

MAT, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
MAP40, MAP13 = "classMapping40.mat", "class13Mapping.mat"
AUTHORS = "https://horatio.cs.nyu.edu/mit/silberman/"
META = "https://github.com/ankurhanda/nyuv2-meta-data/raw/master/"
FILES = {  # address, bytes and sha256; 0 and "": not known, the content is checked when it is read
    MAT: (
        f"{AUTHORS}nyu_depth_v2/{MAT}",
        2_972_037_809,
        "2d724b0c0ab358aa1ce5df855e5bd14a2279ab7202efe22f32a30d612dcb86aa",
    ),
    SPLITS: (
        f"{AUTHORS}indoor_seg_sup/{SPLITS}",
        2626,
        "6e081404491a8bfba2f066beaa9713ef6046f9007aa5f799f2a350506a580cee",
    ),
    MAP40: (META + MAP40, 0, ""),
    MAP13: (META + MAP13, 0, ""),
}
HOW = f"""NYU-Depth-v2: open, no registration. --download fetches into the folder named what is not
there yet; or fetch by hand:
  {FILES[MAT][0]}   (3.0 GB)
  {FILES[SPLITS][0]}
  {FILES[MAP40][0]}
  {FILES[MAP13][0]}
({MAP13} is optional: its table is known here, and compared where the file is.)
Licence: none stated by the authors; research use."""


@dataclass(frozen=True)
class Options(common.Options):
    """Convert NYU-Depth-v2 to the prepared layout; goes on where an earlier run stopped."""

    source: tyro.conf.Positional[str] = ""
    """Folder with nyu_depth_v2_labeled.mat, splits.mat and classMapping40.mat, or that .mat, the others lying
    beside it.
    """
    download: bool = False
    """Fetch the files that FOLDER does not have yet (2.8 GB); an interrupted download goes on."""
    frames: str = ""
    """Instead of FOLDER: a folder of extracted training frames with rgb/, depth/ and label13/. 13 classes and
    metres only.
    """
    classes: Literal[13, 40] = 13
    """Which classes."""
    depth: tuple[Literal["metres", "inverse", "hha"], ...] = ("metres",)
    """One or more of: metres (sensor depth, D); inverse, 1/m (inverse_depth, I); hha (disparity, height,
    angle with gravity; H).
    """
    raw_depth: bool = False
    """Depth as the Kinect measured it, 0 = nothing measured, instead of the authors' in-painted one."""
    gravity: Literal["estimated", "level"] = "estimated"
    """For hha: up is estimated from each image's surfaces, or the camera is taken to be level (its tilt then
    shows as height and angle).
    """
    border: Annotated[int, Between(0, 239)] = BORDER
    """Rows and columns cut off at each side; 0 = keep the white rim, as published tables do: it is void and
    not scored.
    """
    val: Literal["blocks", "none"] = "blocks"
    """Where val comes from, which the data set does not have: blocks of training frames, or nowhere ('train'
    needs one). Never test.
    """

    def recorded(self) -> dict:
        values = super().recorded()
        if self.frames:
            return {"size": values["size"]}
        return {name: value for name, value in values.items() if name not in ("frames", "download")}

    def inputs(self) -> list[str]:
        return [self.source, self.frames]


DEPTH = {
    "metres": replace(SENSORS["depth"], high=10.0, scale=1e-3),
    "inverse": Modality(
        "inverse_depth",
        "I",
        1,
        "1/m",
        0.0,
        1.5,
        SENSORS["depth"].colour,
        "uint16",
        1 / 16384,
        sparse=True,
        channel_names=("inverse depth",),
    ),
    # The planes and ranges of mmlib.unsupervised.pictures' form "hha", so that either can stand in for the
    # other.
    "hha": Modality(
        "hha",
        "H",
        3,
        "1 m/z, height/3 m, angle/180°",
        colour="#56B4E9",
        scale=1 / 255,
        channel_names=("disparity", "height", "angle"),
    ),
}
MODALITIES = {"rgb": SENSORS["rgb"], "depth": replace(SENSORS["depth"], high=10.0)}  # of --frames


def division(position: int) -> str:
    """Split of the frame at this position in the sorted list of training frames; of every 8 blocks the 4th is
    val, the 8th test.
    """
    return {3: "val", 7: "test"}.get(position // BLOCK % 8, "train")


def description(options: Options) -> Description:
    """What is written; of --frames as it has always been, so that records made with it stay valid."""
    source = "NYU-Depth-v2, Silberman et al., ECCV 2012; official "
    licence = "none stated by the authors; research use"
    if options.frames:
        extra = {"division": f"blocks of {BLOCK} consecutive frames, own division"}
        source += "training split"
        return Description("nyu-depth-v2-13", CLASSES, PALETTE, MODALITIES, source, licence, extra)
    extra = {
        "splits": "official, numbered from 1",
        "val": f"own: blocks of {BLOCK} frames of the official train" if options.val == "blocks" else "none",
        "void": "id 0 of the source is 255 here",
        "border": f"{options.border} pixels cut off",
        "depth": "raw, 0 = no measurement" if options.raw_depth else "in-painted by the authors",
    }
    if "hha" in options.depth:
        extra["hha"] = (
            f"own computation with the toolbox's Kinect intrinsics; gravity {options.gravity}; "
            "angle 0 = floor, 1/2 = wall"
        )
    modalities = {"rgb": SENSORS["rgb"]}
    for modality in (DEPTH[name] for name in options.depth):
        modalities[modality.name] = replace(modality, sparse=modality.sparse or options.raw_depth)
    names, palette = CLASSES, PALETTE
    if options.classes == 40:
        names, palette = CLASSES40, [colour(id) for id in range(40)]
    title = f"nyu-depth-v2-{options.classes}"
    return Description(title, names, palette, modalities, source + "frames", licence, extra)


def colour(id: int) -> tuple[int, ...]:
    """Of class ``id``, from 0, of the 40: PASCAL VOC's colours, in which red, green and blue take the bits of
    id + 1 in turn.
    """
    bits = [(id + 1) >> place & 1 for place in range(9)]
    return tuple(sum(bits[3 * k + plane] << (7 - k) for k in range(3)) for plane in range(3))


# ---- the official files ----


def class_table(folder: Path, names: list[str], classes: int) -> ndarray:
    """(895,) uint8: class id of each raw label, 255 for 0.

    Args:
        names: of the raw labels 1 to 894, from the big file; [] = unknown. They guard against a table in
            another order.

    Raises:
        DataError: a mapping file of another length, range or order than the official ones.
    """
    to40 = read_mat(folder / MAP40, "mapClass")
    if to40.shape != (RAW_IDS,) or to40.min() < 1 or to40.max() > 40:
        raise DataError(
            f"{folder / MAP40}: mapClass has {to40.size} values; expected {RAW_IDS} between 1 and 40"
        )
    wrong = [name for name, id in zip(names, to40) if name in CLASSES40[:37] and CLASSES40[id - 1] != name]
    if wrong:
        raise DataError(
            f"{folder / MAP40}: maps {wrong[0]!r} to another class than its own; the file belongs to other "
            "labels"
        )
    if (folder / MAP13).exists() and read_mat(folder / MAP13, "classMapping13").tolist() != TO_13:
        raise DataError(f"{folder / MAP13}: another table than the official one; delete the file to use that")
    final = to40 if classes == 40 else np.array(TO_13)[to40 - 1]
    return np.concatenate([[IGNORE_INDEX], final - 1]).astype(np.uint8)


def read_splits(path: Path) -> dict[str, ndarray]:
    """Official frame numbers, from 1, of train and test, sorted.

    Raises:
        DataError: other counts, numbers out of range, or a frame in both.
    """
    splits = {split: np.sort(read_mat(path, f"{split}Ndxs")) for split in OFFICIAL}
    counts = {split: len(numbers) for split, numbers in splits.items()}
    every = np.sort(np.concatenate([*splits.values()]))
    if counts != OFFICIAL or not np.array_equal(every, np.arange(FRAMES) + 1):
        raise DataError(f"{path}: {counts}; expected {OFFICIAL}, which together are 1 to {FRAMES}, each once")
    return splits


def read_frame(file, table: ndarray, options: Options, sample: Sample) -> Arrays:
    """Stored arrays and label of one frame of the official file, rim cut off.

    Raises:
        DataError: damaged data, a label above 894, a depth that is none.
    """
    where, depth = f"{file.filename}, frame {sample.id}", "rawDepths" if options.raw_depth else "depths"
    try:
        arrays = [file[name][int(sample.id) - 1] for name in ("images", depth, "labels")]
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error}); fetch the file again") from error
    rgb, metres, ids = (array.T for array in arrays)  # (column, row) -> (row, column)
    metres = metres.astype(np.float64)
    if ids.max() > RAW_IDS:
        raise DataError(f"{where}: label id {ids.max()}; expected 0 to {RAW_IDS}")
    if not np.isfinite(metres).all() or metres.min() < 0 or metres.max() > 10:
        raise DataError(
            f"{where}: {depth} from {metres.min()} to {metres.max()}; expected metres between 0 and 10"
        )
    images = {"rgb": rgb}
    for name in options.depth:
        if name == "hha":
            level = LEVEL if options.gravity == "level" else None
            planes = hha(metres, KINECT, level) * (1.0, 1 / 3, 1 / 180)
        elif name == "inverse":
            planes = np.where(metres > 0, 1 / np.maximum(metres, 1e-3), 0)[..., None]
        else:
            planes = metres[..., None]
        images[DEPTH[name].name] = DEPTH[name].to_stored(planes)
    inside = tuple(slice(options.border, side - options.border) for side in SIZE)
    return {name: np.ascontiguousarray(array[inside]) for name, array in images.items()}, table[ids[inside]]


def official_samples(
    splits: dict[str, ndarray], scenes: list[str], count: int, options: Options
) -> list[Sample]:
    """One Sample per frame, in the order of the file; its condition is the kind of room."""
    if count != FRAMES and not options.partial:
        raise DataError(
            f"{options.source}: holds {count} frames; expected {FRAMES}; fetch it again, or give --partial"
        )
    split = dict.fromkeys(splits["test"].tolist(), "test")
    for position, number in enumerate(splits["train"].tolist()):
        split[number] = "val" if options.val == "blocks" and division(position) == "val" else "train"
    numbers = range(1, min(count, FRAMES) + 1)
    return [
        Sample(f"{number:04d}", split[number], scenes[number - 1] if len(scenes) == count else "")
        for number in numbers
    ]


# ---- extracted frames ----


def read_extracted(folder: Path, size: tuple[int, int], sample: Sample) -> Arrays:
    """Stored arrays and label of one extracted frame, cropped and resized.

    Raises:
        DataError: a file is missing, damaged, or not of the documented kind and size.
    """
    rgb = read_image(folder / "rgb" / f"{sample.id}.jpg", "uint8", 3, SIZE)
    depth = read_image(folder / "depth" / f"{sample.id}.png", "uint8", 1, SIZE)
    label = read_image(folder / "label13" / f"{sample.id}.png", "uint8", 1, SIZE)
    inside = slice(BORDER, -BORDER)
    rgb, depth, label = (array[inside, inside] for array in (rgb, depth, label))
    if any(size):
        height, width = size
        rgb = np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BOX))
        rows = ((np.arange(height) + 0.5) * label.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * label.shape[1] / width).astype(int)
        depth, label = (array[rows][:, columns] for array in (depth, label))
    metres = MODALITIES["depth"].to_stored(depth.astype(np.float64) * METRES)
    return {"rgb": rgb, "depth": metres}, np.ascontiguousarray(label[..., 0])


def prepare_extracted(options: Options) -> None:
    fixed = ("source", "download", "classes", "depth", "raw_depth", "gravity", "border", "val")
    changed = [name for name in fixed if getattr(options, name) != getattr(Options(), name)]
    if changed:
        raise DataError(
            "--frames has 13 classes, in-painted depth in metres and its own division; it takes no "
            f"{' and no '.join(changed)}"
        )
    folder = Path(options.frames)
    stems = sorted(path.stem for path in (folder / "rgb").glob("*.jpg"))
    if not stems and not options.check:
        raise DataError(
            f"{folder / 'rgb'}: no .jpg frame found; --frames needs a folder with rgb/, depth/ and label13/"
        )
    samples = [Sample(stem, division(position)) for position, stem in enumerate(stems)]
    # It resizes by itself: colours are averages over the pixels that a new one covers.
    read = partial(read_extracted, folder, tuple(options.size))
    common.run(replace(options, source=options.frames), description(options), samples, read)


def prepare(options: Options) -> None:
    """Convert all frames, or with --check read them back.

    Raises:
        DataError: the source does not look as documented, or a file is unreadable.
    """
    common.check_options(options)
    if options.frames:
        return prepare_extracted(options)
    if not options.depth or len(set(options.depth)) != len(options.depth):
        raise DataError(f"--depth {' '.join(options.depth)}: name each depth once, at least one")
    expected = OFFICIAL
    if options.val == "blocks":
        held_out = sum(division(position) == "val" for position in range(OFFICIAL["train"]))
        expected = OFFICIAL | {"train": OFFICIAL["train"] - held_out, "val": held_out}
    if options.check:
        return common.run(options, description(options), [], None, expected)
    if options.source.endswith(".mat"):
        options = replace(options, source=str(Path(options.source).parent))
    if options.download:
        if not options.source:
            raise DataError("--download: name the folder to fetch into")
        for name, (url, size, sha256) in FILES.items():
            fetch(url, Path(options.source) / name, size, sha256, options.progress)
    folder = common.locate(options, (MAT, SPLITS, MAP40), HOW)
    splits = read_splits(folder / SPLITS)
    turned, depth = SIZE[::-1], "rawDepths" if options.raw_depth else "depths"
    wanted = {"images": ((3, *turned), "uint8"), depth: (turned, "float32"), "labels": (turned, "uint16")}
    with open_arrays(folder / MAT, wanted, f"the labelled data set {MAT}, {FILES[MAT][1]} bytes") as file:
        table = class_table(folder, cells(file, "names"), options.classes)
        samples = official_samples(splits, cells(file, "sceneTypes"), len(file["images"]), options)
        read = partial(read_frame, file, table, options)
        common.run(options, description(options), samples, read, expected)


if __name__ == "__main__":
    common.start(prepare, Options, __doc__)
