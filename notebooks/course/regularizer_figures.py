"""Lesson 05: every recorded training with a term of the regulariser against the same training without it.

``ROWS`` names them; an effect is the difference of two groups of a record, paired by seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import plotly.graph_objects as go
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mmlib.evaluation.statistics import Estimate
from mmlib.figures import INK, PALE, WIDTH
from mmlib.segmentation.information import combine, feature_information

from .record_figures import DOWN, UP, paired, per_seed, verdict
from .subset_figures import RESULTS, record_groups

MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^"}
KEYS = {"full": "all sensors", "mean": "mean over subsets", "min": "worst subset"}


@dataclass(frozen=True)
class Setting:
    """Trainings that differ from one reference by a term alone.

    Args:
        title: what they share.
        record: file in results/, without its ending.
        reference: group without a term.
        terms: group -> the term that it adds.
    """

    title: str
    record: str
    reference: str
    colour: str
    symbol: str  # of plotly; the picture's follows from it
    terms: Mapping[str, str] = field(default_factory=dict)


SETTINGS = (
    Setting(
        "streets, modality dropout",
        "street_ablation",
        "short-dropout",
        "#222222",
        "circle",
        {
            "short-input-0.03": "R_p input, λ .03",
            "short-input-0.1": "R_p input, λ .1",
            "short-input-0.3": "R_p input, λ .3",
            "short-share": "R_p input, share",
            "short-variance": "R_p input, Poincaré",
            "short-inverse": "R_p input, Σ 1/I, λ .3",
            "short-consistency": "R consistency, Eq. 4, λ .1",
            "short-unimodal": "R_p own logits, Σ 1/I",
            "short-gat": "Gat et al. as coded",
            "short-kl-0.005": "R_f kl, λ .005",
            "short-kl-0.02": "R_f kl, λ .02",
            "short-kl-0.1": "R_f kl, λ .1",
            "short-kl-0.5": "R_f kl, λ .5",
            "short-ce": "R_f ce, Σ 1/I",
            "short-decoder": "R_f decoder, λ .02",
            "short-paper": "R_p input + R_f kl",
        },
    ),
    Setting(
        "streets, dropout, one stem",
        "street_ablation",
        "short-shared-dropout",
        "#8C510A",
        "circle",
        {
            "short-shared-paper": "R_p own logits + R_f kl, Σ 1/I",
        },
    ),
    Setting(
        "streets, no dropout",
        "street_ablation",
        "short-full",
        "#7B3294",
        "circle",
        {
            "short-full+input": "R_p input, λ .1",
            "short-full+kl": "R_f kl, λ .02",
            "short-full+paper": "R_p input + R_f kl",
        },
    ),
    Setting(
        "streets, all subsets",
        "street_ablation",
        "short-all-subsets",
        "#9A9A9A",
        "circle",
        {
            "short-all+input": "R_p input, λ .1",
        },
    ),
    Setting(
        "streets, dropout, pvt_v2_b0",
        "street_pvt",
        "pvt-dropout",
        "#C2A5CF",
        "triangle-up",
        {
            "pvt-input-0.1": "R_p input, λ .1",
        },
    ),
    Setting(
        "streets, dropout, pretrained",
        "street_pretrained",
        "street-pretrained-dropout",
        "#01665E",
        "square",
        {
            "street-pretrained-input-0.1": "R_p input, λ .1",
        },
    ),
    Setting(
        "streets, no dropout, pretrained",
        "street_pretrained",
        "street-pretrained-full",
        "#5AB4AC",
        "square",
        {
            "street-pretrained-full+input": "R_p input, λ .1",
            "street-pretrained-full+paper": "R_p input + R_f kl",
        },
    ),
    Setting(
        "NYU frames, dropout, pretrained",
        "nyu_pretrained",
        "nyu-pretrained-dropout",
        "#B2182B",
        "diamond",
        {
            "nyu-pretrained-input-0.03": "R_p input, λ .03",
            "nyu-pretrained-input-0.1": "R_p input, λ .1",
            "nyu-pretrained-kl-0.02": "R_f kl, λ .02",
            "nyu-pretrained-paper": "R_p input + R_f kl",
        },
    ),
)


@dataclass(frozen=True)
class Effect:
    """What a term adds to the training it is added to; ``gaps``: mean Fisher gap without and with it."""

    setting: Setting
    group: str
    term: str
    change: Mapping[str, Estimate]
    gaps: tuple[float, float]
    capped: int

    @property
    def clear(self) -> bool:
        """Whether the full set or the mean over subsets differs clearly."""
        return self.change["full"].clear or self.change["mean"].clear


def effects(settings: Sequence[Setting] = SETTINGS) -> list[Effect]:
    """All of ``settings`` that are recorded, in their order; see ``unrecorded`` for the rest."""
    found = []
    for setting in settings:
        groups = _groups(setting)
        for name, term in setting.terms.items():
            if name in groups and setting.reference in groups:
                change = {key: paired(groups, name, setting.reference, key) for key in KEYS}
                gaps = tuple(_mean_gap(groups, g, name) for g in (setting.reference, name))
                capped = sum(guards.get("capped", 0) for guards in groups[name].get("guards", []))
                found.append(Effect(setting, name, term, change, gaps, capped))
    return found


def _mean_gap(groups: Mapping[str, Mapping], name: str, other: str) -> float:
    """Mean Fisher gap of a group over the seeds that it shares with another."""
    gaps = zip(groups[name]["seeds"], per_seed(groups[name], "gap"))
    return float(np.mean([gap for seed, gap in gaps if seed in groups[other]["seeds"]]))


def unrecorded(settings: Sequence[Setting] = SETTINGS) -> list[str]:
    """Groups that ``settings`` names and no record has."""
    return [
        f"{setting.record}: {name}"
        for setting in settings
        for name in (setting.reference, *setting.terms)
        if name not in _groups(setting)
    ]


def _groups(setting: Setting) -> dict:
    return record_groups(setting.record) if (RESULTS / f"{setting.record}.json").exists() else {}


def counted(found: Iterable[Effect], key: str) -> dict[str, int]:
    """How many effects on ``key`` are a clear gain, a clear loss, and smaller than their spread."""
    words = [verdict(effect.change[key]) for effect in found]
    return {word: words.count(word) for word in ("clear gain", "clear loss", "smaller than its spread")}


def effect_table(found: Sequence[Effect]) -> str:
    """Plain text: a block a setting, a line a term."""
    head = f"{'points of mIoU':32s}" + "".join(f"{name:>20s}" for name in KEYS.values())
    lines = [head + f"{'Fisher gap':>14s}"]
    for effect in found:
        title = f"{effect.setting.title} (n = {effect.change['full'].n})"
        if title not in lines:
            lines += ["", title]
        cells = [
            f"{d.mean:+6.1f} ± {(d.high - d.low) / 2:4.1f} {'*' if d.clear else ' '}"
            for d in effect.change.values()
        ]
        gap = "{:.1f} → {:.1f}".format(*effect.gaps)
        lines.append(f"   {effect.term:29s}" + "".join(f"{cell:>20s}" for cell in cells) + f"{gap:>14s}")
    return "\n".join([*lines, "", "± half a 95 % interval; * it excludes zero"])


def plane(found: Sequence[Effect]) -> go.Figure:
    """Every term as a dot: what it adds with all sensors, and in the mean over subsets or, by a button, on
    the worst subset. Full dots are clear of zero in one or both; a click on the legend hides a setting.
    """
    figure, shown = go.Figure(), [s for s in SETTINGS if any(e.setting is s for e in found)]
    for setting in shown:
        mine = [effect for effect in found if effect.setting is setting]
        hover = [
            "<br>".join(
                [f"<b>{e.term}</b>", f"{setting.title}, {e.change['full'].n} seeds"]
                + [f"{KEYS[key]}: {d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]" for key, d in e.change.items()]
                + ["Fisher gap {:.1f} → {:.1f}".format(*e.gaps)]
                + [f"held at the cap {e.capped} times"] * (e.capped > 0)
            )
            for e in mine
        ]
        symbols = [setting.symbol + "-open" * (not e.clear) for e in mine]
        figure.add_scatter(
            x=[round(e.change["full"].mean, 2) for e in mine],
            y=[round(e.change["mean"].mean, 2) for e in mine],
            mode="markers",
            name=setting.title,
            hovertext=hover,
            hoverinfo="text",
            marker={"color": setting.colour, "size": 12, "symbol": symbols, "line": {"width": 2}},
        )
    buttons = [
        {
            "label": KEYS[key],
            "method": "update",
            "args": [
                {"y": [[round(e.change[key].mean, 2) for e in found if e.setting is s] for s in shown]},
                {"yaxis.title.text": f"{KEYS[key]} (points)"},
            ],
        }
        for key in ("mean", "min")
    ]
    zero = {"zeroline": True, "zerolinecolor": INK, "zerolinewidth": 1, "showgrid": True}
    return figure.update_layout(
        title={"text": "What a term adds to the same training without it", "y": 0.97},
        height=560,
        margin={"l": 60, "r": 20, "t": 95, "b": 60},
        xaxis=zero | {"title": {"text": "all sensors present (points of mIoU)"}},
        yaxis=zero | {"title": {"text": "mean over subsets (points)"}},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
                "buttons": buttons,
                "showactive": True,
            }
        ],
    )


def plane_picture(found: Sequence[Effect]) -> Figure:
    """The same as a picture, with the intervals."""
    fig, axis = plt.subplots(figsize=(WIDTH, 4.6))
    axis.axhline(0, color=INK, linewidth=1)
    axis.axvline(0, color=INK, linewidth=1)
    for setting in SETTINGS:
        mine = [effect for effect in found if effect.setting is setting]
        for effect in mine:
            x, y = effect.change["full"], effect.change["mean"]
            axis.plot([x.low, x.high], [y.mean] * 2, color=setting.colour, linewidth=0.8, alpha=0.45)
            axis.plot([x.mean] * 2, [y.low, y.high], color=setting.colour, linewidth=0.8, alpha=0.45)
            face = setting.colour if effect.clear else "white"
            axis.plot(x.mean, y.mean, MARKERS[setting.symbol], color=setting.colour, mfc=face, ms=7)
        if mine:
            marker = MARKERS[setting.symbol]
            axis.plot([], [], marker, color=setting.colour, label=setting.title)
    axis.set(xlabel="all sensors present (points of mIoU)", ylabel="mean over subsets (points)")
    low = min(min(e.change[k].mean for k in ("full", "mean")) for e in found) - 1.5
    high = max(max(e.change[k].mean for k in ("full", "mean")) for e in found) + 1.5
    axis.set(xlim=(low, high), ylim=(low, high))
    axis.set_title("What a term adds to the same training without it")
    axis.annotate("both better", (0.99, 0.97), xycoords="axes fraction", ha="right", va="top", color=UP)
    axis.annotate("both worse", (0.01, 0.03), xycoords="axes fraction", color=DOWN)
    axis.grid(True, color=PALE, linewidth=0.5)
    fig.legend(loc="outside lower center", ncols=3, fontsize=8.5)
    return fig


# ---- readings and forms ----


def descend(reading: str, steps: int = 120) -> list[float]:
    """‖q_i − q_m‖² of features that nearly agree, while the sum of their inverse information is minimised."""
    start = 0.1 * torch.randn(2 * 2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    feature = start.clone().requires_grad_()
    optimizer, distance = torch.optim.Adam([feature], 0.02), []
    for _ in range(steps):
        q = feature.unflatten(0, (2, 2)).softmax(2)
        distance.append(float((q - q.mean(0)).square().sum(2).mean().detach()))
        information = feature_information([feature], 2, reading=reading)[0]
        optimizer.zero_grad()
        combine(information.mean(1), "inverse").backward()
        optimizer.step()
    return distance


def two_dead_ends(p: np.ndarray, inverse: np.ndarray, apart: Mapping[str, Sequence[float]]) -> Figure:
    """Left: 1/I of a sensor's own logits over the probability of the true class. Right: how far features are
    from their mean while Σ 1/I is minimised (``apart``: reading -> distances).
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2))
    left.plot(p, inverse, color=INK)
    best = int(np.argmin(inverse))
    left.plot(p[best], inverse[best], "o", color=DOWN)
    place = {"textcoords": "offset points", "color": DOWN}
    left.annotate(f"least at p = {p[best]:.3f}", (p[best], inverse[best]), (-26, 34), **place)
    left.set(yscale="log", xlabel="probability of the true class", ylabel="1 / I")
    left.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    left.minorticks_off()
    left.set_title("Own logits: confidence is punished")
    words = {"ce": ("cross-entropy, as printed", DOWN, 0.5), "kl": ("KL divergence", UP, 1.8)}
    for reading, distances in apart.items():
        text, colour, where = words[reading]
        right.plot(distances, color=colour)
        right.annotate(text, (48, distances[48] * where), color=colour, va="center")
    right.set(yscale="log", xlabel="steps down Σ 1/I", ylabel="‖q − q mean‖²")
    right.set_title("Features: driven apart, or not")
    return fig


def forms_figure(forms: Mapping[str, str] | None = None) -> Figure:
    """Each form over the share of the first of two sensors, and over a common factor of both."""
    forms = forms or {"inverse": DOWN, "balance": UP, "share": "#009E73"}
    share, scale = np.linspace(0.03, 0.97, 200), np.geomspace(0.25, 8, 100)
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2), sharey=True)
    loss = lambda form, *information: float(combine(torch.tensor(information), form))
    for form, colour in forms.items():
        left.plot(share, [loss(form, 2 * s, 2 - 2 * s) for s in share], color=colour)
        right.plot(scale, [loss(form, 0.4 * c, 1.6 * c) for c in scale], color=colour)
    labels = {
        "inverse": ("Σ 1/I, as printed", 0.6, 6.2),
        "balance": ("balance", 0.25, 0.75),
        "share": ("share", 0.25, -0.5),
    }
    for form, (text, x, y) in labels.items():
        right.annotate(text, (x, y), color=forms[form])
    left.set(xlabel="share of sensor 1 (total fixed)", ylabel="loss", ylim=(-0.7, 8))
    left.set_title("All three are least in balance …")
    right.set(xlabel="common factor of both (shares fixed)", xscale="log")
    right.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["¼", "½", "1", "2", "4", "8"])
    right.minorticks_off()
    right.set_title("… but one also pays for sensitivity")
    return fig


def gaps_and_losses(runs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """The Fisher gap and the cross-entropy over the steps of a training, a line a run."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.1))
    colours = (INK, UP, "#009E73", "#CC79A7", "#E69F00")
    for (name, columns), colour in zip(runs.items(), colours):
        for axis, values in zip(axes, columns):
            axis.plot(values, color=colour, label=name if axis is axes[0] else None)
    axes[0].set(yscale="log", xlabel="step", ylabel="Fisher gap", title="Does the gap close?")
    axes[0].set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes[0].minorticks_off()
    axes[1].set(xlabel="step", ylabel="cross-entropy (nats)", title="What does the loss pay?")
    fig.legend(loc="outside lower center", ncols=4)
    return fig
