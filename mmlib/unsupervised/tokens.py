"""Tokens: what a frozen backbone says about every patch of every image, and what happens to it afterwards.

``extraction`` makes them; training, k-means and the figures read them through ``Tokens.batch``, which sends
them through the one ``TokenChain``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CLIP = 3.0  # standard deviations beyond which a standardised token is cut off


@dataclass(frozen=True, eq=False)
class TokenChain:
    """What happens to raw tokens before anything reads them, in this order:

    1. statistics: (x - mean) / std of each channel over the training tokens, clipped to ±3; None = left out;
    2. smoothing: mean over the 3 x 3 patches around each token, at the border over those that exist;
    3. centring: subtract ``centre`` times the image's own mean token (0 = nothing, 1 = all of it).

    mean, std: modality -> (C,) float32.
    """

    mean: dict[str, Tensor] | None = None
    std: dict[str, Tensor] | None = None
    smooth: bool = False
    centre: float = 0.0

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Raw tokens (B, C, h, w) of modality ``name`` -> the same shape, processed."""
        if self.mean is not None:
            channels = {key: len(value) for key, value in self.mean.items()}
            if channels.get(name) != x.shape[1]:
                raise ValueError(
                    f"tokens: statistics for {name!r} with {x.shape[1]} channels are missing, there are "
                    f"{channels}; measure them on the training tokens of the same backbone and modalities"
                )
            mean, std = (values[name].to(x.device)[:, None, None] for values in (self.mean, self.std))
            x = ((x - mean) / std).clamp(-CLIP, CLIP)
        if self.smooth:
            x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return x - self.centre * x.mean((2, 3), keepdim=True) if self.centre else x

    def fit(self, tokens: Tokens, chunk: int = 64) -> TokenChain:
        """This chain with the statistics of ``tokens``, the training split's, summed in float64 over
        ``chunk`` entries at a time. A constant channel has std 1.

        Raises:
            ValueError: a token is not finite.
        """
        mean, std = {}, {}
        for name, array in tokens.arrays.items():
            total = square = 0.0
            for start in range(0, len(array), chunk):
                part = np.asarray(array[start : start + chunk], np.float64)
                if not np.isfinite(part).all():
                    raise ValueError(
                        f"{name}: a token of entries {start} to {start + len(part) - 1} is not finite; "
                        "delete the cached tokens and extract them again"
                    )
                total, square = total + part.sum((0, 2, 3)), square + (part**2).sum((0, 2, 3))
            count = array.size // array.shape[1]
            average = total / count
            variance = square / count - average**2
            is_constant = variance <= 1e-12 * (1 + average**2)
            deviation = np.where(is_constant, 1.0, np.sqrt(np.maximum(variance, 0)))
            mean[name] = torch.from_numpy(average.astype(np.float32))
            std[name] = torch.from_numpy(deviation.astype(np.float32))
        return replace(self, mean=mean, std=std)

    def to_tensors(self) -> dict[str, Tensor]:
        """The statistics as named tensors, to be saved with a run; empty where they are left out."""
        return {
            f"tokens.{part}.{name}": value
            for part in ("mean", "std")
            for name, value in (getattr(self, part) or {}).items()
        }

    def with_tensors(self, tensors: dict[str, Tensor]) -> TokenChain:
        """This chain with the statistics that ``to_tensors`` has saved; other tensors of the file are left
        alone.

        Raises:
            ValueError: a mean without a std, another shape, or a std that is not positive.
        """
        mean, std = (
            {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            for prefix in ("tokens.mean.", "tokens.std.")
        )
        fits = lambda name: mean[name].shape == std[name].shape and (std[name] > 0).all()
        if mean.keys() != std.keys() or not all(map(fits, mean)):
            raise ValueError(
                f"statistics of {', '.join(mean) or 'nothing'}: expected a mean and a positive std for each "
                "modality"
            )
        return replace(self, mean=mean or None, std=std or None)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of n entries (images, or crops of images) for each modality, read from disk entry by entry.

    Attributes:
        arrays: modality -> (n, C, h, w), float16 on disk (``extraction.Shards``) or any numpy array.
        image: (n,) number of each entry's source image; None = every entry is an image.
        chain: what ``batch`` does to the raw tokens.
        device: where a batch is computed and returned.
    """

    arrays: dict[str, np.ndarray]
    image: np.ndarray = None
    chain: TokenChain = TokenChain()
    device: str | torch.device = "cpu"

    def __post_init__(self):
        if self.image is None:
            object.__setattr__(self, "image", np.arange(len(self)))

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

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
        """Entries ``indices`` (B integers) -> name -> (B, C, h, w) float32 behind the chain.

        A name with "&" ("rgb&thermal") is feature addition: the sum of the parts, each processed first. With
        statistics no sensor outweighs another in it only because its raw tokens are larger.

        Raises:
            ValueError: an unknown name, or one without statistics. IndexError: an index out of range.
        """
        index = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices)
        names = list(self.modalities if names is None else names)
        single = dict.fromkeys(part for name in names for part in name.split("&"))
        if unknown := [name for name in single if name not in self.arrays]:
            raise ValueError(
                f"tokens: unknown modality {unknown[0]!r}; there are {', '.join(self.modalities)}, and their "
                "sums written with '&'"
            )
        parts = {}
        for name in single:
            raw = torch.from_numpy(np.ascontiguousarray(self.arrays[name][index]))
            parts[name] = self.chain(name, raw.to(self.device).float())
        parts |= {name: sum(parts[part] for part in name.split("&")) for name in names if "&" in name}
        return {name: parts[name] for name in names}

    def in_memory(self) -> Tokens:
        """The same tokens, sent through the chain once and kept as float32 in memory, if that takes at most 2
        GB; else these.
        """
        if 4 * sum(array.size for array in self.arrays.values()) > 2e9:
            return self
        parts = np.array_split(np.arange(len(self)), max(1, len(self) // 64))
        arrays = {
            name: np.concatenate([self.batch(part, [name])[name].cpu().numpy() for part in parts])
            for name in self.arrays
        }
        return replace(self, arrays=arrays, chain=TokenChain())


def image_means(tokens: Tokens, names=("rgb",), chunk: int = 64) -> Tensor:
    """(n, C · len(names)): the mean token of each entry, of length 1 per modality; "rgb" alone is what
    released code compares.

    The chain's centring is left out, because it subtracts this very mean, and so is its smoothing.
    """
    tokens = replace(tokens, chain=replace(tokens.chain, centre=0.0, smooth=False))
    means = []
    for entries in torch.arange(len(tokens)).split(chunk):
        batch = tokens.batch(entries, names)
        means.append(torch.cat([F.normalize(maps.mean((2, 3)), dim=1) for maps in batch.values()], 1))
    return torch.cat(means)


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
    group = torch.arange(n) if exclude is None else torch.as_tensor(np.asarray(exclude))
    if not torch.isfinite(features).all() or group.shape != (n,):
        raise ValueError(
            f"nearest_neighbours: features {tuple(features.shape)} and {tuple(group.shape)} groups; expected "
            "finite features (n, C), and one group for each"
        )
    available = n - int(group.unique(return_counts=True)[1].max())
    if not 1 <= k <= available:
        raise ValueError(
            f"nearest_neighbours: k={k}, but {n} entries leave {available} neighbours outside an entry's own "
            f"group; choose k from 1 to {available}, or use more images"
        )
    group, unit, neighbours = group.to(features.device), F.normalize(features.float(), dim=1), []
    for start in range(0, n, chunk):
        similarity = unit[start : start + chunk] @ unit.T
        similarity.masked_fill_(group[start : start + chunk, None] == group, -torch.inf)
        neighbours.append(similarity.topk(k, dim=1).indices)
    return torch.cat(neighbours)
