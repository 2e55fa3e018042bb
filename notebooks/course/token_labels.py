"""What frozen tokens know about the classes of an image: the AUC of their correspondences, and the label of
each token. Notebook 09 calls it; all of it reads labels, so nothing here may choose a setting.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mmlib.modalities import IGNORE_INDEX


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
