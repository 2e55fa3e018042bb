"""Figures of lesson 12 on the functional-entropy paper: its means, gains, subsets and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mmlib.figures import INK, PALE, WIDTH
from mmlib.modalities import SENSORS
from mmlib.segmentation.network import Segmenter
from mmlib.segmentation.regularizer import Regularizer, RegularizerConfig

from .charts import BLUE, OFFSET, ORANGE, SKY, modality_colour, show
from .drawings import inclusions
from .published import Table, Verdict, gains, lowered, summary

GOOD, BAD, DARK_GREY = "#DCE9F2", ORANGE, "#6E6E6E"


def show_means(verdicts: Mapping[str, Verdict]) -> None:
    """A strip a table, a square a row that has a mean: pale where it follows from the row's cells."""
    tables: dict[str, list] = {}
    for name, verdict in verdicts.items():
        table, row = name.split(" ", 1)
        if row.startswith("Acc "):
            table, row = f"{table} Acc", row.removeprefix("Acc ")
        tables.setdefault(table, []).append((row, verdict))
    fig, axis = plt.subplots(figsize=(WIDTH, 4.0))
    for y, rows in enumerate(tables.values()):
        for x, (row, verdict) in enumerate(rows):
            wrong = verdict.kind != "follows"
            axis.add_patch(plt.Rectangle((x, y), 0.94, 0.88, color=BAD if wrong else GOOD))
            words = row.replace(" + ", "\n+ ").replace("L_sup", "sup").replace("R_p\n+ R_f", "R_p + R_f")
            words += f"\n{verdict.off:+.2f}" if wrong else ""
            style = {"color": "black", "fontweight": "bold"} if wrong else {"color": INK}
            axis.text(x + 0.47, y + 0.44, words, ha="center", va="center", fontsize=8, **style)
    axis.set(xlim=(0, max(map(len, tables.values()))), ylim=(len(tables), 0), xticks=[])
    axis.set_yticks(np.arange(len(tables)) + 0.44, list(tables))
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    off = [f"{name} {verdict.off:+.2f}" for name, verdict in verdicts.items() if verdict.kind != "follows"]
    follow = len(verdicts) - len(off)
    axis.set_title(f"{follow} of {len(verdicts)} printed means follow from their rows")
    show(
        fig,
        alt=f"A strip for each table with one square for each row that has a mean. {follow} squares are "
        f"pale: the mean follows. In orange, with printed minus recomputed: {', '.join(off)}.",
    )


def show_gains(entries: Sequence[tuple[str, float, float]]) -> None:
    """Gains as (what, printed, recomputed): an outlined bar and a filled one."""
    fig, axis = plt.subplots(figsize=(WIDTH, 3.6))
    for y, (_, printed, recomputed) in enumerate(entries):
        axis.barh(y - 0.19, printed, 0.34, facecolor="white", edgecolor=INK, linewidth=1.1)
        axis.barh(y + 0.19, recomputed, 0.34, color=BLUE)
        for dy, number, colour in ((-0.19, printed, INK), (0.19, recomputed, BLUE)):
            place = OFFSET | {"va": "center", "fontsize": 9}
            axis.annotate(f"{number:+.2f}", (max(number, 0), y + dy), (4, 0), color=colour, **place)
    axis.set_yticks(range(len(entries)), [what for what, *_ in entries])
    axis.set(ylim=(len(entries) - 0.45, -0.55), xlabel="gain of Ours (points of mIoU)", xlim=(-1, 16))
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.grid(False)
    axis.tick_params(axis="y", length=0)
    legend = [plt.Rectangle((0, 0), 1, 1, facecolor="white", edgecolor=INK)]
    legend.append(plt.Rectangle((0, 0), 1, 1, color=BLUE))
    axis.legend(legend, ["printed", "recomputed from the cells"], loc="lower right")
    axis.set_title("The same five gains, printed and recomputed")
    listed = "; ".join(f"{what.replace(chr(10), ' ')} {a:+.2f} and {b:+.2f}" for what, a, b in entries)
    show(fig, alt=f"Printed and recomputed gains in points of mIoU: {listed}.")


def show_steps(steps: Sequence[tuple[str, float]], captions: Sequence[str]) -> None:
    """A staircase of mean mIoU from setting to setting."""
    rises = np.diff([height for _, height in steps])
    fig, axis = plt.subplots(figsize=(WIDTH, 3.4))
    axis.bar(0, steps[0][1], 0.6, color="#8A8A8A")
    axis.annotate(f"{steps[0][1]:.2f}", (0, steps[0][1]), (0, 4), ha="center", **OFFSET)
    for x, (rise, caption, colour) in enumerate(zip(rises, captions, (BAD, BLUE, SKY)), 1):
        base = steps[x - 1][1]
        axis.bar(x, rise, 0.6, bottom=base, color=colour)
        axis.plot([x - 1.3, x + 0.3], [base, base], color=INK, linewidth=0.8)
        place = OFFSET | {"ha": "center"}
        axis.annotate(f"{caption}\n{rise:+.2f}", (x, base + rise), (0, 4), **place)
    axis.set_xticks(range(len(steps)), [name for name, _ in steps])
    axis.set(ylim=(40, 53), ylabel="mean mIoU (%), MUSES\n(axis starts at 40)")
    axis.set_title("Most of the way is made before either term is on")
    listed = ", ".join(f"{caption} {rise:+.2f}" for caption, rise in zip(captions, rises))
    words = f"Steps of mean mIoU on MUSES from {steps[0][1]:.2f} to {steps[-1][1]:.2f}: {listed}."
    show(fig, alt=words)


def show_won_and_lost(tables: Mapping[str, tuple[Table, str]]) -> None:
    """Gain of Ours over the best baseline in each subset; those with one sensor in its colour."""
    fig, axes = plt.subplots(2, 1, figsize=(WIDTH, 4.8))
    words = []
    for axis, (name, (table, key)) in zip(axes, tables.items()):
        gain, sensor = gains(table, "Ours"), SENSORS[table.sensors[key]]
        colours = [sensor.colour if key in subset else "#9A9A9A" for subset in gain]
        axis.bar(range(len(gain)), [float(g) for g in gain.values()], color=colours)
        axis.set_xticks(range(len(gain)), list(gain))
        axis.axhline(0, color=INK, linewidth=0.8)
        axis.set_ylabel("points of mIoU")
        title = f"{name}: gain over the best baseline; grey: subsets without {key} ({sensor.name})"
        axis.set_title(title, size=10, weight="normal")
        won = [subset for subset, g in gain.items() if g > 0]
        words.append(f"{name}: won {', '.join(won)}; largest loss {min(gain.values())}")
    fig.suptitle("Won without the sensor the others lean on, lost with it", x=0.01, ha="left")
    show(
        fig,
        alt=f"Bars of the gain of Ours over the best baseline in each subset. {'. '.join(words)}.",
    )


def show_lattices(table: Table, methods: Sequence[str]) -> None:
    """The subsets in rows by size, and their mIoU; edges that lower it are orange."""
    fig, axes = plt.subplots(len(methods), 1, figsize=(WIDTH, 3.6 * len(methods)))
    words = []
    for axis, method in zip(axes, methods):
        score, place = table.by_subset(method), {}
        for size in range(1, 5):
            members = [s for s in score if len(s) == size]
            for i, subset in enumerate(members):
                place[subset] = ((i - (len(members) - 1) / 2) * (1.12 if size == 2 else 1.5), size)
        falling, count = lowered(table, method)
        for small, large in inclusions(list(score)):
            falls = (small, large) in falling
            (x0, y0), (x1, y1) = place[small], place[large]
            style = {"color": BAD, "linewidth": 1.8} if falls else {"color": "#C4C4C4", "linewidth": 1}
            axis.plot([x0, x1], [y0, y1], zorder=1 + falls, **style)
        for subset, (x, y) in place.items():
            edge = modality_colour(table.sensors[subset]) if len(subset) == 1 else INK
            box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": edge}
            middle = {"ha": "center", "va": "center", "fontsize": 9, "zorder": 3}
            axis.text(x, y, f"{subset}\n{score[subset]}", bbox=box, **middle)
        axis.set(xlim=(-3.3, 3.3), ylim=(0.6, 4.4), xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.set_title(f"{method}: lower in {len(falling)} of {count}", fontweight="normal")
        words.append(f"for {method} {len(falling)} of {count} edges go down")
    fig.suptitle("Adding a sensor should not hurt (orange: it does); mIoU in %", x=0.01, ha="left")
    show(fig, alt=f"Lattices of the fifteen subsets of four sensors with their mIoU: {', '.join(words)}.")


def show_expected(curves: Mapping[str, tuple[Sequence[float], Mapping[str, Sequence[float]]]]) -> None:
    """Expected mIoU of two methods a table against the chance that a sensor fails."""
    fig, axes = plt.subplots(1, len(curves), figsize=(WIDTH, 3.3), sharey=True)
    words = []
    for axis, (name, (chances, lines)) in zip(axes, curves.items()):
        rival = next(method for method in lines if method != "Ours")
        for method, colour in ((rival, DARK_GREY), ("Ours", BLUE)):
            axis.plot(chances, lines[method], color=colour)
            place = OFFSET | {"fontsize": 9, "color": colour}
            place |= {"ha": "right"} if method == rival else {"ha": "left"}
            middle, offset = len(chances) * 7 // 10, (-2, -14) if method == rival else (0, 8)
            axis.annotate(method, (chances[middle], lines[method][middle]), offset, **place)
        crossing = chances[(np.array(lines["Ours"]) > np.array(lines[rival])).argmax()]
        axis.axvline(0.5, color=PALE, linewidth=1.2, zorder=0)
        axis.axvline(crossing, color=BAD, linewidth=1.2, linestyle=":")
        axis.set(xlabel="chance that a sensor fails", xlim=(0, 0.9))
        axis.set_title(f"{name}: Ours ahead from {crossing:.2f}", fontweight="normal")
        words.append(f"from {crossing:.2f} on in {name}")
    axes[0].set(ylabel="expected mIoU (%)", ylim=(0, 76))
    title = "The usual mean is the bet that sensors fail half of the time (grey line)"
    fig.suptitle(title, x=0.01, ha="left")
    show(
        fig,
        alt="Expected mIoU against the chance that a sensor fails, for Ours and the best baseline. Ours "
        f"is ahead {', '.join(words)}; the plain mean is at 0.5.",
    )


class Multiplications(TorchDispatchMode):
    """Adds up the multiplications of convolutions and matrix products, in every derivative."""

    total = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        count = flop_registry.get(op._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


def step_cost(**options) -> float:
    """Multiplications of a training step of a small network with the regulariser, averaged over steps with
    and without a probe.
    """
    torch.manual_seed(0)
    names = ("rgb", "event", "lidar")
    classes = [str(k) for k in range(19)]
    network = Segmenter({n: SENSORS[n] for n in names}, classes, [(k, k, k) for k in range(19)])
    images = {n: torch.randn(2, SENSORS[n].channels, 64, 96) for n in names}
    label = torch.randint(0, 19, (2, 64, 96))
    config, totals = RegularizerConfig(delay=0, **options), []
    for step in (0, 1):  # a probe is due at step 0; at step 1 unless it is lazy
        with Multiplications() as counted:
            logits = network.modality_logits(images)
            fused = torch.stack(list(logits.values())).mean(0)
            fused = torch.nn.functional.interpolate(fused, label.shape[-2:], mode="bilinear")
            loss = torch.nn.functional.cross_entropy(fused, label)
            term = Regularizer(config)(network, images, label, logits=logits, step=step)
            (loss + term).backward()
        totals.append(counted.total)
    return (totals[0] + (config.probe_every - 1) * totals[1]) / config.probe_every


def show_cost(extra: Mapping[str, float], low: float, high: float) -> None:
    """Multiplications added to a training step (%), beside what a table allows."""
    fig, axis = plt.subplots(figsize=(WIDTH, 2.7))
    place = OFFSET | {"va": "center"}
    for y, cost in enumerate(extra.values()):
        axis.barh(y, cost, 0.55, color=BLUE)
        words = f"+{cost:.0f} %" if cost > 10 else f"+{cost:.1f} %" if cost > 0.05 else "none to count"
        axis.annotate(words, (max(cost, 0.61), y), (6, 0), color=BLUE, **place)
    axis.axvspan(low, high, color=BAD, linewidth=0)
    axis.annotate(f"Table 8: {low:.2f} to {high:.2f} %", (0.62, 0), (120, 0), color=BAD, **place)
    axis.set_xscale("symlog", linthresh=0.5, linscale=0.4)
    axis.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axis.minorticks_off()
    axis.set_yticks(range(len(extra)), list(extra))
    axis.set(xlabel="multiplications added to a training step (%)", xlim=(0, 900), ylim=(2.65, -0.5))
    axis.grid(False)
    axis.set_title("A second derivative at the input does not fit into 0.57 %")
    show(
        fig,
        alt="Multiplications added to a training step, logarithmic: none to count for the closed form, a "
        "few per cent for the lazy probe, about two hundred per cent for Eq. 6 at the input at every "
        f"step. Table 8's {low:.2f} to {high:.2f} per cent is a thin line near the closed form.",
    )


def show_spread(table: Table, methods: Sequence[str]) -> None:
    """The scores of all subsets as ticks, with mean and standard deviation."""
    fig, axis = plt.subplots(figsize=(WIDTH, 2.6))
    words = []
    for y, (method, colour) in enumerate(zip(methods, (INK, BLUE))):
        score, facts = np.array(table.cells(method), float), summary(table, method)
        axis.plot(score, np.full(len(score), y), "|", color=colour, markersize=18, markeredgewidth=1.8)
        axis.errorbar(facts["mean"], y + 0.33, xerr=facts["sd"], fmt="o", color=colour, capsize=4)
        text = f"mean {facts['mean']:.2f}, deviation {facts['sd']:.2f}"
        place = OFFSET | {"va": "center", "fontsize": 9, "color": colour}
        axis.annotate(text, (facts["mean"] + facts["sd"], y + 0.33), (8, 0), **place)
        words.append(f"{method}: {text}")
    axis.set_yticks(range(len(methods)), methods)
    axis.set(ylim=(1.6, -0.5), xlabel="mIoU (%) of the fifteen subsets, DELIVER", xlim=(-2, 92))
    axis.grid(False)
    axis.set_title("MAGIC's scores spread almost three times as far")
    show(fig, alt=f"Fifteen ticks for each method, one a subset. {'; '.join(words)}.")
