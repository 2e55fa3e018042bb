"""The log-Sobolev bound under sliders: a function, its noise, and whether Eq. 2 as printed still bounds its
entropy. Notebook 02 shows it.
"""

from __future__ import annotations

import base64
from functools import cache
from html import escape
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
from matplotlib import pyplot as plt

from mmlib.figures import INK, PALE
from mmlib.theory.entropy import entropy, log_sobolev_bound
from mmlib.theory.gaussian import gaussian

from .charts import BLUE, SKY
from .panel import WARNING, Panel

# name -> (formula, what the parameter is, f(x, a), f'(x, a))
FUNCTIONS = {
    "exponential": ("exp(a x)", "slope a", lambda x, a: np.exp(a * x), lambda x, a: a * np.exp(a * x)),
    "square": ("(x − a)²", "zero at a", lambda x, a: (x - a) ** 2, lambda x, a: 2 * (x - a)),
    "bump": (
        "exp(−x² / 2a²)",
        "width a",
        lambda x, a: np.exp(-((x / a) ** 2) / 2),
        lambda x, a: -x / a**2 * np.exp(-((x / a) ** 2) / 2),
    ),
    "step": (
        "0.6 + tanh(2 a x) / 2",
        "steepness a",
        lambda x, a: 0.6 + np.tanh(2 * a * x) / 2,
        lambda x, a: a / np.cosh(2 * a * x) ** 2,
    ),
    "wave": (
        "1.1 + sin(3 a x)",
        "frequency a",
        lambda x, a: 1.1 + np.sin(3 * a * x),
        lambda x, a: 3 * a * np.cos(3 * a * x),
    ),
}
ENTROPY, HOLDS, VIOLATED, TILTED = BLUE, "#00785A", WARNING, SKY
NOISE, GREY = "#BDBDBD", "#6B6B6B"
SIGMAS = np.round(np.arange(0.3, 2.01, 0.1), 1)  # those of the slider


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 1000 else f"{value:,.0f}"


@cache
def bounds(name: str, a: float, sigma: float) -> tuple[float, float, float]:
    """Ent f, its bound as printed (½ I without Σ), and with Σ."""
    _, _, value, slope = FUNCTIONS[name]
    f, gradient, measure = lambda x: value(x, a), lambda x: slope(x, a), gaussian(sigma)
    return entropy(f, measure), *(log_sobolev_bound(f, gradient, measure, rho) for rho in (1, None))


class Mark(NamedTuple):
    """A line, or with ``filled`` the area between it and the axis; a single point is a dot."""

    x: np.ndarray
    y: np.ndarray
    colour: str
    filled: bool = False


class Plot(NamedTuple):
    """A small chart whose axes never change: what is beyond them is cut off.

    Attributes:
        words: (x, y, text, colour), written to the right of (x, y) in data coordinates.
    """

    title: str
    x_label: str
    x_limits: tuple[float, float]
    x_ticks: tuple
    y_top: float
    y_ticks: tuple[tuple[float, str], ...]
    marks: tuple[Mark, ...]
    words: tuple[tuple[float, float, str, str], ...]


WIDTH, HEIGHT = 430, 300  # of a chart, in pixels
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 34, 48


def svg(plot: Plot) -> str:
    """The chart as SVG: drawn in a few milliseconds, and sharp at every size."""
    low, high = plot.x_limits
    across = lambda x: LEFT + (np.asarray(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    floor = HEIGHT - BOTTOM
    up = lambda y: floor - np.asarray(y) / plot.y_top * (floor - TOP)
    text = lambda x, y, words, style="": (
        f'<text x="{x:.1f}" y="{y:.1f}" stroke="none" {style}>{escape(words)}</text>'
    )
    middle = 'text-anchor="middle"'
    parts = [text(4, 20, plot.title, 'font-weight="bold" font-size="15"')]
    parts += [f'<path d="M{LEFT},{floor}H{WIDTH - RIGHT}" stroke="{INK}"/>']
    parts += [text(across(tick), floor + 18, f"{tick:g}", middle) for tick in plot.x_ticks]
    parts += [text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, plot.x_label, middle)]
    for tick, words in plot.y_ticks:
        parts += [f'<path d="M{LEFT},{up(tick):.1f}H{WIDTH - RIGHT}" stroke="#E6E6E6"/>']
        parts += [text(LEFT - 5, up(tick) + 5, words, 'text-anchor="end"')]
    for mark in plot.marks:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across(mark.x), up(mark.y)))
        inside = f'clip-path="url(#c)" class="{"area" if mark.filled else "line"}"'
        if mark.filled:
            ends = across(mark.x)[[0, -1]]
            points = f"{ends[0]:.1f},{floor} {points} {ends[1]:.1f},{floor}"
            parts += [f'<polygon points="{points}" fill="{mark.colour}" fill-opacity="0.55" {inside}/>']
        elif len(mark.x) == 1:
            x, y = points.split(",")
            parts += [f'<circle cx="{x}" cy="{y}" r="6" fill="{mark.colour}" class="dot"/>']
        else:
            parts += [f'<polyline points="{points}" fill="none" stroke="{mark.colour}" {inside}/>']
    halo = 'paint-order="stroke" stroke-opacity="1" style="stroke:white;stroke-width:5"'
    parts += [text(across(x), up(y), words, f'fill="{colour}" {halo}') for x, y, words, colour in plot.words]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="sans-serif" font-size="14" stroke-width="2"><clipPath id="c">'
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{floor - TOP}"/></clipPath>'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>'
    )


def draw(plot: Plot, axis) -> None:
    """The same chart on a matplotlib axis, for pages where nothing runs."""
    for mark in plot.marks:
        if mark.filled:
            axis.fill_between(mark.x, mark.y, color=mark.colour, alpha=0.55, linewidth=0)
        else:
            axis.plot(mark.x, mark.y, "o" if len(mark.x) == 1 else "-", color=mark.colour, clip_on=True)
    for x, y, words, colour in plot.words:
        box = {"facecolor": "white", "linewidth": 0, "pad": 1}
        axis.annotate(words, (x, y), color=colour, fontsize=9, bbox=box)
    axis.set(xlim=plot.x_limits, ylim=(0, plot.y_top), xlabel=plot.x_label, title=plot.title)
    axis.set_xticks(plot.x_ticks)
    axis.set_yticks(*zip(*plot.y_ticks)) if plot.y_ticks else axis.set_yticks([])


class BoundPanel(Panel):
    """Choose f, its parameter a and the noise's σ; see f, the noise, and Ent f beside the bound with and
    without Σ (Eq. 2).

    Args:
        function: a key of ``FUNCTIONS``; a: its parameter, 0.1 to 2; sigma: standard deviation of the noise,
            0.3 to 2.

    ``state()`` has function, a, sigma, entropy, printed (½ I without Σ), correct (½ I with Σ), violated and
    error.
    """

    def __init__(self, function: str = "exponential", a: float = 0.7, sigma: float = 1.0):
        super().__init__("900px")
        layout = {"flex": "1 1 260px", "max_width": "420px"}
        wide = {"style": {"description_width": "96px"}, "layout": layout}
        self.function = widgets.ToggleButtons(
            options=list(FUNCTIONS),
            tooltip="which function of the noisy input",
            tooltips=[FUNCTIONS[name][0] for name in FUNCTIONS],
            style={"button_width": "106px"},
            layout={"width": "100%"},
        )
        self.a = widgets.FloatSlider(
            0.7, min=0.1, max=2, step=0.1, description="a", tooltip="the function's parameter", **wide
        )
        self.sigma = widgets.FloatSlider(
            1.0,
            min=SIGMAS[0],
            max=SIGMAS[-1],
            step=0.1,
            description="noise σ",
            tooltip="standard deviation of the noise",
            **wide,
        )
        self.picture = widgets.HTML()
        self._follow(function=self.function, a=self.a, sigma=self.sigma)
        row = {"display": "flex", "flex_flow": "row wrap", "width": "100%", "overflow": "hidden"}
        self.children = [
            self.picture,
            self.status,
            self.function,
            widgets.Box([self.a, self.sigma], layout=row),
        ]
        self.set(function, a, sigma)

    def __repr__(self) -> str:  # short and constant: what a notebook stores and compares
        return f"BoundPanel(functions={' | '.join(FUNCTIONS)})"

    def set(self, function: str | None = None, a: float | None = None, sigma: float | None = None) -> dict:
        """Set what is given, redraw once and return ``state()``; a value beyond its slider's ends raises
        ValueError.
        """
        for control, value in ((self.a, a), (self.sigma, sigma)):
            if value is not None and not control.min <= value <= control.max:
                raise ValueError(f"{control.tooltip} {value}; expected {control.min:g} to {control.max:g}")
        if function is not None and function not in FUNCTIONS:
            raise ValueError(f"function {function!r}; expected one of {', '.join(FUNCTIONS)}")
        values = {"function": function, "a": a, "sigma": sigma}
        return super().set(**{name: value for name, value in values.items() if value is not None})

    def figure(self) -> plt.Figure:
        fig, axes = plt.subplots(1, 2, figsize=(8, 2.9))
        for axis, plot in zip(axes, self._plots()):
            draw(plot, axis)
        return fig

    def _refresh(self) -> None:
        name, a, sigma = self.function.value, self.a.value, self.sigma.value
        formula, meaning, _, _ = FUNCTIONS[name]
        self.a.description = meaning
        exact, printed, correct = bounds(name, a, sigma)
        violated = printed < exact * (1 - 1e-6)
        self._state = {
            "function": name,
            "a": a,
            "sigma": sigma,
            "entropy": exact,
            "printed": printed,
            "correct": correct,
            "violated": violated,
            "error": "",
        }
        verdict = "is violated: it lies below the entropy" if violated else "holds"
        alts = (
            f"f = {formula} with a = {a:.1f}, the density of the noise of standard deviation {sigma:.1f}, "
            "and this density weighted by f",
            f"Entropy {_number(exact)}; bound as printed {_number(printed)}, which {verdict}; bound with "
            f"the variance of the noise {_number(correct)}; as shares of the latter, for noise from 0.3 to 2",
        )
        images = ""
        for plot, alt in zip(self._plots(), alts):
            data = base64.b64encode(svg(plot).encode()).decode()
            images += (
                f'<div style="flex:1 1 260px;min-width:0;max-width:{WIDTH}px"><img alt="{escape(alt)}" '
                f'width="{WIDTH}" height="{HEIGHT}" src="data:image/svg+xml;base64,{data}" '
                'style="width:100%;height:auto;display:block"></div>'
            )
        self.picture.value = (
            f'<div style="display:flex;flex-wrap:wrap;width:0;min-width:100%;background:white">{images}</div>'
        )
        numbers = (
            f"entropy {_number(exact)}, printed bound {_number(printed)}, bound with Σ {_number(correct)}"
        )
        self._say(
            f"f = {escape(formula)}: {numbers}. The printed bound <b>{verdict}</b>.",
            VIOLATED if violated else "inherit",
        )

    def _plots(self) -> tuple[Plot, Plot]:
        return self._function_plot(), self._share_plot()

    def _function_plot(self) -> Plot:
        a, sigma = self.a.value, self.sigma.value
        x = np.linspace(-6, 6, 361)
        heights = FUNCTIONS[self.function.value][2](x, a)
        density = np.exp(-((x / sigma) ** 2) / 2) / (np.sqrt(2 * np.pi) * sigma)
        tilted = density * heights
        tilted /= tilted.sum() * (x[1] - x[0])
        scaled = heights / heights[np.abs(x) <= 2].max()  # by f alone: the noise does not move it
        return Plot(
            f"f = {FUNCTIONS[self.function.value][0]}, and its noise",
            "noisy input x",
            (-6, 6),
            (-6, -4, -2, 0, 2, 4, 6),
            1.6,
            (),
            (Mark(x, density, NOISE, True), Mark(x, tilted, TILTED, True), Mark(x, scaled, INK)),
            (
                (-5.8, 1.48, "━ f, scaled", INK),
                (-5.8, 1.34, "■ density of the noise", GREY),
                (-5.8, 1.20, "■ … weighted by f", "#2A7BAD"),
            ),
        )

    def _share_plot(self) -> Plot:
        name, a, sigma = self.function.value, self.a.value, self.sigma.value
        exact, printed, correct = bounds(name, a, sigma)
        shares = np.array([(e / c, p / c) for e, p, c in (bounds(name, a, float(s)) for s in SIGMAS)])
        colour = VIOLATED if self._state["violated"] else GREY
        here = np.array([sigma])
        return Plot(
            "Shares of the bound with Σ",
            "standard deviation σ of the noise",
            (0.3, 2.05),
            (0.5, 1, 1.5, 2),
            2.0,
            ((0, "0 %"), (0.5, "50 %"), (1, "100 %"), (1.5, "150 %"), (2, "200 %")),
            (
                Mark(here.repeat(2), np.array([0.0, 2.0]), PALE),
                Mark(SIGMAS[[0, -1]], np.ones(2), HOLDS),
                Mark(SIGMAS, shares[:, 1], colour),
                Mark(SIGMAS, shares[:, 0], ENTROPY),
                *([Mark(here, np.array([printed / correct]), colour)] if printed < 2 * correct else []),
                Mark(here, np.array([exact / correct]), ENTROPY),
            ),
            (
                (1.12, 1.86, "● entropy", ENTROPY),
                (1.12, 1.70, "● bound as printed", colour),
                (1.12, 1.54, "━ bound with Σ", HOLDS),
            ),
        )
