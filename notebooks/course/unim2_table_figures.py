"""Figures and tables of lesson 12 on the tables of UniM2, and on the best of many tries; and the lists of
what both papers say in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from IPython.display import HTML
from matplotlib import pyplot as plt

from mmlib.figures import INK, PALE, WIDTH

from .charts import BLUE, OFFSET, show
from .published import Paper, judge, tally
from .table_figures import BAD, DARK_GREY

MARKS = {"follows": "✓", "off": "≠", "text wrong": "⇄", "not decidable": "?"}


def _html(caption: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]], numbers=()) -> HTML:
    """A table: the first cell of a row is its head, columns ``numbers`` stand on the right. Where it has less
    room than it needs, it is scrolled, and its caption stays in view.
    """
    lines = []
    for first, *cells in rows:
        sides = ["right" if k in numbers else "left" for k in range(1, len(cells) + 1)]
        body = "".join(
            f'<td style="text-align:{side}">{escape(cell)}</td>' for side, cell in zip(sides, cells)
        )
        lines.append(f'<tr><th scope="row" style="text-align:left">{escape(first)}</th>{body}</tr>')
    head = "".join(f'<th scope="col" style="text-align:left">{name}</th>' for name in columns)
    return HTML(
        f'<table style="min-width:50em"><caption style="text-align:left">{caption}</caption>'
        f"<thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def claims_table(paper: Paper) -> HTML:
    """Numbers quoted in the text that do not follow from the tables, or that no cell decides."""
    rows, right = [], 0
    for claim in paper.claims:
        verdict = judge(paper, claim)
        if verdict.kind == "follows":
            right += 1
            continue
        places = max(2, -claim.printed.as_tuple().exponent)
        found = "–" if verdict.recomputed is None else f"{verdict.recomputed.middle:.{places}f}"
        mark = f"{MARKS[verdict.kind]} {verdict}"
        rows.append((claim.says, claim.where, str(claim.printed), found, mark, claim.note))
    columns = ("the number is called", "where", "printed", "recomputed", "verdict", "note")
    caption = f"{len(paper.claims)} numbers are quoted in the text; {right} follow from the tables"
    return _html(f"{caption} and are not listed.", columns, rows, numbers=(2, 3))


def statements_table(paper: Paper) -> HTML:
    """Sentences that compare, case by case: in how many cases each holds, is open, or fails."""
    rows = []
    for statement in paper.statements:
        found = {kind: len(cases) for kind, cases in tally(paper, statement).items()}
        total = sum(found.values())
        numbers = [str(count or "·") for count in found.values()] if total else ["–"] * 3
        word = "not decidable" if not total else "✓ all" if found["holds"] == total else "≠ not all"
        rows.append((statement.says, statement.where, word, *numbers, statement.note))
    columns = ("the text says", "where", "verdict", "holds", "open", "fails", "note")
    return _html("Sentences without numbers, case by case", columns, rows, numbers=(3, 4, 5))


def show_gains_over(gains: Mapping[str, Mapping[str, tuple[float | None, float]]]) -> None:
    """Setting -> rival -> gain over it on RGB alone (None: it has no such row) and with sensors fused."""
    fig, axes = plt.subplots(2, 2, figsize=(WIDTH, 4.2), sharex=True)
    words = []
    for axis, (setting, rivals) in zip(axes.flat, gains.items()):
        least = min(alone for alone, _ in rivals.values() if alone is not None)
        place = OFFSET | {"ha": "center", "fontsize": 9}
        for y, (alone, fused) in enumerate(rivals.values()):
            if alone is not None:
                axis.plot([alone, fused], [y, y], color=PALE, linewidth=1.6, zorder=1)
                best = alone == least
                axis.plot(alone, y, "o", color=BAD if best else DARK_GREY, markersize=9, zorder=2)
                style = {"color": BAD, "fontweight": "bold"} if best else {"color": INK}
                axis.annotate(f"+{alone}", (alone, y), (10 if alone < 1 else 0, 8), **place, **style)
            ring = {"markerfacecolor": "white", "markeredgecolor": DARK_GREY, "markersize": 8}
            axis.plot(fused, y, "o", zorder=1.5, **ring)
            if alone is None:
                axis.annotate(f"+{fused}", (fused, y), (0, 8), **place)
        axis.set_yticks(range(len(rivals)), [f"over {name}" for name in rivals])
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.spines["left"].set_visible(False)
        axis.set(xlim=(-1.4, 18), ylim=(len(rivals) - 0.5, -0.75))
        axis.set_title(setting, fontweight="normal", size=10)
        axis.tick_params(axis="y", length=0)
        axis.grid(False)
        words.append(f"{setting} {least}")
    for axis in axes[1]:
        axis.set_xlabel("gain of UniM2 (points of mIoU)")
    title = "Every gain is positive; how large it is depends on the baseline"
    fig.suptitle(title, x=0.01, ha="left")
    handles = [plt.Line2D([], [], linestyle="", marker="o", color=colour) for colour in (BAD, DARK_GREY)]
    handles.append(plt.Line2D([], [], linestyle="", marker="o", **ring))
    labels = ["over the best RGB-only row", "over RGB alone", "over sensors fused"]
    fig.legend(handles, labels, loc="outside lower center", ncols=3)
    show(
        fig,
        alt="Gains of UniM2 in points of mIoU over each rival, on RGB alone and with the second sensor "
        f"fused. All are positive. Over the best RGB-only row: {', '.join(words)}.",
    )


def show_classes(gain: Mapping[str, float], naive: Mapping[str, float], marked: str) -> None:
    """Change of IoU a class, UniM2's as bars and that of naive fusion as diamonds."""
    order = sorted(gain, key=gain.get)
    fig, axis = plt.subplots(figsize=(WIDTH, 4.6))
    for y, name in enumerate(order):
        colour = BAD if name == marked else BLUE if gain[name] > 0 else "#5A5A5A"
        axis.barh(y, gain[name], 0.66, color=colour)
        axis.plot(naive[name], y, "D", color="white", markeredgecolor=INK, markersize=5.5, zorder=3)
        near = naive[name] if abs(naive[name] - gain[name]) < 8 else -99
        place = OFFSET | {"va": "center", "fontsize": 9, "fontweight": "bold"}
        axis.annotate(
            f"{gain[name]:+.1f}",
            (max(gain[name], near, 0), y),
            (8, 0),
            color=colour,
            **place,
        )
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set_yticks(range(len(order)), order)
    axis.tick_params(axis="y", length=0)
    axis.grid(False)
    axis.set(xlabel="change of IoU against RGB-only STEGO (points), NYU-Depth-v2, ViT-B", xlim=(-40, 66))
    axis.set_title("One class, Sofa, makes two thirds of the gain in mIoU")
    diamond = plt.Line2D([], [], linestyle="", marker="D", color="white", markeredgecolor=INK)
    labels = ["UniM2 (orange: Sofa, grey: losses)", "STEGO with depth"]
    axis.legend([plt.Rectangle((0, 0), 1, 1, color=BLUE), diamond], labels, loc="lower right")
    listed = ", ".join(f"{name} {gain[name]:+.1f}" for name in reversed(order))
    show(fig, alt=f"Change of IoU by class, UniM2 against RGB-only STEGO: {listed}.")


def show_best_of(counts: Sequence[int], expected: Sequence[float], bound: Sequence[float]) -> None:
    """Noisy looks at one model and their running maximum; the expected maximum of n looks and its bound."""
    draws = np.random.default_rng(0).standard_normal((2000, 1000))
    simulated = [draws[:, :n].max(1).mean() for n in counts]
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.5), width_ratios=(1.25, 1))
    series = draws[136, :200]  # one of 2000, whose best is near the mean of all bests
    left.plot(range(1, 201), series, ".", color="#B0B0B0", markersize=4)
    left.step(range(1, 201), np.maximum.accumulate(series), color=BAD, where="post")
    left.axhline(0, color=BLUE, linewidth=1.6)
    place = OFFSET | {"fontsize": 9, "ha": "right"}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.9}
    left.annotate("what the model is worth", (200, 0), (-2, 6), color=BLUE, bbox=box, **place)
    left.annotate("what is kept", (200, series.max()), (-2, 5), color=BAD, **place)
    left.set(xlabel="look", ylabel="score − true score (σ)", ylim=(-3.4, 3.6))
    left.set_title("One model that never improves", fontweight="normal", size=10)
    right.plot(counts, bound, "--", color=INK, linewidth=1.4)
    right.plot(counts, expected, color=BAD)
    right.plot(counts, simulated, "o", color="white", markeredgecolor=BAD, markersize=6)
    right.set_xscale("log")
    right.set_xticks([2, 10, 50, 200, 1000], ["2", "10", "50", "200", "1000"])
    right.minorticks_off()
    right.annotate("σ √(2 ln n)", (50, bound[list(counts).index(50)]), (-4, 6), color=INK, **place)
    place |= {"ha": "left"}
    top = expected[list(counts).index(200)]
    right.annotate("expected maximum\n(dots: simulated)", (200, top), (-2, -34), color=BAD, **place)
    right.set(xlabel="number of looks n", ylabel="best of n (σ)", ylim=(0, 4.1))
    right.set_title("Its best score grows with the looks", fontweight="normal", size=10)
    fig.suptitle(f"The best of 200 looks at one model lies {top:.2f} σ too high", x=0.01, ha="left")
    listed = ", ".join(f"{n}: {e:.2f}" for n, e in zip(counts, expected))
    show(
        fig,
        alt="Left: 200 noisy scores of one model around its true score and their running maximum, which "
        "only rises. Right: expected maximum of n looks in units of sigma, "
        f"{listed}; the bound, the root of 2 ln n, runs above it.",
    )
