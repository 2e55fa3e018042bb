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

import copy
import sys
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import AtLeast, Between, check_value
from ..modalities import Modality
from ..runtime import derived_seed
from .images import DataError
from .prepared import PreparedDataset
from .transforms import resize

PROTOCOLS = ("drop", "zero", "black", "noise")
FAULTS = ("dark", "noise", "shift", "blur", "blank", "other")
SEVERITIES = ("mild", "gross")


def complete(dataset: PreparedDataset) -> PreparedDataset:
    """The samples of a split that have all of its modalities; the data set itself, where all have. Says on
    stderr how many are left out.

    Raises:
        DataError: none has.
    """
    whole, names = copy.copy(dataset), [*dataset.modalities]
    whole.rows = [row for index, row in enumerate(dataset.rows) if dataset.present(index) == names]
    whole._cache = {}
    if len(whole) == len(dataset):
        return dataset
    lacking = f"{len(dataset) - len(whole)} of {len(dataset)} samples lack some of {', '.join(names)}"
    message = f"{dataset.root}, {dataset.split}: {lacking}"
    if not whole.rows:
        raise DataError(f"{message}, so that none is left; take fewer sensors")
    print(f"{message}, and are left out", file=sys.stderr)
    return whole


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
    check_value(f"{modality.name}: gain", gain, float, Between(0, 1))
    check_value(f"{modality.name}: noise", noise, float, AtLeast(0))
    if gain == 1 and noise == 0:
        return image.clone()
    generator = torch.Generator().manual_seed(derived_seed(seed, modality.name))
    if modality.sparse:
        returned = torch.rand(image[..., :1, :, :].shape, generator=generator).to(image) < gain
        points = (image != 0).any(-3, keepdim=True) & returned
    else:
        # The cosine and sine of an angle fade to 0, not to -1.
        floor = 0.0 if modality.picture == "angle" else modality.low
        image = floor + gain * (image - floor)
    spread = noise * (modality.high - modality.low)
    noisy = image + spread * torch.randn(image.shape, generator=generator).to(image)
    if not modality.sparse:
        return noisy
    # Ranges stay ranges; heights may lie below the sensor.
    return torch.where(image < 0, noisy, noisy.clamp_min(0)).where(points, 0.0)


def _noise(image: Tensor, *seeds) -> Tensor:
    """Standard Gaussian noise of the shape and kind of ``image``; the seeds alone decide which."""
    generator = torch.Generator().manual_seed(derived_seed(*seeds))
    return torch.randn(image.shape, generator=generator).to(image)


def remove(
    images: dict[str, Tensor], missing, protocol: str, modalities: dict[str, Modality], seed: int = 0
) -> dict[str, Tensor]:
    """Network-space images (B, C, H, W) by name -> the same with the sensors named in ``missing`` gone by
    ``protocol``.

    Raises:
        ValueError: unknown protocol, or "drop" would leave no sensor. KeyError: an unknown sensor.
    """
    check_value("protocol", protocol, Literal[PROTOCOLS])
    result = dict(images)
    for name in missing:
        image = torch.zeros_like(images[name])
        if protocol == "drop":
            result.pop(name, None)
        elif protocol == "zero":
            result[name] = image
        elif protocol == "black":
            result[name] = modalities[name].to_network(image)
        else:
            result[name] = _noise(image, seed, name)
    if not result:
        raise ValueError(f"every sensor of {', '.join(images)} is missing; keep at least one")
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
    check_value("fault", fault, Literal[FAULTS])
    check_value("severity", severity, Literal[SEVERITIES])
    mild, sparse = severity == "mild", modality.sparse
    height, width = size = image.shape[-2:]
    if fault == "dark":
        return degrade(image, modality, gain=0.25 if mild else 0.0, seed=seed)
    if fault == "shift":
        step = max(1, round(width / (32 if mild else 8)))
        # What moves in from the left: the edge again, or nothing where 0 means "no measurement".
        return F.pad(image[..., :-step], (step, 0), "constant" if sparse else "replicate")
    if fault == "blur":
        factor = 4 if mild else 16
        return resize(resize(image, tuple(max(1, side // factor) for side in size), sparse), size, sparse)
    if fault == "noise":
        noise = _noise(image, seed, modality.name, severity)
        return modality.from_network(0.5 * noise + modality.to_network(image) if mild else noise)
    if fault == "blank":
        wrong = modality.from_network(torch.zeros_like(image))
    elif other is None:
        raise ValueError(f"{modality.name}: fault 'other' needs the sensor's image of another scene")
    else:
        wrong = resize(other, size, sparse)
    sound = height // 2 if mild else 0
    return torch.cat([image[..., :sound, :], wrong[..., sound:, :]], -2)
