"""Figures and laboratory of lesson 07: ways to lose a sensor, failures that nobody reports, fusion rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from results.titles import FAILURES

from mmlib import world
from mmlib.data.missing import FAULTS, SEVERITIES, faulty, remove
from mmlib.data.prepared import PreparedDataset
from mmlib.evaluation.counts import confusion_matrix, miou
from mmlib.evaluation.statistics import Estimate, paired_difference
from mmlib.evaluation.subsets import largest
from mmlib.figures import INK, error_picture, label_picture, picture, picture_grid
from mmlib.segmentation.network import Segmenter

from .charts import BLUE, GREY, OFFSET, legend_below, show, vertical_grid
from .world_source import WorldSource, network_batch

STATES = dict(zip(FAILURES, ("none", "one, mild", "one, gross", "two, mild", "two, gross")))
# Rule -> (fill, ink of the number in it)
RULE_COLOURS = {
    "mean": ("#BDBDBD", "black"),
    "agreement": ("#333333", "white"),
    "selection": ("#6A8CAF", "black"),
    "entropy": ("#858585", "black"),
}


def tensors(physical: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(image) for name, image in physical.items()}


@torch.no_grad()
def sensor_logits(network: Segmenter, physical: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Physical images name -> (C, H, W), to each sensor's own logits, name -> (1, K, h, w)."""
    return network.modality_logits(network_batch(network, physical))


# ---- figures ----


def show_ways_to_lose(
    networks: Mapping[str, Segmenter], source: WorldSource, physical: Mapping, label: np.ndarray
) -> None:
    """The camera intact, dropped, black and noisy: what each network predicts."""
    first = next(iter(networks.values()))
    modality, shape = first.modalities["rgb"], (*label.shape, 3)
    images = tensors(physical)
    delivered = {
        "intact": picture(modality, images["rgb"]),
        "drop": np.full(shape, 235, np.uint8),
        "black": np.zeros(shape, np.uint8),
        "noise": np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8),
    }
    rows = []
    for protocol, image in delivered.items():
        row = {"R rgb": image}
        for title, network in networks.items():
            batch = network_batch(network, images)
            if protocol != "intact":
                batch = remove(batch, ["rgb"], protocol, network.modalities)
            with torch.no_grad():
                row[title] = label_picture(network(batch).argmax(1)[0], source.palette)
        rows.append(row | {"truth": label_picture(label, source.palette)})
    show(
        picture_grid(rows, list(delivered), "No camera, a black one, a noisy one"),
        "One street with its camera intact, dropped, black and noisy: in each row the predictions of two "
        "networks beside the truth. Large shapes stay; road lines, poles and signs fade first.",
    )


def show_faults(source: WorldSource, network: Segmenter, physical: Mapping, elsewhere: Mapping) -> None:
    """Six faults of the camera and of the LiDAR, mild and gross."""
    rows = []
    for name in ("rgb", "lidar"):
        modality = network.modalities[name]  # with the statistics of its training images
        image, other = (torch.as_tensor(frame[name]) for frame in (physical, elsewhere))
        for severity in SEVERITIES:
            row = {"sound": picture(modality, image)}
            for fault in FAULTS:
                row[fault] = picture(modality, faulty(image, modality, fault, severity, other))
            rows.append(row)
    names = [f"{symbol} {severity}" for symbol in "RL" for severity in SEVERITIES]
    show(
        picture_grid(rows, names, "Six ways to fail without saying so"),
        "A camera image and a LiDAR image, sound and with six faults, mild and gross: dark, noisy, shifted "
        "to the right, blurred, blank and showing another scene; mild blank and mild other touch the lower "
        "half only.",
    )


def show_a_liar(
    network: Segmenter, source: WorldSource, logits: Mapping, confused: Mapping, label, fused
) -> None:
    """Camera, a depth image of another street, the truth, and the wrong pixels of two fusions.

    Args:
        logits: of each sensor; ``fused``: name of a rule -> fused logits (1, K, h, w).
    """
    row = {
        "R rgb": picture(network.modalities["rgb"], confused["rgb"]),
        "D depth": picture(network.modalities["depth"], confused["depth"]),
        "truth": label_picture(label, source.palette),
    }
    for rule, values in fused.items():
        large = F.interpolate(values, label.shape, mode="bilinear", align_corners=False)
        row[f"wrong with {rule}"] = error_picture(large[0].argmax(0), label)
    show(
        picture_grid([row], title="Depth shows another street: the mean believes it, agreement does not"),
        "A street camera image, a depth image of another street, the true classes, and two maps of wrong "
        "pixels: the mean of all sensors is wrong in large patches, where the other street has other things; "
        "agreement is wrong along edges and in few small objects.",
    )


# ---- the record of failures ----


class Failures:
    """``results/failures.json``: mIoU of fusion rules while sensors fail unannounced, by way of training."""

    def __init__(self, path: str | Path = "results/failures.json"):
        self.groups = json.loads(Path(path).read_text(encoding="utf-8"))["groups"]

    def per_seed(self, training: str, rule: str, kind: str, sensors: str) -> list[float]:
        """mIoU with the sensors of these symbols broken in this kind, "dark gross"; "removed": left out."""
        rule = "oracle" if kind == "removed" else rule
        return [run["miou"][rule][kind][sensors] for run in self.groups[training]["failures"]]

    def summary(self, training: str, rule: str, state: str) -> list[float]:
        """mIoU of each seed in a state of ``STATES``, the mean over faults and broken sensors."""
        return [run["summary"][rule][state] for run in self.groups[training]["failures"]]

    def gain(self, training: str, rule: str, state: str) -> Estimate:
        """``rule`` minus the mean, paired by seed."""
        return paired_difference(*(self.summary(training, r, state) for r in (rule, "mean")))


def show_record(record: Failures, ways: Mapping[str, str], rules: Sequence[str]) -> None:
    """Bars of each rule by the number of broken sensors, a panel a way of training; dotted: the oracle."""
    fig, axes = plt.subplots(len(ways), 1, figsize=(8, 2.1 * len(ways) + 0.6), sharex=True, sharey=True)
    wide = 0.84 / len(rules)
    for axis, (training, title) in zip(axes, ways.items()):
        for place, state in enumerate(STATES):
            for r, rule in enumerate(rules):
                fill, ink = RULE_COLOURS[rule]
                x = place + wide * (r - (len(rules) - 1) / 2)
                value = np.mean(record.summary(training, rule, state))
                axis.bar(x, value, wide * 0.94, color=fill, label=rule if place == 0 else None)
                axis.text(x, 3, f"{value:.0f}", ha="center", fontsize=8.5, color=ink)
            oracle = np.mean(record.summary(training, "oracle", state))
            name = "sound sensors alone (oracle)" if place == 0 else None
            style = {"color": INK, "linestyle": ":", "linewidth": 1.6}
            axis.plot([place - 0.45, place + 0.45], [oracle] * 2, label=name, **style)
        axis.set_title(f"trained with {title}", fontweight="normal")
        axis.set(ylabel="mIoU (%)", ylim=(0, 78))
    axes[-1].set_xticks(range(len(STATES)), list(STATES.values()))
    axes[-1].set_xlabel("broken sensors, of four")
    legend_below(fig, axes[0], len(rules) + 1)
    said = "; ".join(
        f"{title}, one sensor grossly broken: "
        + ", ".join(f"{rule} {np.mean(record.summary(training, rule, 'single gross')):.1f}" for rule in rules)
        for training, title in ways.items()
    )
    show(
        fig,
        f"Mean IoU of each fusion rule with no, one and two sensors broken, trained in three ways. {said}.",
    )


# ---- the reader's own failure ----


def streets(network: Segmenter) -> PreparedDataset:
    """The validation streets, normalised as in training."""
    data = PreparedDataset(world.ensure("street", progress=False), "val", tuple(network.modalities))
    data.modalities = network.modalities
    return data


def survival(
    networks: Mapping[str, Segmenter], failure: Callable, rules: Mapping[str, Callable], frames: int = 8
) -> dict[str, dict[str, tuple[float, float]]]:
    """mIoU in per cent of each fusion rule on validation streets, sound and under a failure that nobody
    reports: network -> rule -> (sound, broken).

    Args:
        failure: (images, others) -> images; physical images name -> (C, H, W) of a scene and of another one.
        rules: name -> function of the sensors' logits, name -> (1, K, h, w), that gives fused logits.
    """
    result = {}
    for title, network in networks.items():
        data = streets(network)
        counts = {(rule, broken): 0 for rule in rules for broken in (False, True)}
        for index in np.linspace(0, len(data) - 1, frames).round().astype(int):
            images, label = data.physical(int(index))
            others, _ = data.physical((int(index) + len(data) // 2) % len(data))
            sound = sensor_logits(network, images)
            delivered = failure({n: i.clone() for n, i in images.items()}, others)
            changed = {n: i for n, i in delivered.items() if n not in images or not torch.equal(i, images[n])}
            kept = {name: sound[name] for name in delivered if name not in changed}
            new = sensor_logits(network, changed) if changed else {}
            broken = {name: kept[name] if name in kept else new[name] for name in delivered}
            for (rule, fails), _ in counts.items():
                fused = rules[rule](broken if fails else sound)
                guess = largest(fused, label.shape, title)[2]
                counts[rule, fails] = counts[rule, fails] + confusion_matrix(
                    guess, label, len(network.classes)
                )
        score = {key: 100 * float(miou(matrix)) for key, matrix in counts.items()}
        result[title] = {rule: (score[rule, False], score[rule, True]) for rule in rules}
    return result


def show_survival(scores: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
    """An arrow for each rule, from its score with sound sensors to that under the failure."""
    fig, axes = plt.subplots(
        1, len(scores), figsize=(8, 0.42 * len(next(iter(scores.values()))) + 1.3), sharey=True
    )
    for axis, (title, rules) in zip(np.atleast_1d(axes), scores.items()):
        best = max(rules, key=lambda rule: rules[rule][1])
        for place, (rule, (sound, broken)) in enumerate(rules.items()):
            colour = BLUE if rule == best else GREY
            axis.plot([sound, broken], [place, place], color=colour, linewidth=2)
            axis.plot(sound, place, "o", color="white", markeredgecolor=colour, markersize=7)
            axis.plot(broken, place, "o", color=colour, markersize=8)
            axis.annotate(f"{broken:.0f}", (broken, place), (0, 7), ha="center", fontsize=9, **OFFSET)
        axis.set_yticks(range(len(rules)), list(rules))
        axis.set(xlabel="mIoU (%)", ylim=(len(rules) - 0.5, -0.7))
        axis.set_title(title, fontweight="normal")
        vertical_grid(axis)
    fig.suptitle(
        "From sound sensors (ring) to your failure (dot); blue: what survives best", x=0.01, ha="left"
    )
    show(
        fig,
        "For each network and fusion rule, mIoU with sound sensors and under the failure of the cell above.",
    )
