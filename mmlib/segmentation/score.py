"""Score finished trainings: every subset of the sensors, failures, and comparisons over seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .. import world
from ..config import AtLeast, Between
from ..data.prepared import PreparedDataset
from ..evaluation.failures import FailureScores, evaluate_failures
from ..evaluation.fusion import FUSIONS
from ..evaluation.sheets import Sheet, cluster_sheets, subset_sheet, write_sheets
from ..evaluation.statistics import estimate, paired_difference, rounded
from ..evaluation.subsets import evaluate_subsets, subset_probabilities
from ..evaluation.windows import sliding
from ..loop import read_history
from ..modalities import Modality
from ..runtime import choose_device, limit_threads, progress_bar, provenance, read_json, reading, write_json
from .information import evenly_spaced, fisher_gap, measure_information
from .network import Segmenter, load_segmenter

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
    window: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Height and width of sliding windows at native resolution, multiples of 32; 0 0 = whole images."""
    stride: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Largest step between windows; 0 0 = two thirds of the window."""
    failure_probability: Annotated[tuple[float, ...], Between(0, 1)] = ()
    """Also score random failures: each sensor of each sample absent with this probability (several may be
    given), never all of them.
    """
    layout: str = ""
    """Also print tables as papers do (subsets, Mean, Std; conditions), and write them to this path plus .md
    and .csv.
    """
    failures: Annotated[int, AtLeast(-1)] = 0
    """Samples on which every fusion rule is scored while one or two sensors fail unannounced, in six ways,
    mild and gross; -1 = all.
    """
    out: str = ""
    """JSON file for the scores; empty = print the table only."""
    batch_size: Annotated[int, AtLeast(1)] = 8
    """Samples at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Loader processes."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True)
class CompareConfig:
    """Score finished runs on one split and compare them: mean and spread over seeds, differences paired by
    seed.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders written by 'train'. Runs that differ in nothing but the seed form a group; the first group is
    the reference. Or folders written by 'cluster': their mIoU, accuracy and IoU by class, as reported, one
    row a run.
    """
    split: str = "test"
    """Which split."""
    checkpoint: Literal["last", "best"] = "last"
    """last = after the final step (nothing was chosen); best = chosen on val."""
    data: str = ""
    """Data set; empty = the one each run was trained on."""
    protocol: Literal["drop", "zero", "black", "noise"] = "drop"
    """What an absent sensor is replaced by."""
    failures: Annotated[int, AtLeast(-1)] = 0
    """Samples on which every fusion rule is scored while one or two sensors fail unannounced; -1 = all."""
    information_samples: Annotated[int, AtLeast(0)] = 16
    """Samples on which each sensor's Fisher information is measured; 0 = none."""
    layout: str = ""
    """Also print the runs as rows of a table as papers do, and write it to this path plus .md and .csv."""
    out: str = ""
    """JSON file for the result; empty = print the table only."""
    progress: bool = True
    """Show a progress bar."""


def find_data(name: str, progress: bool = True) -> str:
    """A folder's path as it is; 'street' or 'room' = the sensor world, rendered into the cache if it is not
    there yet.
    """
    return str(world.ensure(name, progress=progress)) if name in SCENES and not Path(name).exists() else name


def open_checkpoint(
    path: str | Path, data: str, split: str, device="cpu", progress: bool = True
) -> tuple[Segmenter, PreparedDataset]:
    """A trained network and the split to score it on.

    Raises:
        ValueError: unreadable checkpoint or data, or the two differ in classes or sensors.
    """
    network = load_segmenter(path, device)
    dataset = PreparedDataset(find_data(data, progress), split, list(network.modalities))
    if dataset.description.classes != network.classes:
        ours, theirs = (
            f"{len(names)} classes ({', '.join(names[:3])}, …)"
            for names in (network.classes, dataset.description.classes)
        )
        raise ValueError(f"{path} predicts {ours}, {data} has {theirs}")
    dataset.modalities = normalised_as(network, dataset)
    return network, dataset


def normalised_as(network: Segmenter, dataset: PreparedDataset) -> dict[str, Modality]:
    """The data set's modalities, read as they are stored and normalised by the statistics that the network
    was trained with.

    Raises:
        ValueError: a sensor has other channels, or another unit, than the one of that name in training.
    """
    result = {}
    for name, theirs in dataset.modalities.items():
        ours = network.modalities[name]
        if (ours.channels, ours.unit) != (theirs.channels, theirs.unit):
            trained, found = (
                f"{m.channels} channel{'s' * (m.channels > 1)} in {m.unit or 'no unit'}"
                for m in (ours, theirs)
            )
            raise ValueError(
                f"{name}: the network was trained on {trained}, {dataset.root} has {found}; prepare the data in the same unit"
            )
        result[name] = replace(ours, dtype=theirs.dtype, scale=theirs.scale, offset=theirs.offset)
    return result


def fusing(
    network: Segmenter, fusion: str, window: tuple[int, int], stride: tuple[int, int], batch_size: int
) -> dict:
    """``encode`` and ``fuse`` for ``evaluate_subsets``: this rule, on whole images (``window`` 0 0) or on
    sliding windows.

    Raises:
        ValueError: another rule than the mean for centred fusion; windows that do not fit.
    """
    centred = network.config.fusion == "centred"
    if centred and fusion != "mean":
        raise ValueError(
            f"--fusion {fusion}: this network's fusion is centred on {next(iter(network.modalities))}; it has no logits "
            "of single sensors; leave the option out"
        )
    if any(stride) and not any(window):
        raise ValueError(f"--stride {stride[0]} {stride[1]} without --window; give --window HEIGHT WIDTH too")

    def head(images: dict) -> dict:  # centred fusion has one entry: the prediction from all sensors given
        return network(images, fuse=False)[0] if centred else network.modality_logits(images)

    encode = sliding(head, window, stride, batch_size) if any(window) else head
    if centred:  # what it encodes depends on which sensors are there, so each subset is encoded by itself
        return {"encode": lambda images: images, "fuse": lambda images: next(iter(encode(images).values()))}
    return {"encode": encode, "fuse": None if fusion == "mean" else FUSIONS[fusion]}


def refuse_folder(out: str) -> None:
    """Raise ValueError, before hours of scoring, for an ``--out`` that cannot be written as a file."""
    if out and Path(out).is_dir():
        raise ValueError(
            f"{out}: a folder; --out names the JSON file to write, such as {Path(out) / 'scores.json'}"
        )


def run_evaluate(config: EvaluateConfig) -> None:
    refuse_folder(config.out)
    limit_threads()
    device = choose_device(config.device)
    for probability in config.failure_probability:
        subset_probabilities(1, probability)  # complains before the work, not after it
    network, data = open_checkpoint(config.checkpoint, config.data, config.split, device, config.progress)
    windows = {"window": config.window, "stride": config.stride, "batch_size": config.batch_size}
    loading = {
        "batch_size": config.batch_size,
        "device": device,
        "workers": config.workers,
        "progress": config.progress,
    }
    scores = evaluate_subsets(
        dataset=data, **fusing(network, config.fusion, **windows), protocol=config.protocol, **loading
    )
    fusion = "centred" if network.config.fusion == "centred" else config.fusion
    how = f"fusion {fusion}, " + (
        f"windows of {config.window[0]} × {config.window[1]}" if any(config.window) else "whole images"
    )
    how += f", stride {config.stride[0]} × {config.stride[1]}" * any(config.stride)
    what = f"{config.split}, {len(data)} samples, {how}"
    caption = f"on {what}; absent sensors: {config.protocol}"
    print(f"{Path(config.checkpoint).name} on {what}; {scores.table()}")
    record = {
        "provenance": provenance(),
        "split": config.split,
        "samples": len(data),
        "fusion": fusion,
        "window": list(config.window),
        "stride": list(config.stride),
        "scores": scores.to_dict(),
    }
    if config.layout:
        name = f"{Path(config.checkpoint).resolve().parent.name}, {Path(config.checkpoint).stem}"
        _print_sheets(scores.sheets(name, caption), config.layout)
    if config.failure_probability:
        sheet = scores.failure_sheet(config.failure_probability, caption)
        print("\n" + sheet.markdown())
        rows = {row: rounded(dict(zip(sheet.columns, values))) for row, values in sheet.rows.items()}
        record["failure_probability"] = {"protocol": config.protocol, "miou": rows}
    if config.failures:
        failures = score_failures(
            network, data, config.failures, fusing(network, "mean", **windows), **loading
        )
        print(f"\n{failures.table()}")
        record["failures"] = failures.to_dict()
    if config.out:
        write_json(config.out, record)


def _print_sheets(sheets: list[Sheet], stem: str) -> None:
    for sheet in sheets:
        print(f"\n{sheet.markdown()}")
    print(f"\n{' and '.join(map(str, write_sheets(stem, sheets)))}")


def score_failures(
    network: Segmenter, data: PreparedDataset, samples: int, options: dict | None = None, **loading
) -> FailureScores:
    """Every fusion rule under every failure, on so many evenly spaced samples (-1 = all). ``options``: see
    ``fusing``.
    """
    indices = None if samples < 0 else evenly_spaced(len(data), samples)
    options = options or network.scoring()
    rules = (
        {"network": options["fuse"]}
        if options["fuse"]
        else {n: FUSIONS[n] for n in ("mean", "agreement", "selection", "entropy")}
    )
    return evaluate_failures(options["encode"], rules, data, indices=indices, **loading)


def group_name(folder: Path, config: dict, others: list[dict]) -> str:
    """The folder's name if it ends in the seed ("street-dropout-0" -> "street-dropout"), else what tells this
    configuration from the others: "subsets dropout, epochs 37.5".
    """
    stem, _, seed = folder.name.rpartition("-")
    if stem and seed.isdigit():
        return stem
    flat = [
        {
            k: v
            for key, value in c.items()
            for k, v in (value.items() if isinstance(value, dict) else {key: value}.items())
        }
        for c in (config, *others)
    ]
    differing = [
        key for key in flat[0] if key != "seed" and any(f.get(key) != flat[0][key] for f in flat[1:])
    ]
    return ", ".join(f"{key.replace('_', ' ')} {flat[0][key]}" for key in differing) or "all runs"


def run_compare(config: CompareConfig) -> None:
    refuse_folder(config.out)
    limit_threads()
    runs, groups = [], {}
    for folder in map(Path, config.runs):
        if not (folder / "report.json").exists():
            raise ValueError(f"{folder}: no report.json, so no finished run of 'train'")
        with reading(folder / "report.json", "the report of a finished run"):
            report = read_json(folder / "report.json", "the report of a finished run")
            if "plan" not in report:  # of 'train'
                _ = report["config"]["seed"], report["steps"], report["seconds"], report["cpu_seconds"]
        with reading(folder / "config.json", "the settings of a run"):
            settings = read_json(folder / "config.json", "the settings of a run")
            _ = settings["data"]
        runs.append((folder, report, settings))
    if clustered := [folder for folder, report, _ in runs if "plan" in report]:
        if len(clustered) < len(runs):
            raise ValueError(
                f"{clustered[0]} is a run of 'cluster', others are of 'train'; compare each kind by itself"
            )
        return _compare_clusters(runs, config)
    public = [
        {k: v for k, v in report["config"].items() if k not in ("seed", "data")} for _, report, _ in runs
    ]
    for (folder, report, settings), own in zip(
        progress_bar(runs, "compare", progress=config.progress), public
    ):
        name, seed = group_name(folder, own, [p for p in public if p != own]), report["config"]["seed"]
        group = groups.setdefault(
            name, {"config": own, "steps": report["steps"], "seeds": [], "seconds": [], "cpu_seconds": []}
        )
        if group["config"] != own:
            raise ValueError(
                f"{folder}: other settings than the runs before it of the name '{name}'; give it another folder name"
            )
        if seed in group["seeds"]:
            raise ValueError(
                f"{folder}: a second run of '{name}' with seed {seed}; name each run once, and compare data sets one at a time"
            )
        network, data = open_checkpoint(
            folder / f"{config.checkpoint}.safetensors",
            config.data or settings["data"],
            config.split,
            progress=config.progress,
        )
        scores = evaluate_subsets(
            dataset=data, **network.scoring(), protocol=config.protocol, progress=config.progress
        ).to_dict()
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
        kept = [
            {"epoch": e["epoch"], **e["val"], "miou": e["miou"], "information": e.get("information", {})}
            for e in evaluations
        ]
        group.setdefault("curves", []).append(kept)
    _print_comparison(groups, config)
    if config.layout:
        means = {
            name: {s: sum(v) / len(v) for s, v in group["miou"]["all"].items()}
            for name, group in groups.items()
        }
        how = f"{config.split}, {config.checkpoint} checkpoint, fusion mean, whole images; absent sensors: {config.protocol}"
        _print_sheets(
            [subset_sheet(means, f"mIoU in % on {how}; means over seeds; Std: population, over subsets")],
            config.layout,
        )
    if config.out:
        record = {
            "provenance": provenance(),
            "split": config.split,
            "protocol": config.protocol,
            "checkpoint": config.checkpoint,
        }
        write_json(config.out, record | {"groups": rounded(groups, significant=5)})


def _compare_clusters(runs: list, config: CompareConfig) -> None:
    """The reports of 'cluster' as rows of printed tables. Nothing is scored again: a report has its own
    split.
    """
    names = [folder.name for folder, *_ in runs]
    reports = {
        name if names.count(name) == 1 else str(folder): report
        for name, (folder, report, _) in zip(names, runs)
    }
    sheets = cluster_sheets(reports)
    if config.layout:
        _print_sheets(sheets, config.layout)
    else:
        print("\n\n".join(sheet.markdown() for sheet in sheets))
    if config.out:
        write_json(
            config.out,
            {
                "provenance": provenance(),
                "scores": {name: report["scores"] for name, report in reports.items()},
            },
        )


def _print_comparison(groups: dict, config: CompareConfig) -> None:
    reference = next(iter(groups))
    print(
        f"mIoU in % on {config.split}, {config.checkpoint} checkpoint, absent sensors: {config.protocol}; mean ± sd over seeds"
    )
    for name, group in groups.items():
        summary = group["summary"]["all"]
        cost = sum(group["cpu_seconds"]) / len(group["seeds"])
        print(
            f"\n{name}  (seeds {', '.join(map(str, group['seeds']))}; {group['steps']} steps, {cost:.0f} CPU s)"
        )
        keys = [key for key in ("full", "mean", "min", "std", "gap") if key in summary]
        print("  " + "   ".join(f"{key} {estimate(summary[key])}" for key in keys))
        print(
            "  "
            + "  ".join(
                f"{subset} {sum(values) / len(values):.1f}" for subset, values in group["miou"]["all"].items()
            )
        )
        if name != reference and group["seeds"] == groups[reference]["seeds"] and len(group["seeds"]) > 1:
            for key in ("full", "mean"):
                d = paired_difference(summary[key], groups[reference]["summary"]["all"][key])
                verdict = "" if d.clear else " - smaller than its spread"
                print(
                    f"  {key} minus '{reference}': {d.mean:+.1f}, 95 % interval [{d.low:+.1f}, {d.high:+.1f}]{verdict}"
                )
