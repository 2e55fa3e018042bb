"""Exercises of notebook 03: the heat flow, information of an image, and what is made of it."""

import numpy as np

from course.exercises import Exercise, check

__all__ = ["EXERCISES", "check"]


def spread_noise(f, x, t, z):
    return f(np.exp(-t) * x[:, None] + np.sqrt(1 - np.exp(-2 * t)) * z).mean(1)


def image_information(gradient, f, sigma, label):
    return sigma**2 * (label != 255).sum() * (gradient**2).sum() / f


def balance(shares):
    return (1 / (len(shares) * shares)).mean() - 1


def printed_term(information, lam):
    return lam * (1 / np.nanmean(information, 1)).sum()


def _with(shrink, width):
    """The heat flow with other factors for the input and for the noise."""
    return lambda f, x, t, z: f(shrink(t) * x[:, None] + width(t) * z).mean(1)


_rng = np.random.default_rng(3)
_root = lambda t: np.sqrt(1 - np.exp(-2 * t))


def _bump(x):
    return np.exp(-(x**2))


def _slope(x):
    return np.exp(0.5 * x)


_labels = [np.where(_rng.uniform(size=(3, 4)) < 0.3, 255, 1) for _ in range(2)]
_images = [
    (_rng.normal(size=(c, 3, 4)) * 0.01, f, sigma, label)
    for c, f, sigma, label in zip((3, 1), (0.7, 1.9), (0.1, 0.5), _labels)
]

EXERCISES = {
    "spread_noise": Exercise(
        spread_noise,
        [
            (_bump, np.array([-1.0, 0.0, 2.0]), 0.3, _rng.normal(size=7)),
            (_slope, np.array([0.5, 1.5]), 1.0, _rng.normal(size=20)),
            (_slope, np.array([0.5]), 0.0, _rng.normal(size=4)),
        ],
        {
            "Standard deviations do not add up to one, variances do: the noise needs the square root.": _with(
                lambda t: np.exp(-t), lambda t: 1 - np.exp(-2 * t)
            ),
            "The input has to shrink by exp(−t), or the whole grows wider than N(0, 1).": _with(
                lambda t: 1, _root
            ),
            "The noise is missing its factor: at t = 0 there is none yet.": _with(
                lambda t: np.exp(-t), lambda t: 1
            ),
            "The mean is over the noise z; you averaged over the inputs x.": lambda f, x, t, z: f(
                np.exp(-t) * x[:, None] + _root(t) * z
            ).mean(0),
            "Average f at the noisy inputs; this is f at their average.": lambda f, x, t, z: f(
                np.exp(-t) * x + _root(t) * z.mean()
            ),
        },
    ),
    "image_information": Exercise(
        image_information,
        _images,
        {
            "N counts the pixels with a label; those of 255 are not in the mean that f is.": (
                lambda gradient, f, sigma, label: sigma**2 * label.size * (gradient**2).sum() / f
            ),
            "The number of pixels is missing: without it, larger images have less information.": (
                lambda gradient, f, sigma, label: sigma**2 * (gradient**2).sum() / f
            ),
            "The noise is missing: a sensor in another unit would have another information.": (
                lambda gradient, f, sigma, label: (label != 255).sum() * (gradient**2).sum() / f
            ),
            "The noise enters squared, as the gradient does.": lambda gradient, f, sigma, label: (
                sigma * (label != 255).sum() * (gradient**2).sum() / f
            ),
            "This is the square of the sum. The squared length is the sum of squares.": (
                lambda gradient, f, sigma, label: sigma**2 * (label != 255).sum() * gradient.sum() ** 2 / f
            ),
            "This is the length of the gradient; its square is asked for.": (
                lambda gradient, f, sigma, label: (
                    sigma**2 * (label != 255).sum() * (gradient**2).sum() ** 0.5 / f
                )
            ),
            "Without the division by f this is Poincaré's form.": (
                lambda gradient, f, sigma, label: sigma**2 * (label != 255).sum() * (gradient**2).sum()
            ),
        },
    ),
    "balance": Exercise(
        balance,
        [
            (np.array([0.8, 0.2]),),
            (np.full(3, 1 / 3),),
            (np.array([0.02, 0.03, 0.9, 0.05]),),
        ],
        {
            "Subtract 1, so that equal sensors cost nothing.": lambda shares: balance(shares) + 1,
            "The mean of M shares is 1/M, not 1: equal sensors should give 0.": lambda shares: (
                (1 / shares).mean() - 1
            ),
            "Sums in place of means: equal sensors should give 0 for any number of them.": (
                lambda shares: (1 / shares).sum() - 1
            ),
            "The inverse of the mean is not the mean of the inverses.": lambda shares: (
                shares.mean() * (1 / shares.mean()) - 1
            ),
            "This is the share form, the gentler one.": lambda shares: (
                np.log(shares.mean()) - np.log(shares).mean()
            ),
        },
    ),
    "printed_term": Exercise(
        printed_term,
        [
            (np.array([[4.0, 2.0], [1.0, 0.5]]), 0.3),
            (np.array([[0.1, np.nan, 0.4], [2.0, 1.0, 3.0]]), 1.0),
            (np.array([[1.0, 5.0], [0.2, np.nan], [np.nan, 3.0]]), 0.02),
        ],
        {
            "Average first, then invert: the mean of the inverses is larger (Jensen).": (
                lambda information, lam: lam * np.nanmean(1 / information, 1).sum()
            ),
            "A sample that lacks the sensor has to be left out of its mean, not counted as 0.": (
                lambda information, lam: lam * (1 / np.nan_to_num(information).mean(1)).sum()
            ),
            "NaN spreads through a plain mean; leave out the samples that lack the sensor.": (
                lambda information, lam: lam * (1 / information.mean(1)).sum()
            ),
            "You averaged over the sensors; average over the samples, along the second axis.": (
                lambda information, lam: lam * (1 / np.nanmean(information, 0)).sum()
            ),
            "The weight is missing.": lambda information, lam: printed_term(information, 1),
            "Add the sensors up; a mean over them is another strength of the term.": (
                lambda information, lam: lam * (1 / np.nanmean(information, 1)).mean()
            ),
        },
    ),
}
