"""Losses that the baselines add to training: an object-centric loss in the manner of EAGLE, depth guidance,
and distillation of RGB into another sensor. The trainer calls them on cached tokens and codes.

Fusions of baselines (CBAM, StitchFusion-style) stand in ``networks.py``, EAGLE's adaptive shift in
``correspondence.py``. Where a paper is silent or its definition cannot be used on cached tokens, the
docstring says "ours".
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .correspondence import all_points, correlation_loss

# ------------------------------------ in the manner of EAGLE (Kim et al. 2024)
#
# Numbers and formulas are those of the released code and its settings for COCO-Stuff. What cannot be had on
# cached tokens: it reads the keys of the last three blocks of DINO, side by side, here the loss reads the
# tokens that all methods read; and it blurs every other second view by a 3 × 3 Gaussian, here second views
# differ by dropout alone, as do the others there. Ours, too: the sign of each eigenvector, which there
# depends on the solver, and that one forward pass serves random pairs and the first view, where the released
# code draws dropout once more. Its 5 clusters beyond the number of classes are ``--clusters``.


def affinities(code: Tensor, rgb: Tensor | None) -> Tensor:
    """Between grid cells, relu(code codeᵀ) divided by its largest entry per image, plus, of colours,
    exp(-‖Δ‖² / (2σ²)), σ = 0.1: code (B, D, h, w), rgb (B, 3, h, w) in [0, 1] or None -> (B, P, P).

    In the paper Δ is the difference of colours. The released code divides colours by ImageNet's deviations
    and then by 255 once more, and so does this: all of that term lies above 0.95, so that it adds nearly the
    same number to every pair. An all-zero code gives zeros.
    """
    code = all_points(code)
    affinity = F.relu(code @ code.mT)
    affinity = affinity / affinity.amax((1, 2), keepdim=True).clamp_min(1e-12)
    if rgb is None:
        return affinity
    colours = all_points(rgb) / (255 * rgb.new_tensor([0.229, 0.224, 0.225]))
    return affinity + torch.exp(-(_distances(colours) ** 2) / (2 * 0.1**2))


def _distances(points: Tensor) -> Tensor:
    """Euclidean distances of all pairs. Not through a matrix product, whose rounding is of the order of the
    squared distances of nearly equal colours.
    """
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


@torch.no_grad()
def eigenvectors(affinity: Tensor, count: int) -> Tensor:
    """Eigenvectors 2 … ``count`` by growing eigenvalue of the normalised Laplacian L = D^-½ (D - A) D^-½ =
    I - D^-½ A D^-½ of symmetric, non-negative A (B, P, P), D its row sums: (B, P, count - 1).

    The first one knows nothing but the degrees and is dropped. Signs are arbitrary; here the smaller side of
    each is positive.
    """
    degree = affinity.sum(-1)
    scale = degree.where(degree > 1e-12, 1.0).rsqrt()
    # The eigenvectors of L - I are those of L, in the same order.
    vectors = torch.linalg.eigh(-scale[:, :, None] * affinity * scale[:, None])[1][:, :, 1:count]
    flip = (vectors > 0).float().mean(1, keepdim=True) > 0.5
    return torch.where(flip, -vectors, vectors)


def pseudo_objects(code: Tensor, rgb: Tensor | None, centres: Tensor) -> tuple[Tensor, Tensor]:
    """EiCue: pseudo-objects of an image from the spectrum of its affinities: Laplacian, eigenvectors, and the
    nearest by cosine of K_e learned centres.

    Args:
        code: (B, D, h, w). rgb: (B, 3, h, w) in [0, 1]; without it there is no colour term.
        centres: (K_e, count) in the space of the second and further eigenvectors.

    Returns:
        pseudo-objects (B, h·w) int64 in 0 … K_e - 1; and the loss of the centres, a scalar: minus the mean
        over locations of the cosines to all centres, weighted by their softmax. It trains the centres only:
        eigenvectors carry no gradient.
    """
    vectors = eigenvectors(affinities(code, rgb), centres.shape[1] + 1)
    cosines = F.normalize(vectors, dim=-1) @ F.normalize(centres, dim=-1).T
    return cosines.argmax(-1), -(cosines.softmax(-1) * cosines).sum(-1).mean()


def medoids(points: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """The member of each object with the least summed distance to its other members: points (N, D), objects
    (N,) int64.

    Returns prototypes (K, D) of the K objects that occur, which carry the gradient of the points they are,
    and each point's index (N,) into them.
    """
    names, index = objects.unique(return_inverse=True)
    members = [torch.nonzero(index == k)[:, 0] for k in range(len(names))]
    prototypes = [m[_distances(points.detach()[m]).sum(1).argmin()] for m in members]
    return points[torch.stack(prototypes)], index


def object_contrast(own: Tensor, other: Tensor, objects: Tensor, weight: Tensor) -> Tensor:
    """InfoNCE (temperature 0.07) of tokens against the medoids of their pseudo-objects, half of 0.3 · own
    view + 0.7 · other view.

    Args:
        own, other: unit vectors (N, D) of the two views of the same N locations; prototypes come from
            ``own``.
        objects: (N,) int64, pseudo-objects of the own view. weight: (N,), of each location.
    """
    prototypes, index = medoids(own, objects)
    contrast = lambda z: (F.cross_entropy(z @ prototypes.T / 0.07, index, reduction="none") * weight).mean()
    return (0.3 * contrast(own) + 0.7 * contrast(other)) / 2


def correspondence_weight(tokens: Tensor) -> Tensor:
    """How much a location has in common with its image, (B, C, h, w) -> (B·h·w,): mean over q of
    G_pq / ‖G_·q‖, with G the scalar products of the image's tokens; near 1/√(h·w) where all are alike.

    Of raw features of a transformer scalar products are positive. Of centred tokens they are not, and with
    weights below 0 the loss would reward wrong assignments: negative ones count as 0 (ours).
    """
    points = all_points(tokens)
    return F.normalize(F.relu(points @ points.mT), dim=1).mean(2).flatten()


class Eagle(nn.Module):
    """EAGLE's object-centric loss on codes of two views (their correspondence loss and shift are
    ``correspondence.py``'s).

    z = unit(linear(code)); each view in turn gives pseudo-objects, by its own 32 centres in the space of
    three eigenvectors, and prototypes, weight 0.85 each.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.centres, self.project = nn.Parameter(torch.randn(2, 32, 3)), nn.Linear(dim, dim)

    def forward(
        self, codes: Sequence[Tensor], tokens: Sequence[Tensor], rgb: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """codes, tokens: one (B, D, h, w) and (B, C, h, w) per view; rgb (B, 3, h, w) -> (object loss, loss
        of the centres).
        """
        z = [F.normalize(self.project(all_points(code).flatten(0, 1)), dim=-1) for code in codes]
        contrast, lookup = 0.0, 0.0
        for own, centres in enumerate(self.centres):
            objects, loss = pseudo_objects(codes[own], rgb, centres)
            weight = correspondence_weight(tokens[own])
            contrast += object_contrast(z[own], z[1 - own], objects.flatten(), weight)
            lookup += loss
        return 0.85 * contrast, lookup / 2


# ------------------------------------ depth guidance (in the manner of DepthG, Sick et al. 2024)

DEPTH_SHIFT = 0.1  # b of this term, on the scale of ``depth_features``' cosines


def depth_on_grid(depth: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean measured depth per cell: (B, 1, H, W) metres, 0 or not finite = no measurement -> (B, 1, h, w).

    A cell without any measurement has depth 0; zeros never enter a mean.
    """
    measured = torch.isfinite(depth) & (depth > 0)
    total = F.adaptive_avg_pool2d(torch.where(measured, depth, 0.0), grid)
    share = F.adaptive_avg_pool2d(measured.to(depth.dtype), grid)
    return total / share.clamp_min(1e-12)


def depth_features(depth: Tensor) -> Tensor:
    """Depth in metres (B, 1, h, w) as a direction in the plane, (B, 2, h, w): (cos u·π/2, sin u·π/2), u =
    log-depth, 0 at 0.5 m and 1 at 80 m.

    The cosine of two cells is cos(Δu·π/2): 1 at equal depth, 0 between the ends of the range. DepthG
    normalises its one-channel depth map over channels, and a cosine of one channel is the product of two
    signs, +1 for every pair; two channels are the least that can tell depths apart. The embedding is ours.
    """
    angle = (depth.clamp(0.5, 80) / 0.5).log() / math.log(160) * math.pi / 2
    return torch.cat([angle.cos(), angle.sin()], 1)


def back_project(depth: Tensor) -> Tensor:
    """Depth along the optical axis (B, 1, h, w), metres -> 3-D points (B, h·w, 3) of a pinhole camera.

    Its horizontal field of view is assumed to be 60 degrees, with the principal point in the middle:
    distances are then right up to how wrong that is, which only moves the points that are sampled.
    """
    v, u = (torch.arange(n, device=depth.device) - (n - 1) / 2 for n in depth.shape[-2:])
    focal, z = depth.shape[-1] / 2 / math.tan(math.radians(30)), depth[:, 0]
    return torch.stack([u / focal * z, v[:, None] / focal * z, z], -1).flatten(1, 2)


@torch.no_grad()
def farthest_points(points: Tensor, count: int, valid: Tensor, generator) -> Tensor:
    """Farthest point sampling: each next point is the one farthest from all before it. points (B, P, 3)
    -> indices (B, count).

    Starts at a random valid point. Points that are not ``valid`` (B, P) are never taken; an image with fewer
    valid points than ``count`` repeats some. Each image has a valid point.
    """
    start = torch.multinomial(valid.float().cpu(), 1, generator=generator)[:, 0].to(points.device)
    # distance of each point to the nearest point of the sample so far; −∞ = never taken
    sample, nearest = [start], torch.where(valid, torch.inf, -torch.inf).to(points.dtype)
    while len(sample) < count:
        distance = (points - points.take_along_dim(sample[-1][:, None, None], 1)).square().sum(-1)
        nearest = torch.minimum(nearest, distance)
        sample.append(nearest.argmax(1))
    return torch.stack(sample, 1)


def depth_guidance(depth: Tensor, code: Tensor, generator) -> Tensor:
    """Correlation loss between depth and code of the same image at points spread in 3-D: teaches that what
    lies at one depth is alike.

    Args:
        depth: (B, 1, h, w) metres, from ``depth_on_grid``, 0 = no measurement. Images without any measurement
            take no part.
        code: (B, D, h, w).

    DepthG adds this to STEGO's losses with estimated depth; here it is the sensed one. The network never sees
    depth.
    """
    valid = (depth > 0).flatten(1)
    images = valid.any(1)  # those with a measurement
    if not images.any():
        return code.sum() * 0.0
    depth, code, valid = depth[images], code[images], valid[images]
    index = farthest_points(back_project(depth), min(121, valid.shape[1]), valid, generator)[:, :, None]
    f, c = (all_points(x).take_along_dim(index, 1) for x in (depth_features(depth), code))
    return correlation_loss(f, f, c, c, DEPTH_SHIFT)


# ------------------------------------ distillation of RGB into another sensor (paper, Table 1)

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of MMD's kernels


def coral(a: Tensor, b: Tensor) -> Tensor:
    """‖Cov(a) - Cov(b)‖²_F / (4d²) of samples (N, d) and (M, d), two or more of each (Sun and Saenko 2016);
    unbiased covariances. It is blind to means.
    """
    first, second = ((x - x.mean(0)).T @ (x - x.mean(0)) / (len(x) - 1) for x in (a, b))
    return (first - second).square().sum() / (4 * a.shape[1] ** 2)


def mmd(a: Tensor, b: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of samples (N, d) and (M, d): E k(a, a') + E k(b, b') - 2 E k(a, b),
    pairs with themselves included.

    k is the mean over ``SCALES`` s of exp(-‖x - y‖² / (s · bandwidth)) (Long et al. 2015); the bandwidth is
    the mean squared distance between different samples of both sets together, held constant in the gradient.
    Never negative, 0 for equal sets.
    """
    both = torch.cat([a, b])
    both = both - both.mean(0).detach()  # distances stay; squares that cancel below lose fewer digits
    squares = both.square().sum(1)
    distance = (squares[:, None] + squares - 2 * both @ both.T).clamp_min(0)
    bandwidth = (distance.detach().sum() / (len(both) * (len(both) - 1))).clamp_min(1e-12)
    kernel = sum(torch.exp(-distance / (scale * bandwidth)) for scale in SCALES) / len(SCALES)
    n = len(a)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean over samples of 1 - cos(a_i, b_i): (N, d) and (N, d); unlike the two above it compares location by
    location.
    """
    return 1 - F.cosine_similarity(a, b, dim=1).mean()


DIVERGENCES = {"coral": coral, "mmd": mmd, "cosine": cosine_distance}


def distillation_loss(
    teacher: Tensor, students: Sequence[Tensor], divergence: str, samples: int = 512, generator=None
) -> Tensor:
    """Mean over the students of the divergence from the teacher, at ``samples`` random locations of the batch
    (MMD's memory grows with their square).

    The paper names CORAL, MMD and cosine as RGB-to-X distillation and leaves the wiring to a supplement.
    Ours: the network is UniM2's, with RGB as the only target of the correspondence loss. The reference's
    frozen tokens are the teacher and never move; a student is what the modality-specific network (MSN) makes
    of an auxiliary sensor's tokens, on its way to the fusion.

    Args:
        teacher: (B, C, h, w). students: of the same shape, one for each auxiliary modality.
    """
    rows = lambda x: x.transpose(0, 1).flatten(1).T
    teacher = rows(teacher).detach()
    index = torch.randperm(len(teacher), generator=generator)[:samples].to(teacher.device)
    loss = DIVERGENCES[divergence]
    return torch.stack([loss(teacher[index], rows(student)[index]) for student in students]).mean()
