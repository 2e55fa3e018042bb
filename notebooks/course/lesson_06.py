"""The exercises of lesson 06."""

from __future__ import annotations

import numpy as np

from .exercises import Exercise, check

__all__ = ["EXERCISES", "check"]


def gap(information):
    values = list(information.values())
    return max(values) / min(values) if min(values) > 0 else np.inf


def gap_of_samples(information):
    means = np.asarray(information).mean(1)
    return means.max() / means.min()


def roughness(curve):
    return np.sqrt((np.diff(curve, 2) ** 2).mean() / 6)


NOISE = np.random.default_rng(3).normal(size=12).round(2)

EXERCISES = {
    "gap": Exercise(
        gap,
        [
            ({"R": 8.0, "D": 4.0, "E": 2.0, "L": 2.0},),
            ({"R": 0.003, "L": 0.003},),
            ({"R": 0.5, "D": 0.25, "E": 1.5},),
            ({"R": 0.5, "D": 0.0},),
        ],
        {
            "This is the largest over the mean; the gap divides by the smallest.": lambda i: (
                max(i.values()) / np.mean(list(i.values()))
            ),
            "This is a difference; the gap is a ratio, so that it has no unit.": lambda i: (
                max(i.values()) - min(i.values())
            ),
            "Right but for a sensor without information, which makes the gap infinite.": lambda i: (
                max(i.values()) / max(min(i.values()), 1e-6)
            ),
        },
    ),
    "gap_of_samples": Exercise(
        gap_of_samples,
        [
            (np.array([[1.0, 100.0], [1.0, 10.0]]),),
            (np.array([[1.0, 100.0], [100.0, 1.0]]),),
            (np.array([[2.0, 4.0, 6.0], [1.0, 1.0, 4.0], [3.0, 9.0, 3.0]]),),
        ],
        {
            "This is the mean of the samples' own ratios; take the mean over samples first.": lambda i: float(
                np.mean(i.max(0) / i.min(0))
            ),
            "This averages over sensors; the mean over samples is that of each row.": lambda i: float(
                i.mean(0).max() / i.mean(0).min()
            ),
            "This is the largest single number over the smallest; the gap compares means.": lambda i: float(
                i.max() / i.min()
            ),
        },
    ),
    "roughness": Exercise(
        roughness,
        [(np.linspace(3.0, 8.0, 12) + NOISE,), (NOISE,), (np.arange(9.0),)],
        {
            "This is the standard deviation of the curve, in which a steady rise counts as noise.": np.std,
            "These are first differences, in which a steady rise counts as noise.": lambda c: np.sqrt(
                (np.diff(c) ** 2).mean() / 2
            ),
            "The division by √6 is missing.": lambda c: np.sqrt((np.diff(c, 2) ** 2).mean()),
            "You divide by 6 after the root; it is √6 there.": lambda c: (
                np.sqrt((np.diff(c, 2) ** 2).mean()) / 6
            ),
        },
    ),
}
