"""Exercises of lesson 05: information of own logits, what a lazy probe costs, a paired interval."""

import numpy as np
from scipy import stats

from course.exercises import Exercise, check  # noqa: F401 (lessons import it from here)

# ---- own logits ----


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def own_logit_information(logits, true):
    p = softmax(logits)
    return ((p - np.eye(len(p))[true]) ** 2).sum() / -np.log(p[true])


def base_two(logits, true):
    return own_logit_information(logits, true) * np.log(2)


def norm_not_squared(logits, true):
    p = softmax(logits)
    return np.sqrt(((p - np.eye(len(p))[true]) ** 2).sum()) / -np.log(p[true])


def true_class_only(logits, true):
    p = softmax(logits)
    return (1 - p[true]) ** 2 / -np.log(p[true])


def no_softmax(logits, true):
    return ((logits - np.eye(len(logits))[true]) ** 2).sum() / -np.log(logits[true])


def sigmoids(logits, true):
    p = 1 / (1 + np.exp(-logits))
    return ((p - np.eye(len(p))[true]) ** 2).sum() / -np.log(p[true])


def not_divided(logits, true):
    return ((softmax(logits) - np.eye(len(logits))[true]) ** 2).sum()


LOGITS = [
    (np.zeros(2), 0),
    (np.zeros(14), 3),
    (np.array([2.0, 0.0, -1.0]), 0),
    (np.array([2.0, 0.0, -1.0]), 2),
]


# ---- what a probe costs ----


def probe_cost(every, crop, samples, batch, factor):
    return factor * crop**2 * samples / batch / every


def crop_not_squared(every, crop, samples, batch, factor):
    return factor * crop * samples / batch / every


def whole_batch(every, crop, samples, batch, factor):
    return factor * crop**2 / every


def at_every_step(every, crop, samples, batch, factor):
    return factor * crop**2 * samples / batch


# ---- a paired interval ----


def paired_interval(ours, theirs):
    d = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return d.mean(), half


def normal_quantile(ours, theirs):
    d = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    return d.mean(), 1.96 * d.std(ddof=1) / np.sqrt(len(d))


def population_deviation(ours, theirs):
    d = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    return d.mean(), stats.t.ppf(0.975, len(d) - 1) * d.std() / np.sqrt(len(d))


def spread_of_the_runs(ours, theirs):
    d = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    return d.mean(), stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1)


def ends(ours, theirs):
    mean, half = paired_interval(ours, theirs)
    return mean - half, mean + half


def by_position(ours, theirs):
    d = np.array([a - b for a, b in zip(ours.values(), theirs.values())])
    return d.mean(), stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))


def unpaired(ours, theirs):
    a, b = ([scores[seed] for seed in ours if seed in theirs] for scores in (ours, theirs))
    error = np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / len(a))
    return np.mean(a) - np.mean(b), stats.t.ppf(0.975, len(a) - 1) * error


SCORES = [
    ({0: 52.1, 1: 51.0, 2: 51.9}, {0: 53.0, 1: 53.2, 2: 54.1}),
    ({0: 40.0, 2: 44.0, 1: 41.0}, {0: 41.0, 1: 41.5, 2: 45.5, 3: 60.0}),
]

EXERCISES = {
    "own_logit_information": Exercise(
        own_logit_information,
        LOGITS,
        {
            "The logarithm is to the base 2; cross-entropy here is in nats.": base_two,
            "The length of the gradient must be squared.": norm_not_squared,
            "Only the true class's part of the gradient is there; the wrong classes have one, too.": (
                true_class_only
            ),
            "These are the logits themselves; the softmax makes probabilities of them first.": no_softmax,
            "A sigmoid of each logit is no softmax: the probabilities have to sum to 1.": sigmoids,
            "It is not divided by the loss: that is the Poincaré form, a bound of the variance.": not_divided,
        },
    ),
    "probe_cost": Exercise(
        probe_cost,
        [(8, 0.5, 1, 4, 3.5), (1, 1.0, 4, 4, 3.5), (16, 0.25, 1, 8, 4.0)],
        {
            "The crop is a share of the side; its area is the square of that.": crop_not_squared,
            "The probe looks at some samples of the batch only.": whole_batch,
            "This is the whole time; the extra time alone is asked for.": lambda *args: 1 + probe_cost(*args),
            "This is in per cent; a share is asked for, 0.05 for 5 %.": lambda *args: 100 * probe_cost(*args),
            "The probe runs at every k-th step only. That it counts k-fold is its weight, not its cost.": (
                at_every_step
            ),
        },
    ),
    "paired_interval": Exercise(
        paired_interval,
        SCORES,
        {
            "The factor 1.96 is for many runs; with few, take Student's t with n − 1 degrees of freedom.": (
                normal_quantile
            ),
            "The standard deviation divides by n; from a sample it divides by n − 1.": population_deviation,
            "This is the interval of one more run; that of the mean is narrower by the root of n.": (
                spread_of_the_runs
            ),
            "Runs are paired by their place, not by their seed.": by_position,
            "These are the ends of the interval; its middle and half its width are asked for.": ends,
            "The spreads of both are added, as if seeds had nothing in common; take differences first.": (
                unpaired
            ),
        },
    ),
}
