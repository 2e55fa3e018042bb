"""Cosine k-means on codes: ``inference`` calls it for every method, and k-means on the tokens is a method
itself.

A code is a vector of D numbers of which only the direction counts. Sums run in float64 and in a fixed order,
so that one seed gives the same clusters on every run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16384  # points that k-means compares with all centroids at once
# Distances 1 − cosine below this are rounding: two codes of one direction. float64 everywhere but on Apple
# GPUs, which have none.
SAME_DIRECTION = {torch.float64: 1e-12, torch.float32: 1e-6}


@dataclass
class KMeans:
    """Result of cosine k-means.

    Attributes:
        centroids: (K, D) float32 of length 1, of the restart with the lowest inertia.
        inertia: of each restart, the mean over points of 1 − cosine to the nearest centroid: 0 (all points on
            centroids) to 2.
        use: (K,) share of the points in each cluster.
        restarts: (R, K, D), the centroids of all restarts; how far they agree says how far the clusters can
            be trusted.
        history: of each restart, the inertia before each update of its centroids and at the end; it never
            rises.
    """

    centroids: Tensor
    inertia: list[float]
    use: Tensor
    restarts: Tensor
    history: list[list[float]]


def wide(x: Tensor) -> Tensor:
    """As float64, or float32 on Apple GPUs."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def _unit(points: Tensor) -> Tensor:
    return F.normalize(wide(points), dim=1)


def nearest_centroid(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Points (n, D), centroids (K, D) -> index of the nearest centroid (n,) int64 and the cosine to it (n,).

    A point of length 0 has no direction: its cosine to every centroid is 0, and it falls to cluster 0.
    """
    centroids = _unit(centroids)
    best = [(_unit(part) @ centroids.T).max(1) for part in points.split(CHUNK)]
    return torch.cat([part.indices for part in best]), torch.cat([part.values for part in best])


def plus_plus(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Seeds of k-means++ on the sphere, (n, D) -> (clusters, D). The first is any point. Each next one is
    drawn in proportion to its distance 1 − cosine to the nearest seed so far (half the squared Euclidean
    distance of unit vectors).

    Raises:
        ValueError: fewer distinct directions than clusters.
    """
    draw = lambda: float(torch.rand((), generator=generator, dtype=torch.float64, device=generator.device))
    seeds = [int(draw() * len(points))]
    distance = 1 - nearest_centroid(points, points[seeds])[1]
    while len(seeds) < clusters:
        distance = torch.where(distance > SAME_DIRECTION[distance.dtype], distance, 0)
        edges = distance.cumsum(0)
        if not edges[-1] > 0:
            raise ValueError(
                f"the codes have {len(seeds)} distinct directions for {clusters} clusters: constant "
                "features or a "
                "collapsed network; look at the effective rank and the shifts b, or ask for fewer clusters"
            )
        index = torch.searchsorted(edges, draw() * edges[-1], right=True)
        seeds.append(min(int(index), len(points) - 1))
        distance = torch.minimum(distance, 1 - nearest_centroid(points, points[seeds[-1:]])[1])
    return _unit(points[seeds])


def update_centroids(points: Tensor, labels: Tensor, similarity: Tensor, clusters: int) -> Tensor:
    """The best centroid of each cluster, its normalised sum of unit points, (clusters, D). A cluster without
    points, or whose points cancel, starts again at one of the points that lie farthest from their centroids.
    """
    sums = wide(points.new_zeros(clusters, points.shape[1]))
    for part, ids in zip(points.split(CHUNK), labels.split(CHUNK)):
        # a product, not index_add: the same sum on every run
        sums += F.one_hot(ids, clusters).to(sums.dtype).T @ _unit(part)
    empty = sums.norm(dim=1) < 1e-9
    if empty.any():
        farthest = similarity.topk(int(empty.sum()), largest=False).indices
        sums[empty] = _unit(points[farthest])
    return F.normalize(sums, dim=1)


def lloyd(
    points: Tensor, centroids: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, list[float]]:
    """Alternate assignment and update -> centroids (K, D), labels (n,) and the inertia of each iteration,
    whose last value belongs to the returned centroids.
    """
    clusters, history = len(centroids), []
    while True:
        labels, similarity = nearest_centroid(points, centroids)
        history.append(float((1 - similarity).mean().clamp(min=0)))
        converged = len(history) > 1 and history[-2] - history[-1] <= tolerance * history[-2]
        if len(history) > iterations or (converged and len(labels.unique()) == clusters):
            return centroids, labels, history
        centroids = update_centroids(points, labels, similarity, clusters)


@torch.no_grad()
def kmeans(
    codes: Tensor,
    clusters: int,
    *,
    restarts: int = 10,
    tolerance: float = 1e-6,
    seed: int | torch.Generator = 0,
) -> KMeans:
    """Cosine (spherical) k-means with k-means++ seeds; the best of ``restarts`` runs by inertia.

    Args:
        codes: (n, D). Codes of length 0 are left out. For a split of millions of tokens give a random part of
            them.
        tolerance: a run ends when an iteration lowers the inertia by less than this share of it, or after
            100 updates.
        seed: a number, or a generator that goes on where it stands.

    Raises:
        ValueError: shape, NaN or infinite codes, fewer points than clusters, or fewer directions than
            clusters (collapse).
    """
    if codes.ndim != 2 or min(clusters, restarts) < 1:
        raise ValueError(
            f"codes {tuple(codes.shape)}, {clusters} clusters, {restarts} restarts: expected (points, "
            "dimensions), as "
            "code.movedim(1, -1).flatten(0, -2) makes them of a map, and 1 or more of each"
        )
    broken = int((~codes.isfinite()).any(1).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(codes)} codes hold NaN or infinite values; the network has diverged, lower "
            "its learning rate"
        )
    points = codes[codes.norm(dim=1) > 1e-12]
    if len(points) < clusters:
        raise ValueError(
            f"{len(points)} of {len(codes)} codes are not 0, fewer than {clusters} clusters; give more "
            "codes or fewer clusters"
        )
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    runs = []
    for _ in range(restarts):
        runs.append(lloyd(points, plus_plus(points, clusters, generator), 100, tolerance))
    centroids = torch.stack([centroids for centroids, _, _ in runs]).float()
    histories = [history for _, _, history in runs]
    inertia = [history[-1] for history in histories]
    best = inertia.index(min(inertia))
    use = torch.bincount(runs[best][1], minlength=clusters).double().cpu() / len(points)
    return KMeans(centroids[best], inertia, use, centroids, histories)
