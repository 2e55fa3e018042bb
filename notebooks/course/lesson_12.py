"""The exercises of lesson 12."""

import math

from .exercises import Exercise, check
from .published import load_paper

__all__ = ["EXERCISES", "check"]

_tables = load_paper("functional-entropy").tables


def mean_gap(cells, printed):
    return max(abs(sum(cells) / len(cells) - printed) - 0.01, 0)


def count_lowered(score):
    return sum(
        score[large] < score[small]
        for small in score
        for large in score
        if len(large) == len(small) + 1 and set(small) < set(large)
    )


def known_sign(a, b, h):
    return 0 if abs(a - b) <= 2 * h + 1e-9 else 1 if a > b else -1


def tries_needed(gain, sigma):
    return math.ceil(math.exp((gain / sigma) ** 2 / 2))


ROWS = [
    ([float(cell) for cell in _tables[name].cells(row)], float(printed))
    for name in ("T1", "T2", "T3")
    for row, printed in _tables[name].means.items()
]
SCORES = [
    ({subset: float(cell) for subset, cell in _tables[name].by_subset(row).items()},)
    for name in ("T2", "T3", "T4")
    for row in _tables[name].rows
]

EXERCISES = {
    "mean_gap": Exercise(
        mean_gap,
        ROWS,
        {
            "This is the whole difference; what rounding explains, 0.01, is not taken off.": lambda c, m: abs(
                sum(c) / len(c) - m
            ),
            "Only the cells' rounding, 0.005, is taken off; the printed mean is rounded, too.": lambda c, m: (
                max(abs(sum(c) / len(c) - m) - 0.005, 0)
            ),
            "The error of a mean does not grow with the number of cells.": lambda c, m: max(
                abs(sum(c) / len(c) - m) - 0.005 * (len(c) + 1), 0
            ),
            "Below zero rounding explains everything; the answer is then 0.": lambda c, m: (
                abs(sum(c) / len(c) - m) - 0.01
            ),
        },
    ),
    "count_lowered": Exercise(
        count_lowered,
        SCORES,
        {
            "This counts steps of more than one sensor, too.": lambda score: sum(
                score[large] < score[small] for small in score for large in score if set(small) < set(large)
            ),
            "These pairs need not hold each other: the larger set must hold the smaller one.": lambda score: (
                sum(
                    score[large] < score[small]
                    for small in score
                    for large in score
                    if len(large) == len(small) + 1
                )
            ),
            "This counts the steps that raise the score.": lambda score: sum(
                score[large] > score[small]
                for small in score
                for large in score
                if len(large) == len(small) + 1 and set(small) < set(large)
            ),
        },
    ),
    "known_sign": Exercise(
        known_sign,
        [
            (21.8, 21.5, 0.05),
            (20.7, 21.8, 0.05),
            (50.7, 50.7, 0.05),
            (22.0, 21.0, 0.5),
            (50.8, 50.7, 0.25),
            (21.0, 21.3, 0.2),
            (1.1, 1.0, 0.05),  # in floats 1.1 - 1.0 is above 0.1
            (50.7, 50.8, 0.05),
        ],
        {
            "Both numbers are rounded: the difference is known to 2h, not to h.": lambda a, b, h: (
                0 if abs(a - b) <= h else 1 if a > b else -1
            ),
            "Rounding is not used: this is the sign of the printed difference.": lambda a, b, h: (
                (a > b) - (a < b)
            ),
            "Exactly 2h apart counts as open, too.": lambda a, b, h: (
                0 if abs(a - b) < 2 * h - 1e-9 else 1 if a > b else -1
            ),
            "In floats 1.1 - 1.0 is a little more than 0.1: allow for it, by 1e-9.": lambda a, b, h: (
                0 if abs(a - b) <= 2 * h else 1 if a > b else -1
            ),
        },
    ),
    "tries_needed": Exercise(
        tries_needed,
        [(0.5, 0.3), (0.5, 0.25), (6.4, 2.0), (3.0, 1.0)],
        {
            "The square is missing: solve gain = σ √(2 ln n) for n.": lambda gain, sigma: math.ceil(
                math.exp(gain / sigma / 2)
            ),
            "The factor 2 under the root is missing.": lambda gain, sigma: math.ceil(
                math.exp((gain / sigma) ** 2)
            ),
            "The gain has to be measured in σ.": lambda gain, sigma: math.ceil(math.exp(gain**2 / 2)),
            "The number of tries has to be rounded up to a whole one.": lambda gain, sigma: math.floor(
                math.exp((gain / sigma) ** 2 / 2)
            ),
        },
    ),
}
