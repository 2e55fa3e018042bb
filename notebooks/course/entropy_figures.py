"""Figures of lesson 01: the Jensen gap, sampled entropies, noise that a loss moves, losses of two sensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt

from mmlib.figures import FUSED, INK, PALE, sensor_title, text_colour
from mmlib.modalities import SENSORS
from mmlib.theory.entropy import Estimate, conditional_entropies, entropy, marginal_entropies
from mmlib.theory.gaussian import gaussian

from .charts import BLUE, GREEN, OFFSET, ORANGE, modality_colour, show, vertical_grid


def show_jensen_gap(values: Sequence[float]) -> None:
    """Eq. 1 for two equally likely values, as the gap under a chord and as distances from a tangent."""
    values, u = np.asarray(values, float), np.linspace(0.001, 4, 400)
    curve, m = lambda x: x * np.log(x), values.mean()
    tangent = lambda x: curve(m) + (1 + np.log(m)) * (x - m)
    top = curve(values).mean()
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), sharey=True)
    for axis in (left, right):
        axis.plot(u, curve(u), color=INK)
        axis.plot(values, curve(values), "o", color=BLUE)
        axis.set(xlabel="value of f (nats)", xlim=(0, 4.1), ylim=(-1.2, 5.6))
        axis.annotate("u ln u", (3.4, 4.75), ha="right", fontsize=10)
    left.set_ylabel("u ln u")
    left.plot(values, curve(values), color=BLUE, linewidth=1.2)
    left.plot([m, m], [curve(m), top], color=ORANGE, linewidth=4, solid_capstyle="butt")
    arrow = {"arrowstyle": "-", "color": ORANGE}
    words = f"entropy {top - curve(m):.3f}"
    left.annotate(words, (m, (curve(m) + top) / 2), (0.35, 2.6), color=ORANGE, arrowprops=arrow)
    left.set_title("The gap under the chord …")
    right.plot(u, tangent(u), color=BLUE, linewidth=1.2)
    right.fill_between(u, tangent(u), curve(u), color=ORANGE, alpha=0.15, linewidth=0)
    for v in values:
        right.plot([v, v], [tangent(v), curve(v)], color=ORANGE, linewidth=4, solid_capstyle="butt")
        place = OFFSET | {"color": ORANGE}
        distance = curve(v) - tangent(v)
        right.annotate(f"{distance:.3f}", (v, (tangent(v) + curve(v)) / 2), (8, -9), **place)
    right.annotate("tangent at the mean", (2.25, 1.1), color=BLUE, fontsize=9)
    right.set_title("… is the mean distance from the tangent")
    first, second = curve(values) - tangent(values)
    show(
        fig,
        f"The convex curve u ln u twice. Left: the chord between the values {values[0]:g} and {values[1]:g} "
        f"lies {top - curve(m):.3f} above the curve at the mean {m:g}. Right: the distances of the two "
        f"points from the tangent at the mean, {first:.3f} and {second:.3f}, average to the same.",
    )


def show_monte_carlo(estimates: Mapping[int, Estimate], truth: float, standardised: np.ndarray) -> None:
    """Estimates against the number of samples; and the errors of many runs in units of their error bars."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), width_ratios=[1.3, 1])
    counts = list(estimates)
    left.axhline(truth, color=INK, linewidth=1.2)
    place = OFFSET | {"fontsize": 9}
    left.annotate("closed form", (counts[-1], truth), (6, 10), ha="right", **place)
    middle, width = zip(*((e.value, 2 * e.error) for e in estimates.values()))
    left.errorbar(counts, middle, width, fmt="o", color=BLUE, capsize=4)
    left.set_xscale("log", base=4)
    left.set_xticks(counts, [f"{n:,}" for n in counts])
    left.minorticks_off()
    left.set(xlabel="samples", ylabel="entropy of exp(0.7 x) (nats)")
    left.set_title("Four times the samples, half the error")
    bins = np.linspace(-4, 4, 25)
    right.hist(standardised, bins, color=BLUE, density=True, alpha=0.6)
    right.plot(bins, np.exp(-(bins**2) / 2) / np.sqrt(2 * np.pi), color=INK)
    right.set(title="The error bars are honest", xlabel="(estimate − truth) / its error")
    right.set(ylabel=f"density of {len(standardised)} runs", yticks=[])
    show(
        fig,
        f"Left: Monte-Carlo estimates of an entropy with bars of two standard errors shrink around the "
        f"closed form as samples grow from {counts[0]} to {counts[-1]}. Right: the standardised errors of "
        f"{len(standardised)} runs follow the standard normal curve.",
    )


def show_moved_noise(cases: Mapping[str, tuple[Callable, float]]) -> None:
    """Standard normal noise, and the same noise weighted by f, for {name: (f, Ent f / E f)}."""
    x = np.linspace(-4, 5, 400)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    fig, axes = plt.subplots(1, len(cases), figsize=(8, 2.7), sharey=True)
    for axis, (name, (f, kl)) in zip(axes, cases.items()):
        weighted = f(x) * density
        weighted = weighted / (weighted.sum() * (x[1] - x[0]))
        axis.fill_between(x, density, color=PALE, label="noise μ")
        axis.fill_between(x, weighted, color=BLUE, alpha=0.35, label="weighted by f: ν")
        axis.set(title=f"f = {name}:  {kl:.3f}", xlabel="noise x", yticks=[], ylim=(0, 0.58))
    axes[0].set_ylabel("probability density")
    axes[0].legend(loc="upper left", fontsize=8)
    fig.suptitle("Ent f / E f is how far f moves the noise (nats)", x=0.01, ha="left")
    words = ", ".join(f"{kl:.3f} nats for {name}" for name, (_, kl) in cases.items())
    show(fig, f"A Gaussian and the same Gaussian weighted by f. How far f moves it: {words}.")


def three_sums(f: Callable, measure: Mapping) -> dict[str, float]:
    """Both sides of Eq. 3: the printed sum, the entropy, and the conditional sum."""
    return {
        "printed sum": sum(marginal_entropies(f, measure).values()),
        "entropy": entropy(f, measure),
        "conditional sum": sum(conditional_entropies(f, measure).values()),
    }


def show_three_sums(examples: Mapping[str, Mapping[str, float]]) -> None:
    """The three numbers of ``three_sums``, in units of the entropy, for each example."""
    fig, axis = plt.subplots(figsize=(8, 2.9))
    _three_bars(axis, examples)
    axis.set_title("The printed sum lies below the entropy, the conditional sum above")
    words = "; ".join(
        f"{name}: printed {v['printed sum'] / v['entropy']:.2f}, conditional "
        f"{v['conditional sum'] / v['entropy']:.2f}"
        for name, v in examples.items()
    )
    show(fig, f"Bars of the printed sum and of the conditional sum, relative to the entropy. {words}.")


def _three_bars(axis, examples: Mapping[str, Mapping[str, float]]) -> None:
    colours, top = (ORANGE, BLUE, GREEN), 1.0
    for k, values in enumerate(examples.values()):
        for j, (word, value) in enumerate(values.items()):
            height, place = value / values["entropy"], 4 * k + j
            top = max(top, height)
            axis.bar(place, height, 0.8, color=colours[j], label="" if k else word)
            axis.annotate(f"{height:.2f}", (place, height), (0, 3), ha="center", **OFFSET)
    axis.axhline(1, color=BLUE, linewidth=1, linestyle="--", zorder=0)
    axis.set_xticks([4 * k + 1 for k in range(len(examples))], list(examples))
    axis.set(ylabel="relative to the entropy", ylim=(0, 1.3 * top))
    axis.legend(loc="upper left", ncols=3)


def show_shares(losses: Mapping[str, Callable]) -> None:
    """The entropy of each loss of camera and depth, and each sensor's conditional entropy."""
    sensors = {"R": gaussian(), "D": gaussian()}
    fig, axes = plt.subplots(1, len(losses), figsize=(8, 2.2), sharex=True)
    said = []
    for axis, (name, f) in zip(axes, losses.items()):
        parts = conditional_entropies(f, sensors)
        heights = {"whole": entropy(f, sensors), **parts}
        axis.barh(list(heights), list(heights.values()), color=[FUSED, *map(modality_colour, parts)])
        axis.set(title=f"Leans on {name}", xlabel="entropy (nats)")
        axis.invert_yaxis()
        vertical_grid(axis)
        said.append(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in heights.items()))
    show(fig, f"Entropy of two losses, and its shares by sensor. {'; '.join(said)}.")


def show_loss(f: Callable) -> None:
    """A loss of two sensors: its shape, the three sums of Eq. 3, and the sensors' shares. The numbers stand
    in the picture, so that the reader's own loss leaves the text of the notebook as it is.
    """
    sensors = {"R": gaussian(), "D": gaussian()}
    sums, parts = three_sums(f, sensors), conditional_entropies(f, sensors)
    r, d = np.meshgrid(*[np.linspace(-2.5, 2.5, 120)] * 2)
    fig, (shape, bars, shares) = plt.subplots(1, 3, figsize=(8, 2.9), width_ratios=[1, 1.15, 0.85])
    values = np.asarray(f(r.ravel(), d.ravel()), float).reshape(r.shape)
    drawn = shape.contourf(r, d, values, 14, cmap="cividis")
    fig.colorbar(drawn, ax=shape, shrink=0.9)
    shape.set(title="Your loss", xlabel="noise on R", ylabel="noise on D", aspect="equal")
    shape.grid(False)
    _three_bars(bars, {"": sums})
    bars.get_legend().remove()
    bars.set_xticks(range(3), ["printed\nsum", "entropy", "conditional\nsum"], fontsize=9)
    bars.set_title(f"Entropy {sums['entropy']:.3f}")
    total = sum(parts.values()) or 1.0
    for sensor in SENSORS.values():
        if sensor.symbol in parts:
            share = 100 * parts[sensor.symbol] / total
            shares.bar(sensor_title(sensor), share, 0.7, color=sensor.colour)
            place = OFFSET | {"ha": "center", "color": text_colour(sensor)}
            shares.annotate(f"{share:.0f} %", (sensor_title(sensor), share), (0, 3), **place)
    shares.set(title="Shares", ylabel="% of the conditional sum", ylim=(0, 115))
    show(
        fig, "Your loss of camera and depth, the three sums of Eq. 3 for it, and the shares of both sensors."
    )
