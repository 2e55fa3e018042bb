"""Lesson 03: its panel's maps add up to the library's information and follow the controls; what it says of
its own training loop holds; its figures draw what they say.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from course import information_figures, information_panel
from course.easy_and_hard import TwoSensors, batch, show_sweep, sweep
from course.information_panel import InformationPanel, colour_map, information_maps, prepared
from course.world_source import WorldSource
from scipy.special import xlogy
from scipy.stats import norm

from mmlib.segmentation.information import input_information
from mmlib.segmentation.network import load_segmenter
from mmlib.segmentation.regularizer import Regularizer, RegularizerConfig

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
pytestmark = pytest.mark.usefixtures("no_figure_stays_open")


@pytest.fixture(scope="module")
def network():
    return load_segmenter(NOTEBOOKS / "results" / "street_full.safetensors")


@pytest.fixture(scope="module")
def panel(network):
    return InformationPanel({"one": network, "other": network}, WorldSource("street"))


def test_maps_add_up_to_the_information(network):
    images, label = WorldSource("street").frame(1, "night", "", tuple(network.modalities))
    label[:20] = 255  # pixels that are not labelled count nowhere
    images, label = prepared(network, images, label)
    maps, noisy, loss = information_maps(network, images, label, sigma=0.2)
    expected, f = input_information(network, images, label, sigma=0.2)
    assert [maps[name].sum() for name in maps] == pytest.approx(expected[:, 0].tolist(), rel=1e-4)
    assert loss == pytest.approx(f.item()) and list(maps) == list(images)
    differ = (noisy["rgb"] - images["rgb"][0]).std().item()
    assert differ == pytest.approx(0.2, rel=0.02)


def test_the_map_s_colours_are_fixed():
    dark, middle, bright = colour_map(np.array([[1e-5, 1.0, 1e5]]))[0].astype(int).sum(-1)
    assert dark < middle < bright and (colour_map(np.array([[0.01]])) == colour_map(np.zeros((1, 1)))).all()


def test_every_control_redraws_and_says_so(panel):
    start = panel.state()
    for control, value in ((panel.sigma, 0.5), (panel.light, "night"), (panel.network, "other")):
        before = panel.pictures.value, panel.state(), panel.status.value
        control.value = value
        assert panel.state()["error"] == "" and panel.state() != before[1]
        if control is not panel.network:  # the two are one network here
            assert panel.pictures.value != before[0] and panel.status.value != before[2]
    grown = panel.state()["information"]["lidar"] / start["information"]["lidar"]
    assert 10 < grown < 60, "a fivefold σ: about 25 times the information"
    alts = re.findall(r'alt="([^"]+)"', panel.pictures.value)
    assert len(alts) == 8 and all(len(alt) > 20 for alt in alts)
    total = sum(panel.state()["information"].values())
    assert f"information of all sensors {total:.3g}" in panel.status.value


def test_its_text_form_is_constant_and_it_has_a_still_picture(panel):
    assert repr(panel) == "InformationPanel(networks=one | other)"
    assert len(panel.figure().axes) == 8
    assert panel.sigma.tooltip and panel.light.tooltip and panel.network.tooltip


def test_a_callback_never_raises(network, monkeypatch):
    panel = InformationPanel({"one": network}, WorldSource("street"))
    monkeypatch.setattr(information_panel, "picture", lambda *a: 1 / 0)
    panel.sigma.value = 0.3
    assert panel.state()["error"].startswith("ZeroDivisionError") and "Could not update" in panel.status.value


def test_by_night_the_camera_has_more_information_than_by_day():
    """Lesson 03 says so of both networks."""
    for kind in ("full", "all-subsets"):
        panel = InformationPanel(
            {kind: load_segmenter(NOTEBOOKS / "results" / f"street_{kind}.safetensors")},
            WorldSource("street"),
        )
        day, night = (panel.set(light=light)["information"]["rgb"] for light in ("day", "night"))
        assert night > 1.5 * day


@pytest.fixture(scope="module")
def train():
    """The function as the lesson's cell defines it."""
    cells = json.loads((NOTEBOOKS / "03_from_bound_to_loss.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(c["source"]) for c in cells if "".join(c["source"]).startswith("def train(")]
    names = {
        "torch": torch,
        "F": F,
        "TwoSensors": TwoSensors,
        "batch": batch,
        "Regularizer": Regularizer,
        "RegularizerConfig": RegularizerConfig,
    }
    exec(source, names)
    return names["train"]


def test_what_the_lesson_says_of_its_sweep(train):
    found = sweep(train, lambdas=(0, 0.01, 0.1), forms=("balance",), seeds=5)["balance"]
    medians = {lam: {key: np.median(v) for key, v in values.items()} for lam, values in found.items()}
    assert medians[0]["gap"] > medians[0.01]["gap"] > medians[0.1]["gap"] and medians[0.1]["gap"] < 4
    assert 65 < medians[0]["hard"] < 99, "the hard sensor alone is above a coin and has room to gain"
    assert max(medians[lam]["hard"] for lam in (0.01, 0.1)) < 65, "and is read worse"
    assert min(medians[lam][key] for lam in (0, 0.01, 0.1) for key in ("both", "easy")) > 97


def test_the_inverse_form_inflates(train):
    found = sweep(train, lambdas=(0.01, 0.1), forms=("inverse",), seeds=10)["inverse"]
    assert np.median(found[0.01]["gap"]) < 2 < np.median(found[0.1]["gap"]), "the gap opens again"
    for key in ("both", "easy"):  # in 12 of 30 runs worse than a coin
        assert min(found[0.1][key]) < 50 < min(found[0.01][key])


def test_a_late_term_closes_the_gap_at_no_loss_and_no_gain(train):
    found = sweep(train, lambdas=(0, 0.1), seeds=2, steps=300, delay=0.5)["balance"]
    assert all(found[0]["gap"] > 1.8 * found[0.1]["gap"]) and all(found[0.1]["gap"] < 1.5)
    assert all(abs(found[0.1]["hard"] - found[0]["hard"]) < 4) and min(found[0.1]["hard"]) > 90


def test_neither_channel_of_the_hard_sensor_tells_the_class():
    images, label = batch(200, torch.Generator().manual_seed(0))
    sign = 2.0 * label - 1
    for channel in images["hard"].unbind(1):
        assert abs((channel * sign).mean()) < 0.03
    assert (images["hard"].prod(1) * sign).mean() == pytest.approx(1, abs=0.03)


# ---- figures ----


def test_the_area_under_the_heat_flows_information_is_the_entropy_that_is_lost(displayed):
    """1/2 + x², whose flow is known: e^-2t x² + 3/2 - e^-2t."""
    grid = np.linspace(-10, 10, 20_001)
    weight = norm.pdf(grid) * (grid[1] - grid[0])
    flow = lambda x, t: np.exp(-2 * t) * (x**2 - 1) + 1.5
    entropy = lambda t: float((weight * xlogy(flow(grid, t), flow(grid, t) / 1.5)).sum())
    f, slope = lambda x: flow(x, 0), lambda x: 2 * x
    heated = lambda g, t: (lambda x: flow(x, t)) if g is f else (lambda x: 2 * np.exp(-t) * x)
    information_figures.heat_flow(f, slope, heated)
    left, right = displayed[0].axes
    for line, t in zip(left.lines, (0, 0.1, 0.4, 1.5), strict=True):
        x, y = line.get_data()
        assert line.get_label() == f"t = {t:g}" and np.allclose(y, flow(x, t)) and x.min() == -3
    (times, limit), (same, rates) = (line.get_data() for line in right.lines)
    assert list(times) == list(same) and times[0] == 0 and times[-1] == 2.5
    np.testing.assert_allclose(limit, np.exp(-2 * times) * rates[0])
    for end in (20, 50):
        lost = np.trapezoid(rates[: end + 1], times[: end + 1])
        assert lost == pytest.approx(entropy(0) - entropy(times[end]), rel=0.01)
    lines = {"limit": limit, "rates": rates, "0": 0 * times}
    for area, (low, high) in zip(right.collections, (("rates", "limit"), ("0", "rates"))):
        x, y = area.get_paths()[0].vertices.T
        ends = [np.interp(x, times, lines[name]) for name in (low, high)]
        assert np.all(np.isclose(y, ends[0]) | np.isclose(y, ends[1]))
        assert all(np.isclose(y, end).sum() > 45 for end in ends)


def test_the_forms_push_is_the_slope_of_what_stands_beside_it(displayed):
    information_figures.forms()
    left, right = displayed[0].axes
    closed = {
        "inverse": lambda r: 1 + 1 / r,
        "balance": lambda r: (1 + r) * (1 + 1 / r) / 4 - 1,
        "share": lambda r: np.log((1 + r) / 2) - np.log(r) / 2,
    }
    for (name, form), value, push in zip(closed.items(), left.lines, right.lines):
        ratio, drawn = value.get_data()
        assert value.get_label() == name and ratio.min() < 0.1 and ratio.max() > 10
        np.testing.assert_allclose(drawn, form(ratio), atol=1e-12)
        down = (form(ratio * np.exp(-1e-5)) - form(ratio * np.exp(1e-5))) / 2e-5  # per ln I₂
        np.testing.assert_allclose(push.get_xdata(), ratio)
        np.testing.assert_allclose(push.get_ydata(), down, atol=1e-6)
        assert np.all(push.get_ydata()[ratio < 0.99] > 0), "a smaller information is raised"
    assert [list(axis.lines[3].get_xdata()) for axis in (left, right)] == [[1, 1]] * 2
    assert list(right.lines[4].get_ydata()) == [0, 0]


def test_shares_add_up_to_a_hundred(displayed):
    readings = {
        "one": {"rgb": 3.0, "depth": 1.0, "lidar": 4.0},
        "other": {"rgb": 10, "depth": 80, "lidar": 10},
    }
    information_figures.shares(readings, "t")
    (axis,) = displayed[0].axes
    expected = {"R rgb": [37.5, 10], "D depth": [12.5, 80], "L lidar": [50, 10]}
    for bars, (name, heights) in zip(axis.containers, expected.items(), strict=True):
        assert bars.get_label() == name and [bar.get_height() for bar in bars] == pytest.approx(heights)
        assert [round(bar.get_x() + bar.get_width() / 2) for bar in bars] == [0, 1]
    assert list(axis.lines[0].get_ydata()) == pytest.approx([100 / 3] * 2)


def test_a_sweep_is_drawn_by_form_sensor_and_seed(displayed):
    seeds = {
        (form, lam): {
            key: np.array([k, k + 1, k + 5.0]) + more for k, key in enumerate(("both", "easy", "hard", "gap"))
        }
        for more, (form, lam) in enumerate([("balance", 0), ("balance", 0.1), ("share", 0), ("share", 0.1)])
    }
    show_sweep({form: {lam: seeds[form, lam] for lam in (0, 0.1)} for form in ("balance", "share")})
    *forms, gaps = displayed[0].axes
    for axis, form, gap in zip(forms, ("balance", "share"), gaps.lines, strict=True):
        medians = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
        assert list(medians) == ["both", "easy alone", "hard alone"]
        for key, line in zip(("both", "easy", "hard"), medians.values()):
            assert list(line.get_xdata()) == [0, 1]
            assert list(line.get_ydata()) == [np.median(seeds[form, lam][key]) for lam in (0, 0.1)]
            dots = [
                other for other in axis.lines if other.get_alpha() and other.get_color() == line.get_color()
            ]
            assert [list(other.get_ydata()) for other in dots] == [
                list(seeds[form, lam][key]) for lam in (0, 0.1)
            ]
            assert [list(other.get_xdata()) for other in dots] == [[0] * 3, [1] * 3]
        assert [50, 50] in [list(line.get_ydata()) for line in axis.lines], "a coin"
        assert list(gap.get_ydata()) == [np.median(seeds[form, lam]["gap"]) for lam in (0, 0.1)]
        assert gap.get_label() == form and [t.get_text() for t in axis.get_xticklabels()] == ["0", "0.1"]
