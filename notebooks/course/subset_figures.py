"""Lesson 04's figures and tables of records: the lattice of subsets, and each sensor alone against its
ceiling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from results.titles import TRAININGS

from mmlib.evaluation.statistics import Estimate
from mmlib.figures import INK, PALE, WIDTH

from .charts import BY_SYMBOL, modality_colour
from .drawings import inclusions, subset_places
from .hover import menu
from .record_figures import SERIES, paired, per_seed, text_table

OBJECTIVES = {f"street-{name}": title for name, title in TRAININGS.items()}
BLUES = ("#F7FBFF", "#BDD7EE", "#74AEDB")  # light enough for dark words


def _mean_scores(group: Mapping) -> dict[str, float]:
    return {subset: float(np.mean(seeds)) for subset, seeds in group["miou"]["all"].items()}


def lattice(groups: Mapping[str, Mapping], rows: Mapping[str, str] = OBJECTIVES) -> go.Figure:
    """Subsets as dots, coloured by mIoU; hovering names the sensors and the scores of every way to train, and
    a menu chooses the way that colours them, or the gain of the last over the first.
    """
    scores = {label: _mean_scores(groups[name]) for name, label in rows.items()}
    labels, places = list(scores), subset_places(_symbols(groups, rows))
    first, last = scores[labels[0]], scores[labels[-1]]
    hover = [
        "<br>".join(
            [f"<b>{s}</b>  {' + '.join(_name(letter) for letter in s)}"]
            + [f"{label}: {scores[label][s]:.1f} %" for label in labels]
        )
        for s in places
    ]
    shown = {label: [round(scores[label][s], 1) for s in places] for label in labels}
    gain = f"gain of “{labels[-1]}”"
    shown[gain] = [round(last[s] - first[s], 1) for s in places]
    words = {
        label: [
            f"<b>{s}</b><br>{v:+.1f}" if label == gain else f"<b>{s}</b><br>{v:.1f}"
            for s, v in zip(places, values)
        ]
        for label, values in shown.items()
    }
    low, high = min(map(min, list(shown.values())[:-1])), max(map(max, list(shown.values())[:-1]))
    limits = {label: (low, high) for label in labels} | {gain: (-25, 25)}
    scales = dict.fromkeys(labels, _scale(BLUES)) | {gain: _scale(("#E8A77C", "#FFFFFF", "#74AEDB"))}
    lines = [(places[a], places[b]) for a, b in inclusions(list(places))]
    x = [v for a, b in lines for v in (a[0], b[0], None)]
    y = [v for a, b in lines for v in (a[1], b[1], None)]
    figure = go.Figure(go.Scatter(x=x, y=y, mode="lines", line={"color": PALE, "width": 1}, hoverinfo="skip"))
    marker = {"size": 52, "symbol": "circle", "line": {"color": INK, "width": 1}, "color": shown[labels[0]]}
    marker |= {"colorscale": scales[labels[0]], "cmin": low, "cmax": high}
    figure.add_scatter(
        x=[x for x, _ in places.values()],
        y=[y for _, y in places.values()],
        mode="markers+text",
        marker=marker,
        text=words[labels[0]],
        textfont={"size": 11, "color": INK},
        hovertext=hover,
        hoverinfo="text",
        cliponaxis=False,
    )
    buttons = [
        {
            "label": label if label == gain else f"trained with: {label}",
            "method": "restyle",
            "args": [
                {
                    "marker.color": [shown[label]],
                    "marker.cmin": limits[label][0],
                    "marker.cmax": limits[label][1],
                    "marker.colorscale": [scales[label]],
                    "text": [words[label]],
                },
                [1],
            ],
        }
        for label in shown
    ]
    hidden = {"visible": False, "showgrid": False, "zeroline": False}
    return figure.update_layout(
        title={"text": "mIoU (%) of every subset", "y": 0.97},
        showlegend=False,
        height=520,
        hoverlabel={"align": "left"},
        margin={"l": 10, "r": 10, "t": 90, "b": 10},
        xaxis=hidden | {"range": [-1.15, 1.15]},
        yaxis=hidden | {"range": [0.6, 4.5]},
        updatemenus=[menu(buttons, 1.01, yanchor="bottom")],
    )


def _scale(colours: Sequence[str]) -> list[list]:
    return [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]


def _symbols(groups: Mapping[str, Mapping], rows: Mapping[str, str]) -> str:
    """The sensors of the full set, in the record's order."""
    return max(groups[next(iter(rows))]["miou"]["all"], key=len)


def _name(symbol: str) -> str:
    return BY_SYMBOL[symbol].name


def lattice_picture(groups: Mapping[str, Mapping], rows: Mapping[str, str] = OBJECTIVES) -> Figure:
    """The same as a picture: a lattice for the first and for the last way to train."""
    chosen = [list(rows)[0], list(rows)[-1]]
    scores = {name: _mean_scores(groups[name]) for name in chosen}
    low, high = (f(f(s.values()) for s in scores.values()) for f in (min, max))
    colours = LinearSegmentedColormap.from_list("blues", BLUES)
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH + 0.6, 3.3))
    for name, axis in zip(chosen, axes):
        places = subset_places(_symbols(groups, rows))
        for a, b in inclusions(list(places)):
            axis.plot(*zip(places[a], places[b]), color=PALE, linewidth=0.8, zorder=0)
        for subset, (x, y) in places.items():
            value = scores[name][subset]
            face = colours((value - low) / (high - low))
            axis.text(
                x,
                y,
                f"{subset}\n{value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                linespacing=1.15,
                bbox={"boxstyle": "round,pad=0.35", "facecolor": face, "edgecolor": INK, "linewidth": 0.7},
            )
        axis.set(xlim=(-1.18, 1.18), ylim=(0.6, 4.4))
        axis.axis("off")
        axis.set_title(f"trained with: {rows[name]}", fontsize=10)
    return fig


def ceilings(groups: Mapping[str, Mapping], joint: Mapping[str, str], alone: Mapping[str, str]) -> Figure:
    """Each sensor alone: joint networks, a ring a seed and a dot their mean, beside bars that mark its
    ceiling; at the right all sensors.

    joint: group -> what to call it; alone: symbol of a sensor -> group trained on it alone.
    """
    everything = _symbols(groups, joint)
    fig, axis = plt.subplots(figsize=(WIDTH, 3.7))
    for place, (symbol, name) in enumerate(alone.items()):
        line = [place - 0.36, place + 0.36]
        height = np.mean(per_seed(groups[name], symbol))
        axis.plot(line, [height] * 2, color=modality_colour(symbol), linewidth=5, alpha=0.7)
    markers = dict(zip(joint, zip("sDo", (SERIES[4], SERIES[2], SERIES[0]))))
    for number, (name, label) in enumerate(joint.items()):
        marker, colour = markers[name]
        for place, subset in enumerate((*alone, everything)):
            scores = per_seed(groups[name], subset)
            x = place + 0.2 * (number - (len(joint) - 1) / 2)
            axis.plot([x] * len(scores), scores, marker, color="none", mec=colour, ms=4, alpha=0.6)
            named = label if place == 0 else None
            axis.plot(x, np.mean(scores), marker, color=colour, ms=7, label=named)
    axis.plot([], [], color="#999999", linewidth=5, label="ceiling: trained on it alone")
    ticks = [f"{symbol} {_name(symbol)} alone" for symbol in alone]
    axis.set_xticks(range(len(alone) + 1), [*ticks, "all of them"])
    axis.set(ylabel="mIoU (%)", ylim=(0, None))
    axis.set_title("What a sensor alone could give, and what joint networks get from it")
    fig.legend(loc="outside lower center", ncols=2, fontsize=9)
    return fig


# ---- tables ----

STAR = "± half a 95 % interval; * it excludes zero"
KEYS = {"full": "all sensors", "mean": "mean over subsets", "min": "worst subset"}
INGREDIENTS = {
    "short-all-subsets": "all subsets at once",
    "short-all-mean": "  with averaged logits",
    "short-all-w1": "  with equal weights",
    "short-singles": "each sensor alone, and all",
    "short-selection": "best and least alike (MAGIC)",
}


def score_table(groups: Mapping[str, Mapping], rows: Mapping[str, str] = OBJECTIVES) -> str:
    """Plain text: mean mIoU over seeds, a line a way to train."""
    means = {
        label: [f"{np.mean(per_seed(groups[name], key)):.1f}" for key in KEYS] for name, label in rows.items()
    }
    return text_table("mIoU (%)", KEYS.values(), means)


def difference_table(groups: Mapping[str, Mapping], rows: Mapping[str, str], reference: str) -> str:
    """Plain text: each group of ``rows`` less ``reference``, paired by seed."""
    cells = {
        label: [difference_text(paired(groups, name, reference, key)) for key in KEYS]
        for name, label in rows.items()
    }
    return f"{text_table('difference in points', KEYS.values(), cells)}\n{STAR}"


def ceiling_table(groups: Mapping[str, Mapping], joint: Mapping[str, str], alone: Mapping[str, str]) -> str:
    """Plain text: the ceiling of each sensor, and how far joint networks given it alone are from it."""
    rows = {"ceiling": [f"{np.mean(per_seed(groups[name], s)):.1f}" for s, name in alone.items()]}
    rows |= {
        label: [
            difference_text(paired(groups, name, ceiling, symbol), narrow=True)
            for symbol, ceiling in alone.items()
        ]
        for name, label in joint.items()
    }
    table = text_table("mIoU (%)", [f"{symbol} alone" for symbol in alone], rows, wide=13)
    return f"{table}\njoint networks: difference to the ceiling {STAR}"


def difference_text(difference: Estimate, narrow: bool = False) -> str:
    """A difference ± half its interval, with a star where that excludes zero."""
    mean, half = difference.mean, (difference.high - difference.low) / 2
    star = "*" if difference.clear else " "
    return f"{mean:+5.1f} ±{half:4.1f}{star}" if narrow else f"{mean:+6.1f} ± {half:4.1f} {star}"
