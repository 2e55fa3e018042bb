"""The exercises of lesson 07."""

from __future__ import annotations

import numpy as np

from .exercises import Exercise, check

__all__ = ["EXERCISES", "check"]


def softmax(z):
    e = np.exp(z - np.max(z, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def fuse_present(logits, present):
    members = [np.array(logits[name], float) for name in present]
    return np.mean(members, axis=0)


def _fused(rule):
    return lambda logits, present: rule(
        [np.array(z, float) * (name in present) for name, z in logits.items()]
    )


def geometric_fusion(p):
    values = np.exp(np.log(p).mean(0))
    return values / values.sum()


def _normalised(values):
    return values / values.sum()


def select(logits):
    p, mean = softmax(np.array(logits, float)), softmax(np.mean(logits, 0))
    return _closest(p @ mean / np.linalg.norm(p, axis=1), (len(p) + 1) // 2)


def _closest(similarity, count):
    return np.sort(np.argsort(-np.asarray(similarity), kind="stable")[:count]).tolist()


def _select_few(logits):
    p, mean = softmax(np.array(logits, float)), softmax(np.mean(logits, 0))
    return _closest(p @ mean / np.linalg.norm(p, axis=1), len(p) // 2)


def _select_logits(logits):
    z, mean = np.array(logits, float), np.mean(logits, 0)
    return _closest(z @ mean / np.linalg.norm(z, axis=1) / np.linalg.norm(mean), (len(z) + 1) // 2)


def _select_dot(logits):
    p, mean = softmax(np.array(logits, float)), softmax(np.mean(logits, 0))
    return _closest(p @ mean, (len(p) + 1) // 2)


def _select_least(logits):
    p, mean = softmax(np.array(logits, float)), softmax(np.mean(logits, 0))
    return _closest(-(p @ mean) / np.linalg.norm(p, axis=1), (len(p) + 1) // 2)


def _select_by_mean_probability(logits):
    p = softmax(np.array(logits, float))
    return _closest(p @ p.mean(0) / np.linalg.norm(p, axis=1), (len(p) + 1) // 2)


def _select_ranked(logits):
    p, mean = softmax(np.array(logits, float)), softmax(np.mean(logits, 0))
    similarity = p @ mean / np.linalg.norm(p, axis=1)
    return np.argsort(-similarity, kind="stable")[: (len(p) + 1) // 2].tolist()


def _logits(count, seed):
    return np.random.default_rng(seed).normal(0, 2, (count, 3)).round(1).tolist()


ONE = {"R": [2.0, 1.0, -1.0], "D": [0.0, 3.0, 0.0], "E": [-1.0, 1.0, 4.0], "L": [0.0, 1.6, 0.0]}

EXERCISES = {
    "fuse_present": Exercise(
        fuse_present,
        [(ONE, "RDEL"), (ONE, "RL"), (ONE, "E"), (ONE, "DEL")],
        {
            "You divide by the number of all sensors; |S| counts those that are present.": _fused(
                lambda z: np.sum(z, 0) / len(z)
            ),
            "This is the sum. Its largest class is the same, its softmax is sharper.": _fused(
                lambda z: np.sum(z, 0)
            ),
            "These are mean probabilities; Eq. 5 averages logits here.": lambda logits, present: np.mean(
                [softmax(logits[name]) for name in present], 0
            ),
            "This averages all sensors, also those that are absent.": lambda logits, present: np.mean(
                list(logits.values()), 0
            ),
        },
    ),
    "geometric_fusion": Exercise(
        geometric_fusion,
        [
            (np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]),),
            (np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]),),
            (np.array([[0.9, 0.05, 0.05]]),),
        ],
        {
            "This is the arithmetic mean of the probabilities.": lambda p: p.mean(0),
            "This multiplies the probabilities, as the sum of the logits does. The mean takes the n-th root "
            "first.": lambda p: _normalised(p.prod(0)),
            "The root is right; the result must be divided by its sum to be a probability.": lambda p: np.exp(
                np.log(p).mean(0)
            ),
        },
    ),
    "select": Exercise(
        select,
        [(_logits(count, seed),) for seed, count in enumerate((1, 2, 3, 4, 5, 3, 4, 5))],
        {
            "This keeps ⌊n/2⌋ sensors; the rule keeps ⌈n/2⌉.": _select_few,
            "You compare logits; the rule compares probabilities.": _select_logits,
            "These are the sensors least like the reference; keep those most like it.": _select_least,
            "The reference is the softmax of the mean logits, not the mean of the probabilities.": (
                _select_by_mean_probability
            ),
            "This is the dot product; the cosine divides by the lengths of both vectors.": _select_dot,
            "The right sensors, in order of similarity; the indices are asked for in ascending order.": (
                _select_ranked
            ),
        },
    ),
}
