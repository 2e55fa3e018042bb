"""What a run without labels can say about itself: signs of collapse, correspondences, and criteria to choose
by.

The loss does not show collapse: it falls nicely while all codes become one. ``collapse`` does. Criteria named
*label-free* take codes, assignments, frozen correspondences and pictures only, so they may choose
hyper-parameters and checkpoints; each says what fools it, and none stands alone. ``auc``,
``correspondence_auc`` and ``majority_label`` read labels and belong to evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from torch import Tensor

from ..modalities import IGNORE_INDEX


def effective_rank(codes: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli) of the unit codes (n, D), not
    centred.

    1 = all codes on one line, D = all directions alike. Not centred: codes that are all alike have rank 1,
    not that of their noise.
    """
    if not codes.isfinite().all() or not codes.any():
        raise ValueError(
            f"codes {tuple(codes.shape)} are all 0 or not finite and have no direction; look at the "
            "network's output"
        )
    unit = F.normalize(codes.detach().cpu().double(), dim=1)
    eigenvalues = torch.linalg.eigvalsh(unit.T @ unit)
    # Smaller eigenvalues are rounding of the product.
    share = eigenvalues.where(eigenvalues > 1e-13 * eigenvalues[-1], 0).sqrt()
    share = share / share.sum()
    return float(torch.special.entr(share).sum().exp())


def collapse(codes: Tensor, centroids: Tensor, pairs: int = 20000, seed: int = 0) -> dict[str, float]:
    """The panel to log while training; codes (n, D), centroids (K, D).

    Returns:
        mean_similarity: mean cosine S of random pairs; near 1 = all codes alike.
        negative_share: share of pairs with S < 0; near 1/2 with a low rank = codes on two opposite poles.
        effective_rank: 1 to D.
        use_min, use_max: smallest and largest share of points in a cluster.
        inertia: mean of 1 − cosine to the nearest centroid. Low is no good sign alone: collapsed codes have
            0.
    """
    if len(codes) < 2 or not codes.isfinite().all():
        raise ValueError(
            f"codes {tuple(codes.shape)}: expected two or more, all finite; the network has diverged or "
            "there is no data"
        )
    unit = F.normalize(codes.detach().float(), dim=1)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(unit), (pairs,), generator=generator)
    second = (first + torch.randint(1, len(unit), (pairs,), generator=generator)) % len(unit)  # never itself
    similarity = (unit[first.to(unit.device)] * unit[second.to(unit.device)]).sum(1)
    best = (unit @ F.normalize(centroids.to(unit), dim=1).T).max(1)
    use = torch.bincount(best.indices, minlength=len(centroids)) / len(unit)
    return {
        "mean_similarity": float(similarity.mean()),
        "negative_share": float((similarity < 0).float().mean()),
        "effective_rank": effective_rank(unit),
        "use_min": float(use.min()),
        "use_max": float(use.max()),
        "inertia": float((1 - best.values).mean()),
    }


def correspondence_histogram(
    correspondence: Tensor, shift: float, bins: int = 60
) -> tuple[np.ndarray, np.ndarray, float]:
    """Of centred correspondences F' of any shape: counts (bins,), edges (bins + 1,), and the share of pairs
    above b, which attract.
    """
    values = correspondence.detach().flatten().cpu().double().numpy()
    if not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"correspondences {tuple(correspondence.shape)}: expected one or more, all finite; check the "
            "frozen tokens"
        )
    return *np.histogram(values, bins), float((values > shift).mean())


def auc(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive scores higher than a negative, ties counted half; NaN where either kind is
    absent.
    """
    if scores.shape != positive.shape or not scores.isfinite().all():
        raise ValueError(
            f"scores {tuple(scores.shape)} and positive {tuple(positive.shape)}: expected one shape, and "
            "finite scores"
        )
    positive = positive.flatten().bool().cpu().numpy()
    if positive.all() or not positive.any():
        return float("nan")
    return float(roc_auc_score(positive, scores.flatten().cpu().numpy()))


def correspondence_auc(
    correspondence: Mapping[str, Tensor], first: Tensor, second: Tensor
) -> dict[str, float]:
    """How well frozen features know the classes: AUC of F (B, P, Q) for token pairs of the same class against
    pairs of different ones.

    Uses labels, so for evaluation only. first (B, P) and second (B, Q): class of each token, 255 = left out.
    Use pairs of different images: inside one image, nearness alone makes a good score. 0.5 = chance, 1 =
    every pair of one class above all others.
    """
    valid = (first != IGNORE_INDEX)[:, :, None] & (second != IGNORE_INDEX)[:, None, :]
    same = first[:, :, None] == second[:, None, :]
    return {name: auc(values[valid], same[valid]) for name, values in correspondence.items()}


def majority_label(label: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """(B, H, W) -> (B, h, w): most frequent id of each token's cell. 255 counts as an id; the lowest id wins
    a tie, 255 never.
    """
    if label.shape[-2] < grid[0] or label.shape[-1] < grid[1]:
        raise ValueError(
            f"label {tuple(label.shape)} is smaller than the grid {grid}; expected one pixel or more in each "
            "cell"
        )
    wrong = label[((label < 0) | (label >= classes)) & (label != IGNORE_INDEX)]
    if wrong.numel():
        raise ValueError(f"label has id {int(wrong[0])}; expected 0 to {classes - 1} (255 = ignore)")
    ids = torch.where(label == IGNORE_INDEX, classes, label.long())
    share = F.adaptive_avg_pool2d(F.one_hot(ids, classes + 1).permute(0, 3, 1, 2).double(), grid)
    majority = share.argmax(1)
    return torch.where(majority == classes, IGNORE_INDEX, majority)


def adjusted_rand(first: Tensor, second: Tensor) -> float:
    """Adjusted Rand index of two clusterings of the same points (any shape, ids >= 0): 1 = equal up to names,
    0 = chance, can be below 0.

    NaN where it has no meaning: both put all points into one cluster, or both give each point its own.
    """
    if first.shape != second.shape or not first.numel():
        raise ValueError(
            f"{tuple(first.shape)} and {tuple(second.shape)}: expected the same points, one or more, in both"
        )
    counts = {len(ids.unique()) for ids in (first, second)}
    if counts in ({1}, {first.numel()}):
        return float("nan")
    return float(adjusted_rand_score(first.flatten().cpu().numpy(), second.flatten().cpu().numpy()))


def agreement(clusterings: Sequence[Tensor]) -> float:
    """Label-free criterion: mean adjusted Rand index over all pairs of clusterings of the same points
    (restarts, or seeds of training).

    At most 1; 0 = chance. Fooled by whatever is stable and not semantic: clusters by illumination or by
    position, too few clusters, and two poles. A collapse to a single cluster gives NaN, not 1.
    """
    if len(clusterings) < 2:
        raise ValueError(
            f"{len(clusterings)} clustering: expected two or more to compare; raise restarts or give another "
            "seed"
        )
    return float(np.mean([adjusted_rand(a, b) for a, b in combinations(clusterings, 2)]))


def explained_correspondence(
    correspondence: Mapping[str, Tensor], first: Tensor, second: Tensor
) -> tuple[float, dict[str, float]]:
    """Label-free criterion: how much of the frozen correspondences F (B, P, Q) of cross-image pairs the
    clusters explain.

    For each modality (mean of F within a cluster − mean between clusters) / std of F · sqrt(share within ·
    share between), which is the correlation of F with "same cluster", in [-1, 1]; then the mean over
    modalities. first (B, P) and second (B, Q): clusters.

    0 for a single cluster, so collapse gains nothing. Fooled by features that know illumination or position
    better than classes; favours few clusters where a modality has few, large regions, so compare runs of one
    number of clusters only.
    """
    same = (first[:, :, None] == second[:, None, :]).double().flatten()
    scores = {}
    for name, values in correspondence.items():
        values = values.double().flatten()
        if values.shape != same.shape or not values.std(correction=0) > 0:
            raise ValueError(
                f"modality {name!r}: correspondences are constant, not finite, or of another shape than the "
                "assignments"
            )
        share = same.mean()
        spread = values.std(correction=0) * same.std(correction=0)
        scores[name] = (
            float(((values * same).mean() - values.mean() * share) / spread) if 0 < share < 1 else 0.0
        )
    return float(np.mean(list(scores.values()))), scores


def silhouette(codes: Tensor, centroids: Tensor) -> float:
    """Label-free criterion: simplified silhouette, mean of (b − a) / max(a, b); a, b = 1 − cosine to the
    nearest and second centroid.

    0 = on the border of two clusters, 1 = all codes on their centroids. codes (n, D), centroids (K >= 2, D).
    Fooled by collapse: codes on two poles, or of low rank, score near 1 whatever they mean; read it beside
    ``effective_rank``.
    """
    if len(centroids) < 2:
        raise ValueError(
            f"{len(centroids)} centroid: the silhouette compares two; ask for two clusters or more"
        )
    cosines = F.normalize(codes.double(), dim=1) @ F.normalize(centroids.to(codes.device).double(), dim=1).T
    distance = (1 - cosines).clamp(min=0).topk(2, largest=False).values
    return float(((distance[:, 1] - distance[:, 0]) / distance[:, 1].clamp(min=1e-12)).mean())
