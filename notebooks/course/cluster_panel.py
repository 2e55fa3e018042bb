"""Label-free clusters under sliders: λ, the shift b and the number of clusters, on results that were computed
beforehand. Notebook 10 shows it.

A training takes seconds to minutes, too long for a slider; one file holds the label maps and numbers of every
combination (``cluster_grid``).
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from mmlib.figures import (
    IGNORE_COLOUR,
    class_legend,
    error_picture,
    label_picture,
    picture_grid,
)
from mmlib.modalities import IGNORE_INDEX
from mmlib.unsupervised.clustering import cluster_palette

from .charts import ORANGE, modality_title
from .cluster_grid import LAYOUT, attracting, collapse_reason, load_panel
from .panel import FAMILY, WARNING, Panel, image_html

VIEWS = ("classes", "clusters", "errors")
NUMBERS = {
    "accuracy": "accuracy (%)",
    "explained": "explained correspondence",
    "rank": "effective rank",
    "similarity": "mean S of random pairs",
}
ERRORS = {"right": (225, 225, 225), "wrong": (213, 94, 0), "unlabelled": (64, 64, 64)}


def _slider(description: str, options: list[tuple[str, float]], tooltip: str, near: float):
    """A slider over (words, value) that starts at the value nearest to ``near``."""
    return widgets.SelectionSlider(
        options=options,
        value=min((value for _, value in options), key=lambda v: abs(v - near)),
        description=description,
        tooltip=tooltip,
        continuous_update=True,
        style={"description_width": "120px"},
        layout=widgets.Layout(flex="1 1 300px", min_width="240px", width="auto", max_width="460px"),
    )


class ClusterPanel(Panel):
    """Choose λ, b and the number of clusters; see label maps of three frames, scores, and what tells a
    collapse. The scores are those of val, by which one may choose.

    Args:
        path: a file written by ``notebooks/results/cluster_panel.py``.

    ``state()`` has weight, offset, clusters, view, miou and the ``NUMBERS``, share (per cent of self pairs
    that attract), collapsed, reason, pinned (None, or the settings and mIoU of the pinned state), error.

    Raises:
        ValueError: the file is missing, damaged or of another kind.
    """

    def __init__(self, path: str | Path = "results/cluster_panel.npz"):
        super().__init__("1200px")
        self.arrays, self.notes = load_panel(path)
        self._pinned = None
        self._axes = {
            name: [round(float(v), 4) for v in self.arrays[name]]
            for name in ("lambdas", "offsets", "clusters")
        }
        lambdas, offsets, clusters = self._axes.values()
        self._shares = [attracting(self.notes["quantiles"], o) for o in offsets]
        self.weight = _slider(
            "λ", [(f"{v:g}", v) for v in lambdas], "λ, weight of the second sensor's loss", 1
        )
        self.offset = _slider(
            "pairs that attract",
            [(f"{share} %", v) for share, v in zip(self._shares, offsets)],
            "share of the self pairs that attract, which the shift b decides",
            0,
        )
        self.clusters = _slider(
            "clusters",
            [(f"{v:g}", v) for v in clusters],
            "number of clusters",
            len(self.notes["classes"]),
        )
        self.view = widgets.ToggleButtons(
            options=VIEWS,
            tooltip="what the third column shows",
            tooltips=["clusters named by labels", "nameless clusters", "wrong pixels"],
            style={"button_width": "74px"},
        )
        self.pictures, self.numbers = widgets.HTML(), widgets.HTML()
        self._follow(weight=self.weight, offset=self.offset, clusters=self.clusters, view=self.view)
        self.pictures.layout = widgets.Layout(flex="3 1 400px", min_width="0", margin="0")
        self.numbers.layout = widgets.Layout(flex="1 1 270px", min_width="0", margin="0")
        wrap = {"flex_flow": "row wrap", "width": "100%"}
        results = widgets.HBox([self.pictures, self.numbers], layout=widgets.Layout(**wrap, grid_gap="10px"))
        tools = widgets.HBox([self.view, *self._buttons()], layout=widgets.Layout(**wrap))
        sliders = widgets.HBox([self.weight, self.offset, self.clusters], layout=widgets.Layout(**wrap))
        self.children = [self.status, results, tools, sliders]
        self.refresh()

    def _buttons(self) -> list[widgets.Button]:
        """One for each scenario, and the pin."""
        lambdas, offsets, _ = self._axes.values()
        usual = {
            "weight": min(lambdas, key=lambda v: abs(v - 1)),
            "offset": min(offsets, key=abs),
            "clusters": self.clusters.value,
        }
        self.scenarios = {
            "usual": usual,
            "second judge off": usual | {"weight": min(lambdas)},
            "nearly all attract": usual | {"offset": min(offsets)},
            "few attract": usual | {"offset": max(offsets)},
        }
        buttons = []
        for words, values in self.scenarios.items():
            button = widgets.Button(description=words, tooltip=f"set the sliders: {words}")
            button.on_click(lambda _, values=values: self.set(**values))
            buttons.append(button)
        self.pin_button = widgets.Button(
            description="pin", icon="thumb-tack", tooltip="keep this state and show differences to it"
        )
        self.pin_button.on_click(lambda _: self.pin())
        for button in (*buttons, self.pin_button):
            button.layout = widgets.Layout(width="auto")
        return [*buttons, self.pin_button]

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
                    f"{control.tooltip} {value!r}: expected one of {', '.join(map(str, options))}"
                )
        return super().set(**values)

    def pin(self) -> dict:
        """Keep the present state: from now on differences to it are shown. Returns ``state()``."""
        self._pinned = {"words": self._words(), "miou": self._state["miou"]}
        self.refresh()
        return self.state()

    def _words(self) -> str:
        share = self._shares[self._axes["offsets"].index(self.offset.value)]
        count = int(self.clusters.value)
        return f"λ {self.weight.value:g}, {share} % of the self pairs attract, {count} clusters"

    def _place(self) -> tuple[int, int, int]:
        values = self.weight.value, self.offset.value, int(self.clusters.value)
        return tuple(axis.index(value) for axis, value in zip(self._axes.values(), values))

    def _refresh(self) -> None:
        i, j, k = self._place()
        scores = {
            name: float(self.arrays[name][(i, j, k)[: len(LAYOUT[name])]]) for name in ("miou", *NUMBERS)
        }
        reason = collapse_reason(scores["rank"], scores["similarity"])
        if not np.isfinite(scores["miou"]):
            reason = reason or "k-means found fewer directions than clusters"
        values = {
            "weight": self.weight.value,
            "offset": self.offset.value,
            "clusters": int(self.clusters.value),
            "view": self.view.value,
            "share": self._shares[j],
        }
        self._state = values | scores | {"collapsed": bool(reason), "reason": reason, "error": ""}
        self._state["pinned"] = self._pinned
        self.pictures.value = self._frames() + self._legend()
        self.numbers.value = self._numbers(scores)
        self._say(self._verdict(), WARNING if reason else "inherit")

    def _verdict(self) -> str:
        """The status line: what is set, the score, a collapse and its reason, the difference to the pin."""
        state = self._state
        score = f"mIoU <b>{state['miou']:.1f} %</b>" if np.isfinite(state["miou"]) else "no mIoU"
        line = f"{self._words()}: {score} on {escape(self.notes['split'])}"
        if self._pinned:
            line += f"{self._difference()} against the pinned {self._pinned['words']}"
        return f"{line}. <b>Collapsed</b>: {state['reason']}." if state["reason"] else f"{line}."

    def _difference(self) -> str:
        difference = self._state["miou"] - self._pinned["miou"]
        return f", {difference:+.1f} points" if np.isfinite(difference) else ", no difference"

    def _drawn(self) -> list[tuple[str, np.ndarray, np.ndarray, float]]:
        """(condition, picture of the third column, label, per cent of pixels right) of each frame."""
        i, j, k = self._place()
        # Class of each cluster; clusters without a class, and 255 (collapsed), are drawn like ignored pixels.
        assignment = self.arrays["mapping"][i, j, k].astype(int)
        mapping = np.full(256, IGNORE_INDEX, np.uint8)
        mapping[: len(assignment)] = np.where(assignment < 0, IGNORE_INDEX, assignment)
        found = []
        for frame, condition in enumerate(self.notes["conditions"]):
            label, clusters = self.arrays["labels"][frame], self.arrays["maps"][i, j, k, frame]
            classes, valid = mapping[clusters], label != IGNORE_INDEX
            if self.view.value == "errors":
                drawn = error_picture(classes, label)
            elif self.view.value == "classes":
                drawn = label_picture(classes, self.notes["palette"])
            else:
                drawn = label_picture(clusters, cluster_palette(int(self.arrays["clusters"].max())))
            right = 100 * np.mean((classes == label)[valid]) if valid.any() else 0.0
            found.append((condition, drawn, label, right))
        return found

    def _titles(self) -> list[str]:
        return [*map(modality_title, self.notes["sensors"]), self.view.value, "label"]

    def _frames(self) -> str:
        """A table of pictures: a row a frame; the sensors, the clusters as classes, the label."""
        rows, names = "", self.notes["sensors"]
        for frame, (condition, drawn, label, right) in enumerate(self._drawn()):
            pictures = [
                (self.arrays["pictures"][frame, s], f"{n} image, {condition}") for s, n in enumerate(names)
            ]
            shown = f"{self.view.value} shown, {condition}, {self._words()}: {right:.0f} % of pixels right"
            pictures += [(drawn, shown)]
            pictures += [(label_picture(label, self.notes["palette"]), f"true classes, {condition}")]
            cells = "".join(
                f'<td style="padding:2px">{image_html(image, alt)}</td>' for image, alt in pictures
            )
            rows += (
                f'<tr style="background:none"><th scope="row" style="font-weight:normal;text-align:left">'
                f"{escape(condition)}</th>{cells}</tr>"
            )
        columns = "".join(
            f'<th scope="col" style="font-weight:normal;text-align:center">{escape(head)}</th>'
            for head in self._titles()
        )
        style = f"{FAMILY};width:100%;table-layout:fixed;border-collapse:collapse;margin:0"
        return f'<table style="{style}"><tr><td style="width:3.2em"></td>{columns}</tr>{rows}</table>'

    def _legend(self) -> str:
        """What the colours of the third and fourth column mean."""
        if self.view.value == "clusters":
            words = "The colours of clusters only tell them apart; no label was read."
            return f'<div style="{FAMILY};padding:4px 2px">{words}</div>'
        present = np.unique(self.arrays["labels"])
        named = [
            (name, self.notes["palette"][k]) for k, name in enumerate(self.notes["classes"]) if k in present
        ]
        if len(self.notes["classes"]) < self.clusters.value:
            named.append(("cluster without a class", IGNORE_COLOUR))
        entries = list(ERRORS.items()) if self.view.value == "errors" else named
        patches = "".join(
            f'<span style="white-space:nowrap;margin-right:10px"><span aria-hidden="true" style="display:'
            f"inline-block;width:11px;height:11px;border:1px solid #888;background:rgb({r},{g},{b});"
            f'margin-right:4px"></span>{escape(name)}</span> '
            for name, (r, g, b) in ((name, map(int, colour)) for name, colour in entries)
        )
        return f'<div style="{FAMILY};padding:4px 2px">{patches}</div>'

    def _numbers(self, scores: dict) -> str:
        """mIoU of every λ and b at this number of clusters, as a table that screen readers can read; then
        this combination's numbers.
        """
        i, j, k = self._place()
        grid, cell = self.arrays["miou"][:, :, k], "padding:3px 5px;text-align:right"
        best = np.nanmax(grid) if np.isfinite(grid).any() else 1.0
        head = "".join(
            f'<th scope="col" style="{cell};font-weight:normal">{share} %</th>' for share in self._shares
        )
        rows = f'<tr><th scope="col" style="{cell};font-weight:normal">attract</th>{head}</tr>'
        for a, weight in enumerate(self._axes["lambdas"]):
            row = f'<th scope="row" style="{cell};font-weight:normal">λ {weight:g}</th>'
            for b, value in enumerate(grid[a]):
                edge = f"outline:2px solid {ORANGE};font-weight:bold" if (a, b) == (i, j) else ""
                broken = collapse_reason(self.arrays["rank"][a, b], self.arrays["similarity"][a, b])
                words, share = (f"{value:.1f}", value / best) if np.isfinite(value) else ("–", 0)
                words += " ✕" if broken or not np.isfinite(value) else ""
                row += (
                    f'<td style="{cell};background:rgba(0,114,178,{0.55 * share**3:.2f});{edge}">{words}</td>'
                )
            rows += f'<tr style="background:none">{row}</tr>'
        left = f'<th scope="row" style="{cell};text-align:left;font-weight:normal">'
        below = "".join(
            f'<tr style="background:none">{left}{words}</th><td style="{cell}">{scores[name]:.2f}</td></tr>'
            for name, words in NUMBERS.items()
        )
        style = f"{FAMILY};border-collapse:collapse;margin:0 0 10px 0"
        words = f"mIoU (%) on {escape(self.notes['split'])}; ✕ = collapsed"
        title = f'<caption style="caption-side:top;text-align:left">{words}</caption>'
        return f'<table style="{style}">{title}{rows}</table><table style="{style}">{below}</table>'

    def figure(self) -> Figure:
        rows = [
            dict(
                zip(
                    self._titles(),
                    [*self.arrays["pictures"][f], drawn, label_picture(label, self.notes["palette"])],
                )
            )
            for f, (_, drawn, label, _) in enumerate(self._drawn())
        ]
        title = f"{self._words()}: mIoU {self._state['miou']:.1f} % on {self.notes['split']}"
        fig = picture_grid(rows, list(self.notes["conditions"]), title)
        class_legend(fig, self.notes["classes"], self.notes["palette"], np.unique(self.arrays["labels"]))
        return fig
