"""The one visual language: how sensors, labels and results look in notebooks, panels and written pictures.

Each modality has one colour and one symbol (``mmlib.modalities``), and class palettes belong to the data set.
``predict``, the data scripts, the switchboard and all notebooks draw with these functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage

from .modalities import IGNORE_INDEX, SENSORS, Modality

# Inches: as wide as a notebook's text, so that a 10-point font in a figure reads as the text does.
WIDTH = 8.0
IGNORE_COLOUR = (64, 64, 64)  # label 255: neither trained nor scored
INK, PALE = "#222222", "#D9D9D9"
# Event polarities: blue and vermilion, which colour-blind readers tell apart.
BRIGHTER, DARKER = (0, 114, 178), (213, 94, 0)
FUSED = "#444444"  # bars that belong to several sensors at once

STYLE = {
    "figure.figsize": (WIDTH, 3.2),
    "figure.dpi": 96,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "lines.linewidth": 2,
    "image.interpolation": "nearest",
    "axes.prop_cycle": matplotlib.cycler(
        color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444"]
    ),
}


def use_style() -> None:
    """Set matplotlib to the course's style; once, at the top of a notebook."""
    plt.rcParams.update(STYLE)


# ---- pictures: arrays in, (H, W, 3) uint8 out; fast enough to follow a slider ----


@cache
def _colour_table(name: str) -> np.ndarray:
    """(256, 3) uint8 table of a matplotlib colour map."""
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
        ValueError: wrong number of dimensions or channels, or an unknown ``modality.picture``.
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
    if kind in ("grey", "colour", "heat"):
        return _colour_table("inferno" if kind == "heat" else "gray")[_bytes(share[0])]
    if kind == "range":
        return _range_picture(image[0], modality)
    if kind == "events":
        return _event_picture(image / modality.high)
    if kind == "angle":
        cosine, sine = image[:2]
        rgb = _colour_table("twilight")[_bytes(np.arctan2(sine, cosine) / (2 * np.pi) % 1)].astype(np.float32)
        strength = np.clip(np.hypot(cosine, sine), 0, 1)[..., None]
        return (strength * rgb + (1 - strength) * 128).round().astype(np.uint8)
    raise ValueError(
        f"{modality.name}: picture={kind!r}; expected colour, grey, heat, range, events or angle"
    )


def _range_picture(distance: np.ndarray, modality: Modality) -> np.ndarray:
    measured = np.isfinite(distance) & (distance > 0)
    if measured.mean() < 0.15:
        # An empty pixel takes the nearest of its four neighbours' ranges, so that rings of single pixels are
        # visible.
        cross = ndimage.generate_binary_structure(2, 1)
        nearest = ndimage.minimum_filter(
            np.where(measured, distance, np.inf), footprint=cross, mode="nearest"
        )
        distance = np.where(measured, distance, nearest)
        measured = np.isfinite(distance)
    distance = np.clip(np.where(measured, distance, 0), 0, modality.high)
    nearness = 1 - np.log1p(distance) / np.log1p(modality.high)
    # The darkest end of the colour map is left out, so that what is far does not look like a hole.
    rgb = _colour_table("viridis")[_bytes(0.12 + 0.88 * nearness)]
    rgb[~measured] = 0
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
    rgb = np.where((prediction == label)[..., None], np.uint8((225, 225, 225)), np.uint8(DARKER))
    rgb[label == IGNORE_INDEX] = IGNORE_COLOUR
    return rgb


def physical_images(frame) -> dict[str, np.ndarray]:
    """Stored images of a rendered frame, name -> (H, W, C), as physical values (C, H, W) float32."""
    return {name: SENSORS[name].to_physical(image).transpose(2, 0, 1) for name, image in frame.images.items()}


# ---- figures ----


def picture_axes(
    lines: int, columns: int, shape: tuple, extra: float, margin: float = 0.0, width: float = WIDTH
):
    """(figure, axes) for ``lines`` x ``columns`` pictures of ``shape`` (H, W).

    ``extra``: inches of height for titles and legends; ``margin``: inches of width for what stands left of
    the rows; ``width``: inches of the whole.
    """
    cell = (width - margin) / columns - 0.03
    tall = lines * (cell * shape[0] / shape[1] + 0.04) + extra
    fig, axes = plt.subplots(lines, columns, figsize=(width, tall), squeeze=False, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.015, h_pad=0.02, wspace=0, hspace=0)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=False)
    return fig, axes


def put_picture(axis, image: np.ndarray, title: str = "", size: float = 10) -> None:
    """Draw a picture (H, W, 3); a title that ends in a sensor's name has its colour."""
    axis.imshow(image, interpolation="nearest")
    # The frame tells where a white picture, such as one of events, ends on the white page.
    axis.spines[:].set(visible=True, color=PALE, linewidth=0.6)
    if title:
        sensor = SENSORS.get(title.split()[-1].lower())
        colour = text_colour(sensor) if sensor else INK
        axis.set_title(title, loc="center", fontsize=size, fontweight="normal", color=colour, pad=3)


def picture_grid(
    rows: Sequence[Mapping[str, np.ndarray]], names: Sequence[str] = (), title: str = "", width: float = WIDTH
) -> Figure:
    """Rows of pictures {title: (H, W, 3)}; equal titles stand in one column and are written once, above it.

    ``names``: what to write to the left of each row.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shape = next(iter(rows[0].values())).shape
    fig, axes = picture_axes(
        len(rows), len(columns), shape, 0.25 + 0.3 * bool(title), 0.25 * bool(names), width
    )
    for r, row in enumerate(rows):
        for axis, key in zip(axes[r], columns):
            if key in row:
                put_picture(axis, row[key], key if r == 0 else "", 10 if len(columns) < 7 else 8.5)
        if names:
            axes[r, 0].set_ylabel(names[r], fontsize=10)
    if title:
        fig.suptitle(title, x=0.01, ha="left")
    return fig


def text_colour(modality: Modality) -> tuple[float, ...]:
    """The modality's colour, darkened so that words in it read on white."""
    return tuple(0.75 * np.array(to_rgb(modality.colour)))


def sensor_title(modality: Modality) -> str:
    """'R rgb': the symbol that names subsets, then the name."""
    return f"{modality.symbol} {modality.name}"


def class_legend(fig: Figure, classes: Sequence[str], palette: Sequence[Sequence[int]], present=None) -> None:
    """A legend of the classes below the figure; ``present``: the ids that it names, all of them if None."""
    present = range(len(classes)) if present is None else present
    handles = [
        Patch(facecolor=np.array(palette[k]) / 255, edgecolor=INK, linewidth=0.4, label=name)
        for k, name in enumerate(classes)
        if k in present
    ]
    if IGNORE_INDEX in present:
        handles.append(Patch(facecolor=np.array(IGNORE_COLOUR) / 255, label="ignored"))
    fig.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 7),
        handlelength=1,
        handleheight=1,
        columnspacing=1.2,
    )


def modality_colour(symbols: str) -> str:
    """The colour of a single sensor ("D", or its name); subsets of several ("RD") are dark grey."""
    for modality in SENSORS.values():
        if symbols in (modality.symbol, modality.name):
            return modality.colour
    return FUSED
