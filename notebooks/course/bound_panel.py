"""The log-Sobolev bound under sliders: a function, its noise, and whether Eq. 2 as printed still bounds its
entropy. Notebook 02 shows it.
"""

from __future__ import annotations

import base64
from html import escape

import ipywidgets as widgets
import numpy as np

from mmlib.figures import INK, PALE
from mmlib.theory.entropy import entropy, log_sobolev_bound
from mmlib.theory.gaussian import gaussian

from .panel import Panel

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
ENTROPY, HOLDS, VIOLATED, TILTED = "#0072B2", "#009E73", "#D55E00", "#56B4E9"
# Pixels; x runs over ±REACH in the left part, which ends at MIDDLE.
WIDTH, HEIGHT, REACH, MIDDLE = 860, 300, 6.0, 470


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 1000 else f"{value:,.0f}"


def _text(
    x: float, y: float, words: str, colour: str = INK, anchor: str = "start", weight: str = "normal"
) -> str:
    style = f'fill="{colour}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def _area(x: np.ndarray, y: np.ndarray, fill: str, opacity: float = 1.0) -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y))
    return (
        f'<polygon points="{x[0]:.1f},250 {points} {x[-1]:.1f},250" fill="{fill}" fill-opacity="{opacity}"/>'
    )


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
        wide = {
            "style": {"description_width": "110px"},
            "layout": widgets.Layout(width="420px"),
            "continuous_update": False,
        }
        self.function = widgets.ToggleButtons(
            options=list(FUNCTIONS),
            description="f",
            tooltip="which function of the noisy input",
            tooltips=[FUNCTIONS[name][0] for name in FUNCTIONS],
            style={"description_width": "20px", "button_width": "100px"},
            layout=widgets.Layout(width="620px"),
        )
        self.a = widgets.FloatSlider(
            0.7, min=0.1, max=2, step=0.1, description="a", tooltip="the function's parameter", **wide
        )
        self.sigma = widgets.FloatSlider(
            1.0,
            min=0.3,
            max=2,
            step=0.1,
            description="noise σ",
            tooltip="standard deviation of the noise",
            **wide,
        )
        self.picture = widgets.HTML()
        self._follow(function=self.function, a=self.a, sigma=self.sigma)
        sliders = widgets.HBox([self.a, self.sigma], layout=widgets.Layout(flex_flow="row wrap"))
        self.children = [self.function, sliders, self.status, self.picture]
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

    def _refresh(self) -> None:
        name, a, sigma = self.function.value, self.a.value, self.sigma.value
        formula, meaning, value, slope = FUNCTIONS[name]
        self.a.description = meaning
        f, gradient, measure = lambda x: value(x, a), lambda x: slope(x, a), gaussian(sigma)
        exact = entropy(f, measure)
        printed, correct = (log_sobolev_bound(f, gradient, measure, rho) for rho in (1, None))
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
        alt = (
            f"f = {formula} with a = {a:.1f} under noise of standard deviation {sigma:.1f}: "
            f"entropy {_number(exact)}; bound as printed {_number(printed)}, which {verdict}; "
            f"bound with the variance of the noise {_number(correct)}"
        )
        data = base64.b64encode(self._svg(f, sigma, exact, printed, correct, violated).encode()).decode()
        self.picture.value = (
            f'<img alt="{escape(alt)}" width="{WIDTH}" height="{HEIGHT}" '
            f'src="data:image/svg+xml;base64,{data}" '
            'style="width:100%;height:auto;display:block;border:1px solid #d9d9d9">'
        )
        numbers = (
            f"entropy {_number(exact)}, printed bound {_number(printed)}, bound with Σ {_number(correct)}"
        )
        self._say(
            f"f = {escape(formula)}: {numbers}. The printed bound <b>{verdict}</b>.",
            "#B34700" if violated else "inherit",
        )

    def _svg(self, f, sigma: float, exact: float, printed: float, correct: float, violated: bool) -> str:
        x = np.linspace(-REACH, REACH, 361)
        density, heights = np.exp(-((x / sigma) ** 2) / 2), f(x)
        tilted = density * heights
        density, tilted = density / density.sum(), tilted / tilted.sum()
        across = 20 + (x + REACH) / (2 * REACH) * (MIDDLE - 60)
        drawn = heights <= (top := heights[np.abs(x) <= 2 * sigma].max()) * 1.02
        up = lambda values, largest, room=170: 250 - room * values / largest
        line = " ".join(
            f"{'M' if k == 0 or not drawn[k - 1] else 'L'}{across[k]:.1f},{up(heights, top)[k]:.1f}"
            for k in np.flatnonzero(drawn)
        )
        largest = max(density.max(), tilted.max())
        parts = [_area(across, up(density, largest), PALE), _area(across, up(tilted, largest), TILTED, 0.45)]
        parts += [f'<path d="{line}" fill="none" stroke="{INK}" stroke-width="2"/>']
        parts += [f'<line x1="20" x2="{MIDDLE - 40}" y1="250" y2="250" stroke="{INK}"/>']
        parts += [_text(across[k], 268, f"{x[k]:.0f}", anchor="middle") for k in range(0, 361, 60)]
        parts += [_text(225, 290, "noisy input x (units of the input)", anchor="middle")]
        parts += [_text(20, 24, "f", weight="bold"), _text(40, 24, "(scaled)")]
        parts += [f'<rect x="110" y="13" width="14" height="12" fill="{PALE}"/>', _text(129, 24, "noise")]
        parts += [
            f'<rect x="185" y="13" width="14" height="12" fill="{TILTED}" fill-opacity="0.6"/>',
            _text(204, 24, "noise weighted by f"),
        ]
        rows = [
            ("entropy of f", exact, ENTROPY),
            (
                "bound as printed, ½ I without Σ" + (": violated" if violated else ""),
                printed,
                VIOLATED if violated else "#777777",
            ),
            ("bound with Σ, ½ σ² I", correct, HOLDS),
        ]
        scale = 300 / max(exact, printed, correct, 1e-12)
        for row, (words, value, colour) in enumerate(rows):
            y = 50 + 72 * row
            parts += [_text(MIDDLE, y, words, colour, weight="bold")]
            parts += [
                f'<rect x="{MIDDLE}" y="{y + 8}" width="{max(1, scale * value):.1f}" height="26" '
                f'fill="{colour}"/>'
            ]
            parts += [_text(MIDDLE + scale * value + 8, y + 27, _number(value))]
        edge = MIDDLE + scale * exact
        for y in (126, 198):  # across the two bounds' bars only: a longer line would cut through the words
            parts += [
                f'<line x1="{edge:.1f}" x2="{edge:.1f}" y1="{y}" y2="{y + 34}" '
                f'stroke="{ENTROPY}" stroke-width="2" stroke-dasharray="4 2"/>'
            ]
        parts += [_text(MIDDLE, 268, "nats × unit of f; a bound reaches the dashed line")]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="14">'
            f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>'
        )
