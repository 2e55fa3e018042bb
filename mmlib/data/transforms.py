"""Joint augmentation: every modality and the label move together, in physical space, before normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..modalities import IGNORE_INDEX, Modality


def flip(
    images: dict[str, Tensor], label: Tensor, modalities: dict[str, Modality]
) -> tuple[dict[str, Tensor], Tensor]:
    """Mirror left-right. Channels that hold the sine of a doubled angle change sign: the mirror turns the
    angle round.
    """
    flipped = {}
    for name, image in images.items():
        image = image.flip(-1)
        for channel in modalities[name].flip_negates:
            image[channel] = -image[channel]  # flip() returned a copy
        flipped[name] = image
    return flipped, label.flip(-1)


def resize(image: Tensor, size: tuple[int, int], sparse: bool) -> Tensor:
    """(C, H, W) -> (C, *size). Sparse sensors by nearest neighbour: a mean of a range and of "no return" is
    neither.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if sparse:
        return F.interpolate(image[None], size, mode="nearest-exact")[0]
    return F.interpolate(
        image[None], size, mode="bilinear", align_corners=False, antialias=size[0] < image.shape[-2]
    )[0]


def crop_or_pad(image: Tensor, top: int, left: int, size: tuple[int, int], fill: float) -> Tensor:
    """Cut (..., *size) at (top, left); what lies outside the image is ``fill``."""
    height, width = size
    cut = image[..., top : top + height, left : left + width]
    below, right = height - cut.shape[-2], width - cut.shape[-1]
    return F.pad(cut, (0, right, 0, below), value=fill) if below or right else cut


@dataclass(frozen=True)
class Augment:
    """Random scale, crop, mirror, and colour jitter of colour images.

    Attributes:
        crop: (H, W) of the result, or None = the size of the image.
        scale: range of the random zoom; the paper's relatives use 0.5 to 2. (1, 1) = none.
        mirror: probability of a left-right flip.
        jitter: largest relative change of brightness and contrast of colour images; 0 = none.
    """

    crop: tuple[int, int] | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    mirror: float = 0.5
    jitter: float = 0.0

    def __post_init__(self):
        if self.crop and min(self.crop) < 1:
            raise ValueError(
                f"crop {self.crop[0]} {self.crop[1]}: expected a height and a width of 1 or more"
            )
        if not 0 < self.scale[0] <= self.scale[1] < float("inf"):
            raise ValueError(
                f"scale {self.scale[0]} {self.scale[1]}: expected the smaller zoom first, above 0"
            )
        if not (0 <= self.mirror <= 1 and 0 <= self.jitter <= 1):
            raise ValueError(f"mirror {self.mirror}, jitter {self.jitter}: expected numbers from 0 to 1")

    def __call__(
        self,
        images: dict[str, Tensor],
        label: Tensor,
        rng: np.random.Generator,
        modalities: dict[str, Modality],
    ):
        """Physical images (C, H, W) by name and label (H, W) -> the same, augmented. Uses ``rng`` only."""
        zoom, x, y, mirrored, gain, contrast = rng.random(
            6
        )  # always six numbers, so that one option never changes another's draw
        size = tuple(label.shape)
        crop = self.crop or size
        zoom = float(np.exp(np.log(self.scale[0]) + zoom * np.log(self.scale[1] / self.scale[0])))
        scaled = tuple(max(1, round(length * zoom)) for length in size)
        top, left = (int(u * (max(0, have - want) + 1)) for u, have, want in zip((y, x), scaled, crop))
        if scaled != size:
            images = {name: resize(image, scaled, modalities[name].sparse) for name, image in images.items()}
            label = F.interpolate(label[None, None].float(), scaled, mode="nearest-exact")[0, 0].long()
        if crop != scaled:
            images = {name: crop_or_pad(image, top, left, crop, 0.0) for name, image in images.items()}
            label = crop_or_pad(label, top, left, crop, IGNORE_INDEX)
        if mirrored < self.mirror:
            images, label = flip(images, label, modalities)
        if self.jitter:
            images = {
                n: self._jitter(v, gain, contrast) if modalities[n].picture == "colour" else v
                for n, v in images.items()
            }
        return images, label

    def _jitter(self, image: Tensor, gain: float, contrast: float) -> Tensor:
        gain, contrast = (1 + self.jitter * (2 * u - 1) for u in (gain, contrast))
        mean = image.mean()
        return ((image - mean) * contrast + mean).mul(gain).clamp(0, 1)
