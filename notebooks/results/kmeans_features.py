"""k-means on frozen features, plain and whitened, of single sensors and side by side -> kmeans_features.json.

    python data_scripts/prepare_nyu.py --frames FRAMES --size 240 320 --out FOLDER
    python notebooks/results/kmeans_features.py --nyu FOLDER

Rooms of the sensor world and frames of NYU-Depth-v2. Nothing is trained: clusters come from the training
split and are scored on the test split, as many as there are classes, named by Hungarian matching. Rows of
other features stay in the record: "descriptors+vit", hand-made descriptors beside a small transformer, were
those of an earlier version of the library and were measured with it, by the same settings.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from mmlib import world
from mmlib.runtime import limit_threads, provenance, read_json, write_json
from mmlib.unsupervised.inference import EvaluationConfig
from mmlib.unsupervised.methods import ClusterConfig, TokenConfig, prepare
from mmlib.unsupervised.train import cluster

RECORD = Path(__file__).with_name("kmeans_features.json")
SENSORS = {"room": ("rgb", "depth", "thermal"), "nyu": ("rgb", "depth")}


@dataclass(frozen=True)
class Options:
    """Measure."""

    nyu: str
    """Folder of the prepared NYU frames."""
    backbone: str = TokenConfig().backbone
    """Frozen feature extractor."""
    weights: str = ""
    """Its weights, as for 'cluster'."""
    whiten: tuple[int, ...] = (0, 32)
    """Principal directions that are kept; 0 = tokens as they are."""
    seeds: int = 3
    """Seeds of k-means."""


def measure(config: ClusterConfig, seeds: int) -> dict:
    """mIoU and accuracy on the test split in per cent, one number a seed, and where the weights come from."""
    shared, scores = prepare(config), []
    for seed in range(seeds):
        evaluation = replace(config.evaluation, kmeans_seed=seed)
        with tempfile.TemporaryDirectory() as out:
            report = cluster(replace(config, out=out, evaluation=evaluation), shared)
        scores.append({name: round(report["scores"][name]["all"], 2) for name in ("miou", "accuracy")})
    numbers = {name: [each[name] for each in scores] for name in ("miou", "accuracy")}
    return numbers | {"mean_miou": round(float(np.mean(numbers["miou"])), 1)} | report["backbone"]


def main(options: Options) -> None:
    limit_threads()
    rooms = world.ensure("room", modalities=SENSORS["room"])
    rows = []
    if RECORD.exists():
        rows = read_json(RECORD, "the record of this command")["rows"]
        rows = [row for row in rows if row["name"] != options.backbone]
    for scene, data in (("room", str(rooms)), ("nyu", options.nyu)):
        for sensors in (*((name,) for name in SENSORS[scene]), SENSORS[scene]):
            for whiten in options.whiten:
                config = ClusterConfig(
                    data,
                    "",
                    "kmeans",
                    sensors,
                    tokens=TokenConfig(options.backbone, options.weights, whiten=whiten),
                    evaluation=EvaluationConfig("test", repeats=1),
                    progress=False,
                )
                row = {"scene": scene, "sensors": " + ".join(sensors), "whiten": whiten}
                rows.append(row | measure(config, options.seeds))
                print(rows[-1], flush=True)
    command = "python notebooks/results/kmeans_features.py --nyu FOLDER"
    write_json(RECORD, {"provenance": provenance(command), "split": "test", "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
