"""Figures of one clustering run: what b divides, and how its losses and codes went.

``python notebooks/course/run_figures.py RUN`` saves ``run_figure`` as diagnostics.png in the folder of a
finished run of 'cluster'; notebooks call both.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mmlib.figures import FUSED, INK, STYLE, as_written, save_figure
from mmlib.loop import read_history
from mmlib.modalities import SENSORS
from mmlib.runtime import one_line, read_json

PAIR_COLOURS = {"self": "C0", "knn": "C2", "random": "C1"}  # of the style
PAIR_DASHES = {"knn": (0, (4, 2)), "random": (0, (1, 1.5))}


def shift_histogram(entries: Mapping[str, Mapping], ax, title: str) -> None:
    """Draw into ``ax`` histograms of centred correspondences F' by pair type, their shifts b as dashed lines,
    and the share of pairs above b.

    entries: pair type -> {"counts", "low", "high", "shift" (None = adaptive), "attracted"}, as in a report's
    "histograms".
    """
    for pair, entry in entries.items():
        edges = np.linspace(entry["low"], entry["high"], len(entry["counts"]) + 1)
        density = np.array(entry["counts"]) / max(sum(entry["counts"]), 1) / (edges[1] - edges[0])
        colour, label = PAIR_COLOURS.get(pair, FUSED), f"{pair}: b adaptive"
        ax.stairs(density, edges, color=colour, fill=True, alpha=0.25)
        if entry["shift"] is not None:
            label = f"{pair}: b {entry['shift']:.2f}, {100 * entry['attracted']:.0f} % above"
            ax.axvline(entry["shift"], color=colour, linestyle=(0, (4, 2)), linewidth=1.5)
        ax.stairs(density, edges, color=colour, linewidth=1.2, label=label)
    ax.set(xlabel="centred correspondence F'", ylabel="density", title=title)
    ax.set_ylim(0, ax.get_ylim()[1] * 1.35)
    ax.legend(loc="upper left", fontsize=8, handlelength=1.2, frameon=True, framealpha=0.9, edgecolor="none")


@as_written
def run_figure(folder: str | Path) -> Figure:
    """How a run went: loss terms, effective rank, mean S and share of S < 0 over its steps; cluster use; F'
    with b.

    Raises:
        ValueError: the folder holds no finished run.
    """
    report = read_json(Path(folder) / "report.json", "the report of a finished 'python -m mmlib cluster'")
    steps, evaluations = read_history(Path(folder) / "history.jsonl")
    # What tells a collapse: logged with the steps, else measured in evaluations.
    codes = [s for s in steps if "effective_rank" in s] or [
        {"step": e["step"]} | e["val"] for e in evaluations
    ]
    x, values = [c["step"] for c in codes], lambda key: [c[key] for c in codes]
    # "rgb/self" and "rgb/random" are histograms of one target.
    targets = {}
    for name, entry in report["histograms"].items():
        target, pair = name.rsplit("/", 1)
        targets.setdefault(target, {})[pair] = entry

    with plt.style.context(STYLE):
        fig = Figure(figsize=(11, 6.2), layout="constrained")
        top, bottom = fig.subfigures(2, 1)
        loss, rank, similarity = top.subplots(1, 3)
        use, *histograms = bottom.subplots(1, 1 + len(targets))

        for axis, title, unit in (
            (loss, "Loss and its terms", "loss (no unit)"),
            (rank, "Effective rank of the codes", "dimensions"),
            (similarity, "S of random pairs", "cosine, share"),
        ):
            axis.set(title=title, xlabel="step", ylabel=unit)
        # The loss and its terms "target/pair": a colour for each target, a dash for each type of pair.
        for name in [name for name in steps[0] if name not in ("step", "seconds", *report["collapse"])]:
            target, _, pair = name.partition("/")
            sensor = SENSORS[target].colour if target in SENSORS else FUSED
            colour, width = (INK, 2.2) if name == "loss" else (sensor, 1.2)
            style = {"color": colour, "linestyle": PAIR_DASHES.get(pair, "-"), "linewidth": width}
            loss.plot([s["step"] for s in steps], [s[name] for s in steps], label=name, **style)
        low, high = loss.get_ylim()  # the legend takes half as much height again, above the curves
        loss.set_ylim(low, high + 0.55 * (high - low))
        loss.legend(fontsize=7.5, ncols=2, loc="upper right", handlelength=2.4)

        rank.plot(x, values("effective_rank"), "o-", color=INK, markersize=4)
        rank.set_ylim(0, 1.15 * max(values("effective_rank")))
        for key, form, pair, label in (
            ("mean_similarity", "o-", "self", "mean S"),
            ("negative_share", "s--", "random", "share of S < 0"),
        ):
            similarity.plot(x, values(key), form, label=label, color=PAIR_COLOURS[pair], markersize=4)
        similarity.set_ylim(-0.1, 1.05)
        similarity.legend()

        share = 100 * np.sort(report["use"])[::-1]
        use.bar(range(len(share)), share, color="C5")
        use.axhline(100 / len(share), color=INK, linewidth=1, linestyle=(0, (4, 3)))
        use.set(title="Cluster use (dashed: even)", xlabel="clusters, by size", ylabel="share of codes (%)")
        use.set_xticks([])
        for axis, (target, entries) in zip(histograms, targets.items()):
            shift_histogram(entries, axis, f"F' of {target}")

        scores = report["scores"]
        result = f"mIoU {scores['miou']['all']:.1f} % on {report['split']}" if scores else "no labels"
        explained = f"explained correspondence {report['criteria']['explained']:.3f}"
        fig.suptitle(f"{report['config']['method']} · {result} · {explained}", x=0.01, ha="left")
    return fig


if __name__ == "__main__":
    with one_line():
        for folder in map(Path, sys.argv[1:]):
            save_figure(run_figure(folder), folder / "diagnostics.png")
            print(folder / "diagnostics.png")
