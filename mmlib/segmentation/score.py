"""Score finished trainings: every subset of the sensors, sensors that fail, and comparisons over seeds.

The commands ``evaluate`` and ``compare``; ``predict`` opens checkpoints and fuses as they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .. import world
from ..config import AtLeast, Between, check_settings
from ..data.prepared import PreparedDataset
from ..evaluation.failures import FailureScores, evaluate_failures
from ..evaluation.fusion import FUSIONS
from ..evaluation.sheets import Sheet, cluster_sheets, subset_sheet, write_sheets
from ..evaluation.statistics import estimate, paired_difference, rounded
from ..evaluation.subsets import SubsetScores, evaluate_subsets
from ..evaluation.windows import sliding
from ..loop import WITHOUT_EFFECT, read_history
from ..modalities import Modality
from ..runtime import choose_device, limit_threads, progress_bar, provenance, read_json, reading, write_json
from .information import evenly_spaced, fisher_gap, measure_information
from .network import Segmenter, load_segmenter

SCENES = ("street", "room")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How samples are scored, and where the scores go."""

    protocol: Literal["drop", "zero", "black", "noise"] = "drop"
    """What an absent sensor is replaced by: nothing, the normalised zero, a black image, noise."""
    fusion: Literal["mean", "agreement", "selection", "entropy"] = "mean"
    """How predictions are fused (mmlib.evaluation.fusion)."""
    window: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Height and width of sliding windows at native resolution, multiples of 32; 0 0 = whole images."""
    stride: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Largest step between windows; 0 0 = two thirds of the window."""
    failures: Annotated[int, AtLeast(-1)] = 0
    """Samples on which every fusion rule is scored while one or two sensors fail unannounced, in six ways,
    mild and gross; -1 = all.
    """
    layout: str = ""
    """Also print tables as papers do (subsets, Mean, Std; conditions), and write them to this path plus .md
    and .csv.
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
class EvaluateConfig(ScoringConfig):
    """Score a trained segmenter on every subset of its sensors."""

    checkpoint: tyro.conf.Positional[str]
    """A best.safetensors or last.safetensors written by 'train'."""
    data: str
    """Folder of a prepared data set, or 'street' or 'room' for the sensor world (rendered on first use)."""
    split: str = "val"
    """Which split; use 'test' once, at the end."""
    failure_probability: Annotated[tuple[float, ...], Between(0, 1, without=(1,))] = ()
    """Also score random failures: each sensor of each sample absent with this probability (several may be
    given), never all of them.
    """


@dataclass(frozen=True)
class CompareConfig(ScoringConfig):
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
    information_samples: Annotated[int, AtLeast(0)] = 16
    """Samples on which each sensor's Fisher information is measured; 0 = none."""


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
            before, now = (
                f"{m.channels} channel{'s' * (m.channels > 1)} in {m.unit or 'no unit'}"
                for m in (ours, theirs)
            )
            raise ValueError(
                f"{name}: the network was trained on {before}, {dataset.root} has {now}; prepare the data in "
                "the same unit"
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
            f"--fusion {fusion}: this network's fusion is centred on {next(iter(network.modalities))}; it has "
            "no logits of single sensors; leave the option out"
        )
    if any(stride) and not any(window):
        raise ValueError(f"--stride {stride[0]} {stride[1]} without --window; give --window HEIGHT WIDTH too")

    def head(images: dict) -> dict:  # centred fusion has one entry: the prediction from all these sensors
        return network(images, fuse=False)[0] if centred else network.modality_logits(images)

    encode = sliding(head, window, stride, batch_size) if any(window) else head
    if centred:  # what it encodes depends on which sensors are there, so each subset is encoded by itself
        return {"encode": lambda images: images, "fuse": lambda images: next(iter(encode(images).values()))}
    return {"encode": encode, "fuse": None if fusion == "mean" else FUSIONS[fusion]}


def refuse_folder(out: str) -> None:
    """Raise ValueError, before hours of scoring, for an ``--out`` that cannot be written as a file."""
    if out and Path(out).is_dir():
        example = Path(out) / "scores.json"
        raise ValueError(f"{out}: a folder; --out names the JSON file to write, such as {example}")


def score(
    network: Segmenter, data: PreparedDataset, config: ScoringConfig
) -> tuple[SubsetScores, FailureScores | None, str]:
    """Scores of every subset, scores under unannounced failures where they are asked for, and how both were
    made: "fusion mean, whole images; absent sensors: drop".
    """
    windows = (config.window, config.stride, config.batch_size)
    loading = {
        "batch_size": config.batch_size,
        "device": next(network.parameters()).device,
        "workers": config.workers,
        "progress": config.progress,
    }
    options = fusing(network, config.fusion, *windows)
    scores = evaluate_subsets(dataset=data, **options, protocol=config.protocol, **loading)

    failures = None
    if config.failures:
        # Every rule sees the same encodings; a network without logits of single sensors has one rule only.
        options = fusing(network, "mean", *windows)
        rules = {name: FUSIONS[name] for name in ("mean", "agreement", "selection", "entropy")}
        if options["fuse"]:
            rules = {"network": options["fuse"]}
        indices = None if config.failures < 0 else evenly_spaced(len(data), config.failures)
        failures = evaluate_failures(options["encode"], rules, data, indices=indices, **loading)

    how = f"fusion {fusion_name(network, config.fusion)}, "
    how += "windows of {} × {}".format(*config.window) if any(config.window) else "whole images"
    how += ", stride {} × {}".format(*config.stride) if any(config.stride) else ""
    return scores, failures, f"{how}; absent sensors: {config.protocol}"


def fusion_name(network: Segmenter, fusion: str) -> str:
    """How predictions are fused: by the network itself, or by the rule ``fusion``."""
    return "centred" if network.config.fusion == "centred" else fusion


def print_sheets(sheets: list[Sheet], stem: str = "") -> None:
    """Print tables as papers do; ``stem``: also write them there."""
    for sheet in sheets:
        print(f"\n{sheet.markdown()}")
    if stem:
        print(f"\n{' and '.join(map(str, write_sheets(stem, sheets)))}")


def evaluate(config: EvaluateConfig) -> dict:
    """Score one checkpoint, print its tables and write what ``config.out`` asks for; returns that record.

    Raises:
        ValueError: wrong settings, an unreadable checkpoint or data set, or two that do not fit.
    """
    check_settings(config)
    refuse_folder(config.out)
    limit_threads()
    device = choose_device(config.device)
    network, data = open_checkpoint(config.checkpoint, config.data, config.split, device, config.progress)
    scores, failures, how = score(network, data, config)
    path, how = Path(config.checkpoint), f"on {config.split}, {len(data)} samples, {how}"
    print(f"{path.name} {how.rpartition(';')[0]}; {scores.table()}")
    record = {
        "provenance": provenance(),
        "split": config.split,
        "samples": len(data),
        "fusion": fusion_name(network, config.fusion),
        "window": list(config.window),
        "stride": list(config.stride),
        "scores": scores.to_dict(),
    }
    if config.layout:
        print_sheets(scores.sheets(f"{path.resolve().parent.name}, {path.stem}", how), config.layout)
    if config.failure_probability:
        sheet = scores.failure_sheet(config.failure_probability, how)
        print_sheets([sheet])
        rows = {row: dict(zip(sheet.columns, values)) for row, values in sheet.rows.items()}
        record["failure_probability"] = {"protocol": config.protocol, "miou": rounded(rows)}
    if failures:
        print(f"\n{failures.table()}")
        record["failures"] = failures.to_dict()
    if config.out:
        write_json(config.out, record)
    return record


def read_run(folder: Path) -> tuple[dict, dict]:
    """(report, settings) of a finished run of 'train' or 'cluster'. ValueError: unfinished or damaged."""
    path = folder / "report.json"
    if not path.exists():
        raise ValueError(f"{folder}: no report.json, so no finished run of 'train'")
    with reading(path, "the report of a finished run"):
        report = read_json(path, "the report of a finished run")
        if "plan" not in report:  # a run of 'train'
            _ = report["config"]["seed"], report["steps"], report["seconds"], report["cpu_seconds"]
    with reading(folder / "config.json", "the settings of a run"):
        settings = read_json(folder / "config.json", "the settings of a run")
        _ = settings["data"]
    return report, settings


def telling(report: Mapping) -> dict:
    """The settings of a run that change its result, without the seed, flat: name -> value."""
    settings = {}
    for key, value in report["config"].items():
        settings |= value if isinstance(value, dict) else {key: value}
    return {key: value for key, value in settings.items() if key not in ("seed", *WITHOUT_EFFECT)}


def group_name(folder: Path, settings: dict, others: list[dict]) -> str:
    """The folder's name if it ends in the seed ("street-dropout-0" -> "street-dropout"), else what tells these
    settings from the others: "subsets dropout, epochs 37.5".
    """
    stem, _, seed = folder.name.rpartition("-")
    if stem and seed.isdigit():
        return stem
    differing = [key for key in settings if any(other.get(key) != settings[key] for other in others)]
    return ", ".join(f"{key.replace('_', ' ')} {settings[key]}" for key in differing) or "all runs"


def check_same_data(data: PreparedDataset, first: PreparedDataset, folder: Path) -> None:
    """Raise ValueError, saying what differs, unless two runs are scored on the same samples."""
    if data.root.resolve() == first.root.resolve():
        return
    ours, theirs = data.digest(), first.digest()
    if differing := [part for part in ours if ours[part] != theirs[part]]:
        raise ValueError(
            f"{folder}: is scored on {data.root}, the runs before it on {first.root}, which has another "
            f"{', '.join(differing)}; give --data to score all runs on one data set"
        )


def compare(config: CompareConfig) -> dict:
    """Score finished runs, print and write how groups of them differ; returns the record.

    Raises:
        ValueError: wrong settings, an unfinished or damaged run, runs of different kinds or data, one seed of
            a group twice.
    """
    check_settings(config)
    refuse_folder(config.out)
    limit_threads()
    device = choose_device(config.device)
    runs = [(folder, *read_run(folder)) for folder in map(Path, config.runs)]
    if clustered := [folder for folder, report, _ in runs if "plan" in report]:
        if len(clustered) < len(runs):
            raise ValueError(
                f"{clustered[0]} is a run of 'cluster', others are of 'train'; compare each kind by itself"
            )
        return compare_clusters(runs, config)

    groups: dict[str, dict] = {}
    first, ways = None, {}
    every = [telling(report) for _, report, _ in runs]
    for (folder, report, settings), own in zip(
        progress_bar(runs, "compare", progress=config.progress), every
    ):
        # The run's group, and that it belongs there.
        name, seed = group_name(folder, own, every), report["config"]["seed"]
        group = groups.setdefault(name, new_group(report))
        if telling(group) != own:
            raise ValueError(
                f"{folder}: other settings than the runs before it of the name '{name}'; give it another folder "
                "name"
            )
        if seed in group["seeds"]:
            raise ValueError(
                f"{folder}: a second run of '{name}' with seed {seed}; name each run once, and compare data sets "
                "one at a time"
            )
        path, root = folder / f"{config.checkpoint}.safetensors", config.data or settings["data"]
        network, data = open_checkpoint(path, root, config.split, device, config.progress)
        first = first or data
        check_same_data(data, first, folder)

        # Its scores, each appended to the list of its group: one value a seed.
        scores, failures, how = score(network, data, config)
        ways[how] = name
        group["seeds"].append(seed)
        for key in ("seconds", "cpu_seconds"):
            group[key].append(report[key])
        group["guards"].append(report.get("guards", {}))
        for key in ("summary", "miou", "iou"):
            for part, entries in scores.to_dict()[key].items():
                for entry, value in entries.items():
                    group[key].setdefault(part, {}).setdefault(entry, []).append(value)
        if config.information_samples:
            information = measure_information(
                network, data, samples=config.information_samples, device=device
            )
            for sensor, value in information.items():
                group.setdefault("information", {}).setdefault(sensor, []).append(value)
            group["summary"]["all"].setdefault("gap", []).append(fisher_gap(list(information.values())))
        if failures:
            group.setdefault("failures", []).append(failures.to_dict())
        curve = []
        for line in read_history(folder / "history.jsonl")[1]:
            curve.append({"epoch": line["epoch"], **line["val"], "miou": line["miou"]})
            curve[-1]["information"] = line.get("information", {})
        group.setdefault("curves", []).append(curve)

    print_comparison(groups, config)
    if config.layout:
        means = {}
        for name, group in groups.items():
            means[name] = {s: sum(values) / len(values) for s, values in group["miou"]["all"].items()}
        how = f"{config.split}, {config.checkpoint} checkpoint, {' or '.join(ways)}"
        caption = f"mIoU in % on {how}; means over seeds; Std: population, over subsets"
        print_sheets([subset_sheet(means, caption)], config.layout)
    record = {
        "provenance": provenance(),
        "split": config.split,
        "protocol": config.protocol,
        "checkpoint": config.checkpoint,
        "groups": rounded(groups, significant=5),
    }
    if config.out:
        write_json(config.out, record)
    return record


def new_group(report: dict) -> dict:
    """An empty group of runs with the settings of its first; lists take one value a seed."""
    config = {key: value for key, value in report["config"].items() if key not in ("seed", "data")}
    lists = {key: [] for key in ("seeds", "seconds", "cpu_seconds", "guards")}
    return {"config": config, "steps": report["steps"], **lists, "summary": {}, "miou": {}, "iou": {}}


def compare_clusters(runs: list, config: CompareConfig) -> dict:
    """The reports of 'cluster' as rows of printed tables. Nothing is scored again: a report has its own
    split.
    """
    names = [folder.name for folder, *_ in runs]
    reports = {}
    for name, (folder, report, _) in zip(names, runs):
        reports[name if names.count(name) == 1 else str(folder)] = report
    print_sheets(cluster_sheets(reports), config.layout)
    scores = {name: report["scores"] for name, report in reports.items()}
    record = {"provenance": provenance(), "scores": scores}
    if config.out:
        write_json(config.out, record)
    return record


def print_comparison(groups: dict, config: CompareConfig) -> None:
    """Each group's means and spread over seeds, and its difference to the first group where seeds agree."""
    reference = next(iter(groups))
    print(
        f"mIoU in % on {config.split}, {config.checkpoint} checkpoint, absent sensors: {config.protocol}; "
        "mean ± sd over seeds"
    )
    for name, group in groups.items():
        summary, seeds = group["summary"]["all"], group["seeds"]
        cost = sum(group["cpu_seconds"]) / len(seeds)
        print(f"\n{name}  (seeds {', '.join(map(str, seeds))}; {group['steps']} steps, {cost:.0f} CPU s)")
        keys = [key for key in ("full", "mean", "min", "std", "gap") if key in summary]
        print("  " + "   ".join(f"{key} {estimate(summary[key])}" for key in keys))
        subsets = group["miou"]["all"].items()
        print("  " + "  ".join(f"{subset} {sum(values) / len(values):.1f}" for subset, values in subsets))
        if name == reference or seeds != groups[reference]["seeds"] or len(seeds) == 1:
            continue
        for key in ("full", "mean"):
            d = paired_difference(summary[key], groups[reference]["summary"]["all"][key])
            verdict = "" if d.clear else " - smaller than its spread"
            interval = f"95 % interval [{d.low:+.1f}, {d.high:+.1f}]"
            print(f"  {key} minus '{reference}': {d.mean:+.1f}, {interval}{verdict}")
