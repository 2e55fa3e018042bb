"""What the segmenter's shortcuts are worth: ratios measured in one run, alternating, on one thread.

python tests/benchmarks/segmenter.py [--size 96 128] [--encoder residual] [--repeats 9]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import nn

from mmlib.evaluation.subsets import subset_matrix
from mmlib.modalities import SENSORS, subsets
from mmlib.runtime import limit_threads
from mmlib.segmentation.network import NetworkConfig, Segmenter
from mmlib.segmentation.objective import ObjectiveConfig, subset_cross_entropy

NAMES, CLASSES = ("rgb", "depth", "event", "lidar"), 14


@dataclass(frozen=True)
class Options:
    """Measure."""

    size: tuple[int, int] = (96, 128)
    """Height and width."""
    encoder: str = "residual"
    """Network."""
    pretrained: bool = False
    """With weights, and so with frozen normalisation."""
    batch: int = 4
    """Samples."""
    repeats: int = 9
    """Counted rounds; each round runs every variant once."""


def race(variants: dict[str, Callable[[], object]], repeats: int) -> None:
    """Run the variants in turn and print CPU milliseconds (median, range) and the median of the ratios to the
    first one.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(repeats + 1):
        for name, run in variants.items():
            start = time.process_time()
            run()
            if round_number:  # the first round warms up
                times[name].append(1000 * (time.process_time() - start))
    first = next(iter(times.values()))
    for name, values in times.items():
        ratio = statistics.median(v / f for v, f in zip(values, first))
        print(
            f"  {name:52s} {statistics.median(values):8.1f} ms [{min(values):.1f}, {max(values):.1f}]   x {ratio:.2f}"
        )


def main(options: Options) -> None:
    limit_threads()
    torch.manual_seed(0)
    modalities = {
        n: replace(SENSORS[n], mean=(0.0,) * SENSORS[n].channels, std=(1.0,) * SENSORS[n].channels)
        for n in NAMES
    }
    classes = [str(k) for k in range(CLASSES)]
    config = NetworkConfig(encoder=options.encoder, pretrained=options.pretrained)
    net = Segmenter(modalities, classes, [(0, 0, 0)] * CLASSES, config).to(memory_format=torch.channels_last)
    images = {
        n: torch.randn(options.batch, m.channels, *options.size).to(memory_format=torch.channels_last)
        for n, m in modalities.items()
    }
    label = torch.randint(0, CLASSES, (options.batch, *options.size))
    valid = torch.tensor(label.numel())

    def step(kind: str, pixels: float):
        net.zero_grad()
        config = ObjectiveConfig(subsets=kind, pixels=pixels)
        subset_cross_entropy(net(images, fuse=False)[0], label, config, valid, np.random.default_rng(0))[
            "supervised"
        ].backward()

    print(
        f"training step, {options.encoder}, {options.batch} x {len(NAMES)} images of {options.size[0]} x {options.size[1]}, one thread"
    )
    race(
        {
            "all sensors, every pixel": lambda: step("full", 1.0),
            "all sensors, a quarter of the pixels": lambda: step("full", 0.25),
            "all 15 subsets, a quarter of the pixels (default)": lambda: step("all-subsets", 0.25),
            "all 15 subsets, every pixel": lambda: step("all-subsets", 1.0),
        },
        options.repeats,
    )

    net.eval()

    @torch.no_grad()
    def one_pass():
        logits = [
            F.interpolate(z, options.size, mode="bilinear", align_corners=False)
            for z in net.modality_logits(images).values()
        ]
        return [
            sum(z for z, member in zip(logits, row) if member).argmax(1) for row in subset_matrix(len(NAMES))
        ]

    @torch.no_grad()
    def one_by_one():
        return [net({n: images[n] for n in subset}).argmax(1) for subset in subsets(NAMES)]

    assert all(torch.equal(a, b) or (a != b).float().mean() < 1e-4 for a, b in zip(one_pass(), one_by_one()))
    print("predictions of all 15 subsets")
    race(
        {"each sensor encoded once, logits mixed": one_pass, "one forward pass a subset": one_by_one},
        options.repeats,
    )

    features = [f.detach() for f in net.features(images)]
    widths, embed = net.encoder.widths, net.head.norm.num_channels
    linear = nn.ModuleList(nn.Conv2d(w, embed, 1) for w in widths)
    mix = nn.Conv2d(embed * len(widths), embed, 1)

    @torch.no_grad()
    def two_maps():
        x = torch.cat(
            [
                F.interpolate(layer(f), features[0].shape[-2:], mode="bilinear")
                for layer, f in zip(linear, features)
            ],
            1,
        )
        return net.head.classify(F.relu(net.head.norm(mix(x))))

    print(f"head at width {embed}")
    race(
        {
            "one folded map per scale": torch.no_grad()(lambda: net.head(features)),
            "SegFormer's two maps and concatenation": two_maps,
        },
        options.repeats,
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
