"""Lesson 03: its panel's maps add up to the library's information and follow the controls; what it says of its
own training loop holds.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from course import information_panel
from course.information_panel import InformationPanel, colour_map, information_maps, prepared
from course.easy_and_hard import TwoSensors, batch, sweep
from course.world_source import WorldSource

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
    found = sweep(train, lambdas=(0.01, 0.1), forms=("inverse",), seeds=5)["inverse"]
    assert np.median(found[0.01]["gap"]) < 2 < np.median(found[0.1]["gap"]), "the gap opens again"
    assert max(np.median(found[0.1][key]) for key in ("both", "easy")) < 50, "worse than a coin"


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
