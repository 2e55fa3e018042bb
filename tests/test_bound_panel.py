"""The panel of the log-Sobolev bound: numbers against closed forms, picture and words in step with the
sliders. The figures of lessons 01 and 02: what stands in their axes against closed forms.
"""

import base64
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from course import bound_figures, bound_panel, entropy_figures
from course.bound_panel import FUNCTIONS, BoundPanel
from course.charts import BLUE, ORANGE
from course.closed_forms import bump, coupling, exponential
from matplotlib.colors import to_hex
from scipy.integrate import quad
from scipy.special import xlogy
from scipy.stats import norm

from mmlib.theory.entropy import Estimate
from mmlib.theory.gaussian import gaussian, uniform

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


# ---- figures of lesson 01 ----


def of_colour(axis, colour) -> list[np.ndarray]:
    """(2, n) points of the axis' lines of a colour, in the order in which they were drawn."""
    return [
        np.array(line.get_data(), float) for line in axis.lines if to_hex(line.get_color()) == to_hex(colour)
    ]


def outline(area) -> np.ndarray:
    """(2, n) corners of a filled area."""
    return np.concatenate([path.vertices for path in area.get_paths()]).T


def words(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_jensens_gap_is_the_same_under_the_chord_and_from_the_tangent(displayed):
    values = np.array([0.5, 3.0])
    gap = xlogy(values, values).mean() - xlogy(1.75, 1.75)
    entropy_figures.show_jensen_gap(values)
    left, right = displayed[0].axes
    for axis in (left, right):
        x, y = of_colour(axis, entropy_figures.INK)[0]
        np.testing.assert_allclose(y, xlogy(x, x))
        np.testing.assert_allclose(of_colour(axis, BLUE)[0], [values, xlogy(values, values)])
    np.testing.assert_allclose(of_colour(left, BLUE)[1], [values, xlogy(values, values)], err_msg="chord")
    (bar,) = of_colour(left, ORANGE)
    assert list(bar[0]) == [1.75, 1.75] and list(bar[1]) == pytest.approx(
        [xlogy(1.75, 1.75)] * 2 + np.array([0, gap])
    )
    tangent = np.poly1d(np.polyfit(*of_colour(right, BLUE)[1], 1))
    assert tangent(1.75) == pytest.approx(xlogy(1.75, 1.75)) and tangent[1] == pytest.approx(1 + np.log(1.75))
    far = of_colour(right, ORANGE)
    assert [list(line[0]) for line in far] == [[v, v] for v in values]
    assert [list(line[1]) for line in far] == [pytest.approx([tangent(v), xlogy(v, v)]) for v in values]
    assert np.mean([np.diff(line[1]) for line in far]) == pytest.approx(gap), "the mean distance is the gap"
    x, y = outline(right.collections[0])
    between = np.isclose(y, xlogy(x, x), atol=1e-9) | np.isclose(y, tangent(x), atol=1e-9)
    assert between.all() and y.max() > 5 and y.min() < -1.5
    assert f"entropy {gap:.3f}" in words(left)
    assert {f"{xlogy(v, v) - tangent(v):.3f}" for v in values} < set(words(right))


def test_error_bars_are_two_errors_long_and_the_runs_stand_over_the_normal_curve(displayed):
    estimates = {16: Estimate(0.4, 0.1), 64: Estimate(0.3, 0.05)}
    runs = np.array([-1.0, -0.9, 0.1, 0.2, 2.5])
    entropy_figures.show_monte_carlo(estimates, 0.31, runs)
    left, right = displayed[0].axes
    (bars,) = left.collections
    assert [list(segment[:, 1]) for segment in bars.get_segments()] == [
        pytest.approx([0.2, 0.6]),
        pytest.approx([0.2, 0.4]),
    ]
    dots = next(line for line in left.lines if line.get_marker() == "o")
    assert list(dots.get_xdata()) == [16, 64] and list(dots.get_ydata()) == [0.4, 0.3]
    assert [0.31, 0.31] in [list(line.get_ydata()) for line in left.lines], "the closed form"
    bins = np.linspace(-4, 4, 25)
    assert [bar.get_height() for bar in right.patches] == pytest.approx(
        [np.sum((low <= runs) & (runs < high)) / 5 * 3 for low, high in zip(bins, bins[1:])]
    ), "density: a share of the runs over a third, a bin's width"
    x, y = right.lines[0].get_data()
    np.testing.assert_allclose(y, norm.pdf(x))


def test_noise_weighted_by_an_exponential_is_shifted_by_its_slope(displayed):
    entropy_figures.show_moved_noise(
        {"exp(0.7 x)": (lambda x: np.exp(0.7 * x), 0.245), "1": (np.ones_like, 0)}
    )
    for axis, shift in zip(displayed[0].axes, (0.7, 0)):
        for area, middle in zip(axis.collections, (0, shift)):
            x, y = outline(area)
            assert np.all((y == 0) | np.isclose(y, norm.pdf(x - middle), rtol=2e-3, atol=1e-5))
            assert y.max() == pytest.approx(norm.pdf(0), rel=2e-3)


def test_three_sums_stand_in_units_of_the_entropy(displayed):
    """The sums of both examples in closed form: marginals of e^(cxy) are bumps of t = -1/c²."""
    signs = {"x": uniform([-1, 1]), "y": uniform([-1, 1])}
    pair = {"x": gaussian(), "y": gaussian()}
    exact = coupling(0.5).entropy
    expected = [0, 1, 2, 2 * bump(-4).entropy / exact, 1, 0.25 * 0.75**-1.5 / exact]
    entropy_figures.show_three_sums(
        {
            "signs": entropy_figures.three_sums(lambda x, y: 1 + x * y, signs),
            "pair": entropy_figures.three_sums(lambda x, y: np.exp(x * y / 2), pair),
        }
    )
    (axis,) = displayed[0].axes
    assert [bar.get_height() for bar in axis.patches] == pytest.approx(expected, abs=1e-6)
    assert words(axis) == [f"{height:.2f}" for height in expected]
    assert list(axis.lines[0].get_ydata()) == [1, 1]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in axis.patches]
    assert middles[1::3] == pytest.approx(list(axis.get_xticks())), "a name below the middle bar"
    labels = [bars.get_label() for bars in axis.containers[:3]]
    assert labels == ["printed sum", "entropy", "conditional sum"]


def test_shares_of_sensors_are_those_of_an_exponential(displayed):
    losses = {"camera": lambda r, d: np.exp(r), "both": lambda r, d: np.exp((r + d) / np.sqrt(2))}
    entropy_figures.show_shares(losses)
    whole = np.exp(0.5) / 2
    for axis, parts in zip(displayed[0].axes, ((1, 1, 0), (1, 0.5, 0.5))):
        assert [bar.get_width() for bar in axis.patches] == pytest.approx(
            [whole * p for p in parts], abs=1e-9
        )
        assert [label.get_text() for label in axis.get_yticklabels()] == ["whole", "R", "D"]


def test_the_readers_own_loss_is_drawn_by_sensor(displayed):
    entropy_figures.show_loss(lambda r, d: np.exp(0.6 * r - 0.3 * d))
    shape, bars, shares, _ = displayed[0].axes
    (bands,) = shape.collections
    for band, low, high in zip(bands.get_paths(), bands.levels, bands.levels[1:]):
        r, d = band.vertices.T
        f = np.exp(0.6 * r - 0.3 * d)
        assert len(f) == 0 or (low * 0.999 - 2e-3 < f.min() and f.max() < high * 1.001 + 2e-3)
    assert bands.zmax == pytest.approx(np.exp(0.9 * 2.5)) and bands.zmin == pytest.approx(np.exp(-0.9 * 2.5))
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([1, 1, 1]), "a product of exponentials"
    assert [bar.get_height() for bar in shares.patches] == pytest.approx([80, 20])
    assert words(shares) == ["80 %", "20 %"]
    assert [label.get_text() for label in shares.get_xticklabels()] == ["R rgb", "D depth"]
    title = bars.get_title() + bars.get_title(loc="left")
    assert title == f"Entropy {np.exp(0.45 / 2) * 0.45 / 2:.3f}"


# ---- figures of lesson 02 ----


def on_a_grid(f, density, span=(-9, 9)) -> tuple[float, float]:
    """(Ent f, half of E[f'² / f]) of a density on the line, the slope by differences of f."""
    x = np.linspace(*span, 180_001)
    weight = density(x) / density(x).sum()
    mean, slope = (weight * f(x)).sum(), np.gradient(f(x), x)
    return (weight * xlogy(f(x), f(x) / mean)).sum(), (weight * slope**2 / f(x)).sum() / 2


def test_the_bounds_of_an_exponential_over_the_width_of_the_noise(displayed):
    bound_figures.bound_against_width(lambda x: np.exp(0.7 * x), lambda x: 0.7 * np.exp(0.7 * x))
    (axis,) = displayed[0].axes
    correct, entropy, printed, one = (np.array(line.get_data(), float) for line in axis.lines)
    half = lambda s: np.exp((0.7 * s) ** 2 / 2) * 0.49 / 2
    for (s, drawn), factor in ((correct, 2), (entropy, 2), (printed, 0)):
        np.testing.assert_allclose(drawn, half(s) * s**factor, rtol=1e-6)
        assert s[0] == 0.3 and s[-1] == 2
    assert list(one[0]) == [1, 1]
    s, y = outline(axis.collections[0])
    assert s.min() >= 1 and s.max() == 2
    assert np.all(np.isclose(y, half(s), rtol=1e-6) | np.isclose(y, half(s) * s**2, rtol=1e-6))
    assert y.max() == pytest.approx(half(2) * 4) and y[s == 2].min() == pytest.approx(half(2))


def test_the_surface_and_its_picture_are_printed_bound_over_entropy(displayed):
    def ratio(s, a):
        entropy, half = on_a_grid(lambda x: np.exp(-((x / a) ** 2) / 2), norm(scale=s).pdf, (-8 * s, 8 * s))
        return half / entropy

    bound_figures.bound_surface()
    figure, picture = displayed
    surface, level = figure.data
    for i, j in ((0, 0), (18, 20), (36, 44), (30, 3)):
        assert surface.z[i][j] == pytest.approx(ratio(surface.x[j], surface.y[i]), rel=1e-4)
    np.testing.assert_allclose(surface.surfacecolor, np.log10(surface.z))
    assert np.all(level.z == 1) and list(level.x) == [surface.x[0], surface.x[-1]]
    lines, below = picture.axes[0].collections
    assert list(lines.levels) == [0.3, 0.5, 1, 2, 4, 8, 16]
    crossed = [
        (path.vertices, level) for path, level in zip(lines.get_paths(), lines.levels) if len(path.vertices)
    ]
    assert [level for _, level in crossed] == [0.5, 1, 2, 4, 8, 16]
    for points, height in crossed:
        assert ratio(*points[len(points) // 2]) == pytest.approx(height, rel=0.02)
    s, a = outline(below)
    assert max(ratio(*point) for point in zip(s[::20], a[::20])) == pytest.approx(1, abs=0.01)
    assert s.max() == 2.5 and a.max() == 2, "the corner of wide noise and wide bumps"


def test_bars_tell_how_much_of_the_bound_is_used(displayed):
    losses = {"exp": lambda x: np.exp(-0.4 * x), "bump": lambda x: np.exp(-(x**2) / 2)}
    bound_figures.share_of_the_bound(losses, sigma=1.5)
    bound_figures.tightness()
    mine, panels = (figure.axes[0] for figure in displayed)
    exact = bump(1, 1.5)
    expected = [100, 200 * exact.entropy / exact.information]
    assert [bar.get_width() for bar in mine.patches] == pytest.approx(expected, rel=1e-4)
    assert words(mine) == [f"{share:.0f} %" for share in expected] and mine.yaxis_inverted()
    assert [text.get_text() for text in mine.get_yticklabels()] == list(losses)
    normal = norm.pdf
    shares = [
        on_a_grid(lambda x, f=f: np.maximum(f(x, 1.0), 1e-300), normal) for _, _, f, _ in FUNCTIONS.values()
    ]
    assert [bar.get_width() for bar in panels.patches] == pytest.approx(
        [100 * entropy / half for entropy, half in shares], rel=1e-3
    )
    assert [text.get_text().split("\n")[0] for text in panels.get_yticklabels()] == list(FUNCTIONS)


def test_between_two_clusters_entropy_stays_and_information_vanishes(displayed):
    bound_figures.two_clusters()
    left, right = displayed[0].axes
    climb = lambda x: 1.25 + 0.75 * np.tanh(6 * x)
    mixture = lambda s: lambda x: norm.pdf(x, -1, s) + norm.pdf(x, 1, s)
    x, y = left.lines[0].get_data()
    np.testing.assert_allclose(y, climb(x))
    x, y = outline(left.collections[0])
    density = 1.8 * mixture(0.2)(x) / mixture(0.2)(1.0)
    assert np.all((y == 0) | np.isclose(y, density, rtol=1e-3, atol=1e-9)) and y.max() > 1.79
    (widths, entropies), (_, halves) = (line.get_data() for line in right.lines)
    for k in (0, 12, 24):
        expected = on_a_grid(climb, mixture(widths[k]), (-5, 5))
        assert (entropies[k], halves[k]) == pytest.approx(expected, rel=1e-3)


def test_finer_ripples_have_more_information_and_less_entropy(displayed):
    bound_figures.ripples()
    left, right = displayed[0].axes
    ripple = lambda k: lambda x: 1 + np.sin(k * x) / np.sqrt(k)
    for line, k in zip(left.lines, (3, 24)):
        x, y = line.get_data()
        np.testing.assert_allclose(y, ripple(k)(x))
        assert line.get_label() == f"k = {k}"
    (frequencies, halves), (same, entropies) = (line.get_data() for line in right.lines)
    assert list(frequencies) == list(same)
    for k, half, entropy in zip(frequencies, halves, entropies):
        assert (entropy, half) == pytest.approx(on_a_grid(ripple(k), norm.pdf), rel=1e-3)
