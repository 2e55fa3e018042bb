"""Any sensor as a picture of three channels, the only thing that a backbone trained on photographs can read.

Called where tokens are extracted, where an image guides a clustering, and by the figures. Values go through
the sensor's fixed physical range: released code often stretches each image from its own minimum to its
maximum, which hides that this wall is warmer than the one in the next image.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import check_value
from ..modalities import Modality

DepthForm = Literal["inverse", "log"]
# Part of the key of every cached token. Raise it when a function of this file returns other values than
# before; names, comments and speed do not count.
VERSION = 1
NEAR = 1.0  # metres; smaller distances look the same


def as_picture(modality: Modality, physical: Tensor, depth_form: DepthForm = "inverse") -> Tensor:
    """Physical values (..., C, H, W), C = 1, 2 or 3 -> picture (..., 3, H, W), float32 in [0, 1].

    Values go from [modality.low, modality.high] to [0, 1] and are clipped there; where ``modality.compress``
    is set (events) after the logarithm. One channel is repeated three times; two channels a, b become (a, b,
    a); cosine and sine of an angle become (sin, cos, sin).

    Distances (``modality.picture == "range"``) first fill each pixel that measured nothing with the mean of
    its measured neighbours among eight, because a backbone takes holes and gaps of a LiDAR for edges; what
    remains empty is black. Then ``depth_form`` says how a sensor of one channel is shown; others (LiDAR) have
    form "inverse", and their further channels (intensity, height) are log(1 + x) over log(1 + high):

    * "inverse": near / d with near = 1 m, at most 1. Planes become linear ramps; far things are dark.
    * "log": 1 at 1 m, 0 at ``modality.high``, linear in log d. Shows more of a street.

    HHA needs the camera and is a sensor of its own, which ``data_scripts/prepare_nyu.py`` computes.

    Raises:
        ValueError: an unknown form, another number of channels.
    """
    check_value("depth form", depth_form, DepthForm)
    expected = f"modality {modality.name!r}: expected"
    if physical.ndim < 3 or physical.shape[-3] != modality.channels or modality.channels > 3:
        raise ValueError(
            f"{expected} (..., {modality.channels}, H, W), got {tuple(physical.shape)}; of more than "
            "3 channels prepare three as a modality of their own"
        )
    physical = physical.float()
    if modality.picture == "range":
        if modality.high <= NEAR:
            raise ValueError(f"{expected} distances beyond {NEAR} m, got a high end of {modality.high}")
        images = physical.reshape(-1, *physical.shape[-3:])
        # Fill holes with the mean of the measured neighbours.
        has_value = (images[:, :1] > 0).float()
        share = F.avg_pool2d(has_value, 3, 1, 1).clamp(min=0.01)
        images = torch.where(has_value > 0, images, F.avg_pool2d(images * has_value, 3, 1, 1) / share)
        distance, others = images.tensor_split([1], 1)
        clipped = distance.clamp(min=NEAR)
        nearness = NEAR / clipped
        if depth_form == "log" and modality.channels == 1:
            nearness = 1 - torch.log(clipped / NEAR) / math.log(modality.high / NEAR)
        further = others.clamp(min=0).log1p() / math.log1p(modality.high)
        planes = torch.cat([torch.where(distance > 0, nearness, 0.0), further], 1).reshape(physical.shape)
    else:
        ends = physical.new_tensor([modality.low, modality.high])
        low, high = modality.compressed(ends).tolist()
        planes = (modality.compressed(physical) - low) / (high - low)
        if modality.picture == "angle" and modality.channels == 2:
            planes = planes.flip(-3)
    channels = {1: (0, 0, 0), 2: (0, 1, 0), 3: (0, 1, 2)}[planes.shape[-3]]
    return planes[..., channels, :, :].clamp(0, 1)


def five_crop(image: Tensor) -> Tensor:
    """(..., H, W) -> (5, ..., H // 2, W // 2): top left, top right, bottom left, bottom right, centre. The
    first four tile an image of even size exactly.
    """
    from torchvision.transforms import functional  # imported late: small runs do not need it

    return torch.stack(functional.five_crop(image, [side // 2 for side in image.shape[-2:]]))


def resize_picture(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N, 3, *size), bilinear; pictures that shrink are low-passed first, so that
    thin things do not flicker.
    """
    from torchvision.transforms import functional

    return functional.resize(picture, list(size), antialias=True).clamp(0, 1)
