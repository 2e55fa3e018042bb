"""A tiny prepared data set that a small network can learn in seconds: bright and dark squares seen by three
sensors.
"""

from dataclasses import replace

import numpy as np
import torch

from mmlib.data.prepared import Description, Writer, collate
from mmlib.modalities import SENSORS
from mmlib.segmentation.network import Segmenter

CLASSES = ["ground", "square", "sky"]
PALETTE = [(90, 90, 90), (220, 20, 60), (70, 130, 180)]
MODALITIES = {"rgb": SENSORS["rgb"], "depth": SENSORS["depth"], "aolp": replace(SENSORS["aolp"], symbol="A")}


def sample(seed: int, size=(32, 48)):
    """Stored images and a label: a sky over ground, with one square that each sensor sees in its own way."""
    rng = np.random.default_rng(seed)
    height, width = size
    label = np.zeros(size, np.uint8)
    label[: height // 3] = 2
    top, left = rng.integers(height // 4, height // 2), rng.integers(2, width - 18)
    label[top : top + 14, left : left + 14] = 1
    label[0, 0] = 255
    level = np.choose(np.minimum(label, 2), [0.3, 0.7, 0.9])[..., None] + 0.05 * rng.standard_normal(
        (*size, 1)
    )
    rgb = np.repeat(level, 3, 2)
    depth = np.choose(np.minimum(label, 2), [10.0, 4.0, 0.0])[..., None]
    aolp = np.concatenate([np.cos(3 * level), np.sin(3 * level)], 2)
    values = {"rgb": rgb, "depth": depth, "aolp": aolp}
    return {name: MODALITIES[name].to_stored(value) for name, value in values.items()}, label


def make(root, train=12, val=5, size=(32, 48), labels=True):
    """Write it below ``root`` and return ``root``."""
    with Writer(root, Description("toy", CLASSES, PALETTE, MODALITIES)) as writer:
        for split, start, count in (("train", 0, train), ("val", 1000, val)):
            for i in range(count):
                images, label = sample(start + i, size)
                condition, case = ("day", "night")[i % 2], ("", "", "broken")[i % 3]
                writer.add(f"{split}_{i:03d}", split, images, label if labels else None, condition, case)
    return root


def untrained(data) -> Segmenter:
    """Random weights, its logits centred and stretched: untouched it would call every pixel the same, and no
    test could fail.
    """
    torch.manual_seed(0)
    network = Segmenter(data.modalities, CLASSES, PALETTE).eval()
    with torch.no_grad():
        batch = collate([data[i] for i in range(len(data))])["images"]
        network.head.classify.weight *= 30
        network.head.classify.bias -= network(batch).mean((0, 2, 3))
        assert network(batch).argmax(1).unique().tolist() == [0, 1, 2]
    return network
