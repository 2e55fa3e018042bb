"""Sensors that are dimmed, noisy or gone. The protocol is always named, because it changes the numbers more than methods do.

* ``drop``: the sensor is not passed on; fusion averages the rest. The default everywhere.
* ``zero``: its normalised image is set to 0, so the network sees the training mean (grey).
* ``black``: its physical image is set to 0 before normalisation, as if the file were black.
* ``noise``: its normalised image is replaced by standard Gaussian noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..modalities import Modality
from ..runtime import derived_seed

PROTOCOLS = ("drop", "zero", "black", "noise")


def degrade(image: Tensor, modality: Modality, gain: float = 1.0, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Dim a physical image (..., C, H, W) and add noise; returns a new tensor.

    ``gain`` in [0, 1] scales the signal above the modality's zero (for a temperature: above ``low``), 0 = black.
    ``noise`` >= 0 is the standard deviation of added Gaussian noise as a share of the modality's range. A sparse sensor
    keeps its empty pixels empty, and ``gain`` thins its points out instead of moving them: half the light gives fewer
    returns, not shorter ranges.

    Raises:
        ValueError: gain outside [0, 1] or negative noise.
    """
    if not 0 <= gain <= 1:
        raise ValueError(f"{modality.name}: gain {gain}; expected 0 (black) to 1 (untouched)")
    if not noise >= 0:
        raise ValueError(f"{modality.name}: noise {noise}; expected 0 or more, as a share of the sensor's range")
    generator = torch.Generator().manual_seed(derived_seed(seed, modality.name))
    if gain == 1 and noise == 0:
        return image.clone()
    span = modality.high - modality.low
    if modality.sparse:
        kept = torch.rand(image.shape[:-3] + (1, *image.shape[-2:]), generator=generator).to(image) < gain
        seen = (image != 0).any(-3, keepdim=True) & kept
        noisy = image + noise * span * torch.randn(image.shape, generator=generator).to(image)
        return torch.where(seen, noisy.clamp_min(0), torch.zeros_like(image))
    floor = 0.0 if modality.picture == "angle" else modality.low  # the cosine and sine of an angle fade to 0, not to -1
    dimmed = floor + gain * (image - floor)
    return dimmed + noise * span * torch.randn(image.shape, generator=generator).to(image) if noise else dimmed


def remove(images: dict[str, Tensor], missing, protocol: str, modalities: dict[str, Modality], seed: int = 0) -> dict[str, Tensor]:
    """Network-space images (B, C, H, W) by name -> the same with the sensors named in ``missing`` gone by ``protocol``.

    Raises:
        ValueError: unknown protocol or sensor, or "drop" would leave no sensor.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    unknown = set(missing) - set(images)
    if unknown:
        raise ValueError(f"unknown modality {', '.join(sorted(unknown))}; there are {', '.join(images)}")
    if protocol == "drop":
        if not set(images) - set(missing):
            raise ValueError(f"every sensor of {', '.join(images)} is missing; keep at least one")
        return {name: image for name, image in images.items() if name not in missing}
    result = dict(images)
    for name in missing:
        image = images[name]
        if protocol == "zero":
            result[name] = torch.zeros_like(image)
        elif protocol == "black":
            result[name] = modalities[name].to_network(torch.zeros_like(image))
        else:
            generator = torch.Generator().manual_seed(derived_seed(seed, name))
            result[name] = torch.randn(image.shape, generator=generator).to(image)
    return result
