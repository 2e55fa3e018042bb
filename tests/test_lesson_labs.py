"""What the experiments of lessons 06 and 07 compute, against brute force on a stand-in world; what the
figures of lessons 06, 07 and 11 draw.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import stub_world
import torch
from course import failure_lab, gap_records, information_lab, real_data_figures
from course.charts import BLUE
from course.record_figures import record_groups
from course.world_source import physical_images
from matplotlib.colors import to_hex
from test_switchboard_panel import NAMES, network

from mmlib.evaluation.counts import confusion_matrix, miou
from mmlib.evaluation.fusion import FUSIONS
from mmlib.evaluation.statistics import paired_difference
from mmlib.figures import DARKER
from mmlib.modalities import SENSORS
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


# ---- what the figures draw ----


def xy(line) -> list[list[float]]:
    return [list(line.get_xdata()), list(line.get_ydata())]


def heading(axis) -> str:
    return axis.get_title() + axis.get_title(loc="left")  # where it stands depends on the style


def test_information_is_drawn_by_frame_with_its_mean_and_gap(displayed):
    frames, values = SimpleNamespace(names=["rgb", "depth"]), np.array([[1.0, 3.0], [12.0, 20.0]])
    information_lab.show_information(frames, {"one": values, "other": values[::-1]})
    for axis, found in zip(displayed[0].axes, (values, values[::-1])):
        rings, means = axis.lines[::2], axis.lines[1::2]
        assert [list(line.get_ydata()) for line in rings] == found.tolist()
        assert [list(line.get_ydata()) for line in means] == [[row.mean()] * 2 for row in found]
        assert [line.get_xdata().mean() for line in rings] == pytest.approx([0, 1])
        assert [xy(line)[0] for line in means] == [[-0.3, 0.3], [0.7, 1.3]]
        band = axis.patches[0]
        assert (band.get_y(), band.get_y() + band.get_height()) == (2, 16) and heading(axis).endswith(
            "gap 8.0"
        )


def test_the_gap_is_drawn_by_noise_and_by_frames(displayed):
    """Given: a gap that tells its network, σ and seed; and frames with gaps of 2 and 8."""
    gap = lambda number, sigma, seed: 2 + number + 10 * sigma + seed
    frames = SimpleNamespace(frames=[0, 1], names=["rgb", "depth"])
    frames.information = lambda network, sigma, seed: np.array([[1.0, 1.0], [gap(network, sigma, seed)] * 2])
    found = {"one": np.array([[1.0, 1.0], [2.0, 8.0]]), "other": np.array([[3.0, 3.0], [1.0, 1.0]])}
    information_lab.show_trust(frames, {"one": 0, "other": 1}, found)
    left, right = displayed[0].axes
    sigmas = [0.01, 0.1, 0.3, 1.0]
    for number, lines in enumerate((left.lines[:3], left.lines[3:])):
        assert xy(lines[0])[1] == pytest.approx([gap(number, s, 1.5) for s in sigmas])
        assert [xy(line)[1] for line in lines[1:]] == [[gap(number, s, k) for s in sigmas] for k in (1, 2)]
        assert all(xy(line)[0] == sigmas for line in lines)
    bars = [[list(segment[:, 1]) for segment in each.get_segments()] for each in right.collections]
    assert bars[0][0] == pytest.approx([2, 8]), "one frame: its own gap"
    assert 2 <= bars[0][3][0] < bars[0][3][1] < 8, "eight frames: less certain no more"
    assert bars[1] == [pytest.approx([3, 3])] * 4, "frames that agree have no bar"
    dots = [line for line in right.lines if line.get_marker() in "oD"]
    assert [list(np.round(line.get_xdata())) for line in dots] == [[0, 1, 2, 3]] * 2
    assert dots[0].get_ydata()[2:] == pytest.approx(5, abs=0.8) and list(
        dots[1].get_ydata()
    ) == pytest.approx([3] * 4)


def test_a_filter_moves_a_network_from_the_ring_to_the_dot(displayed, monkeypatch):
    measured = {
        ("a", False): (2, 80.0),
        ("a", True): (3, 70.0),
        ("b", False): (9, 60.0),
        ("b", True): (5, 65.0),
    }
    monkeypatch.setattr(
        information_lab, "gap_and_accuracy", lambda frames, network, *before: measured[network, bool(before)]
    )
    information_lab.show_filter(None, {"A": "a", "B": "b"}, lambda images: images)
    lines = displayed[0].axes[0].lines
    for name, (line, ring, dot) in zip("ab", (lines[:3], lines[3:])):
        (x, y), (u, v) = measured[name, False], measured[name, True]
        assert (xy(line), xy(ring), xy(dot)) == ([[x, u], [y, v]], [[x], [y]], [[u], [v]])
        assert ring.get_markerfacecolor() == "white" != dot.get_markerfacecolor()


def test_bars_of_fusion_rules_are_the_records(displayed):
    record, rules = failure_lab.Failures(RESULTS / "failures.json"), ("mean", "agreement")
    ways = {"street-full": "F", "street-all-subsets": "A"}
    failure_lab.show_record(record, ways, rules)
    for axis, training in zip(displayed[0].axes, ways):
        runs = record.groups[training]["failures"]
        score = lambda rule, state, runs=runs: np.mean([run["summary"][rule][state] for run in runs])
        expected = [score(rule, state) for state in failure_lab.STATES for rule in rules]
        assert [bar.get_height() for bar in axis.patches] == pytest.approx(expected)
        assert [text.get_text() for text in axis.texts] == [f"{value:.0f}" for value in expected]
        middles = [bar.get_x() + bar.get_width() / 2 for bar in axis.patches]
        assert [text.get_position()[0] for text in axis.texts] == pytest.approx(middles)
        assert [round(middle) for middle in middles] == np.repeat(range(5), 2).tolist()
        assert [line.get_ydata()[0] for line in axis.lines] == pytest.approx(
            [score("oracle", state) for state in failure_lab.STATES]
        )
        assert [round(np.mean(line.get_xdata())) for line in axis.lines] == [0, 1, 2, 3, 4]


def test_what_survives_a_failure_best_is_blue(displayed):
    scores = {
        "one": {"mean": (60.0, 20.0), "agreement": (59.0, 50.0)},
        "two": {"mean": (40.0, 30.0), "agreement": (45.0, 25.0)},
    }
    failure_lab.show_survival(scores)
    for axis, rules, best in zip(displayed[0].axes, scores.values(), ("agreement", "mean")):
        for place, (rule, (sound, broken)) in enumerate(rules.items()):
            line, ring, dot = axis.lines[3 * place : 3 * place + 3]
            assert (xy(line), xy(ring), xy(dot)) == (
                [[sound, broken], [place] * 2],
                [[sound], [place]],
                [[broken], [place]],
            )
            assert ring.get_markerfacecolor() == "white" and axis.texts[place].get_text() == f"{broken:.0f}"
            assert (to_hex(dot.get_color()) == BLUE.lower()) == (rule == best)


def test_gaps_and_scores_while_training_are_drawn_by_seed(displayed):
    def curve(*gaps):
        return [
            {
                "epoch": e,
                "information": {"rgb": 2 * gap, "depth": 2.0},
                "miou": {"R": 10 * gap, "RD": 20 * gap},
            }
            for e, gap in enumerate(gaps, 1)
        ]

    groups = {
        "curve-full": {"seeds": [0, 1], "curves": [curve(2.0, 4.0), curve(3.0, 8.0)]},
        "curve-dropout": {"seeds": [0], "curves": [curve(1.5, 1.0)]},
    }
    gap_records.show_gap_against_training([groups])
    (
        figure,
        picture,
    ) = displayed
    expected = [[[1, 2], gaps] for gaps in ([2.0, 4.0], [3.0, 8.0], [1.5, 1.0])]
    assert [[list(trace.x), list(trace.y)] for trace in figure.data] == expected
    assert [xy(line) for line in picture.axes[0].lines] == expected
    assert [trace.legendgroup for trace in figure.data] == ["curve-full"] * 2 + ["curve-dropout"]
    gap_records.show_accuracy(groups, list(groups), ("R", "RD"))
    for axis, factor in zip(displayed[2].axes, (10, 20)):
        full = [[2, 4], [3, 8], [2.5, 6], [1.5, 1], [1.5, 1]]
        assert [xy(line) for line in axis.lines] == [[[1, 2], [factor * v for v in gaps]] for gaps in full]
        assert heading(axis) == ("R" if factor == 10 else "RD")


def test_a_dot_a_way_to_train_is_the_record(displayed):
    groups = gap_records.several_sensors(record_groups("street_ablation"))
    gap_records.show_gap_against_accuracy(groups)
    figure, picture = displayed
    for column, (key, axis) in enumerate(zip(("mean", "min"), picture.axes)):
        summary = {name: group["summary"]["all"] for name, group in groups.items()}
        where = {name: (np.mean(s["gap"]), np.mean(s[key])) for name, s in summary.items()}
        dots = [line for line in axis.lines if len(line.get_xdata())]
        assert sorted((*line.get_xdata(), *line.get_ydata()) for line in dots) == sorted(where.values())
        traces = figure.data[column::2]
        assert sorted((x, y) for trace in traces for x, y in zip(trace.x, trace.y)) == sorted(where.values())
        kinds = [gap_records.kind_of(group) for group in groups.values()]
        assert {trace.name: len(trace.x) for trace in traces} == {kind: kinds.count(kind) for kind in kinds}
        hollow = {xy for name, xy in where.items() if gap_records.another_network(groups[name])}
        drawn = [line for line in dots if line.get_markerfacecolor() == "none"]
        assert {(*line.get_xdata(), *line.get_ydata()) for line in drawn} == hollow


def test_use_is_what_a_sensors_removal_costs(displayed):
    miou = {"RD": [50.0, 52.0], "R": [40.0, 42.0], "D": [10.0, 20.0]}
    group = lambda rgb, depth, add: {
        "information": {"rgb": rgb, "depth": depth},
        "miou": {"all": miou | {"D": [10.0 + add, 20.0 + add]}},
    }
    gap_records.show_use(
        {"a": group([3.0, 5.0], [6.0, 6.0], 0), "b": group([1.0], [9.0], 5)}, ["rgb", "depth"]
    )
    rgb, depth = displayed[0].axes[0].lines
    assert xy(rgb) == [pytest.approx([40, 10]), [36, 31]] and xy(depth) == [pytest.approx([60, 90]), [10, 10]]
    assert [line.get_color() for line in (rgb, depth)] == [SENSORS[n].colour for n in ("rgb", "depth")]


def test_scores_and_protocols_are_drawn_as_they_are(displayed):
    real_data_figures.show_scores(
        {"a": {"RT": 60.0, "T": 40.0}, "b": {"RT": 70.0, "T": 10.0}}, "t", "Two runs."
    )
    (axis,) = displayed[0].axes
    assert [bar.get_height() for bar in axis.patches] == [60, 40, 70, 10]
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in axis.patches] == [0, 1, 0, 1]
    assert [text.get_text() for text in axis.texts] == ["60", "40", "70", "10"]

    def scored(k):  # of a class the share k p is lost to the other, whose IoU falls with it
        return SimpleNamespace(
            summary=lambda: {"mean": 50.0 - k, "min": 20.0 - k, "full": 70.0 + k},
            miou=lambda: {"DEL": 30.0 - k},
            failing=lambda p: np.array([[1 - k * p, k * p], [0, 1]]),
        )

    real_data_figures.show_protocols(
        {name: scored(k / 4) for k, name in enumerate(("drop", "zero", "black", "noise"))}
    )
    left, right = displayed[1].axes
    bars = [[bar.get_height() for bar in bars] for bars in left.containers]
    assert bars == [[50 - k / 4, 20 - k / 4, 30 - k / 4] for k in range(4)]
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in left.patches] == [0, 1, 2] * 4
    assert list(left.lines[0].get_ydata()) == [70, 70], "all sensors: no protocol changes it"
    for k, line in enumerate(right.lines):
        p, drawn = line.get_data()
        assert p[0] == 0 and p[-1] == pytest.approx(0.9)
        assert list(drawn) == pytest.approx(50 * (1 - k / 4 * p + 1 / (1 + k / 4 * p)))
    said = {text.get_text(): text.xy[1] for text in right.texts}
    ends = {
        name: right.lines[k].get_ydata()[-1] for name, k in (("drop", 0), ("zero", 1), ("black, noise", 3))
    }
    assert said == ends


def test_a_projected_pixel_is_dark_where_its_distance_is_wrong(displayed):
    truth, image = np.full((4, 6), 10.0), np.zeros((4, 6))
    image[1, 1:5] = 10.0, 11.4, 11.6, 8.4  # a tenth and half a metre are allowed
    view = SimpleNamespace(depth=truth, images={"rgb": np.zeros((4, 6, 3), np.uint8)})
    real_data_figures.show_projections({"way": image}, view, truth)
    drawn = displayed[0].axes[3].images[0].get_array()
    assert displayed[0].axes[3].get_xlabel() == "wrong: 50 % of its pixels"
    assert [tuple(pixel) for pixel in drawn[1, 1:5]] == [(205,) * 3] * 2 + [tuple(DARKER)] * 2
    assert (drawn[0] == 255).all() and (drawn[1, 0] == 255).all()


def pictures(fig) -> list[np.ndarray]:
    """What stands in the axes of a grid of pictures, row after row."""
    return [np.array(axis.images[0].get_array()) for axis in fig.axes if axis.images]


def test_masks_are_those_of_the_sensors_of_their_row(displayed):
    """A network that calls every pixel the class whose number is that of its sensors, and one that sees the
    truth where it has the LiDAR.
    """
    frame = stub_world.render_frame("street", 3, "night", modalities=NAMES)
    label = torch.as_tensor(frame.label).long()
    frames = object.__new__(information_lab.Frames)
    frames.names, frames.frames, frames.physical = list(NAMES), [None, frame], [None, physical_images(frame)]
    frames.images = {name: torch.full((2, 1), k) for k, name in enumerate(NAMES)}
    logits = lambda classes: torch.nn.functional.one_hot(classes, 11).movedim(-1, 0)[None].float()
    counting = lambda images: logits(torch.full_like(label, len(images)))
    seeing = lambda images: logits(label if "lidar" in images else torch.full_like(label, 10))
    information_lab.show_masks(frames, {"counting": counting, "seeing": seeing}, 1)
    drawn = iter(pictures(displayed[0]))
    palette = np.array(information_lab.world.PALETTES["street"])
    for present in (4, 1, 1, 1, 1):
        _, mask, errors, _, others, truth = (next(drawn) for _ in range(6))
        assert (mask == palette[present]).all() and (truth == palette[frame.label]).all()
        assert ((errors == DARKER).all(-1) == (frame.label != present)).all()
        last = others
    assert not (last == DARKER).all(-1).any(), "the LiDAR's row is the last"


def test_equal_features_have_equal_colours_and_the_last_column_is_their_mean(displayed):
    """Sensors 0 and 1 show a slope, sensor 2 its opposite, sensor 3 nothing: their mean is a weak slope. Each
    has a mean of its own, which counts for nothing.
    """
    slope = np.linspace(-1, 1, 8)[None, :] * np.ones((6, 1))
    first = np.stack([slope, slope, -slope, 0 * slope])
    maps = np.random.default_rng(0).normal(0, 0.01, (4, 5, 6, 8))
    maps[:, 2], maps[1] = first, np.concatenate([maps[0, :2], first[:1], maps[0, 3:]])
    maps += np.arange(20.0).reshape(4, 5, 1, 1) * 3
    network = SimpleNamespace(features=lambda images: [None] * 2 + [torch.from_numpy(maps)] + [None] * 3)
    frames = object.__new__(information_lab.Frames)
    frames.names, frames.images = list(NAMES), {name: torch.zeros(1, 1) for name in NAMES}
    information_lab.show_features(frames, {"net": network}, 0)
    one, same, opposite, flat, fused = (picture.astype(float) for picture in pictures(displayed[0]))
    assert np.allclose(one, same, atol=1) and not np.allclose(one, opposite, atol=9)
    red = [picture[..., 0] for picture in (one, opposite, flat, fused)]  # the leading direction
    assert np.allclose(red[0] + red[1], 254.5, atol=8) and np.allclose(red[2], 127, atol=8)
    assert np.allclose(red[3] - 127, (red[0] - 127) / 4, atol=8) and np.ptp(red[0][0]) > 200


def test_wrong_pixels_are_those_of_each_rule(displayed):
    physical, label = Streets().physical(0)
    right = torch.nn.functional.one_hot(label, 4).movedim(-1, 0)[None].float()
    failure_lab.show_a_liar(
        SimpleNamespace(modalities=SENSORS),
        SimpleNamespace(palette=stub_world.PALETTE),
        None,
        {name: image.numpy() for name, image in physical.items()},
        label,
        {"right": right, "road": right.index_fill(1, torch.tensor([1]), 9.0)},
    )
    _, _, truth, right, road = pictures(displayed[0])
    assert (truth == np.array(stub_world.PALETTE)[label]).all()
    assert not (right == DARKER).all(-1).any() and ((road == DARKER).all(-1) == (label != 1).numpy()).all()


def test_ways_of_running_a_network_are_scored_on_all_scenes(displayed, monkeypatch):
    """A way that is right, and one that calls everything road in the first scene."""
    scenes = [stub_world.render_frame("street", k, size=(192, 256), modalities=NAMES) for k in (1, 2)]
    labels = [torch.as_tensor(frame.label).long() for frame in scenes]
    guesses = [torch.ones_like(labels[0]), labels[1]]
    monkeypatch.setattr(real_data_figures.world, "render_frame", lambda scene, seed, *a, **k: scenes[seed])
    monkeypatch.setattr(real_data_figures, "network_batch", lambda network, physical: next(order))
    order = iter((0, 1))
    logits = lambda classes: torch.nn.functional.one_hot(classes, 11).movedim(-1, 0)[None].float()
    ways = {
        "right": lambda k: {"a": logits(labels[k]), "b": logits(labels[k])},
        "road": lambda k: {"a": 2 * logits(guesses[k]), "b": logits(labels[k])},
    }
    real_data_figures.show_ways(ways, SimpleNamespace(modalities=SENSORS), [0, 1], "Two ways.")
    true, guess = torch.stack(labels), torch.stack(guesses)
    ious = [
        float(((true == c) & (guess == c)).sum() / ((true == c) | (guess == c)).sum()) for c in true.unique()
    ]
    words = [axis.get_xlabel() for axis in displayed[0].axes[1:3]]
    assert words == ["mIoU 100 %, 2 scenes", f"mIoU {100 * np.mean(ious):.0f} %, 2 scenes"]
    truth, right, road = pictures(displayed[0])
    palette = np.array(real_data_figures.PALETTE)
    assert (truth == palette[labels[0]]).all() and (right == truth).all() and (road == palette[1]).all()


def test_a_trap_shows_both_readings_and_inks_the_error(displayed):
    error = np.array([[0.0, 0.5], [1.0, 7.0]])
    grey = lambda value: np.full((2, 2, 3), value, np.uint8)
    real_data_figures.show_traps(
        {"a": (grey(10), grey(20), error, "words"), "b": (grey(30), grey(40), 0 * error, "none")},
        "four images",
    )
    obvious, _, right, _, wrong, nothing = pictures(displayed[0])
    assert (obvious == 10).all() and (right == 20).all() and (nothing == 255).all()
    half = (255 + np.array(DARKER)) / 2
    np.testing.assert_allclose(wrong, [[[255] * 3, half], [DARKER, DARKER]], atol=1)
    assert [axis.get_xlabel() for axis in displayed[0].axes[-2:]] == ["words", "none"]
