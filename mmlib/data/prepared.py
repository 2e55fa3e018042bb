"""The prepared layout: one on-disk contract for any set of modalities. One writer, one reader.

::

    root/
      dataset.json          name, classes, palette, modalities (mmlib.modalities.Modality), source, licence
      index.csv             id,split,condition,case: one row a sample; written last, so that a folder without
                            it is unfinished
      <modality>/<id>.png   uint8 with 1 or 3 channels, uint16 with 1 channel
      <modality>/<id>.npy   everything else, (H, W, C)
      label/<id>.png        uint8 class id, 255 = ignore; no label/ folder = unlabelled data

All images of a sample share one size and one viewpoint. Every file is written beside its place and moved into
it, and a journal remembers finished samples, so that a writer which is killed or meets a full disk goes on
where it stopped.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from ..modalities import IGNORE_INDEX, Modality
from ..runtime import atomic_path, digest_files, reading, write_json
from .description import Description, read_description
from .images import DataError, read_image, write_image

COLUMNS = ("id", "split", "condition", "case")
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def sample_files(
    root: Path, sample_id: str, modalities: dict[str, Modality], labelled: bool
) -> dict[str, Path]:
    """The files of a sample: its images by modality, and "label" where there are labels."""
    endings = {}
    for name, modality in modalities.items():
        stored = (modality.dtype, modality.channels)
        endings[name] = "png" if stored in (("uint8", 1), ("uint8", 3), ("uint16", 1)) else "npy"
    if labelled:
        endings["label"] = "png"
    return {name: root / name / f"{sample_id}.{ending}" for name, ending in endings.items()}


def is_finished(root: str | Path) -> bool:
    """Whether ``root`` holds a whole data set: an index, and no journal of a writer at work."""
    return (Path(root) / "index.csv").exists() and not (Path(root) / ".journal.jsonl").exists()


def check_label(label: np.ndarray, classes: int, where: str) -> None:
    """Raise DataError unless every id is below ``classes`` or 255. ``label`` is any uint8 array."""
    bad = np.unique(label[(label >= classes) & (label != IGNORE_INDEX)])
    if bad.size:
        listed = ", ".join(map(str, bad[:8]))
        raise DataError(
            f"{where}: label id {listed} out of range; expected 0 to {classes - 1}, or {IGNORE_INDEX} for "
            "ignore"
        )


def check_values(modality: Modality, stored: np.ndarray, where: str) -> None:
    """Raise DataError for values that are not finite, or a negative distance: both would be trained on in
    silence.
    """
    if stored.dtype.kind == "f" and not np.isfinite(modality.to_physical(stored)).all():
        raise DataError(
            f"{where}: {modality.name} has NaN or infinite values; replace them (sparse sensor: 0 = no "
            "measurement)"
        )
    if (
        modality.picture == "range"
        and modality.to_physical(np.array([stored[..., 0].min(), stored[..., 0].max()])).min() < 0
    ):
        raise DataError(
            f"{where}: {modality.name} has a negative range; expected distances above 0, and 0 where nothing "
            "was measured"
        )


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
        self._journal_path = self.root / ".journal.jsonl"
        self.rows: dict[str, dict] = {}
        if is_finished(self.root):
            raise DataError(
                f"{self.root}: already holds a finished data set; use it, delete it, or choose another folder"
            )
        self.root.mkdir(parents=True, exist_ok=True)
        header = json.dumps(description.to_dict(), sort_keys=True)
        lines = (
            self._journal_path.read_text(encoding="utf-8").splitlines() if self._journal_path.exists() else []
        )
        if lines and lines[0] != header:
            raise DataError(
                f"{self.root}: holds an unfinished data set with another description; choose another folder "
                "or delete it"
            )
        for line in lines[1:]:
            try:
                row = json.loads(line)
                self.rows[row["id"]] = row
            except (ValueError, KeyError, TypeError):  # the line that was being written when the process died
                break
        with atomic_path(
            self._journal_path
        ) as temporary:  # drop such a line before anything is appended to it
            temporary.write_text(
                "\n".join([header, *map(json.dumps, self.rows.values())]) + "\n", encoding="utf-8"
            )
        self._journal, self._lock = open(self._journal_path, "a", encoding="utf-8"), Lock()

    def __enter__(self) -> Writer:
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
        """Write one sample: stored arrays (H, W, C) by modality name, and a uint8 label (H, W) or None.
        Threads may add at once.

        Raises:
            DataError: an unsafe or repeated id, a missing or unknown modality, a wrong dtype, size or channel
                count, an unknown class id.
        """
        if not _SAFE_ID.fullmatch(sample_id):
            raise DataError(
                f"sample id {sample_id!r}: use letters, digits, '.', '_' and '-', starting with a letter or "
                "digit"
            )
        if sample_id in self.rows:
            raise DataError(f"sample id {sample_id!r} is there already; ids must differ")
        modalities = self.description.modalities
        if set(images) != set(modalities):
            raise DataError(
                f"sample {sample_id!r}: has {sorted(images)}, the data set {sorted(modalities)}; every "
                "sample "
                "needs all of them"
            )
        arrays = images if label is None else images | {"label": label[..., None]}
        for name, array in arrays.items():
            dtype, channels = "uint8", 1
            if name != "label":
                dtype, channels = modalities[name].dtype, modalities[name].channels
            if array.dtype != dtype or array.ndim != 3 or array.shape[2] != channels or not array.size:
                raise DataError(
                    f"sample {sample_id!r}, {name}: expected {dtype} (H, W, {channels}), got {array.dtype} "
                    f"{array.shape}"
                )
        sizes = {name: array.shape[:2] for name, array in arrays.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(
                f"sample {sample_id!r}: images differ in size {sizes}; register them to one view and size "
                "first"
            )
        for name, modality in modalities.items():
            check_values(modality, images[name], f"sample {sample_id!r}")
        if label is not None:
            check_label(label, len(self.description.classes), f"sample {sample_id!r}")
        for name, path in sample_files(self.root, sample_id, modalities, label is not None).items():
            write_image(path, arrays[name])
        row = dict(zip(COLUMNS, (sample_id, split, condition, case))) | {"labelled": label is not None}
        if split == "train":
            row["sums"] = {name: self._sums(modality, images[name]) for name, modality in modalities.items()}
        with self._lock:
            if sample_id in self.rows:
                raise DataError(f"sample id {sample_id!r} is there already; ids must differ")
            self.rows[sample_id] = row
            self._journal.write(json.dumps(row) + "\n")
            self._journal.flush()

    @staticmethod
    def _sums(modality: Modality, stored: np.ndarray) -> list:
        values = (
            modality.compressed(modality.to_physical(stored))
            .reshape(-1, modality.channels)
            .astype(np.float64)
        )
        return [len(values), values.sum(0).tolist(), (values**2).sum(0).tolist()]

    def _finish(self) -> None:
        if not self.rows:
            raise DataError(f"{self.root}: no sample was written; check the source folder")
        labelled = [row["labelled"] for row in self.rows.values()]
        if len(set(labelled)) > 1:
            missing = f"{labelled.count(False)} of {len(labelled)}"
            raise DataError(
                f"{self.root}: {missing} samples have no label; label all or none, or write two data sets"
            )
        # Sorted, so that the sums come in one order, whatever the order the samples came in.
        rows = sorted(self.rows.values(), key=lambda row: (row["split"], row["id"]))
        modalities = {}
        for name, modality in self.description.modalities.items():
            sums = [row["sums"][name] for row in rows if "sums" in row]
            if sums and not (modality.mean and modality.std):  # statistics given by the caller stand
                count = sum(s[0] for s in sums)
                mean = np.sum([s[1] for s in sums], 0) / count
                variance = np.maximum(np.sum([s[2] for s in sums], 0) / count - mean**2, 0)
                # A channel that never changes carries nothing: std 1 leaves it at zero instead of dividing by
                # zero.
                std = np.where(variance > 1e-12, np.sqrt(variance), 1.0)
                mean, std = (tuple(np.round(values, 6).tolist()) for values in (mean, std))
                modality = replace(modality, mean=mean, std=std)
            modalities[name] = modality
        write_json(self.root / "dataset.json", replace(self.description, modalities=modalities).to_dict())
        with (
            atomic_path(self.root / "index.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        self._journal_path.unlink(missing_ok=True)  # another process may have finished the same


def read_index(root: str | Path) -> list[dict[str, str]]:
    """Rows of ``root/index.csv`` as dicts with the keys id, split, condition, case."""
    path = Path(root) / "index.csv"
    if not is_finished(root):
        raise DataError(
            f"{path}: not found, or not finished; run the command that prepares the data set again, it goes "
            "on"
        )
    with reading(path, "an index of samples", DataError), open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    if not rows or set(COLUMNS) - set(rows[0]):
        raise DataError(f"{path}: expected the columns {', '.join(COLUMNS)} and at least one row")
    ids = [row["id"] for row in rows]
    for sample_id in ids:
        if not _SAFE_ID.fullmatch(sample_id or ""):
            raise DataError(f"{path}: unsafe sample id {sample_id!r}")
    for row in rows:
        if None in row or None in row.values() or not row["split"]:
            raise DataError(
                f"{path}: the row of {row['id']!r} has more or fewer values than there are columns, or no "
                "split"
            )
    if len(set(ids)) != len(ids):
        raise DataError(f"{path}: {next(i for i in ids if ids.count(i) > 1)!r} is listed twice")
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

    Raises:
        DataError: folder, index or split missing; at access: unreadable file, wrong size, type or channel
            count, unknown class id.
        ValueError: unknown or repeated modality name.
    """

    def __init__(
        self, root: str | Path, split: str = "train", modalities=None, augment=None, cache: bool = False
    ):
        self.root, self.split, self.augment = Path(root), split, augment
        self.description = read_description(root)
        available = self.description.modalities
        names = list(available) if modalities is None else list(modalities)
        unknown = [name for name in names if name not in available]
        if unknown or not names or len(set(names)) != len(names):
            problem = (
                f"unknown modality {', '.join(map(repr, unknown))}"
                if unknown
                else f"{names}: name each modality once, at least one"
            )
            raise ValueError(f"{problem}; {self.root} has {', '.join(available)}")
        self.modalities = {name: available[name] for name in names}
        rows = read_index(root)
        self.rows = [row for row in rows if row["split"] == split]
        if not self.rows:
            splits = ", ".join(sorted({row["split"] for row in rows}))
            raise DataError(f"{self.root}: no sample in split {split!r}; its splits are {splits}")
        self.labelled = (self.root / "label").exists()
        if self.labelled and not (self.root / "label").is_dir():
            raise DataError(
                f"{self.root / 'label'}: a file; expected the folder of labels, or nothing where there are "
                "none"
            )
        self._cache: dict[int, tuple] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.rows)

    def files(self, index: int) -> dict[str, Path]:
        """The files of a sample: its images by modality, and "label" where there are labels."""
        return sample_files(self.root, self.rows[index]["id"], self.modalities, self.labelled)

    def stored(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Stored arrays (H, W, C) by name, and the uint8 label (H, W): all 255 without labels."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        files = self.files(index)
        images = {
            name: read_image(files[name], modality.dtype, modality.channels)
            for name, modality in self.modalities.items()
        }
        first, size = next((name, image.shape[:2]) for name, image in images.items())
        if self.labelled:
            label = read_image(files["label"], "uint8", 1)[..., 0]
            check_label(label, len(self.description.classes), str(files["label"]))
        else:
            label = np.full(size, IGNORE_INDEX, np.uint8)
        for name, array in (images | {"label": label}).items():
            if array.shape[:2] != size:
                raise DataError(
                    f"{self.root}, {self.rows[index]['id']!r}: {name} is {array.shape[:2]} but {first} is "
                    f"{size}; one size is expected"
                )
        if self._cache is not None:
            self._cache[index] = images, label
        return images, label

    def digest(self) -> dict[str, str]:
        """Digests of what a run reads here, so that it is continued, scored and compared on the same data:
        "description" (classes and modalities), "index" (the split's rows) and "images" (the files of the
        modalities and the labels).
        """
        looks = [self.description.classes, [modality.to_dict() for modality in self.modalities.values()]]
        texts = {"description": json.dumps(looks), "index": json.dumps(self.rows)}
        digests = {
            name: hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for name, text in texts.items()
        }
        paths = [path for index in range(len(self)) for path in self.files(index).values()]
        names = [path.relative_to(self.root).as_posix() for path in paths]
        return digests | {"images": digest_files(self.root, names)}

    def physical(self, index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Physical values (C, H, W) float32 by name, and the label (H, W) int64."""
        images, label = self.stored(index)
        physical = {}
        for name, modality in self.modalities.items():
            check_values(modality, images[name], f"{self.root}, sample {self.rows[index]['id']!r}")
            planes = modality.to_physical(images[name]).transpose(2, 0, 1)
            physical[name] = torch.from_numpy(np.ascontiguousarray(planes))
        return physical, torch.from_numpy(label.astype(np.int64))

    def __getitem__(self, key) -> dict:
        """``index``, or ``(index, seed)`` to augment with randomness that depends on the seed alone."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        images, label = self.physical(index)
        if self.augment is not None and seed is not None:
            images, label = self.augment(images, label, np.random.default_rng(seed), self.modalities)
        images = {name: modality.to_network(images[name]) for name, modality in self.modalities.items()}
        names = {key: self.rows[index][key] for key in ("id", "condition", "case")}
        return {"images": images, "label": label} | names


def collate(samples: list[dict]) -> dict:
    """Samples -> a batch: images name -> (B, C, H, W), label (B, H, W), and lists of ids, conditions and
    cases.
    """
    sizes = {tuple(sample["label"].shape) for sample in samples}
    if len(sizes) > 1:
        raise DataError(
            f"samples of different sizes {sorted(sizes)} in one batch; give a crop size (--crop) to train on "
            "them"
        )
    batch = {"images": {n: torch.stack([s["images"][n] for s in samples]) for n in samples[0]["images"]}}
    batch["label"] = torch.stack([sample["label"] for sample in samples])
    return batch | {key: [sample[key] for sample in samples] for key in ("id", "condition", "case")}
