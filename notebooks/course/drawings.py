"""Drawings of the lessons, as SVG: boxes, arrows and text in the colours of the sensors; part A's drawings.

``python notebooks/course/drawings.py`` writes ``notebooks/drawings/NAME.svg`` for every entry of
``DRAWINGS``, here and in the files ``drawings_*.py`` beside this one; a test compares the files with the
code. Lessons show them with ``![alt](drawings/NAME.svg)``.

Every drawing lies on a white card, with dark text on light fill, and so reads the same on a dark page.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from html import escape
from importlib import import_module
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex, to_rgb

from mmlib.figures import INK
from mmlib.modalities import SENSORS

FOLDER = Path(__file__).resolve().parents[1] / "drawings"
FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"
GREY, LINE, MUTED = "#EFEFEF", "#8A8A8A", "#595959"  # fill of a box, outlines and arrows, side remarks
STREET = tuple(SENSORS[name] for name in ("rgb", "depth", "event", "lidar"))


def light(colour: str, share: float = 0.22) -> str:
    """A tint: ``share`` of the colour, the rest white."""
    return to_hex(1 - share * (1 - np.array(to_rgb(colour)))).upper()


def dark(modality) -> str:
    """The colour in which words of a sensor are written on its tint."""
    return to_hex(0.6 * np.array(to_rgb(modality.colour))).upper()


def marked_up(words: str) -> str:
    """SVG of a line of text in which ``_x``, ``_{xyz}``, ``^x`` and ``^{xyz}`` are set low and high."""
    parts, pieces, moved = re.split(r"([_^](?:\{[^}]*\}|\w))", words), [], 0.0
    for part in filter(None, parts):
        shift = {"_": 0.28, "^": -0.38}.get(part[0], 0.0) if len(part) > 1 else 0.0
        content = escape(part[1:].strip("{}") if shift else part, quote=False)
        size = ' font-size="72%"' if shift else ""
        # dy is in units of the piece's own font, which is smaller where it is set low or high.
        step = (shift - moved) / (0.72 if shift else 1.0)
        pieces.append(f'<tspan dy="{step:.3g}em"{size}>{content}</tspan>' if size or step else content)
        moved = shift
    return "".join(pieces)


class Drawing:
    """An SVG picture that grows by calls; ``str`` of it is the file.

    Args:
        title, description: what a screen reader says: a name, and what is seen.
        width, height: in pixels at normal size.
    """

    def __init__(self, title: str, description: str, width: float, height: float):
        self.title, self.description, self.width, self.height = title, description, width, height
        self.parts: list[str] = []

    def shape(self, tag: str, **attributes) -> None:
        values = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        shown = {k: f"{v:g}" if isinstance(v, int | float) else v for k, v in values.items()}
        self.parts.append(f"<{tag} " + " ".join(f'{k}="{v}"' for k, v in shown.items()) + "/>")

    def text(self, x, y, words, size=13.0, colour=INK, anchor="middle", weight="normal", halo=False) -> None:
        """Lines of text, the first with its baseline at ``y``; see ``marked_up``. ``halo``: white around it,
        where it crosses a line.
        """
        edge = ' stroke="#FFFFFF" stroke-width="4" paint-order="stroke"' * halo
        for number, line in enumerate(words.split("\n") if words else ()):
            self.parts.append(
                f'<text x="{x:g}" y="{y + number * 1.25 * size:g}" font-size="{size:g}" fill="{colour}" '
                f'text-anchor="{anchor}" font-weight="{weight}"{edge}>{marked_up(line)}</text>'
            )

    def box(
        self,
        x,
        y,
        width,
        height,
        words="",
        fill=GREY,
        line=LINE,
        size=13.0,
        colour=INK,
        dashed=False,
        radius=7,
    ) -> None:
        """A rounded box with text in its middle; ``x``, ``y``: its upper left corner."""
        dash = {"stroke_dasharray": "5 4"} if dashed else {}
        place = {"x": x, "y": y, "width": width, "height": height, "rx": radius}
        self.shape("rect", **place, fill=fill, stroke=line, stroke_width=1.3, **dash)
        lines = words.count("\n")
        self.text(x + width / 2, y + height / 2 + (0.36 - 0.625 * lines) * size, words, size, colour)

    def circle(self, x, y, radius, words="", fill=GREY, line=LINE, size=13.0, colour=INK) -> None:
        self.shape("circle", cx=x, cy=y, r=radius, fill=fill, stroke=line, stroke_width=1.3)
        self.text(x, y + 0.36 * size, words, size, colour)

    def line(self, *points, colour=LINE, width=1.5, dashed=False, head=False) -> None:
        """A line through ``points``; with ``head`` an arrow."""
        dash = {"stroke_dasharray": "5 4"} if dashed else {}
        path, colour_of = " ".join(f"{x:g},{y:g}" for x, y in points), {"stroke": colour}
        if head:  # the arrow's head is drawn by hand: a marker would not take the line's colour everywhere
            (x0, y0), (x1, y1) = points[-2:]
            way = np.array([x1 - x0, y1 - y0]) / np.hypot(x1 - x0, y1 - y0)
            back, side = np.array([x1, y1]) - 8 * way, 4 * np.array([-way[1], way[0]])
            corners = ((x1, y1), back + side, back - side)
            path = " ".join(f"{x:g},{y:g}" for x, y in [*points[:-1], back + 2 * way])
        self.shape("polyline", points=path, fill="none", stroke_width=width, **colour_of, **dash)
        if head:
            self.shape("polygon", points=" ".join(f"{x:.4g},{y:.4g}" for x, y in corners), fill=colour)

    def arrow(self, *points, **style) -> None:
        self.line(*points, head=True, **style)

    def sensor(self, modality, x, y, width, height, words="", absent=False, **style) -> None:
        """A box in a sensor's colours; ``absent``: dashed and without fill."""
        fill = "#FFFFFF" if absent else light(modality.colour)
        colours = {"fill": fill, "line": modality.colour, "colour": dark(modality)}
        self.box(
            x,
            y,
            width,
            height,
            words or f"{modality.symbol}  {modality.name}",
            **colours | style,
            dashed=absent,
        )

    def __str__(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:g}" height="{self.height:g}" '
            f'viewBox="0 0 {self.width:g} {self.height:g}" role="img" font-family="{FONT}">'
        )
        title = f"<title>{escape(self.title)}</title>"
        desc = f"<desc>{escape(self.description)}</desc>"
        card = f'<rect width="{self.width:g}" height="{self.height:g}" rx="12" fill="#FFFFFF"/>'
        return "\n".join([head, title, desc, card, *self.parts, "</svg>", ""])


# ---- part A ----


def segmenter() -> str:
    """Eq. 5: stems, one encoder, one head, the mean over the sensors that are there."""
    drawing = Drawing(
        "Eq. 5: one network for any subset of sensors",
        "Four sensors at the left. Each has a first layer of its own, its stem. The stacked outputs go "
        "through one shared encoder with four scales and one shared head, which gives logits for each "
        "sensor. The logits of the sensors that are present are averaged. The event camera is absent: it is "
        "not in the stack, and not in the mean.",
        800,
        322,
    )
    draw, rows = drawing, [74 + 56 * i for i in range(4)]
    for x, words in (
        (70, "images"),
        (184, "a stem each"),
        (356, "one encoder"),
        (506, "one head"),
        (610, "logits"),
        (726, "mean"),
    ):
        draw.text(x, 34, words, 13, weight="bold")
    for x, words in (
        (70, "x_i"),
        (184, "own weights"),
        (356, "shared weights"),
        (506, "shared weights"),
        (610, "z(x_i)"),
    ):
        draw.text(x, 53, words, 11.5, MUTED)
    for number, (x, height) in enumerate(((268, 206), (312, 166), (356, 126), (400, 86)), 1):
        draw.box(x, 177 - height / 2, 36, height, f"f^{number}")
        if number < 4:
            draw.arrow((x + 36, 177), (x + 44, 177))
    draw.box(472, 132, 68, 90, "MLP\nhead")
    draw.arrow((436, 177), (472, 177))
    draw.circle(726, 177, 28, "mean", "#FFFFFF", INK)
    for modality, y in zip(STREET, rows):
        absent = modality.symbol == "E"
        draw.sensor(modality, 18, y, 104, 38, absent=absent)
        draw.sensor(modality, 152, y, 64, 38, "stem", absent=absent)
        draw.sensor(modality, 580, y, 60, 38, f"z_{modality.symbol}", absent=absent)
        if not absent:
            middle, colour = y + 19, {"colour": dark(modality)}
            draw.arrow((122, middle), (152, middle), **colour)
            draw.arrow((216, middle), (268, 177 + 0.72 * (middle - 177)), **colour)
            draw.arrow((540, 177 + 0.3 * (middle - 177)), (580, middle), **colour)
            draw.arrow((640, middle), (700, 177 + 0.14 * (middle - 177)), **colour)
    draw.arrow((726, 205), (726, 246))
    draw.text(726, 264, "z(x), and with", 12.5)
    draw.text(726, 281, "softmax: p", 12.5)
    remark = "The event camera is absent here: it is not in the stack, and not in the mean over n = 3."
    draw.text(400, 306, remark, 12, MUTED)
    return str(drawing)


# name, reading, where the loss is, where its gradient is taken, what it costs: columns of ``regularizer``
ATTACHED = (
    ("R, Eq. 4", "consistency", "mean", "input", "second derivative of the network"),
    ("R_p, Eq. 6", "input", "loss", "input", "second derivative of the network"),
    ("R_p, cheap", "unimodal-logit", "logits", "logits", "closed form"),
    ("R_f, Eq. 7", "kl, ce", "features", "features", "closed form"),
    ("R_f, costly", "decoder", "loss", "features", "second derivative of the head"),
)


def regularizer() -> str:
    """Where R, R_p and R_f attach: where each loss is taken, and by what it is differentiated."""
    drawing = Drawing(
        "Where the terms R, R_p and R_f attach",
        "The network from left to right: images with noise, encoder, features at four scales, head, logits "
        "of each sensor, their mean, the cross-entropy with the label. Below it a line for each term, from "
        "the place of its loss back to the place by which it is differentiated: "
        + "; ".join(
            f"{name.replace('_', ' ')}, reading {reading}: from the {start} to the {end}, {cost}"
            for name, reading, start, end, cost in ATTACHED
        )
        + ".",
        800,
        356,
    )
    draw = drawing
    columns = {"input": 150, "features": 320, "logits": 478, "mean": 584, "loss": 708}
    for place, words in (
        ("input", "x_i + σε"),
        ("features", "f_i^j"),
        ("logits", "z_i"),
        ("mean", "p"),
        ("loss", "CE(p, label)"),
    ):
        wide = {"input": 84, "loss": 104, "features": 62}.get(place, 52)
        for number, modality in enumerate((STREET[0], STREET[3])):
            if place in ("input", "features", "logits"):
                draw.sensor(modality, columns[place] - wide / 2, 46 + 44 * number, wide, 34, words)
        if place in ("mean", "loss"):
            draw.box(columns[place] - wide / 2, 68, wide, 34, words, "#FFFFFF", INK)
    draw.box(209, 46, 60, 78, "encoder", size=12)
    draw.box(373, 46, 50, 78, "head", size=12)
    for y, modality in zip((63, 107), (STREET[0], STREET[3])):
        style = {"colour": dark(modality)}
        draw.text(100, y + 4.5, modality.name, 12.5, dark(modality), "end")
        for start, end in ((192, 209), (269, 289), (351, 373), (423, 452)):
            draw.arrow((start, y), (end, y), **style)
        draw.arrow((504, y), (558, 85 + 0.2 * (y - 85)), **style)
    draw.arrow((610, 85), (656, 85))
    draw.text(320, 34, "four scales j", 11.5, MUTED)
    draw.text(584, 34, "mean of the\nsensors", 11.5, MUTED)
    for x in columns.values():
        draw.line((x, 132), (x, 330), colour="#DDDDDD", width=1)
    for number, (name, reading, start, end, cost) in enumerate(ATTACHED):
        y = 152 + 40 * number
        draw.text(14, y, name, 13, anchor="start", weight="bold")
        draw.text(14, y + 16, reading, 11.5, MUTED, "start")
        first, last = columns[start], columns[end]
        if start == end:  # the loss is taken where its gradient is: a loop
            draw.arrow((first + 16, y - 5), (first + 16, y + 7), (first + 3, y + 7), colour=INK, width=1.8)
            draw.circle(first + 16, y - 6, 4.5, fill=INK, line=INK)
            draw.text(first + 30, y + 6, cost, 11.5, MUTED, "start", halo=True)
        else:
            draw.arrow((first, y), (last + 2, y), colour=INK, width=1.8)
            for place in (start, "logits") if start == "mean" else (start,):  # Eq. 4 compares z_i with p
                draw.circle(columns[place], y, 4.5, fill=INK, line=INK)
            draw.text((first + last) / 2, y + 17, cost, 11.5, MUTED, halo=True)
    draw.circle(250, 345, 4.5, fill=INK, line=INK)
    draw.text(260, 349, "where the loss is taken", 11.5, MUTED, "start")
    draw.arrow((446, 345), (420, 345), colour=INK, width=1.8)
    draw.text(452, 349, "by what it is differentiated", 11.5, MUTED, "start")
    return str(drawing)


def subset_places(symbols: Sequence[str] = "RDEL") -> dict[str, tuple[float, float]]:
    """Subset -> place in the lattice: x between -1 and 1, y the number of its sensors."""
    places = {}
    for size in range(1, len(symbols) + 1):
        names = ["".join(members) for members in combinations(symbols, size)]
        for number, name in enumerate(names):
            wide = 1.0 if len(names) > len(symbols) else 0.76
            places[name] = (wide * (2 * number / (len(names) - 1) - 1) if len(names) > 1 else 0.0, size)
    return places


def inclusions(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of subsets of which the second has one sensor more."""
    return [(a, b) for a in names for b in names if len(b) == len(a) + 1 and set(a) < set(b)]


def subset_lattice() -> str:
    """The fifteen subsets of four sensors, and the 28 ways to add one sensor to one of them."""
    drawing = Drawing(
        "The fifteen subsets of four sensors",
        "Four sensors alone at the bottom, above them six pairs, four triples, and all four at the top. A "
        "line joins two subsets that differ by one sensor; there are 28 lines.",
        800,
        330,
    )
    places = {name: (420 + 320 * x, 366 - 80 * y) for name, (x, y) in subset_places().items()}
    for lower, upper in inclusions(list(places)):
        (x0, y0), (x1, y1) = places[lower], places[upper]
        drawing.line((x0, y0 - 17), (x1, y1 + 17), colour="#B5B5B5", width=1.1)
    by_symbol = {modality.symbol: modality for modality in STREET}
    for name, (x, y) in places.items():
        for number, symbol in enumerate(name):
            left = x - 14 * len(name) + 28 * number
            drawing.sensor(by_symbol[symbol], left, y - 16, 28, 32, symbol, radius=3, size=14)
    words = ("4 alone", "6 pairs", "4 triples", "all")
    for size, line in enumerate(words, 1):
        drawing.text(12, 366 - 80 * size + 5, line, 12.5, MUTED, "start")
    drawing.text(
        420,
        320,
        "  ·  ".join(f"{m.symbol} {m.name}" for m in STREET) + "  ·  a line adds one sensor",
        12,
        MUTED,
    )
    return str(drawing)


DRAWINGS = {"segmenter": segmenter, "regularizer": regularizer, "subset_lattice": subset_lattice}


def all_drawings() -> dict[str, str]:
    """File name -> SVG, of this file and of all ``drawings_*.py`` beside it."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("drawings*.py"))
    tables = [import_module(f"course.{module}").DRAWINGS for module in modules]
    return {f"{name}.svg": draw() for table in tables for name, draw in table.items()}


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parent))  # the course's own package, which is not installed
    FOLDER.mkdir(exist_ok=True)
    for name, svg in all_drawings().items():
        (FOLDER / name).write_text(svg, encoding="utf-8")
        print(f"notebooks/drawings/{name}")
