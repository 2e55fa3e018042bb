"""Make the file behind the panel and the landscape of notebook 10: one UniM2 training for each λ and each
shift of b, k-means for each number of clusters.

    python notebooks/results/cluster_panel.py    # twenty trainings of 100 steps, two minutes

What is finished is not run again: the trainings lie in runs/cluster-panel, the result goes to
notebooks/results/cluster_panel.npz. The split that is scored is val, because a reader of the panel chooses
by its scores. Label maps are named by Hungarian matching on it, as in the papers.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from mmlib.evaluation.counts import UNMATCHED, score_clusters
from mmlib.figures import picture
from mmlib.modalities import IGNORE_INDEX
from mmlib.runtime import limit_threads, provenance
from mmlib.unsupervised import diagnostics
from mmlib.unsupervised.clustering import assign, count, load_clustering
from mmlib.unsupervised.correspondence import CorrespondenceConfig
from mmlib.unsupervised.inference import codes_of, criteria_pairs, label_free
from mmlib.unsupervised.kmeans import kmeans
from mmlib.unsupervised.methods import ClusterConfig, Prepared, TokenConfig, prepare, resolve_method
from mmlib.unsupervised.train import cluster

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))  # the course's own package, which is not installed

from course.cluster_grid import save_panel  # noqa: E402

SENSORS = ("rgb", "depth", "thermal")  # of the rooms of notebooks 08 to 10


@dataclass(frozen=True)
class PanelConfig:
    """The grid of a panel."""

    data: str = "room"
    """Folder of a prepared, labelled data set, or 'room' or 'street'."""
    modalities: tuple[str, ...] = ("rgb", "thermal")
    """Sensors, the reference first."""
    backbone: str = "tf_efficientnet_lite0"
    """Frozen feature extractor."""
    rooms: tuple[int, int] = (64, 32)
    """Training and validation scenes, where data is a scene of the sensor world: those of the lessons."""
    batch_size: int = 8
    """Images of a step."""
    whiten: int = 64
    """Principal directions of each sensor's tokens that all trainings read, as in clusters.py."""
    lambdas: tuple[float, ...] = (0.0, 0.3, 1.0, 3.0)
    """λ of Eq. 5."""
    offsets: tuple[float, ...] = (-0.5, -0.2, 0.0, 0.2, 0.35)
    """Added to the quantile levels that set b; a level stays within 0.02 and 0.99."""
    clusters: tuple[int, ...] = (5, 9, 13, 20)
    """Numbers of clusters."""
    steps: int = 100
    """Optimizer steps of each training."""
    split: str = "val"
    """Split that is scored and shown: test would choose with the labels that later judge the choice."""
    seed: int = 0
    """Seed of every training."""
    runs: str = "runs/cluster-panel"
    """Folder of the trainings."""
    out: str = "notebooks/results/cluster_panel.npz"
    """The file to write."""


def build_cluster_panel(config: PanelConfig, base: ClusterConfig | None = None) -> Path:
    """Train what is missing, cluster every training's codes with every number of clusters, write
    ``config.out`` and return its path.

    Args:
        base: further settings of every training, such as its batch size; data, modalities, steps, seed, λ and
            b come from ``config``.

    Raises:
        ValueError: what ``cluster`` raises. Codes that collapse so far that k-means finds too few directions
            give NaN instead.
    """
    limit_threads()
    tokens = TokenConfig(backbone=config.backbone, whiten=config.whiten)
    loss = CorrespondenceConfig(points=64)
    base = base or ClusterConfig("", "", tokens=tokens, loss=loss, batch_size=config.batch_size)
    folder = config.data
    if folder in ("room", "street"):
        from mmlib import world

        folder = str(world.ensure(folder, *config.rooms, 0, modalities=SENSORS, progress=False))
    base = replace(
        base,
        data=folder,
        modalities=config.modalities,
        steps=config.steps,
        seed=config.seed,
        progress=False,
        evaluation=replace(base.evaluation, split=config.split, repeats=1, restarts=5),
    )
    first, prepared = prepare(base)
    runs = ROOT / config.runs
    scored, levels = prepared.scored, base.loss.shifts.quantiles
    conditions = [row["condition"] for row in scored.rows]
    frames = [conditions.index(c) for c in dict.fromkeys(conditions)][:3]
    frames += [i for i in range(len(scored)) if i not in frames][: 3 - len(frames)]
    shape = (len(config.lambdas), len(config.offsets), len(config.clusters))
    height, width = scored.stored(frames[0])[1].shape
    found = {name: np.full(shape, np.nan, np.float32) for name in ("miou", "accuracy", "explained")}
    found |= {name: np.full(shape[:2], np.nan, np.float32) for name in ("rank", "similarity")}
    found["maps"] = np.full((*shape, len(frames), height, width), IGNORE_INDEX, np.uint8)
    found["mapping"] = np.full((*shape, max(config.clusters)), UNMATCHED, np.int8)
    for i, weight in enumerate(config.lambdas):
        for j, offset in enumerate(config.offsets):
            moved = tuple(round(float(np.clip(level + offset, 0.02, 0.99)), 4) for level in levels)
            shifts = replace(base.loss.shifts, rule="quantile", quantiles=moved)
            run = replace(
                base,
                lambda_x=weight,
                loss=replace(base.loss, shifts=shifts),
                out=str(runs / f"lambda{weight:g}_b{offset:+g}"),
            )
            done = _trained(run, prepared, list(first.sensors))
            if done:
                found["rank"][i, j], found["similarity"][i, j] = _clustered(
                    found, (i, j), config, prepared, frames, *done
                )
    pictures = np.stack(
        [[picture(scored.modalities[n], scored.physical(k)[0][n]) for n in first.sensors] for k in frames]
    )
    labels = np.stack([scored.stored(k)[1] for k in frames]).astype(np.uint8)
    command = shlex.join(["python", "notebooks/results/cluster_panel.py", *sys.argv[1:]])
    notes = {
        "classes": scored.description.classes,
        "palette": scored.description.palette,
        "sensors": list(first.sensors),
        "frames": [scored.rows[k]["id"] for k in frames],
        "conditions": [conditions[k] for k in frames],
        "split": config.split,
        "data": Path(config.data).name,
        "backbone": prepared.backbone.name,
        "backbone_key": prepared.backbone.key,
        "whiten": base.tokens.whiten,
        "steps": config.steps,
        "quantiles": list(levels),
        "provenance": provenance(command, config.seed),
    }
    axes = {
        "lambdas": np.float32(config.lambdas),
        "offsets": np.float32(config.offsets),
        "clusters": np.int16(config.clusters),
    }
    return save_panel(ROOT / config.out, axes | found | {"pictures": pictures, "labels": labels}, notes)


def _trained(run: ClusterConfig, prepared: Prepared, sensors: list[str]):
    """(plan, network) of a training, done now or before; None where its codes collapsed."""
    found = resolve_method(run, sensors)
    print(f"λ {run.lambda_x:g}, b at quantiles {run.loss.shifts.quantiles}", flush=True)
    try:
        cluster(
            run, (found, prepared)
        )  # of a finished run it only measures the state again, and it refuses one of other settings
    except ValueError as error:
        if "distinct directions" not in str(error):
            raise
        print(f"   collapsed: {error}", flush=True)
        return None
    return found, load_clustering(Path(run.out) / "clustering.safetensors").network


def _clustered(
    found: dict, place: tuple, config: PanelConfig, prepared: Prepared, frames: list[int], plan, net
) -> tuple[float, float]:
    """Fill in scores and maps of one training; returns effective rank and mean similarity of its codes."""
    codes, shown = codes_of(net, plan.read, prepared.tokens), codes_of(net, plan.read, prepared.scored_tokens)
    points = codes.movedim(1, -1).flatten(0, -2)
    points = points[torch.from_numpy(np.random.default_rng(0).permutation(len(points))[:10_000])]
    for k, clusters in enumerate(config.clusters):
        try:
            means = kmeans(points, clusters, restarts=5)
        except ValueError as error:
            print(f"   {clusters} clusters: {error}", flush=True)
            continue
        scores = score_clusters(
            count(shown, prepared.scored, means.centroids),
            prepared.scored.description.classes,
        )
        for score in ("miou", "accuracy"):
            found[score][(*place, k)] = scores[score]["all"]
        criteria = label_free(codes[criteria_pairs(len(codes))], plan, prepared, means, [means])
        found["explained"][(*place, k)] = criteria["explained"]
        found["mapping"][(*place, k)][:clusters] = scores["mapping"]
        found["maps"][(*place, k)] = assign(shown[frames], means.centroids, found["maps"].shape[-2:]).numpy()
    measured = diagnostics.collapse(points, points[: config.clusters[0]])
    return measured["effective_rank"], measured["mean_similarity"]


if __name__ == "__main__":
    print(build_cluster_panel(tyro.cli(PanelConfig, description=__doc__)))
