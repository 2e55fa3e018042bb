"""Clustering runs of a second: settings, labels changed in a copy of the data, data sets of given frames,
comparison to the last bit.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
import toy
from PIL import Image
from safetensors.torch import load_file

from mmlib.data.prepared import Description, Writer
from mmlib.loop import read_history
from mmlib.unsupervised.correspondence import CorrespondenceConfig
from mmlib.unsupervised.inference import EvaluationConfig
from mmlib.unsupervised.methods import ClusterConfig, TokenConfig
from mmlib.unsupervised.networks import ClusterNetConfig

SENSORS = ["rgb", "depth", "aolp"]
SMALL = CorrespondenceConfig(points=12, negatives=2)
# A network of timm with random weights: a grid of 4 x 6 tokens takes milliseconds.
TINY = TokenConfig("test_efficientnet", "random", size=(64, 96))
QUICK = EvaluationConfig(restarts=2, repeats=2)


def configured(data, out="unused", method="unim2", **changes) -> ClusterConfig:
    settings = dict(
        tokens=TINY,
        network=ClusterNetConfig(dim=8),
        loss=SMALL,
        steps=4,
        batch_size=4,
        neighbours=3,
        evaluation=QUICK,
        device="cpu",
        progress=False,
    )
    return ClusterConfig(str(data), str(out), method, **(settings | changes))


def same(a: Path, b: Path, file="clustering.safetensors", part="") -> bool:
    """Whether the tensors of a file whose names begin with ``part`` are equal to the last bit."""
    one, two = ({k: v for k, v in load_file(run / file).items() if k.startswith(part)} for run in (a, b))
    return (
        one.keys() == two.keys() and len(one) > 0 and all(torch.equal(one[name], two[name]) for name in one)
    )


def lines(out: Path) -> list[dict]:
    return [
        {k: v for k, v in line.items() if k != "seconds"}
        for part in read_history(out / "history.jsonl")
        for line in part
    ]


def relabelled(data: str, root: Path, change, split="") -> str:
    """A copy of the data set with every label (H, W) passed through ``change``."""
    shutil.copytree(data, root)
    for file in sorted((root / "label").glob(f"{split}*.png")):
        Image.fromarray(change(np.array(Image.open(file)))).save(file)
    return str(root)


def written(root, frames, classes=toy.CLASSES, modalities=("rgb", "depth")) -> str:
    """A data set of (split, {sensor: stored}, label) frames."""
    palette = [(10 * k, 20, 30) for k in range(len(classes))]
    with Writer(
        root, Description("own", list(classes), palette, {n: toy.MODALITIES[n] for n in modalities})
    ) as writer:
        for i, (split, images, label) in enumerate(frames):
            writer.add(f"f{i:02d}", split, {n: images[n] for n in modalities}, label)
    return str(root)
