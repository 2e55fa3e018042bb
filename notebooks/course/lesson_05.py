"""Exercises of lesson 05: information from a gradient, of a sensor's own logits, and a form that balances."""

import numpy as np

from course.exercises import Exercise, check  # noqa: F401 (lessons import it from here)


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


# ---- information ----


def image_information(loss, gradient, sigma):
    pixels = gradient.shape[1] * gradient.shape[2]
    return sigma**2 * pixels * (gradient**2).sum() / loss


def sigma_not_squared(loss, gradient, sigma):
    return image_information(loss, gradient, sigma) / sigma


def norm_not_squared(loss, gradient, sigma):
    return sigma**2 * gradient[0].size * np.sqrt((gradient**2).sum()) / loss


def without_pixels(loss, gradient, sigma):
    return image_information(loss, gradient, sigma) / gradient[0].size


def channels_counted(loss, gradient, sigma):
    return image_information(loss, gradient, sigma) * gradient.shape[0]


def poincare(loss, gradient, sigma):
    return image_information(loss, gradient, sigma) * loss


RNG = np.random.default_rng(0)
GRADIENTS = [
    (2.0, np.full((1, 1, 1), 3.0), 0.5),
    (0.5, 0.01 * RNG.normal(size=(2, 3, 4)), 0.1),
    (1.5, 0.02 * RNG.normal(size=(3, 2, 2)), 0.3),
]


# ---- own logits ----


def own_logit_information(logits, true):
    p = softmax(logits)
    return ((p - np.eye(len(p))[true]) ** 2).sum() / -np.log(p[true])


def base_two(logits, true):
    return own_logit_information(logits, true) * np.log(2)


def norm_of_logits(logits, true):
    p = softmax(logits)
    return np.sqrt(((p - np.eye(len(p))[true]) ** 2).sum()) / -np.log(p[true])


def true_class_only(logits, true):
    p = softmax(logits)
    return (1 - p[true]) ** 2 / -np.log(p[true])


def not_divided(logits, true):
    return ((softmax(logits) - np.eye(len(logits))[true]) ** 2).sum()


LOGITS = [
    (np.zeros(2), 0),
    (np.zeros(14), 3),
    (np.array([2.0, 0.0, -1.0]), 0),
    (np.array([2.0, 0.0, -1.0]), 2),
]


# ---- forms ----


def balance(information):
    return information.mean() * (1 / information).mean() - 1


def printed_sum(information):
    return (1 / information).sum()


def gap(information):
    return information.max() / information.min()


def one_left_on(information):
    return information.mean() * (1 / information).mean()


def inverse_of_the_mean(information):
    return information.mean() * (1 / information.mean()) - 1


def sums_for_means(information):
    return information.sum() * (1 / information).sum() - 1


VALUES = [
    (np.array([1.0, 4.0]),),
    (np.array([0.3, 0.3, 0.3]),),
    (np.array([0.02, 0.1, 0.05, 0.4]),),
    (np.array([0.2, 1.0, 0.5, 4.0]),),
]

EXERCISES = {
    "image_information": Exercise(
        image_information,
        GRADIENTS,
        {
            "The noise enters as its variance: σ must be squared.": sigma_not_squared,
            "The length of the gradient must be squared.": norm_not_squared,
            "The number of pixels N is missing; without it the value depends on the image's size.": (
                without_pixels
            ),
            "Channels are counted as pixels; N is height times width.": channels_counted,
            "It is not divided by the loss; this bounds the variance (Poincaré), not the entropy.": poincare,
        },
    ),
    "own_logit_information": Exercise(
        own_logit_information,
        LOGITS,
        {
            "The logarithm is to the base 2; cross-entropy here is in nats.": base_two,
            "The length of the gradient must be squared.": norm_of_logits,
            "Only the true class's part of the gradient is there; the wrong classes have one, too.": (
                true_class_only
            ),
            "It is not divided by the loss: that is the Poincaré form, a bound of the variance.": not_divided,
        },
    ),
    "balance": Exercise(
        balance,
        VALUES,
        {
            "This is the sum of inverses as printed; it also falls when all informations grow.": printed_sum,
            "This is the Fisher gap, which sees only the largest and the smallest.": gap,
            "In balance this is 1; take 1 off, so that balance costs nothing.": one_left_on,
            "The inverse of the mean is not the mean of the inverses; this is always 0.": inverse_of_the_mean,
            "These are sums; with means the value does not depend on the number of sensors.": sums_for_means,
        },
    ),
}
