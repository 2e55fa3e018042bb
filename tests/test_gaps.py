"""Data whose samples lack sensors: what is scored, clustered and predicted of them, against loops over single
samples and against the complete part of the data.
"""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from sklearn.metrics import balanced_accuracy_score
from small_runs import configured, same

from mmlib import cli
from mmlib.data.images import read_image
from mmlib.data.missing import complete, remove
from mmlib.data.prepared import DataError, Description, PreparedDataset, Writer
from mmlib.evaluation.counts import class_accuracy, confusion_matrix
from mmlib.evaluation.failures import evaluate_failures
from mmlib.evaluation.fusion import FUSIONS
from mmlib.evaluation.subsets import evaluate_subsets
from mmlib.modalities import subsets
from mmlib.runtime import derived_seed
from mmlib.segmentation.information import input_information, measure_information
from mmlib.segmentation.network import save_segmenter
from mmlib.unsupervised.train import cluster

NAMES = ["rgb", "depth", "aolp"]
# Every sample lacks something: all three alone, and all pairs but depth with aolp, which no sample has.
LACKING = [["rgb", "depth"], ["rgb"], ["aolp"], ["rgb", "aolp"], ["depth"]]
# Some are complete.
MIXED = [NAMES, ["rgb"], NAMES, ["rgb", "depth"], NAMES, ["depth", "aolp"]]


def write(root: Path, having, train=12, val=10, names=NAMES) -> str:
    """The toy data set, of whose samples each has the next of the sets of sensors ``having``."""
    modalities = {name: toy.MODALITIES[name] for name in names}
    with Writer(root, Description("toy", toy.CLASSES, toy.PALETTE, modalities)) as writer:
        for split, start, count in (("train", 0, train), ("val", 1000, val)):
            for i in range(count):
                images, label = toy.sample(start + i)
                present = {name: images[name] for name in having[i % len(having)] if name in names}
                if present:
                    condition = ("day", "night")[i % 2]
                    writer.add(f"{split}_{i:03d}", split, present, label, condition)
    return str(root)


def split_of(root, split="val") -> PreparedDataset:
    return PreparedDataset(root, split)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return toy.untrained(PreparedDataset(toy.make(tmp_path_factory.mktemp("whole")), "val"))


@pytest.fixture(scope="module", params=["lacking", "mixed"])
def gaps(request, tmp_path_factory):
    having = {"lacking": LACKING, "mixed": MIXED}[request.param]
    return split_of(write(tmp_path_factory.mktemp(request.param) / "data", having))


def by_hand(network, data, fuse, protocol="drop") -> dict:
    """Group and subset -> (counts, number of samples): one sample and one subset at a time."""
    result = {}
    for index in range(len(data)):
        sample = data[index]
        images = {name: image[None] for name, image in sample["images"].items()}
        for subset in subsets(NAMES):
            if not set(subset) <= set(images):
                continue
            shown = {name: images[name] for name in subset}
            if protocol != "drop":
                absent = [name for name in images if name not in subset]
                shown = remove(images, absent, protocol, data.modalities, derived_seed(sample["id"]))
            with torch.no_grad():
                prediction = fuse(network.modality_logits(shown))[0]
            size = sample["label"].shape
            large = torch.nn.functional.interpolate(prediction[None], size, mode="bilinear")[0]
            counts = confusion_matrix(large.argmax(0), sample["label"], 3).numpy()
            for group in ("all", f"condition={sample['condition']}"):
                total, number = result.get((group, subset), (0, 0))
                result[group, subset] = total + counts, number + 1
    return result


@pytest.mark.parametrize("protocol", ["drop", "noise"])
@pytest.mark.parametrize("rule", [None, "mean", "entropy"])
def test_a_subset_is_counted_over_the_samples_that_have_all_of_it(network, gaps, rule, protocol):
    genuine = {
        tuple(gaps[i]["images"][n].flatten()[:9].tolist()) for i in range(len(gaps)) for n in gaps.present(i)
    }
    encoded = []

    def encode(images):
        encoded.extend(image for stack in images.values() for image in stack)
        return network.modality_logits(images)

    scores = evaluate_subsets(encode, gaps, fuse=rule and FUSIONS[rule], batch_size=4, protocol=protocol)
    if protocol == "drop":  # nothing but images of the data reaches the network, and each of them once
        assert {tuple(image.flatten()[:9].tolist()) for image in encoded} == genuine
        assert len(encoded) == sum(len(gaps.present(i)) for i in range(len(gaps)))
    expected = by_hand(network, gaps, FUSIONS[rule or "mean"], protocol)
    for s, subset in enumerate(subsets(NAMES)):
        for group, counts in scores.counts.items():
            # sums in another order may flip a pixel that is tied to the last bit
            assert np.abs(counts[s] - expected.get((group, subset), (0, 0))[0]).sum() <= 4
        assert scores.samples[s] == expected.get(("all", subset), (0, 0))[1]


def test_what_no_sample_has_is_a_dash_and_never_a_number(network, tmp_path):
    data = split_of(write(tmp_path, LACKING))
    scores = evaluate_subsets(network.modality_logits, data)
    record, printed = scores.to_dict(), scores.table()
    assert record["samples"] == {"R": 6, "D": 4, "A": 4, "RD": 2, "RA": 2, "DA": 0, "RDA": 0}
    assert [name for name, value in record["miou"]["all"].items() if value is None] == ["DA", "RDA"]
    values = [value for value in record["miou"]["all"].values() if value is not None]
    summary = record["summary"]["all"]
    assert summary["full"] is None and summary["class accuracy"] is None
    assert [summary[key] for key in ("mean", "min", "std")] == pytest.approx(
        [np.mean(values), min(values), np.std(values)], abs=1e-3
    )
    assert (summary["lowered"], summary["inclusions"]) == (0, 0)  # none of them share all of their samples
    assert "\nRD (2) " in printed and re.search(r"\nRDA \(0\) +–", printed)
    subset_sheet = scores.sheets("mine", "on val")[0].markdown()
    assert "| RDA (0) |" in subset_sheet and "| – |" in subset_sheet


def test_subsets_are_compared_where_their_samples_are_the_same(network, tmp_path):
    data = split_of(write(tmp_path, [NAMES, ["rgb", "aolp"]]))
    scores = evaluate_subsets(network.modality_logits, data)
    assert dict(zip(scores.names, scores.samples)) == {
        "R": 10,
        "D": 5,
        "A": 10,
        "RD": 5,
        "RA": 10,
        "DA": 5,
        "RDA": 5,
    }
    values = scores.miou()
    pairs = [("R", "RA"), ("A", "RA"), ("D", "RD"), ("D", "DA"), ("RD", "RDA"), ("DA", "RDA")]
    lowered = sum(values[b] < values[a] for a, b in pairs)
    assert (scores.summary()["lowered"], scores.summary()["inclusions"]) == (lowered, 6)


def test_class_accuracy_is_scikit_learns_over_the_classes_that_are_there():
    rng = np.random.default_rng(0)
    for classes in ([0, 1, 2, 3], [0, 2], [3]):
        truth = rng.choice(classes, 500)
        guess = np.where(rng.random(500) < 0.6, truth, rng.choice(classes, 500))
        counts = confusion_matrix(torch.from_numpy(guess), torch.from_numpy(truth), 4)
        assert class_accuracy(counts) == pytest.approx(balanced_accuracy_score(truth, guess))
    assert np.isnan(class_accuracy(np.zeros((2, 4, 4)))).all()


def test_failures_are_those_of_complete_samples(network, tmp_path, capsys):
    mixed, whole = split_of(write(tmp_path / "mixed", MIXED)), complete(split_of(tmp_path / "mixed"))
    assert [row["id"] for row in whole.rows] == [f"val_{i:03d}" for i in (0, 2, 4, 6, 8)]
    assert ", val: 5 of 10 samples lack some of rgb, depth, aolp, and are left out" in capsys.readouterr().err
    rules = {"mean": FUSIONS["mean"]}
    scored = evaluate_failures(network.modality_logits, rules, whole, faults=["blank"])
    alone = split_of(write(tmp_path / "alone", [NAMES]))
    alone.rows = [row for row in alone.rows if int(row["id"][4:]) in (0, 2, 4, 6, 8)]
    alone.modalities = mixed.modalities  # of the same statistics
    assert scored == evaluate_failures(network.modality_logits, rules, alone, faults=["blank"])
    with pytest.raises(DataError, match="val: 10 of 10 samples lack some of .*none is left; take fewer"):
        complete(split_of(write(tmp_path / "none", LACKING)))


def test_information_is_averaged_over_the_samples_that_have_the_sensor(network, gaps):
    measured, values = measure_information(network, gaps), {}
    for index in range(len(gaps)):
        images = {name: image[None] for name, image in gaps[index]["images"].items()}
        label, seed = gaps[index]["label"][None], derived_seed(0, index)
        for name, value in zip(images, input_information(network, images, label, seed=seed)[0]):
            values.setdefault(name, []).append(float(value.detach()))
    assert measured == {name: pytest.approx(np.mean(values[name])) for name in NAMES}


def run(*words):
    device = [] if words[0] == "train" else ["--device", "cpu"]
    cli.main([*map(str, words), "--no-progress", *device])


def test_the_commands_of_part_a_on_data_with_gaps(network, tmp_path, capsys):
    save_segmenter(network, tmp_path / "net.safetensors")
    lacking, mixed = write(tmp_path / "lacking", LACKING), write(tmp_path / "mixed", MIXED)
    for data in (lacking, mixed):
        out = tmp_path / f"{Path(data).name}.json"
        run("evaluate", tmp_path / "net.safetensors", "--data", data, "--out", out)
        record, own = json.loads(out.read_text()), split_of(data)
        network_of_file = evaluate_subsets(dataset=own, **network.scoring())
        assert record["scores"]["samples"] == dict(zip(network_of_file.names, network_of_file.samples))
    with pytest.raises(SystemExit, match="--failure-probability: samples of val lack sensors already"):
        run("evaluate", tmp_path / "net.safetensors", "--data", mixed, "--failure-probability", "0.1")
    with pytest.raises(SystemExit, match="none is left; take fewer sensors"):
        run("evaluate", tmp_path / "net.safetensors", "--data", lacking, "--failures", "2")
    capsys.readouterr()
    run("predict", tmp_path / "net.safetensors", "--data", mixed, "--split", "val", "--out", tmp_path / "out")
    data = split_of(mixed)
    for index in range(len(data)):
        sample = data[index]
        with torch.no_grad():
            logits = network({name: image[None] for name, image in sample["images"].items()})
        large = torch.nn.functional.interpolate(logits, sample["label"].shape, mode="bilinear")[0]
        mask = read_image(tmp_path / "out" / "masks" / f"{sample['id']}.png", "uint8", 1)[..., 0]
        assert (mask != large.argmax(0).numpy()).sum() <= 2
    samples = json.loads((tmp_path / "out" / "classes.json").read_text())["samples"]
    assert samples["val_001"]["sensors"] == ["rgb"] and samples["val_001"]["absent"] == ["depth", "aolp"]


def test_trainings_without_a_complete_sample_are_compared(tmp_path, capsys):
    lacking, runs = write(tmp_path / "lacking", LACKING), [tmp_path / f"gaps-{seed}" for seed in (0, 1)]
    for seed, out in enumerate(runs):
        run("train", "--data", lacking, "--out", out, "--epochs", "1", "--batch-size", "4", "--seed", seed)
    printed = capsys.readouterr().out
    assert "by subset: R " in printed and "RDA" not in printed and "full" not in printed.splitlines()[-1]
    words = ["--split", "val", "--layout", tmp_path / "table", "--out", tmp_path / "compared.json"]
    run("compare", *runs, *words)
    group, printed = (
        json.loads((tmp_path / "compared.json").read_text())["groups"]["gaps"],
        capsys.readouterr().out,
    )
    assert group["miou"]["all"]["RDA"] == group["class accuracy"]["all"]["DA"] == [None, None]
    assert len(group["summary"]["all"]["mean"]) == 2 and set(group["information"]) == set(NAMES)
    assert re.search(r"\n  mean [0-9.]+ ± [0-9.]+ \(n=2\)   min ", printed) and "RDA (0) nan" in printed
    with open(tmp_path / "table.csv", newline="") as file:
        cells = {(row["row"], row["column"]): row["value"] for row in csv.DictReader(file)}
    assert cells["gaps mIoU", "RDA (0)"] == "" and float(cells["gaps mIoU", "RD (2)"]) > 0
    values = [
        float(cells["gaps mIoU", f"{name} ({n})"])
        for name, n in zip(("R", "D", "A", "RD", "RA"), (6, 4, 4, 2, 2))
    ]
    assert float(cells["gaps mIoU", "Mean"]) == pytest.approx(np.mean(values), abs=1e-3)


# ---- part B ----


@pytest.mark.parametrize(
    "method, names", [("unim2", ["rgb", "depth"]), ("kmeans", ["depth"]), ("depthg", ["rgb", "depth"])]
)
def test_clusters_are_those_of_the_samples_that_have_all_that_a_method_reads(
    tmp_path, own_cache, method, names, capsys
):
    """Every sample lacks something; the run equals, to the last bit, one on the complete part by itself."""
    having = [["rgb", "depth"], ["rgb"], ["depth", "aolp"]]
    gaps = write(tmp_path / "gaps", having, 30, 12)
    part = tmp_path / "part"
    write(part, [[n for n in names] if set(names) <= set(each) else [] for each in having], 30, 12, names)
    reports = []
    for data in (gaps, part):
        out = tmp_path / f"{Path(data).name}-run"
        reports.append(cluster(configured(data, out, method, modalities=tuple(names))))
        run("segment", out, "--data", data, "--split", "val", "--out", tmp_path / f"{Path(data).name}-maps")
    assert same(tmp_path / "gaps-run", tmp_path / "part-run")
    assert reports[0]["scores"] == reports[1]["scores"] and reports[0]["images"] == reports[1]["images"]
    taken = {"train": 10, "val": 4} if len(names) == 2 else {"train": 20, "val": 8}
    assert reports[0]["images"] == taken
    maps = sorted(path.name for path in (tmp_path / "gaps-maps").glob("*.png"))
    assert len(maps) == taken["val"] and maps == sorted(
        p.name for p in (tmp_path / "part-maps").glob("*.png")
    )
    with pytest.raises(
        DataError, match="train: 30 of 30 samples lack some of .*none is left; take fewer sensors"
    ):
        cluster(configured(gaps, tmp_path / "none"))
