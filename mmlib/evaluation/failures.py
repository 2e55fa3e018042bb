"""Sensors that fail without saying so: every sensor takes part in fusion, one or two of them are wrong, and
no rule is told. The commands that score call it.

For every sample, each sensor is encoded once as it is and once for each fault and severity
(``mmlib.data.missing.faulty``); every fusion rule and every set of broken sensors then reuses these
encodings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

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
from .subsets import count_pixels

CLEAN, REMOVED, ORACLE = "clean", "removed", "oracle"


@dataclass
class FailureScores:
    """Confusion matrices of every rule, fault, severity and set of broken sensors.

    Attributes:
        modalities: name -> Modality, in order.
        rules: names of the fusion rules; the rule "oracle" is the first of them over the sound sensors alone.
        faults: kinds of fault (mmlib.data.missing), each mild and gross.
        samples: how many samples were scored.
        counts: (rule, fault, severity, broken sensors by their symbols) -> (K, K) int64. Sound: (rule,
            "clean", "", ""). Broken sensors taken out: ("oracle", "removed", "", sensors).
    """

    modalities: dict[str, Modality]
    rules: list[str]
    faults: list[str]
    samples: int
    counts: dict[tuple[str, str, str, str], np.ndarray] = field(default_factory=dict)

    def broken(self, size: int) -> list[str]:
        """The sets of ``size`` broken sensors that were scored: "R", "D", … or "RD", …."""
        return list(dict.fromkeys(sensors for *_, sensors in self.counts if len(sensors) == size))

    def miou(self, rule: str, fault: str = CLEAN, severity: str = "", sensors: str = "") -> float:
        """mIoU in per cent, over one confusion matrix for all samples."""
        return 100 * float(miou(self.counts[rule, fault, severity, sensors]))

    def mean(self, rule: str, severity: str, size: int, faults: Sequence[str] = ()) -> float:
        """Mean of ``miou`` over the faults (all by default) and over the sets of ``size`` broken sensors."""
        kinds = [(REMOVED, "")] if rule == ORACLE else [(fault, severity) for fault in faults or self.faults]
        return float(
            np.mean([self.miou(rule, *kind, broken) for kind in kinds for broken in self.broken(size)])
        )

    def summary(self) -> dict[str, dict[str, float]]:
        """Rule (and "oracle") -> clean, single mild, single gross, and double mild, double gross where pairs
        were scored.
        """
        rows = {}
        for rule in (*self.rules, ORACLE):
            rows[rule] = {CLEAN: self.miou(self.rules[0] if rule == ORACLE else rule)}
            for size, count in enumerate(("single", "double"), 1):
                for severity in SEVERITIES if self.broken(size) else ():
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
        """JSON values: ``summary`` and ``by_fault`` as above, and ``miou``: rule -> "fault severity" ->
        sensors -> per cent.
        """
        every: dict[str, dict] = {}
        for rule, fault, severity, sensors in self.counts:
            part = every.setdefault(rule, {}).setdefault(f"{fault} {severity}".strip(), {})
            part[sensors or "none"] = self.miou(rule, fault, severity, sensors)
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
    seed: int = 0,
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

    Every result is a function of the arguments alone: noise depends on ``seed``, the sample and the sensor.

    Raises:
        ValueError: no labels, no rule, one sensor only, an unknown fault, or "other" where the split has a
            single sample.
    """
    _check(dataset, rules, faults)
    indices = range(len(dataset)) if indices is None else list(indices)
    scores = FailureScores(dataset.modalities, list(rules), list(faults), len(indices))

    # What is fused and counted for every sample: (rule, fault, severity, broken sensors, number of the
    # variant that they show).
    sets = [*combinations(dataset.modalities, 1)]
    if pairs and len(dataset.modalities) > 2:
        sets += combinations(dataset.modalities, 2)
    variants = [(fault, severity) for fault in faults for severity in SEVERITIES]
    trials = [(rule, CLEAN, "", (), 0) for rule in rules]
    for broken in sets:
        trials.append((ORACLE, REMOVED, "", broken, 0))
        trials += [(rule, *kind, broken, v) for v, kind in enumerate(variants, 1) for rule in rules]
    fuses = {**rules, ORACLE: rules[scores.rules[0]]}

    loader = DataLoader(_Variants(dataset, variants, seed), None, sampler=indices, num_workers=workers)
    for images, label in progress_bar(loader, "failures", progress=progress, leave=False):
        # Encode each sensor once: sound, which is number 0, and in every variant.
        label, encoded = label.to(device), []
        for start in range(0, len(variants) + 1, batch_size):
            part = {name: image[start : start + batch_size].to(device) for name, image in images.items()}
            encoded.append(encode(part))
        encodings = {name: torch.cat([part[name] for part in encoded]) for name in images}

        for rule, fault, severity, broken, v in trials:
            inputs = {name: encoding[:1] for name, encoding in encodings.items()}
            for name in broken:
                inputs[name] = encodings[name][v : v + 1]
                if rule == ORACLE:
                    del inputs[name]
            pixels = count_pixels(fuses[rule](inputs), label, len(dataset.description.classes))
            key = rule, fault, severity, "".join(dataset.modalities[name].symbol for name in broken)
            scores.counts[key] = scores.counts.get(key, 0) + pixels
    return scores


def _check(dataset: PreparedDataset, rules: Mapping, faults: Sequence[str]) -> None:
    """Raise ValueError for what cannot be scored."""
    if not dataset.labelled:
        raise ValueError(f"{dataset.root} has no labels, so nothing can be scored")
    if not rules or ORACLE in rules:
        raise ValueError(f"rules {list(rules)}; expected at least one, and none called {ORACLE!r}")
    if len(dataset.modalities) < 2:
        raise ValueError(
            "the data set has only one sensor; with it broken, nothing sound is left. Use two or more"
        )
    if not faults or set(faults) - set(FAULTS):
        raise ValueError(f"faults {list(faults)}; expected some of {', '.join(FAULTS)}")
    if "other" in faults and len(dataset) < 2:
        raise ValueError(
            f"{dataset.root}: the split has one sample, so no other scene for fault 'other'; leave it out of "
            "faults"
        )


@dataclass(eq=False)
class _Variants(torch.utils.data.Dataset):
    """Sample -> (images name -> (1 + V, C, H, W) in network space: sound, then as each of V (fault,
    severity); label (H, W)).
    """

    dataset: PreparedDataset
    variants: list[tuple[str, str]]
    seed: int

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        images, label = self.dataset.physical(index)
        seed, count = derived_seed(self.seed, self.dataset.rows[index]["id"]), len(self.dataset)
        stacks, other = {}, None
        for m, (name, modality) in enumerate(self.dataset.modalities.items()):
            if "other" in dict(self.variants):
                # Half a split away, never the sample itself, and not the same scene for each sensor.
                away = 1 + (count // 2 + m - 1) % (count - 1)
                other = self.dataset.physical((index + away) % count)[0][name]
            views = [images[name]]
            for fault, severity in self.variants:
                views.append(faulty(images[name], modality, fault, severity, other, seed))
            stacks[name] = torch.stack([modality.to_network(image) for image in views])
        return stacks, label
