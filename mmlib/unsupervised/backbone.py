"""Frozen feature extractors, which ``extraction`` calls: pictures (N, 3, H, W) in [0, 1] -> raw tokens
(N, C, H/patch, W/patch).

* ``dinov3-small``, ``-small-plus``, ``-base``, ``-large``: the paper's backbone (``dinov3``).
* ``descriptors``: colour statistics and oriented energy of 8 × 8 patches, made by hand. They work everywhere
  and learn nothing.
* ``descriptors+vit``: the same beside the tokens of ``vit``, a small transformer that
  ``notebooks/results/pretrain.py`` trains without labels on the sensor world, and whose weights come with the
  library. A stand-in to learn with, in no way a match for DINOv3.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime import derived_seed, load_into, read_tensor_header, read_tensors, reading
from .dinov3 import DINOV3, DINOv3

BackboneName = Literal[
    "descriptors",
    "descriptors+vit",
    "vit",
    "dinov3-small",
    "dinov3-small-plus",
    "dinov3-base",
    "dinov3-large",
]
NAMES = get_args(BackboneName)
# Part of every backbone's key, on which cached tokens and finished runs depend. Raise it when a network, or
# the normalisation before it, returns other tokens than before for the same picture and weights; names,
# comments and speed do not count.
VERSION = 1
SHIPPED = Path(__file__).with_name("vit_world.safetensors")


@dataclass(frozen=True)
class Backbone:
    """A frozen feature extractor.

    Attributes:
        name: one of ``NAMES``.
        channels: C, the length of a token.
        patch: side of the square of pixels that a token stands for.
        key: hex digest of name, ``VERSION`` and weights; equal keys mean equal tokens.
        network: module (N, 3, H, W) -> (N, C, H/patch, W/patch), in eval mode.
    """

    name: str
    channels: int
    patch: int
    key: str
    network: nn.Module

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> raw tokens (N, C, H/patch, W/patch), float32, on the backbone's
        device.

        Raises:
            ValueError: another shape, values outside [0, 1] or not finite, or a size that the patch does not
                divide.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not len(images) or not images.is_floating_point():
            raise ValueError(
                f"pictures are {tuple(images.shape)} {images.dtype}; {self.name} expects floats of shape "
                "(N, 3, H, W)"
            )
        height, width = images.shape[-2:]
        fitting = [max(1, round(side / self.patch)) * self.patch for side in (height, width)]
        if fitting != [height, width]:
            raise ValueError(
                f"pictures of {height} × {width} pixels: {self.name} has patches of {self.patch} × "
                f"{self.patch} pixels and takes multiples of {self.patch}; resize to "
                f"{' × '.join(map(str, fitting))}"
            )
        low, high = (float(v) for v in torch.aminmax(images))
        if not (-1e-4 <= low and high <= 1 + 1e-4):  # false for NaN, too
            raise ValueError(
                f"pictures have values from {low:g} to {high:g}; expected [0, 1]: divide bytes by 255, send "
                "sensors through pictures.as_picture"
            )
        device = next(chain(self.network.parameters(), self.network.buffers())).device
        return self.network(images.to(device, torch.float32))


def load_backbone(name: str, weights: str | Path = "", device: torch.device | str = "cpu") -> Backbone:
    """Build a frozen backbone.

    Args:
        name: one of ``NAMES``.
        weights: "" = those that belong to the name (DINOv3: from the Hugging Face hub, by timm; vit: shipped
            with the library); a file (DINOv3: .safetensors, .pth or .bin with the keys of timm, of Meta's
            repository or of Hugging Face Transformers; vit: written by ``notebooks/results/pretrain.py``); a
            folder with one (DINOv3); or "random" for an untrained network, the
            same one on every call.
        device: where the network lives.

    Raises:
        ValueError: unknown name; weights that are missing, out of reach, damaged, of another size or another
            network.
    """
    if name not in NAMES:
        raise ValueError(f"backbone {name!r}: expected one of {', '.join(NAMES)}")
    if name == "descriptors" and weights:
        raise ValueError(
            f"weights {str(weights)!r}: 'descriptors' are made by hand and have none; leave the weights empty"
        )
    # Networks start from random numbers, which must not be taken from the caller's generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("random", name))
        if name in DINOV3:
            network = DINOv3(name, str(weights))
        else:
            makers = {"descriptors": Descriptors, "vit": partial(_load_vit, weights)}
            parts = [makers[part]() for part in name.split("+")]
            network = Beside(*parts) if len(parts) > 1 else parts[0]
    network = network.eval().requires_grad_(False).to(device)
    digest = hashlib.sha256(f"{name} {VERSION}".encode())
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)}".encode())
        digest.update(value.float().cpu().contiguous().numpy().tobytes())
    return Backbone(name, network.channels, network.patch, digest.hexdigest()[:16], network)


class Beside(nn.Module):
    """Tokens of several networks of one patch size, joined along the channels."""

    def __init__(self, *parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.channels, self.patch = sum(part.channels for part in parts), parts[0].patch

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([part(images) for part in self.parts], 1)


class Descriptors(nn.Module):
    """Hand-made descriptors of 8 × 8 patches: what colour a patch has, how much it varies, and at which
    scales and directions.

    Per patch: mean and standard deviation of three opponent colours; mean of the two colour differences
    relative to the intensity (a dark picture keeps those); the logarithm of the mean amplitude of a pyramid
    of Gabor filters (3 scales × 4 directions) on the intensity and on the locally normalised intensity, where
    a weak texture in the shade counts as much as one in the sun; and the relative variation of the finest
    amplitudes within the patch, which tells an even texture from a single edge.
    """

    patch, scales, directions, channels = 8, 3, 4, 3 + 3 + 2 + 2 * 3 * 4 + 2 * 4
    opponent = ((3**-0.5, 3**-0.5, 3**-0.5), (2**-0.5, -(2**-0.5), 0.0), (6**-0.5, 6**-0.5, -2 * 6**-0.5))

    def __init__(self):
        super().__init__()
        grid = torch.arange(-4.0, 5.0, dtype=torch.float64)
        window = torch.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / 8)
        filters = []
        for k in range(self.directions):
            angle = math.pi * k / self.directions
            # A wavelength of 4 pixels along the direction.
            phase = (math.cos(angle) * grid[None] + math.sin(angle) * grid[:, None]) * (math.pi / 2)
            even, odd = window * phase.cos(), window * phase.sin()
            even -= window * (even.sum() / window.sum())  # a constant picture has no answer
            # Unit norm: white noise answers alike in every direction.
            filters += [even / even.norm(), odd / odd.norm()]
        self.register_buffer("filters", torch.stack(filters)[:, None].float(), persistent=False)
        self.register_buffer("colours", torch.tensor(self.opponent), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        # Colour: mean, spread, and the differences relative to the intensity.
        colours = torch.einsum("oc,nchw->nohw", self.colours, images)
        deviation, mean = torch.std_mean(
            colours.unflatten(2, (-1, 8)).unflatten(4, (-1, 8)), (3, 5), correction=0
        )
        relative = mean[:, 1:] / (mean[:, :1] + 0.05)
        # The intensity, raw and locally normalised, goes through a pyramid of Gabor filters.
        grey = colours[:, :1] / 3**0.5
        around = partial(F.avg_pool2d, kernel_size=17, stride=1, padding=8, count_include_pad=False)
        local = grey - around(grey)
        level = torch.cat([grey, local / (around(local**2).sqrt() + 0.02)])
        texture = []
        for scale in range(self.scales):
            side = 8 >> scale  # of a patch at this level of the pyramid
            even, odd = (
                F.conv2d(F.pad(level, (4, 4, 4, 4), mode="replicate"), self.filters)
                .unflatten(1, (-1, 2))
                .unbind(2)
            )
            amplitude = (even**2 + odd**2).sqrt()
            pooled = F.avg_pool2d(amplitude, side) + 1e-2
            texture.append(pooled.log())
            if scale == 0:
                texture.append(
                    amplitude.unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).std((3, 5), correction=0) / pooled
                )
            level = F.avg_pool2d(level, 2)
        # The batch holds raw and normalised intensity one after the other; they become channels.
        texture = torch.cat([torch.cat(part.chunk(2), 1) for part in texture], 1)
        return torch.cat([mean, deviation, relative, texture], 1)


class PatchViT(nn.Module):
    """A small vision transformer on 8 × 8 patches: three strided convolutions, ``depth`` blocks, no class
    token.

    Positions enter through one depthwise convolution only: it works at any size, and equal things at
    different places stay alike.
    """

    patch = 8

    def __init__(self, channels: int = 96, depth: int = 4, heads: int = 3):
        from timm.models.vision_transformer import Block

        super().__init__()
        self.channels = channels
        widths = (3, channels // 4, channels // 2, channels)
        layers = [nn.Conv2d(widths[0], widths[1], 3, 2, 1)]
        for before, after in zip(widths[1:], widths[2:]):
            layers += [nn.GroupNorm(1, before), nn.GELU(), nn.Conv2d(before, after, 3, 2, 1)]
        self.stem = nn.Sequential(*layers)
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.blocks = nn.Sequential(*(Block(channels, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels)
        self.mask_token = nn.Parameter(torch.zeros(channels))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, C, H/8, W/8); where ``mask`` (N, H/8, W/8) is true, the token starts
        from the mask token.
        """
        tokens = self.stem(images * 4 - 2)
        if mask is not None:
            tokens = torch.where(mask[:, None], self.mask_token[:, None, None], tokens)
        tokens = tokens + self.position(tokens)
        rows = self.norm(self.blocks(tokens.flatten(2).transpose(1, 2)))
        return rows.transpose(1, 2).reshape(tokens.shape)


def _load_vit(weights: str | Path) -> PatchViT:
    if str(weights) == "random":
        return PatchViT()
    path = Path(weights or SHIPPED)
    header = read_tensor_header(path)
    if "vit" not in header:
        raise ValueError(
            f"{path}: not weights of the small transformer; give a vit.safetensors of "
            "notebooks/results/pretrain.py"
        )
    with reading(path, "weights of a transformer that this version can build"):
        network = PatchViT(**header["vit"])
    load_into(network, read_tensors(path), path)
    return network
