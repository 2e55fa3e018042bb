"""Cosine k-means on codes: ``inference`` calls it for every method, and k-means on the tokens is a method
itself.

A code is a vector of D numbers of which only the direction counts. Codes lie on the CPU; sums run in float64
and in a fixed order, so that one seed gives the same clusters on every run.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16384  # points that k-means compares with all centroids at once
SAME_DIRECTION = 1e-12  # distances 1 − cosine below this are rounding: two codes of one direction
# A run ends when an iteration lowers the inertia by less than this share of it, or after so many updates.
TOLERANCE, UPDATES = 1e-6, 100


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
    """

    centroids: Tensor
    inertia: list[float]
    use: Tensor
    restarts: Tensor


def _unit(points: Tensor) -> Tensor:
    return F.normalize(points.double(), dim=1)


def nearest_centroid(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Points (n, D), centroids (K, D) -> index of the nearest centroid (n,) int64 and the cosine to it (n,).

    A point of length 0 has no direction: its cosine to every centroid is 0, and it falls to cluster 0.
    """
    return _nearest(map(_unit, points.split(CHUNK)), _unit(centroids))


def _nearest(parts: Iterable[Tensor], centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The same for points in parts and centroids that all have length 1."""
    cosines, indices = zip(*((part @ centroids.T).max(1) for part in parts))
    return torch.cat(indices), torch.cat(cosines)


def plus_plus(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Seeds of k-means++ on the sphere, (n, D) -> (clusters, D). The first is any point. Each next one is
    drawn in proportion to its distance 1 − cosine to the nearest seed so far (half the squared Euclidean
    distance of unit vectors).

    Raises:
        ValueError: fewer distinct directions than clusters.
    """
    points = _unit(points)
    draw = lambda: float(torch.rand((), generator=generator, dtype=torch.float64))
    seeds, distance = [int(draw() * len(points))], torch.tensor(torch.inf, dtype=torch.float64)
    while len(seeds) < clusters:
        latest = 1 - _nearest(points.split(CHUNK), points[seeds[-1:]])[1]
        distance = distance.minimum(latest.where(latest > SAME_DIRECTION, 0))
        edges = distance.cumsum(0)
        if not edges[-1] > 0:
            raise ValueError(
                f"the codes have {len(seeds)} distinct directions for {clusters} clusters: constant features "
                "or a collapsed network; look at effective rank and shifts b, or ask for fewer clusters"
            )
        index = torch.searchsorted(edges, draw() * edges[-1], right=True)
        seeds.append(min(int(index), len(points) - 1))
    return points[seeds]


def update_centroids(points: Tensor, labels: Tensor, similarity: Tensor, clusters: int) -> Tensor:
    """The best centroid of each cluster, the normalised sum of its points, which have length 1: (clusters,
    D). A cluster without points, or whose points cancel, starts again at one of the points that lie farthest
    from their centroids.
    """
    sums = torch.zeros(clusters, points.shape[1], dtype=torch.float64)
    for part, ids in zip(points.split(CHUNK), labels.split(CHUNK)):
        # a product, not index_add: the same sum on every run
        sums += F.one_hot(ids, clusters).double().T @ part
    empty = sums.norm(dim=1) < 1e-9
    farthest = similarity.topk(int(empty.sum()), largest=False).indices
    sums[empty] = points[farthest]
    return F.normalize(sums, dim=1)


def lloyd(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """Alternate assignment and update -> centroids (K, D), labels (n,) and the inertia of each iteration,
    whose last value belongs to the returned centroids.
    """
    clusters, history, points = len(centroids), [], _unit(points)
    while True:
        labels, similarity = _nearest(points.split(CHUNK), _unit(centroids))
        history.append(float((1 - similarity).mean().clamp(min=0)))
        converged = len(history) > 1 and history[-2] - history[-1] <= TOLERANCE * history[-2]
        if len(history) > UPDATES or (converged and len(labels.unique()) == clusters):
            return centroids, labels, history
        centroids = update_centroids(points, labels, similarity, clusters)


@torch.no_grad()
def kmeans(codes: Tensor, clusters: int, restarts: int = 10, seed: int = 0) -> KMeans:
    """Cosine (spherical) k-means with k-means++ seeds; the best of ``restarts`` runs by inertia.

    Args:
        codes: (n, D). Codes of length 0 are left out. For a split of millions of tokens give a random part of
            them.

    Raises:
        ValueError: NaN or infinite codes, fewer points than clusters, or fewer directions than
            clusters (collapse).
    """
    if not codes.isfinite().all():
        raise ValueError("codes hold NaN or infinite values: the network has diverged; lower --lr")
    points = codes[codes.norm(dim=1) > 1e-12]
    if len(points) < clusters:
        raise ValueError(
            f"{len(points)} of {len(codes)} codes are not 0, fewer than {clusters} clusters; give more codes"
        )
    generator = torch.Generator().manual_seed(seed)
    runs = [lloyd(points, plus_plus(points, clusters, generator)) for _ in range(restarts)]
    centroids, labels, histories = zip(*runs)
    inertia = [history[-1] for history in histories]
    best = inertia.index(min(inertia))
    use = torch.bincount(labels[best], minlength=clusters).double() / len(points)
    return KMeans(centroids[best].float(), inertia, use, torch.stack(centroids).float())
