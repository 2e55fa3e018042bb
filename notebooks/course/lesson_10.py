"""Exercises of notebook 10: whitening, a criterion without labels, and what the best of n tries is worth."""

from itertools import combinations, product

import numpy as np

from course.exercises import Exercise, check

__all__ = ["EXERCISES", "check"]


def _directions(x, centre=True):
    x = x - x.mean(0) if centre else x
    variance, axes = np.linalg.eigh(x.T @ x / len(x))
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(len(axes))])
    return x, variance[::-1], axes[:, ::-1]


def whitened(x, k):
    x = x - x.mean(0)
    variance, axes = np.linalg.eigh(x.T @ x / len(x))  # the smallest variance first
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(len(axes))])
    return x @ axes[:, ::-1][:, :k] / np.sqrt(variance[::-1][:k])


def explained(F, first, second):
    same = (first[:, None] == second[None, :]).ravel()
    return np.corrcoef(F.ravel(), same)[0, 1]


def best_of(scores, n):
    return np.mean([max(some) for some in combinations(scores, n)])


def _same(first, second):
    return first[:, None] == second[None, :]


def _not_centred(x, k):
    x, variance, axes = _directions(x, centre=False)
    return x @ axes[:, :k] / np.sqrt(variance[:k])


def _by_variance(x, k):
    x, variance, axes = _directions(x)
    return x @ axes[:, :k] / variance[:k]


def _smallest(x, k):
    x, variance, axes = _directions(x)
    return x @ axes[:, ::-1][:, :k] / np.sqrt(variance[::-1][:k])


def _only_turned(x, k):
    x, _, axes = _directions(x)
    return x @ axes[:, :k]


_rng = np.random.default_rng(0)
_points = _rng.normal(size=(30, 3)) * [3.0, 1.0, 0.3] + [5.0, 0.0, 1.0]
_turn = np.array([[1.0, 0.4, 0.1], [0.2, 1.0, 0.3], [0.0, 0.1, 1.0]])
_F = _rng.normal(size=(4, 5))
_ids = (np.array([0, 1, 1, 2]), np.array([1, 0, 2, 1, 1]))

EXERCISES = {
    "whitened": Exercise(
        whitened,
        [(_points, 2), (_points @ _turn, 3), (_rng.normal(size=(12, 4)) @ np.diag([1, 2, 5, 3]), 2)],
        {
            "Subtract the mean first: without that, the largest direction points at it.": _not_centred,
            "Divide by the standard deviation, the root of the variance.": _by_variance,
            "These are the directions of the smallest variance: eigh sorts upwards.": _smallest,
            "This only turns the axes. Divide each by its standard deviation, too.": _only_turned,
        },
    ),
    "explained": Exercise(
        explained,
        [(_F, *_ids), (np.where(_same(*_ids), 1.0, -0.5), *_ids), (_F**2, _ids[0], _ids[1][::-1])],
        {
            "This is the covariance: divide by both standard deviations.": lambda F, first, second: np.cov(
                F.ravel(), _same(first, second).ravel(), ddof=0
            )[0, 1],
            "This is the mean F inside clusters. It says nothing without the mean outside.": (
                lambda F, first, second: F[_same(first, second)].mean()
            ),
            "This is a difference of means: it grows with the spread of F, and correlation does not.": (
                lambda F, first, second: F[_same(first, second)].mean() - F[~_same(first, second)].mean()
            ),
        },
    ),
    "best_of": Exercise(
        best_of,
        [([1.0, 2.0, 3.0], 2), ([5.0, 1.0, 4.0, 4.0, 2.0], 3), ([2.0, 7.0], 1)],
        {
            "This is the best of all. Average the best over every choice of n.": lambda scores, n: max(
                scores
            ),
            "This is the mean of all: nobody has chosen.": lambda scores, n: np.mean(scores),
            "A trial may not be drawn twice: use combinations, not products.": lambda scores, n: np.mean(
                [max(some) for some in product(scores, repeat=n)]
            ),
        },
    ),
}
