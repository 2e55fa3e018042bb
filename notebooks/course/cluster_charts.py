"""Charts of lessons 08 and 09: what b divides, how trainings went, methods side by side, their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mmlib.figures import INK, PALE, class_legend, label_picture, picture_grid, sensor_title
from mmlib.modalities import SENSORS

from .charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    enlarged,
    legend_below,
    rings,
    show,
    small_multiples,
    vertical_grid,
)
from .cluster_records import ANCHORS, HEADINGS, SWEEP, VARIANTS, together
from .record_figures import per_seed, reference_dots
from .run_figures import shift_histogram
from .token_figures import TALL, components, token_pictures

BY_LIGHT = {
    "kmeans R": ("k-means, colour", "#D0D0D0"),
    "stego R": ("STEGO, colour", GREY),
    "stego X": ("STEGO, thermal", YELLOW),
    "unim2": ("UniM2, λ 1", BLUE),
}
RUN_COLOURS = (INK, BLUE, SKY, PINK, YELLOW, GREEN)


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
    fig.set_figheight(fig.get_figheight() + 0.45)  # of the legend: the pictures keep their size
    return fig


@torch.no_grad()
def show_fused_features(lab, run: str, rooms: Sequence[int], sensors: Sequence[str]) -> None:
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
    show(
        picture_grid(rows, [lab.val.rows[room]["condition"] for room in rooms]),
        "The same rooms: images, and as colours the principal components of colour's tokens, of depth's, of "
        "what UniM2 fuses them to, and of its code.",
    )


def show_weight_sweep(panels: Mapping[str, Mapping]) -> None:
    """Mean IoU over λ: a panel a setting, a line a series of ``SWEEP``, seeds as rings; a dashed line is the
    mean of STEGO on colour.
    """
    level = "stego R"
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    fig, axes = small_multiples(len(panels), columns, 8.5, 2.3, 0.5)
    ticks = sorted({weight for points in SWEEP.values() for weight in points})
    for axis, (title, groups) in zip(axes.flat, panels.items()):
        for (words, points), colour, move in zip(SWEEP.items(), (BLUE, ORANGE), (-0.06, 0.06)):
            points = {weight: groups[name] for weight, name in points.items() if name in groups}
            places = [ticks.index(weight) + move for weight in points]
            values = [per_seed(group, "miou") for group in points.values()]
            axis.plot(places, [np.mean(v) for v in values], color=colour, label=words)
            for place, v in zip(places, values):
                rings(axis, place, v, colour)
        if level in groups:
            mean = np.mean(per_seed(groups[level], "miou"))
            axis.axhline(mean, color=INK, linewidth=1, linestyle="--", label="STEGO, colour")
        axis.set_xticks(range(len(ticks)), [f"{weight:g}" for weight in ticks])
        axis.set(title=title, xlabel="λ")
    for axis in axes[:, 0]:
        axis.set_ylabel("mIoU (%)")
    legend_below(fig, axes[0, 0], 3)
    show(
        fig,
        "Mean IoU over the weight λ of the auxiliary loss, a panel for each set of sensors, with and without "
        "harmonizer, seeds as rings, and the level of STEGO on colour alone.",
    )


def show_variants(panels: Mapping[str, Mapping]) -> None:
    """Tables 5 to 7 of the paper: variants of UniM2 against the default, a panel a setting."""
    titles = {title: title for title in panels}
    show(
        reference_dots(together(panels), ANCHORS | VARIANTS, "unim2", titles, HEADINGS),
        "Mean IoU of variants of UniM2 in rooms and streets with thermal, against the default: anchors, no "
        "modality-specific network, and fusion by sum, mean or maximum.",
    )


def show_conditions(panels: Mapping[str, Mapping]) -> None:
    """Mean IoU by condition: a panel a setting, a bar a method of ``BY_LIGHT``, seeds as rings."""
    fig, axes = plt.subplots(1, len(panels), figsize=(8.5, 3.1), squeeze=False)
    for axis, (title, groups) in zip(axes[0], panels.items()):
        present = [name for name in BY_LIGHT if name in groups]
        keys = [k for k in groups[present[-1]]["summary"]["all"] if k.startswith("miou_by_condition/")]
        for k, name in enumerate(present):
            values = [per_seed(groups[name], key) for key in keys]
            places = np.arange(len(keys)) + 0.8 * (k + 0.5) / len(present) - 0.4
            words, colour = BY_LIGHT[name]
            axis.bar(places, [np.mean(v) for v in values], 0.75 / len(present), color=colour, label=words)
            for place, v in zip(places, values):
                rings(axis, place, v, size=3)
        axis.set_xticks(range(len(keys)), [k.split("/")[1].removeprefix("condition=") for k in keys])
        axis.set(title=title)
    axes[0, 0].set_ylabel("mIoU (%)")
    legend_below(fig, axes[0, 0], 2)
    show(
        fig,
        "Mean IoU by light in rooms and streets with thermal for k-means and STEGO on colour, STEGO on "
        "thermal, and UniM2, seeds as rings.",
    )


def show_class_gains(panels: Mapping[str, Mapping[str, object]]) -> None:
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
    fig.supxlabel("IoU of UniM2 less that of STEGO on colour, points", fontsize=10)
    show(
        fig,
        "Difference of the IoU of each class between UniM2 and STEGO on colour, sorted: blue for clear "
        "gains, vermilion for clear losses, grey for what is smaller than its spread.",
    )
