"""Tokens: what a frozen backbone says about every patch of every image, computed once and kept on disk.

No random augmentation stands between an image and its loss, so the tokens of a crop never change and the
cache is exact. Training then reads a few hundred kilobytes a step where it would otherwise run a vision
transformer on every crop, neighbour and sensor.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import shutil
import warnings
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import map_npy
from ..data.prepared import PreparedDataset
from ..runtime import data_dir, exclusive, progress_bar, write_json
from . import pictures
from .pictures import as_picture, five_crop, picture_options, resize, working_size

CLIP = 3.0  # standard deviations beyond which a standardised token is cut off
_LOOKS = (
    "channels",
    "low",
    "high",
    "dtype",
    "scale",
    "offset",
    "compress",
    "picture",
)  # what a Modality has to do with its picture


@dataclass(frozen=True, eq=False)
class TokenStatistics:
    """Mean and standard deviation (C,) float32 of each channel, by modality; measured on training tokens,
    used on all.
    """

    mean: dict[str, Tensor]
    std: dict[str, Tensor]

    @classmethod
    def measure(cls, tokens: Tokens, chunk: int = 64) -> TokenStatistics:
        """Over all raw tokens of ``tokens``, ``chunk`` entries at a time, summed in float64. A constant
        channel has std 1.

        Raises:
            ValueError: a token is not finite.
        """
        mean, std = {}, {}
        for name, array in tokens.arrays.items():
            total = square = 0.0
            for start in range(0, len(array), chunk):
                part = np.asarray(array[start : start + chunk], np.float64)
                if not np.isfinite(part).all():
                    where = f"entries {start} to {start + len(part) - 1}"
                    raise ValueError(
                        f"{name}: a token of {where} is not finite; delete {tokens.folder or 'the array'} and extract again"
                    )
                total, square = total + part.sum((0, 2, 3)), square + (part**2).sum((0, 2, 3))
            average = total * array.shape[1] / array.size
            variance = square * array.shape[1] / array.size - average**2
            constant = variance <= 1e-12 * (1 + average**2)
            mean[name] = torch.from_numpy(average.astype(np.float32))
            std[name] = torch.from_numpy(
                np.where(constant, 1.0, np.sqrt(np.maximum(variance, 0))).astype(np.float32)
            )
        return cls(mean, std)

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors, to be saved with a run (runtime.save_tensors)."""
        parts = {"mean": self.mean, "std": self.std}
        return {
            f"tokens.{part}.{name}": value for part, values in parts.items() for name, value in values.items()
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> TokenStatistics:
        """The inverse of ``to_tensors``; other tensors of the same file are left alone. ValueError:
        incomplete, or std not positive.
        """
        prefixes = ("tokens.mean.", "tokens.std.")
        mean, std = (
            {key[len(p) :]: value for key, value in tensors.items() if key.startswith(p)} for p in prefixes
        )
        shapes = [{name: value.shape for name, value in values.items()} for values in (mean, std)]
        if not mean or shapes[0] != shapes[1] or any((value <= 0).any() for value in std.values()):
            raise ValueError(
                f"statistics of {', '.join(mean) or 'nothing'}: expected a mean and a positive std for each modality"
            )
        return cls(mean, std)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of n entries (images, or crops of images) for each modality, read from disk entry by entry.

    What ``batch`` does to the raw tokens is set by four fields, in this order; change them with
    ``dataclasses.replace``:

    * ``statistics``: per channel (x - mean) / std, clipped to +-3; None = raw;
    * ``smooth``: mean over the 3 x 3 patches around each, at the border over those that are there;
    * ``centre``: subtract ``centre`` times the entry's own mean token (0 = nothing, 1 = all of it);
    * ``device``: where the batch is computed and returned.

    Attributes:
        arrays: modality -> (n, C, h, w), float16 memory-mapped files in ``folder`` or any numpy arrays.
        image: (n,) number of each entry's source image; ids, conditions: that image's, one per entry.
    """

    arrays: dict[str, np.ndarray]
    image: np.ndarray = None
    ids: list[str] = field(default=None, repr=False)
    conditions: list[str] = field(default=None, repr=False)
    statistics: TokenStatistics | None = None
    smooth: bool = False
    centre: float = 0.0
    device: str | torch.device = "cpu"
    folder: Path | None = None

    def __post_init__(self):
        shapes = {tuple(array.shape) for array in self.arrays.values()}
        if len(shapes) != 1 or len(min(shapes)) != 4:
            raise ValueError(
                f"tokens: expected one shape (n, C, h, w) for all of {list(self.arrays)}, got {sorted(shapes)}"
            )
        for name, empty in (
            ("image", np.arange(len(self))),
            ("ids", [""] * len(self)),
            ("conditions", [""] * len(self)),
        ):
            if getattr(self, name) is None:
                object.__setattr__(self, name, empty)
            if len(getattr(self, name)) != len(self):
                raise ValueError(f"tokens: {len(getattr(self, name))} {name} for {len(self)} entries")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __repr__(self) -> str:
        what = f"{len(self)} entries of {len(np.unique(self.image))} images; {', '.join(self.modalities)}"
        return f"Tokens({what}; {self.channels} channels on {self.grid[0]} x {self.grid[1]}; {self.nbytes / 1e6:.1f} MB)"

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.arrays)

    @property
    def channels(self) -> int:
        return next(iter(self.arrays.values())).shape[1]

    @property
    def grid(self) -> tuple[int, int]:
        return next(iter(self.arrays.values())).shape[2:]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, on disk where they come from the cache."""
        return sum(array.nbytes for array in self.arrays.values())

    def batch(self, indices, names=None) -> dict[str, Tensor]:
        """Entries ``indices`` (B integers) -> name -> (B, C, h, w) float32, processed as the fields say.

        A name with "&" ("rgb&thermal") is feature addition: the sum of the parts, each processed first. With
        statistics no sensor outweighs another in it only because its raw tokens are larger.

        Raises:
            ValueError: an unknown name, or one without statistics. IndexError: an index out of range.
        """
        index = np.atleast_1d(np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices))
        if index.dtype.kind not in "iu" or index.ndim != 1:
            raise ValueError(
                f"tokens: indices must be a list of integers, got {index.dtype} of shape {index.shape}"
            )
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"tokens: index {index.min()} to {index.max()} of {len(self)} entries")
        names = self.modalities if names is None else names
        parts = {
            part: self._processed(part, index)
            for part in dict.fromkeys(p for name in names for p in name.split("&"))
        }
        return {
            name: sum(parts[part] for part in name.split("&")) if "&" in name else parts[name]
            for name in names
        }

    def in_memory(self, limit: float = 2e9) -> Tokens:
        """The same tokens, processed once and kept as float32 in memory, if that takes at most ``limit``
        bytes; else these.
        """
        if 4 * sum(array.size for array in self.arrays.values()) > limit:
            return self
        parts = np.array_split(np.arange(len(self)), max(1, len(self) // 64))
        arrays = {
            name: np.concatenate([self._processed(name, part).cpu().numpy() for part in parts])
            for name in self.arrays
        }
        return replace(self, arrays=arrays, statistics=None, smooth=False, centre=0.0)

    def _processed(self, name: str, index: np.ndarray) -> Tensor:
        if name not in self.arrays:
            raise ValueError(
                f"tokens: unknown modality {name!r}; there are {', '.join(self.modalities)}, and their sums written with '&'"
            )
        x = torch.from_numpy(np.ascontiguousarray(self.arrays[name][index])).to(self.device).float()
        if self.statistics is not None:
            if name not in self.statistics.mean or len(self.statistics.mean[name]) != self.channels:
                known = {key: len(value) for key, value in self.statistics.mean.items()}
                raise ValueError(
                    f"tokens: statistics for {name!r} with {self.channels} channels are missing, there are {known}; "
                    "measure them on the training tokens of the same backbone and modalities"
                )
            mean, std = (
                s[name].to(x.device)[:, None, None] for s in (self.statistics.mean, self.statistics.std)
            )
            x = ((x - mean) / std).clamp(-CLIP, CLIP)
        if self.smooth:
            x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return x - self.centre * x.mean((2, 3), keepdim=True) if self.centre else x


# ---- extraction into the cache ----


def extract_tokens(
    dataset: PreparedDataset,
    backbone,
    modalities=None,
    size=(0, 0),
    crops: int = 1,
    form=None,
    added: bool = False,
    batch_size: int = 16,
    device="cpu",
    progress: bool = True,
) -> Tokens:
    """Tokens of every image (or five crops of it) of ``dataset``, from the cache or through ``backbone``.

    The cache lies in ``runtime.data_dir()/tokens``: a folder for each backbone, data set, split, size and
    crops, in it one float16 file (n, C, h, w) per modality and preprocessing. Names are digests of all of
    these, so that tokens of other weights or pictures are never used. A killed extraction goes on where it
    stopped, a new modality extracts only itself, and of two processes one waits.

    Args:
        backbone: has name, key, channels, patch and extract((N, 3, H, W) in [0, 1]) -> (N, C, H / patch, W /
            patch).
        modalities: names of sensors; None = the data set's. "rgb+thermal" = image addition: the mean of the
            two pictures.
        size: (height, width) to which each picture is resized, not keeping its aspect; (0, 0) = as it is.
        crops: 1 = the whole image, 5 = its quadrants and centre; entry 5 i + k is crop k of image i.
        form: modality -> form, or dict of options of ``pictures.as_picture``.
        added: also the image addition of all ``modalities``.
        batch_size: pictures that go through the backbone at once; device: of the batches of the result.

    Raises:
        ValueError: an unknown modality, form or option; a size that does not fit the patches; tokens that are
            not finite.
        OSError: the disk is full; finished images are kept.
    """
    sensors = list(dataset.modalities) if modalities is None else list(modalities)
    names = sensors + (["+".join(sensors)] if added else [])
    parts = {name: name.split("+") for name in names}
    unknown = sorted({part for name in names for part in parts[name]} - set(dataset.modalities))
    if (
        unknown
        or not names
        or len(set(names)) != len(names)
        or any(len(set(p)) != len(p) for p in parts.values())
    ):
        problem = (
            f"unknown modality {', '.join(map(repr, unknown))}"
            if unknown
            else f"{names}: each name once, at least one"
        )
        raise ValueError(
            f"tokens: {problem}; the data set was opened with {', '.join(dataset.modalities)}; a sum is written 'rgb+depth'"
        )
    if crops not in (1, 5) or batch_size < 1:
        raise ValueError(
            f"tokens: crops={crops}, batch_size={batch_size}: expected 1 or 5 crops and at least one picture a batch"
        )
    used = [name for name in dataset.modalities if any(name in p for p in parts.values())]
    options = picture_options(form or {}, used)
    reader = PreparedDataset(dataset.root, dataset.split, used)
    reader.rows, reader.modalities = dataset.rows, {name: dataset.modalities[name] for name in used}
    asked, native = tuple(size), reader.stored(0)[1].shape
    size = working_size(native, asked, crops, backbone.patch, reader.rows[0]["id"])
    shape = (len(reader) * crops, backbone.channels, size[0] // backbone.patch, size[1] // backbone.patch)

    def prepare(index: int) -> dict[str, Tensor]:
        """Sensor -> pictures (crops, 3, *size) of one image."""
        images, label = reader.physical(index)
        where = reader.rows[index]["id"]
        if working_size(label.shape, asked, crops, backbone.patch, where) != size:
            differs = f"image {where!r} has {tuple(label.shape)} pixels, the first one {native}"
            raise ValueError(f"tokens: {differs}; give one size for all, such as size={size}")
        found = {
            name: as_picture(reader.modalities[name], image, **options[name])
            for name, image in images.items()
        }
        return {
            name: resize(five_crop(picture) if crops == 5 else picture[None], size)
            for name, picture in found.items()
        }

    record = {
        "backbone": backbone.name,
        "key": backbone.key,
        "split": dataset.split,
        "size": list(size),
        "crops": crops,
        "pictures": hashlib.sha256(Path(pictures.__file__).read_bytes()).hexdigest(),
        "data": _digest([dataset.description.to_dict(), reader.rows]),
    }
    folder = data_dir() / "tokens" / f"{backbone.name}-{dataset.split}-{_digest(record)[:16]}"
    looks = {name: {part: _look(reader, part) | options[part] for part in parts[name]} for name in names}
    files = {name: folder / f"{name}-{_digest(looks[name])[:12]}.npy" for name in names}
    if any(_open(file, shape) is None for file in files.values()):
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(f"{folder}.lock"):  # the second of two processes waits for the first
            todo = {name: file for name, file in files.items() if _open(file, shape) is None}
            for name, file in todo.items():
                write_json(file.with_suffix(".json"), record | {"shape": shape, "input": looks[name]})
                if file.exists():
                    warnings.warn(
                        f"{file}: damaged, expected float16 of shape {shape}; it is extracted again",
                        stacklevel=2,
                    )
            if todo:
                _extract(
                    todo,
                    parts,
                    prepare,
                    backbone,
                    shape,
                    [row["id"] for row in reader.rows],
                    batch_size,
                    progress,
                )
    rows = [row for row in reader.rows for _ in range(crops)]
    image = np.repeat(np.arange(len(reader)), crops)
    arrays = {name: _open(file, shape) for name, file in files.items()}
    return Tokens(
        arrays,
        image,
        [row["id"] for row in rows],
        [row["condition"] for row in rows],
        device=device,
        folder=folder,
    )


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _look(reader: PreparedDataset, name: str) -> dict:
    """What decides a sensor's picture; with a digest of the first and last image, which notices a data set
    that was prepared anew.
    """
    described = {key: value for key, value in asdict(reader.modalities[name]).items() if key in _LOOKS}
    ends = (np.ascontiguousarray(reader.stored(i)[0][name]).tobytes() for i in (0, len(reader) - 1))
    return described | {"ends": hashlib.sha256(b"".join(ends)).hexdigest()}


def _open(file: Path, shape: tuple) -> np.ndarray | None:
    """The finished array, memory-mapped; None where it is missing or damaged."""
    try:
        array = map_npy(file)
    except (OSError, ValueError):
        return None
    return array if array.dtype == np.float16 and array.shape == shape and array.flags.c_contiguous else None


def _extract(todo: dict[str, Path], parts, prepare, backbone, shape, ids, batch_size, progress) -> None:
    """Append the missing images' tokens to <name>.part and move it into place when it is whole.

    The length of a part says how many images are done; it is appended to, not memory-mapped, because a full
    disk stops a write with an error and a memory map with a crash.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": shape})
    header, crops, where = header.getvalue(), shape[0] // len(ids), next(iter(todo.values())).parent
    per_image, step = 2 * crops * math.prod(shape[1:]), max(1, batch_size // crops)
    done, partial = {}, {name: file.with_suffix(".part") for name, file in todo.items()}
    for name, part in partial.items():
        there = part.stat().st_size if part.exists() else 0
        same = there >= len(header) and part.open("rb").read(len(header)) == header
        done[name] = min((there - len(header)) // per_image, len(ids)) if same else 0
    missing, free = (
        sum(len(ids) - count for count in done.values()) * per_image,
        shutil.disk_usage(where).free,
    )
    if missing > free:
        raise OSError(
            errno.ENOSPC,
            f"{where}: the tokens need {missing / 1e6:.1f} MB more, {free / 1e6:.1f} MB are free; make room, "
            "ask for a smaller size, or set MMLIB_DATA to a folder on a larger disk",
        )
    try:
        with ExitStack() as stack:
            files = {}
            for name, part in partial.items():
                files[name] = stack.enter_context(open(part, "r+b" if done[name] else "wb"))
                files[name].write(header)
                files[name].truncate(
                    len(header) + per_image * done[name]
                )  # what a killed writer left of an image
                files[name].seek(0, os.SEEK_END)
            first = min(done.values())
            bar = progress_bar(
                total=len(ids),
                initial=first,
                desc=f"tokens of {', '.join(todo)}",
                unit="image",
                progress=progress,
            )
            bar.set_postfix_str(f"{per_image * len(ids) * len(todo) / 1e6:.1f} MB")
            stack.enter_context(bar)
            for start in range(first, len(ids), step):
                stop = min(start + step, len(ids))
                seen = [prepare(i) for i in range(start, stop)]
                for name, file in files.items():
                    begin = max(start, done[name])
                    if begin < stop:
                        mixed = [
                            sum(s[part] for part in parts[name]) / len(parts[name])
                            for s in seen[begin - start :]
                        ]
                        tokens = backbone.extract(torch.cat(mixed)).cpu()
                        file.write(_checked(tokens, shape, name, ids[begin:stop], crops).tobytes())
                        file.flush()
                bar.update(stop - start)
            for file in files.values():
                os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"{where}: the disk is full; finished images are kept in *.part there and the next call goes on. "
            "Make room, or delete the folder",
        ) from error
    for name, file in todo.items():
        os.replace(partial[name], file)


def _checked(tokens: Tensor, shape: tuple, name: str, ids: list[str], crops: int) -> np.ndarray:
    """Tokens as float16; raises ValueError unless they have the right shape and are finite in it."""
    if tuple(tokens.shape) != (len(ids) * crops, *shape[1:]):
        raise ValueError(
            f"{name}: the backbone returned {tuple(tokens.shape)}, expected {(len(ids) * crops, *shape[1:])}"
        )
    found = tokens.half()
    bad = ~torch.isfinite(found).flatten(1).all(1)
    if bad.any():
        where, largest = ids[int(bad.nonzero()[0]) // crops], tokens.abs().max().item()
        raise ValueError(
            f"{name}, image {where!r}: tokens are not finite in float16 (largest magnitude {largest:.3g}, limit 65504); "
            "check the backbone's weights and that image"
        )
    return found.numpy()


# ---- neighbours ----


def image_means(tokens: Tokens, names=("rgb",), chunk: int = 64) -> Tensor:
    """(n, C · len(names)): the mean token of each entry, of length 1 per modality; "rgb" alone is what
    released code compares.

    Centring is left out, since it would subtract the very thing that is asked for, and so is smoothing.
    """
    tokens, found = replace(tokens, centre=0.0, smooth=False), []
    for start in range(0, len(tokens), chunk):
        batch = tokens.batch(range(start, min(start + chunk, len(tokens))), list(names))
        found.append(torch.cat([F.normalize(batch[name].mean((2, 3)), dim=1) for name in names], 1))
    return torch.cat(found)


def nearest_neighbours(features: Tensor, k: int, exclude=None, chunk: int = 1024) -> Tensor:
    """(n, C) -> (n, k) int64: the k most similar entries by cosine, best first, never the entry itself.

    Args:
        exclude: (n,) group of each entry, such as ``tokens.image``; entries of one group are no neighbours.
            None = no groups.
        chunk: rows compared at once; memory is chunk x n floats.

    Raises:
        ValueError: not enough entries for k neighbours, features that are not finite, or groups of another
            length.
    """
    n = len(features)
    if features.ndim != 2 or not torch.isfinite(features).all():
        raise ValueError(
            f"nearest_neighbours: expected finite features (n, C), got {tuple(features.shape)}, or NaN among them"
        )
    group = torch.arange(n) if exclude is None else torch.as_tensor(np.asarray(exclude))
    if group.shape != (n,):
        raise ValueError(
            f"nearest_neighbours: {tuple(group.shape)} groups for {n} entries; expected one each"
        )
    available = n - int(group.unique(return_counts=True)[1].max()) if n else 0
    if not 1 <= k <= available:
        raise ValueError(
            f"nearest_neighbours: k={k}, but {n} entries leave {available} neighbours outside an entry's own group; "
            f"choose k from 1 to {available}, or use more images"
        )
    group, unit, found = group.to(features.device), F.normalize(features.float(), dim=1), []
    for start in range(0, n, chunk):
        similarity = unit[start : start + chunk] @ unit.T
        similarity.masked_fill_(group[start : start + chunk, None] == group, -torch.inf)
        found.append(similarity.topk(k, dim=1).indices)
    return torch.cat(found)
