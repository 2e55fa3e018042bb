"""Lessons 04 and 05: their small worlds do what the text says of them, their figures show their records, and
their sentences about many rows of a record hold.
"""

import ast
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from course import readings, record_figures, regularizer_figures, subset_figures, two_sensors
from course.hover import plain
from course.lesson_04 import adds
from matplotlib import pyplot as plt
from mutating import ROOT

from mmlib.evaluation.statistics import paired_difference
from mmlib.segmentation import information
from mmlib.segmentation.regularizer import Regularizer, RegularizerConfig

SUBSETS = ROOT / "notebooks/04_segmenter_and_subsets.ipynb"
REGULARIZER = ROOT / "notebooks/05_the_regularizer.ipynb"
EVERY_STEP = {"probe_every": 1, "probe_crop": 1.0, "probe_samples": 4, "delay": 0.0}


def words(path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"\s+", " ", text)


def from_notebook(path, name: str):
    """The function or class of that name, as a lesson's cell defines it."""
    names = {"torch": torch, "F": F}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and f" {name}" in source:
            for node in ast.parse(source).body:
                if getattr(node, "name", "") == name:
                    exec(compile(ast.Module([node], []), str(path), "exec"), names)
    return names[name]


# ---- two sensors ----


def trained(weights, seed=0):
    torch.manual_seed(seed)
    return two_sensors.fit(from_notebook(SUBSETS, "MeanOfSensors")(*two_sensors.parts()), weights)


def test_the_label_is_the_square_of_a_chequerboard_and_the_cameras_side():
    inputs, label = two_sensors.draw(2000, seed=0, noise=0.0)
    assert ((inputs["camera"][:, 0] > 0) == label.bool()).all() and label.float().mean() == pytest.approx(
        4 / 9, abs=0.05
    )
    columns, rows = (
        torch.bucketize(axis, torch.tensor([-2 / 3, 2 / 3])) for axis in inputs["lidar"].T.contiguous()
    )
    assert ((columns + rows) % 2 == label).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_asked_for_both_the_lidar_is_neglected_and_asked_for_all_it_is_read(seed):
    both = two_sensors.accuracy(trained({"both": 1}, seed))
    lidar = two_sensors.accuracy(trained({"lidar": 1}, seed))
    every = two_sensors.accuracy(trained({"camera": 1, "lidar": 1, "both": 1}, seed))
    assert both["camera"] > 97 and both["both"] > 97 and both["lidar"] < 72
    assert lidar["lidar"] > 92 and every["lidar"] > 92 and min(every["camera"], every["both"]) > 97


def test_weights_that_ask_for_nothing_are_refused():
    for weights in ({}, {"both": 0}, {"camera": -1, "both": 1}, {"radar": 1}):
        with pytest.raises(ValueError, match="expected numbers of 0 or more"):
            trained(weights)


# ---- the record of subsets ----


def test_the_lattice_shows_the_record():
    groups = record_figures.record_groups("street_subsets")
    figure = plain(subset_figures.lattice(groups).to_plotly_json())
    edges, nodes = figure["data"]
    assert len(nodes["x"]) == 15 and edges["x"].count(None) == 28
    buttons = figure["layout"]["updatemenus"][0]["buttons"]
    means = {
        label: [np.mean(seeds) for seeds in groups[name]["miou"]["all"].values()]
        for name, label in subset_figures.OBJECTIVES.items()
    }
    *trainings, last = [button["args"][0]["marker.color"][0] for button in buttons]
    names = list(groups["street-full"]["miou"]["all"])
    drawn = [re.match(r"<b>(\w+)</b>", words)[1] for words in nodes["text"]]
    order = [names.index(name) for name in drawn]
    for values, expected in zip(trainings, means.values()):
        np.testing.assert_allclose(values, np.array(expected)[order], atol=0.051)
    gain = np.subtract(means["all subsets at once"], means["all sensors, always"])[order]
    np.testing.assert_allclose(last, gain, atol=0.051)
    assert all(words.startswith(f"<b>{name}</b>") for name, words in zip(drawn, nodes["hovertext"]))
    plt.close(subset_figures.lattice_picture(groups))


def test_what_lesson_04_says_of_the_weather():
    assert "Fog takes points from every sensor, and from all four together" in words(SUBSETS)
    assert "at night the camera falls, and the LiDAR does not" in words(SUBSETS)
    miou = record_figures.record_groups("street_subsets")["street-all-subsets"]["miou"]
    change = {
        (condition, s): np.mean(np.subtract(miou[f"condition={condition}"][s], miou["condition=day"][s]))
        for condition in ("fog", "night")
        for s in ("R", "D", "E", "L", "RDEL")
    }
    assert all(change["fog", s] < -1 for s in ("R", "D", "E", "L", "RDEL"))
    assert change["night", "R"] < -1 and change["night", "L"] >= 0


def test_what_lesson_04_says_a_sensor_adds():
    assert "Each sensor adds more to the network that was trained with all sensors always" in words(SUBSETS)
    groups = record_figures.record_groups("street_subsets")
    always, subsets = (
        {s: np.mean(seeds) for s, seeds in groups[name]["miou"]["all"].items()}
        for name in ("street-full", "street-all-subsets")
    )
    assert all(adds(always, sensor) > adds(subsets, sensor) + 1 for sensor in "RDEL")


# ---- the regulariser ----


def gap_and_loss(term=None):
    return [values[-1] for values in from_loop(term)]


def from_loop(term):
    names = from_notebook(REGULARIZER, "train_with").__globals__
    names |= {
        "readings": readings,
        "info": __import__("mmlib.segmentation.information").segmentation.information,
    }
    return names["train_with"](term)


def test_the_term_closes_the_gap_of_a_world_in_which_it_is_right_to_lean():
    gap, loss = gap_and_loss()
    closed, paid = gap_and_loss(
        Regularizer(RegularizerConfig(prediction="input", lambda_p=0.1, **EVERY_STEP))
    )
    assert 2.5 < gap < 9.5 and 1 <= closed < 2 and 1 < paid / loss < 1.1


def test_the_truth_of_that_world_deserves_a_gap_of_nine():
    torch.manual_seed(0)
    images, label = readings.scene()

    def margin(images):
        m = readings.CAMERA * images["camera"][:, :1] + readings.RADAR * images["radar"][:, :1]
        return torch.cat([-m, m], 1)

    assert (margin(images).argmax(1) == label).float().mean() == 1
    assert information.fisher_gap(
        information.input_information(margin, images, label)[0].detach().mean(1)
    ) == pytest.approx(9, rel=1e-3)


def test_cross_entropy_of_features_repels_and_divergence_does_not():
    apart = {reading: readings.descend(reading) for reading in ("ce", "kl")}
    assert apart["ce"][-1] > 10 * apart["ce"][0] and apart["kl"][-1] < 1.5 * apart["kl"][0]


def test_effects_are_paired_differences_to_their_own_reference():
    found = {effect.group: effect for effect in regularizer_figures.effects()}
    groups = record_figures.record_groups("street_ablation")
    effect, mean = found["short-all+input"], lambda group: groups[group]["summary"]["all"]["mean"]
    expected = paired_difference(mean("short-all+input"), mean("short-all-subsets")[:3])
    assert effect.change["mean"] == expected and effect.clear == (
        expected.clear or effect.change["full"].clear
    )
    figure = plain(regularizer_figures.plane(list(found.values())).to_plotly_json())
    drawn = figure["data"][::2]  # between them stand the legend's dots
    for trace in drawn:
        mine = [e for e in found.values() if e.setting.title == trace["name"]]
        np.testing.assert_allclose(trace["x"], [e.change["full"].mean for e in mine], atol=0.006)
        np.testing.assert_allclose(trace["y"], [e.change["mean"].mean for e in mine], atol=0.006)
    assert sum(len(trace["x"]) for trace in drawn) == len(found)
    worst = figure["layout"]["updatemenus"][0]["buttons"][1]["args"][0]["y"]
    assert sum(worst, []) == pytest.approx([e.change["min"].mean for e in found.values()], abs=0.006)


def test_terms_with_one_seed_are_named_and_not_drawn(monkeypatch):
    record = record_figures.record_groups("street_ablation")
    for key in ("full", "mean", "min", "gap"):
        values = record["short-gat"]["summary"]["all"][key]
        record["short-gat"]["summary"]["all"][key] = values[:1]
    record["short-gat"]["seeds"] = record["short-gat"]["seeds"][:1]
    del record["short-ce"]
    monkeypatch.setattr(regularizer_figures, "record_groups", lambda name: record)
    found = regularizer_figures.effects(regularizer_figures.SETTINGS[:1])
    assert not {"short-gat", "short-ce"} & {effect.group for effect in found} and len(found) > 8
    table = regularizer_figures.effect_table(found)
    for term in ("Gat et al. as coded", "R_f ce, Σ 1/I"):
        assert f"fewer than two seeds recorded: {term} (streets, modality dropout)" in table


def test_what_lesson_05_says_of_all_terms():
    said = "in none of the recorded comparisons does a training with it score clearly better"
    assert said in words(REGULARIZER) and "Wherever the difference is clear, it is a loss" in words(
        REGULARIZER
    )
    found = regularizer_figures.effects()
    for key in ("full", "mean"):
        counts = regularizer_figures.counted(found, key)
        assert counts["clear gain"] == 0 and counts["clear loss"] > 5
