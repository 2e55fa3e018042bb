"""Time, throughput and peak memory of every step from a file to a trained batch, at the sizes of public data
sets, on generated data.

python tests/benchmarks/scale.py                 1042 x 1042, colour, depth, events, LiDAR
python tests/benchmarks/scale.py --size 1080 1920 --modalities rgb event lidar --crop 1024 1024
python tests/benchmarks/scale.py --size 1024 1024 --encoder pvt_v2_b2 --batch 2 --device cuda --bf16

Scenes of the sensor world are rendered at full size, so that files compress as pictures do. Beside each step
stands what it must at least move through memory: what it reads and what it leaves, each byte once. Peak
memory is what the step adds to the process (on a GPU: to the device). Files come from the system's cache
after the first round, so reading measures decoding, not the disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch.utils.data import DataLoader

from mmlib import world
from mmlib.data.prepared import Description, PreparedDataset, Writer, collate
from mmlib.data.transforms import Augment
from mmlib.evaluation.subsets import evaluate_subsets
from mmlib.evaluation.windows import sliding
from mmlib.runtime import limit_threads
from mmlib.segmentation.dry_run import high_water, seconds
from mmlib.segmentation.network import NetworkConfig, Segmenter
from mmlib.segmentation.objective import ObjectiveConfig, subset_cross_entropy

sys.path.insert(0, str(Path(__file__).parents[2] / "data_scripts"))


@dataclass(frozen=True)
class Options:
    """Measure."""

    size: tuple[int, int] = (1042, 1042)
    """Height and width of the images on disk."""
    modalities: tuple[str, ...] = ("rgb", "depth", "event", "lidar")
    """Sensors of the sensor world."""
    crop: tuple[int, int] = (1024, 1024)
    """Height and width of a training crop, and of the window of sliding-window inference."""
    encoder: str = "residual"
    """Network."""
    fusion: Literal["mean", "cmx", "centred"] = "mean"
    """How it fuses; but for the mean, the objective is that of all sensors at once."""
    batch: int = 1
    """Samples of a training step."""
    frames: int = 4
    """Frames rendered."""
    repeats: int = 3
    """Counted rounds."""
    workers: int = 2
    """Loader processes of the last line."""
    points: int = 300_000
    """LiDAR points of a projected frame."""
    events: int = 1_000_000
    """Events of a projected frame."""
    device: str = "cpu"
    """cpu or cuda, for the network."""
    bf16: bool = False
    """Autocast to bfloat16."""


def memory(device: torch.device, reset: bool = False) -> float:
    """Peak memory in MiB since the last reset; a reset begins anew with what is held now."""
    if reset and device.type == "cpu":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(
                0
            )  # freed memory that the process still holds would hide what the step needs
    return high_water(device, reset) / 2**20


def measure(
    name: str,
    step: Callable[[], object],
    repeats: int,
    least: float,
    count: float = 1,
    unit: str = "sample",
    device: str = "cpu",
):
    """Print milliseconds (median and range), units a second, peak memory, and the least traffic in MB."""
    times, peak, where = [], 0.0, torch.device(device)
    for repeat in range(repeats + 1):
        before = memory(where, reset=True)
        took = 1e3 * seconds(where, step)
        if repeat:  # the first round warms up
            times.append(took)
            peak = max(peak, memory(where) - before)
    middle = statistics.median(times)
    print(
        f"  {name:52s} {middle:9.1f} ms [{min(times):.1f}, {max(times):.1f}] {1e3 * count / middle:12.1f} {unit}s/s "
        f"{peak:8.0f} MiB  at least {least / 1e6:8.1f} MB"
    )


def nbytes(arrays) -> int:
    return sum(a.nbytes for a in arrays)


def main(options: Options) -> None:
    limit_threads()
    rng, repeats = np.random.default_rng(0), options.repeats
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "world"
        world.render_dataset(
            root,
            "street",
            train=options.frames,
            val=1,
            test=1,
            size=options.size,
            modalities=options.modalities,
            progress=False,
        )
        data = PreparedDataset(root, "train")
        on_disk = nbytes_on_disk(root, data)
        stored = [data.stored(i) for i in range(len(data))]
        decoded = nbytes([*stored[0][0].values(), stored[0][1]])
        physical, label = data.physical(0)
        floats = nbytes([x.numpy() for x in physical.values()]) + label.numpy().nbytes
        augment = Augment(options.crop, (0.5, 2.0), jitter=0.2)
        height, width = options.size
        print(
            f"{height} x {width}, {' '.join(data.modalities)}: {on_disk / 1e6:.1f} MB on disk, {decoded / 1e6:.1f} MB decoded, "
            f"{floats / 1e6:.1f} MB as float32 and int64, a sample; one thread"
        )
        turns = iter(range(10**9))
        write = tempfile.mkdtemp(dir=folder)
        with Writer(
            Path(write) / "copy",
            Description("copy", data.description.classes, data.description.palette, data.modalities),
        ) as writer:
            measure(
                "write (encode PNG, check, statistics)",
                lambda: writer.add(f"w{next(turns)}", "train", *stored[0]),
                repeats,
                decoded + on_disk,
            )
        measure(
            "read (decode, check ids)",
            lambda: data.stored(next(turns) % len(data)),
            repeats,
            on_disk + decoded,
        )
        cached = PreparedDataset(root, "train", cache=True)
        cached.stored(0)
        measure("to physical values", lambda: cached.physical(0), repeats, decoded + floats)
        share = options.crop[0] * options.crop[1] / (height * width)
        measure(
            "zoom 0.5 to 2, crop, mirror, jitter",
            lambda: augment(*[dict(physical), label], np.random.default_rng(next(turns)), data.modalities),
            repeats,
            floats * (1 + share),
        )
        measure(
            "normalise",
            lambda: {n: m.to_network(physical[n]) for n, m in data.modalities.items()},
            repeats,
            2 * floats,
        )

        prepared = PreparedDataset(root, "train", augment=augment)
        for workers in (0, options.workers):
            draws = [[(int(i), int(i)) for i in rng.integers(0, len(data), options.batch)] for _ in range(8)]
            loader = DataLoader(prepared, batch_sampler=draws, num_workers=workers, collate_fn=collate)
            least = 8 * options.batch * (on_disk + decoded + 2 * floats)
            measure(
                f"loader, {workers} worker processes",
                lambda loader=loader: sum(len(b["id"]) for b in loader),
                1,
                least,
                8 * options.batch,
            )

        network = Segmenter(
            data.modalities,
            data.description.classes,
            data.description.palette,
            NetworkConfig(options.encoder, fusion=options.fusion),
        ).to(options.device, memory_format=torch.channels_last)
        weights = sum(p.numel() for p in network.parameters())
        batch = next(iter(DataLoader(prepared, batch_sampler=draws[:1], collate_fn=collate)))
        images, target = (
            {n: x.to(options.device) for n, x in batch["images"].items()},
            batch["label"].to(options.device),
        )
        optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
        subsets = "all-subsets" if options.fusion == "mean" else "full"

        def step():
            with torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=options.bf16):
                logits, _ = network(images, fuse=False)
            valid = (target != 255).sum()
            subset_cross_entropy(logits, target, ObjectiveConfig(subsets), valid, np.random.default_rng(0))[
                "supervised"
            ].backward()
            optimizer.step()
            optimizer.zero_grad()

        moved = nbytes([x.numpy() for x in batch["images"].values()])
        measure(
            f"training step, {options.encoder}, {options.fusion}, {weights / 1e6:.1f} M parameters, {subsets}",
            step,
            repeats,
            moved + 7 * 4 * weights,
            options.batch,
            device=options.device,
        )
        network.eval()
        whole = PreparedDataset(root, "val")
        scoring = {"dataset": whole, "device": options.device, "batch_size": 1}
        logits_bytes = len(data.modalities) * len(data.description.classes) * height * width * 4
        measure(
            "all subsets scored, whole image",
            lambda: evaluate_subsets(**network.scoring(), **scoring),
            repeats,
            floats + logits_bytes,
            device=options.device,
        )
        if options.fusion == "mean":  # windows are fused by averaging
            windows = sliding(network.modality_logits, options.crop)
            measure(
                "all subsets scored, sliding windows",
                lambda: evaluate_subsets(windows, **scoring),
                repeats,
                floats + logits_bytes,
                device=options.device,
            )
    project(options, rng)


def project(options: Options, rng: np.random.Generator) -> None:
    """A LiDAR sweep and an event stream, generated, into a camera of ``options.size``."""
    from projection import event_counts, lidar_returns

    height, width = options.size
    camera = np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1.0]])
    place = rng.uniform((-40, -40, -2), (40, 40, 4), (options.points, 3))
    points = np.concatenate([place, rng.uniform(0, 1, (options.points, 3))], 1)
    lidar2camera = np.array(
        [[0, -1, 0, 0], [0, 0, -1, -0.2], [1, 0, 0, 0], [0, 0, 0, 1.0]]
    )  # x ahead -> z ahead
    x, y, p = (
        rng.integers(0, 1280, options.events),
        rng.integers(0, 720, options.events),
        rng.integers(0, 2, options.events),
    )
    to_camera = np.diag([width / 1280, height / 720, 1.0])
    print(f"projection onto {height} x {width}")
    image = height * width
    measure(
        f"LiDAR, {options.points} points",
        lambda: lidar_returns(points, camera, lidar2camera, options.size),
        options.repeats,
        points.nbytes,
        1,
        "frame",
    )
    measure(
        f"events, {options.events}",
        lambda: event_counts(x, y, p, to_camera, options.size),
        options.repeats,
        nbytes([x, y, p]) + 16 * image,
        1,
        "frame",
    )


def nbytes_on_disk(root: Path, data: PreparedDataset) -> int:
    sample = data.rows[0]["id"]
    return sum(path.stat().st_size for path in root.glob(f"*/{sample}.*"))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
