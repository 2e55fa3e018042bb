"""Functions whose entropy is known in closed form, with which notebooks 01 and 02 and the tests compare the
numbers of ``mmlib.theory``; and the measures e^-V of notebook 02. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import digamma, roots_legendre

from mmlib.theory.gaussian import Discrete, Gaussian


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


def log_concave(potential: Callable, low: float, high: float, count: int = 400) -> Discrete:
    """The density proportional to e^{-V} on the line, by Gauss-Legendre quadrature on [low, high];
    ``potential``: V, (n,) to (n,).

    ValueError where e^{-V} at an end is more than 1e-9 of its largest value, so that part of the measure
    would be cut off.
    """
    line, weights = roots_legendre(count)
    points = low + (high - low) * (np.concatenate([[-1], line, [1]]) + 1) / 2
    heights = potential(points)
    density = np.exp(heights.min() - heights)
    if not density[[0, -1]].max() <= 1e-9:
        raise ValueError(
            f"e^-V at an end of [{low:g}, {high:g}] is still {density[[0, -1]].max():.1g} of its maximum; "
            f"widen the interval"
        )
    mass = weights * density[1:-1]
    return Discrete(points[1:-1], mass / mass.sum())
