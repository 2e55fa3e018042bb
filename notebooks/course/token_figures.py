"""Figures of lesson 08: what tokens look like, which of them correspond, what they know, and their cloud."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from mmlib import world
from mmlib.figures import INK, WIDTH, picture, picture_axes, picture_grid, put_picture, sensor_title
from mmlib.modalities import SENSORS
from mmlib.unsupervised.clustering import cluster_palette

from .charts import PINK, YELLOW, enlarged, legend_below, modality_colour, modality_title, show
from .hover import button_of_traces, menu, show_interactive
from .world_source import physical_images

TALL = 288  # of a picture beside those of its tokens


def components(tokens: Sequence[Tensor], count: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Principal components of all tokens (B, C, h, w) together: mean (C,), axes (count, C), and the 2 % and
    98 % quantiles (count,).

    Each axis points where its largest entry is positive, so that colours do not flip between machines.
    Raises ValueError: tokens of different length, or fewer channels than components.
    """
    if len({t.shape[1] for t in tokens}) != 1 or tokens[0].shape[1] < count:
        raise ValueError(
            f"tokens {[tuple(t.shape) for t in tokens]}: expected (B, C, h, w) of one C, {count} or more"
        )
    rows = torch.cat([t.detach().movedim(1, -1).flatten(0, -2) for t in tokens]).double().cpu()
    mean = rows.mean(0)
    axes = torch.linalg.eigh((rows - mean).T @ (rows - mean))[1].flip(1)[:, :count].T
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    ends = torch.from_numpy(np.quantile(((rows - mean) @ axes.T).numpy(), (0.02, 0.98), axis=0))
    return mean, axes, ends[0], ends[1]


def token_pictures(tokens: Tensor, basis: tuple[Tensor, ...]) -> np.ndarray:
    """Tokens (B, C, h, w) -> (B, h, w, 3) uint8: the three ``components`` as red, green and blue. Equal
    colours = similar tokens, also between images and sensors that share a basis.
    """
    mean, axes, low, high = basis
    values = (tokens.detach().double().cpu().movedim(1, -1) - mean) @ axes.T
    return ((values - low) / (high - low).clamp(min=1e-12) * 255).clamp(0, 255).round().byte().numpy()


def correspondence_maps(tokens: Tensor, query: tuple[int, int]) -> Tensor:
    """Cosine (B, h, w) of every token of ``tokens`` (B, C, h, w) with the one of image 0 at ``query`` (row,
    column).
    """
    unit = F.normalize(tokens.detach().float(), dim=1)
    return torch.einsum("c,bchw->bhw", unit[0, :, query[0], query[1]], unit)


def correspondence_figure(
    pictures: Mapping[str, Sequence[np.ndarray]],
    tokens: Mapping[str, Tensor],
    query: tuple[int, int],
    title: str = "",
) -> Figure:
    """A row a sensor: image with the query token marked, its correspondences F there, another image, and
    those in that image.

    Args:
        pictures: what to call the sensor -> two pictures (H, W, 3); tokens: the same names -> (2, C, h, w).
        query: (row, column) on the token grid of the first image.
    """
    shape = next(iter(pictures.values()))[0].shape
    fig, axes = picture_axes(len(pictures), 4, shape, 0.25 + 0.3 * bool(title), 0.75)
    for r, (name, (first, second)) in enumerate(pictures.items()):
        maps = correspondence_maps(tokens[name], query).numpy()
        put_picture(axes[r, 0], first, modality_title(name))
        heads = ("", "F within the image", "another image", "F across images") if r == 0 else [""] * 4
        put_picture(axes[r, 2], second, heads[2])
        height, width = (shape[k] / maps.shape[k + 1] for k in (0, 1))
        for column, values in zip((1, 3), maps):
            extent = (-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5)
            image = axes[r, column].imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, extent=extent)
            axes[r, column].set_title(heads[column], loc="center", fontsize=10, fontweight="normal", pad=3)
        for axis in axes[r, :2]:
            place = ((query[1] + 0.5) * width - 0.5, (query[0] + 0.5) * height - 0.5)
            axis.plot(*place, "s", color="none", markeredgecolor="white", markersize=9, markeredgewidth=3)
            axis.plot(*place, "s", color="none", markeredgecolor=INK, markersize=9, markeredgewidth=1.2)
    fig.colorbar(image, ax=axes, shrink=0.6, pad=0.01, label="cosine with the marked token")
    if title:
        fig.suptitle(title, x=0.01, ha="left")
    return fig


def show_patch(lab, rooms: Sequence[int], tokens: Mapping[str, Tensor], patch: tuple[int, int]) -> None:
    """``correspondence_figure`` of two training rooms."""
    pictures = {name: [lab.picture(name, i, "train") for i in rooms] for name in lab.names}
    show(
        correspondence_figure(
            pictures, tokens, patch, "Where does each sensor see more of the marked patch?"
        ),
        "One patch of a room is marked. For colour, depth and thermal images, maps of the cosine of every "
        "patch with it, in the same room and in another one: each sensor finds other patches similar.",
    )


def show_room_by_light(lab, lights=("day", "night")) -> None:
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
    title = "One room by day and by night, as its tokens see it"
    show(
        picture_grid(rows, ["image", "standardised", "mean out"], title),
        "A room by day and by night as colour, depth and thermal image, and below it the first three "
        "principal components of its tokens. Standardised colour tokens change hue from day to night; with "
        "the mean of each image subtracted they change less.",
    )


def _sensor_bars(axis, values: Mapping[str, Mapping[str, float]], chance: float) -> None:
    """Bars of group -> sensor -> value, and a dashed line at chance."""
    names = list(next(iter(values.values())))
    for k, name in enumerate(names):
        heights = [group[name] for group in values.values()]
        places = np.arange(len(values)) + 0.26 * (k - (len(names) - 1) / 2)
        label = sensor_title(SENSORS[name])
        bars = axis.bar(places, heights, 0.24, color=modality_colour(name), label=label)
        for number in axis.bar_label(bars, fmt="%.2f", fontsize=8.5):
            number.set_path_effects([withStroke(linewidth=3, foreground="white")])  # lines pass behind it
    axis.axhline(chance, color=INK, linewidth=1, linestyle="--")
    axis.set_xticks(range(len(values)), list(values))


def auc_bars(values: Mapping[str, Mapping[str, float]], title: str, control: float | None = None) -> Figure:
    """An AUC for each group and sensor: group -> sensor -> value; the dashed line is chance, the dotted one
    what the row of a patch alone tells.
    """
    fig, axis = plt.subplots(figsize=(WIDTH, 2.9))
    _sensor_bars(axis, values, 0.5)
    if control is not None:
        label = f"the row alone: {control:.2f}"
        axis.axhline(control, color=INK, linewidth=1.6, linestyle=":", label=label)
    axis.set(ylabel="AUC (0.5 = chance)", ylim=(0.4, 1.0), title=title)
    fig.legend(loc="outside right upper")
    return fig


def show_light(values: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """What tokens know of the light: stage -> sensor -> (AUC over all pairs of patches, AUC over pairs at the
    same place, share of rooms whose most similar other room has the same light).
    """
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH + 1, 3.2))
    panels = {
        "All pairs of patches": ("AUC", 0.5, (0.4, 0.8)),
        "Patches at the same place": ("AUC", 0.5, (0.4, 0.8)),
        "Most similar other room": ("share of the same light", 1 / 3, (0, 1.15)),
    }
    for k, (axis, (title, (unit, chance, ends))) in enumerate(zip(axes, panels.items())):
        one = {
            stage.replace(" ", "\n"): {name: found[k] for name, found in sensors.items()}
            for stage, sensors in values.items()
        }
        _sensor_bars(axis, one, chance)
        axis.set(ylabel=unit, ylim=ends, title=title)
    legend_below(fig, axes[0], 3)
    show(
        fig,
        "Whether tokens know the light, for colour, depth and thermal; a dashed line is chance. Over all "
        "pairs of patches colour is above chance when tokens are standardised, and at chance when the mean "
        "of the image is subtracted. At the same place colour stays above chance, less so after the "
        "subtraction. Its most similar other room has the same light nearly always. Depth and thermal are "
        "near chance.",
    )


def show_classes(values: Mapping[str, Mapping[str, float]], control: float) -> None:
    """``auc_bars`` for "same class", by stage of the tokens."""
    show(
        auc_bars(values, "How well correspondences between rooms know the classes", control),
        "Bars of the AUC of correspondences for colour, depth and thermal tokens: raw, then standardised, "
        "smoothed and with image means subtracted. All lie above chance, and none above a dotted line, what "
        "the row of a patch alone tells.",
    )


# ---- tokens as a cloud ----

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
