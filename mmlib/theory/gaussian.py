"""Probability measures over modalities.

A measure is a ``Gaussian``, a ``Discrete``, or a product of them: a dict modality name -> factor, in which
the modalities are independent. A function on a measure takes one array per modality, in the dict's order:
``lambda x: np.exp(x)`` for a single factor, ``lambda rgb, depth: ...`` for a product of two. Everything is
float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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
        if not (shapes_fit and np.isfinite(mean).all() and np.isfinite(covariance).all()):
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

    def nodes(self, count: int) -> "Discrete":
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

    def nodes(self, count: int) -> "Discrete":
        return self

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return self.points[rng.choice(len(self.points), count, p=self.weights / self.weights.sum())]


Factor = Gaussian | Discrete
Measure = Factor | Mapping[str, Factor]


def gaussian(sigma: float | np.ndarray = 1.0, mean: float | np.ndarray = 0.0) -> Gaussian:
    """N(mean, diag(σ²)); ``sigma``, ``mean``: a number, or one per coordinate. ValueError where σ is 0."""
    sigma, mean = np.broadcast_arrays(sigma, mean)
    return Gaussian(mean, np.diag(np.atleast_1d(sigma**2)))


def uniform(points) -> Discrete:
    """Equal probability on each of ``points`` (n,) or (n, d): the empirical distribution of n data."""
    return Discrete(points, np.full(len(points), 1 / len(points)))
