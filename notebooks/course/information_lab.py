"""Figures of lesson 06 that look into two networks: information by sensor, masks, features, a filter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from matplotlib import pyplot as plt

from mmlib import world
from mmlib.figures import (
    PALE,
    class_legend,
    error_picture,
    label_picture,
    picture,
    picture_grid,
    sensor_title,
)
from mmlib.modalities import SENSORS
from mmlib.segmentation.information import fisher_gap, input_information
from mmlib.segmentation.network import Segmenter

from .charts import legend_below, show
from .gap_records import log_axis
from .record_figures import SERIES
from .world_source import physical_images


class Frames:
    """Four fresh streets by day and by night, as the networks take them."""

    def __init__(self, modalities: Mapping):
        self.names = list(modalities)
        self.frames = [
            world.render_frame("street", 1_900_000_100 + k, light)
            for k in range(4)
            for light in ("day", "night")
        ]
        self.physical = [physical_images(frame) for frame in self.frames]
        self.images = {
            n: torch.from_numpy(np.stack([modalities[n].to_network(image[n]) for image in self.physical]))
            for n in self.names
        }
        self.labels = torch.stack([torch.as_tensor(frame.label).long() for frame in self.frames])

    def information(self, network: Segmenter, sigma: float = 0.1, seed: int = 0) -> np.ndarray:
        """(sensors, frames)"""
        values, _ = input_information(network, self.images, self.labels, sigma=sigma, seed=seed)
        return values.detach().numpy()


def show_information(frames: Frames, found: Mapping[str, np.ndarray]) -> None:
    """Information of each sensor: frames as rings, means as bars, the band between the extremes."""
    fig, axes = plt.subplots(1, len(found), figsize=(8, 3.0), sharey=True)
    for axis, (title, values) in zip(axes, found.items()):
        for place, (name, value) in enumerate(zip(frames.names, values)):
            colour = SENSORS[name].colour
            axis.plot(
                place + np.linspace(-0.18, 0.18, len(value)), value, "o", color="none", mec=colour, ms=4
            )
            axis.plot([place - 0.3, place + 0.3], [value.mean()] * 2, color=colour, linewidth=4)
        means = values.mean(1)
        axis.axhspan(means.min(), means.max(), color=PALE, alpha=0.45, zorder=0)
        axis.set_xticks(range(len(frames.names)), [sensor_title(SENSORS[n]) for n in frames.names])
        axis.set(yscale="log", title=f"{title}: gap {fisher_gap(means):.1f}")
    axes[0].set_ylabel("information (no unit)")
    show(
        fig,
        "Information of four sensors in two networks on eight frames, with the mean of each and a band from "
        "the smallest mean to the largest: single frames scatter several-fold.",
    )


def show_trust(frames: Frames, networks: Mapping[str, Segmenter], found: Mapping[str, np.ndarray]) -> None:
    """The gap by the noise level, and by the number of frames that are averaged."""
    sigmas, counts, rng = (0.01, 0.1, 0.3, 1.0), (1, 2, 4, 8), np.random.default_rng(0)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.1), sharey=True)
    for number, (title, network) in enumerate(networks.items()):
        colour, marker = SERIES[2 * number], "oD"[number]
        gaps = np.array(
            [[fisher_gap(frames.information(network, s, seed).mean(1)) for seed in (1, 2)] for s in sigmas]
        )
        left.plot(sigmas, gaps.mean(1), color=colour, marker=marker, label=title)
        left.plot(sigmas, gaps, marker, color="none", mec=colour, ms=3.5)
        bands = []
        for count in counts:
            picks = rng.integers(0, len(frames.frames), (400, count))
            means = found[title][:, picks].mean(2)
            bands.append(np.quantile(means.max(0) / means.min(0), [0.05, 0.5, 0.95]))
        low, middle, high = np.transpose(bands)
        x = np.arange(4) + 0.12 * (2 * number - 1)
        right.errorbar(x, middle, [middle - low, high - middle], fmt=marker, color=colour, capsize=3)
    left.set(
        xscale="log",
        xlabel="σ of the noise",
        ylabel="Fisher gap",
        title="The gap depends on σ …\n(open: two draws of the noise)",
    )
    log_axis(left, "y")
    left.set_xticks(sigmas, [f"{s:g}" for s in sigmas])
    left.set_ylim(1, 40)
    right.set_xticks(range(4), [str(count) for count in counts])
    right.set(xlabel="frames averaged", title="… and on which frames one looks at\n(bars: 90 % of resamples)")
    legend_below(fig, left, 2)
    show(
        fig,
        "Left: Fisher gap of two networks for four noise levels; the two draws of the noise lie close "
        "together, the levels do not. Right: the gap from few frames, resampled, with 90 % intervals: from "
        "one frame it is larger and far less certain than from eight.",
    )


def show_masks(frames: Frames, networks: Mapping[str, Segmenter], which: int) -> None:
    """The paper's Figure 4: masks and errors with all sensors and with each alone."""
    label, palette, rows = frames.frames[which].label, world.PALETTES["street"], []
    for present in (frames.names, *([name] for name in frames.names)):
        one = {n: frames.images[n][which : which + 1] for n in present}
        row = {"sensor": picture(SENSORS[present[0]], frames.physical[which][present[0]])}
        for number, (title, network) in enumerate(networks.items()):
            with torch.no_grad():
                guess = network(one)[0].argmax(0).numpy()
            row[title] = label_picture(guess, palette)
            row["errors" + " " * number] = error_picture(guess, label)
        rows.append(row | {"truth": label_picture(label, palette)})
    symbols = [SENSORS[n].symbol for n in frames.names]
    fig = picture_grid(rows, ["".join(symbols), *symbols], title="One street at night, by sensors present")
    class_legend(fig, world.CLASSES["street"], palette, np.unique(label))
    show(
        fig,
        "A street at night: masks and error maps of two networks given all four sensors, the camera, depth, "
        "events and LiDAR alone, beside the truth.",
    )


def show_features(frames: Frames, networks: Mapping[str, Segmenter], which: int, stage: int = 0) -> None:
    """Features of each sensor and their mean, the first three principal directions as red, green, blue."""
    one, rows = {n: image[which : which + 1] for n, image in frames.images.items()}, []
    for network in networks.values():
        with torch.no_grad():
            features = network.features(one)[-4:][stage].double().numpy()  # (sensors, C, h, w)
        stack = np.concatenate([features, features.mean(0, keepdims=True)])
        flat = (stack - stack.mean((2, 3), keepdims=True)).transpose(0, 2, 3, 1).reshape(-1, stack.shape[1])
        directions = np.linalg.eigh(flat.T @ flat)[1][:, :-4:-1]
        directions = directions * np.sign(directions[np.abs(directions).argmax(0), range(3)])
        codes = flat @ directions
        low, high = np.quantile(codes, [0.02, 0.98], axis=0)
        colours = (255 * np.clip((codes - low) / (high - low), 0, 1)).astype(np.uint8)
        pictures = colours.reshape(len(stack), *stack.shape[2:], 3)
        titles = [*(sensor_title(SENSORS[n]) for n in frames.names), "mean of the four"]
        rows.append(dict(zip(titles, pictures)))
    names = [title.replace(", ", ",\n").replace(" at", "\nat") for title in networks]
    show(
        picture_grid(rows, names, "Features of each sensor, less their mean over the image; all fused"),
        "Features of one street at night as colours: each sensor's in a column, their mean in the last, a "
        "row for each of two networks. Equal colours in a row are equal features.",
    )


# ---- the open experiment ----


def gap_and_accuracy(frames: Frames, network: Segmenter, before: Callable = dict) -> tuple[float, float]:
    """Fisher gap at the inputs, and per cent of right pixels, of a network with a filter before it."""
    behind = lambda images: network(before(images))
    values, _ = input_information(behind, frames.images, frames.labels, sigma=0.1)
    with torch.no_grad():
        right = (behind(frames.images).argmax(1) == frames.labels).float().mean()
    return fisher_gap(values.detach().numpy().mean(1)), 100 * float(right)


def show_filter(frames: Frames, networks: Mapping[str, Segmenter], before: Callable) -> None:
    """A line for each network, from its gap and accuracy as it is to those with a filter before it."""
    fig, axis = plt.subplots(figsize=(8, 3.0))
    for number, (title, network) in enumerate(networks.items()):
        (x, y), (u, v) = gap_and_accuracy(frames, network), gap_and_accuracy(frames, network, before)
        colour, words = SERIES[2 * number], f"{title}: gap {x:.1f} → {u:.1f}, {y:.1f} → {v:.1f} % right"
        axis.plot([x, u], [y, v], color=colour, linewidth=2)
        axis.plot(x, y, "o", color="white", markeredgecolor=colour, markersize=8)
        axis.plot(u, v, "o", color=colour, markersize=8, label=words)
    axis.set(xlabel="Fisher gap", ylabel="pixels right (%)", title="As trained (ring), and filtered (dot)")
    log_axis(axis, "x")
    axis.set_xlim(min(0.95, axis.get_xlim()[0]), max(21, axis.get_xlim()[1]))
    legend_below(fig, axis, 1)
    show(fig, "Fisher gap and share of right pixels of two networks, as trained and behind the filter above.")
