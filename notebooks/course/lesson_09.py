"""Exercises of notebook 09: matching clusters to classes, two judges in one, what harmonizers weigh, and what
may be called a difference.
"""

from itertools import permutations

import numpy as np
import torch
from scipy.stats import t

from course.exercises import Exercise, check
from mmlib.unsupervised.correspondence import CorrespondenceConfig, Shifts, all_points, cmcs_loss
from mmlib.unsupervised.networks import ClusterNet, ClusterNetConfig

__all__ = ["EXERCISES", "check"]


def small_batch() -> tuple[list, CorrespondenceConfig, dict]:
    """Random tokens and codes of four images and of their neighbours, for colour and depth; the library's
    settings for a loss on them; and the same settings as plain numbers.
    """
    torch.manual_seed(0)
    batch = [{n: torch.randn(4, 12, size) for n in ("rgb", "depth")} for size in (9, 5, 9, 5)]
    shifts, kinds = {"rgb": (0.1, 0.2, 0.4), "depth": (0.0, 0.1, 0.3)}, ("self", "knn", "random")
    lambdas = {"rgb": 1.0, "depth": 0.3}
    config = CorrespondenceConfig(Shifts("absolute", numbers=shifts), lambdas=lambdas, negatives=1)
    plain = {
        "shifts": {name: dict(zip(kinds, b)) for name, b in shifts.items()},
        "weights": dict(zip(kinds, config.weights)),
        "lambdas": lambdas,
    }
    return batch, config, plain


def gradient_lengths(lambda_rgb: float, lambda_depth: float) -> tuple[float, float]:
    """Length of the gradient of CMCS on the weights of depth's harmonizer and of the head, in a small
    network.
    """
    torch.manual_seed(0)
    net = ClusterNet(9, ["rgb", "depth"], ClusterNetConfig(dim=6, dropout=0.0))
    tokens = {n: torch.randn(4, 9, 3, 4) for n in ("rgb", "depth")}
    shifts = Shifts("absolute", numbers={"rgb": (0.1,) * 3, "depth": (0.1,) * 3})
    lambdas = {"rgb": lambda_rgb, "depth": lambda_depth}
    config = CorrespondenceConfig(shifts, (0.5, 0.0, 0.5), lambdas, negatives=1)
    code = net(tokens)
    codes = {n: all_points(net.harmonized(code, n)) for n in tokens}
    frozen = {n: all_points(x) for n, x in tokens.items()}
    cmcs_loss(frozen, codes, None, config, torch.Generator().manual_seed(0))[0].backward()
    length = lambda part: (
        sum(float((w.grad**2).sum()) for w in part.parameters() if w.grad is not None) ** 0.5
    )
    return length(net.harmonizers["depth"]), length(net.head)


def best_agreement(counts):
    k = range(len(counts))
    return max(sum(counts[p[c], c] for c in k) for p in permutations(k))


def _greedy(counts):
    counts, total = counts.copy(), 0
    for _ in range(len(counts)):
        row, column = np.unravel_index(counts.argmax(), counts.shape)
        total += counts[row, column]
        counts[row], counts[:, column] = -1, -1
    return int(total)


def _unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def one_judge(f_rgb, f_x, weight):
    return np.concatenate([_unit(f_rgb), np.sqrt(weight) * _unit(f_x)], axis=1)


def harmonizer_size(dim, sensors, shared):
    one = 2 * (dim * dim + dim)
    return one if shared else one * (sensors - 1)


def interval(ours, theirs):
    d = np.array(ours) - np.array(theirs)
    half = t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return d.mean() - half, d.mean() + half


def _interval(ours, theirs, half):
    mean = np.mean(ours) - np.mean(theirs)
    return mean - half, mean + half


def _unpaired(ours, theirs):
    n = len(ours)
    return np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / n) * t.ppf(0.975, n - 1)


_rng = np.random.default_rng(0)
_pair = (_rng.normal(size=(3, 4)), _rng.normal(size=(3, 5)))
_sd = lambda a, b, ddof=1: np.std(np.array(a) - np.array(b), ddof=ddof)

EXERCISES = {
    "best_agreement": Exercise(
        best_agreement,
        [
            (np.array([[5, 1, 0], [4, 0, 1], [0, 3, 2]]),),
            (np.array([[5, 4], [4, 0]]),),
            (_rng.integers(0, 30, (5, 5)),),
        ],
        {
            "Each cluster took its largest class, so that two clusters may have the same one.": (
                lambda counts: counts.max(0).sum()
            ),
            "Each class took its largest cluster, so that one cluster may be given away twice.": (
                lambda counts: counts.max(1).sum()
            ),
            "The largest count is not always part of the best naming: try all of them.": _greedy,
            "Cluster k is not class k: the clusters have no order.": np.trace,
        },
    ),
    "one_judge": Exercise(
        one_judge,
        [(*_pair, 0.3), (*_pair, 2.0), (*_pair, 1.0)],
        {
            "A scalar product multiplies the factor with itself: scale by the root of the weight.": (
                lambda f_rgb, f_x, weight: np.concatenate([_unit(f_rgb), weight * _unit(f_x)], 1)
            ),
            "Scale each sensor's token to length 1 first, else the longer ones outvote the others.": (
                lambda f_rgb, f_x, weight: np.concatenate([f_rgb, np.sqrt(weight) * f_x], 1)
            ),
            "Do not scale what is joined: that divides the sum of the two F by 1 + weight.": (
                lambda f_rgb, f_x, weight: _unit(one_judge(f_rgb, f_x, weight))
            ),
            "Scale each sensor's tokens before joining them; afterwards the longer sensor has most of the "
            "joined token.": lambda f_rgb, f_x, weight: _unit(np.hstack([f_rgb, np.sqrt(weight) * f_x])),
        },
        1e-9,
    ),
    "harmonizer_size": Exercise(
        harmonizer_size,
        [(70, 2, True), (70, 2, False), (320, 4, False), (320, 4, True)],
        {
            "Each layer has a bias, too: D numbers beside its D x D weights.": lambda dim, sensors, shared: (
                2 * dim * dim * (1 if shared else sensors - 1)
            ),
            "The anchor has no harmonizer: count the other sensors only.": lambda dim, sensors, shared: (
                2 * (dim * dim + dim) * (1 if shared else sensors)
            ),
            "A harmonizer has two layers.": lambda dim, sensors, shared: (
                (dim * dim + dim) * (1 if shared else sensors - 1)
            ),
            "Without sharing, every sensor but the anchor has a harmonizer of its own.": (
                lambda dim, sensors, shared: 2 * (dim * dim + dim)
            ),
            "Shared means one harmonizer for all sensors, however many there are.": (
                lambda dim, sensors, shared: 2 * (dim * dim + dim) * (sensors - 1)
            ),
        },
    ),
    "interval": Exercise(
        interval,
        [([18.0, 20.0, 19.0], [17.0, 18.5, 18.3]), ([3.0, 5.0, 4.0, 8.0], [4.0, 4.5, 3.0, 7.0])],
        {
            "The seeds are not paired: take the differences first, then their spread.": lambda ours, theirs: (
                _interval(ours, theirs, _unpaired(ours, theirs))
            ),
            "This is the spread of one difference. That of their mean is smaller by the root of n.": (
                lambda ours, theirs: _interval(ours, theirs, t.ppf(0.975, len(ours) - 1) * _sd(ours, theirs))
            ),
            "The factor 1.96 is for many seeds. For few, Student's t has longer arms: t.ppf(0.975, n - 1).": (
                lambda ours, theirs: _interval(ours, theirs, 1.96 * _sd(ours, theirs) / len(ours) ** 0.5)
            ),
            "The spread of a sample divides by n - 1: ddof=1.": lambda ours, theirs: _interval(
                ours, theirs, t.ppf(0.975, len(ours) - 1) * _sd(ours, theirs, 0) / len(ours) ** 0.5
            ),
            "The quantile 0.95 leaves 5 % on one side; 95 % in the middle need 0.975.": lambda ours, theirs: (
                _interval(ours, theirs, t.ppf(0.95, len(ours) - 1) * _sd(ours, theirs) / len(ours) ** 0.5)
            ),
            "The low and the high end are asked for; these are the mean and the half-width.": (
                lambda ours, theirs: (
                    sum(interval(ours, theirs)) / 2,
                    -np.subtract(*interval(ours, theirs)) / 2,
                )
            ),
        },
    ),
}
