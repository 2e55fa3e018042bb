"""Score finished trainings: every subset of the sensors, failures, and comparisons over seeds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tqdm.auto import tqdm

from .data import world
from .data.prepared import PreparedDataset
from .evaluation.failures import FailureScores, evaluate_failures
from .evaluation.fusion import FUSIONS
from .evaluation.statistics import estimate, paired_difference
from .evaluation.subsets import evaluate_subsets
from .runtime import choose_device, limit_threads, provenance, write_json
from .segmentation.information import evenly_spaced, fisher_gap, measure_information
from .segmentation.network import Segmenter, load_segmenter
from .state import read_history

SCENES = ("street", "room")


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a trained segmenter on every subset of its sensors."""

    checkpoint: tyro.conf.Positional[str]
    """A best.safetensors or last.safetensors written by 'train'."""
    data: str
    """Folder of a prepared data set, or 'street' or 'room' for the sensor world (rendered on first use)."""
    split: str = "val"
    """Which split; use 'test' once, at the end."""
    protocol: Literal["drop", "zero", "black", "noise"] = "drop"
    """What an absent sensor is replaced by: nothing, the normalised zero, a black image, noise."""
    fusion: Literal["mean", "agreement", "selection", "entropy"] = "mean"
    """How predictions are fused (mmlib.evaluation.fusion)."""
    failures: int = 0
    """Samples on which every fusion rule is scored while one or two sensors fail unannounced, in six ways, mild and gross; -1 = all."""
    out: str = ""
    """JSON file for the scores; empty = print the table only."""
    batch_size: int = 8
    """Samples at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    workers: int = 0
    """Loader processes."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True)
class CompareConfig:
    """Score finished runs on one split and compare them: mean and spread over seeds, differences paired by seed."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders written by 'train'. Runs that differ in nothing but the seed form a group; the first group is the reference."""
    split: str = "test"
    """Which split."""
    checkpoint: Literal["last", "best"] = "last"
    """last = after the final step (nothing was chosen); best = chosen on val."""
    data: str = ""
    """Data set; empty = the one each run was trained on."""
    protocol: Literal["drop", "zero", "black", "noise"] = "drop"
    """What an absent sensor is replaced by."""
    failures: int = 0
    """Samples on which every fusion rule is scored while one or two sensors fail unannounced; -1 = all."""
    information_samples: int = 16
    """Samples on which each sensor's Fisher information is measured; 0 = none."""
    out: str = ""
    """JSON file for the result; empty = print the table only."""
    progress: bool = True
    """Show a progress bar."""


def find_data(name: str, progress: bool = True) -> str:
    """A folder's path as it is; 'street' or 'room' = the sensor world, rendered into the cache if it is not there yet."""
    return str(world.ensure(name, progress=progress)) if name in SCENES and not Path(name).exists() else name


def open_checkpoint(path: str | Path, data: str, split: str, device="cpu", progress: bool = True) -> tuple[Segmenter, PreparedDataset]:
    """A trained network and the split to score it on.

    Raises:
        ValueError: unreadable checkpoint or data, or the two differ in classes or sensors.
    """
    network = load_segmenter(path, device)
    dataset = PreparedDataset(find_data(data, progress), split, list(network.modalities))
    if dataset.description.classes != network.classes:
        ours, theirs = (f"{len(names)} classes ({', '.join(names[:3])}, …)" for names in (network.classes, dataset.description.classes))
        raise ValueError(f"{path} predicts {ours}, {data} has {theirs}")
    # Images are normalised by the statistics that the network was trained with, not by those of the new data.
    dataset.modalities = network.modalities
    return network, dataset


def run_evaluate(config: EvaluateConfig) -> None:
    limit_threads()
    device = choose_device(config.device)
    network, data = open_checkpoint(config.checkpoint, config.data, config.split, device, config.progress)
    options = network.scoring()
    if config.fusion != "mean":
        options = {"encode": network.modality_logits, "fuse": FUSIONS[config.fusion]}
    loading = {"batch_size": config.batch_size, "device": device, "workers": config.workers, "progress": config.progress}
    scores = evaluate_subsets(dataset=data, **options, protocol=config.protocol, **loading)
    print(f"{Path(config.checkpoint).name} on {config.split}, {len(data)} samples, fusion {config.fusion}; {scores.table()}")
    record = {"provenance": provenance(), "split": config.split, "samples": len(data), "fusion": config.fusion, "scores": scores.to_dict()}
    if config.failures:
        failures = score_failures(network, data, config.failures, **loading)
        print(f"\n{failures.table()}")
        record["failures"] = failures.to_dict()
    if config.out:
        write_json(config.out, record)


def score_failures(network: Segmenter, data: PreparedDataset, samples: int, **loading) -> FailureScores:
    """Every fusion rule under every failure, on so many evenly spaced samples (-1 = all)."""
    indices = None if samples < 0 else evenly_spaced(len(data), samples)
    options = network.scoring()
    rules = {"network": options["fuse"]} if options["fuse"] else {n: FUSIONS[n] for n in ("mean", "agreement", "selection", "entropy")}
    return evaluate_failures(options["encode"], rules, data, indices=indices, **loading)


def group_name(folder: Path, config: dict, others: list[dict]) -> str:
    """The folder's name if it ends in the seed ("street-dropout-0" -> "street-dropout"), else what tells this configuration from
    the others: "subsets dropout, epochs 37.5"."""
    stem, _, seed = folder.name.rpartition("-")
    if stem and seed.isdigit():
        return stem
    flat = [
        {k: v for key, value in c.items() for k, v in (value.items() if isinstance(value, dict) else {key: value}.items())}
        for c in (config, *others)
    ]
    differing = [key for key in flat[0] if key != "seed" and any(f.get(key) != flat[0][key] for f in flat[1:])]
    return ", ".join(f"{key.replace('_', ' ')} {flat[0][key]}" for key in differing) or "all runs"


def run_compare(config: CompareConfig) -> None:
    limit_threads()
    runs, groups = [], {}
    for folder in map(Path, config.runs):
        if not (folder / "report.json").exists():
            raise ValueError(f"{folder}: no report.json, so no finished run of 'train'")
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        runs.append((folder, report, settings))
    public = [{k: v for k, v in report["config"].items() if k not in ("seed", "data")} for _, report, _ in runs]
    for (folder, report, settings), own in zip(tqdm(runs, "compare", disable=not config.progress), public):
        name, seed = group_name(folder, own, [p for p in public if p != own]), report["config"]["seed"]
        group = groups.setdefault(name, {"config": own, "steps": report["steps"], "seeds": [], "seconds": [], "cpu_seconds": []})
        if group["config"] != own:
            raise ValueError(f"{folder}: other settings than the runs before it of the name '{name}'; give it another folder name")
        if seed in group["seeds"]:
            raise ValueError(
                f"{folder}: a second run of '{name}' with seed {seed}; name each run once, and compare data sets one at a time"
            )
        network, data = open_checkpoint(
            folder / f"{config.checkpoint}.safetensors", config.data or settings["data"], config.split, progress=config.progress
        )
        scores = evaluate_subsets(dataset=data, **network.scoring(), protocol=config.protocol, progress=config.progress).to_dict()
        group["seeds"].append(seed)
        for clock in ("seconds", "cpu_seconds"):
            group[clock].append(report[clock])
        group.setdefault("guards", []).append(report.get("guards", {}))
        for key in ("summary", "miou", "iou"):
            for part, entries in scores[key].items():
                for entry, value in entries.items():
                    group.setdefault(key, {}).setdefault(part, {}).setdefault(entry, []).append(value)
        if config.information_samples:
            found = measure_information(network, data, samples=config.information_samples)
            for sensor, value in found.items():
                group.setdefault("information", {}).setdefault(sensor, []).append(value)
            group["summary"]["all"].setdefault("gap", []).append(fisher_gap(list(found.values())))
        if config.failures:
            failures = score_failures(network, data, config.failures, progress=config.progress)
            group.setdefault("failures", []).append(failures.to_dict())
        _, evaluations = read_history(folder / "history.jsonl")
        kept = [{"epoch": e["epoch"], **e["val"], "miou": e["miou"], "information": e.get("information", {})} for e in evaluations]
        group.setdefault("curves", []).append(kept)
    _print_comparison(groups, config)
    if config.out:
        record = {"provenance": provenance(), "split": config.split, "protocol": config.protocol, "checkpoint": config.checkpoint}
        write_json(config.out, record | {"groups": rounded(groups)})


def rounded(value, digits: int = 5):
    """``value`` with every number in it rounded to so many significant digits: a record, not a memory dump."""
    if isinstance(value, dict):
        return {key: rounded(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry, digits) for entry in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _print_comparison(groups: dict, config: CompareConfig) -> None:
    reference = next(iter(groups))
    print(f"mIoU in % on {config.split}, {config.checkpoint} checkpoint, absent sensors: {config.protocol}; mean ± sd over seeds")
    for name, group in groups.items():
        summary = group["summary"]["all"]
        cost = sum(group["cpu_seconds"]) / len(group["seeds"])
        print(f"\n{name}  (seeds {', '.join(map(str, group['seeds']))}; {group['steps']} steps, {cost:.0f} CPU s)")
        keys = [key for key in ("full", "mean", "min", "std", "gap") if key in summary]
        print("  " + "   ".join(f"{key} {estimate(summary[key])}" for key in keys))
        print("  " + "  ".join(f"{subset} {sum(values) / len(values):.1f}" for subset, values in group["miou"]["all"].items()))
        if name != reference and group["seeds"] == groups[reference]["seeds"] and len(group["seeds"]) > 1:
            for key in ("full", "mean"):
                d = paired_difference(summary[key], groups[reference]["summary"]["all"][key])
                verdict = "" if d.clear else " - smaller than its spread"
                print(f"  {key} minus '{reference}': {d.mean:+.1f}, 95 % interval [{d.low:+.1f}, {d.high:+.1f}]{verdict}")
