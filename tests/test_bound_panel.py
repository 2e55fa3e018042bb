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


@pytest.fixture
def panel():
    return BoundPanel()


def drawing(panel) -> ET.Element:
    """The picture must be well-formed, or the browser shows nothing."""
    return ET.fromstring(base64.b64decode(re.search(r"base64,([^\"]+)", panel.picture.value)[1]))


def bars(panel) -> list[tuple[float, str]]:
    """(width, colour) of the three bars: entropy, printed bound, bound with Σ."""
    found = [r for r in drawing(panel) if r.tag.endswith("rect") and r.get("height") == "26"]
    return [(float(r.get("width")), r.get("fill")) for r in found]


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


def test_a_violation_turns_the_bar_red_and_is_said(panel):
    panel.set("exponential", 0.7, 1.8)
    (entropy, _), (printed, colour), (correct, green) = bars(panel)
    assert colour == bound_panel.VIOLATED and green == bound_panel.HOLDS and printed < entropy == correct
    assert printed / entropy == pytest.approx(0.5419 / 1.7557, rel=1e-2)
    assert (
        "is violated" in panel.status.value
        and "entropy 1.756, printed bound 0.542, bound with Σ 1.756" in panel.status.value
    )
    assert "1.756" in panel.picture.value and "0.542" in panel.picture.value
    panel.sigma.value = 0.8
    assert (
        bars(panel)[1][1] != bound_panel.VIOLATED
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
        'alt="f = 1.1 + sin(3 a x) with a = 1.1 under noise of standard deviation 1.4: entropy'
        in panel.picture.value
    )
    assert panel.a.description == "frequency a"


def test_a_wider_noise_is_drawn_wider(panel):
    def width(sigma):
        panel.set("exponential", 0.1, sigma)
        polygon = next(e for e in drawing(panel) if e.tag.endswith("polygon"))
        points = np.array([[float(v) for v in p.split(",")] for p in polygon.get("points").split()])
        return (points[:, 1] < 249).sum()

    assert width(2.0) > 1.5 * width(0.5)


def test_controls_can_be_reached_and_say_what_they_are(panel):
    for control in (panel.function, panel.a, panel.sigma):
        assert control.description and control.tooltip and not control.disabled
    assert not panel.a.continuous_update and not panel.sigma.continuous_update, "one redraw a move"
    assert len(panel.function.tooltips) == len(FUNCTIONS) and "aria-live" in panel.status.value


def test_its_text_form_is_constant_and_short(panel):
    text = repr(panel)
    panel.set("wave", 2.0, 2.0)
    assert repr(panel) == text == "BoundPanel(functions=exponential | square | bump | step | wave)"


def test_a_callback_never_raises(panel, monkeypatch):
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
