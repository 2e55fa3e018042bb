"""What a training is made of, and one step of it.

A step takes one gradient of one objective on ``batch_size × accumulate × processes`` samples. The result does
not depend on how these samples are divided over micro-batches and processes: each cross-entropy is a share of
one global mean, and information is averaged over all samples of the step before it is inverted. Samples that
lack sensors make micro-batches of their own, with those that have the same sensors.
"""

import atexit
import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from torch.utils.data import DataLoader

from ..config import Above, AtLeast, Between, check_settings
from ..data.prepared import PreparedDataset, collate
from ..data.transforms import Augment
from ..loop import Progress, resume
from ..modalities import IGNORE_INDEX, subsets
from ..runtime import derived_seed, leave_group, limit_threads, seed_everything
from .network import NetworkConfig, Segmenter
from .objective import ObjectiveConfig, draw_subset, parts, restricted, subset_cross_entropy
from .regularizer import PROBED, Regularizer, RegularizerConfig, gather_tables


@dataclass(frozen=True)
class TrainConfig:
    """Train a segmenter on a prepared data set."""

    data: str
    """Folder of a prepared data set (from a script of data_scripts/), or 'street' or 'room' for the sensor
    world, rendered on first use.
    """
    out: str
    """Folder for checkpoints and history. If it holds an unfinished run of the same settings, that run is
    continued.
    """
    modalities: tuple[str, ...] = ()
    """Names of the sensors to train on; none = all that the data set has."""
    epochs: Annotated[float, Between(0, 1e6, without=(0,))] = 40.0
    """Passes over the training split."""
    batch_size: Annotated[int, AtLeast(1)] = 4
    """Samples per device and step."""
    accumulate: Annotated[int, AtLeast(1)] = 1
    """Micro-batches per step. The result is that of a batch so many times larger, in less memory. Terms of
    the regulariser in closed form then cost one more forward pass; a probe of second order uses samples of
    the first micro-batch.
    """
    lr: Annotated[float, AtLeast(0)] = 0.0
    """Peak learning rate of AdamW; 0 = 6e-5 for pvt_v2 (paper), 3e-3 for residual, 5e-4 for others (ours; a
    short training of a small network may gain with 2e-3)."""
    encoder_lr: Annotated[float, AtLeast(0)] = 1.0
    """Factor of the learning rate for what the encoder has behind its first layers: below 1 keeps pretrained
    features, 0 freezes them.
    """
    weight_decay: Annotated[float, AtLeast(0)] = 0.01
    """Weight decay; biases and norms have none (as in related papers)."""
    warmup: Annotated[float, Between(0, 1)] = 0.05
    """Share of the steps with linear warm-up from a tenth of the peak; the paper's 10 of 200 epochs."""
    power: Annotated[float, AtLeast(0)] = 0.9
    """Power of the polynomial decay to zero (paper)."""
    clip: Annotated[float, Above(0)] = 1.0
    """Largest gradient norm."""
    crop: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Height and width of training crops; 0 0 = whole images."""
    scale: Annotated[tuple[float, float], Above(0)] = (1.0, 1.0)
    """Range of the random zoom; related papers use 0.5 2.0."""
    jitter: Annotated[float, Between(0, 1)] = 0.2
    """Largest relative change of brightness and contrast of colour images."""
    network: NetworkConfig = NetworkConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    regularizer: RegularizerConfig = RegularizerConfig()
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


def micro_batches(
    length: int, config: TrainConfig, steps: int, start: int, rank: int, processes: int
) -> Iterator[list]:
    """Micro-batches of the steps from ``start`` to ``steps``: lists of (index of a sample, seed of its
    augmentation). They depend on the seed of the run and on the position in the training alone.

    All processes read one endless stream, a new permutation of the samples for each epoch. A step takes the
    next ``batch_size × accumulate × processes`` entries, and process ``rank`` gets its part of each
    micro-batch. One process with a large batch therefore sees the same samples as many processes together.
    """

    @lru_cache(1)
    def order(epoch):
        return np.random.default_rng(derived_seed(config.seed, "order", epoch)).permutation(length)

    for micro in range(start * config.accumulate, steps * config.accumulate):
        first = (micro * processes + rank) * config.batch_size
        entries = []
        for position in range(first, first + config.batch_size):
            epoch, place = divmod(position, length)
            index = int(order(epoch)[place])
            entries.append((index, derived_seed(config.seed, "augment", epoch, index)))
        yield entries


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up from a tenth of the peak to the peak, times polynomial decay to zero. ``step`` counts
    from 0.
    """
    encoder = config.network.encoder
    usual = 6e-5 if encoder.startswith("pvt_v2") else 5e-4
    peak = config.lr or (3e-3 if encoder == "residual" else usual)
    warm = config.warmup * steps
    ramp = 0.1 + 0.9 * step / warm if step < warm else 1.0
    return peak * ramp * (1 - step / steps) ** config.power


def parameter_groups(model: torch.nn.Module, weight_decay: float, encoder_lr: float = 1.0) -> list[dict]:
    """Groups for the optimizer: weight decay for matrices and filters, none for parameters of one dimension
    (biases and norms); "factor" is what the learning rate is multiplied by, ``encoder_lr`` in encoders.
    """
    groups = {}
    for name, parameter in model.named_parameters():
        factor = encoder_lr if name.startswith(("encoder.", "auxiliary.")) else 1.0
        key = factor, parameter.ndim < 2
        group = {"params": [], "factor": factor, "weight_decay": 0.0 if key[1] else weight_decay}
        groups.setdefault(key, group)["params"].append(parameter)
    return [*groups.values()]


def count_steps(config: TrainConfig, samples: int, processes: int = 1) -> int:
    """Number of optimizer steps of a training on so many samples."""
    return max(1, math.ceil(config.epochs * samples / (config.batch_size * config.accumulate * processes)))


@dataclass
class Run:
    """The objects of one training, as ``set_up`` makes them and ``train_step`` uses them."""

    config: TrainConfig
    accelerator: Accelerator
    data: PreparedDataset
    val: PreparedDataset
    model: torch.nn.Module  # the network, wrapped for the exchange of gradients between processes
    network: Segmenter  # the same network without its wrapper
    optimizer: torch.optim.Optimizer
    regularizer: Regularizer
    steps: int
    progress: Progress

    @property
    def samples_per_step(self) -> int:
        return self.config.batch_size * self.config.accumulate * self.accelerator.num_processes

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    def __str__(self) -> str:
        accelerator = self.accelerator
        precision = "bf16" if accelerator.mixed_precision == "bf16" else "float32"
        modalities, lacking = len(self.data.modalities), self.data.lacking()
        drawn, source = self.config.objective.drawn(modalities), self.network.encoder.source
        lacked = ", ".join(f"{count} {name}" for name, count in lacking.items())
        return (
            f"{self.parameters / 1e6:.2f} M parameters, {self.steps} steps of {self.samples_per_step} "
            f"samples ({accelerator.num_processes} {accelerator.device.type} × {self.config.batch_size} × "
            f"{self.config.accumulate}), {precision}"
            + f"; each step draws {drawn} of {2**modalities - 2} subsets of the sensors" * bool(drawn)
            + f"; of {len(self.data)} samples lack {lacked}" * bool(lacking)
            + "\npretrained: {weights}, licence {licence}, sha256 {sha256}".format(**source)
            * bool(source["sha256"])
        )

    def loader(self, start: int) -> DataLoader:
        """A loader of the micro-batches of this process, from step ``start`` on."""
        accelerator = self.accelerator
        place = accelerator.process_index, accelerator.num_processes
        return DataLoader(
            self.data,
            batch_sampler=micro_batches(len(self.data), self.config, self.steps, start, *place),
            num_workers=self.config.workers,
            collate_fn=collate,
            pin_memory=accelerator.device.type == "cuda",
        )


def set_up(config: TrainConfig, resumed: bool = True) -> Run:
    """Check the settings, open the data, build network and optimizer, and load the state of an unfinished
    run, unless ``resumed`` is false. Nothing is written.

    Raises:
        ValueError, DataError: as ``train``.
    """
    limit_threads()
    check_settings(config)
    # Settings that do not work together.
    fusion = config.network.fusion
    if fusion != "mean" and (
        config.objective.subsets not in ("full", "dropout") or config.regularizer.readings - {"input", "gat"}
    ):
        raise ValueError(
            f"--fusion {fusion} has no logits and features of single sensors; give --subsets full or "
            "dropout, and --prediction input or gat"
        )
    # Data.
    augment = Augment(config.crop if any(config.crop) else None, config.scale, jitter=config.jitter)
    data = PreparedDataset(config.data, "train", config.modalities or None, augment, cache=config.cache)
    val = PreparedDataset(config.data, "val", list(data.modalities), cache=config.cache)
    for part in (data, val):
        part.require_labels()
    subsets(data.modalities)  # which an evaluation scores; too many sensors are refused here
    lacking = data.lacking()
    if never := ", ".join(name for name, count in lacking.items() if count == len(data)):
        raise ValueError(
            f"{config.data}: no training sample has {never}, so that nothing can be learned of it; leave it "
            "out with --modalities"
        )
    if lacking and "gat" in config.regularizer.readings:
        raise ValueError(
            f"--prediction gat reads a batch as a whole, but samples lack {', '.join(lacking)}; give another "
            "reading, or --modalities without these"
        )
    # Devices, precision, processes.
    cuda, precision = torch.cuda.is_available(), config.precision
    if precision == "auto":
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported() else "no"
    # With a subset of the sensors, the stems of the others get no gradient; DDP must know that this happens.
    some = bool(lacking) or config.objective.subsets == "dropout"
    unused = DistributedDataParallelKwargs(find_unused_parameters=some)
    # Forget the state of an earlier training in this process, or in the one from which it was forked.
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(mixed_precision=precision, cpu=not cuda, kwargs_handlers=[unused])
    rank, processes = accelerator.process_index, accelerator.num_processes
    atexit.register(leave_group)
    if (
        os.environ.get("ACCELERATE_USE_CPU") == "True"
        and "MASTER_ADDR" in os.environ
        and "RANK" not in os.environ
    ):
        raise ValueError(
            "accelerate launch --cpu was asked for several processes but starts one; on CPUs, start them "
            "with 'torchrun --nproc_per_node N -m mmlib train …'"
        )
    steps = count_steps(config, len(data), processes)

    # Network and optimizer, with the state of an unfinished run on the same data.
    seed_everything(derived_seed(config.seed, "weights"))
    model = Segmenter(data.modalities, data.description.classes, data.description.palette, config.network)
    for size, where in ((config.crop, "--crop"), (val[0]["label"].shape, f"{config.data}, val")):
        if any(size):
            model.encoder.check_size(size, where)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay, config.encoder_lr), lr=0.0)
    progress = Progress()
    if resumed:
        # One process compares the data: on other machines, copies of the same files have other times.
        inputs = data.digest() | val.digest() if accelerator.is_main_process else {}
        progress = resume(config, model, optimizer, inputs, processes)
    positions = accelerator.gather(torch.tensor([[progress.step, len(data)]], device=accelerator.device))
    if (positions != positions[0]).any():
        raise ValueError(
            f"processes differ in the step at which {config.out} stands and the number of samples in "
            f"{config.data}: {positions.tolist()}; all machines must see the same folders"
        )
    model.to(memory_format=torch.channels_last)  # a quarter faster on CPUs; GPUs have kernels for it too
    model, optimizer = accelerator.prepare(model, optimizer)
    # Accelerate wraps ``forward`` in autocast. The bare network has none, so that the regulariser can compute
    # in full precision; ``train_step`` enters autocast where it is wanted.
    network = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    sensors = list(data.modalities) if lacking else ()
    regularizer = Regularizer(config.regularizer, derived_seed(config.seed, "regularizer", rank), sensors)
    regularizer.tallies |= progress.guards
    progress.guards = regularizer.tallies  # the same dictionary, so that a saved state has the counts
    return Run(config, accelerator, data, val, model, network, optimizer, regularizer, steps, progress)


def train_step(
    run: Run, step: int, batches: list[dict], progress: float | None = None
) -> tuple[dict[str, Tensor], Tensor, bool]:
    """Take one optimizer step on the micro-batches of this process.

    Args:
        batches: the micro-batches.
        progress: share of the training that is done, from 0 to 1, on which the strength of the regulariser
            depends; None = that of ``step``.

    Returns:
        (this process's share of each term of the loss, norm of the gradient, whether that norm was finite).
        If it was not, the weights stay as they were.
    """
    config, accelerator, regularizer = run.config, run.accelerator, run.regularizer
    rank, processes = accelerator.process_index, accelerator.num_processes
    progress = step / run.steps if progress is None else progress
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(step, run.steps, config) * group["factor"]
    # All processes draw the same subset, so that their gradients add up to that of one large batch.
    names = list(run.data.modalities)
    if config.objective.subsets == "dropout":
        names = draw_subset(names, np.random.default_rng(derived_seed(config.seed, "subset", step)))
    # Number of labelled pixels in all micro-batches and processes: the cross-entropy is a mean over them.
    valid = torch.tensor([sum(int((b["label"] != IGNORE_INDEX).sum()) for b in batches)])
    valid = accelerator.reduce(valid.to(accelerator.device, non_blocking=True), "sum").clamp_min(1)

    # Samples with the same sensors go through the network together, each such part as a micro-batch.
    batches = [restricted(batch, names) for batch in batches]
    micro = [part for batch in batches for part in parts(batch)]
    several = config.accumulate > 1 or bool(regularizer.sensors)

    def on_device(batch):
        to = lambda x, **options: x.to(accelerator.device, non_blocking=True, **options)
        images = {name: to(x, memory_format=torch.channels_last) for name, x in batch["images"].items()}
        return batch | {"images": images, "label": to(batch["label"])}

    def forward(net, part, m):
        if several:  # a micro-batch that is computed twice must have the same dropout
            torch.manual_seed(derived_seed(config.seed, "step", step, rank, m))
        with accelerator.autocast():
            return net(part["images"], fuse=False)

    torch.manual_seed(derived_seed(config.seed, "step", step, rank))  # for dropout inside the network
    strength = regularizer.strength(progress)
    regularized = config.regularizer.readings - PROBED and strength > 0
    if regularized and several:
        # Information is averaged over all micro-batches before it is inverted, so that one forward pass over
        # all of them comes first.
        tables = []
        with torch.no_grad():
            for m, part in enumerate(micro):
                part = on_device(part)
                tables.append(regularizer.read(*forward(run.network, part, m), part["label"]))
        whole = gather_tables(tables, accelerator.gather)  # information of all samples of the step
    terms = {}
    for m, part in enumerate(micro):
        if m == 0 and regularizer.due(step, progress):
            # A probe differentiates the bare network. Its gradient is exchanged between processes together
            # with that of the last micro-batch.
            batch = on_device(batches[0])
            with accelerator.no_sync(run.model):
                R_p, R_f = regularizer.probe(run.network, batch, step, progress, accelerator.gather)
                accelerator.backward((R_p + R_f) * processes)
            run.progress.probed = {
                "probe": float((R_p + R_f).detach()),
                "regularized": {name: values.tolist() for name, values in regularizer.information.items()},
            }
        part = on_device(part)
        pixels = np.random.default_rng(derived_seed(config.seed, "pixels", step, m, rank))
        last = m == len(micro) - 1
        with nullcontext() if last else accelerator.no_sync(run.model):  # gradients are exchanged once a step
            logits, features = forward(run.model, part, m)
            shares = subset_cross_entropy(logits, part["label"], config.objective, valid, pixels)
            L_sup, R_p, R_f = shares["supervised"], 0.0, 0.0
            if regularized:
                own = regularizer.read(logits, features, part["label"])
                if not several:
                    whole = gather_tables([own], accelerator.gather)
                R_p, R_f = regularizer.terms(own, whole, strength, counting=m == 0)
            loss = L_sup + R_p + R_f  # Eq. 8 and 9; R_p and R_f hold λ_p and λ_f
            # DDP averages gradients over processes. Here they are to be summed, because each process has the
            # share of its own samples; hence the factor.
            accelerator.backward(loss * processes)
        if config.regularizer.readings:  # every micro-batch and process has the value of the whole step
            shares["regularizer"] = (R_p + R_f) / (len(micro) * processes)
        for name, value in shares.items():
            terms[name] = terms.get(name, 0) + torch.as_tensor(value, device=accelerator.device).detach()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.clip)
    finite = bool(torch.isfinite(norm))  # here the processor waits for the device
    if finite:  # a NaN would destroy all weights
        run.optimizer.step()
    run.optimizer.zero_grad()
    return terms, norm, finite
