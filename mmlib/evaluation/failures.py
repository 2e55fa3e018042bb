"""Sensors that fail without saying so: every sensor takes part in fusion, one or two of them are wrong, and
no rule is told. The commands that score call it.

For every sample, each sensor is encoded once as it is and once for each fault and severity
(``mmlib.data.missing.faulty``); every fusion rule and every set of broken sensors then reuses these
encodings.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, combinations, product

import numpy as np

from ..data.missing import FAULTS, SEVERITIES
from ..data.prepared import PreparedDataset
from .counts import miou
from .fusion import Encode, Fuse
from .sheets import Sheet
from .subsets import Variants, count_trials

CLEAN, REMOVED, ORACLE = "clean", "removed", "oracle"


def failure_scores(rules: Sequence[str], faults: Sequence[str], counts: Mapping[tuple, np.ndarray]) -> dict:
    """mIoU in per cent under failures, and its averages.

    Args:
        rules: names of the fusion rules; the rule "oracle" is the first of them over the sound sensors alone.
        faults: faults (mmlib.data.missing), each mild and gross.
        counts: (rule, kind such as "dark mild", broken sensors by their symbols) -> (K, K) of all samples.
            Sound: (rule, "clean", ""). Broken sensors taken out: ("oracle", "removed", sensors).

    Returns:
        {"summary": rule and "oracle" -> clean, single mild, single gross, and double mild, double gross where
        pairs were scored; "by_fault": severity -> fault -> rule and "oracle", one sensor broken, the mean
        over which one; "miou": rule -> kind -> sensors}.
    """
    every = {}
    for (rule, kind, sensors), confusion in counts.items():
        score = 100 * float(miou(confusion))
        every.setdefault(rule, {}).setdefault(kind, {})[sensors or "none"] = score

    def mean(rule: str, severity: str, size: int, faults: Sequence[str]) -> float:
        """Over the faults and the sets of ``size`` broken sensors."""
        kinds = [REMOVED] if rule == ORACLE else [f"{fault} {severity}" for fault in faults]
        scores = [every[rule][kind] for kind in kinds]
        return float(
            np.mean([score[sensors] for score in scores for sensors in score if len(sensors) == size])
        )

    summary = {rule: {CLEAN: every[rule][CLEAN]["none"]} for rule in rules}
    summary[ORACLE] = {**summary[rules[0]]}
    for size, count in enumerate(("single", "double")[: max(map(len, every[ORACLE][REMOVED]))], 1):
        for rule, severity in product(summary, SEVERITIES):
            summary[rule][f"{count} {severity}"] = mean(rule, severity, size, faults)
    by_fault = {
        severity: {fault: {rule: mean(rule, severity, 1, [fault]) for rule in summary} for fault in faults}
        for severity in SEVERITIES
    }
    return {"summary": summary, "by_fault": by_fault, "miou": every}


def failure_table(scores: Mapping) -> str:
    """Plain text: every rule's averages, then each fault with one sensor broken."""
    caption = (
        f"mIoU in %, {scores['samples']} samples; sensors that fail unannounced, mean over faults and sensors"
        f"; {ORACLE}: '{scores['rules'][0]}', told which sensors are broken"
    )
    rows = {
        f"{fault} {severity}": row
        for severity, faults in scores["by_fault"].items()
        for fault, row in faults.items()
    }
    by_fault = Sheet("one sensor broken, mean over which one", rows, "fault")
    return f"{Sheet(caption, scores['summary'], 'rule').text()}\n\n{by_fault.text()}"


def evaluate_failures(
    encode: Encode,
    rules: Mapping[str, Fuse],
    dataset: PreparedDataset,
    *,
    faults: Sequence[str] = FAULTS,
    pairs: bool = True,
    indices: Sequence[int] | None = None,
    batch_size: int = 8,
    **loading,
) -> dict:
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
        loading: device, workers, progress, as for ``mmlib.evaluation.subsets.count_trials``.

    Every result is a function of the arguments alone: noise depends on the sample and the sensor.

    Returns:
        {"modalities", "rules", "faults", "samples": their number} and those of ``failure_scores``.

    Raises:
        ValueError: no labels, or fewer than two sensors or samples.
    """
    if min(len(dataset.modalities), len(dataset)) < 2:
        raise ValueError(
            f"{dataset.root}: {len(dataset.modalities)} sensor(s), {len(dataset)} sample(s); expected two or "
            "more of each: something sound beside the broken, and another scene in its place"
        )
    if indices is None:
        indices = range(len(dataset))
    # All sensors are sound, variant 0 of their images, or some show another variant, or are taken out.
    sound = dict.fromkeys(dataset.modalities, 0)
    kinds = list(product(faults, SEVERITIES))
    trials = [((rule, CLEAN, ""), fuse, sound) for rule, fuse in rules.items()]
    sizes = (1, 2) if pairs and len(sound) > 2 else (1,)
    for broken in chain.from_iterable(combinations(sound, size) for size in sizes):
        symbols = "".join(dataset.modalities[name].symbol for name in broken)
        rest = {name: 0 for name in sound if name not in broken}
        trials.append(((ORACLE, REMOVED, symbols), next(iter(rules.values())), rest))
        for v, kind in enumerate(kinds, 1):
            shown = sound | dict.fromkeys(broken, v)
            trials += [((rule, " ".join(kind), symbols), fuse, shown) for rule, fuse in rules.items()]

    variants, counts = Variants(dataset, faults=kinds), {}
    for key, _, pixels in count_trials(encode, variants, trials, indices, 1, together=batch_size, **loading):
        counts[key] = counts.get(key, 0) + pixels
    of_what = {"modalities": list(sound), "rules": list(rules), "faults": list(faults)}
    return of_what | {"samples": len(indices)} | failure_scores(of_what["rules"], faults, counts)
