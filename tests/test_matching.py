"""Clusters get names: every one-to-one matching by brute force, scores by loops over pixels, the rules for
what stays unmatched.
"""

import json
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmlib.evaluation.counts import confusion_matrix, hungarian, iou, many_to_one, miou, score_clusters
from mmlib.evaluation.sheets import cluster_sheet
from mmlib.evaluation.statistics import rounded

tables = hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=st.integers(0, 30))


def most_pixels(counts: np.ndarray) -> int:
    """The most pixels that any one-to-one matching puts right: all of them tried."""
    small = counts if counts.shape[0] <= counts.shape[1] else counts.T
    return max(
        sum(small[i, j] for i, j in enumerate(order))
        for order in permutations(range(small.shape[1]), len(small))
    )


@given(tables)
def test_hungarian_is_the_best_of_all_matchings(counts):
    mapping = hungarian(counts)
    named = [(k, c) for c, k in enumerate(mapping) if k >= 0]
    assert len(named) == len({k for k, _ in named}) == min(counts.shape)
    assert sum(counts[k, c] for k, c in named) == most_pixels(counts)


@given(tables, st.sampled_from(["hungarian", "many-to-one"]))
def test_scores_are_those_of_loops_over_pixels(counts, rule):
    classes = [f"class {k}" for k in range(len(counts))]
    scores = score_clusters(counts, classes, rule)
    pixels = [(k, c) for k, row in enumerate(counts) for c, n in enumerate(row) for _ in range(n)]
    for k, name in enumerate(classes):
        truth = {i for i, (t, _) in enumerate(pixels) if t == k}
        guess = {i for i, (_, c) in enumerate(pixels) if scores["mapping"][c] == k}
        expected = 100 * len(truth & guess) / len(truth | guess) if truth else np.nan
        assert scores["iou"]["all"][name] == pytest.approx(expected, nan_ok=True)
    values = [value for value in scores["iou"]["all"].values() if not np.isnan(value)]
    assert scores["miou"]["all"] == pytest.approx(np.mean(values) if values else np.nan, nan_ok=True)
    right = sum(scores["mapping"][c] == t for t, c in pixels)
    assert scores["accuracy"]["all"] == pytest.approx(
        100 * right / len(pixels) if pixels else np.nan, nan_ok=True
    )


def test_released_rule_at_equal_numbers():
    """K clusters for K classes: the square confusion matrix with its columns in order."""
    counts = np.random.default_rng(0).integers(0, 50, (4, 4))
    scores = score_clusters(counts, list("abcd"))
    square = counts[:, np.argsort(scores["mapping"])]
    assert list(scores["iou"]["all"].values()) == pytest.approx(100 * iou(square)) and scores["miou"][
        "all"
    ] == pytest.approx(100 * float(miou(square)))


def test_more_clusters_than_classes():
    """The third cluster stays nameless: its 3 + 1 pixels are missed by their classes and are nobody's false
    alarms.
    """
    scores = score_clusters(np.array([[9, 0, 3], [0, 5, 1]]), ["a", "b"])
    assert scores["mapping"] == [0, 1, -1]
    assert list(scores["iou"]["all"].values()) == pytest.approx([100 * 9 / 12, 100 * 5 / 6])
    assert scores["accuracy"]["all"] == pytest.approx(100 * 14 / 18)
    assert score_clusters(np.array([[9, 0, 3], [0, 5, 1]]), ["a", "b"], "many-to-one")["mapping"] == [
        0,
        1,
        0,
    ]


def test_fewer_clusters_than_classes_and_absent_classes():
    scores = score_clusters(np.array([[8, 0], [2, 0], [0, 7], [0, 0]]), ["a", "b", "c", "absent"])
    assert scores["mapping"] == [0, 2]
    values = scores["iou"]["all"]
    assert values["a"] == 80 and values["b"] == 0 and values["c"] == 100 and np.isnan(values["absent"])
    assert scores["miou"]["all"] == pytest.approx((80 + 0 + 100) / 3)


def test_many_to_one_names_and_leaves_empty_clusters_out():
    assert many_to_one([[3, 0, 2, 0], [3, 5, 9, 0]]).tolist() == [0, 1, 1, -1]


@given(tables)
def test_many_to_one_puts_no_fewer_pixels_right(counts):
    names = [str(k) for k in range(len(counts))]
    if counts.sum():
        assert (
            score_clusters(counts, names, "many-to-one")["accuracy"]["all"]
            >= score_clusters(counts, names)["accuracy"]["all"] - 1e-9
        )


@given(hnp.arrays(np.int64, (4, 6), elements=st.sampled_from([0, 1, 2, 255])), st.integers(0, 2**31))
def test_counts_are_those_of_a_loop(label, seed):
    assignment = np.random.default_rng(seed).integers(0, 5, label.shape)
    expected = np.zeros((3, 5), int)
    for k, c in zip(label.ravel(), assignment.ravel()):
        if k != 255:
            expected[k, c] += 1
    assert np.array_equal(
        confusion_matrix(torch.from_numpy(assignment), torch.from_numpy(label), 3, 5), expected
    )


def test_one_mapping_for_all_groups_and_what_is_written():
    day, night = np.array([[5, 1], [0, 4]]), np.array([[0, 3], [2, 0]])
    scores = score_clusters(
        {"all": day + night, "condition=day": day, "condition=night": night}, ["road", "car"]
    )
    assert scores["mapping"] == [0, 1] and scores["rule"] == "hungarian"
    assert (
        scores["accuracy"]["condition=day"] == 90 and scores["accuracy"]["condition=night"] == 0
    )  # night alone would be matched the other way
    written = json.loads(json.dumps(rounded(scores), allow_nan=False))
    assert written["mapping"] == [0, 1] and written["counts"]["condition=night"] == [[0, 3], [2, 0]]
    assert written["iou"]["condition=day"]["road"] == pytest.approx(100 * 5 / 6, abs=1e-4)
    lines = cluster_sheet(scores, "by hand").text().splitlines()
    assert lines[1].split() == ["all", "day", "night"] and lines[3].split() == [
        "accuracy",
        "60.0",
        "90.0",
        "0.0",
    ]
    assert lines[4].split() == ["road", "45.5", "83.3", "0.0"]


def test_absent_classes_are_written_as_none():
    assert rounded(score_clusters([[4, 0], [0, 0]], ["a", "b"]))["iou"]["all"] == {"a": 100.0, "b": None}
    assert "–" in cluster_sheet(score_clusters([[4, 0], [0, 0]], ["a", "b"]), "by hand").text()


def test_a_mapping_from_another_split():
    scores = score_clusters([[5, 1], [0, 4]], ["a", "b"], mapping=[1, 0])
    assert scores["rule"] == "given" and scores["accuracy"]["all"] == 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: confusion_matrix(torch.tensor([0]), torch.tensor([0, 1]), 2, 2), "differ in shape"),
        (
            lambda: confusion_matrix(torch.tensor([2]), torch.tensor([0]), 2, 2),
            "prediction has ids 2 to 2; expected 0 to 1",
        ),
        (
            lambda: confusion_matrix(torch.tensor([0]), torch.tensor([3]), 2, 2),
            "label has ids 3 to 3; expected 0 to 1",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
