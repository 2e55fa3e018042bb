"""From clusters to label maps: the online probe, the cluster of every pixel, counts of a split, and the file
of a finished clustering. The trainer, ``inference`` and ``segment`` call it.

Clusters carry no names; ``mmlib.evaluation.counts`` names them where there are labels, ``write_label_maps``
draws them without.
"""

import colorsys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..config import check_settings
from ..data.description import Palette
from ..data.prepared import PreparedDataset
from ..evaluation.counts import confusion_matrix
from ..evaluation.subsets import upsampled
from ..modalities import IGNORE_INDEX
from ..runtime import (
    atomic_path,
    load_into,
    read_tensor_header,
    read_tensors,
    reading,
    save_tensors,
    write_json,
)
from .networks import ClusterNet, ClusterNetConfig
from .pictures import as_picture
from .tokens import TokenChain

# ---------------------------------------------------------------- the online probe


class ClusterProbe(nn.Module):
    """Online cosine k-means by gradient descent: its loss is −mean of each code's largest cosine. Codes are
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
        """The loss for codes (B, D, h, w)."""
        unit = F.normalize(code.detach(), dim=1)
        return -torch.einsum("bdhw,kd->bkhw", unit, F.normalize(self.clusters, dim=1)).amax(1).mean()


# ---------------------------------------------------------------- the cluster of every pixel


def _window_mean(x: Tensor, radius: int) -> Tensor:
    """Mean over the (2r + 1)² window of each pixel, cut at the border; (..., H, W), first by rows, then by
    columns.
    """
    maps, size = x.flatten(0, -3), 2 * radius + 1
    maps = F.avg_pool2d(maps, (1, size), 1, (0, radius), count_include_pad=False)
    return F.avg_pool2d(maps, (size, 1), 1, (radius, 0), count_include_pad=False).view_as(x)


def guided_filter(maps: Tensor, guide: Tensor, radius: int = 8, eps: float = 1e-3) -> Tensor:
    """Smooth ``maps`` (B, K, H, W) but keep the edges of ``guide`` (B, G, H, W): the guided filter of He, Sun
    and Tang.

    In every window each map is fitted by a linear function of the guide (ridge eps, in squared units of the
    guide); a pixel gets the mean of the fits of all windows that hold it.
    """
    image, mean = guide.double(), _window_mean(guide.double(), radius)
    covariance = _window_mean(image[:, :, None] * image[:, None], radius) - mean[:, :, None] * mean[:, None]
    ridge = eps * torch.eye(image.shape[1], dtype=image.dtype, device=image.device)
    inverse = torch.linalg.inv(covariance.permute(0, 3, 4, 1, 2) + ridge)

    def smooth(values: Tensor) -> Tensor:
        values = values.double()
        average = _window_mean(values, radius)
        covariance = _window_mean(image * values, radius) - mean * average
        slope = torch.einsum("bhwij,bjhw->bihw", inverse, covariance)
        offset = average - (slope * mean).sum(1, keepdim=True)
        return (_window_mean(slope, radius) * image).sum(1, keepdim=True) + _window_mean(offset, radius)

    # one map at a time bounds memory
    return torch.cat([smooth(values).to(maps.dtype) for values in maps.split(1, 1)], 1)


def assign(code: Tensor, centroids: Tensor, size: tuple[int, int], guide: Tensor | None = None) -> Tensor:
    """Cluster of each pixel: codes (B, D, h, w) are up-sampled bilinearly to ``size``, then the largest
    cosine wins. (B, H, W) int64

    With a guide (B, G, H, W) in [0, 1], the memberships softmax(cosine / 0.1) pass through the guided filter
    before the largest is taken; its radius of 8 pixels is about one token.
    """
    code, centroids = code.float(), F.normalize(centroids.float(), dim=1).to(code.device)
    if not code.isfinite().all():
        raise ValueError(
            "codes are not finite, and belong to no cluster; look for values out of range in images"
        )
    # Up-sampling and products with centroids are linear and commute, and the length of a code does not move
    # its argmax.
    products = upsampled(torch.einsum("bdhw,kd->bkhw", code, centroids), size)
    if guide is None:
        return products.argmax(1)
    # Memberships need cosines, hence the length of every up-sampled code.
    length = upsampled(code, size).norm(dim=1, keepdim=True)
    memberships = (products / length.clamp(min=1e-12) / 0.1).softmax(1)
    return guided_filter(memberships, guide.to(code.device)).argmax(1)


@torch.no_grad()
def assignments(
    codes: Iterable[Tensor], dataset: PreparedDataset, centroids: Tensor, guide: str = ""
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (index, cluster of each pixel (H, W), label (H, W)) for the images of a split, each at its own
    size, on the CPU.

    Args:
        codes: (D, h, w) of the first images or all, each covering its whole image.
        guide: modality whose picture refines the edges; "" = none.
    """
    for index, code in enumerate(codes):
        label, picture = torch.from_numpy(dataset.stored(index)[1].astype(np.int64)), None
        if guide:
            picture = as_picture(dataset.modalities[guide], dataset.physical(index)[0][guide])[None]
        yield index, assign(code[None], centroids, tuple(label.shape), picture)[0].cpu(), label


def check_guide(guide: str, dataset: PreparedDataset) -> None:
    """Raise ValueError unless ``guide`` is empty or a loaded modality."""
    if guide and guide not in dataset.modalities:
        raise ValueError(f"--guide {guide}: expected one of {', '.join(dataset.modalities)}, or none")


def count(
    codes: Iterable[Tensor], dataset: PreparedDataset, centroids: Tensor, guide: str = ""
) -> dict[str, np.ndarray]:
    """Classes by clusters of a labelled split: group -> (K, C) int64 for "all" and every "condition=…"; label
    255 is not counted.

    Arguments are those of ``assignments``; ``mmlib.evaluation.counts.score_clusters`` reads the result.
    """
    shape = (len(dataset.description.classes), len(centroids))
    counts = {}
    for index, assignment, label in assignments(codes, dataset, centroids, guide):
        of_image = confusion_matrix(assignment, label, *shape).numpy()
        condition = dataset.rows[index]["condition"]
        for group in ["all", f"condition={condition}"][: 1 + bool(condition)]:
            counts[group] = counts.get(group, 0) + of_image
    return counts


# ---------------------------------------------------------------- label maps and the file of a clustering


@dataclass
class Clustering:
    """A finished clustering: all that new images need beside the backbone.

    Attributes:
        centroids: (C, D).
        mapping: class of each cluster, -1 = none; None where no labels named the clusters.
        classes, palette: names and colours of the classes.
        network: makes codes of tokens; None = the tokens themselves were clustered (k-means).
        chain: what happens to tokens before the network, with the statistics of the training tokens.
        settings: which sensors and tokens it reads and how they are made; JSON values.

    Lists will do for tuples.
    """

    centroids: Tensor
    mapping: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    palette: Palette = ()
    network: ClusterNet | None = None
    chain: TokenChain = TokenChain()
    settings: dict = field(default_factory=dict)


def save_clustering(path: str | Path, clustering: Clustering) -> None:
    """Write all of it as one safetensors file, atomically."""
    net, chain = clustering.network, clustering.chain
    tensors = {"centroids": clustering.centroids} | chain.to_tensors()
    header = {name: getattr(clustering, name) for name in ("mapping", "classes", "palette", "settings")}
    header |= {
        "chain": {"smooth": chain.smooth, "centre": chain.centre},
        "standardized": bool(chain.statistics),
        "whitened": bool(chain.whitening),
        "network": None,
    }
    if net is not None:
        tensors |= {f"network.{name}": value for name, value in net.state_dict().items()}
        header["network"] = {
            "channels": net.channels,
            "modalities": net.modalities,
            "config": asdict(net.config),
        }
    save_tensors(path, tensors, {"clustering": header})


def load_clustering(path: str | Path, device="cpu") -> Clustering:
    """The clustering of a file, its network in eval mode on ``device``.

    Raises:
        ValueError: no such file, damaged, of another kind or version, or parts that do not fit together.
    """
    header, tensors = read_tensor_header(path), read_tensors(path)
    with reading(path, "a clustering of 'python -m mmlib cluster' that this version can build"):
        values = header["clustering"]
        network, measured = values.pop("network"), (values.pop("standardized"), values.pop("whitened", False))
        net = None
        weights = {k.removeprefix("network."): x for k, x in tensors.items() if k.startswith("network.")}
        if network:
            config = ClusterNetConfig(**network.pop("config"))
            net = ClusterNet(**network, config=config)
            load_into(net, weights, path)
            net.eval().to(device)
        chain = TokenChain(**values.pop("chain")).with_tensors(tensors)
        clustering = Clustering(tensors["centroids"], network=net, chain=chain, **values)
        check_settings(clustering, "its ")
        (clusters, dim), classes = clustering.centroids.shape, len(clustering.classes)
        mapping = [-1] * clusters if clustering.mapping is None else clustering.mapping
        if (
            (bool(chain.statistics), bool(chain.whitening)) != measured
            or bool(weights) != bool(net)
            or not clustering.centroids.is_floating_point()
            or (net and dim != net.config.dim)
            or len(mapping) != clusters
            or not set(mapping) <= set(range(-1, classes))
            or len(clustering.palette) != classes
        ):
            raise ValueError(
                f"{clustering.centroids.dtype} centroids of length {dim}, mapping {mapping}, "
                f"{len(clustering.palette)} colours: expected floats, D of the codes, a class or -1 for each "
                f"of {clusters} clusters, a colour for each of {classes} classes, and the tensors of its "
                "tokens and network"
            )
    return clustering


def cluster_palette(clusters: int) -> list[tuple[int, int, int]]:
    """Colours of nameless clusters: hues a golden angle apart, in three brightnesses."""
    shade = lambda k: colorsys.hsv_to_rgb(k * 0.618034 % 1, (0.75, 0.5, 0.9)[k % 3], (0.9, 1.0, 0.6)[k % 3])
    return [tuple(round(255 * value) for value in shade(k)) for k in range(clusters)]


def write_label_maps(
    folder: Path, codes: Iterable[Tensor], dataset: PreparedDataset, clustering: Clustering, guide: str = ""
) -> None:
    """Write ``<id>.png`` for every image that ``codes`` hold, 8-bit ids with a palette, and ``ids.json``,
    which names and colours them.

    Ids are clusters, or classes where the clustering has a mapping (255 = a cluster without one). Needs no
    labels, gives no scores.
    """
    ids, names, palette = list(range(len(clustering.centroids))), clustering.classes, clustering.palette
    if clustering.mapping is None:
        names, palette = [f"cluster {k}" for k in ids], cluster_palette(len(ids))
    else:
        ids = [IGNORE_INDEX if target < 0 else target for target in clustering.mapping]
    listed = [{"id": k, "name": n, "colour": c} for k, (n, c) in enumerate(zip(names, palette))]
    write_json(folder / "ids.json", listed)
    for index, assignment, _ in assignments(codes, dataset, clustering.centroids, guide):
        image = Image.fromarray(np.array(ids, np.uint8)[assignment.numpy()])
        image.putpalette(np.ravel(palette).tolist())
        with atomic_path(folder / f"{dataset.rows[index]['id']}.png") as temporary:
            image.save(temporary)
