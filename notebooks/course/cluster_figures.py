"""Figures of label-free clustering: what tokens look like, which tokens correspond, label maps side by side.

The figure of a whole run is in ``run_figures``; figures of records are in ``record_figures``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from mmlib.figures import (
    INK,
    picture_axes,
    put_picture,
)

from .charts import modality_title


def components(tokens: Sequence[Tensor], count: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Principal components of all tokens (B, C, h, w) together: mean (C,), axes (count, C), and the 2 % and
    98 % quantiles (count,).

    Each axis points where its largest entry is positive, so that colours do not flip between machines.
    Raises ValueError: tokens of different length, or fewer channels than components.
    """
    if len({t.shape[1] for t in tokens}) != 1 or tokens[0].shape[1] < count:
        raise ValueError(
            f"tokens {[tuple(t.shape) for t in tokens]}: expected (B, C, h, w) of one C, {count} or more"
        )
    rows = torch.cat([t.detach().movedim(1, -1).flatten(0, -2) for t in tokens]).double().cpu()
    mean = rows.mean(0)
    axes = torch.linalg.eigh((rows - mean).T @ (rows - mean))[1].flip(1)[:, :count].T
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    ends = torch.from_numpy(np.quantile(((rows - mean) @ axes.T).numpy(), (0.02, 0.98), axis=0))
    return mean, axes, ends[0], ends[1]


def token_pictures(tokens: Tensor, basis: tuple[Tensor, ...]) -> np.ndarray:
    """Tokens (B, C, h, w) -> (B, h, w, 3) uint8: the three ``components`` as red, green and blue. Equal
    colours = similar tokens, also between images and sensors that share a basis.
    """
    mean, axes, low, high = basis
    values = (tokens.detach().double().cpu().movedim(1, -1) - mean) @ axes.T
    return ((values - low) / (high - low).clamp(min=1e-12) * 255).clamp(0, 255).round().byte().numpy()


def correspondence_maps(tokens: Tensor, query: tuple[int, int]) -> Tensor:
    """Cosine (B, h, w) of every token of ``tokens`` (B, C, h, w) with the one of image 0 at ``query`` (row,
    column).
    """
    unit = F.normalize(tokens.detach().float(), dim=1)
    return torch.einsum("c,bchw->bhw", unit[0, :, query[0], query[1]], unit)


def correspondence_figure(
    pictures: Mapping[str, Sequence[np.ndarray]],
    tokens: Mapping[str, Tensor],
    query: tuple[int, int],
    title: str = "",
) -> Figure:
    """A row a sensor: image with the query token marked, its correspondences F there, another image, and
    those in that image.

    Args:
        pictures: what to call the sensor -> two pictures (H, W, 3); tokens: the same names -> (2, C, h, w).
        query: (row, column) on the token grid of the first image.
    """
    shape = next(iter(pictures.values()))[0].shape
    fig, axes = picture_axes(len(pictures), 4, shape, 0.25 + 0.3 * bool(title), 0.75)
    for r, (name, (first, second)) in enumerate(pictures.items()):
        maps = correspondence_maps(tokens[name], query).numpy()
        put_picture(axes[r, 0], first, modality_title(name))
        heads = ("", "F within the image", "another image", "F across images") if r == 0 else [""] * 4
        put_picture(axes[r, 2], second, heads[2])
        height, width = (shape[k] / maps.shape[k + 1] for k in (0, 1))
        for column, values in zip((1, 3), maps):
            extent = (-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5)
            image = axes[r, column].imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, extent=extent)
            axes[r, column].set_title(heads[column], loc="center", fontsize=10, fontweight="normal", pad=3)
        for axis in axes[r, :2]:
            place = ((query[1] + 0.5) * width - 0.5, (query[0] + 0.5) * height - 0.5)
            axis.plot(*place, "s", color="none", markeredgecolor="white", markersize=9, markeredgewidth=3)
            axis.plot(*place, "s", color="none", markeredgecolor=INK, markersize=9, markeredgewidth=1.2)
    fig.colorbar(image, ax=axes, shrink=0.6, pad=0.01, label="cosine with the marked token")
    if title:
        fig.suptitle(title, x=0.01, ha="left")
    return fig
