"""What a run without labels can say about itself: signs of collapse, correspondences, and criteria to choose
by.

The loss does not show collapse: it falls nicely while all codes become one. ``collapse`` does. Criteria named
*label-free* take codes, assignments, frozen correspondences and pictures only, so they may choose
hyper-parameters and checkpoints; each says what fools it, and none stands alone. ``inference`` calls them.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def effective_rank(codes: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli) of the unit codes (n, D), not
    centred.

    1 = all codes on one line, D = all directions alike. Not centred: codes that are all alike have rank 1,
    not that of their noise.
    """
    if not codes.isfinite().all() or not codes.any():
        raise ValueError(
            f"codes {tuple(codes.shape)} are all 0 or not finite and have no direction: the network has "
            "diverged; lower its learning rate"
        )
    unit = F.normalize(codes.detach().cpu().double(), dim=1)
    eigenvalues = torch.linalg.eigvalsh(unit.T @ unit)
    # Smaller eigenvalues are rounding of the product.
    share = eigenvalues.where(eigenvalues > 1e-13 * eigenvalues[-1], 0).sqrt()
    share = share / share.sum()
    return float(torch.special.entr(share).sum().exp())


def collapse(codes: Tensor, centroids: Tensor) -> dict[str, float]:
    """The panel to log while training; codes (n, D), n >= 2, centroids (K, D).

    Returns:
        mean_similarity: mean cosine S of 20,000 random pairs; near 1 = all codes alike.
        negative_share: share of pairs with S < 0; near 1/2 with a low rank = codes on two opposite poles.
        effective_rank: 1 to D.
        use_min, use_max: smallest and largest share of points in a cluster.
        inertia: mean of 1 − cosine to the nearest centroid. Low is no good sign alone: collapsed codes have
            0.
    """
    unit = F.normalize(codes.detach().float(), dim=1)
    draw = partial(torch.randint, size=(20000,), generator=torch.Generator().manual_seed(0))
    first = draw(0, len(unit))
    second = (first + draw(1, len(unit))) % len(unit)  # never itself
    similarity = (unit[first] * unit[second]).sum(1)
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


def agreement(clusterings: Sequence[Tensor]) -> float:
    """Label-free criterion: mean adjusted Rand index over all pairs of clusterings of the same points
    (restarts, or seeds of training; any shape, ids >= 0).

    1 = equal up to names, 0 = chance, can be below 0. NaN where a pair has no meaning: both put all points
    into one cluster (so a collapse does not score 1), or both give each point its own. Fooled by whatever is
    stable and not semantic: clusters by illumination or by position, too few clusters, and two poles.
    """
    from sklearn.metrics import adjusted_rand_score  # imported late: it takes a second, and few need it

    values = []
    for first, second in combinations([ids.flatten().numpy() for ids in clusterings], 2):
        counts = {len(np.unique(first)), len(np.unique(second))}
        trivial = counts in ({1}, {len(first)})
        values.append(np.nan if trivial else adjusted_rand_score(first, second))
    return float(np.mean(values))


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
        deviation = values.std(correction=0)
        if not deviation > 0:
            raise ValueError(
                f"modality {name!r}: correspondences are constant or not finite; leave it out with "
                "--modalities, or look at its files"
            )
        covariance, spread = (values * same).mean() - values.mean() * same.mean(), same.std(correction=0)
        scores[name] = float(covariance / (deviation * spread)) if spread > 0 else 0.0
    return float(np.mean(list(scores.values()))), scores


def silhouette(codes: Tensor, centroids: Tensor) -> float:
    """Label-free criterion: simplified silhouette, mean of (b − a) / max(a, b); a, b = 1 − cosine to the
    nearest and second centroid.

    0 = on the border of two clusters, 1 = all codes on their centroids. codes (n, D), centroids (K >= 2, D).
    Fooled by collapse: codes on two poles, or of low rank, score near 1 whatever they mean; read it beside
    ``effective_rank``.
    """
    cosines = F.normalize(codes.double(), dim=1) @ F.normalize(centroids.to(codes.device).double(), dim=1).T
    distance = (1 - cosines).clamp(min=0).topk(2, largest=False).values
    return float(((distance[:, 1] - distance[:, 0]) / distance[:, 1].clamp(min=1e-12)).mean())
