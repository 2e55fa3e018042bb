"""Two pictures of part B to turn and to ask: tokens as a cloud in three dimensions (notebook 08), and what λ
and the shift b do to a training (notebook 10). Both draw records, which are the same on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mmlib.figures import INK, sensor_title
from mmlib.modalities import SENSORS
from mmlib.unsupervised.clustering import cluster_palette

from .charts import PINK, YELLOW
from .cluster_grid import attracting, collapse_reason, load_panel
from .hover import button_of_traces, menu, show_interactive

LIGHTS = {"day": YELLOW, "dusk": PINK, "night": "#0B3D91"}
VIEWS = {  # what the menu offers: words -> (what colours mean, stage of the tokens)
    "sensor, raw tokens": ("sensor", "raw"),
    "sensor": ("sensor", "mean subtracted"),
    "time of day, colour": ("light", "colour"),
    "time of day, mean subtracted": ("light", "colour, mean subtracted"),
    "class": ("class", "mean subtracted"),
    "cluster": ("cluster", "mean subtracted"),
}
START = "sensor, raw tokens"


def _colour(rgb) -> str:
    return "#{:02X}{:02X}{:02X}".format(*(int(c) for c in rgb))


def groups_of(record: Mapping, key: str, stage: str) -> dict[str, tuple[str, list[int]]]:
    """Group's name -> its colour and the numbers of its tokens, for one meaning of the colours. A stage may
    hold the first tokens only, those of colour.
    """
    values = record[key][: len(record["stages"][stage][0])]
    names = {
        "sensor": {n: (sensor_title(SENSORS[n]), SENSORS[n].colour) for n in dict.fromkeys(record["sensor"])},
        "light": {name: (name, colour) for name, colour in LIGHTS.items()},
        "class": {k: (name, _colour(record["palette"][k])) for k, name in enumerate(record["classes"])},
        "cluster": {
            k: (f"cluster {k}", _colour(rgb)) for k, rgb in enumerate(cluster_palette(len(record["classes"])))
        },
    }[key]
    found = {
        name: (colour, [i for i, v in enumerate(values) if v == k]) for k, (name, colour) in names.items()
    }
    return {name: group for name, group in found.items() if group[1]}


def token_words(record: Mapping, index: int) -> str:
    """What a token is, in a line."""
    name, light = record["sensor"][index], record["light"][index]
    return f"{name}, {light}: {record['classes'][record['class'][index]]}, {record['cluster'][index]}"


def cloud(record: Mapping) -> go.Figure:
    """Tokens in three dimensions; a menu chooses what colours mean, the legend hides groups."""
    figure, shown = go.Figure(), []
    for view, (key, stage) in VIEWS.items():
        axes = np.array(record["stages"][stage])
        for name, (colour, members) in groups_of(record, key, stage).items():
            x, y, z = axes[:, members]
            words = [token_words(record, i) for i in members]
            figure.add_scatter3d(
                x=x,
                y=y,
                z=z,
                mode="markers",
                name=name,
                text=words,
                hoverinfo="text",
                visible=view == START,
                marker={"size": 4, "color": colour, "line": {"width": 0.5, "color": INK}},
            )
            shown.append(view)
    buttons = [button_of_traces(view, [view == one for one in shown]) for view in VIEWS]
    axis = {"title": "", "showticklabels": False}
    return figure.update_layout(
        height=520,
        margin={"l": 0, "r": 0, "t": 60, "b": 0},
        updatemenus=[menu(buttons, 1.12, yanchor="top")],
        legend={"itemsizing": "constant", "orientation": "h", "y": 0.0, "yanchor": "top"},
        scene={"xaxis": axis, "yaxis": axis, "zaxis": axis, "aspectmode": "cube"},
        scene_camera_eye={"x": 1.0, "y": 1.0, "z": 0.7},
    )


def cloud_picture(record: Mapping) -> Figure:
    """The same from one side: a panel for each meaning of the colours, two of the three directions."""
    fig, axes = plt.subplots(2, 3, figsize=(8, 4.6))
    for axis, (view, (key, stage)) in zip(axes.flat, VIEWS.items()):
        points = np.array(record["stages"][stage])
        for name, (colour, members) in groups_of(record, key, stage).items():
            axis.plot(*points[:2, members], "o", color=colour, ms=2.5, mew=0, label=name)
        axis.set(title=view, xticks=[], yticks=[])
        if key in ("sensor", "light"):
            axis.legend(fontsize=7, loc="best", markerscale=1.5)
    return fig


def show_cloud(path: str | Path) -> None:
    """Display the record of ``notebooks/results/token_cloud.py``, to be turned."""
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    count = len(record["sensor"])
    alt = (
        f"{count} tokens of rooms as points in three dimensions, coloured by sensor, time of day, class or "
        "cluster. Raw tokens of the three sensors form separate clouds; standardised they share a space. "
        "Colour's tokens of day and night lie apart until the mean of each image is subtracted."
    )
    show_interactive(cloud(record), cloud_picture(record), alt)


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
                "λ %{y}, %{x} of the pairs attract<br>mIoU on val %{z:.1f} %<br>effective rank "
                "%{customdata[0]}, mean S %{customdata[1]}<br>explained %{customdata[2]}<br>"
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
