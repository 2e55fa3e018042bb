"""Training of the small transformer of ``backbone`` without labels, by self-distillation with masked tokens.

As in iBOT, a teacher (a running mean of the student) sees a picture whole; the student sees it with patches
masked and in another light, and says of every patch which of K prototypes the teacher assigns it to. Sinkhorn
iterations make the teacher use all prototypes equally often, so that the two cannot agree on a constant.
Everything random is a function of (seed, step).
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import world
from ..data.prepared import PreparedDataset
from ..runtime import (
    choose_device,
    derived_seed,
    limit_threads,
    provenance,
    save_tensors,
    seed_everything,
    write_json,
)
from ..state import append, read_history, resume, save_state, trim_history
from .backbone import PatchViT
from .pictures import as_picture, resize


@dataclass(frozen=True)
class PretrainConfig:
    """Train the small vision transformer of 'descriptors+vit' without labels."""

    out: str
    """Folder for weights and history. If it holds an unfinished run of the same settings, that run goes on.
    """
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
    save_every: int = 200
    """Steps between saved states to resume from; 0 = only at the end."""
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
        tokens = self.vit(images, mask).permute(0, 2, 3, 1).flatten(0, 2)
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
    wanted = round(share * h * w)
    masks = torch.zeros(count, h, w, dtype=torch.bool)
    for mask in masks:
        while int(mask.sum()) < wanted:
            sides = [1 + int(torch.randint(max(1, side // 2), (), generator=generator)) for side in (h, w)]
            top, left = (
                int(torch.randint(full - side + 1, (), generator=generator))
                for full, side in zip((h, w), sides)
            )
            mask[top : top + sides[0], left : left + sides[1]] = True
        masked = mask.flatten().nonzero()[:, 0]
        surplus = masked[torch.randperm(len(masked), generator=generator)[wanted:]]
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
    cut = resize(picture[None, :, top : top + height, left : left + width].float() / 255, config.size)[0]
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
    found = {
        "sharpness": 1 - entropy(soft) / math.log(config.prototypes),
        "usage": entropy(share) / math.log(config.prototypes),
        "rank": entropy(spectrum / spectrum.sum()).exp(),
    }
    return {name: float(value) for name, value in found.items()}


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


def check(config: PretrainConfig) -> None:
    """Raise ValueError for settings that cannot work."""
    counts = {
        "steps": config.steps,
        "pictures in a batch": config.batch_size,
        "prototypes": config.prototypes - 1,
        "blocks": config.depth,
        "data sets": len(config.data),
        "modalities": len(config.modalities),
        "frames": config.frames,
    }
    few = [name for name, count in counts.items() if count < 1]
    if few:
        raise ValueError(f"too few {', '.join(few)}: at least 1 is needed, of prototypes 2")
    if any(side < 8 or side % 8 for side in config.size):
        raise ValueError(f"size {config.size}: height and width must be multiples of 8, the side of a patch")
    if config.heads < 1 or config.channels % config.heads or config.channels % 4:
        raise ValueError(
            f"{config.channels} channels: must be a multiple of 4 and of the {config.heads} heads"
        )
    for name in ("zoom", "mask", "temperature", "momentum", "jitter", "warmup"):
        value = getattr(config, name)
        if not 0 <= value <= 1 or (value == 0 and name in ("zoom", "mask", "temperature")):
            raise ValueError(f"{name} {value}: expected a number from 0 to 1" + ", not 0" * (value == 0))


def pretrain(config: PretrainConfig) -> dict:
    """Run or resume; returns the report (also ``out/report.json``).

    Writes to ``config.out``: config.json, history.jsonl, resume.safetensors, and vit.safetensors: the
    teacher's weights in float16, with a header that says how to build the network and how it was trained;
    ``backbone.load_backbone("descriptors+vit", weights=…)`` reads it.

    Raises:
        ValueError: settings that cannot work, an ``out`` folder of other settings, or a loss that is not
            finite.
        DataError: unreadable data.
    """
    limit_threads()
    check(config)
    out, device = Path(config.out), choose_device(config.device)
    pictures = load_pictures(config)
    seed_everything(derived_seed(config.seed, "weights"))
    student = Assigner(config).to(device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    pair = nn.ModuleDict({"student": student, "teacher": teacher})
    matrices, vectors = (
        [p for p in student.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False)
    )
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    )
    progress = resume(out, config, pair, optimizer, 1, len(pictures))
    write_json(out / "config.json", asdict(config))
    trim_history(out / "history.jsonl", progress.step)
    begun, begun_cpu = time.perf_counter() - progress.seconds, time.process_time() - progress.cpu_seconds
    with tqdm(
        total=config.steps, initial=progress.step, desc="pretrain", disable=not config.progress, leave=False
    ) as bar:
        for step in range(progress.step, config.steps):
            generator = torch.Generator().manual_seed(derived_seed(config.seed, "step", step))
            chosen = torch.randint(len(pictures), (config.batch_size,), generator=generator).tolist()
            images = torch.stack([window(pictures[i], config, generator) for i in chosen])
            views = [relight(images, config.jitter, generator).to(device) for _ in range(2)]
            mask = random_masks(
                config.batch_size, [side // 8 for side in config.size], config.mask, generator
            ).to(device)
            with torch.no_grad():
                scores, tokens = teacher(views[0])
                target = sinkhorn(scores, config.temperature / 2)
            cross = -(target * (student(views[1], mask)[0] / config.temperature).log_softmax(1)).sum(1)
            loss, masked = cross.mean(), cross.detach()[mask.flatten()].mean()
            if not torch.isfinite(loss):
                raise ValueError(
                    f"step {step}: the loss is not finite; lower --lr, or check the data for constant or damaged pictures"
                )
            loss.backward()
            rate, momentum = schedule(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            norm = nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for slow, fast in zip(teacher.parameters(), student.parameters()):
                    slow.lerp_(fast, 1 - momentum)
            done = progress.step = step + 1
            progress.seconds, progress.cpu_seconds = (
                time.perf_counter() - begun,
                time.process_time() - begun_cpu,
            )
            if done % LOG_EVERY == 0 or done == config.steps:
                entry = {
                    "step": done,
                    "loss": float(loss.detach()),
                    "masked": float(masked),
                    "lr": rate,
                    "grad_norm": float(norm),
                }
                found = diagnostics(scores, tokens, config)
                append(out / "history.jsonl", entry | found | {"seconds": round(progress.seconds, 2)})
                bar.set_postfix(loss=f"{entry['loss']:.3f}", rank=f"{found['rank']:.1f}", refresh=False)
            if done == config.steps or (config.save_every and done % config.save_every == 0):
                save_state(out / "resume.safetensors", pair, optimizer, config, 1, progress)
            bar.update()
    public = {key: value for key, value in asdict(config).items() if key not in ("out", "progress", "device")}
    public |= {"data": [Path(name).name for name in config.data]}  # reports name no machine's paths
    report = {
        "provenance": provenance(seed=config.seed),
        "config": public,
        "steps": config.steps,
        "pictures": len(pictures),
        "parameters": sum(p.numel() for p in teacher.vit.parameters()),
        "seconds": round(progress.seconds, 1),
        "cpu_seconds": round(progress.cpu_seconds, 1),
        "last": read_history(out / "history.jsonl")[0][-1],
    }
    header = {"vit": {key: public[key] for key in ("channels", "depth", "heads")}, "recipe": report}
    save_tensors(
        out / "vit.safetensors",
        {name: value.half() for name, value in teacher.vit.state_dict().items()},
        header,
    )
    write_json(out / "report.json", report)
    return report
