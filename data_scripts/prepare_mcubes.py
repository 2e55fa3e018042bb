"""Prepare MCubeS (Liang et al., CVPR 2022): colour, polarisation and near infrared images of streets in
Japan, 20 materials.

    python data_scripts/prepare_mcubes.py SOURCE --out DIR

SOURCE is multimodal_dataset.zip or the unpacked folder:

    list_folder/{all,train,val,test}.txt   one stem a line, e.g. outscene1208_2_0000000150
    polL_color/<stem>.png                  1024 x 1224, RGB of 8 or 16 bits
    polL_dolp/<stem>.npy                   degree of linear polarisation
    polL_aolp_{sin,cos}/<stem>.npy         sine and cosine of its angle
    NIR_warped/<stem>.png                  near infrared, 8 or 16 bits
    NIR_warped_mask/<stem>.png             where it is invalid (white)
    GT/<stem>.png                          uint8, 0..19 = materials, 255 = ignore

Written without the left 192 columns, which every published loader drops. rgb and nir keep the bits of the
source. dolp and aolp are uint16 in steps of 1/32767: wrong by 0.000016 at most, a hundred times below what an
8-bit camera resolves, in half of float32's space (about 5 GB in all). The degree keeps its absolute scale.
The angle is stored as cosine and sine of its double: an angle and the same plus 180 degrees are one
orientation, so sine and cosine of the plain angle jump in the middle of a surface, and a resize would mix +1
and -1 to 0. What the files hold is not documented, but their signs tell (--angle). A mirrored image has the
opposite angle: its sine changes sign.

Pixels that near infrared does not see are ignored for all subsets of sensors (--nir-mask): scores of subsets
compare on one set of pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import common
import numpy as np
from common import Arrays, Sample
from numpy import ndarray

from mmlib.config import AtLeast
from mmlib.data.images import read_header, read_image
from mmlib.data.prepared import DataError, Description, read_description
from mmlib.modalities import IGNORE_INDEX, SENSORS, Modality

HOW = """MCubeS: multimodal_dataset.zip (9.27 GB), open, no registration.
Google Drive asks for a click, so fetch it in a browser:
  https://drive.google.com/file/d/14egTCyC0Pampb7imrXVwaDRffHN7FZxh/view
then give this command the archive, or the folder you unpacked it to.
Unpacked it takes 10 to 20 GB (not stated), prepared about 5 GB.
Licence: the authors' repository is MIT (c) 2022 Yupeng Liang; the data are not named separately."""

SIZE, LEFT = (1024, 1224), 192
COUNTS = {"train": 302, "val": 96, "test": 102}  # of the paper
LISTED = 241  # stems of train.txt in copies whose lists name 439 of the 500 images
FOLDERS = {
    "rgb": "polL_color",
    "dolp": "polL_dolp",
    "sine": "polL_aolp_sin",
    "cosine": "polL_aolp_cos",
    "nir": "NIR_warped",
    "mask": "NIR_warped_mask",
    "label": "GT",
}
STEP = 1 / 32767  # of stored polarisation: 0 and ±1 are exact

CLASSES = (
    "asphalt, concrete, metal, road marking, fabric, glass, plaster, plastic, rubber, sand, gravel, ceramic, "
    "cobblestone, brick, grass, wood, leaf, water, human, sky"
).split(", ")
PALETTE = common.palette(
    "#2ca02c #1f77b4 #ff7f0e #d62728 #8c564b #7f7f7f #bcbd22 #ff9896 #17becf #aec7e8 #c49c94 #c5b0d5 #f7b6d2 "
    "#c7c7c7 #dbdb8d #9edae5 #393b79 #6b6ecf #9c9ede #637939"
)


@dataclass(frozen=True)
class Options(common.Options):
    """Convert MCubeS to the prepared layout; goes on where an earlier run stopped."""

    train: Literal["rest", "list"] = "rest"
    """Training images: rest = all.txt without val.txt and test.txt (the paper's 302), list = train.txt as it
    is (241 in some copies).
    """
    nir_mask: Literal["ignore", "keep"] = "ignore"
    """Pixels without near infrared: ignore their labels, or keep them, as published code that never applies
    the mask.
    """
    angle: Literal["auto", "double", "single"] = "auto"
    """What the sine and cosine files hold: of twice the angle of polarisation, or of the angle; auto = as
    their signs tell.
    """
    keep_angle: bool = False
    """Write cosine and sine as the files hold them, as published networks read them, even where they are of
    the plain angle.
    """
    tolerance: Annotated[float, AtLeast(0)] = 0.01
    """Largest |sine² + cosine² - 1| of any pixel."""

    def recorded(self) -> dict:
        return {name: value for name, value in super().recorded().items() if name != "tolerance"}


def modalities(facts: dict, options: Options) -> dict[str, Modality]:
    """``facts``: "bits" of rgb and nir, and what "angle" the files hold (``look``)."""
    aolp = replace(SENSORS["aolp"], dtype="uint16", scale=STEP, offset=-1.0)
    if options.keep_angle and facts["angle"].startswith("single"):
        # The mirrored angle of a is 180° - a where angles run from 0 to 180°: the cosine changes sign. From
        # -90 to 90° it is -a: the sine.
        negated = (0,) if facts["angle"] == "single, 0 to 180°" else (1,)
        names = ("cos angle", "sin angle")
        aolp = replace(aolp, unit="cos, sin of angle", flip_negates=negated, channel_names=names)
    images = {
        name: replace(SENSORS[name], unit="share of full scale", dtype=f"uint{n}", scale=1 / (2**n - 1))
        for name, n in facts["bits"].items()
    }
    return images | {"dolp": replace(SENSORS["dolp"], dtype="uint16", scale=STEP), "aolp": aolp}


def description(facts: dict, options: Options) -> Description:
    return Description(
        "mcubes",
        CLASSES,
        PALETTE,
        modalities(facts, options),
        source="MCubeS, Liang et al., CVPR 2022, "
        "https://github.com/kyotovision-public/multimodal-material-segmentation",
        licence="repository MIT (c) 2022 Yupeng Liang; the data are not named separately",
        extra={
            "splits": "val.txt and test.txt, train as in options; published code that says val reads "
            "test.txt",
            "void": "255"
            + (", and pixels that near infrared does not see" if options.nir_mask == "ignore" else ""),
            "columns": f"the left {LEFT} are dropped, as in all published code; why is not documented",
            "units": "exposure and response of rgb and nir undocumented; dolp is a fraction, noise takes it "
            "above 1",
            "found": facts,
        },
    )


def samples(root: Path, options: Options) -> list[Sample]:
    """Samples of the three splits; prints what the lists hold.

    Raises:
        DataError: lists that contradict each other, or a listed file that is not there.
    """
    folder = root / "list_folder"
    lists = {
        name: common.read_stems(folder / f"{name}.txt", r"[A-Za-z0-9][\w-]*", "outscene1208_2_0000000150")
        for name in ("all", *COUNTS)
    }
    splits = {name: lists[name] for name in COUNTS}
    for name, stems in splits.items():
        if strange := set(stems) - set(lists["all"]):
            raise DataError(
                f"{folder / name}.txt: {min(strange)} is not in all.txt; take the lists from the archive"
            )
    common.check_disjoint(splits, folder)
    rest = [stem for stem in lists["all"] if stem not in {*lists["val"], *lists["test"]}]
    print(
        "lists: "
        + ", ".join(f"{name}.txt {len(names)}" for name, names in lists.items())
        + f"; {len(rest) - len(lists['train'])} of all.txt in no other list; train = {options.train}"
    )
    if options.train == "rest":
        splits["train"] = rest
    listed = []
    for split, stems in splits.items():
        for stem in stems:
            endings = {key: "npy" if key in ("dolp", "sine", "cosine") else "png" for key in FOLDERS}
            files = {key: root / FOLDERS[key] / f"{stem}.{ending}" for key, ending in endings.items()}
            listed.append(Sample(stem, split, files=files))
    scenes = {stem.rpartition("_")[0] for stem in splits["train"]}
    shared = sum(stem.rpartition("_")[0] in scenes for stem in splits["test"])
    print(
        f"{shared} of {len(splits['test'])} test images come from a sequence with training images, by their "
        "names"
    )
    return common.complete(listed, options)


def bits(paths: Iterable[Path]) -> int:
    """16 if any PNG has 16 bits, else 8; looks at the headers only."""
    return 16 if any(read_header(path).bits == 16 for path in paths) else 8


def held(files: Iterable[tuple[Path, Path]]) -> str:
    """What pairs of sine and cosine files hold: "double", "single, 0 to 180°", "single, -90 to 90°", or "" =
    cannot be told.

    An orientation is one of half a circle of angles. Over 0 to 180° a sine is never negative, over -90 to 90°
    a cosine is not; twice the angle goes all round, and over a few images a good part of either is negative.
    """
    counts = np.zeros(3)
    for sine, cosine in files:
        pair = [read_image(path, None, 1, SIZE)[:, LEFT:, 0] for path in (sine, cosine)]
        counts += [*((values < -0.001).sum() for values in pair), pair[0].size]
    sine, cosine = counts[:2] / max(1, counts[2])
    if min(sine, cosine) > 0.02:
        return "double"
    if max(sine, cosine) > 0.02 and min(sine, cosine) < 1e-4:
        return "single, 0 to 180°" if sine < cosine else "single, -90 to 90°"
    return ""


def look(listed: list[Sample], options: Options) -> dict:
    """Bits of colour and near infrared (of all files), and what the angle files hold (of eight images spread
    over the set).

    Raises:
        DataError: the signs do not tell, or tell something else than ``options.angle``.
    """
    spread = [listed[i].files for i in np.unique(np.linspace(0, len(listed) - 1, 8).astype(int))]
    angle = held((files["sine"], files["cosine"]) for files in spread)
    print(f"angle files: the signs say {angle or 'nothing clear'}")
    where = f"{spread[0]['sine'].parent} and {spread[0]['cosine'].parent.name}"
    if not angle and (options.angle == "auto" or (options.angle == "single" and options.keep_angle)):
        raise DataError(
            f"{where}: the signs do not tell whether they hold the angle or its double; give --angle, "
            "without --keep-angle"
        )
    if angle and options.angle not in ("auto", angle[:6]):
        raise DataError(f"{where}: by their signs they hold: {angle}; --angle says {options.angle}")
    depths = {name: bits(sample.files[name] for sample in listed) for name in ("rgb", "nir")}
    return {"bits": depths, "angle": angle or options.angle}


def deep(path: Path, planes: int, want: int) -> ndarray:
    """(H, W, planes) as uint8 or uint16; 8 bits become 16 exactly: v / 255 = 257 v / 65535."""
    array = read_image(path, f"uint{bits([path])}", planes, SIZE)
    return array * np.uint16(257) if array.dtype == np.uint8 and want == 16 else array


def polarisation(sample: Sample, doubled: bool, tolerance: float) -> tuple[ndarray, ndarray]:
    """(degree (H, W, 1), cosine and sine (H, W, 2) of twice the angle, or as the files hold it).

    Raises:
        DataError: a degree that is no fraction, or a sine and cosine that belong to no angle.
    """
    degree, sine, cosine = (
        read_image(sample.files[name], None, 1, SIZE)[..., 0].astype(np.float64)
        for name in ("dolp", "sine", "cosine")
    )
    if degree.min() < 0 or degree.max() > 2:
        raise DataError(
            f"{sample.files['dolp']}: {degree.min():.3g} to {degree.max():.3g}; expected fractions, 0 to 1 "
            "but for noise"
        )
    length = sine**2 + cosine**2
    off = np.abs(length - 1).max()
    if not off <= tolerance:
        both = f"{sample.files['sine']} and {sample.files['cosine']}"
        extent = f"{length.min():.3g} to {length.max():.3g}"
        raise DataError(
            f"{both}: sine² + cosine² is {extent}; expected 1 at every pixel, give --tolerance {off:.2g} to "
            "accept it"
        )
    if doubled:
        cosine, sine = cosine**2 - sine**2, 2 * sine * cosine
    return degree[..., None], np.stack([cosine, sine], 2)


def read(sample: Sample, facts: dict, options: Options) -> Arrays:
    """Stored images (H, W, C) and label (H, W) of one sample.

    Raises:
        DataError: a file is missing, damaged, of another kind or size, or has an unknown id.
    """
    files, kinds = sample.files, modalities(facts, options)
    doubled = facts["angle"].startswith("single") and not options.keep_angle
    degree, angle = polarisation(sample, doubled, options.tolerance)
    images = {
        "rgb": deep(files["rgb"], 3, facts["bits"]["rgb"]),
        "nir": deep(files["nir"], 1, facts["bits"]["nir"]),
        "dolp": kinds["dolp"].to_stored(degree),
        "aolp": kinds["aolp"].to_stored(angle),
    }
    ids = read_image(files["label"], None, 1, SIZE, palette=True)[..., 0]
    label = common.map_ids(ids, {id: id for id in (*range(len(CLASSES)), IGNORE_INDEX)}, files["label"])
    mask = read_image(files["mask"], None, (1, 3, 4), SIZE, palette=True)[..., :3]  # the fourth is opacity
    if options.nir_mask == "ignore":
        label[mask.any(2)] = IGNORE_INDEX
    images = {name: np.ascontiguousarray(image[:, LEFT:]) for name, image in images.items()}
    return images, np.ascontiguousarray(label[:, LEFT:])


def prepare(options: Options) -> None:
    """Convert all images, or with --check read them back.

    Raises:
        DataError: the source does not look as documented, or a file is unreadable.
    """
    if options.check:
        listed = common.prepared_samples(options)
        facts = read_description(options.out).extra.get("found")
        facts = facts or {"bits": {"rgb": 8, "nir": 8}, "angle": "double"}
    else:
        root = common.locate(options, ["list_folder", *FOLDERS.values()], HOW)
        listed = samples(root, options)
        if not listed:
            raise DataError(f"{root}: no image of list_folder is there")
        facts = look(listed, options)
    complete = options.train == "list" and sum(sample.split == "train" for sample in listed) == LISTED
    expected = COUNTS | ({"train": LISTED} if complete else {})
    convert = partial(read, facts=facts, options=options)
    common.run(options, description(facts, options), listed, convert, expected)


if __name__ == "__main__":
    common.start(prepare, Options, __doc__)
