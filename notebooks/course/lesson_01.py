"""The exercises of lesson 01."""

import numpy as np

from .exercises import Exercise, check

__all__ = ["EXERCISES", "check"]


def _u_ln_u(values):
    return values * np.log(np.where(values > 0, values, 1))


def table_entropy(values, probabilities):
    m = values @ probabilities
    return probabilities @ _u_ln_u(values) - m * np.log(m)


def weighted_noise(values, probabilities):
    return values * probabilities / (values @ probabilities)


def _even(values):
    return table_entropy(values, np.full(len(values), 1 / len(values)))


def conditional_sum(f):
    return np.mean([_even(row) for row in f]) + np.mean([_even(column) for column in f.T])


def first_share(a1, sigma1, a2, sigma2):
    return (a1 * sigma1) ** 2 / ((a1 * sigma1) ** 2 + (a2 * sigma2) ** 2)


_draw = np.random.default_rng(1)
TABLES = [
    (np.array([1.0, 3.0]), np.array([0.5, 0.5])),
    (np.array([2.0, 0.0]), np.array([0.5, 0.5])),
    *((_draw.exponential(size=n).round(2), _draw.dirichlet(np.ones(n)).round(6)) for n in (3, 5)),
]
TABLES = [(values, probabilities / probabilities.sum()) for values, probabilities in TABLES]

EXERCISES = {
    "table_entropy": Exercise(
        table_entropy,
        TABLES,
        {
            "This is in bits, the base-2 logarithm; the course uses the natural one.": lambda v, p: (
                table_entropy(v, p) / np.log(2)
            ),
            "The second term is m ln m, not ln m: a factor m is missing.": lambda v, p: (
                p @ _u_ln_u(v) - np.log(v @ p)
            ),
            "The mean is not weighted by the probabilities.": lambda v, p: (
                _u_ln_u(v).mean() - v.mean() * np.log(v.mean())
            ),
            "Here 0 ln 0 is nan, as numpy computes it; it counts as 0.": lambda v, p: (
                p @ (v * np.log(v)) - v @ p * np.log(v @ p)
            ),
            "The sign is reversed: the mean of u ln u comes first and is the larger one.": lambda v, p: (
                -table_entropy(v, p)
            ),
            "This is divided by the mean: Ent f / E f, not Ent f.": lambda v, p: (
                table_entropy(v, p) / (v @ p)
            ),
            "This is Var f / 2 E f: close where f is nearly constant, but not the entropy.": lambda v, p: (
                p @ (v - v @ p) ** 2 / (2 * v @ p)
            ),
        },
    ),
    "weighted_noise": Exercise(
        weighted_noise,
        TABLES,
        {
            "These do not sum to 1: divide by the mean of f under the noise.": lambda v, p: v * p,
            "This forgets the noise: each value counts as often as its probability says.": lambda v, p: (
                v / v.sum()
            ),
            "This divides by the sum of the values, not by their mean under the noise.": lambda v, p: (
                v * p / v.sum()
            ),
            "This is the density f / E f; the probabilities of the noise are missing.": lambda v, p: (
                v / (v @ p)
            ),
        },
    ),
    "conditional_sum": Exercise(
        conditional_sum,
        [
            (np.array([[2.0, 0.0], [0.0, 2.0]]),),
            (_draw.exponential(size=(3, 4)).round(2),),
            (np.array([[1.0, 2.0, 4.0], [3.0, 6.0, 12.0]]),),
        ],
        {
            "This is the printed form: entropies of the means, not means of the entropies.": lambda f: (
                _even(f.mean(0)) + _even(f.mean(1))
            ),
            "The entropies of rows are to be averaged, not added up; those of columns, too.": lambda f: (
                sum(map(_even, f)) + sum(map(_even, f.T))
            ),
            "Only the rows are there; the other sensor's entropies, of the columns, are missing.": lambda f: (
                np.mean([_even(row) for row in f])
            ),
            "Only the columns are there; the other sensor's entropies, of the rows, are missing.": lambda f: (
                np.mean([_even(column) for column in f.T])
            ),
            "This is the mean of the two sensors' parts; Eq. 3 has their sum.": lambda f: (
                conditional_sum(f) / 2
            ),
            "This is the entropy of the whole table, the left-hand side.": lambda f: _even(f.ravel()),
        },
    ),
    "first_share": Exercise(
        first_share,
        [(1.0, 1.0, 1.0, 1.0), (0.5, 1.0, 1.0, 0.5), (0.9, 0.4, -0.3, 1.5), (2.0, 0.5, 1.0, 3.0)],
        {
            "The square is missing.": lambda a, s, b, t: abs(a * s) / (abs(a * s) + abs(b * t)),
            "The noise is missing: σ counts as much as a.": lambda a, s, b, t: a**2 / (a**2 + b**2),
            "The noise enters with its variance: σ is to be squared as well.": lambda a, s, b, t: (
                a**2 * s / (a**2 * s + b**2 * t)
            ),
            "This is the share of the second sensor.": lambda a, s, b, t: 1 - first_share(a, s, b, t),
            "This is the ratio of the two parts; a share is divided by their sum.": lambda a, s, b, t: (
                (a * s) ** 2 / (b * t) ** 2
            ),
        },
    ),
}
