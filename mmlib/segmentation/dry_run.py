"""What a training will cost, measured on a few real steps before anything is written: work, memory, time.

The command ``train --dry-run`` calls ``dry_run`` and prints ``described``.
"""

import copy
import os
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean

import psutil  # comes with accelerate
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from ..data.prepared import collate
from ..loop import due
from .information import measure_information
from .step import TrainConfig, learning_rate, set_up, train_step
from .train import validate

aten = torch.ops.aten
# Attention kernels of the CPU, which torch's table of formulas leaves out, and what they compute.
ON_CPU = {
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        aten._scaled_dot_product_flash_attention_backward
    ),
}


class FlopCounter(TorchDispatchMode):
    """Floating-point operations of matrix products, attention and convolutions in its block, forward and
    backward; a multiply-add is two.

    torch's own FlopCounterMode also follows modules, by hooks that do not survive a second derivative.
    """

    flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        packet = function._overloadpacket
        if formula := flop_registry.get(ON_CPU.get(packet, packet)):
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def high_water(device: torch.device, reset: bool = False) -> int:
    """Peak memory in bytes: of allocated tensors on a GPU, else the resident size of this process. ``reset``
    begins the peak anew. Systems other than Linux do not tell the peak: there it is what the process holds
    now.
    """
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):  # another system than Linux
        return psutil.Process().memory_info().rss


def seconds(device: torch.device, call, *arguments) -> float:
    """Wall time of one call, until the device is done."""
    begun = time.perf_counter()
    call(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def dry_run(config: TrainConfig) -> dict:
    """Take a few steps and score a few samples as ``train`` would, on every process, and keep nothing.

    Steps are measured with the regulariser at full strength; each is taken twice, first to count its
    operations, then for time and memory. Loader processes are not started: loading is measured in this one.

    Returns:
        numbers by name: "flops" and "seconds" of a "plain" step and of one with a probe ("probed"), where
            there are both; seconds; bytes.

    Raises:
        ValueError, DataError: as ``train``.
    """
    run = set_up(config, resumed=False)
    accelerator, device = run.accelerator, run.accelerator.device

    # Loading: the micro-batches of two steps, once from disk and once from the cache.
    entries = list(islice(run.loader(0).batch_sampler, 2 * config.accumulate))
    load = lambda batch: collate([run.data[entry] for entry in batch])
    decode, again = (fmean(seconds(device, load, batch) for batch in entries) for _ in range(2))
    micro = [load(batch) for batch in entries[: config.accumulate]]
    stored = [run.data.stored(index) for index in {index for batch in entries for index, _ in batch}]
    sample = fmean(sum(array.nbytes for array in (label, *images.values())) for images, label in stored)

    # Steps without and with a probe. A subset of the sensors that is drawn anew for each step has its own
    # cost, so that more steps are needed for a mean.
    count = 8 if config.objective.subsets == "dropout" else 3
    flops, times = {}, {}
    high_water(device, reset=True)
    for name, probed in (("plain", False), ("probed", True)):
        steps = [step for step in range(run.steps) if run.regularizer.due(step, 1.0) == probed][:count]
        if steps:
            with FlopCounter() as counter:
                for step in steps:
                    train_step(run, step, micro, 1.0)
            flops[name] = counter.flops / len(steps)
            times[name] = fmean(seconds(device, train_step, run, step, micro, 1.0) for step in steps)
    step_memory = high_water(device)

    # One batch of an evaluation, and the information of one sample.
    part = copy.copy(run.val)
    part.rows = run.val.rows[: accelerator.num_processes * config.batch_size]
    quiet = replace(config, information_samples=0, workers=0)
    informed = 0.0
    high_water(device, reset=True)
    for _ in range(1 + (device.type == "cuda")):  # the first time on a GPU its libraries choose their kernels
        scored = seconds(device, validate, run.network, part, quiet, accelerator)
        if config.information_samples:
            informed = seconds(device, measure_information, run.network, part, 1)
    evaluation_memory = high_water(device)
    per_evaluation = scored * len(run.val) / len(part.rows) + informed * min(
        config.information_samples, len(run.val)
    )

    # The mean step: a probe every so many steps; loader processes work while the device does.
    mean = times.get("plain", times.get("probed"))
    if len(times) == 2:
        mean += (times["probed"] - mean) / config.regularizer.probe_every
    waiting = config.accumulate * again / max(1, config.workers)
    mean = max(mean, waiting) if config.workers else mean + waiting
    per_epoch = len(run.data) / run.samples_per_step
    evaluations = sum(due(done, run.steps, config.eval_every * per_epoch) for done in range(1, run.steps + 1))
    accelerator.wait_for_everyone()
    return {
        "summary": str(run),
        "device": device.type,
        "steps": run.steps,
        "steps an epoch": per_epoch,
        "peak lr": max(learning_rate(step, run.steps, config) for step in range(run.steps)),
        "flops": flops,
        "seconds": times,
        "step memory": step_memory,
        "evaluation memory": evaluation_memory,
        "decode": decode,
        "load again": again,
        "sample": sample,
        "cache": sample * len(run.data),
        "a step": mean,
        "an epoch": mean * per_epoch,
        "evaluations": evaluations,
        "an evaluation": per_evaluation,
        "in all": mean * run.steps + per_evaluation * evaluations,
    }


def described(config: TrainConfig, cost: dict) -> str:
    """The report of a dry run, a line or two for each subject."""
    digits = tqdm.format_sizeof  # three and a prefix: 1234567 -> "1.23M"
    size = lambda name: digits(cost[name], "B")
    lines = [
        f"training    {cost['summary']}",
        f"            {cost['steps an epoch']:.1f} steps an epoch, learning rate up to {cost['peak lr']:.3g}",
    ]
    for name, flops in cost["flops"].items():
        step = (
            "a step" if name == "plain" else f"a step with a probe, every {config.regularizer.probe_every}th"
        )
        spent = cost["seconds"][name]
        speed = f"{1000 * spent:.0f} ms, {digits(flops / spent)}FLOP/s"
        lines.append(f"work        {digits(flops)}FLOP {step}, on each device: {speed}")
    kind = "allocated on the device" if cost["device"] == "cuda" else "high-water mark of the process"
    again = f", {1000 * cost['load again']:.0f} ms from memory" * config.cache
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) * max(1, config.workers)
    machine = psutil.virtual_memory().total
    place = f"{'not ' * (not config.cache)}kept in {digits(machine, 'B')} of memory"
    place += ": TOO MUCH, give --no-cache" * (config.cache and cost["cache"] * copies > 0.8 * machine)
    lines += [
        f"memory      {size('step memory')} in a step, {size('evaluation memory')} in an evaluation ({kind})",
        f"loading     {1000 * cost['decode']:.0f} ms a micro-batch in one process{again}",
        f"data        {size('sample')} a sample decoded; all of them: {size('cache')} × {copies} "
        f"loader process{'es' * (copies > 1)}, {place}",
        f"evaluation  {_duration(cost['an evaluation'])}, {cost['evaluations']} in all",
        f"time        {1000 * cost['a step']:.0f} ms a step with loading, {_duration(cost['an epoch'])} an "
        f"epoch, {_duration(cost['in all'])} in all",
        "dry run: nothing was written",
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
