"""The lessons' drawings: files equal the code, text lies inside and reads well, a screen reader has words."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from math import comb

import pytest
from course import drawings
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

SVG = "{http://www.w3.org/2000/svg}"
ALL = drawings.all_drawings()


def luminance(colour: str) -> float:
    """Relative luminance of the Web Content Accessibility Guidelines."""
    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_files_equal_the_code():
    written = {path.name: path.read_text(encoding="utf-8") for path in drawings.FOLDER.glob("*")}
    assert written == ALL, "run: python notebooks/course/drawings.py"


@pytest.mark.parametrize("name", ALL)
def test_a_drawing_is_read_aloud_fits_and_has_contrast(name):
    root = ElementTree.fromstring(ALL[name])
    assert [len(root.find(f"{SVG}{tag}").text) > 12 for tag in ("title", "desc")] == [True, True]
    width, height = (float(root.get(side)) for side in ("width", "height"))
    fills = []  # (box, fill), in the order of drawing
    for part in root:
        get = lambda key, part=part: float(part.get(key, 0))
        if part.tag == f"{SVG}rect":
            box = get("x"), get("y"), get("x") + get("width"), get("y") + get("height")
            fills.append((box, part.get("fill")))
        if part.tag == f"{SVG}circle":
            x, y, r = get("cx"), get("cy"), get("r")
            fills.append(((x - r, y - r, x + r, y + r), part.get("fill")))
        if part.tag != f"{SVG}text":
            continue
        words, size = "".join(part.itertext()), get("font-size")
        font = FontProperties(family="DejaVu Sans", weight=part.get("font-weight"))
        wide = TextPath((0, 0), words.replace("$", " "), size=size, prop=font).get_extents().width
        left = get("x") - wide * {"start": 0, "middle": 0.5, "end": 1}[part.get("text-anchor")]
        assert 0 <= left and left + wide <= width and size <= get("y") <= height - 4, words
        middle = left + wide / 2, get("y") - size / 3
        under = [(b, f) for b, f in fills if b[0] <= middle[0] <= b[2] and b[1] <= middle[1] <= b[3]]
        box, fill = under[-1]
        assert box[0] <= left and left + wide <= box[2], f"{words!r} is wider than its box"
        assert contrast(part.get("fill"), fill) >= 4.5, f"{words!r} on {fill}"


def test_the_lattice_has_every_subset_and_every_inclusion():
    for count in (1, 2, 3, 4):
        names = list(drawings.subset_places("RDEL"[:count]))
        assert len(names) == 2**count - 1 == len(set(names))
        links = drawings.inclusions(names)
        assert len(links) == sum(comb(count, k) * k for k in range(2, count + 1))
    places = drawings.subset_places()
    for size in (1, 2, 3):
        row = sorted(x for name, (x, y) in places.items() if y == len(name) == size)
        assert len(row) == comb(4, size) and all(b - a > 0.3 for a, b in pairwise(row))


def test_text_is_set_low_and_high_and_escaped():
    assert drawings.marked_up("a < b") == "a &lt; b"
    assert re.sub("<[^>]*>", "", drawings.marked_up("R_p + f_i^{j,k} + x")) == "Rp + fij,k + x"
    shifts = [
        float(dy) * (0.72 if size else 1)
        for dy, size in re.findall(r'dy="([^"]+)em"( font-size)?', drawings.marked_up("R_p + f_i^{jk} + x"))
    ]
    assert sum(shifts) == pytest.approx(0, abs=0.01), "the line returns to its baseline"
