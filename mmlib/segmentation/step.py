"""What a training is made of, and one step of it.

A step is one gradient of one objective on ``batch_size × accumulate × processes`` samples, however they are
divided: cross-entropies are shares of one global mean, and information is averaged over all samples of the
step before it is inverted.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from torch.utils.data import DataLoader

from ..config import Above, AtLeast, Between
from ..data.prepared import PreparedDataset, collate
from ..data.transforms import Augment
from ..loop import Progress, find_tensorboard, resume
from ..modalities import IGNORE_INDEX
from ..runtime import derived_seed, limit_threads, seed_everything
from .network import NetworkConfig, Segmenter
from .objective import ObjectiveConfig, draw_subset, subset_cross_entropy
from .regularizer import PROBED, Regularizer, RegularizerConfig


@dataclass(frozen=True)
class TrainConfig:
    """Train a segmenter on a prepared data set."""

    data: str
    """Folder of a prepared data set (from a script of data_scripts/), or 'street' or 'room' for the sensor
    world, rendered on first use.
    """
    out: str
    """Folder for checkpoints and history. If it holds an unfinished run of the same settings, that run goes
    on.
    """
    modalities: tuple[str, ...] = ()
    """Sensors to train on, by name; none given = all that the data set has."""
    epochs: Annotated[float, Above(0)] = 40.0
    """Passes over the training split."""
    batch_size: Annotated[int, AtLeast(1)] = 4
    """Samples per device and step."""
    accumulate: Annotated[int, AtLeast(1)] = 1
    """Micro-batches per step: the same result as a batch so many times larger, in less memory. Closed-form
    terms of the regulariser then cost one more forward pass; a probe of second order looks at samples of the
    first micro-batch.
    """
    lr: Annotated[float, AtLeast(0)] = 0.0
    """Peak learning rate of AdamW; 0 = 6e-5 for pvt_v2 (paper), 3e-3 for residual (ours)."""
    weight_decay: Annotated[float, AtLeast(0)] = 0.01
    """Weight decay; biases and norms have none (paper's relatives)."""
    warmup: Annotated[float, Between(0, 1)] = 0.05
    """Share of the steps with linear warm-up from a tenth of the peak; the paper's 10 of 200 epochs."""
    power: Annotated[float, AtLeast(0)] = 0.9
    """Power of the polynomial decay to zero (paper)."""
    clip: Annotated[float, Above(0)] = 1.0
    """Largest gradient norm."""
    crop: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Height and width of training crops; 0 0 = whole images."""
    scale: Annotated[tuple[float, float], Above(0)] = (1.0, 1.0)
    """Range of the random zoom; the paper's relatives use 0.5 2.0."""
    jitter: Annotated[float, Between(0, 1)] = 0.2
    """Largest relative change of brightness and contrast of colour images."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    regularizer: RegularizerConfig = field(default_factory=RegularizerConfig)
    seed: int = 0
    """Seed of everything random."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """auto = bf16 on a GPU that has it, float32 elsewhere."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Loader processes per device."""
    cache: bool = True
    """Keep decoded samples in memory, one copy in every loader process; switch off for data larger than
    memory (--dry-run says).
    """
    eval_every: Annotated[float, AtLeast(0)] = 5.0
    """Epochs between evaluations on the val split; 0 = only at the end."""
    information_samples: Annotated[int, AtLeast(0)] = 16
    """Val samples on which each evaluation also measures every sensor's Fisher information; 0 = none."""
    save_every: Annotated[float, AtLeast(0)] = 5.0
    """Epochs between saved states to resume from; 0 = only at the end."""
    tensorboard: bool = False
    """Also write event files for TensorBoard into OUT/tensorboard: losses, learning rate, mIoU of every
    subset, information.
    """
    progress: bool = True
    """Show a progress bar."""


class StepSampler:
    """Batches for steps ``start`` … ``steps``: lists of (index, augmentation seed), a function of (seed,
    position) alone.

    A step's global batch is ``batch × accumulate × processes`` consecutive entries of an endless stream of
    permutations; process r takes its slice of each micro-batch. One process with a large batch thus sees
    exactly what many see together.
    """

    def __init__(self, length: int, config: TrainConfig, steps: int, start: int, rank: int, processes: int):
        self.length, self.config, self.steps, self.start, self.rank, self.processes = (
            length,
            config,
            steps,
            start,
            rank,
            processes,
        )

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
        raise ValueError(
            f"epochs {config.epochs}, batch size {config.batch_size}, accumulate {config.accumulate}: all must be positive"
        )
    if not config.clip > 0 or not 0 <= config.warmup <= 1:
        raise ValueError(
            f"--clip {config.clip}, --warmup {config.warmup}: expected a gradient norm above 0 and a share from 0 to 1"
        )
    return max(1, math.ceil(config.epochs * samples / (config.batch_size * config.accumulate * processes)))


class StepRegularizer(Regularizer):
    """The regulariser of a step that processes and micro-batches share: information is averaged over the
    samples of all of them before it is inverted. Each part gets the value of the whole and the gradient of
    its own samples: gradients of the parts are summed.
    """

    def __init__(
        self,
        config: RegularizerConfig,
        seed: int,
        gather: Callable[[Tensor], Tensor],
        rank: int,
        processes: int,
    ):
        """``gather``: (n, …) of this process -> (processes · n, …) of all, in the order of their ranks."""
        super().__init__(config, seed)
        self.gather, self.rank, self.alone = gather, rank, processes == 1
        self.part, self.parts, self.tables = 0, 1, {}
        self.probed: Tensor | float = 0.0  # value of the latest probe

    @property
    def in_closed_form(self) -> bool:
        """Whether a term is computed from every micro-batch's own logits or features."""
        config = self.config
        return (config.prediction not in ("none", *PROBED) and config.lambda_p > 0) or (
            config.features in ("kl", "ce") and config.lambda_f > 0
        )

    def look_ahead(self, parts: Iterator[tuple], share: float) -> None:
        """First pass over the micro-batches of a step, (logits, features, label) of each: what information do
        they hold together?
        """
        self.part, self.tables = -1, {}
        for self.parts, (logits, features, label) in enumerate(parts, 1):
            self.closed_form(logits, features, label, share)
        self.tables = {name: self.gather(torch.cat(found, 1).T).T for name, found in self.tables.items()}

    def _term(self, name: str, values: Tensor, label: Tensor | None = None) -> Tensor:
        if self.alone and self.part == 0 and name not in self.tables:
            return super()._term(name, values, label)
        count = values.shape[1]
        empty = torch.zeros_like(values[0])
        if label is not None and len(label) == count:
            empty = ((label != IGNORE_INDEX).flatten(1).sum(1) == 0).to(values)
        table = torch.cat([values.detach(), empty[None]])
        if self.part < 0:
            self.tables.setdefault(name, []).append(table)
            return values.new_zeros(())
        ahead = name in self.tables
        table = self.tables[name] if ahead else self.gather(table.T).T
        first = count * (self.rank * self.parts + self.part if ahead else self.rank)
        values = torch.cat([table[:-1, :first], values, table[:-1, first + count :]], 1)
        counts = dict(self._counts)
        term = super()._term(name, values, torch.where(table[-1] > 0, IGNORE_INDEX, 0)[:, None])
        if self.part:  # these samples were counted with the first micro-batch
            self._counts = counts
        return term


@dataclass
class Run:
    """All that a training works with."""

    config: TrainConfig
    accelerator: Accelerator
    data: PreparedDataset
    val: PreparedDataset
    model: torch.nn.Module  # wrapped for the exchange of gradients
    network: Segmenter  # the same, bare
    optimizer: torch.optim.Optimizer
    regularizer: StepRegularizer
    steps: int
    progress: Progress

    @property
    def samples_per_step(self) -> int:
        return self.config.batch_size * self.config.accumulate * self.accelerator.num_processes

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    def __str__(self) -> str:
        devices, kind = self.accelerator.num_processes, self.accelerator.device.type
        precision = "bf16" if self.accelerator.mixed_precision == "bf16" else "float32"
        return (
            f"{self.parameters / 1e6:.2f} M parameters, {self.steps} steps of {self.samples_per_step} samples ({devices} {kind} × "
            f"{self.config.batch_size} × {self.config.accumulate}), {precision}"
        )

    def loader(self, start: int) -> DataLoader:
        """Micro-batches of the steps from ``start``."""
        sampler = StepSampler(
            len(self.data),
            self.config,
            self.steps,
            start,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        pinned = self.accelerator.device.type == "cuda"
        return DataLoader(
            self.data,
            batch_sampler=sampler,
            num_workers=self.config.workers,
            collate_fn=collate,
            pin_memory=pinned,
        )


def set_up(config: TrainConfig, resumed: bool = True) -> Run:
    """Check the settings, open the data, build network and optimizer, load the state of an unfinished run.
    Writes nothing.

    Raises:
        ValueError, DataError: as ``train``.
    """
    limit_threads()
    config.regularizer.check()
    if config.tensorboard:
        find_tensorboard()
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
    AcceleratorState._reset_state(
        True
    )  # of an earlier training here, or in the process from which a launcher forked this one
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu, kwargs_handlers=[unused])
    rank, processes = accelerator.process_index, accelerator.num_processes
    atexit.register(leave_group)
    if (
        os.environ.get("ACCELERATE_USE_CPU") == "True"
        and "MASTER_ADDR" in os.environ
        and "RANK" not in os.environ
    ):
        raise ValueError(
            "accelerate launch --cpu was asked for several processes but starts one; on CPUs, start them with "
            "'torchrun --nproc_per_node N -m mmlib train …'"
        )

    augment = Augment(config.crop if any(config.crop) else None, config.scale, jitter=config.jitter)
    data = PreparedDataset(config.data, "train", config.modalities or None, augment, cache=config.cache)
    val = PreparedDataset(config.data, "val", list(data.modalities), cache=config.cache)
    if not data.labelled:
        raise ValueError(
            f"{config.data} has no labels, so a segmenter cannot be trained on it; unlabelled data are for part B"
        )
    steps = plan(config, len(data), processes)

    seed_everything(derived_seed(config.seed, "weights"))
    model = network = Segmenter(
        data.modalities, data.description.classes, data.description.palette, config.network
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=0.0)
    progress = Progress()
    if resumed:
        inputs = {}
        if accelerator.is_main_process:  # copies of the data on other machines have their own times of change
            parts = {"train": data, "val": val}
            inputs = {
                f"{what} of {name}": digest
                for name, part in parts.items()
                for what, digest in part.digest().items()
            }
        progress = resume(config, model, optimizer, len(data), inputs, processes)
    found = accelerator.gather(torch.tensor([[progress.step, len(data)]], device=accelerator.device))
    if (found != found[0]).any():
        raise ValueError(
            f"processes differ in the step at which {config.out} stands and the number of samples in {config.data}: "
            f"{found.tolist()}; all machines must see the same folders"
        )
    model.to(memory_format=torch.channels_last)  # a quarter faster on CPUs, and what tensor cores want
    model, optimizer = accelerator.prepare(model, optimizer)
    # Accelerate wraps ``forward`` in autocast; here autocast is entered where it is wanted, so that the
    # regulariser can do without.
    network = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    regularizer = StepRegularizer(
        config.regularizer,
        derived_seed(config.seed, "regularizer", rank),
        accelerator.gather,
        rank,
        processes,
    )
    regularizer.restore(progress.guards)
    return Run(config, accelerator, data, val, model, network, optimizer, regularizer, steps, progress)


def leave_group() -> None:
    """Destroy the process group while the interpreter is whole: its threads may abort one that is being taken
    down.

    Not after an exception: a process that waits for the others to leave would hide its traceback.
    """
    group = torch.distributed
    if group.is_available() and group.is_initialized() and not hasattr(sys, "last_value"):
        group.destroy_process_group()


def train_step(
    run: Run, step: int, micro: list[dict], share: float | None = None
) -> tuple[dict[str, Tensor], Tensor, bool]:
    """One optimizer step on this process's micro-batches.

    Args:
        share: share of the training that is done, on which the regulariser's strength depends; None = that of
            ``step``.

    Returns:
        (this process's share of each term, the gradient's norm, whether it was finite; if not, the weights
        stay as they were).
    """
    config, accelerator, model, network, regularizer = (
        run.config,
        run.accelerator,
        run.model,
        run.network,
        run.regularizer,
    )
    rank, processes = accelerator.process_index, accelerator.num_processes
    share = step / run.steps if share is None else share
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(step, run.steps, config)
    # One subset per step for all processes, so that their gradients are those of one large batch.
    rng = np.random.default_rng(derived_seed(config.seed, "subset", step))
    names = (
        draw_subset(list(run.data.modalities), rng)
        if config.objective.subsets == "dropout"
        else list(run.data.modalities)
    )
    valid = torch.tensor([sum(int((b["label"] != IGNORE_INDEX).sum()) for b in micro)]).to(
        accelerator.device, non_blocking=True
    )
    valid = accelerator.reduce(valid, "sum").clamp_min(1)

    def on_device(batch: dict) -> tuple[dict[str, Tensor], Tensor]:
        to = lambda x, **options: x.to(accelerator.device, non_blocking=True, **options)
        return {n: to(batch["images"][n], memory_format=torch.channels_last) for n in names}, to(
            batch["label"]
        )

    def forward(net, images, m: int):
        if config.accumulate > 1:  # the same dropout in both passes over a micro-batch
            torch.manual_seed(derived_seed(config.seed, "step", step, rank, m))
        with accelerator.autocast():
            return net(images, fuse=False)

    torch.manual_seed(derived_seed(config.seed, "step", step, rank))  # dropout inside the network
    if config.accumulate > 1 and regularizer.in_closed_form and regularizer.strength(share) > 0:
        with torch.no_grad():
            regularizer.look_ahead(
                ((*forward(network, x, m), y) for m, (x, y) in enumerate(map(on_device, micro))), share
            )
    terms: dict[str, Tensor] = {}
    for m, batch in enumerate(micro):
        images, label = on_device(batch)
        regularizer.part = m
        if m == 0 and regularizer.due(step, share):
            # On the bare network and without a gradient exchange: that of the last micro-batch sends this
            # share too.
            with accelerator.no_sync(model):
                probe = regularizer.probe(network, images, label, step, share)
                accelerator.backward(probe * processes)
            regularizer.probed = probe.detach()
        pixels = np.random.default_rng(derived_seed(config.seed, "pixels", step, m, rank))
        last = m == config.accumulate - 1
        with nullcontext() if last else accelerator.no_sync(model):  # one gradient exchange a step
            logits, features = forward(model, images, m)
            found = subset_cross_entropy(logits, label, config.objective, valid, pixels)
            # DDP averages gradients over processes, but both terms are to be summed: each process has its own
            # samples' share.
            loss = found["supervised"] * processes
            if config.regularizer.active:
                term = regularizer.closed_form(logits, features, label, share)
                loss = loss + term * processes
                found["regularizer"] = term / (config.accumulate * processes)
            accelerator.backward(loss)
        for name, value in found.items():
            terms[name] = terms.get(name, 0) + value.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    finite = bool(torch.isfinite(norm))  # here the processor waits for the device
    if finite:  # never let a NaN into the weights
        run.optimizer.step()
    run.optimizer.zero_grad()
    return terms, norm, finite
