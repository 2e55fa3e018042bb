"""Charts of notebooks 08 to 10: what tokens know, what b divides, how a training went, methods side by side.

Each takes numbers and returns a figure; ``course.charts.show`` displays it with its words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from mmlib import world
from mmlib.figures import INK, PALE, WIDTH, class_legend, label_picture, picture, picture_grid, sensor_title
from mmlib.modalities import SENSORS

from .charts import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    enlarged,
    legend_below,
    modality_colour,
    rings,
    small_multiples,
    vertical_grid,
)
from .cluster_figures import components, token_pictures
from .record_figures import per_seed
from .run_figures import shift_histogram
from .world_source import physical_images

RUN_COLOURS = (INK, BLUE, SKY, PINK, YELLOW, GREEN)
TALL = 288  # of a picture beside those of its tokens


def room_by_light(lab, lights=("day", "night")) -> Figure:
    """One room under two lights: its images, and the principal components of its tokens, standardised and
    with the image's mean subtracted.
    """
    frames = [world.render_frame("room", 4, light, modalities=lab.names) for light in lights]
    physical = [physical_images(frame) for frame in frames]
    place = [(name, k) for name in lab.names for k in range(len(lights))]
    title = lambda name, k: f"{lights[k]}, {sensor_title(SENSORS[name])}"
    rows = [{title(n, k): picture(SENSORS[n], physical[k][n]) for n, k in place}]
    for stage in ("standardised", "mean subtracted"):
        tokens = lab.encode(physical, stage)
        basis = components(list(tokens.values()))
        drawn = {name: token_pictures(maps, basis) for name, maps in tokens.items()}
        rows.append({title(n, k): drawn[n][k] for n, k in place})
    rows = [{key: enlarged(image, TALL) for key, image in row.items()} for row in rows]
    return picture_grid(
        rows, ["image", "standardised", "mean out"], "One room by day and by night, as its tokens see it"
    )


def auc_bars(values: Mapping[str, Mapping[str, float]], title: str, control: float | None = None) -> Figure:
    """An AUC for each group and sensor: group -> sensor -> value; the dashed line is chance, the dotted one
    what the row of a patch alone tells.
    """
    fig, axis = plt.subplots(figsize=(WIDTH, 2.9))
    names = list(next(iter(values.values())))
    for k, name in enumerate(names):
        heights = [group[name] for group in values.values()]
        places = np.arange(len(values)) + 0.26 * (k - (len(names) - 1) / 2)
        label = sensor_title(SENSORS[name])
        bars = axis.bar(places, heights, 0.24, color=modality_colour(name), label=label)
        for number in axis.bar_label(bars, fmt="%.2f", fontsize=8.5):
            number.set_path_effects([withStroke(linewidth=3, foreground="white")])  # lines pass behind it
    axis.axhline(0.5, color=INK, linewidth=1, linestyle="--")
    if control is not None:
        label = f"the row alone: {control:.2f}"
        axis.axhline(control, color=INK, linewidth=1.6, linestyle=":", label=label)
    axis.set_xticks(range(len(values)), list(values))
    axis.set(ylabel="AUC (0.5 = chance)", ylim=(0.4, 1.0), title=title)
    fig.legend(loc="outside right upper")
    return fig


def shift_panels(reports: Mapping[str, Mapping], target: str = "rgb") -> Figure:
    """Histograms of the correspondences F' of self and random pairs, with b and the share that attracts."""
    fig, axes = plt.subplots(1, len(reports), figsize=(8.5, 2.8), sharey=True, squeeze=False)
    for axis, (name, report) in zip(axes[0], reports.items()):
        entries = {pair: report["histograms"][f"{target}/{pair}"] for pair in ("self", "random")}
        shift_histogram(entries, axis, name)
        if axis is not axes[0, 0]:
            axis.set_ylabel("")
    highest = max(
        np.max(entry["counts"])
        * len(entry["counts"])
        / np.sum(entry["counts"])
        / (entry["high"] - entry["low"])
        for report in reports.values()
        for name, entry in report["histograms"].items()
        if name.startswith(f"{target}/")
    )
    axes[0, 0].set_ylim(0, 1.5 * highest)  # room for the legends
    return fig


def training_curves(lab, names: Sequence[str]) -> Figure:
    """Change of the loss, effective rank, mean S of random pairs, and mean IoU of some runs of a lab."""
    fig, axes = plt.subplots(1, 4, figsize=(9.5, 2.9), width_ratios=[1.4, 1.2, 1, 1])
    colours = dict(zip(names, RUN_COLOURS))
    for name, colour in colours.items():
        lines = lab.history(name)
        steps = [line["step"] for line in lines]
        axes[0].plot(steps, [line["loss"] - lines[0]["loss"] for line in lines], color=colour)
        axes[1].plot(steps, [line["effective_rank"] for line in lines], color=colour)
    axes[0].set(title="The loss falls", xlabel="step", ylabel="change of the loss")
    dim = lab.base.network.dim
    axes[1].set(title="Effective rank", xlabel="step", ylabel=f"of {dim} dimensions", ylim=(0, dim + 0.5))
    similarity = [lab.reports[name]["collapse"]["mean_similarity"] for name in names]
    bars = {"Mean S": ("cosine", similarity), "mIoU, by labels": ("%", [lab.miou(n) for n in names])}
    for axis, (title, (unit, values)) in zip(axes[2:], bars.items()):
        drawn = axis.barh(range(len(names)), values, color=list(colours.values()))
        axis.bar_label(drawn, fmt="%.2f" if unit == "cosine" else "%.1f", fontsize=8, padding=2)
        axis.set_yticks(range(len(names)), list(names) if axis is axes[2] else [], fontsize=8.5)
        axis.set(title=title, xlabel=unit, xlim=(min(0, *values), 1.3 * max(0.1, *values)))
        axis.invert_yaxis()
        vertical_grid(axis)
    return fig


def methods_side_by_side(lab, runs: Mapping[str, str], rooms: Sequence[int], sensors=("rgb",)) -> Figure:
    """Label maps of some runs on some validation rooms (the paper's Figure 4): run -> what to call it."""
    labels, rows = lab.labels(), []
    for room in rooms:
        row = {sensor_title(SENSORS[n]): lab.picture(n, room) for n in sensors}
        row |= {words: label_picture(lab.label_map(run, room), lab.palette) for run, words in runs.items()}
        rows.append(row | {"label": label_picture(labels[room].numpy(), lab.palette)})
    fig = picture_grid(rows, [lab.val.rows[room]["condition"] for room in rooms])
    class_legend(fig, lab.classes, lab.palette)
    return fig


@torch.no_grad()
def fused_features(lab, run: str, rooms: Sequence[int], sensors: Sequence[str]) -> Figure:
    """Tokens of each sensor, and what the network of a run fuses them to (the paper's Figure 5), as the three
    leading principal components of each.
    """
    tokens = lab.tokens(rooms, split="val")
    net = lab.clustering(run).network.eval()
    maps = {sensor_title(SENSORS[name]): tokens[name] for name in sensors}
    maps |= {"fused": net.fused(tokens), "code": net(tokens)}
    drawn = {title: token_pictures(x, components([x])) for title, x in maps.items()}
    rows = [
        {f"{sensor_title(SENSORS[n])} image": enlarged(lab.picture(n, room), TALL) for n in sensors}
        | {title: enlarged(pictures[k], TALL) for title, pictures in drawn.items()}
        for k, room in enumerate(rooms)
    ]
    return picture_grid(rows, [lab.val.rows[room]["condition"] for room in rooms])


def weight_sweep(
    panels: Mapping[str, Mapping], series: Mapping[str, Mapping[float, str]], level: str, level_words: str
) -> Figure:
    """Mean IoU over λ: a panel a setting, a line a series {λ: group}, seeds as rings; a dashed line is the
    mean of the group ``level``.
    """
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    fig, axes = small_multiples(len(panels), columns, 8.5, 2.3, 0.5)
    ticks = sorted({weight for points in series.values() for weight in points})
    for axis, (title, groups) in zip(axes.flat, panels.items()):
        for (words, points), colour, move in zip(series.items(), (BLUE, ORANGE), (-0.06, 0.06)):
            points = {weight: groups[name] for weight, name in points.items() if name in groups}
            places = [ticks.index(weight) + move for weight in points]
            values = [per_seed(group, "miou") for group in points.values()]
            axis.plot(places, [np.mean(v) for v in values], color=colour, label=words)
            for place, v in zip(places, values):
                rings(axis, place, v, colour)
        if level in groups:
            mean = np.mean(per_seed(groups[level], "miou"))
            axis.axhline(mean, color=INK, linewidth=1, linestyle="--", label=level_words)
        axis.set_xticks(range(len(ticks)), [f"{weight:g}" for weight in ticks])
        axis.set(title=title, xlabel="λ")
    for axis in axes[:, 0]:
        axis.set_ylabel("mIoU (%)")
    legend_below(fig, axes[0, 0], 3)
    return fig


def condition_bars(panels: Mapping[str, Mapping], shown: Mapping[str, tuple[str, str]]) -> Figure:
    """Mean IoU by condition: a panel a setting, a bar a method, seeds as rings; group -> (words, colour)."""
    fig, axes = plt.subplots(1, len(panels), figsize=(8.5, 3.1), squeeze=False)
    for axis, (title, groups) in zip(axes[0], panels.items()):
        present = [name for name in shown if name in groups]
        keys = [k for k in groups[present[-1]]["summary"]["all"] if k.startswith("miou_by_condition/")]
        for k, name in enumerate(present):
            values = [per_seed(groups[name], key) for key in keys]
            places = np.arange(len(keys)) + 0.8 * (k + 0.5) / len(present) - 0.4
            words, colour = shown[name]
            axis.bar(places, [np.mean(v) for v in values], 0.75 / len(present), color=colour, label=words)
            for place, v in zip(places, values):
                rings(axis, place, v, size=3)
        axis.set_xticks(range(len(keys)), [k.split("/")[1].removeprefix("condition=") for k in keys])
        axis.set(title=title)
    axes[0, 0].set_ylabel("mIoU (%)")
    legend_below(fig, axes[0, 0], 2)
    return fig


def class_gains(panels: Mapping[str, Mapping[str, object]], what: str) -> Figure:
    """Differences of the IoU of each class, sorted: setting -> class -> Estimate. Blue and vermilion are
    clear, grey is smaller than its spread.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(8.5, 3.5), squeeze=False)
    for axis, (title, gains) in zip(axes[0], panels.items()):
        gains = dict(sorted(gains.items(), key=lambda item: item[1].mean))
        colours = [(BLUE if d.mean > 0 else ORANGE) if d.clear else PALE for d in gains.values()]
        axis.barh(range(len(gains)), [d.mean for d in gains.values()], color=colours)
        axis.set_yticks(range(len(gains)), list(gains), fontsize=8.5)
        axis.axvline(0, color=INK, linewidth=1)
        axis.set(title=title)
        vertical_grid(axis)
    fig.supxlabel(what, fontsize=10)
    return fig
