"""Confusion matrices as exact integers, and the ratios that are read from them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..modalities import IGNORE_INDEX


def confusion_matrix(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """Count pixels: entry [t, p] = pixels of true class t predicted as p.

    Args:
        prediction, label: integer tensors of one shape; label 255 is not counted.
        classes: number of classes K.

    Returns:
        (K, K) int64 on the tensors' device. Counts add up over images: sum them, then take ratios once.

    Raises:
        ValueError: shapes differ, or an id lies outside 0..K-1 (a silent wrong number otherwise).
    """
    if prediction.shape != label.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape"
        )
    valid = label != IGNORE_INDEX
    truth, guess = label[valid].long(), prediction[valid].long()
    for name, values in (("label", truth), ("prediction", guess)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes:
            raise ValueError(
                f"{name} has ids {int(values.min())} to {int(values.max())}; expected 0 to {classes - 1} (label 255 = ignore)"
            )
    return torch.bincount(truth * classes + guess, minlength=classes**2).reshape(classes, classes)


def iou(confusion) -> np.ndarray:
    """(…, K, K) counts -> (…, K) intersection over union in [0, 1].

    NaN where the class has no true pixel: which classes a mean runs over is then decided by the data, never
    by the prediction, so the scores of two subsets can be compared. (A false alarm still costs the class it
    covers.)
    """
    counts = np.asarray(confusion, dtype=np.float64)
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    true, predicted = counts.sum(-1), counts.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(true > 0, hit / (true + predicted - hit), np.nan)


def miou(confusion) -> np.ndarray:
    """(…, K, K) counts -> (…) mean IoU over the classes that have true pixels; NaN where there are none."""
    values = iou(confusion)
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(present, values, 0).sum(-1) / np.where(present.any(-1), present.sum(-1), np.nan)


def accuracy(confusion) -> np.ndarray:
    """(…, K, K) counts -> (…) share of labelled pixels that are right; NaN where there are none."""
    counts = np.asarray(confusion, dtype=np.float64)
    total = counts.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, np.diagonal(counts, axis1=-2, axis2=-1).sum(-1) / total, np.nan)
