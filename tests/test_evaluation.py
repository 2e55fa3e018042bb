"""Confusion matrices, subset scores and statistics against brute force and closed forms."""

import csv
import itertools
import statistics

import numpy as np
import pytest
import torch
import toy
from course.published import load_paper
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from torch.nn import functional as F

from mmlib.data.images import write_image
from mmlib.data.missing import remove
from mmlib.data.prepared import PreparedDataset, collate
from mmlib.evaluation import subsets as subsets_module
from mmlib.evaluation.counts import accuracy, confusion_matrix, iou, miou
from mmlib.evaluation.failures import evaluate_failures
from mmlib.evaluation.fusion import FUSIONS
from mmlib.evaluation.sheets import Sheet, cluster_sheets, subset_sheet, write_sheets
from mmlib.evaluation.statistics import estimate, paired_difference
from mmlib.evaluation.subsets import SubsetScores, evaluate_subsets, subset_matrix, subset_probabilities
from mmlib.modalities import SENSORS, subsets
from mmlib.runtime import derived_seed

maps = hnp.arrays(
    np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.sampled_from([0, 1, 2, 3, 255])
)


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
    assert np.allclose(
        accuracy(counts), (prediction == label)[valid].mean() if valid.any() else np.nan, equal_nan=True
    )


def test_a_worked_example_and_absent_classes():
    counts = np.array([[3, 1, 0], [1, 5, 0], [0, 0, 0]])
    assert iou(counts)[:2].tolist() == [3 / 5, 5 / 7] and np.isnan(
        iou(counts)[2]
    )  # absent: NaN, neither 0 nor 1
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
    """The same mean in three forms: summed from the cache, fused by a function, and as a network that sees
    images only.
    """
    data, network = scored
    encode = (lambda images: images) if form == "whole" else network.modality_logits
    fuse = {"linear": None, "fused": FUSIONS["mean"], "whole": network}[form]
    scores = evaluate_subsets(encode, data, fuse=fuse, batch_size=2, protocol=protocol)
    names = list(data.modalities)
    for s, name in enumerate(scores.names):
        expected = {
            "all": np.zeros((3, 3), int),
            "condition=night": np.zeros((3, 3), int),
            "case=broken": np.zeros((3, 3), int),
        }
        for first in range(0, len(data), 2):
            batch = collate([data[i] for i in range(first, min(first + 2, len(data)))])
            missing = [n for n in names if data.modalities[n].symbol not in name]
            with torch.no_grad():
                if protocol == "drop":
                    logits = network({n: x for n, x in batch["images"].items() if n not in missing})
                else:  # what replaces a sensor is drawn sample by sample
                    each = []
                    for b, row in enumerate(data.rows[first : first + 2]):
                        one, seed = (
                            {n: x[b][None] for n, x in batch["images"].items()},
                            derived_seed(row["id"]),
                        )
                        each.append(remove(one, missing, protocol, data.modalities, seed))
                    logits = network({n: torch.cat([one[n] for one in each]) for n in names})
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
            images = remove(images, missing, protocol, data.modalities, derived_seed(data.rows[i]["id"]))
            with torch.no_grad():
                logits = torch.stack(
                    [network.modality_logits({n: image})[n][0] for n, image in images.items()]
                ).amax(0)
            large = F.interpolate(logits[None], data[i]["label"].shape, mode="bilinear", align_corners=False)[
                0
            ]
            expected += confusion_matrix(large.argmax(0), data[i]["label"], 3).numpy()
        assert np.abs(scores.counts["all"][s] - expected).sum() <= 8, name
    linear = evaluate_subsets(network.modality_logits, data, batch_size=1, protocol=protocol)
    assert not np.array_equal(linear.counts["all"][-1], scores.counts["all"][-1])


@pytest.mark.parametrize("protocol", ["drop", "zero", "black", "noise"])
def test_the_batch_size_changes_no_score(scored, protocol):
    """The noise of a sample is its own, whatever batch it comes in."""
    data, network = scored
    one, *others = (
        evaluate_subsets(network.modality_logits, data, batch_size=size, protocol=protocol).counts["all"]
        for size in (1, 2, 6)
    )
    for counts in others:  # the batch may change the last bit of a logit, and so a pixel that is tied
        assert np.abs(counts - one).sum() <= 4


def test_every_sample_has_its_own_noise(scored):
    data, _ = scored
    noise = []

    def encode(images):
        noise.append(images["rgb"])
        return {name: image[:, :1].expand(-1, 3, -1, -1) for name, image in images.items()}

    evaluate_subsets(encode, data, batch_size=2, protocol="noise")
    replaced = torch.cat(noise[1::2])  # each batch is encoded as it is, then replaced
    assert len(replaced) == len({tuple(image.flatten().tolist()) for image in replaced}) == len(data)


def test_logits_of_other_classes_are_refused(scored):
    data, network = scored
    with pytest.raises(ValueError, match=r"expected \(B, 3, h, w\), one map for each class"):
        evaluate_subsets(network.modality_logits, data, fuse=lambda logits: logits["rgb"][:, :2])
    with pytest.raises(ValueError, match=r"expected \(B, 3, h, w\), one map for each class"):
        evaluate_subsets(lambda images: images, data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", [None, "mean", "entropy", "agreement", "own"])
def test_logits_that_are_not_finite_are_of_no_class(scored, value, rule):
    """One pixel of one sensor is enough, in whatever way sensors are fused; the error names the sample."""
    data, network = scored
    fuse = FUSIONS.get(rule) or (rule and (lambda logits: sum(logits.values())))

    def encode(images):
        logits = network.modality_logits(images)
        broken = (images["depth"] == data[2]["images"]["depth"]).flatten(1).all(1)
        logits["depth"][broken, 1, 3, 5] = value
        return logits

    for size in (1, 5):
        with pytest.raises(ValueError, match="val_002: its logits are not finite"):
            evaluate_subsets(encode, data, fuse=fuse, batch_size=size)
    rules = {"rule": fuse or FUSIONS["mean"]}
    with pytest.raises(ValueError, match="val_002: its logits are not finite"):
        evaluate_failures(encode, rules, data, faults=["blank"])


def test_shards_add_up(scored):
    data, network = scored
    whole = evaluate_subsets(network.modality_logits, data, batch_size=1)
    parts = [
        evaluate_subsets(network.modality_logits, data, batch_size=1, shard=(rank, 2)) for rank in range(2)
    ]
    for group in whole.counts:
        assert np.array_equal(whole.counts[group], parts[0].counts[group] + parts[1].counts[group])


def test_images_of_different_sizes_are_scored_at_their_own(tmp_path, scored):
    _, network = scored
    data = PreparedDataset(toy.make(tmp_path), "val")
    images, label = toy.sample(5, (40, 32))
    for name, array in images.items():
        path = next((tmp_path / name).glob("val_002.*"))
        path.unlink()
        write_image(path, array)
    write_image(tmp_path / "label" / "val_002.png", label[..., None])
    together, apart = (
        evaluate_subsets(network.modality_logits, data, batch_size=size).counts["all"] for size in (5, 1)
    )
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
    lowered = (scores.summary()["lowered"], scores.summary()["inclusions"])
    assert lowered == (1, 2)  # adding D to R lowers mIoU, adding R to D leaves it
    assert scores.summary()["mean"] == pytest.approx(500 / 9) and scores.summary()["std"] == pytest.approx(
        np.std([100, 100 / 3, 100 / 3])
    )
    assert "lowers mIoU in 1 of 2" in scores.table() and scores.to_dict()["miou"]["all"]["R"] == 100.0


@given(st.integers(1, 5), st.floats(0, 0.99))
def test_subset_probabilities_are_those_of_independent_failures(count, p):
    """Every pattern of present and absent listed, the empty one left out, the rest brought to a sum of 1."""
    patterns = [row for row in itertools.product([0, 1], repeat=count) if any(row)]
    chances = {row: np.prod([1 - p if bit else p for bit in row]) for row in patterns}
    found = dict(zip((tuple(map(int, row)) for row in subset_matrix(count)), subset_probabilities(count, p)))
    assert found == {row: pytest.approx(chance / sum(chances.values())) for row, chance in chances.items()}


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_no_probability_is_refused(p):
    with pytest.raises(ValueError, match="expected 0 .* to below 1"):
        subset_probabilities(3, p)


def test_expected_counts_are_those_of_sensors_that_fail_at_random(scored):
    """2,000 passes in which each sensor of each sample is absent with probability 0.4, drawn again where all
    are; their mean.
    """
    data, network = scored
    p, draws, names = 0.4, 2000, list(data.modalities)
    scores = evaluate_subsets(network.modality_logits, data)
    rng = np.random.default_rng(0)
    single = []  # counts of each sample and subset, from one forward pass each
    for sample in (data[i] for i in range(len(data))):
        with torch.no_grad():
            of = {s: network({n: sample["images"][n][None] for n in s})[0].argmax(0) for s in subsets(names)}
        single.append(
            {s: confusion_matrix(prediction, sample["label"], 3).numpy() for s, prediction in of.items()}
        )
    total = np.zeros((draws, 3, 3))
    for draw in range(draws):
        for counts in single:
            left = ()
            while not left:
                left = tuple(n for n in names if rng.random() >= p)
            total[draw] += counts[left]
    expected, error = total.mean(0), total.std(0) / np.sqrt(draws)
    assert (np.abs(scores.failing(p) - expected) <= 5 * error + 1).all() and error.max() > 1
    assert not np.allclose(
        scores.failing(p), scores.failing(0.3), atol=5 * error.max()
    )  # the bound tells probabilities apart
    assert np.array_equal(scores.failing(0), scores.counts["all"][-1])


def test_full_size_logits_exist_for_one_image_at_a_time(scored, monkeypatch):
    data, network = scored
    shapes = []
    monkeypatch.setattr(
        subsets_module,
        "upsampled",
        lambda x, size, plain=subsets_module.upsampled: shapes.append(len(x)) or plain(x, size),
    )
    for fuse in (None, FUSIONS["agreement"]):
        evaluate_subsets(network.modality_logits, data, fuse=fuse, batch_size=5)
    assert set(shapes) == {1}


def cells(sheet: Sheet) -> dict[str, list[float]]:
    """The numbers of each row, from left to right."""
    return {name: list(row.values()) for name, row in sheet.rows.items()}


def by_condition(groups) -> SubsetScores:
    """Scores of two sensors whose full set has these (right, wrong) pixels of two classes in each condition
    or case.
    """
    modalities = {name: SENSORS[name] for name in ("rgb", "depth")}
    full = {name: np.array([[right, wrong], [wrong, right]]) for name, (right, wrong) in groups.items()}
    full = {"all": sum(full[name] for name in groups if name.startswith("condition"))} | full
    none = np.array([[0, 1], [1, 0]])
    return SubsetScores(
        modalities,
        ["a", "b"],
        "drop",
        {name: np.stack([none, none, counts]) for name, counts in full.items()},
    )


def test_subsets_are_printed_in_the_papers_order():
    """The columns of the printed tables are in the order of ours, and their means and deviations come out of
    the same cells.
    """
    table = load_paper("functional-entropy").tables["T3"]
    sheet = subset_sheet(
        {row: dict(zip(table.columns, map(float, table.cells(row)))) for row in table.rows}, "as printed"
    )
    four = {name: SENSORS[name] for name in ("rgb", "depth", "event", "lidar")}
    assert (
        sheet.columns
        == [*table.columns, "Mean", "Std"]
        == [*SubsetScores(four, ["a"], "drop", {}).names, "Mean", "Std"]
    )
    values = [float(cell) for cell in table.cells("MAGIC")]
    assert [*sheet.rows["MAGIC"].values()][-2:] == [
        pytest.approx(sum(values) / 15),
        pytest.approx(statistics.pstdev(values)),
    ]
    assert sheet.markdown().splitlines()[4].startswith("| CMNeXt | 0.86 | 0.49 |")


def test_conditions_and_cases_stand_in_one_row():
    groups = {"condition=fog": (3, 1), "condition=sun": (1, 1), "case=blur": (1, 3)}
    sheet = by_condition(groups).sheets("mine", "on val")[1]
    # right / (right + 2 wrong), the same for both classes
    assert sheet.columns == ["fog", "sun", "blur", "all"]
    assert (
        cells(sheet) == {"mine": [pytest.approx(100 * v) for v in (3 / 5, 1 / 3, 1 / 7, 4 / 8)]}
        and "(RD), on val" in sheet.caption
    )


def test_failures_by_group_and_both_readings():
    scores = by_condition({"condition=fog": (3, 1), "condition=sun": (1, 1)})
    sheet = scores.failure_sheet([0.5], "on val")
    # three subsets, equally likely: two of them all wrong, (0, 1); the mean of counts is not the mean of
    # scores
    assert sheet.columns == ["all", "fog", "sun"]
    counts, means = cells(sheet).values()
    assert means == [pytest.approx(100 * v / 3) for v in (4 / 8, 3 / 5, 1 / 3)]
    assert counts == [
        pytest.approx(100 * right / (right + 2 * wrong)) for right, wrong in ((4, 4), (3, 3), (1, 3))
    ]


def report(miou, accuracy, split="val", **iou):
    return {
        "split": split,
        "chosen by": "nothing",
        "scores": {
            "rule": "hungarian",
            "miou": {"all": miou},
            "accuracy": {"all": accuracy},
            "iou": {"all": iou},
        },
    }


def test_clusters_are_printed_by_score_and_by_class():
    both, classes = cluster_sheets(
        {"u": report(31.3, 50.7, bed=60.0, tv=None), "s": report(20.0, 40.0, bed=30.0, tv=10.0)}
    )
    assert both.columns == ["mIoU", "Acc"] and cells(both) == {"u": [31.3, 50.7], "s": [20.0, 40.0]}
    assert classes.columns == ["bed", "tv", "mIoU"] and "| u | 60.00 | – | 31.30 |" in classes.markdown()
    assert "on val; clusters named by: hungarian; state chosen by nothing" in both.caption
    with pytest.raises(ValueError, match="different splits or classes"):
        cluster_sheets({"u": report(1, 1, bed=1.0), "s": report(1, 1, "test", bed=1.0)})
    with pytest.raises(ValueError, match="v: clustered data without labels"):
        cluster_sheets({"v": {"scores": None}})


def test_a_tag_in_a_name_is_text_in_markdown():
    tag = "<img src=x onerror=alert(1)>"
    text = Sheet(f"on {tag}", {tag: {f"condition={tag}": 1.0}}, tag).markdown()
    assert "<" not in text and text.count("&lt;img src=x") == 4


def test_tables_are_written_as_they_are(tmp_path):
    sheets = [Sheet("one, two", {"x": {"a": 1.23456, "b": np.nan}}), Sheet("next", {"y": {"c": 2.0}})]
    markdown, table = write_sheets(tmp_path / "runs" / "v1.5", sheets)
    assert (markdown.name, table.name) == ("v1.5.md", "v1.5.csv") and markdown.read_text().count(
        "| --- |"
    ) == 2
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(row.values()) for row in rows] == [
        ("one, two", "x", "a", "1.2346"),
        ("one, two", "x", "b", ""),
        ("next", "y", "c", "2.0000"),
    ]


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
