"""``python -m mmlib``: one command for each thing to do; dataclasses become flags."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from . import world
from .config import check_settings
from .evaluation.statistics import estimate
from .recipes import read_recipe
from .segmentation.compare import CompareConfig, compare
from .segmentation.dry_run import described, dry_run
from .segmentation.export import ExportConfig, run_export
from .segmentation.predict import PredictConfig, predict
from .segmentation.score import SCENES, EvaluateConfig, evaluate, find_data
from .segmentation.step import TrainConfig
from .segmentation.train import train
from .unsupervised.methods import ClusterConfig
from .unsupervised.search import SearchConfig, search
from .unsupervised.segment import SegmentConfig, segment
from .unsupervised.train import cluster
from .world.dataset import RenderConfig, render


def run_render(config: RenderConfig) -> None:
    print(f"rendered into {render(config)}")


RECIPE = "JSON file of settings, such as data_scripts/recipes/NAME.json: they replace the defaults, flags replace them."


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    recipe: Annotated[str, tyro.conf.arg(help=RECIPE)] = ""
    dry_run: bool = False
    """Measure a few steps, print what the training would cost in work, memory, time and disk, and write
    nothing to OUT.
    """


@dataclass(frozen=True)
class ClusterCommand(ClusterConfig):
    recipe: Annotated[str, tyro.conf.arg(help=RECIPE)] = ""


TrainCommand.__doc__, ClusterCommand.__doc__ = TrainConfig.__doc__, ClusterConfig.__doc__
COMMANDS = {"train": TrainCommand, "cluster": ClusterCommand}  # those that take a recipe
MAIN = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher starts, this one speaks


def with_recipe(name: str, arguments: list[str]):
    """Defaults of the command ``name``: with those of the recipe, if ``arguments`` call this command with
    one.
    """
    kind = COMMANDS[name]
    config = kind(data=tyro.MISSING, out=tyro.MISSING)
    words = [
        word
        for argument in arguments
        for word in (argument.split("=", 1) if argument.startswith("--recipe=") else [argument])
    ]
    paths = [path for flag, path in zip(words, words[1:]) if flag == "--recipe"]
    return (
        read_recipe(paths[-1], name, kind.__base__).applied(config)
        if paths and arguments[0] == name
        else config
    )


def settings_of(command, name: str):
    """The configuration without what belongs to the command line; says what the recipe has set in it."""
    kind = COMMANDS[name].__base__
    config = kind(**{field.name: getattr(command, field.name) for field in fields(kind)})
    if command.recipe:
        recipe = read_recipe(command.recipe, name, kind)
        config = recipe.applied(config, tables=True)
        if MAIN:
            print(recipe.described(config))
    return config


def run_train(command: TrainCommand) -> None:
    config = settings_of(command, "train")
    config = replace(config, data=find_data(config.data, config.progress))
    if command.dry_run:
        found = dry_run(config)
        if MAIN:
            print(described(found))
        return
    report = train(config)
    if report:  # on the main process only
        scores = report["scores"]
        summary = scores["summary"]["all"]
        print(
            "mIoU in % on val, by subset: "
            + "  ".join(f"{name} {value:.1f}" for name, value in scores["miou"]["all"].items())
        )
        print(
            f"full {summary['full']:.1f}, mean {summary['mean']:.1f}, min {summary['min']:.1f}, std {summary['std']:.1f}; "
            f"{report['steps']} steps, {report['seconds']:.0f} s; {config.out}/report.json"
        )


def find_sensors(config: ClusterConfig) -> ClusterConfig:
    """``config`` with its data found; a scene of the sensor world is rendered with the sensors that
    clustering compares.
    """
    if config.data not in SCENES or Path(config.data).exists():
        return config
    usual = ("rgb", "depth", "thermal", "nir", "dolp", "aolp")
    names = usual if set(config.modalities) <= set(usual) else world.ALL
    return replace(
        config,
        data=str(world.ensure(config.data, modalities=names, progress=config.progress)),
        modalities=config.modalities or usual,
    )


def run_predict(config: PredictConfig) -> None:
    from .figures import prediction_sheet

    source = predict(config)
    prediction_sheet(source, config.out, config.sheet)
    print(f"{source}\n{config.out}: masks, overlays, confidence, classes.json, sheet.png")


def run_cluster(command: ClusterCommand) -> None:
    config = settings_of(command, "cluster")
    report = cluster(find_sensors(config))
    print_clusters(report)
    if config.method != "kmeans":
        from .run_figures import run_figure

        run_figure(config.out).savefig(Path(config.out) / "diagnostics.png", bbox_inches="tight")
    print(f"{config.out}/report.json")


def print_clusters(report: dict) -> None:
    if report["scores"]:
        scores, repeats = report["scores"], estimate([entry["miou"] for entry in report["kmeans"]])
        print(
            f"in % on {report['split']}, state chosen by {report['chosen by']}; clusters named by Hungarian matching on the same split"
        )
        for group, value in scores["miou"].items():
            print(
                f"  {group.removeprefix('condition='):8} mIoU {value:.1f}  accuracy {scores['accuracy'][group]:.1f}"
            )
        classes = scores["iou"]["all"].items()  # a class that this split does not show has no score
        print(
            "  " + "  ".join(f"{name} {'–' if value is None else f'{value:.0f}'}" for name, value in classes)
        )
        print(f"  k-means repeated with other seeds: mIoU {repeats}")
    found = report["collapse"]
    print(
        f"effective rank {found['effective_rank']:.1f}, mean similarity of random pairs {found['mean_similarity']:.2f}, clusters hold "
        f"{100 * found['use_min']:.1f} to {100 * found['use_max']:.1f} % of the tokens; {report['seconds']:.0f} s"
    )


def run_search(config: SearchConfig) -> None:
    report = search(replace(config, run=find_sensors(config.run)))
    best, ranks = report["best"], report.get("rank correlation with mIoU", {})
    print(f"{report['finished']} trials of {report['method']}; best chosen by {report['chosen by']}:")
    print(
        f"  trial {best['number']}: {best['value']:.4f} with "
        + ", ".join(f"{k} {v:.3g}" for k, v in best.items() if isinstance(v, float))
    )
    if ranks:
        print(
            f"  its mIoU {best['scores']['miou']:.1f} %, the best of any trial {report['best mIoU of any trial']:.1f} %"
        )
        print(
            "  rank correlation with mIoU: "
            + ", ".join(f"{name} {value:+.2f}" for name, value in ranks.items())
        )


def run_segment(config: SegmentConfig) -> None:
    scores = segment(replace(config, data=find_sensors(ClusterConfig(config.data, config.out)).data))
    if scores:
        print(scores.table())
    print(f"label maps in {config.out}")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run it. Errors that a user can mend end in one line; set MMLIB_DEBUG=1 for
    the traceback.
    """
    try:
        defaults = {
            name: with_recipe(name, sys.argv[1:] if arguments is None else arguments) for name in COMMANDS
        }
    except ValueError as error:
        sys.exit(f"error: {error}")
    command = (
        Annotated[RenderConfig, tyro.conf.subcommand("render", prefix_name=False)]
        | Annotated[TrainCommand, tyro.conf.subcommand("train", prefix_name=False, default=defaults["train"])]
        | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate", prefix_name=False)]
        | Annotated[CompareConfig, tyro.conf.subcommand("compare", prefix_name=False)]
        | Annotated[PredictConfig, tyro.conf.subcommand("predict", prefix_name=False)]
        | Annotated[ExportConfig, tyro.conf.subcommand("export", prefix_name=False)]
        | Annotated[
            ClusterCommand, tyro.conf.subcommand("cluster", prefix_name=False, default=defaults["cluster"])
        ]
        | Annotated[SearchConfig, tyro.conf.subcommand("search", prefix_name=False)]
        | Annotated[SegmentConfig, tyro.conf.subcommand("segment", prefix_name=False)]
    )
    config = tyro.cli(
        command,
        prog="python -m mmlib",
        description="Multi-modal semantic segmentation that does not lean on one sensor.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    run = {
        RenderConfig: run_render,
        TrainCommand: run_train,
        EvaluateConfig: evaluate,
        CompareConfig: compare,
        PredictConfig: run_predict,
        ExportConfig: run_export,
        ClusterCommand: run_cluster,
        SearchConfig: run_search,
        SegmentConfig: run_segment,
    }[type(config)]
    try:
        check_settings(config)
        run(config)
    except torch.OutOfMemoryError as error:
        if os.environ.get("MMLIB_DEBUG"):
            raise
        sys.exit(
            f"error: the GPU's memory is full ({str(error).splitlines()[0]}); halve --batch-size (and double --accumulate in "
            "training), or give --checkpointing or a smaller --crop"
        )
    except (ValueError, OSError) as error:
        if os.environ.get("MMLIB_DEBUG"):
            raise
        sys.exit(f"error: {error}")
