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

from collections.abc import Iterable, Mapping
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
from mmlib.modalities import IGNORE_INDEX

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

OFFICIAL = common.read_official("mcubes")  # with 8 bits of colour and the doubled angle


@dataclass(frozen=True)
class Options(common.Options):
    """Convert MCubeS to the prepared layout; goes on where an earlier run stopped."""

    unrecorded = (*common.Options.unrecorded, "tolerance")

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


def description(facts: dict, options: Options) -> Description:
    """``facts``: "bits" of rgb and nir, and what "angle" the files hold (``look``)."""
    modalities = dict(OFFICIAL.modalities)
    for name, bits in facts["bits"].items():
        modalities[name] = replace(modalities[name], dtype=f"uint{bits}", scale=1 / (2**bits - 1))
    if options.keep_angle and facts["angle"].startswith("single"):
        # The mirrored angle of a is 180° - a where angles run from 0 to 180°: the cosine changes sign. From
        # -90 to 90° it is -a: the sine.
        negated = (0,) if facts["angle"] == "single, 0 to 180°" else (1,)
        plain = {"unit": "cos, sin of angle", "channel_names": ("cos angle", "sin angle")}
        modalities["aolp"] = replace(modalities["aolp"], flip_negates=negated, **plain)
    extra = OFFICIAL.extra | ({"void": "255"} if options.nir_mask == "keep" else {}) | {"found": facts}
    return replace(OFFICIAL, modalities=modalities, extra=extra)


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
    rest = [stem for stem in lists["all"] if stem not in {*lists["val"], *lists["test"]}]
    counted = ", ".join(f"{name}.txt {len(names)}" for name, names in lists.items())
    spare = len(rest) - len(lists["train"])
    print(f"lists: {counted}; {spare} of all.txt in no other list; train = {options.train}")
    if options.train == "rest":
        splits["train"] = rest
    listed = []
    for split, stems in splits.items():
        for stem in stems:
            files = {}
            for key, name in FOLDERS.items():
                ending = "npy" if key in ("dolp", "sine", "cosine") else "png"
                files[key] = root / name / f"{stem}.{ending}"
            listed.append(Sample(stem, split, files=files))
    scenes = {stem.rpartition("_")[0] for stem in splits["train"]}
    shared = sum(stem.rpartition("_")[0] in scenes for stem in splits["test"])
    total = len(splits["test"])
    print(f"{shared} of {total} test images come from a sequence with training images, by their names")
    return common.complete(listed, options)


def bits(paths: Iterable[Path]) -> int:
    """The most bits of any PNG, 8 or 16; looks at the headers only."""
    return max(8, *(read_header(path).bits for path in paths))


def held(pairs: Iterable[tuple]) -> str:
    """What pairs of sine and cosine files hold: "double", "single, 0 to 180°", "single, -90 to 90°", or "" =
    cannot be told.

    An orientation is one of half a circle of angles. Over 0 to 180° a sine is never negative, over -90 to 90°
    a cosine is not; twice the angle goes all round, and over a few images a good part of either is negative.
    """
    negative = [
        [(read_image(path, None, 1, SIZE)[:, LEFT:] < -0.001).mean() for path in pair] for pair in pairs
    ]
    sine, cosine = np.mean(negative, 0)
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
    looked_at = [sample.files for sample in common.evenly_spaced(listed, 8)]
    if not listed:
        raise DataError("no image that list_folder lists is there")
    angle = held((files["sine"], files["cosine"]) for files in looked_at)
    print(f"angle files: the signs say {angle or 'nothing clear'}")
    where = f"{looked_at[0]['sine'].parent} and {looked_at[0]['cosine'].parent.name}"
    unclear = options.angle == "auto" or (options.angle == "single" and options.keep_angle)
    if unclear and not angle or angle and options.angle not in ("auto", angle[:6]):
        raise DataError(
            f"{where}: by their signs they hold {angle or 'nothing clear'}; --angle says {options.angle}; "
            f"give --angle as "
            "the files are, and no --keep-angle where the signs are not clear"
        )
    depths = {name: bits(sample.files[name] for sample in listed) for name in ("rgb", "nir")}
    return {"bits": depths, "angle": angle or options.angle}


def deep(path: Path, planes: int, want: int) -> ndarray:
    """(H, W, planes) as uint8 or uint16; 8 bits become 16 exactly: v / 255 = 257 v / 65535."""
    array = read_image(path, f"uint{bits([path])}", planes, SIZE)
    return array * np.uint16(257) if array.dtype == np.uint8 and want == 16 else array


def polarisation(files: Mapping, doubled: bool, tolerance: float) -> tuple:
    """(degree (H, W, 1), cosine and sine (H, W, 2) of twice the angle, or as the files hold it).

    Raises:
        DataError: a degree that is no fraction, or a sine and cosine that belong to no angle.
    """
    degree, sine, cosine = (
        read_image(files[name], None, 1, SIZE).astype(np.float64) for name in ("dolp", "sine", "cosine")
    )
    if degree.min() < 0 or degree.max() > 2:
        raise DataError(
            f"{files['dolp']}: {degree.min():.3g} to {degree.max():.3g}; expected fractions, "
            "0 to 1 but for noise"
        )
    length = sine**2 + cosine**2
    off = np.abs(length - 1).max()
    if not off <= tolerance:
        raise DataError(
            f"{files['sine']} and {files['cosine']}: sine² + cosine² is {length.min():.3g} to "
            f"{length.max():.3g}; expected 1 at every pixel, give --tolerance {off:.2g} to accept it"
        )
    if doubled:
        cosine, sine = cosine**2 - sine**2, 2 * sine * cosine
    return degree, np.concatenate([cosine, sine], 2)


def read(sample: Sample, official: Description, options: Options) -> Arrays:
    """Stored images (H, W, C) and label (H, W) of one sample.

    Raises:
        DataError: a file is missing, damaged, of another kind or size, or has an unknown id.
    """
    files, kinds, facts = sample.files, official.modalities, official.extra["found"]
    doubled = facts["angle"].startswith("single") and not options.keep_angle
    degree, angle = polarisation(files, doubled, options.tolerance)
    images = {
        "rgb": deep(files["rgb"], 3, facts["bits"]["rgb"]),
        "nir": deep(files["nir"], 1, facts["bits"]["nir"]),
        "dolp": kinds["dolp"].to_stored(degree),
        "aolp": kinds["aolp"].to_stored(angle),
    }
    label = common.read_ids(files["label"], {id: id for id in (*range(20), IGNORE_INDEX)}, SIZE)
    mask = read_image(files["mask"], None, (1, 3, 4), SIZE, palette=True)[..., :3]  # the fourth is opacity
    if options.nir_mask == "ignore":
        label[mask.any(2)] = IGNORE_INDEX
    return {name: image[:, LEFT:] for name, image in images.items()}, label[:, LEFT:]


def prepare(options: Options):
    """Convert all images, or with --check read them back.

    Raises:
        DataError: the source does not look as documented, or a file is unreadable.
    """
    listed = common.list_samples(options, samples, ["list_folder", *FOLDERS.values()], HOW)
    if options.check:
        facts = read_description(options.out).extra.get("found")
        facts = facts or {"bits": {"rgb": 8, "nir": 8}, "angle": "double"}
    else:
        facts = look(listed, options)
    described, counts = description(facts, options), dict(COUNTS)
    if options.train == "list" and sum(sample.split == "train" for sample in listed) == LISTED:
        counts["train"] = LISTED
    common.run(options, described, listed, partial(read, official=described, options=options), counts)


if __name__ == "__main__":
    common.start(prepare, Options, __doc__)
