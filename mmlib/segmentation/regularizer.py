"""The regulariser that balances sensors: which information is read, when, and how it becomes R_p (Eq. 4 or 6)
and R_f (Eq. 7) of the training loss L = L_sup + λ_p R_p + λ_f R_f (Eq. 9).

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

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from ..config import Above, AtLeast, Between, check_settings
from ..modalities import IGNORE_INDEX
from ..runtime import derived_seed
from .information import (
    SCALES,
    combine,
    decoder_information,
    feature_information,
    gat_information,
    input_information,
    logit_information,
    nearest,
    term,
)

__all__ = ["Regularizer", "RegularizerConfig", "combine"]

# Positions at which the closed forms read a map: a mean over more of them costs time and says the same.
LOGITS, FEATURES = 256, 64
PROBED = ("input", "consistency", "gat")  # readings that differentiate the network

# Name of a term -> (M + 1, N): the information of M modalities in N samples, and in the last row 1 for a
# sample without a labelled pixel.
Tables = dict[str, Tensor]


@dataclass(frozen=True)
class RegularizerConfig:
    """Which information is balanced, how, and how strongly."""

    prediction: Literal["none", "input", "consistency", "gat", "unimodal-logit", "fused-logit"] = "none"
    """R_p: input = Eq. 6; consistency = Eq. 4; gat = Gat et al. as coded (give --lambda-p 1e-10); the logit
    readings are closed forms.
    """
    features: Literal["none", "kl", "ce", "decoder"] = "none"
    """R_f, Eq. 7: kl (finite where modalities agree), ce (as printed), decoder (through the head)."""
    form: Literal["balance", "share", "inverse"] = "balance"
    """From information to a loss: inverse = the sum of 1/I, as printed; balance = mean(I) · mean(1/I) − 1;
    share = its log form.
    """
    variance: bool = False
    """Poincaré form: squared gradients that are not divided by f."""
    lambda_p: Annotated[float, AtLeast(0, "a negative one would reward imbalance")] = 0.3
    """Weight of R_p (paper: 0.3)."""
    lambda_f: Annotated[float, AtLeast(0, "a negative one would reward imbalance")] = 0.02
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
    def prediction_term(self) -> bool:
        return self.prediction != "none" and self.lambda_p > 0

    @property
    def feature_term(self) -> bool:
        return self.features != "none" and self.lambda_f > 0

    @property
    def probed(self) -> bool:
        """Whether it has terms of second order."""
        return (self.prediction_term and self.prediction in PROBED) or (
            self.feature_term and self.features == "decoder"
        )

    @property
    def in_closed_form(self) -> bool:
        """Whether it has terms that are computed at every step from logits or features."""
        return (self.prediction_term and self.prediction not in PROBED) or (
            self.feature_term and self.features != "decoder"
        )

    @property
    def active(self) -> bool:
        return self.prediction_term or self.feature_term

    @property
    def needs_modalities(self) -> bool:
        """Whether it reads predictions or features of single modalities, which not every network has."""
        return self.features != "none" or self.prediction in ("consistency", "unimodal-logit", "fused-logit")


# ---- information ----


def read_outputs(
    config: RegularizerConfig,
    logits: Mapping[str, Tensor] | None,
    features: Sequence[Tensor] | None,
    label: Tensor,
) -> Tables:
    """Information in closed form: only softmax arithmetic, with a graph to ``logits`` and ``features``."""
    tables: Tables = {}
    if config.prediction_term and config.prediction not in PROBED:
        if logits is None:
            raise ValueError(
                f"the reading {config.prediction!r} needs logits=: a dict of each modality's own logits"
            )
        small = thinned(nearest(label, next(iter(logits.values())).shape[-2:]), LOGITS)
        values, _ = logit_information(
            {name: thinned(value, LOGITS) for name, value in logits.items()},
            small,
            fused=config.prediction == "fused-logit",
            variance=config.variance,
        )
        tables[config.prediction] = _table(values, small)
    if config.feature_term and config.features != "decoder":
        if features is None:
            raise ValueError(
                f"the reading {config.features!r} needs features=: one tensor (M·B, C, h, w) per scale"
            )
        count = len(features[0]) // len(label)
        if count > 1:  # a modality alone is its own mean: nothing to compare
            maps = [thinned(feature, FEATURES) for feature in features[-SCALES:]]
            scales, _ = feature_information(maps, count, reading=config.features, variance=config.variance)
            tables |= {f"{config.features} scale {j}": _table(values) for j, values in enumerate(scales, 1)}
    return tables


def read_probe(
    config: RegularizerConfig,
    network: Callable,
    images: Mapping[str, Tensor],
    label: Tensor,
    seed: int,
    step: int,
) -> Tables:
    """Information that differentiates the network, on a crop of a few samples."""
    tables: Tables = {}
    images, label = crop(config, images, label, derived_seed(seed, "probe crop", step))
    options = {"variance": config.variance, "create_graph": True}
    noise = {"seed": derived_seed(seed, "probe", step)}
    if config.prediction_term and config.prediction == "gat":
        values, _ = gat_information(network, images, **noise, **options)
        tables["gat"] = _table(values)  # one number for the whole batch
    elif config.prediction_term and config.prediction in PROBED:
        noise |= {"sigma": config.sigma, "reading": config.prediction}
        values, _ = input_information(network, images, label, **noise, **options)
        tables[config.prediction] = _table(values, label)
    if config.feature_term and config.features == "decoder":
        features = network.features(dict(images))
        scales, _ = decoder_information(network.head, features, label, len(images), **options)
        tables |= {f"decoder scale {j}": _table(values, label) for j, values in enumerate(scales, 1)}
    return tables


def crop(
    config: RegularizerConfig, images: Mapping[str, Tensor], label: Tensor, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """A few samples and one window of them, at least 32 pixels a side where the image has them."""
    rng = np.random.default_rng(seed)
    count = min(max(config.probe_samples, 2 if config.prediction == "gat" else 1), len(label))
    samples = torch.from_numpy(np.sort(rng.choice(len(label), count, replace=False))).to(label.device)
    height, width = (min(side, max(32, round(side * config.probe_crop))) for side in label.shape[-2:])
    top, left = rng.integers(label.shape[-2] - height + 1), rng.integers(label.shape[-1] - width + 1)
    window = (..., slice(top, top + height), slice(left, left + width))
    return {name: image[samples][window] for name, image in images.items()}, label[samples][window]


def thinned(value: Tensor, positions: int) -> Tensor:
    """About ``positions`` evenly spaced pixels of a map (..., h, w)."""
    stride = max(1, round((value.shape[-2] * value.shape[-1] / positions) ** 0.5))
    return value[..., stride // 2 :: stride, stride // 2 :: stride]


def _table(values: Tensor, label: Tensor | None = None) -> Tensor:
    empty = torch.zeros_like(values[0])
    if label is not None:
        empty = ((label != IGNORE_INDEX).flatten(1).sum(1) == 0).to(values)
    return torch.cat([values, empty[None]])


# ---- gather ----


def gather_tables(parts: Sequence[Tables], gather: Callable[[Tensor], Tensor]) -> Tables:
    """The tables of all samples of a step, without graph, from those of this process's micro-batches; samples
    are in the order of processes, then of micro-batches.

    Args:
        gather: (n, …) of this process -> (processes · n, …) of all, in the order of their ranks.
    """
    names = parts[0] if parts else ()
    return {name: gather(torch.cat([part[name].detach() for part in parts], 1).T).T for name in names}


def with_own_samples(whole: Tables, own: Tables, place: int) -> Tables:
    """``whole`` with the ``place``-th block of samples replaced by ``own``, which has a graph: every
    micro-batch of every process gets the value of the whole step and the gradient of its own samples.
    """
    tables = {}
    for name, table in own.items():
        first, last = place * table.shape[1], (place + 1) * table.shape[1]
        tables[name] = torch.cat([whole[name][:, :first], table, whole[name][:, last:]], 1)
    return tables


# ---- combine ----


class Regularizer:
    """R_p and R_f, lazy probes, delay and ramp, and guards that are counted.

    Attributes:
        counts: since the start: "probes"; "capped" terms; "empty" samples without a labelled pixel;
            "nonfinite" samples, left out because their information was not a positive finite number. Counted
            on the device; ``int`` makes it wait.
        information: name of the term -> (M,) information, of the latest call that computed it.
    """

    def __init__(self, config: RegularizerConfig, seed: int = 0):
        check_settings(config)
        self.config, self.seed, self.calls = config, seed, 0
        self.tallies: dict[str, Tensor | int] = dict.fromkeys(("probes", "capped", "empty", "nonfinite"), 0)
        self.information: dict[str, Tensor] = {}

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
        return self.config.probed and step % self.config.probe_every == 0 and self.strength(progress) > 0

    def weights(self, progress: float, steps: int = 1) -> tuple[float, float]:
        """λ_p and λ_f at ``progress`` of the training, of a term that stands for so many steps."""
        strength = self.strength(progress) * steps
        return self.config.lambda_p * strength, self.config.lambda_f * strength

    def probe(
        self,
        network: Callable,
        images: Mapping[str, Tensor],
        label: Tensor,
        step: int,
        gather: Callable[[Tensor], Tensor] = lambda table: table,
        rank: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """R_p and R_f of second order."""
        self.tallies["probes"] += 1
        own = read_probe(self.config, network, images, label, self.seed, step)
        return self.terms(with_own_samples(gather_tables([own], gather), own, rank))

    def terms(self, tables: Tables, counting: bool = True) -> tuple[Tensor | float, Tensor | float]:
        """R_p (Eq. 4 or 6) and R_f (Eq. 7, the sum over scales) of gathered information; 0.0 where there is
        none.
        """
        R_p = R_f = 0.0
        for name, table in tables.items():
            values, empty = table[:-1], table[-1] > 0
            form = "gat" if name == "gat" else self.config.form
            R, self.information[name], capped = term(values, form, self.config.cap)
            R_p, R_f = (R_p + R, R_f) if name == self.config.prediction else (R_p, R_f + R)
            if counting:
                usable = (torch.isfinite(values) & (values > 0)).all(0)
                self.tallies["empty"] += empty.sum()
                self.tallies["nonfinite"] += (~usable & ~empty).sum()
                self.tallies["capped"] += capped
        return R_p, R_f

    def __call__(
        self,
        network: Callable,
        images: Mapping[str, Tensor],
        label: Tensor,
        *,
        logits: Mapping[str, Tensor] | None = None,
        features: list[Tensor] | None = None,
        step: int | None = None,
        progress: float = 1.0,
    ) -> Tensor:
        """λ_p R_p + λ_f R_f, the scalar to add to the loss, of one batch in one process.

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
        total = label.new_zeros((), dtype=torch.float32)
        if self.strength(progress) > 0:
            lambda_p, lambda_f = self.weights(progress)
            R_p, R_f = self.terms(read_outputs(self.config, logits, features, label))
            total = total + lambda_p * R_p + lambda_f * R_f
        if self.due(step, progress):
            lambda_p, lambda_f = self.weights(progress, self.config.probe_every)
            R_p, R_f = self.probe(network, images, label, step)
            total = total + lambda_p * R_p + lambda_f * R_f
        return total
