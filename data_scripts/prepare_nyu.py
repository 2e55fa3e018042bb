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

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import common
import numpy as np
import tyro
from common import Arrays, Sample, Size
from files import check_alone, fetch
from hha import LEVEL, hha
from numpy import ndarray
from PIL import Image

from mmlib.config import Between
from mmlib.data.images import DataError, read_image
from mmlib.data.prepared import Description
from mmlib.modalities import IGNORE_INDEX, SENSORS
from mmlib.runtime import reading

OFFICIAL = {classes: common.read_official(f"nyu{classes}") for classes in (13, 40)}
MODALITIES = OFFICIAL[13].modalities
DEPTH = {"metres": "depth", "inverse": "inverse_depth", "hha": "hha"}  # names of --depth's choices
# Class of the 13, from 1, for each of the 40: class13Mapping.mat of the same repository.
TO_13 = np.array(
    "12 5 6 1 4 9 10 12 13 6 8 6 13 10 6 13 6 7 7 5 7 3 2 6 11 7 7 7 7 7 7 6 7 7 7 7 7 7 6 7".split(), int
)
FRAMES, RAW_IDS, COUNTS = 1449, 894, {"train": 795, "test": 654}
SIZE = (480, 640)
# fx, fy, cx, cy of the colour camera, to which the depth is registered.
KINECT = (518.857901, 519.469611, 325.582449, 253.736166)
METRES = 9.99547 / 255  # a step of --frames' depth
BORDER = 8
BLOCK = 15

MAT, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
MAP40 = "classMapping40.mat"
# Address, bytes and sha256; 0 and "": not known, the content is checked when it is read.
FILES = common.read_facts("nyu_files")
HOW = f"""NYU-Depth-v2: open, no registration. --download fetches into the folder named what is not
there yet; or fetch by hand:
  {FILES[MAT]["url"]}   (3.0 GB)
  {FILES[SPLITS]["url"]}
  {FILES[MAP40]["url"]}
Licence: none stated by the authors; research use."""


@dataclass(frozen=True)
class Options(common.Options):
    """Convert NYU-Depth-v2 to the prepared layout; goes on where an earlier run stopped."""

    unrecorded = (*common.Options.unrecorded, "frames", "download")

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
        return {"size": values["size"]} if self.frames else values

    def inputs(self) -> list[str]:
        return [self.source, self.frames]


EXTRACTED = {"rgb": MODALITIES["rgb"], "depth": replace(SENSORS["depth"], high=10.0)}  # of --frames


def division(position: int) -> str:
    """Split of the frame at this position in the sorted list of training frames; of every 8 blocks the 4th is
    val, the 8th test.
    """
    return {3: "val", 7: "test"}.get(position // BLOCK % 8, "train")


def train_split(position: int, options: Options) -> str:
    """Split of the frame at this position of the official train."""
    return "val" if options.val == "blocks" and division(position) == "val" else "train"


def description(options: Options) -> Description:
    """What is written; of --frames as it has always been, so that records made with it stay valid."""
    official = OFFICIAL[options.classes]
    if options.frames:
        extra = {"division": f"blocks of {BLOCK} consecutive frames, own division"}
        source = official.source.replace("frames", "training split")
        return replace(official, modalities=EXTRACTED, source=source, extra=extra)
    extra = official.extra | {"border": f"{options.border} pixels cut off"}
    extra["hha"] = extra["hha"].replace("estimated", options.gravity)
    if options.val == "none":
        extra["val"] = "none"
    if options.raw_depth:
        extra["depth"] = "raw, 0 = no measurement"
    if "hha" not in options.depth:
        del extra["hha"]
    modalities = {"rgb": MODALITIES["rgb"]}
    for name in (DEPTH[choice] for choice in options.depth):
        modalities[name] = replace(MODALITIES[name], sparse=MODALITIES[name].sparse or options.raw_depth)
    return replace(official, modalities=modalities, extra=extra)


# ---- the official files: MATLAB 5, and 7.3, which is HDF5 with the axes in reverse order ----


def read_mat(path: Path, name: str) -> ndarray:
    """Array ``name`` of a version-5 .mat file, flat, as int64.

    Raises:
        DataError: damaged, of another kind, or without this array of whole numbers.
    """
    from scipy.io import loadmat

    with reading(path, f"a MATLAB 5 file with whole numbers {name}", DataError):
        array = np.ravel(loadmat(path)[name])
        numbers = array.astype(np.int64)
        if not np.array_equal(numbers, array):
            raise ValueError("not whole numbers")
    return numbers


def open_arrays(path: Path, wanted: dict, what: str):
    """The HDF5 file, checked; its chunk cache is large enough to unpack each chunk once when frames are read
    in order.

    Args:
        wanted: shape of a frame and dtype by name of the array; all have one number of frames.
        what: the file that is expected.

    Raises:
        DataError: h5py is missing; the file is cut off, of another version, or its arrays are not as
            documented.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(f'{path}: reading it needs h5py; pip install -e ".[data]"') from error
    cache = 1 << 20
    with reading(path, f"MATLAB 7.3 (HDF5), {what} (fetch it again)", DataError):
        with h5py.File(path) as file:
            check_alone(file)
            count = len(file[next(iter(wanted))])
            for name, (shape, dtype) in wanted.items():
                array = file[name]
                if array.shape != (count, *shape) or array.dtype != dtype:
                    raise TypeError(
                        f"{name} is {array.dtype} {array.shape}; expected {dtype} "
                        f"{(count, *shape)}, MATLAB's axes in reverse order"
                    )
                if array.chunks:  # twice those that lie across one frame, for threads at the border of two
                    across = np.ceil(np.divide(shape, array.chunks[1:])).prod()
                    cache = max(cache, int(2 * across * np.prod(array.chunks) * array.dtype.itemsize))
        return h5py.File(path, rdcc_nbytes=min(cache, 1 << 29), rdcc_nslots=100_003)


def cells(file, name: str) -> list[str]:
    """Texts of a MATLAB cell array, which HDF5 holds as references to arrays of characters; [] where there is
    no such array.
    """
    with reading(f"{file.filename}: {name}", "a cell array of texts (fetch the file again)", DataError):
        references = file[name][()].ravel() if name in file else []
        return ["".join(map(chr, file[cell][()].ravel())) for cell in references]


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
    forty = OFFICIAL[40].classes
    wrong = [name for name, id in zip(names, to40) if name in forty[:37] and forty[id - 1] != name]
    if wrong:
        raise DataError(
            f"{folder / MAP40}: maps {wrong[0]!r} to another class than its own; the file belongs to other "
            "labels"
        )
    final = to40 if classes == 40 else TO_13[to40 - 1]
    return np.concatenate([[IGNORE_INDEX], final - 1]).astype(np.uint8)


def read_splits(path: Path) -> dict:
    """Official frame numbers, from 1, of train and test, sorted.

    Raises:
        DataError: other counts, numbers out of range, or a frame in both.
    """
    splits = {split: np.sort(read_mat(path, f"{split}Ndxs")) for split in COUNTS}
    counts = {split: len(numbers) for split, numbers in splits.items()}
    every = np.sort(np.concatenate([*splits.values()]))
    if counts != COUNTS or not np.array_equal(every, np.arange(FRAMES) + 1):
        raise DataError(f"{path}: {counts}; expected {COUNTS}, which together are 1 to {FRAMES}, each once")
    return splits


def read_frame(file, table: ndarray, options: Options, sample: Sample) -> Arrays:
    """Stored arrays and label of one frame of the official file, rim cut off.

    Raises:
        DataError: damaged data, a label above 894, a depth that is none.
    """
    where, depth = f"{file.filename}, frame {sample.id}", "rawDepths" if options.raw_depth else "depths"
    with reading(where, "a frame (fetch the file again)", DataError):
        arrays = [file[name][int(sample.id) - 1] for name in ("images", depth, "labels")]
    rgb, metres, ids = (array.T for array in arrays)  # (column, row) -> (row, column)
    metres = metres.astype(np.float64)
    if ids.max() > RAW_IDS or not (metres.min() >= 0 and metres.max() <= 10):  # NaN is neither
        raise DataError(
            f"{where}: label id {ids.max()}, {depth} from {metres.min()} to {metres.max()}; expected 0 to "
            f"{RAW_IDS} and metres between 0 and 10"
        )
    images, level = {"rgb": rgb}, LEVEL if options.gravity == "level" else None
    for choice in options.depth:
        planes, name = metres[..., None], DEPTH[choice]
        if choice == "hha":
            planes = hha(metres, KINECT, level) * (1.0, 1 / 3, 1 / 180)
        elif choice == "inverse":
            planes = np.where(planes > 0, 1 / np.maximum(planes, 1e-3), 0)
        images[name] = MODALITIES[name].to_stored(planes)
    inside = tuple(slice(options.border, side - options.border) for side in SIZE)
    return {name: array[inside] for name, array in images.items()}, table[ids[inside]]


def official_samples(splits: dict, scenes: list[str], count: int, options: Options) -> list[Sample]:
    """One Sample per frame, in the order of the file; its condition is the kind of room."""
    split = dict.fromkeys(splits["test"].tolist(), "test")
    for position, number in enumerate(splits["train"].tolist()):
        split[number] = train_split(position, options)
    scenes = scenes if len(scenes) == count else [""] * count
    return [Sample(f"{n:04d}", split.get(n, "in no split"), scene) for n, scene in enumerate(scenes, 1)]


# ---- extracted frames ----


def read_extracted(folder: Path, size: Size, sample: Sample) -> Arrays:
    """Stored arrays and label of one extracted frame, cropped and resized.

    Raises:
        DataError: a file is missing, damaged, or not of the documented kind and size.
    """
    kinds = {"rgb": ("jpg", 3), "depth": ("png", 1), "label13": ("png", 1)}
    inside = slice(BORDER, -BORDER)
    rgb, depth, label = (
        read_image(folder / name / f"{sample.id}.{ending}", "uint8", planes, SIZE)[inside, inside]
        for name, (ending, planes) in kinds.items()
    )
    if any(size):
        rgb = np.array(Image.fromarray(rgb).resize(size[::-1], Image.Resampling.BOX))
        depth, label = common.nearest(depth, size), common.nearest(label, size)
    metres = EXTRACTED["depth"].to_stored(depth.astype(np.float64) * METRES)
    return {"rgb": rgb, "depth": metres}, label[..., 0]


def prepare_extracted(options: Options):
    fixed = ("source", "download", "classes", "depth", "raw_depth", "gravity", "border", "val")
    changed = [name for name in fixed if getattr(options, name) != getattr(Options(), name)]
    if changed:
        raise DataError(
            "--frames has 13 classes, in-painted depth in metres and its own division; it takes no "
            f"{' and no '.join(changed)}"
        )
    folder = Path(options.frames)
    stems = sorted(path.stem for path in (folder / "rgb").glob("*.jpg"))
    samples = [Sample(stem, division(position)) for position, stem in enumerate(stems)]
    # It resizes by itself: colours are averages over the pixels that a new one covers.
    read = partial(read_extracted, folder, tuple(options.size))
    common.run(replace(options, source=options.frames), description(options), samples, read)


def prepare(options: Options):
    """Convert all frames, or with --check read them back.

    Raises:
        DataError: the source does not look as documented, or a file is unreadable.
    """
    if options.frames:
        return prepare_extracted(options)
    if not options.depth or len(set(options.depth)) != len(options.depth):
        raise DataError(f"--depth {' '.join(options.depth)}: name each depth once, at least one")
    train = Counter(train_split(position, options) for position in range(COUNTS["train"]))
    expected = {**train, "test": COUNTS["test"]}
    if options.check:
        return common.run(options, description(options), [], None, expected)
    if options.source.endswith(".mat"):
        options = replace(options, source=str(Path(options.source).parent))
    if options.download:
        if not options.source:
            raise DataError("--download: name the folder to fetch into")
        for name, facts in FILES.items():
            fetch(path=Path(options.source) / name, progress=options.progress, **facts)
    folder = common.locate(options, (MAT, SPLITS, MAP40), HOW)
    splits = read_splits(folder / SPLITS)
    turned, depth = SIZE[::-1], "rawDepths" if options.raw_depth else "depths"
    wanted = {"images": ((3, *turned), "uint8"), depth: (turned, "float32"), "labels": (turned, "uint16")}
    with open_arrays(
        folder / MAT, wanted, f"the labelled data set {MAT}, {FILES[MAT]['size']} bytes"
    ) as file:
        table = class_table(folder, cells(file, "names"), options.classes)
        samples = official_samples(splits, cells(file, "sceneTypes"), len(file["images"]), options)
        read = partial(read_frame, file, table, options)
        common.run(options, description(options), samples, read, expected)


if __name__ == "__main__":
    common.start(prepare, Options, __doc__)
