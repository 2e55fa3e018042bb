"""Tokens of validation rooms in three dimensions -> token_cloud.json, which notebook 08 draws.

    python notebooks/results/token_cloud.py        # half a minute on one core

Tokens of all sensors, raw and as methods read them, along their principal components. And colour's tokens
with and without the mean of their image, along the directions in which whole images differ most. Beside them
the class of each patch, its cluster, sensor and light. Rounded: the same on every machine.
"""

import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]  # the course's own package is not installed

from course.token_figures import components  # noqa: E402
from course.token_lab import TokenLab  # noqa: E402

from mmlib.runtime import provenance, write_json  # noqa: E402
from mmlib.unsupervised.correspondence import all_points, unit  # noqa: E402
from mmlib.unsupervised.kmeans import kmeans, nearest_centroid  # noqa: E402

PLACES = 150  # of which each sensor has a token


def side_by_side(tokens: dict) -> torch.Tensor:
    """(points, C) tokens of all sensors, each of length 1, one after the other."""
    return torch.cat([unit(all_points(maps)) for maps in tokens.values()], 2).flatten(0, 1)


def main() -> None:
    lab = TokenLab()
    rooms = range(len(lab.val))
    labels = lab.patch_labels().flatten()
    places = np.random.default_rng(0).permutation(np.flatnonzero(labels.numpy() != 255))[:PLACES]
    places.sort()
    means = kmeans(side_by_side(lab.tokens(range(len(lab.data)))), len(lab.classes), restarts=5, seed=0)
    clusters = nearest_centroid(side_by_side(lab.tokens(rooms, split="val")), means.centroids)[0]
    lights = [row["condition"] for row in lab.val.rows]
    patches = lab.grid[0] * lab.grid[1]
    record = {
        "provenance": provenance("python notebooks/results/token_cloud.py", 0),
        "features": lab.backbone.name,
        "split": "val",
        "classes": lab.classes,
        "palette": lab.palette,
        "sensor": [name for name in lab.names for _ in places],
        "light": [lights[place // patches] for _ in lab.names for place in places],
        "class": [int(labels[place]) for _ in lab.names for place in places],
        "cluster": [int(clusters[place]) for _ in lab.names for place in places],
        "stages": {},
    }

    def keep(name: str, maps: list, mean, axes, low, high) -> None:
        """The tokens of the places in some maps, most of them between -1 and 1, under a stage's name."""
        rows = torch.cat([all_points(x).flatten(0, 1)[places] for x in maps]).double()
        scaled = 2 * ((rows - mean) @ axes.T - low) / (high - low) - 1
        record["stages"][name] = [[round(float(x), 2) for x in axis] for axis in scaled.T]

    for stage in ("raw", "mean subtracted"):
        maps = [lab.tokens(rooms, stage, "val")[name] for name in lab.names]
        keep(stage, maps, *components(maps))
    colour = {stage: lab.tokens(rooms, stage, "val")["rgb"] for stage in ("standardised", "mean subtracted")}
    mean, axes, *_ = components([colour["standardised"].mean((2, 3), keepdim=True)])
    along = (all_points(colour["standardised"]).flatten(0, 1).double() - mean) @ axes.T
    ends = torch.from_numpy(np.quantile(along.numpy(), (0.02, 0.98), axis=0))
    keep("colour", [colour["standardised"]], mean, axes, *ends)
    keep("colour, mean subtracted", [colour["mean subtracted"]], mean, axes, *ends)
    write_json(ROOT / "notebooks/results/token_cloud.json", record)


if __name__ == "__main__":
    main()
