"""Prepare MCubeS (Liang et al., CVPR 2022): colour, polarisation and near infrared images of streets in
Japan, 20 materials.

    python data_scripts/prepare_mcubes.py SOURCE --out DIR

SOURCE is multimodal_dataset.zip or the unpacked folder:

    list_folder/{all,train,val,test}.txt                   one stem a line, e.g. outscene1208_2_0000000150
    polL_color/<stem>.png                                  1024 x 1224, RGB of 8 or 16 bits
    polL_dolp/ polL_aolp_sin/ polL_aolp_cos/<stem>.npy     degree of linear polarisation; sine and cosine of
    its angle NIR_warped/<stem>.png  NIR_warped_mask/<stem>.png      near infrared, 8 or 16 bits, and where it
    is invalid (white) GT/<stem>.png                                          uint8, 0..19 = materials, 255 =
    ignore

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

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import common
import numpy as np
from common import Sample

from mmlib.data.images import read_image
from mmlib.data.prepared import DataError, Description, read_description, read_index
from mmlib.modalities import IGNORE_INDEX, SENSORS, Modality

HOW = """MCubeS: multimodal_dataset.zip (9.27 GB), open, no registration. Google Drive asks for a click, so fetch it in a browser:
  https://drive.google.com/file/d/14egTCyC0Pampb7imrXVwaDRffHN7FZxh/view
then give this command the archive, or the folder you unpacked it to. Unpacked it takes 10 to 20 GB (not stated), prepared about 5 GB.
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

CLASSES = [
    "asphalt",
    "concrete",
    "metal",
    "road marking",
    "fabric",
    "glass",
    "plaster",
    "plastic",
    "rubber",
    "sand",
    "gravel",
    "ceramic",
    "cobblestone",
    "brick",
    "grass",
    "wood",
    "leaf",
    "water",
    "human",
    "sky",
]
PALETTE = [
    (44, 160, 44),
    (31, 119, 180),
    (255, 127, 14),
    (214, 39, 40),
    (140, 86, 75),
    (127, 127, 127),
    (188, 189, 34),
    (255, 152, 150),
    (23, 190, 207),
    (174, 199, 232),
    (196, 156, 148),
    (197, 176, 213),
    (247, 182, 210),
    (199, 199, 199),
    (219, 219, 141),
    (158, 218, 229),
    (57, 59, 121),
    (107, 110, 207),
    (156, 158, 222),
    (99, 121, 57),
]


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
    tolerance: float = 0.01
    """Largest |sine² + cosine² - 1| of any pixel."""

    def recorded(self) -> dict:
        return {name: value for name, value in super().recorded().items() if name != "tolerance"}


def modalities(found: dict, options: Options) -> dict[str, Modality]:
    """``found``: "bits" of rgb and nir, and what "angle" the files hold (``look``)."""
    aolp = replace(SENSORS["aolp"], dtype="uint16", scale=STEP, offset=-1.0)
    if options.keep_angle and found["angle"].startswith("single"):
        # The mirrored angle of a is 180° - a where angles run from 0 to 180°: the cosine changes sign. From
        # -90 to 90° it is -a: the sine.
        aolp = replace(
            aolp,
            unit="cos, sin of angle",
            flip_negates=(0,) if found["angle"] == "single, 0 to 180°" else (1,),
            channel_names=("cos angle", "sin angle"),
        )
    images = {
        name: replace(
            SENSORS[name],
            unit="share of full scale",
            dtype=f"uint{found['bits'][name]}",
            scale=1 / (2 ** found["bits"][name] - 1),
        )
        for name in ("rgb", "nir")
    }
    return images | {"dolp": replace(SENSORS["dolp"], dtype="uint16", scale=STEP), "aolp": aolp}


def description(found: dict, options: Options) -> Description:
    return Description(
        "mcubes",
        CLASSES,
        PALETTE,
        modalities(found, options),
        source="MCubeS, Liang et al., CVPR 2022, https://github.com/kyotovision-public/multimodal-material-segmentation",
        licence="repository MIT (c) 2022 Yupeng Liang; the data are not named separately",
        extra={
            "splits": "val.txt and test.txt, train as in options; published code that says val reads test.txt",
            "void": "255"
            + (", and pixels that near infrared does not see" if options.nir_mask == "ignore" else ""),
            "columns": f"the left {LEFT} are dropped, as in all published code; why is not documented",
            "units": "exposure and response of rgb and nir undocumented; dolp is a fraction, noise takes it above 1",
            "found": found,
        },
    )


def stems(path: Path) -> list[str]:
    """Stems of one list.

    Raises:
        DataError: no such file, a line that is no stem, a stem that stands twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: not found; unpack the whole archive")
    names = path.read_text(encoding="utf-8-sig", errors="replace").split()
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII):
            raise DataError(f"{path}: {name!r}; expected stems such as outscene1208_2_0000000150, one a line")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: lists {max(names, key=names.count)} twice; take the list from the archive")
    return names


def samples(root: Path, options: Options) -> list[Sample]:
    """Samples of the three splits; prints what the lists hold.

    Raises:
        DataError: lists that contradict each other, or a listed file that is not there.
    """
    lists = {name: stems(root / "list_folder" / f"{name}.txt") for name in ("all", *COUNTS)}
    for name in COUNTS:
        if strange := set(lists[name]) - set(lists["all"]):
            raise DataError(
                f"{root / 'list_folder' / name}.txt: {min(strange)} is not in all.txt; take the lists from the archive"
            )
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := set(lists[one]) & set(lists[other]):
            raise DataError(
                f"{root / 'list_folder'}: {min(both)} stands in {one}.txt and in {other}.txt; take the lists from the archive"
            )
    rest = [stem for stem in lists["all"] if stem not in {*lists["val"], *lists["test"]}]
    print(
        "lists: "
        + ", ".join(f"{name}.txt {len(names)}" for name, names in lists.items())
        + f"; {len(rest) - len(lists['train'])} of all.txt in no other list; train = {options.train}"
    )
    splits = {
        "train": rest if options.train == "rest" else lists["train"],
        "val": lists["val"],
        "test": lists["test"],
    }
    found = [
        Sample(
            stem,
            split,
            files={
                key: root / folder / f"{stem}.{'npy' if 'polL_' in folder and key != 'rgb' else 'png'}"
                for key, folder in FOLDERS.items()
            },
        )
        for split, names in splits.items()
        for stem in names
    ]
    scenes = {split: {stem.rpartition("_")[0] for stem in names} for split, names in splits.items()}
    shared = sum(stem.rpartition("_")[0] in scenes["train"] for stem in splits["test"])
    print(
        f"{shared} of {len(splits['test'])} test images come from a sequence with training images, by their names"
    )
    return common.complete(found, options)


def bits(paths: Iterable[Path]) -> int:
    """16 if any PNG has 16 bits, else 8; looks at the headers only."""
    for path in paths:
        with open(path, "rb") as file:
            head = file.read(26)
        if head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:25] == b"\x10":
            return 16
    return 8


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


def look(found: list[Sample], options: Options) -> dict:
    """Bits of colour and near infrared (of all files), and what the angle files hold (of eight images spread
    over the set).

    Raises:
        DataError: the signs do not tell, or tell something else than ``options.angle``.
    """
    chosen = [found[i].files for i in np.unique(np.linspace(0, len(found) - 1, 8).astype(int))]
    angle = held((files["sine"], files["cosine"]) for files in chosen)
    print(f"angle files: the signs say {angle or 'nothing clear'}")
    where = f"{chosen[0]['sine'].parent} and {chosen[0]['cosine'].parent.name}"
    if not angle and (options.angle == "auto" or (options.angle == "single" and options.keep_angle)):
        raise DataError(
            f"{where}: the signs do not tell whether they hold the angle or its double; give --angle, without --keep-angle"
        )
    if angle and options.angle not in ("auto", angle[:6]):
        raise DataError(f"{where}: by their signs they hold: {angle}; --angle says {options.angle}")
    return {
        "bits": {name: bits(sample.files[name] for sample in found) for name in ("rgb", "nir")},
        "angle": angle or options.angle,
    }


def deep(path: Path, planes: int, want: int) -> np.ndarray:
    """(H, W, planes) as uint8 or uint16; 8 bits become 16 exactly: v / 255 = 257 v / 65535."""
    if bits([path]) == 16:
        return read_image(path, "uint16", planes, SIZE)
    array = read_image(path, "uint8", planes, SIZE)
    return array if want == 8 else array * np.uint16(257)


def polarisation(sample: Sample, doubled: bool, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
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
            f"{sample.files['dolp']}: {degree.min():.3g} to {degree.max():.3g}; expected fractions, 0 to 1 but for noise"
        )
    length = sine**2 + cosine**2
    off = np.abs(length - 1).max()
    if not off <= tolerance:
        both = f"{sample.files['sine']} and {sample.files['cosine']}"
        found = f"{length.min():.3g} to {length.max():.3g}"
        raise DataError(
            f"{both}: sine² + cosine² is {found}; expected 1 at every pixel, give --tolerance {off:.2g} to accept it"
        )
    if doubled:
        cosine, sine = cosine**2 - sine**2, 2 * sine * cosine
    return degree[..., None], np.stack([cosine, sine], 2)


def read(sample: Sample, found: dict, options: Options) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Stored images (H, W, C) and label (H, W) of one sample.

    Raises:
        DataError: a file is missing, damaged, of another kind or size, or has an unknown id.
    """
    kinds = modalities(found, options)
    images = {
        name: deep(sample.files[name], planes, found["bits"][name])
        for name, planes in (("rgb", 3), ("nir", 1))
    }
    degree, angle = polarisation(
        sample, found["angle"].startswith("single") and not options.keep_angle, options.tolerance
    )
    images |= {"dolp": kinds["dolp"].to_stored(degree), "aolp": kinds["aolp"].to_stored(angle)}
    path = sample.files["label"]
    label = common.map_ids(
        read_image(path, None, 1, SIZE, palette=True)[..., 0],
        {id: id for id in (*range(len(CLASSES)), IGNORE_INDEX)},
        path,
    )
    mask = read_image(sample.files["mask"], None, (1, 3, 4), SIZE, palette=True)[
        ..., :3
    ]  # a fourth plane would be opacity
    if options.nir_mask == "ignore":
        label[mask.any(2)] = IGNORE_INDEX
    return {
        name: np.ascontiguousarray(image[:, LEFT:]) for name, image in images.items()
    }, np.ascontiguousarray(label[:, LEFT:])


def prepare(options: Options) -> None:
    """Convert all images, or with --check read them back.

    Raises:
        DataError: the source does not look as documented, or a file is unreadable.
    """
    if options.check:
        if not options.out:
            raise DataError("--out is missing: the folder to check")
        found = read_description(options.out).extra.get("found") or {
            "bits": {"rgb": 8, "nir": 8},
            "angle": "double",
        }
        rows, splits = [], [row["split"] for row in read_index(options.out)]
    else:
        root = common.locate(options, ["list_folder", *FOLDERS.values()], HOW)
        rows = samples(root, options)
        splits = [sample.split for sample in rows]
        if not rows:
            raise DataError(f"{root}: no image of list_folder is there")
        found = look(rows, options)
    listed = options.train == "list" and splits.count("train") == LISTED
    expected = COUNTS | ({"train": LISTED} if listed else {})
    common.run(
        options, description(found, options), rows, partial(read, found=found, options=options), expected
    )


if __name__ == "__main__":
    common.start(prepare, Options, __doc__)
