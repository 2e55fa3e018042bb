"""Prepare your own sensors: one folder of images per sensor, and one of labels if there are any.

    python data_scripts/prepare_folders.py rgb=DIR thermal=DIR label=DIR --out DIR
    python data_scripts/prepare_folders.py rgb=DIR depth=DIR depth:scale=0.001,unit=m,sparse radar=DIR --out
    DIR --recursive

The images of one moment have one name in all folders (0001.png, 0001.tif, 0001.npy), show one view, and are
png, jpg, tif or npy (height, width, planes) with any number of planes of uint8, uint16 or floats. Values are
kept as they are; NAME:setting,... says what they mean:

    scale=0.01 offset=-273.15 unit=°C    physical value = stored value * scale + offset; 1/4095 is a number,
    too sparse, sparse=no                    whether 0 means "no measurement" (ranges, events) compress,
    compress=no                whether the network sees log(1 + |x|) (values over decades) low=0 high=80
    picture=range          usual range, and how it is shown: colour grey heat range events angle symbol=Q
    colour=#332288              its letter in the names of subsets, and its colour in figures planes=0+1+2
    which planes to keep: drops the opacity of RGBA, or takes out thermal stored as opacity suffix=_thermal
    what its file names end with before .png, and those of other sensors do not flip_negates=1
    planes that change sign in a mirror (the sine of a doubled angle)

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

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from shlex import quote

import common
import numpy as np
import tyro
from common import Sample
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

from mmlib.data.images import FORMATS, Header
from mmlib.data.prepared import DataError, Description, PreparedDataset, read_description, read_index
from mmlib.modalities import SENSORS, Modality

FREE_COLOURS = ("#332288", "#117733", "#882255", "#999933", "#AA4499", "#661100", "#44AA99", "#DDCC77")
NUMBERS, FLAGS, LISTS = ("scale", "offset", "low", "high"), ("sparse", "compress"), ("planes", "flip_negates")
TEXTS = {
    "unit": ".+",
    "symbol": "[A-Z]",
    "colour": "#[0-9a-fA-F]{6}",
    "picture": "colour|grey|heat|range|events|angle",
    "suffix": ".+",
}
LOOKED_AT, PIXELS = (
    40,
    20_000,
)  # images of a sensor that are measured before it is described, and pixels of each


@dataclass(frozen=True)
class Options(common.Options):
    """Convert folders of images to the prepared layout; goes on where an earlier run stopped."""

    source: tyro.conf.Positional[tuple[str, ...]] = ()
    """NAME=FOLDER for each sensor, label=FOLDER for labels, and NAME:setting,... where wanted."""
    size: tuple[int, int] = (0, 0)
    """Height and width to bring all sensors to; 0 0 = as they are, which must be one size within each sample.
    """
    partial: bool = False
    """Leave out what is not in every folder."""
    recursive: bool = False
    """Look into subfolders; drive1/0001.png becomes drive1-0001."""
    classes: str = ""
    """Table of classes (csv: name, ids, colours); empty = the ids found."""
    split: str = "auto"
    """auto = by folders train/, val/, test/ where every image lies in one, else blocks; blocks; or a table
    (csv: id, split), or a folder with train.txt, val.txt and test.txt, one name a line.
    """
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """For blocks: shares of train, val and test."""
    block: int = 15
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
        return {
            "size": list(self.size),
            "settings": sorted(word for word in self.source if "=" not in word.split(":")[0]),
        }


# ---- the command line ----


def parse(words: tuple[str, ...]) -> list[Folder]:
    """Sensors in the order given, label last.

    Raises:
        DataError: a word that is neither NAME=FOLDER nor NAME:setting, an unknown setting, a name twice.
    """
    folders, settings = {}, {}
    for word in words:
        found = re.fullmatch(r"([^=:/]+)([=:])(.+)", word)
        if not found or not (found[1].isidentifier() and found[1].islower()):
            raise DataError(
                f"{word!r}: expected NAME=FOLDER or NAME:setting,... with a name in small letters, such as thermal=DIR"
            )
        if found[2] == ":":
            settings.setdefault(found[1], {}).update(parse_settings(word, found[3]))
        elif found[1] in folders:
            raise DataError(f"{word!r}: {found[1]} has a folder already, {folders[found[1]]}")
        else:
            folders[found[1]] = Path(found[3])
    if set(settings) - set(folders):
        name = min(set(settings) - set(folders))
        raise DataError(f"{name!r} has settings but no folder; give {name}=FOLDER")
    if not set(folders) - {"label"}:
        raise DataError("name at least one sensor's folder, as in rgb=DIR thermal=DIR label=DIR")
    return [
        Folder(name, folders[name], settings.get(name, {})) for name in sorted(folders, key="label".__eq__)
    ]


def parse_settings(word: str, text: str) -> dict:
    found = {}
    for part in text.split(","):
        key, given, value = part.strip().partition("=")
        try:
            if key in NUMBERS:
                found[key] = float(Fraction(value))
            elif key in FLAGS:
                found[key] = {"": True, "yes": True, "no": False}[value if given else ""]
            elif key in LISTS:
                found[key] = tuple(int(number) for number in value.split("+"))
            elif re.fullmatch(TEXTS.get(key, ""), value) and value:
                found[key] = value
            else:
                raise KeyError(key)
        except (ValueError, KeyError, ZeroDivisionError) as error:
            usage = (
                f"{', '.join(NUMBERS)} (numbers), {', '.join(FLAGS)} (yes or no), {', '.join(LISTS)} (0+1), "
            )
            usage += "unit, symbol (A to Z), colour (#332288), picture (colour, grey, heat, range, events, angle), suffix"
            raise DataError(f"{word!r}: cannot read the setting {part!r}; settings are {usage}") from error
    return found


# ---- sensors ----


def measure(folder: Folder, headers: dict[str, Header], stems: list[str]) -> np.ndarray:
    """Stored values (pixels, planes) float64 of images spread evenly over the names."""
    found = []
    for i in np.unique(np.linspace(0, len(stems) - 1, min(LOOKED_AT, len(stems))).astype(int)):
        array = planes_of(folder, headers, stems[i])
        pixels = array.reshape(-1, array.shape[2])
        found.append(pixels[:: max(1, len(pixels) // PIXELS)].astype(np.float64))
    return np.concatenate(found)


def describe(
    folder: Folder, values: np.ndarray, dtype: str, symbols: set[str], position: int
) -> tuple[Modality, str]:
    """The sensor's Modality from what is known by name, what the user says, and what was measured; and a line
    that tells which is which.

    Args:
        values: stored values (pixels, planes). symbols: letters taken by others. position: which sensor this
            is, for a free colour.

    Raises:
        DataError: settings that contradict the values or each other.
    """
    name, given, known = folder.name, folder.settings, SENSORS.get(folder.name)
    alike = known if known is not None and known.channels == values.shape[1] else None
    empty = (values == 0).all(1)
    low, high = np.percentile(values[~empty] if not empty.all() else values, (1, 99))
    gap = bool(
        empty.mean() > 0.01 and low > 0.02 * high
    )  # zeros that stand apart from all other values: a sign of "nothing measured"
    sparse = given.get("sparse", alike.sparse if alike else gap)
    said = [key for key in ("scale", "offset", "unit") if key in given]
    if said:
        scale, offset, unit, source = (
            given.get("scale", 1.0),
            given.get("offset", 0.0),
            given.get("unit", ""),
            "as you say",
        )
    elif alike and alike.dtype == dtype == "uint8":
        scale, offset, unit, source = alike.scale, alike.offset, alike.unit, f"as usual for {name}"
    elif alike and alike.unit in ("reflectance", "fraction"):
        scale, offset, unit = 1.0 if dtype == "float32" else 1 / np.iinfo(dtype).max, 0.0, alike.unit
        source = f"as usual for {name}" if dtype == "float32" else "as a share of the largest value"
    else:
        scale, offset, unit, source = (
            1.0,
            0.0,
            "",
            f"as stored, unit unknown: say {name}:scale=...,unit=... if it matters",
        )
    if scale == 0 or (sparse and offset):
        fix = (
            "a sparse sensor's 0 must stay 0: give a unit whose 0 is never measured (kelvin) and no offset"
            if scale
            else "not a scale"
        )
        raise DataError(f"{name}:scale={scale:g},offset={offset:g}: {fix}")
    measured = sorted((low * scale + offset, high * scale + offset))
    usual = (
        (alike.low, alike.high)
        if alike and not said and unit
        else (min(0.0, measured[0]) if sparse else measured[0], measured[1])
    )
    shown = given.get(
        "picture", alike.picture if alike and (alike.picture != "range" or unit == "m") else "grey"
    )  # ranges want metres
    negated = given.get("flip_negates", alike.flip_negates if alike else ())
    if (shown == "angle" and values.shape[1] < 2) or any(
        not 0 <= plane < values.shape[1] for plane in negated
    ):
        raise DataError(
            f"{folder.path}: {values.shape[1]} planes; an angle has two (cosine, sine), and flip_negates counts from 0"
        )
    if shown == "colour":
        usual = (0.0, 1.0)
    bounds = [float(given.get("low", usual[0])), float(given.get("high", usual[1]))]
    if bounds[0] >= bounds[1]:
        if {"low", "high"} & set(given):
            raise DataError(f"{name}: low {bounds[0]:g} is not below high {bounds[1]:g}")
        bounds[1] = bounds[0] + 1.0  # an image that never changes
    ends = sorted(round(float(value) * scale + offset, 9) for value in (values.min(), values.max()))
    if shown == "colour" and (ends[0] < -0.001 or ends[1] > 1.001):
        fix = f"{name}:scale=1/{255 if ends[1] <= 255 else 4095 if ends[1] <= 4095 else 65535}"
        raise DataError(
            f"{folder.path}: colours from {ends[0]:g} to {ends[1]:g}; expected 0 to 1; give {fix}, or {name}:picture=grey"
        )
    letters = [*name.upper(), *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    free = [
        c
        for c in letters
        if c.isascii() and c.isalpha() and c not in symbols | {m.symbol for m in SENSORS.values()}
    ]
    symbol = given.get("symbol") or (
        known.symbol if known and known.symbol not in symbols else (free or ["?"])[0]
    )
    colour = given.get("colour", known.colour if known else FREE_COLOURS[position % len(FREE_COLOURS)])
    modality = Modality(
        name,
        symbol,
        values.shape[1],
        unit,
        *bounds,
        colour,
        dtype,
        float(scale),
        float(offset),
        given.get("compress", bool(alike and alike.compress)),
        bool(sparse),
        picture=shown,
        flip_negates=negated,
        channel_names=alike.channel_names if alike else (),
    )
    notes = [
        f"{name} ({symbol}): {values.shape[1]} × {dtype}",
        f"{ends[0]:.4g} to {ends[1]:.4g} {unit}".strip() + f" ({source})",
    ]
    notes += [
        f"{100 * empty.mean():.1f} % zeros, "
        + ("which mean nothing measured" if sparse else "which are values")
    ]
    notes[-1] += (
        ""
        if "sparse" in given
        else f" (a guess from the values; say {name}:sparse{'=no' * sparse} if wrong)" * (not alike)
    )
    if alike and alike.picture != shown and "picture" not in given:
        notes.append(
            f"shown in grey, since ranges want metres: say {name}:scale=0.001,unit=m if these are millimetres"
        )
    if known is not None and not alike:
        notes.append(f"not the {known.channels} planes of a usual {name}")
    if values.shape[1] > 1 and (values == values[:, :1]).all():
        notes.append(f"its planes are equal: {name}:planes=0 keeps one")
    return modality, "; ".join(notes)


# ---- splits ----


def by_name(entries: list[tuple[str, str]], stems: list[str], path: str) -> dict[str, str]:
    """Values by name without ending; a name may be given with its ending, or as the id that it becomes.

    Raises:
        DataError: a name that no folder has, or with two values.
    """
    known, found = {safe_id(stem): stem for stem in stems} | {stem: stem for stem in stems}, {}
    for name, value in entries:
        stem = known.get(name, known.get(re.sub(f"({'|'.join(map(re.escape, FORMATS))})$", "", name)))
        if stem is None:
            raise DataError(
                f"{path}: {name!r} is not among the {len(stems)} names of the images, such as {stems[0]!r}"
            )
        if found.setdefault(stem, value) != value:
            raise DataError(f"{path}: {name!r} is listed as {found[stem]!r} and as {value!r}")
    return found


def divide(stems: list[str], options: Options) -> tuple[dict[str, str], str]:
    """Split of every name, and how it came about.

    Raises:
        DataError: a list that leaves names out or names unknown ones; fractions that cannot be; too few
            images.
    """
    top = [PurePosixPath(stem).parts[0] for stem in stems]
    if options.split not in ("auto", "blocks"):
        path = Path(options.split)
        lists = [path / f"{split}.txt" for split in SPLITS if (path / f"{split}.txt").exists()]
        if path.is_dir() and not lists:
            raise DataError(f"{path}: no train.txt, val.txt or test.txt in it")
        listed = [
            (line.strip(), each.stem)
            for each in lists
            for line in each.read_text("utf-8-sig").splitlines()
            if line.strip()
        ]
        found = by_name(
            listed or [(row["id"], row["split"]) for row in read_table(options.split, "id", "split")],
            stems,
            options.split,
        )
        left = [stem for stem in stems if not found.get(stem)]
        if left:
            fix = "list them, too; a split of any other name, such as unused, keeps them out of everything"
            raise DataError(
                f"{path}: has no split for {len(left)} of {len(stems)} names, such as {left[0]!r}; {fix}"
            )
        return found, "as listed"
    if options.split == "auto" and set(top) <= set(SPLITS) and all("/" in stem for stem in stems):
        return dict(zip(stems, top)), "by the folders train, val and test"
    shares = np.array(options.fractions, float)
    if not np.isfinite(shares).all() or shares.min() < 0 or shares.sum() <= 0 or options.block < 1:
        raise DataError(
            f"--fractions {shares.tolist()} --block {options.block}: give three shares, none negative, and blocks of 1 or more"
        )
    longest, blocks = max(1, min(options.block, len(stems) // 10)), []
    for stem in stems:
        if (
            not blocks
            or len(blocks[-1]) == longest
            or PurePosixPath(blocks[-1][0]).parent != PurePosixPath(stem).parent
        ):
            blocks.append([])
        blocks[-1].append(stem)
    found, counts, shares = {}, np.zeros(3), shares / shares.sum()
    for block in blocks:  # each to the split that lacks most of its share so far
        lacking = int(np.argmax(np.round(shares * (len(found) + len(block)) - counts, 9)))
        counts[lacking] += len(block)
        found |= dict.fromkeys(block, SPLITS[lacking])
    if ((shares > 0) & (counts == 0)).any():
        fix = "give more images, other --fractions (0.5 0.5 0), or --split with a list"
        raise DataError(
            f"{len(stems)} images are too few for {' '.join(s for s, share in zip(SPLITS, shares) if share)}; {fix}"
        )
    return found, f"blocks of {longest} consecutive names, {' '.join(f'{share:g}' for share in shares)}"


# ---- all of it ----


def advise(options: Options, description: Description, labelled: bool) -> None:
    """Print what to do next."""
    out, rows = options.out, read_index(options.out)
    splits, run = {row["split"] for row in rows}, f"runs/{Path(options.out).resolve().name}"
    sizes = Counter(PreparedDataset(out, split).stored(0)[1].shape for split in sorted(splits))
    print("next:")
    if labelled and {"train", "val"} <= splits:
        crop = f" --crop {min(h for h, _ in sizes)} {min(w for _, w in sizes)}" if len(sizes) > 1 else ""
        print(f"  python -m mmlib train --data {quote(out)} --out {run}{crop}")
        print(
            f"  python -m mmlib evaluate {run}/best.safetensors --data {quote(out)} --split {'test' if 'test' in splits else 'val'}"
        )
    elif labelled:
        print(
            "  (training needs the splits train and val; these data have " + ", ".join(sorted(splits)) + ")"
        )
    height, width = sizes.most_common(1)[0][0]
    shrink = min(1.0, 320 / max(height, width))
    size = " ".join(
        str(max(16, round(side * shrink / 16) * 16)) for side in (height, width)
    )  # what every backbone's patches divide
    fitting = [name for name, modality in description.modalities.items() if modality.channels <= 3]
    some = f" --modalities {' '.join(fitting)}" if len(fitting) < len(description.modalities) else ""
    some += "" if description.classes else " --clusters 16"
    if fitting and "train" in splits:
        scored = "" if "val" in splits else f" --split {'test' if 'test' in splits else 'train'}"
        print(
            f"  python -m mmlib cluster --data {quote(out)} --out {run}-clusters --size {size} --eval-size {size}{some}{scored}"
        )


def prepare(options: Options) -> None:
    """Convert the folders, or with --check read back what was written.

    Raises:
        DataError: what is wrong with a word, a file or a table, and how to mend it.
    """
    if not options.out:
        raise DataError("--out is missing: the folder to write")
    if options.check and not options.source:
        return common.check(options, read_description(options.out))
    folders = [scan(folder, options.recursive) for folder in parse(options.source)]
    stems = match(folders, options.partial)
    twice = [id for id, count in Counter(map(safe_id, stems)).items() if count > 1]
    if twice:
        same = [stem for stem in stems if safe_id(stem) == twice[0]]
        raise DataError(
            f"{' and '.join(map(repr, same[:2]))} would both become {twice[0]!r}, since ids hold letters, digits and ._-; rename one"
        )
    headers = look(folders, stems, any(options.size), options.progress)
    sensors, label = (
        [folder for folder in folders if folder.name != "label"],
        next((f for f in folders if f.name == "label"), None),
    )
    split, how = divide(stems, options)
    if "train" not in split.values():
        raise DataError(
            f"no image is in train ({', '.join(sorted(set(split.values())))}), on which every sensor's statistics are measured"
        )
    rows = read_table(options.conditions, "id", "condition") if options.conditions else []
    conditions, cases = (
        by_name([(row["id"], row.get(key, "")) for row in rows], stems, options.conditions)
        for key in ("condition", "case")
    )

    modalities: dict[str, Modality] = {}
    asked = {folder.settings["symbol"] for folder in sensors if "symbol" in folder.settings}
    for position, folder in enumerate(sensors):
        taken = (asked | {m.symbol for m in modalities.values()}) - {folder.settings.get("symbol")}
        values = measure(folder, headers[folder.name], stems)
        modalities[folder.name], line = describe(
            folder, values, headers[folder.name][stems[0]].dtype, taken, position
        )
        print(line)
    classes = read_classes(options.classes) if options.classes else Classes()
    if label and not options.classes:
        classes = find_classes(label, headers["label"], stems, options.workers, options.progress)
        print(
            f"classes, from the ids found: {', '.join(classes.names)}; 255 is ignored; --classes FILE gives them names and colours"
        )
    print(f"splits: {how}")
    description = Description(
        options.name or Path(options.out).resolve().name,
        classes.names,
        classes.palette,
        modalities,
        "own sensors",
        options.licence,
        {"splits": how},
    )
    by_id = {safe_id(stem): stem for stem in stems}

    def read(sample: Sample) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        stem = by_id[sample.id]
        images = {folder.name: planes_of(folder, headers[folder.name], stem) for folder in sensors}
        return images, read_label(label, headers["label"], stem, classes) if label else None

    samples = [
        Sample(id, split[stem], conditions.get(stem, ""), cases.get(stem, "")) for id, stem in by_id.items()
    ]
    common.run(options, description, samples, read)
    if not options.check:
        advise(options, description, label is not None)


if __name__ == "__main__":
    common.start(prepare, Options, __doc__)
