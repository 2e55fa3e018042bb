"""The source of a data set: options of every script, where the files are, and what its lists and labels hold.

``common`` offers all of it to the scripts.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from files import unpack
from numpy import ndarray

from mmlib.config import Above, AtLeast, check_settings
from mmlib.data.images import DataError, read_image
from mmlib.runtime import progress_bar, without_paths

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Options:
    """Options of every script; a script may add its own."""

    # Options that do not decide what is written.
    unrecorded = ("source", "out", "unpacked_gb", "check", "partial", "workers", "progress")

    source: tyro.conf.Positional[str] = ""
    """Unpacked folder, or archive (zip, tar, tar.gz), which is unpacked into OUT-source first."""
    out: str = ""
    """Folder to write, or with --check to read."""
    size: Annotated[Size, AtLeast(0)] = (0, 0)
    """Height and width to resize to; 0 0 = the native size."""
    unpacked_gb: Annotated[float, Above(0)] = 200.0
    """The most that an archive may hold when it is unpacked, in gigabytes."""
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
        """The options that decide what is written, as JSON without paths: kept in the description, so that no
        folder mixes two settings.
        """
        values = {name: value for name, value in vars(self).items() if name not in self.unrecorded}
        return without_paths(values)

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


def check_options(options: Options):
    """Check every setting against its bound. Raises ValueError: names the flag."""
    if not options.out:
        raise DataError("--out is missing: the folder to write, or with --check to read")
    check_settings(options)
    if any(options.size) and 0 in options.size:
        raise DataError(
            f"--size {'%d %d' % options.size}: give a height and a width, or 0 0 for the native size"
        )


def locate(options: Options, names: Iterable[str], how: str, packed: str = "") -> Path:
    """The folder that holds all of ``names`` (files or folders): the source itself or one at most three
    levels below it.

    An archive is unpacked first, and so are, into one folder, the files of the source that match ``packed``.
    ``how`` says where to get the data and under which licence.

    Raises:
        DataError: no such source, or nothing in it that looks as documented; repeats ``how``.
    """
    source = Path(options.source)
    if not options.source or not source.exists():
        raise DataError(f"name the archive or the unpacked folder; {options.source!r} is not found.\n{how}")
    archives = [source] if source.is_file() else sorted(source.glob(packed)) if packed else []
    if archives:
        target = Path(f"{options.out.rstrip('/')}-source")
        source = unpack(archives, target, options.progress, options.unpacked_gb)
    first, *others = names
    for depth in range(4):
        for path in sorted(source.glob("*/" * depth + first)):
            folder = path.parent
            hidden = re.search(r"/(\.|__MACOSX)", f"/{path.relative_to(source)}")
            if not hidden and all((folder / name).exists() for name in others):
                return folder
    raise DataError(
        f"{source}: no folder in it holds {', '.join(names)} (archives in it must be unpacked, or named one "
        f"at a time).\n{how}"
    )


def read_stems(path: Path, pattern: str, example: str) -> list[str]:
    """Stems of a list in a text file.

    Raises:
        DataError: no such file, a word that is no stem, a stem that stands twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: not found; unpack the whole archive")
    stems = path.read_text(encoding="utf-8-sig", errors="replace").split()
    for stem, count in Counter(stems).items():
        if count > 1 or not re.fullmatch(pattern, stem, re.ASCII):
            raise DataError(f"{path}: {stem!r}; expected stems such as {example}, one a line, each once")
    return stems


def in_threads(function: Callable, items: Sequence, what: str, options: Options) -> Iterator:
    """``function`` of every item, in order, with a progress bar; after an error no further item is begun."""
    with ThreadPoolExecutor(options.workers) as pool:
        yield from progress_bar(pool.map(function, items), what, len(items), progress=options.progress)


def map_ids(ids: ndarray, table: Mapping[int, int], where, what: str = "id {}") -> ndarray:
    """Ids of the source -> uint8 class ids, 255 = ignore. ``what`` is how an id is written in an error.

    Raises:
        DataError: an id that ``table`` does not know; names the file and the ids.
    """
    present = np.unique(ids)
    unknown = [value for value in present.tolist() if value not in table]
    if unknown:
        kind, number = what.split()
        names, listed = (", ".join(map(number.format, values)) for values in (unknown[:8], sorted(table)))
        raise DataError(f"{where}: unknown label {kind} {names}; expected one of {listed}")
    values = np.array([table[value] for value in present.tolist()], np.uint8)
    return values[np.searchsorted(present, ids)]


def read_ids(path: Path, table: Mapping[int, int], size: Size) -> ndarray:
    """(H, W) uint8 class ids of an image of labels, by ``map_ids``; of a palette its numbers count."""
    return map_ids(read_image(path, None, 1, size, palette=True)[..., 0], table, path)


def nearest(array: ndarray, size: Size) -> ndarray:
    """(h, w, C) -> (H, W, C): each pixel takes the value whose centre is nearest to its own."""
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, array.shape))
    return array[rows][:, columns]


def verify_counts(samples: list[Sample], expected: Mapping, options: Options, where):
    """Raise DataError unless there are the official numbers of samples; with --partial, more than that is
    still an error.

    Args:
        expected: numbers by split, condition, "split condition", "split failing" or "split healthy" (with and
            without a case). A split that it does not name may not
            be there. {} = not known.
    """
    counts = Counter()
    for s in samples:
        counts.update({s.split, s.condition, f"{s.split} {s.condition}"})
        counts[f"{s.split} {'failing' if s.case else 'healthy'}"] += 1
    names = {sample.split for sample in samples}.union(expected) if expected else ()
    wrong = []
    for name in sorted(names):
        count, official = counts[name], expected.get(name, 0)
        if count > official or (count < official and not options.partial):
            wrong.append(f"{name}: {count} of {official}")
    if wrong:
        raise DataError(
            f"{where}: found {', '.join(wrong)} samples; complete the download, or give --partial to go on "
            "with what is there"
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
