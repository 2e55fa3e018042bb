"""``python -m mmlib``: one command for each thing to do; dataclasses become flags."""

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Union

import tyro

from . import world
from .config import check_settings
from .evaluation.sheets import cluster_sheet
from .evaluation.statistics import estimate
from .recipes import read_recipe
from .runtime import one_line, read_json, reading
from .segmentation.compare import CompareConfig, compare
from .segmentation.export import ExportConfig, run_export
from .segmentation.predict import PredictConfig, predict
from .segmentation.score import SCENES, EvaluateConfig, evaluate, find_data
from .segmentation.step import TrainConfig
from .segmentation.train import train
from .unsupervised.inference import SegmentConfig, segment
from .unsupervised.methods import ClusterConfig
from .unsupervised.search import SearchConfig, search
from .unsupervised.train import cluster
from .world.dataset import RenderConfig, render

MAIN = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher starts, this one speaks
COMPARED = ("rgb", "depth", "thermal", "nir", "dolp", "aolp")  # sensors of the world that clustering compares


@dataclass(frozen=True)
class TrainCommand:
    config: TrainConfig
    recipe: str = ""
    """JSON file of settings, such as data_scripts/recipes/NAME.json: they replace the defaults, flags replace
    them.
    """
    dry_run: bool = False
    """Measure a few steps, print what the training would cost in work, memory and time, and write nothing
    to OUT.
    """


@dataclass(frozen=True)
class ClusterCommand:
    config: ClusterConfig
    recipe: str = ""
    """JSON file of settings, such as data_scripts/recipes/NAME.json: they replace the defaults, flags replace
    them.
    """


TrainCommand.__doc__, ClusterCommand.__doc__ = TrainConfig.__doc__, ClusterConfig.__doc__


def run_train(command: TrainCommand) -> None:
    config = command.config
    config = replace(config, data=find_data(config.data, config.progress))
    if command.dry_run:
        from .segmentation.dry_run import described, dry_run  # imported late: few need its slow imports

        measured = dry_run(config)
        if MAIN:
            print(described(config, measured))
    elif report := train(config):  # on the main process only
        summary, miou = (
            ", ".join(
                f"{name} {value:.1f}" for name, value in values["all"].items() if isinstance(value, float)
            )
            for values in (report["scores"]["summary"], report["scores"]["miou"])
        )
        print(f"mIoU in % on val, by subset: {miou}\n{summary}; {report['steps']} steps, ", end="")
        print(f"{report['seconds']:.0f} s; {config.out}/report.json")


def find_sensors(config: ClusterConfig) -> ClusterConfig:
    """``config`` with its data and sensors; a scene of the sensor world is rendered with the sensors that
    clustering compares, or with all where another one is asked for.
    """
    if config.data not in SCENES or Path(config.data).exists():
        return config
    sensors = config.modalities or COMPARED
    rendered = COMPARED if set(sensors) <= set(COMPARED) else world.ALL
    data = world.ensure(config.data, modalities=rendered, progress=config.progress)
    return replace(config, data=str(data), modalities=sensors)


def run_predict(config: PredictConfig) -> None:
    from .figures import prediction_sheet

    source = predict(config)
    prediction_sheet(source, config.out, config.sheet)
    print(f"{source}\n{config.out}: masks, overlays, confidence, classes.json, sheet.png")


def run_cluster(command: ClusterCommand) -> None:
    config = find_sensors(command.config)
    report = cluster(config)
    print_clusters(report)
    print(f"{config.out}/report.json")


def print_clusters(report: dict) -> None:
    if report["scores"]:
        caption = (
            f"in % on {report['split']}, state chosen by {report['chosen by']}; clusters named by Hungarian "
            "matching on the same split"
        )
        print(cluster_sheet(report["scores"], caption).text())
        print("k-means repeated with other seeds: mIoU", estimate([k["miou"] for k in report["kmeans"]]))
    collapse = report["collapse"]
    print("tokens:", ", ".join(filter(None, report["backbone"].values())))
    print(
        f"effective rank {collapse['effective_rank']:.1f}, "
        f"mean similarity of random pairs {collapse['mean_similarity']:.2f}, "
        f"clusters hold {100 * collapse['use_min']:.1f} to {100 * collapse['use_max']:.1f} % of the tokens; "
        f"{report['seconds']:.0f} s"
    )


def run_search(config: SearchConfig) -> None:
    report = search(replace(config, run=find_sensors(config.run)))
    best = report["best"]
    values = ", ".join(f"{name} {value:.3g}" for name, value in best.items() if isinstance(value, float))
    print(
        f"{report['finished']} trials of {report['method']}; best chosen by {report['chosen by']}:\n"
        f"  trial {best['number']}: {best['value']:.4f} with {values}"
    )


def run_segment(config: SegmentConfig) -> None:
    sensors, report, what = (), Path(config.run) / "report.json", "the report of a finished 'cluster'"
    if config.data in SCENES:  # it must show what the run was trained on
        with reading(report, what):
            sensors = tuple(read_json(report, what)["plan"]["sensors"])
    scene = ClusterConfig(config.data, config.out, modalities=sensors, progress=config.progress)
    scores = segment(replace(config, data=find_sensors(scene).data))
    if scores:
        print(cluster_sheet(scores, f"in %; clusters named by: {scores['rule']}").text())
    print(f"label maps in {config.out}")


COMMANDS = {
    "render": (RenderConfig, lambda config: print(f"rendered into {render(config)}")),
    "train": (TrainCommand, run_train),
    "evaluate": (EvaluateConfig, evaluate),
    "compare": (CompareConfig, compare),
    "predict": (PredictConfig, run_predict),
    "export": (ExportConfig, run_export),
    "cluster": (ClusterCommand, run_cluster),
    "search": (SearchConfig, run_search),
    "segment": (SegmentConfig, run_segment),
}
WITH_RECIPE = {"train": TrainConfig, "cluster": ClusterConfig}


def run_command(words: list[str]) -> None:
    """Parse the words of a command line and run the command. A recipe's words stand before the user's own: of
    two that set the same, the last one counts, as of two recipes.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe")
    path = parser.parse_known_args(words)[0].recipe
    recipe = None
    if path and words[0] in WITH_RECIPE:
        recipe = read_recipe(path, words[0], WITH_RECIPE[words[0]])
        if {"-h", "--help"} & set(words):
            print(recipe.described())
        words = [words[0], *recipe.words, *words[1:]]
    subcommands = (
        Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, (kind, _) in COMMANDS.items()
    )
    config = tyro.cli(
        Union[tuple(subcommands)],  # noqa: UP007 - of a variable number of types
        prog="python -m mmlib",
        description="Multi-modal semantic segmentation that does not lean on one sensor.",
        args=words,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    check_settings(config)
    if recipe and MAIN:
        print(recipe.described(config))
    dict(COMMANDS.values())[type(config)](config)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    with one_line():
        run_command(sys.argv[1:] if arguments is None else arguments)
