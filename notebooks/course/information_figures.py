"""Figures of notebook 03: the heat flow, a frame with its prediction, the readings, the forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from matplotlib import pyplot as plt

from mmlib.figures import INK, WIDTH, sensor_title
from mmlib.modalities import SENSORS
from mmlib.segmentation.information import combine
from mmlib.theory.entropy import entropy, information
from mmlib.theory.gaussian import gaussian

from .charts import BLUE, GREEN, GREY, OFFSET, ORANGE, sample_figure, show


def heat_flow(f: Callable, slope: Callable, heated: Callable) -> None:
    """f while the noise spreads, and its information, whose area is the entropy.

    Args:
        heated: (f, t) -> f at time t; the slope of that is e^{-t} times the heated slope.
    """
    times = 2.5 * np.linspace(0, 1, 51) ** 2  # most of it happens early
    rates = np.array(
        [
            information(heated(f, t), lambda x, t=t: np.exp(-t) * heated(slope, t)(x), gaussian())["x"]
            for t in times
        ]
    )
    limit, ent = np.exp(-2 * times) * rates[0], entropy(f, gaussian())
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.1))
    x = np.linspace(-3, 3, 241)
    for t, alpha in ((0, 1), (0.1, 0.75), (0.4, 0.5), (1.5, 0.3)):
        left.plot(x, heated(f, t)(x), color=BLUE, alpha=alpha, label=f"t = {t:g}")
    left.legend(loc="upper left")
    left.set(title="f, while noise spreads", xlabel="x", ylabel="f", ylim=(0, None))
    right.fill_between(times, rates, limit, color=ORANGE, alpha=0.2, linewidth=0)
    right.fill_between(times, rates, color=BLUE, alpha=0.3, linewidth=0)
    right.plot(times, limit, color=ORANGE)
    right.plot(times, rates, color=BLUE)
    right.annotate("e⁻²ᵗ times the first value:\narea ½ I", (0.4, 0.42), (6, 4), color=ORANGE, **OFFSET)
    right.annotate("information: area = entropy", (2.5, 0.14), color=BLUE, ha="right")
    right.set(title="Its information falls faster than e⁻²ᵗ", xlabel="time t", ylabel="nats per time")
    right.set(xlim=(0, 2.5), ylim=(0, None))
    area = np.trapezoid(rates, times)
    show(
        fig,
        alt=f"Left: a function with a peak flattens as noise spreads. Right: its information falls from "
        f"{rates[0]:.2f} and stays below that value times exp(-2t). The area under it up to time 2.5 is "
        f"{area:.3f}, the entropy {ent:.3f}, the area under the upper curve {rates[0] / 2:.3f}.",
    )


def frame_figure(
    network, images: Mapping[str, np.ndarray], label: np.ndarray, prediction: np.ndarray
) -> None:
    """One scene: its sensors, its label, and what the network says."""
    images = {name: images[name] for name in network.modalities}
    show(
        sample_figure(images, label, network.palette, network.classes, columns=3, prediction=prediction),
        alt=f"One street as {', '.join(images)} show it, its label, and the prediction of a network that has "
        "all four.",
    )


def shares(readings: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Each sensor's share of the information, one group of bars a reading."""
    fig, axis = plt.subplots(figsize=(WIDTH, 2.9))
    names = list(next(iter(readings.values())))
    for k, name in enumerate(names):
        sensor = SENSORS[name]
        heights = [100 * values[name] / sum(values.values()) for values in readings.values()]
        places = np.arange(len(readings)) + (k - (len(names) - 1) / 2) * 0.2
        axis.bar(places, heights, 0.18, color=sensor.colour, label=sensor_title(sensor))
    axis.axhline(100 / len(names), color=INK, linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(readings)), list(readings))
    axis.set(ylabel="share of the information (%)", title=title)
    axis.legend(ncols=len(names), loc="upper right")
    axis.set_ylim(0, axis.get_ylim()[1] * 1.15)
    show(
        fig,
        alt=f"Share of the information of {', '.join(names)} for these readings, each on the same image: "
        f"{'; '.join(key.replace(chr(10), ' ') for key in readings)}.",
    )


def forms() -> None:
    """The three forms against the information of one sensor, the other's being 1."""
    ratio = np.geomspace(0.05, 20, 121)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.0))
    said = []
    for form, colour in (("inverse", ORANGE), ("balance", BLUE), ("share", GREEN)):
        pairs = torch.tensor(np.stack([np.ones_like(ratio), ratio], 1), requires_grad=True)
        values = torch.stack([combine(pair, form) for pair in pairs])
        (pull,) = torch.autograd.grad(values.sum(), pairs)
        left.semilogx(ratio, values.detach().numpy(), color=colour, label=form)
        right.semilogx(ratio, -(pull[:, 1] * pairs[:, 1]).detach().numpy(), color=colour, label=form)
        low = values.detach().numpy().argmin()
        said.append(f"{form} falls to the end" if low == 120 else f"{form} is lowest at {ratio[low]:.2g}")
    left.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    right.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    right.axhline(0, color=GREY, linewidth=0.8)
    left.set(title="R", xlabel="I₂, while I₁ = 1", ylim=(-0.2, 8))
    right.set(title="Push on ln I₂: above 0, R raises I₂", xlabel="I₂, while I₁ = 1", ylim=(-4, 8))
    for axis in (left, right):
        axis.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
        axis.minorticks_off()
    left.legend()
    show(
        fig,
        alt="The three forms of R for two sensors, against the information of the second while the first "
        f"has 1: {'; '.join(said)}. The inverse form pushes the second sensor up everywhere, the others only "
        "below 1.",
    )
