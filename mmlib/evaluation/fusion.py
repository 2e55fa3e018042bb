"""Rules that fuse the predictions of several sensors at inference. None of them has a trained parameter.
Scoring and prediction call them.

Every rule is a weighted sum Σ_i w_i z_i of the sensors' logits z_i (Eq. 5 has w_i = 1/n); they differ in
where the weights come from.

* ``mean``: 1/n each, the paper's rule.
* ``total``: 1 each. The argmax is that of the mean, the softmax is sharper: the product of the sensors'
    likelihoods.
* ``agreement``: softmax over the sensors of −τ · KL(p_i ‖ p_others), where p_others is the prediction of the
  mean logits of all other sensors: a sensor that contradicts what the rest agrees on counts for little. One
  weight per image. It takes three sensors to have a majority; with fewer it is the mean.
* ``selection``: the ⌈n/2⌉ sensors closest to the mean prediction, 1/⌈n/2⌉ each, in the manner of methods that
  rank sensors by their similarity to the fused whole. MAGIC, which ranks them in training, fuses by the mean.
* ``entropy``: proportional to exp(−H) at every pixel, H the entropy of the sensor's prediction. It trusts a
  sensor that is sure of itself, as a broken one can be: an idea that looks good and does not work.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

# Images (B, C, H, W) by sensor -> an encoding by sensor, such as logits (B, K, h, w).
Encode = Callable[[dict[str, Tensor]], dict[str, Tensor]]
# Encodings of the sensors that take part -> fused logits (B, K, h, w).
Fuse = Callable[[dict[str, Tensor]], Tensor]

TAU = 2.0  # sharpness of the agreement rule; set beforehand and not tuned


def disagreement(stack: Tensor) -> Tensor:
    """(n, B, K, h, w) logits -> (n, B): KL(p_i ‖ p_others), the mean over pixels, in nats; p_others leaves
    sensor i out, so that there must be two or more.
    """
    count = len(stack)
    # Summed afresh for each sensor. Taking a loud sensor's logits out of a sum that holds them would cancel
    # the quiet ones.
    leave_out = (1 - torch.eye(count, device=stack.device)) / (count - 1)
    own, others = stack.log_softmax(2), torch.einsum("ij,jbkhw->ibkhw", leave_out, stack).log_softmax(2)
    return (own.exp() * (own - others)).sum(2).mean((-2, -1))


def _agreement(stack: Tensor) -> Tensor:
    """w = softmax over the sensors of −τ · KL(p_i ‖ p_others)."""
    if len(stack) < 3:
        return _constant(stack, 1 / len(stack))
    return (-TAU * disagreement(stack)).softmax(0)[..., None, None]


def similarity_to_mean(stack: Tensor) -> Tensor:
    """(n, B, K, h, w) logits -> (n, B): cosine of each sensor's probabilities with those of the mean logits,
    the mean over pixels.
    """
    return F.cosine_similarity(stack.softmax(2), stack.mean(0).softmax(1)[None], dim=2).mean((-2, -1))


def _selection(stack: Tensor) -> Tensor:
    """w = 1/k for the k = ⌈n/2⌉ sensors closest to the mean."""
    similarity, k = similarity_to_mean(stack), math.ceil(len(stack) / 2)
    closest = similarity.topk(k, dim=0).indices
    return torch.zeros_like(similarity).scatter(0, closest, 1 / k)[..., None, None]


def _entropy(stack: Tensor) -> Tensor:
    """w = exp(−H_i) / Σ_j exp(−H_j) at every pixel."""
    log_p = stack.log_softmax(2)
    return (log_p.exp() * log_p).sum(2).softmax(0)  # softmax(−H) is exp(−H) over its sum


def _constant(stack: Tensor, share: float) -> Tensor:
    return stack.new_full((*stack.shape[:2], 1, 1), share)


# Rule -> function of the stacked logits (n, B, K, h, w) that gives the weights (n, B, 1, 1) or, pixel by
# pixel, (n, B, h, w).
RULES = {
    "mean": lambda stack: _constant(stack, 1 / len(stack)),
    "total": lambda stack: _constant(stack, 1.0),
    "agreement": _agreement,
    "selection": _selection,
    "entropy": _entropy,
}


def _shares(logits: Mapping[str, Tensor], rule: str) -> tuple[Tensor, Tensor]:
    """(stacked logits, their weights by ``rule``)."""
    if rule not in RULES:
        raise ValueError(f"fusion {rule!r}; expected one of {', '.join(RULES)}")
    shapes = {name: tuple(value.shape) for name, value in logits.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 4:
        raise ValueError(
            f"logits of shapes {shapes}; expected (B, K, h, w), the same for every sensor, and at least one "
            "sensor"
        )
    stack = torch.stack([value.float() for value in logits.values()])
    # Not finite anywhere: NaN everywhere, so that no rule passes over the sensor that yields no numbers.
    finite = stack.isfinite().all(0).flatten(1).all(1)[:, None, None, None]
    stack = torch.where(finite, stack, torch.nan)
    return stack, RULES[rule](stack)


def weights(logits: Mapping[str, Tensor], rule: str = "mean") -> Tensor:
    """Sensor name -> (B, K, h, w) logits, to the weight (n, B) that each sensor has in each image.

    They sum to 1 over the sensors, except those of "total", which are 1 each. For "entropy", the mean over
    pixels.

    Raises:
        ValueError: as ``fuse``.
    """
    return _shares(logits, rule)[1].mean((-2, -1))


def fuse(logits: Mapping[str, Tensor], rule: str = "mean") -> Tensor:
    """Sensor name -> (B, K, h, w) logits, to fused logits (B, K, h, w), float32: NaN in an image of which any
    logits are not finite, and ``mmlib.evaluation.subsets.largest`` refuses that.

    Raises:
        ValueError: unknown rule, no sensor, or shapes that differ.
    """
    stack, share = _shares(logits, rule)
    return (stack * share[:, :, None]).sum(0)


# Rule -> function of the logits alone, for ``evaluate_subsets(fuse=...)`` and
# ``evaluate_failures(rules=...)``.
FUSIONS = {rule: partial(fuse, rule=rule) for rule in RULES}
