"""Integer counts of pixels first, ratios last: confusion matrices, names for clusters, IoU and accuracy.

Counts of images add up, so a whole split is one matrix, and every score is one ratio read from it. Part A
counts predicted classes, part B counts clusters, which get the names of classes here.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..modalities import IGNORE_INDEX

UNMATCHED = -1


def confusion_matrix(prediction: Tensor, label: Tensor, classes: int, clusters: int = 0) -> Tensor:
    """Count pixels: entry [t, p] = pixels of true class t predicted as p.

    Args:
        prediction, label: integer tensors of one shape; label 255 is not counted.
        classes: number of classes K.
        clusters: where ``prediction`` names clusters instead of classes: how many there are.

    Returns:
        (K, K), or (K, clusters), int64 on the tensors' device. Counts add up over images: sum them, then take
        ratios once.

    Raises:
        ValueError: shapes differ, or an id lies outside its range (a silent wrong number otherwise).
    """
    columns = clusters or classes
    if prediction.shape != label.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape"
        )
    valid = label != IGNORE_INDEX
    truth, guess = label[valid].long(), prediction[valid].long()
    for name, values, bound in (("label", truth, classes), ("prediction", guess, columns)):
        low, high = map(int, values.aminmax()) if len(values) else (0, 0)
        if low < 0 or high >= bound:
            raise ValueError(
                f"{name} has ids {low} to {high}; expected 0 to {bound - 1} (label 255 = ignore)"
            )
    return torch.bincount(truth * columns + guess, minlength=classes * columns).reshape(classes, columns)


def iou(confusion) -> np.ndarray:
    """(…, K, K) counts -> (…, K) intersection over union in [0, 1].

    NaN where the class has no true pixel. The data then decide which classes a mean runs over, never the
    prediction, so the scores of two subsets can be compared. (A false alarm still costs the class that it
    covers.)
    """
    counts = np.asarray(confusion, dtype=np.float64)
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    true, predicted = counts.sum(-1), counts.sum(-2)
    return _ratio(hit, true + predicted - hit, true > 0)


def miou(confusion) -> np.ndarray:
    """(…, K, K) counts -> (…) mean IoU over the classes that have true pixels; NaN where there are none."""
    return _mean(iou(confusion))


def accuracy(confusion) -> np.ndarray:
    """(…, K, K) counts -> (…) share of labelled pixels that are right; NaN where there are none."""
    counts = np.asarray(confusion, dtype=np.float64)
    total = counts.sum((-2, -1))
    return _ratio(np.trace(counts, axis1=-2, axis2=-1), total, total > 0)


def class_accuracy(confusion) -> np.ndarray:
    """(…, K, K) counts -> (…) mean over the classes that have true pixels of the share of them that is right
    (recall): the "Acc" beside mIoU in the papers' tables; NaN where no class has any.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    true = counts.sum(-1)
    return _mean(_ratio(np.diagonal(counts, axis1=-2, axis2=-1), true, true > 0))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values that are not NaN; NaN where there are none."""
    present = (~np.isnan(values)).sum(-1)
    return _ratio(np.nansum(values, -1), present, present > 0)


def _ratio(part: np.ndarray, whole: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """part / whole; NaN where not valid."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=valid)


def per_cent(names: Iterable[str], shares: np.ndarray) -> dict[str, float]:
    """Name -> its share in per cent; further shares have no name."""
    return dict(zip(names, (100 * shares).tolist()))


def hungarian(counts) -> np.ndarray:
    """(K, C) counts -> (C,) class of each cluster, one to one, so that as many pixels as possible fall on
    their own class; -1 = no class left.

    With C > K some clusters stay without a class: their pixels are errors of their true class, and false
    alarms of none. With C < K some classes get no cluster, and their IoU is 0. A class without a true pixel
    may still take a cluster, which costs the other classes nothing.
    """
    mapping = np.full(np.shape(counts)[1], UNMATCHED)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    mapping[columns] = rows
    return mapping


def many_to_one(counts) -> np.ndarray:
    """(K, C) counts -> (C,) most frequent class of each cluster (the lowest id of a tie); -1 = the cluster
    has no labelled pixel.

    Scores rise with C and reach 100 % at one pixel per cluster, so they compare only at equal C.
    """
    counts = np.asarray(counts)
    return np.where(counts.sum(0) > 0, counts.argmax(0), UNMATCHED)


RULES = {"hungarian": hungarian, "many-to-one": many_to_one}


def score_clusters(counts, classes: Sequence[str], rule: str = "hungarian", mapping=None) -> dict:
    """Name the clusters by ``rule`` on the group "all", or by a ``mapping`` (C,) from elsewhere, and score
    every group.

    The rules read labels. To match on the split that is scored is the field's optimistic custom; a
    ``mapping`` made on another split is not.

    Args:
        counts: (K, C) integers, or a dict of them by group: "all", "condition=night", …
        rule: "hungarian" or "many-to-one".

    Returns:
        {"rule": "hungarian", "many-to-one" or "given", "mapping": class of each cluster, -1 = none, one
        mapping for all groups; "miou", "accuracy": group -> per cent, "iou": group -> class -> per cent,
        "counts": group -> K rows}. NaN where a class has no true pixel, 0 where it has some but no cluster.
    """
    groups = counts if isinstance(counts, Mapping) else {"all": counts}
    if mapping is None:
        mapping = RULES[rule](groups["all"])
    else:
        rule = "given"
    # (K + 1, K + 1) after matching: the last column holds pixels of clusters without a class.
    of_cluster = np.eye(len(classes) + 1, dtype=np.int64)[mapping]  # -1 is the last row
    confusions = [np.pad(pixels @ of_cluster, ((0, 1), (0, 0))) for pixels in groups.values()]
    return {
        "rule": rule,
        "mapping": np.asarray(mapping).tolist(),
        "miou": per_cent(groups, miou(confusions)),
        "accuracy": per_cent(groups, accuracy(confusions)),
        "iou": {group: per_cent(classes, shares) for group, shares in zip(groups, iou(confusions))},
        "counts": {group: np.asarray(pixels).tolist() for group, pixels in groups.items()},
    }
