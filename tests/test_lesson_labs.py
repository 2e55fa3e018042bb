"""What the experiments of lessons 06 and 07 compute, against brute force on a stand-in world."""

import json
from pathlib import Path

import numpy as np
import pytest
import stub_world
import torch
from course import failure_lab, gap_records, information_lab
from course.record_figures import record_groups
from course.world_source import physical_images
from test_switchboard_panel import NAMES, network

from mmlib.evaluation.counts import confusion_matrix, miou
from mmlib.evaluation.fusion import FUSIONS
from mmlib.evaluation.statistics import paired_difference
from mmlib.segmentation.information import fisher_gap, input_information

RESULTS = Path(__file__).resolve().parents[1] / "notebooks" / "results"


class Streets:
    """Four frames, as a prepared data set gives them."""

    def __len__(self):
        return 4

    def physical(self, index):
        frame = stub_world.render_frame("street", index, "day", "", modalities=NAMES)
        images = {name: torch.as_tensor(image) for name, image in physical_images(frame).items()}
        return images, torch.as_tensor(frame.label).long()


@pytest.fixture
def net(monkeypatch):
    monkeypatch.setattr(failure_lab, "streets", lambda network: Streets())
    return network()


def score(net, images_of, rule):
    """mIoU over the four frames, each encoded anew."""
    counts = 0
    for index in range(4):
        images, label = images_of(index)
        fused = FUSIONS[rule](failure_lab.sensor_logits(net, images))
        large = torch.nn.functional.interpolate(fused, label.shape, mode="bilinear", align_corners=False)
        counts = counts + confusion_matrix(large[0].argmax(0), label, len(net.classes))
    return 100 * float(miou(counts))


def test_a_failure_changes_what_it_changes_and_no_more(net):
    def failure(images, others):
        images["rgb"] = others["rgb"]
        del images["depth"]
        return images

    def broken(index):
        images, label = Streets().physical(index)
        others, _ = Streets().physical((index + 2) % 4)
        return {"rgb": others["rgb"], "event": images["event"], "lidar": images["lidar"]}, label

    rules = {rule: FUSIONS[rule] for rule in ("mean", "agreement")}
    found = failure_lab.survival({"net": net}, failure, rules, frames=4)["net"]
    for rule in rules:
        expected = score(net, Streets().physical, rule), score(net, broken, rule)
        assert found[rule] == pytest.approx(expected, abs=1e-6) and found[rule][0] != found[rule][1]
    nothing = failure_lab.survival({"net": net}, lambda images, others: images, rules, frames=4)["net"]
    assert all(sound == same for sound, same in nothing.values())


def test_the_record_of_failures_is_read_by_rule_kind_and_sensors():
    record, groups = (
        failure_lab.Failures(RESULTS / "failures.json"),
        json.loads((RESULTS / "failures.json").read_text())["groups"],
    )
    runs = groups["street-full"]["failures"]
    black = [run["miou"]["mean"]["dark gross"]["R"] for run in runs]
    assert record.per_seed("street-full", "mean", "dark gross", "R") == black
    removed = [run["miou"]["oracle"]["removed"]["RD"] for run in runs]
    assert record.per_seed("street-full", "mean", "removed", "RD") == removed
    change = record.gain("street-full", "selection", "clean")
    pairs = [run["summary"]["selection"]["clean"] - run["summary"]["mean"]["clean"] for run in runs]
    assert change.mean == pytest.approx(np.mean(pairs))


def test_gaps_while_training_and_kinds_of_training():
    information = [{"R": 4.0, "D": 2.0}, {"R": 3.0, "D": 0.5}]
    curve = [{"epoch": e, "information": i} for e, i in enumerate(information, 1)]
    unmeasured = [{"epoch": 1, "information": {"R": 1.0, "D": 0.0}}]
    groups = {"a": {"seeds": [3, 5], "curves": [curve, unmeasured]}}
    assert gap_records.gap_curves(groups, "a") == {3: ([1, 2], [2.0, 6.0])}

    def kind(subsets, prediction="none", lambda_p=0.3, features="none"):
        term = {"prediction": prediction, "lambda_p": lambda_p, "features": features}
        return gap_records.kind_of({"config": {"objective": {"subsets": subsets}, "regularizer": term}})

    assert kind("full") == "all sensors, always" and kind("full", "input") == "all sensors + a term"
    assert kind("dropout") == kind("dropout", "input", 0.0) == "dropout"
    assert kind("dropout", features="kl") == "dropout + a term"
    assert kind("singles") == "other objectives" and kind("singles", "gat") == "other objectives + a term"
    config = {"network": {"stem": "own"}, "modalities": ["R"], "objective": {"subsets": "dropout"}}
    term = {"prediction": "input", "lambda_p": 0.1, "features": "none"}
    off = term | {"prediction": "none"}
    groups = {
        "shared": {"config": config | {"network": {"stem": "shared"}, "regularizer": off}},
        "plain": {"config": config | {"regularizer": off}},
        "term": {"config": config | {"network": {"stem": "own", "weights": ""}, "regularizer": term}},
        "full": {"config": config | {"objective": {"subsets": "full"}, "regularizer": term}},
    }
    assert (
        gap_records.control_of(groups, "term") == "plain" and gap_records.control_of(groups, "full") is None
    )
    assert gap_records.controls(groups) == {"term": "plain"}
    two, three = paired_difference([2, 3], [1, 2.1]), paired_difference([2, 3, 4], [1, 2.1, 3])
    assert gap_records.called(three) == "clear gain" and "two seeds" in gap_records.called(two)
    assert {kind(s, p) for s in ("full", "dropout", "x") for p in ("none", "gat")} == set(gap_records.KINDS)


def test_ways_to_train_have_words_for_names_and_another_network_is_marked():
    groups = gap_records.several_sensors(record_groups("street_ablation"))
    titles = {name: gap_records.title_of(name) for name in groups}
    assert len(set(titles.values())) == len(groups) and not any("*" in title for title in titles.values())
    assert titles["short-full"] == "all sensors, always" and titles["short-dropout"] == "modality dropout"
    assert titles["short-variance"] == "dropout + R_p at the input, Poincaré form"
    assert titles["short-full+kl"] == "all sensors + R_f by KL, λ 0.02"
    assert titles["short-all+input"] == "all subsets + R_p at the input, λ 0.1"
    assert titles["short-shared-all"] == "all subsets, one stem for all"
    others = {name for name, group in groups.items() if gap_records.another_network(group)}
    shared = {name for name in groups if name.startswith("short-shared")}
    assert others == shared | {"short-centred", "short-cmx"} and len(shared) == 3


def test_a_filter_before_a_network_is_part_of_it():
    net = network(("rgb", "depth"))
    frames = object.__new__(information_lab.Frames)
    generator = torch.Generator().manual_seed(0)
    channels = {name: len(net.modalities[name].mean) for name in net.modalities}
    frames.images = {n: torch.randn(2, c, 16, 16, generator=generator) for n, c in channels.items()}
    frames.labels = torch.randint(0, 4, (2, 16, 16), generator=generator)
    before = lambda images: images | {"depth": 0.0 * images["depth"]}
    gap, right = information_lab.gap_and_accuracy(frames, net, before)
    blind = net(before(frames.images)).argmax(1)
    assert gap == np.inf and right == pytest.approx(100 * float((blind == frames.labels).float().mean()))
    values, _ = input_information(net, frames.images, frames.labels, sigma=0.1)
    assert information_lab.gap_and_accuracy(frames, net)[0] == pytest.approx(
        fisher_gap(values.detach().numpy().mean(1))
    )
