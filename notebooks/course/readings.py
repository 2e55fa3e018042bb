"""Lesson 05's toys: what readings of the regulariser pull towards, and a world in which a network is right to
lean on the camera.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor, nn

from mmlib.figures import INK, WIDTH
from mmlib.segmentation.information import combine, feature_information

from .charts import GREEN, OFFSET, PINK, YELLOW
from .record_figures import DOWN, UP


def descend(reading: str, steps: int = 120) -> list[float]:
    """‖q_i − q_m‖² of features that nearly agree, while the sum of their inverse information is minimised."""
    start = 0.1 * torch.randn(2 * 2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    feature = start.clone().requires_grad_()
    optimizer, distance = torch.optim.Adam([feature], 0.02), []
    for _ in range(steps):
        q = feature.unflatten(0, (2, 2)).softmax(2)
        distance.append(float((q - q.mean(0)).square().sum(2).mean().detach()))
        information = feature_information([feature], 2, reading=reading)[0]
        optimizer.zero_grad()
        combine(information.mean(1), "inverse").backward()
        optimizer.step()
    return distance


def two_dead_ends(p: np.ndarray, inverse: np.ndarray, apart: Mapping[str, Sequence[float]]) -> Figure:
    """Left: 1/I of a sensor's own logits over the probability of the true class. Right: how far features are
    from their mean while Σ 1/I is minimised (``apart``: reading -> distances).
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2))
    left.plot(p, inverse, color=INK)
    best = int(np.argmin(inverse))
    left.plot(p[best], inverse[best], "o", color=DOWN)
    place = OFFSET | {"color": DOWN}
    left.annotate(f"least at p = {p[best]:.3f}", (p[best], inverse[best]), (-26, 34), **place)
    left.set(yscale="log", xlabel="probability of the true class", ylabel="1 / I")
    left.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    left.minorticks_off()
    left.set_title("Own logits: confidence is punished")
    words = {"ce": ("cross-entropy, as printed", DOWN, 0.5), "kl": ("KL divergence", UP, 1.8)}
    for reading, distances in apart.items():
        text, colour, where = words[reading]
        right.plot(distances, color=colour)
        right.annotate(text, (48, distances[48] * where), color=colour, va="center")
    right.set(yscale="log", xlabel="steps down Σ 1/I", ylabel="‖q − q mean‖²")
    right.set_title("Features: driven apart, or not")
    return fig


def gaps_and_losses(runs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """The Fisher gap and the cross-entropy over the steps of a training, a line a run."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.1))
    colours = (INK, UP, GREEN, PINK, YELLOW)
    for (name, columns), colour in zip(runs.items(), colours):
        for axis, values in zip(axes, columns):
            axis.plot(values, color=colour, label=name if axis is axes[0] else None)
    axes[0].set(yscale="log", xlabel="step", ylabel="Fisher gap", title="Does the gap close?")
    axes[0].set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes[0].minorticks_off()
    axes[1].set(xlabel="step", ylabel="cross-entropy (nats)", title="What does the loss pay?")
    fig.legend(loc="outside lower center", ncols=4)
    return fig


# ---- a world in which a network is right to lean ----
# The truth weighs the camera three times the radar. Any network that maps a dictionary of images to logits
# will do; this one concatenates them.

CAMERA, RADAR = 3.0, 1.0  # weights of the truth: with them the gap that is deserved is up to (3 / 1)² = 9


class Concatenation(nn.Module):
    """Two convolutions over both images, with logits at the size of the images."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(5, 8, 3, 2, 1), nn.Conv2d(8, 2, 3, 1, 1)

    def forward(self, images: dict[str, Tensor]) -> Tensor:
        x = torch.cat([images["camera"], images["radar"]], 1)
        return F.interpolate(self.last(F.gelu(self.first(x))), x.shape[-2:], mode="bilinear")


def scene(samples: int = 4, size: int = 40) -> tuple[dict[str, Tensor], Tensor]:
    """({"camera": (B, 3, H, W), "radar": (B, 2, H, W)}, label (B, H, W)), from torch's generator."""
    images = {
        "camera": torch.randn(samples, 3, size, size),
        "radar": torch.randn(samples, 2, size, size),
    }
    return images, (CAMERA * images["camera"][:, 0] + RADAR * images["radar"][:, 0] > 0).long()
