"""Figures of one clustering run: what b divides, and how its losses and codes went.

``python -m mmlib cluster`` writes ``run_figure`` into the run's folder; notebooks call both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from .figures import FUSED, INK, STYLE, WIDTH, modality_colour
from .loop import read_history
from .runtime import read_json

PAIR_COLOURS = {"self": "#0072B2", "knn": "#009E73", "random": "#D55E00"}
PAIR_DASHES = {"knn": (0, (4, 2)), "random": (0, (1, 1.5))}


def shift_histogram(entries: Mapping[str, Mapping], ax=None, title: str = "") -> Figure:
    """Histograms of centred correspondences F' by pair type, their shifts b as dashed lines, and the share of
    pairs above b.

    entries: pair type -> {"counts", "low", "high", "shift" (None = adaptive), "attracted"}, as in a report's
    "histograms".
    """
    ax = ax or plt.subplots(figsize=(WIDTH / 2, 2.6))[1]
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
    return ax.figure


def run_figure(folder: str | Path) -> Figure:
    """How a run went: loss terms, effective rank, mean S and share of S < 0 over its steps; cluster use; F'
    with b.

    Raises:
        ValueError: the folder holds no finished run.
    """
    report = read_json(Path(folder) / "report.json", "the report of a finished 'python -m mmlib cluster'")
    history = Path(folder) / "history.jsonl"
    steps, evaluations = read_history(history) if history.exists() else ([], [])
    # What tells a collapse: logged with the steps, else measured in evaluations, else at the end only.
    codes = [s for s in steps if "effective_rank" in s]
    codes = codes or [{"step": e["step"]} | e["val"] for e in evaluations]
    codes = codes or [{"step": report["step"]} | report["collapse"]]
    x, values = [c["step"] for c in codes], lambda key: [c[key] for c in codes]
    # "rgb/self" and "rgb/random" are histograms of one target.
    targets: dict[str, dict] = {}
    for name, entry in report["histograms"].items():
        target, pair = name.rsplit("/", 1)
        targets.setdefault(target, {})[pair] = entry

    with plt.style.context(STYLE):
        fig = Figure(figsize=(11, 6.2), layout="constrained")
        top, bottom = fig.subfigures(2, 1)
        loss, rank, similarity = top.subplots(1, 3)
        use, *histograms = bottom.subplots(1, 1 + len(targets), squeeze=False)[0]

        # The loss and its terms "target/pair": a colour for each target, a dash for each type of pair.
        names = [n for n in (steps or [{}])[0] if n not in ("step", "seconds", *report["collapse"])]
        for name in names:
            target, _, pair = name.partition("/")
            colour, width = (INK, 2.2) if name == "loss" else (modality_colour(target), 1.2)
            style = {"color": colour, "linestyle": PAIR_DASHES.get(pair, "-"), "linewidth": width}
            loss.plot([s["step"] for s in steps], [s[name] for s in steps], label=name, **style)
        loss.set(title="Loss and its terms", xlabel="step", ylabel="loss (no unit)")
        if names:  # the legend takes half as much height again, above the curves
            low, high = loss.get_ylim()
            loss.set_ylim(low, high + 0.55 * (high - low))
            loss.legend(fontsize=7.5, ncols=2, loc="upper right", handlelength=2.4)

        rank.plot(x, values("effective_rank"), "o-", color=INK, markersize=4)
        rank.set(title="Effective rank of the codes", xlabel="step", ylabel="dimensions")
        rank.set_ylim(0, 1.15 * max(values("effective_rank")))
        style = {"color": PAIR_COLOURS["self"], "markersize": 4}
        similarity.plot(x, values("mean_similarity"), "o-", label="mean S", **style)
        style["color"] = PAIR_COLOURS["random"]
        similarity.plot(x, values("negative_share"), "s--", label="share of S < 0", **style)
        similarity.set(title="S of random pairs", xlabel="step", ylabel="cosine, share", ylim=(-0.1, 1.05))
        similarity.legend()

        share = 100 * np.sort(report["use"])[::-1]
        use.bar(range(len(share)), share, color="#56B4E9")
        use.axhline(100 / len(share), color=INK, linewidth=1, linestyle=(0, (4, 3)))
        use.set(title="Cluster use (dashed: even)", xlabel="clusters, by size", ylabel="share of codes (%)")
        use.set_xticks([])
        for axis, (target, entries) in zip(histograms, targets.items()):
            shift_histogram(entries, axis, f"F' of {target}")

        scores, explained = report["scores"], report["criteria"]["explained"]
        result = f"mIoU {scores['miou']['all']:.1f} % on {report['split']}" if scores else "no labels"
        words = f"{report['config']['method']} · {result} · explained correspondence {explained:.3f}"
        fig.suptitle(words, x=0.01, ha="left")
    return fig
