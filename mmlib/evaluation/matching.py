"""Scores of clusters that know no names: count clusters against classes, give clusters the names of classes,
then read ratios.

Everything starts from integer counts (K classes, C clusters) of one whole split; counts of parts add up. Two
rules name clusters:

* **Hungarian**: one cluster to one class, so that as many pixels as possible fall on their own class. With C
  > K some clusters stay without a class (-1): their pixels are errors of their true class, and false alarms
  of none. With C < K some classes get no cluster: their IoU is 0. A class without a true pixel may still take
  a cluster (it then costs the other classes nothing).
* **many to one**: each cluster to its most frequent class. Scores rise with C and reach 100 % at one pixel
  per cluster, so they compare only at equal C.

Both rules read labels. To match on the split that is scored is the field's optimistic custom; ``score`` also
takes a mapping from another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..modalities import IGNORE_INDEX
from .confusion import accuracy, iou, miou
from .statistics import cell, decimals

UNMATCHED = -1


def cluster_counts(assignment: Tensor, label: Tensor, classes: int, clusters: int) -> np.ndarray:
    """Two integer tensors of one shape -> (K, C) int64: entry [k, c] = pixels of true class k in cluster c;
    label 255 is not counted.

    Raises ValueError: shapes differ, or an id lies outside its range.
    """
    if assignment.shape != label.shape:
        raise ValueError(
            f"assignment {tuple(assignment.shape)} and label {tuple(label.shape)} differ in shape"
        )
    valid = label != IGNORE_INDEX
    truth, guess = label[valid].long(), assignment[valid].long()
    for name, values, bound in (("label", truth, classes), ("assignment", guess, clusters)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < bound:
            raise ValueError(
                f"{name} has ids {int(values.min())} to {int(values.max())}; expected 0 to {bound - 1} (label 255 = ignore)"
            )
    return (
        torch.bincount(truth * clusters + guess, minlength=classes * clusters)
        .reshape(classes, clusters)
        .cpu()
        .numpy()
    )


def _checked(counts) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.ndim != 2 or 0 in counts.shape or counts.dtype.kind not in "iu" or counts.min() < 0:
        raise ValueError(
            f"counts {counts.dtype} of shape {counts.shape}: expected integers >= 0 of shape (classes, clusters)"
        )
    return counts


def hungarian(counts) -> np.ndarray:
    """(K, C) counts -> (C,) class of each cluster, one to one, matching as many pixels as possible; -1 = no
    class left.
    """
    counts = _checked(counts)
    mapping = np.full(counts.shape[1], UNMATCHED)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    mapping[columns] = rows
    return mapping


def many_to_one(counts) -> np.ndarray:
    """(K, C) counts -> (C,) most frequent class of each cluster (the lowest id of a tie); -1 = the cluster
    has no labelled pixel.
    """
    counts = _checked(counts)
    return np.where(counts.sum(0) > 0, counts.argmax(0), UNMATCHED)


RULES = {"hungarian": hungarian, "many-to-one": many_to_one}


@dataclass
class ClusterScores:
    """Counts of every group of images, and the classes that the clusters stand for.

    Attributes:
        classes: K names.
        counts: group -> (K, C) int64; groups are "all", "condition=night", …
        mapping: (C,) class of each cluster, -1 = none. One mapping for all groups.
        rule: where it comes from: "hungarian", "many-to-one" or "given".
    """

    classes: list[str]
    counts: dict[str, np.ndarray]
    mapping: np.ndarray
    rule: str

    def confusion(self, group: str = "all") -> np.ndarray:
        """(K + 1, K + 1) counts after matching; the last column holds pixels of clusters without a class, the
        last row is 0.
        """
        matrix = np.zeros((len(self.classes) + 1,) * 2, np.int64)
        for cluster, target in enumerate(self.mapping):
            matrix[:-1, target] += self.counts[group][:, cluster]  # -1 is the last column
        return matrix

    def miou(self, group: str = "all") -> float:
        """Mean IoU in per cent over the classes that have true pixels in the group; NaN where none has."""
        return 100 * float(miou(self.confusion(group)))

    def accuracy(self, group: str = "all") -> float:
        """Labelled pixels on their own class, in per cent."""
        return 100 * float(accuracy(self.confusion(group)))

    def iou(self, group: str = "all") -> dict[str, float]:
        """Class -> IoU in per cent; NaN where the class has no true pixel, 0 where it has some but no
        cluster.
        """
        return dict(zip(self.classes, (100 * iou(self.confusion(group))[:-1]).tolist()))

    def to_dict(self) -> dict:
        return {
            "rule": self.rule,
            "mapping": self.mapping.tolist(),
            "miou": decimals({group: self.miou(group) for group in self.counts}),
            "accuracy": decimals({group: self.accuracy(group) for group in self.counts}),
            "iou": {group: decimals(self.iou(group)) for group in self.counts},
            "counts": {group: counts.tolist() for group, counts in self.counts.items()},
        }

    def table(self) -> str:
        """A plain-text table: mIoU, accuracy and the IoU of each class, one column for each group."""
        heads = [group.removeprefix("condition=") for group in self.counts]
        columns = [max(8, len(head) + 2) for head in heads]
        width = max(10, *map(len, self.classes)) + 2
        lines = [
            f"in %; clusters named by: {self.rule}",
            " " * width + "".join(map(str.rjust, heads, columns)),
        ]
        scores = {"mIoU": map(self.miou, self.counts), "accuracy": map(self.accuracy, self.counts)}
        scores |= {name: [self.iou(group)[name] for group in self.counts] for name in self.classes}
        return "\n".join(
            lines
            + [name.ljust(width) + "".join(map(cell, values, columns)) for name, values in scores.items()]
        )


def score(counts, classes: Sequence[str], rule: str = "hungarian", mapping=None) -> ClusterScores:
    """Name the clusters by ``rule`` on the group "all", or by a ``mapping`` (C,) found elsewhere, and score
    every group.

    counts: (K, C) integers, or a dict of them by group that has "all".
    Raises ValueError: unknown rule, no "all", or shapes that do not fit the classes or the mapping.
    """
    groups = {
        key: _checked(value)
        for key, value in (counts if isinstance(counts, Mapping) else {"all": counts}).items()
    }
    shapes = {key: value.shape for key, value in groups.items()}
    if "all" not in groups or set(shapes.values()) != {(len(classes), shapes["all"][1])}:
        raise ValueError(
            f"counts {shapes}: expected the group 'all', and ({len(classes)} classes, clusters) in every group"
        )
    if mapping is None:
        if rule not in RULES:
            raise ValueError(f"rule {rule!r}: expected one of {', '.join(RULES)}")
        return ClusterScores(list(classes), groups, RULES[rule](groups["all"]), rule)
    mapping = np.asarray(mapping)
    if (
        mapping.shape != groups["all"].shape[1:]
        or mapping.dtype.kind != "i"
        or mapping.min() < UNMATCHED
        or mapping.max() >= len(classes)
    ):
        raise ValueError(
            f"mapping {mapping.tolist()}: expected one class, 0 to {len(classes) - 1} or -1, for each cluster"
        )
    return ClusterScores(list(classes), groups, mapping, "given")
