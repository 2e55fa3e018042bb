"""Figures of records: methods against a reference, information in training, subsets and methods side by side.

A record is the JSON file of many runs that ``python -m mmlib compare`` or a script in notebooks/results
wrote; ``groups`` is its entry of that name, or what ``grouped`` makes of its runs. Differences are paired by
seed and named by their spread, never by their sign alone.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mmlib.evaluation.statistics import Estimate, paired_difference
from mmlib.figures import INK, PALE, WIDTH, sensor_title
from mmlib.modalities import SENSORS
from mmlib.segmentation.information import fisher_gap

from .charts import BLUE, OFFSET, ORANGE, PINK, legend_below, rings, subset_bars, vertical_grid

BETWEEN = PINK  # spread that k-means alone causes; training's is INK
# Ways to train; no sensor has one of these colours.
SERIES = (INK, "#9A9A9A", "#7B3294", "#C2A5CF", "#8C510A", "#DFC27D")
UP, DOWN, OPEN = BLUE, ORANGE, "#7A7A7A"  # a clear rise, a clear fall, and what a record leaves open

RESULTS = Path(__file__).resolve().parents[1] / "results"


def read_record(name: str) -> dict:
    """A record of ``notebooks/results`` by its name."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def record_groups(name: str) -> dict[str, dict]:
    """The groups of a record, by their names: what was trained -> its scores, a value a seed."""
    return read_record(name)["groups"]


def per_seed(group: Mapping, key: str) -> list[float]:
    """One value per seed: "full", "mean", "min", "std" or "gap" of the summary, else the mIoU of a subset
    such as "RD".

    Raises:
        KeyError: neither a summary nor a subset of this group.
    """
    summary = group["summary"]["all"]
    return summary[key] if key in summary else group["miou"]["all"][key]


def by_seed(group: Mapping, key: str) -> dict[int, float]:
    """Seed -> the number that ``per_seed`` has for it."""
    return dict(zip(group["seeds"], per_seed(group, key)))


def paired(groups: Mapping[str, Mapping], name: str, reference: str, key: str) -> Estimate:
    """``name`` minus ``reference``, over the seeds that both have.

    Raises:
        ValueError: they share no seed.
    """
    ours, theirs = (by_seed(groups[g], key) for g in (name, reference))
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        raise ValueError(
            f"{name} and {reference} share no seed ({list(ours)} against {list(theirs)}); "
            "train both with the same ones"
        )
    return paired_difference([ours[s] for s in seeds], [theirs[s] for s in seeds])


def verdict(difference: Estimate, up: str = "clear gain", down: str = "clear loss") -> str:
    """What a difference may be called: up or down where its 95 % interval excludes zero."""
    if difference.n == 1:
        return "one seed: no spread"
    return (up if difference.mean > 0 else down) if difference.clear else "smaller than its spread"


def text_table(corner: str, heads: Iterable[str], rows: Mapping[str, Sequence[str]], wide: int = 15) -> str:
    """Plain text: what to call a row -> its cells. The first column is as wide as its longest label, the
    others ``wide`` characters; heads are broken into lines between their words.
    """
    heads = [textwrap.wrap(head, wide - 1) for head in heads]
    first, high = max(map(len, [corner, *rows])), max(map(len, heads))
    above = [["", *lines] for lines in zip(*([""] * (high - len(head)) + head for head in heads))]
    above[-1][0] = corner
    table = above + [[label, *cells] for label, cells in rows.items()]
    return "\n".join(f"{label:{first}s}" + "".join(f"{c:>{wide}s}" for c in cells) for label, *cells in table)


def _colour(difference: Estimate) -> str:
    return (UP if difference.mean > 0 else DOWN) if difference.clear else OPEN


def reference_dots(
    groups: Mapping[str, Mapping],
    rows: Mapping[str, str],
    reference: str,
    panels: Mapping[str, str],
    headings: Mapping[str, str] | None = None,
    unit: str = "mIoU (%)",
) -> Figure:
    """A line a group and a panel a key: seeds as rings, their mean as a dot, and at the right the paired
    difference to ``reference``.

    Dots are blue for a clear rise against the reference, vermilion for a clear fall, grey where the interval
    holds zero.

    Args:
        rows: group -> what to call it, from the top; groups that the record lacks are left out.
        panels: key (see ``per_seed``) -> title.
        headings: group -> heading written above it.
    """
    rows = {name: label for name, label in rows.items() if name in groups}
    headings, heights, y = headings or {}, {}, 0.0
    for name in rows:
        heights[name] = y = y + 0.9 * (name in headings)
        y += 1.0
    fig, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 0.225 * y + 0.95), sharey=True, squeeze=False)
    for axis, (key, name_of_key) in zip(axes[0], panels.items()):
        axis.axvline(
            np.mean(per_seed(groups[reference], key)), color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0
        )
        for name, place in heights.items():
            seeds, colour, text = per_seed(groups[name], key), INK, "reference"
            if name != reference:
                d = paired(groups, name, reference, key)
                half = "" if d.n == 1 else f" ± {(d.high - d.low) / 2:.1f}"
                colour, text = _colour(d), f"{d.mean:+.1f}{half}"
            axis.plot(
                seeds,
                [place] * len(seeds),
                "o",
                color="none",
                markeredgecolor=colour,
                markersize=4,
                alpha=0.7,
            )
            axis.plot(np.mean(seeds), place, "o", color=colour, markersize=6.5, zorder=3)
            axis.annotate(
                text, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=colour
            )
        axis.set_title(name_of_key)
        axis.set_xlabel(unit)
        vertical_grid(axis)
        axis.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks(list(heights.values()), list(rows.values()), fontsize=9)
    axes[0, 0].set_ylim(y - 0.4, -0.7)
    for name, heading in headings.items():
        if name in heights:
            place = OFFSET | {"xycoords": ("axes fraction", "data")}
            axes[0, 0].annotate(
                heading,
                (0, heights[name] - 0.8),
                (-4, 0),
                ha="right",
                va="center",
                fontsize=8.5,
                fontweight="bold",
                **place,
            )
    return fig


def information_panels(groups: Mapping[str, Mapping], titles: Mapping[str, str]) -> Figure:
    """Information of each sensor while training, a panel a group; the band from the least to the most
    informative is the gap.

    Args:
        groups: with "curves": per seed a list of {"epoch", "information": {sensor: value}}, at the same
            epochs for all seeds.
        titles: group -> title of its panel.
    """
    fig, axes = plt.subplots(1, len(titles), figsize=(WIDTH, 3.1), sharey=True, squeeze=False)
    for axis, (name, title) in zip(axes[0], titles.items()):
        curves = groups[name]["curves"]
        epochs = [entry["epoch"] for entry in curves[0]]
        lines = {
            s: np.array([[e["information"][s] for e in curve] for curve in curves])
            for s in curves[0][0]["information"]
        }
        means = np.array(
            [np.exp(np.log(seeds).mean(0)) for seeds in lines.values()]
        )  # geometric: the axis is logarithmic
        axis.fill_between(epochs, means.min(0), means.max(0), color=PALE, alpha=0.45, linewidth=0)
        for (sensor, seeds), mean in zip(lines.items(), means):
            colour = SENSORS[sensor].colour
            axis.plot(epochs, seeds.T, color=colour, linewidth=0.7, alpha=0.5)
            axis.plot(
                epochs, mean, color=colour, marker="o", markersize=2.5, label=sensor_title(SENSORS[sensor])
            )
        gaps = [fisher_gap(list(curve[-1]["information"].values())) for curve in curves]
        axis.set_title(f"{title}\ngap at the end {np.mean(gaps):.1f}", fontsize=9.5)
        axis.set(xlabel="epoch", yscale="log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))  # less than a decade may be in sight
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel("information (no unit)")
    legend_below(fig, axes[0, 0], len(lines))
    return fig


def subset_dots(
    series: Mapping[str, Mapping[str, Sequence[float]]],
    title: str = "",
) -> Figure:
    """Several networks on every subset of sensors: a dot is the mean over seeds, its line their range;
    sensors present marked below.

    Args:
        series: up to six names -> subset ("R", …, "RDEL") -> mIoU of each seed.
    """
    subsets = list(next(iter(series.values())))
    fig = subset_bars(dict.fromkeys(subsets, 0.0), title)
    fig.set_figheight(4.6)
    for artist in [*(top := fig.axes[0]).patches, *top.texts]:  # of the bars, only the layout is wanted
        artist.remove()
    for number, (name, scores) in enumerate(series.items()):
        x = np.arange(len(subsets)) + 0.16 * (number - (len(series) - 1) / 2)
        seeds = [scores[s] for s in subsets]
        top.vlines(x, list(map(min, seeds)), list(map(max, seeds)), color=SERIES[number], linewidth=1.5)
        top.plot(
            x, list(map(np.mean, seeds)), "osD^vP"[number], color=SERIES[number], markersize=5.5, label=name
        )
    everything = [v for scores in series.values() for s in subsets for v in scores[s]]
    top.set_ylim(min(everything) - 2, max(everything) + 2)
    legend_below(fig, top, min(len(series), 3))
    return fig


def grouped(record: Mapping, scene: str, sensors: str) -> dict[str, dict]:
    """Runs of a record on one scene and set of sensors (symbols) -> method -> {"seeds", "summary": {"all":
    {key: one value a seed}}}.

    Keys: miou, accuracy, kmeans_sd, effective_rank, …: every number of a run, those of its dictionaries as
    "iou/bed", "criteria/explained".
    """
    groups: dict[str, dict] = {}
    for run in sorted(record["runs"], key=lambda run: run["seed"]):
        if run["scene"] == scene and run["sensors"] == sensors:
            numbers = {k: v for k, v in run.items() if isinstance(v, (int, float)) and k != "seed"}
            numbers |= {
                f"{k}/{n}": v for k, inner in run.items() if isinstance(inner, dict) for n, v in inner.items()
            }
            group = groups.setdefault(
                run["method"], {"seeds": [], "summary": {"all": {}}, "miou": {"all": {}}}
            )
            group["seeds"].append(run["seed"])
            for key, value in numbers.items():
                group["summary"]["all"].setdefault(key, []).append(value)
    return groups


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
            rings(ax, seeds, place, size=3, zorder=3)
            ax.annotate(f"{seeds.mean():.1f}", (0, place), (4, 0), va="center", fontsize=8, **OFFSET)
        ax.set(xlabel=unit, title=title, ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.05 * ax.get_xlim()[1]))
        vertical_grid(ax)
    axes[0, 0].set_yticks(range(len(rows)), list(rows.values()), fontsize=9)
    whiskers = {"± 1 sd over seeds of training": INK}
    if key == "miou" and any(
        "kmeans_sd" in group["summary"]["all"] for groups in panels.values() for group in groups.values()
    ):
        whiskers["± 1 sd over k-means alone"] = BETWEEN
    handles = [ax.plot([], [], color=colour)[0] for colour in whiskers.values()]
    fig.legend(handles, whiskers, loc="outside lower center", ncols=2)
    return fig
