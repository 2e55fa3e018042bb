"""Tokens: what a frozen backbone says about every patch of every image, and what happens to it afterwards.

``extraction`` makes them; training, k-means and the figures read them through ``Tokens.batch``, which sends
them through the one ``TokenChain``.
"""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Between

CLIP = 3.0  # standard deviations beyond which a standardised token is cut off
CHUNK = 64  # entries that are read at once
ROWS = 1024  # entries that are compared with all others at once: memory is ROWS x n floats


@dataclass(frozen=True, eq=False)
class TokenChain:
    """What happens to raw tokens before anything reads them, in this order:

    1. statistics: (x - mean) / std of each channel over the training tokens, clipped to ±3; none = left out;
    2. smoothing: mean over the 3 x 3 patches around each token, at the border over those that exist;
    3. centring: subtract ``centre`` times the image's own mean token (0 = nothing, 1 = all of it);
    4. whitening: K coordinates, along the leading principal directions of the training tokens, each divided
       by its standard deviation there; none = left out.

    statistics: modality -> mean and std (2, C), float32.
    whitening: modality -> (K, C + 1), float32: a coordinate is its first C numbers times the token, plus the
    last.
    """

    statistics: dict[str, Tensor] = field(default_factory=dict)
    smooth: bool = False
    centre: Annotated[float, Between(0, 1)] = 0.0
    whitening: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Raw tokens (B, C, h, w) of modality ``name`` -> the same shape, processed; with whitening K in
        place of C.
        """
        if any(part and name not in part for part in (self.statistics, self.whitening)):
            raise ValueError(f"tokens: no statistics of {name!r}; measure them on the training tokens")
        if self.statistics:
            mean, std = self.statistics[name].to(x.device)[..., None, None]
            x = ((x - mean) / std).clamp(-CLIP, CLIP)
        if self.smooth:
            x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        if self.centre:
            x = x - self.centre * x.mean((2, 3), keepdim=True)
        if self.whitening:
            weight = self.whitening[name].to(x.device)
            x = F.conv2d(x, weight[:, :-1, None, None], weight[:, -1])
        return x

    def fit(self, tokens: "Tokens") -> "TokenChain":
        """This chain with the statistics of ``tokens``, the training split's, summed in float64 over
        ``CHUNK`` entries at a time. A constant channel has std 1.

        Raises:
            ValueError: a token is not finite.
        """
        statistics = {}
        for name, array in tokens.arrays.items():
            total = square = 0.0
            for start in range(0, len(tokens), CHUNK):
                part = np.asarray(array[start : start + CHUNK], np.float64)
                total, square = total + part.sum((0, 2, 3)), square + (part**2).sum((0, 2, 3))
            if not np.isfinite(square).all():
                raise ValueError(f"{name}: a token is not finite; delete the cached tokens and run again")
            count = prod(array.shape) // array.shape[1]
            mean = total / count
            variance = square / count - mean**2
            std = np.sqrt(np.where(variance <= 1e-12 * (1 + mean**2), 1.0, variance))
            statistics[name] = torch.from_numpy(np.stack([mean, std]).astype(np.float32))
        return replace(self, statistics=statistics)

    def whiten(self, tokens: "Tokens", channels: int) -> "TokenChain":
        """This chain with a whitening to ``channels`` coordinates, measured on ``tokens``, the training
        split's, as the chain leaves them so far. A direction's entry of the largest size is positive.

        Raises:
            ValueError: the tokens of a modality vary along fewer directions.
        """
        whitening, plain, count = {}, replace(tokens, chain=self), len(tokens) * prod(tokens.grid)
        for name in tokens.arrays:
            mean = products = 0.0
            for entries in torch.arange(len(tokens)).split(CHUNK):
                rows = plain.batch(entries, [name])[name].double().cpu().movedim(1, 0).flatten(1)
                mean, products = mean + rows.sum(1) / count, products + rows @ rows.T / count
            # Of the covariance with its sign turned, so that the largest variances come first.
            variances, directions = torch.linalg.eigh(mean.outer(mean) - products)
            rank = int((variances < 1e-6 * variances[0]).sum())
            if rank < channels:
                raise ValueError(
                    f"--whiten {channels}: the tokens of {name} vary along {rank} directions; ask for {rank} "
                    "at most, or use more images"
                )
            largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
            weight = (directions * largest.sign() / (-variances).sqrt()).T[:channels]
            whitening[name] = torch.cat([weight, -weight @ mean[:, None]], 1).float()
        return replace(self, whitening=whitening)

    def to_tensors(self) -> dict[str, Tensor]:
        """Statistics and whitening as named tensors, to be saved with a run; empty where there are none."""
        return {
            f"tokens.{part}.{name}": value
            for name, pair in self.statistics.items()
            for part, value in zip(("mean", "std"), pair)
        } | {f"tokens.whitening.{name}": weight for name, weight in self.whitening.items()}

    def with_tensors(self, tensors: dict[str, Tensor]) -> "TokenChain":
        """This chain with what ``to_tensors`` has saved; other tensors of the file are left alone.

        Raises:
            ValueError: a std that is not positive. KeyError, RuntimeError: a mean without a std, or with one
                of another shape.
        """
        own = lambda *parts: {key.split(".", 2)[2] for key in tensors if key.startswith(parts)}
        whitening = {name: tensors[f"tokens.whitening.{name}"] for name in own("tokens.whitening.")}
        statistics = {
            name: torch.stack([tensors[f"tokens.{part}.{name}"] for part in ("mean", "std")])
            for name in own("tokens.mean.", "tokens.std.")
        }
        if not all((std > 0).all() for _, std in statistics.values()):
            raise ValueError("statistics of tokens: expected a positive std of every channel")
        return replace(self, statistics=statistics, whitening=whitening)


def summands(names) -> list[str]:
    """What the backbone must see for the tokens of ``names``: "a&b" is the sum of the tokens of a and b,
    "a+b" a picture of its own.
    """
    return list(dict.fromkeys("&".join(names).split("&")))


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of n entries (images, or crops of images) for each modality, read from disk entry by entry.

    Attributes:
        arrays: modality -> (n, C, h, w), float16 on disk (``extraction.Shards``) or any numpy array.
        crops: entries of each image; entry ``crops`` · i + k is crop k of image i.
        chain: what ``batch`` does to the raw tokens.
        device: where a batch is computed and returned.
    """

    arrays: dict[str, np.ndarray]
    crops: int = 1
    chain: TokenChain = TokenChain()
    device: str | torch.device = "cpu"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, C, h, w) of every modality."""
        return next(iter(self.arrays.values())).shape

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def channels(self) -> int:
        """Of a token behind the chain."""
        whitening = self.chain.whitening
        return len(next(iter(whitening.values()))) if whitening else self.shape[1]

    @property
    def grid(self) -> tuple[int, int]:
        return self.shape[2:]

    def batch(self, indices, names=None) -> dict[str, Tensor]:
        """Entries ``indices`` (B integers) -> name -> (B, C, h, w) float32 behind the chain.

        A name with "&" ("rgb&thermal") is feature addition: the sum of the parts, each processed first. With
        statistics no sensor outweighs another in it only because its raw tokens are larger.

        Raises:
            ValueError: an unknown name, or one without statistics. IndexError: an index out of range.
        """
        names = list(names or self.arrays)
        parts = {}
        for name in summands(names):
            if name not in self.arrays:
                raise ValueError(f"tokens: unknown modality {name!r}; there are {', '.join(self.arrays)}")
            raw = torch.from_numpy(np.ascontiguousarray(self.arrays[name][np.asarray(indices)]))
            parts[name] = self.chain(name, raw.to(self.device).float())
        parts |= {name: sum(parts[part] for part in name.split("&")) for name in names if "&" in name}
        return {name: parts[name] for name in names}

    def in_memory(self) -> "Tokens":
        """The same tokens, sent through the chain once and kept as float32 in memory, if that takes at most 2
        GB; else these.
        """
        if 4 * len(self) * self.channels * prod(self.grid) * len(self.arrays) > 2e9:
            return self
        parts = [self.batch(entries) for entries in torch.arange(len(self)).split(CHUNK)]
        arrays = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in self.arrays}
        return replace(self, arrays=arrays, chain=TokenChain())


def image_means(tokens: Tokens, names) -> Tensor:
    """(n, C · len(names)): the mean token of each entry, of length 1 per modality; "rgb" alone is what
    released code compares.

    Of the chain only the statistics count: centring subtracts this very mean, and whitening may follow it.
    """
    tokens = replace(tokens, chain=TokenChain(tokens.chain.statistics))
    means = []
    for entries in torch.arange(len(tokens)).split(CHUNK):
        batch = tokens.batch(entries, names)
        means.append(torch.cat([F.normalize(maps.mean((2, 3)), dim=1) for maps in batch.values()], 1))
    return torch.cat(means)


def nearest_neighbours(features: Tensor, k: int, groups) -> Tensor:
    """(n, C) -> (n, k) int64: the k most similar entries by cosine, best first, none of them of the entry's
    own group.

    Args:
        groups: (n,) integers, such as the numbers of the entries' images, which are then no neighbours of
            themselves.

    Raises:
        ValueError: not enough entries for k neighbours.
    """
    n, group = len(features), torch.as_tensor(groups)
    available = n - int(group.bincount().max())
    if not 1 <= k <= available:
        raise ValueError(
            f"--neighbours {k}: {n} entries leave {available} outside an entry's own image; choose from 1 to "
            f"{available}, or use more images"
        )
    group, unit, neighbours = group.to(features.device), F.normalize(features.float(), dim=1), []
    for start in range(0, n, ROWS):
        similarity = unit[start : start + ROWS] @ unit.T
        similarity.masked_fill_(group[start : start + ROWS, None] == group, -torch.inf)
        neighbours.append(similarity.topk(k, dim=1).indices)
    return torch.cat(neighbours)
