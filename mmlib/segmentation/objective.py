"""The supervised term of the training loss (Eq. 8): cross-entropy over subsets of the sensors. Called by each
training step.

``full``         cross-entropy of the mean over all sensors: Eq. 8 as printed, and what most fusion networks
                 train.
``dropout``      of the mean over one random subset per step: modality dropout, as in the paper.
``all-subsets``  of all 2^M − 1 subsets at once. Fusion is linear, so after one encoder pass every subset is
                 one sum: dropout's expectation computed exactly instead of sampled. Logits are summed, as
                 evidence: two agreeing sensors may then be surer than one. Inference does not change, for the
                 argmax of a sum is that of a mean.
``singles``      of every sensor alone and of the full set: the usual per-modality cross-entropy.
``selection``    of the mean of all, and of the two sensors that agree with it best and least, in the manner
                 of MAGIC (``selected_terms``), which at inference fuses by the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import AtLeast, Between
from ..evaluation.fusion import similarity_to_mean
from ..evaluation.subsets import subset_matrix
from ..modalities import IGNORE_INDEX
from .network import Tensors


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised."""

    subsets: Literal["all-subsets", "dropout", "full", "singles", "selection"] = "all-subsets"
    """Which sensor subsets the cross-entropy is taken over; dropout is the paper's."""
    full_weight: Annotated[float, AtLeast(0)] = 4.0
    """all-subsets and singles: weight of the full set against 1 for each other subset."""
    evidence: Literal["sum", "mean"] = "sum"
    """all-subsets and singles: whether a subset's logits are added up or averaged during training."""
    subset_sample: Annotated[int, AtLeast(0)] = 0
    """all-subsets: how many subsets besides the full set to draw at each step; 0 = all 2^M − 2 of them, or
    256 with more than 10 sensors.
    """
    pixels: Annotated[float, Between(0, 1, without=(0,))] = 0.25
    """Share of the pixels, drawn anew at each step, on which the cross-entropy is computed; 1 = all of them.
    """

    def drawn(self, modalities: int) -> int:
        """Number of subsets, besides the full set, that a step draws; 0 = it takes all of them. Each sensor
        more doubles their number, so that with many a sample has to do.
        """
        sample = self.subset_sample or 256 * (modalities > 10)
        return sample if self.subsets == "all-subsets" and sample < 2**modalities - 2 else 0


def draw_subset(names: list[str], rng: np.random.Generator) -> list[str]:
    """A uniform draw from the 2^M − 1 non-empty subsets, in the order of ``names``."""
    bits = int(rng.integers(1, 2 ** len(names)))
    return [name for i, name in enumerate(names) if bits >> i & 1]


def restricted(batch: dict, names: Sequence[str]) -> dict:
    """A batch of which only the sensors ``names`` are present; where a sample has none of them, all that it
    has.
    """
    present = batch["present"]
    left = present & torch.tensor([name in names for name in batch["images"]])
    return batch | {"present": torch.where(left.any(1, keepdim=True), left, present)}


def parts(batch: dict) -> list[dict]:
    """A batch (images, label, present) divided into samples with the same sensors: the images of these, and
    label.

    A network takes each part as if there were no other sensors, so that nothing stands in the place of a
    missing image. Where all samples have the same, there is one part.
    """
    patterns, which = batch["present"].unique(dim=0, return_inverse=True)
    divided = []
    for p, pattern in enumerate(patterns):
        rows = which == p if len(patterns) > 1 else slice(None)  # which needs no copy
        images = {n: x[rows] for (n, x), there in zip(batch["images"].items(), pattern) if there}
        divided.append({"images": images, "label": batch["label"][rows]})
    return divided


def pixel_grid(
    size: tuple[int, int], share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a random sub-grid that holds about ``share`` of the pixels, without repetition.
    With 1 it holds all of them, and nothing is drawn.
    """
    if share == 1:
        return tuple(map(np.arange, size))
    share = share**0.5
    return tuple(np.sort(rng.choice(n, max(1, round(n * share)), replace=False)) for n in size)


def resample(logits: Tensor, size: tuple[int, int], rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """Bilinear upsampling of (N, K, h, w) to ``size`` (align_corners=False), computed at the given rows and
    columns only.

    Separable: two small matrix products, so neither the full-size logits nor their gradient ever exist.
    """

    def weights(length, target, places):
        centre = np.clip((places + 0.5) * (length / target) - 0.5, 0, length - 1)
        # Hat functions: 1 at the own place, 0 from the next one on.
        return torch.from_numpy(np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(length)))).to(logits)

    vertical, horizontal = map(weights, logits.shape[-2:], size, (rows, columns))
    return vertical @ (logits @ horizontal.T)


def subset_cross_entropy(
    logits: Tensors,
    label: Tensor,
    config: ObjectiveConfig,
    valid: Tensor,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Cross-entropy terms, each a scalar: per-pixel loss summed over this micro-batch, divided by ``valid``.

    Args:
        logits: name -> (B, K, h, w), only the modalities that take part.
        label: (B, H, W) int64, 255 = ignore.
        valid: number of labelled pixels the sum is divided by. Given from outside, so that micro-batches and
            processes with different numbers of labelled pixels add up to exactly the mean of the large batch.
        rng: draws the pixels (not with ``config.pixels`` = 1) and the sample of subsets.

    Returns:
        {"supervised": total} and, where several subsets are trained, {"full": cross-entropy of the full set's
        mean} for the log.
    """
    size, modalities = label.shape[-2:], len(logits)
    stacked = torch.stack([*logits.values()])  # (M, B, K, h, w), in at least float32 from here on
    stacked = stacked.to(torch.promote_types(stacked.dtype, torch.float32))
    rows, columns = pixel_grid(size, config.pixels, rng)
    label = label[:, rows[:, None], columns]
    # The draw covers every pixel equally, so this factor makes its sum an unbiased estimate of the sum over
    # all pixels; by ``valid`` it becomes a mean.
    scale = torch.tensor(size.numel() / (len(rows) * len(columns)), dtype=stacked.dtype) / valid
    stacked = resample(stacked.flatten(0, 1), size, rows, columns).unflatten(0, (modalities, -1))

    def cross_entropy(fused, label=label):  # Eq. 8: L_sup = CE(p, gt)
        return F.cross_entropy(fused, label, ignore_index=IGNORE_INDEX, reduction="sum") * scale

    full = cross_entropy(stacked.mean(0))
    if config.subsets in ("full", "dropout"):
        return {"supervised": full}
    if modalities == 1:
        total = full
    elif config.subsets == "selection":
        extremes, right, divergence = selected_terms(stacked, label)
        total = full + cross_entropy(extremes, right) + divergence * scale
    else:
        subsets, weights = weighted_subsets(modalities, config, rng)
        total = 0.0
        for weight, row in zip(weights, subsets):
            members = [stacked[m] for m in np.flatnonzero(row)]
            fused = sum(members) / (1 if config.evidence == "sum" else len(members))
            total = total + weight * cross_entropy(fused)
        total = total / sum(weights)
    return {"supervised": total, "full": full.detach()}


def selected_terms(stacked: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What MAGIC's arbitrary-modal selection trains besides the cross-entropy L_M of the whole (Zheng et al.,
    "Centering the Value of Every Modality", ECCV 2024), on predictions in the place of features.

    Sensors are ranked, image by image, by the similarity of their predictions to that of the mean. The most
    and the least similar one are fused; this fusion is trained where the whole is right (L_S). Every other
    sensor i has at each pixel a cosine c_i with it, and L_C = Σ_i c_i ln(c_i / c̄), c̄ their mean, draws these
    cosines together: for two sensors as printed, for one 0. The weights of L_S and L_C, here 1, are ours.

    Args:
        stacked: logits (M, B, K, h, w), M > 1.
        label: (B, h, w) int64, 255 = ignore.

    Returns:
        (logits of the most and least similar sensor, fused; the label where the whole is right, else 255;
        L_C, summed over labelled pixels).
    """
    ranks = similarity_to_mean(stacked.detach()).argsort(0)
    images = torch.arange(len(label), device=label.device)
    extremes = stacked[ranks[[0, -1]], images].mean(0)
    right = label.where(stacked.mean(0).argmax(1) == label, IGNORE_INDEX)
    rest = stacked[ranks[1:-1], images].softmax(2)
    cosine = F.cosine_similarity(rest, extremes.softmax(1)[None], dim=2).clamp_min(1e-9)
    divergence = cosine * (cosine / cosine.mean(0)).log()
    return extremes, right, divergence[:, label != IGNORE_INDEX].sum()


def weighted_subsets(
    count: int, config: ObjectiveConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ``subset_matrix`` that a step uses, and their weights; a drawn sample has the weight of all
    that it stands for.
    """
    rows = subset_matrix(count)
    others = np.arange(count if config.subsets == "singles" else len(rows) - 1)  # single sensors come first
    weight = 1.0
    if sample := config.drawn(count):
        weight = len(others) / sample
        others = np.sort(rng.choice(others, sample, replace=False))
    return rows[[*others, len(rows) - 1]], np.array([weight] * len(others) + [config.full_weight])
