"""The prepared layout: one on-disk contract for any set of modalities. One writer, one reader.

::

    root/
      dataset.json          name, classes, palette, modalities (mmlib.modalities.Modality), source, licence
      index.csv             id,split,condition,case: one row a sample; where some lack sensors, also sensors:
                            the names of those that a sample has, joined by "+" (rgb+thermal), empty = all
      .journal.jsonl        only while a writer is at work, or was killed: the data set is unfinished
      <modality>/<id>.png   uint8 with 1 or 3 channels, uint16 with 1 channel
      <modality>/<id>.npy   everything else, (H, W, C)
      label/<id>.png        uint8 class id, 255 = ignore; no label/ folder = unlabelled data

All images of a sample share one size and one viewpoint. A sample may lack sensors, in any split: what it has
is used, and what it lacks counts nowhere. Every file is written beside its place and moved into it, and a
journal remembers finished samples, so that a writer which is killed or meets a full disk goes on where it
stopped.
"""

import contextlib
import csv
import hashlib
import json
import re
from dataclasses import replace
from os.path import lexists
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch.utils.data import default_collate

from ..config import printable
from ..modalities import IGNORE_INDEX, Modality
from ..outputs import check_output
from ..runtime import atomic_path, digest_files, reading, write_json
from .description import JOURNAL, Description, differences, is_finished, read_description
from .images import DataError, read_image, write_image

COLUMNS = ("id", "split", "condition", "case")
AS_PNG = ("uint8", 1), ("uint8", 3), ("uint16", 1)  # type and channels of what is stored as PNG
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def sample_files(
    root: Path, sample_id: str, modalities: dict[str, Modality], labelled: bool
) -> dict[str, tuple[Path, str, int]]:
    """File, type and channels of a sample's images by modality, and of "label" where there are labels."""
    kinds = {name: (modality.dtype, modality.channels) for name, modality in modalities.items()}
    if labelled:
        kinds["label"] = "uint8", 1
    return {
        name: (root / f"{name}/{sample_id}.{'png' if kind in AS_PNG else 'npy'}", *kind)
        for name, kind in kinds.items()
    }


def check_sample(arrays: dict[str, np.ndarray], classes: int, where: str) -> None:
    """Raise DataError unless all arrays (H, W, C) have one size and every id of "label" is below ``classes``
    or 255.
    """
    sizes = {name: array.shape[:2] for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"{where}: {sizes}; one size is expected, so register the images to one view first")
    label = arrays.get("label", np.uint8(IGNORE_INDEX))
    wrong = np.unique(label[(label >= classes) & (label != IGNORE_INDEX)])
    if wrong.size:
        raise DataError(
            f"{where}: label id {', '.join(map(str, wrong[:8]))} out of range; expected 0 to {classes - 1}, "
            f"or {IGNORE_INDEX} for ignore"
        )


def to_physical(modality: Modality, stored: np.ndarray, where: str) -> np.ndarray:
    """A stored image (H, W, C) as physical values float32.

    Raises:
        DataError: values that are not finite, or a negative distance: both would be trained on in silence.
    """
    physical = modality.to_physical(stored)
    if modality.dtype == "float32" and not np.isfinite(physical).all():
        raise DataError(
            f"{where}: {modality.name} has NaN or infinite values; replace them (sparse sensor: 0 = no "
            "measurement)"
        )
    if modality.picture == "range" and physical[..., 0].min() < 0:
        raise DataError(
            f"{where}: {modality.name} has a negative range; expected distances above 0, and 0 where nothing "
            "was measured"
        )
    return physical


def physical_image(modality: Modality, stored: np.ndarray, where: str) -> torch.Tensor:
    """``to_physical`` as a tensor (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(to_physical(modality, stored, where).transpose(2, 0, 1)))


class Writer:
    """Write a prepared data set sample by sample; resumable; measures statistics over the split "train".

    >>> with Writer(root, description) as writer:                       # doctest: +SKIP
    ...     for id, ... in samples:
    ...         if id not in writer.rows:
    ...             writer.add(id, "train", {"rgb": rgb}, label)

    ``dataset.json`` and ``index.csv`` appear when the block ends well. Statistics of sparse sensors include
    the empty pixels.
    """

    def __init__(self, root: str | Path, description: Description):
        self.root, self.description = Path(root), description
        self.rows, self._journal_path = {}, self.root / JOURNAL
        check_output(root)
        if is_finished(self.root):
            raise DataError(
                f"{self.root}: already holds a finished data set; use it, delete it, or choose another folder"
            )
        self.root.mkdir(parents=True, exist_ok=True)
        header = json.dumps(description.to_dict(), sort_keys=True)
        self._journal, self._lock = open(self._journal_path, "a+", encoding="utf-8"), Lock()
        self._journal.seek(0)
        first, *lines = self._journal.read().split("\n")
        if not header.startswith(first):  # what a kill left of it will do
            self._journal.close()
            with reading(self._journal_path, "the journal of a data set", DataError):
                before = {**json.loads(first)}
            raise DataError(
                f"{self.root}: holds an unfinished data set with another description "
                f"({differences(before, json.loads(header))}); choose another folder or delete it"
            )
        # A line that was being written when a process died is cut short: it does not count, and ends here.
        for line in lines:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                self.rows[row["id"]] = row
        print("" if first else header, file=self._journal, flush=True)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._journal.close()
        if kind is None:
            self._finish()

    def add(
        self,
        sample_id: str,
        split: str,
        images: dict[str, np.ndarray],
        label: np.ndarray | None = None,
        condition: str = "",
        case: str = "",
    ) -> None:
        """Write one sample: stored arrays (H, W, C) by modality name, one or more, and a uint8 label (H, W),
        or None. Threads may add at once.

        Raises:
            DataError: an unsafe or repeated id, no modality or an unknown one, a wrong dtype, size or channel
                count, an unknown class id.
        """
        where, labelled = f"sample {sample_id!r}", label is not None
        if not _SAFE_ID.fullmatch(sample_id):
            raise DataError(
                f"{where}: use letters, digits, '.', '_' and '-' in an id, starting with a letter or digit"
            )
        if sample_id in self.rows:
            raise DataError(f"{where} is there already; ids must differ")
        available = self.description.modalities
        modalities = {name: modality for name, modality in available.items() if name in images}
        arrays = images | {"label": label[..., None]} if labelled else images
        files = sample_files(self.root, sample_id, modalities, labelled)
        if not modalities or set(arrays) != set(files):
            raise DataError(f"{where}: has {sorted(images)}, expected one or more of {sorted(available)}")
        for name, (_, dtype, channels) in files.items():
            array = arrays[name]
            if array.dtype != dtype or array.shape[2:] != (channels,) or not array.size:
                raise DataError(
                    f"{where}, {name}: expected {dtype} (H, W, {channels}), got {array.dtype} {array.shape}"
                )
        check_sample(arrays, len(self.description.classes), where)
        row = dict(zip(COLUMNS, (sample_id, split, condition, case))) | {"labelled": labelled}
        if len(modalities) < len(available):
            row["sensors"] = "+".join(modalities)
        for name, modality in modalities.items():
            physical = to_physical(modality, images[name], where)
            if split == "train":
                values = modality.compressed(physical).reshape(-1, modality.channels).astype(np.float64)
                sums = len(values), values.sum(0).tolist(), (values**2).sum(0).tolist()
                row.setdefault("sums", {})[name] = sums
        for name, (path, *_) in files.items():
            write_image(path, arrays[name])
        with self._lock:
            if sample_id in self.rows:  # another thread added it meanwhile
                raise DataError(f"{where} is there already; ids must differ")
            self.rows[sample_id] = row
            print(json.dumps(row), file=self._journal, flush=True)

    def _finish(self) -> None:
        if not self.rows:
            raise DataError(f"{self.root}: no sample was written; check the source folder")
        # Sorted, so that the sums come in one order, whatever the order the samples came in.
        rows = sorted(self.rows.values(), key=lambda row: (row["split"], row["id"]))
        unlabelled = [row["id"] for row in rows if not row["labelled"]]
        if 0 < len(unlabelled) < len(rows):
            raise DataError(
                f"{self.root}: {len(unlabelled)} of {len(rows)} samples have no label ({unlabelled[0]} is "
                "one); label all or none, or write two data sets"
            )
        modalities = {}
        for name, modality in self.description.modalities.items():
            sums = [row["sums"][name] for row in rows if name in row.get("sums", {})]
            if sums and not (modality.mean and modality.std):  # statistics given by the caller stand
                count, total, squares = (np.sum(parts, 0) for parts in zip(*sums))
                mean = total / count
                # A channel that never changes carries nothing: std 1 leaves it at zero instead of dividing by
                # zero.
                variance = squares / count - mean**2
                std = np.sqrt(np.where(variance > 1e-12, variance, 1.0))
                modality = replace(modality, mean=np.round(mean, 6).tolist(), std=np.round(std, 6).tolist())
            modalities[name] = modality
        write_json(self.root / "dataset.json", replace(self.description, modalities=modalities).to_dict())
        with (
            atomic_path(self.root / "index.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            columns = [*COLUMNS] + ["sensors"] * any("sensors" in row for row in rows)
            lines = [columns, *([row.get(column, "") for column in columns] for row in rows)]
            csv.writer(file, lineterminator="\n").writerows(lines)
        self._journal_path.unlink(missing_ok=True)  # another process may have finished the same


def read_index(root: str | Path) -> list[dict[str, str]]:
    """Rows of ``root/index.csv`` as dicts with the keys id, split, condition, case; also sensors, where the
    file has this column.
    """
    path = Path(root) / "index.csv"
    with reading(path, "an index of samples", DataError), open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    if not rows or set(COLUMNS) - set(rows[0]):
        raise DataError(f"{path}: expected the columns {', '.join(COLUMNS)} and at least one row")
    ids = set()
    for row in rows:
        name, whole = row["id"], None not in row and all(value == printable(value) for value in row.values())
        if not whole or not row["split"] or not _SAFE_ID.fullmatch(name) or name in ids:
            raise DataError(
                f"{path}: the row of {name!r} is not one of a value for each column, all printable, with a "
                "split and a safe id that no other row has"
            )
        ids.add(name)
    return rows


class PreparedDataset:
    """One split of a prepared data set, as a torch map-style dataset.

    Args:
        root: the prepared folder.
        split: "train", "val", "test", or any name in the index.
        modalities: names to load, in this order; None = all.
        augment: function (images, label, rng, modalities) -> (images, label) in physical space
            (mmlib.data.transforms).
        cache: keep decoded samples in memory.

    Samples that have none of these modalities are not part of the split.

    Raises:
        DataError: folder, index or split missing, or the index names an unknown sensor; at access: unreadable
            file, wrong size, type or channel count, unknown class id.
        ValueError: unknown or repeated modality name.
    """

    def __init__(
        self, root: str | Path, split: str = "train", modalities=None, augment=None, cache: bool = False
    ):
        self.root, self.split, self.augment = Path(root), split, augment
        self.description = read_description(root)
        available = self.description.modalities
        names = list(available if modalities is None else modalities)
        unknown = ", ".join(repr(name) for name in names if name not in available)
        if unknown:
            raise ValueError(f"unknown modality {unknown}; {self.root} has {', '.join(available)}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{names}: name each modality once, at least one")
        self.modalities = {name: available[name] for name in names}
        rows = read_index(root)
        for row in rows:
            named = row.get("sensors")
            if named and {*named.split("+")} - {*available}:
                raise DataError(
                    f"{self.root}/index.csv: the row of {row['id']!r} names the sensors {named!r}; "
                    f"expected some of {', '.join(available)} joined by '+', or nothing for all of them"
                )
        self.rows = [row for row in rows if row["split"] == split]
        self.rows = [row for index, row in enumerate(self.rows) if self.present(index)]
        if not self.rows:
            splits = ", ".join(sorted({row["split"] for row in rows}))
            raise DataError(
                f"{self.root}: no sample in split {split!r} that has {' or '.join(names)}; its splits are "
                f"{splits}"
            )
        self.labelled = lexists(self.root / "label")  # also as a link to nowhere
        self.cache, self._cache = cache, {}

    def __len__(self) -> int:
        return len(self.rows)

    def present(self, index: int) -> list[str]:
        """Names of the modalities that a sample has, of those of this data set and in their order."""
        named = self.rows[index].get("sensors")
        return [name for name in self.modalities if not named or name in named.split("+")]

    def lacking(self) -> dict[str, int]:
        """How many samples lack a modality, for each that any of them lacks."""
        there = [self.present(index) for index in range(len(self))]
        counts = {name: sum(name not in names for names in there) for name in self.modalities}
        return {name: count for name, count in counts.items() if count}

    def require_labels(self) -> None:
        """Raise ValueError unless a pixel of the split has a class. Samples are read until one has."""
        samples = range(len(self) if self.labelled else 0)
        if not any((self.stored(index)[1] != IGNORE_INDEX).any() for index in samples):
            raise ValueError(
                f"{self.root} has no labels in its split {self.split!r}, or all of them are {IGNORE_INDEX} "
                "(ignore): nothing can be trained or scored on it; part B clusters it without a folder label/"
            )

    def files(self, index: int) -> dict[str, tuple[Path, str, int]]:
        """File, type and channels of a sample's images by modality, and of "label" where there are labels."""
        modalities = {name: self.modalities[name] for name in self.present(index)}
        return sample_files(self.root, self.rows[index]["id"], modalities, self.labelled)

    def stored(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Stored arrays (H, W, C) by name, and the uint8 label (H, W): all 255 without labels."""
        if index in self._cache:
            return self._cache[index]
        images = {name: read_image(*file) for name, file in self.files(index).items()}
        check_sample(images, len(self.description.classes), f"{self.root}, sample {self.rows[index]['id']!r}")
        if self.labelled:
            label = images.pop("label")[..., 0]
        else:
            label = np.full(next(iter(images.values())).shape[:2], IGNORE_INDEX, np.uint8)
        if self.cache:
            self._cache[index] = images, label
        return images, label

    def digest(self) -> dict[str, str]:
        """Digests of what a run reads here, so that it is continued, scored and compared on the same data.
        For the split "train": "classes of train" (their names), "sensors of train" (what they are, and their
        statistics), "index of train" (the rows) and "images of train" (the files of the modalities and the
        labels).
        """
        sensors = [modality.to_dict() for modality in self.modalities.values()]
        parts = {"classes": self.description.classes, "sensors": sensors, "index": self.rows}
        digests = {
            f"{name} of {self.split}": hashlib.blake2b(json.dumps(part).encode(), digest_size=16).hexdigest()
            for name, part in parts.items()
        }
        files = (path for index in range(len(self)) for path, *_ in self.files(index).values())
        return digests | {f"images of {self.split}": digest_files(self.root, files)}

    def physical(self, index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Physical values (C, H, W) float32 by name, and the label (H, W) int64."""
        images, label = self.stored(index)
        where = f"{self.root}, sample {self.rows[index]['id']!r}"
        physical = {
            name: physical_image(self.modalities[name], image, where) for name, image in images.items()
        }
        return physical, torch.from_numpy(label.astype(np.int64))

    def __getitem__(self, key) -> dict:
        """``index``, or ``(index, seed)`` to augment with randomness that depends on the seed alone."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        images, label = self.physical(index)
        if self.augment is not None and seed is not None:
            images, label = self.augment(images, label, np.random.default_rng(seed), self.modalities)
        images = {name: self.modalities[name].to_network(image) for name, image in images.items()}
        names = {key: self.rows[index][key] for key in ("id", "condition", "case")}
        return {"images": images, "label": label} | names


def collate(samples: list[dict]) -> dict:
    """Samples -> a batch: images name -> (B, C, H, W), zeros where a sample lacks the sensor; present (B, M),
    whether it has it, in the order of the images; label (B, H, W); lists of ids, conditions and cases.

    A sensor that none of the samples has is not in the batch.
    """
    sizes = {tuple(sample["label"].shape) for sample in samples}
    if len(sizes) > 1:
        raise DataError(
            f"samples of different sizes {sorted(sizes)} in one batch; give a crop size (--crop) to train on "
            "them"
        )
    images = [sample["images"] for sample in samples]
    blank = {name: image.new_zeros(()).expand_as(image) for part in images for name, image in part.items()}
    whole = [sample | {"images": blank | sample["images"]} for sample in samples]
    present = torch.tensor([[name in part for name in blank] for part in images])
    return default_collate(whole) | {"present": present}
