"""Training at scale: a step's gradient does not depend on how its samples are divided; what a run will cost
is known before it starts.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from killing import in_a_process
from pairs import Pair
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from mmlib import cli
from mmlib.loop import read_history
from mmlib.modalities import IGNORE_INDEX
from mmlib.segmentation import dry_run as dry
from mmlib.segmentation import regularizer
from mmlib.segmentation import step as stepping
from mmlib.segmentation.dry_run import FlopCounter, described, dry_run, high_water
from mmlib.segmentation.network import NetworkConfig
from mmlib.segmentation.objective import ObjectiveConfig
from mmlib.segmentation.regularizer import Regularizer, RegularizerConfig
from mmlib.segmentation.step import TrainConfig, set_up, train_step
from mmlib.segmentation.train import train

ROOT = Path(__file__).resolve().parents[1]
EXACT = NetworkConfig(dropout=0.0)
# Probes that look at every sample, with noise that vanishes in the rounding: each process draws its own.
PROBES = dict(
    delay=0.0, probe_every=1, probe_crop=1.0, probe_samples=4, sigma=1e-8, cap=1e9, lambda_p=1.0, lambda_f=1.0
)
CASES = {
    "all subsets": {},
    "dropout": dict(objective=ObjectiveConfig("dropout", pixels=1)),
    "singles": dict(objective=ObjectiveConfig("singles", pixels=1)),
    "logits, kl": dict(regularizer=RegularizerConfig("unimodal-logit", "kl", **PROBES)),
    "ce, inverse": dict(regularizer=RegularizerConfig("none", "ce", "inverse", **PROBES)),
    "decoder": dict(regularizer=RegularizerConfig("none", "decoder", **PROBES)),
    "input": dict(regularizer=RegularizerConfig("input", "kl", **PROBES)),
    "consistency": dict(regularizer=RegularizerConfig("consistency", "none", "share", **PROBES)),
}
EXCHANGED = ("all subsets", "dropout", "logits, kl", "decoder", "input", "consistency")
FIRST_ORDER = ("all subsets", "dropout", "singles", "logits, kl", "ce, inverse")


def configured(data, out="nowhere", **changes) -> TrainConfig:
    settings = dict(epochs=1, network=EXACT, objective=ObjectiveConfig(pixels=1), progress=False, clip=1e9)
    return TrainConfig(str(data), str(out), **(settings | changes))


def gradient(config: TrainConfig) -> dict[str, torch.Tensor]:
    """What the first step would give to the optimizer."""
    run, found = set_up(config), {}
    batches = iter(run.loader(0))
    run.optimizer.step = lambda: found.update(
        {n: p.grad.double().clone() for n, p in run.network.named_parameters() if p.grad is not None}
    )
    train_step(run, 0, [next(batches) for _ in range(config.accumulate)], progress=1.0)
    return found


def difference(one: dict, two: dict) -> float:
    assert one.keys() == two.keys()
    scale = max(float(g.abs().max()) for g in one.values())
    return max(float((one[n] - two[n]).abs().max()) for n in one) / scale


# ---- the same gradient ----


@pytest.mark.parametrize("case", FIRST_ORDER)
def test_micro_batches_give_the_gradient_of_the_large_batch(data, case):
    """Also of the closed-form terms: information is inverted after its mean over all samples, not over those
    of a micro-batch.
    """
    whole = gradient(configured(data, batch_size=4, **CASES[case]))
    for batch_size in (1, 2):
        parts = gradient(configured(data, batch_size=batch_size, accumulate=4 // batch_size, **CASES[case]))
        assert difference(whole, parts) < 2e-5


def test_a_step_minimises_the_sum_of_eq_9(data):
    """L = L_sup + λ_p R_p + λ_f R_f, written out for one batch."""
    term = RegularizerConfig("unimodal-logit", "kl", delay=0.0, cap=1e9, lambda_p=0.5, lambda_f=0.2)
    objective = ObjectiveConfig("full", pixels=1)
    config = configured(data, batch_size=2, objective=objective, regularizer=term)
    run = set_up(config)
    batch = next(iter(run.loader(0)))
    images, label = batch["images"], batch["label"]
    logits, features = run.network(images, fuse=False)
    mean = torch.stack(list(logits.values())).mean(0)
    upsampled = F.interpolate(mean, label.shape[-2:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(upsampled, label, ignore_index=IGNORE_INDEX)
    loss = loss + Regularizer(term)(run.network, images, label, logits=logits, features=features)
    loss.backward()
    by_hand = {n: p.grad.double() for n, p in run.network.named_parameters() if p.grad is not None}
    assert difference(gradient(config), by_hand) < 2e-5


def gradients_of_one_process(rank: int, data: str, uneven: str) -> tuple[dict, str]:
    """In each of two processes: the gradient of every case, and what is said where their data differ."""
    atexit.register(group_is_left)  # runs after what is registered later
    gradients = {case: gradient(configured(data, batch_size=2, **CASES[case])) for case in EXCHANGED}
    for case in ("all subsets", "logits, kl"):
        gradients[f"{case}, accumulated"] = gradient(
            configured(data, batch_size=1, accumulate=2, **CASES[case])
        )
        gradients[f"{case}, uneven"] = gradient(configured(uneven, batch_size=2, **CASES[case]))
    try:
        set_up(configured((data, uneven)[rank]))
    except ValueError as error:
        return gradients, str(error)


def group_is_left():
    if torch.distributed.is_initialized():
        os._exit(7)


def test_two_processes_give_the_gradient_of_one(data, tmp_path):
    """Every objective and every reading, those of second order too; and with all of one process's pixels
    unlabelled.
    """
    uneven = toy.make(tmp_path / "uneven", train=11)
    order = [
        index
        for batch in stepping.micro_batches(11, configured(uneven, batch_size=4), 1, 0, 0, 1)
        for index, _ in batch
    ]
    for index in order[:2]:
        path = sorted((uneven / "label").glob("train_*.png"))[index]
        Image.fromarray(np.full((32, 48), 255, np.uint8)).save(path)
    pair = Pair(gradients_of_one_process, data, str(uneven))
    (one_of_two, refused), (two_of_two, refused_too) = pair.results()
    for case in one_of_two:
        name, how = (case, "") if case in CASES else case.rsplit(", ", 1)
        one = gradient(configured(uneven if how == "uneven" else data, batch_size=4, **CASES[name]))
        assert difference(one_of_two[case], two_of_two[case]) == 0, case
        assert difference(one, one_of_two[case]) < 2e-5, case
    assert pair.join() == [0, 0]
    for message in (refused, refused_too):
        assert message.startswith("processes differ in the step") and "[[0, 12], [0, 11]]" in message


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    """Images large enough for pvt_v2."""
    return str(toy.make(tmp_path_factory.mktemp("small"), 2, 1, (64, 64)))


def test_checkpointed_activations_give_the_same_gradient(small, monkeypatch):
    """Recomputed once, in the backward pass of the cross-entropy, and never in a second derivative."""
    calls, forward = [], nn.LayerNorm.forward
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: calls.append(1) or forward(self, x))
    recomputed = []
    for term in ("none", "input"):
        found = []
        for checkpointing in (False, True):
            network = NetworkConfig("pvt_v2_b0", dropout=0.0, checkpointing=checkpointing, embed_dim=16)
            config = configured(
                small,
                batch_size=1,
                modalities=("rgb", "depth"),
                network=network,
                regularizer=RegularizerConfig(term, **PROBES),
            )
            calls.clear()
            found.append((gradient(config), len(calls)))
        (plain, fewer), (checkpointed, more) = found
        assert difference(plain, checkpointed) < 2e-5
        recomputed.append(more - fewer)
    assert recomputed[0] == recomputed[1] > 0


def test_bf16_computes_in_bfloat16_keeps_float32_weights_and_a_float32_regulariser(data, monkeypatch):
    config = configured(
        data,
        precision="bf16",
        epochs=3,
        lr=1e-2,
        clip=1.0,
        regularizer=RegularizerConfig("input", "kl", **PROBES | {"probe_every": 2}),
    )
    run, seen, read = set_up(config), [], []
    run.network.head.classify.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    term = regularizer.term
    monkeypatch.setattr(
        regularizer, "term", lambda values, *options: read.append(values.dtype) or term(values, *options)
    )
    before = [p.detach().clone() for p in run.network.parameters()]
    batches = iter(run.loader(0))
    losses = [
        float(train_step(run, step, [next(batches)], progress=1.0)[0]["supervised"])
        for step in range(run.steps)
    ]
    assert seen[:4] == [torch.float32, torch.bfloat16, torch.bfloat16, torch.float32] and set(read) == {
        torch.float32
    }
    assert all(p.dtype == torch.float32 and bool(torch.isfinite(p).all()) for p in run.network.parameters())
    moments = [value for entry in run.optimizer.state_dict()["state"].values() for value in entry.values()]
    assert {value.dtype for value in moments} == {torch.float32}
    assert (
        any(not torch.equal(a, b.detach()) for a, b in zip(before, run.network.parameters()))
        and losses[-1] < losses[0]
    )


def test_loader_processes_do_not_change_a_bit(data, tmp_path):
    for workers in (0, 2):
        train(
            configured(
                data,
                tmp_path / str(workers),
                workers=workers,
                epochs=2,
                eval_every=1,
                scale=(0.5, 2.0),
                accumulate=2,
                batch_size=2,
            )
        )
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("0", "2"))
    assert all(torch.equal(one[name], two[name]) for name in one)


# ---- launchers ----


def test_accelerate_launch_from_the_command_line(data, tmp_path):
    """With a dry run: it reports once, for all processes together, and leaves nothing."""
    out = tmp_path / "out"
    options = ["--accumulate", 2, "--batch-size", 1, "--epochs", 4, "--dry-run"]
    # What a user with GPUs types; here its processes are sent to the CPU.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    command += ["-m", "mmlib", "train", "--data", data, "--out", out, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        done.stdout.count("training ") == 1
        and "12 steps of 4 samples (2 cpu × 1 × 2), float32" in done.stdout
    )
    assert "× 2 loader processes" in done.stdout and not out.exists()


def test_accelerates_cpu_flag_is_not_taken_for_several_processes(data, tmp_path):
    """accelerate launch --cpu starts one process, however many it is asked for."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "-m",
        "mmlib",
        "train",
        "--data",
        data,
    ]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, cwd=ROOT
    )
    assert (
        done.returncode
        and "error: accelerate launch --cpu was asked for several processes" in done.stderr
        and "torchrun" in done.stderr
    )
    assert not (tmp_path / "out").exists()


def trainings_in_a_kernel(data: str, out: str) -> tuple[int, bool]:
    """As in a notebook's kernel: a training in it, then one on two forked processes, then one in it again."""
    from accelerate import notebook_launcher

    def config(name):
        return TrainConfig(data, f"{out}/{name}", epochs=1, batch_size=2, progress=False)

    alone = train(config("one"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    notebook_launcher(train, (config("two"),), num_processes=2, use_port=str(port))
    again = train(config("one"))
    return alone["steps"], again["scores"] == alone["scores"]


def test_notebook_launcher(data, tmp_path):
    assert in_a_process(trainings_in_a_kernel, data, str(tmp_path)) == (6, True)
    assert json.loads((tmp_path / "two" / "report.json").read_text())["steps"] == 3


# ---- the dry run ----


def expected_flops(config: TrainConfig) -> int:
    """Of a residual network, forward and backward, by hand: 2 · weights · output pixels for every
    convolution, once forward, once for the gradient of its weights, and, but for the first layers, once for
    that of its input; and the two products of the loss's upsampling, forward and backward.
    """
    run, total = set_up(config), 0

    def count(module, inputs, output):
        nonlocal total
        passes = 2 if any(module is stem[0] for stem in run.network.stems.values()) else 3
        total += passes * 2 * module.weight.numel() * output[:, 0].numel()

    for module in run.network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    batch = next(iter(run.loader(0)))
    logits, _ = run.network(batch["images"], fuse=False)
    for value in logits.values():
        n, k, h, w = value.shape
        height, width = batch["label"].shape[1:]
        total += 2 * 2 * n * k * (h * w * width + height * h * width)
    return config.accumulate * total


def test_operations_of_a_step_are_counted(data):
    config = configured(data, accumulate=2, batch_size=2, epochs=2)
    found = dry_run(config)
    assert found["flops"] == {"plain": expected_flops(config)}
    looked_ahead = dry_run(replace(config, regularizer=RegularizerConfig("unimodal-logit")))["flops"]["plain"]
    assert (
        1.2 < looked_ahead / found["flops"]["plain"] < 1.34
    )  # one more forward pass: a third, less where the backward pass has more
    q = torch.randn(2, 3, 20, 16, requires_grad=True)
    with FlopCounter() as counter:
        out = F.scaled_dot_product_attention(q, q, q)
    assert counter.flops == 2 * 2 * (2 * 3 * 20 * 20 * 16)
    with FlopCounter() as counter:
        out.sum().backward()
    assert counter.flops >= 2 * 2 * 2 * (2 * 3 * 20 * 20 * 16)


def test_a_dry_run_foretells_what_the_run_does_and_writes_nothing(data, tmp_path):
    config = configured(data, tmp_path / "out", epochs=2, regularizer=RegularizerConfig("input", delay=0.0))
    before = sorted(p.name for p in Path(data).rglob("*"))
    found = dry_run(config)
    assert list(tmp_path.iterdir()) == [] and sorted(p.name for p in Path(data).rglob("*")) == before
    assert (
        found["steps"] == 6
        and set(found["flops"]) == {"plain", "probed"}
        and found["flops"]["probed"] > found["flops"]["plain"]
    )
    assert (
        found["sample"] == 32 * 48 * (3 + 2 + 2 + 1) and found["cache"] == 12 * found["sample"]
    )  # colour, depth, angle, label
    report = train(config)
    assert f"{report['parameters'] / 1e6:.2f} M parameters" in found["summary"]
    assert report["steps"] == found["steps"]


def test_times_add_up(data, monkeypatch):
    """With clocks that are known: steps with and without a probe, loading, evaluations."""

    def clock(device, call, *arguments):
        call(*arguments)
        if call is train_step:
            return 5.0 if arguments[0].regularizer.due(arguments[1], 1.0) else 2.0
        return 3.0 if call in (dry.validate, dry.measure_information) else 0.25

    monkeypatch.setattr(dry, "seconds", clock)
    config = configured(
        data,
        batch_size=2,
        accumulate=2,
        epochs=10,
        eval_every=2,
        regularizer=RegularizerConfig("input", probe_every=4),
    )
    found = dry_run(config)
    step = 2.0 + (5.0 - 2.0) / 4 + 2 * 0.25
    evaluation = 3.0 * 5 / 2 + 3.0 * 5  # all five samples of val, after two; then the information of all five
    assert found["a step"] == step and found["an epoch"] == 3 * step and found["evaluations"] == 5
    assert found["in all"] == pytest.approx(30 * step + 5 * evaluation)
    shown = described(config, found)
    assert (
        "30 steps of 4 samples (1 cpu × 2 × 2)" in shown
        and "2000 ms" in shown
        and "5000 ms" in shown
        and "3250 ms a step" in shown
    )
    assert dry_run(replace(config, workers=2))["a step"] == 2.75  # loading is hidden behind the step


def test_too_large_a_cache_is_pointed_out(data, monkeypatch):
    config = configured(data, workers=3)
    cost = dry_run(config)
    shown = described(config, cost)
    assert "× 3 loader processes" in shown and "TOO MUCH" not in shown
    monkeypatch.setattr(dry.psutil, "virtual_memory", lambda: SimpleNamespace(total=3 * cost["cache"]))
    assert "TOO MUCH, give --no-cache" in described(config, cost)
    assert "TOO MUCH" not in described(replace(config, cache=False), cost)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process begin its peak anew")
def test_peak_memory_is_that_since_the_reset():
    cpu = torch.device("cpu")
    low = high_water(cpu, reset=True)
    held = np.ones(25_000_000)  # 200 MB
    assert high_water(cpu) - low > 180e6
    del held
    assert high_water(cpu, reset=True) - low < 100e6


def test_the_command_line_reports_and_leaves_nothing(data, tmp_path, capsys):
    cli.main(["train", "--data", data, "--out", str(tmp_path / "out"), "--epochs", "1", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == [
        "training",
        "work",
        "memory",
        "loading",
        "data",
        "evaluation",
        "time",
        "dry",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_full_gpu_is_one_line(data, tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(cli, "train", full)
    with pytest.raises(
        SystemExit, match="error: the GPU's memory does not suffice .*2.00 GiB.*halve --batch-size"
    ) as end:
        cli.main(["train", "--data", data, "--out", str(tmp_path)])
    assert "\n" not in end.value.code


def test_a_run_says_what_it_is_before_it_starts(data, tmp_path, capsys):
    train(configured(data, tmp_path / "loud", batch_size=3, progress=True))
    assert capsys.readouterr().out == "0.51 M parameters, 4 steps of 3 samples (1 cpu × 3 × 1), float32\n"
    train(configured(data, tmp_path / "quiet"))
    assert capsys.readouterr().out == ""


# ---- TensorBoard ----


def server(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), {"scalars": 0})


def points(events) -> dict[str, list[tuple[int, float]]]:
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_event_files_hold_every_point_of_the_history_once(data, tmp_path, monkeypatch):
    """Also after a kill, and where event files are asked for only when the run is resumed."""
    monkeypatch.setattr("mmlib.loop.LOG_EVERY", 1)
    settings = dict(
        epochs=4,
        eval_every=1,
        information_samples=1,
        save_every=2,
        regularizer=RegularizerConfig("none", "kl", delay=0.0),
    )

    class Killed(BaseException):
        pass

    def dying(*arguments):
        if arguments[0] == 10:  # step 6 was saved
            raise Killed
        return stepping.__dict__["learning_rate"](*arguments)

    for name, before in (("killed", True), ("late", False)):
        config = configured(data, tmp_path / name, tensorboard=before, **settings)
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr("mmlib.segmentation.train.learning_rate", dying)
            train(config)
        folder = tmp_path / name / "tensorboard"
        assert folder.exists() == before
        looking = server(folder)  # before the run is resumed, and on
        assert not before or [step for step, _ in points(looking)["train/supervised"]][-1] > 6
        train(replace(config, tensorboard=True))
        found = points(server(folder))
        assert points(looking) == found
        steps, evaluations = read_history(tmp_path / name / "history.jsonl")
        assert [step for step, _ in found["train/supervised"]] == list(range(1, 13))
        for key in ("supervised", "full", "regularizer", "lr", "grad_norm"):
            assert [v for _, v in found[f"train/{key}"]] == pytest.approx(
                [line[key] for line in steps], rel=1e-6
            )
        assert [step for step, _ in found["val/mean"]] == [3, 6, 9, 12]
        assert [v for _, v in found["val mIoU/RDA"]] == pytest.approx(
            [line["miou"]["RDA"] for line in evaluations], rel=1e-6
        )
        assert [v for _, v in found["information/depth"]] == pytest.approx(
            [line["information"]["depth"] for line in evaluations], rel=1e-6
        )


def test_event_files_need_their_package_before_anything_starts(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        SystemExit, match=r'error: --tensorboard needs the package tensorboard .*pip install -e "\.\[logs\]"'
    ):
        cli.main(["train", "--data", data, "--out", str(tmp_path / "out"), "--tensorboard"])
    assert not (tmp_path / "out").exists()
