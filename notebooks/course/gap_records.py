"""Figures of lesson 06 from records: the Fisher gap while training, and against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from matplotlib import pyplot as plt
from plotly.subplots import make_subplots
from results.titles import ABLATION, TRAININGS, WITHOUT_DROPOUT
from scipy.stats import spearmanr

from mmlib.evaluation.statistics import Estimate
from mmlib.figures import sensor_title
from mmlib.modalities import SENSORS
from mmlib.segmentation.information import fisher_gap

from .charts import SKY, legend_below, show
from .hover import show_interactive
from .record_figures import SERIES, information_panels, per_seed, subset_dots, verdict

TICKS = (1, 2, 3, 5, 10, 20)
LOG_TICKS = {"type": "log", "tickvals": list(TICKS), "ticktext": [str(t) for t in TICKS]}  # of plotly
BELOW = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}  # a legend of plotly
# Kind of training -> (colour, matplotlib's marker, plotly's marker)
KINDS = {
    "all sensors, always": (SERIES[0], "o", "circle"),
    "all sensors + a term": (SKY, "P", "cross"),
    "dropout": (SERIES[1], "s", "square"),
    "dropout + a term": (SERIES[2], "^", "triangle-up"),
    "other objectives": (SERIES[4], "D", "diamond"),
    "other objectives + a term": (SERIES[5], "v", "triangle-down"),
}
CURVES = {
    "curve-full": TRAININGS["full"],
    "curve-dropout": TRAININGS["dropout"],
    "curve-input": "dropout + R_p",
    "curve-paper": "dropout + R_p + R_f",
} | {f"street-{name}": f"{title} (long)" for name, title in TRAININGS.items()}

# Schedule and data set -> (record, what its groups begin with): those with all three objectives.
SCHEDULES = {
    "streets, long": ("street_subsets", "street"),
    "streets, short": ("street_ablation", "short"),
    "streets, short, transformer": ("street_pvt", "pvt"),
    "streets, short, pretrained": ("street_pretrained", "street-pretrained"),
    "NYU frames, long": ("nyu_subsets", "nyu"),
    "NYU frames, short, pretrained": ("nyu_pretrained", "nyu-pretrained"),
}


def kind_of(group: Mapping) -> str:
    """What kind of training a group of runs is: a key of ``KINDS``."""
    objective, term = group["config"]["objective"]["subsets"], group["config"]["regularizer"]
    on = (term["prediction"] != "none" and term["lambda_p"] > 0) or term["features"] != "none"
    if objective == "full":
        return "all sensors + a term" if on else "all sensors, always"
    return ("dropout" if objective == "dropout" else "other objectives") + " + a term" * on


def title_of(name: str) -> str:
    """What a group of the record "street_ablation" is called: its row of the results page, with what a term
    or an option is added to.
    """
    key = name.removeprefix("short-")
    title = (WITHOUT_DROPOUT | ABLATION)[key].replace("*", "").removesuffix(" (reference)")
    if title.startswith("+"):
        return f"{'all sensors' if key.startswith('full') else 'dropout'} {title}"
    if title.startswith("…"):
        return "all subsets" + title.removeprefix("…").replace(" ", " " if "+" in title else ", ", 1)
    return f"dropout, {title}" if title.startswith("one stem") else title


def another_network(group: Mapping) -> bool:
    """Whether a group's network is not the course's own: a stem for each sensor, fused by their mean."""
    network = group["config"]["network"]
    return network["stem"] != "separate" or network["fusion"] != "mean"


def several_sensors(groups: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """Those with a gap: without groups trained on one sensor, or of which a sensor has no information."""
    return {
        name: group
        for name, group in groups.items()
        if len(group["config"]["modalities"]) != 1 and np.isfinite(per_seed(group, "gap")).all()
    }


def called(difference: Estimate, up: str = "clear gain", down: str = "clear loss") -> str:
    """``verdict``, which two seeds do not give."""
    return verdict(difference, up, down) if difference.n > 2 else "not tested (two seeds)"


def rank_correlation(groups: Sequence[Mapping], a: str, b: str) -> tuple[float, float, float]:
    """Spearman's correlation of two keys, each the mean over seeds, with a 95 % bootstrap interval."""
    pairs = np.array([[np.mean(per_seed(group, key)) for key in (a, b)] for group in groups])
    draws = np.random.default_rng(0).integers(0, len(pairs), (500, len(pairs)))
    found = [spearmanr(*pairs[draw].T)[0] for draw in draws if np.ptp(pairs[draw], 0).min() > 0]
    return (float(spearmanr(*pairs.T)[0]), *map(float, np.quantile(found, [0.025, 0.975])))


def control_of(groups: Mapping[str, Mapping], name: str) -> str | None:
    """The group that differs from ``name`` in nothing but the term: without one, all else the same; None
    where there is none.
    """

    def same(group):  # an option that is not set may be missing in older runs
        config = group["config"]
        parts = ({k: v for k, v in config[part].items() if v} for part in ("objective", "network"))
        return [*parts, config["modalities"]]

    plain = (n for n, group in groups.items() if not kind_of(group).endswith("a term"))
    return next((n for n in plain if same(groups[n]) == same(groups[name])), None)


def controls(groups: Mapping[str, Mapping]) -> dict[str, str]:
    """Group with a term -> its control, where the record has one."""
    found = {name: control_of(groups, name) for name in groups if kind_of(groups[name]).endswith("a term")}
    return {name: control for name, control in found.items() if control}


def math(name: str) -> str:
    """With the terms' symbols as matplotlib draws them."""
    return name.replace("R_p", "$R_p$").replace("R_f", "$R_f$")


def gap_curves(groups: Mapping[str, Mapping], name: str) -> dict[int, tuple[list, list]]:
    """seed -> (epochs, Fisher gaps), of the seeds whose information was measured while training."""
    curves = {}
    for seed, curve in zip(groups[name]["seeds"], groups[name]["curves"]):
        gaps = [fisher_gap(list(entry["information"].values())) for entry in curve]
        if np.isfinite(gaps).all():
            curves[seed] = [entry["epoch"] for entry in curve], gaps
    return curves


def late_curves(curve: Sequence[Mapping]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """(log information of each sensor, log gap, mean mIoU) over the second half of a run's whole epochs.
    They lie equally far apart; the last evaluation comes a part of an epoch later.
    """
    whole = [entry for entry in curve if entry["epoch"] % 1 == 0]
    whole = whole[len(whole) // 2 - 1 :]
    logs = np.log([list(entry["information"].values()) for entry in whole]).T
    return [*logs], logs.max(0) - logs.min(0), np.array([entry["mean"] for entry in whole])


def ratio_text(gap: Estimate, mean: Estimate) -> str:
    """A difference of log gaps as a ratio, and one of mean mIoU, each with its interval and a star where it
    excludes no change.
    """
    ratio, low, high = np.exp([gap.mean, gap.low, gap.high])
    words = f"× {ratio:.2f} [{low:.2f}, {high:.2f}]{'*' * gap.clear}"
    return f"{words:22s}{mean.mean:+4.1f} [{mean.low:+4.1f}, {mean.high:+4.1f}]{'*' * mean.clear}"


def log_axis(axis, which: str) -> None:
    """A logarithmic axis for gaps."""
    getattr(axis, f"set_{which}scale")("log")
    getattr(axis, f"set_{which}ticks")(TICKS, [str(t) for t in TICKS])
    axis.minorticks_off()


# ---- while training ----


def show_panels(groups: Mapping[str, Mapping], names: Sequence[str]) -> None:
    """The paper's Figure 2: information of each sensor while training."""
    titles = {name: math(CURVES[name]) for name in names}
    said = []
    for name in names:
        ends = ", ".join(f"{gaps[-1]:.1f}" for _, gaps in gap_curves(groups, name).values())
        said.append(f"{CURVES[name]}, gap at the end {ends}")
    show(
        information_panels(groups, titles),
        f"Information of four sensors while training, on a logarithmic axis; by seed: {'; '.join(said)}.",
    )


def show_gap_against_training(records: Sequence[Mapping[str, Mapping]]) -> None:
    """Every run whose gap was measured while training: a line a run, a legend entry a way to train."""
    lines = [(name, groups) for groups in records for name in CURVES if name in groups]
    figure, (fig, axis) = go.Figure(), plt.subplots(figsize=(8, 3.4))
    for number, (name, groups) in enumerate(lines):
        colour = (*SERIES, SKY)[number % 7]
        for k, (seed, (epochs, gaps)) in enumerate(gap_curves(groups, name).items()):
            figure.add_scatter(
                x=epochs,
                y=gaps,
                name=CURVES[name].replace("R_p", "R<sub>p</sub>").replace("R_f", "R<sub>f</sub>"),
                legendgroup=name,
                showlegend=k == 0,
                mode="lines+markers",
                line={"color": colour, "dash": ("solid", "dash", "dot")[k % 3]},
                marker={"size": 5},
                hovertemplate=f"{CURVES[name]}, seed {seed}<br>epoch %{{x}}: gap %{{y:.1f}}<extra></extra>",
            )
            label = math(CURVES[name]) if k == 0 else None
            axis.plot(epochs, gaps, ("-", "--", ":")[k % 3], color=colour, label=label)
    figure.update_layout(
        title="Click a way to train to hide it",
        xaxis={"title": "epoch", "zeroline": False},
        yaxis={"title": "Fisher gap", **LOG_TICKS},
        legend=BELOW,
        height=480,
    )
    axis.set(xlabel="epoch", ylabel="Fisher gap", title="Every run whose gap was measured while training")
    log_axis(axis, "y")
    legend_below(fig, axis, 3)
    ends = [
        f"{CURVES[name]} {' and '.join(f'{gaps[-1]:.1f}' for _, gaps in gap_curves(groups, name).values())}"
        for name, groups in lines
    ]
    show_interactive(
        figure, fig, f"Fisher gap of every run while training; at the end, by seed: {'; '.join(ends)}."
    )


def show_accuracy(groups: Mapping[str, Mapping], names: Sequence[str], subsets: Sequence[str]) -> None:
    """The paper's Figure 5: mIoU while training, a panel a set of sensors."""
    fig, axes = plt.subplots(1, len(subsets), figsize=(8, 2.9), sharey=True)
    for axis, subset in zip(axes, subsets):
        for name, colour, style in zip(names, SERIES[::2], ("-", "-", "--")):
            curves = groups[name]["curves"]
            epochs = [entry["epoch"] for entry in curves[0]]
            lines = np.array([[entry["miou"][subset] for entry in curve] for curve in curves])
            axis.plot(epochs, lines.T, color=colour, linewidth=0.6, alpha=0.5)
            label = math(CURVES[name])
            axis.plot(epochs, lines.mean(0), style, color=colour, linewidth=1.8, label=label)
        axis.set(title=subset, xlabel="epoch")
    axes[0].set_ylabel("mIoU (%)")
    legend_below(fig, axes[0], 3)
    ends = []
    for name in names:
        last = [np.mean([curve[-1]["miou"][s] for curve in groups[name]["curves"]]) for s in subsets]
        ends.append(f"{CURVES[name]}: " + ", ".join(f"{s} {v:.1f}" for s, v in zip(subsets, last)))
    show(fig, f"mIoU over epochs for five sets of sensors; at the end, {'; '.join(ends)}.")


# ---- against accuracy ----


def show_all_subsets(groups: Mapping[str, Mapping], names: Mapping[str, str]) -> None:
    """The paper's Figure 7, as dots on one scale."""
    names = {name: label for name, label in names.items() if name in groups}
    scores = {label: groups[name]["miou"]["all"] for name, label in names.items()}
    means = ", ".join(
        f"{label} {np.mean(per_seed(groups[name], 'mean')):.1f}" for name, label in names.items()
    )
    show(
        subset_dots(scores, title="Every set of sensors: mean of the seeds (mark) and their range (line)"),
        f"mIoU of all fifteen sets of sensors, seeds as lines; mean over the sets: {means}.",
    )


def show_gap_against_accuracy(groups: Mapping[str, Mapping]) -> None:
    """A dot a way to train: gap, mean over subsets, worst subset; hover for its name."""
    panels = {"mean": "Mean over 15 subsets", "min": "Worst subset"}
    figure = make_subplots(1, 2, subplot_titles=list(panels.values()), horizontal_spacing=0.09)
    fig, axes = plt.subplots(1, 2, figsize=(8, 3.4))
    average = lambda name, key: float(np.mean(per_seed(groups[name], key)))
    for kind, (colour, marker, symbol) in KINDS.items():
        members = [name for name in groups if kind_of(groups[name]) == kind]
        other = [another_network(groups[name]) for name in members]
        for column, key in enumerate(panels):
            if not members:
                continue
            x, y = ([average(name, k) for name in members] for k in ("gap", key))
            axes[column].plot([], [], marker, color=colour, ms=7, label=kind)
            for one in zip(x, y, other):
                face = "none" if one[2] else colour
                axes[column].plot(*one[:2], marker, color=colour, mfc=face, alpha=0.85, ms=7)
            figure.add_scatter(
                x=x,
                y=y,
                name=kind,
                legendgroup=kind,
                showlegend=column == 0,
                mode="markers",
                marker={
                    "color": colour,
                    "symbol": [symbol + "-open" * hollow for hollow in other],
                    "size": 11,
                    "line": {"width": 2, "color": colour},
                },
                text=[f"{title_of(name)}, {len(groups[name]['seeds'])} seeds" for name in members],
                hovertemplate="%{text}<br>gap %{x:.1f}, mIoU %{y:.1f} %<extra></extra>",
                row=1,
                col=column + 1,
            )
    figure.update_xaxes(title="Fisher gap", **LOG_TICKS)
    figure.update_yaxes(title="mIoU (%)", col=1)
    figure.update_layout(legend=BELOW, height=460)
    for axis, title in zip(axes, panels.values()):
        log_axis(axis, "x")
        axis.set(xlabel="Fisher gap", ylabel="mIoU (%)", title=title)
    legend_below(fig, axes[0], 3)
    show_interactive(
        figure,
        fig,
        "Fisher gap against mean and worst mIoU over subsets, a dot for each of "
        f"{len(groups)} ways to train, open where the network is another one; hovering names it, and a click "
        "in the legend hides a kind.",
    )


def show_use(groups: Mapping[str, Mapping], names: Sequence[str]) -> None:
    """Each sensor's share of the information against what its removal costs, over all ways to train."""
    everything = "".join(SENSORS[n].symbol for n in names)
    fig, axis = plt.subplots(figsize=(8, 3.3))
    first = []
    for n in names:
        rest = everything.replace(SENSORS[n].symbol, "")
        share, use = [], []
        for group in groups.values():
            information = {s: np.mean(group["information"][s]) for s in names}
            share.append(100 * information[n] / sum(information.values()))
            scores = group["miou"]["all"]
            use.append(float(np.mean(scores[everything]) - np.mean(scores[rest])))
        first.append((share, use))
        axis.plot(share, use, "o", color=SENSORS[n].colour, alpha=0.75, label=sensor_title(SENSORS[n]))
    shares, uses = (np.array([pair[k] for pair in first]) for k in (0, 1))
    agree = int((shares.argmax(0) == uses.argmax(0)).sum())
    axis.set(xlabel="share of the information (%)", ylabel="mIoU lost without it (points)")
    axis.set_title("A sensor's information against its use, a dot a way to train", fontweight="normal")
    legend_below(fig, axis, 4)
    show(
        fig,
        "Share of information against what a sensor's removal costs: the sensor with most information is "
        f"the one most missed in {agree} of {len(groups)} ways to train.",
    )
