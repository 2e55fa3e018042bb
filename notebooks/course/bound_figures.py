"""Figures of notebook 02: what the bound does as noise widens, over functions, and where it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import plotly.graph_objects as go
from matplotlib import pyplot as plt

from mmlib.figures import INK, PALE
from mmlib.theory.entropy import entropy, log_sobolev_bound
from mmlib.theory.gaussian import Discrete, gaussian

from .bound_panel import FUNCTIONS
from .charts import BLUE, GREEN, OFFSET, ORANGE, show
from .closed_forms import bump
from .hover import show_interactive


def bound_against_width(f: Callable, slope: Callable) -> None:
    """Entropy and both bounds against the width of the noise."""
    sigmas = np.linspace(0.3, 2, 35)
    ent = np.array([entropy(f, gaussian(s)) for s in sigmas])
    printed = np.array([log_sobolev_bound(f, slope, gaussian(s), rho=1) for s in sigmas])
    correct = np.array([log_sobolev_bound(f, slope, gaussian(s)) for s in sigmas])
    fig, axis = plt.subplots(figsize=(8, 3.3))
    axis.plot(sigmas, correct, color=GREEN, linewidth=6, alpha=0.45)
    axis.plot(sigmas, ent, color=BLUE)
    axis.plot(sigmas, printed, color=ORANGE)
    axis.fill_between(sigmas, printed, ent, where=ent >= printed, color=ORANGE, alpha=0.15, linewidth=0)
    axis.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axis.annotate("entropy = bound with Σ", (1.72, 1.75), color=BLUE, ha="right")
    axis.annotate("½ I as printed", (1.74, 0.27), color=ORANGE, ha="right")
    axis.annotate("the printed bound\nis below the entropy", (1.82, 0.86), color=ORANGE, ha="center")
    axis.set(xlabel="standard deviation σ of the noise (units of the input)", ylabel="nats")
    axis.set_title("The printed bound fails as soon as the noise is wider than 1")
    axis.set_xlim(0.3, 2)
    crossing = sigmas[ent > printed * (1 + 1e-9)].min()
    show(
        fig,
        alt="Entropy of exp(0.7 x) and its bounds for noise of width 0.3 to 2: the bound with Sigma "
        f"coincides with the entropy; the printed one is below it from {crossing:.2f} on, by a factor "
        f"of {ent[30] / printed[30]:.2f} at 1.8.",
    )


def bound_surface() -> None:
    """Printed bound over entropy of the bump e^{-x²/2a²}, in closed form, over the noise's σ and over a."""
    sigmas, widths = np.linspace(0.3, 2.5, 45), np.linspace(0.2, 2, 37)
    exact = [[bump(a**2, s) for s in sigmas] for a in widths]
    ratio = np.array([[e.information / s**2 / 2 / e.entropy for e, s in zip(row, sigmas)] for row in exact])
    colours = [[0, ORANGE], [0.5, "#F4F4F4"], [1, BLUE]]
    said = "σ = %{x:.2f}<br>a = %{y:.2f}<br>printed bound / entropy = %{z:.2f}<extra></extra>"
    surface = go.Surface(
        x=sigmas,
        y=widths,
        z=ratio,
        surfacecolor=np.log10(ratio),
        colorscale=colours,
        cmin=-0.8,
        cmax=0.8,
        showscale=False,
        hovertemplate=said,
    )
    level = go.Surface(
        x=sigmas[[0, -1]],
        y=widths[[0, -1]],
        z=np.ones((2, 2)),
        colorscale=[[0, INK], [1, INK]],
        opacity=0.25,
        showscale=False,
        hoverinfo="skip",
    )
    ticks = {"type": "log", "tickvals": [0.3, 1, 3, 10, 30], "title": {"text": "bound / entropy"}}
    figure = go.Figure(
        [surface, level],
        layout={
            "title": {"text": "The printed bound of a bump"},
            "margin": {"l": 0, "r": 0, "t": 40, "b": 0},
            "height": 460,
            "scene": {
                "xaxis": {"title": {"text": "noise σ"}},
                "yaxis": {"title": {"text": "bump a"}},
                "zaxis": ticks,
                "camera": {"eye": {"x": 1.6, "y": -1.75, "z": 0.9}, "center": {"x": 0, "y": 0, "z": -0.15}},
                "aspectratio": {"x": 1.2, "y": 1.1, "z": 0.8},
            },
        },
    )
    fig, axis = plt.subplots(figsize=(8, 3.6))
    levels = [0.3, 0.5, 1, 2, 4, 8, 16]
    lines = axis.contour(sigmas, widths, ratio, levels=levels, colors=[ORANGE] * 2 + [INK] + [BLUE] * 4)
    axis.clabel(lines, fmt="%g", fontsize=9)
    axis.contourf(sigmas, widths, ratio, levels=[0, 1], colors=[ORANGE], alpha=0.2)
    axis.set(xlabel="standard deviation σ of the noise", ylabel="width a of the bump")
    axis.set_title("Printed bound over entropy: in the shaded part it is no bound")
    fails = sigmas[ratio[-1] < 1].min()
    show_interactive(
        figure,
        fig,
        alt="The printed bound divided by the entropy of a bump, over the width of the noise and of the "
        "bump. It is below 1, hence no bound, in the corner of wide noise and wide bumps; for a bump of "
        f"width 2 from σ = {fails:.2f} on.",
    )


def share_of_the_bound(losses: Mapping[str, Callable], sigma: float = 1.0) -> None:
    """Entropy as a share of its bound with Σ, for functions of an array under N(0, σ²)."""
    shares = {}
    for name, f in losses.items():
        slope = lambda x, f=f: (f(x + 1e-5) - f(x - 1e-5)) / 2e-5
        shares[name] = 100 * entropy(f, gaussian(sigma)) / log_sobolev_bound(f, slope, gaussian(sigma))
    fig, axis = plt.subplots(figsize=(8, 0.9 + 0.38 * len(shares)))
    _share_bars(axis, shares, BLUE)
    axis.set(xlabel=f"entropy as a share of its bound (%), σ = {sigma:g}", xlim=(0, 110))
    axis.set_title("How much of the bound a loss uses")
    show(fig, alt="One bar for each of the functions above: its entropy as a share of its log-Sobolev bound.")


def _share_bars(axis, shares: Mapping[str, float], colours) -> None:
    """A bar a name, from the top, with its per cent."""
    axis.barh(list(shares), list(shares.values()), color=colours)
    for k, value in enumerate(shares.values()):
        axis.annotate(f"{value:.0f} %", (value, k), (4, 0), va="center", **OFFSET)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def tightness() -> None:
    """The panel's functions, for a = σ = 1."""
    used = {}
    for name, (formula, _, f, slope) in FUNCTIONS.items():
        at_one, slope_at_one = lambda x, f=f: f(x, 1.0), lambda x, slope=slope: slope(x, 1.0)
        share = entropy(at_one, gaussian()) / log_sobolev_bound(at_one, slope_at_one, gaussian())
        used[f"{name}\n{formula}"] = 100 * share
    fig, axis = plt.subplots(figsize=(8, 2.8))
    _share_bars(axis, used, [GREEN] + [BLUE] * 4)
    axis.set(xlabel="entropy as a share of its bound (%), for a = 1 and σ = 1", xlim=(0, 108))
    axis.set_title("Only an exponential uses all of the bound")
    shares = ", ".join(f"{key.split()[0]} {value:.0f}" for key, value in used.items())
    show(fig, alt=f"Entropy as a share of the log-Sobolev bound, in per cent: {shares}.")


def two_clusters() -> None:
    """A loss that climbs between two clusters of data, and its entropy and bound as the clusters narrow."""
    step = lambda x: 1.25 + 0.75 * np.tanh(6 * x)
    climb = lambda x: 4.5 / np.cosh(6 * x) ** 2

    def smeared(s):
        """Half of N(-1, s²), half of N(1, s²)."""
        left, right = gaussian(s, -1.0).nodes(1000), gaussian(s, 1.0).nodes(1000)
        points = np.concatenate([left.points, right.points])
        return Discrete(points, np.concatenate([left.weights, right.weights]) / 2)

    widths = np.linspace(0.12, 0.6, 25)
    ents = [entropy(step, smeared(s)) for s in widths]
    halves = [log_sobolev_bound(step, climb, smeared(s), rho=1) for s in widths]
    x = np.linspace(-2, 2, 400)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.0))
    mixture = sum(np.exp(-((x - c) ** 2) / 2 / 0.2**2) for c in (-1, 1))
    left.fill_between(x, 1.8 * mixture / mixture.max(), color=PALE)
    left.plot(x, step(x), color=INK)
    left.annotate("f", (1.62, 2.06), fontsize=11)
    left.annotate("data, s = 0.2", (-1, 0.7), ha="center", fontsize=9)
    left.set(xlabel="input x", ylabel="f (nats); density (scaled)", ylim=(0, 2.4))
    left.set_title("The loss climbs between the data")
    right.semilogy(widths, ents, color=BLUE)
    right.semilogy(widths, halves, color=ORANGE)
    right.annotate("entropy", (0.13, ents[0]), (0, 6), color=BLUE, **OFFSET)
    right.annotate("½ E[f′²/f]", (0.24, halves[6]), (10, -8), color=ORANGE, **OFFSET)
    right.set(xlabel="width s of each cluster", ylabel="nats", ylim=(1e-4, 3))
    right.set_title("Entropy stays, information vanishes")
    show(
        fig,
        alt="Left: two narrow clusters of data and a step-shaped loss that climbs between them. Right: for "
        f"clusters of width 0.6 the entropy is {ents[-1]:.2f} and half the information {halves[-1]:.2f}; at "
        f"width {widths[4]:.1f} they are {ents[4]:.2f} and {halves[4]:.4f}.",
    )


def ripples() -> None:
    """1 + k^(-1/2) sin kx: finer ripples have more information and less entropy."""
    frequencies = np.array([1.5, 2, 3, 4, 6, 8, 12, 16, 24])
    ents, halves = [], []
    for k in frequencies:
        f = lambda x, k=k: 1 + np.sin(k * x) / np.sqrt(k)
        slope = lambda x, k=k: np.sqrt(k) * np.cos(k * x)
        ents.append(entropy(f, gaussian()))
        halves.append(log_sobolev_bound(f, slope, gaussian()))
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.0))
    x = np.linspace(-3, 3, 600)
    for k, colour in ((3, BLUE), (24, ORANGE)):
        left.plot(x, 1 + np.sin(k * x) / np.sqrt(k), color=colour, linewidth=1.4, label=f"k = {k}")
    left.legend(loc="lower left", ncols=2)
    left.set(title="A finer and shallower ripple …", xlabel="noise x", ylabel="f", ylim=(0.1, 1.75))
    right.loglog(frequencies, halves, "o-", color=ORANGE, markersize=4)
    right.loglog(frequencies, ents, "o-", color=BLUE, markersize=4)
    right.annotate("½ I", (12, halves[6]), (0, -16), color=ORANGE, **OFFSET)
    right.annotate("entropy", (12, ents[6]), (0, 8), color=BLUE, **OFFSET)
    right.set(title="… has more information, less entropy", xlabel="frequency k", ylabel="nats")
    right.set_xticks([2, 4, 8, 16], ["2", "4", "8", "16"])
    right.minorticks_off()
    show(
        fig,
        alt="Left: two ripples, of frequency 3 and of frequency 24 with a smaller amplitude. Right: from "
        f"frequency 3 to 24 half the information grows from {halves[2]:.2f} to {halves[-1]:.1f}, while the "
        f"entropy falls from {ents[2]:.3f} to {ents[-1]:.3f}.",
    )
