"""What a training will cost, measured on a few real steps before anything is written: work, memory, time,
disk.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..data.prepared import collate
from ..loop import due
from .information import measure_information
from .step import StepSampler, TrainConfig, learning_rate, set_up, train_step
from .train import validate

aten = torch.ops.aten
# Attention kernels of the CPU, which torch's table of formulas leaves out, and what they compute.
ON_CPU = {
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
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
    begins the peak anew, on a CPU only where Linux allows it; elsewhere it is that of the process since its
    start.
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
        if sys.platform == "win32":
            import psutil  # comes with accelerate

            return psutil.Process().memory_info().peak_wset
        import resource  # which Windows lacks

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def seconds(device: torch.device, call, *arguments) -> float:
    """Wall time of one call, until the device is done."""
    begun = time.perf_counter()
    call(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def nbytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def dry_run(config: TrainConfig) -> dict:
    """Take a few steps and score a few samples as ``train`` would, with random weights and on every process,
    and keep nothing.

    Steps are measured with the regulariser at full strength; each is taken twice, first to count its
    operations, then for time and memory. Loader processes are not started: loading is measured in this one.

    Returns:
        numbers by name: "flops" and "seconds" of a "plain" step and of one with a probe ("probed"), where
            there are both; seconds; bytes.

    Raises:
        ValueError, DataError: as ``train``.
    """
    run = set_up(replace(config, network=replace(config.network, pretrained=False)), resumed=False)
    device, processes, rank = (
        run.accelerator.device,
        run.accelerator.num_processes,
        run.accelerator.process_index,
    )
    entries = list(
        islice(StepSampler(len(run.data), config, run.steps, 0, rank, processes), 2 * config.accumulate)
    )
    load = lambda batch: collate([run.data[entry] for entry in batch])
    decode = sum(seconds(device, load, batch) for batch in entries) / len(entries)
    again = sum(seconds(device, load, batch) for batch in entries) / len(entries) if config.cache else decode
    micro = [load(batch) for batch in entries[: config.accumulate]]
    stored = [run.data.stored(index) for index in {index for batch in entries for index, _ in batch}]
    decoded = sum(
        sum(image.nbytes for image in images.values()) + label.nbytes for images, label in stored
    ) / len(stored)

    # A subset of the sensors that is drawn anew for each step has its own cost, so that more steps are needed
    # for a mean.
    count = 8 if config.objective.subsets == "dropout" else 3
    probed = [run.regularizer.due(step, 1.0) for step in range(run.steps)]
    chosen = {
        name: [s for s, probe in enumerate(probed) if probe == (name == "probed")][:count]
        for name in ("plain", "probed")
    }
    chosen = {name: steps for name, steps in chosen.items() if steps}
    found: dict = {"flops": {}, "seconds": {}}
    for name, steps in chosen.items():
        with FlopCounter() as counter:
            for step in steps:
                train_step(run, step, micro, 1.0)
        found["flops"][name] = counter.flops / len(steps)
    high_water(device, reset=True)
    for name, steps in chosen.items():
        found["seconds"][name] = sum(
            seconds(device, train_step, run, step, micro, 1.0) for step in steps
        ) / len(steps)
    found["step memory"] = high_water(device)

    part = copy.copy(run.val)
    part.rows = run.val.rows[: processes * config.batch_size]
    quiet = replace(config, information_samples=0, workers=0)
    scoring = lambda: validate(run.network, part, quiet, run.accelerator)
    informing = lambda: (
        measure_information(run.network, part, samples=1, device=device)
        if config.information_samples
        else None
    )
    high_water(device, reset=True)
    for _ in range(1 + (device.type == "cuda")):  # the first time on a GPU its libraries choose their kernels
        scored, informed = seconds(device, scoring), seconds(device, informing)
    found["evaluation memory"] = high_water(device)

    mean = found["seconds"].get("plain", found["seconds"].get("probed"))
    if len(chosen) == 2:
        mean += (found["seconds"]["probed"] - mean) / config.regularizer.probe_every
    waiting = config.accumulate * again / max(1, config.workers)
    mean = (
        max(mean, waiting) if config.workers else mean + waiting
    )  # loader processes work while the device does
    per_epoch = len(run.data) / run.samples_per_step
    evaluations = sum(due(done, run.steps, config.eval_every * per_epoch) for done in range(1, run.steps + 1))
    per_evaluation = scored * len(run.val) / len(part.rows) + informed * min(
        config.information_samples, len(run.val)
    )
    weights = nbytes(run.network.state_dict().values())
    moments = nbytes(
        value for entry in run.optimizer.state_dict()["state"].values() for value in entry.values()
    )
    out = Path(config.out).absolute()
    run.accelerator.wait_for_everyone()
    return found | {
        "summary": str(run),
        "device": device.type,
        "parameters": run.parameters,
        "steps": run.steps,
        "samples a step": run.samples_per_step,
        "steps an epoch": per_epoch,
        "peak lr": max(learning_rate(step, run.steps, config) for step in range(run.steps)),
        "probe every": config.regularizer.probe_every,
        "decode": decode,
        "load again": again,
        "cached": config.cache,
        "sample": decoded,
        "cache": decoded * len(run.data),
        "copies": int(os.environ.get("LOCAL_WORLD_SIZE", 1)) * max(1, config.workers),
        "machine": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "a step": mean,
        "an epoch": mean * per_epoch,
        "evaluations": evaluations,
        "an evaluation": per_evaluation,
        "in all": mean * run.steps + per_evaluation * evaluations,
        "files": {"resume": weights + moments, "best": weights, "last": weights},
        "free": shutil.disk_usage(next(path for path in (out, *out.parents) if path.exists())).free,
    }


def described(found: dict) -> str:
    """The report of a dry run, a line or two for each subject."""
    lines = [f"training    {found['summary']}"]
    lines.append(
        f"            {found['steps an epoch']:.1f} steps an epoch, learning rate up to {found['peak lr']:.3g}"
    )
    for name, flops in found["flops"].items():
        step = "a step" if name == "plain" else f"a step with a probe, every {found['probe every']}th"
        took = found["seconds"][name]
        lines.append(
            f"work        {_si(flops)}FLOP {step}, on each device: {1000 * took:.0f} ms, {_si(flops / took)}FLOP/s"
        )
    kind = "allocated on the device" if found["device"] == "cuda" else "high-water mark of the process"
    lines.append(
        f"memory      {_si(found['step memory'])}B in a step, {_si(found['evaluation memory'])}B in an evaluation ({kind})"
    )
    again = f", {1000 * found['load again']:.0f} ms from memory" if found["cached"] else ""
    lines.append(f"loading     {1000 * found['decode']:.0f} ms a micro-batch in one process{again}")
    copies = f"{found['copies']} loader process{'es' * (found['copies'] > 1)}"
    lines.append(
        f"data        {_si(found['sample'])}B a sample decoded; all of them: {_si(found['cache'])}B × {copies}"
    )
    lines[-1] += f", {'kept in' if found['cached'] else 'not kept in'} {_si(found['machine'])}B of memory"
    if found["cached"] and found["cache"] * found["copies"] > 0.8 * found["machine"]:
        lines[-1] += ": TOO MUCH, give --no-cache"
    lines.append(f"evaluation  {_duration(found['an evaluation'])}, {found['evaluations']} in all")
    lines.append(
        f"time        {1000 * found['a step']:.0f} ms a step with loading, {_duration(found['an epoch'])} an epoch"
    )
    lines[-1] += f", {_duration(found['in all'])} in all"
    files = ", ".join(f"{name} {_si(size)}B" for name, size in found["files"].items())
    lines.append(
        f"disk        {files}, and resume once more while it is saved; {_si(found['free'])}B are free"
    )
    return "\n".join([*lines, "dry run: nothing was written"])


def _si(value: float) -> str:
    """Three digits and a prefix: 1234567 -> "1.23 M"."""
    power = min(5, int(math.log10(max(value, 1)) // 3))
    return f"{value / 1000**power:.3g} {' kMGTP'[power].strip()}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
