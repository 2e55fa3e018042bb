"""Every label-free method on the same tokens, schedule and budget -> clusters.json, read by notebook 09.
Resumable.

    python notebooks/results/clusters.py                       # street and room scenes of the sensor world,
                                                                   # three sets of sensors
    python notebooks/results/clusters.py --parts 2 --part 0    # half of the runs; the other half in a second
                                                               # process
    python notebooks/results/clusters.py selected              # with the settings of cluster_search.json
                                                               # -> clusters_selected.json
    python notebooks/results/clusters.py nyu --data FOLDER     # a prepared RGB-D data set
                                                               # -> clusters_nyu.json

Nothing is tuned: one schedule for all methods, shifts b as quantiles of each sensor's own correspondences.
All read the 64 leading principal directions of each sensor's tokens, of equal variance (--whiten 64), because
a run then costs a third; "kmeans-whitened" reads 32 of them.
"selected" instead takes what 'mmlib search' found for three methods on rooms (colour, or colour and
thermal), chosen by its label-free criterion; for depth and for streets these settings are left as they are.
Runs are scored once, on the test split, after the last step. Finished runs are kept, one a line, in
runs/clusters-BACKBONE/.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from mmlib import world
from mmlib.data.prepared import PreparedDataset
from mmlib.evaluation.statistics import rounded
from mmlib.runtime import provenance, write_json
from mmlib.unsupervised.backbone import load_backbone
from mmlib.unsupervised.correspondence import PAIRS, CorrespondenceConfig, Shifts
from mmlib.unsupervised.extraction import extract_tokens
from mmlib.unsupervised.inference import EvaluationConfig
from mmlib.unsupervised.methods import ClusterConfig, Plan, Prepared, TokenConfig, resolve_method
from mmlib.unsupervised.networks import ClusterNetConfig
from mmlib.unsupervised.tokens import TokenChain, Tokens, image_means, nearest_neighbours
from mmlib.unsupervised.train import cluster

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"R": "rgb", "D": "depth", "T": "thermal", "N": "nir", "P": "dolp", "A": "aolp"}
SENSORS = ("rgb", "depth", "thermal", "nir", "dolp", "aolp")
LOSS = CorrespondenceConfig(points=64)
BOTH = ClusterNetConfig(anchor="both")
FEATURES = TokenConfig().backbone
WHITEN = 64  # principal directions of each sensor's tokens, of equal variance, that all methods read
WHITENED = TokenConfig(whiten=WHITEN)
KMEANS = {"kmeans": {"method": "kmeans"}, "kmeans-whitened": {"method": "kmeans", "whiten": 32}}
SINGLE = KMEANS | {"stego": {"method": "stego"}}
JOINT = {
    **KMEANS,
    **{f"kmeans-{how}": {"method": "kmeans", "combine": how} for how in ("image", "feature")},
    **{f"stego-{how}": {"method": "stego", "combine": how} for how in ("image", "feature")},
    **{
        f"stego-{how}": {"method": "stego", "network": ClusterNetConfig(fusion=how)}
        for how in ("conv", "cbam", "stitch")
    },
    **{name: {"method": name} for name in ("coral", "mmd", "cosine")},
    "unim2": {},
    "unim2-0.3": {"lambda_x": 0.3},
    "cmcs-1": {"network": BOTH},
    "cmcs-0.3": {"network": BOTH, "lambda_x": 0.3},
    "lambda-0": {"lambda_x": 0.0},
}
FIRST = (  # all seeds of these come before all else
    "kmeans",
    "kmeans-whitened",
    "stego",
    "stego-feature",
    "stego-conv",
    "unim2",
    "cmcs-1",
    "lambda-0",
)
ABLATION = {  # Tables 5 to 7 and the sweep over lambda
    "unim2-3": {"lambda_x": 3.0},
    "cmcs-3": {"network": BOTH, "lambda_x": 3.0},
    **{f"anchor-{name}": {"network": ClusterNetConfig(anchor=name)} for name in ("auxiliary", "none")},
    "no-msn": {"network": ClusterNetConfig(msn=False)},
    **{f"fusion-{name}": {"network": ClusterNetConfig(fusion=name)} for name in ("sum", "mean", "max")},
}


@dataclass(frozen=True)
class Options:
    """Run every method and write the record."""

    which: tyro.conf.Positional[Literal["world", "selected", "nyu"]] = "world"
    """The sensor world; the same with searched settings; or a prepared RGB-D data set."""
    data: str = ""
    """nyu: folder of the prepared data set; train on its split "train", score "test"."""
    seeds: int = 3
    """Training seeds of each method; k-means, which trains nothing, takes them as seeds of its own."""
    steps: int = 150
    """Optimizer steps."""
    parts: int = 1
    """Processes that share the runs."""
    part: int = 0
    """Which of them this is."""
    collect: bool = False
    """Run nothing: write the record of what is finished."""


def selected(name: str) -> dict:
    """Settings that the search found for a method on rooms, without labels."""
    record = json.loads((ROOT / "notebooks/results/cluster_search.json").read_text(encoding="utf-8"))
    best = record["searches"][name]["best"]
    of = lambda what: tuple(best[f"{what}_{pair}"] for pair in PAIRS)
    kind = {"lambda_x": best["lambda_x"]} if "lambda_x" in best else {"method": "stego"}
    return kind | {
        "lr": best["lr"],
        "network": ClusterNetConfig(dim=best["dim"]),
        "loss": replace(LOSS, shifts=Shifts("quantile", of("quantile")), weights=of("weight")),
    }


def table(which: str) -> list[tuple[str, str, str, dict]]:
    """(scene, sensors, method, settings) of every run, the most telling ones first."""
    if which == "selected":
        kmeans = {"kmeans": {"method": "kmeans"}}
        one = kmeans | {"stego": selected("stego")}
        two = kmeans | {name: selected(name) for name in ("stego-conv", "unim2")}
        return [
            (scene, sensors, name, kind)
            for scene in ("room", "street")
            for sensors in ("R", "RT", "RD")
            for name, kind in (one if sensors == "R" else two).items()
        ]
    scenes = ("room", "street") if which == "world" else ("real",)
    found = [
        (s, one, name, kind)
        for s in scenes
        for one in ("R", "T", "D")[:: 1 if which == "world" else 2]
        for name, kind in SINGLE.items()
    ]
    for sensors in ("RT", "RD") if which == "world" else ("RD",):
        found += [(s, sensors, name, kind) for s in scenes for name, kind in JOINT.items()]
    if which == "world":
        found += [("room", "RT", name, kind) for name, kind in ABLATION.items()]
    found += [(s, "RD", "depthg", {"method": "depthg"}) for s in scenes]
    found += [(s, "R", "eagle", {"method": "eagle"}) for s in scenes]
    found += [
        (s, x, "eagle-conv", {"method": "eagle"})
        for x in (("RT", "RD", "RNPA") if which == "world" else ("RD",))
        for s in scenes
    ]
    if which == "world":
        found += [(s, one, name, kind) for s in scenes for one in "NPA" for name, kind in KMEANS.items()]
        found += [
            (s, "RNPA", name, JOINT[name])
            for s in scenes
            for name in sorted(JOINT, key=lambda name: name not in FIRST)
        ]
        found += [("street", "RT", name, kind) for name, kind in ABLATION.items()]
    return found


def configuration(options: Options, scene: str, sensors: str, kind: dict, seed: int) -> ClusterConfig:
    data = options.data if scene == "real" else str(world.ensure(scene, modalities=SENSORS))
    # EAGLE brings a loss of its own; it is used where the loss is left as it is
    loss = CorrespondenceConfig() if kind.get("method") == "eagle" else LOSS
    evaluation = EvaluationConfig(
        split="test", restarts=3, repeats=1 if scene == "real" else 2, kmeans_points=6000
    )
    if kind.get("method") == "kmeans":
        evaluation = replace(evaluation, kmeans_seed=seed)
    settings = {
        "modalities": tuple(NAMES[s] for s in sensors),
        "loss": loss,
        "evaluation": evaluation,
        "steps": options.steps,
    } | kind
    tokens = TokenConfig(whiten=settings.pop("whiten", WHITEN))
    return ClusterConfig(
        data=data,
        out=str(ROOT / f"runs/clusters-{FEATURES}/last"),
        tokens=tokens,
        seed=seed,
        progress=False,
        save_every=10**6,
        **settings,
    )


@lru_cache(maxsize=None)
def tokens_of(
    folder: str, split: str, name: str, settings: TokenConfig = WHITENED, near: int = 7
) -> tuple[TokenChain, np.ndarray, np.ndarray, torch.Tensor]:
    """One sensor's tokens, made ready once for all runs: its chain, the whitened tokens of the training and
    of the scored images, and each training image's neighbours. Kept in runs/."""
    path = ROOT / f"runs/clusters-{FEATURES}/{Path(folder).name}-{split}-{name}-{settings.whiten}.safetensors"
    if path.exists():
        kept = load_file(path)
        chain = TokenChain(smooth=bool(kept["smooth"]), centre=float(kept["centre"])).with_tensors(kept)
        return chain, kept["train"].numpy(), kept["scored"].numpy(), kept["neighbours"]
    backbone, raw = load_backbone(settings.backbone, settings.backbone_weights, "cpu"), []
    for part in ("train", split):
        data = PreparedDataset(folder, part, name.split("+"))
        raw.append(extract_tokens(data, backbone, [name], settings, train=part == "train", progress=False))
    chain = settings.chain(raw[0])
    ready = [replace(tokens, chain=chain) for tokens in raw]
    neighbours = nearest_neighbours(image_means(ready[0], [name]), near, torch.arange(len(ready[0])))
    train, scored = (tokens.in_memory().arrays[name] for tokens in ready)
    parts = {"train": torch.from_numpy(train), "scored": torch.from_numpy(scored), "neighbours": neighbours}
    parts |= {"smooth": torch.tensor(chain.smooth), "centre": torch.tensor(chain.centre)}
    parts |= chain.to_tensors()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({part: tensor.contiguous() for part, tensor in parts.items()}, path)
    return chain, train, scored, neighbours


def prepared(config: ClusterConfig) -> tuple[Plan, Prepared]:
    """What ``mmlib.unsupervised.methods.prepare`` returns for the same settings, put together of single
    sensors, so that a sensor is whitened once and not once for each set of sensors."""
    split, keep = config.evaluation.split, config.tokens.whiten
    data, scored = (
        PreparedDataset(config.data, part, list(config.modalities), cache=True) for part in ("train", split)
    )
    plan = resolve_method(config, list(config.modalities))
    settings = replace(config.tokens, whiten=max(keep, WHITEN))
    own = {name: tokens_of(config.data, split, name, settings, config.neighbours) for name in plan.extracted}
    statistics = {name: chain.statistics[name] for name, (chain, *_) in own.items()}
    whitening = {name: chain.whitening[name][:keep] for name, (chain, *_) in own.items()}
    chain = replace(next(iter(own.values()))[0], statistics=statistics, whitening=whitening)
    tokens, scored_tokens = (
        Tokens({name: parts[which][:, :keep] for name, parts in own.items()}) for which in (1, 2)
    )
    backbone = load_backbone(settings.backbone, settings.backbone_weights, "cpu")
    neighbours = own[plan.extracted[0]][3]
    inputs = {"data": Path(config.data).name}
    return plan, Prepared(data, scored, backbone, tokens, scored_tokens, neighbours, chain, inputs)


def run(config: ClusterConfig, shared: dict) -> dict:
    for file in Path(config.out).glob("*"):
        file.unlink()
    # runs that read the same tokens share them; the network and its loss do not matter
    key = (config.data, config.modalities, config.combine, config.tokens, config.method)
    if key not in shared:
        shared.clear()
        shared[key] = prepared(config)
    begun = time.process_time()
    report = cluster(config, shared[key])
    scores, repeated = report["scores"], [entry["miou"] for entry in report["kmeans"]]
    return {
        "miou": scores["miou"]["all"],
        "accuracy": scores["accuracy"]["all"],
        "iou": scores["iou"]["all"],
        "miou_by_condition": {
            group.removeprefix("condition="): value
            for group, value in scores["miou"].items()
            if group != "all"
        },
        **({"kmeans_sd": float(np.std(repeated, ddof=1))} if len(repeated) > 1 else {}),
        "probe_miou": report.get("online_probe", {}).get("miou"),
        "many_to_one_miou": report["many_to_one"]["miou"],
        "criteria": report["criteria"],
        "effective_rank": report["collapse"]["effective_rank"],
        "mean_similarity": report["collapse"]["mean_similarity"],
        "use_min": report["collapse"]["use_min"],
        "cpu_seconds": time.process_time() - begun,
    }


def main(options: Options) -> None:
    folder = ROOT / f"runs/clusters-{FEATURES}"
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {(scene, sensors, method): kind for scene, sensors, method, kind in table(options.which)}
    order = {group: index for index, group in enumerate(kinds)}
    group_of = lambda line: (line["scene"], line["sensors"], line["method"])

    def finished() -> list[dict]:
        files = sorted(folder.glob(f"{options.which}-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    done = {(*group_of(line), line["seed"]) for line in finished()}
    shared: dict = {}
    # Four sensors take twice as long as two, and EAGLE, with its affinities over all tokens, ten times.
    rest = lambda group: (group[2].startswith("eagle"), "N" in group[1], group[2] not in FIRST)
    runs = [(group, seed) for seed in range(options.seeds) for group in kinds]
    for group, seed in tqdm(sorted(runs, key=lambda one: rest(one[0])), "methods"):
        if options.collect or order[group] % options.parts != options.part or (*group, seed) in done:
            continue
        scene, sensors, method = group
        config = replace(
            configuration(options, scene, sensors, kinds[group], seed),
            out=str(folder / f"last-{options.which}-{options.part}"),
        )
        entry = {"scene": scene, "sensors": sensors, "method": method, "seed": seed} | rounded(
            run(config, shared), significant=4
        )
        with open(folder / f"{options.which}-{options.part}.jsonl", "a") as file:
            file.write(json.dumps(entry) + "\n")
    lines = sorted(finished(), key=lambda line: (order[group_of(line)], line["seed"]))
    arguments = {"world": "", "selected": " selected", "nyu": " nyu --data FOLDER"}
    command = "python notebooks/results/clusters.py" + arguments[options.which]
    record = {
        "provenance": provenance(command),
        "features": FEATURES,
        "split": "test",
        "whiten": WHITEN,
        "steps": options.steps,
        "runs": lines,
    }
    write_json(
        ROOT
        / "notebooks/results"
        / ("clusters.json" if options.which == "world" else f"clusters_{options.which}.json"),
        record,
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
