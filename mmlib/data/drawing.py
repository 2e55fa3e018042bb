"""Arrays drawn as pictures (H, W, 3) uint8: sensor images, labels, predictions.

Fast enough to follow a slider. ``figures`` builds its figures of them, ``predict`` writes its overlays.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import ndimage

from ..modalities import IGNORE_INDEX, Modality

IGNORE_COLOUR = (64, 64, 64)  # label 255: neither trained nor scored
# Events: blue and vermilion, which colour-blind readers tell apart.
BRIGHTER = (0, 114, 178)
DARKER = (213, 94, 0)


@cache
def _colour_table(name: str) -> np.ndarray:
    """(256, 3) uint8 table of a matplotlib colour map."""
    import matplotlib  # slow to load, and not every command draws

    return (matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)


def _bytes(share: np.ndarray) -> np.ndarray:
    """Values in [0, 1] (clipped; NaN = 0) -> 0 to 255."""
    return (np.nan_to_num(np.clip(share, 0, 1)) * 255).round().astype(np.uint8)


def picture(modality: Modality, physical) -> np.ndarray:
    """A sensor's image as people read it.

    Args:
        modality: says by ``modality.picture`` how: colour, grey, heat, range, events or angle.
        physical: (C, H, W) physical values, numpy or torch. 0, infinite or not-a-number ranges are holes.

    Returns:
        (H, W, 3) uint8. Ranges: near is bright, on a logarithmic scale, holes black, and where few pixels
        have a range their points are drawn larger than they are. Events: blue = brighter, orange = darker.
        Angles: a cyclic colour map, grey where unpolarised.

    Raises:
        ValueError: wrong number of dimensions or channels.
    """
    image = np.asarray(physical, np.float32)
    if image.ndim != 3 or image.shape[0] != modality.channels:
        raise ValueError(
            f"{modality.name}: expected physical values of shape ({modality.channels}, H, W), "
            f"got {image.shape}"
        )
    kind, share = modality.picture, (image - modality.low) / (modality.high - modality.low)
    if kind == "colour" and modality.channels >= 3:
        return _bytes(share[:3]).transpose(1, 2, 0)
    if kind == "range":
        return _range_picture(image[0], modality)
    if kind == "events":
        return _event_picture(image / modality.high)
    if kind == "angle":
        cosine, sine = image[:2]
        rgb = _colour_table("twilight")[_bytes(np.arctan2(sine, cosine) / (2 * np.pi) % 1)].astype(np.float32)
        strength = np.clip(np.hypot(cosine, sine), 0, 1)[..., None]
        return (strength * rgb + (1 - strength) * 128).round().astype(np.uint8)
    return _colour_table("inferno" if kind == "heat" else "gray")[_bytes(share[0])]


def _range_picture(distance: np.ndarray, modality: Modality) -> np.ndarray:
    measured = np.isfinite(distance) & (distance > 0)
    distance = np.where(measured, distance, np.inf)
    if measured.mean() < 0.15:
        # An empty pixel takes the nearest of its four neighbours' ranges, so that rings of single pixels are
        # visible.
        cross = ndimage.generate_binary_structure(2, 1)
        nearest = ndimage.minimum_filter(distance, footprint=cross, mode="nearest")
        distance = np.where(measured, distance, nearest)
    nearness = 1 - np.log1p(distance.clip(0, modality.high)) / np.log1p(modality.high)
    # The darkest end of the colour map is left out, so that what is far does not look like a hole.
    rgb = _colour_table("viridis")[_bytes(0.12 + 0.88 * nearness)]
    rgb[np.isinf(distance)] = 0
    return rgb


def _event_picture(share: np.ndarray) -> np.ndarray:
    """(2, H, W) counts as shares of the range -> white where nothing changed. The square root makes a single
    event visible.
    """
    strength = np.clip(np.abs(share), 0, 1) ** 0.5
    brighter, darker = strength[0, ..., None], strength[-1, ..., None]
    total = np.maximum(brighter + darker, 1)
    ink = brighter * (255 - np.array(BRIGHTER)) + darker * (255 - np.array(DARKER))
    return (255 - ink / total).round().clip(0, 255).astype(np.uint8)


def label_picture(label, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """(H, W) class ids -> (H, W, 3) uint8; 255 (ignore) is dark grey.

    Raises:
        ValueError: an id that is neither ignore nor in the palette.
    """
    label = np.asarray(label)
    table = np.tile(np.uint8(IGNORE_COLOUR), (256, 1))
    table[: len(palette)] = palette
    wrong = (label != IGNORE_INDEX) & ((label < 0) | (label >= len(palette)))
    if wrong.any():
        raise ValueError(
            f"label has id {int(label[wrong][0])}; the palette has {len(palette)} colours (255 = ignore)"
        )
    return table[label.astype(np.uint8)]


def overlay(image: np.ndarray, label, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Class colours, half transparent, over a picture (H, W, 3) uint8; ignored pixels stay as they are."""
    mixed = 0.5 * image + 0.5 * label_picture(label, palette)
    return np.where((np.asarray(label) == IGNORE_INDEX)[..., None], image, mixed.round()).astype(np.uint8)


def error_picture(prediction, label) -> np.ndarray:
    """(H, W) ids twice -> right is pale grey, wrong is vermilion, ignore is dark grey."""
    prediction, label = np.asarray(prediction), np.asarray(label)
    wrong = np.where(label == IGNORE_INDEX, IGNORE_INDEX, prediction != label)
    return label_picture(wrong, [(225,) * 3, DARKER])
