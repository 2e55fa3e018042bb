"""Figures of lesson 11: misread images beside right ones, points on an image, a drive, windows, protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image

from mmlib import world
from mmlib.data.missing import PROTOCOLS
from mmlib.data.prepared import PreparedDataset
from mmlib.evaluation.counts import confusion_matrix, miou
from mmlib.evaluation.subsets import upsampled
from mmlib.figures import DARKER, INK, class_legend, label_picture, picture, picture_grid
from mmlib.modalities import IGNORE_INDEX, SENSORS

from .charts import BLUE, OFFSET, PINK, SKY, enlarged, show
from .world_source import network_batch, physical_images

PALETTE = world.PALETTES["street"]


def ranges(metres: np.ndarray) -> np.ndarray:
    return picture(SENSORS["depth"], np.maximum(metres, 0)[None].astype(np.float32))


def angles(degrees: np.ndarray) -> np.ndarray:
    doubled = np.radians(2 * degrees)
    return picture(SENSORS["aolp"], np.stack([np.cos(doubled), np.sin(doubled)]).astype(np.float32))


def events(counts: np.ndarray) -> np.ndarray:
    return picture(SENSORS["event"], counts.transpose(2, 0, 1).astype(np.float32))


def labels(label: np.ndarray) -> np.ndarray:
    """Classes in their colours; void is white, because buildings are as dark as its usual grey."""
    colours = label_picture(label, PALETTE)
    colours[label == IGNORE_INDEX] = 255
    return colours


TRAPS = {
    "four images": "Four ways to misread an image, each beside the right reading and the difference: colours "
    "change along edges of the thermal image, ranges turn into steps, the street is mirrored, and angles of "
    "polarisation near 0 and 180 degrees average to something across them.",
    "zeros, labels, time": "Four more misreadings: a depth image without holes, with surfaces in mid-air; a "
    "label in which bonnet and far houses are road instead of void; a small label whose edges have classes of their own; and "
    "an event image with hardly an event in it.",
}


def show_traps(traps: Mapping[str, tuple], which: str) -> None:
    """Four of the traps, a key of ``TRAPS``.

    traps: name -> (what the obvious line gives, what is right, error from 0 to 1 a pixel, error in words).
    """
    height = max(trap[0].shape[0] for trap in traps.values())

    def inked(error):
        share = np.clip(error, 0, 1)[..., None]
        return np.uint8(255 * (1 - share) + share * np.array(DARKER))

    rows = [{name: enlarged(trap[k], height) for name, trap in traps.items()} for k in (0, 1)]
    rows.append({name: enlarged(inked(trap[2]), height) for name, trap in traps.items()})
    fig = picture_grid(
        rows, ["the obvious line", "right", "difference"], f"Read without an error, and wrong: {which}"
    )
    for axis, trap in zip(fig.axes[-len(traps) :], traps.values()):
        axis.set_xlabel(trap[3], fontsize=9, labelpad=3)
    show(fig, TRAPS[which])


def show_projections(ways: Mapping[str, np.ndarray], view, truth: np.ndarray) -> None:
    """Points on the image in several ways, and which of their pixels are wrong by more than a tenth."""
    seen = np.where(view.depth < 80, view.depth, 0)
    pictures, verdicts = {"camera": view.images["rgb"]}, {"camera": ranges(seen)}
    words = ["distance, seen by the camera"]
    for way, image in ways.items():
        hit = image > 0
        off = hit & (np.abs(image - truth) > 0.1 * truth + 0.5)
        pictures[way], verdicts[way] = ranges(image), np.full((*truth.shape, 3), 255, np.uint8)
        verdicts[way][hit], verdicts[way][off] = 205, DARKER
        words.append(f"wrong: {100 * off.sum() / hit.sum():.0f} % of its pixels")
    fig = picture_grid([pictures, verdicts], title="What a point hides, and what hides it", width=9)
    for axis, text in zip(fig.axes[len(pictures) :], words):
        axis.set_xlabel(text, fontsize=9, labelpad=3)
    show(
        fig,
        alt="Points projected in three ways. Without a test for front and back the road behind the car "
        "fills the sky; where the last point wins, the street shines through bus, trees and people; "
        "where the nearest wins, wrong pixels are left at edges only.",
    )


def show_drive(root, places: Sequence[tuple[str, int]]) -> None:
    """Samples of a prepared data set: every sensor and the label."""
    rows, names = [], []
    for split, i in places:
        data = PreparedDataset(root, split)
        physical, label = data.physical(i)
        row = {f"{m.symbol} {n}": picture(m, physical[n]) for n, m in data.modalities.items()}
        rows.append(row | {"label": label_picture(label, data.description.palette)})
        names.append(f"{split}, {data.rows[i]['condition']}")
    fig = picture_grid(rows, names, "The drive, as every command will read it", width=6.5)
    about = data.description
    class_legend(fig, about.classes, about.palette, [*range(len(about.classes)), 255])
    show(
        fig,
        alt="Samples of the prepared drive by day and by night: colour, temperature and a label of five "
        "classes, one of them annotated in its right half only.",
    )


def show_scores(scores: Mapping[str, Mapping[str, float]], title: str, alt: str) -> None:
    """Run -> subset -> mIoU in %, as groups of bars."""
    fig, axis = plt.subplots(figsize=(7, 2.8))
    width = 0.8 / len(scores)
    for k, (run, miou_of) in enumerate(scores.items()):
        spots = np.arange(len(miou_of)) + width * (k - (len(scores) - 1) / 2)
        bars = axis.bar(spots, miou_of.values(), 0.92 * width, label=run)
        axis.bar_label(bars, fmt="%.0f", fontsize=9)
    axis.set_xticks(range(len(miou_of)), miou_of)
    axis.set(ylabel="mIoU (%), test", ylim=(0, 100))
    axis.grid(False)
    axis.set_title(title)
    if len(scores) > 1:
        axis.legend(loc="upper right", ncols=2)
    show(fig, alt)


def show_predictions(folder: Path, frame, truth: np.ndarray, about) -> None:
    """What `predict` wrote for the samples "night" and "covered" of one frame."""
    read = lambda kind, sample: np.array(Image.open(folder / kind / f"{sample}.png"))
    heat = picture(SENSORS["thermal"], physical_images(frame)["thermal"])
    rows = {}
    for sample, colour in (
        ("night", frame.images["rgb"]),
        ("covered", np.full_like(frame.images["rgb"], 217)),
    ):
        rows[sample] = {
            "R rgb": colour,
            "T thermal": heat,
            "mask": label_picture(read("masks", sample), about.palette),
            "overlay": read("overlays", sample),
            "confidence": np.repeat(np.uint8(read("confidence", sample) / 257)[..., None], 3, 2),
            "truth": label_picture(truth, about.palette),
        }
    title = "One sensor less: another mask, and another confidence"
    fig = picture_grid(list(rows.values()), list(rows), title, width=10)
    class_legend(fig, about.classes, about.palette)
    show(
        fig,
        alt="A street at night predicted from camera and thermal image, and from the thermal image alone: "
        "mask, overlay and confidence (white is sure) beside the truth.",
    )


def show_ways(ways: Mapping[str, Callable], network, seeds: Sequence[int], alt: str) -> None:
    """Predictions of scenes of 192 × 256 by several ways of running one network, scored on all of them."""
    sensors, counts, row = tuple(network.modalities), dict.fromkeys(ways, 0), {}
    for seed in seeds:
        frame = world.render_frame("street", seed, "day", size=(192, 256), modalities=sensors)
        physical = physical_images(frame)
        images = network_batch(network, physical)
        row.setdefault("truth", labels(frame.label))
        with torch.no_grad():
            for way, encode in ways.items():
                fused = torch.stack(list(encode(images).values())).mean(0)
                guess = upsampled(fused, (192, 256)).argmax(1)[0]
                counts[way] = counts[way] + confusion_matrix(guess, torch.tensor(frame.label), len(PALETTE))
                row.setdefault(way, label_picture(guess, PALETTE))
    fig = picture_grid([row], title="Windows do not teach a network a scale that it has not seen", width=9)
    for axis, way in zip(fig.axes[1:], ways):
        words = f"mIoU {100 * float(miou(counts[way])):.0f} %, {len(seeds)} scenes"
        axis.set_xlabel(words, fontsize=9, labelpad=3)
    show(fig, alt)


def show_protocols(protocols: Mapping) -> None:
    """One network by what "missing" means: protocol -> SubsetScores."""
    shades = dict(zip(PROTOCOLS, (BLUE, SKY, INK, PINK)))
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3), width_ratios=[1.25, 1], sharey=True)
    for k, (protocol, scores) in enumerate(protocols.items()):
        values = [scores.summary()["mean"], scores.summary()["min"], scores.miou()["DEL"]]
        bars = left.bar(np.arange(3) + 0.2 * (k - 1.5), values, 0.18, color=shades[protocol], label=protocol)
        left.bar_label(bars, fmt="%.0f", fontsize=8.5)
        grid = np.linspace(0, 0.9, 19)
        line = [100 * float(miou(scores.failing(p))) for p in grid]
        right.plot(grid, line, color=shades[protocol])
        if protocol in ("drop", "zero", "noise"):
            words = "black, noise" if protocol == "noise" else protocol
            place = OFFSET | {"xytext": (4, -5 if protocol == "noise" else 0)}
            look = {"color": INK, "fontsize": 9, "va": "center", "annotation_clip": False}
            right.annotate(words, (grid[-1], line[-1]), **place, **look)
    full = protocols["drop"].summary()["full"]
    left.axhline(full, color=INK, linewidth=1, linestyle="--")
    place = OFFSET | {"ha": "right", "fontsize": 9}
    left.annotate("all four sensors", (2.45, full), (0, 3), **place)
    left.set_xticks(range(3), ["mean of 15 subsets", "worst subset", "no camera (DEL)"])
    left.set(ylabel="mIoU (%), val", ylim=(0, 82), title="The protocol decides what is scored")
    left.legend(loc="upper left", ncols=4, fontsize=8.5, columnspacing=1, handlelength=1)
    right.set(xlabel="probability p that a sensor fails", title="Random failures: the gap grows with p")
    show(
        fig,
        alt="One network scored by four protocols. Left: mean over subsets, worst subset, no camera: drop "
        "scores highest, black and noise lowest. Right: mIoU against the probability that a sensor "
        "fails: the four curves start together and part quickly.",
    )
