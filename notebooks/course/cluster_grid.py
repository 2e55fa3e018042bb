"""The file behind the cluster panel and the landscape: label maps and numbers of a grid of trainings, and
what these numbers say of a collapse.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mmlib.runtime import atomic_path

# Axes of the arrays: L values of λ, B offsets of b, K numbers of clusters, at most C of them, F frames of H x
# W pixels, S sensors.
LAYOUT = {
    "lambdas": "L",
    "offsets": "B",
    "clusters": "K",
    "maps": "LBKFHW",
    "mapping": "LBKC",
    "miou": "LBK",
    "accuracy": "LBK",
    "explained": "LBK",
    "rank": "LB",
    "similarity": "LB",
    "pictures": "FSHW3",
    "labels": "FHW",
}
MADE_BY = "python notebooks/results/cluster_panel.py"


def collapse_reason(rank: float, similarity: float) -> str:
    """Why codes count as collapsed, from two numbers that need no label; "" where they do not."""
    if not np.isfinite(rank) or not np.isfinite(similarity):
        return "k-means found fewer directions than clusters"
    if similarity > 0.8:
        return f"all codes point nearly the same way: mean S {similarity:.2f}, effective rank {rank:.1f}"
    if rank < 2:
        return f"the codes lie on one line: effective rank {rank:.1f}"
    return ""


def check_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``arrays`` if they are those of ``LAYOUT`` and agree with each other in every axis; ValueError says
    which does not.
    """
    sizes = {"3": 3}
    for name, axes in LAYOUT.items():
        shape = np.shape(arrays.get(name, 0))
        if len(shape) != len(axes) or 0 in shape:
            raise ValueError(
                f"panel: array {name!r} has shape {shape}, expected the axes {' '.join(axes)}; "
                f"make the file with {MADE_BY}"
            )
        for axis, size in zip(axes, shape):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(
                    f"panel: array {name!r} has {size} along {axis}, the others {sizes[axis]}; "
                    f"make the file with {MADE_BY}"
                )
    if sizes["C"] < max(arrays["clusters"]):
        raise ValueError(
            f"panel: {max(arrays['clusters'])} clusters, and 'mapping' names {sizes['C']}; "
            f"make the file with {MADE_BY}"
        )
    return {name: np.asarray(arrays[name]) for name in LAYOUT}


def save_panel(path: str | Path, arrays: dict[str, np.ndarray], notes: dict) -> Path:
    """Write the arrays of ``LAYOUT`` and notes (classes, palette, sensors, frames, conditions, provenance, …)
    as one .npz, atomically.

    maps: cluster of each pixel, 255 where a training collapsed; mapping: class of each cluster, -1 = none;
    scores in per cent, NaN for a collapse; rank, similarity: effective rank and mean cosine of the codes;
    pictures: (F, S, H, W, 3) uint8.
    """
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, notes=np.array(json.dumps(notes)), **check_arrays(arrays))
    return Path(path)


def load_panel(path: str | Path) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, notes) of a file of ``save_panel``; runs no code from it. ValueError: missing, damaged or
    another kind of file.
    """
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file; make it with {MADE_BY}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays, notes = dict(file), json.loads(str(file["notes"]))
    except Exception as error:  # numpy, zipfile and zlib raise many kinds for a file that is cut or foreign
        raise ValueError(
            f"{path}: damaged, or not a panel's file ({error}); make it with {MADE_BY}"
        ) from error
    return check_arrays(arrays), notes


def attracting(levels, offset: float) -> int:
    """Per cent of the self pairs that attract, for an offset to the quantile levels that set b."""
    return round(100 * (1 - float(np.clip(levels[0] + offset, 0.02, 0.99))))
