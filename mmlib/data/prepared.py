"""The prepared layout: one on-disk contract for any set of modalities. One writer, one reader.

::

    root/
      dataset.json          name, classes, palette, modalities (mmlib.modalities.Modality), source, licence
      index.csv             id,split,condition,case - one row a sample; written last, so a folder without it
      is unfinished <modality>/<id>.png   uint8 with 1 or 3 channels, uint16 with 1 channel
      <modality>/<id>.npy   everything else, (H, W, C)
      label/<id>.png        uint8 class id, 255 = ignore; no label/ folder = unlabelled data

All images of a sample share one size and one viewpoint. Every file is written beside its place and moved into
it, and a journal remembers finished samples, so a writer that is killed or meets a full disk goes on where it
stopped.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from ..modalities import IGNORE_INDEX, Modality
from ..runtime import atomic_path, digest_files, reading, write_json
from .images import DataError, read_image, write_image

FORMAT = 1
COLUMNS = ("id", "split", "condition", "case")
PICTURES = ("colour", "grey", "heat", "range", "events", "angle")
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_modality(modality: Modality) -> None:
    """Raise ValueError for a modality that no image could be stored, normalised or pictured as."""
    where, channels = f"modality {modality.name!r}", modality.channels
    if modality.name == "label":
        raise ValueError(f"{where}: the folder label/ holds the labels; choose another name")
    if isinstance(channels, bool) or not isinstance(channels, int):
        raise ValueError(f"{where}: {channels!r} channels; expected an integer")
    if modality.picture not in PICTURES:
        raise ValueError(f"{where}: picture {modality.picture!r}; expected one of {', '.join(PICTURES)}")
    for name in ("scale", "offset", "low", "high", "mean", "std"):
        value = getattr(modality, name)
        if not all(
            isinstance(v, Real) and math.isfinite(v)
            for v in (value if isinstance(value, tuple) else (value,))
        ):
            raise ValueError(f"{where}: {name} {value!r}; expected finite numbers")
    if not modality.scale or not modality.low < modality.high:
        raise ValueError(
            f"{where}: scale {modality.scale}, low {modality.low}, high {modality.high}; expected scale not 0, low below high"
        )
    if not set(modality.flip_negates) <= set(range(channels)):
        raise ValueError(
            f"{where}: flip_negates {modality.flip_negates} names a channel outside 0 to {channels - 1}"
        )


@dataclass
class Description:
    """What a data set is: its name, its K class names with their colours, its modalities by name, where it
    comes from.
    """

    name: str
    classes: list[str]
    palette: list[tuple[int, int, int]]
    modalities: dict[str, Modality]
    source: str = ""
    licence: str = ""
    extra: dict = field(default_factory=dict)

    def __post_init__(self):
        if not self.modalities:
            raise ValueError(f"data set {self.name!r} has no modality")
        if len(self.classes) != len(self.palette):
            raise ValueError(
                f"data set {self.name!r}: {len(self.classes)} classes but {len(self.palette)} colours"
            )
        named = not isinstance(self.classes, str) and all(
            isinstance(name, str) and name for name in self.classes
        )
        if not named or len(set(self.classes)) != len(self.classes):
            raise ValueError(
                f"data set {self.name!r}: classes {self.classes}; expected a list of names, each once"
            )
        if not all(
            len(c) == 3 and all(isinstance(v, int | np.integer) and 0 <= v <= 255 for v in c)
            for c in self.palette
        ):
            raise ValueError(
                f"data set {self.name!r}: palette {self.palette}; expected (red, green, blue) from 0 to 255 for each class"
            )
        if len(self.classes) > IGNORE_INDEX:
            raise ValueError(
                f"data set {self.name!r}: {len(self.classes)} classes; ids are uint8 and {IGNORE_INDEX} means ignore"
            )
        symbols = [m.symbol for m in self.modalities.values()]
        if len(set(symbols)) != len(symbols):
            raise ValueError(f"data set {self.name!r}: two modalities share a symbol ({' '.join(symbols)})")
        for modality in self.modalities.values():
            check_modality(modality)

    def to_dict(self) -> dict:
        return {
            "format": FORMAT,
            "name": self.name,
            "classes": list(self.classes),
            "palette": [list(map(int, c)) for c in self.palette],
            "modalities": [m.to_dict() for m in self.modalities.values()],
            "source": self.source,
            "licence": self.licence,
            "extra": self.extra,
        }

    @classmethod
    def from_dict(cls, values: dict) -> Description:
        modalities = {m["name"]: Modality(**m) for m in values["modalities"]}
        if len(modalities) != len(values["modalities"]):
            raise ValueError(
                f"modalities {', '.join(m['name'] for m in values['modalities'])}: one is there twice"
            )
        palette = [tuple(colour) for colour in values["palette"]]
        return cls(
            values["name"],
            values["classes"],
            palette,
            modalities,
            values["source"],
            values["licence"],
            values["extra"],
        )


def read_description(root: str | Path) -> Description:
    """Read ``root/dataset.json``.

    Raises:
        DataError: the folder or the file is missing, unreadable, or of another format version.
    """
    path = Path(root) / "dataset.json"
    if (Path(root) / ".journal.jsonl").exists():
        raise DataError(
            f"{root}: an unfinished data set; run the command that prepares it again, it goes on where it stopped"
        )
    if not path.exists():
        hint = "run 'python -m mmlib render' for the sensor world or a script of data_scripts/ for a public data set"
        raise DataError(f"{path}: not found, so {str(root)!r} is not a prepared data set; {hint}")
    with reading(path, "a valid description of a prepared data set", DataError):
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise DataError(
                f"{path}: format {values.get('format')!r}; this version reads format {FORMAT}; prepare the data set again"
            )
        return Description.from_dict(values)


def _file(root: Path, folder: str, sample_id: str, png: bool) -> Path:
    return root / folder / f"{sample_id}.{'png' if png else 'npy'}"


def _is_png(modality: Modality) -> bool:
    return (modality.dtype, modality.channels) in (("uint8", 1), ("uint8", 3), ("uint16", 1))


def is_finished(root: str | Path) -> bool:
    """Whether ``root`` holds a whole data set: an index, and no journal of a writer at work."""
    return (Path(root) / "index.csv").exists() and not (Path(root) / ".journal.jsonl").exists()


def check_label(label: np.ndarray, classes: int, where: str) -> None:
    """Raise DataError unless every id is below ``classes`` or 255. ``label`` is any uint8 array."""
    bad = np.unique(label[(label >= classes) & (label != IGNORE_INDEX)])
    if bad.size:
        listed = ", ".join(map(str, bad[:8]))
        raise DataError(
            f"{where}: label id {listed} out of range; expected 0 to {classes - 1}, or {IGNORE_INDEX} for ignore"
        )


def check_values(modality: Modality, stored: np.ndarray, where: str) -> None:
    """Raise DataError for values that are not finite, or a negative distance: both would be trained on in
    silence.
    """
    if stored.dtype.kind == "f" and not np.isfinite(modality.to_physical(stored)).all():
        raise DataError(
            f"{where}: {modality.name} has NaN or infinite values; replace them (sparse sensor: 0 = no measurement)"
        )
    if (
        modality.picture == "range"
        and modality.to_physical(np.array([stored[..., 0].min(), stored[..., 0].max()])).min() < 0
    ):
        raise DataError(
            f"{where}: {modality.name} has a negative range; expected distances above 0, and 0 where nothing was measured"
        )


class Writer:
    """Write a prepared data set sample by sample; resumable; measures statistics over the split "train".

    >>> with Writer(root, description) as writer:                       # doctest: +SKIP
    ...     for id, ... in samples:
    ...         if id not in writer.done:
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
                f"{self.root}: holds an unfinished data set with another description; choose another folder or delete it"
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

    @property
    def done(self) -> dict[str, dict]:
        return self.rows

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
                f"sample id {sample_id!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit"
            )
        if sample_id in self.rows:
            raise DataError(f"sample id {sample_id!r} is there already; ids must differ")
        modalities = self.description.modalities
        if set(images) != set(modalities):
            raise DataError(
                f"sample {sample_id!r}: has {sorted(images)}, the data set {sorted(modalities)}; every sample needs all of them"
            )
        sizes = {name: images[name].shape[:2] for name in modalities} | (
            {"label": label.shape} if label is not None else {}
        )
        if len(set(sizes.values())) != 1:
            raise DataError(
                f"sample {sample_id!r}: images differ in size {sizes}; register them to one view and size first"
            )
        for name, modality in modalities.items():
            array = images[name]
            if (
                array.dtype != np.dtype(modality.dtype)
                or array.ndim != 3
                or array.shape[2] != modality.channels
            ):
                expected = f"{modality.dtype} (H, W, {modality.channels})"
                raise DataError(
                    f"sample {sample_id!r}, {name}: expected {expected}, got {array.dtype} {array.shape}"
                )
            if not array.size:
                raise DataError(f"sample {sample_id!r}, {name}: an empty image of shape {array.shape}")
            check_values(modality, array, f"sample {sample_id!r}")
        if label is not None:
            if label.dtype != np.uint8:
                raise DataError(f"sample {sample_id!r}: label is {label.dtype}; expected uint8")
            check_label(label, len(self.description.classes), f"sample {sample_id!r}")
        for name, modality in modalities.items():
            write_image(_file(self.root, name, sample_id, _is_png(modality)), images[name])
        if label is not None:
            write_image(_file(self.root, "label", sample_id, True), label[..., None])
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
        if any(labelled) and not all(labelled):
            missing = f"{labelled.count(False)} of {len(labelled)}"
            raise DataError(
                f"{self.root}: {missing} samples have no label; label all or none, or write two data sets"
            )
        modalities = {}
        rows = sorted(
            self.rows.values(), key=lambda row: (row["split"], row["id"])
        )  # whatever the order they came in
        for name, modality in self.description.modalities.items():
            sums = [row["sums"][name] for row in rows if "sums" in row]
            if sums and not (modality.mean and modality.std):  # statistics given by the caller stand
                count = sum(s[0] for s in sums)
                mean = np.sum([s[1] for s in sums], 0) / count
                variance = np.maximum(np.sum([s[2] for s in sums], 0) / count - mean**2, 0)
                # A channel that never changes carries nothing: std 1 leaves it at zero instead of dividing by
                # zero.
                std = np.where(variance > 1e-12, np.sqrt(variance), 1.0)
                modality = replace(
                    modality, mean=tuple(np.round(mean, 6).tolist()), std=tuple(np.round(std, 6).tolist())
                )
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
            f"{path}: not found, or not finished; run the command that prepares the data set again, it goes on"
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
                f"{path}: the row of {row['id']!r} has more or fewer values than there are columns, or no split"
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
        known = self.description.modalities
        names = list(known) if modalities is None else list(modalities)
        unknown = [name for name in names if name not in known]
        if unknown or not names or len(set(names)) != len(names):
            problem = (
                f"unknown modality {', '.join(map(repr, unknown))}"
                if unknown
                else f"{names}: name each modality once, at least one"
            )
            raise ValueError(f"{problem}; {self.root} has {', '.join(known)}")
        self.modalities = {name: known[name] for name in names}
        rows = read_index(root)
        self.rows = [row for row in rows if row["split"] == split]
        if not self.rows:
            splits = ", ".join(sorted({row["split"] for row in rows}))
            raise DataError(f"{self.root}: no sample in split {split!r}; its splits are {splits}")
        self.labelled = (self.root / "label").exists()
        if self.labelled and not (self.root / "label").is_dir():
            raise DataError(
                f"{self.root / 'label'}: a file; expected the folder of labels, or nothing where there are none"
            )
        self._cache: dict[int, tuple] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.rows)

    def files(self, index: int) -> dict[str, Path]:
        """The files of a sample: its images by modality, and "label" where there are labels."""
        sample_id = self.rows[index]["id"]
        files = {n: _file(self.root, n, sample_id, _is_png(m)) for n, m in self.modalities.items()}
        return files | ({"label": _file(self.root, "label", sample_id, True)} if self.labelled else {})

    def stored(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Stored arrays (H, W, C) by name, and the uint8 label (H, W): all 255 where the data set has none."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample_id, files = self.rows[index]["id"], self.files(index)
        images = {n: read_image(files[n], m.dtype, m.channels) for n, m in self.modalities.items()}
        first, size = next((name, image.shape[:2]) for name, image in images.items())
        if self.labelled:
            label = read_image(files["label"], "uint8", 1)[..., 0]
            check_label(label, len(self.description.classes), str(files["label"]))
        else:
            label = np.full(size, IGNORE_INDEX, np.uint8)
        for name, array in (images | {"label": label}).items():
            if array.shape[:2] != size:
                raise DataError(
                    f"{self.root}, {sample_id!r}: {name} is {array.shape[:2]} but {first} is {size}; one size is expected"
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
        folders = [(name, _is_png(modality)) for name, modality in self.modalities.items()]
        folders += [("label", True)] * self.labelled
        files = [_file(Path(), name, row["id"], png).as_posix() for name, png in folders for row in self.rows]
        texts = {"description": json.dumps(looks), "index": json.dumps(self.rows)}
        digests = {
            name: hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for name, text in texts.items()
        }
        return digests | {"images": digest_files(self.root, files)}

    def physical(self, index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Physical values (C, H, W) float32 by name, and the label (H, W) int64."""
        images, label = self.stored(index)
        for name, modality in self.modalities.items():
            check_values(modality, images[name], f"{self.root}, sample {self.rows[index]['id']!r}")
        planes = {
            n: np.ascontiguousarray(m.to_physical(images[n]).transpose(2, 0, 1))
            for n, m in self.modalities.items()
        }
        physical = {name: torch.from_numpy(image) for name, image in planes.items()}
        return physical, torch.from_numpy(label.astype(np.int64))

    def __getitem__(self, key) -> dict:
        """``index``, or ``(index, seed)`` to augment with randomness that depends on the seed alone."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        images, label = self.physical(index)
        if self.augment is not None and seed is not None:
            images, label = self.augment(images, label, np.random.default_rng(seed), self.modalities)
        images = {name: modality.to_network(images[name]) for name, modality in self.modalities.items()}
        row = self.rows[index]
        return {
            "images": images,
            "label": label,
            "id": row["id"],
            "condition": row["condition"],
            "case": row["case"],
        }


def collate(samples: list[dict]) -> dict:
    """Samples -> a batch: images name -> (B, C, H, W), label (B, H, W), and lists of ids, conditions and
    cases.
    """
    sizes = {tuple(sample["label"].shape) for sample in samples}
    if len(sizes) > 1:
        raise DataError(
            f"samples of different sizes {sorted(sizes)} in one batch; give a crop size (--crop) to train on them"
        )
    batch = {"images": {n: torch.stack([s["images"][n] for s in samples]) for n in samples[0]["images"]}}
    batch["label"] = torch.stack([sample["label"] for sample in samples])
    return batch | {key: [sample[key] for sample in samples] for key in ("id", "condition", "case")}
