"""Finished runs beside each other: mean and spread over seeds, differences paired by seed, Fisher gap.

The command ``compare``. Runs of the unsupervised part are printed as they were reported.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal

import tyro

from ..config import AtLeast
from ..data.prepared import PreparedDataset
from ..evaluation.sheets import cluster_sheets, subset_sheet
from ..evaluation.statistics import estimate, numbers, paired_difference, rounded
from ..loop import WITHOUT_EFFECT
from ..outputs import claims
from ..runtime import data_dir, progress_bar, read_json, reading
from .information import fisher_gap, measure_information
from .score import ScoringConfig, begin, find_data, open_checkpoint, print_sheets, save_record, score

SCORES = "summary", "miou", "class accuracy", "iou"  # of a checkpoint, as ``SubsetScores.to_dict`` has them


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


def read_run(folder: Path) -> tuple[dict, str]:
    """(report, data set) of a finished run of 'train' or 'cluster'. Of an absolute path a run keeps the name:
    its data lie there, beside the run, or in the cache. ValueError: unfinished or damaged.
    """
    path, what = folder / "report.json", "the report of a finished run of 'train'"
    with reading(path, what):
        report = read_json(path, what)
        if "plan" not in report:  # a run of 'train'
            for number in report["config"]["seed"], *map(report.get, ("steps", "seconds", "cpu_seconds")):
                float(number)  # what is none raises here
            report["sensors"] = [*map(str, report["config"].get("modalities", ()))]  # none = all
            report["inputs"] = {**report.get("inputs", {})}  # earlier versions wrote none
    path, what = folder / "config.json", "the settings of a run"
    with reading(path, what):
        name = read_json(path, what)["data"]
        places = Path(name), folder.parent / name, data_dir() / "world" / name
    return report, str(next((place for place in places if place.exists()), name))


def telling(report: Mapping) -> dict:
    """The settings of a run that change its result, without the seed, flat: name -> value."""
    settings = {}
    for key, value in report["config"].items():
        settings |= value if isinstance(value, dict) else {key: value}
    return {key: value for key, value in settings.items() if key not in ("seed", *WITHOUT_EFFECT)}


def group_name(folder: Path, settings: dict, others: list[dict]) -> str:
    """The folder's name if it ends in the seed ("street-dropout-0" -> "street-dropout"), else what tells
    these settings from the others: "subsets dropout, epochs 37.5".
    """
    stem, _, seed = folder.name.rpartition("-")
    if stem and seed.isdigit():
        return stem
    differing = [key for key in settings if any(other.get(key) != settings[key] for other in others)]
    return ", ".join(f"{key.replace('_', ' ')} {settings[key]}" for key in differing) or "all runs"


def check_same_data(runs: list[tuple[Path, dict, str]], split: str) -> None:
    """Raise ValueError, saying what differs, unless all runs of the same sensors were trained on the same
    data, and are scored on the same.
    """
    first, scored = {}, {}
    for folder, report, root in runs:
        place = root, *report["sensors"]
        if place not in scored:
            scored[place] = PreparedDataset(root, split, report["sensors"] or None).digest()
        # What a run was scored on in its own time is compared, too: it has chosen the run's best state.
        now = {f"{part} now": digest for part, digest in scored[place].items()}
        for part, digest in (report["inputs"] | now).items():
            before, expected = first.setdefault((part, *report["sensors"]), (folder, digest))
            if digest != expected:
                raise ValueError(
                    f"{folder}: {part} differs from that of {before}; only runs that were trained on the "
                    "same data are compared, and scored on the same: give --data for the latter"
                )


@claims("runs", "data", folder=False)
def compare(config: CompareConfig) -> dict:
    """Score finished runs, print and write how groups of them differ; returns the record.

    Raises:
        ValueError: wrong settings, an unfinished or damaged run, runs of different kinds or data, one seed of
            a group twice.
    """
    device = begin(config)
    runs = [(folder, *read_run(folder)) for folder in map(Path, config.runs)]
    clustered = ["plan" in report for _, report, _ in runs]
    if all(clustered):
        return compare_clusters(runs, config)
    if any(clustered):
        folder = runs[clustered.index(True)][0]
        raise ValueError(
            f"{folder} is a run of 'cluster', others are of 'train'; compare each kind by itself"
        )

    runs = [(*run, find_data(config.data or root, config.progress)) for *run, root in runs]
    check_same_data(runs, config.split)
    groups, same, ways, heads = {}, {}, {}, {}
    every = [telling(report) for _, report, _ in runs]
    bar = progress_bar(runs, "compare", progress=config.progress)
    for (folder, report, root), own in zip(bar, every):
        # The run's group, and that it belongs there.
        name, seed = group_name(folder, own, every), report["config"]["seed"]
        of_first = {key: value for key, value in report["config"].items() if key not in ("seed", "data")}
        group = groups.setdefault(name, {"config": of_first, "steps": report["steps"], "seeds": []})
        if same.setdefault(name, own) != own or seed in group["seeds"]:
            raise ValueError(
                f"{folder}: other settings than the runs before it of the name '{name}', or a second one of "
                f"seed {seed}; give other settings another folder name, and each run once"
            )
        network, data = open_checkpoint(
            folder / f"{config.checkpoint}.safetensors", root, config.split, device, config.progress
        )

        # Its scores and its Fisher information.
        scores, failures, how = score(network, data, config)
        ways[how], heads[name] = name, scores.heads
        record = {"seeds": seed, "guards": {}} | report | scores.to_dict()
        entry = {name: record[name] for name in ("seeds", "seconds", "cpu_seconds", "guards", *SCORES)}
        if config.information_samples:
            entry["information"] = measure_information(network, data, config.information_samples)
            entry["summary"]["all"]["gap"] = fisher_gap(list(entry["information"].values()))
        if failures:
            entry["failures"] = rounded(failures)
        append(group, entry)

    means = {
        f"{name} {measure}": dict(
            zip(heads[name], (fmean(numbers(values)) for values in group[measure.lower()]["all"].values()))
        )
        for name, group in groups.items()
        for measure in ("mIoU", "class accuracy")
    }
    print_comparison(groups, means, config)
    if config.layout:
        how = f"{config.split}, {config.checkpoint} checkpoint, {' or '.join(ways)}"
        caption = f"In % on {how}; means over seeds; Std: population, over subsets"
        print_sheets([subset_sheet(means, caption)], config.layout)
    record = {name: getattr(config, name) for name in ("split", "protocol", "checkpoint")}
    return save_record(config, record | {"groups": rounded(groups, significant=5)})


def append(group: dict, entry: dict) -> None:
    """Append what one run has to the lists of its group: scores number by number, the rest as it is."""
    for key, value in entry.items():
        if isinstance(value, dict) and key not in ("guards", "failures"):
            append(group.setdefault(key, {}), value)
        else:
            group.setdefault(key, []).append(value)


def compare_clusters(runs: list, config: CompareConfig) -> dict:
    """The reports of 'cluster' as rows of printed tables. Nothing is scored again: a report has its own
    split.
    """
    # Rows are named by the folders below the one that holds all runs.
    root = os.path.commonpath([folder.resolve().parent for folder, *_ in runs])
    reports = {os.path.relpath(folder.resolve(), root): report for folder, report, _ in runs}
    print_sheets(cluster_sheets(reports), config.layout)
    return save_record(config, {"scores": {name: report["scores"] for name, report in reports.items()}})


def print_comparison(groups: dict, means: dict, config: CompareConfig) -> None:
    """Each group's means and spread over seeds, and its difference to the first group where seeds agree.

    ``means``: group and measure ("mine mIoU") -> subset -> per cent.
    """
    reference = next(iter(groups))
    print(
        f"mIoU in % on {config.split}, {config.checkpoint} checkpoint, absent sensors: {config.protocol}; "
        "mean ± sd over seeds"
    )
    for name, group in groups.items():
        summary, seeds = group["summary"]["all"], group["seeds"]
        cost = sum(group["cpu_seconds"]) / len(seeds)
        print(f"\n{name}  (seeds {', '.join(map(str, seeds))}; {group['steps']} steps, {cost:.0f} CPU s)")
        print(
            "  "
            + "   ".join(
                f"{key} {estimate(summary[key])}"
                for key in ("full", "mean", "min", "std", "class accuracy", "gap")
                if None not in summary.get(key, [None])
            )
        )
        print("  " + "  ".join(f"{subset} {value:.1f}" for subset, value in means[f"{name} mIoU"].items()))
        if name == reference or seeds != groups[reference]["seeds"] or len(seeds) == 1:
            continue
        for key in ("full", "mean"):
            if None in summary[key]:  # no sample has all sensors
                continue
            d = paired_difference(summary[key], groups[reference]["summary"]["all"][key])
            verdict = "" if d.clear else " - smaller than its spread"
            interval = f"95 % interval [{d.low:+.1f}, {d.high:+.1f}]"
            print(f"  {key} minus '{reference}': {d.mean:+.1f}, {interval}{verdict}")
