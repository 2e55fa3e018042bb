"""Charts of lesson 10: frozen features as they are and whitened, criteria as guards, what choosing by labels
is worth, and what λ and the shift b do to a training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import comb
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mmlib.figures import FUSED, INK, WIDTH
from mmlib.modalities import SENSORS

from .charts import (
    BLUE,
    GREEN,
    ORANGE,
    legend_below,
    modality_colour,
    modality_title,
    rings,
    small_multiples,
)
from .cluster_grid import attracting, collapse_reason, load_panel
from .hover import button_of_traces, menu, show_interactive

GOOD, BROKEN = BLUE, ORANGE


def feature_bars(record: Mapping, features: str, controls: Mapping[str, float]) -> Figure:
    """k-means on frozen tokens of each sensor and of all side by side, as they are (pale) and whitened to 32
    directions; seeds as rings, stripes as a dotted line. A panel a scene.
    """
    fig, axes = plt.subplots(1, len(controls), figsize=(8.5, 3.0), sharey=True)
    for axis, (scene, control) in zip(axes, controls.items()):
        rows = [r for r in record["rows"] if r["name"] == features and r["scene"] == scene]
        names = list(dict.fromkeys(row["sensors"] for row in rows))
        for place, name in enumerate(names):
            colour = modality_colour(name)
            for move, whiten in ((-0.2, 0), (0.2, 32)):
                values = next(r["miou"] for r in rows if (r["sensors"], r["whiten"]) == (name, whiten))
                alpha = 1.0 if whiten else 0.4
                mean, top = np.mean(values), (place + move, max(values))
                axis.bar(place + move, mean, 0.38, color=colour, alpha=alpha)
                axis.annotate(
                    f"{mean:.1f}", top, (0, 4), textcoords="offset points", ha="center", fontsize=8.5
                )
                rings(axis, place + move, values, size=3.5)
        axis.axhline(control, color=INK, linewidth=1.4, linestyle=":", label="stripes")
        words = [modality_title(name) if name in SENSORS else "all, side by side" for name in names]
        axis.set_xticks(range(len(names)), words, fontsize=9)
        axis.set(title=scene)
    axes[0].set_ylabel("mIoU (%)")
    axes[0].set_ylim(0, 1.12 * axes[0].get_ylim()[1])
    handles = [plt.Rectangle((0, 0), 1, 1, color=FUSED, alpha=alpha) for alpha in (0.4, 1.0)]
    handles.append(axes[0].plot([], [], ":", color=INK)[0])
    labels = ["tokens as they are", "whitened to 32 directions", "stripes, which look at no image"]
    fig.legend(handles, labels, loc="outside lower center", ncols=3)
    return fig


def direction_curves(scores: Mapping[str, Mapping[int, float]], plain: Mapping[str, float]) -> Figure:
    """mIoU over the number of whitened directions: series -> {K: mIoU}; dashed: the tokens as they are."""
    fig, axis = plt.subplots(figsize=(WIDTH, 2.9))
    for name, points in scores.items():
        colour = modality_colour(name)
        axis.plot(list(points), list(points.values()), "o-", color=colour, label=modality_title(name))
        axis.axhline(plain[name], color=colour, linewidth=1, linestyle="--")
    axis.set(xscale="log", xlabel="whitened directions K of each sensor", ylabel="mIoU (%), by labels")
    axis.set_xticks(list(points), [str(k) for k in points])
    axis.minorticks_off()
    axis.set_title("k-means on 64 rooms; dashed: tokens as they are")
    fig.legend(loc="outside right upper")
    return fig


def guard_figure(arrays: Mapping[str, np.ndarray], clusters: int, split: str) -> Figure:
    """Explained correspondence, effective rank and mean S of every training of a grid against its mIoU, at
    one number of clusters; collapsed trainings as crosses.
    """
    k = [int(c) for c in arrays["clusters"]].index(clusters)
    broken = np.vectorize(lambda r, s: bool(collapse_reason(r, s)))(arrays["rank"], arrays["similarity"])
    miou = arrays["miou"][:, :, k]
    shown = {
        "explained": arrays["explained"][:, :, k],
        "effective rank": arrays["rank"],
        "mean S of random pairs": arrays["similarity"],
    }
    fig, axes = plt.subplots(1, 3, figsize=(9, 3.0), sharey=True)
    for axis, (title, values) in zip(axes, shown.items()):
        axis.plot(values[~broken], miou[~broken], "o", color=GOOD, label="no sign of a collapse")
        axis.plot(values[broken], miou[broken], "X", color=BROKEN, markersize=8, label="collapsed")
        axis.set(title=title)
        axis.margins(0.1)
    axes[0].set_ylabel(f"mIoU (%) on {split}, by labels")
    legend_below(fig, axes[0], 2)
    return fig


def expected_best(scores: Sequence[float]) -> list[float]:
    """The expected best of n of these scores, drawn without repetition, for n = 1, 2, …, all."""
    ordered, count = sorted(scores), len(scores)
    return [
        sum(x * comb(i, n - 1) for i, x in enumerate(ordered)) / comb(count, n) for n in range(1, count + 1)
    ]


def luck_curves(trials: Mapping[str, Sequence[float]], chosen: Mapping[str, Mapping[str, float]]) -> Figure:
    """What the best of n recorded trials is worth, a panel a setting, with lines at the scores that other
    rules chose: setting -> rule -> mIoU.
    """
    fig, axes = small_multiples(len(trials), min(3, len(trials)), 8.5, 2.1, 0.6)
    for axis, (title, scores) in zip(axes.flat, trials.items()):
        best = expected_best(scores)
        axis.plot(range(1, len(best) + 1), best, color=BROKEN, label="best of n, by labels of test")
        for (rule, score), style in zip(chosen[title].items(), ("--", ":")):
            axis.axhline(score, color=INK, linewidth=1.2, linestyle=style, label=rule)
        axis.set(title=title)
    for axis in axes[-1]:
        axis.set_xlabel("trials n")
    for axis in axes[:, 0]:
        axis.set_ylabel("mIoU (%)")
    legend_below(fig, axes[0, 0], 3)
    return fig


def rule_figure(
    arrays: Mapping[str, np.ndarray], rules: Mapping[str, Callable], clusters: int, split: str
) -> Figure:
    """All trainings of a grid ordered by their mIoU, and which of them each rule picks without seeing it.

    Args:
        rules: name -> function of (explained, rank, similarity), which returns a number, higher = better.
    """
    k = [int(c) for c in arrays["clusters"]].index(clusters)
    miou = np.nan_to_num(arrays["miou"][:, :, k]).ravel()
    seen = [arrays["explained"][:, :, k].ravel(), arrays["rank"].ravel(), arrays["similarity"].ravel()]
    order = miou.argsort()[::-1]
    fig, axis = plt.subplots(figsize=(WIDTH, 2.8))
    axis.bar(range(len(miou)), miou[order], color="#CFCFCF")
    for number, (name, rule) in enumerate(rules.items()):
        marks = [
            rule(*map(float, numbers)) if np.isfinite(numbers).all() else -np.inf for numbers in zip(*seen)
        ]
        place = int(np.flatnonzero(order == int(np.argmax(marks)))[0])
        colour = (GOOD, BROKEN, GREEN)[number % 3]
        axis.plot(place, miou[order[place]] + 1.2 + 1.6 * number, "v", color=colour, markersize=9, label=name)
    axis.set(xlabel="trainings of the grid, best first", ylabel=f"mIoU (%) on {split}", xticks=[])
    axis.set_title("What does a rule without labels pick?")
    fig.legend(loc="outside right upper")
    return fig


# ---- λ × b ----


def landscape(arrays: Mapping, notes: Mapping) -> go.Figure:
    """Mean IoU over λ and the share of pairs that attract; a menu chooses the number of clusters. Pointing at
    a cell tells what a reader without labels would know of it.
    """
    shares = [f"{attracting(notes['quantiles'], float(o))} %" for o in arrays["offsets"]]
    weights = [f"{w:g}" for w in arrays["lambdas"]]
    clusters = [int(k) for k in arrays["clusters"]]
    start = min(range(len(clusters)), key=lambda k: abs(clusters[k] - len(notes["classes"])))
    figure, top = go.Figure(), float(np.nanmax(arrays["miou"]))

    def told(i, j, k):  # of a cell
        rank, similarity = arrays["rank"][i, j], arrays["similarity"][i, j]
        numbers = [round(float(v), 2) for v in (rank, similarity, arrays["explained"][i, j, k])]
        return [*numbers, collapse_reason(rank, similarity) or "no sign of a collapse"]

    for k in range(len(clusters)):
        grid = arrays["miou"][:, :, k]
        figure.add_heatmap(
            x=shares,
            y=weights,
            z=np.round(grid.astype(float), 1).tolist(),
            customdata=[[told(i, j, k) for j in range(len(shares))] for i in range(len(weights))],
            zmin=0,
            zmax=round(top, 1),
            visible=k == start,
            xgap=2,
            ygap=2,
            texttemplate="%{z:.1f}",
            colorbar={"title": {"text": "mIoU (%)"}},
            hovertemplate=(
                f"λ %{{y}}, %{{x}} of the pairs attract<br>mIoU on {notes['split']} %{{z:.1f}} %<br>"
                "effective rank %{customdata[0]}, mean S %{customdata[1]}<br>explained %{customdata[2]}<br>"
                "%{customdata[3]}<extra></extra>"
            ),
        )
    buttons = [
        button_of_traces(f"{count} clusters", [k == other for other in range(len(clusters))])
        for k, count in enumerate(clusters)
    ]
    return figure.update_layout(
        height=420,
        margin={"t": 70},
        updatemenus=[menu(buttons, 1.2, yanchor="top", active=start)],
        xaxis={"title": {"text": "self pairs that attract"}, "type": "category"},
        yaxis={"title": {"text": "weight λ of the second sensor"}, "type": "category"},
    )


def landscape_picture(arrays: Mapping, notes: Mapping) -> Figure:
    """The same for all numbers of clusters, a panel each."""
    shares = [f"{attracting(notes['quantiles'], float(o))}" for o in arrays["offsets"]]
    count = len(arrays["clusters"])
    fig, axes = plt.subplots(1, count, figsize=(9, 2.7), sharey=True)
    for k, axis in enumerate(axes):
        grid = arrays["miou"][:, :, k].astype(float)
        image = axis.imshow(grid, cmap="cividis", vmin=0, vmax=np.nanmax(arrays["miou"]), aspect="auto")
        for i, j in np.ndindex(grid.shape):
            words = f"{grid[i, j]:.0f}" if np.isfinite(grid[i, j]) else "×"
            pale = grid[i, j] > 0.6 * np.nanmax(arrays["miou"])
            axis.text(j, i, words, ha="center", va="center", fontsize=8, color=INK if pale else "white")
        axis.set_xticks(range(len(shares)), shares)
        axis.set_yticks(range(len(grid)), [f"{w:g}" for w in arrays["lambdas"]])
        axis.set(title=f"{int(arrays['clusters'][k])} clusters", xlabel="% that attract")
        axis.grid(False)
    axes[0].set_ylabel("λ")
    fig.colorbar(image, ax=axes, label="mIoU (%)", shrink=0.9)
    return fig


def show_landscape(path: str | Path) -> None:
    """Display the grid of ``notebooks/results/cluster_panel.py``."""
    arrays, notes = load_panel(path)
    alt = (
        f"Mean IoU on {notes['split']} over the weight λ of the second sensor and the share of pairs that "
        "attract, as a table of coloured cells, for several numbers of clusters. Where most pairs attract, "
        "the codes collapse and the score is low for every λ."
    )
    show_interactive(landscape(arrays, notes), landscape_picture(arrays, notes), alt)
