"""Exercises of notebook 02: the missing variance, the constant of a density, the bound from samples."""

import numpy as np

from course.exercises import Exercise, check

__all__ = ["EXERCISES", "check"]


def excess(a, sigma):
    return sigma**2


def curvature(p, q, r):
    return p - r / 3


def bound_from_samples(f, gradient, sigma):
    return 0.5 * np.mean(((sigma * gradient) ** 2).sum(1) / f)


_rng = np.random.default_rng(2)
_samples = [
    (_rng.exponential(size=n) + 0.1, _rng.standard_normal((n, d)), _rng.uniform(0.1, 2, d))
    for n, d in ((1, 1), (5, 2), (40, 3))
]

EXERCISES = {
    "excess": Exercise(
        excess,
        [(0.7, 1.8), (0.7, 0.5), (1.2, 1.0), (0.3, 2.0)],
        {
            "This is bound over entropy. Asked for is entropy over bound.": lambda a, sigma: 1 / sigma**2,
            "The noise enters squared: a gradient meets it twice.": lambda a, sigma: sigma,
            "The slope a stands in the entropy and in the bound, and cancels.": lambda a, sigma: (
                (a * sigma) ** 2
            ),
            "This is the entropy over the mean of f, not over the bound.": lambda a, sigma: (
                (a * sigma) ** 2 / 2
            ),
        },
    ),
    "curvature": Exercise(
        curvature,
        [(1.0, 0.0, 0.0), (2.0, 1.0, 3.0), (0.5, 0.2, 1.2), (3.0, 0.0, 6.0)],
        {
            "The cosine bends the potential, too: it takes its share from ρ.": lambda p, q, r: p,
            "The smallest curvature counts, and there the cosine is −1.": lambda p, q, r: p + r / 3,
            "Differentiating cos(2x) twice brings a factor of 4.": lambda p, q, r: p - r / 12,
            "The quartic's curvature 3 q x² is 0 at x = 0, so it adds nothing to the smallest one.": (
                lambda p, q, r: p + 3 * q - r / 3
            ),
        },
    ),
    "bound_from_samples": Exercise(
        bound_from_samples,
        _samples,
        {
            "This is a ratio of means. Eq. 2 has the mean of the ratio: divide each sample first.": (
                lambda f, gradient, sigma: 0.5 * np.mean(((sigma * gradient) ** 2).sum(1)) / np.mean(f)
            ),
            "The factor ½ is missing.": lambda f, gradient, sigma: 2 * bound_from_samples(f, gradient, sigma),
            "The variance counts: σ has to be squared along with the gradient.": lambda f, gradient, sigma: (
                0.5 * np.mean((sigma * gradient**2).sum(1) / f)
            ),
            "Without the division by f this bounds half the variance (Poincaré).": (
                lambda f, gradient, sigma: 0.5 * np.mean(((sigma * gradient) ** 2).sum(1))
            ),
            "The noise is missing: this is Eq. 2 as printed, for σ = 1.": lambda f, gradient, sigma: (
                0.5 * np.mean((gradient**2).sum(1) / f)
            ),
            "The mean over coordinates is not their sum.": lambda f, gradient, sigma: (
                0.5 * np.mean(((sigma * gradient) ** 2).mean(1) / f)
            ),
        },
    ),
}
