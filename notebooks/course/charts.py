"""How a figure enters a notebook, and the lessons' charts: contact sheet, bars, subsets of sensors, curves.

Colours, symbols and pictures are those of ``mmlib.figures``.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy.spatial import cKDTree

from mmlib.figures import (
    FUSED,
    INK,
    PALE,
    WIDTH,
    class_legend,
    label_picture,
    picture,
    picture_axes,
    put_picture,
    sensor_title,
    text_colour,
)
from mmlib.modalities import SENSORS

# The colours of the style (Okabe and Ito's). Sensors have theirs in ``mmlib.modalities``.
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY = "#777777"  # what is not the point of a figure
OFFSET = {"textcoords": "offset points"}  # where an annotation's second place is measured in points
# Colours that lines and areas have, and darker ones for words: a contrast of 4.5 on white.
READABLE = {ORANGE.lower(): "#b25000", GREEN.lower(): "#007a59", "#7a7a7a": "#707070", "#8a8a8a": "#707070"}


BY_SYMBOL = {sensor.symbol: sensor for sensor in SENSORS.values()}


def modality_colour(symbols: str) -> str:
    """The colour of a single sensor ("D", or its name); subsets of several ("RD") are dark grey."""
    sensor = BY_SYMBOL.get(symbols) or SENSORS.get(symbols)
    return sensor.colour if sensor else FUSED


def modality_title(name: str) -> str:
    """The title of a sensor ("R rgb"); what is none stays as it is."""
    return sensor_title(SENSORS[name]) if name in SENSORS else name


# ---- what many charts share ----


def legend_below(fig: Figure, axis, columns: int) -> None:
    """The lines and bars of ``axis`` that have a label, in a legend below the figure."""
    fig.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def vertical_grid(axis) -> None:
    """For bars and dots that lie in rows: the grid belongs to the horizontal axis."""
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")


def rings(axis, x, y, colour: str = INK, size: float = 4, **style) -> None:
    """A white ring for each seed; ``x`` or ``y`` may be one number for all of them."""
    x, y = np.broadcast_arrays(x, y)
    axis.plot(x, y, "o", color="white", markeredgecolor=colour, markersize=size, **style)


def small_multiples(count: int, columns: int, width: float, height: float, base: float):
    """(figure, axes) with ``count`` panels in lines of ``columns``, ``height`` each and ``base`` inches more;
    the places that are left over are hidden.
    """
    lines = -(-count // columns)
    fig, axes = plt.subplots(lines, columns, figsize=(width, base + height * lines), squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return fig, axes


def enlarged(image: np.ndarray, height: int) -> np.ndarray:
    """A picture whose pixels are repeated as often as fits into ``height``."""
    times = height // len(image)
    return image.repeat(times, 0).repeat(times, 1)


def show(fig: Figure, alt: str) -> None:
    """Display ``fig`` as a PNG whose text form is ``Figure: <alt>``, and close it.

    ``alt`` is one sentence that tells a reader who cannot see the figure what it shows. A notebook test
    compares text and not pixels, so the sentence is also what fails when a figure's message changes: put its
    numbers and verdicts there.

    Raises:
        ValueError: ``alt`` is empty or not a sentence.
    """
    alt = sentence(fig, alt)
    from IPython.display import display

    png, width = png_of(fig)
    data = {"image/png": png, "text/plain": f"Figure: {alt}"}
    display(data, raw=True, metadata={"image/png": {"width": width, "alt": alt}})


def sentence(fig: Figure, alt: str) -> str:
    """``alt`` on one line; ValueError, and ``fig`` is closed, where it is not a sentence."""
    alt = " ".join(alt.split())
    if len(alt) < 12 or " " not in alt:
        plt.close(fig)
        raise ValueError(
            f"show(fig, alt={alt!r}): say in one sentence what the figure shows, "
            "for readers who cannot see it"
        )
    return alt


def png_of(fig: Figure) -> tuple[str, int]:
    """A figure as a PNG in base64, and the width in pixels at which to draw it; closes the figure."""
    for words in fig.findobj(Text):
        words.set_color(READABLE.get(to_hex(words.get_color()), words.get_color()))
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=144, bbox_inches="tight", pad_inches=0.05)
    plt.close(fig)
    png = small_png(buffer.getvalue())
    # Bytes 16 to 19 of a PNG are its width. It is drawn with 1.5 dots a pixel: sharp on good screens, and of
    # the same size on all.
    return base64.b64encode(png).decode(), int.from_bytes(png[16:20], "big") * 96 // 144


def small_png(png: bytes) -> bytes:
    """The same picture in 256 colours where full colour would bloat the notebook (noisy sensor images do).

    The 96 most frequent colours stay as they are, because they are those of paper, classes, sensors and text;
    the others share the rest, which is spread over all colours that occur, so that none changes its hue.
    """
    if len(png) <= 30_000:
        return png
    image, buffer = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    packed, where, counts = np.unique(
        np.asarray(image) @ np.array([65536, 256, 1]), return_inverse=True, return_counts=True
    )
    colours = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    palette = colours
    if len(colours) > 256:
        shared = image.quantize(160, Image.Quantize.MAXCOVERAGE).getpalette()
        palette = np.concatenate([colours[np.argsort(counts)[-96:]], np.reshape(shared, (-1, 3))])
    # Not Pillow's own search for the nearest colour, which is rough: it made white paper grey.
    nearest = cKDTree(palette).query(colours)[1]
    small = Image.fromarray(nearest[where].astype(np.uint8).reshape(image.height, image.width))
    small.putpalette(palette.astype(np.uint8).tobytes())
    small.save(buffer, "PNG", optimize=True)
    return min(png, buffer.getvalue(), key=len)


def sample_figure(
    images: Mapping[str, np.ndarray],
    label: np.ndarray,
    palette: Sequence,
    classes: Sequence[str],
    title: str = "",
    columns: int = 5,
    prediction: np.ndarray | None = None,
) -> Figure:
    """One sample's contact sheet: each sensor's picture, its label, a prediction; classes in a legend below.

    Args:
        images: name -> (C, H, W) physical values (``PreparedDataset.physical`` or ``physical_images``).
        label: (H, W) ids, drawn with ``palette``; ``classes`` names those that occur.
    """
    pictures = {sensor_title(SENSORS[name]): picture(SENSORS[name], image) for name, image in images.items()}
    pictures["label"] = label_picture(label, palette)
    if prediction is not None:
        pictures["prediction"] = label_picture(prediction, palette)
    columns = min(columns, len(pictures))
    lines = -(-len(pictures) // columns)
    fig, axes = picture_axes(lines, columns, label.shape, 0.25 * lines + 0.3 * bool(title) + 0.4)
    for axis, (key, image) in zip(axes.flat, pictures.items()):
        put_picture(axis, image, key)
    if title:
        fig.suptitle(title, x=0.01, ha="left")
    class_legend(fig, classes, palette, np.unique(label))
    return fig


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
            rings(ax, position, seeds, size=3.5, zorder=3)
        top = max(seeds.max(), mean + (seeds.std(ddof=1) if len(seeds) > 1 else 0), 0)
        if np.isfinite(mean):
            size = 9 if len(values) < 20 else 7
            ax.annotate(f"{mean:.1f}", (position, top), (0, 3), ha="center", fontsize=size, **OFFSET)
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
) -> Figure:
    """mIoU of every subset of sensors ("R", …, "RDEL"), with the sensors present marked below each bar in
    their colours.

    Args:
        miou: subset named by its symbols -> mIoU, or one value per seed (mean, dots and ± 1 sd are drawn).
    """
    symbols = [s for s in BY_SYMBOL if any(s in name for name in miou)]
    heights = [2.4, 0.2 * len(symbols)]
    fig, (top, dots) = plt.subplots(
        2, 1, figsize=(WIDTH, 0.2 + sum(heights)), sharex=True, layout="constrained", height_ratios=heights
    )
    bars(miou, title, unit, ax=top)
    top.tick_params(axis="x", length=0, labelbottom=False)
    for row, symbol in enumerate(symbols):
        colours = [BY_SYMBOL[symbol].colour if symbol in name else PALE for name in miou]
        dots.scatter(np.arange(len(miou)), np.full(len(miou), row), s=36, color=colours)
    dots.set_yticks(range(len(symbols)), [sensor_title(BY_SYMBOL[s]) for s in symbols], fontsize=9)
    for text, symbol in zip(dots.get_yticklabels(), symbols):
        text.set_color(text_colour(BY_SYMBOL[symbol]))
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
        colour = modality_colour(name)  # what is no sensor takes the next colour of the style
        line = ax.plot(xs, ys, **({} if colour == FUSED else {"color": colour}))[0]
        place = OFFSET | {"va": "center", "annotation_clip": False}
        ax.annotate(name, (xs[-1], ys[-1]), (5, 0), color=line.get_color(), fontsize=9, **place)
    ax.set(xlabel=x, ylabel=unit, title=title)
    return ax.figure
