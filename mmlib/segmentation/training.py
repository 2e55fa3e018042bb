"""Training with Accelerate: one process or many, exact resume, history as JSON lines, checkpoints as safetensors.

Everything random is a function of (seed, step or epoch, sample), never of a generator's state. A run that was killed and
resumed is therefore the same run, and on a CPU the same to the last bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.prepared import PreparedDataset, collate
from ..data.transforms import Augment
from ..evaluation.subsets import SubsetScores, evaluate_subsets
from ..modalities import IGNORE_INDEX
from ..runtime import derived_seed, limit_threads, provenance, seed_everything, write_json
from ..state import append, resume, save_state, trim_history
from .information import measure_information
from .network import NetworkConfig, Segmenter, save_segmenter
from .objective import ObjectiveConfig, draw_subset, subset_cross_entropy
from .regularizer import Regularizer, RegularizerConfig


@dataclass(frozen=True)
class TrainConfig:
    """Train a segmenter on a prepared data set."""

    data: str
    """Folder of a prepared data set (from a script of data_scripts/), or 'street' or 'room' for the sensor world, rendered on first use."""
    out: str
    """Folder for checkpoints and history. If it holds an unfinished run of the same settings, that run goes on."""
    modalities: tuple[str, ...] = ()
    """Sensors to train on, by name; none given = all that the data set has."""
    epochs: float = 40.0
    """Passes over the training split."""
    batch_size: int = 4
    """Samples per device and step."""
    accumulate: int = 1
    """Micro-batches per step: the same result as a batch so many times larger."""
    lr: float = 0.0
    """Peak learning rate of AdamW; 0 = 6e-5 for pvt_v2 (paper), 3e-3 for residual (ours)."""
    weight_decay: float = 0.01
    """Weight decay; biases and norms have none (paper's relatives)."""
    warmup: float = 0.05
    """Share of the steps with linear warm-up from a tenth of the peak; the paper's 10 of 200 epochs."""
    power: float = 0.9
    """Power of the polynomial decay to zero (paper)."""
    clip: float = 1.0
    """Largest gradient norm."""
    crop: tuple[int, int] = (0, 0)
    """Height and width of training crops; 0 0 = whole images."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the random zoom; the paper's relatives use 0.5 2.0."""
    jitter: float = 0.2
    """Largest relative change of brightness and contrast of colour images."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    regularizer: RegularizerConfig = field(default_factory=RegularizerConfig)
    seed: int = 0
    """Seed of everything random."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """auto = bf16 on a GPU that has it, float32 elsewhere."""
    workers: int = 0
    """Loader processes per device."""
    cache: bool = True
    """Keep decoded samples in memory; switch off for data larger than memory."""
    eval_every: float = 5.0
    """Epochs between evaluations on the val split; 0 = only at the end."""
    information_samples: int = 16
    """Val samples on which each evaluation also measures every sensor's Fisher information; 0 = none."""
    save_every: float = 5.0
    """Epochs between saved states to resume from; 0 = only at the end."""
    progress: bool = True
    """Show a progress bar."""


LOG_EVERY = 20  # steps between lines of the history


class StepSampler:
    """Batches for steps ``start`` … ``steps``: lists of (index, augmentation seed), a function of (seed, position) alone.

    A step's global batch is ``batch × accumulate × processes`` consecutive entries of an endless stream of permutations; process
    r takes its slice of each micro-batch. One process with a large batch thus sees exactly what many see together.
    """

    def __init__(self, length: int, config: TrainConfig, steps: int, start: int, rank: int, processes: int):
        self.length, self.config, self.steps, self.start, self.rank, self.processes = length, config, steps, start, rank, processes

    def __len__(self) -> int:
        return (self.steps - self.start) * self.config.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batch, seed = self.config.batch_size, self.config.seed
        epoch, order = -1, np.empty(0, int)
        for micro in range(self.start * self.config.accumulate, self.steps * self.config.accumulate):
            first = (micro * self.processes + self.rank) * batch
            entries = []
            for position in range(first, first + batch):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = np.random.default_rng(derived_seed(seed, "order", epoch)).permutation(self.length)
                index = int(order[position % self.length])
                entries.append((index, derived_seed(seed, "augment", epoch, index)))
            yield entries


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up from 0.1 × to 1 × peak, times polynomial decay to zero. ``step`` counts from 0."""
    peak = config.lr or (3e-3 if config.network.encoder == "residual" else 6e-5)
    warm = config.warmup * steps
    ramp = 0.1 + 0.9 * step / warm if step < warm else 1.0
    return peak * ramp * (1 - step / steps) ** config.power


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for matrices and filters, none for 1-D parameters (biases, norms)."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def plan(config: TrainConfig, samples: int, processes: int = 1) -> int:
    """Number of optimizer steps."""
    if config.epochs <= 0 or config.batch_size < 1 or config.accumulate < 1:
        raise ValueError(f"epochs {config.epochs}, batch size {config.batch_size}, accumulate {config.accumulate}: all must be positive")
    return max(1, math.ceil(config.epochs * samples / (config.batch_size * config.accumulate * processes)))


def train(config: TrainConfig) -> dict:
    """Run or resume a training; returns the final report (also ``out/report.json``).

    Writes to ``config.out``: config.json, history.jsonl (one line per logged step and evaluation), resume.safetensors,
    last.safetensors, best.safetensors (highest mean mIoU over the subsets on val), report.json.

    Raises:
        ValueError: settings that cannot work, an ``out`` folder of other settings, or 20 steps in a row without finite gradients.
        DataError: unreadable data.
    """
    limit_threads()
    out = Path(config.out)
    config.regularizer.check()
    if config.network.fusion == "centred" and config.objective.subsets not in ("full", "dropout"):
        raise ValueError(
            f"--subsets {config.objective.subsets} adds up logits of single sensors, which --fusion centred does not have; "
            "give --subsets full or dropout"
        )
    if config.network.fusion == "centred" and config.regularizer.needs_modalities:
        raise ValueError(
            "--fusion centred has no logits and features of single sensors; of the regulariser it takes --prediction input or gat"
        )
    cpu = not torch.cuda.is_available()
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    # A subset of the sensors leaves the other stems without gradient, which DDP must be told.
    unused = DistributedDataParallelKwargs(find_unused_parameters=config.objective.subsets == "dropout")
    AcceleratorState._reset_state()  # an earlier training in this process may have had another precision
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu, kwargs_handlers=[unused])
    main, rank, processes = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes

    augment = Augment(config.crop if any(config.crop) else None, config.scale, jitter=config.jitter)
    data = PreparedDataset(config.data, "train", config.modalities or None, augment, cache=config.cache)
    val = PreparedDataset(config.data, "val", list(data.modalities), cache=config.cache)
    if not data.labelled:
        raise ValueError(f"{config.data} has no labels, so a segmenter cannot be trained on it; unlabelled data are for part B")
    steps = plan(config, len(data), processes)
    per_epoch = len(data) / (config.batch_size * config.accumulate * processes)

    seed_everything(derived_seed(config.seed, "weights"))
    model = Segmenter(data.modalities, data.description.classes, data.description.palette, config.network)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=0.0)
    progress = resume(out, config, model, optimizer, processes)
    start = progress.step
    if main:
        write_json(out / "config.json", asdict(config))
        trim_history(out / "history.jsonl", start)
    accelerator.wait_for_everyone()
    model.to(memory_format=torch.channels_last)  # a quarter faster on CPUs, and what tensor cores want
    model, optimizer = accelerator.prepare(model, optimizer)
    # Accelerate wraps ``forward`` in autocast; here autocast is entered where it is wanted, so that the regulariser can do without.
    network = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    regularizer = Regularizer(config.regularizer, derived_seed(config.seed, "regularizer", rank))
    regularizer.restore(progress.guards)

    sampler = StepSampler(len(data), config, steps, start, rank, processes)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=config.workers, collate_fn=collate, pin_memory=not cpu)
    batches = iter(loader)
    begun, begun_cpu, in_a_row, probed = time.perf_counter() - progress.seconds, time.process_time() - progress.cpu_seconds, 0, 0.0
    with tqdm(
        total=steps, initial=start, desc=f"train {out.name}", disable=not (main and config.progress), leave=False, mininterval=1.0
    ) as bar:
        for step in range(start, steps):
            lr = learning_rate(step, steps, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            torch.manual_seed(derived_seed(config.seed, "step", step, rank))  # dropout inside the network
            # One subset per step for all processes, so that their gradients are those of one large batch.
            rng = np.random.default_rng(derived_seed(config.seed, "subset", step))
            names = draw_subset(list(data.modalities), rng) if config.objective.subsets == "dropout" else list(data.modalities)
            micro = [next(batches) for _ in range(config.accumulate)]
            valid = torch.tensor([sum(int((b["label"] != IGNORE_INDEX).sum()) for b in micro)], device=accelerator.device)
            valid = accelerator.reduce(valid, "sum").clamp_min(1)
            terms: dict[str, torch.Tensor] = {}
            share = step / steps
            for m, batch in enumerate(micro):
                images = {n: batch["images"][n].to(accelerator.device, non_blocking=True, memory_format=torch.channels_last) for n in names}
                label = batch["label"].to(accelerator.device, non_blocking=True)
                if m == 0 and regularizer.due(step, share):
                    # On the bare network and without a gradient exchange: that of the last micro-batch sends this share too.
                    with accelerator.no_sync(model):
                        probe = regularizer.probe(network, images, label, step, share)
                        accelerator.backward(probe)
                    probed = float(probe.detach())
                pixels = np.random.default_rng(derived_seed(config.seed, "pixels", step, m, rank))
                last = m == config.accumulate - 1
                with nullcontext() if last else accelerator.no_sync(model):  # one gradient exchange a step
                    with accelerator.autocast():
                        logits, features = model(images, fuse=False)
                    found = subset_cross_entropy(logits, label, config.objective, valid, pixels)
                    # DDP averages gradients over processes. The cross-entropies are shares of one global mean, to be summed; the
                    # regulariser is a mean of each process's own samples, to be averaged.
                    loss = found["supervised"] * processes
                    if config.regularizer.active:
                        term = regularizer.closed_form(logits, features, label, share)
                        loss = loss + term / config.accumulate
                        found["regularizer"] = term / (config.accumulate * processes)
                    accelerator.backward(loss)
                for name, value in found.items():
                    terms[name] = terms.get(name, 0) + value.detach()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            if torch.isfinite(norm):
                optimizer.step()
                in_a_row = 0
            else:  # never let a NaN into the weights; counted in the history
                progress.skipped, in_a_row = progress.skipped + 1, in_a_row + 1
                if in_a_row == 20:
                    raise ValueError(
                        f"step {step}: no finite gradient for {in_a_row} steps; lower --lr, or check the data for constant or NaN images"
                    )
            optimizer.zero_grad()

            done = progress.step = step + 1
            progress.seconds, progress.cpu_seconds = time.perf_counter() - begun, time.process_time() - begun_cpu
            if done % LOG_EVERY == 0 or done == steps:
                log = {name: float(accelerator.reduce(value, "sum")) for name, value in terms.items()}
                if main:
                    bar.set_postfix(loss=f"{log['supervised']:.3f}", refresh=False)
                    entry = {
                        "step": done,
                        "epoch": round(done / per_epoch, 3),
                        "lr": lr,
                        **log,
                        "grad_norm": float(norm),
                        "skipped": progress.skipped,
                    }
                    if config.regularizer.active:
                        entry["probe"] = probed  # of the latest one
                        entry["guards"] = regularizer.counts
                        entry["regularized"] = {name: value.tolist() for name, value in regularizer.information.items()}
                    append(out / "history.jsonl", entry | {"seconds": round(progress.seconds, 2)})
            bar.update()
            if _due(done, steps, config.eval_every * per_epoch):
                scores, information = evaluate(network, val, config, accelerator)
                if main:
                    entry = {"step": done, "epoch": round(done / per_epoch, 3), "val": scores.summary(), "miou": scores.miou()}
                    entry["information"] = information
                    append(out / "history.jsonl", entry)
                    if entry["val"]["mean"] > progress.best:
                        progress.best = entry["val"]["mean"]
                        save_segmenter(network, out / "best.safetensors", step=done, val=entry["val"])
            if main and _due(done, steps, config.save_every * per_epoch):
                progress.guards = regularizer.counts
                save_state(out / "resume.safetensors", network, optimizer, config, processes, progress)

    report = {}
    if start == steps:  # the run was complete already: score it again
        scores, information = evaluate(network, val, config, accelerator)
    if main:
        report = {
            "provenance": provenance(seed=config.seed), "config": _public(config), "steps": steps,
            "seconds": round(progress.seconds, 1), "cpu_seconds": round(progress.cpu_seconds, 1),
            "parameters": sum(p.numel() for p in network.parameters()), "split": "val", "scores": scores.to_dict(),
            "information": information, "guards": regularizer.counts,
        }  # fmt: skip
        save_segmenter(network, out / "last.safetensors", step=steps, val=scores.summary(), provenance=report["provenance"])
        write_json(out / "report.json", report)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return report


def evaluate(
    network: Segmenter, data: PreparedDataset, config: TrainConfig, accelerator: Accelerator
) -> tuple[SubsetScores, dict[str, float]]:
    """Scores of a network in training, every process taking its share of the data, and the Fisher information of each sensor; the
    mode is put back after."""
    network.eval()
    shard = (accelerator.process_index, accelerator.num_processes)
    with accelerator.autocast():
        scores = evaluate_subsets(
            dataset=data, batch_size=config.batch_size, device=accelerator.device, workers=config.workers, shard=shard, **network.scoring()
        )
    for group, counts in scores.counts.items():
        scores.counts[group] = accelerator.reduce(torch.from_numpy(counts).to(accelerator.device), "sum").cpu().numpy()
    information = {}
    if config.information_samples and accelerator.is_main_process:
        information = measure_information(network, data, samples=config.information_samples, device=accelerator.device)
    network.train()
    return scores, information


def _due(done: int, steps: int, every: float) -> bool:
    return done == steps or (every > 0 and int(done / every) > int((done - 1) / every))


def _public(config: TrainConfig) -> dict:
    """The configuration without folders: reports name no machine's paths."""
    return {key: value for key, value in asdict(config).items() if key not in ("out", "data", "progress")} | {
        "data": Path(config.data).name
    }
