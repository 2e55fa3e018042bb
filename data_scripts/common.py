"""What the scripts of this folder share: options, the conversion loop, checks, the report and the contact
sheet.

A script states what is particular to its data set: where it comes from, how its files are named and encoded,
how many there are. It lists ``Sample``s, reads one into stored arrays, and hands both to ``run``.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from os.path import commonpath
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy import ndarray
from source import (  # noqa: F401 - the scripts take all of it from here
    Options,
    Sample,
    Size,
    check_options,
    complete,
    in_threads,
    locate,
    map_ids,
    nearest,
    read_ids,
    read_stems,
    verify_counts,
)

from mmlib.data.images import DataError, read_image
from mmlib.data.plausible import evenly_spaced
from mmlib.data.prepared import (
    COLUMNS,
    Description,
    PreparedDataset,
    Writer,
    differences,
    is_finished,
    read_description,
    read_index,
)
from mmlib.data.transforms import resize
from mmlib.modalities import IGNORE_INDEX, Modality
from mmlib.outputs import writing
from mmlib.runtime import digest_files, limit_threads, one_line, read_json

# Images (H, W, C) by sensor, and the label (H, W), where there is one.
Arrays = tuple[dict[str, ndarray], ndarray | None]


def start(main: Callable, options: type, doc: str):
    """Parse the command line and run ``main``, alone in the folder that it writes, which is ours and apart
    from all that is read.
    """
    limit_threads()
    with one_line():
        settings = tyro.cli(options, description=doc)
        check_options(settings)
        out, inputs = ("", []) if settings.check else (settings.out, settings.inputs())
        with writing(out, inputs):
            main(settings)


FACTS = Path(__file__).parent / "descriptions"  # of the public data sets


def read_facts(name: str) -> dict:
    """A table of numbers or addresses of a public data set."""
    return read_json(FACTS / f"{name}.json", "facts of a data set")


def read_official(name: str) -> Description:
    """The description of a public data set as far as no option decides it."""
    return read_description(FACTS / name)


def resized(
    images: dict[str, ndarray], label: ndarray | None, modalities: Mapping[str, Modality], size
) -> Arrays:
    """Stored images (H, W, C) and label (H, W) at another size, through physical space; labels and sparse
    sensors by nearest neighbour.
    """
    if not any(size):
        return images, label

    def scaled(array: ndarray, sparse: bool) -> ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32))
        return resize(tensor, tuple(size), sparse).numpy().transpose(1, 2, 0)

    images = dict(images)
    for name, array in images.items():
        modality = modalities[name]
        if modality.sparse:  # stored values are exact in float32, and none is mixed with another
            images[name] = scaled(array, True).astype(array.dtype)
        else:
            images[name] = modality.to_stored(scaled(modality.to_physical(array), False))
    if label is not None:
        label = scaled(label[..., None], True)[..., 0].astype(np.uint8)
    return images, label


def prepared_samples(options: Options) -> list[Sample]:
    """What the index of the prepared folder lists."""
    return [Sample(*map(row.get, COLUMNS)) for row in read_index(options.out)]


def list_samples(options: Options, samples: Callable, names: Iterable[str], how: str) -> list[Sample]:
    """``samples(folder, options)`` of the folder that ``locate`` returns; with --check what was prepared."""
    return prepared_samples(options) if options.check else samples(locate(options, names, how), options)


def run(
    options: Options,
    description: Description,
    samples: list[Sample],
    read: Callable,
    expected: Mapping = {},
):
    """Convert all samples, resumably, then report; with --check only read back what is there.

    Args:
        samples: all of them; with --check any list.
        read: sample -> (stored images (H, W, C) by name, uint8 label (H, W) or None) at native size.
        expected: official numbers of samples (``verify_counts``); {} = not known.

    Raises:
        DataError: unreadable or unexpected files, each named; nothing half-written is taken for whole.
    """
    description = replace(description, extra=description.extra | {"options": options.recorded()})
    if options.check:
        return check(options, description, expected)
    # What one source began no other one may continue: its files by name, size and time.
    sources = [Path(name).resolve() for name in options.inputs() if name]
    files = [file for path in sources for file in (path, *path.rglob("*")) if file.is_file()]
    description.extra["source digest"] = digest_files(commonpath(files or "/"), files, 0)
    planned = {sample.id: (sample.split, sample.condition, sample.case) for sample in samples}
    if len(planned) < len(samples):
        id = Counter(sample.id for sample in samples).most_common(1)[0][0]
        raise DataError(f"{options.source}: {id!r} is listed twice; take the lists from the archive")
    verify_counts(samples, expected, options, options.source)

    def match(rows: Iterable[Mapping]):
        """Every sample that was written must be planned, with its split, condition and case."""
        for row in rows:
            before, now = tuple(map(row.get, COLUMNS[1:])), planned.get(row["id"])
            if before != now:
                raise DataError(
                    f"{options.out}: holds other samples ({row['id']!r} was {before}, is {now}); delete it, "
                    "or choose another folder"
                )

    if not samples:
        raise DataError(f"{options.source}: no sample found")
    if is_finished(options.out):
        same(options.out, description)
        match(rows := read_index(options.out))
        if len(rows) == len(planned):
            print(f"{options.out} is prepared already; --check reads it all back")
            return report(options)

    with Writer(options.out, description) as writer:

        def convert(sample: Sample) -> None:
            images, label = resized(*read(sample), description.modalities, options.size)
            writer.add(sample.id, sample.split, images, label, sample.condition, sample.case)

        match(writer.rows.values())
        waiting = [sample for sample in samples if sample.id not in writer.rows]
        list(in_threads(convert, waiting, "prepare", options))
    return report(options)


def same(root: str | Path, description: Description):
    """Raise DataError unless the prepared folder ``root`` was made with these options, classes and,
    statistics aside, modalities.
    """

    def facts(each: Description, other: Description) -> dict:
        plain = {f"modality {name}": replace(m, mean=(), std=()) for name, m in each.modalities.items()}
        plain["class names"] = list(each.classes)
        # With --check there is no source, and an earlier version kept nothing of it.
        plain["digest of the source"] = (other.extra | each.extra).get("source digest")
        return each.extra.get("options", {}) | plain

    have = read_description(root)
    if differ := differences(facts(have, description), facts(description, have)):
        raise DataError(
            f"{root}: prepared with other options ({differ}); give the same ones, or choose another folder"
        )


def check(options: Options, description: Description, expected: Mapping = {}):
    """Read back every file of a prepared folder; raises DataError where one is not as it should be, else
    reports.
    """
    root = Path(options.out)
    same(root, description)
    samples = prepared_samples(options)
    verify_counts(samples, expected, options, options.out)
    if expected and not (root / "label").is_dir():
        raise DataError(f"{root / 'label'}: not found, though this data set has labels; prepare it again")
    ids = {sample.id for sample in samples}
    for folder in (*description.modalities, "label"):
        strange = sorted(path for path in (root / folder).glob("[!.]*") if path.stem not in ids)
        if strange:
            raise DataError(f"{strange[0]}: not in index.csv; {len(strange)} such files; remove them")

    sizes = Counter()
    for split in sorted({sample.split for sample in samples}):
        data = PreparedDataset(root, split)
        samples_of = in_threads(data.stored, range(len(data)), f"check {split}", options)
        sizes.update(label.shape for _, label in samples_of)
    if any(options.size) and set(sizes) != {tuple(options.size)}:
        raise DataError(f"{root}: images of {', '.join(map(str, sizes))}; expected {options.size} everywhere")
    listed = ", ".join(f"{height} × {width}" for height, width in sizes)
    print(f"{root}: {len(samples)} samples of {listed} pixels, every file as it should be")
    report(options)


def report(options: Options):
    """Print samples by split and condition, class frequencies and statistics of a prepared data set; save its
    contact sheet.
    """
    root = Path(options.out)
    description, samples = read_description(root), prepared_samples(options)
    for split in sorted({sample.split for sample in samples}):
        inside = [sample for sample in samples if sample.split == split]
        groups = Counter(name for s in inside for name in (s.condition, s.case) if name)
        named = "".join(f", {name} {count}" for name, count in sorted(groups.items()))
        print(f"{split}: {len(inside)} samples{named}")
    if (root / "label").is_dir():

        def counts(sample: Sample) -> ndarray:
            label = read_image(root / "label" / f"{sample.id}.png", "uint8", 1)
            return np.bincount(label.ravel(), minlength=256)

        pixels = sum(in_threads(counts, samples, "labels", options))
        shares = 100 * pixels / max(1, pixels[:IGNORE_INDEX].sum())
        listed = ", ".join(f"{name} {share:.2f}" for name, share in zip(description.classes, shares))
        print(f"share of the labelled pixels in %: {listed}")
        print(f"ignored: {100 * pixels[IGNORE_INDEX] / pixels.sum():.1f} % of all pixels")
    else:
        print("no labels")
    for name, modality in description.modalities.items():
        unit = "log(1 + |x|) of " * modality.compress + (modality.unit or "no unit")
        mean, std = (
            ", ".join(f"{value:.4g}" for value in values) or "not measured"
            for values in (modality.mean, modality.std)
        )
        print(f"{name} ({modality.channels} × {modality.dtype}, {unit}): mean {mean}; std {std}")
    contact_sheet(root)
    print(f"contact sheet: {root}/contact_sheet.png")


def contact_sheet(root: str | Path):
    """``root/contact_sheet.png``: every sensor and the labels of six samples spread evenly over the index."""
    from mmlib.figures import label_picture, picture, picture_grid, save_figure, use_style

    use_style()
    pictures, titles = [], []
    for row in evenly_spaced(read_index(root), 6):
        data = PreparedDataset(root, row["split"])
        images, label = data.physical(data.rows.index(row))
        panels = {name: picture(data.modalities[name], image) for name, image in images.items()}
        if data.labelled:
            panels["label"] = label_picture(label, data.description.palette)
        pictures.append(panels)
        titles.append(f"{row['split']} {row['condition']}\n{row['case']}".strip())
    save_figure(picture_grid(pictures, titles), Path(root) / "contact_sheet.png", 80)
