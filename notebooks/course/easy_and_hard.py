"""Two sensors that see the same two classes, one of them much easier to read, and a network of 162 parameters
for both. Notebook 03 trains it within a second and sweeps λ on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

from mmlib.figures import FUSED
from mmlib.segmentation.information import fisher_gap, input_information

from .charts import BLUE, ORANGE, show

EASINESS = 3.0
COLOURS = {"both": FUSED, "easy": ORANGE, "hard": BLUE}


def batch(
    count: int, generator: torch.Generator, easiness: float = EASINESS
) -> tuple[dict[str, Tensor], Tensor]:
    """Images of 8 × 8 pixels and their labels. ``easy`` shows the class s = ±1 itself, plus noise;
    ``hard`` shows a random sign u and u·s, so that only both of its channels together tell the class.
    """
    label = torch.randint(0, 2, (count, 8, 8), generator=generator)
    sign = 2.0 * label - 1
    noise = lambda channels: torch.randn((count, channels, 8, 8), generator=generator)
    coin = 2.0 * torch.randint(0, 2, sign.shape, generator=generator) - 1
    easy = easiness * sign[:, None] + noise(1)
    hard = torch.stack([coin, coin * sign], 1) + 0.35 * noise(2)
    return {"easy": easy, "hard": hard}, label


class TwoSensors(nn.Module):
    """A small network per sensor and the mean of their logits (Eq. 5)."""

    def __init__(self, width: int = 16):
        super().__init__()
        branch = lambda channels: nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.Tanh(), nn.Conv2d(width, 2, 1)
        )
        self.branches = nn.ModuleDict({"easy": branch(1), "hard": branch(2)})

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        return sum(self.branches[name](image) for name, image in images.items()) / len(images)


def measured(network: nn.Module, easiness: float = EASINESS) -> dict[str, float]:
    """Accuracy (%) with both sensors and with each alone, and the Fisher gap, on pixels of their own."""
    images, label = batch(64, torch.Generator().manual_seed(99), easiness)
    result = {}
    for name, present in (("both", ("easy", "hard")), ("easy", ("easy",)), ("hard", ("hard",))):
        with torch.no_grad():
            guess = network({key: images[key] for key in present}).argmax(1)
        result[name] = 100 * (guess == label).float().mean().item()
    information, _ = input_information(network, images, label)
    return result | {"gap": fisher_gap(information.detach().mean(1))}


def sweep(
    train: Callable, lambdas: Sequence[float], forms: Sequence[str] = ("balance",), seeds: int = 3, **options
) -> dict[str, dict[float, dict[str, np.ndarray]]]:
    """form -> λ -> what ``measured`` says of ``train(λ, form, seed, **options)``, one value per seed."""
    found: dict = {form: {} for form in forms}
    for form in forms:
        for lam in lambdas:
            networks = [train(lam, form, seed, **options) for seed in range(seeds)]
            runs = [measured(network, options.get("easiness", EASINESS)) for network in networks]
            found[form][lam] = {key: np.array([r[key] for r in runs]) for key in runs[0]}
    return found


def show_sweep(found: dict) -> None:
    """Accuracy and Fisher gap against λ; a dot per seed, a line through the medians."""
    fig, axes = plt.subplots(1, 1 + len(found), figsize=(8, 3.2), squeeze=False)
    places = range(len(next(iter(found.values()))))
    styles = ("o-", "s--", "^:")
    for (form, by_lambda), axis in zip(found.items(), axes[0]):
        for name, colour in COLOURS.items():
            for place, values in zip(places, by_lambda.values()):
                dots = values[name]
                axis.plot([place] * len(dots), dots, "o", color=colour, markersize=4, alpha=0.35)
            medians = [np.median(v[name]) for v in by_lambda.values()]
            both = {"linestyle": "--", "zorder": 3} if name == "both" else {}
            label = name if name == "both" else f"{name} alone"
            axis.plot(places, medians, color=colour, label=label, **both)
        axis.axhline(50, color="#999999", linewidth=0.8, linestyle=":")
        axis.set(title=f"Accuracy, form {form}", ylabel="%", ylim=(0, 104))
    axes[0, 0].legend(loc="lower left")
    for (form, by_lambda), style in zip(found.items(), styles):
        gaps = [np.median(v["gap"]) for v in by_lambda.values()]
        axes[0, -1].semilogy(places, gaps, style, color="#333333", label=form, markersize=4)
    axes[0, -1].set(title="Fisher gap")
    axes[0, -1].set_yticks([1, 3, 10, 30], ["1", "3", "10", "30"])
    axes[0, -1].minorticks_off()
    axes[0, -1].set_ylim(0.9, 40)
    axes[0, -1].legend()
    names = [f"{lam:g}" for lam in next(iter(found.values()))]
    for axis in axes[0]:
        axis.set_xticks(places, names)
        axis.set_xlabel("λ")
    show(
        fig,
        alt="Against the weight λ, for each form of the term: accuracy with both sensors, with the easy one "
        "alone and with the hard one alone; and the Fisher gap. Dots are seeds, lines medians.",
    )
