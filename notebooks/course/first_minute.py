"""Figures of lesson 00: what two networks predict when sensors are lost, eight sensors, and four lights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib import pyplot as plt

from mmlib import world
from mmlib.evaluation.counts import confusion_matrix, miou
from mmlib.figures import (
    INK,
    WIDTH,
    class_legend,
    label_picture,
    picture,
    picture_grid,
    put_picture,
    sensor_title,
)
from mmlib.modalities import SENSORS
from mmlib.segmentation.network import Segmenter

from .charts import sample_figure, show
from .world_source import WorldSource, network_batch, physical_images

FIVE = ("rgb", "depth", "event", "lidar", "thermal")


def show_lost_sensors(
    networks: Mapping[str, Segmenter], source: WorldSource, scene: int, situations: Mapping[str, str]
) -> None:
    """The sensors' images and the true classes; below, a line for each network with its prediction in each
    situation.

    Args:
        situations: in words -> symbols of the sensors that are left, "DEL".
    """
    first = next(iter(networks.values()))
    physical, label = source.frame(scene, "day", "", tuple(first.modalities))
    across, columns, share = len(physical) + 1, len(situations), label.shape[0] / label.shape[1]
    tall = WIDTH * share * (1 / across + len(networks) / columns) * 0.97 + 0.22 * len(networks) + 0.85
    fig = plt.figure(figsize=(WIDTH, tall))
    fig.get_layout_engine().set(w_pad=0.015, h_pad=0.02, wspace=0, hspace=0)
    ratios = [share / across] + [share / columns + 0.02] * len(networks)
    lines = fig.add_gridspec(1 + len(networks), 1, height_ratios=ratios)
    shown = {sensor_title(SENSORS[name]): picture(SENSORS[name], image) for name, image in physical.items()}
    shown["true classes"] = label_picture(label, source.palette)
    for place, (title, image) in zip(lines[0].subgridspec(1, across), shown.items()):
        put_picture(_bare(fig, place), image, title)
    for row, (line, (name, network)) in enumerate(zip(list(lines)[1:], networks.items())):
        for place, (words, left) in zip(line.subgridspec(1, columns), situations.items()):
            predicted = predict(network, physical, left)
            counts = confusion_matrix(predicted, torch.as_tensor(label).long(), len(source.classes))
            axis = _bare(fig, place)
            image = label_picture(predicted.numpy(), source.palette)
            put_picture(axis, image, "" if row else f"{words}: {left} left")
            axis.set_xlabel(f"mIoU {100 * float(miou(counts)):.0f} %", fontsize=10, color=INK)
            if left == next(iter(situations.values())):
                axis.set_ylabel(f"trained with\n{name}", fontsize=10, fontweight="bold")
    class_legend(fig, source.classes, source.palette, np.unique(label))
    show(
        fig,
        "Four sensor images of a street and its true classes; below, the predictions of two networks with "
        "all sensors, without the camera, and with the camera alone. The network that was trained with all "
        "sensors always loses much of its map as sensors go; the other keeps more of it.",
    )


def _bare(fig, place):
    axis = fig.add_subplot(place)
    axis.set(xticks=[], yticks=[])
    return axis


@torch.no_grad()
def predict(network: Segmenter, physical: Mapping[str, np.ndarray], left: str) -> torch.Tensor:
    """Classes (H, W) from the sensors whose symbols are in ``left``."""
    names = [name for name in physical if SENSORS[name].symbol in left]
    return network(network_batch(network, physical, names))[0].argmax(0)


def show_eight_sensors(frame) -> None:
    """One street as each sensor sees it, and its label."""
    fig = sample_figure(
        physical_images(frame),
        frame.label,
        world.PALETTES["street"],
        classes=world.CLASSES["street"],
        title="One street as eight sensors see it, and its label",
        columns=3,
    )
    show(
        fig,
        "One street by day as colour, depth, event, lidar, thermal, near-infrared and polarisation images, "
        "beside its label of fourteen classes.",
    )


def show_four_lights(frames: Mapping[str, object]) -> None:
    """The same street under each condition, five of its sensors."""
    rows = []
    for frame in frames.values():
        images = physical_images(frame)
        rows.append({sensor_title(SENSORS[name]): picture(SENSORS[name], images[name]) for name in FIVE})
    show(
        picture_grid(rows, list(frames), title="Light changes some sensors and leaves others alone"),
        "The street by day, dusk, night and in fog: colour changes most, depth and lidar stay nearly the "
        "same until fog scatters them, thermal follows the warmth of the day.",
    )
