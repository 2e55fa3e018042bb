"""Probability measures over modalities, and the functions whose entropy is known in closed form.

A measure is a ``Gaussian``, a ``Discrete``, or a product of them: a dict modality name -> factor, in which
the modalities are independent. A function on a measure takes one array per modality, in the dict's order:
``lambda x: np.exp(x)`` for a single factor, ``lambda rgb, depth: ...`` for a product of two. Everything is
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import digamma, roots_legendre

REACH = 13.0  # standard deviations that quadrature covers: e^{ax} moves the mass by aσ of them


@dataclass
class Gaussian:
    """N(mean, covariance): the noise around one modality's datum. ValueError unless the covariance is
    symmetric positive definite.

    Attributes:
        mean: shape () for a scalar modality, whose points are arrays (n,); shape (d,) otherwise, with points
            (n, d).
        covariance: (d, d); (1, 1) for a scalar modality.
    """

    mean: np.ndarray
    covariance: np.ndarray

    def __post_init__(self):
        self.mean = mean = np.asarray(self.mean, np.float64)
        self.covariance = covariance = np.asarray(self.covariance, np.float64)
        shapes_fit = mean.ndim <= 1 and mean.size > 0 and covariance.shape == (mean.size, mean.size)
        if not shapes_fit or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError(
                f"mean {mean.shape}, covariance {covariance.shape}; expected finite numbers of shapes () or "
                f"(d,), and (d, d)"
            )
        if (
            np.abs(covariance - covariance.T).max() > 1e-12 * np.abs(covariance).max()
            or np.linalg.eigvalsh(covariance).min() <= 0
        ):
            raise ValueError(
                f"covariance {covariance.tolist()} is not symmetric positive definite; every direction "
                f"needs some spread"
            )

    def nodes(self, count: int) -> Discrete:
        """An even grid of ``count`` nodes in each direction, as a discrete measure: the trapezoidal rule.

        For smooth f it is as exact as Gauss-Hermite quadrature, and where f oscillates or touches 0 much
        better.
        """
        if count < 2 or count % 2:
            raise ValueError(
                f"{count} quadrature nodes; give an even number, for an odd one puts a node on the mean, "
                f"where ‖x‖² is 0"
            )
        line = np.linspace(-REACH, REACH, count)
        weights = np.exp(-(line**2) / 2)
        index = np.indices([count] * self.mean.size).reshape(self.mean.size, -1)
        product = weights[index].prod(0)
        return Discrete(self._placed(line[index].T), product / product.sum())

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, *mean.shape) independent draws."""
        return self._placed(rng.standard_normal((count, self.mean.size)))

    def _placed(self, standard: np.ndarray) -> np.ndarray:
        return (self.mean.ravel() + standard @ np.linalg.cholesky(self.covariance).T).reshape(
            len(standard), *self.mean.shape
        )


@dataclass
class Discrete:
    """Finitely many ``points`` (n,) or (n, d) with probabilities ``weights`` (n,); ValueError when they are
    none.
    """

    points: np.ndarray
    weights: np.ndarray

    def __post_init__(self):
        self.points = points = np.asarray(self.points, np.float64)
        self.weights = weights = np.asarray(self.weights, np.float64)
        if points.ndim not in (1, 2) or weights.shape != points.shape[:1] or not np.isfinite(points).all():
            raise ValueError(
                f"points {points.shape}, weights {weights.shape}; expected finite numbers of shapes (n,) or "
                f"(n, d), and (n,)"
            )
        if not (weights >= 0).all() or not abs(weights.sum() - 1) < 1e-9:
            raise ValueError(
                f"weights must be non-negative and sum to 1; the smallest is {weights.min():g}, their sum "
                f"{weights.sum():g}"
            )

    def nodes(self, count: int) -> Discrete:
        return self

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return self.points[rng.choice(len(self.points), count, p=self.weights / self.weights.sum())]


Factor = Gaussian | Discrete
Measure = Factor | Mapping[str, Factor]


def gaussian(sigma: float | np.ndarray = 1.0, mean: float | np.ndarray = 0.0) -> Gaussian:
    """N(mean, diag(σ²)); ``sigma``, ``mean``: a number, or one per coordinate. ValueError where σ is 0."""
    sigma, mean = np.broadcast_arrays(np.asarray(sigma, np.float64), np.asarray(mean, np.float64))
    return Gaussian(mean, np.diag(np.atleast_1d(sigma**2)))


def uniform(points) -> Discrete:
    """Equal probability on each of ``points`` (n,) or (n, d): the empirical distribution of n data."""
    return Discrete(points, np.full(len(points), 1 / len(points)))


def log_concave(potential: Callable, low: float, high: float, count: int = 400) -> Discrete:
    """The density proportional to e^{-V} on the line, by Gauss-Legendre quadrature on [low, high];
    ``potential``: V, (n,) to (n,).

    ValueError where e^{-V} at an end is more than 1e-9 of its largest value, so that part of the measure
    would be cut off.
    """
    line, weights = roots_legendre(count)
    points = low + (high - low) * (np.concatenate([[-1], line, [1]]) + 1) / 2
    heights = np.asarray(potential(points), np.float64)
    density = np.exp(heights.min() - heights)
    if not density[[0, -1]].max() <= 1e-9:
        raise ValueError(
            f"e^-V at an end of [{low:g}, {high:g}] is still {density[[0, -1]].max():.1g} of its maximum; "
            f"widen the interval"
        )
    mass = weights * density[1:-1]
    return Discrete(points[1:-1], mass / mass.sum())


class ClosedForm(NamedTuple):
    """Exact values of one function: E f, Ent f (Eq. 1), and the information E[∇fᵀΣ∇f / f], whose half bounds
    Ent f.
    """

    mean: float
    entropy: float
    information: float


def exponential(a, measure: Gaussian) -> ClosedForm:
    """f = e^{a·x}, the one shape for which the log-Sobolev inequality is an equality. ``a``: a number or
    (d,).
    """
    a = np.broadcast_to(a, measure.mean.shape).ravel()
    spread = float(a @ measure.covariance @ a)
    mean = float(np.exp(a @ measure.mean.ravel() + spread / 2))
    return ClosedForm(mean, mean * spread / 2, mean * spread)


def square(dimensions: int = 1, sigma: float = 1.0) -> ClosedForm:
    """f = ‖x‖² for x ~ N(0, σ²I) in ``dimensions`` dimensions."""
    ratio = float(digamma(dimensions / 2 + 1) + np.log(2 / dimensions))  # of the entropy to the mean
    mean = dimensions * sigma**2
    return ClosedForm(mean, mean * ratio, 4 * sigma**2)


def bump(t: float, sigma: float = 1.0) -> ClosedForm:
    """f = e^{-x²/2t} for x ~ N(0, σ²): a bump for t > 0, growing and still integrable for t < -σ²; ValueError
    otherwise.
    """
    if not (t > 0 or t < -(sigma**2)):
        raise ValueError(f"t {t:g}: e^(-x²/2t) has a finite mean for t > 0 or t < -σ² = {-(sigma**2):g}")
    s = t / sigma**2
    v = s / (1 + s)  # f times the Gaussian density is a Gaussian of this variance, in units of σ²
    return ClosedForm(v**0.5, float(v**0.5 * (-v / (2 * s) - np.log(v) / 2)), v**0.5 * v / s**2)


def coupling(c: float) -> ClosedForm:
    """f = e^{cxy} for independent standard normal x and y: two modalities that only matter together.
    ValueError unless |c| < 1.
    """
    if not abs(c) < 1:
        raise ValueError(f"c {c:g}: e^(cxy) has a finite mean for |c| < 1")
    rest = 1 - c**2
    return ClosedForm(
        rest**-0.5, float(c**2 * rest**-1.5 + rest**-0.5 * np.log(rest) / 2), 2 * c**2 * rest**-1.5
    )
