"""The one visual language: how sensors, labels and results look in notebooks, panels and written pictures.

Each modality has one colour and one symbol (``mmlib.modalities``), and class palettes belong to the data set.
``predict``, the data scripts, the panels and all notebooks draw with these functions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from .data.drawing import (  # noqa: F401 (part of the visual language, so importable from here)
    BRIGHTER,
    DARKER,
    IGNORE_COLOUR,
    error_picture,
    label_picture,
    overlay,
    picture,
)
from .modalities import IGNORE_INDEX, SENSORS, Modality
from .runtime import atomic_path, read_json

# Inches: as wide as a notebook's text, so that a 10-point font in a figure reads as the text does.
WIDTH = 8.0
INK, PALE = "#222222", "#D9D9D9"
FUSED = "#444444"  # bars that belong to several sensors at once

STYLE = Path(__file__).with_suffix(".mplstyle")


# Figures that name a user's files and classes, in which a $ is a $ and begins no formula.
as_written = plt.rc_context({"text.parse_math": False})


def use_style() -> None:
    """Set matplotlib to the course's style; once, at the top of a notebook."""
    plt.style.use(STYLE)


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


@as_written
def picture_grid(
    rows: Sequence[Mapping[str, np.ndarray]], names: Sequence[str] = (), title: str = "", width: float = WIDTH
) -> Figure:
    """Rows of pictures {title: (H, W, 3)}; equal titles stand in one column and are written once, above it.

    ``names``: what to write to the left of each row; long ones are cut.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shape = next(iter(rows[0].values())).shape
    extra, margin = 0.25 + 0.3 * bool(title), 0.25 * bool(names)
    fig, axes = picture_axes(len(rows), len(columns), shape, extra, margin, width)
    for r, row in enumerate(rows):
        for axis, key in zip(axes[r], columns):
            if key in row:
                put_picture(axis, row[key], key if r == 0 else "", 10 if len(columns) < 7 else 8.5)
    for axis, name in zip(axes[:, 0], names):
        axis.set_ylabel(name[:60], fontsize=10)
    if title:
        fig.suptitle(title, x=0.01, ha="left")
    return fig


def text_colour(modality: Modality) -> tuple[float, ...]:
    """The modality's colour, darkened so that words in it read on white."""
    return tuple(0.68 * np.array(to_rgb(modality.colour)))


def sensor_title(modality: Modality) -> str:
    """'R rgb': the symbol that names subsets, then the name."""
    return f"{modality.symbol} {modality.name}"


def prediction_sheet(source, out: str | Path, count: int) -> None:
    """``sheet.png`` in the folder that ``predict`` wrote: overlay, confidence, sensors of the first samples.

    Args:
        source: what was predicted (``mmlib.segmentation.predict.Source``).
        count: how many samples; 0 = no sheet.
    """
    stems, out, rows, ids = list(source.files)[:count], Path(out), [], set()
    if not stems:
        return
    for stem in stems:
        mask, blended, confidence = (
            np.array(Image.open(out / folder / f"{stem}.png"))
            for folder in ("masks", "overlays", "confidence")
        )
        confidence = np.repeat((confidence / 257).astype(np.uint8)[..., None], 3, 2)
        # Sensors last: one that the first sample lacks gets its column after the others.
        row = {"prediction": blended, "confidence, white = 1": confidence}
        for name, image in source.read(stem).items():
            row[sensor_title(source.modalities[name])] = picture(source.modalities[name], image)
        rows.append(row)
        ids |= set(np.unique(mask).tolist())
    classes = read_json(out / "classes.json", "a record of predictions")["classes"]
    with plt.style.context(STYLE):
        figure = picture_grid(rows, [stem[-18:] for stem in stems], width=2.4 * len(rows[0]))
        class_legend(figure, [c["name"] for c in classes], [c["colour"] for c in classes], ids)
        save_figure(figure, out / "sheet.png", 144)


def save_figure(figure: Figure, path: str | Path, dpi: float | str = "figure") -> None:
    """Write a figure, cut to its content, atomically, and close it."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, bbox_inches="tight")
    plt.close(figure)


@as_written
def class_legend(fig: Figure, classes: Sequence[str], palette: Sequence[Sequence[int]], present=None) -> None:
    """A legend of the classes below the figure; long names are cut.

    ``present``: the ids that it names, all of them if None.
    """
    present = range(len(classes)) if present is None else present
    handles = [
        Patch(facecolor=np.array(palette[k]) / 255, edgecolor=INK, linewidth=0.4, label=name[:60])
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
