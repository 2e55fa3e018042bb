"""The regulariser that balances sensors: which information is read, when, and how it becomes R_p (Eq. 4 or 6)
and R_f (Eq. 7) of the training loss L = L_sup + R_p + R_f (Eq. 9), their weights λ_p and λ_f included.

In anybody's training loop, for any network that maps a dict of images to logits:

    regularizer = Regularizer(RegularizerConfig(prediction="input"))
    ...
    loss = cross_entropy(network(images), label)
    loss = loss + regularizer(network, images, label)

What costs a second derivative is a lazy probe: every k-th step, on a crop of one sample, weighted k-fold.
What has a closed form is computed at every step, from logits and features that the step has anyway. Either
way information is read first; then it is gathered from all samples of a step, over micro-batches and
processes; then it is averaged and inverted.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from ..config import Above, AtLeast, Between, check_settings
from ..runtime import derived_seed
from .information import (
    SCALES,
    decoder_information,
    feature_information,
    gat_information,
    input_information,
    logit_information,
    nearest,
    term,
    usable,
)
from .network import Tensors
from .objective import parts

# Positions at which the closed forms read a map: a mean over more of them costs time and says the same.
LOGITS, FEATURES = 256, 64
PROBED = {"input", "consistency", "gat", "decoder"}  # readings that differentiate the network

# Name of a term -> (M, N): the information of M modalities in N samples; NaN for a sample without a labelled
# pixel, and where a sample lacks a modality.
Tables = dict[str, Tensor]


@dataclass(frozen=True)
class RegularizerConfig:
    """Which information is balanced, how, and how strongly."""

    prediction: Literal["none", "input", "consistency", "gat", "unimodal-logit"] = "none"
    """R_p: input = Eq. 6; consistency = Eq. 4; gat = Gat et al. as coded (give --lambda-p 1e-10);
    unimodal-logit = each modality's own logits, in closed form.
    """
    features: Literal["none", "kl", "ce", "decoder"] = "none"
    """R_f, Eq. 7: kl (finite where modalities agree), ce (as printed), decoder (through the head)."""
    form: Literal["balance", "share", "inverse"] = "balance"
    """From information to a loss: inverse = the sum of 1/I, as printed; balance = mean(I) · mean(1/I) − 1;
    share = its log form.
    """
    variance: bool = False
    """Poincaré form: squared gradients that are not divided by f."""
    lambda_p: Annotated[float, AtLeast(0, why="a negative one would reward imbalance")] = 0.3
    """Weight of R_p (paper: 0.3)."""
    lambda_f: Annotated[float, AtLeast(0, why="a negative one would reward imbalance")] = 0.02
    """Weight of R_f (paper: 0.02)."""
    sigma: Annotated[float, Above(0, "without noise there is no measure to take entropy over")] = 0.1
    """Standard deviation of the input noise, as a share of each modality's own."""
    probe_every: Annotated[int, AtLeast(1)] = 8
    """Steps between probes of second order; each counts so many times."""
    probe_crop: Annotated[float, Between(0, 1, without=(0,))] = 0.5
    """Height and width of the probe's crop, as a share of the image's."""
    probe_samples: Annotated[int, AtLeast(1)] = 1
    """Samples of the batch that a probe looks at (gat: at least 2)."""
    delay: Annotated[float, Between(0, 1, without=(1,))] = 0.1
    """Share of the training without the term; over as long again its weight then grows to full."""
    cap: Annotated[float, Above(0)] = 10.0
    """Largest value of one term: beyond it, it is scaled down to this value, and counted."""

    @property
    def readings(self) -> set[str]:
        """The readings of R_p and R_f that have a weight."""
        weights = {self.prediction: self.lambda_p, self.features: self.lambda_f}
        return {reading for reading, weight in weights.items() if reading != "none" and weight > 0}


# ---- information ----


def spread(tables: Tables, names: Iterable[str], sensors: Sequence[str]) -> Tables:
    """Tables of the modalities ``names`` with a row for each of ``sensors``, NaN for those that are not among
    them; without ``sensors`` as they are.
    """
    if not sensors:
        return tables
    result = {}
    for kind, values in tables.items():
        rows, missing = dict(zip(names, values)), torch.full_like(values[0], torch.nan)
        result[kind] = torch.stack([rows.get(name, missing) for name in sensors])
    return result


def crop(config: RegularizerConfig, batch: dict, seed: int) -> dict:
    """A few samples of a batch and one window of them, at least 32 pixels a side where the image has them."""
    label = batch["label"]
    rng = np.random.default_rng(seed)
    count = min(max(config.probe_samples, 1 + (config.prediction == "gat")), len(label))
    samples = np.sort(rng.choice(len(label), count, replace=False))
    window = (...,)
    for side in label.shape[-2:]:
        length = min(side, max(32, round(side * config.probe_crop)))
        start = rng.integers(side - length + 1)
        window += (slice(start, start + length),)
    return {
        "images": {name: image[samples][window] for name, image in batch["images"].items()},
        "label": label[samples][window],
        "present": batch["present"][samples],
    }


def thinned(value: Tensor, positions: int) -> Tensor:
    """About ``positions`` evenly spaced pixels of a map (..., h, w)."""
    stride = max(1, round((value.shape[-2:].numel() / positions) ** 0.5))
    return value[..., stride // 2 :: stride, stride // 2 :: stride]


# ---- gather ----


def gather_tables(parts: Sequence[Tables], gather: Callable) -> Tables:
    """The tables of all samples of a step, without graph, from those of this process's micro-batches; samples
    are in the order of processes, then of micro-batches.

    Args:
        gather: (n, …) of this process -> (processes · n, …) of all, in the order of their ranks.
    """
    return {name: gather(torch.cat([part[name].detach() for part in parts], 1).T).T for name in parts[0]}


# ---- combine ----


class Regularizer:
    """R_p and R_f, lazy probes, delay and ramp, and guards that are counted.

    Attributes:
        counts: since the start: "probes"; "capped" terms; "empty" samples without a labelled pixel,
            or with a single sensor where it is compared with others;
            "nonfinite" samples, left out because their information was not a positive finite number. Counted
            on the device; ``int`` makes it wait.
        information: name of the term -> (M,) information, of the latest call that computed it.
        sensors: names of all modalities, where samples may lack some of them; else empty.
    """

    def __init__(self, config: RegularizerConfig, seed: int = 0, sensors: Sequence[str] = ()):
        check_settings(config)
        self.config, self.seed, self.sensors, self.calls = config, seed, sensors, 0
        self.tallies = dict.fromkeys(("probes", "capped", "empty", "nonfinite"), 0)
        self.information = {}

    @property
    def counts(self) -> dict[str, int]:
        return {name: int(number) for name, number in self.tallies.items()}

    def strength(self, progress: float) -> float:
        """Weight in [0, 1] at ``progress`` of the training: 0 during the delay, then rising linearly for as
        long again.
        """
        delay = self.config.delay
        return 1.0 if delay == 0 else float(np.clip((progress - delay) / delay, 0, 1))

    def due(self, step: int, progress: float = 1.0) -> bool:
        """Whether this step has a probe of second order."""
        lazy = not step % self.config.probe_every and self.strength(progress) > 0
        return lazy and bool(self.config.readings & PROBED)

    def read(self, logits: Tensors | None, features: Sequence[Tensor] | None, label: Tensor) -> Tables:
        """Information in closed form: softmax arithmetic, with a graph to ``logits`` and ``features``."""
        config, tables = self.config, {}
        readings = config.readings - PROBED
        if config.prediction in readings:
            if logits is None:
                raise ValueError(f"{config.prediction!r} needs logits=: a dict of each modality's own logits")
            tables[config.prediction] = logit_information(
                {name: thinned(value, LOGITS) for name, value in logits.items()},
                thinned(nearest(label, next(iter(logits.values())).shape[-2:]), LOGITS),
                variance=config.variance,
            )
        if config.features in readings:
            if features is None:
                raise ValueError(f"{config.features!r} needs features=: one tensor (M·B, C, h, w) per scale")
            count = len(features[0]) // len(label)
            if count > 1 or self.sensors:  # a modality alone has no other to be compared with
                maps = [thinned(feature, FEATURES) for feature in features[-SCALES:]]
                scales = feature_information(maps, count, reading=config.features, variance=config.variance)
                tables |= {f"{config.features} scale {j}": values for j, values in enumerate(scales, 1)}
        return spread(tables, logits, self.sensors)

    def probe(
        self,
        network: Callable,
        batch: dict,
        step: int,
        progress: float = 1.0,
        gather: Callable = lambda table: table,
    ) -> tuple[Tensor, Tensor]:
        """R_p and R_f of the readings that differentiate the network, on a crop of a few samples of a batch
        (images, label, present), each with its own sensors. A probe stands for ``probe_every`` steps.
        """
        self.tallies["probes"] += 1
        config, tables = self.config, []
        readings = config.readings & PROBED
        options = {"variance": config.variance, "create_graph": True}
        noise = {"seed": derived_seed(self.seed, "probe", step)} | options
        cropped = crop(config, batch, derived_seed(self.seed, "probe crop", step))
        for images, label in map(dict.values, parts(cropped)):
            own = {}
            if "gat" in readings:
                own["gat"] = gat_information(network, images, **noise)
            elif config.prediction in readings:
                own[config.prediction], _ = input_information(
                    network, images, label, sigma=config.sigma, reading=config.prediction, **noise
                )
            if "decoder" in readings:
                features = network.features(images)
                scales = decoder_information(network.head, features, label, len(images), **options)
                own |= {f"decoder scale {j}": values for j, values in enumerate(scales, 1)}
            tables.append(spread(own, images, self.sensors))
        own = {name: torch.cat([table[name] for table in tables], 1) for name in tables[0]}
        return self.terms(own, gather_tables([own], gather), self.strength(progress) * config.probe_every)

    def terms(
        self, own: Tables, whole: Tables, weight: float = 1.0, counting: bool = True
    ) -> tuple[Tensor, Tensor]:
        """R_p (Eq. 4 or 6) and R_f (Eq. 7, the sum over scales), times λ_p and λ_f and ``weight``; 0.0 where
        there is none.

        Args:
            own: information with a graph, of one micro-batch.
            whole: that of all samples of the step.
        """
        R_p = R_f = 0.0
        for name, values in own.items():
            form = "gat" if name == "gat" else self.config.form
            R, self.information[name], capped = term(values, whole[name], form, self.config.cap)
            if name == self.config.prediction:
                R_p = R_p + R
            else:
                R_f = R_f + R
            if counting:
                empty = whole[name].isnan().all(0)
                self.tallies["empty"] += empty.sum()
                self.tallies["nonfinite"] += (~usable(whole[name]).any(0) & ~empty).sum()
                self.tallies["capped"] += capped
        return self.config.lambda_p * weight * R_p, self.config.lambda_f * weight * R_f

    def __call__(
        self,
        network: Callable,
        images: Tensors,
        label: Tensor,
        *,
        logits: Tensors | None = None,
        features: list[Tensor] | None = None,
        step: int | None = None,
        progress: float = 1.0,
    ) -> Tensor:
        """R_p + R_f, the scalar to add to the loss, of one batch in one process.

        Args:
            network: name -> (B, C, H, W) to logits (B, K, h, w).
            label: (B, H, W) int64, 255 = ignore.
            logits: name -> (B, K, h, w), for the logit readings.
            features: one (M·B, C, h, w) per scale, stacked by modality, for the feature readings; ``decoder``
                needs none, it takes ``network.features`` and ``network.head``.
            step: number of the step, from which everything random follows; counted here if not given.
            progress: share of the training that is done, for delay and ramp.
        """
        step = self.calls if step is None else step
        self.calls = step + 1
        terms = [label.new_zeros((), dtype=torch.float32)]
        if (strength := self.strength(progress)) > 0:
            own = self.read(logits, features, label)
            terms += self.terms(own, own, strength)
        if self.due(step, progress):
            present = torch.ones(len(label), len(images)).bool()
            batch = {"images": images, "label": label, "present": present}
            terms += self.probe(network, batch, step, progress)
        return sum(terms)
