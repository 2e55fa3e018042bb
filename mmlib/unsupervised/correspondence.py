"""Correspondence losses, Eq. 1 to 6, 8 and 9: codes agree where frozen tokens do (STEGO), for every
modality at once (CMCS). The trainer calls ``cmcs_loss``, depth guidance ``correlation_loss``, notebooks
both.

    F = cos(f1, f2),  S = cos(s1, s2),  loss = −mean (F' − b) · max(S, 0)

over all pairs of a point of one image and a point of another. f are frozen tokens, s the codes to be
learned, F' is F after pointwise centring, b a shift. An image is paired with itself, with one of its
nearest neighbours (KNN), and with random others. Points (B, P, C) come from ``sample_points``: a few random
ones, as in the released code, or all tokens. With ``tile`` > 0 the latter is exact without a (B, P, Q)
tensor: the loss is a sum over tiles of rows, because centring needs row means only, f1_p · mean_q f2_q,
and the backward pass computes each tile again. The largest temporaries are B · tile · Q.
Interpolated points are smoother and so more alike than tokens: a b tuned on samples does not fit all
tokens. Autocast is ignored.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..config import AtLeast, Between, check_settings

PAIRS = ("self", "knn", "random")
EPS = 1e-10  # a token shorter than this has no direction: all its cosines are 0, and it gets no gradient
Points = Mapping[str, Tensor]  # points (B, P, C), or maps (B, C, h, w), by modality
Triple = tuple[float, float, float]  # of self, KNN and random pairs
Triples = Triple | dict[str, Triple]  # one for all modalities, or one for each by name


@dataclass(frozen=True)
class Shifts:
    """The shift b of Eq. 2 and 6. A number fits one backbone and modality, whose F may have mean 0 or 0.99; a
    quantile fits all.
    """

    rule: Literal["quantile", "absolute", "adaptive"] = "quantile"
    """quantile: of the observed F', measured once (``measure``); absolute: ``numbers``; adaptive: EAGLE's,
    from each batch.
    """
    quantiles: Annotated[Triples, Between(0, 1)] = (0.6, 0.6, 0.9)
    """Of self, KNN and random pairs, for all modalities; or NAME and its three for each."""
    numbers: dict[str, Triple] = field(default_factory=dict)
    """b of self, KNN and random pairs, NAME and its three for each modality: set by hand, or filled in by
    ``measure``.
    """
    bias: float = 0.0
    """adaptive: subtracted from the means (0 or 0.11 in EAGLE's settings)."""
    factor: float = 3.5
    """adaptive: multiplies b of random pairs."""

    @torch.no_grad()
    def measure(
        self, batches: Iterable[tuple[Points, Points]], generator=None, centre: bool = True, limit=2**20
    ) -> "Shifts":
        """These shifts with ``numbers`` set to quantiles of the correspondences in ``batches``; from then on
        b is fixed.

        A batch is (images, their KNN partners), each frozen points (B, P, C) by modality. Of more than
        ``limit`` values per batch, modality and pair type, evenly spaced rows are used.
        """
        values = defaultdict(lambda: ([], [], []))  # modality -> F' of self, KNN and random pairs
        for images, partners in batches:
            order = derangement(len(next(iter(images.values()))), generator)
            for name, points in images.items():
                f, near, *_ = unit_points(name, points, partners[name], points, partners[name])
                for f2, correspondences in zip((f, near, f[order]), values[name]):
                    stride = -(-len(f) * f.shape[1] * f2.shape[1] // limit)
                    rows = f[:, ::stride] @ f2.mT - _offset(f, f2, centre)[:, ::stride]
                    correspondences.append(rows.flatten().cpu().numpy())
        numbers = {
            name: tuple(
                float(np.quantile(np.concatenate(f), q))
                for f, q in zip(pairs, of_modality("quantiles", self.quantiles, name))
            )
            for name, pairs in values.items()
        }
        return replace(self, numbers=numbers)

    def shift(self, name: str, pair: str, f1, f2, c1, c2) -> float | Tensor:
        """b of one pair type. EAGLE's, from unit points: |mean F − mean S − bias| for self and KNN pairs,
        else factor · (mean F + mean S − bias); as in its code, the gradient also goes through b.
        """
        if self.rule == "adaptive":
            # the mean of all cosines of two sets of unit points is the product of their mean points
            mean_f, mean_s = ((a.mean(1) * b.mean(1)).sum(1).mean() for a, b in ((f1, f2), (c1, c2)))
            if pair == "random":
                return self.factor * (mean_f + mean_s - self.bias)
            return (mean_f - mean_s - self.bias).abs()
        return of_modality("numbers", self.numbers, name)[PAIRS.index(pair)]


def of_modality(setting: str, values: Triples, name: str) -> Triple:
    """The three values of modality ``name`` in the setting of that name.

    Raises:
        ValueError: they are given by modality, and this one has none.
    """
    if not isinstance(values, dict):
        return values
    if name not in values:
        raise ValueError(
            f"no {setting} for modality {name!r} among {list(values)}; give {setting}={{modality: (self, "
            "knn, random)} for each, or, of shifts, call shifts.measure(batches) first"
        )
    return values[name]


@dataclass(frozen=True)
class CorrespondenceConfig:
    """The loss of Eq. 9, with what the paper leaves open."""

    shifts: Shifts = Shifts()
    weights: Annotated[Triples, AtLeast(0)] = (0.4, 0.4, 0.6)
    """Of self, KNN and random pairs, for all modalities; or NAME and its three for each. A pair type of
    weight 0 is not computed.
    """
    lambdas: Annotated[dict[str, float], AtLeast(0)] = field(default_factory=dict)
    """λ by modality, 1 where none is given; a modality of λ = 0 is not computed."""
    negatives: Annotated[int, AtLeast(1)] = 5
    """Random pairs per image, averaged."""
    points: Annotated[int, AtLeast(0)] = 121
    """Random points per image; 0 = every token."""
    sampling: Literal["tokens", "bilinear"] = "tokens"
    """tokens: points are tokens, and only these go through the network; bilinear: the network sees the whole
    map, and frozen tokens and codes are interpolated between their centres, as in the released code. CBAM,
    EAGLE and depth guidance always see whole maps.
    """
    tile: Annotated[int, AtLeast(0)] = 0
    """Rows per tile; 0 = the plain form, which keeps two (B, P, Q) tensors for each pair until the backward
    pass.
    """
    centre: bool = True
    """Pointwise centring of F: in the released code, not in the paper."""
    clamp: bool = True
    """max(S, 0), Eq. 2; without it codes settle at plus and minus one vector."""
    stabilize: bool = False
    """min(S, 0.8) as well."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over the positions of a pair of images: mean as released, sum as printed. Over the batch it is always
    the mean.
    """

    def pairs(self, name: str) -> dict[str, float]:
        """The pair types that are computed for modality ``name``, and their weights."""
        weights = of_modality("weights", self.weights, name)
        return {pair: weight for pair, weight in zip(PAIRS, weights) if weight}


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines (B, P, Q) of all pairs of points of a (B, P, D) and b (B, Q, D); 0 where a point is the zero
    vector.
    """
    return unit(a) @ unit(b).mT  # Eq. 1: cos(a, b) = aᵀb / (‖a‖ ‖b‖)


def centred(correspondence: Tensor) -> Tensor:
    """Pointwise centring of F (B, P, Q): every row loses its own mean and gains that of the whole batch."""
    return correspondence - correspondence.mean(2, keepdim=True) + correspondence.mean()


def correlation_loss(
    f1: Tensor, f2: Tensor, c1: Tensor, c2: Tensor, shift: float | Tensor, **options
) -> Tensor:
    """Eq. 2 for a batch of pairs of images, a scalar: −mean (F' − b) · max(S, 0).

    Args:
        f1, f2: frozen tokens (B, P, C) and (B, Q, C); no gradient reaches them.
        c1, c2: codes (B, P, D) and (B, Q, D).
        shift: b; a tensor may carry a gradient.
        options: of ``CorrespondenceConfig``: centre, clamp, stabilize, reduction, tile.

    Raises:
        ValueError: shapes that do not belong together, a setting that does not exist.
    """
    config = CorrespondenceConfig(**options)
    check_settings(config)
    with torch.autocast(c1.device.type, enabled=False):
        return _pair_loss(*unit_points("the pair", f1.detach(), f2.detach(), c1, c2), shift, config)


def cmcs_loss(
    frozen: Points,
    codes: Points,
    neighbours: tuple[Points, Points] | None,
    config: CorrespondenceConfig,
    generator=None,
) -> tuple[Tensor, dict[str, dict]]:
    """CMCS, Eq. 9: L = L_rgb + Σ_n λ_n L_Xn. The loss L_m of a modality (Eq. 6) is the sum over pair types of
    weight · ``correlation_loss``. The released code has a λ for the reference as well, and three weights and
    three shifts for each modality: seven numbers a sensor.

    Args:
        frozen: tokens (B, P, C) of each modality.
        codes: the codes (B, P, D) that each modality supervises: s, or s^X = CMH(s) where it has a harmonizer
            (Eq. 7).
        neighbours: (frozen, codes) of the KNN partners; None where their weight is 0.
        generator: on the CPU, for random pairs. A random partner brings its own points; the released code
            interpolates anew.

    Returns:
        (loss, terms[modality][pair type]: detached, before λ and weight).

    Raises:
        ValueError: names or shapes that do not belong together, settings that leave nothing to compute or lie
            outside their bounds, a batch of one image, shifts that were not measured.
    """
    check_settings(config)
    lambdas = dict.fromkeys(frozen, 1.0) | config.lambdas
    # A modality of λ = 0 is not computed.
    weights = {name: config.pairs(name) for name in filter(lambdas.get, lambdas)}
    used = set().union(*weights.values())
    near_frozen, near_codes = near = (neighbours or ({}, {})) if "knn" in used else (frozen, codes)
    names = [sorted(group) for group in (frozen, codes, *near)]
    if names != names[:1] * 4:
        raise ValueError(
            f"modalities of frozen, codes and of both of the KNN neighbours: {names}; "
            "give all the same, or KNN pairs weight 0"
        )
    if not used or set(lambdas) != set(frozen):
        raise ValueError(
            f"weights {config.weights}, lambdas {config.lambdas} for modalities {sorted(frozen)}; "
            "name only these, and give one of them a λ above 0 and one pair type a weight > 0"
        )
    loss, terms, first = 0.0, {}, next(iter(frozen.values()))
    # The same random partners for all modalities.
    orders = [derangement(len(first), generator) for _ in range(config.negatives * ("random" in used))]
    with torch.autocast(first.device.type, enabled=False):
        for name, pairs in weights.items():
            tokens = frozen[name].detach(), near_frozen[name].detach()
            f, near_f, c, near_c = unit_points(name, *tokens, codes[name], near_codes[name])
            # Random partners come one by one, so that only one copy of the tokens exists at a time.
            partners = {
                "self": [(f, c)],
                "knn": [(near_f, near_c)],
                "random": ((f[order], c[order]) for order in orders),
            }
            terms[name] = {}
            for pair, weight in pairs.items():
                losses = [
                    _pair_loss(f, f2, c, c2, config.shifts.shift(name, pair, f, f2, c, c2), config)
                    for f2, c2 in partners[pair]
                ]
                term = sum(losses) / len(losses)
                terms[name][pair] = term.detach()
                # Eq. 9 (Eq. 5 with one auxiliary modality): L = L_rgb + Σ_n λ_n L_Xn
                loss = loss + lambdas[name] * weight * term
    return loss, terms


def sample_points(maps: Tensor, coords: Tensor) -> Tensor:
    """Bilinear samples (B, n, C) of maps (B, C, h, w) at ``coords`` (B, n, 2), x before y, −1 and 1 = first
    and last token's centre; all tokens where n is 0.
    """
    if not coords.numel():
        return all_points(maps)
    maps = at_least_float32(maps)
    grid = coords.to(maps.dtype)[:, :, None]
    return F.grid_sample(maps, grid, "bilinear", "border", align_corners=True)[..., 0].mT


def all_points(tokens: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h · w, C), row by row."""
    return tokens.flatten(2).mT


def derangement(count: int, generator=None) -> Tensor:
    """A uniform random permutation of ``count`` indices, int64 on the CPU, that maps none to itself (the
    released ones are not uniform).
    """
    if count < 2:
        raise ValueError(
            f"random pairs need another image, and the batch size is {count}; use two images or more"
        )
    while ((order := torch.randperm(count, generator=generator)) == torch.arange(count)).any():
        pass
    return order


def _pair_loss(f1, f2, c1, c2, shift: float | Tensor, config: CorrespondenceConfig) -> Tensor:
    """Eq. 2 and 6 of unit vectors, whose scalar products are the cosines of Eq. 1."""
    low, high = (0.0 if config.clamp else -torch.inf), (0.8 if config.stabilize else torch.inf)
    f1, f2 = f1.to(c1.dtype), f2.to(c1.dtype)

    def sum_of_pairs(f1: Tensor, c1: Tensor, offset: Tensor) -> Tensor:
        """Of some rows: points of the first image, with all points of the second."""
        f = f1 @ f2.mT  # Eq. 3: F = cos(f1, f2), of each modality's own tokens
        s = c1 @ c2.mT  # Eq. 4: S = cos(s1, s2); Eq. 8: S^X = cos(s1^X, s2^X), where the codes are CMH(s)
        return -(s.clamp(low, high) * (f - offset - shift)).sum()  # Eq. 2, 6: L = −Σ (F − b) · max(S, 0)

    rows = f1, c1, _offset(f1, f2, config.centre)
    if config.tile:
        # The backward pass computes each tile again, instead of keeping its tensors.
        tiles = zip(*(x.split(config.tile, 1) for x in rows))
        total = sum(checkpoint(sum_of_pairs, *tile, use_reentrant=False) for tile in tiles)
    else:
        total = sum_of_pairs(*rows)
    return total / (len(f1) * (f1.shape[1] * f2.shape[1] if config.reduction == "mean" else 1))


def _offset(f1: Tensor, f2: Tensor, centre: bool) -> Tensor:
    """(B, P, 1) to subtract from F = f1 · f2 (unit vectors) to have it ``centred``; row means are f1_p ·
    mean_q f2_q.
    """
    mean = f1 @ f2.mean(1)[..., None]
    return (mean - mean.mean()) * centre


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(points: Tensor) -> Tensor:
    """Points (B, P, D) scaled to length 1, in float32 or better; a point without direction becomes 0."""
    points = at_least_float32(points)
    norm = torch.linalg.vector_norm(points, dim=2, keepdim=True)
    return torch.where(norm <= EPS, 0.0, points / norm.clamp_min(EPS))  # written so that a NaN stays one


def unit_points(where: str, *tensors: Tensor) -> list[Tensor]:
    """f1, f2, c1, c2 as ``unit`` vectors.

    Raises:
        ValueError: they are not (B, P, C), (B, Q, C), (B, P, D), (B, Q, D), or have a single channel, whose
            cosine is ±1; begins with ``where``.
    """
    f1, f2, c1, c2 = shapes = [tuple(t.shape) for t in tensors]
    fits = (f1[::2], c1[::2], f1[:2], f2[:2]) == (f2[::2], c2[::2], c1[:2], c2[:2])
    if set(map(len, shapes)) != {3} or not fits or 0 in f1 + f2 or min(f1[2], c1[2]) < 2:
        raise ValueError(
            f"{where}: f1, f2, c1, c2 have shapes {shapes}; expected (B, P, C), (B, Q, C), (B, P, D), "
            "(B, Q, D), C and D 2 or more"
        )
    return list(map(unit, tensors))
