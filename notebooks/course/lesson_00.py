"""Exercises of lesson 00: counting what can be left, the score of a class, and a zero that is no number."""

import numpy as np

from .exercises import Exercise, check

__all__ = ["EXERCISES", "check"]


def count_subsets(sensors):
    return 2 ** len(sensors) - 1


def class_iou(prediction, label, c):
    said, true = (prediction == c) & (label != 255), label == c
    return (said & true).sum() / (said | true).sum()


def halve_depth(depth):
    height, width = depth.shape
    blocks = depth.reshape(height // 2, 2, width // 2, 2)
    measured = (blocks > 0).sum((1, 3))
    return blocks.sum((1, 3)) / np.maximum(measured, 1)


def _of_class(share):
    """``share(said, true)`` of the labelled pixels of class c."""
    return lambda prediction, label, c: share((prediction == c) & (label != 255), label == c)


def _of_blocks(value):
    """``value`` of each block of four pixels, the four along the last axis."""

    def halve(depth):
        height, width = depth.shape
        blocks = depth.reshape(height // 2, 2, width // 2, 2).swapaxes(1, 2)
        return value(blocks.reshape(height // 2, width // 2, 4))

    return halve


_rng = np.random.default_rng(0)
_label = np.array([[0, 0, 0, 0, 1], [0, 0, 1, 1, 1], [2, 2, 255, 255, 1]])
_map = np.array([[0, 0, 0, 1, 1], [0, 2, 1, 1, 0], [2, 0, 0, 2, 2]])
_street = _rng.choice([0, 1, 255], size=(6, 8), p=[0.5, 0.4, 0.1])
_guess = np.where(_rng.uniform(size=(6, 8)) < 0.6, _street == 1, _rng.uniform(size=(6, 8)) < 0.5) * 1
_depths = [np.round(_rng.uniform(2, 40, size), 1) for size in ((2, 4), (4, 6))]
_gaps = [depth * (_rng.uniform(size=depth.shape) < 0.6) for depth in _depths]
_gaps[1][:2, :2] = 0

EXERCISES = {
    "count_subsets": Exercise(
        count_subsets,
        [("R",), ("RD",), ("RDE",), ("RDEL",), ("RDELTNPA",)],
        {
            "This also counts the empty set, a machine that has no sensor at all.": lambda s: 2 ** len(s),
            "This counts single sensors and pairs; three and more may be left, too.": lambda s: (
                len(s) + len(s) * (len(s) - 1) // 2
            ),
            "This counts the cases in which exactly one sensor is missing.": lambda s: len(s),
        },
    ),
    "class_iou": Exercise(
        class_iou,
        [(_map, _label, 0), (_map, _label, 2), (_guess, _street, 1)],
        {
            "A pixel of 255 has no label: what the map says there counts neither for it nor against it.": (
                lambda p, t, c: ((p == c) & (t == c)).sum() / ((p == c) | (t == c)).sum()
            ),
            "This is the share of the class that was found (recall): false alarms cost nothing.": _of_class(
                lambda said, true: (said & true).sum() / true.sum()
            ),
            "This is the share of the map's c that is c (precision): what was missed costs nothing.": (
                _of_class(lambda said, true: (said & true).sum() / said.sum())
            ),
            "Both areas are added, so their intersection counts twice: the union has it once.": _of_class(
                lambda said, true: (said & true).sum() / (said.sum() + true.sum())
            ),
            "Twice the intersection over the sum of both areas is the Dice score, not the IoU.": _of_class(
                lambda said, true: 2 * (said & true).sum() / (said.sum() + true.sum())
            ),
            "This is the intersection in pixels; it has to be divided by the union.": _of_class(
                lambda said, true: (said & true).sum()
            ),
        },
    ),
    "halve_depth": Exercise(
        halve_depth,
        [(_depths[0],), *((gaps,) for gaps in _gaps)],
        {
            "Zero is no distance: the mean of 20 m and of nothing is not 10 m.": _of_blocks(
                lambda four: four.mean(-1)
            ),
            "Where none of the four measured anything the result is 0, as in the image, not nan.": _of_blocks(
                lambda four: four.sum(-1) / np.where((four > 0).any(-1), (four > 0).sum(-1), np.nan)
            ),
            "One measured pixel of four is enough; this leaves a block out that lacks any.": _of_blocks(
                lambda four: four.mean(-1) * (four > 0).all(-1)
            ),
            "This takes one pixel of each block and forgets the other three.": lambda d: d[::2, ::2],
            "This is the largest distance of each block, not the mean.": _of_blocks(
                lambda four: four.max(-1)
            ),
            "This divides by all measured pixels of the image; each block has its own number of them.": (
                lambda d: _of_blocks(lambda four: four.sum(-1))(d) / max((d > 0).sum(), 1)
            ),
        },
    ),
}
