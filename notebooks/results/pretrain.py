"""Train ``mmlib/unsupervised/vit_world.safetensors``, the small transformer of ``descriptors+vit``.

    python notebooks/results/pretrain.py --out runs/pretrain         # some six minutes on one core

No label is read. Self-distillation with masked patches, as in iBOT: a teacher (a running mean of the
student) sees a picture whole; the student sees it with patches masked and in another light, and says of
every patch which of K prototypes the teacher assigns it to. Sinkhorn iterations make the teacher use all
prototypes equally often, so that the two cannot agree on a constant. Everything random is a function of
(seed, step), so that the command gives the same weights again on the same machine and versions.
"""

from __future__ import annotations

import copy
import math
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from tqdm.auto import tqdm

from mmlib import world
from mmlib.data.prepared import PreparedDataset
from mmlib.runtime import (
    choose_device,
    derived_seed,
    limit_threads,
    provenance,
    save_tensors,
    seed_everything,
    write_json,
)
from mmlib.unsupervised.backbone import PatchViT
from mmlib.unsupervised.pictures import as_picture, resize_picture


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of the training; the defaults are those of the weights that come with the library."""

    out: str
    """Folder for vit.safetensors and report.json."""
    data: tuple[str, ...] = ("street", "room")
    """Folders of prepared data sets, of which the training split is read; 'street' or 'room' = the sensor
    world, rendered on first use.
    """
    modalities: tuple[str, ...] = ("rgb", "depth", "thermal")
    """Sensors whose pictures are trained on, all by the same network."""
    frames: int = 400
    """Training frames of each scene of the sensor world."""
    steps: int = 800
    """Optimizer steps."""
    batch_size: int = 32
    """Pictures a step; each is drawn from all frames and sensors alike."""
    size: tuple[int, int] = (72, 96)
    """Height and width of the pictures trained on: random windows are resized to it. Multiples of 8."""
    zoom: float = 0.5
    """Smallest side of a random window, as a share of the picture."""
    jitter: float = 0.4
    """Largest relative change of brightness, contrast and each colour; drawn anew for teacher and student."""
    mask: float = 0.4
    """Share of the patches masked from the student, in rectangles."""
    channels: int = 96
    """Length of a token."""
    depth: int = 4
    """Transformer blocks."""
    heads: int = 3
    """Attention heads."""
    prototypes: int = 128
    """Prototypes that patches are assigned to."""
    temperature: float = 0.1
    """Temperature of the student's assignment; the teacher's is half of it."""
    momentum: float = 0.99
    """Share of its weights that the teacher keeps each step; rises to 1 along a half cosine."""
    lr: float = 1.5e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.04
    """Weight decay of matrices and filters."""
    warmup: float = 0.1
    """Share of the steps with linear warm-up; a half cosine to zero follows."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    progress: bool = True
    """Show a progress bar."""


LOG_EVERY = 20  # steps between lines of the history


class Assigner(nn.Module):
    """Transformer and head: pictures (N, 3, H, W) -> cosines (N·h·w, K) of every patch with the prototypes,
    and tokens (N·h·w, C).
    """

    def __init__(self, config: PretrainConfig):
        super().__init__()
        self.vit = PatchViT(config.channels, config.depth, config.heads)
        self.head = nn.Sequential(
            nn.Linear(config.channels, 2 * config.channels), nn.GELU(), nn.Linear(2 * config.channels, 64)
        )
        self.prototypes = nn.Parameter(torch.randn(config.prototypes, 64))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        def cover(stem, inputs, tokens):
            """The stem's output, with the mask token where ``mask`` (N, h, w) is true."""
            return torch.where(mask[:, None], self.vit.mask_token[:, None, None], tokens)

        with nullcontext() if mask is None else self.vit.stem.register_forward_hook(cover):
            tokens = self.vit(images).permute(0, 2, 3, 1).flatten(0, 2)
        return F.normalize(self.head(tokens), dim=1) @ F.normalize(self.prototypes, dim=1).T, tokens


def sinkhorn(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Scores (n, K) -> soft assignments (n, K): every row sums to 1, every column to about n/K (exactly for
    iterations → ∞).
    """
    logits = scores / temperature
    for _ in range(iterations):  # in the logarithm, so that no column can underflow
        logits = logits - logits.logsumexp(0, keepdim=True)
        logits = logits - logits.logsumexp(1, keepdim=True)
    return logits.exp()


def random_masks(count: int, grid, share: float, generator: torch.Generator) -> Tensor:
    """(count, h, w) bool: rectangles are masked until at least ``share`` of each grid is, then single patches
    are freed down to it.
    """
    h, w = grid
    count_masked = round(share * h * w)
    masks = torch.zeros(count, h, w, dtype=torch.bool)
    for mask in masks:
        while int(mask.sum()) < count_masked:
            sides = [1 + int(torch.randint(max(1, side // 2), (), generator=generator)) for side in (h, w)]
            top, left = (
                int(torch.randint(full - side + 1, (), generator=generator))
                for full, side in zip((h, w), sides)
            )
            mask[top : top + sides[0], left : left + sides[1]] = True
        masked = mask.flatten().nonzero()[:, 0]
        surplus = masked[torch.randperm(len(masked), generator=generator)[count_masked:]]
        mask.view(-1)[surplus] = False
    return masks


def window(picture: Tensor, config: PretrainConfig, generator: torch.Generator) -> Tensor:
    """A random window of a uint8 picture (3, H, W), mirrored in half of the cases, resized to (3, *size),
    float in [0, 1].
    """
    share, y, x, mirrored = torch.rand(4, generator=generator).tolist()
    height, width = (
        max(1, round((config.zoom + (1 - config.zoom) * share) * side)) for side in picture.shape[1:]
    )
    top, left = round(y * (picture.shape[1] - height)), round(x * (picture.shape[2] - width))
    cut = resize_picture(
        picture[None, :, top : top + height, left : left + width].float() / 255, config.size
    )[0]
    return cut.flip(-1) if mirrored < 0.5 else cut


def relight(images: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] with random brightness, contrast (a power), colour cast and a little
    noise.
    """
    gain, power, cast = (torch.rand(len(images), c, 1, 1, generator=generator) * 2 - 1 for c in (1, 1, 3))
    noise = (
        torch.randn(images.shape, generator=generator)
        * 0.02
        * torch.rand(len(images), 1, 1, 1, generator=generator)
    )
    lit = images.clamp_min(1e-3) ** (1 + jitter) ** power * (1 + jitter * gain) * (1 + jitter / 2 * cast)
    return (lit + noise).clamp(0, 1)


def load_pictures(config: PretrainConfig) -> list[Tensor]:
    """All training frames of all data sets as uint8 pictures (3, H, W), one for every sensor."""
    pictures = []
    for name in config.data:
        if name in world.CLASSES and not Path(name).exists():
            name = world.ensure(
                name, config.frames, 0, 0, modalities=config.modalities, progress=config.progress
            )
        data = PreparedDataset(name, "train", config.modalities)
        data.labelled = False  # labels, if there are any, are not even read
        for images, _ in map(data.physical, range(len(data))):
            pictures += [
                (as_picture(m, images[n]) * 255).round().to(torch.uint8) for n, m in data.modalities.items()
            ]
    return pictures


def diagnostics(scores: Tensor, tokens: Tensor, config: PretrainConfig) -> dict[str, float]:
    """What tells a collapse, which the loss does not, from the teacher's cosines (n, K) and tokens (n, C) of
    a batch.

    sharpness: 1 - mean entropy of a patch's soft assignment over log K (0 = says nothing of any patch).
    usage: entropy over log K of the prototypes' shares of the patches, by nearest prototype (0 = one takes
    all). rank: effective rank of the tokens, exp of the entropy of the normalised eigenvalues of their
    covariance (1 = all lie on a line).
    """
    entropy = lambda p: -(p * p.clamp_min(1e-12).log()).sum(-1).mean()
    soft = (scores / (config.temperature / 2)).softmax(1)
    share = scores.argmax(1).bincount(minlength=config.prototypes) / len(scores)
    spectrum = torch.linalg.eigvalsh(torch.cov(tokens.cpu().double().T)).clamp_min(0)
    values = {
        "sharpness": 1 - entropy(soft) / math.log(config.prototypes),
        "usage": entropy(share) / math.log(config.prototypes),
        "rank": entropy(spectrum / spectrum.sum()).exp(),
    }
    return {name: float(value) for name, value in values.items()}


def schedule(step: int, config: PretrainConfig) -> tuple[float, float]:
    """(learning rate, teacher's momentum) of a step, counted from 0."""
    warm = config.warmup * config.steps
    fall = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    rate = (
        (step + 1) / warm
        if step < warm
        else 0.5 * (1 + math.cos(math.pi * (step - warm) / (config.steps - warm)))
    )
    return config.lr * rate, 1 - (1 - config.momentum) * fall


def pretrain(config: PretrainConfig) -> dict:
    """Train, and write the teacher's weights in float16 with a header that says how to build the network and
    how it was trained; returns the report, which ``out/report.json`` holds with the history.

    Raises:
        ValueError: the loss is not finite.
        DataError: unreadable data.
    """
    limit_threads()
    out, device = Path(config.out), choose_device(config.device)
    pictures = load_pictures(config)
    seed_everything(derived_seed(config.seed, "weights"))
    student = Assigner(config).to(device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    # Weight decay acts on matrices and filters only, not on biases and norms.
    matrices, vectors = (
        [p for p in student.parameters() if (p.ndim > 1) == is_matrix] for is_matrix in (True, False)
    )
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    )
    history, start, start_cpu = [], time.perf_counter(), time.process_time()
    bar = tqdm(range(config.steps), desc="pretrain", disable=None if config.progress else True)
    for step in bar:
        # Two differently lit views of random windows; the teacher sees the first, the student the second.
        generator = torch.Generator().manual_seed(derived_seed(config.seed, "step", step))
        indices = torch.randint(len(pictures), (config.batch_size,), generator=generator).tolist()
        images = torch.stack([window(pictures[i], config, generator) for i in indices])
        views = [relight(images, config.jitter, generator).to(device) for _ in range(2)]
        grid = [side // 8 for side in config.size]
        mask = random_masks(config.batch_size, grid, config.mask, generator).to(device)
        # Cross-entropy between the teacher's balanced assignment and the student's.
        with torch.no_grad():
            scores, tokens = teacher(views[0])
            target = sinkhorn(scores, config.temperature / 2)
        cross = -(target * (student(views[1], mask)[0] / config.temperature).log_softmax(1)).sum(1)
        loss, masked = cross.mean(), cross.detach()[mask.flatten()].mean()
        if not torch.isfinite(loss):
            raise ValueError(
                f"step {step}: the loss is not finite; lower --lr, or check the data for "
                "constant or damaged pictures"
            )
        loss.backward()
        rate, momentum = schedule(step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # The teacher follows the student as a running mean.
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters()):
                slow.lerp_(fast, 1 - momentum)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps:
            entry = {"step": step + 1, "loss": float(loss.detach()), "masked": float(masked)}
            entry |= {"lr": rate, "grad_norm": float(norm)} | diagnostics(scores, tokens, config)
            history.append(entry)
            bar.set_postfix(loss=f"{entry['loss']:.3f}", rank=f"{entry['rank']:.1f}", refresh=False)
    settings = {
        key: value for key, value in asdict(config).items() if key not in ("out", "progress", "device")
    }
    settings |= {"data": [Path(name).name for name in config.data]}  # reports name no machine's paths
    report = {
        "provenance": provenance(
            f"python notebooks/results/pretrain.py {shlex.join(sys.argv[1:])}".strip(), config.seed
        ),
        "config": settings,
        "steps": config.steps,
        "pictures": len(pictures),
        "parameters": sum(p.numel() for p in teacher.vit.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - start_cpu, 1),
        "last": history[-1],
    }
    weights = {name: value.half() for name, value in teacher.vit.state_dict().items()}
    header = {"vit": {key: settings[key] for key in ("channels", "depth", "heads")}, "recipe": report}
    save_tensors(out / "vit.safetensors", weights, header)
    write_json(out / "report.json", report | {"history": history})
    return report


if __name__ == "__main__":
    pretrain(tyro.cli(PretrainConfig, description=__doc__))
