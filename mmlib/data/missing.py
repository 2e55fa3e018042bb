"""Sensors that are dimmed, noisy or gone. The protocol is always named, because it changes the numbers more
than methods do.

* ``drop``: the sensor is not passed on; fusion averages the rest. The default everywhere.
* ``zero``: its normalised image is set to 0, so the network sees the training mean (grey).
* ``black``: its physical image is set to 0 before normalisation, as if the file were black.
* ``noise``: its normalised image is replaced by standard Gaussian noise.

Which sensors are gone is every subset in turn, or chance: ``evaluate --failure-probability p`` weighs the
subsets of any of these protocols by how often independent failures would leave them
(``mmlib.evaluation.subsets.subset_probabilities``).

Those are sensors known to be gone, or replaced outright. A sensor can also go wrong without saying so, a
little (``mild``) or altogether (``gross``), and still be passed on like a sound one: ``faulty`` makes such
images.

* ``dark``: gain 0.25, or black.
* ``noise``: Gaussian noise of half a standard deviation of the training images added; or nothing but noise.
* ``shift``: out of register by 1/32 of the image width (4 pixels of 128), or 1/8 (16 pixels).
* ``blur``: an image of a quarter of the resolution, or of a sixteenth.
* ``blank``: stuck at the training mean, in the lower half or everywhere.
* ``other``: a picture of another scene, in the lower half (a torn frame) or everywhere (a frozen or mixed-up
one).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..modalities import Modality
from ..runtime import derived_seed
from .transforms import resize

PROTOCOLS = ("drop", "zero", "black", "noise")
FAULTS = ("dark", "noise", "shift", "blur", "blank", "other")
SEVERITIES = ("mild", "gross")


def degrade(
    image: Tensor, modality: Modality, gain: float = 1.0, noise: float = 0.0, seed: int = 0
) -> Tensor:
    """Dim a physical image (..., C, H, W) and add noise; returns a new tensor.

    ``gain`` in [0, 1] scales the signal above the modality's zero (for a temperature: above ``low``), 0 =
    black. ``noise`` >= 0 is the standard deviation of added Gaussian noise as a share of the modality's
    range. A sparse sensor keeps its empty pixels empty, and ``gain`` thins its points out instead of moving
    them: half the light gives fewer returns, not shorter ranges.

    Raises:
        ValueError: gain outside [0, 1] or negative noise.
    """
    if not 0 <= gain <= 1:
        raise ValueError(f"{modality.name}: gain {gain}; expected 0 (black) to 1 (untouched)")
    if not noise >= 0:
        raise ValueError(
            f"{modality.name}: noise {noise}; expected 0 or more, as a share of the sensor's range"
        )
    generator = torch.Generator().manual_seed(derived_seed(seed, modality.name))
    if gain == 1 and noise == 0:
        return image.clone()
    span = modality.high - modality.low
    if modality.sparse:
        drawn = torch.rand(image.shape[:-3] + (1, *image.shape[-2:]), generator=generator).to(image) < gain
        points = (image != 0).any(-3, keepdim=True) & drawn
        noisy = image + noise * span * torch.randn(image.shape, generator=generator).to(image)
        noisy = torch.where(
            image < 0, noisy, noisy.clamp_min(0)
        )  # ranges stay ranges; heights may lie below the sensor
        return torch.where(points, noisy, torch.zeros_like(image))
    floor = (
        0.0 if modality.picture == "angle" else modality.low
    )  # the cosine and sine of an angle fade to 0, not to -1
    dimmed = floor + gain * (image - floor)
    return (
        dimmed + noise * span * torch.randn(image.shape, generator=generator).to(image) if noise else dimmed
    )


def remove(
    images: dict[str, Tensor], missing, protocol: str, modalities: dict[str, Modality], seed: int = 0
) -> dict[str, Tensor]:
    """Network-space images (B, C, H, W) by name -> the same with the sensors named in ``missing`` gone by
    ``protocol``.

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


def faulty(
    image: Tensor, modality: Modality, fault: str, severity: str, other: Tensor | None = None, seed: int = 0
) -> Tensor:
    """A physical image (C, H, W) -> what the sensor delivers when it fails without saying so, physical (C, H,
    W).

    Args:
        modality: with its statistics, which say what a usual image of this sensor is.
        fault, severity: one of ``FAULTS`` and of ``SEVERITIES``; the top of this file says how large each is.
        other: the same sensor's physical image of another scene, for "other"; resized where the sizes differ.

    Raises:
        ValueError: unknown fault or severity, no ``other`` where it is needed, or a modality without
            statistics.
    """
    if fault not in FAULTS or severity not in SEVERITIES:
        raise ValueError(
            f"fault {fault!r}, {severity!r}; expected one of {', '.join(FAULTS)} and one of "
            f"{', '.join(SEVERITIES)}"
        )
    mild = severity == "mild"
    height, width = image.shape[-2:]
    if fault == "dark":
        return degrade(image, modality, gain=0.25 if mild else 0.0, seed=seed)
    if fault == "shift":
        step = max(1, round(width / (32 if mild else 8)))
        # What moves in from the left: the edge again, or nothing where 0 means "no measurement".
        edge = torch.zeros_like(image[..., :1]) if modality.sparse else image[..., :1]
        return torch.cat([edge.expand(*image.shape[:-1], step), image[..., :-step]], -1)
    if fault == "blur":
        factor = 4 if mild else 16
        small = resize(image, (max(1, height // factor), max(1, width // factor)), modality.sparse)
        return resize(small, (height, width), modality.sparse)
    if fault == "noise":
        usual = modality.to_network(image)
        noise = torch.randn(
            image.shape, generator=torch.Generator().manual_seed(derived_seed(seed, modality.name, severity))
        ).to(image)
        return _to_physical(usual + 0.5 * noise if mild else noise, modality)
    if fault == "other" and other is None:
        raise ValueError(
            f"{modality.name}: fault 'other' needs the sensor's image of another scene: faulty(..., "
            "other=image)"
        )
    wrong = (
        _to_physical(torch.zeros_like(image), modality)
        if fault == "blank"
        else resize(other, (height, width), modality.sparse)
    )
    return (
        torch.cat([image[..., : height // 2, :], wrong[..., height // 2 :, :]], -2) if mild else wrong.clone()
    )


def _to_physical(normalised: Tensor, modality: Modality) -> Tensor:
    """The inverse of ``Modality.to_network`` for one image (C, H, W)."""
    if not modality.mean or not modality.std:
        raise ValueError(
            f"modality {modality.name!r} has no statistics; pass the one of a data set or of a trained "
            "network"
        )
    mean, std = (normalised.new_tensor(values)[:, None, None] for values in (modality.mean, modality.std))
    values = normalised * std + mean
    return values.sign() * values.abs().expm1() if modality.compress else values
