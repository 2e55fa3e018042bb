"""What the scripts of this folder share: options, the conversion loop, checks, the report and the contact
sheet.

A script states what is particular to its data set: where it comes from, how its files are named and encoded,
how many there are. It lists ``Sample``s, reads one into stored arrays, and hands both to ``run``.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from files import unpack

from mmlib.data.images import read_image
from mmlib.data.prepared import (
    DataError,
    Description,
    PreparedDataset,
    Writer,
    is_finished,
    read_description,
    read_index,
)
from mmlib.data.transforms import resize
from mmlib.modalities import IGNORE_INDEX, Modality
from mmlib.runtime import atomic_path, limit_threads, progress_bar


@dataclass(frozen=True)
class Options:
    """Options of every script; a script may add its own."""

    source: tyro.conf.Positional[str] = ""
    """Unpacked folder, or archive (zip, tar, tar.gz), which is unpacked into OUT-source first."""
    out: str = ""
    """Folder to write, or with --check to read."""
    size: tuple[int, int] = (0, 0)
    """Height and width to resize to; 0 0 = the native size."""
    check: bool = False
    """Only check the prepared folder OUT: every file, size, type and class id, the counts, the report, the
    contact sheet.
    """
    partial: bool = False
    """Accept fewer samples than the official counts."""
    workers: int = 4
    """Threads that read and write samples."""
    progress: bool = True
    """Show progress bars."""

    def recorded(self) -> dict:
        """The options that decide what is written, as JSON: kept in the description, so that no folder mixes
        two settings.
        """
        without = {"source", "out", "check", "partial", "workers", "progress"}
        return json.loads(
            json.dumps(
                {name: value for name, value in vars(self).items() if name not in without}, default=str
            )
        )


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


def start(main: Callable, options: type, doc: str) -> None:
    """Parse the command line and run ``main``; what a user can mend ends in one line and exit code 1.
    MMLIB_DEBUG=1: a traceback.
    """
    limit_threads()
    try:
        main(tyro.cli(options, description=doc))
    except (ValueError, OSError) as error:
        if os.environ.get("MMLIB_DEBUG"):
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")


def locate(options: Options, names: Iterable[str], how: str) -> Path:
    """The folder that holds all of ``names`` (files or folders): the source itself or one at most three
    levels below it.

    An archive is unpacked first. ``how`` says where to get the data and under which licence.

    Raises:
        DataError: no such source, or nothing in it that looks as documented; repeats ``how``.
    """
    names = list(names)
    if not options.out:
        raise DataError("--out is missing: the folder to write")
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
        children = [
            child
            for folder in level
            for child in folder.iterdir()
            if child.name[0] != "." and child.name != "__MACOSX"
        ]
        level = sorted(child for child in children if child.is_dir())[:1000]
    packed = sorted(
        path.name for path in source.iterdir() if path.name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))
    )
    hint = (
        f" (archives in it must be unpacked, or named one at a time: {', '.join(packed)})" if packed else ""
    )
    raise DataError(f"{source}: no folder in it holds {', '.join(names)}{hint}.\n{how}")


def map_ids(ids: np.ndarray, table: Mapping[int, int], where) -> np.ndarray:
    """Ids of the source -> uint8 class ids, 255 = ignore.

    Raises:
        DataError: an id that ``table`` does not know, or ids that are no integers; names the file and the
            ids.
    """
    if ids.dtype.kind not in "iu":
        raise DataError(f"{where}: label ids of type {ids.dtype}; expected integers")
    present = np.unique(ids)
    unknown = [int(value) for value in present if int(value) not in table]
    if unknown:
        known = sorted(set(table) - {IGNORE_INDEX}) if IGNORE_INDEX - 1 not in table else sorted(table)
        row = len(known) > 1 and known == list(range(known[0], known[-1] + 1))
        listed = f"{known[0]} to {known[-1]}" if row else "one of " + ", ".join(map(str, known))
        listed += f", or {IGNORE_INDEX}" * (IGNORE_INDEX in table and IGNORE_INDEX not in known)
        raise DataError(f"{where}: unknown label id {', '.join(map(str, unknown[:8]))}; expected {listed}")
    values = np.array([table[int(value)] for value in present], np.uint8)
    return values[np.searchsorted(present, ids)]


def resized(
    images: dict[str, np.ndarray],
    label: np.ndarray | None,
    modalities: Mapping[str, Modality],
    size: tuple[int, int],
):
    """Stored images (H, W, C) and label (H, W) at another size, through physical space; labels and sparse
    sensors by nearest neighbour.
    """
    if not any(size):
        return images, label

    def scaled(array: np.ndarray, sparse: bool) -> np.ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32))
        return resize(tensor, tuple(size), sparse).numpy().transpose(1, 2, 0)

    def converted(name: str, array: np.ndarray) -> np.ndarray:
        modality = modalities[name]
        if modality.sparse:  # stored values are exact in float32, and none is mixed with another
            return scaled(array, True).astype(array.dtype)
        return modality.to_stored(scaled(modality.to_physical(array), False))

    label = None if label is None else scaled(label[..., None], True)[..., 0].astype(np.uint8)
    return {name: converted(name, array) for name, array in images.items()}, label


def verify_counts(
    samples: Iterable[Sample], expected: Mapping[str, int], options: Options, what: str
) -> None:
    """Raise DataError unless every split has its official number of samples; with --partial, more than that
    is still an error.
    """
    found = Counter(sample.split for sample in samples)
    wrong = [
        s
        for s in {*found, *expected}
        if (found[s] > expected.get(s, 0) if options.partial else found[s] != expected.get(s, 0))
    ]
    if wrong:
        listed = ", ".join(f"{split}: {found[split]} of {expected.get(split, 0)}" for split in sorted(wrong))
        raise DataError(
            f"{what}: found {listed} samples; complete the download, or give --partial to go on with what is there"
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
            f"{first}: not found; {len(missing)} of {len(samples)} samples lack files; complete the download, or give --partial"
        )
    if missing:
        print(f"left out: {len(missing)} of {len(samples)} samples, which lack files")
    return [sample for sample in samples if sample.id not in missing]


def run(
    options: Options,
    description: Description,
    samples: list[Sample],
    read: Callable[[Sample], tuple],
    expected: Mapping[str, int] = {},
):
    """Convert all samples, resumably, then report; with --check only read back what is there.

    Args:
        read: sample -> (stored images (H, W, C) by name, uint8 label (H, W) or None) at native size.
        expected: official number of samples of each split; {} = not known.

    Raises:
        DataError: unreadable or unexpected files, each named; nothing half-written is taken for whole.
    """
    if not options.out:
        raise DataError("--out is missing: the folder to write")
    if any(options.size) and min(options.size) < 1:
        raise DataError(
            f"--size {options.size[0]} {options.size[1]}: give a height and a width, or 0 0 for the native size"
        )
    description = replace(description, extra=description.extra | {"options": options.recorded()})
    if options.check:
        return check(options, description, expected)
    if expected:
        verify_counts(samples, expected, options, str(options.source))
    twice = [id for id, count in Counter(sample.id for sample in samples).items() if count > 1]
    if twice:
        raise DataError(f"{options.source}: {len(twice)} sample ids appear twice, {twice[0]!r} among them")
    if not samples:
        raise DataError(f"{options.source}: no sample found")
    if is_finished(options.out) and {row["id"] for row in read_index(options.out)} == {
        sample.id for sample in samples
    }:
        same(options.out, description)
        print(f"{options.out} is prepared already; --check reads it all back")
        return report(options.out, options.progress)
    with Writer(options.out, description) as writer, ThreadPoolExecutor(max(1, options.workers)) as pool:

        def convert(sample: Sample) -> None:
            images, label = resized(*read(sample), description.modalities, options.size)
            writer.add(sample.id, sample.split, images, label, sample.condition, sample.case)

        planned = {sample.id: (sample.split, sample.condition, sample.case) for sample in samples}
        for id, row in writer.done.items():
            if planned.get(id) != (row["split"], row["condition"], row["case"]):
                raise DataError(
                    f"{options.out}: an unfinished data set of other samples ({id!r}); delete it, or choose another folder"
                )
        waiting = [sample for sample in samples if sample.id not in writer.done]
        pending = [pool.submit(convert, sample) for sample in waiting]
        try:
            for task in progress_bar(
                pending,
                "prepare",
                initial=len(samples) - len(waiting),
                total=len(samples),
                progress=options.progress,
            ):
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return report(options.out, options.progress)


def same(root: str | Path, description: Description) -> None:
    """Raise DataError unless the prepared folder ``root`` was made with these options, classes and,
    statistics aside, modalities.
    """
    found = read_description(root)
    have, want = ((d.extra.get("options") or {}) for d in (found, description))
    if have != want:
        differ = ", ".join(
            f"{name} {have.get(name)}, not {want.get(name)}"
            for name in sorted({*have, *want})
            if have.get(name) != want.get(name)
        )
        raise DataError(
            f"{root}: prepared with other options ({differ}); give the same ones, or choose another folder"
        )
    plain = {name: replace(m, mean=(), std=()) for name, m in found.modalities.items()}
    ours = {name: replace(m, mean=(), std=()) for name, m in description.modalities.items()}
    for what, have, want in (("classes", found.classes, description.classes), ("modalities", plain, ours)):
        if have != want:
            raise DataError(f"{root}: other {what} than this script and these options make; prepare it again")


def check(options: Options, description: Description, expected: Mapping[str, int] = {}) -> None:
    """Read back every file of a prepared folder; raises DataError where one is not as it should be, else
    reports.
    """
    root = Path(options.out)
    same(root, description)
    rows = read_index(root)
    ids = {row["id"] for row in rows}
    if expected:
        verify_counts([Sample(row["id"], row["split"]) for row in rows], expected, options, options.out)
    folders = [root / name for name in description.modalities] + [root / "label"] * (root / "label").is_dir()
    if expected and root / "label" not in folders:
        raise DataError(f"{root / 'label'}: not found, though this data set has labels; prepare it again")
    for folder in folders:
        strange = sorted(path for path in folder.glob("[!.]*") if path.stem not in ids)
        if strange:
            raise DataError(f"{strange[0]}: not in index.csv; {len(strange)} such files; remove them")

    def look(data: PreparedDataset, index: int) -> tuple[int, int]:
        sample_id, (_, label) = data.rows[index]["id"], data.stored(index)
        if any(options.size) and label.shape != tuple(options.size):
            raise DataError(f"{root}, {sample_id!r}: {label.shape}; expected {options.size}, as --size says")
        return label.shape

    sizes = Counter()
    with ThreadPoolExecutor(max(1, options.workers)) as pool:
        for split in sorted({row["split"] for row in rows}):
            data = PreparedDataset(root, split)
            sizes.update(
                progress_bar(
                    pool.map(partial(look, data), range(len(data))),
                    f"check {split}",
                    len(data),
                    progress=options.progress,
                )
            )
    listed = ", ".join(f"{height} × {width}" for height, width in sizes)
    print(f"{root}: {len(rows)} samples of {listed} pixels, every file as it should be")
    report(root, options.progress)


def report(root: str | Path, progress: bool = True) -> None:
    """Print samples by split and condition, class frequencies and statistics of a prepared data set; save its
    contact sheet.
    """
    description, rows = read_description(root), read_index(root)
    for split in sorted({row["split"] for row in rows}):
        of = [row for row in rows if row["split"] == split]
        conditions = Counter(row["condition"] for row in of if row["condition"]) + Counter(
            row["case"] for row in of if row["case"]
        )
        print(
            f"{split}: {len(of)} samples"
            + "".join(f", {name} {count}" for name, count in sorted(conditions.items()))
        )
    if (Path(root) / "label").is_dir():
        pixels = np.zeros(256, np.int64)
        for row in progress_bar(rows, "labels", progress=progress, leave=False):
            pixels += np.bincount(
                read_image(Path(root) / "label" / f"{row['id']}.png", "uint8", 1).ravel(), minlength=256
            )
        labelled = max(1, pixels[:IGNORE_INDEX].sum())
        share = ", ".join(
            f"{name} {100 * count / labelled:.2f}" for name, count in zip(description.classes, pixels)
        )
        print(f"share of the labelled pixels in %: {share}")
        print(f"ignored: {100 * pixels[IGNORE_INDEX] / pixels.sum():.1f} % of all pixels")
    else:
        print("no labels")
    for name, modality in description.modalities.items():
        space = "log(1 + |x|) of " if modality.compress else ""
        mean, std = (
            ", ".join(f"{value:.4g}" for value in values) or "not measured"
            for values in (modality.mean, modality.std)
        )
        print(
            f"{name} ({modality.channels} × {modality.dtype}, {space}{modality.unit or 'no unit'}): mean {mean}; std {std}"
        )
    print(f"contact sheet: {contact_sheet(root)}")


def contact_sheet(root: str | Path, count: int = 6) -> Path:
    """``root/contact_sheet.png``: every sensor and the labels of samples spread evenly over the index."""
    from matplotlib import pyplot as plt

    from mmlib.figures import label_picture, picture, picture_grid, use_style

    use_style()
    rows = read_index(root)
    chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]
    pictures = []
    for row in chosen:
        data = PreparedDataset(root, row["split"])
        images, label = data.physical([r["id"] for r in data.rows].index(row["id"]))
        shown = {name: picture(data.modalities[name], image) for name, image in images.items()}
        pictures.append(
            shown | ({"label": label_picture(label, data.description.palette)} if data.labelled else {})
        )
    figure = picture_grid(
        pictures, ["\n".join(filter(None, (f"{r['split']} {r['condition']}", r["case"]))) for r in chosen]
    )
    path = Path(root) / "contact_sheet.png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=80, bbox_inches="tight")
    plt.close(figure)
    return path
