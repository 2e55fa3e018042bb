"""Frozen feature extractors, which ``extraction`` calls: pictures (N, 3, H, W) in [0, 1] -> raw tokens
(N, C, H/patch, W/patch).

* ``dinov3-small``, ``-small-plus``, ``-base``, ``-large``: the paper's backbone (``dinov3``).
* ``descriptors``: colour statistics and oriented energy of 8 × 8 patches, made by hand. They work everywhere
  and learn nothing.
* ``descriptors+vit``: the same beside the tokens of ``vit``, a small transformer that
  ``notebooks/results/pretrain.py`` trains without labels on the sensor world, and whose weights come with the
  library. A stand-in to learn with, in no way a match for DINOv3.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import check_value
from ..runtime import derived_seed, load_into, read_tensor_header, read_tensors, reading
from .dinov3 import DINOV3, DINOv3

BackboneName = Literal["descriptors", "descriptors+vit", "vit", *DINOV3]
# Part of every backbone's key, on which cached tokens and finished runs depend. Raise it when a network, or
# the normalisation before it, returns other tokens than before for the same picture and weights; names,
# comments and speed do not count.
VERSION = 1
SHIPPED = Path(__file__).with_name("vit_world.safetensors")


@dataclass(frozen=True)
class Backbone:
    """A frozen feature extractor.

    Attributes:
        name: a ``BackboneName``.
        channels: C, the length of a token.
        patch: side of the square of pixels that a token stands for.
        key: hex digest of name, ``VERSION`` and weights; equal keys mean equal tokens.
        network: module (N, 3, H, W) -> (N, C, H/patch, W/patch), in eval mode.
        device: where the network lives.
    """

    name: str
    channels: int
    patch: int
    key: str
    network: nn.Module
    device: torch.device | str

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> raw tokens (N, C, H/patch, W/patch), float32, on the backbone's
        device.

        Raises:
            ValueError: values outside [0, 1] or not finite, or a size that the patch does not divide.
        """
        check_size(images.shape[2:], self.patch, self.name)
        low, high = torch.aminmax(images)
        if not (-1e-4 <= low and high <= 1 + 1e-4):  # false for NaN, too
            raise ValueError(
                f"{self.name}: values from {low:g} to {high:g}, expected [0, 1]: divide bytes by 255, send "
                "sensors through pictures.as_picture"
            )
        return self.network(images.to(self.device, torch.float32))


def check_size(size: tuple[int, int], patch: int, where: str) -> None:
    """Raise ValueError unless a picture of ``size`` is made of whole patches; says which size is."""
    fitting = [max(1, round(side / patch)) * patch for side in size]
    if fitting != [*size]:
        raise ValueError(
            f"{where}: {' x '.join(map(str, size))} pixels are not made of whole patches of {patch} x "
            f"{patch}; resize to {' x '.join(map(str, fitting))}"
        )


def load_backbone(name: str, weights: str | Path = "", device: torch.device | str = "cpu") -> Backbone:
    """Build a frozen backbone.

    Args:
        name: a ``BackboneName``.
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
    check_value("backbone", name, BackboneName)
    if name == "descriptors" and weights:
        raise ValueError(
            f"weights {str(weights)!r}: 'descriptors' are made by hand and have none; leave the weights empty"
        )
    # Networks start from random numbers, which must not be taken from the caller's generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("random", name))
        if name in DINOV3:
            network = DINOv3(name, str(weights))
        elif name == "descriptors":
            network = Descriptors()
        elif str(weights) == "random":
            network = PatchViT()
        else:
            path = Path(weights or SHIPPED)
            with reading(
                path, "weights of the small transformer (a vit.safetensors of notebooks/results/pretrain.py)"
            ):
                network = PatchViT(**read_tensor_header(path)["vit"])
            load_into(network, read_tensors(path), path)
        if name == "descriptors+vit":
            network = Beside(Descriptors(), network)
    network = network.eval().requires_grad_(False).to(device)
    digest = hashlib.sha256(f"{name} {VERSION}".encode())
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)}".encode())
        digest.update(value.float().cpu().numpy().tobytes())
    return Backbone(name, network.channels, network.patch, digest.hexdigest()[:16], network, device)


class Beside(nn.Module):
    """Tokens of several networks with patches of 8 × 8 pixels, joined along the channels."""

    patch = 8

    def __init__(self, *parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.channels = sum(part.channels for part in parts)

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

    patch, channels = 8, 40

    def __init__(self):
        super().__init__()
        grid = torch.arange(-4.0, 5.0, dtype=torch.float64)
        window = torch.exp(-(grid[:, None] ** 2 + grid**2) / 8)
        filters = []
        for k in range(4):
            angle = math.pi * k / 4
            # A wavelength of 4 pixels along the direction.
            phase = (math.cos(angle) * grid + math.sin(angle) * grid[:, None]) * (math.pi / 2)
            even, odd = window * phase.cos(), window * phase.sin()
            even -= window * (even.sum() / window.sum())  # a constant picture has no answer
            # Unit norm: white noise answers alike in every direction.
            filters += [even / even.norm(), odd / odd.norm()]
        self.register_buffer("filters", torch.stack(filters)[:, None].float(), persistent=False)
        opponent = torch.tensor([[1, 1, 1], [1, -1, 0], [1, 1, -2]], dtype=torch.float64)
        self.register_buffer("colours", F.normalize(opponent).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        # Colour: mean, spread, and the differences relative to the intensity.
        patches = lambda maps: maps.unflatten(2, (-1, 8)).unflatten(4, (-1, 8))
        colours = torch.einsum("oc,nchw->nohw", self.colours, images)
        deviation, mean = torch.std_mean(patches(colours), (3, 5), correction=0)
        relative = mean[:, 1:] / (mean[:, :1] + 0.05)
        # The intensity, raw and locally normalised, goes through a pyramid of Gabor filters.
        grey = colours[:, :1] / 3**0.5
        around = partial(F.avg_pool2d, kernel_size=17, stride=1, padding=8, count_include_pad=False)
        local = grey - around(grey)
        level = torch.cat([grey, local / (around(local**2).sqrt() + 0.02)])
        texture = []
        for scale in range(3):
            answers = F.conv2d(F.pad(level, (4, 4, 4, 4), mode="replicate"), self.filters)
            amplitude = answers.unflatten(1, (-1, 2)).square().sum(2).sqrt()
            pooled = F.avg_pool2d(amplitude, 8 >> scale) + 1e-2  # over a patch at this level of the pyramid
            texture.append(pooled.log())
            if scale == 0:
                texture.append(patches(amplitude).std((3, 5), correction=0) / pooled)
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
        layers = []
        for before, after in pairwise((3, channels // 4, channels // 2, channels)):
            layers += [nn.GroupNorm(1, before), nn.GELU(), nn.Conv2d(before, after, 3, 2, 1)]
        self.stem = nn.Sequential(*layers[2:])  # a picture goes into the first convolution as it is
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.blocks = nn.Sequential(*(Block(channels, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels)
        # what pre-training puts in the place of the stem's output where a patch is masked
        self.mask_token = nn.Parameter(torch.zeros(channels))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, C, H/8, W/8)."""
        tokens = self.stem(images * 4 - 2)
        tokens = tokens + self.position(tokens)
        rows = self.norm(self.blocks(tokens.flatten(2).transpose(1, 2)))
        return rows.transpose(1, 2).reshape(tokens.shape)
