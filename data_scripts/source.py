"""The source of a data set: options of every script, where the files are, and what its lists and labels hold.

``common`` offers all of it to the scripts.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from files import unpack
from numpy import ndarray

from mmlib.config import AtLeast, check_settings
from mmlib.data.images import DataError
from mmlib.modalities import IGNORE_INDEX


@dataclass(frozen=True)
class Options:
    """Options of every script; a script may add its own."""

    source: tyro.conf.Positional[str] = ""
    """Unpacked folder, or archive (zip, tar, tar.gz), which is unpacked into OUT-source first."""
    out: str = ""
    """Folder to write, or with --check to read."""
    size: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Height and width to resize to; 0 0 = the native size."""
    check: bool = False
    """Only check the prepared folder OUT: every file, size, type and class id, the counts, the report, the
    contact sheet.
    """
    partial: bool = False
    """Accept fewer samples than the official counts."""
    workers: Annotated[int, AtLeast(1)] = 4
    """Threads that read and write samples."""
    progress: bool = True
    """Show progress bars."""

    def recorded(self) -> dict:
        """The options that decide what is written, as JSON: kept in the description, so that no folder mixes
        two settings.
        """
        without = ("source", "out", "check", "partial", "workers", "progress")
        values = {name: value for name, value in vars(self).items() if name not in without}
        return json.loads(json.dumps(values, default=str))

    def inputs(self) -> list[str]:
        """Files and folders that are read."""
        return [self.source]


@dataclass(frozen=True)
class Sample:
    """One sample before it is read: id, split, condition and case of the index, and its files by any names
    the script likes.
    """

    id: str
    split: str
    condition: str = ""
    case: str = ""
    files: Mapping[str, Path] = field(default_factory=dict)


def palette(text: str) -> list[tuple[int, ...]]:
    """Colours such as "#804080 #f423e8" -> their red, green and blue, 0 to 255."""
    return [tuple(bytes.fromhex(word[1:])) for word in text.split()]


def check_options(options: Options) -> None:
    """Check every setting against its bound, and that nothing which is read could be overwritten.

    Raises:
        ValueError: names the flag.
        DataError: no output folder, or one that is, holds or lies in an input.
    """
    if not options.out:
        raise DataError("--out is missing: the folder to write, or with --check to read")
    check_settings(options)
    if any(options.size) and 0 in options.size:
        height, width = options.size
        raise DataError(f"--size {height} {width}: give a height and a width, or 0 0 for the native size")
    out = Path(options.out).resolve()
    for name in filter(None, [] if options.check else options.inputs()):
        source = Path(name).resolve()
        if out == source or out in source.parents or source in out.parents:
            raise DataError(
                f"--out {options.out}: is, holds or lies in the input {name}, whose files would be mixed "
                "with "
                "what is written, or replaced by it; choose a folder beside it"
            )


def locate(options: Options, names: Iterable[str], how: str) -> Path:
    """The folder that holds all of ``names`` (files or folders): the source itself or one at most three
    levels below it.

    An archive is unpacked first. ``how`` says where to get the data and under which licence.

    Raises:
        DataError: no such source, or nothing in it that looks as documented; repeats ``how``.
    """
    check_options(options)
    names = list(names)
    if not options.source:
        raise DataError(f"name the archive or the unpacked folder.\n{how}")
    source = Path(options.source)
    if not source.exists():
        raise DataError(f"{source}: not found.\n{how}")
    if source.is_file():
        source = unpack([source], Path(f"{options.out.rstrip('/')}-source"), options.progress)
    level = [source]
    for _ in range(4):
        for folder in level:
            if all((folder / name).exists() for name in names):
                return folder
        below = sorted(child for folder in level for child in folder.iterdir() if child.is_dir())
        level = [child for child in below if child.name[0] != "." and child.name != "__MACOSX"][:1000]
    packed = sorted(
        path.name for path in source.iterdir() if path.name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))
    )
    hint = (
        f" (archives in it must be unpacked, or named one at a time: {', '.join(packed)})" if packed else ""
    )
    raise DataError(f"{source}: no folder in it holds {', '.join(names)}{hint}.\n{how}")


def read_stems(path: Path, pattern: str, example: str) -> list[str]:
    """Stems of a list in a text file.

    Raises:
        DataError: no such file, a word that is no stem, a stem that stands twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: not found; unpack the whole archive")
    stems = path.read_text(encoding="utf-8-sig", errors="replace").split()
    for stem in stems:
        if not re.fullmatch(pattern, stem, re.ASCII):
            raise DataError(f"{path}: {stem!r}; expected stems such as {example}, one a line")
    if len(set(stems)) < len(stems):
        raise DataError(f"{path}: lists {max(stems, key=stems.count)} twice; take the list from the archive")
    return stems


def check_disjoint(lists: Mapping[str, list[str]], where) -> None:
    """Raise DataError where a stem stands in two of the lists, by split."""
    for one, other in combinations(lists, 2):
        if both := set(lists[one]) & set(lists[other]):
            raise DataError(
                f"{where}: {min(both)} stands in {one}.txt and in {other}.txt; take the lists from the "
                "archive"
            )


def map_ids(ids: ndarray, table: Mapping[int, int], where, what: str = "id {}") -> ndarray:
    """Ids of the source -> uint8 class ids, 255 = ignore. ``what`` is how an id is written in an error.

    Raises:
        DataError: an id that ``table`` does not know, or ids that are no integers; names the file and the
            ids.
    """
    if ids.dtype.kind not in "iu":
        raise DataError(f"{where}: label ids of type {ids.dtype}; expected integers")
    present = np.unique(ids)
    unknown = [value for value in present.tolist() if value not in table]
    if unknown:
        classes = sorted(set(table) - {IGNORE_INDEX}) or [IGNORE_INDEX]
        kind, number = what.split()
        names, listed = (", ".join(map(number.format, values)) for values in (unknown[:8], classes))
        if len(classes) > 1 and len(classes) == 1 + classes[-1] - classes[0]:
            listed = f"{classes[0]} to {classes[-1]}"
        else:
            listed = f"one of {listed}"
        ignored = f", or {IGNORE_INDEX}" * (IGNORE_INDEX in table)
        raise DataError(f"{where}: unknown label {kind} {names}; expected {listed}{ignored}")
    values = np.array([table[value] for value in present.tolist()], np.uint8)
    return values[np.searchsorted(present, ids)]


def verify_counts(
    samples: Iterable[Sample], expected: Mapping[str, int], options: Options, what: str
) -> None:
    """Raise DataError unless every split has its official number of samples; with --partial, more than that
    is still an error.
    """
    counts, wrong = Counter(sample.split for sample in samples), []
    for split in sorted({*counts, *expected}):
        count, official = counts[split], expected.get(split, 0)
        if count > official or (count < official and not options.partial):
            wrong.append(f"{split}: {count} of {official}")
    if wrong:
        raise DataError(
            f"{what}: found {', '.join(wrong)} samples; complete the download, or give --partial to go on "
            "with "
            "what is there"
        )


def complete(samples: list[Sample], options: Options) -> list[Sample]:
    """The samples whose files are all there.

    Raises:
        DataError: a file is missing; with --partial such samples are left out instead, and their number is
            printed.
    """
    missing = {sample.id: path for sample in samples for path in sample.files.values() if not path.exists()}
    if missing and not options.partial:
        first = next(iter(missing.values()))
        raise DataError(
            f"{first}: not found; {len(missing)} of {len(samples)} samples lack files; complete the "
            "download, or give --partial"
        )
    if missing:
        print(f"left out: {len(missing)} of {len(samples)} samples, which lack files")
    return [sample for sample in samples if sample.id not in missing]
