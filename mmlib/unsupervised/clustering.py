"""From codes to clusters to label maps: cosine k-means, the two probes, assignment of pixels, counts of a
split, saved clusters.

A code is a vector of D numbers, and only its direction counts. Clusters carry no names;
``mmlib.evaluation.counts`` gives them some where there are labels, ``write_label_maps`` draws them where
there are none.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..data.prepared import PreparedDataset
from ..evaluation.counts import confusion_matrix
from ..modalities import IGNORE_INDEX
from ..runtime import (
    atomic_path,
    progress_bar,
    read_tensor_header,
    read_tensors,
    reading,
    save_tensors,
    write_json,
)
from .pictures import as_picture

# Distances 1 − cosine below this are rounding: two codes of one direction. float64 everywhere but on Apple
# GPUs, which have none.
SAME_DIRECTION = {torch.float64: 1e-12, torch.float32: 1e-6}


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


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


def nearest(points: Tensor, centroids: Tensor, chunk: int = 16384) -> tuple[Tensor, Tensor]:
    """Points (n, D), centroids (K, D) -> nearest centroid (n,) int64 and the cosine to it (n,), in chunks of
    points.

    A point of length 0 has no direction: cosine 0 with every centroid, and it falls to cluster 0.
    """
    centroids = F.normalize(_wide(centroids), dim=1)
    found = [(F.normalize(_wide(part), dim=1) @ centroids.T).max(1) for part in points.split(chunk)]
    return torch.cat([part.indices for part in found]), torch.cat([part.values for part in found])


def plus_plus(points: Tensor, clusters: int, generator: torch.Generator, chunk: int = 16384) -> Tensor:
    """Seeds of k-means++ on the sphere, (n, D) -> (clusters, D): the first is any point, each next one is
    drawn in proportion to its distance 1 − cosine to the nearest seed so far (half the squared Euclidean
    distance of unit vectors).
    """
    draw = lambda: float(torch.rand((), generator=generator, dtype=torch.float64, device=generator.device))
    chosen = [int(draw() * len(points))]
    distance = 1 - nearest(points, points[chosen], chunk)[1]
    while len(chosen) < clusters:
        distance = torch.where(distance > SAME_DIRECTION[distance.dtype], distance, 0)
        edges = distance.cumsum(0)
        if not edges[-1] > 0:
            advice = "constant features or a collapsed network; look at the effective rank and the shifts b, or ask for fewer clusters"
            raise ValueError(
                f"the codes have {len(chosen)} distinct directions for {clusters} clusters: {advice}"
            )
        pick = torch.searchsorted(edges, draw() * edges[-1], right=True)
        chosen.append(min(int(pick), len(points) - 1))
        distance = torch.minimum(distance, 1 - nearest(points, points[chosen[-1:]], chunk)[1])
    return F.normalize(_wide(points[chosen]), dim=1)


def updated(points: Tensor, labels: Tensor, similarity: Tensor, clusters: int, chunk: int = 16384) -> Tensor:
    """The best centroid of each cluster, its normalised sum of unit points, (clusters, D). A cluster without
    points, or whose points cancel, starts again at one of the points that lie farthest from their centroids.
    """
    sums = _wide(points.new_zeros(clusters, points.shape[1]))
    for part, ids in zip(
        points.split(chunk), labels.split(chunk)
    ):  # a product, not index_add: the same sum on every run
        sums += F.one_hot(ids, clusters).to(sums.dtype).T @ F.normalize(_wide(part), dim=1)
    lost = sums.norm(dim=1) < 1e-9
    if lost.any():
        farthest = similarity.topk(int(lost.sum()), largest=False).indices
        sums[lost] = F.normalize(_wide(points[farthest]), dim=1)
    return F.normalize(sums, dim=1)


def lloyd(
    points: Tensor, centroids: Tensor, iterations: int, tolerance: float, chunk: int = 16384
) -> tuple[Tensor, Tensor, list[float]]:
    """Alternate assignment and update -> centroids (K, D), labels (n,) and the inertia of each iteration; the
    last is that of both.
    """
    clusters, history = len(centroids), []
    while True:
        labels, similarity = nearest(points, centroids, chunk)
        history.append(float((1 - similarity).mean().clamp(min=0)))
        still = len(history) > 1 and history[-2] - history[-1] <= tolerance * history[-2]
        if len(history) > iterations or (still and len(labels.unique()) == clusters):
            return centroids, labels, history
        centroids = updated(points, labels, similarity, clusters, chunk)


@torch.no_grad()
def kmeans(
    codes: Tensor,
    clusters: int,
    *,
    restarts: int = 10,
    iterations: int = 100,
    tolerance: float = 1e-6,
    seed: int | torch.Generator = 0,
    chunk: int = 16384,
) -> KMeans:
    """Cosine (spherical) k-means with k-means++ seeds; of ``restarts`` runs the one with the lowest inertia
    is kept.

    Args:
        codes: (n, D). Codes of length 0 are left out. For a split of millions of tokens give a random part of
            them.
        tolerance: a run ends when an iteration lowers the inertia by less than this share of it, or after
            ``iterations`` updates.
        seed: a number, or a generator that goes on where it stands.

    Raises:
        ValueError: shape, NaN or infinite codes, fewer points than clusters, or fewer directions than
            clusters (collapse).
    """
    if codes.ndim != 2:
        raise ValueError(
            f"codes {tuple(codes.shape)}: expected (points, dimensions); use code.movedim(1, -1).flatten(0, -2) on a map"
        )
    if min(clusters, restarts) < 1:
        raise ValueError(f"{clusters} clusters and {restarts} restarts: expected 1 or more of each")
    broken = int((~codes.isfinite()).any(1).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(codes)} codes hold NaN or infinite values; the network has diverged, lower its learning rate"
        )
    points = codes[codes.norm(dim=1) > 1e-12]
    if len(points) < clusters:
        raise ValueError(
            f"{len(points)} of {len(codes)} codes are not 0, fewer than {clusters} clusters; give more codes or fewer clusters"
        )
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    runs = [
        lloyd(points, plus_plus(points, clusters, generator, chunk), iterations, tolerance, chunk)
        for _ in range(restarts)
    ]
    best = min(range(restarts), key=lambda run: runs[run][2][-1])
    use = torch.bincount(runs[best][1], minlength=clusters).double().cpu() / len(points)
    centroids = torch.stack([run[0] for run in runs]).float()
    return KMeans(centroids[best], [run[2][-1] for run in runs], use, centroids, [run[2] for run in runs])


class ClusterProbe(nn.Module):
    """Online cosine k-means by gradient descent: loss −mean of each code's largest cosine. Codes are
    detached.
    """

    def __init__(self, dim: int, clusters: int):
        super().__init__()
        self.clusters = nn.Parameter(torch.randn(clusters, dim))

    @property
    def centroids(self) -> Tensor:
        """(K, D) of length 1, as those of ``kmeans``."""
        return F.normalize(self.clusters.detach(), dim=1)

    def forward(self, code: Tensor) -> Tensor:
        """(B, D, h, w) -> cosines (B, K, h, w)."""
        return torch.einsum(
            "bdhw,kd->bkhw", F.normalize(code.detach(), dim=1), F.normalize(self.clusters, dim=1)
        )

    def loss(self, code: Tensor) -> Tensor:
        return -self(code).amax(1).mean()


class LinearProbe(nn.Module):
    """A 1x1 convolution trained with labels on detached codes: how much of the classes a linear map can read.
    Evaluation only.
    """

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.classify = nn.Conv2d(dim, classes, 1)

    def forward(self, code: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, D, h, w) -> logits (B, K, H, W), bilinear."""
        return F.interpolate(self.classify(code.detach()), size, mode="bilinear", align_corners=False)

    def loss(self, code: Tensor, label: Tensor) -> Tensor:
        """Mean cross-entropy over the labelled pixels of (B, H, W); 0 where there are none."""
        total = F.cross_entropy(
            self(code, label.shape[-2:]), label, ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return total / (label != IGNORE_INDEX).sum().clamp(min=1)


def _box(x: Tensor, radius: int) -> Tensor:
    """Mean over the (2r + 1)² window of each pixel, cut at the border; (..., H, W). Cumulative sums: no cost
    in r.
    """
    for _ in range(2):  # along W, then along H
        centre = torch.arange(x.shape[-1], device=x.device)
        low, high = (centre - radius).clamp(min=0), (centre + radius + 1).clamp(max=x.shape[-1])
        sums = F.pad(x.cumsum(-1), (1, 0))
        x = ((sums[..., high] - sums[..., low]) / (high - low)).mT
    return x


def guided_filter(maps: Tensor, guide: Tensor, radius: int = 8, eps: float = 1e-3) -> Tensor:
    """Smooth ``maps`` (B, K, H, W) but keep the edges of ``guide`` (B, G, H, W): the guided filter of He, Sun
    and Tang.

    In every window each map is fitted by a linear function of the guide (ridge eps, in squared units of the
    guide); a pixel gets the mean of the fits of all windows that hold it. Linear in the number of pixels,
    whatever the radius.
    """
    if maps.shape[0] != guide.shape[0] or maps.shape[-2:] != guide.shape[-2:]:
        raise ValueError(
            f"maps {tuple(maps.shape)} and guide {tuple(guide.shape)}: expected one batch and one size (resize the guide)"
        )
    if radius < 1 or not eps > 0:
        raise ValueError(f"radius {radius}, eps {eps}: expected a radius of 1 pixel or more and eps > 0")
    image, mean = _wide(guide), _box(_wide(guide), radius)
    covariance = _box(image[:, :, None] * image[:, None], radius) - mean[:, :, None] * mean[:, None]
    ridge = eps * torch.eye(image.shape[1], dtype=image.dtype, device=image.device)
    inverse = torch.linalg.inv(covariance.permute(0, 3, 4, 1, 2) + ridge)

    def smooth(values: Tensor) -> Tensor:  # one map at a time bounds memory
        values = _wide(values)
        average = _box(values, radius)
        slope = torch.einsum("bhwij,bjhw->bihw", inverse, _box(image * values, radius) - mean * average)
        offset = average - (slope * mean).sum(1, keepdim=True)
        return (_box(slope, radius) * image).sum(1, keepdim=True) + _box(offset, radius)

    return torch.cat([smooth(values).to(maps.dtype) for values in maps.split(1, 1)], 1)


@dataclass(frozen=True)
class Refinement:
    """Edges from a picture: its modality ("" = off), radius in pixels (about one token), contrast² that still
    counts as flat, and the temperature of the memberships softmax(cosine / temperature) that are filtered.
    """

    guide: str = ""
    radius: int = 8
    eps: float = 1e-3
    temperature: float = 0.1


def assign(
    code: Tensor,
    centroids: Tensor,
    size: tuple[int, int],
    guide: Tensor | None = None,
    refinement: Refinement = Refinement(),
) -> Tensor:
    """Cluster of each pixel: codes (B, D, h, w) are up-sampled bilinearly to ``size``, then the largest
    cosine wins. (B, H, W) int64

    Given a guide (B, G, H, W) in [0, 1], memberships pass through the guided filter before the largest is
    taken. Raises ValueError: shapes that do not fit, NaN or infinite codes.
    """
    if code.ndim != 4 or code.shape[1] != centroids.shape[1] or not code.isfinite().all():
        shapes = f"code {tuple(code.shape)} and centroids {tuple(centroids.shape)}"
        raise ValueError(
            f"{shapes}: expected finite (B, D, h, w) and (K, D) of one D; train again if the network has diverged"
        )
    code, centroids = code.float(), F.normalize(centroids.float(), dim=1).to(code.device)
    # Up-sampling and products with centroids are linear and commute, and the length of a code does not move
    # its argmax.
    products = F.interpolate(
        torch.einsum("bdhw,kd->bkhw", code, centroids), size, mode="bilinear", align_corners=False
    )
    if guide is None:
        return products.argmax(1)
    length = torch.cat(
        [
            F.interpolate(one[None], size, mode="bilinear", align_corners=False).norm(dim=1, keepdim=True)
            for one in code
        ]
    )
    soft = (products / length.clamp(min=1e-12) / refinement.temperature).softmax(1)
    return guided_filter(soft, guide.to(code.device), refinement.radius, refinement.eps).argmax(1)


@torch.no_grad()
def assignments(
    code_of: Callable[[list[int]], Tensor],
    dataset: PreparedDataset,
    centroids: Tensor,
    *,
    refinement: Refinement = Refinement(),
    batch_size: int = 8,
    progress: bool = False,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (index, cluster of each pixel (H, W), label (H, W)) for every image of a split at its own size,
    on the CPU.

    ``code_of`` maps indices of images to their codes (B, D, h, w), each covering its whole image.
    Raises ValueError: another number of codes than of images, or a guide that is no loaded modality.
    """
    if refinement.guide and refinement.guide not in dataset.modalities:
        raise ValueError(
            f"guide {refinement.guide!r}: expected one of the loaded modalities {', '.join(dataset.modalities)}, or ''"
        )
    for start in progress_bar(range(0, len(dataset), batch_size), "assigning clusters", progress=progress):
        indices = list(range(start, min(start + batch_size, len(dataset))))
        codes = code_of(indices)
        if len(codes) != len(indices):
            raise ValueError(
                f"code_of returned {len(codes)} code maps for {len(indices)} images; expected one for each (no crops)"
            )
        for index, code in zip(indices, codes):
            guide, label = None, torch.from_numpy(dataset.stored(index)[1].astype(np.int64))
            if refinement.guide:
                guide = as_picture(
                    dataset.modalities[refinement.guide], dataset.physical(index)[0][refinement.guide]
                )[None]
            yield index, assign(code[None], centroids, tuple(label.shape), guide, refinement)[0].cpu(), label


def count(code_of, dataset: PreparedDataset, centroids: Tensor, **options) -> dict[str, np.ndarray]:
    """Classes by clusters of a split: group -> (K, C) int64 for "all" and every "condition=…"; label 255 is
    not counted.

    Arguments are those of ``assignments``; ``mmlib.evaluation.counts.score_clusters`` reads the result.
    Raises ValueError: the data set has no labels.
    """
    if not dataset.labelled:
        raise ValueError(
            f"{dataset.root} has no labels, so nothing can be scored; write_label_maps draws its clusters"
        )
    shape = (len(dataset.description.classes), len(centroids))
    counts = {"all": np.zeros(shape, np.int64)}
    for index, assignment, label in assignments(code_of, dataset, centroids, **options):
        found, condition = (
            confusion_matrix(assignment, label, *shape).cpu().numpy(),
            dataset.rows[index]["condition"],
        )
        for group in ["all", f"condition={condition}"][: 1 + bool(condition)]:
            counts[group] = counts.get(group, 0) + found
    return counts


@dataclass
class Clustering:
    """What inference needs beside the network: centroids (C, D) and, where labels named them, the class of
    each (-1 = none).
    """

    centroids: Tensor
    mapping: list[int] | None = None
    classes: list[str] = field(default_factory=list)
    palette: list[tuple[int, int, int]] = field(default_factory=list)
    notes: dict = field(default_factory=dict)


def save_clustering(path: str | Path, clustering: Clustering) -> None:
    header = {name: value for name, value in vars(clustering).items() if name != "centroids"}
    mapping = None if clustering.mapping is None else [int(target) for target in clustering.mapping]
    save_tensors(
        path, {"centroids": clustering.centroids}, {"kind": "clustering", **header, "mapping": mapping}
    )


def load_clustering(path: str | Path) -> Clustering:
    """Raises ValueError: no such file, damaged, or not written by ``save_clustering``."""
    header = read_tensor_header(path)
    if header.pop("kind", None) != "clustering":
        raise ValueError(f"{path}: not a saved clustering; expected a file of save_clustering")
    with reading(path, "a saved clustering"):
        found = Clustering(read_tensors(path)["centroids"], **header)
        found.palette = [(r, g, b) for r, g, b in found.palette]
        if found.centroids.ndim != 2 or not found.centroids.is_floating_point():
            raise ValueError(
                f"centroids {tuple(found.centroids.shape)} {found.centroids.dtype}; expected floats (clusters, D)"
            )
        named = found.mapping is None or (
            len(found.mapping) == len(found.centroids)
            and set(found.mapping) <= set(range(-1, len(found.classes)))
        )
        if not named or len(found.palette) != len(found.classes):
            raise ValueError(
                f"mapping {found.mapping}: expected a class, or -1, for each of {len(found.centroids)} clusters"
            )
    return found


def cluster_palette(clusters: int) -> list[tuple[int, int, int]]:
    """Colours of nameless clusters: hues a golden angle apart, in three brightnesses."""
    shades = [
        colorsys.hsv_to_rgb(k * 0.618034 % 1, (0.75, 0.5, 0.9)[k % 3], (0.9, 1.0, 0.6)[k % 3])
        for k in range(clusters)
    ]
    return [tuple(round(255 * value) for value in shade) for shade in shades]


def write_label_maps(
    folder: str | Path, code_of, dataset: PreparedDataset, clustering: Clustering, **options
) -> None:
    """Write ``<id>.png`` for every image of a split, 8-bit ids with a palette, and ``ids.json``, which names
    and colours them.

    Ids are clusters, or classes where the clustering has a mapping (255 = a cluster without one). Needs no
    labels, gives no scores.
    """
    ids, names, palette = list(range(len(clustering.centroids))), clustering.classes, clustering.palette
    if len(ids) > IGNORE_INDEX:
        raise ValueError(
            f"{len(ids)} clusters; label maps are 8-bit and {IGNORE_INDEX} means none: expected {IGNORE_INDEX} or fewer"
        )
    if clustering.mapping is None:
        names, palette = [f"cluster {k}" for k in ids], cluster_palette(len(ids))
    else:
        ids = [IGNORE_INDEX if target < 0 else target for target in clustering.mapping]
    write_json(
        Path(folder) / "ids.json",
        [{"id": k, "name": n, "colour": c} for k, (n, c) in enumerate(zip(names, palette))],
    )
    for index, assignment, _ in assignments(code_of, dataset, clustering.centroids, **options):
        image = Image.fromarray(np.array(ids, np.uint8)[assignment.numpy()])
        image.putpalette([value for colour in palette for value in colour])
        with atomic_path(Path(folder) / f"{dataset.rows[index]['id']}.png") as temporary:
            image.save(temporary)
