"""Does a second sensor help a segmentation without labels? Many ways, with controls -> second_sensor.json.

    python data_scripts/prepare_nyu.py --frames FRAMES --size 240 320 --out FOLDER
    python notebooks/results/second_sensor.py --nyu FOLDER

Real frames (colour and depth) and rooms and streets of the sensor world (colour with thermal or with depth).
All variants cluster the same frozen tokens with the same cosine k-means into as many clusters as there are
classes; one seed gives all of them the same points. Their settings were written down before they were scored;
the dose of "measurements" had been looked at on other frames of NYU, and how many points and restarts k-means
has was set while single sensors were looked at. Scored on the test split, by Hungarian matching.

The record has all ways in all scenes with five seeds; "measurements" has ten on NYU, because with five it
had looked like a win there:

    ... --only "nyu RD" --ways measurements --seeds 10

"METHOD/shuffled" is the control: the second sensor's images belong to other frames, in training and in the
test. "METHOD/first" has the same steps and cost with the first sensor in the second one's place. A gain that
either of them has, too, does not come from the second sensor. Finished scenes are kept in
runs/second-sensor.
"""

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from clusters import FEATURES, NAMES, SENSORS, tokens_of
from second_sensor_ways import (
    CODES,
    FIRST,
    NAIVE,
    SINGLE,
    STEPS,
    View,
    clustered,
    measurements,
    place,
    pooled_surfaces,
)
from torch import Tensor

from mmlib import world
from mmlib.data.prepared import PreparedDataset
from mmlib.evaluation.counts import confusion_matrix, score_clusters
from mmlib.runtime import limit_threads, provenance, write_json
from mmlib.unsupervised.backbone import load_backbone
from mmlib.unsupervised.extraction import extract_tokens

ROOT = Path(__file__).resolve().parents[2]
SCENES = ("nyu RD", "room RT", "room RD", "street RT", "street RD")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Options:
    """Measure."""

    nyu: str
    """Folder of the prepared NYU frames."""
    seeds: int = 5
    """Seeds of k-means and of its points."""
    only: tuple[str, ...] = SCENES
    """Scenes, such as "nyu RD"."""
    ways: tuple[str, ...] = tuple(CODES | STEPS)
    """Ways to use the second sensor."""


def variants(view: View, chosen: tuple[str, ...]):
    """(name, function of a seed) of everything that is measured: single sensors, naive fusions, the chosen
    ways, and their controls."""

    def of_codes(make, seen: View = view):
        codes = make(seen)
        return lambda seed: clustered(codes, view, seed)

    def way(name: str, seen: View):
        return of_codes(CODES[name], seen) if name in CODES else partial(STEPS[name], seen)

    for name, make in (SINGLE | NAIVE).items():
        yield name, of_codes(make)
    for suffix, seen in (("", view), ("/shuffled", view.shuffled())):
        for name in chosen:
            yield name + suffix, way(name, seen)
    for name in chosen:
        if name in FIRST:
            yield f"{name}/first", way(name, view.first())
    if "pooled-surfaces" in chosen:
        yield "pooled-surfaces/first", partial(pooled_surfaces, view, sensor=0)
    if "measurements" in chosen:
        yield "measurements/first", of_codes(partial(measurements, sensor=0))
        yield "measurements/place", of_codes(place)


def score(maps: Tensor, data: PreparedDataset) -> dict[str, float]:
    """mIoU and accuracy in per cent of scores (n, K, h, w) on a grid of 48 rows of pixels."""
    counts, classes = 0, data.description.classes
    for index, own in enumerate(maps):
        label = data.stored(index)[1]
        step = len(label) // 48
        label = torch.from_numpy(label[step // 2 :: step, step // 2 :: step].astype(np.int64))
        full = F.interpolate(own[None], label.shape, mode="bilinear", align_corners=False).argmax(1)[0]
        counts = counts + confusion_matrix(full, label, len(classes), maps.shape[1]).numpy()
    scores = score_clusters(counts, classes)
    return {name: round(scores[name]["all"], 3) for name in ("miou", "accuracy")}


def view_of(folder: str, sensors: list[str]) -> View:
    """Tokens of both splits; their statistics are those of the training split."""
    data = tuple(PreparedDataset(folder, split, sensors, cache=True) for split in SPLITS)
    backbone, plain, white = load_backbone(FEATURES, "", "cpu"), [], []
    for name in sensors:
        chain, *whitened, _ = tokens_of(folder, "test", name)
        white.append(tuple(map(torch.from_numpy, whitened)))
        raw = [extract_tokens(each, backbone, [name], progress=False) for each in data]
        ready = (replace(tokens, chain=replace(chain, whitening={})).in_memory() for tokens in raw)
        plain.append(tuple(torch.from_numpy(tokens.arrays[name]) for tokens in ready))
    order = tuple(np.arange(len(each)) for each in data)
    return View(data, tuple(sensors), tuple(plain), tuple(white), order)


@torch.no_grad()
def main(options: Options) -> None:
    limit_threads()
    folder = ROOT / "runs/second-sensor"
    folder.mkdir(parents=True, exist_ok=True)
    for setting in options.only:
        scene, sensors = setting.split()
        path = folder / f"{scene}-{sensors}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        done = {(run["method"], run["seed"]) for run in map(json.loads, lines)}
        place = options.nyu if scene == "nyu" else str(world.ensure(scene, modalities=SENSORS))
        view = view_of(place, [NAMES[sensor] for sensor in sensors])
        for method, maps_of in variants(view, options.ways):
            for seed in range(options.seeds):
                if (method, seed) in done:
                    continue
                begun = time.process_time()
                maps = maps_of(seed)
                seconds = round(time.process_time() - begun, 2)
                run = {"scene": scene, "sensors": sensors, "method": method, "seed": seed}
                run |= score(maps, view.data[1]) | {"cpu_seconds": seconds}
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(run) + "\n")
            print(setting, method, flush=True)
    files = [folder / f"{setting.replace(' ', '-')}.jsonl" for setting in SCENES]
    runs = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    command = "python notebooks/results/second_sensor.py --nyu FOLDER"
    record = {"provenance": provenance(command), "features": FEATURES, "split": "test"}
    write_json(ROOT / "notebooks/results/second_sensor.json", record | {"runs": runs})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
