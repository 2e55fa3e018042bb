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


def test_what_a_network_reads_is_drawn_as_it_answers():
    """Two networks without parameters: one is right from the LiDAR and always calls road without it, the
    other takes the camera's word.
    """

    def squares(images):
        points = images.get("lidar", torch.zeros_like(images.get("camera", torch.zeros(1, 2))) - 1.9)
        car = (((points + 2) * 3 / 4).floor().sum(1) % 2).float()
        return torch.stack([-car, car], 1) * 9

    def side(images):
        x = images.get("camera", images.get("lidar"))[:, 0]
        return torch.stack([-x, x], 1)

    fig = two_sensors.what_it_reads({"squares": squares, "side": side})
    first, second = fig.axes[:3], fig.axes[3:6]
    of_nine = [(i + j) % 2 for i in range(3) for j in range(3)]
    always_road = 100 * of_nine.count(0) / 9
    assert [list(axis.lines[0].get_xdata()) for axis in (first[2], second[2])] == [
        [pytest.approx(always_road)] * 2
    ] * 2
    widths = [bar.get_width() for bar in first[2].patches]
    assert widths == [pytest.approx(always_road, abs=2.5), 100, 100]
    assert [bar.get_width() for bar in second[2].patches][0] > 97
    for axis in (first[2], second[2]):
        assert [text.get_text() for text in axis.texts] == [
            f"{bar.get_width():.0f} %" for bar in axis.patches
        ]
        assert [round(bar.get_y() + 0.3) for bar in axis.patches] == [0, 1, 2]
    x = np.linspace(-2, 2, 121)
    for axis in second[:2]:
        np.testing.assert_allclose(axis.images[0].get_array()[7], 1 / (1 + np.exp(-2 * x)), atol=1e-6)
        assert axis.images[0].get_extent() == [-2, 2, -2, 2] and axis.images[0].origin == "lower"
    road, car = (np.array(line.get_data()) for line in first[1].lines)
    for points, label in ((road, 0), (car, 1)):
        assert np.all(np.floor((points + 2) * 3 / 4).sum(0) % 2 == label)
    assert road.shape[1] + car.shape[1] == 160
    plt.close(fig)


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
    assert all(y == len(name) for name, y in zip(drawn, nodes["y"])), "a row for each number of sensors"
    at = {place: name for name, *place in zip(drawn, nodes["x"], nodes["y"]) for place in [tuple(place)]}
    ends = [at[place] for place in zip(edges["x"], edges["y"]) if place[0] is not None]
    assert all(set(a) < set(b) and len(b) == len(a) + 1 for a, b in zip(ends[::2], ends[1::2]))
    picture = subset_figures.lattice_picture(groups)
    for axis, label in zip(picture.axes, (list(means)[0], list(means)[-1])):
        expected = {name: f"{name}\n{value:.0f}" for name, value in zip(names, means[label])}
        assert sorted(text.get_text() for text in axis.texts) == sorted(expected.values())
        where = {text.get_text().split()[0]: text.get_position() for text in axis.texts}
        assert [where[name] for name in drawn] == [
            pytest.approx(at, abs=1e-3) for at in zip(nodes["x"], nodes["y"])
        ]
        steps = {tuple(sorted(zip(*line.get_data()), key=lambda p: p[1])) for line in axis.lines}
        adding = {
            (where[a], where[b]) for a in where for b in where if set(a) < set(b) and len(b) == len(a) + 1
        }
        assert steps == adding and len(axis.lines) == 28
    plt.close(picture)


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


def test_ceilings_are_those_of_the_networks_trained_alone():
    score = lambda **subsets: {"summary": {"all": {}}, "miou": {"all": subsets}}
    groups = {
        "joint": score(R=[10.0, 14.0], D=[20.0, 21.0], RD=[30.0, 33.0]),
        "other": score(R=[1.0, 3.0], D=[2.0, 2.5], RD=[40.0, 41.0]),
        "R": score(R=[50.0, 54.0]),
        "D": score(D=[60.0, 61.0]),
    }
    fig = subset_figures.ceilings(groups, {"joint": "J", "other": "O"}, {"R": "R", "D": "D"})
    (axis,) = fig.axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata()), line.get_marker()) for line in axis.lines]
    bars = [(x, y) for x, y, marker in drawn if marker == "None" and len(x)]
    assert [(sum(x), y) for x, y in bars] == [(pytest.approx(0), [52, 52]), (pytest.approx(2), [60.5, 60.5])]
    for name, marker in (("joint", "s"), ("other", "D")):
        expected = groups[name]["miou"]["all"]
        mine = [(x, y) for x, y, kind in drawn if kind == marker]
        rings, dots = mine[::2], mine[1::2]
        assert [y for _, y in rings] == list(expected.values())
        assert [y for _, y in dots] == [[np.mean(seeds)] for seeds in expected.values()]
        assert [round(x[0]) for x, _ in rings] == [round(x[0]) for x, _ in dots] == [0, 1, 2]
    assert [text.get_text() for text in axis.get_xticklabels()] == [
        "R rgb alone",
        "D depth alone",
        "all of them",
    ]
    plt.close(fig)


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


def test_dead_ends_and_runs_are_drawn_as_they_were_measured():
    p = np.linspace(0.2, 0.9, 8)
    apart = {"ce": np.geomspace(0.1, 3, 60), "kl": np.geomspace(0.1, 0.2, 60)}
    fig = readings.two_dead_ends(p, (p - 0.5) ** 2 + 1, apart)
    left, right = fig.axes
    assert list(left.lines[0].get_xdata()) == list(p)
    assert list(left.lines[0].get_ydata()) == list((p - 0.5) ** 2 + 1)
    assert left.lines[1].get_data() == ([0.5], [1.0]) and left.texts[0].get_text() == "least at p = 0.500"
    for line, text, (reading, distances) in zip(right.lines, right.texts, apart.items(), strict=True):
        assert list(line.get_ydata()) == list(distances) and text.get_color() == line.get_color()
        assert ("cross-entropy" if reading == "ce" else "KL") in text.get_text()
    runs = {"without": ([9.0, 8.0], [0.5, 0.4]), "with": ([9.0, 1.5], [0.5, 0.45])}
    both = readings.gaps_and_losses(runs)
    for axis, k in zip(both.axes, (0, 1)):
        assert [list(line.get_ydata()) for line in axis.lines] == [columns[k] for columns in runs.values()]
    assert [line.get_label() for line in both.axes[0].lines] == list(runs)
    plt.close(fig)
    plt.close(both)


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
    picture = regularizer_figures.plane_picture(list(found.values()))
    across, up, *lines = picture.axes[0].lines
    assert list(across.get_ydata()) == list(up.get_xdata()) == [0, 0]
    lines = [line for line in lines if len(line.get_xdata())]  # without the legend's
    for effect, wide, high, dot in zip(found.values(), lines[::3], lines[1::3], lines[2::3], strict=True):
        x, y = effect.change["full"], effect.change["mean"]
        assert [*wide.get_xdata(), *wide.get_ydata()] == [x.low, x.high, y.mean, y.mean]
        assert [*high.get_xdata(), *high.get_ydata()] == [x.mean, x.mean, y.low, y.high]
        assert [*dot.get_xdata(), *dot.get_ydata()] == [x.mean, y.mean]
        assert (dot.get_markerfacecolor() == "white") != effect.clear
    plt.close(picture)


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
