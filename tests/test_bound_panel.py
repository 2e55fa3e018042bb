"""The panel of the log-Sobolev bound: numbers against closed forms, picture and words in step with the
sliders.
"""

import base64
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from course import bound_panel
from course.bound_panel import FUNCTIONS, BoundPanel
from course.closed_forms import bump, exponential
from scipy.integrate import quad

from mmlib.theory.gaussian import gaussian

pytestmark = pytest.mark.usefixtures("no_figure_stays_open")


@pytest.fixture
def panel():
    return BoundPanel()


def drawings(panel) -> list[ET.Element]:
    """The two charts; each must be well-formed, or the browser shows nothing."""
    return [ET.fromstring(base64.b64decode(d)) for d in re.findall(r"base64,([^\"]+)", panel.picture.value)]


def lines(chart: ET.Element, kind: str) -> dict[str, np.ndarray]:
    """Colour -> points (n, 2) in pixels of the chart's lines, areas or dots."""
    found = {}
    for element in chart:
        if element.get("class") == kind and kind == "dot":
            found[element.get("fill")] = np.array([[float(element.get("cx")), float(element.get("cy"))]])
        elif element.get("class") == kind:
            colour = element.get("fill") if kind == "area" else element.get("stroke")
            found[colour] = np.array(
                [[float(v) for v in p.split(",")] for p in element.get("points").split()]
            )
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_positive_and_their_slopes_right(name):
    _, _, f, slope = FUNCTIONS[name]
    x = np.linspace(-5, 5, 501)
    for a in (0.1, 0.7, 2.0):
        difference = (f(x + 1e-6, a) - f(x - 1e-6, a)) / 2e-6
        assert (f(x, a) >= 0).all() and np.allclose(slope(x, a), difference, rtol=1e-5, atol=1e-6)


def test_numbers_agree_with_closed_forms(panel):
    shown = panel.set("exponential", 0.7, 1.8)
    assert (round(shown["entropy"], 10), round(shown["printed"], 10), round(shown["correct"], 10)) == (
        1.7557151405,
        0.541887389,
        1.7557151405,
    )
    assert shown["violated"] and not panel.set(sigma=1.0)["violated"], "equality at σ = 1 is no violation"
    assert panel.state()["entropy"] == pytest.approx(exponential(0.7, gaussian()).entropy)
    shown, exact = panel.set("bump", 1.2, 1.5), bump(1.44, 1.5)
    assert shown["entropy"] == pytest.approx(exact.entropy) and shown["correct"] == pytest.approx(
        exact.information / 2
    )
    assert shown["printed"] == pytest.approx(exact.information / 2 / 2.25)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("a", "sigma"), [(2.0, 2.0), (2.0, 0.3), (0.1, 1.3)])
def test_numbers_agree_with_adaptive_integration(panel, name, a, sigma):
    """At the ends of the sliders, where waves are fast and exponentials steep."""
    _, _, f, slope = FUNCTIONS[name]
    density = lambda x: np.exp(-((x / sigma) ** 2) / 2) / np.sqrt(2 * np.pi) / sigma
    edges = np.union1d(np.linspace(-13, 13, 105) * sigma, [a])
    mean = lambda g: sum(
        quad(lambda x: g(x) * density(x), p, q, epsabs=0, epsrel=1e-9)[0] for p, q in zip(edges, edges[1:])
    )
    m = mean(lambda x: f(x, a))
    shown = panel.set(name, a, sigma)
    assert shown["entropy"] == pytest.approx(
        mean(lambda x: f(x, a) * np.log(f(x, a) / m) if f(x, a) > 0 else 0.0), rel=1e-5
    )
    assert shown["printed"] == pytest.approx(
        mean(lambda x: slope(x, a) ** 2 / f(x, a) / 2 if f(x, a) > 0 else 0.0), rel=1e-3
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_the_form_with_sigma_always_bounds(panel, name):
    broken = 0
    for sigma in (0.3, 1.0, 2.0):
        for a in (0.1, 1.0, 2.0):
            shown = panel.set(name, a, sigma)
            assert shown["error"] == "" and shown["entropy"] <= shown["correct"] * (1 + 1e-9)
            assert shown["correct"] == pytest.approx(sigma**2 * shown["printed"])
            assert shown["violated"] == (shown["printed"] < shown["entropy"] * (1 - 1e-6)) and not (
                shown["violated"] and sigma <= 1
            )
            broken += shown["violated"]
    assert broken, "noise that is wide enough breaks the printed form for each of them"


def test_a_violation_turns_the_line_orange_and_is_said(panel):
    panel.set("exponential", 0.7, 1.8)
    dots = lines(drawings(panel)[1], "dot")
    floor, full = (lines(drawings(panel)[1], "line")[c][0, 1] for c in (bound_panel.PALE, bound_panel.HOLDS))
    share = {colour: (floor - points[0, 1]) / (floor - full) for colour, points in dots.items()}
    assert share[bound_panel.VIOLATED] == pytest.approx(1 / 1.8**2, abs=0.01)
    assert share[bound_panel.ENTROPY] == pytest.approx(1, abs=0.01)
    assert (
        "is violated" in panel.status.value
        and "entropy 1.756, printed bound 0.542, bound with Σ 1.756" in panel.status.value
    )
    assert "1.756" in panel.picture.value and "0.542" in panel.picture.value
    panel.sigma.value = 0.8
    assert (
        bound_panel.VIOLATED not in lines(drawings(panel)[1], "dot")
        and "bound <b>holds" in panel.status.value
        and "violated" not in panel.picture.value
    )


def test_every_slider_redraws_and_the_alternative_text_follows(panel):
    for change in (
        lambda: setattr(panel.a, "value", 1.1),
        lambda: setattr(panel.sigma, "value", 1.4),
        lambda: setattr(panel.function, "value", "wave"),
    ):
        before = panel.picture.value, panel.state()
        change()
        assert panel.picture.value != before[0] and panel.state() != before[1]
    assert (
        'alt="f = 1.1 + sin(3 a x) with a = 1.1, the density of the noise of standard deviation 1.4'
        in panel.picture.value
    )
    assert panel.a.description == "frequency a"


def test_axes_stay_where_they_are_and_only_the_dots_follow_the_noise(panel):
    def still(chart):
        return [ET.tostring(e) for e in chart if e.tag.endswith(("text", "path"))]

    panel.set("square", 0.7, 0.5)
    narrow, before = drawings(panel), lines(drawings(panel)[1], "dot")
    panel.sigma.value = 1.9
    wide, after = drawings(panel), lines(drawings(panel)[1], "dot")
    assert still(narrow[0]) == still(wide[0])
    f = [lines(chart, "line")[bound_panel.INK] for chart in (narrow[0], wide[0])]
    assert (f[0] == f[1]).all(), "f is drawn where it was"
    entropies = [lines(chart, "line")[bound_panel.ENTROPY] for chart in (narrow[1], wide[1])]
    assert (entropies[0] == entropies[1]).all()
    assert (before[bound_panel.ENTROPY] != after[bound_panel.ENTROPY]).any()
    areas = [lines(chart, "area")[bound_panel.NOISE] for chart in (narrow[0], wide[0])]
    assert (areas[1][:, 1] < 249).sum() > 1.5 * (areas[0][:, 1] < 249).sum(), "wider noise is drawn wider"


def test_the_still_picture_shows_the_same(panel):
    panel.set("exponential", 0.7, 1.8)
    left, right = panel.figure().axes
    titles = left.get_title(loc="left") + left.get_title()  # the style puts them to the left
    assert titles.startswith("f = exp(a x)") and right.get_ylim() == (0, 2)
    dots = [line for line in right.lines if line.get_marker() == "o"]
    assert [float(dot.get_ydata()[0]) for dot in dots] == pytest.approx([1 / 1.8**2, 1])
    assert "image/png" in panel._repr_mimebundle_()[0]


def test_controls_can_be_reached_and_say_what_they_are(panel):
    for control in (panel.function, panel.a, panel.sigma):
        assert control.tooltip and not control.disabled
    assert panel.a.continuous_update and panel.sigma.continuous_update, "it is drawn while a slider moves"
    assert len(panel.function.tooltips) == len(FUNCTIONS) and "aria-live" in panel.status.value


def test_its_text_form_is_constant_and_short(panel):
    text = repr(panel)
    panel.set("wave", 2.0, 2.0)
    assert repr(panel) == text == "BoundPanel(functions=exponential | square | bump | step | wave)"


def test_a_callback_never_raises(panel, monkeypatch):
    bound_panel.bounds.cache_clear()
    monkeypatch.setattr(
        bound_panel, "entropy", lambda *a: (_ for _ in ()).throw(RuntimeError("no <integral>"))
    )
    panel.sigma.value = 1.5
    assert (
        panel.state()["error"] == "RuntimeError: no <integral>"
        and "no &lt;integral&gt;" in panel.status.value
    )


def test_wrong_settings_are_refused(panel):
    for call in (lambda: panel.set(sigma=3), lambda: BoundPanel(sigma=3)):
        with pytest.raises(ValueError, match="standard deviation of the noise 3; expected 0.3 to 2"):
            call()
    for call in (lambda: panel.set("cube"), lambda: BoundPanel("cube")):
        with pytest.raises(ValueError, match="'cube'; expected one of exponential, square"):
            call()
