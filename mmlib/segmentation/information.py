"""Functional Fisher information of a segmenter, per modality and sample, and the terms of Eq. 4, 6 and 7 that
are made of it. Called by the regulariser while a network is trained, and by what measures the Fisher gap.

Everything here is scale-free: with f a mean over N pixels, information is I_i = σ_i² · N · ‖∇_i f‖² / f. It
does not change when an image is tiled, when a modality is given in other units together with its noise, or
when a batch grows. All of it runs in float32 (or float64), also under autocast.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..data.plausible import evenly_spaced
from ..data.prepared import PreparedDataset, collate
from ..modalities import IGNORE_INDEX
from ..runtime import derived_seed
from .network import Tensors

# Added to f before dividing: a sample that is fitted perfectly has no information, not an infinite one.
EPS = 1e-6
SCALES = 4  # of Eq. 5 and 7: the features of the encoder's four stages


@contextmanager
def exact(device: torch.device, network=None):
    """Full precision, and attention by plain matrix products: fused attention kernels have no second
    derivative.

    Activations of ``network`` are kept, not recomputed: recomputation would happen in the caller's backward
    pass, outside of this context and so by another attention kernel.
    """
    modules = getattr(network, "modules", list)()  # any callable may be measured
    checkpointed = [module for module in modules if getattr(module, "grad_checkpointing", False)]
    for module in checkpointed:
        module.grad_checkpointing = False
    try:
        with torch.autocast(device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module in checkpointed:
            module.grad_checkpointing = True


def mean_cross_entropy(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Per-sample mean cross-entropy over labelled pixels (B,), 0 where there are none, and their number (B,).

    Args:
        logits: (B, K, h, w), upsampled to the label's size here.
        label: (B, H, W) int64 with 255 = ignore, or class probabilities (B, K, H, W).
    """
    if logits.shape[-2:] != label.shape[-2:]:
        logits = F.interpolate(logits, label.shape[-2:], mode="bilinear")
    soft = label.ndim == 4
    valid = torch.ones_like(label[:, 0]) if soft else label != IGNORE_INDEX
    pixels = valid.flatten(1).sum(1).to(logits.dtype)
    loss = F.cross_entropy(logits, label, ignore_index=-1 if soft else IGNORE_INDEX, reduction="none")
    return loss.flatten(1).sum(1) / pixels.clamp_min(1), pixels


def _information(energy: Tensor, f: Tensor, pixels: Tensor, variance: bool) -> Tensor:
    """energy / f, NaN where there is no labelled pixel, infinite where the network's output is no finite
    number; ``variance``: not divided by f (Poincaré's bound on the variance).
    """
    # ``where`` after the division: a NaN inside the arithmetic would reach the gradients even where its
    # result is not used.
    values = (energy if variance else energy / (f + EPS)).nan_to_num(torch.inf, torch.inf)
    return torch.where(pixels > 0, values, torch.nan)


def noisy(images: Tensors, sigma: float | None, seed: int) -> Tensors:
    """Leaves z_i = x_i + σ ε, in at least float32; the same noise on every device for one seed. ``sigma``
    None: each coordinate's standard deviation over the batch.
    """
    result = {}
    for name, image in images.items():
        image, generator = _full(image.detach()), torch.Generator().manual_seed(derived_seed(seed, name))
        noise = torch.randn(image.shape, generator=generator, dtype=torch.float64).to(image)
        spread = image.std(0, keepdim=True) if sigma is None else sigma
        result[name] = (image + spread * noise).requires_grad_()
    return result


def input_information(
    network: Callable,
    images: Tensors,
    label: Tensor,
    *,
    sigma: float = 0.1,
    seed: int = 0,
    reading: str = "input",
    variance: bool = False,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """Information of each modality at its input, one noise sample per image (the integral's Monte-Carlo
    estimate).

    Args:
        network: name -> (B, C, H, W) images to (B, K, h, w) logits; not wrapped in DDP. Its samples must not
            mix (no BatchNorm in training mode), or the gradient of one sample holds shares of the others.
        images: in the network's space, where each modality has about unit spread: σ then is a share of that
            spread.
        reading: "input" (Eq. 6) or "consistency" (Eq. 4).
        variance: ‖∇f‖² instead of ‖∇f‖²/f, the Poincaré form.
        create_graph: so that the result can be differentiated (second order); otherwise only f can be.

    Returns:
        (information (M, B) in the order of ``images``, f (B,)); NaN where a sample has no labelled pixel.
    """
    if not sigma > 0:
        raise ValueError(f"sigma {sigma}: expected above 0; a measure without spread has no information")
    with torch.enable_grad(), exact(label.device, network):
        z = noisy(images, sigma, seed)
        if reading == "input":  # Eq. 6: f = CE(p(z), gt), one f for all modalities
            f, pixels = mean_cross_entropy(network(z), label)
            losses, total = [f] * len(z), f.sum()
        else:  # Eq. 4: f_i = CE(p(z_i), p(x)), every modality alone against the fused prediction
            with torch.no_grad():
                target = network({name: _full(image) for name, image in images.items()}).softmax(1)
            if hasattr(network, "modality_logits"):  # in one pass where the network offers it
                logits = network.modality_logits(z)
            else:
                logits = {name: network({name: image}) for name, image in z.items()}
            losses = []
            for name in z:
                loss, pixels = mean_cross_entropy(logits[name], target)
                losses.append(loss)
            f, total = torch.stack(losses).mean(0), sum(map(torch.sum, losses))
        # Samples do not mix, so that the gradient of a sum holds each sample's own.
        gradients = torch.autograd.grad(total, [*z.values()], create_graph=create_graph)
        rows = []
        for loss, gradient in zip(losses, gradients):
            energy = sigma**2 * pixels * gradient.flatten(1).square().sum(1)  # σ² N ‖∇_{x_i} f‖²
            rows.append(_information(energy, loss, pixels, variance))
        return torch.stack(rows), f


def gat_information(
    network: Callable,
    images: Tensors,
    *,
    seed: int = 0,
    variance: bool = False,
    create_graph: bool = False,
) -> Tensor:
    """Gat et al.'s information as their public code computes it, with one noise sample, and softmax for their
    multi-label sigmoid.

    All modalities are perturbed at once by ε · (standard deviation over the batch, per coordinate); f is the
    mean cross-entropy of the perturbed prediction to the clean one, one number for the whole batch; squared
    gradients are summed over channels, divided by f (``variance``: not) and averaged over pixels and batch.
    Nothing is normalised: information is about 1e-9, and their λ is 1e-10.

    Returns:
        information (M, 1).

    Raises:
        ValueError: a batch of one sample, whose spread is zero.
    """
    first = next(iter(images.values()))
    if len(first) < 2:
        raise ValueError("Gat et al.'s noise is the spread over the batch; use a batch of 2 or more samples")
    with torch.enable_grad(), exact(first.device, network):
        z = noisy(images, None, seed)
        # The target is not detached in their code either.
        target = network({name: _full(image.detach()) for name, image in images.items()}).softmax(1)
        f = F.cross_entropy(network(z), target)
        gradients = torch.autograd.grad(f, [*z.values()], create_graph=create_graph)
        energy = torch.stack([gradient.square().sum(1).mean() for gradient in gradients])[:, None]
        values = energy if variance else energy / f
        return values.nan_to_num(torch.inf, torch.inf)


def logit_information(logits: Tensors, label: Tensor, *, variance: bool = False) -> Tensor:
    """Information of each modality's logits in closed form: mean over pixels of ‖softmax − onehot‖², divided
    by CE.

    At the logits' own resolution, with the label's nearest pixels: upsampling first would cost as much as the
    loss itself. Each modality has its own f: the gradient of the cross-entropy of their mean is
    (softmax − onehot) / M for every one, and can not tell them apart.

    Returns:
        information (M, B); NaN where a sample has no labelled pixel.
    """
    stacked = torch.stack([_full(value) for value in logits.values()])  # (M, B, K, h, w)
    small = nearest(label, stacked.shape[-2:])
    valid = small != IGNORE_INDEX
    pixels = valid.flatten(1).sum(1).to(stacked.dtype)
    log_p = stacked.log_softmax(2)
    log_true = log_p.take_along_dim(small.masked_fill(~valid, 0)[None, :, None], 2)[:, :, 0]
    squared = log_p.exp().square().sum(2) - 2 * log_true.exp() + 1  # ‖p − onehot‖²
    f = (-log_true * valid).flatten(2).sum(2) / pixels.clamp_min(1)
    energy = (squared * valid).flatten(2).sum(2) / pixels.clamp_min(1)
    return _information(energy, f, pixels, variance)


def feature_information(
    features: list[Tensor], count: int, *, reading: str = "kl", variance: bool = False
) -> Tensor:
    """Eq. 7 in closed form: channel softmax q_i of modality i's features against that of their mean, which
    gets no gradient.

    ∂/∂f_i of CE(q_mean, q_i) and of KL(q_mean ‖ q_i) are both q_i − q_mean. CE, the literal reading, does not
    vanish when the two agree, so that its 1/I pushes modalities away from their mean; KL does, and I tends to
    2/C there, which is scaled to 1.

    Args:
        features: one (M·B, C_j, h_j, w_j) per scale, stacked by modality as ``Segmenter.features`` returns
            them.
        count: M.

    Returns:
        information (scales, M, B); NaN for a modality alone, which has no other to be compared with.
    """
    values = []
    for feature in features:
        # Channels last, where a softmax over them is fastest: (M, B, h w, C).
        stacked = _full(feature).flatten(2).transpose(1, 2).unflatten(0, (count, -1)).contiguous()
        log_q = stacked.log_softmax(3)
        log_mean = stacked.mean(0, keepdim=True).detach().log_softmax(3)
        target = log_mean.exp()
        # Eq. 7: f = CE(f_i^j, f_m^j), read as CE(q_m, q_i) or KL(q_m ‖ q_i)
        f = -(target * log_q).sum(3) if reading == "ce" else (target * (log_mean - log_q)).sum(3)
        f = f.mean(2)
        energy = (log_q.exp() - target).square().sum(3).mean(2)  # ‖∇_{f_i^j} f‖² = ‖q_i − q_m‖²
        if reading == "kl":
            energy = energy * (stacked.shape[3] / 2)
        values.append(_information(energy, f, torch.full_like(f, count - 1), variance))
    return torch.stack(values)


def decoder_information(
    decode: Callable[[list[Tensor]], Tensor],
    features: list[Tensor],
    label: Tensor,
    count: int,
    *,
    variance: bool = False,
    create_graph: bool = False,
) -> Tensor:
    """Eq. 7 through the head: f = CE(mean of the decoded features, label), differentiated by each modality's
    features at the four scales of the encoder's stages; a fifth, finer one is the stem's.

    σ² is the (constant) variance of that modality's features at that scale, so that shrinking features does
    not inflate it.

    Args:
        decode: list of features (M·B, C_j, h_j, w_j) -> logits (M·B, K, h, w), e.g. ``segmenter.head``.
        features: what ``decode`` takes, fine to coarse; of more than four the last four are scales.

    Returns:
        information (scales, M, B); NaN where a sample has no labelled pixel.
    """
    with torch.enable_grad(), exact(label.device):
        # Views: the encoder makes each scale from the one before, and the way from a fine scale to the loss
        # through the coarser ones is not the head's.
        leaves = [feature.requires_grad_().view_as(feature) for feature in map(_full, features)]
        f, pixels = mean_cross_entropy(decode(leaves).unflatten(0, (count, -1)).mean(0), label)
        scales = leaves[-SCALES:]
        gradients = torch.autograd.grad(f.sum(), scales, create_graph=create_graph)
        values = []
        for feature, gradient in zip(scales, gradients):
            variances = feature.detach().unflatten(0, (count, -1)).flatten(2).var(2, correction=0)  # (M, B)
            energy = gradient.unflatten(0, (count, -1)).flatten(2).square().sum(2) * variances * pixels
            values.append(_information(energy, f, pixels, variance))
        return torch.stack(values)


def combine(information: Tensor, form: str) -> Tensor:
    """One loss from the information of the modalities (M,), all positive; those of NaN are not there.

    ``inverse``  Σ 1/I_i, as printed in Eq. 4, 6 and 7. Falls when any I grows: it balances, and it also
                 rewards sensitivity without end.
    ``balance``  mean(I) · mean(1/I) − 1 ≥ 0 by the inequality of the arithmetic and harmonic means, 0 only
                 where all are equal; a common factor drops out. With shares s_i = I_i / ΣI it equals the mean
                 of 1/(M s_i), less 1.
    ``share``    ln(mean(I)) − mean(ln I) = −mean ln(M s_i) ≥ 0: the same with the geometric mean, and a
                 gentler pull.
    """
    if form == "inverse":
        return (1 / information).nansum()
    if form == "balance":
        return information.nanmean() * (1 / information).nanmean() - 1
    return information.nanmean().log() - information.log().nanmean()


def usable(values: Tensor) -> Tensor:
    """Which information (M, N) is used: that of samples whose every modality has a positive, finite number or
    NaN, which means that the sample lacks it. Too small a number does not count as positive: the gradient of
    1/I is 1/I², which has to be finite, too. (Features that agree and are large have such an information.)
    """
    good = torch.isfinite(values) & (values > torch.finfo(values.dtype).tiny ** 0.5)
    return good & (good | values.isnan()).all(0)


def term(values: Tensor, whole: Tensor, form: str, cap: float) -> tuple[Tensor, Tensor, Tensor]:
    """One term of the regulariser, without its λ, from the information (M, N) of modalities and samples.

    Eq. 4, 6 and, at one scale, 7, where ``form`` is "inverse":  R = Σ_i ( ∫ ‖∇_i f‖² / f dμ_i )⁻¹
    Eq. 4: f = CE(p(·|x_i), p(·|x)), ∇ by x_i;  Eq. 6: f = CE(p, gt), ∇ by x_i;  Eq. 7: f = CE(f_i^j, f_m^j),
    ∇ by f_i^j. ``values`` are the integrand ‖∇_i f‖² / f, times σ² N, from the functions above.

    Args:
        whole: (M, N') of all samples of the step, those of ``values`` among them. R is that of ``whole``, its
            gradient the share of ``values``, so that the gradients of micro-batches and processes add up to
            that of one large batch. NaN where a sample lacks a modality: the mean of a modality is over the
            samples that have it, and R is over the modalities that any sample has.
        form: as ``combine`` takes it, or "gat": the norm of the inverses, without a cap: the λ of 1e-10 in
            Gat et al.'s code belongs to values of 1e9.
        cap: largest value; beyond it the term is scaled down to this value, so that its gradient keeps the
            direction.

    Returns:
        (R, information (M,), whether R was capped). R is 0 if no sample has positive, finite information; a
        modality that no sample has is NaN.
    """
    whole = whole.detach()
    taken, own = usable(whole), usable(values)
    count, some = taken.sum(1), taken.any()
    # ∫ … dμ_i is the mean over samples and noise, and is inverted after: E[1/I] would be larger (Jensen).
    # All by arithmetic: a branch on a value would make a GPU wait for it.
    information = torch.where(taken, whole, 0.0).sum(1) / count
    share = torch.where(own, values, 0.0).sum(1) / count
    information = information + (share - share.detach())  # adds 0, with the gradient of the own samples
    information = torch.where(some, information, 1.0)
    capped = torch.zeros_like(some)
    if form == "gat":
        value = (1 / information).norm()
    else:
        value = combine(information + 1e-6 * information.detach().nanmean(), form)
        capped = value.detach() > cap
        value = value * (cap / value.detach().clamp_min(cap))
    return torch.where(some, value, 0.0), information.detach(), capped


def nearest(label: Tensor, size: torch.Size) -> Tensor:
    """(B, H, W) labels at another size, each the nearest pixel's."""
    return F.interpolate(label[:, None].float(), size, mode="nearest-exact")[:, 0].long()


def _full(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()


def fisher_gap(information) -> float:
    """Largest over smallest information of the modalities (1 = balanced), from one value per modality."""
    values = np.asarray(information, float)
    return float(values.max() / values.min()) if values.size and values.min() > 0 else np.inf


def measure_information(network: nn.Module, dataset: PreparedDataset, samples: int = 16) -> dict[str, float]:
    """Input information of each modality, averaged over those of up to ``samples`` evenly spaced samples of
    ``dataset`` that have it, each with all its sensors. A modality that none of them has is left out.

    The measuring instrument of the Fisher gap; it trains nothing and always uses the reading ``input``.
    """
    dataset.require_labels()
    total, used = Counter(), Counter()
    device = next(network.parameters()).device
    for index in evenly_spaced(range(len(dataset)), samples):
        # One by one: samples may differ in size, and memory stays small.
        batch = collate([dataset[index]])
        images = {name: image.to(device) for name, image in batch["images"].items()}
        label = batch["label"].to(device)
        values, _ = input_information(network, images, label, seed=derived_seed(0, index))
        if torch.isfinite(values).all():
            for name, value in zip(images, values[:, 0].tolist()):
                total[name] += value
                used[name] += 1
    return {name: total[name] / used[name] for name in dataset.modalities if name in used}
