"""The commands that score: windows, random failures and printed tables, from the command line to the files
they leave.
"""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy

from mmlib import cli
from mmlib.data.images import write_image
from mmlib.data.plausible import check_plausible
from mmlib.data.prepared import Description, PreparedDataset, Writer, collate
from mmlib.evaluation.counts import class_accuracy, miou
from mmlib.evaluation.subsets import evaluate_subsets, subset_probabilities
from mmlib.modalities import SENSORS
from mmlib.segmentation.network import NetworkConfig, Segmenter, load_segmenter, save_segmenter
from mmlib.segmentation.score import open_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("scoring")
    data = PreparedDataset(toy.make(root / "toy"), "val")
    save_segmenter(toy.untrained(data), root / "net.safetensors")
    return root


def evaluate(root, *options):
    cli.main(
        [
            "evaluate",
            str(root / "net.safetensors"),
            "--data",
            str(root / "toy"),
            "--no-progress",
            "--device",
            "cpu",
            *options,
        ]
    )


def test_evaluate_names_what_it_did_everywhere(trained, tmp_path, capsys):
    files = ["--out", str(tmp_path / "scores.json"), "--layout", str(tmp_path / "table")]
    evaluate(
        trained, "--protocol", "zero", "--window", "32", "32", "--failure-probability", "0.1", "0.5", *files
    )
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "scores.json").read_text())
    how = "val, 5 samples, fusion mean, windows of 32 × 32; absent sensors: zero"
    assert (
        printed.count(how) == 3 and (tmp_path / "table.md").read_text().count(how) == 2
    )  # subsets, conditions, and failures
    assert record["window"] == [32, 32] and record["failure_probability"]["protocol"] == "zero"
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    cells = {row["column"]: float(row["value"]) for row in rows if row["row"].endswith("mIoU")}
    by_subset = record["scores"]["miou"]["all"]
    assert cells == pytest.approx(
        by_subset | {"Mean": np.mean([*by_subset.values()]), "Std": np.std([*by_subset.values()])}, abs=1e-3
    )
    full = {row["column"]: float(row["value"]) for row in rows if "all sensors (RDA)" in row["table"]}
    assert full == {
        g.split("=")[-1]: pytest.approx(v["RDA"], abs=1e-3) for g, v in record["scores"]["miou"].items()
    }
    chances = subset_probabilities(3, 0.1)
    means = record["failure_probability"]["miou"]["p = 0.1, mean of the subsets' mIoU by chance"]
    assert means["all"] == pytest.approx(chances @ [*by_subset.values()], abs=1e-3)


def test_whole_images_and_windows_give_different_scores_and_say_so(trained, tmp_path):
    found = []
    for options in ([], ["--window", "32", "32"], ["--window", "32", "64"]):
        evaluate(trained, *options, "--out", str(tmp_path / "scores.json"), "--overwrite")
        record = json.loads((tmp_path / "scores.json").read_text())
        found.append((record["window"], record["scores"]["confusion"]["RDA"]))
    assert [window for window, _ in found] == [[0, 0], [32, 32], [32, 64]]
    assert (
        found[0][1] != found[1][1] and found[0][1] == found[2][1]
    )  # 32 × 64 holds the 32 × 48 of the whole image


@pytest.mark.parametrize(
    "options, message",
    [
        (["--window", "40", "32"], "--window 40: expected a multiple of 32"),
        (["--window", "32", "32", "--stride", "64", "32"], "--stride 64: expected 32 to 32"),
        (["--stride", "32", "32"], "--stride 32 32 without --window"),
        (["--failure-probability", "1"], "--failure-probability 1.0: expected 0 or more and below 1"),
    ],
)
def test_wrong_options_end_in_one_line_before_the_work(trained, options, message):
    with pytest.raises(SystemExit) as end:
        evaluate(trained, *options)
    assert end.value.code.startswith("error: ") and message in end.value.code


def test_centred_fusion_is_encoded_anew_for_each_subset(trained):
    """At the head's resolution and in windows: what the network itself predicts from each subset."""
    data = PreparedDataset(trained / "toy", "val")
    torch.manual_seed(0)
    network = Segmenter(data.modalities, toy.CLASSES, toy.PALETTE, NetworkConfig(fusion="centred")).eval()
    whole = evaluate_subsets(dataset=data, **network.scoring())
    for window in ((0, 0), (32, 64)):  # the second holds the whole image
        found = evaluate_subsets(dataset=data, **network.scoring(window=window))
        assert np.array_equal(found.counts["all"], whole.counts["all"])
    fuse = network.scoring(window=(32, 32))["fuse"]
    images = collate([data[0], data[1]])["images"]
    with torch.no_grad():
        parts = [
            network({n: i[..., start : start + 32] for n, i in images.items()}, fuse=False)[0]["rgb"]
            for start in (0, 32)
        ]
        assert fuse(images).shape == (2, 3, 16, 24) and len(parts[1][0, 0, 0]) == 8
        assert torch.allclose(
            fuse(images)[..., :8], parts[0][..., :8], atol=1e-5
        )  # only the first window covers these
    with pytest.raises(
        ValueError, match="fusion agreement: this network's fusion is centred; it has no logits"
    ):
        network.scoring("agreement")


def test_data_are_read_as_they_are_stored_and_normalised_as_in_training(trained, tmp_path):
    """Millimetre steps instead of 1/256 m, other statistics: the network must see the metres that it was
    trained on.
    """
    depth = replace(toy.MODALITIES["depth"], scale=0.001)
    modalities = toy.MODALITIES | {"depth": depth}
    with Writer(tmp_path / "mm", Description("mm", toy.CLASSES, toy.PALETTE, modalities)) as writer:
        for i in range(5):
            images, label = toy.sample(1000 + i)
            metres = toy.MODALITIES["depth"].to_physical(images["depth"])
            writer.add(f"a{i}", "val", images | {"depth": depth.to_stored(metres)}, label)
            writer.add(f"b{i}", "train", images | {"depth": depth.to_stored(metres + 30)}, label)
    ours, theirs = (
        open_checkpoint(trained / "net.safetensors", str(root), "val")[1]
        for root in (trained / "toy", tmp_path / "mm")
    )
    for a, b in zip((ours[i] for i in range(5)), (theirs[i] for i in range(5))):
        for name in modalities:
            assert torch.allclose(a["images"][name], b["images"][name], atol=1e-3)
    modalities["depth"] = replace(depth, unit="mm")
    with Writer(tmp_path / "unit", Description("unit", toy.CLASSES, toy.PALETTE, modalities)) as writer:
        images, label = toy.sample(0)
        writer.add("a", "val", images, label)
        writer.add("b", "train", images, label)
    with pytest.raises(
        ValueError, match="depth: the network was trained on 1 channel.* in m, .*unit has 1 channel.* in mm"
    ):
        open_checkpoint(trained / "net.safetensors", str(tmp_path / "unit"), "val")


def test_failing_sensors_in_windows(trained, tmp_path):
    """While nothing fails, the mean of all sensors scores what it scores elsewhere, in windows too."""
    evaluate(trained, "--failures", "-1", "--window", "32", "32", "--out", str(tmp_path / "scores.json"))
    record = json.loads((tmp_path / "scores.json").read_text())
    evaluate(trained, "--out", str(tmp_path / "whole.json"))
    whole = json.loads((tmp_path / "whole.json").read_text())["scores"]["summary"]["all"]["full"]
    clean, full = record["failures"]["summary"]["mean"]["clean"], record["scores"]["summary"]["all"]["full"]
    assert clean == pytest.approx(full, abs=0.1) and abs(full - whole) > 0.3


def clustered(folder, miou, split="val", labelled=True):
    folder.mkdir(parents=True)
    scores = {
        "rule": "hungarian",
        "miou": {"all": miou},
        "accuracy": {"all": 50.0},
        "iou": {"all": {"bed": miou, "tv": None}},
    }
    report = {"plan": {}, "split": split, "chosen by": "nothing", "scores": scores if labelled else None}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "config.json").write_text(json.dumps({"data": "room"}))
    return str(folder)


def test_compare_prints_clusterings_in_the_layout_of_their_tables(tmp_path, capsys):
    folders = [
        clustered(tmp_path / "a" / "unim2", 31.3),
        clustered(tmp_path / "b" / "unim2", 30.0),
        clustered(tmp_path / "stego", 20.0),
    ]
    cli.main(["compare", *folders, "--layout", str(tmp_path / "table"), "--out", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert "| a/unim2 | 31.30 | 50.00 |" in printed and "| stego | 20.00 | – | 20.00 |" in printed
    assert (tmp_path / "table.md").read_text().count("| stego |") == 2
    assert json.loads((tmp_path / "out.json").read_text())["scores"]["stego"]["miou"]["all"] == 20.0
    cli.main(["compare", folders[2]])
    assert "| stego | 20.00 | 50.00 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="clustered data without labels"):
        cli.main(["compare", clustered(tmp_path / "none", 1.0, labelled=False)])


def finished(trained, folder, network, seed=0, data=None, inputs=(), **settings):
    """A folder as 'train' leaves it, with this network as its last checkpoint."""
    folder.mkdir(parents=True)
    save_segmenter(network, folder / "last.safetensors")
    (folder / "config.json").write_text(json.dumps({"seed": seed, "data": str(data or trained / "toy")}))
    config = {"seed": seed, "data": "toy", "lr": 0.1, "save_every": 1.0} | settings
    report = {"config": config, "steps": 1, "seconds": 1.0, "cpu_seconds": 1.0}
    report |= {"inputs": inputs} if inputs else {}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "history.jsonl").write_text("")
    return str(folder)


COMPARE = ["--split", "val", "--information-samples", "0", "--no-progress", "--device", "cpu"]


def test_compare_prints_trainings_as_rows(trained, tmp_path, capsys):
    """Two seeds of one setting are one row, of their mean; trained runs do not mix with clustered ones."""
    network, folders = load_segmenter(trained / "net.safetensors"), []
    for seed in (0, 1):
        with torch.no_grad():
            network.head.classify.bias[seed] += 5.0 * seed
        folders.append(finished(trained, tmp_path / f"mine-{seed}", network, seed))
    cli.main(["compare", *folders, *COMPARE, "--layout", str(tmp_path / "table")])
    with open(tmp_path / "table.csv", newline="") as file:
        lines = [*csv.DictReader(file)]
    each = []
    for folder in folders:
        network, data = open_checkpoint(f"{folder}/last.safetensors", str(trained / "toy"), "val")
        counts = evaluate_subsets(dataset=data, **network.scoring()).counts["all"]
        each.append([100 * miou(counts), 100 * class_accuracy(counts)])
    assert not np.allclose(*each)
    for measure, means in zip(("mIoU", "class accuracy"), np.mean(each, 0)):
        row = [float(line["value"]) for line in lines if line["row"] == f"mine {measure}"]
        assert row == pytest.approx([*means, means.mean(), means.std()], abs=1e-3)
    assert "| mine class accuracy |" in capsys.readouterr().out
    with pytest.raises(
        SystemExit, match="cluster' .*compare each kind by itself|compare each kind by itself"
    ):
        cli.main(["compare", folders[0], clustered(tmp_path / "c", 1.0)])


def test_runs_that_differ_in_what_changes_no_result_are_one_group(trained, tmp_path):
    network = load_segmenter(trained / "net.safetensors")
    plain = finished(trained, tmp_path / "mine-0", network)
    often = finished(trained, tmp_path / "mine-1", network, 1, save_every=0.25, workers=4)
    cli.main(["compare", plain, often, *COMPARE, "--out", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text())["groups"]["mine"]["seeds"] == [0, 1]
    other = finished(trained, tmp_path / "mine-2", network, 2, lr=0.2)
    with pytest.raises(SystemExit, match="mine-2: other settings than the runs before it of the name 'mine'"):
        cli.main(["compare", plain, other, *COMPARE])
    unnamed = [finished(trained, tmp_path / f"run{lr}", network, lr=lr, workers=9 * lr) for lr in (1, 2)]
    again = ["compare", *unnamed, *COMPARE, "--out", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit, match="out.json: is there already; give --overwrite to replace it"):
        cli.main(again)
    cli.main([*again, "--overwrite"])
    assert list(json.loads((tmp_path / "out.json").read_text())["groups"]) == ["lr 1", "lr 2"]


def test_compare_scores_as_evaluate_does(trained, tmp_path):
    """Windows, batches, workers and fusion: the same options, the same numbers."""
    run = finished(trained, tmp_path / "mine-0", load_segmenter(trained / "net.safetensors"))
    options = ["--window", "32", "32", "--batch-size", "3", "--workers", "1", "--fusion", "agreement"]
    options += ["--protocol", "noise"]
    cli.main(["compare", run, *COMPARE, *options, "--out", str(tmp_path / "compared.json")])
    evaluate(trained, *options, "--out", str(tmp_path / "scores.json"))
    group = json.loads((tmp_path / "compared.json").read_text())["groups"]["mine"]
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]["miou"]["all"]
    assert {subset: values[0] for subset, values in group["miou"]["all"].items()} == {
        subset: pytest.approx(value, abs=1e-3) for subset, value in scores.items()
    }


def test_runs_are_compared_on_the_same_samples_only(trained, tmp_path):
    network, runs = load_segmenter(trained / "net.safetensors"), {}
    for name in ("copy", "image", "index"):
        shutil.copytree(trained / "toy", tmp_path / name)
        runs[name] = finished(trained, tmp_path / f"{name}-1", network, 1, tmp_path / name)
    first = finished(trained, tmp_path / "first-0", network)
    cli.main(["compare", first, runs["copy"], *COMPARE])
    write_image(tmp_path / "image" / "rgb" / "val_003.png", np.zeros((32, 48, 3), np.uint8))
    index = (tmp_path / "index" / "index.csv").read_text().splitlines()
    last = max(k for k, line in enumerate(index) if line.startswith("val_"))
    (tmp_path / "index" / "index.csv").write_text("\n".join(index[:last] + index[last + 1 :]) + "\n")
    for name, what in (("image", "images of val"), ("index", "index of val")):
        with pytest.raises(
            SystemExit, match=f"{name}-1: {what} now differs from that of .*first-0.* give --data"
        ):
            cli.main(["compare", first, runs[name], *COMPARE])
    cli.main(["compare", first, runs["image"], *COMPARE, "--data", str(trained / "toy")])


def test_runs_that_were_trained_on_different_data_are_not_compared(trained, tmp_path):
    """What they read is in their reports; those of other sensors have other images."""
    network, runs = load_segmenter(trained / "net.safetensors"), {}
    inputs = {"index of train": "1", "images of train": "2", "images of val": "5"}
    for seed, (name, changes) in enumerate(
        {
            "first": {},
            "same": {},
            "images": {"images of train": "3"},
            "index": {"index of train": "4"},
            "val": {"images of val": "6"},
        }.items()
    ):
        runs[name] = finished(trained, tmp_path / f"{name}-{seed}", network, seed, inputs=inputs | changes)
    cli.main(["compare", runs["first"], runs["same"], *COMPARE])
    for name, part in (("images", "images of train"), ("index", "index of train"), ("val", "images of val")):
        message = f"{name}-.: {part} differs from that of .*first-0; only runs that were trained on"
        with pytest.raises(SystemExit, match=message):
            cli.main(["compare", runs["first"], runs[name], *COMPARE, "--data", str(trained / "toy")])
    other = finished(
        trained,
        tmp_path / "other-5",
        network,
        inputs=inputs | {"images of train": "5"},
        modalities=["rgb", "depth"],
    )
    cli.main(["compare", runs["first"], other, *COMPARE])


def test_evaluate_and_compare_point_out_data_unlike_those_of_the_training(trained, tmp_path, capsys):
    """The same metres, but one folder holds them a thousand times too large."""
    shutil.copytree(trained / "toy", tmp_path / "toy")
    description = json.loads((tmp_path / "toy" / "dataset.json").read_text())
    description["modalities"][1]["scale"] *= 1000
    (tmp_path / "toy" / "dataset.json").write_text(json.dumps(description))
    shutil.copy(trained / "net.safetensors", tmp_path)
    evaluate(tmp_path)
    assert re.match("warning: depth has values of 0 to 1e.04 m, in training ", capsys.readouterr().err)
    with pytest.raises(SystemExit, match="error: depth has values of 0 to 1e.04 m, in training "):
        evaluate(tmp_path, "--strict")
    run = finished(
        trained, tmp_path / "a-0", load_segmenter(trained / "net.safetensors"), 0, tmp_path / "toy"
    )
    with pytest.raises(SystemExit, match="error: depth has values"):
        cli.main(["compare", run, *COMPARE, "--strict"])
    evaluate(trained, "--strict")


@pytest.mark.parametrize(
    "sensor, change, message",
    [
        ("depth", lambda x: 1000 * x, "depth has values of 0 to 1e\\+04 m, in training .* to "),
        ("depth", lambda x: x / 1000, "depth has values of 0 to 0.01 m"),
        ("depth", torch.zeros_like, "depth has values of 0 to 0 m"),
        ("rgb", lambda x: 255 * x, "rgb has values of .* reflectance, in training"),
        ("nir", None, "dolp and nir look like each other in training, as if swapped"),
    ],
)
def test_values_far_from_those_of_the_training_are_noticed(sensor, change, message, capsys):
    """Another unit, a sensor that shows nothing, another range; and two sensors stored alike, swapped."""
    statistics = {"nir": ((0.35,), (0.25,)), "dolp": ((0.06,), (0.08,))}
    modalities = {name: replace(SENSORS[name], mean=m, std=s) for name, (m, s) in statistics.items()}
    for name in ("rgb", "depth"):
        values = [toy.MODALITIES[name].to_physical(toy.sample(seed)[0][name]) for seed in range(9)]
        values = toy.MODALITIES[name].compressed(np.stack(values))
        mean, std = (getattr(values, kind)((0, 1, 2)).tolist() for kind in ("mean", "std"))
        modalities[name] = replace(toy.MODALITIES[name], mean=mean, std=std)

    def read(seed):
        stored, generator = toy.sample(seed)[0], torch.Generator().manual_seed(seed)
        images = {n: torch.from_numpy(modalities[n].to_physical(stored[n])) for n in ("rgb", "depth")}
        images = {name: image.permute(2, 0, 1) for name, image in images.items()}
        for name, ((mean,), (std,)) in statistics.items():
            images[name] = (mean + std * torch.randn(1, 8, 8, generator=generator)).clamp(0, 1)
        return images

    def changed(seed):
        images = read(seed)
        if change is None:
            return images | {"nir": images["dolp"], "dolp": images["nir"]}
        return images | {sensor: change(images[sensor])}

    check_plausible(modalities, range(100, 140), read, strict=True)
    for seed in range(8):  # one image, of some sensors only
        check_plausible(modalities, [seed], lambda seed: {"rgb": read(seed)["rgb"]}, strict=True)
    with pytest.raises(ValueError, match=message):
        check_plausible(modalities, range(40), changed, strict=True)
    check_plausible(modalities, range(40), changed)
    assert re.search(f"^warning: .*{message}.*; --strict makes this an error$", capsys.readouterr().err)
