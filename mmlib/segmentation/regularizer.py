"""The regulariser: R (Eq. 4), R_p (Eq. 6) and R_f (Eq. 7), to be added to any supervised loss (Eq. 8 and 9).

In anybody's training loop, for any network that maps a dict of images to logits:

    regularizer = Regularizer(RegularizerConfig(prediction="input"))
    ...
    loss = cross_entropy(network(images), label)
    loss = loss + regularizer(network, images, label)

What costs a second derivative is a lazy probe: every k-th step, on a crop of one sample, weighted k-fold.
What has a closed form is computed at every step, from logits and features that the step has anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from ..config import Above, AtLeast, Between
from ..modalities import IGNORE_INDEX
from ..runtime import derived_seed
from .information import (
    decoder_information,
    feature_information,
    gat_information,
    input_information,
    logit_information,
    nearest,
    thinned,
)

# Positions at which the closed forms read a map: a mean over more of them costs time and says the same.
LOGITS, FEATURES = 256, 64
PROBED = ("input", "consistency", "gat")  # readings that differentiate the network


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

    def check(self) -> None:
        """Raise ValueError for settings that cannot work."""
        for name in ("lambda_p", "lambda_f"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} {getattr(self, name)}: a weight of 0 or more; a negative one would reward imbalance"
                )
        if not self.sigma > 0:
            raise ValueError(
                f"sigma {self.sigma}: a standard deviation above 0; without noise there is no measure to take entropy over"
            )
        if not 0 < self.probe_crop <= 1 or self.probe_every < 1 or self.probe_samples < 1:
            raise ValueError(
                f"probe_every {self.probe_every}, probe_crop {self.probe_crop}, probe_samples {self.probe_samples}: "
                "steps and samples of 1 or more, a crop share above 0 and up to 1"
            )
        if not self.cap > 0 or not 0 <= self.delay < 1:
            raise ValueError(
                f"cap {self.cap}, delay {self.delay}: a cap above 0 and a delay from 0 to less than 1"
            )

    @property
    def active(self) -> bool:
        return (self.prediction != "none" and self.lambda_p > 0) or (
            self.features != "none" and self.lambda_f > 0
        )

    @property
    def needs_modalities(self) -> bool:
        """Whether it reads predictions or features of single modalities, which not every network has."""
        return self.features != "none" or self.prediction in ("consistency", "unimodal-logit", "fused-logit")


def combine(information: Tensor, form: str) -> Tensor:
    """One loss from the information of the modalities (M,), all positive.

    ``inverse``  Σ 1/I_i. Falls when any I grows: balances *and* rewards sensitivity without end.
    ``balance``  mean(I) · mean(1/I) − 1 ≥ 0 by the inequality of the arithmetic and harmonic means, 0 only
                 where all are equal; a common factor drops out. With shares s_i = I_i / ΣI it equals the mean
                 of 1/(M s_i), less 1.
    ``share``    ln(mean(I)) − mean(ln I) = −mean ln(M s_i) ≥ 0: the same with the geometric mean, and a
    gentler pull.
    """
    if form == "inverse":
        return (1 / information).sum()
    if form == "balance":
        return information.mean() * (1 / information).mean() - 1
    return information.mean().log() - information.log().mean()


class Regularizer:
    """λ_p R_p + λ_f R_f, with guards that are counted.

    Attributes:
        information: name of the term -> (M,) information, of the latest call that computed it.
    """

    def __init__(self, config: RegularizerConfig, seed: int = 0):
        config.check()
        self.config, self.seed, self.calls = config, seed, 0
        self._counts: dict[str, Tensor | int] = dict.fromkeys(("probes", "capped", "empty", "nonfinite"), 0)
        self.information: dict[str, Tensor] = {}

    def strength(self, progress: float) -> float:
        """Weight in [0, 1] at ``progress`` of the training: 0 during the delay, then rising linearly for as
        long again.
        """
        delay = self.config.delay
        return 1.0 if delay == 0 else float(np.clip((progress - delay) / delay, 0, 1))

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
        """The scalar to add to the loss.

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
        return self.closed_form(logits, features, label, progress) + self.probe(
            network, images, label, step, progress
        )

    def closed_form(self, logits, features, label: Tensor, progress: float = 1.0) -> Tensor:
        """The terms that cost only softmax arithmetic; graph-connected to ``logits`` and ``features``."""
        config, weight = self.config, self.strength(progress)
        total = label.new_zeros((), dtype=torch.float32)
        if weight == 0:
            return total
        if config.prediction in ("unimodal-logit", "fused-logit") and config.lambda_p > 0:
            if logits is None:
                raise ValueError(
                    f"the reading {config.prediction!r} needs logits=: a dict of each modality's own logits"
                )
            small = thinned(nearest(label, next(iter(logits.values())).shape[-2:]), LOGITS)
            logits = {name: thinned(value, LOGITS) for name, value in logits.items()}
            values, _ = logit_information(
                logits, small, fused=config.prediction == "fused-logit", variance=config.variance
            )
            total = total + config.lambda_p * weight * self._term(config.prediction, values, small)
        if config.features in ("kl", "ce") and config.lambda_f > 0:
            if features is None:
                raise ValueError(
                    f"the reading {config.features!r} needs features=: one tensor (M·B, C, h, w) per scale"
                )
            count = len(features[0]) // len(label)
            if count == 1:  # a modality is its own mean: nothing to compare
                return total
            # The paper's four scales are those of the encoder's four stages; a fifth, finer one is the
            # stem's.
            maps = [thinned(feature, FEATURES) for feature in features[-4:]]
            values, _ = feature_information(maps, count, reading=config.features, variance=config.variance)
            for j, value in enumerate(values):
                total = total + config.lambda_f * weight * self._term(
                    f"{config.features} scale {j + 1}", value
                )
        return total

    def due(self, step: int, progress: float = 1.0) -> bool:
        """Whether this step has a probe of second order."""
        config = self.config
        probed = (config.prediction in PROBED and config.lambda_p > 0) or (
            config.features == "decoder" and config.lambda_f > 0
        )
        return probed and step % config.probe_every == 0 and self.strength(progress) > 0

    def probe(
        self, network: Callable, images: Mapping[str, Tensor], label: Tensor, step: int, progress: float = 1.0
    ) -> Tensor:
        """The terms of second order: 0 on steps without a probe, weighted by ``probe_every`` on the others."""
        config = self.config
        total = label.new_zeros((), dtype=torch.float32)
        if not self.due(step, progress):
            return total
        self._count("probes", 1)
        images, label = self._crop(images, label, step)
        weight, seed = self.strength(progress) * config.probe_every, derived_seed(self.seed, "probe", step)
        if config.prediction in PROBED and config.lambda_p > 0:
            if config.prediction == "gat":
                values, _ = gat_information(
                    network, images, seed=seed, variance=config.variance, create_graph=True
                )
            else:
                values, _ = input_information(
                    network,
                    images,
                    label,
                    sigma=config.sigma,
                    seed=seed,
                    reading=config.prediction,
                    variance=config.variance,
                    create_graph=True,
                )
            term = self._term(config.prediction, values, label)
            total = total + config.lambda_p * weight * term
        if config.features == "decoder" and config.lambda_f > 0:
            values, _ = decoder_information(
                network.head,
                network.features(dict(images)),
                label,
                len(images),
                variance=config.variance,
                create_graph=True,
            )
            for j, value in enumerate(values):
                total = total + config.lambda_f * weight * self._term(f"decoder scale {j + 1}", value, label)
        return total

    def _crop(
        self, images: Mapping[str, Tensor], label: Tensor, step: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """A few samples and one window of them, at least 32 pixels a side where the image has them."""
        config = self.config
        rng = np.random.default_rng(derived_seed(self.seed, "probe crop", step))
        samples = min(max(config.probe_samples, 2 if config.prediction == "gat" else 1), len(label))
        chosen = torch.from_numpy(np.sort(rng.choice(len(label), samples, replace=False))).to(label.device)
        height, width = (
            min(length, max(32, round(length * config.probe_crop))) for length in label.shape[-2:]
        )
        top, left = rng.integers(label.shape[-2] - height + 1), rng.integers(label.shape[-1] - width + 1)
        window = (..., slice(top, top + height), slice(left, left + width))
        return {name: image[chosen][window] for name, image in images.items()}, label[chosen][window]

    def _term(self, name: str, values: Tensor, label: Tensor | None = None) -> Tensor:
        """Information (M, B) to one guarded number: mean over the usable samples, combined over modalities,
        capped.
        """
        usable = (torch.isfinite(values) & (values > 0)).all(0)
        empty = torch.zeros_like(usable)
        if label is not None and values.shape[1] == len(label):
            empty = (label != IGNORE_INDEX).flatten(1).sum(1) == 0
        self._count("empty", empty.sum())
        self._count("nonfinite", (~usable & ~empty).sum())
        # The integral is the mean over samples and noise, inverted after: E[1/I] would be larger (Jensen).
        # All by arithmetic: a branch on a value would make a GPU wait for it.
        information = torch.where(usable, values, 0.0).sum(1) / usable.sum().clamp_min(1)
        information = torch.where(usable.any(), information, 1.0)
        self.information[name] = information.detach()
        if name == "gat":
            value = (1 / information).norm()  # their λ of 1e-10 belongs to values of 1e9: no cap
        else:
            value = combine(information + 1e-6 * information.detach().mean(), self.config.form)
            self._count("capped", (value.detach() > self.config.cap).sum())
            value = value * (self.config.cap / value.detach().clamp_min(self.config.cap))
        return torch.where(usable.any(), value, 0.0)

    def _count(self, what: str, number: Tensor | int) -> None:
        self._counts[what] = self._counts[what] + number

    def restore(self, counts: Mapping[str, int]) -> None:
        """Go on counting from ``counts``, of a run that is resumed."""
        self._counts |= counts

    @property
    def counts(self) -> dict[str, int]:
        """Since the start: "probes"; "capped" terms; "empty" samples without a labelled pixel; "nonfinite"
        samples, left out because their information was not a positive finite number.
        """
        return {name: int(number) for name, number in self._counts.items()}
