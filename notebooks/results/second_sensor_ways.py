"""Ways to cluster the tokens of two sensors, which ``second_sensor`` compares: single sensors, naive fusions,
and ways to let the second sensor say more. Each is a function of a ``View`` of the data; none reads a label.
"""

import sys
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor

from mmlib.data.prepared import PreparedDataset
from mmlib.unsupervised.kmeans import plus_plus
from mmlib.unsupervised.pictures import as_picture

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data_scripts"))
from hha import hha  # noqa: E402

SIZE = (96, 128)  # of the images whose pixels are grouped
POINTS, RESTARTS, UPDATES = 6000, 3, 50
Codes = tuple[Tensor, Tensor]  # of the training and of the test images, (n, D, h, w)


@dataclass(frozen=True, eq=False)
class View:
    """What a variant sees: two sensors of one data set, as tokens and as measurements.

    Attributes:
        plain: of each sensor the codes, standardised, smoothed and centred; white: whitened to 64 directions,
            the leading ones first.
        order: for each split, whose image of the second sensor stands beside an image of the first.
    """

    data: tuple[PreparedDataset, PreparedDataset]
    names: tuple[str, str]
    plain: tuple[Codes, Codes]
    white: tuple[Codes, Codes]
    order: tuple[np.ndarray, np.ndarray]

    @cached_property
    def classes(self) -> int:
        return len(self.data[0].description.classes)

    def shuffled(self) -> "View":
        """The second sensor's images belong to other frames."""
        orders = [np.random.default_rng(split).permutation(len(data)) for split, data in enumerate(self.data)]
        mixed = lambda codes: tuple(maps[order] for maps, order in zip(codes, orders))
        return replace(self, plain=(), white=(self.white[0], mixed(self.white[1])), order=tuple(orders))

    def first(self) -> "View":
        """The first sensor in the second one's place, in other directions: those from the 33rd on."""
        other = tuple(maps.flip(1) for maps in self.white[0])
        return replace(self, plain=(), white=(self.white[0], other))


def unit(maps: Tensor) -> Tensor:
    return F.normalize(maps.float(), dim=1)


def points_of(maps: Tensor, seed: int, count: int = POINTS) -> Tensor:
    """(count, D) tokens drawn from all places of all images; one seed draws the same places of any codes."""
    n, _, h, w = maps.shape
    place = torch.from_numpy(np.random.default_rng(seed).permutation(n * h * w)[:count])
    return maps[place // (h * w), :, place // w % h, place % w].float()


def kmeans(points: Tensor, clusters: int, seed: int, weights: Tensor | None = None) -> Tensor:
    """Cosine k-means -> (clusters, D), the best of some restarts. ``weights``: how much a point counts."""
    points = unit(points)
    weights = torch.ones(len(points)) if weights is None else weights
    generator, best, found = torch.Generator().manual_seed(seed), -torch.inf, None
    for _ in range(RESTARTS):
        centres, before = plus_plus(points, clusters, generator).float(), None
        for _ in range(UPDATES):
            similarity, labels = (points @ centres.T).max(1)
            if before is not None and torch.equal(labels, before):
                break
            before = labels
            sums = torch.zeros_like(centres).index_add(0, labels, points * weights[:, None])
            empty = sums.norm(dim=1) < 1e-9
            sums[empty] = points[similarity.topk(int(empty.sum()), largest=False).indices]
            centres = unit(sums)
        fit = float((similarity * weights).sum())
        if fit > best:
            best, found = fit, centres
    return found


def similarity(maps: Tensor, centres: Tensor) -> Tensor:
    """Codes (n, D, h, w) -> (n, K, h, w)."""
    return torch.einsum("ndhw,kd->nkhw", maps.float(), centres)


def clustered(codes: Codes, view: View, seed: int) -> Tensor:
    """k-means on codes -> what each test token has for each cluster."""
    return similarity(codes[1], kmeans(points_of(codes[0], seed), view.classes, seed))


# ---------------------------------------------------------------- codes: single sensors and naive fusion


def single(which: int, keep: int = 0):
    """One sensor's tokens, whitened to ``keep`` directions (0 = plain)."""

    def codes(view: View) -> Codes:
        return tuple(maps[:, :keep] for maps in view.white[which]) if keep else view.plain[which]

    return codes


def joined(keep: int = 0, join=lambda a, b: torch.cat([unit(a), unit(b)], 1)):
    """Both sensors, place by place: side by side, each of unit length, or ``join``."""

    def codes(view: View) -> Codes:
        return tuple(map(join, single(0, keep)(view), single(1, keep)(view)))

    return codes


def jointly_whitened(view: View, keep: int = 32) -> Codes:
    """Plain tokens side by side, whitened together."""
    both = joined(join=lambda a, b: torch.cat([a, b], 1))(view)
    points = points_of(both[0], 0, 20_000)
    variances, directions = torch.linalg.eigh((points - points.mean(0)).T.cov().double())
    weight = (directions / variances.clamp(min=1e-12).sqrt()).flip(1)[:, :keep].float()
    return tuple(torch.einsum("ndhw,dk->nkhw", maps.float(), weight) for maps in both)


# ---------------------------------------------------------------- codes: what both sensors see


def shared_directions(view: View, keep: int = 32) -> Codes:
    """Canonical directions: linear maps of the sensors that agree best, added, weighted by how well."""
    a, b = (points_of(codes[0], 0, 20_000) for codes in view.white)
    u, s, vt = torch.linalg.svd(a.T @ b / len(a))
    weights = u[:, :keep] * s[:keep], vt[:keep].T * s[:keep]
    maps = ([torch.einsum("ndhw,dk->nkhw", m, w) for m in c] for c, w in zip(view.white, weights))
    return tuple(a + b for a, b in zip(*maps))


def telling_directions(view: View, keep: int = 32) -> Codes:
    """The first sensor's tokens in the directions that tell the second one's clusters apart best (linear
    discriminants of 8 K clusters)."""
    a, b = (points_of(codes[0], 0, 20_000) for codes in view.white)
    labels = (unit(b) @ kmeans(b[:POINTS], 8 * view.classes, 0).T).argmax(1)
    hot = F.one_hot(labels).float()
    means = (hot.T @ a) / hot.sum(0).clamp(min=1)[:, None]
    between, directions = torch.linalg.eigh((means * hot.mean(0)[:, None]).T @ means)
    weight = (directions * between.clamp(min=0).sqrt()).flip(1)[:, :keep]
    return tuple(torch.einsum("ndhw,dk->nkhw", maps, weight) for maps in view.white[0])


@lru_cache(maxsize=None)
def measured(data: PreparedDataset, name: str, grid: tuple[int, int]) -> Tensor:
    """(n, Q, h, w): means over each token's place of disparity, height and angle (depth), of temperature with
    the logarithm of its variance (thermal), of red, green and blue (rgb)."""
    found, pooled = [], lambda planes: F.adaptive_avg_pool2d(planes, grid)
    for index in range(len(data)):
        values = data.physical(index)[0][name].float()
        if name == "depth":
            small = F.interpolate(values[None], SIZE, mode="nearest")[0, 0].double().numpy()
            focal = SIZE[1] * (0.72 if data.rows[index]["condition"] else 0.83)  # rendered; Kinect
            planes = hha(small, (focal, focal, SIZE[1] / 2 + 0.5, SIZE[0] / 2 + 0.5))
            found.append(pooled(torch.from_numpy(planes).movedim(-1, 0).float()))
        elif name == "thermal":
            mean = pooled(values)
            spread = (pooled(values.square()) - mean.square()).clamp(min=1e-4).log()
            found.append(torch.cat([mean, spread]))
        else:
            found.append(pooled(values))
    return torch.stack(found)


def dosed(view: View, own: list[Tensor], dose: float = 0.2) -> Codes:
    """Whitened colour, and a light dose of something else that is known of each place, standardised."""
    mean, std = own[0].mean((0, 2, 3), keepdim=True), own[0].std((0, 2, 3), keepdim=True)
    colour = [unit(maps[:, :32]) for maps in view.white[0]]
    return tuple(torch.cat([c, dose * (m - mean) / std], 1) for c, m in zip(colour, own))


def measurements(view: View, sensor: int = 1) -> Codes:
    """A light dose of what a sensor measures, as it is."""
    grid, orders = tuple(view.white[0][0].shape[-2:]), view.order
    own = [measured(data, view.names[sensor], grid) for data in view.data]
    return dosed(view, [m[order] for m, order in zip(own, orders)] if sensor else own)


def place(view: View) -> Codes:
    """A light dose of the place in the picture, row and column: what every frame has in common."""
    h, w = view.white[0][0].shape[-2:]
    rows_columns = torch.stack(torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij"))
    return dosed(view, [rows_columns.expand(len(maps), -1, -1, -1) for maps in view.white[0]])


# ---------------------------------------------------------------- variants that do more than cluster codes


def weighed_images(view: View, seed: int) -> Tensor:
    """Co-clustering: every image weighs its two sensors by how clearly each supports the common clusters."""
    both = [[unit(maps[:, :32]) for maps in codes] for codes in view.white]
    start = kmeans(points_of(torch.cat([both[0][0], both[1][0]], 1), seed), view.classes, seed)
    centres = [unit(half) for half in start.split(32, 1)]

    def fused(split: int, images=slice(None), rounds: int = 3) -> tuple[Tensor, Tensor]:
        each = [similarity(both[m][split][images], centres[m]) for m in range(2)]
        share = torch.full((len(each[0]), 1, 1, 1), 0.5)
        for _ in range(rounds):
            scores = share * each[0] + (1 - share) * each[1]
            best = scores.argmax(1, keepdim=True)
            margins = [(s.gather(1, best) - s.mean(1, keepdim=True)).mean((2, 3), keepdim=True) for s in each]
            power = [margin.clamp(min=1e-3) ** 2 for margin in margins]
            share = power[0] / (power[0] + power[1])
        return share * each[0] + (1 - share) * each[1], share

    images = torch.from_numpy(np.random.default_rng(seed).permutation(len(both[0][0]))[:150])
    for _ in range(8):
        scores, share = fused(0, images)
        hot = F.one_hot(scores.argmax(1), view.classes).movedim(-1, 1).float()
        for m, weight in enumerate((share, 1 - share)):
            sums = torch.einsum("nkhw,ndhw->kd", hot * weight, both[m][0][images])
            centres[m] = torch.where(sums.norm(dim=1, keepdim=True) > 0, unit(sums), centres[m])
    return fused(1)[0]


def consensus(view: View, seed: int) -> Tensor:
    """Clusters of clusterings: three runs on each sensor and three on both, side by side, then once more."""
    train, test, codes = [], [], (single(0, 32), single(1, 32), joined(32))
    for which, make in enumerate(codes):
        own = tuple(map(unit, make(view)))
        own = tuple(maps / 2**0.5 for maps in own) if which == 2 else own
        for run in range(3):
            centres = kmeans(points_of(own[0], 100 * seed + run), view.classes, seed)
            train.append((similarity(points_of(own[0], seed)[..., None, None], centres) / 0.1).softmax(1))
            test.append((similarity(own[1], centres) / 0.1).softmax(1))
    centres = kmeans(torch.cat(train, 1)[..., 0, 0], view.classes, seed)
    return similarity(unit(torch.cat(test, 1)), centres)


def merged(view: View, seed: int) -> Tensor:
    """Eight times as many clusters of colour, then merged by both sensors' mean tokens (Ward)."""
    own = points_of(view.white[0][0][:, :32], seed, 4 * POINTS)
    other = unit(points_of(view.white[1][0][:, :32], seed, 4 * POINTS))
    centres = kmeans(own[:POINTS], 8 * view.classes, seed)
    hot = F.one_hot((unit(own) @ centres.T).argmax(1), len(centres)).float()
    seen = hot.T @ other / hot.sum(0).clamp(min=1)[:, None]
    profile = torch.cat([centres, seen], 1).numpy()
    groups = torch.from_numpy(AgglomerativeClustering(view.classes, linkage="ward").fit_predict(profile))
    fine = similarity(unit(view.white[0][1][:, :32]), centres)
    return torch.stack([fine[:, groups == k].amax(1) for k in range(view.classes)], 1)


def proposals(tokens: Tensor, count: int = 8) -> Tensor:
    """Masks in the manner of PriMaPs: (n, D, P) -> the mask of each token (n, P), ``count`` = none of them.
    A mask grows around the token that lies farthest along the first principal direction of what is left."""
    n, _, places = tokens.shape
    mask, left = torch.full((n, places), count), torch.ones(n, places)
    for k in range(count):
        rest = tokens * left[:, None]
        axis = torch.ones(n, tokens.shape[1], 1)
        for _ in range(12):  # the power method
            axis = F.normalize(rest @ (rest.mT @ axis), dim=1)
        along = (axis.mT @ rest)[:, 0]
        start = along.abs().argmax(1)[:, None, None].expand(-1, tokens.shape[1], 1)
        alike = (tokens.gather(2, start).mT @ tokens)[:, 0]
        taken = (alike > 0.4) & (left > 0)
        mask[taken], left[taken] = k, 0.0
    return mask


@lru_cache(maxsize=1)
def masked_colour(view: View) -> tuple[Tensor, Tensor]:
    """Sums of colour's tokens in each mask of some training images; each test token, and its mask's mean."""
    both = [unit(maps).flatten(2) for maps in joined(32)(view)]
    colour = [unit(maps[:, :32]).flatten(2) for maps in view.white[0]]
    pooled = lambda tokens, mask: tokens @ F.one_hot(mask, 9).float()
    images = torch.from_numpy(np.random.default_rng(0).permutation(len(both[0]))[:200])
    sums = pooled(colour[0][images], proposals(both[0][images]))[..., :8].movedim(2, 1).flatten(0, 1)
    mask = proposals(both[1])
    means = unit(pooled(colour[1], mask)).gather(2, mask[:, None].expand(-1, 32, -1))
    means = torch.where(mask[:, None] < 8, means, colour[1])
    return sums[sums.norm(dim=1) > 0], (means + colour[1]).unflatten(2, view.white[0][1].shape[-2:])


def masked(view: View, seed: int) -> Tensor:
    """Steps in the manner of PriMaPs-EM: masks from both sensors, colour's mean in each mask is clustered, a
    test token has the scores of its mask and its own."""
    sums, test = masked_colour(view)
    return similarity(test, kmeans(sums, view.classes, seed, sums.norm(dim=1)))


def superpixels(picture: Tensor, rows: int = 9, columns: int = 12, compact: float = 1.0) -> Tensor:
    """(C, H, W) in [0, 1] -> number of the superpixel of each pixel (H, W): k-means on values and place."""
    h, w = picture.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h) * rows / h, torch.arange(w) * columns / w, indexing="ij")
    # a tenth of the range of values weighs as much as one superpixel's width
    features = torch.cat([10 * picture, compact * torch.stack([y, x])]).flatten(1).T
    ids = (y.long() * columns + x.long()).flatten()
    for _ in range(3):
        sums = torch.zeros(rows * columns, features.shape[1]).index_add(0, ids, features)
        size = torch.bincount(ids, minlength=rows * columns)[:, None]
        centres = torch.where(size > 0, sums / size.clamp(min=1), 1e3)
        ids = torch.cdist(features, centres).argmin(1)
    return ids.view(h, w)


@lru_cache(maxsize=None)
def surfaces_of(data: PreparedDataset, name: str, index: int) -> Tensor:
    """The superpixel of each pixel of one image, flat."""
    image = as_picture(data.modalities[name], data.physical(index)[0][name])
    picture = F.interpolate(image[None], SIZE, mode="area")[0]
    return superpixels(picture if name == "rgb" else picture[:1]).flatten()


@lru_cache(maxsize=1)
def surfaces(view: View, sensor: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For some training images and all test images: sums of colour's tokens in each superpixel of a sensor,
    the superpixel of each pixel, and how many pixels each has."""
    grid, found = view.white[0][0].shape[-2:], []
    eye = torch.eye(grid[0] * grid[1]).view(1, -1, *grid)
    spread = F.interpolate(eye, SIZE, mode="bilinear", align_corners=False)[0].flatten(1).T
    for split, images in enumerate((range(0, len(view.data[0]), 8), range(len(view.data[1])))):
        parts = []
        for index in images:
            seen = int(view.order[split][index]) if sensor else index
            ids = surfaces_of(view.data[split], view.names[sensor], seen)
            weight = torch.zeros(108, spread.shape[1]).index_add(0, ids, spread)
            tokens = unit(view.white[0][split][index : index + 1, :32])[0].flatten(1).T
            parts.append((weight @ tokens, ids, torch.bincount(ids, minlength=108).float()))
        found.append(tuple(map(torch.stack, zip(*parts))))
    return found


def pooled_surfaces(view: View, seed: int, sensor: int = 1) -> Tensor:
    """The second sensor says where: colour's tokens are averaged within its superpixels, whose means are
    clustered; a pixel has the cluster of its superpixel."""
    (train, _, pixels), (test, ids, _) = surfaces(view, sensor)
    inside = pixels.flatten() > 0
    centres = kmeans(train.flatten(0, 1)[inside], view.classes, seed, pixels.flatten()[inside])
    scores = F.normalize(test, dim=2) @ centres.T
    return scores.gather(1, ids[..., None].expand(-1, -1, view.classes)).mT.unflatten(2, SIZE)


# ---------------------------------------------------------------- the list

ADD = {"join": lambda a, b: a + b}
KEPT = {"join": lambda a, b: torch.cat([a, b], 1)}
SINGLE = {
    f"{name}-{keep or 'plain'}": single(which, keep)
    for which, name in enumerate(("first", "second"))
    for keep in (0, 16, 32)
}
NAIVE = {f"beside-{keep or 'plain'}": joined(keep) for keep in (0, 16, 32)}
NAIVE |= {"added-32": joined(32, **ADD), "joint-32": jointly_whitened}
CODES = {
    "lengths-kept": joined(32, **KEPT),
    "shared-directions": shared_directions,
    "telling-directions": telling_directions,
    "measurements": measurements,
}
STEPS = {
    "weighed-images": weighed_images,
    "consensus": consensus,
    "merged": merged,
    "masked": masked,
    "pooled-surfaces": pooled_surfaces,
}
FIRST = ("consensus", "merged", "masked")  # with a control on one sensor
