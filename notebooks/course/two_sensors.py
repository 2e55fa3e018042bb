"""A world of two sensors for lesson 04: one is easy to learn from, the other hard, and each would do alone.

The camera tells road from car by the sign of one number, with some noise. The LiDAR tells them without noise,
by the colour of a square of a chequerboard. A network that is only asked for both together learns the camera.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

from mmlib.figures import FUSED, INK, WIDTH
from mmlib.modalities import SENSORS

from .charts import OFFSET, modality_colour
from .record_figures import SERIES

WORLD = {"camera": "rgb", "lidar": "lidar"}  # whose colours they have
SUBSETS = {"camera": ("camera",), "lidar": ("lidar",), "both": ("camera", "lidar")}
CLASSES = ("road", "car")
SQUARES, SIDE = 3, 2.0  # squares of the chequerboard in a row; it reaches from -SIDE to SIDE
ALWAYS_ROAD = 100 * 5 / 9  # per cent that are right if all is called road: five of nine squares are


def draw(count: int, seed: int, noise: float = 0.4) -> tuple[dict[str, Tensor], Tensor]:
    """({sensor: (count, 2)}, class 0 or 1 (count,))."""
    generator = torch.Generator().manual_seed(seed)
    lidar = SIDE * (2 * torch.rand(count, 2, generator=generator) - 1)
    label = ((lidar + SIDE) * SQUARES / (2 * SIDE)).floor().sum(1).long() % 2
    camera = noise * torch.randn(count, 2, generator=generator)
    camera[:, 0] += 2.0 * label - 1
    return {"camera": camera, "lidar": lidar}, label


def parts(width: int = 32) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A stem for each sensor, an encoder and a head, small enough to train in a blink."""
    stems = nn.ModuleDict({name: nn.Linear(2, width) for name in WORLD})
    encoder = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return stems, encoder, nn.Linear(width, len(CLASSES))


def fit(network: nn.Module, weights: Mapping[str, float], steps: int = 300, samples: int = 512) -> nn.Module:
    """Train on the cross-entropy of "camera", "lidar" and "both", in these proportions.

    Raises:
        ValueError: no weight is positive, one is negative, or a name is none of the three.
    """
    unknown = sorted(set(weights) - set(SUBSETS))
    if unknown or min(weights.values(), default=-1) < 0 or not any(weights.values()):
        raise ValueError(
            f"weights {dict(weights)}: expected numbers of 0 or more, one of them above 0, "
            f"for {', '.join(SUBSETS)}"
        )
    inputs, label = draw(samples, seed=1)
    optimizer, total = torch.optim.Adam(network.parameters(), 0.02), sum(weights.values())
    for _ in range(steps):
        asked = {name: weight / total for name, weight in weights.items() if weight > 0}
        loss = sum(
            weight * F.cross_entropy(network({n: inputs[n] for n in SUBSETS[name]}), label)
            for name, weight in asked.items()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, samples: int = 4000) -> dict[str, float]:
    """Share of fresh samples that are right, in per cent, from each sensor alone and from both."""
    inputs, label = draw(samples, seed=2)
    return {
        name: 100 * float((network({n: inputs[n] for n in members}).argmax(1) == label).float().mean())
        for name, members in SUBSETS.items()
    }


@torch.no_grad()
def what_it_reads(networks: Mapping[str, nn.Module]) -> Figure:
    """A row a network: the probability of "car" that it gives to every reading of the camera alone and of the
    LiDAR alone, and how often each subset is right.
    """
    fig, axes = plt.subplots(
        len(networks),
        3,
        figsize=(WIDTH, 2.35 * len(networks) + 0.4),
        width_ratios=(1, 1, 1.25),
        squeeze=False,
    )
    inputs, label = draw(160, seed=2)
    line = torch.linspace(-SIDE, SIDE, 121)
    plane = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    shade = LinearSegmentedColormap.from_list("road to car", (SERIES[2], "#F7F7F7", SERIES[4]))
    for (title, network), (*maps, bars) in zip(networks.items(), axes):
        for name, axis in zip(WORLD, maps):
            car = network({name: plane}).softmax(1)[:, 1].reshape(len(line), -1).numpy()
            extent = (-SIDE, SIDE, -SIDE, SIDE)
            drawn = axis.imshow(car, origin="lower", extent=extent, vmin=0, vmax=1, cmap=shade, alpha=0.8)
            for k, marker in enumerate("sD"):
                axis.plot(*inputs[name][label == k].T, marker, color="none", mec=INK, mew=0.6, ms=3)
            axis.set(xticks=[], yticks=[], xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE))
            axis.grid(False)
            axis.set_title(f"given the {'LiDAR' if name == 'lidar' else name} alone", fontsize=9.5)
        maps[0].set_ylabel(title, fontsize=10, fontweight="bold")
        scores = accuracy(network)
        colours = [modality_colour(SENSORS[WORLD[n]].symbol) if n in WORLD else FUSED for n in scores]
        bars.barh(range(3), list(scores.values()), color=colours, height=0.6)
        for place, score in enumerate(scores.values()):
            # Not across the dashed line.
            end = ALWAYS_ROAD if ALWAYS_ROAD - 20 < score < ALWAYS_ROAD else score
            bars.annotate(f"{score:.0f} %", (end, place), (4, 0), va="center", **OFFSET)
        bars.axvline(ALWAYS_ROAD, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        bars.set_yticks(range(3), ["camera", "LiDAR", "both"])
        bars.set(xlim=(0, 122), ylim=(2.6, -0.6), xticks=[0, 50, 100])
        bars.set_title("right (dashed: always road)", fontsize=9.5)
        bars.grid(False)
    colours = fig.colorbar(drawn, ax=axes[:, :2], location="bottom", aspect=45, shrink=0.7, pad=0.04)
    colours.set_ticks([0, 0.5, 1], labels=["surely road (□)", "undecided", "surely car (◇)"])
    colours.ax.tick_params(labelsize=8.5, length=0)
    return fig
