"""The exercises of lesson 11."""

import numpy as np

from mmlib.evaluation.subsets import subset_matrix

from .exercises import Exercise, check

__all__ = ["EXERCISES", "check"]


def map_labels(raw, table):
    lookup = np.full(256, 254, np.uint8)
    lookup[list(table)] = list(table.values())
    return lookup[raw]


def pixel_of(point, f, cx, cy):
    x, y, z = point
    return [int(np.floor(f * y / z + cy + 0.5)), int(np.floor(f * x / z + cx + 0.5))] if z > 0 else []


def training_steps(samples, epochs, batch, accumulate, gpus):
    return -(-epochs * samples // (batch * accumulate * gpus))


def expected_counts(counts, present, p):
    size, sensors = present.sum(1), present.shape[1]
    chance = (1 - p) ** size * p ** (sensors - size)
    return np.tensordot(chance / chance.sum(), counts, 1)


def _untested(point, f, cx, cy):
    x, y, z = point
    return [int(np.floor(f * y / z + cy + 0.5)), int(np.floor(f * x / z + cx + 0.5))]


def _truncated(point, f, cx, cy):
    x, y, z = point
    return [int(f * y / z + cy), int(f * x / z + cx)] if z > 0 else []


def _by_distance(point, f, cx, cy):
    (x, y, z), r = point, np.linalg.norm(point)
    return [int(np.floor(f * y / r + cy + 0.5)), int(np.floor(f * x / r + cx + 0.5))] if z > 0 else []


DELIVER = {0: 255, 255: 255} | {k: k - 1 for k in range(1, 26)}
_counts = np.random.default_rng(3).integers(0, 50, (7, 2, 2))

EXERCISES = {
    "map_labels": Exercise(
        map_labels,
        [
            (np.array([[0, 1], [25, 255]], np.uint8), DELIVER),
            (np.array([[7, 7, 8]], np.uint8), {7: 0, 8: 255}),
            (np.array([[7, 9, 0]], np.uint8), {7: 3, 8: 255}),
        ],
        {
            "Subtracting 1 fits one data set's ids; look each id up in the table.": lambda raw, table: (
                raw - np.uint8(1)
            ),
            "An id that is not in the table has to become 254; here it stays.": lambda raw, table: (
                np.vectorize(lambda k: table.get(int(k), int(k)))(raw)
            ),
            "An id that is not in the table becomes class 0 here.": lambda raw, table: np.vectorize(
                lambda k: table.get(int(k), 0)
            )(raw),
            "An unknown id is no ignored pixel: it has to be noticed.": lambda raw, table: np.vectorize(
                lambda k: table.get(int(k), 255)
            )(raw),
        },
    ),
    "pixel_of": Exercise(
        pixel_of,
        [((-1.0, 0.0, 10.0), 100, 80, 60), ((1.0, 0.5, 3.0), 100, 80, 60), ((1.0, 0.0, -10.0), 100, 80, 60)],
        {
            "A point behind the camera has no pixel; nothing asks here whether z is positive.": _untested,
            "The nearest pixel is meant: round instead of cutting off the decimals.": _truncated,
            "A projection divides by z, the distance along the axis, not by the distance.": _by_distance,
            "Row comes first: it belongs to y, the column to x.": lambda point, f, cx, cy: pixel_of(
                point, f, cx, cy
            )[::-1],
        },
    ),
    "training_steps": Exercise(
        training_steps,
        [
            (3983, 200, 1, 2, 8),
            (3983, 200, 16, 1, 1),
            (302, 500, 2, 1, 4),
            (10, 3, 8, 1, 1),
            (10, 1, 16, 1, 1),
        ],
        {
            "The last samples need a step, too: round up.": lambda samples, epochs, batch, accumulate, gpus: (
                epochs * samples // (batch * accumulate * gpus)
            ),
            "Every GPU takes its own samples: their number is missing.": lambda n, epochs, batch, a, gpus: (
                training_steps(n, epochs, batch, a, 1)
            ),
            "Micro-batches belong to one step: their number is missing.": lambda n, epochs, batch, a, gpus: (
                training_steps(n, epochs, batch, 1, gpus)
            ),
            "Epochs follow each other without a gap: round up once, at the end.": lambda n, epochs, b, a, g: (
                epochs * training_steps(n, 1, b, a, g)
            ),
        },
    ),
    "expected_counts": Exercise(
        expected_counts,
        [
            (np.stack([np.eye(2), 2 * np.eye(2), 6 * np.eye(2)]), subset_matrix(2), 0.5),
            *((_counts, subset_matrix(3), p) for p in (0.0, 0.2, 0.6)),
        ],
        {
            "The chances have to add up to 1: that no sensor is left does not count.": lambda c, s, p: (
                np.tensordot((1 - p) ** s.sum(1) * p ** (s.shape[1] - s.sum(1)), c, 1)
            ),
            "Here p is the chance that a sensor works; it is the one that it fails.": lambda c, s, p: (
                expected_counts(c, s, 1 - p) if p else c[s.sum(1) == 1].mean(0)
            ),
            "All subsets weigh the same here; that is right for p = 1/2 only.": lambda c, s, p: c.mean(0),
        },
    ),
}
