"""One pass over a data set that scores every subset of its sensors.

Each modality is encoded once. Where fusion is linear, the logits of all 2^M − 1 subsets are sums of the M
cached ones; another fusion is called once for each subset. Training and the commands that score call it.

Where samples lack sensors, a subset is scored over the samples that have all of its sensors, whatever the
protocol: "full" over the complete ones alone. No image stands in for one that a sample lacks. A subset that
no sample has scores NaN; scores of different samples do not compare, so tables give their numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from ..data.missing import faulty, remove
from ..data.prepared import PreparedDataset, collate
from ..modalities import Modality, subsets
from ..runtime import derived_seed, progress_bar
from .counts import accuracy, class_accuracy, confusion_matrix, iou, miou, per_cent
from .fusion import Encode, Fuse
from .sheets import Sheet, subset_sheet, transposed
from .statistics import numbers, rounded

MEASURES = {"mIoU": miou, "accuracy": accuracy, "class accuracy": class_accuracy}


@dataclass
class SubsetScores:
    """Confusion matrices of every subset and group.

    Attributes:
        modalities: name -> Modality, in order.
        classes: K names.
        protocol: how an absent sensor was emulated (mmlib.data.missing).
        counts: group -> (S, K, K) int64; groups are "all", "condition=night", "case=motionblur", …; subsets
            in the order of ``mmlib.modalities.subsets``.
        samples: how many samples each subset is scored on, (S,).
    """

    modalities: dict[str, Modality]
    classes: list[str]
    protocol: str
    counts: dict[str, np.ndarray]
    samples: Sequence[int] = ()

    @property
    def names(self) -> list[str]:
        """Subsets by their symbols: "R", "D", …, "RDEL"."""
        symbols = [modality.symbol for modality in self.modalities.values()]
        return ["".join(subset) for subset in subsets(symbols)]

    @property
    def heads(self) -> list[str]:
        """``names``, with their numbers of samples where these differ: "RD (12)"."""
        same = len({*self.samples}) < 2
        return self.names if same else [f"{name} ({n})" for name, n in zip(self.names, self.samples)]

    def miou(self, group: str = "all") -> dict[str, float]:
        """Subset -> mIoU in per cent."""
        return per_cent(self.names, miou(self.counts[group]))

    def by_class(self) -> dict[str, dict[str, float]]:
        """All sensors, and each by itself -> class -> IoU in per cent, NaN where the class is absent."""
        rows = {name: per_cent(self.classes, row) for name, row in zip(self.names, iou(self.counts["all"]))}
        return {name: rows[name] for name in (self.names[-1], *self.names[: len(self.modalities)])}

    def summary(self, group: str = "all") -> dict[str, float]:
        """mIoU in per cent: full, and mean, min and (population) std over the subsets that have a score; mean
        class accuracy of full. How often adding one sensor to a subset lowers mIoU, and how many such
        inclusions there are, of subsets that are scored on the same samples.
        """
        scores = {frozenset(name): value for name, value in self.miou(group).items()}
        # A subset with a sensor more is scored on some of the same samples: on all, if it has as many pixels.
        pixels = dict(zip(scores, self.counts[group].sum((1, 2))))
        pairs = ((s - {one}, s) for s in scores for one in s)
        pairs = [(scores[a], scores[b]) for a, b in pairs if pixels.get(a) == pixels[b] > 0]
        values = numbers(scores.values())
        return {
            "full": [*scores.values()][-1],
            **{name: float(getattr(np, name)(values)) for name in ("mean", "min", "std")},
            "class accuracy": 100 * float(class_accuracy(self.counts[group][-1])),
            "lowered": sum(after < before for before, after in pairs),
            "inclusions": len(pairs),
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
        """JSON values in per cent: every measure, subset and group, the IoU of single sensors and of all."""
        return rounded(
            {
                "protocol": self.protocol,
                "modalities": list(self.modalities),
                "summary": {group: self.summary(group) for group in self.counts},
                **{
                    measure.lower(): {g: per_cent(self.names, shares(c)) for g, c in self.counts.items()}
                    for measure, shares in MEASURES.items()
                },
                "samples": dict(zip(self.names, self.samples)),
                "iou": self.by_class(),
                "confusion": {self.names[-1]: self.counts["all"][-1].tolist()},
            }
        )

    def table(self) -> str:
        """Plain text: every subset and group of conditions, the IoU of each class, what lowers mIoU."""
        rows = {g: per_cent(self.heads, miou(c)) | self.summary(g) for g, c in self.counts.items()}
        rows = transposed(rows)
        lowered, inclusions = (rows.pop(name)["all"] for name in ("lowered", "inclusions"))
        by_subset = Sheet(f"mIoU in %; absent sensors: {self.protocol}", rows, "subset")

        rows = transposed(self.by_class())
        by_class = Sheet(f"IoU of each class in %, {self.names[-1]} and single sensors", rows, "class")

        verdict = f"adding one sensor lowers mIoU in {lowered} of {inclusions} cases"
        return "\n\n".join([by_subset.text(), by_class.text(), verdict])

    def sheets(self, name: str, caption: str) -> list[Sheet]:
        """The tables of one network as papers print them: every subset (mIoU, accuracy, mean class accuracy),
        and all sensors by condition and case.
        """
        rows = {f"{name} {m}": per_cent(self.heads, of(self.counts["all"])) for m, of in MEASURES.items()}
        sheets = [subset_sheet(rows, f"In % {caption}; Std: population")]

        what = f"mIoU in %, all sensors ({self.names[-1]}), {caption}"
        groups = {group: counts[-1] for group, counts in self.counts.items()}
        groups["all"] = groups.pop("all")  # the last column
        if len(groups) > 1:
            sheets.append(Sheet(what, {name: _miou(groups)}))
        return sheets

    def failure_sheet(self, probabilities: Sequence[float], caption: str) -> Sheet:
        """Each sensor of each sample absent independently, never all: mIoU of the expected counts, and the
        expected mIoU, by group.
        """
        rows = {}
        for p in probabilities:
            chances = subset_probabilities(len(self.modalities), p)
            expected = {group: self.failing(p, group) for group in self.counts}
            rows[f"p = {p:g}, mIoU of the expected counts"] = _miou(expected)
            means = {group: 100 * float(chances @ miou(c)) for group, c in self.counts.items()}
            rows[f"p = {p:g}, mean of the subsets' mIoU by chance"] = means
        what = f"mIoU in %, each sensor of each sample absent with probability p, never all, {caption}"
        return Sheet(what, rows)


def _miou(cells: dict[str, np.ndarray]) -> dict[str, float]:
    """Name -> (K, K) counts, to name -> mIoU in per cent; NaN where there are none."""
    return per_cent(cells, miou([*cells.values()]))


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


def evaluate_subsets(
    encode: Encode,
    dataset: PreparedDataset,
    *,
    fuse: Fuse | None = None,
    batch_size: int = 8,
    protocol: str = "drop",
    shard: tuple[int, int] = (0, 1),
    **loading,
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
        loading: device, workers, progress, as for ``count_trials``.

    Raises:
        ValueError: the data set has no labels, or the logits have another number of classes than it.
    """
    # A sensor outside a subset takes part by what replaces it, variant 1 of its images; "drop" has none.
    trials = [
        (s, fuse, {name: int(name not in subset) for name in dataset.modalities})
        for s, subset in enumerate(subsets(dataset.modalities))
    ]
    groups = ["all"]
    for key in ("condition", "case"):
        groups += sorted({f"{key}={row[key]}" for row in dataset.rows if row[key]})
    classes = dataset.description.classes
    counts = {group: np.zeros((len(trials), len(classes), len(classes)), np.int64) for group in groups}
    indices = range(shard[0], len(dataset), shard[1])
    counted = count_trials(encode, Variants(dataset, protocol), trials, indices, batch_size, **loading)
    for s, row, pixels in counted:
        # A sample without a condition or case is in no such group.
        for group in counts.keys() & {"all", f"condition={row['condition']}", f"case={row['case']}"}:
            counts[group][s] += pixels
    sensors = [set(dataset.present(index)) for index in range(len(dataset))]
    samples = [sum(map(set(subset).issubset, sensors)) for subset in subsets(dataset.modalities)]
    return SubsetScores(dataset.modalities, classes, protocol, counts, samples)


@dataclass
class Variants:
    """The samples of a data set with each sensor's image as often as it may be seen: "images" by name
    (V, C, H, W) in network space, "label" (H, W), "index".

    Variant 0 is sound. Then comes what an absent sensor delivers by ``protocol``, unless that is "drop", and
    each (fault, severity) of ``faults`` (mmlib.data.missing).
    """

    dataset: PreparedDataset
    protocol: str = "drop"
    faults: Sequence[tuple[str, str]] = ()

    def __getitem__(self, index: int) -> dict:
        data, stacks = self.dataset, {}
        (images, label), name_of_sample, count = data.physical(index), data.rows[index]["id"], len(data)
        for m, (name, image) in enumerate(images.items()):
            modality, views = data.modalities[name], [image]
            if self.faults:
                # Half a split away, never the sample itself, and not the same scene for each sensor.
                away = 1 + (count // 2 + m - 1) % (count - 1)
                other, seed = data.physical((index + away) % count)[0][name], derived_seed(0, name_of_sample)
                views += [faulty(image, modality, *fault, other, seed) for fault in self.faults]
            stacks[name] = modality.to_network(torch.stack(views))
        if self.protocol != "drop":
            # Noise is drawn for each sample by its id: it depends on neither batch size nor order.
            absent = remove(stacks, stacks, self.protocol, data.modalities, derived_seed(name_of_sample))
            stacks = {name: torch.cat([stacks[name], absent[name]]) for name in stacks}
        return {"images": stacks, "label": label, "index": index}


@torch.no_grad()
def count_trials(
    encode: Encode,
    variants: Variants,
    trials: Sequence[tuple],
    indices: Sequence[int],
    batch_size: int,
    *,
    together: int = 1,
    device: torch.device | str = "cpu",
    workers: int = 0,
    progress: bool = False,
) -> Iterator[tuple]:
    """Yield (key of the trial, row of the sample, its confusion matrix) for every trial and sample.

    Args:
        trials: (key, rule that fuses, sensor -> number of the variant that it shows; a sensor without such a
            variant is left out). The rule None is the mean by the fast path, and then that of all trials. A
            sample that lacks a sensor whose sound image a trial shows, variant 0, is left out of it.
        indices: which samples.
        batch_size: samples at a time.
        together: variants that are encoded at a time.
        workers: loader processes.

    Raises:
        ValueError: no labels, or logits of another number of classes.
    """
    dataset = variants.dataset
    dataset.require_labels()
    loader = DataLoader(
        variants,
        batch_size,
        sampler=indices,
        num_workers=workers,
        collate_fn=_collate_alike,
        pin_memory=torch.device(device).type == "cuda",
    )
    classes, fast = len(dataset.description.classes), trials[0][1] is None
    for batch in chain.from_iterable(progress_bar(loader, "score", progress=progress, leave=False)):
        label = batch["label"].to(device)
        count, size = len(label), label.shape[1:]
        # Each variant of every image is encoded once.
        images = {name: image.transpose(0, 1).flatten(0, 1) for name, image in batch["images"].items()}
        encoded = [
            encode({n: x.to(device, non_blocking=True) for n, x in zip(images, part)})
            for part in zip(*(image.split(together * count) for image in images.values()))
        ]
        encodings = {name: torch.cat([part[name] for part in encoded]).split(count) for name in images}
        # Of logits at full size, those of one image exist at a time.
        step = 1 if fast else count
        for first in range(0, count, step):
            parts = {name: [x[first : first + step] for x in encodings[name]] for name in images}
            if fast:
                # A sum may be upsampled before it is formed: once for each sensor instead of once for each
                # subset. Its argmax is that of the mean.
                parts = {name: [upsampled(x, size) for x in part] for name, part in parts.items()}
            rows = [dataset.rows[int(index)] for index in batch["index"][first : first + step]]
            for key, fuse, shown in trials:
                if not all(v or name in parts for name, v in shown.items()):
                    continue
                votes = {name: parts[name][v] for name, v in shown.items() if v < len(parts.get(name, ()))}
                fused = fuse(votes) if fuse else sum(votes.values())
                for row, logits, truth in zip(rows, fused.split(1), label[first : first + step]):
                    yield key, row, count_pixels(logits, truth, classes, row["id"])


def upsampled(logits: Tensor, size) -> Tensor:
    """(B, K, h, w) -> (B, K, H, W) float32."""
    logits = logits.float()
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size, mode="bilinear")


def largest(logits: Tensor, size, sample: str) -> tuple[Tensor, Tensor, Tensor]:
    """Fused logits (1, K, h, w) of one image -> at full size, float32: all of them (K, H, W), the largest of
    each pixel and its class, (H, W).

    Raises:
        ValueError: they are not finite, so that no class is the largest; names the sample.
    """
    logits = upsampled(logits, size)[0]
    if not logits.sum().isfinite():
        raise ValueError(
            f"{sample}: its logits are not finite, so they name no class; look for extreme values in its "
            "images, or use another checkpoint"
        )
    # On a CPU four times as fast as argmax over this dimension.
    return logits, *logits.max(0)


def count_pixels(logits: Tensor, label: Tensor, classes: int, sample: str) -> np.ndarray:
    """Fused logits (1, K, h, w) and the label (H, W) of one image -> its confusion matrix (K, K).

    Raises:
        ValueError: K is not the number of classes that is scored, or the logits are not finite.
    """
    if logits.ndim != 4 or logits.shape[1] != classes:
        raise ValueError(
            f"fused logits {tuple(logits.shape)}; expected (B, {classes}, h, w), one map for each class"
        )
    return confusion_matrix(largest(logits, label.shape, sample)[2], label, classes).cpu().numpy()


def _collate_alike(samples: list[dict]) -> list[dict]:
    """One batch for each image size and set of sensors, in which samples at their native sizes differ."""
    alike = {}
    for sample in samples:
        alike.setdefault((sample["label"].shape, *sample["images"]), []).append(sample)
    return [collate(group) for group in alike.values()]
