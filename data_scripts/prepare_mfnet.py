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
from common import Arrays, Sample

from mmlib.data.images import read_image
from mmlib.data.prepared import DataError, Description

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

OFFICIAL = common.read_official("mfnet")  # with all nine classes


@dataclass(frozen=True)
class Options(common.Options):
    """Convert MFNet to the prepared layout; goes on where an earlier run stopped."""

    classes: Literal[8, 9] = 8
    """8: unlabelled pixels are ignored, as UniM2 scores. 9: "unlabelled" is a class of its own, as most
    supervised papers average.
    """


def description(options: Options) -> Description:
    first, extra = 9 - options.classes, OFFICIAL.extra
    if not first:
        extra = extra | {"void": "none: id 0 (unlabelled) is class 0, unlike in 8-class scores"}
    classes, palette, name = OFFICIAL.classes[first:], OFFICIAL.palette[first:], f"mfnet-{options.classes}"
    return replace(OFFICIAL, name=name, classes=classes, palette=palette, extra=extra)


def samples(root: Path, options: Options) -> list[Sample]:
    """Samples of the three splits; prints what was left out and how the rest is divided.

    Raises:
        DataError: lists that contradict each other or the stems, or a listed file that is not there.
    """
    lists, mirrored = {}, []
    for name in LISTS:
        path = root / f"{name}.txt"
        stems = common.read_stems(path, r"\d{5}[DN](_flip)?", "00001D or 00004N")
        lists[name] = [stem for stem in stems if not stem.endswith("_flip")]
        alone = {stem.removesuffix("_flip") for stem in stems} - set(lists[name])
        if alone:
            raise DataError(f"{path}: lists the mirrored {min(alone)} alone; take the list from the archive")
        mirrored.append(f"{len(stems) - len(lists[name])} in {name}.txt")
    # The authors' lists of day and night must say what the names say.
    for name, letter in (("test_day", "D"), ("test_night", "N")):
        expected = {stem for stem in lists["test"] if stem.endswith(letter)}
        if odd := expected ^ set(lists[name]):
            raise DataError(
                f"{root / name}.txt: {min(odd)} is in only one of this list and test.txt; expected the "
                f"{letter} stems of test.txt"
            )
    black = root / "black_list.txt"
    lines = black.read_text(errors="replace").split() if black.is_file() else []
    empty = {Path(line).stem for line in lines}
    listed = []
    for split in DIVISION:
        for stem in lists[split]:
            condition, case = "day" if stem[5] == "D" else "night", "unannotated" * (stem in empty)
            files = {folder: root / folder / f"{stem}.png" for folder in ("images", "labels")}
            listed.append(Sample(stem, split, condition, case, files))
    print(f"mirrored copies left out: {', '.join(mirrored)}")
    absent = "" if black.is_file() else "; there is no black_list.txt"
    print(f"without annotation: {sum(bool(s.case) for s in listed)} samples{absent}")
    return common.complete(listed, options)


def read(sample: Sample, ids: dict[int, int]) -> Arrays:
    """Stored images (H, W, C) and label (H, W) of one sample.

    Raises:
        DataError: a file is missing, damaged, of another kind or size, or has an unknown id.
    """
    planes = read_image(sample.files["images"], "uint8", 4, SIZE)
    label = common.read_ids(sample.files["labels"], ids, SIZE)
    return {"rgb": planes[..., :3], "thermal": planes[..., 3:]}, label


def prepare(options: Options):
    """Convert all images, or with --check read them back; warns where they are divided as in no paper.

    Raises:
        DataError: the source does not look as documented, or a file is unreadable.
    """
    first = 9 - options.classes
    ids = {id: id - first if id >= first else 255 for id in range(9)}
    names = ["images", "labels", "train.txt", "val.txt", "test.txt"]
    listed = common.list_samples(options, samples, names, HOW)
    division = {split: sum(sample.split == split for sample in listed) for split in DIVISION}
    common.run(options, description(options), listed, partial(read, ids=ids), TOTALS | division)
    if division != DIVISION:
        print(f"warning: divided into {division}; published scores use {DIVISION}")


if __name__ == "__main__":
    common.start(prepare, Options, __doc__)
