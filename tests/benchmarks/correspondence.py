"""What the correspondence loss costs: every token in the plain form, every token in tiles, and a sample of
points, in one run.

python tests/benchmarks/correspondence.py --batch 4                                          CPU, one thread
python tests/benchmarks/correspondence.py --device cuda --plain-all                          GPU

One step is the whole loss of Eq. 9, forward and backward, for given points: self pairs, KNN pairs and random
pairs of each modality. Peak memory is what the step allocates at most at one time on top of its input (the
gradients of the codes included); kept is what of it lies between the forward and the backward pass. Times are
medians over rounds in which all forms run in turn.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from mmlib.runtime import limit_threads
from mmlib.unsupervised.correspondence import CorrespondenceConfig, Shifts, cmcs_loss, sample_points

NAMES = ("rgb", "depth")
SHIFTS = Shifts("absolute", numbers={name: (0.1, 0.1, 0.1) for name in NAMES})


@dataclass(frozen=True)
class Options:
    """Measure."""

    grids: tuple[int, ...] = (14, 28, 40)
    """Tokens on a side."""
    batch: int = 32
    """Images."""
    channels: int = 384
    """Of the tokens."""
    dim: int = 70
    """Of the codes."""
    tile: int = 32
    """Rows per tile."""
    points: int = 121
    """Sampled points."""
    negatives: int = 5
    """Random pairs per image."""
    repeats: int = 3
    """Counted rounds after one that warms up; each runs every form once. 0: only that one, and it counts."""
    plain_all: bool = False
    """Run the plain form also where it is expected to need more than 4 GiB."""
    device: str = "cpu"
    """cpu or cuda."""


def clock(device: torch.device) -> float:
    """Seconds: of the process on the CPU, where other work then counts less, and of the clock on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak_bytes(run, device: torch.device) -> int:
    """The most that ``run`` has allocated at one time, on top of what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(str(Path(folder) / "trace.json"))
        events = json.loads((Path(folder) / "trace.json").read_text())["traceEvents"]
    now = most = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


def kept_bytes(forward) -> int:
    """What ``forward`` saves for its backward pass, each storage once, without what existed before."""
    storages: dict[int, int] = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, inputs = forward()
    for tensor in inputs:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    del loss
    return sum(storages.values())


def measure(options: Options, grid: int) -> None:
    device = torch.device(options.device)
    generator = torch.Generator().manual_seed(0)

    def maps(channels: int, leaf: bool) -> dict[str, torch.Tensor]:
        shape = (options.batch, channels, grid, grid)
        return {
            name: torch.randn(shape, generator=generator).to(device).requires_grad_(leaf) for name in NAMES
        }

    frozen, codes, near_frozen, near_codes = (
        maps(c, leaf) for c, leaf in 2 * [(options.channels, False), (options.dim, True)]
    )
    leaves = [*codes.values(), *near_codes.values()]
    config = CorrespondenceConfig(SHIFTS, negatives=options.negatives)

    def forward(config: CorrespondenceConfig):
        coords, near_coords = (
            torch.rand(options.batch, config.points, 2, generator=generator).to(device) * 2 - 1
            for _ in range(2)
        )
        take = lambda maps, places: {name: sample_points(x, places) for name, x in maps.items()}
        f, c = take(frozen, coords), take(codes, coords)
        near = take(near_frozen, near_coords), take(near_codes, near_coords)
        inputs = [*frozen.values(), *near_frozen.values(), *leaves]
        return cmcs_loss(f, c, near, config, generator)[0], inputs

    def step(config: CorrespondenceConfig) -> None:
        for leaf in leaves:
            leaf.grad = None
        forward(config)[0].backward()

    forms = {
        "every token, plain": replace(config, points=0),
        f"every token, tiles of {options.tile}": replace(config, points=0, tile=options.tile),
        f"{options.points} sampled points, plain": replace(config, points=options.points),
    }
    pairs = len(NAMES) * (2 + options.negatives)
    expected = 4 * options.batch * grid**4 * (2 * pairs + 2)
    print(
        f"{grid} x {grid} tokens, batch {options.batch}, {len(NAMES)} modalities, {pairs} pairs of images for each image"
    )
    if expected > 4 * 2**30 and not options.plain_all:
        del forms["every token, plain"]
        print(
            f"  every token, plain           not run: would need about {expected / 2**30:.0f} GiB; --plain-all runs it"
        )
    times: dict[str, list[float]] = {name: [] for name in forms}
    for round_number in range(options.repeats + 1):
        for name, form in forms.items():
            start = clock(device)
            step(form)
            if round_number or options.repeats == 0:  # the first round warms up
                times[name].append(clock(device) - start)
    results = {}
    for name, form in forms.items():
        for leaf in leaves:
            leaf.grad = None
        saved = kept_bytes(lambda form=form: forward(form))
        results[name] = (
            statistics.median(times[name]),
            peak_bytes(lambda form=form: step(form), device),
            saved,
        )
    first = results[f"every token, tiles of {options.tile}"]
    for name, result in results.items():
        seconds, peak, saved = result
        ratio = [f"x {value / reference:5.2f}" for value, reference in zip(result, first)]
        print(
            f"  {name:28s} {1000 * seconds:9.1f} ms {ratio[0]}   peak {peak / 2**20:8.1f} MiB {ratio[1]}   "
            f"kept {saved / 2**20:8.1f} MiB {ratio[2]}"
        )


def main(options: Options) -> None:
    limit_threads()
    where = torch.cuda.get_device_name(0) if options.device == "cuda" else "one thread"
    print(
        f"correspondence loss, forward and backward, float32, {options.channels} token and {options.dim} code channels, {where}; "
        "ratios to the tiled form"
    )
    for grid in options.grids:
        measure(options, grid)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
