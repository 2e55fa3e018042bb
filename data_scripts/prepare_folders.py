"""Prepare your own sensors: one folder of images per sensor, and one of labels if there are any.

    python data_scripts/prepare_folders.py rgb=DIR thermal=DIR label=DIR --out DIR
    python data_scripts/prepare_folders.py rgb=DIR depth=DIR depth:scale=0.001,unit=m,sparse --out DIR

The images of one moment have one name in all folders (0001.png, 0001.tif, 0001.npy; with --allow-missing some
may lack), show one view, and are
png, jpg, tif or npy (height, width, planes) with up to 64 planes of uint8, uint16 or floats. Values are
kept as they are; NAME:setting,... says what they mean:

    scale=0.01 offset=-273.15 unit=°C   physical value = stored * scale + offset; 1/4095 is a number, too
    sparse, sparse=no                   whether 0 means "no measurement" (ranges, events)
    compress, compress=no               whether the network sees log(1 + |x|) (values over decades)
    low=0 high=80 picture=range         usual range, and how it is shown: colour grey heat range events angle
    symbol=Q colour=#332288             its letter in the names of subsets, and its colour in figures
    planes=0+1+2                        planes to keep: drops the opacity of RGBA, or takes thermal out of it
    suffix=_thermal                     what its file names end with before .png, and those of others do not
    flip_negates=1                      planes that change sign in a mirror (the sine of a doubled angle)

Names that the library knows (rgb depth event lidar thermal nir dolp aolp) bring symbol, colour, picture,
sparse and compress with them, where the number of planes is theirs. Depths, temperatures and the like have
the unit that you give and no other. All else is measured and printed; look at it once.

--classes FILE is a table (csv) with the columns name, ids, colours; several ids or colours are separated by
spaces, the class "ignore" is not trained on:

    name,ids,colours
    road,7,#804080
    person,24 25,#dc143c #ff0000
    ignore,0 255,#000000

Labels are read by ids; coloured images, and with a table without ids palette images, by colour. Without ids
and colours the ids are the numbers of the rows, from 0. Without a table every id found is a class, class_7
for id 7, and 255 is ignored. Without labels the data are for part B. Splits: folders train/, val/ and test/
in every sensor's folder; else blocks of consecutive names, so that neighbouring frames stay together.
"""

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import Annotated

import common
import numpy as np
import tyro
from common import Arrays, Sample, Size
from folders import (
    SPLITS,
    Classes,
    Folder,
    find_classes,
    look,
    match,
    planes_of,
    read_classes,
    read_label,
    read_table,
    safe_id,
    scan,
)
from sensors import describe

from mmlib.config import AtLeast
from mmlib.data.images import FORMATS, DataError
from mmlib.data.prepared import Description, PreparedDataset, read_description
from mmlib.modalities import Modality

# How the text of each setting is read; what cannot be read raises.
READERS = dict.fromkeys(("scale", "offset", "low", "high"), lambda text: float(Fraction(text)))
READERS |= dict.fromkeys(("sparse", "compress"), {"": True, "yes": True, "no": False}.__getitem__)
READERS |= dict.fromkeys(("planes", "flip_negates"), lambda text: tuple(map(int, text.split("+"))))
TEXTS = {"unit": ".+", "suffix": ".+", "symbol": "[A-Z]", "colour": "#[0-9a-fA-F]{6}"}
TEXTS["picture"] = "colour|grey|heat|range|events|angle"
READERS |= {
    key: lambda text, allowed=allowed: re.fullmatch(allowed, text)[0] for key, allowed in TEXTS.items()
}


@dataclass(frozen=True)
class Options(common.Options):
    """Convert folders of images to the prepared layout; goes on where an earlier run stopped."""

    source: tyro.conf.Positional[tuple[str, ...]] = ()
    """NAME=FOLDER for each sensor, label=FOLDER for labels, and NAME:setting,... where wanted."""
    size: Annotated[Size, AtLeast(0)] = (0, 0)
    """Height and width to bring all sensors to; 0 0 = as they are, which must be one size within each sample.
    """
    partial: bool = False
    """Leave out what is not in every folder."""
    allow_missing: bool = False
    """Keep samples that lack images of some sensors; labels are needed of all or none."""
    recursive: bool = False
    """Look into subfolders; drive1/0001.png becomes drive1-0001."""
    classes: str = ""
    """Table of classes (csv: name, ids, colours); empty = the ids found."""
    split: str = "auto"
    """auto = by folders train/, val/, test/ where every image lies in one, else blocks; blocks; or a table
    (csv: id, split), or a folder with train.txt, val.txt and test.txt, one name a line.
    """
    fractions: Annotated[tuple[float, float, float], AtLeast(0)] = (0.8, 0.1, 0.1)
    """For blocks: shares of train, val and test."""
    block: Annotated[int, AtLeast(1)] = 15
    """For blocks: how many consecutive images stay together at most (fewer where there are few images)."""
    conditions: str = ""
    """Table (csv: id, condition, and case if wanted) by which scores are also reported: day and night, a
    failed sensor.
    """
    name: str = ""
    """Name of the data set; empty = that of OUT."""
    licence: str = ""
    """Under which terms the images may be used; kept in the description."""

    def recorded(self) -> dict:
        settings = sorted(word for word in self.source if "=" not in word.split(":")[0])
        return {"size": list(self.size), "settings": settings}

    def inputs(self) -> list[str]:
        return [str(folder.path) for folder in parse(self.source)]


# ---- the command line ----


def parse(words: tuple[str, ...]) -> list[Folder]:
    """Sensors in the order given, label last.

    Raises:
        DataError: a word that is neither NAME=FOLDER nor NAME:setting, an unknown setting, a name twice.
    """
    folders, settings = {}, {}
    for word in words:
        parts = re.fullmatch(r"([^=:/]+)([=:])(.+)", word)
        name, sign, rest = parts.groups() if parts else ("", "", "")
        if not (name.isidentifier() and name.islower()) or (sign == "=" and name in folders):
            raise DataError(
                f"{word!r}: expected NAME=FOLDER or NAME:setting,... with a name in small letters, such as "
                "thermal=DIR, and one folder for each name"
            )
        if sign == ":":
            settings.setdefault(name, {}).update(parse_settings(word, rest))
        else:
            folders[name] = Path(rest)
    if set(settings) - set(folders) or not set(folders) - {"label"}:
        raise DataError(
            f"folders for {', '.join(folders) or 'nothing'}, settings for "
            f"{', '.join(settings) or 'nothing'}: expected a folder for each name with settings, and at "
            "least one sensor's, as in rgb=DIR thermal=DIR label=DIR"
        )
    return [
        Folder(name, folders[name], settings.get(name, {}), {}, {})
        for name in sorted(folders, key="label".__eq__)
    ]


def parse_settings(word: str, text: str) -> dict:
    settings = {}
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        try:
            settings[key] = READERS[key](value)
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise DataError(
                f"{word!r}: cannot read the setting {part!r}; settings are scale, offset, low, high "
                "(numbers), sparse, compress (yes or no), planes, flip_negates (0+1), unit, symbol (A to "
                "Z), colour (#332288), picture (colour, grey, heat, range, events, angle), suffix"
            ) from error
    return settings


# ---- splits ----


def by_name(entries: list[tuple], stems: list[str], path: str) -> dict:
    """Values by name without ending; a name may be given with its ending, or as the id that it becomes.

    Raises:
        DataError: a name that no folder has, or with two values.
    """
    names, values = {safe_id(stem): stem for stem in stems} | {stem: stem for stem in stems}, {}
    for name, value in entries:
        bare = re.sub(f"({'|'.join(map(re.escape, FORMATS))})$", "", name)
        stem = names.get(name, names.get(bare))
        if stem is None:
            raise DataError(
                f"{path}: {name!r} is not among the {len(stems)} names of the images, such as {stems[0]!r}"
            )
        if values.setdefault(stem, value) != value:
            raise DataError(f"{path}: {name!r} is listed as {values[stem]!r} and as {value!r}")
    return values


def divide(stems: list[str], options: Options) -> tuple:
    """Split of every name, and how it came about.

    Raises:
        DataError: a list that leaves names out or names unknown ones; fractions that cannot be; too few
            images.
    """
    if options.split not in ("auto", "blocks"):
        return by_list(stems, options.split), "as listed"
    folders = [stem.rpartition("/")[0] for stem in stems]
    firsts = [folder.partition("/")[0] for folder in folders]
    if options.split == "auto" and set(firsts) <= set(SPLITS):
        return dict(zip(stems, firsts)), "by the folders train, val and test"
    shares = np.array(options.fractions, float)
    if shares.sum() <= 0:
        raise DataError(f"--fractions {shares.tolist()}: give three shares, not all of them 0")
    # Blocks of names that follow each other in one folder.
    longest = max(1, min(options.block, len(stems) // 10))
    split, counts, shares = {}, np.zeros(3), shares / shares.sum()
    for _, group in groupby(zip(folders, stems), lambda pair: pair[0]):
        inside = [stem for _, stem in group]
        for block in (inside[first : first + longest] for first in range(0, len(inside), longest)):
            # Each to the split that lacks most of its share so far.
            lacking = int(np.argmax(np.round(shares * (len(split) + len(block)) - counts, 9)))
            counts[lacking] += len(block)
            split |= dict.fromkeys(block, SPLITS[lacking])
    if ((shares > 0) & (counts == 0)).any():
        raise DataError(
            f"{len(stems)} images are too few for --fractions {shares.tolist()}; give more images, other "
            "--fractions (0.5 0.5 0), or --split with a list"
        )
    return split, f"blocks of {longest} consecutive names, {' '.join(f'{share:g}' for share in shares)}"


def by_list(stems: list[str], source: str) -> dict:
    """Split of every name, from a table, or from a folder with train.txt, val.txt and test.txt."""
    path = Path(source)
    if path.is_dir():
        lists = [each for each in path.glob("*.txt") if each.stem in SPLITS]
        lines = [(line.strip(), each.stem) for each in lists for line in each.open(encoding="utf-8-sig")]
        entries = [entry for entry in lines if entry[0]]
    else:
        entries = [(row["id"], row["split"]) for row in read_table(source, "id", "split")]
    split = by_name(entries, stems, source)
    left = [stem for stem in stems if not split.get(stem)]
    if left:
        raise DataError(
            f"{path}: has no split for {len(left)} of {len(stems)} names, such as {left[0]!r}; list them, "
            "too; a split of any other name, such as unused, keeps them out of everything"
        )
    return split


# ---- all of it ----


def advise(options: Options, description: Description, labelled: bool):
    """Print what to do next."""
    out, run = quote(options.out), f"runs/{Path(options.out).resolve().name}"
    splits = sorted({sample.split for sample in common.prepared_samples(options)})
    sizes = Counter(PreparedDataset(options.out, split).stored(0)[1].shape for split in splits)
    scored = next((split for split in ("test", "val") if split in splits), "train")
    print("next:")
    if labelled and {"train", "val"} <= set(splits):
        crop = f" --crop {min(h for h, _ in sizes)} {min(w for _, w in sizes)}" if len(sizes) > 1 else ""
        print(f"  python -m mmlib train --data {out} --out {run}{crop}")
        print(f"  python -m mmlib evaluate {run}/best.safetensors --data {out} --split {scored}")
    elif labelled:
        print(f"  (training needs the splits train and val; these data have {', '.join(splits)})")
    sides = sizes.most_common(1)[0][0]
    # A size that every backbone's patches divide.
    size = " ".join(str(max(16, round(side * min(1.0, 320 / max(sides)) / 16) * 16)) for side in sides)
    fitting = [name for name, modality in description.modalities.items() if modality.channels <= 3]
    if fitting:
        more = f" --modalities {' '.join(fitting)}" if len(fitting) < len(description.modalities) else ""
        more += "" if description.classes else " --clusters 16"
        more += "" if "val" in splits else f" --split {scored}"
        print(
            f"  python -m mmlib cluster --data {out} --out {run}-clusters --size {size} --eval-size "
            f"{size}{more}"
        )


def prepare(options: Options):
    """Convert the folders, or with --check read back what was written.

    Raises:
        DataError: what is wrong with a word, a file or a table, and how to mend it.
    """
    if options.check and not options.source:
        return common.check(options, read_description(options.out))
    folders = [scan(folder, options.recursive) for folder in parse(options.source)]
    stems = match(folders, options.partial, options.allow_missing)
    by_id = {safe_id(stem): stem for stem in stems}
    if twice := [stem for stem in stems if by_id[safe_id(stem)] != stem]:
        id = safe_id(twice[0])
        raise DataError(
            f"{twice[0]!r} and {by_id[id]!r} would both become {id!r}, since ids hold letters, digits and "
            "._-; rename one"
        )
    look(folders, stems, any(options.size), options.progress)
    label = folders[-1] if folders[-1].name == "label" else None  # the last of them
    sensors = folders[:-1] if label else folders
    split, how = divide(stems, options)
    for folder in sensors:
        if "train" not in map(split.get, folder.headers):
            raise DataError(f"no image of {folder.name} is in train, where its statistics are measured")
    rows = read_table(options.conditions, "id", "condition") if options.conditions else []
    conditions, cases = (
        by_name([(row["id"], row.get(key, "")) for row in rows], stems, options.conditions)
        for key in ("condition", "case")
    )

    modalities: dict[str, Modality] = {}
    for position, folder in enumerate(sensors):
        others = {each.settings.get("symbol", "") for each in sensors if each is not folder}
        taken = others | {modality.symbol for modality in modalities.values()}
        modalities[folder.name], line = describe(folder, taken, position)
        print(f"{line}; in {len(folder.headers)} of {len(stems)} samples")
    classes = Classes([], [], {}, {})
    if options.classes:
        classes = read_classes(options.classes)
    elif label:
        classes = find_classes(label, stems, options)
        print(
            f"classes, from the ids found: {', '.join(classes.names)}; 255 is ignored; --classes FILE gives "
            "them names and colours"
        )
    print(f"splits: {how}")
    name = options.name or Path(options.out).resolve().name
    facts = classes.names, classes.palette, modalities, "own sensors", options.licence, {"splits": how}
    description = Description(name, *facts)

    def read(sample: Sample) -> Arrays:
        stem = by_id[sample.id]
        images = {folder.name: planes_of(folder, stem) for folder in sensors if stem in folder.files}
        return images, read_label(label, stem, classes) if label else None

    samples = [
        Sample(id, split[stem], conditions.get(stem, ""), cases.get(stem, "")) for id, stem in by_id.items()
    ]
    common.run(options, description, samples, read)
    if not options.check:
        advise(options, description, label is not None)


if __name__ == "__main__":
    common.start(prepare, Options, __doc__)
