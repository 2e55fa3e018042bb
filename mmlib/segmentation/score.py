"""Score a finished training: every subset of its sensors, and sensors that fail.

The command ``evaluate``; ``compare`` scores and ``predict`` opens checkpoints and fuses as it does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from .. import world
from ..config import AtLeast, Between
from ..data.missing import complete
from ..data.plausible import check_plausible, evenly_spaced, open_data
from ..data.prepared import PreparedDataset
from ..evaluation.failures import evaluate_failures, failure_table
from ..evaluation.fusion import FUSIONS
from ..evaluation.sheets import Sheet, write_sheets
from ..evaluation.statistics import rounded
from ..evaluation.subsets import SubsetScores, evaluate_subsets
from ..outputs import check_output, claims
from ..runtime import choose_device, provenance, write_json
from .network import Segmenter, load_segmenter

SCENES = ("street", "room")


@dataclass(frozen=True, kw_only=True)
class ApplyConfig:
    """How a trained network is run; the same for scoring and for predicting."""

    window: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Height and width of sliding windows at native resolution, multiples of 32; 0 0 = whole images."""
    stride: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Largest step between windows; 0 0 = two thirds of the window."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    strict: bool = False
    """Stop, instead of a warning, where a sensor's values lie far from those in training: another unit,
    swapped folders, another exposure.
    """
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(ApplyConfig):
    """How samples are scored, and where the scores go."""

    protocol: Literal["drop", "zero", "black", "noise"] = "drop"
    """What an absent sensor is replaced by: nothing, the normalised zero, a black image, noise."""
    fusion: Literal["mean", "agreement", "selection", "entropy"] = "mean"
    """How predictions are fused (mmlib.evaluation.fusion)."""
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
    overwrite: bool = False
    """Replace the files of --out and --layout, if this program made them."""
    batch_size: Annotated[int, AtLeast(1)] = 8
    """Samples at a time."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Loader processes."""


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
    """Also score random failures: each sensor of each sample absent with this probability, never all of
    them; several may follow.
    """


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
    root, modalities = find_data(data, progress), network.modalities
    return network, open_data(modalities, network.classes, root, split, modalities)


def fusion_name(network: Segmenter, config) -> str:
    """How predictions are fused: by the network itself, or by the rule ``config.fusion``."""
    return config.fusion if network.config.fusion == "mean" else network.config.fusion


def begin(config: ScoringConfig) -> torch.device:
    """Check the settings, and give the device that scores.

    Raises:
        ValueError: wrong settings, among them, before hours of scoring, a ``layout`` of files that are not
            ours.
    """
    for ending in (".md", ".csv") if config.layout else ():
        check_output(f"{config.layout}{ending}", folder=False, overwrite=config.overwrite)
    return choose_device(config.device)


def score(
    network: Segmenter, data: PreparedDataset, config: ScoringConfig
) -> tuple[SubsetScores, dict | None, str]:
    """Scores of every subset, scores under unannounced failures where they are asked for (of the samples that
    have all sensors), and how both were made: "fusion mean, whole images; absent sensors: drop".
    """
    check_plausible(data.modalities, range(len(data)), lambda index: data.physical(index)[0], config.strict)
    loading = {name: getattr(config, name) for name in ("batch_size", "workers", "progress")}
    loading["device"] = next(network.parameters()).device
    options, name = network.scoring(config.fusion, config.window, config.stride), fusion_name(network, config)
    scores = evaluate_subsets(dataset=data, **options, protocol=config.protocol, **loading)
    failures = None
    if config.failures:
        # Every rule sees the same encodings; a network without logits of single sensors has one rule only.
        rules = {rule: fuse for rule, fuse in FUSIONS.items() if rule != "total"}
        if network.config.fusion != "mean":
            rules = {"network": options["fuse"]}
        whole = complete(data)
        indices = evenly_spaced(range(len(whole)), config.failures if config.failures > 0 else len(whole))
        failures = evaluate_failures(options["encode"], rules, whole, indices=indices, **loading)

    pieces = f"windows of {config.window[0]} × {config.window[1]}" if any(config.window) else "whole images"
    if any(config.stride):
        pieces += f", stride {config.stride[0]} × {config.stride[1]}"
    return scores, failures, f"fusion {name}, {pieces}; absent sensors: {config.protocol}"


def print_sheets(sheets: list[Sheet], stem: str = "") -> None:
    """Print tables as papers do; ``stem``: also write them there."""
    for sheet in sheets:
        print(f"\n{sheet.markdown()}")
    if stem:
        print(f"\n{' and '.join(map(str, write_sheets(stem, sheets)))}")


def save_record(config: ScoringConfig, record: dict) -> dict:
    """``record`` with its provenance; also written, where the settings name a file."""
    record = {"provenance": provenance()} | record
    if config.out:
        write_json(config.out, record)
    return record


@claims("checkpoint", "data", folder=False)
def evaluate(config: EvaluateConfig) -> dict:
    """Score one checkpoint, print its tables and write what ``config.out`` asks for; returns that record.

    Raises:
        ValueError: wrong settings, an unreadable checkpoint or data set, or two that do not fit.
    """
    device = begin(config)
    network, data = open_checkpoint(config.checkpoint, config.data, config.split, device, config.progress)
    if config.failure_probability and complete(data) is not data:
        raise ValueError(
            f"--failure-probability: samples of {config.split} lack sensors already, but the chances are "
            "those of samples that have all; leave it out"
        )
    scores, failures, how = score(network, data, config)
    path, how = Path(config.checkpoint), f"on {config.split}, {len(data)} samples, {how}"
    print(f"{path.name} {how.rpartition(';')[0]}; {scores.table()}")
    record = {
        "split": config.split,
        "samples": len(data),
        "fusion": fusion_name(network, config),
        "window": config.window,
        "stride": config.stride,
        "scores": scores.to_dict(),
    }
    if config.layout:
        print_sheets(scores.sheets(f"{path.resolve().parent.name}, {path.stem}", how), config.layout)
    if config.failure_probability:
        sheet = scores.failure_sheet(config.failure_probability, how)
        print_sheets([sheet])
        rows = {name: dict(zip(sheet.columns, row.values())) for name, row in sheet.rows.items()}
        record["failure_probability"] = {"protocol": config.protocol, "miou": rounded(rows)}
    if failures:
        print(f"\n{failure_table(failures)}")
        record["failures"] = rounded(failures)
    return save_record(config, record)
