"""Images that can be read, and yet are hardly those that a network was trained on: two sensors swapped,
millimetres in the place of metres, another exposure.

Every command that applies a trained network calls ``check_plausible`` before it begins.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ..modalities import Modality
from .prepared import PreparedDataset

SAMPLES, STEP = 16, 7  # how many samples are looked at, and at every which of their pixels
FAR = 9.0  # of ``distance``: the sensor world by night, in fog or badly exposed comes to 5, one image to 7


def open_data(
    modalities: Mapping[str, Modality], classes: Sequence[str], root: str, split: str, sensors, **options
) -> PreparedDataset:
    """A split whose images are read as they are stored; all else of a sensor, such as its statistics and its
    range, is what it was in training.

    Args:
        modalities: those of the training; others are taken as they are.
        classes: of the training, and of the labels, where there are both.
        sensors, options: of ``PreparedDataset``.

    Raises:
        ValueError: a sensor is missing, has other channels or another unit than that of its name in training,
            or other classes.
    """
    dataset = PreparedDataset(root, split, sensors, **options)
    theirs = dataset.description.classes
    if dataset.labelled and classes and [*classes] != [*theirs]:
        raise ValueError(
            f"{root} has {len(theirs)} classes ({', '.join(theirs)}), in training there were {len(classes)} "
            f"({', '.join(classes)})"
        )
    for name, theirs in dataset.modalities.items():
        ours = modalities.get(name, theirs)
        if (ours.channels, ours.unit) != (theirs.channels, theirs.unit):
            before, now = (f"{m.channels} channel(s) in {m.unit or 'no unit'}" for m in (ours, theirs))
            raise ValueError(
                f"{name}: the network was trained on {before}, {root} has {now}; prepare the data in the "
                "same unit"
            )
        dataset.modalities[name] = replace(ours, dtype=theirs.dtype, scale=theirs.scale, offset=theirs.offset)
    return dataset


def evenly_spaced(items: Sequence, count: int) -> list:
    """Up to ``count`` of the items, spread evenly over all, both ends among them."""
    places = np.linspace(0, len(items) - 1, min(count, len(items)))
    return [items[int(place)] for place in places.round()]


def distance(values: Tensor, modality: Modality) -> float:
    """How far physical values (C, n) are from those that a modality was trained with: the square of the
    mean's shift in standard deviations, plus that of the logarithm of the standard deviation's ratio, of the
    channel where it is largest.
    """
    normalised = modality.to_network(values[..., None])[..., 0]
    # A spread of nothing alone is not far: the channel may never have changed.
    ratio = normalised.std(1).clamp_min(0.05)
    return float((normalised.mean(1) ** 2 + ratio.log() ** 2).max())


def check_plausible(
    modalities: Mapping[str, Modality], samples: Sequence, read: Callable, strict: bool = False
) -> None:
    """Say on stderr which sensors have other values than those that a network was trained with.

    Args:
        modalities: sensors by name, with the statistics of the training.
        samples: names or numbers of the samples, of which a few are read.
        read: one of ``samples`` -> its physical images (C, H, W) by sensor; some may be missing.
        strict: raise instead.

    Raises:
        ValueError: with ``strict``; names each sensor, its values and those of the training.
    """
    pixels = {}
    for sample in evenly_spaced(samples, SAMPLES):
        for name, image in read(sample).items():
            pixels.setdefault(name, []).append(image.flatten(1)[:, ::STEP])
    values = {name: torch.cat(parts, 1) for name, parts in pixels.items()}
    far = {
        (a, b): distance(values[a], modalities[b])
        for a, b in product(values, values)
        if modalities[a].channels == modalities[b].channels
    }
    problems = []
    for a, b in far:
        if a == b and far[a, a] > FAR:
            # The middle 95 % here, and two standard deviations on both sides of the mean in training.
            trained = modalities[a].from_network(torch.tensor([[[-2.0, 2.0]]])).numpy()
            here, there = (
                f"{part.min():.3g} to {part.max():.3g}"
                for part in (np.quantile(values[a], (0.025, 0.975)), trained)
            )
            problems.append(f"{a} has values of {here} {modalities[a].unit}, in training {there}")
        # Of two sensors that are alike, both may be nearer to the other in training than to themselves.
        own, crossed = far[a, a] + far[b, b], far[a, b] + far[b, a]
        if a < b and own > max(1.0, 2 * crossed) and crossed < FAR:
            problems.append(f"{a} and {b} look like each other in training, as if swapped")
    if problems:
        message = f"{'; '.join(problems)}: check units, folders and exposure"
        if strict:
            raise ValueError(message)
        print(f"warning: {message}; --strict makes this an error", file=sys.stderr)
