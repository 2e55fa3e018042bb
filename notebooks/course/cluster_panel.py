"""Label-free clusters under sliders: λ, the shift b and the number of clusters, on results that were computed
beforehand.

A training takes seconds to minutes, too long for a slider; one file holds the label maps and numbers of every
combination.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import ipywidgets as widgets
import numpy as np

from mmlib.figures import error_picture, label_picture, sensor_title
from mmlib.modalities import IGNORE_INDEX, SENSORS
from mmlib.runtime import atomic_path
from mmlib.unsupervised.clustering import cluster_palette

from .panel import FAMILY, Panel, image_html

# Axes of the arrays: L values of λ, B offsets of b, K numbers of clusters, at most C of them, F frames of H x
# W pixels, S sensors.
LAYOUT = {
    "lambdas": "L",
    "offsets": "B",
    "clusters": "K",
    "maps": "LBKFHW",
    "mapping": "LBKC",
    "miou": "LBK",
    "accuracy": "LBK",
    "explained": "LBK",
    "rank": "LB",
    "similarity": "LB",
    "pictures": "FSHW3",
    "labels": "FHW",
}
MADE_BY = "python notebooks/results/cluster_panel.py"
VIEWS = ("classes", "clusters", "errors")
NUMBERS = {
    "accuracy": "accuracy (%)",
    "explained": "explained correspondence",
    "rank": "effective rank",
    "similarity": "mean S",
}


def check_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``arrays`` if they are those of ``LAYOUT`` and agree with each other in every axis; ValueError says
    which does not.
    """
    sizes = {"3": 3}
    for name, axes in LAYOUT.items():
        shape = np.shape(arrays.get(name, 0))
        if len(shape) != len(axes) or 0 in shape:
            raise ValueError(
                f"panel: array {name!r} has shape {shape}, expected the axes {' '.join(axes)}; "
                f"make the file with {MADE_BY}"
            )
        for axis, size in zip(axes, shape):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(
                    f"panel: array {name!r} has {size} along {axis}, the others {sizes[axis]}; "
                    f"make the file with {MADE_BY}"
                )
    if sizes["C"] < max(arrays["clusters"]):
        raise ValueError(
            f"panel: {max(arrays['clusters'])} clusters, and 'mapping' names {sizes['C']}; "
            f"make the file with {MADE_BY}"
        )
    return {name: np.asarray(arrays[name]) for name in LAYOUT}


def save_panel(path: str | Path, arrays: dict[str, np.ndarray], notes: dict) -> Path:
    """Write the arrays of ``LAYOUT`` and notes (classes, palette, sensors, frames, conditions, provenance, …)
    as one .npz, atomically.

    maps: cluster of each pixel, 255 where a training collapsed; mapping: class of each cluster, -1 = none;
    scores in per cent, NaN for a collapse; rank, similarity: effective rank and mean cosine of the codes;
    pictures: (F, S, H, W, 3) uint8.
    """
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, notes=np.array(json.dumps(notes)), **check_arrays(arrays))
    return Path(path)


def load_panel(path: str | Path) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, notes) of a file of ``save_panel``; runs no code from it. ValueError: missing, damaged or
    another kind of file.
    """
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file; make it with {MADE_BY}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays, notes = dict(file), json.loads(str(file["notes"]))
    except Exception as error:  # numpy, zipfile and zlib raise many kinds for a file that is cut or foreign
        raise ValueError(
            f"{path}: damaged, or not a panel's file ({error}); make it with {MADE_BY}"
        ) from error
    return check_arrays(arrays), notes


def _slider(
    description: str, values: list[float], tooltip: str, near: float, form: str = "g"
) -> widgets.SelectionSlider:
    """A slider over ``values`` that starts at the one nearest to ``near`` and reports when it is let go."""
    return widgets.SelectionSlider(
        options=[(f"{v:{form}}", v) for v in values],
        value=min(values, key=lambda v: abs(v - near)),
        description=description,
        tooltip=tooltip,
        continuous_update=False,
        style={"description_width": "80px"},
        layout=widgets.Layout(width="290px"),
    )


class ClusterPanel(Panel):
    """Choose λ, b and the number of clusters; see label maps of three frames, scores, and what tells a
    collapse.

    Args:
        path: a file written by ``notebooks/results/cluster_panel.py``.

    ``state()`` has weight, offset, clusters, view, miou and the ``NUMBERS``, collapsed, error.

    Raises:
        ValueError: the file is missing, damaged or of another kind.
    """

    def __init__(self, path: str | Path = "results/cluster_panel.npz"):
        super().__init__("1000px")
        self.arrays, self.notes = load_panel(path)
        self._axes = {
            name: [round(float(v), 4) for v in self.arrays[name]]
            for name in ("lambdas", "offsets", "clusters")
        }
        lambdas, offsets, clusters = self._axes.values()
        self.weight = _slider("λ", lambdas, "weight of the auxiliary sensor's loss", 1)
        self.offset = _slider("level of b", offsets, "added to the quantile levels of b", 0, "+g")
        self.clusters = _slider("clusters", clusters, "number of clusters", len(self.notes["classes"]))
        self.view = widgets.ToggleButtons(
            options=VIEWS,
            description="show",
            tooltip="clusters named by labels, nameless clusters, or wrong pixels",
            style={"description_width": "80px", "button_width": "80px"},
        )
        self.pictures, self.numbers = widgets.HTML(), widgets.HTML()
        self._follow(weight=self.weight, offset=self.offset, clusters=self.clusters, view=self.view)
        sliders = widgets.HBox(
            [self.weight, self.offset, self.clusters], layout=widgets.Layout(flex_flow="row wrap")
        )
        columns = widgets.Layout(
            grid_template_columns="minmax(0, 5fr) minmax(0, 3fr)", grid_gap="12px", align_items="flex-start"
        )
        results = widgets.GridBox([self.pictures, self.numbers], layout=columns)
        self.children = [sliders, self.view, self.status, results]
        self.refresh()

    def __repr__(self) -> str:  # short and constant: what a notebook stores and compares
        counts = ", ".join(f"{len(values)} {name}" for name, values in self._axes.items())
        return f"ClusterPanel(sensors={' + '.join(self.notes['sensors'])}; {counts})"

    def set(
        self,
        weight: float | None = None,
        offset: float | None = None,
        clusters: int | None = None,
        view: str | None = None,
    ) -> dict:
        """Set what is given, redraw once and return ``state()``; ValueError for a value that was not computed
        beforehand.
        """
        values = {"weight": weight, "offset": offset, "clusters": clusters, "view": view}
        values = {name: value for name, value in values.items() if value is not None}
        for name, value in values.items():
            control = getattr(self, name)
            options = [option[1] if isinstance(option, tuple) else option for option in control.options]
            if value not in options:
                raise ValueError(
                    f"{control.description} {value!r}: expected one of {', '.join(map(str, options))}"
                )
        return super().set(**values)

    def _refresh(self) -> None:
        values = {
            "weight": self.weight.value,
            "offset": self.offset.value,
            "clusters": int(self.clusters.value),
            "view": self.view.value,
        }
        i, j, k = (
            self._axes[axis].index(values[name])
            for axis, name in zip(self._axes, ("weight", "offset", "clusters"))
        )
        scores = {
            name: float(self.arrays[name][(i, j, k)[: len(LAYOUT[name])]]) for name in ("miou", *NUMBERS)
        }
        collapsed = not np.isfinite(scores["miou"])
        self._state = values | scores | {"collapsed": collapsed, "error": ""}
        what = f"λ {values['weight']:g}, level of b {values['offset']:+g}, {values['clusters']} clusters"
        self.pictures.value = self._frames(i, j, k, what)
        self.numbers.value = self._numbers(i, j, k, scores)
        if collapsed:
            return self._say(
                f"{what}: <b>the codes collapsed</b>; k-means found too few directions.", "#B34700"
            )
        self._say(
            f"{what}: mIoU <b>{scores['miou']:.1f} %</b>, effective rank {scores['rank']:.1f}, "
            f"mean S {scores['similarity']:.2f}"
        )

    def _frames(self, i: int, j: int, k: int, what: str) -> str:
        """A table of pictures: a row a frame; the sensors, the clusters as classes, the label."""
        palette, names = self.notes["palette"], self.notes["sensors"]
        # Class of each cluster; clusters without a class, and 255 (collapsed), are drawn like ignored pixels.
        assignment = self.arrays["mapping"][i, j, k].astype(int)
        mapping = np.full(256, IGNORE_INDEX, np.uint8)
        mapping[: len(assignment)] = np.where(assignment < 0, IGNORE_INDEX, assignment)
        heads = [sensor_title(SENSORS[n]) if n in SENSORS else n for n in names] + [self.view.value, "label"]
        rows = ""
        for frame, condition in enumerate(self.notes["conditions"]):
            label, clusters = self.arrays["labels"][frame], self.arrays["maps"][i, j, k, frame]
            classes = mapping[clusters]
            drawn = (
                error_picture(classes, label)
                if self.view.value == "errors"
                else label_picture(classes, palette)
            )
            if self.view.value == "clusters":
                drawn = label_picture(clusters, cluster_palette(int(self.arrays["clusters"].max())))
            right = (
                100 * np.mean((classes == label)[label != IGNORE_INDEX])
                if (label != IGNORE_INDEX).any()
                else 0.0
            )
            pictures = [
                (self.arrays["pictures"][frame, s], f"{n} image, {condition}") for s, n in enumerate(names)
            ]
            pictures += [
                (drawn, f"{self.view.value} shown, {condition}, {what}: {right:.0f} % of pixels right")
            ]
            pictures += [(label_picture(label, palette), f"true classes, {condition}")]
            cells = "".join(
                f'<td style="padding:2px">{image_html(image, alt)}</td>' for image, alt in pictures
            )
            rows += f'<tr><th scope="row" style="font-weight:normal">{escape(condition)}</th>{cells}</tr>'
        columns = "".join(f'<th scope="col" style="font-weight:normal">{escape(head)}</th>' for head in heads)
        style = f"{FAMILY};width:100%;table-layout:fixed;border-collapse:collapse;margin:0"
        return f'<table style="{style}"><tr><td style="width:3.6em"></td>{columns}</tr>{rows}</table>'

    def _numbers(self, i: int, j: int, k: int, scores: dict) -> str:
        """mIoU of every λ and b at this number of clusters, as a table that screen readers can read; then
        this combination's numbers.
        """
        grid, cell = self.arrays["miou"][:, :, k], "padding:3px 6px;text-align:right"
        best = np.nanmax(grid) if np.isfinite(grid).any() else 1.0
        rows = "<tr><td></td>" + "".join(
            f'<th scope="col" style="{cell};font-weight:normal">b {v:+g}</th>' for v in self._axes["offsets"]
        )
        for a, weight in enumerate(self._axes["lambdas"]):
            row = f'<th scope="row" style="{cell};font-weight:normal">λ {weight:g}</th>'
            for b, value in enumerate(grid[a]):
                edge = "outline:2px solid #D55E00;font-weight:bold" if (a, b) == (i, j) else ""
                words, share = (f"{value:.1f}", value / best) if np.isfinite(value) else ("collapse", 0)
                row += (
                    f'<td style="{cell};background:rgba(0,114,178,{0.6 * share**3:.2f});{edge}">{words}</td>'
                )
            rows += f"<tr>{row}</tr>"
        left = f'<th scope="row" style="{cell};text-align:left;font-weight:normal">'
        below = "".join(
            f'<tr>{left}{words}</th><td style="{cell}">{scores[name]:.2f}</td></tr>'
            for name, words in NUMBERS.items()
        )
        style = f"{FAMILY};border-collapse:collapse;margin:0 0 10px 0"
        words = f"mIoU (%) on {escape(self.notes['split'])}"
        title = f'<caption style="caption-side:top;text-align:left">{words}</caption>'
        return f'<table style="{style}">{title}{rows}</table><table style="{style}">{below}</table>'
