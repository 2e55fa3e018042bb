"""Prepare MFNet (Ha et al., IROS 2017): colour and thermal images of streets in Tokyo by day and by night, 8
or 9 classes.

    python data_scripts/prepare_mfnet.py SOURCE --out DIR [--classes 8|9]

SOURCE is ir_seg_dataset.zip or the unpacked folder:

    images/<stem>.png   480 x 640, RGBA: the fourth plane is no opacity, it is the thermal image
    labels/<stem>.png   uint8, 0 = unlabelled, 1..8 = classes
    train.txt val.txt test.txt test_day.txt test_night.txt, one stem a line (00001D by day, 00004N by night);
    black_list.txt

Colour and thermal are parted before anything is resized: a resize that takes thermal for opacity changes the
colours. train.txt also lists mirrored copies (<stem>_flip, which the authors' make_flip.py writes); they are
left out, since training mirrors at random. Day and night come from the stem and must agree with test_day.txt
and test_night.txt, which together must be test.txt. Images of black_list.txt (no annotation at all) stay
where the lists have them, as in published results, with the case "unannotated".

The authors state 1,569 images, 820 by day and 749 by night: other totals are an error. How they are divided
is what the lists say; papers train on 784, validate on 392 and test on 393, and another division is printed
as a warning, since scores on it compare with nothing.
Licence: none stated.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import common
import numpy as np
from common import Sample

from mmlib.data.images import read_image
from mmlib.data.prepared import DataError, Description
from mmlib.modalities import SENSORS

HOW = """MFNet: ir_seg_dataset.zip (size not stated), open, no registration.
Google Drive asks for a click, so fetch it in a browser:
  https://drive.google.com/drive/folders/18BQFWRfhXzSuMloUmtiBRFrr6NSrf8Fw
  (project page: https://www.mi.t.u-tokyo.ac.jp/static/projects/mil_multispectral/)
then give this command the archive, or the folder you unpacked it to. Repacked copies with
rgb/*.jpg and ther/*.jpg are not read: they are compressed with loss.
Licence: none stated by the authors; research use."""

SIZE = (480, 640)
TOTALS = {"day": 820, "night": 749}  # stated by the authors
DIVISION = {"train": 784, "val": 392, "test": 393}  # as papers use it
LISTS = ("train", "val", "test", "test_day", "test_night")

CLASSES = "unlabelled, car, person, bike, curve, car_stop, guardrail, color_cone, bump".split(", ")
PALETTE = common.palette("#000000 #400080 #404000 #0080c0 #0000c0 #808000 #404080 #c08080 #c04000")
MODALITIES = {
    "rgb": SENSORS["rgb"],
    "thermal": replace(
        SENSORS["thermal"],
        unit="share of the camera's range",
        low=0.0,
        high=1.0,
        dtype="uint8",
        scale=1 / 255,
        offset=0.0,
    ),
}


@dataclass(frozen=True)
class Options(common.Options):
    """Convert MFNet to the prepared layout; goes on where an earlier run stopped."""

    classes: Literal[8, 9] = 8
    """8: unlabelled pixels are ignored, as UniM2 scores. 9: "unlabelled" is a class of its own, as most
    supervised papers average.
    """


def description(options: Options) -> Description:
    first = 9 - options.classes
    return Description(
        f"mfnet-{options.classes}",
        CLASSES[first:],
        PALETTE[first:],
        MODALITIES,
        source="MFNet, Ha et al., IROS 2017, "
        "https://www.mi.t.u-tokyo.ac.jp/static/projects/mil_multispectral/",
        licence="none stated by the authors; research use",
        extra={
            "splits": "official lists without the mirrored copies; some papers call test val",
            "void": "id 0 (unlabelled) is 255 here"
            if first
            else "none: id 0 (unlabelled) is class 0, unlike in 8-class scores",
            "thermal": "no temperature scale: the camera's gain differs from image to image",
            "unannotated": "case of images in black_list.txt",
        },
    )


def samples(root: Path, options: Options) -> list[Sample]:
    """Samples of the three splits; prints what was left out and how the rest is divided.

    Raises:
        DataError: lists that contradict each other or the stems, or a listed file that is not there.
    """
    lists, mirrored = {}, []
    for name in LISTS:
        path = root / f"{name}.txt"
        names = common.read_stems(path, r"\d{5}[DN](_flip)?", "00001D or 00004N")
        lists[name] = [stem for stem in names if not stem.endswith("_flip")]
        alone = {stem.removesuffix("_flip") for stem in names} - set(lists[name])
        if alone:
            raise DataError(
                f"{path}: lists {min(alone)}_flip without {min(alone)}; take the list from the archive"
            )
        if len(names) > len(lists[name]):
            mirrored.append(f"{len(names) - len(lists[name])} in {name}.txt")
    common.check_disjoint({split: lists[split] for split in DIVISION}, root)
    # The authors' lists of day and night must say what the names say.
    for name, letter in (("test_day", "D"), ("test_night", "N")):
        expected = {stem for stem in lists["test"] if stem.endswith(letter)}
        odd = min(expected ^ set(lists[name]), default="")
        if odd:
            raise DataError(
                f"{root / name}.txt: {odd} is in {'test.txt' if odd in expected else 'this list'} only; "
                f"expected the {letter} stems of test.txt"
            )
    black = root / "black_list.txt"
    lines = black.read_text(errors="replace").split() if black.is_file() else []
    empty = {Path(line).stem for line in lines}
    listed = [
        Sample(
            stem,
            split,
            "day" if stem[5] == "D" else "night",
            "unannotated" if stem in empty else "",
            {folder: root / folder / f"{stem}.png" for folder in ("images", "labels")},
        )
        for split in DIVISION
        for stem in lists[split]
    ]
    print(f"mirrored copies left out: {', '.join(mirrored) or 'none are listed'}")
    absent = "" if black.is_file() else "; there is no black_list.txt"
    print(f"without annotation: {sum(bool(s.case) for s in listed)} samples{absent}")
    return common.complete(listed, options)


def read(sample: Sample, ids: dict[int, int]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Stored images (H, W, C) and label (H, W) of one sample.

    Raises:
        DataError: a file is missing, damaged, of another kind or size, or has an unknown id.
    """
    path = sample.files["labels"]
    planes = read_image(sample.files["images"], "uint8", 4, SIZE)
    label = common.map_ids(read_image(path, None, 1, SIZE, palette=True)[..., 0], ids, path)
    return {"rgb": planes[..., :3], "thermal": planes[..., 3:]}, label


def verify(listed: list[Sample], options: Options, where) -> None:
    """Raise DataError unless there are as many images by day and by night as the authors state; warn of
    another division.
    """
    common.verify_counts([replace(s, split=s.condition) for s in listed], TOTALS, options, where)
    division = {split: sum(s.split == split for s in listed) for split in DIVISION}
    if division != DIVISION:
        have, want = (", ".join(f"{s} {n}" for s, n in counts.items()) for counts in (division, DIVISION))
        print(f"warning: {where}: divided into {have}; published scores use {want}")


def prepare(options: Options) -> None:
    """Convert all images, or with --check read them back.

    Raises:
        DataError: the source does not look as documented, or a file is unreadable.
    """
    first = 9 - options.classes
    ids = {id: id - first if id >= first else 255 for id in range(9)}
    if options.check:
        listed, where = common.prepared_samples(options), options.out
    else:
        where = common.locate(options, ["images", "labels", "train.txt", "val.txt", "test.txt"], HOW)
        listed = samples(where, options)
    verify(listed, options, where)
    common.run(options, description(options), listed, partial(read, ids=ids))


if __name__ == "__main__":
    common.start(prepare, Options, __doc__)
