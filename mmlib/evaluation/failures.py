"""Sensors that fail without saying so: every sensor takes part in fusion, one or two of them are wrong, and
no rule is told. The commands that score call it.

For every sample, each sensor is encoded once as it is and once for each fault and severity
(``mmlib.data.missing.faulty``); every fusion rule and every set of broken sensors then reuses these
encodings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, product

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..data.missing import FAULTS, SEVERITIES, faulty
from ..data.prepared import PreparedDataset
from ..modalities import Modality
from ..runtime import derived_seed, progress_bar
from .counts import miou
from .fusion import Encode, Fuse
from .sheets import Sheet
from .statistics import rounded
from .subsets import count_trials

CLEAN, REMOVED, ORACLE = "clean", "removed", "oracle"


@dataclass
class FailureScores:
    """Confusion matrices of every rule, kind of failure and set of broken sensors.

    Attributes:
        modalities: name -> Modality, in order.
        rules: names of the fusion rules; the rule "oracle" is the first of them over the sound sensors alone.
        faults: faults (mmlib.data.missing), each mild and gross.
        samples: how many samples were scored.
        counts: (rule, kind such as "dark mild", broken sensors by their symbols) -> (K, K) int64. Sound:
            (rule, "clean", ""). Broken sensors taken out: ("oracle", "removed", sensors).
    """

    modalities: dict[str, Modality]
    rules: list[str]
    faults: list[str]
    samples: int
    counts: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)

    def broken(self, size: int) -> list[str]:
        """The sets of ``size`` broken sensors that were scored: "R", "D", … or "RD", …."""
        return list(dict.fromkeys(sensors for *_, sensors in self.counts if len(sensors) == size))

    def miou(self, rule: str, kind: str = CLEAN, sensors: str = "") -> float:
        """mIoU in per cent, over one confusion matrix for all samples."""
        return 100 * float(miou(self.counts[rule, kind, sensors]))

    def mean(self, rule: str, severity: str, size: int, faults: Sequence[str] = ()) -> float:
        """Mean of ``miou`` over the faults (all by default) and over the sets of ``size`` broken sensors."""
        kinds = [REMOVED] if rule == ORACLE else [f"{fault} {severity}" for fault in faults or self.faults]
        return float(np.mean([self.miou(rule, *trial) for trial in product(kinds, self.broken(size))]))

    def summary(self) -> dict[str, dict[str, float]]:
        """Rule (and "oracle") -> clean, single mild, single gross, and double mild, double gross where pairs
        were scored.
        """
        rows = {rule: {CLEAN: self.miou(rule)} for rule in self.rules}
        rows[ORACLE] = {**rows[self.rules[0]]}
        for size, count in enumerate(("single", "double"), 1):
            for rule, severity in product(rows, SEVERITIES if self.broken(size) else ()):
                rows[rule][f"{count} {severity}"] = self.mean(rule, severity, size)
        return rows

    def by_fault(self) -> dict[str, dict[str, dict[str, float]]]:
        """Severity -> fault -> rule (and "oracle") -> mIoU in per cent, one sensor broken, the mean over
        which one.
        """
        return {
            severity: {
                fault: {rule: self.mean(rule, severity, 1, [fault]) for rule in (*self.rules, ORACLE)}
                for fault in self.faults
            }
            for severity in SEVERITIES
        }

    def to_dict(self) -> dict:
        """JSON values: ``summary`` and ``by_fault`` as above, and ``miou``: rule -> kind -> sensors -> per
        cent.
        """
        every: dict[str, dict] = {}
        for key in self.counts:
            rule, kind, sensors = key
            every.setdefault(rule, {}).setdefault(kind, {})[sensors or "none"] = self.miou(*key)
        record = {name: getattr(self, name) for name in ("rules", "faults", "samples")}
        scores = {"summary": self.summary(), "by_fault": self.by_fault(), "miou": every}
        return rounded({"modalities": list(self.modalities)} | record | scores)

    def table(self) -> str:
        """Plain text: every rule's averages, then each fault with one sensor broken."""
        caption = (
            f"mIoU in %, {self.samples} samples; sensors that fail unannounced, mean over faults and sensors"
            f"; {ORACLE}: '{self.rules[0]}', told which sensors are broken"
        )
        averages = Sheet(caption, self.summary(), "rule")
        rows = {
            f"{fault} {severity}": row
            for severity, faults in self.by_fault().items()
            for fault, row in faults.items()
        }
        by_fault = Sheet("one sensor broken, mean over which one", rows, "fault")
        return averages.text() + "\n\n" + by_fault.text()


@torch.no_grad()
def evaluate_failures(
    encode: Encode,
    rules: Mapping[str, Fuse],
    dataset: PreparedDataset,
    *,
    faults: Sequence[str] = FAULTS,
    pairs: bool = True,
    indices: Sequence[int] | None = None,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    workers: int = 0,
    progress: bool = False,
) -> FailureScores:
    """Score ``rules`` while each sensor, then each pair of sensors, suffers each fault, mild and gross.

    Both sensors of a pair suffer the same kind of fault. For "other", each shows a scene of its own.

    Args:
        encode: images name -> (V, C, H, W) to one encoding per name, as for ``evaluate_subsets``; the caller
            sets eval mode.
        rules: name -> function of the encodings that gives logits (V, K, h, w):
            ``mmlib.evaluation.fusion.FUSIONS``, or some of it; a network that is no such fusion:
            ``encode=lambda images: images, rules={"network": network}``. The first rule also scores the sound
            sensors alone ("oracle"), so put "mean" first.
        pairs: whether to break pairs too; needs three sensors or more.
        indices: which samples to score; None = all. "other" draws from the whole split in any case.
        batch_size: images per sensor that are encoded at a time.

    Every result is a function of the arguments alone: noise depends on the sample and the sensor.

    Raises:
        ValueError: no labels, or fewer than two sensors or samples.
    """
    dataset.require_labels()
    if min(len(dataset.modalities), len(dataset)) < 2:
        raise ValueError(
            f"{dataset.root}: {len(dataset.modalities)} sensor(s), {len(dataset)} sample(s); expected two or "
            "more of each: something sound beside the broken, and another scene in its place"
        )
    indices = range(len(dataset)) if indices is None else list(indices)
    scores = FailureScores(dataset.modalities, list(rules), list(faults), len(indices))

    # All sensors are sound, variant 0 of their images, or some show another variant, or are taken out.
    sound = dict.fromkeys(dataset.modalities, 0)
    variants = list(product(faults, SEVERITIES))
    trials = [((rule, CLEAN, ""), fuse, sound) for rule, fuse in rules.items()]
    sizes = (1, 2) if pairs and len(sound) > 2 else (1,)
    for broken in chain.from_iterable(combinations(sound, size) for size in sizes):
        symbols = "".join(dataset.modalities[name].symbol for name in broken)
        rest = {name: 0 for name in sound if name not in broken}
        trials.append(((ORACLE, REMOVED, symbols), rules[scores.rules[0]], rest))
        for v, (fault, severity) in enumerate(variants, 1):
            shown = sound | dict.fromkeys(broken, v)
            trials += [((rule, f"{fault} {severity}", symbols), fuse, shown) for rule, fuse in rules.items()]

    loader = DataLoader(_Variants(dataset, variants), None, sampler=indices, num_workers=workers)
    for images, label in progress_bar(loader, "failures", progress=progress, leave=False):
        # Each sensor is encoded once: sound, and in every variant.
        encodings = []
        for start in range(0, len(variants) + 1, batch_size):
            part = {name: image[start : start + batch_size].to(device) for name, image in images.items()}
            part = encode(part)
            encodings += [dict(zip(part, one)) for one in zip(*(value.split(1) for value in part.values()))]
        classes = len(dataset.description.classes)
        for key, _, pixels in count_trials(trials, encodings, label[None].to(device), classes):
            scores.counts[key] = scores.counts.get(key, 0) + pixels
    return scores


@dataclass
class _Variants:
    """Sample -> (images name -> (1 + V, C, H, W) in network space: sound, then as each of V (fault,
    severity); label (H, W)).
    """

    dataset: PreparedDataset
    variants: list[tuple[str, str]]

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        images, label = self.dataset.physical(index)
        seed, count = derived_seed(0, self.dataset.rows[index]["id"]), len(self.dataset)
        stacks = {}
        for m, (name, modality) in enumerate(self.dataset.modalities.items()):
            # Half a split away, never the sample itself, and not the same scene for each sensor.
            away = 1 + (count // 2 + m - 1) % (count - 1)
            other = self.dataset.physical((index + away) % count)[0][name]
            views = [images[name]]
            views += [faulty(views[0], modality, *variant, other, seed) for variant in self.variants]
            stacks[name] = modality.to_network(torch.stack(views))
        return stacks, label
