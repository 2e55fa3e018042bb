"""Training with Accelerate: one process or many, exact resume, history as JSON lines, checkpoints as
safetensors.

Everything random is a function of (seed, step or epoch, sample), never of a generator's state. A run that was
killed and resumed is therefore the same run, and on a CPU the same to the last bit.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ..data.prepared import PreparedDataset
from ..evaluation.subsets import SubsetScores, evaluate_subsets
from ..runtime import progress_bar, provenance, write_json
from ..state import save_state
from .history import History
from .information import measure_information
from .network import Segmenter, save_segmenter
from .step import TrainConfig, learning_rate, set_up, train_step

LOG_EVERY = 20  # steps between lines of the history


def train(config: TrainConfig) -> dict:
    """Run or resume a training; returns the final report (also ``out/report.json``), on the main process; {}
    on the others.

    Writes to ``config.out``: config.json, history.jsonl (one line per logged step and evaluation),
    resume.safetensors, last.safetensors, best.safetensors (highest mean mIoU over the subsets on val),
    report.json, event files if asked for.

    Raises:
        ValueError: settings that cannot work, an ``out`` folder of other settings, or 20 steps in a row
            without finite gradients.
        DataError: unreadable data.
    """
    run = set_up(config)
    out, accelerator, network, progress, steps = (
        Path(config.out),
        run.accelerator,
        run.network,
        run.progress,
        run.steps,
    )
    main, start, per_epoch = accelerator.is_main_process, progress.step, len(run.data) / run.samples_per_step
    if main:
        if config.progress:
            print(run)
        write_json(out / "config.json", asdict(config))
        history = History(out, start, progress.seconds, config.tensorboard)
    accelerator.wait_for_everyone()
    batches = iter(run.loader(start))
    begun, begun_cpu, in_a_row = (
        time.perf_counter() - progress.seconds,
        time.process_time() - progress.cpu_seconds,
        0,
    )
    with progress_bar(
        total=steps,
        initial=start,
        desc=f"train {out.name}",
        progress=main and config.progress,
        leave=False,
        mininterval=1.0,
    ) as bar:
        for step in range(start, steps):
            terms, norm, finite = train_step(run, step, [next(batches) for _ in range(config.accumulate)])
            progress.skipped, in_a_row = progress.skipped + (not finite), 0 if finite else in_a_row + 1
            if in_a_row == 20:
                raise ValueError(
                    f"step {step}: no finite gradient for {in_a_row} steps; lower --lr, or check the data for constant or NaN images"
                )
            done = progress.step = step + 1
            progress.seconds, progress.cpu_seconds = (
                time.perf_counter() - begun,
                time.process_time() - begun_cpu,
            )
            if done % LOG_EVERY == 0 or done == steps:
                log = {name: float(accelerator.reduce(value, "sum")) for name, value in terms.items()}
                if main:
                    bar.set_postfix(loss=f"{log['supervised']:.3f}", refresh=False)
                    entry = {
                        "step": done,
                        "epoch": round(done / per_epoch, 3),
                        "lr": learning_rate(step, steps, config),
                        **log,
                        "grad_norm": float(norm),
                        "skipped": progress.skipped,
                    }
                    if config.regularizer.active:
                        entry["probe"] = float(run.regularizer.probed)  # of the latest one
                        entry["guards"] = run.regularizer.counts
                        entry["regularized"] = {
                            name: value.tolist() for name, value in run.regularizer.information.items()
                        }
                    history.append(entry | {"seconds": round(progress.seconds, 2)})
            bar.update()
            if due(done, steps, config.eval_every * per_epoch):
                scores, information = evaluate(network, run.val, config, accelerator)
                if main:
                    entry = {
                        "step": done,
                        "epoch": round(done / per_epoch, 3),
                        "val": scores.summary(),
                        "miou": scores.miou(),
                    }
                    entry["information"] = information
                    history.append(entry)
                    if entry["val"]["mean"] > progress.best:
                        progress.best = entry["val"]["mean"]
                        save_segmenter(network, out / "best.safetensors", step=done, val=entry["val"])
            if main and due(done, steps, config.save_every * per_epoch):
                progress.guards = run.regularizer.counts
                save_state(
                    out / "resume.safetensors",
                    network,
                    run.optimizer,
                    config,
                    accelerator.num_processes,
                    progress,
                )

    report = {}
    if start == steps:  # the run was complete already: score it again
        scores, information = evaluate(network, run.val, config, accelerator)
    if main:
        history.close()
        report = {
            "provenance": provenance(seed=config.seed),
            "config": _public(config),
            "steps": steps,
            "seconds": round(progress.seconds, 1),
            "cpu_seconds": round(progress.cpu_seconds, 1),
            "parameters": run.parameters,
            "split": "val",
            "scores": scores.to_dict(),
            "information": information,
            "guards": run.regularizer.counts,
        }
        save_segmenter(
            network,
            out / "last.safetensors",
            step=steps,
            val=scores.summary(),
            provenance=report["provenance"],
        )
        write_json(out / "report.json", report)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    AcceleratorState._reset_state(
        True
    )  # so that a notebook can start several processes after a training in its own
    return report


def evaluate(
    network: Segmenter, data: PreparedDataset, config: TrainConfig, accelerator: Accelerator
) -> tuple[SubsetScores, dict[str, float]]:
    """Scores of a network in training, every process taking its share of the data, and the Fisher information
    of each sensor; the mode is put back after.
    """
    network.eval()
    shard = (accelerator.process_index, accelerator.num_processes)
    with accelerator.autocast():
        scores = evaluate_subsets(
            dataset=data,
            batch_size=config.batch_size,
            device=accelerator.device,
            workers=config.workers,
            shard=shard,
            **network.scoring(),
        )
    for group, counts in scores.counts.items():
        scores.counts[group] = (
            accelerator.reduce(torch.from_numpy(counts).to(accelerator.device), "sum").cpu().numpy()
        )
    information = {}
    if config.information_samples and accelerator.is_main_process:
        information = measure_information(
            network, data, samples=config.information_samples, device=accelerator.device
        )
    network.train()
    return scores, information


def due(done: int, steps: int, every: float) -> bool:
    return done == steps or (every > 0 and int(done / every) > int((done - 1) / every))


def _public(config: TrainConfig) -> dict:
    """The configuration without folders: reports name no machine's paths."""
    return {
        key: value
        for key, value in asdict(config).items()
        if key not in ("out", "data", "tensorboard", "progress")
    } | {"data": Path(config.data).name}
