"""Folders of images that belong together by name: the files, what their headers say, their values, labels and
the classes in them.

Nothing here guesses: what would be read as something else than it is meant is an error that names the file
and the fix.
"""

import colorsys
import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from common import in_threads, map_ids
from numpy import ndarray

from mmlib.data.images import FORMATS, DataError, Header, read_header, read_image
from mmlib.modalities import IGNORE_INDEX
from mmlib.runtime import progress_bar, reading

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Folder:
    """One NAME=FOLDER with its settings, and its images by name without ending ("drive1/0001"): all files,
    and the headers of those that are taken.
    """

    name: str
    path: Path
    settings: dict
    files: dict[str, Path]
    headers: dict[str, Header]

    def planes(self, header: Header) -> list[int]:
        """Planes of an image that are kept."""
        return list(self.settings.get("planes", range(header.channels)))


@dataclass
class Classes:
    """Class names and colours, and what raw ids and raw colours (red << 16 | green << 8 | blue) mean; 255 =
    ignore.
    """

    names: list[str]
    palette: list[tuple]
    ids: dict[int, int]
    colours: dict[int, int]
    by_id: bool = True


# ---- files ----


def scan(folder: Folder, recursive: bool) -> Folder:
    """``folder`` with its images.

    Raises:
        DataError: no such folder, nothing in it, two files of one name, a name without the suffix given.
    """
    deep = recursive or any((folder.path / split).is_dir() for split in SPLITS)
    paths = [
        path
        for path in sorted(folder.path.glob("**/*" if deep else "*"))
        if path.suffix.lower() in FORMATS and "/." not in f"/{path.relative_to(folder.path)}"
    ]
    if not paths:
        raise DataError(
            f"{folder.name}={folder.path}: no such folder, or no image ({' '.join(FORMATS)}) in it; where "
            "they lie in subfolders: give --recursive"
        )
    ending, files = folder.settings.get("suffix", ""), {}
    for path in paths:
        stem = path.relative_to(folder.path).with_suffix("").as_posix()
        if not stem.endswith(ending) or stem == ending:
            raise DataError(f"{path}: does not end in {ending!r} as {folder.name}:suffix={ending} says")
        stem = stem.removesuffix(ending)
        if stem in files:
            raise DataError(
                f"{path}: {files[stem]} has the same name; a sensor has one image of each name, so remove "
                "one of them"
            )
        files[stem] = path
    return replace(folder, files=files)


def match(folders: list[Folder], partial: bool, gaps: bool) -> list[str]:
    """Names that every folder has, in natural order (frame 2 before frame 10); with ``gaps`` those that any
    sensor and, where there are labels, these have.

    Raises:
        DataError: a name is missing in a folder, and ``partial`` is not set.
    """
    every = set().union(*(folder.files for folder in folders))
    images = set().union(*(folder.files for folder in folders if folder.name != "label"))
    needed = [folder for folder in folders if folder.name == "label" or not gaps]
    shared = images.intersection(*(folder.files for folder in needed))
    for folder in needed:
        missing = sorted(every - set(folder.files))
        if missing and not (partial and shared):
            raise DataError(
                f"{folder.name}={folder.path}: nothing for {len(missing)} of {len(every)} names, such as "
                f"{missing[0]}; complete it, say what file names end with "
                f"({folder.name}:suffix=_{folder.name}), or give --partial to leave these out, or "
                "--allow-missing to keep samples that lack sensors"
            )
    if len(shared) < len(every):
        print(f"left out: {len(every) - len(shared)} of {len(every)} names, which lack files")
    return sorted(
        shared,
        key=lambda stem: [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", stem))],
    )


def safe_id(stem: str) -> str:
    return re.sub(r"^(?![A-Za-z0-9])", "x", re.sub(r"[^A-Za-z0-9._-]", "_", stem.replace("/", "-")))


def header_of(path: Path) -> Header:
    """What the header of an image says; other types than uint8 and uint16 become float32.

    Raises:
        DataError: unreadable, or of a kind that would not be read as it is meant.
    """
    header = read_header(path)
    if header.format == "NPY" and header.size[0] <= 16 < header.channels:
        raise DataError(
            f"{path}: shape {(*header.size, header.channels)} looks like (planes, height, width); "
            "store planes last (np.moveaxis(a, 0, -1))"
        )
    return header if header.dtype in ("uint8", "uint16") else replace(header, dtype="float32")


def look(folders: list[Folder], stems: list[str], resized: bool, progress: bool):
    """Read all headers into the folders. ``resized``: sizes within a sample may differ, if their proportions
    do not.

    Raises:
        DataError: images of one sensor differ in kind, images of one sample in size, or a sensor has planes
            that mean something else.
    """
    for folder in folders:
        own = [stem for stem in stems if stem in folder.files]
        bar = progress_bar(own, f"look at {folder.name}", progress=progress, leave=False)
        folder.headers.update((stem, header_of(folder.files[stem])) for stem in bar)
        kinds = {}
        for stem, header in folder.headers.items():
            kinds.setdefault(str(header), []).append(folder.files[stem])
        if len(kinds) > 1:
            listed = "; ".join(
                f"{len(paths)} are {kind}, such as {paths[-1]}" for kind, paths in kinds.items()
            )
            raise DataError(f"{folder.name}={folder.path}: images differ: {listed}; store all in one way")
        for stem in own:
            check_planes(folder, stem)
    for stem in stems:
        first, *others = (folder for folder in folders if stem in folder.files)
        height, width = first.headers[stem].size
        for folder in others:
            h, w = folder.headers[stem].size
            stretched = abs(height * w / (width * h) - 1) > 0.02
            if (h, w) != (height, width) and (stretched or not resized):
                raise DataError(
                    f"{first.files[stem]} is {height} × {width}, {folder.files[stem]} is {h} × {w}; "
                    "images of one name need one size; where they show one view, give --size H W; where "
                    "their proportions differ they show different views: register and crop them first"
                )


def check_planes(folder: Folder, stem: str):
    """Raise DataError where the planes of a sensor mean something else than measurements."""
    path, header, name = folder.files[stem], folder.headers[stem], folder.name
    planes, last = folder.planes(header), header.channels - 1
    if not planes or min(planes) < 0 or max(planes) > last:
        raise DataError(
            f"{path}: has planes 0 to {last}; {name}:planes={'+'.join(map(str, planes))} cannot be kept"
        )
    if header.palette and name != "label":
        raise DataError(
            f"{path}: has a palette, so its values are numbers of colours and no measurement; store it as "
            "RGB or grey"
        )
    opaque = last in (1, 3) and header.format != "NPY" and "planes" not in folder.settings
    if opaque and name != "label":
        others = "+".join(map(str, range(last)))
        raise DataError(
            f"{path}: has an opacity plane; keep the others with {name}:planes={others} (if opacity holds "
            f"another sensor, name the folder twice: thermal={folder.path} thermal:planes={last})"
        )


def planes_of(folder: Folder, stem: str) -> ndarray:
    """(H, W, planes) of one image, in the type of its header.

    Raises:
        DataError: damaged, NaN or infinite, or integers that float32 cannot hold.
    """
    path, header = folder.files[stem], folder.headers[stem]
    array = read_image(path, palette=True)
    if array.dtype.kind in "iu" and header.dtype == "float32" and np.abs(array.astype(float)).max() > 2**24:
        raise DataError(f"{path}: integers above 2^24; store them as float32 in a coarser unit")
    if header.bits < 8 and not header.palette and folder.name != "label":
        array *= 255 // (2**header.bits - 1)  # a measurement of few levels fills the range of 8 bits
    return array[..., folder.planes(header)].astype(header.dtype)


# ---- labels ----


def read_table(path: str, *columns: str) -> list[dict]:
    """Rows of a csv file with a header, its fields stripped; commas or semicolons.

    Raises:
        DataError: unreadable, or without these columns.
    """
    with reading(path, "a text file in UTF-8", DataError):
        text = Path(path).read_text(encoding="utf-8-sig")
    lines = [line for line in text.splitlines() if line.strip()]
    semicolons = bool(lines) and ";" in lines[0] and "," not in lines[0]
    table = [[value.strip() for value in row] for row in csv.reader(lines, delimiter=",;"[semicolons])]
    header, *rows = table or [[]]
    header = [name.lower() for name in header]
    if set(columns) - set(header) or not rows:
        raise DataError(
            f"{path}: its first line is {','.join(header)!r}; expected a header with {', '.join(columns)}, "
            "and lines below it"
        )
    for row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}: {','.join(row)!r} has {len(row)} fields; the header has {len(header)}")
    return [dict(zip(header, row)) for row in rows]


def hue(position: int) -> tuple[int, int, int]:
    """A colour for a class that has none: hues that lie far apart for neighbouring numbers."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(position * 0.618034 % 1, 0.65, 0.95))


def read_classes(path: str) -> Classes:
    """The table of --classes.

    Raises:
        DataError: columns, ids or colours that cannot be read, or mean two classes.
    """
    rows, classes = read_table(path, "name"), Classes([], [], {}, {})
    classes.by_id = any(row.get("ids") for row in rows) or not any(row.get("colours") for row in rows)
    for number, row in enumerate(rows):
        name = row["name"]
        target = IGNORE_INDEX if name.lower() == "ignore" else len(classes.names)
        if not name or name in classes.names:
            raise DataError(
                f"{path}: {row}: the name is empty or there twice; a class has one line, its ids separated "
                "by spaces"
            )
        with reading(f"{path}: {row}", "ids as 7 8 and colours as #804080 #ff0000", DataError):
            ids = [int(word) for word in row.get("ids", str(number)).split()]
            words = row.get("colours", "").split()
            colours = [int(re.fullmatch("#([0-9a-fA-F]{6})", word)[1], 16) for word in words]
        for table, values in ((classes.ids, ids), (classes.colours, colours)):
            if any(table.setdefault(value, target) != target for value in values):
                raise DataError(f"{path}: {row}: an id or a colour belongs to another class, too")
        if target != IGNORE_INDEX:
            classes.names.append(name)
            classes.palette.append(tuple(colours[0].to_bytes(3, "big")) if colours else hue(target))
    classes.ids.setdefault(IGNORE_INDEX, IGNORE_INDEX)
    return classes


def raw_labels(folder: Folder, stem: str, classes: Classes | None) -> tuple:
    """(H, W) raw ids, or raw colours, int64; and which.

    Raises:
        DataError: lossy, or planes and values that are neither ids nor colours.
    """
    path, header, array = folder.files[stem], folder.headers[stem], planes_of(folder, stem)
    if header.format == "JPEG":
        raise DataError(f"{path}: a JPEG blurs the ids of labels; store labels as png")
    if header.palette and classes is not None and not classes.by_id:
        palette = np.frombuffer(header.palette, np.uint8).reshape(-1, 3)
        if array.max() >= len(palette):
            raise DataError(
                f"{path}: index {array.max()}, but its palette has {len(palette)} colours; store it again"
            )
        array = palette[array[..., 0]]
    if array.shape[2] in (3, 4) and array.dtype == np.uint8:
        return array[..., :3].astype(np.int64) @ (1 << 16, 1 << 8, 1), True
    if array.shape[2] != 1 or (array != np.floor(array)).any():
        raise DataError(
            f"{path}: {header}; expected one plane of ids, or colours; label:planes=0 takes one plane of "
            "several"
        )
    return array[..., 0].astype(np.int64), False


def find_classes(folder: Folder, stems: list[str], options) -> Classes:
    """Every id in the labels is a class; 255 is ignored.

    Raises:
        DataError: coloured labels, which need a table; too many ids; or only 0 and 255.
    """

    def unique(stem: str) -> list[int]:
        raw, coloured = raw_labels(folder, stem, None)
        values = np.unique(raw).tolist()
        if coloured:
            listed = " ".join(f"#{value:06x}" for value in values[:8])
            raise DataError(
                f"{folder.files[stem]}: coloured labels, such as {listed}; say with --classes what they "
                "mean, or give label:planes=0 if the ids stand in one plane"
            )
        return values

    present = set().union(*in_threads(unique, stems, "find classes", options))
    ids = sorted(present - {IGNORE_INDEX})
    if present == {0, IGNORE_INDEX} or not 0 < len(ids) <= IGNORE_INDEX or ids[0] < 0:
        raise DataError(
            f"label={folder.path}: {len(present)} ids from {min(present)} to {max(present)}; without a table "
            "255 is ignored, and there must be 1 to 255 others, none negative and not 0 alone; say with "
            "--classes what the ids mean"
        )
    table = {raw: i for i, raw in enumerate(ids)} | {IGNORE_INDEX: IGNORE_INDEX}
    return Classes([f"class_{raw}" for raw in ids], [hue(i) for i in range(len(ids))], table, {})


def read_label(folder: Folder, stem: str, classes: Classes) -> ndarray:
    """(H, W) uint8 class ids, 255 = ignore.

    Raises:
        DataError: an id or a colour that ``classes`` does not know.
    """
    raw, coloured = raw_labels(folder, stem, classes)
    where = f"{folder.files[stem]}, by the table of --classes"
    if coloured:
        return map_ids(raw, classes.colours, where, "colour #{:06x}")
    return map_ids(raw, classes.ids, where)
