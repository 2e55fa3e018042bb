"""Figures of clustering without labels: what tokens see, what b divides, how a run went, label maps, methods
side by side.

A run is a folder of ``python -m mmlib cluster``; a record is the JSON file of many runs, whose groups
``grouped`` arranges for these figures and for those of ``information_figures``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from ..runtime import read_json
from ..state import read_history
from ..unsupervised.clustering import cluster_palette
from .figures import (
    FUSED,
    INK,
    PALE,
    STYLE,
    WIDTH,
    _picture_axes,
    _put,
    label_picture,
    modality_colour,
    picture_grid,
)

PAIR_COLOURS = {"self": "#0072B2", "knn": "#009E73", "random": "#D55E00"}
BETWEEN = "#CC79A7"  # spread that k-means alone causes; training's is INK


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
    fig, axes = _picture_axes(len(pictures), 4, shape, 0.25 + 0.3 * bool(title), 0.75)
    for r, (name, (first, second)) in enumerate(pictures.items()):
        maps = correspondence_maps(tokens[name], query).numpy()
        heads = (
            (name, "F within the image", "another image", "F across images") if r == 0 else (name, "", "", "")
        )
        _put(axes[r, 0], first, name)
        _put(axes[r, 2], second, heads[2])
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
        colour = PAIR_COLOURS.get(pair, FUSED)
        ax.stairs(density, edges, color=colour, fill=True, alpha=0.25)
        label = f"{pair}: b adaptive"
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

    Raises ValueError: the folder holds no finished run.
    """
    folder = Path(folder)
    if not (folder / "report.json").exists():
        raise ValueError(
            f"{folder}: no report.json; expected the folder of a finished 'python -m mmlib cluster'"
        )
    report = read_json(folder / "report.json", "the report of 'cluster'")
    steps, measured = (
        read_history(folder / "history.jsonl") if (folder / "history.jsonl").exists() else ([], [])
    )
    targets: dict[str, dict] = {}
    for name, entry in report["histograms"].items():
        targets.setdefault(name.rsplit("/", 1)[0], {})[name.rsplit("/", 1)[1]] = entry
    with plt.rc_context(STYLE):
        fig = Figure(figsize=(11, 6.2), layout="constrained")
        top, bottom = fig.subfigures(2, 1)
        loss, rank, similarity = top.subplots(1, 3)
        use, *histograms = np.atleast_1d(bottom.subplots(1, 1 + len(targets)))
        parts = [
            name
            for name in (steps[0] if steps else {})
            if name not in ("step", "seconds", *report["collapse"])
        ]
        for name in parts:
            target, _, pair = name.partition("/")
            colour = INK if name == "loss" else modality_colour(target)
            dash = {"self": "-", "knn": (0, (4, 2)), "random": (0, (1, 1.5))}.get(pair, "-")
            style = {"color": colour, "linestyle": dash, "linewidth": 2.2 if name == "loss" else 1.2}
            loss.plot([s["step"] for s in steps], [s[name] for s in steps], label=name, **style)
        loss.set(title="Loss and its terms", xlabel="step", ylabel="loss (no unit)")
        if parts:  # half as much again above the curves is the legend's
            low, high = loss.get_ylim()
            loss.set_ylim(low, high + 0.55 * (high - low))
            loss.legend(fontsize=7.5, ncols=2, loc="upper right", handlelength=2.4)
        logged = [{"step": s["step"], "val": s} for s in steps if "effective_rank" in s]
        curves = logged or measured or [{"step": report["step"], "val": report["collapse"]}]
        x, values = [m["step"] for m in curves], lambda name: [m["val"][name] for m in curves]
        rank.plot(x, values("effective_rank"), "o-", color=INK, markersize=4)
        rank.set(
            title="Effective rank of the codes",
            xlabel="step",
            ylabel="dimensions",
            ylim=(0, 1.15 * max(values("effective_rank"))),
        )
        similarity.plot(
            x, values("mean_similarity"), "o-", color=PAIR_COLOURS["self"], markersize=4, label="mean S"
        )
        similarity.plot(
            x,
            values("negative_share"),
            "s--",
            color=PAIR_COLOURS["random"],
            markersize=4,
            label="share of S < 0",
        )
        similarity.set(title="S of random pairs", xlabel="step", ylabel="cosine, share", ylim=(-0.1, 1.05))
        similarity.legend()
        share = 100 * np.sort(report["use"])[::-1]
        use.bar(range(len(share)), share, color="#56B4E9")
        use.axhline(100 / len(share), color=INK, linewidth=1, linestyle=(0, (4, 3)))
        use.set(
            title="Cluster use (dashed: even)",
            xlabel="clusters, by size",
            ylabel="share of codes (%)",
            xticks=[],
        )
        for axis, (target, entries) in zip(histograms, targets.items()):
            shift_histogram(entries, axis, f"F' of {target}")
        config, scores = report["config"], report["scores"]
        found = f"mIoU {scores['miou']['all']:.1f} % on {report['split']}" if scores else "no labels"
        fig.suptitle(
            f"{config['method']} · {found} · explained correspondence {report['criteria']['explained']:.3f}",
            x=0.01,
            ha="left",
        )
    return fig


def label_strips(
    images: Sequence[np.ndarray],
    clusters,
    labels,
    mapping,
    palette: Sequence,
    names: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """A row a frame: image | nameless clusters | the classes that matching gave them | label.

    Args:
        images: (H, W, 3) uint8 each; clusters, labels: (n, H, W) ids; mapping: (C,) class of each cluster, -1
            = none (grey).
    """
    table = np.where(np.asarray(mapping) < 0, 255, mapping)
    colours, drawn = cluster_palette(len(table)), label_picture
    rows = [
        {
            "image": image,
            "clusters": drawn(c, colours),
            "matched classes": drawn(table[c], palette),
            "label": drawn(label, palette),
        }
        for image, c, label in zip(images, np.asarray(clusters), np.asarray(labels))
    ]
    return picture_grid(rows, names, title)


def grouped(record: Mapping, scene: str, sensors: str) -> dict[str, dict]:
    """Runs of a record on one scene and set of sensors (symbols) -> method -> {"seeds", "summary": {"all":
    {key: one value a seed}}}.

    Keys: miou, accuracy, kmeans_sd, effective_rank, …: every number of a run, those of its dictionaries as
    "iou/bed", "criteria/explained".
    """
    found: dict[str, dict] = {}
    for run in sorted(record["runs"], key=lambda run: run["seed"]):
        if run["scene"] == scene and run["sensors"] == sensors:
            numbers = {k: v for k, v in run.items() if isinstance(v, (int, float)) and k != "seed"}
            numbers |= {
                f"{k}/{n}": v for k, inner in run.items() if isinstance(inner, dict) for n, v in inner.items()
            }
            group = found.setdefault(
                run["method"], {"seeds": [], "summary": {"all": {}}, "miou": {"all": {}}}
            )
            group["seeds"].append(run["seed"])
            for key, value in numbers.items():
                group["summary"]["all"].setdefault(key, []).append(value)
    return found


def method_bars(
    panels: Mapping[str, Mapping], rows: Mapping[str, str], key: str = "miou", unit: str = "mIoU (%)"
) -> Figure:
    """A bar a method, a panel a setting: mean over seeds, each seed a ring; black whisker: ± 1 sd over
    trainings; pink: ± 1 sd that k-means alone causes, kept apart because more restarts would shrink only that
    one.

    panels: title -> groups (see ``grouped``); rows: method -> what to call it, from the top, where any panel
    has it.
    """
    rows = {name: label for name, label in rows.items() if any(name in groups for groups in panels.values())}
    fig, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH + 0.7, 0.235 * len(rows) + 1.0), sharey=True, squeeze=False
    )
    for ax, (title, groups) in zip(axes[0], panels.items()):
        for place, name in [(place, name) for place, name in enumerate(rows) if name in groups]:
            summary = groups[name]["summary"]["all"]
            seeds, again = np.array(summary[key]), float(np.mean(summary.get("kmeans_sd", [np.nan])))
            ax.barh(place, seeds.mean(), 0.7, color=PALE if "kmeans" in name else "#9ECAE1")
            if len(seeds) > 1:
                ax.errorbar(
                    seeds.mean(), place - 0.16, xerr=seeds.std(ddof=1), color=INK, capsize=2, linewidth=1.2
                )
            if key == "miou" and np.isfinite(again):
                ax.errorbar(seeds.mean(), place + 0.18, xerr=again, color=BETWEEN, capsize=2, linewidth=1.2)
            ax.plot(
                seeds, [place] * len(seeds), "o", color="white", markeredgecolor=INK, markersize=3, zorder=3
            )
            ax.annotate(
                f"{seeds.mean():.1f}",
                (0, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        ax.set(xlabel=unit, title=title, ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.05 * ax.get_xlim()[1]))
        ax.grid(True, axis="x")
        ax.grid(False, axis="y")
    axes[0, 0].set_yticks(range(len(rows)), list(rows.values()), fontsize=9)
    handles = [ax.plot([], [], color=colour)[0] for colour in (INK, BETWEEN)]
    fig.legend(
        handles,
        ["± 1 sd over seeds of training", "± 1 sd over k-means alone"],
        loc="outside lower center",
        ncols=2,
    )
    return fig
