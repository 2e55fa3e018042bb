"""Any sensor as a picture of three channels, the only thing that a backbone trained on photographs can read.

Called where tokens are extracted, where an image guides a clustering, and by the figures. Values go through
the sensor's fixed physical range: released code often stretches each image from its own minimum to its
maximum, which hides that this wall is warmer than the one in the next image.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modalities import Modality

DepthForm = Literal["inverse", "log", "hha"]
# Part of the key of every cached token. Raise it when a function of this file returns other values than
# before; names, comments and speed do not count.
VERSION = 1
NEAR = 1.0  # metres; smaller distances look the same
FOCAL = 0.7  # focal length in image widths of the camera that form "hha" assumes


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
    * "hha": disparity near / d; height above the lowest point of this image (0 to 3 m); angle between the
      surface's normal and up (0 to 180 degrees; floor 0, wall 1/2, ceiling 1). It assumes a level pinhole
      camera with focal length ``FOCAL``, and depth along the axis.

    Raises:
        ValueError: an unknown form, another number of channels.
    """
    where = f"modality {modality.name!r}"
    if depth_form not in ("inverse", "log", "hha"):
        raise ValueError(f"{where}: depth form {depth_form!r} is unknown; expected inverse, log or hha")
    if physical.ndim < 3 or physical.shape[-3] != modality.channels or modality.channels > 3:
        raise ValueError(
            f"{where}: expected (..., {modality.channels}, H, W), got {tuple(physical.shape)}; of more than "
            "3 channels prepare three as a modality of their own"
        )
    physical = physical.float()
    if modality.picture == "range":
        planes = _range_planes(modality, physical, depth_form if modality.channels == 1 else "inverse")
    else:
        ends = physical.new_tensor([modality.low, modality.high])
        low, high = modality.compressed(ends).tolist()
        planes = (modality.compressed(physical) - low) / (high - low)
        if modality.picture == "angle" and modality.channels == 2:
            planes = planes.flip(-3)
    channels = {1: (0, 0, 0), 2: (0, 1, 0), 3: (0, 1, 2)}[planes.shape[-3]]
    return planes[..., channels, :, :].clamp(0, 1)


def _range_planes(modality: Modality, physical: Tensor, form: DepthForm) -> Tensor:
    """Distance in the first channel, others behind it -> planes (..., 1 to 3, H, W) of ``as_picture``."""
    if modality.high <= NEAR:
        raise ValueError(
            f"modality {modality.name!r}: its high end, {modality.high} {modality.unit}, must lie above "
            f"{NEAR} m"
        )
    # Fill holes with the mean of the measured neighbours.
    flat = physical.reshape(-1, *physical.shape[-3:])
    has_value = (flat[:, :1] > 0).float()
    share = F.avg_pool2d(has_value, 3, 1, 1)
    flat = torch.where(has_value > 0, flat, F.avg_pool2d(flat * has_value, 3, 1, 1) / share.clamp(min=0.01))
    physical = flat.reshape(physical.shape)
    distance, others = physical[..., :1, :, :], physical[..., 1:, :, :]
    measured = distance > 0
    clipped = distance.clamp(min=NEAR)
    nearness = NEAR / clipped
    if form == "log":
        nearness = 1 - torch.log(clipped / NEAR) / math.log(modality.high / NEAR)
    further = others.clamp(min=0).log1p() / math.log1p(modality.high)
    if form == "hha":
        height, angle = _height_and_angle(distance[..., 0, :, :])
        further = torch.where(measured, torch.stack([height / 3.0, angle / math.pi], -3), 0.0)
    return torch.cat([torch.where(measured, nearness, 0.0), further], -3)


def _height_and_angle(depth: Tensor) -> tuple[Tensor, Tensor]:
    """Depth (..., H, W) along the axis -> metres above the lowest point of each image, and radians between
    normal and up.
    """
    h, w = depth.shape[-2:]
    if min(h, w) < 2:
        raise ValueError(f"a depth image of {h} x {w} pixels has no normals; use form 'inverse' or 'log'")
    # Points in the camera's frame: x right, y down, z ahead.
    x = ((torch.arange(w, device=depth.device) + 0.5) - w / 2) / (FOCAL * w)
    y = ((torch.arange(h, device=depth.device) + 0.5) - h / 2) / (FOCAL * w)
    rays = torch.stack([x.expand(h, w), y[:, None].expand(h, w), torch.ones(h, w, device=depth.device)], -1)
    points = depth[..., None] * rays
    # Height above the lowest measured point; a few outliers below the floor (1 %) do not count.
    height = -points[..., 1]
    floors = []
    for row, measured in zip(height.reshape(-1, h * w), (depth > 0).reshape(-1, h * w)):
        values = row[measured].sort().values
        floors.append(values[len(values) // 100] if len(values) else row.new_zeros(()))
    height = height - torch.stack(floors).reshape(*depth.shape[:-2], 1, 1)
    # Normals from the differences of neighbouring points, turned towards the camera and averaged over 3 x 3.
    right, down = torch.gradient(points, dim=-2)[0], torch.gradient(points, dim=-3)[0]
    normal = F.normalize(torch.linalg.cross(right, down, dim=-1), dim=-1)
    normal = torch.where((normal * rays).sum(-1, keepdim=True) > 0, -normal, normal)
    around = F.avg_pool2d(normal.reshape(-1, h, w, 3).permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=False)
    around = F.normalize(around.permute(0, 2, 3, 1).reshape(normal.shape), dim=-1)
    return height, torch.arccos((-around[..., 1]).clamp(-1, 1))


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


def working_size(native: tuple, size: tuple, crops: int, patch: int, where: str) -> tuple[int, int]:
    """(height, width) of what a backbone is given of an image of size ``native``.

    Raises:
        ValueError: it is not made of whole patches; says which sizes are.
    """
    if crops == 5 and min(native) < 2:
        raise ValueError(f"image {where!r} has {native[0]} x {native[1]} pixels, too few for five crops")
    native_size = native if crops == 1 else (native[0] // 2, native[1] // 2)
    (h, w), source = (size, f"size={size}") if any(size) else (native_size, f"image {where!r}, crops={crops}")
    down = tuple(max(patch, side // patch * patch) for side in (h, w))
    up = tuple(-(-side // patch) * patch for side in (h, w))
    if (h, w) != down or (h, w) != up:
        works = " or ".join(f"size={fitting}" for fitting in sorted({down, up}))
        raise ValueError(
            f"{source}: {h} x {w} pixels are not made of whole patches of {patch} x {patch}; give {works}"
        )
    return h, w
