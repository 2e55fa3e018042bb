"""Functional entropy (Eq. 1), the log-Sobolev bound (Eq. 2) and tensorisation (Eq. 3) on the measures of
``gaussian``.

Integrals are quadrature on ``nodes`` points in each Gaussian direction (0: as many as fit), exact to many
digits in up to three or four dimensions, and refused where the grid cuts off more than a millionth of them.
Functions that end in ``_mc`` are Monte Carlo, with a standard error.

The inequality needs the spread of the noise: for N(m, Σ) it is Ent f <= ½ E[∇fᵀ Σ ∇f / f]. Eq. 2 as printed
has no Σ and holds only where Σ is at most the identity. For a density e^{-V} with V'' >= ρ it is Ent f <=
1/(2ρ) E[‖∇f‖² / f] (Bakry and Émery).

Arguments are the same everywhere: ``f`` and ``gradient`` take the points, one array per modality; f returns
(N,), gradient one array per modality of its points' shape. ``rho`` None weights gradients by the Gaussians'
Σ, a number divides the plain squared gradient by it; ``rho=1`` is the form printed in Eq. 2. A negative or
non-finite f raises ValueError, which says where; 0 ln 0 = 0.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import kl_div, xlogy

from .gaussian import Factor, Gaussian, Measure

MAX_POINTS = 2_000_000


class Estimate(NamedTuple):
    """A Monte-Carlo value and its standard error. The error is asymptotic: with heavy tails and few samples
    it is too small.
    """

    value: float
    error: float


def factors(measure: Measure) -> dict[str, Factor]:
    """The measure as a dict modality name -> factor; a single factor is named "x"."""
    return dict(measure) if isinstance(measure, Mapping) else {"x": measure}


def _grid(measure: Measure, nodes: int) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray]]:
    """Points of the product grid, one (N, ...) array per modality; weights (N,); and each modality's own
    weights (n_i,).
    """
    product = factors(measure).values()
    directions = sum(factor.mean.size for factor in product if isinstance(factor, Gaussian))
    nodes = nodes or {0: 2, 1: 4000, 2: 500, 3: 100}.get(directions, 36)
    sizes = [nodes**f.mean.size if isinstance(f, Gaussian) else len(f.weights) for f in product]
    if np.prod(sizes, dtype=float) > MAX_POINTS:
        raise ValueError(
            f"a grid of {' x '.join(map(str, sizes))} points is too large; use fewer nodes or the functions "
            "that end in _mc"
        )
    parts = [factor.nodes(nodes) for factor in product]
    index = np.indices(sizes).reshape(len(sizes), -1)
    weights = np.prod([part.weights[i] for part, i in zip(parts, index)], axis=0)
    return [part.points[i] for part, i in zip(parts, index)], weights, [part.weights for part in parts]


def _draw(measure: Measure, samples: int, seed: int) -> list[np.ndarray]:
    if samples < 8:
        raise ValueError(f"{samples} samples give no usable standard error; take at least 8")
    rng = np.random.default_rng(seed)
    return [factor.sample(samples, rng) for factor in factors(measure).values()]


def _values(f: Callable, points: list[np.ndarray], signed: bool = False) -> np.ndarray:
    """f at the points (N,), checked; ``signed``: may be negative."""
    values = np.asarray(f(*points), np.float64)
    count = len(points[0])
    if values.shape != (count,):
        raise ValueError(
            f"f returned shape {values.shape} for {count} points; expected ({count},), one number a point"
        )
    wrong = ~np.isfinite(values) | ((values < 0) & (not signed))
    if wrong.any():
        k = wrong.argmax()
        raise ValueError(
            f"f = {values[k]:g} at {', '.join(np.array2string(p[k], precision=4) for p in points)}: "
            "functional entropy is defined for finite f >= 0. Logits and features may be negative; use a "
            "loss, a probability or a square"
        )
    return values


def _energies(
    gradient: Callable,
    points: list[np.ndarray],
    measure: Measure,
    rho: float | None,
    values: np.ndarray = np.ones(1),
) -> list[np.ndarray]:
    """∇fᵀΣ∇f, or ‖∇f‖²/ρ, of each modality at the points (N,), divided by ``values`` (N,) of f; 0 where both
    are 0, for there f has vanished, by underflow or on a region. The gradient is divided by their roots
    before it is squared: the square of 1e-200 would be 0.
    """
    parts, gradients = factors(measure), gradient(*points)
    if not isinstance(gradients, tuple | list):
        gradients = [gradients]
    gradients = [np.asarray(g, np.float64) for g in gradients]
    shapes, expected = ([array.shape for array in arrays] for arrays in (gradients, points))
    if shapes != expected or not all(np.isfinite(g).all() for g in gradients):
        raise ValueError(
            f"gradient returned shapes {shapes}; expected one finite array per modality "
            f"({', '.join(parts)}) of shapes {expected}"
        )
    roots = np.sqrt(np.where(values > 0, values, 1))[:, None]
    rows = [g.reshape(len(g), -1) / roots for g in gradients]
    steep = (values == 0) & np.any([row.any(1) for row in rows], axis=0)
    if steep.any():
        raise ValueError(
            f"f = 0 with a gradient that is not 0 at point {steep.argmax()}: no non-negative f has that"
        )
    if rho is not None:
        if not 0 < rho < np.inf:
            raise ValueError(
                f"rho {rho}: expected a positive number, a lower bound of V'' for the density e^-V"
            )
        return [np.square(g).sum(1) / rho for g in rows]
    if others := [name for name, factor in parts.items() if not isinstance(factor, Gaussian)]:
        raise ValueError(
            f"{', '.join(others)}: no Gaussian, so no constant is known; give rho, a lower bound of V''"
        )
    return [np.einsum("ni,ij,nj->n", g, factor.covariance, g) for g, factor in zip(rows, parts.values())]


# ---- quadrature ----


def _mean(weights: np.ndarray, terms: np.ndarray) -> float:
    """E[terms], terms >= 0, on a grid; refused where its outermost nodes hold a part that matters, for then
    about as much lies beyond them.
    """
    total = np.vdot(weights, terms)
    outermost = weights < 1e-36 * weights.max()  # 12.9 standard deviations from the datum
    if weights[outermost] @ terms[outermost] > 1e-7 * abs(total):
        raise ValueError(
            "f grows so steeply that its mean, or that of f ln f or of its gradient squared, is made in part "
            "more than 13σ away from the datum, or does not exist; narrow the noise"
        )
    return float(total)


def entropy(f: Callable, measure: Measure, nodes: int = 0) -> float:
    """Ent f = E[f ln f] - E f ln E f (Eq. 1), in nats times the unit of f.

    Computed as E[f ln(f/m) - f + m] with m = E f, the same number as a mean of terms that are never negative.
    """
    points, weights, _ = _grid(measure, nodes)
    values = _values(f, points)
    return _mean(weights, kl_div(values, _mean(weights, values)))


def variance(f: Callable, measure: Measure, nodes: int = 0) -> float:
    """Var f = E[(f - E f)²]; f may be negative."""
    points, weights, _ = _grid(measure, nodes)
    values = _values(f, points, signed=True)
    return _mean(weights, (values - weights @ values) ** 2)


def information(
    f: Callable, gradient: Callable, measure: Measure, rho: float | None = None, nodes: int = 0
) -> dict[str, float]:
    """Functional Fisher information of each modality, E[∇_i fᵀ Σ_i ∇_i f / f], in the unit of f.

    Unchanged when a modality and its noise are rescaled together, unlike the plain form (``rho=1``).
    """
    points, weights, _ = _grid(measure, nodes)
    return {
        name: _mean(weights, ratio)
        for name, ratio in zip(
            factors(measure), _energies(gradient, points, measure, rho, _values(f, points))
        )
    }


def log_sobolev_bound(
    f: Callable, gradient: Callable, measure: Measure, rho: float | None = None, nodes: int = 0
) -> float:
    """Half the information, summed over modalities: an upper bound of Ent f (Eq. 2).

    ``rho=1`` is Eq. 2 as printed, a bound only where the measure is at least as concentrated as N(m, I).
    """
    return 0.5 * sum(information(f, gradient, measure, rho, nodes).values())


def poincare_bound(gradient: Callable, measure: Measure, rho: float | None = None, nodes: int = 0) -> float:
    """E[∇fᵀ Σ ∇f], an upper bound of Var f; with ``rho``, E‖∇f‖²/ρ."""
    points, weights, _ = _grid(measure, nodes)
    return _mean(weights, sum(_energies(gradient, points, measure, rho)))


def _by_modality(
    f: Callable, measure: Measure, nodes: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """For each modality i: its name; f at the points of the grid, x_i along the last axis, the others along
    the first (n, n_i); the weights of these points (n, n_i); those of x_i alone (n_i,).
    """
    points, weights, own = _grid(measure, nodes)
    sizes, values = [len(w) for w in own], _values(f, points)
    for i, name in enumerate(factors(measure)):
        arrays = (np.moveaxis(x.reshape(sizes), i, -1).reshape(-1, sizes[i]) for x in (values, weights))
        yield name, *arrays, own[i]


def conditional_entropies(f: Callable, measure: Measure, nodes: int = 0) -> dict[str, float]:
    """E[Ent_{μ_i} f(·, x_{-i})] of each modality: the entropy in x_i with the others fixed, averaged
    over them.

    Their sum bounds Ent f for every product measure (tensorisation): the true form of Eq. 3.
    """
    return {
        name: _mean(weights, kl_div(values, (values @ own)[:, None]))
        for name, values, weights, own in _by_modality(f, measure, nodes)
    }


def marginal_entropies(f: Callable, measure: Measure, nodes: int = 0) -> dict[str, float]:
    """Ent_{μ_i} of E[f | x_i] for each modality: the right-hand side printed in Eq. 3. Their sum bounds
    nothing in general.
    """
    return {
        name: _mean(own, kl_div(weights.sum(1) @ values, _mean(weights, values)))
        for name, values, weights, own in _by_modality(f, measure, nodes)
    }


# ---- Monte Carlo ----


def sample_entropy(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Jackknife estimate of Ent f and its standard error from samples of f >= 0 along the last axis (..., n).

    The plain estimate puts the sample mean into m ln m and comes out too small by about Var f / (2 n E f);
    leaving out each sample in turn removes that.
    """
    count, mean = values.shape[-1], values.mean(-1, keepdims=True)
    share = np.divide(
        values, mean, out=np.ones_like(values), where=mean > 0
    )  # Ent is 1-homogeneous: work at mean 1
    term, rest = xlogy(share, share), (count - share) / (count - 1)
    whole = term.mean(-1, keepdims=True)
    left_out = (count * whole - term) / (count - 1) - xlogy(rest, rest)
    centre = left_out.mean(-1, keepdims=True)
    value = mean * (count * whole - (count - 1) * centre)
    error = mean * np.sqrt((count - 1) / count * np.square(left_out - centre).sum(-1, keepdims=True))
    return value[..., 0], error[..., 0]


def entropy_mc(f: Callable, measure: Measure, samples: int = 10_000, seed: int = 0) -> Estimate:
    """Ent f (Eq. 1) from independent samples."""
    return Estimate(*map(float, sample_entropy(_values(f, _draw(measure, samples, seed)))))


def log_sobolev_bound_mc(
    f: Callable,
    gradient: Callable,
    measure: Measure,
    rho: float | None = None,
    samples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """``log_sobolev_bound`` from independent samples: the mean of the ratio. The ratio of means estimates
    another number.
    """
    points = _draw(measure, samples, seed)
    terms = 0.5 * sum(_energies(gradient, points, measure, rho, _values(f, points)))
    largest = terms.max() or 1.0  # in this unit the squares of the deviations neither vanish nor overflow
    return Estimate(float(terms.mean()), float(largest * (terms / largest).std(ddof=1) / samples**0.5))
