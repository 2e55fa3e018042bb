"""Fusion rules against weights worked out by hand and loops over pixels; failing sensors against a naive
evaluation.
"""

import itertools
import math

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mmlib.data.missing import FAULTS, SEVERITIES, faulty
from mmlib.data.prepared import PreparedDataset
from mmlib.evaluation import failures
from mmlib.evaluation.counts import confusion_matrix
from mmlib.evaluation.failures import evaluate_failures, failure_scores, failure_table
from mmlib.evaluation.fusion import FUSIONS, RULES, fuse, weights
from mmlib.evaluation.subsets import Variants, largest
from mmlib.runtime import derived_seed

NAMES = "abcde"


def draw(count, batch=2, classes=3, size=(2, 3), seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(batch, classes, *size, generator=generator) for name in NAMES[:count]}


def softmax(values):
    powers = [math.exp(v - max(values)) for v in values]
    return [p / sum(powers) for p in powers]


def by_hand(logits, rule):
    """Weights (n, B) from loops over Python floats; entropy weights pixel by pixel, (n, B, h, w)."""
    names, example = list(logits), next(iter(logits.values()))
    batch, classes, height, width = example.shape
    n, pixels = len(names), list(itertools.product(range(height), range(width)))
    found = np.zeros((n, batch, height, width))
    for b in range(batch):
        vector = {
            (i, p): [float(logits[names[i]][b, k, p[0], p[1]]) for k in range(classes)]
            for i in range(n)
            for p in pixels
        }
        mean = {
            (skip, p): [
                sum(vector[j, p][k] for j in range(n) if j != skip) / (n - (skip is not None))
                for k in range(classes)
            ]
            for skip in (None, *(range(n) if n > 1 else ()))
            for p in pixels
        }
        share = [1 / n] * n
        if rule == "total":
            share = [1.0] * n
        elif rule == "agreement" and n >= 3:
            divergence = []
            for i in range(n):
                each = [
                    sum(a * math.log(a / c) for a, c in zip(softmax(vector[i, p]), softmax(mean[i, p])))
                    for p in pixels
                ]
                divergence.append(sum(each) / len(each))
            share = softmax([-2 * d for d in divergence])
        elif rule == "selection":
            cosine = []
            for i in range(n):
                each = []
                for p in pixels:
                    a, c = np.array(softmax(vector[i, p])), np.array(softmax(mean[None, p]))
                    each.append(a @ c / np.sqrt(a @ a * (c @ c)))
                cosine.append(np.mean(each))
            best = sorted(range(n), key=lambda i: -cosine[i])[: (n + 1) // 2]
            share = [(i in best) / len(best) for i in range(n)]
        for p in pixels:
            if rule == "entropy":
                share = softmax([sum(a * math.log(a) for a in softmax(vector[i, p])) for i in range(n)])
            for i in range(n):
                found[i, b, p[0], p[1]] = share[i]
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_rule_equals_loops_over_pixels(rule, count):
    logits = draw(count, seed=count)
    expected = by_hand(logits, rule)
    assert np.allclose(weights(logits, rule), expected.mean((2, 3)), atol=1e-5)
    fused = sum(torch.from_numpy(share)[:, None] * value for share, value in zip(expected, logits.values()))
    assert torch.allclose(fuse(logits, rule), fused.float(), atol=1e-4) and torch.equal(
        FUSIONS[rule](logits), fuse(logits, rule)
    )


def test_agreement_in_closed_form():
    """Two classes, one pixel: two sensors say p = 3/4 with logits (ln 3, 0), the third says the opposite."""
    say = math.log(3)
    logits = {"a": torch.tensor([say, 0.0]), "b": torch.tensor([say, 0.0]), "c": torch.tensor([0.0, say])}
    found = weights({name: value[None, :, None, None] for name, value in logits.items()}, "agreement")[:, 0]
    # The others of a: the mean of (ln 3, 0) and (0, ln 3), which is undecided. The others of c: (ln 3, 0).
    near = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    far = 0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25)
    expected = np.exp([-2 * near, -2 * near, -2 * far])
    assert np.allclose(found, expected / expected.sum(), atol=1e-6)


@settings(max_examples=40)
@given(
    st.sampled_from(list(RULES)), st.integers(1, 5), st.integers(0, 10**6), st.sampled_from([0.1, 3.0, 40.0])
)
def test_weights_are_shares_and_follow_their_sensors(rule, count, seed, scale):
    logits = draw(count, seed=seed, scale=scale)
    found = weights(logits, rule)
    total = count if rule == "total" else 1
    assert (
        found.shape == (count, 2)
        and bool((found >= 0).all())
        and torch.allclose(found.sum(0), torch.full((2,), float(total)))
    )
    order = np.random.default_rng(seed).permutation(count)
    names = list(logits)
    shuffled = {names[i]: logits[names[i]] for i in order}
    if rule == "selection":  # a tie between two sensors would be broken by their order
        similarity = F.cosine_similarity(
            torch.stack(list(logits.values())).softmax(2),
            torch.stack(list(logits.values())).mean(0).softmax(1)[None],
            dim=2,
        )
        gaps = similarity.mean((-2, -1)).sort(0).values.diff(dim=0)
        if count > 1 and float(gaps.min()) < 1e-5:
            return
    assert torch.allclose(weights(shuffled, rule), found[torch.as_tensor(order)], atol=1e-5)
    assert torch.allclose(fuse(shuffled, rule), fuse(logits, rule), atol=1e-4 * scale)
    alone = {name: value[1:] for name, value in logits.items()}
    assert torch.allclose(weights(alone, rule)[:, 0], found[:, 1], atol=1e-5), (
        "images of a batch do not touch each other"
    )


def test_the_odd_one_out_loses_its_weight_where_the_sure_one_gains():
    truth = torch.randint(0, 4, (1, 6, 6), generator=torch.Generator().manual_seed(0))
    sound = 3.0 * F.one_hot(truth, 4).permute(0, 3, 1, 2).float()
    wrong = (
        9.0 * F.one_hot((truth + 1) % 4, 4).permute(0, 3, 1, 2).float()
    )  # wrong everywhere, and sure of it
    logits = {
        name: sound + 0.5 * torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(i))
        for i, name in enumerate("abc")
    }
    logits["d"] = wrong
    share = {rule: weights(logits, rule)[3, 0].item() for rule in RULES}
    assert share["agreement"] < 0.1 < share["mean"] == 0.25 and share["selection"] == 0
    assert share["entropy"] > 0.28, "sure of itself, hence trusted more than its quarter"
    right = {rule: (fuse(logits, rule).argmax(1) == truth).float().mean().item() for rule in RULES}
    assert (
        right["agreement"] == 1.0 == right["selection"]
        and right["entropy"] <= right["mean"] == right["total"]
    )


def test_two_sensors_have_no_majority():
    logits = draw(2)
    assert torch.equal(weights(logits, "agreement"), torch.full((2, 2), 0.5)) and torch.equal(
        fuse(logits, "agreement"), fuse(logits)
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rule", RULES)
def test_numbers_that_are_none(bad, rule):
    """By no rule do they count for nothing: the image has no prediction. The other image keeps its own."""
    logits = draw(4)
    plain = fuse(logits, rule)
    logits["b"][1, 0, 0, 0] = bad
    fused = fuse(logits, rule)
    assert torch.equal(fused[0], plain[0]) and fused[1].isnan().all()
    assert torch.allclose(largest(fused[:1], (2, 3), "x")[0], plain[0])
    with pytest.raises(ValueError, match="^second: its logits are not finite"):
        largest(fused[1:], (2, 3), "second")


def test_what_can_not_be_fused():
    with pytest.raises(ValueError, match="expected one of mean, total, agreement"):
        fuse(draw(2), "median")
    with pytest.raises(ValueError, match="at least one sensor"):
        fuse({}, "mean")
    with pytest.raises(ValueError, match="the same for every sensor"):
        fuse({"a": torch.zeros(1, 2, 3, 3), "b": torch.zeros(1, 2, 3, 4)}, "mean")
    with pytest.raises(ValueError, match=r"expected \(B, K, h, w\)"):
        fuse({"a": torch.zeros(2, 3, 3)}, "mean")


def test_half_precision_is_fused_in_full():
    logits = {name: value.to(torch.bfloat16) for name, value in draw(4, size=(40, 40)).items()}
    exact = {name: value.double() for name, value in logits.items()}
    own = torch.stack(list(exact.values())).log_softmax(2)
    others = torch.stack([sum(v for m, v in exact.items() if m != n).div(3).log_softmax(1) for n in exact])
    expected = (-2 * (own.exp() * (own - others)).sum(2).mean((-2, -1))).softmax(0)
    assert fuse(logits, "agreement").dtype == torch.float32
    assert torch.allclose(weights(logits, "agreement").double(), expected, atol=1e-5)


# ---- sensors that fail without saying so ----


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    data = PreparedDataset(toy.make(tmp_path_factory.mktemp("toy")), "val")
    return data, toy.untrained(data)


@pytest.fixture
def count_failures(monkeypatch):
    """``evaluate_failures`` that gives the confusion matrices behind its scores."""

    def count(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(failures, "failure_scores", lambda rules, faults, counts: {"counts": counts})
            return evaluate_failures(*arguments, **options)["counts"]

    return count


def naive(network, data, rule, fault, severity, broken, seed):
    """One sample, one fault, one fusion at a time."""
    counts, names = torch.zeros(3, 3, dtype=torch.long), list(data.modalities)
    for i in range(len(data)):
        images, label = data.physical(i)
        logits = {}
        for m, name in enumerate(names):
            image = images[name]
            if name in broken:
                other = data.physical((i + 1 + (len(data) // 2 + m - 1) % (len(data) - 1)) % len(data))[0][
                    name
                ]
                image = faulty(
                    image,
                    data.modalities[name],
                    fault,
                    severity,
                    other,
                    derived_seed(seed, data.rows[i]["id"]),
                )
            logits[name] = network.modality_logits({name: data.modalities[name].to_network(image)[None]})[
                name
            ]
        fused = F.interpolate(fuse(logits, rule), label.shape, mode="bilinear", align_corners=False)
        counts += confusion_matrix(fused[0].argmax(0), label, 3)
    return counts.numpy()


def test_one_pass_equals_one_forward_per_fault_and_rule(trial, count_failures):
    data, network = trial
    rules = {rule: FUSIONS[rule] for rule in ("mean", "agreement")}
    scores = count_failures(network.modality_logits, rules, data, batch_size=3)
    pairs = ["".join(p) for p in itertools.combinations("RDA", 2)]
    kinds = [(fault, severity) for fault in FAULTS for severity in SEVERITIES]
    every = {(rule, *kind, b) for rule in rules for kind in kinds for b in (*"RDA", *pairs)}
    plain = {(rule, "clean", "") for rule in rules} | {("oracle", "removed", b) for b in (*"RDA", *pairs)}
    assert set(scores) == {(r, f"{f} {s}", b) for r, f, s, b in every} | plain
    assert {int(c.sum()) for c in scores.values()} == {5 * (32 * 48 - 1)}
    symbol = {m.symbol: name for name, m in data.modalities.items()}
    with torch.no_grad():
        for rule, fault, severity, broken in sorted(every)[:: len(every) // 12]:
            expected = naive(network, data, rule, fault, severity, [symbol[b] for b in broken], 0)
            # the batch of an encoder pass may change the last bit of a logit, and with it a pixel that is
            # tied
            assert np.abs(scores[rule, f"{fault} {severity}", broken] - expected).sum() <= 8, (
                rule,
                fault,
                severity,
                broken,
            )
        for broken in ("R", "DA"):
            left = {n: v for n, v in data.modalities.items() if v.symbol not in broken}
            expected = sum(
                confusion_matrix(
                    network({n: data[i]["images"][n][None] for n in left})[0].argmax(0), data[i]["label"], 3
                ).numpy()
                for i in range(5)
            )
            assert np.abs(scores["oracle", "removed", broken] - expected).sum() <= 8


def test_nothing_is_encoded_twice(trial):
    data, network = trial
    seen, fused = [], []

    def encode(images):
        seen.append({name: len(image) for name, image in images.items()})
        return network.modality_logits(images)

    def rule(logits):
        fused.append(len(logits))
        return fuse(logits, "mean")

    evaluate_failures(encode, {"one": rule, "two": rule}, data, faults=["dark", "shift"], batch_size=64)
    assert seen == [{"rgb": 5, "depth": 5, "aolp": 5}] * len(data), (
        "the sound image and four broken ones, whatever the rules"
    )
    # a sample: 2 sound, then for each of 3 sensors and 3 pairs one oracle, and two rules in four variants
    assert len(fused) == len(data) * (2 + 6 * 9) and fused.count(3) == len(data) * (2 + 6 * 8)


def test_batch_size_workers_and_choice_of_samples_change_nothing(trial, count_failures):
    data, network = trial
    options = {"faults": ["noise", "other"], "pairs": False}
    first, again, small = (
        count_failures(
            network.modality_logits, {"mean": FUSIONS["mean"]}, data, batch_size=b, workers=w, **options
        )
        for b, w in ((8, 0), (8, 1), (2, 0))
    )
    parts = [
        count_failures(network.modality_logits, {"mean": FUSIONS["mean"]}, data, indices=i, **options)
        for i in ([0, 3], [1, 2, 4])
    ]
    for key, counts in first.items():
        assert np.array_equal(counts, again[key]) and np.abs(counts - small[key]).sum() <= 8
        assert np.array_equal(counts, parts[0][key] + parts[1][key])
    assert max(len(sensors) for *_, sensors in first) == 1
    scores = evaluate_failures(network.modality_logits, {"mean": FUSIONS["mean"]}, data, **options)
    assert scores["samples"] == 5 and "double mild" not in scores["summary"]["mean"]


def test_a_network_that_is_no_fusion_of_single_predictions(trial, count_failures):
    data, network = trial
    options = {"faults": ["blank", "other"]}
    whole = count_failures(lambda images: images, {"network": network}, data, **options)
    parts = count_failures(network.modality_logits, {"mean": FUSIONS["mean"]}, data, **options)
    assert len(whole) == len(parts)
    for (rule, *key), counts in whole.items():
        assert np.abs(counts - parts["mean" if rule == "network" else rule, *key]).sum() <= 20


def test_averages_by_hand():
    """Accuracy-like matrices: c of 8 pixels of each of two classes right, so IoU = c / (16 - c)."""
    right = {("mean", "clean", ""): 8}
    for i, broken in enumerate(("R", "D", "E", "RD", "RE", "DE")):
        right["oracle", "removed", broken] = 7
        for j, fault in enumerate(("dark", "blur")):
            for severity in ("mild", "gross"):
                right["mean", f"{fault} {severity}", broken] = 1 + i + j if severity == "mild" else 4
    counts = {key: np.array([[c, 8 - c], [8 - c, c]]) for key, c in right.items()}
    scores = failure_scores(["mean"], ["dark", "blur"], counts) | {"samples": 1, "rules": ["mean"]}
    percent = lambda c: 100 * c / (16 - c)  # noqa: E731
    found = scores["summary"]
    assert found["mean"]["clean"] == 100 == found["oracle"]["clean"] and found["oracle"][
        "single mild"
    ] == pytest.approx(percent(7))
    assert found["mean"]["single mild"] == pytest.approx(np.mean([percent(c) for c in (1, 2, 2, 3, 3, 4)]))
    assert found["mean"]["double mild"] == pytest.approx(np.mean([percent(c) for c in (4, 5, 5, 6, 6, 7)]))
    assert found["mean"]["double gross"] == pytest.approx(percent(4))
    assert scores["by_fault"]["mild"]["blur"]["mean"] == pytest.approx(
        np.mean([percent(c) for c in (2, 3, 4)])
    )
    by_kind = scores["miou"]["mean"]
    assert by_kind["dark mild"]["DE"] == pytest.approx(percent(6)) and by_kind["clean"]["none"] == 100
    assert scores["miou"]["oracle"]["removed"]["R"] == pytest.approx(percent(7))
    table = failure_table(scores)
    assert f"{percent(4):.1f}" in table and "told which sensors are broken" in table


def test_what_can_not_be_scored(tmp_path, trial):
    data, network = trial
    mean = {"mean": FUSIONS["mean"]}
    with pytest.raises(ValueError, match="fault rain: expected one of dark, noise"):
        evaluate_failures(network.modality_logits, mean, data, faults=["rain"])
    with pytest.raises(ValueError, match=r"1 sensor\(s\), 5 sample\(s\); expected two or more of each"):
        evaluate_failures(network.modality_logits, mean, PreparedDataset(data.root, "val", ["rgb"]))
    with pytest.raises(ValueError, match="no labels"):
        evaluate_failures(
            network.modality_logits, mean, PreparedDataset(toy.make(tmp_path / "bare", labels=False), "val")
        )
    single = PreparedDataset(toy.make(tmp_path / "single", val=1), "val")
    with pytest.raises(ValueError, match=r"3 sensor\(s\), 1 sample\(s\); expected two or more of each"):
        evaluate_failures(network.modality_logits, mean, single)
    with pytest.raises(ValueError, match="expected \\(B, 3, h, w\\)"):
        evaluate_failures(network.modality_logits, {"few": lambda logits: logits["rgb"][:, :2]}, data)


def test_other_shows_a_scene_of_its_own_to_each_sensor(trial):
    data, _ = trial
    variants = Variants(data, faults=[("other", "gross")])
    for index in range(len(data)):
        shown = []
        for name, modality in data.modalities.items():
            image = variants[index]["images"][name][1]
            shown += [
                i
                for i in range(len(data))
                if torch.allclose(image, modality.to_network(data.physical(i)[0][name]))
            ]
        assert len(shown) == 3 and index not in shown and len(set(shown)) == 3
