"""Confusion matrices, subset scores and statistics against brute force and closed forms."""

import itertools

import numpy as np
import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from torch.nn import functional as F

from mmlib.data.missing import remove
from mmlib.data.prepared import PreparedDataset, collate, write_array
from mmlib.evaluation.confusion import accuracy, confusion_matrix, iou, miou
from mmlib.evaluation.fusion import FUSIONS
from mmlib.evaluation.statistics import estimate, paired_difference
from mmlib.evaluation.subsets import SubsetScores, evaluate_subsets, subset_matrix
from mmlib.modalities import SENSORS

maps = hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.sampled_from([0, 1, 2, 3, 255]))


@given(maps, st.integers(0, 2**31))
def test_counts_and_ratios_match_loops(label, seed):
    prediction = np.random.default_rng(seed).integers(0, 4, label.shape)
    counts = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(label), 4).numpy()
    expected = np.zeros((4, 4), int)
    for t, p in zip(label.ravel(), prediction.ravel()):
        if t != 255:
            expected[t, p] += 1
    assert np.array_equal(counts, expected)
    valid = label != 255
    values = []
    for k in range(4):
        truth, guess = (label == k) & valid, (prediction == k) & valid
        values.append((truth & guess).sum() / (truth | guess).sum() if truth.any() else np.nan)
    assert np.allclose(iou(counts), values, equal_nan=True)
    assert np.allclose(miou(counts), np.nanmean(values) if valid.any() else np.nan, equal_nan=True)
    assert np.allclose(accuracy(counts), (prediction == label)[valid].mean() if valid.any() else np.nan, equal_nan=True)


def test_a_worked_example_and_absent_classes():
    counts = np.array([[3, 1, 0], [1, 5, 0], [0, 0, 0]])
    assert iou(counts)[:2].tolist() == [3 / 5, 5 / 7] and np.isnan(iou(counts)[2])  # absent: NaN, neither 0 nor 1
    assert miou(counts) == pytest.approx((3 / 5 + 5 / 7) / 2)
    assert iou(np.array([[3, 1], [0, 0]])).tolist()[0] == 3 / 4  # the false alarm costs the class it covers


def test_counts_add_up_over_images_where_means_of_ratios_do_not():
    rng = np.random.default_rng(0)
    label, prediction = (torch.from_numpy(rng.integers(0, 3, (4, 5, 5))) for _ in range(2))
    whole = confusion_matrix(prediction, label, 3)
    assert torch.equal(whole, sum(confusion_matrix(p, t, 3) for p, t in zip(prediction, label)))


@pytest.mark.parametrize("prediction, label", [([3], [0]), ([-1], [0]), ([0], [3]), ([0], [254])])
def test_ids_out_of_range_are_errors(prediction, label):
    with pytest.raises(ValueError, match="expected 0 to 2"):
        confusion_matrix(torch.tensor(prediction), torch.tensor(label), 3)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(torch.zeros(2, dtype=torch.long), torch.zeros(3, dtype=torch.long), 2)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    data = PreparedDataset(toy.make(tmp_path_factory.mktemp("toy")), "val")
    return data, toy.untrained(data)


@pytest.mark.parametrize("form", ["linear", "fused", "whole"])
@pytest.mark.parametrize("protocol", ["drop", "zero", "black", "noise"])
def test_one_pass_equals_one_forward_per_subset(scored, protocol, form):
    """The same mean in three forms: summed from the cache, fused by a function, and as a network that sees images only."""
    data, network = scored
    encode = (lambda images: images) if form == "whole" else network.modality_logits
    fuse = {"linear": None, "fused": FUSIONS["mean"], "whole": network}[form]
    scores = evaluate_subsets(encode, data, fuse=fuse, batch_size=2, protocol=protocol)
    names = list(data.modalities)
    for s, name in enumerate(scores.names):
        expected = {"all": np.zeros((3, 3), int), "condition=night": np.zeros((3, 3), int), "case=broken": np.zeros((3, 3), int)}
        for first in range(0, len(data), 2):  # the same batches, since the noise protocol draws per batch
            batch = collate([data[i] for i in range(first, min(first + 2, len(data)))])
            missing = [n for n in names if data.modalities[n].symbol not in name]
            with torch.no_grad():
                if protocol == "drop":
                    logits = network({n: x for n, x in batch["images"].items() if n not in missing})
                else:
                    every = remove(batch["images"], names, protocol, data.modalities)
                    logits = network({n: every[n] if n in missing else x for n, x in batch["images"].items()})
            for b, row in enumerate(data.rows[first : first + 2]):
                counts = confusion_matrix(logits[b].argmax(0), batch["label"][b], 3).numpy()
                for group in ("all", f"condition={row['condition']}", f"case={row['case']}"):
                    if group in expected:
                        expected[group] += counts
        for group, counts in expected.items():
            # sums in another order may flip a pixel that is tied to the last bit
            assert np.abs(scores.counts[group][s] - counts).sum() <= 4, (name, group)


@pytest.mark.parametrize("protocol", ["drop", "noise"])
def test_a_fusion_that_is_not_linear_sees_exactly_the_sensors_that_take_part(scored, protocol):
    """Fusion by the largest logit at the head's resolution, against one subset and one sample at a time."""
    data, network = scored
    seen = []

    def largest(logits):
        seen.append("".join(data.modalities[name].symbol for name in logits))
        return torch.stack(list(logits.values())).amax(0)

    scores = evaluate_subsets(network.modality_logits, data, fuse=largest, batch_size=1, protocol=protocol)
    assert seen == (scores.names if protocol == "drop" else ["RDA"] * 7) * len(data)
    for s, name in enumerate(scores.names):
        expected = np.zeros((3, 3), int)
        for i in range(len(data)):
            images = {n: image[None] for n, image in data[i]["images"].items()}
            missing = [n for n, m in data.modalities.items() if m.symbol not in name]
            images = remove(images, missing, protocol, data.modalities)
            with torch.no_grad():
                logits = torch.stack([network.modality_logits({n: image})[n][0] for n, image in images.items()]).amax(0)
            large = F.interpolate(logits[None], data[i]["label"].shape, mode="bilinear", align_corners=False)[0]
            expected += confusion_matrix(large.argmax(0), data[i]["label"], 3).numpy()
        assert np.abs(scores.counts["all"][s] - expected).sum() <= 8, name
    linear = evaluate_subsets(network.modality_logits, data, batch_size=1, protocol=protocol)
    assert not np.array_equal(linear.counts["all"][-1], scores.counts["all"][-1])


def test_logits_of_other_classes_are_refused(scored):
    data, network = scored
    with pytest.raises(ValueError, match=r"expected \(B, 3, h, w\), one map for each class"):
        evaluate_subsets(network.modality_logits, data, fuse=lambda logits: logits["rgb"][:, :2])
    with pytest.raises(ValueError, match=r"expected \(B, 3, h, w\), one map for each class"):
        evaluate_subsets(lambda images: images, data)


def test_shards_add_up(scored):
    data, network = scored
    whole = evaluate_subsets(network.modality_logits, data, batch_size=1)
    parts = [evaluate_subsets(network.modality_logits, data, batch_size=1, shard=(rank, 2)) for rank in range(2)]
    for group in whole.counts:
        assert np.array_equal(whole.counts[group], parts[0].counts[group] + parts[1].counts[group])


def test_images_of_different_sizes_are_scored_at_their_own(tmp_path, scored):
    _, network = scored
    data = PreparedDataset(toy.make(tmp_path), "val")
    images, label = toy.sample(5, (40, 32))
    for name, array in images.items():
        path = next((tmp_path / name).glob("val_002.*"))
        path.unlink()
        write_array(path, array)
    write_array(tmp_path / "label" / "val_002.png", label[..., None])
    together, apart = (evaluate_subsets(network.modality_logits, data, batch_size=size).counts["all"] for size in (5, 1))
    assert together[-1].sum() == apart[-1].sum() == 4 * (32 * 48 - 1) + 40 * 32 - 1
    assert np.abs(together - apart).sum() <= 20


def test_unlabelled_data_can_not_be_scored(tmp_path):
    data = PreparedDataset(toy.make(tmp_path, labels=False), "val")
    with pytest.raises(ValueError, match="no labels"):
        evaluate_subsets(lambda images: images, data)


def test_subset_matrix_lists_every_subset_once():
    rows = {tuple(row) for row in subset_matrix(4)}
    assert rows == set(itertools.product([0.0, 1.0], repeat=4)) - {(0.0,) * 4}


def test_summary_by_hand():
    modalities = {name: SENSORS[name] for name in ("rgb", "depth")}
    good, bad = np.array([[8, 0], [0, 8]]), np.array([[4, 4], [4, 4]])
    scores = SubsetScores(modalities, ["a", "b"], "drop", {"all": np.stack([good, bad, bad])})
    assert scores.miou() == {"R": 100.0, "D": pytest.approx(100 / 3), "RD": pytest.approx(100 / 3)}
    assert scores.lowered() == (1, 2)  # adding D to R lowers mIoU, adding R to D leaves it
    assert scores.summary()["mean"] == pytest.approx(500 / 9) and scores.summary()["std"] == pytest.approx(np.std([100, 100 / 3, 100 / 3]))
    assert "lowers mIoU in 1 of 2" in scores.table() and scores.to_dict()["miou"]["all"]["R"] == 100.0


def test_interval_is_students():
    values = [1.0, 2.0, 4.0]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    difference = paired_difference([5, 6, 7], [4, 5, 6])
    assert difference.mean == 1 and difference.sd == 0 and difference.clear
    assert not estimate([3.0]).clear and "no spread" in str(estimate([3.0]))
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference([1, 2], [1])
    with pytest.raises(ValueError, match="finite"):
        estimate([np.nan])


def test_upsampling_before_fusing_equals_fusing_before_upsampling():
    logits = torch.randn(4, 2, 3, 6, 8, dtype=torch.double)
    up = lambda x: F.interpolate(x, (24, 32), mode="bilinear", align_corners=False)  # noqa: E731
    assert torch.allclose(torch.stack([up(x) for x in logits]).mean(0), up(logits.mean(0)))
