"""Joint augmentation: every modality and the label move together, in physical space, before normalisation."""

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
    flipped = {name: image.flip(-1) for name, image in images.items()}
    for name, image in flipped.items():
        image[list(modalities[name].flip_negates)] *= -1  # flip() returned a copy
    return flipped, label.flip(-1)


def resize(image: Tensor, size: tuple[int, int], sparse: bool) -> Tensor:
    """(C, H, W) -> (C, *size). Sparse sensors by nearest neighbour: a mean of a range and of "no return" is
    neither.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    mode, smaller = "nearest-exact" if sparse else "bilinear", size[0] < image.shape[-2]
    return F.interpolate(image[None], size, mode=mode, antialias=smaller and not sparse)[0]


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
            raise ValueError(f"crop {self.crop}: expected a height and a width of 1 or more")

    def __call__(
        self,
        images: dict[str, Tensor],
        label: Tensor,
        rng: np.random.Generator,
        modalities: dict[str, Modality],
    ):
        """Physical images (C, H, W) by name and label (H, W) -> the same, augmented. Uses ``rng`` only."""
        # Always six numbers, so that one option never changes another's draw.
        zoom, x, y, mirrored, gain, contrast = rng.random(6)
        size = tuple(label.shape)
        crop = self.crop or size
        low, high = self.scale
        zoom = float(np.exp(np.log(low) + zoom * np.log(high / low)))
        scaled = tuple(max(1, round(length * zoom)) for length in size)
        top, left = (int(u * (max(0, have - want) + 1)) for u, have, want in zip((y, x), scaled, crop))

        def moved(image: Tensor, sparse: bool, fill: float) -> Tensor:
            # What lies outside the image is filled. A crop inside the image stays a view of it: the mean in
            # the jitter below adds up in the order of memory, and would differ in its last bits for a copy.
            part = resize(image, scaled, sparse)[..., top : top + crop[0], left : left + crop[1]]
            below, right = crop[0] - part.shape[-2], crop[1] - part.shape[-1]
            return F.pad(part, (0, right, 0, below), value=fill) if below or right else part

        images = {name: moved(image, modalities[name].sparse, 0.0) for name, image in images.items()}
        label = moved(label[None].float(), True, IGNORE_INDEX)[0].long()
        if mirrored < self.mirror:
            images, label = flip(images, label, modalities)
        gain, contrast = (1 + self.jitter * (2 * u - 1) for u in (gain, contrast))
        for name, image in images.items():
            if self.jitter and modalities[name].picture == "colour":
                mean = image.mean()
                images[name] = ((image - mean) * contrast + mean).mul(gain).clamp(0, 1)
        return images, label
