"""One pass over a data set that scores every subset of its sensors.

Each modality is encoded once. Where fusion is linear, the logits of all 2^M − 1 subsets are sums of the M
cached ones; another fusion is called once for each subset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.missing import remove
from ..data.prepared import PreparedDataset, collate
from ..modalities import Modality, subsets
from .confusion import confusion_matrix, iou, miou
from .statistics import cell, decimals


@dataclass
class SubsetScores:
    """Confusion matrices of every subset and group.

    Attributes:
        modalities: name -> Modality, in order.
        classes: K names.
        protocol: how an absent sensor was emulated (mmlib.data.missing).
        counts: group -> (S, K, K) int64; groups are "all", "condition=night", "case=motionblur", …; subsets
            in the order of ``mmlib.modalities.subsets``.
    """

    modalities: dict[str, Modality]
    classes: list[str]
    protocol: str
    counts: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Subsets by their symbols: "R", "D", …, "RDEL"."""
        return [
            "".join(self.modalities[name].symbol for name in subset)
            for subset in subsets(list(self.modalities))
        ]

    def miou(self, group: str = "all") -> dict[str, float]:
        """Subset -> mIoU in per cent."""
        return dict(zip(self.names, (100 * miou(self.counts[group])).tolist()))

    def iou(self, subset: str, group: str = "all") -> dict[str, float]:
        """Class -> IoU in per cent, NaN where the class is absent."""
        return dict(zip(self.classes, (100 * iou(self.counts[group][self.names.index(subset)])).tolist()))

    def lowered(self, group: str = "all") -> tuple[int, int]:
        """(how often adding one sensor to a subset lowers mIoU, how many such inclusions there are)."""
        scores = self.miou(group)
        pairs = [
            (small, large)
            for small in scores
            for large in scores
            if len(large) == len(small) + 1 and set(small) < set(large)
        ]
        return sum(scores[large] < scores[small] for small, large in pairs), len(pairs)

    def summary(self, group: str = "all") -> dict[str, float]:
        """full, mean, min and (population) std over the subsets, in per cent, and the inclusions that lower
        mIoU.
        """
        values = np.array(list(self.miou(group).values()))
        lowered, inclusions = self.lowered(group)
        return {
            "full": float(values[-1]),
            "mean": float(values.mean()),
            "min": float(values.min()),
            "std": float(values.std()),
            "lowered": lowered,
            "inclusions": inclusions,
        }

    def failing(self, probability: float, group: str = "all") -> np.ndarray:
        """(K, K) expected counts if each sensor of each sample is absent independently with ``probability``,
        never all of them.

        Exact, because counts add up: Σ_s P(s) C_s over the subsets s. Their mIoU is what a large data set
        with random failures would score; it is not the mean Σ_s P(s) mIoU_s, which benchmarks of sensor
        failures print.
        """
        return np.tensordot(subset_probabilities(len(self.modalities), probability), self.counts[group], 1)

    def to_dict(self) -> dict:
        full = self.names[-1]
        return {
            "protocol": self.protocol,
            "modalities": list(self.modalities),
            "summary": {group: decimals(self.summary(group)) for group in self.counts},
            "miou": {group: decimals(self.miou(group)) for group in self.counts},
            "iou": {
                subset: decimals(self.iou(subset))
                for subset in self.names
                if len(subset) == 1 or subset == full
            },
            "confusion": {full: self.counts["all"][-1].tolist()},
        }

    def table(self) -> str:
        """A plain-text table: every subset and group of conditions."""
        groups = list(self.counts)
        width = max(len("subset"), *map(len, self.names)) + 2
        heads = [group.removeprefix("condition=").removeprefix("case=") for group in groups]
        columns = [max(8, len(head) + 2) for head in heads]
        lines = [
            f"mIoU in %; absent sensors: {self.protocol}",
            "subset".ljust(width) + "".join(h.rjust(c) for h, c in zip(heads, columns)),
        ]
        scores = [self.miou(group) for group in groups]
        for name in self.names:
            lines.append(
                name.ljust(width)
                + "".join(cell(score[name], column) for score, column in zip(scores, columns))
            )
        for key in ("full", "mean", "min", "std"):
            lines.append(
                key.ljust(width)
                + "".join(cell(self.summary(group)[key], column) for group, column in zip(groups, columns))
            )
        full = self.names[-1]
        lines += [
            "",
            f"IoU of each class in %, {full} and single sensors",
            "class".ljust(16) + "".join(n.rjust(8) for n in [full, *self.names[: len(self.modalities)]]),
        ]
        per_class = [self.iou(name) for name in [full, *self.names[: len(self.modalities)]]]
        lines += [
            name.ljust(16) + "".join(cell(values[name], 8) for values in per_class) for name in self.classes
        ]
        lowered, inclusions = self.lowered()
        return "\n".join([*lines, "", f"adding one sensor lowers mIoU in {lowered} of {inclusions} cases"])


def subset_matrix(count: int) -> np.ndarray:
    """(2^M − 1, M) of 0 and 1: row s marks the members of subset s, in the order of
    ``mmlib.modalities.subsets``.
    """
    return np.array(
        [[float(member in subset) for member in range(count)] for subset in subsets(range(count))]
    )


def subset_probabilities(count: int, absent: float) -> np.ndarray:
    """(2^M − 1,) chances of each subset of M sensors being what is left, if each is absent with probability
    ``absent`` and all of them never are: (1 − p)^|s| p^(M − |s|) / (1 − p^M).

    Raises:
        ValueError: no probability, or 1.
    """
    if not 0 <= absent < 1:
        raise ValueError(
            f"failure probability {absent}: expected 0 (every sensor is there) to below 1 (none is)"
        )
    present = subset_matrix(count).sum(1)
    chances = (1 - absent) ** present * absent ** (count - present)
    return chances / chances.sum()


@torch.no_grad()
def evaluate_subsets(
    encode: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    dataset: PreparedDataset,
    *,
    fuse: Callable[[dict[str, Tensor]], Tensor] | None = None,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    protocol: str = "drop",
    workers: int = 0,
    progress: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> SubsetScores:
    """Score all subsets of ``dataset``'s sensors.

    Args:
        encode: images name -> (B, C, H, W) to one encoding per name, each independent of the others: a
            network's ``modality_logits``, (B, K, h, w). The caller sets eval mode.
        fuse: encodings of the sensors that take part -> logits (B, K, h, w), such as a rule of
            ``mmlib.evaluation.fusion``. None = their mean, by the fast path. A network that is no such
            fusion: ``encode=lambda images: images, fuse=network``.
        protocol: "drop", "zero", "black" or "noise" (mmlib.data.missing). With all but "drop", every sensor
            takes part in every fusion, the absent ones with the encoding of their replacement, computed once
            more.
        shard: (rank, processes): score every processes-th sample; the counts of all shards add up to those of
            the whole.

    Raises:
        ValueError: the data set has no labels, or the logits have another number of classes than it.
    """
    if not dataset.labelled:
        raise ValueError(f"{dataset.root} has no labels, so nothing can be scored")
    names, classes = list(dataset.modalities), dataset.description.classes
    matrix = torch.from_numpy(subset_matrix(len(names)))
    scores = SubsetScores(dataset.modalities, classes, protocol)
    groups = [
        sorted({f"{key}={row[key]}" for row in dataset.rows if row[key]}) for key in ("condition", "case")
    ]
    for group in ("all", *groups[0], *groups[1]):
        scores.counts[group] = np.zeros((len(matrix), len(classes), len(classes)), np.int64)
    indices = range(shard[0], len(dataset), shard[1])
    loader = DataLoader(
        dataset,
        batch_size,
        sampler=indices,
        num_workers=workers,
        collate_fn=_collate_by_size,
        pin_memory=torch.device(device).type == "cuda",
    )
    for batch in chain.from_iterable(tqdm(loader, "evaluate", disable=not progress, leave=False)):
        images = {name: image.to(device, non_blocking=True) for name, image in batch["images"].items()}
        label = batch["label"].to(device)
        size = label.shape[-2:]
        present = encode(images)
        absent = {} if protocol == "drop" else encode(remove(images, names, protocol, dataset.modalities))
        for s, b, logits in _fused(matrix, names, present, absent, fuse, size):
            counts = (
                confusion_matrix(predicted(logits, size, len(classes))[0], label[b], len(classes))
                .cpu()
                .numpy()
            )
            for group in ("all", f"condition={batch['condition'][b]}", f"case={batch['case'][b]}"):
                if group in scores.counts:  # neither is recorded where it is empty
                    scores.counts[group][s] += counts
    return scores


def _fused(
    matrix: Tensor, names: list[str], present: dict[str, Tensor], absent: dict[str, Tensor], fuse, size
):
    """(subset, image, its fused logits (1, K, ·, ·)) for every subset and image of a batch.

    Of logits at full size, those of one image exist at a time. A sum may be upsampled before it is formed:
    once for each sensor instead of once for each subset.
    """
    images = range(len(next(iter(present.values()))))
    if fuse is not None:
        for s, row in enumerate(matrix):
            fused = fuse(_votes(names, row, present, absent))
            yield from ((s, b, fused[b : b + 1]) for b in images)
        return
    for b in images:
        large = [
            {name: upsampled(logits[b : b + 1], size) for name, logits in part.items()}
            for part in (present, absent)
        ]
        yield from ((s, b, _total(_votes(names, row, *large))) for s, row in enumerate(matrix))


def _votes(
    names: list[str], row: Tensor, present: dict[str, Tensor], absent: dict[str, Tensor]
) -> dict[str, Tensor]:
    return {
        name: present[name] if member else absent[name]
        for name, member in zip(names, row)
        if member or absent
    }


def upsampled(logits: Tensor, size) -> Tensor:
    """(B, K, h, w) -> (B, K, H, W) float32."""
    logits = logits.float()
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def predicted(logits: Tensor, size, classes: int) -> Tensor:
    """Fused logits (B, K, h, w) -> class ids (B, H, W).

    Raises:
        ValueError: K is not the number of classes that is scored.
    """
    if logits.ndim != 4 or logits.shape[1] != classes:
        raise ValueError(
            f"fused logits of shape {tuple(logits.shape)}; expected (B, {classes}, h, w), one map for each class"
        )
    return upsampled(logits, size).max(1).indices  # on a CPU four times as fast as argmax over this dimension


def _total(votes: dict[str, Tensor]) -> Tensor:
    """The sum, whose argmax is that of the mean."""
    first, *others = votes.values()
    total = first.clone()
    for vote in others:
        total += vote
    return total


def _collate_by_size(samples: list[dict]) -> list[dict]:
    """One batch per image size: samples at their native sizes need not agree."""
    by_size: dict[tuple, list] = {}
    for sample in samples:
        by_size.setdefault(tuple(sample["label"].shape), []).append(sample)
    return [collate(group) for group in by_size.values()]
