"""A small place to try label-free segmentation in: 64 rooms and their frozen tokens, and trainings of a few
seconds. Notebooks 08 to 10 share it, and the tokens, which are kept on disk. And, for evaluation only, what
frozen tokens know about the classes of an image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mmlib import world
from mmlib.figures import picture, use_style
from mmlib.loop import read_history
from mmlib.modalities import IGNORE_INDEX, SENSORS
from mmlib.runtime import limit_threads
from mmlib.unsupervised.clustering import load_clustering
from mmlib.unsupervised.correspondence import CorrespondenceConfig
from mmlib.unsupervised.extraction import extract_tokens
from mmlib.unsupervised.inference import EvaluationConfig
from mmlib.unsupervised.methods import ClusterConfig, TokenConfig, prepare, resolve_method
from mmlib.unsupervised.networks import ClusterNetConfig
from mmlib.unsupervised.pictures import as_picture, resize_picture
from mmlib.unsupervised.tokens import TokenChain, Tokens
from mmlib.unsupervised.train import cluster

MOST_DIRECTIONS = 64
SENSORS_SHOWN = ("rgb", "depth", "thermal")


class TokenLab:
    """64 training and 32 validation rooms of the sensor world, and the tokens of a frozen backbone.

    Args:
        backbone: any network of timm that gives feature maps.
        weights: as ``mmlib cluster --backbone-weights``: empty = those of an installed package, a file,
            "hub", or "random".

    ``data`` and ``val`` are the two splits, ``names`` the sensors, ``grid`` the tokens of a picture.

    Raises:
        SystemExit: there are no such weights; its message names the ways to get some.
    """

    def __init__(self, backbone: str = "tf_efficientnet_lite0", weights: str = ""):
        use_style()
        limit_threads()
        self.names, self.folder = list(SENSORS_SHOWN), Path(tempfile.mkdtemp())
        room = world.ensure("room", 64, 32, 0, modalities=SENSORS_SHOWN, progress=False)
        self.base = ClusterConfig(
            data=str(room),
            out=str(self.folder / "base"),
            tokens=TokenConfig(backbone=backbone, backbone_weights=weights, size=(144, 192)),
            network=ClusterNetConfig(dim=16),
            loss=CorrespondenceConfig(points=48, negatives=2),
            evaluation=EvaluationConfig(restarts=3, repeats=1, kmeans_points=3000, maps=3),
            steps=40,
            batch_size=6,
            save_every=1000,
            progress=False,
        )
        try:
            self.prepared = prepare(self.base)[1]
        except ValueError as error:  # such as weights that are not installed
            raise SystemExit(error) from None
        self.data, self.val, self.backbone = (
            self.prepared.data,
            self.prepared.scored,
            self.prepared.backbone,
        )
        self.grid, self.classes = self.prepared.tokens.grid, self.val.description.classes
        self.palette = self.val.description.palette
        self._configs, self.reports, self._chains, self._whitened = {}, {}, {}, []

    def __repr__(self) -> str:
        h, w = self.grid
        return (
            f"{len(self.data)} training and {len(self.val)} validation rooms: {', '.join(self.names)}\n"
            f"a picture is {h} x {w} tokens of {self.prepared.tokens.channels} numbers\n"
            f"backbone {self.backbone.name}, weights: {self.backbone.source['weights']}"
        )

    # ---- tokens ----

    def _extracted(self, data, train: bool = True) -> Tokens:
        return extract_tokens(data, self.backbone, self.names, self.base.tokens, train=train, progress=False)

    def stages(self) -> dict[str, TokenChain]:
        """What the library does to tokens before anything reads them, step by step: raw, standardised,
        smoothed, mean subtracted. Statistics are those of the training images, for every split.
        """
        if not self._chains:
            chain = TokenChain().fit(self._extracted(self.data))
            self._chains = {"raw": TokenChain(), "standardised": chain}
            self._chains["smoothed"] = replace(chain, smooth=True)
            self._chains["mean subtracted"] = replace(chain, smooth=True, centre=1.0)
        return self._chains

    def tokens(self, entries, stage: str = "mean subtracted", split: str = "train") -> dict:
        """Sensor -> tokens (B, C, h, w) of some images of a split, after a stage of ``stages``."""
        data = self.data if split == "train" else self.val
        found = replace(self._extracted(data, split == "train"), chain=self.stages()[stage])
        return found.batch(entries, self.names)

    def encode(self, frames: list[dict[str, np.ndarray]], stage: str = "mean subtracted", size=None) -> dict:
        """Sensor -> tokens (B, C, h, w) of some frames' physical images, after a stage of ``stages``.

        Args:
            size: height and width of the pictures that the backbone sees, multiples of its patch; None = the
                lab's.
        """
        raw = {}
        for name in self.names:
            pictures = [as_picture(SENSORS[name], torch.as_tensor(frame[name])) for frame in frames]
            pictures = resize_picture(torch.stack(pictures), size or self.base.tokens.size)
            raw[name] = self.backbone.extract(pictures).numpy()
        return Tokens(raw, chain=self.stages()[stage]).batch(range(len(frames)))

    def labels(self) -> torch.Tensor:
        """(n, H, W) class ids of the validation rooms. For evaluation only."""
        labels = [self.val.stored(i)[1].astype(np.int64) for i in range(len(self.val))]
        return torch.from_numpy(np.stack(labels))

    def patch_labels(self) -> torch.Tensor:
        """(n, h · w) most frequent class of each token's patch, 255 = unlabelled. For evaluation only."""
        return majority_label(self.labels(), self.grid, len(self.classes)).flatten(1)

    def picture(self, name: str, index: int, split: str = "val") -> np.ndarray:
        """One sensor's picture (H, W, 3) of an image."""
        data = self.val if split == "val" else self.data
        return picture(SENSORS[name], data.physical(index)[0][name])

    # ---- trainings ----

    def run(self, name: str, sensors=("rgb",), prepared=None, loss=None, network=None, **options) -> dict:
        """A training of a few seconds on tokens that are there; returns its report.

        Args:
            prepared: other tokens than the lab's (``whitened``).
            loss, network: settings of ``CorrespondenceConfig`` and ``ClusterNetConfig`` that differ, by name.
            options: settings of ``ClusterConfig``, such as method, steps, lr, lambda_x.
        """
        sensors = tuple(sensors)
        options = {"method": "stego" if len(sensors) == 1 else "unim2"} | options
        options["loss"] = replace(self.base.loss, **(loss or {}))
        options["network"] = replace(self.base.network, **(network or {}))
        config = replace(self.base, out=str(self.folder / name), modalities=sensors, **options)
        if name in self._configs and self._configs[name] != config:  # the cell was changed and run again
            for file in Path(config.out).rglob("*"):
                file.is_file() and file.unlink()
        self._configs[name] = config
        plan = resolve_method(config, list(sensors))
        self.reports[name] = cluster(config, (plan, prepared or self.prepared))
        return self.reports[name]

    def whitened(self, channels: int):
        """Tokens along the leading directions of each sensor, all of the same variance, for ``run``."""
        if not self._whitened:
            raw = self._extracted(self.data), self._extracted(self.val, False)
            chain = self.stages()["mean subtracted"].whiten(raw[0], MOST_DIRECTIONS)
            self._whitened = [replace(tokens, chain=chain).in_memory() for tokens in raw]
        leading = [
            replace(tokens, arrays={name: a[:, :channels] for name, a in tokens.arrays.items()})
            for tokens in self._whitened
        ]
        return replace(self.prepared, tokens=leading[0], scored_tokens=leading[1])

    def miou(self, name: str) -> float:
        """Mean IoU on the validation rooms, in per cent, by labels."""
        return self.reports[name]["scores"]["miou"]["all"]

    def history(self, name: str) -> list[dict]:
        """The lines that a run has logged: step, loss and its terms, effective rank, …"""
        return [line for line in read_history(self.folder / name / "history.jsonl")[0] if "loss" in line]

    def label_map(self, name: str, index: int) -> np.ndarray:
        """Class ids that a run gave to one of the first validation images."""
        file = self.folder / name / "maps" / f"{self.val.rows[index]['id']}.png"
        return np.array(Image.open(file))

    def clustering(self, name: str):
        """Network, centroids and names of a finished run."""
        return load_clustering(self.folder / name / "clustering.safetensors")


# ---- with labels: nothing here may choose a setting ----


def auc(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive scores higher than a negative, ties counted half; NaN where either kind is
    absent.
    """
    positive = positive.flatten().bool().cpu().numpy()
    if positive.all() or not positive.any():
        return float("nan")
    return float(roc_auc_score(positive, scores.flatten().cpu().numpy()))


def correspondence_auc(
    correspondence: Mapping[str, Tensor], first: Tensor, second: Tensor
) -> dict[str, float]:
    """How well frozen features know the classes: AUC of F (B, P, Q) for token pairs of the same class against
    pairs of different ones.

    Uses labels, so for evaluation only. first (B, P) and second (B, Q): class of each token, 255 = left out.
    Use pairs of different images: inside one image, nearness alone makes a good score. 0.5 = chance, 1 =
    every pair of one class above all others.
    """
    valid = (first != IGNORE_INDEX)[:, :, None] & (second != IGNORE_INDEX)[:, None, :]
    same = first[:, :, None] == second[:, None, :]
    return {name: auc(values[valid], same[valid]) for name, values in correspondence.items()}


def majority_label(label: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """(B, H, W) -> (B, h, w): most frequent id of each token's cell. 255 counts as an id; the lowest id wins
    a tie, 255 never.
    """
    if label.shape[-2] < grid[0] or label.shape[-1] < grid[1]:
        raise ValueError(
            f"label {tuple(label.shape)} is smaller than the grid {grid}; expected one pixel or more in each "
            "cell"
        )
    wrong = label[((label < 0) | (label >= classes)) & (label != IGNORE_INDEX)]
    if wrong.numel():
        raise ValueError(f"label has id {int(wrong[0])}; expected 0 to {classes - 1} (255 = ignore)")
    ids = torch.where(label == IGNORE_INDEX, classes, label.long())
    share = F.adaptive_avg_pool2d(F.one_hot(ids, classes + 1).permute(0, 3, 1, 2).double(), grid)
    majority = share.argmax(1)
    return torch.where(majority == classes, IGNORE_INDEX, majority)
