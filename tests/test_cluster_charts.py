"""The charts of the lessons on segments without labels: what stands in their axes against the numbers they
were given; and the checks and selections behind them.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")  # before figures are drawn: no window may open

import numpy as np
import pytest
import torch
from course import choice_charts, cluster_charts, lesson_08, token_figures
from course.token_lab import TokenLab

from mmlib.evaluation.statistics import paired_difference
from mmlib.unsupervised.tokens import Tokens

pytestmark = pytest.mark.usefixtures("no_figure_stays_open")


def heights(axis):
    return [bar.get_height() for bar in axis.patches]


# ---- lesson 08 ----

GOOD = {
    "quantiles": {"effective_rank": 10, "mean_similarity": 0.1},
    "b = -0.3": {"effective_rank": 2, "mean_similarity": 0.9},
    "b = -0.6": {"effective_rank": 2, "mean_similarity": 0.95},
    "no clamp": {"effective_rank": 4, "mean_similarity": 0.0},
    "b = 1.2": {"effective_rank": 15, "mean_similarity": 0.0},
}


class Lab:
    """Runs with these collapse numbers, whose losses are ``losses``."""

    base = SimpleNamespace(network=SimpleNamespace(dim=16))

    def __init__(self, collapse=GOOD, losses=(2.0, 1.5, 1.2)):
        self.reports, self.losses = (
            {name: {"collapse": numbers} for name, numbers in collapse.items()},
            losses,
        )

    def history(self, name):
        rank = self.reports[name]["collapse"]["effective_rank"]
        return [
            {"step": 10 * k, "loss": loss, "effective_rank": rank + k} for k, loss in enumerate(self.losses)
        ]

    def miou(self, name):
        return 10.0 + list(self.reports).index(name)


@pytest.mark.parametrize(
    ("run", "key", "value"),
    [
        ("b = -0.6", "mean_similarity", 0.5),
        ("b = -0.6", "effective_rank", 9),
        ("b = -0.3", "effective_rank", 9),
        ("no clamp", "mean_similarity", 0.6),
        ("no clamp", "effective_rank", 12),
        ("quantiles", "effective_rank", 2),
        ("b = 1.2", "effective_rank", 8),
    ],
)
def test_a_training_that_went_otherwise_stops_the_lesson(run, key, value):
    lesson_08.as_described(Lab())
    with pytest.raises(AssertionError, match=f"{run}: {key} is {value}"):
        lesson_08.as_described(Lab(GOOD | {run: GOOD[run] | {key: value}}))
    with pytest.raises(AssertionError, match="the loss rose"):
        lesson_08.as_described(Lab(losses=(1.0, 0.5, 1.1)))


def test_trainings_are_drawn_from_their_histories_and_reports():
    loss, rank, similarity, miou = cluster_charts.training_curves(Lab(), list(GOOD)).axes
    for k, numbers in enumerate(GOOD.values()):
        assert list(loss.lines[k].get_xdata()) == [0, 10, 20]
        assert loss.lines[k].get_ydata() == pytest.approx([0, -0.5, -0.8]), "change of the loss"
        assert list(rank.lines[k].get_ydata()) == [numbers["effective_rank"] + i for i in range(3)]
        assert similarity.patches[k].get_width() == numbers["mean_similarity"]
        assert miou.patches[k].get_width() == 10 + k
    assert [text.get_text() for text in similarity.get_yticklabels()] == list(GOOD)


def test_every_sensor_has_its_own_auc():
    values = {"raw": {"rgb": 0.6, "depth": 0.7}, "smoothed": {"rgb": 0.65, "depth": 0.75}}
    (axis,) = token_figures.auc_bars(values, "t", control=0.8).axes
    assert heights(axis) == [0.6, 0.65, 0.7, 0.75], "a colour a sensor"
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in axis.patches] == [0, 1, 0, 1]
    assert [line.get_ydata()[0] for line in axis.lines] == [0.5, 0.8]


def test_what_tokens_know_of_the_light_has_its_own_chance(displayed):
    values = {
        "standardised": {"rgb": (0.7, 0.6, 0.95), "depth": (0.5, 0.51, 0.4)},
        "mean subtracted": {"rgb": (0.55, 0.56, 0.9), "depth": (0.52, 0.53, 0.3)},
    }
    token_figures.show_light(values)
    for k, (axis, chance) in enumerate(zip(displayed[0].axes, (0.5, 0.5, 1 / 3))):
        assert heights(axis) == [stage[name][k] for name in ("rgb", "depth") for stage in values.values()]
        assert list(axis.lines[0].get_ydata()) == [chance] * 2


def test_correspondences_are_cosines_with_the_marked_token():
    tokens = torch.zeros(2, 2, 2, 3)
    tokens[:, 0] = 1.0
    tokens[0, :, 0, 1] = torch.tensor([0.0, 2.0])  # across all others
    tokens[1, :, 1, 2] = torch.tensor([3.0, 3.0])
    pictures = {"rgb": [np.zeros((4, 6, 3), np.uint8)] * 2}
    fig = token_figures.correspondence_figure(pictures, {"rgb": tokens}, (1, 2))
    first, within, _, across, *_ = fig.axes
    expected = np.ones((2, 2, 3))
    expected[0, 0, 1], expected[1, 1, 2] = 0, 0.5**0.5
    for axis, cosines in zip((within, across), expected):
        np.testing.assert_allclose(axis.images[0].get_array(), cosines, atol=1e-6)
    for axis in (first, within):
        assert [(*line.get_xdata(), *line.get_ydata()) for line in axis.lines] == [(4.5, 2.5)] * 2, (
            "its middle"
        )
    assert within.images[0].get_extent() == [-0.5, 5.5, 3.5, -0.5]


def test_whitened_tokens_are_the_leading_directions_of_both_splits():
    @dataclass
    class Prepared:
        tokens: Tokens
        scored_tokens: Tokens

    arrays = [np.random.default_rng(k).normal(size=(2, 6, 3, 4)) for k in (0, 1)]
    lab = object.__new__(TokenLab)
    lab._whitened, lab.prepared = [Tokens({"rgb": array}) for array in arrays], Prepared(None, None)
    prepared = lab.whitened(4)
    for tokens, array in zip((prepared.tokens, prepared.scored_tokens), arrays):
        assert np.array_equal(tokens.arrays["rgb"], array[:, :4])


# ---- lesson 09 ----


def group(*miou, **more):
    return {"seeds": list(range(len(miou))), "summary": {"all": {"miou": list(miou)} | more}}


def test_the_sweep_of_lambda_draws_each_weight_in_its_place(displayed):
    names = ("lambda-0", "unim2-0.3", "unim2", "unim2-3", "cmcs-0.3", "cmcs-1", "stego R")
    panel = {name: group(k, k + 2) for k, name in enumerate(names)}
    cluster_charts.show_weight_sweep({"room RT": panel})
    (axis,) = (axis for axis in displayed[0].axes if axis.get_visible())
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines["with CMH"].get_ydata()) == [1, 2, 3, 4], "λ 0, 0.3, 1 and 3"
    assert list(lines["without CMH"].get_ydata()) == [1, 5, 6]
    assert list(np.round(lines["without CMH"].get_xdata())) == [0, 1, 2]
    assert lines["STEGO, colour"].get_ydata()[0] == 7


def test_conditions_and_classes_show_their_own_numbers(displayed):
    night, day = "miou_by_condition/condition=night", "miou_by_condition/condition=day"
    panel = {
        name: group(5.0, **{night: [k, k + 1.0], day: [10.0 * k, 10.0 * k]})
        for k, name in enumerate(cluster_charts.BY_LIGHT)
    }
    cluster_charts.show_conditions({"room RT": panel})
    (axis,) = displayed[0].axes
    assert heights(axis) == [0.5, 0, 1.5, 10, 2.5, 20, 3.5, 30], "of each method by night and by day"
    assert [text.get_text() for text in axis.get_xticklabels()] == ["night", "day"]
    gains = {
        "bed": paired_difference([5.0, 6.0, 5.5], [1.0, 2.0, 1.4]),
        "door": paired_difference([1.0, 2.0, 1.5], [3.0, 4.1, 3.5]),
        "lamp": paired_difference([1.0, 9.0], [2.0, 3.0]),
    }
    cluster_charts.show_class_gains({"room RT": gains})
    (axis,) = displayed[1].axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["door", "lamp", "bed"], "sorted"
    assert [bar.get_width() for bar in axis.patches] == pytest.approx(
        [gains[name].mean for name in ("door", "lamp", "bed")]
    )
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in axis.patches]
    assert colours == ["#d55e00", "#d9d9d9", "#0072b2"], "a loss, smaller than its spread, a gain"


# ---- lesson 10 ----


def test_frozen_features_stand_beside_their_whitened_ones():
    values = {("rgb", 0): 1.0, ("rgb", 32): 4.0, ("depth", 0): 2.0, ("depth", 32): 7.0}
    rows = [
        {
            "name": "b",
            "scene": scene,
            "sensors": sensors,
            "whiten": whiten,
            "miou": [value + more, value + more + 2],
        }
        for scene, more in (("room", 0), ("nyu", 10))
        for (sensors, whiten), value in values.items()
    ]
    controls = {"nyu": 3.5, "room": 12.5}
    fig = choice_charts.feature_bars({"rows": rows}, "b", controls)
    for axis, control, more in zip(fig.axes, controls.values(), (10, 0)):
        assert heights(axis) == [more + 2, more + 5, more + 3, more + 8]
        assert [bar.get_x() + bar.get_width() / 2 for bar in axis.patches] == pytest.approx(
            [-0.2, 0.2, 0.8, 1.2]
        )
        assert [text.get_text() for text in axis.texts] == [f"{height:.1f}" for height in heights(axis)]
        assert [bar.get_alpha() for bar in axis.patches] == [0.4, 1.0] * 2
        dotted = [line.get_ydata() for line in axis.lines if line.get_linestyle() == ":"]
        assert dotted[0][0] == control, "stripes"


def test_directions_and_luck_are_drawn_as_they_are():
    scores, plain = {"rgb": {4: 1.0, 8: 3.0}, "both": {4: 2.0, 8: 5.0}}, {"rgb": 2.5, "both": 4.5}
    (axis,) = choice_charts.direction_curves(scores, plain).axes
    assert [list(line.get_ydata())[:2] for line in axis.lines] == [[1, 3], [2.5, 2.5], [2, 5], [4.5, 4.5]]
    assert [list(line.get_xdata()) for line in axis.lines[::2]] == [[4, 8], [4, 8]]
    trials = {"room RT": [1.0, 2.0, 6.0], "room RD": [4.0, 4.0]}
    chosen = {"room RT": {"default": 2.5}, "room RD": {"default": 3.5}}
    fig = choice_charts.luck_curves(trials, chosen)
    for axis, title, best in zip(fig.axes, trials, ([3.0, 14 / 3, 6.0], [4.0, 4.0])):
        assert axis.lines[0].get_ydata() == pytest.approx(best)
        assert list(axis.lines[0].get_xdata()) == list(range(1, len(best) + 1))
        assert axis.lines[1].get_ydata()[0] == chosen[title]["default"]
        assert title in (axis.get_title(), axis.get_title(loc="left")), "the style puts them to the left"
