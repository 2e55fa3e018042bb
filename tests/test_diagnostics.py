"""Diagnostics without labels: closed forms, pairs counted one by one, scipy, what fools each criterion."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from course import token_lab as labels
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, pearsonr

from mmlib.unsupervised import diagnostics as dg


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_effective_rank_has_its_closed_forms():
    line = torch.randn(50, 1, generator=generator()) @ torch.randn(
        1, 6, generator=generator(1)
    )  # also opposite poles
    assert dg.effective_rank(line) == pytest.approx(1, abs=1e-6)
    assert dg.effective_rank(torch.eye(7)) == pytest.approx(7) == dg.effective_rank(3 * torch.eye(7))
    # unit codes, 3 along one axis and 1 along another: singular values sqrt(3) and 1
    share = np.array([math.sqrt(3), 1]) / (math.sqrt(3) + 1)
    assert dg.effective_rank(torch.tensor([[1.0, 0, 0]] * 3 + [[0, 2.0, 0]])) == pytest.approx(
        math.exp(-(share * np.log(share)).sum())
    )


def test_effective_rank_is_that_of_the_singular_values():
    codes = torch.randn(40, 9, generator=generator()) * torch.tensor([3.0, 2, 2, 1, 1, 0.5, 0.1, 0.01, 0.001])
    values = np.linalg.svd(F.normalize(codes, dim=1).double().numpy(), compute_uv=False)
    share = values / values.sum()
    assert dg.effective_rank(codes) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_codes_in_a_cone_have_rank_near_one_though_their_noise_fills_the_space():
    codes = torch.tensor([1.0, 0, 0, 0, 0]) + 1e-3 * torch.randn(500, 5, generator=generator())
    assert dg.effective_rank(codes) < 1.1
    assert dg.effective_rank(codes - codes.mean(0)) > 4  # what centring would report


def test_collapse_panel():
    healthy = dg.collapse(torch.eye(4).repeat(100, 1), torch.eye(4))
    assert healthy["effective_rank"] == pytest.approx(4) and healthy["inertia"] == 0
    assert healthy["use_min"] == healthy["use_max"] == 0.25 and healthy["negative_share"] == 0
    assert healthy["mean_similarity"] == pytest.approx(
        99 / 399, abs=0.02
    )  # 99 of the 399 others are the same axis
    one = dg.collapse(
        torch.rand(100, 1, generator=generator()) * torch.ones(100, 4), torch.eye(4)[:2] + torch.eye(4)[2]
    )
    assert one["mean_similarity"] == pytest.approx(1) and one["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert (one["use_min"], one["use_max"]) == (0, 1)
    poles = torch.tensor([1.0, -1]).repeat(200)[:, None] * torch.tensor([[0.6, 0.8]])
    two = dg.collapse(poles, torch.tensor([[0.6, 0.8], [-0.6, -0.8], [1, 0]]))
    assert two["negative_share"] == pytest.approx(200 / 399, abs=0.02) and abs(two["mean_similarity"]) < 0.03
    assert (
        two["effective_rank"] == pytest.approx(1, abs=1e-3)
        and two["use_min"] == 0
        and two["inertia"] == pytest.approx(0, abs=1e-6)
    )


def test_random_pairs_are_never_a_point_with_itself():
    assert dg.collapse(torch.tensor([[1.0, 0], [0, 1]]), torch.eye(2))["mean_similarity"] == 0


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=25))
def test_auc_is_the_share_of_pairs_won(rows):
    scores, positive = torch.tensor([float(s) for s, _ in rows]), torch.tensor([p for _, p in rows])
    above, below = [s for s, p in rows if p], [s for s, p in rows if not p]
    found = labels.auc(scores, positive)
    if not above or not below:
        assert math.isnan(found)
        return
    wins = sum((a > b) + 0.5 * (a == b) for a in above for b in below)
    assert found == pytest.approx(wins / (len(above) * len(below)))
    assert found == pytest.approx(mannwhitneyu(above, below).statistic / (len(above) * len(below)))


def test_auc_of_correspondences_leaves_unlabelled_tokens_out():
    first, second = torch.tensor([[0, 1, 255], [1, 1, 0]]), torch.tensor([[0, 255], [1, 0]])
    correspondence = {
        name: torch.rand(2, 3, 2, generator=generator(seed)) for seed, name in enumerate(("rgb", "depth"))
    }
    found = labels.correspondence_auc(correspondence, first, second)
    for name, values in correspondence.items():
        same, other = [], []
        for b in range(2):
            for p in range(3):
                for q in range(2):
                    if 255 not in (int(first[b, p]), int(second[b, q])):
                        (same if first[b, p] == second[b, q] else other).append(float(values[b, p, q]))
        assert found[name] == pytest.approx(mannwhitneyu(same, other).statistic / (len(same) * len(other)))
    perfect = (first[:, :, None] == second[:, None]).float()
    assert labels.correspondence_auc({"x": perfect}, first, second) == {"x": 1.0}


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([(2, 3), (4, 4), (3, 5)]))
def test_majority_of_each_cell(seed, grid):
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 2, 255], (2, 8, 15))
    found = labels.majority_label(torch.from_numpy(label), grid, 3).numpy()
    for b in range(2):
        for i in range(grid[0]):
            for j in range(grid[1]):
                rows = slice(
                    i * 8 // grid[0], -(-(i + 1) * 8 // grid[0])
                )  # a pixel that two cells share belongs to both
                cell = label[b, rows, slice(j * 15 // grid[1], -(-(j + 1) * 15 // grid[1]))].ravel().tolist()
                assert found[b, i, j] == max([0, 1, 2, 255], key=lambda k: (cell.count(k), -k))


def rand_by_pairs(a, b):
    """Adjusted Rand index from its definition: every pair of points asked whether both clusterings agree on
    it.
    """
    pairs = list(combinations(range(len(a)), 2))
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    one, other = sum(a[i] == a[j] for i, j in pairs), sum(b[i] == b[j] for i, j in pairs)
    expected, highest = one * other / len(pairs), (one + other) / 2
    return (both - expected) / (highest - expected) if highest != expected else math.nan


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=2, max_size=20))
def test_adjusted_rand_is_that_of_pairs(rows):
    a, b = zip(*rows)
    assert dg.agreement([torch.tensor(a), torch.tensor(b)]) == pytest.approx(rand_by_pairs(a, b), nan_ok=True)


def test_adjusted_rand_ignores_names_and_is_zero_by_chance():
    a = torch.randint(0, 300, (60, 100), generator=generator())  # ids beyond 255 are ids like others
    assert dg.agreement([a, 299 - a]) == 1
    shuffled = a.flatten()[torch.randperm(6000, generator=generator())].reshape(60, 100)
    assert abs(dg.agreement([a, shuffled])) < 0.01
    assert math.isnan(dg.agreement([a * 0, a * 0])) and dg.agreement([a * 0, a]) == 0
    large = torch.arange(3).repeat_interleave(1_000_000)
    assert dg.agreement([large, large]) == 1  # 4.5e12 pairs squared do not fit in 64 bits


def test_agreement_is_the_mean_over_pairs():
    a, b, c = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]), torch.tensor([0, 1, 0, 1])
    assert dg.agreement([a, b]) == 1
    assert dg.agreement([a, b, c]) == pytest.approx((1 + 2 * rand_by_pairs(a.tolist(), c.tolist())) / 3)


def test_explained_correspondence_is_a_correlation():
    first, second = (torch.randint(0, 3, (4, 6), generator=generator(seed)) for seed in (0, 1))
    same = (first[:, :, None] == second[:, None]).float()
    frozen = {
        "rgb": same + 0.5 * torch.randn(4, 6, 6, generator=generator(2)),
        "depth": torch.randn(4, 6, 6, generator=generator(3)),
    }
    total, each = dg.explained_correspondence(frozen, first, second)
    for name, values in frozen.items():
        assert each[name] == pytest.approx(pearsonr(values.flatten(), same.flatten()).statistic, abs=1e-5)
        inside, outside, share = values[same == 1].mean(), values[same == 0].mean(), same.mean()
        form = (
            (inside - outside) / values.std(correction=0) * (share * (1 - share)).sqrt()
        )  # the docstring's form
        assert each[name] == pytest.approx(float(form), abs=1e-5)
    assert total == pytest.approx((each["rgb"] + each["depth"]) / 2) and each["rgb"] > 0.5
    assert dg.explained_correspondence({"x": 3 * same - 1}, first, second)[0] == pytest.approx(1)
    assert dg.explained_correspondence(frozen, first * 0, second * 0)[0] == 0  # one cluster explains nothing


def test_silhouette_from_its_definition_and_fooled_by_poles():
    codes, centroids = torch.randn(30, 5, generator=generator()), torch.randn(4, 5, generator=generator(1))
    expected = []
    for x in codes:
        a, b = sorted(1 - float(F.cosine_similarity(x, c, dim=0)) for c in centroids)[:2]
        expected.append((b - a) / max(a, b))
    assert dg.silhouette(codes, centroids) == pytest.approx(np.mean(expected), abs=1e-5)
    poles = torch.tensor([1.0, -1]).repeat(20)[:, None] * torch.tensor([[0.6, 0.8]])
    assert dg.silhouette(poles, torch.tensor([[0.6, 0.8], [-0.6, -0.8]])) == pytest.approx(1)
    assert (
        dg.silhouette(poles[::2], torch.tensor([[0.6, 0.8], [0.6, 0.8]])) == 0
    )  # two centroids on one place


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dg.effective_rank(torch.zeros(4, 3)), "all 0 or not finite"),
        (lambda: dg.effective_rank(torch.full((4, 3), torch.nan)), "all 0 or not finite"),
        (lambda: dg.collapse(torch.full((4, 3), torch.nan), torch.eye(3)), "all 0 or not finite"),
        (lambda: labels.majority_label(torch.zeros(1, 2, 8), (4, 4), 3), "smaller than the grid"),
        (lambda: labels.majority_label(torch.full((1, 8, 8), 3), (4, 4), 3), "id 3; expected 0 to 2"),
        (
            lambda: dg.explained_correspondence(
                {"rgb": torch.ones(1, 2, 2)}, *torch.tensor([[[0, 1]], [[0, 1]]])
            ),
            "'rgb': .* constant",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
