"""Training: it learns, it resumes to the last bit, and many small batches are one large batch."""

import json
import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import toy
from killing import in_a_process
from pairs import Pair, together
from safetensors.torch import load_file

from mmlib import cli
from mmlib.data.description import Description
from mmlib.data.images import read_image, write_image
from mmlib.data.prepared import PreparedDataset, Writer
from mmlib.loop import read_history
from mmlib.modalities import Modality
from mmlib.segmentation import step as stepping
from mmlib.segmentation.network import NetworkConfig, Segmenter, load_segmenter
from mmlib.segmentation.objective import ObjectiveConfig, weighted_subsets
from mmlib.segmentation.step import (
    TrainConfig,
    count_steps,
    learning_rate,
    micro_batches,
    parameter_groups,
    set_up,
)
from mmlib.segmentation.train import train

ROOT = Path(__file__).resolve().parents[1]
QUIET = dict(progress=False, cache=True)


def weights(out) -> dict[str, torch.Tensor]:
    return load_file(Path(out) / "last.safetensors")


def test_it_learns_every_subset_and_leaves_a_complete_record(data, tmp_path):
    report = train(TrainConfig(data, str(tmp_path / "run"), epochs=25, eval_every=5, **QUIET))
    summary = report["scores"]["summary"]["all"]
    assert summary["full"] > 80 and summary["mean"] > 70, summary
    steps, evaluations = read_history(tmp_path / "run" / "history.jsonl")
    assert (
        steps[-1]["supervised"] < 0.8 * steps[0]["supervised"] and steps[-1]["step"] == report["steps"] == 75
    )
    assert [e["epoch"] for e in evaluations] == [5, 10, 15, 20, 25] and set(evaluations[0]["miou"]) == {
        "R",
        "D",
        "A",
        "RD",
        "RA",
        "DA",
        "RDA",
    }
    again = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (
        again["provenance"]["seed"] == 0
        and again["scores"]["protocol"] == "drop"
        and again["config"]["epochs"] == 25
    )
    assert not {"out"} & set(again["config"]) and str(tmp_path) not in json.dumps(
        again["config"]
    )  # no machine's paths
    best = load_segmenter(tmp_path / "run" / "best.safetensors")
    assert list(best.modalities) == ["rgb", "depth", "aolp"] and best.modalities["depth"].mean


@pytest.mark.parametrize("objective", ["all-subsets", "dropout"])
def test_a_run_killed_between_states_ends_in_the_same_bits(data, tmp_path, monkeypatch, objective):
    config = TrainConfig(
        data,
        str(tmp_path / "whole"),
        epochs=4,
        save_every=1,
        eval_every=2,
        objective=ObjectiveConfig(subsets=objective),
        **QUIET,
    )
    train(config)

    class Killed(BaseException):
        pass

    count = 0

    def dying(*args):
        nonlocal count
        count += 1
        if count == 9:  # two steps after the second state was saved
            raise Killed
        return learning_rate(*args)

    cut = replace(config, out=str(tmp_path / "cut"))
    monkeypatch.setattr(stepping, "learning_rate", dying)
    with pytest.raises(Killed):
        train(cut)
    monkeypatch.setattr(stepping, "learning_rate", learning_rate)
    assert not (tmp_path / "cut" / "last.safetensors").exists()
    train(cut)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    histories = [
        [
            {k: v for k, v in line.items() if k != "seconds"}
            for line in read_history(tmp_path / n / "history.jsonl")[1]
        ]
        for n in ("whole", "cut")
    ]
    assert histories[0] == histories[1] and len(histories[0]) == 2


def train_in_pair(rank: int, config: TrainConfig):
    """In each of two processes."""
    train(config)


def test_one_process_of_two_is_terminated(data, tmp_path):
    """Whichever it is and whatever it is doing: no file is half-written, and the same command ends where one
    process would.

    (Kills of a single process: test_killed.py.)"""
    out = tmp_path / "out"
    config = TrainConfig(
        data,
        str(out),
        batch_size=2,
        epochs=4,
        lr=1e-4,
        save_every=0.3,
        eval_every=1,
        information_samples=1,
        progress=False,
        network=NetworkConfig(dropout=0.0),
        objective=ObjectiveConfig(pixels=1),
    )
    pair, deadline = Pair(train_in_pair, config), time.time() + 120
    while not (out / "resume.safetensors").exists() and time.time() < deadline:
        time.sleep(0.01)
    rng = np.random.default_rng(os.getpid())
    time.sleep(float(rng.uniform(0, 0.3)))
    pair.processes[rng.integers(2)].terminate()
    assert 0 not in pair.join() and not (out / "report.json").exists()
    for path in out.glob("*.safetensors"):
        assert load_file(path)
    together(train_in_pair, config)
    train(
        TrainConfig(
            data,
            str(tmp_path / "one"),
            epochs=4,
            lr=1e-4,
            eval_every=0,
            network=NetworkConfig(dropout=0.0),
            objective=ObjectiveConfig(pixels=1),
            **QUIET,
        )
    )
    one, two = weights(tmp_path / "one"), weights(out)
    assert max(float((one[n] - two[n]).abs().max()) for n in one) < 1e-4
    assert sorted(path.name for path in out.glob("[!.]*")) == sorted(
        [
            "best.safetensors",
            "config.json",
            "history.jsonl",
            "last.safetensors",
            "report.json",
            "resume.safetensors",
        ]
    )


def test_a_finished_run_is_not_trained_again(data, tmp_path):
    config = TrainConfig(data, str(tmp_path), epochs=1, **QUIET)
    first = train(config)
    stamp = (tmp_path / "resume.safetensors").stat().st_mtime_ns
    assert (
        train(config)["scores"] == first["scores"]
        and (tmp_path / "resume.safetensors").stat().st_mtime_ns == stamp
    )


def test_a_run_does_not_go_on_with_more_or_fewer_samples(tmp_path):
    out = tmp_path / "out"
    train(TrainConfig(str(toy.make(tmp_path / "data", train=6)), str(out), epochs=1, **QUIET))
    before = (out / "resume.safetensors").read_bytes()
    for samples in (5, 8):
        data = str(toy.make(tmp_path / str(samples), train=samples))
        with pytest.raises(
            ValueError,
            match=r"out: was begun on other data .*\(changed: .*index of train, images of train",
        ):
            train(TrainConfig(data, str(out), epochs=1, **QUIET))
    assert (out / "resume.safetensors").read_bytes() == before


def swapped(folder):
    def change(root):
        first, second = sorted((root / folder).glob("train_*"))[:2]
        first.write_bytes(second.read_bytes())

    return change


def described(change):
    """dataset.json, changed."""

    def apply(root):
        description = json.loads((root / "dataset.json").read_text())
        change(description)
        (root / "dataset.json").write_text(json.dumps(description))

    return apply


def test_a_finished_run_belongs_to_its_data(tmp_path):
    """Other images, labels, statistics or class names: it is neither continued nor reported again."""
    data, out = toy.make(tmp_path / "data", train=4, val=2), tmp_path / "out"
    config = TrainConfig(str(data), str(out), epochs=1, **QUIET)
    train(config)
    before = (out / "report.json").read_bytes()
    both = "{0} of train, {0} of val"
    for change, changed in (
        (swapped("rgb"), "images of train"),
        (swapped("label"), "images of train"),
        (described(lambda d: d["classes"].reverse()), both.format("classes")),
        (described(lambda d: d["modalities"][0].update(std=[9.0] * 3)), both.format("sensors")),
        (described(lambda d: d["modalities"][1].update(scale=1.0)), both.format("sensors")),
    ):
        shutil.copytree(data, tmp_path / "sound")
        change(data)
        with pytest.raises(ValueError, match=rf"out: was begun on other data .*\(changed: {changed}\)"):
            train(config)
        assert (out / "report.json").read_bytes() == before
        shutil.rmtree(data)
        (tmp_path / "sound").rename(data)
    train(config)


def test_another_configuration_does_not_overwrite_a_run(data, tmp_path):
    config = TrainConfig(data, str(tmp_path), epochs=1, **QUIET)
    train(config)
    with pytest.raises(ValueError, match="another configuration .*lr was 0.0, is 0.1"):
        train(replace(config, lr=0.1))
    (tmp_path / "resume.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="resume.safetensors: .*not a file of this library"):
        train(config)
    (tmp_path / "resume.safetensors").unlink()
    with pytest.raises(ValueError, match="holds a trained network"):
        train(config)


def test_accumulated_micro_batches_are_one_large_batch(data, tmp_path):
    quiet = dict(network=NetworkConfig(dropout=0.0), objective=ObjectiveConfig(pixels=1), epochs=2, **QUIET)
    train(TrainConfig(data, str(tmp_path / "large"), batch_size=4, **quiet))
    train(TrainConfig(data, str(tmp_path / "small"), batch_size=1, accumulate=4, **quiet))
    large, small = weights(tmp_path / "large"), weights(tmp_path / "small")
    assert (
        max(float((large[n] - small[n]).abs().max()) for n in large) < 2e-4
    )  # Adam divides by small numbers; still rounding


@pytest.mark.parametrize("fusion", ["mean", "cmx"])
def test_two_machines_are_one_large_batch(data, tmp_path, fusion):
    """Two nodes of one process each, both on this machine."""
    config = TrainConfig(
        data,
        str(tmp_path / "two"),
        batch_size=2,
        network=NetworkConfig(dropout=0.0, fusion=fusion),
        objective=ObjectiveConfig(subsets="dropout", pixels=1),
        epochs=2,
        **QUIET,
    )
    together(train_in_pair, config, nodes=2)
    train(replace(config, out=str(tmp_path / "one"), batch_size=4))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((one[n] - two[n]).abs().max()) for n in one) < 2e-4
    assert json.loads((tmp_path / "two" / "report.json").read_text())["steps"] == 6
    scores = [
        json.loads((tmp_path / n / "report.json").read_text())["scores"]["summary"]["all"]["mean"]
        for n in ("one", "two")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=0.5)  # sharded evaluation counts every sample once


def test_the_stream_of_samples_is_a_permutation_per_epoch_whatever_the_split():
    config = TrainConfig("", "", batch_size=3, accumulate=2, seed=7)
    one = [entry for batch in micro_batches(10, replace(config, batch_size=6), 5, 0, 0, 1) for entry in batch]
    ranks = [list(micro_batches(10, config, 5, 0, rank, 2)) for rank in range(2)]
    many = [entry for first, second in zip(*ranks) for entry in first + second]
    assert one == many  # two processes with half the batch see the same samples in the same step
    assert (
        sorted(index for index, _ in one[:10]) == list(range(10)) == sorted(index for index, _ in one[10:20])
    )
    assert len({seed for _, seed in one}) == len(one)
    resumed = [
        entry for batch in micro_batches(10, replace(config, batch_size=6), 5, 2, 0, 1) for entry in batch
    ]
    assert resumed == one[2 * 12 :]


def test_schedule_is_the_papers():
    config = TrainConfig("", "", lr=6e-5, network=NetworkConfig(encoder="pvt_v2_b0"))
    assert learning_rate(0, 200, config) == pytest.approx(6e-6)
    assert learning_rate(10, 200, config) == pytest.approx(6e-5 * (1 - 10 / 200) ** 0.9)
    assert learning_rate(150, 200, config) == pytest.approx(6e-5 * 0.25**0.9)
    assert learning_rate(0, 200, replace(config, lr=0.0)) == pytest.approx(6e-6)
    assert count_steps(config, 400) == 4000 and count_steps(replace(config, accumulate=2), 400, 4) == 500


def test_biases_and_norms_are_not_decayed(data):
    net = Segmenter(toy.MODALITIES, toy.CLASSES, toy.PALETTE)
    decayed, plain = parameter_groups(net, 0.01)
    assert decayed["weight_decay"] == 0.01 and plain["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(net.parameters()))


def test_sensors_are_chosen_by_name(data, tmp_path):
    report = train(TrainConfig(data, str(tmp_path), modalities=("depth", "rgb"), epochs=1, **QUIET))
    digests = [PreparedDataset(data, split, ["depth", "rgb"]).digest() for split in ("train", "val")]
    assert report["inputs"] == digests[0] | digests[1]
    assert report["scores"]["modalities"] == ["depth", "rgb"] and set(report["scores"]["miou"]["all"]) == {
        "D",
        "R",
        "DR",
    }
    with pytest.raises(ValueError, match="unknown modality 'sonar'"):
        train(TrainConfig(data, str(tmp_path / "x"), modalities=("sonar",), **QUIET))


def test_steps_without_a_finite_gradient_are_skipped_and_counted(data, tmp_path, monkeypatch, capsys):
    genuine, calls, skipped = stepping.subset_cross_entropy, 0, {3}

    def poisoned(*args):
        nonlocal calls
        calls += 1
        terms = genuine(*args)
        return terms | {"supervised": terms["supervised"] * (float("nan") if calls in skipped else 1)}

    monkeypatch.setattr(stepping, "subset_cross_entropy", poisoned)
    once = TrainConfig(data, str(tmp_path / "once"), epochs=4, **QUIET)
    train(once)
    assert all(bool(torch.isfinite(value).all()) for value in weights(tmp_path / "once").values())
    assert read_history(tmp_path / "once" / "history.jsonl")[0][-1]["skipped"] == 1
    # One of twelve steps is too many to be silent about, also where the finished run is reported again.
    said = "once: 1 of 12 steps had no finite gradient and were skipped; lower --lr"
    assert said in capsys.readouterr().err
    train(once)
    assert said in capsys.readouterr().err
    # Two of twelve are too many for a result.
    calls, skipped = 0, {3, 8}
    with pytest.raises(ValueError, match="twice: 2 of [0-9]+ steps had no finite gradient"):
        train(replace(once, out=str(tmp_path / "twice")))
    assert not (tmp_path / "twice" / "report.json").exists()
    monkeypatch.setattr(
        stepping,
        "subset_cross_entropy",
        lambda *args: {"supervised": genuine(*args)["supervised"] * float("inf")},
    )
    with pytest.raises(ValueError, match="always: 20 of 20 steps had no finite gradient"):
        train(TrainConfig(data, str(tmp_path / "always"), epochs=80, **QUIET))


def test_a_step_for_which_memory_does_not_suffice_is_refused_before_it(data, tmp_path, monkeypatch, capsys):
    """And where an allocation fails all the same, that is one line too."""
    words = ["train", "--data", data, "--out", str(tmp_path / "out"), "--no-progress"]
    free = SimpleNamespace(available=10**6)
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: free)
        with pytest.raises(
            SystemExit, match=r"does not suffice \(a training step takes 0.0 GB or more, and 0.0 .* --crop"
        ):
            cli.main(words)
        free.available = 10**9
        train(TrainConfig(data, str(tmp_path / "fits"), epochs=0.1, **QUIET))
    for error in (
        lambda: torch.empty(2**62, dtype=torch.uint8),
        lambda: np.empty(2**62, np.uint8),
        lambda: [0] * 2**62,
    ):
        monkeypatch.setattr(stepping, "subset_cross_entropy", lambda *arguments: error())
        with pytest.raises(SystemExit, match="the machine's memory does not suffice") as end:
            cli.main(words)
        assert "\n" not in end.value.code


def sensors(root, count):
    """A data set of so many sensors."""
    modalities = {f"s{i}": Modality(f"s{i}", chr(65 + i), 1) for i in range(count)}
    with Writer(root, Description("many", ["a", "b"], [(0, 0, 0), (9, 9, 9)], modalities)) as writer:
        for split in ("train", "val"):
            images = {name: np.full((8, 8, 1), i, np.uint8) for i, name in enumerate(modalities)}
            writer.add(split, split, images, np.eye(8, dtype=np.uint8))
    return str(root)


def test_many_sensors_are_sampled_or_refused_at_the_start(tmp_path):
    config = TrainConfig(sensors(tmp_path / "11", 11), str(tmp_path / "out"), **QUIET)
    assert "float32; each step draws 256 of 2046 subsets of the sensors" in str(set_up(config))
    few = replace(config, modalities=tuple(f"s{i}" for i in range(10)))
    assert str(set_up(few)).endswith("float32")  # all 1022
    begun = time.process_time()
    for options in ({}, {"subsets": "dropout"}):
        many = TrainConfig(sensors(tmp_path / f"26{options}", 26), str(tmp_path / "out"), **QUIET)
        with pytest.raises(
            ValueError, match="26 sensors have 67108863 subsets.* at most 14 of them with --mod"
        ):
            train(replace(many, objective=ObjectiveConfig(**options)))
    assert time.process_time() - begun < 5 and not (tmp_path / "out" / "history.jsonl").exists()


def test_a_sample_of_subsets_stands_for_all():
    config, rng = ObjectiveConfig(full_weight=4.0), np.random.default_rng(0)
    rows, weights = weighted_subsets(11, config, rng)
    assert rows.shape == (257, 11) and rows[-1].all() and len(np.unique(rows, axis=0)) == 257
    assert weights[:-1].sum() == pytest.approx(2046) and weights[-1] == 4.0
    assert len(weighted_subsets(10, config, rng)[0]) == 1023
    assert len(weighted_subsets(11, replace(config, subsets="singles"), rng)[0]) == 12


@pytest.mark.parametrize("split", ["train", "val", "all"])
def test_data_without_a_labelled_pixel_are_refused_before_training(tmp_path, split):
    """Labels that are all 255, in the split that trains or in the one that is scored; or no labels at all."""
    root = toy.make(tmp_path / "toy", labels=split != "all")
    for path in root.glob(f"label/{split}_*.png"):
        write_image(path, np.full_like(read_image(path, "uint8", 1), 255))
    with pytest.raises(ValueError, match=f"toy has no labels in its split '{split.replace('all', 'train')}'"):
        train(TrainConfig(str(root), str(tmp_path / "out"), **QUIET))
    assert not (tmp_path / "out" / "history.jsonl").exists()


def train_without_room(config: TrainConfig):
    """No file of this process may grow beyond 100 kB: its write then fails as on a full disk."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    train(config)


def test_a_full_disk_while_saving_keeps_the_last_whole_state(data, tmp_path):
    config = TrainConfig(data, str(tmp_path), epochs=4, save_every=1, eval_every=0, progress=False)
    said = in_a_process(train_without_room, config)
    assert "nothing was written" in said and "resume.safetensors" in said
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".safetensors" or "tmp" in p.name] == []
    train(config)
    assert (tmp_path / "last.safetensors").exists()


def test_configuration_is_plain_json():
    assert json.loads(json.dumps(asdict(TrainConfig("a", "b"))))["network"]["encoder"] == "residual"
