"""Training of the segmenter with Accelerate, in one process or many; called by the command ``train`` and by
notebooks.

Everything random is a function of (seed, step or epoch, sample), never of a generator's state. A run that was
killed and resumed is therefore the same run, and on a CPU the same to the last bit.
"""

import copy
from pathlib import Path

import numpy as np
import psutil  # comes with accelerate
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ..data.prepared import PreparedDataset
from ..evaluation.subsets import SubsetScores, evaluate_subsets
from ..loop import run_steps, write_report
from ..outputs import claims
from .information import measure_information
from .network import Segmenter, save_segmenter
from .objective import parts, subset_cross_entropy
from .step import Run, TrainConfig, learning_rate, set_up, train_step


@claims("data")
def train(config: TrainConfig) -> dict:
    """Run or resume a training; returns the final report (also ``out/report.json``), on the main process; {}
    on the others.

    Writes to ``config.out``: config.json, history.jsonl (one line per logged step and evaluation),
    resume.safetensors, last.safetensors, best.safetensors (highest mean mIoU over the subsets on val),
    report.json, event files if asked for.

    Raises:
        ValueError: settings that cannot work, an ``out`` folder of other settings or other data, data without
            labels, or too many steps without a finite gradient.
        DataError: unreadable data.
        MemoryError: a step takes more memory than is free.
    """
    run = set_up(config)
    out, accelerator, network, progress = Path(config.out), run.accelerator, run.network, run.progress
    main, per_epoch = accelerator.is_main_process, len(run.data) / run.samples_per_step
    if main and config.progress:
        print(run)
    start, batches = progress.step, iter(run.loader(progress.step))
    scores, information, source = None, None, network.encoder.source

    def take_step(step):
        micro = [next(batches) for _ in range(config.accumulate)]
        if step == start and accelerator.device.type == "cpu":  # a GPU whose memory does not suffice says so
            check_memory(run, micro[0])
        terms, norm, finite = train_step(run, step, micro)

        def line() -> dict:
            # Each process has its own samples' share of every term.
            entry = {"epoch": round((step + 1) / per_epoch, 3), "lr": learning_rate(step, run.steps, config)}
            entry |= {name: float(accelerator.reduce(value, "sum")) for name, value in terms.items()}
            entry |= {"grad_norm": float(norm), "skipped": progress.skipped}
            if config.regularizer.readings:
                entry |= {"probe": 0.0, "regularized": {}, "guards": run.regularizer.counts} | progress.probed
                entry["regularized"] |= {k: v.tolist() for k, v in run.regularizer.information.items()}
            return entry

        return finite, line

    def measure(done):
        nonlocal scores, information
        scores, information = validate(network, run.val, config, accelerator)
        summary = scores.summary()
        line = {"epoch": round(done / per_epoch, 3), "val": summary, "miou": scores.miou()}
        return line | {"information": information}, summary["mean"]

    def keep_best(done, line, best):
        if best and main:
            save_segmenter(network, out / "best.safetensors", step=done, val=line["val"], weights=source)

    run_steps(
        config,
        network,
        run.optimizer,
        progress,
        run.steps,
        take_step=take_step,
        measure=measure,
        after_measure=keep_best,
        epoch=per_epoch,
        shown="supervised",
        main=main,
        processes=accelerator.num_processes,
    )
    if scores is None:  # the run was complete already
        measure(run.steps)
    report = {}
    if main:
        report = write_report(
            config,
            progress,
            steps=run.steps,
            parameters=run.parameters,
            weights=source,
            split="val",
            scores=scores.to_dict(),
            information=information,
            guards=run.regularizer.counts,
        )
        save_segmenter(
            network,
            out / "last.safetensors",
            step=run.steps,
            val=scores.summary(),
            weights=source,
            provenance=report["provenance"],
        )
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    # So that a notebook can start several processes after a training in its own.
    AcceleratorState._reset_state(True)
    return report


def check_memory(run: Run, batch: dict) -> None:
    """Raise MemoryError where this machine has less free memory than a training step on ``batch`` takes at
    the very least. Otherwise the system might end the process without a word.

    What the backward pass keeps is counted on the device "meta", where tensors have a shape and no values.
    """
    free, activations = psutil.virtual_memory().available, {}
    if 2000 * sum(image.nbytes for image in batch["images"].values()) < free:
        return  # this is enough for any network
    part = parts(batch)[-1]
    network, label = copy.deepcopy(run.network).to("meta"), part["label"].to("meta")
    images = {name: image.to("meta") for name, image in part["images"].items()}
    # Several tensors may share one storage.
    keep = lambda tensor: activations.setdefault(tensor.untyped_storage()._cdata, tensor)
    with torch.autograd.graph.saved_tensors_hooks(keep, keep):
        logits, _ = network(images, fuse=False)
        subset_cross_entropy(logits, label, run.config.objective, 1, np.random.default_rng(0))
    needed = sum(tensor.untyped_storage().nbytes() for tensor in activations.values())
    needed += 12 * run.parameters  # gradients and the two moments of AdamW
    if needed > free:
        raise MemoryError(
            f"a training step takes {needed / 1e9:.1f} GB or more, and {free / 1e9:.1f} GB are free"
        )


def validate(
    network: Segmenter, data: PreparedDataset, config: TrainConfig, accelerator: Accelerator
) -> tuple[SubsetScores, dict[str, float]]:
    """Scores of a network in training, every process taking its share of the data, and the Fisher information
    of each sensor; the mode is put back after.
    """
    network.eval()
    with accelerator.autocast():
        scores = evaluate_subsets(
            dataset=data,
            batch_size=config.batch_size,
            device=accelerator.device,
            workers=config.workers,
            shard=(accelerator.process_index, accelerator.num_processes),
            **network.scoring(),
        )
    for group, counts in scores.counts.items():
        counts = accelerator.reduce(torch.from_numpy(counts).to(accelerator.device), "sum")
        scores.counts[group] = counts.cpu().numpy()
    information = {}
    if config.information_samples and accelerator.is_main_process:
        information = measure_information(network, data, config.information_samples)
    network.train()
    return scores, information
