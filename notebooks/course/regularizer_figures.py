"""Lesson 05: every recorded training with a term of the regulariser against the same training without it.

``SETTINGS`` names them; an effect is the difference of two groups of a record, paired by seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import plotly.graph_objects as go
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mmlib.evaluation.statistics import Estimate
from mmlib.figures import INK, PALE, WIDTH

from .hover import menu
from .record_figures import DOWN, RESULTS, SERIES, UP, paired, per_seed, record_groups, text_table, verdict
from .subset_figures import KEYS, STAR, difference_text

MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^"}


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
        SERIES[0],
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
        SERIES[4],
        "circle",
        {
            "short-shared-paper": "R_p own logits + R_f kl, Σ 1/I",
        },
    ),
    Setting(
        "streets, no dropout",
        "street_ablation",
        "short-full",
        SERIES[2],
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
        SERIES[1],
        "circle",
        {
            "short-all+input": "R_p input, λ .1",
        },
    ),
    Setting(
        "streets, dropout, pvt_v2_b0",
        "street_pvt",
        "pvt-dropout",
        SERIES[3],
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
    """Those of ``settings`` of which two seeds or more are recorded with and without the term, in their
    order; see ``unrecorded`` for the rest.
    """
    found = []
    for setting in settings:
        groups = _groups(setting)
        for name, term in setting.terms.items():
            if len(_shared_seeds(groups, name, setting.reference)) > 1:
                change = {key: paired(groups, name, setting.reference, key) for key in KEYS}
                gaps = tuple(_mean_gap(groups, g, name) for g in (setting.reference, name))
                capped = sum(guards.get("capped", 0) for guards in groups[name].get("guards", []))
                found.append(Effect(setting, name, term, change, gaps, capped))
    return found


def _shared_seeds(groups: Mapping[str, Mapping], name: str, other: str) -> set[int]:
    return set.intersection(*(set(groups[g]["seeds"]) if g in groups else set() for g in (name, other)))


def _mean_gap(groups: Mapping[str, Mapping], name: str, other: str) -> float:
    """Mean Fisher gap of a group over the seeds that it shares with another."""
    shared, gaps = _shared_seeds(groups, name, other), per_seed(groups[name], "gap")
    return float(np.mean([gap for seed, gap in zip(groups[name]["seeds"], gaps) if seed in shared]))


def unrecorded(found: Sequence[Effect], settings: Sequence[Setting] = SETTINGS) -> list[str]:
    """The terms of ``settings`` that are not among ``found``."""
    names = {effect.group for effect in found}
    return [f"{term} ({s.title})" for s in settings for name, term in s.terms.items() if name not in names]


def _groups(setting: Setting) -> dict:
    return record_groups(setting.record) if (RESULTS / f"{setting.record}.json").exists() else {}


def counted(found: Iterable[Effect], key: str) -> dict[str, int]:
    """How many effects on ``key`` are a clear gain, a clear loss, and smaller than their spread."""
    words = [verdict(effect.change[key]) for effect in found]
    return {word: words.count(word) for word in ("clear gain", "clear loss", "smaller than its spread")}


def effect_table(found: Sequence[Effect]) -> str:
    """Plain text: a block a setting, a line a term."""
    corner = f"{'points of mIoU':30s} n "
    lines, title = [text_table(corner, KEYS.values(), {}, 12) + "     gap"], ""
    for effect in found:
        if title != effect.setting.title:
            title = effect.setting.title
            lines += ["", title]
        cells = [f"{effect.term:30s}{effect.change['full'].n:2d} "]
        cells += [difference_text(d, narrow=True) for d in effect.change.values()]
        lines.append("".join(cells) + "{:5.1f}→{:.1f}".format(*effect.gaps))
    missing = [f"fewer than two seeds recorded: {term}" for term in unrecorded(found)]
    return "\n".join([*lines, "", STAR, *missing])


def count_table(found: Sequence[Effect]) -> str:
    """Plain text: how many of the terms gain clearly, lose clearly, and neither."""
    counts = {words: counted(found, key) for key, words in KEYS.items()}
    rows = {words: [str(number) for number in count.values()] for words, count in counts.items()}
    return text_table(f"of {len(found)} terms", counts["all sensors"], rows, wide=16)


def plane_words(found: Sequence[Effect]) -> str:
    """The alt text of ``plane``."""
    words = [
        f"{place} {c['clear gain']} are clear gains and {c['clear loss']} clear losses"
        for place, c in (
            ("with all sensors", counted(found, "full")),
            ("in the mean", counted(found, "mean")),
        )
    ]
    return f"{len(found)} terms, each against the same training without it: {', '.join(words)}."


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
        place = {"mode": "markers", "name": setting.title, "legendgroup": setting.title}
        marker = {"color": setting.colour, "size": 12, "symbol": symbols, "line": {"width": 2}}
        figure.add_scatter(
            x=[round(e.change["full"].mean, 2) for e in mine],
            y=[round(e.change["mean"].mean, 2) for e in mine],
            hovertext=hover,
            hoverinfo="text",
            marker=marker,
            showlegend=False,
            **place,
        )
        # The legend's own dot is full, whichever dot comes first.
        figure.add_scatter(x=[None], y=[None], marker=marker | {"symbol": setting.symbol}, **place)
    buttons = [
        {
            "label": KEYS[key],
            "method": "update",
            "args": [
                {"y": [[round(e.change[key].mean, 2) for e in found if e.setting is s] for s in shown]},
                {"yaxis.title.text": f"{KEYS[key]} (points)"},
                list(range(0, 2 * len(shown), 2)),
            ],
        }
        for key in ("mean", "min")
    ]
    zero = {
        "zeroline": True,
        "zerolinecolor": INK,
        "zerolinewidth": 1,
        "showgrid": True,
        "rangemode": "tozero",
    }
    return figure.update_layout(
        title={"text": "What each term adds to its training", "y": 0.97},
        height=620,
        hoverlabel={"align": "left"},
        margin={"l": 60, "r": 20, "t": 95, "b": 60},
        xaxis=zero | {"title": {"text": "all sensors present (points of mIoU)"}},
        yaxis=zero | {"title": {"text": "mean over subsets (points)"}},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        updatemenus=[menu(buttons, 1.02, yanchor="bottom", type="buttons", direction="right")],
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
    high = max(max(e.change[k].mean for k in ("full", "mean")) for e in found) + 3
    axis.set(xlim=(low, high), ylim=(low, high))
    axis.set_title("What a term adds to the same training without it")
    axis.annotate("both better", (0.99, 0.97), xycoords="axes fraction", ha="right", va="top", color=UP)
    axis.annotate("both worse", (0.01, 0.03), xycoords="axes fraction", color=DOWN)
    axis.grid(True, color=PALE, linewidth=0.5)
    fig.legend(loc="outside lower center", ncols=3, fontsize=8.5)
    return fig
