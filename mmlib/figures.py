"""The course's one visual language: how a sensor, a label and a result look, in every notebook, panel and
table.

Each modality has one colour and one symbol (``mmlib.modalities``); class palettes belong to the data set; the
style is set once by ``use_style``. Every figure leaves a notebook through ``show``, which asks for a sentence
that says what is to be seen.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .modalities import IGNORE_INDEX, SENSORS, Modality

WIDTH = (
    8.0  # inches: the width of a notebook's text, so that a 10-point font in a figure reads as the text does
)
IGNORE_COLOUR = (64, 64, 64)  # label 255: neither trained nor scored
INK, PALE = "#222222", "#D9D9D9"
BRIGHTER, DARKER = (
    (0, 114, 178),
    (213, 94, 0),
)  # event polarities: blue and vermilion, which colour-blind readers tell apart
FUSED = "#444444"  # bars that belong to several sensors at once

STYLE = {
    "figure.figsize": (WIDTH, 3.2),
    "figure.dpi": 96,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
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
    "image.cmap": "viridis",
    "axes.prop_cycle": matplotlib.cycler(
        color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444"]
    ),
}


def use_style() -> None:
    """Set matplotlib to the course's style; once, at the top of a notebook."""
    plt.rcParams.update(STYLE)


def show(fig: Figure, alt: str) -> None:
    """Display ``fig`` as a PNG whose text form is ``Figure: <alt>``, and close it.

    ``alt`` is one sentence that tells a reader who cannot see the figure what it shows. A notebook test
    compares text and not pixels, so the sentence is also what fails when a figure's message changes: put its
    numbers and verdicts there.

    Raises:
        ValueError: ``alt`` is empty or not a sentence.
    """
    alt = " ".join(alt.split())
    if len(alt) < 12 or " " not in alt:
        plt.close(fig)
        raise ValueError(
            f"show(fig, alt={alt!r}): say in one sentence what the figure shows, for readers who cannot see it"
        )
    from IPython.display import display

    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=144, bbox_inches="tight", pad_inches=0.05)
    plt.close(fig)
    png = small_png(buffer.getvalue())
    width = (
        int.from_bytes(png[16:20], "big") * 96 // 144
    )  # drawn at 1.5 dots a pixel: sharp on good screens, the same size on all
    data = {"image/png": base64.b64encode(png).decode(), "text/plain": f"Figure: {alt}"}
    display(data, raw=True, metadata={"image/png": {"width": width, "alt": alt}})


def small_png(png: bytes, limit: int = 30_000) -> bytes:
    """The same picture in 256 colours where full colour would bloat the notebook (noisy sensor images do)."""
    if len(png) <= limit:
        return png
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        buffer, "PNG", optimize=True
    )
    return min(png, buffer.getvalue(), key=len)


# ---- pictures: arrays in, (H, W, 3) uint8 out; fast enough to follow a slider ----


@cache
def _lookup(name: str) -> np.ndarray:
    """(256, 3) uint8 table of a matplotlib colour map."""
    return (matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)


def _coloured(share: np.ndarray, name: str) -> np.ndarray:
    """Values in [0, 1] (clipped; NaN = 0) through a colour map."""
    return _lookup(name)[(np.nan_to_num(np.clip(share, 0, 1)) * 255).round().astype(np.uint8)]


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
            f"{modality.name}: expected physical values of shape ({modality.channels}, H, W), got {image.shape}"
        )
    share = (image - modality.low) / (modality.high - modality.low)
    if modality.picture == "colour" and modality.channels >= 3:
        return (np.nan_to_num(np.clip(share[:3], 0, 1)) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    if modality.picture in ("grey", "colour"):
        return _coloured(share[0], "gray")
    if modality.picture == "heat":
        return _coloured(share[0], "inferno")
    if modality.picture == "range":
        return _range_picture(image[0], modality)
    if modality.picture == "events":
        return _event_picture(image / modality.high)
    if modality.picture == "angle":
        cosine, sine = image[:2]
        rgb = _coloured(np.arctan2(sine, cosine) / (2 * np.pi) % 1, "twilight").astype(np.float32)
        strength = np.clip(np.hypot(cosine, sine), 0, 1)[..., None]
        return (strength * rgb + (1 - strength) * 128).round().astype(np.uint8)
    raise ValueError(
        f"{modality.name}: picture={modality.picture!r}; expected colour, grey, heat, range, events or angle"
    )


def _range_picture(distance: np.ndarray, modality: Modality) -> np.ndarray:
    seen = np.isfinite(distance) & (distance > 0)
    if (
        seen.mean() < 0.15
    ):  # each empty pixel takes the nearest of its four neighbours' points: rings of single pixels become visible
        padded = np.pad(np.where(seen, distance, np.inf), 1, constant_values=np.inf)
        around = np.minimum.reduce([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
        distance = np.where(seen, distance, around)
        seen = np.isfinite(distance)
    distance = np.clip(np.where(seen, distance, 0), 0, modality.high)
    nearness = 1 - np.log1p(distance) / np.log1p(modality.high)
    rgb = _coloured(
        0.12 + 0.88 * nearness, "viridis"
    )  # the map's darkest end is left out: far must not look like a hole
    rgb[~seen] = 0
    return rgb


def _event_picture(share: np.ndarray) -> np.ndarray:
    """(2, H, W) counts as shares of the range -> white where nothing changed; a single event is already
    visible.
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


def overlay(image: np.ndarray, label, palette: Sequence[Sequence[int]], alpha: float = 0.5) -> np.ndarray:
    """Class colours laid over a picture (H, W, 3) uint8; ignored pixels stay as they are."""
    mixed = (1 - alpha) * image + alpha * label_picture(label, palette)
    return np.where((np.asarray(label) == IGNORE_INDEX)[..., None], image, mixed.round()).astype(np.uint8)


def error_picture(prediction, label) -> np.ndarray:
    """(H, W) ids twice -> right is pale grey, wrong is vermilion, ignore is dark grey."""
    prediction, label = np.asarray(prediction), np.asarray(label)
    rgb = np.where((prediction == label)[..., None], np.uint8((225, 225, 225)), np.uint8(DARKER))
    rgb[label == IGNORE_INDEX] = IGNORE_COLOUR
    return rgb


def physical_images(frame, modalities: Mapping[str, Modality] = SENSORS) -> dict[str, np.ndarray]:
    """Stored images of a rendered frame, name -> (H, W, C), as physical values (C, H, W) float32."""
    return {
        name: modalities[name].to_physical(image).transpose(2, 0, 1) for name, image in frame.images.items()
    }


# ---- figures ----


def _picture_axes(
    lines: int, columns: int, shape: tuple, extra: float, margin: float = 0.0, width: float = WIDTH
):
    """Axes for ``lines`` x ``columns`` pictures of ``shape`` (H, W), and ``extra`` inches for titles and
    legends.
    """
    cell = (width - margin) / columns - 0.03
    tall = lines * (cell * shape[0] / shape[1] + 0.04) + extra
    fig, axes = plt.subplots(lines, columns, figsize=(width, tall), squeeze=False, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.015, h_pad=0.02, wspace=0, hspace=0)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=False)
    return fig, axes


def _put(axis, image: np.ndarray, title: str = "", size: float = 10) -> None:
    axis.imshow(image, interpolation="nearest")
    axis.spines[:].set(visible=True, color=PALE, linewidth=0.6)  # an event image is white, and so is the page
    if title:
        axis.set_title(
            title, loc="center", fontsize=size, fontweight="normal", color=_title_colour(title), pad=3
        )


def picture_grid(
    rows: Sequence[Mapping[str, np.ndarray]], names: Sequence[str] = (), title: str = "", width: float = WIDTH
) -> Figure:
    """Rows of pictures {title: (H, W, 3)}; equal titles stand in one column and are written once, above it.

    ``names``: what to write to the left of each row.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shape = next(iter(rows[0].values())).shape
    fig, axes = _picture_axes(
        len(rows), len(columns), shape, 0.25 + 0.3 * bool(title), 0.25 * bool(names), width
    )
    for r, row in enumerate(rows):
        for axis, key in zip(axes[r], columns):
            if key in row:
                _put(axis, row[key], key if r == 0 else "", 10 if len(columns) < 7 else 8.5)
        if names:
            axes[r, 0].set_ylabel(names[r], fontsize=10)
    if title:
        fig.suptitle(title, x=0.01, ha="left")
    return fig


def _title_colour(title: str):
    """A sensor's pictures carry its colour in their title, darkened so that it reads on white."""
    sensor = SENSORS.get(title.split()[-1].lower())
    return INK if sensor is None else tuple(0.75 * np.array(to_rgb(sensor.colour)))


def sensor_title(modality: Modality) -> str:
    """'R rgb': the symbol that names subsets, then the name."""
    return f"{modality.symbol} {modality.name}"


def sample_figure(
    images: Mapping[str, np.ndarray],
    label=None,
    palette: Sequence = (),
    modalities: Mapping[str, Modality] = SENSORS,
    classes: Sequence[str] = (),
    title: str = "",
    extra: Mapping[str, np.ndarray] | None = None,
    columns: int = 5,
) -> Figure:
    """One sample's contact sheet: each sensor's picture, then the label, then ``extra`` pictures; classes in
    a legend below.

    Args:
        images: name -> (C, H, W) physical values (``PreparedDataset.physical`` or ``physical_images``).
        label: (H, W) ids, drawn with ``palette``; ``classes`` names those that occur.
        extra: title -> (H, W, 3) uint8, e.g. a prediction's ``label_picture``.
    """
    pictures = {
        sensor_title(modalities[name]): picture(modalities[name], image) for name, image in images.items()
    }
    if label is not None:
        pictures["label"] = label_picture(label, palette)
    pictures |= extra or {}
    columns = min(columns, len(pictures))
    lines = -(-len(pictures) // columns)
    extra_height = 0.25 * lines + 0.3 * bool(title) + 0.4 * bool(len(classes))
    fig, axes = _picture_axes(lines, columns, next(iter(pictures.values())).shape, extra_height)
    for axis, (key, image) in zip(axes.flat, pictures.items()):
        _put(axis, image, key)
    if title:
        fig.suptitle(title, x=0.01, ha="left")
    if len(classes):
        class_legend(fig, classes, palette, None if label is None else np.unique(label))
    return fig


def class_legend(fig: Figure, classes: Sequence[str], palette: Sequence[Sequence[int]], present=None) -> None:
    """A legend of the classes (only those whose ids are in ``present``, when given) below the figure."""
    ids = [k for k in range(len(classes)) if present is None or k in present]
    handles = [
        Patch(facecolor=np.array(palette[k]) / 255, edgecolor=INK, linewidth=0.4, label=classes[k])
        for k in ids
    ]
    if present is not None and IGNORE_INDEX in present:
        handles.append(Patch(facecolor=np.array(IGNORE_COLOUR) / 255, label="ignored"))
    fig.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 7),
        handlelength=1,
        handleheight=1,
        columnspacing=1.2,
    )


def modality_colour(symbols: str, modalities: Mapping[str, Modality] = SENSORS) -> str:
    """The colour of a single sensor ("D", or its name); subsets of several ("RD") are dark grey."""
    return {m.symbol: m.colour for m in modalities.values()}.get(symbols) or getattr(
        modalities.get(symbols), "colour", FUSED
    )


def bars(
    values: Mapping[str, float | Sequence[float]],
    title: str = "",
    unit: str = "mIoU (%)",
    colours: Mapping[str, str] | None = None,
    ax=None,
) -> Figure:
    """One bar a name. Several values for a name are seeds: the bar is their mean, each seed is a dot and the
    whisker is ± 1 sd.

    A name that is a sensor (name or symbol) takes the sensor's colour unless ``colours`` says otherwise.
    """
    ax = ax or plt.subplots(figsize=(WIDTH, 2.8))[1]
    for position, (name, value) in enumerate(values.items()):
        seeds = np.atleast_1d(np.asarray(value, float))
        mean = seeds.mean()
        ax.bar(position, mean, 0.72, color=(colours or {}).get(name) or modality_colour(name))
        if len(seeds) > 1:
            ax.errorbar(position, mean, seeds.std(ddof=1), color=INK, capsize=3, linewidth=1.2)
            ax.plot(
                np.full(len(seeds), position),
                seeds,
                "o",
                color="white",
                markeredgecolor=INK,
                markersize=3.5,
                zorder=3,
            )
        top = max(seeds.max(), mean + (seeds.std(ddof=1) if len(seeds) > 1 else 0), 0)
        if np.isfinite(mean):
            size = 9 if len(values) < 20 else 7
            ax.annotate(
                f"{mean:.1f}", (position, top), (0, 3), textcoords="offset points", ha="center", fontsize=size
            )
    slanted = len(values) * max(map(len, values)) > 90
    ax.set_xticks(
        range(len(values)), list(values), rotation=35 if slanted else 0, ha="right" if slanted else "center"
    )
    ax.set(ylabel=unit, title=title)
    ax.set_ylim(min(0, ax.get_ylim()[0]), ax.get_ylim()[1] * 1.08)
    return ax.figure


def subset_bars(
    miou: Mapping[str, float | Sequence[float]],
    title: str = "",
    unit: str = "mIoU (%)",
    modalities: Mapping[str, Modality] = SENSORS,
) -> Figure:
    """mIoU of every subset of sensors ("R", …, "RDEL"), with the sensors present marked below each bar in
    their colours.

    Args:
        miou: subset named by its symbols -> mIoU, or one value per seed (mean, dots and ± 1 sd are drawn).
    """
    by_symbol = {m.symbol: m for m in modalities.values()}
    symbols = [s for s in by_symbol if any(s in name for name in miou)]
    heights = [2.4, 0.2 * len(symbols)]
    fig, (top, dots) = plt.subplots(
        2, 1, figsize=(WIDTH, 0.2 + sum(heights)), sharex=True, layout="constrained", height_ratios=heights
    )
    bars(miou, title, unit, ax=top)
    top.tick_params(axis="x", length=0, labelbottom=False)
    for row, symbol in enumerate(symbols):
        colours = [by_symbol[symbol].colour if symbol in name else PALE for name in miou]
        dots.scatter(np.arange(len(miou)), np.full(len(miou), row), s=36, color=colours)
    dots.set_yticks(range(len(symbols)), [sensor_title(by_symbol[s]) for s in symbols], fontsize=9)
    for text, symbol in zip(dots.get_yticklabels(), symbols):
        text.set_color(0.75 * np.array(to_rgb(by_symbol[symbol].colour)))
    dots.set_ylim(len(symbols) - 0.4, -0.6)
    dots.set_xticks([])
    dots.grid(False)
    dots.tick_params(length=0)
    dots.spines[:].set_visible(False)
    return fig


def curves(
    series: Mapping[str, tuple[Sequence, Sequence]],
    title: str = "",
    x: str = "step",
    unit: str = "loss",
    ax=None,
) -> Figure:
    """Lines {name: (x values, y values)}, each named at its end rather than in a legend; sensors keep their
    colours.
    """
    ax = ax or plt.subplots(figsize=(WIDTH, 3.0))[1]
    for name, (xs, ys) in series.items():
        known = modality_colour(name)
        line = ax.plot(xs, ys, **({} if known == FUSED else {"color": known}))[0]
        place = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
        ax.annotate(name, (xs[-1], ys[-1]), (5, 0), color=line.get_color(), fontsize=9, **place)
    ax.set(xlabel=x, ylabel=unit, title=title)
    return ax.figure
