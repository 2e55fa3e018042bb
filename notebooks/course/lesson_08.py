"""Exercises of notebook 08: correspondences, the two forces of STEGO's loss, the shift, effective rank."""

import numpy as np

from course.exercises import Exercise, check

__all__ = ["EXERCISES", "as_described", "check"]


def _unit(x, axis=1):
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


def correspondence(f1, f2):
    return _unit(f1) @ _unit(f2).T


def pull(F, S, b):
    return np.where(S > 0, np.sign(F - b), 0.0)


def shift_for(F, share):
    return float(np.quantile(F, 1 - share))


def rank_of(codes):
    sigma = np.linalg.svd(_unit(codes), compute_uv=False)
    q = sigma[sigma > 1e-12] / sigma.sum()
    return float(np.exp(-(q * np.log(q)).sum()))


def _rank(sigma, base=np.log):
    q = sigma[sigma > 1e-12] / sigma.sum()
    return float(np.exp(-(q * base(q)).sum()))


_rng = np.random.default_rng(0)
_tokens = [(_rng.normal(size=(3, 4)), _rng.normal(size=(5, 4))) for _ in range(2)]
_square = np.array([[0.9, 0.2, 0.5], [0.1, 0.8, 0.4]])
_codes = np.array([[0.7, 0.6, -0.3], [-0.2, 0.5, 0.1]])
_narrow = np.array([1.0, 0.2, 0.1]) + 0.3 * _rng.normal(size=(20, 3))


def as_described(lab):
    """Stop if the five trainings of the lesson went otherwise than its text says."""
    for name, key, low, high in (
        ("b = -0.6", "mean_similarity", 0.9, 1.0),
        ("b = -0.6", "effective_rank", 1, 4),
        ("b = -0.3", "effective_rank", 1, 5),
        ("no clamp", "mean_similarity", -0.1, 0.15),
        ("no clamp", "effective_rank", 1, 8),
        ("quantiles", "effective_rank", 8, 14),
        ("b = 1.2", "effective_rank", 13, 16),
    ):
        value = lab.reports[name]["collapse"][key]
        assert low <= value <= high, f"{name}: {key} is {value:.3g}, outside [{low}, {high}]"
        first, *_, last = (line["loss"] for line in lab.history(name))
        assert last < first, f"{name}: the loss rose from {first:.3g} to {last:.3g}"


EXERCISES = {
    "correspondence": Exercise(
        correspondence,
        [(np.array([[1.0, 0], [0, 2]]), np.array([[3.0, 0], [3, 4], [0, 5]])), *_tokens],
        {
            "These are scalar products: each token has to be scaled to length 1 first.": lambda f1, f2: (
                f1 @ f2.T
            ),
            "Each channel was scaled to length 1. It is each token, a row, that needs it.": lambda f1, f2: (
                _unit(f1, 0) @ _unit(f2, 0).T
            ),
            "It is turned over: rows belong to the first image, columns to the second.": lambda f1, f2: (
                _unit(f2) @ _unit(f1).T
            ),
        },
    ),
    "pull": Exercise(
        pull,
        [(_square, _codes, 0.45), (_square, -_codes, 0.45), (_square, _codes, 0.0)],
        {
            "Where S is below zero the clamp is flat: nothing moves such a pair, whatever F says.": (
                lambda F, S, b: np.sign(F - b)
            ),
            "Attraction is clamped, too: a pair with S below zero is not drawn together.": (
                lambda F, S, b: np.where(F > b, 1.0, np.where(S > 0, -1.0, 0.0))
            ),
            "The signs are turned. The loss has a minus in front: where F > b it falls as S grows.": (
                lambda F, S, b: -pull(F, S, b)
            ),
        },
    ),
    "shift_for": Exercise(
        shift_for,
        [(np.linspace(-1, 1, 101), 0.2), (_rng.normal(size=(6, 7)) ** 3, 0.1), (_square, 0.5)],
        {
            "With this b the share lies below it. It is pairs above b that attract.": lambda F, share: float(
                np.quantile(F, share)
            ),
            "This is a share of the range of F, not of the pairs.": lambda F, share: float(
                F.max() - share * (F.max() - F.min())
            ),
        },
    ),
    "rank_of": Exercise(
        rank_of,
        [(np.eye(4),), (np.array([[1.0, 0], [0, 2], [3, 0], [0, 1]]),), (_narrow,)],
        {
            "Scale every code to length 1 first: long codes count for more here.": lambda codes: _rank(
                np.linalg.svd(codes, compute_uv=False)
            ),
            "These shares are of the squares of the singular values (the eigenvalues).": lambda codes: _rank(
                np.linalg.svd(_unit(codes), compute_uv=False) ** 2
            ),
            "This entropy is in bits: take the natural logarithm, as exp undoes that one.": lambda codes: (
                _rank(np.linalg.svd(_unit(codes), compute_uv=False), np.log2)
            ),
            "Subtract no mean: codes that are all alike would get the rank of their noise.": lambda codes: (
                _rank(np.linalg.svd(_unit(codes) - _unit(codes).mean(0), compute_uv=False))
            ),
        },
    ),
}
