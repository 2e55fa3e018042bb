"""Exercises of lesson 04: the mean over what is present, the cost of dropout, mIoU, what a sensor adds."""

import numpy as np

from course.exercises import Exercise, check  # noqa: F401 (lessons import it from here)

# ---- Eq. 5 ----


def mean_present(logits):
    present = [z for z in logits.values() if z is not None]
    return sum(present) / len(present)


def over_all_sensors(logits):
    return sum(z for z in logits.values() if z is not None) / len(logits)


def sum_of_logits(logits):
    return sum(z for z in logits.values() if z is not None)


def mean_of_probabilities(logits):
    present = [np.exp(z) / np.exp(z).sum() for z in logits.values() if z is not None]
    return sum(present) / len(present)


PIXELS = [
    ({"R": np.array([2.0, 0.0]), "L": np.array([0.0, 3.0])},),
    ({"R": np.array([2.0, 0.0]), "L": None},),
    ({"R": None, "D": np.array([1.0, -1.0, 4.0]), "L": np.array([0.5, 0.5, 0.0])},),
]


# ---- modality dropout ----


def sensors_per_step(sensors):
    return sensors * 2 ** (sensors - 1) / (2**sensors - 1)


def with_the_empty_subset(sensors):
    return sensors / 2


def sizes_equally_likely(sensors):
    return (sensors + 1) / 2


# ---- mIoU ----


def mean_iou(confusion):
    hit, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return np.mean([h / (t + p - h) for h, t, p in zip(hit, true, predicted) if t > 0])


def absent_is_zero(confusion):
    hit, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return np.mean([h / (t + p - h) if t > 0 else 0 for h, t, p in zip(hit, true, predicted)])


def pixel_accuracy(confusion):
    return np.trace(confusion) / confusion.sum()


def class_accuracy(confusion):
    return np.mean([h / t for h, t in zip(np.diag(confusion), confusion.sum(1)) if t > 0])


def counted_twice(confusion):
    hit, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return np.mean([h / (t + p) for h, t, p in zip(hit, true, predicted) if t > 0])


MATRICES = [
    (np.array([[3, 1, 0], [1, 5, 0], [0, 0, 0]]),),
    (np.array([[3, 1, 1], [1, 5, 0], [0, 0, 0]]),),
    (np.array([[40, 8, 2, 0], [3, 11, 0, 1], [5, 0, 20, 5], [0, 2, 1, 2]]),),
]


# ---- what a sensor adds ----


def adds(miou, sensor):
    by_members = {frozenset(name): value for name, value in miou.items()}
    return np.mean([by_members[s | {sensor}] - by_members[s] for s in by_members if sensor not in s])


def to_the_full_set_only(miou, sensor):
    full = max(miou, key=len)
    return miou[full] - miou[full.replace(sensor, "")]


def difference_of_means(miou, sensor):
    holds = {has: [v for name, v in miou.items() if (sensor in name) == has] for has in (True, False)}
    return np.mean(holds[True]) - np.mean(holds[False])


def the_wrong_way_round(miou, sensor):
    return -adds(miou, sensor)


TABLE = {"R": 33.0, "D": 38.0, "L": 42.0, "RD": 57.0, "RL": 62.0, "DL": 54.0, "RDL": 69.0}

EXERCISES = {
    "mean_present": Exercise(
        mean_present,
        PIXELS,
        {
            "The sum is divided by the number of all sensors, as if an absent one had said zeros.": (
                over_all_sensors
            ),
            "This is the sum of the logits; Eq. 5 is their mean.": sum_of_logits,
            "This is the mean of the probabilities; Eq. 5 averages logits.": mean_of_probabilities,
        },
    ),
    "sensors_per_step": Exercise(
        sensors_per_step,
        [(1,), (2,), (3,), (4,), (6,)],
        {
            "The empty subset is counted, too; the draw is from the 2^M − 1 others.": with_the_empty_subset,
            "All sizes are taken as equally likely; but there are more pairs than full sets.": (
                sizes_equally_likely
            ),
        },
    ),
    "mean_iou": Exercise(
        mean_iou,
        MATRICES,
        {
            "A class without a true pixel counts as 0 here; it has no IoU: leave it out.": absent_is_zero,
            "This is the share of pixels that are right, in which large classes decide.": pixel_accuracy,
            "This is the mean class accuracy: pixels that a class was given wrongly do not count.": (
                class_accuracy
            ),
            "The intersection is counted twice in the union: subtract it once.": counted_twice,
        },
    ),
    "adds": Exercise(
        adds,
        [(TABLE, "R"), (TABLE, "L"), ({"R": 20.0, "L": 30.0, "RL": 45.0}, "R")],
        {
            "Only the step to the full set is counted; a sensor can be added to every subset without it.": (
                to_the_full_set_only
            ),
            "Two means are subtracted; the sensor alone is in the first, and has no partner in the second.": (
                difference_of_means
            ),
            "The sign is turned round: with the sensor, less without it.": the_wrong_way_round,
        },
    ),
}
