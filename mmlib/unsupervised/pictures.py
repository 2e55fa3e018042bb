"""Any sensor as a three-channel picture, which is all that a backbone trained on colour photographs can look
at.

Released code for such models stretches some sensors from each image's own minimum to its maximum before it
stores them. A fixed physical range keeps what that destroys: that this wall is warmer than the one in the
next image, or that nothing here is polarised.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modalities import Modality

DEPTH_FORMS = ("inverse", "log", "hha")


def as_picture(
    modality: Modality,
    physical: Tensor,
    form: str = "",
    *,
    range: str = "fixed",
    near: float = 1.0,
    focal: float = 0.7,
    up: tuple[float, float, float] = (0.0, -1.0, 0.0),
) -> Tensor:
    """Physical values (..., C, H, W), C = 1, 2 or 3 -> picture (..., 3, H, W), float32 in [0, 1].

    Values go from [modality.low, modality.high] to [0, 1] and are clipped there; where ``modality.compress``
    is set (events) after the logarithm. One channel is repeated three times; two channels a, b become (a, b,
    a); cosine and sine of an angle become (sin, cos, sin). Distances, ``modality.picture == "range"``, have
    forms of their own. Before, a pixel that measured nothing takes the mean of those of its eight neighbours
    that did, for holes and the gaps of a LiDAR are edges to a backbone; what remains is black:

    * ``"inverse"`` (default): near / d, at most 1. Planes become linear ramps; what lies far is dark.
    * ``"log"``: 1 at ``near`` falling to 0 at ``modality.high``, even in log d. Shows more of a street, whose
    distances span decades.
    * ``"hha"``: disparity near / d, height above the lowest point of this image (0 to 3 m), and the angle
      between the surface's normal and up (0 to 180 degrees; floor 0, wall 1/2, ceiling 1). An approximation
      of HHA: the pinhole camera has the focal length given, its axis in the image's centre, and stands level
      unless ``up`` says otherwise. For one channel: depth along the axis.

    Further channels of a distance sensor (intensity, height of a LiDAR) are shown as log(1 + x) over log(1 +
    high).

    Args:
        range: "fixed", or "image": every channel of every image is stretched from its own minimum to its
            maximum, as released code does for polarisation. Absolute scale is lost and noise fills the range
            where there is no signal.
        near: metres; distances below look the same. focal: focal length in image widths. up: direction
            against gravity in the camera's frame (x right, y down, z ahead), the same for every image.

    Raises:
        ValueError: an unknown form or range, another number of channels, values that are not finite.
    """
    forms = (
        ("",) if modality.picture != "range" else DEPTH_FORMS if modality.channels == 1 else DEPTH_FORMS[:2]
    )
    if form and form not in forms:
        what = f"its forms are {', '.join(forms)}" if forms[0] else "it has no forms; leave form empty"
        raise ValueError(f"modality {modality.name!r}: form {form!r} is unknown; {what}")
    if range not in ("fixed", "image"):
        raise ValueError(
            f"modality {modality.name!r}: range {range!r} is unknown; expected 'fixed' or 'image'"
        )
    if physical.ndim < 3 or physical.shape[-3] != modality.channels or modality.channels > 3:
        expected = f"(..., {modality.channels}, H, W)"
        fix = (
            "; a picture has 3 channels: prepare three of them as a modality of their own"
            if modality.channels > 3
            else ""
        )
        raise ValueError(
            f"modality {modality.name!r}: expected {expected} with at most 3 channels, got {tuple(physical.shape)}{fix}"
        )
    physical = physical.float()
    if not torch.isfinite(physical).all():
        raise ValueError(
            f"modality {modality.name!r}: NaN or infinite values; replace them (sparse sensor: 0 = no measurement)"
        )
    if modality.picture == "range":
        planes = _range_planes(modality, physical, form or forms[0], near, focal, up)
    else:
        ends = physical.new_tensor([modality.low, modality.high])
        low, high = modality.compressed(ends).tolist()
        planes = (modality.compressed(physical) - low) / (high - low)
        if modality.picture == "angle" and modality.channels == 2:
            planes = planes.flip(-3)
    if range == "image":
        low, high = planes.amin((-2, -1), True), planes.amax((-2, -1), True)
        planes = (planes - low) / (high - low).clamp(min=1e-12)
    channels = (
        {1: (0, 0, 0), 2: (0, 1, 0), 3: (0, 1, 2)}[modality.channels] if planes.shape[-3] != 3 else (0, 1, 2)
    )
    return planes[..., channels, :, :].clamp(0, 1)


def picture_options(form: dict, names: list[str]) -> dict[str, dict]:
    """Modality -> all options of ``as_picture``; what was not asked for has its default, so that the digest
    is complete.
    """
    allowed = {"form": ""} | as_picture.__kwdefaults__
    options = {name: dict(allowed) for name in names}
    for name, asked in form.items():
        asked = {"form": asked} if isinstance(asked, str) else asked
        if name not in options or set(asked) - set(allowed):
            known = f"the modalities are {', '.join(names)}, the options {', '.join(allowed)}"
            raise ValueError(f"form={{{name!r}: {asked}}} is unknown; {known}")
        options[name].update(asked)
    return options


def _range_planes(modality: Modality, physical: Tensor, form: str, near: float, focal: float, up) -> Tensor:
    if not 0 < near < modality.high:
        raise ValueError(
            f"modality {modality.name!r}: near={near} must lie between 0 and its high end, {modality.high} {modality.unit}"
        )
    flat = physical.reshape(-1, *physical.shape[-3:])
    found = (flat[:, :1] > 0).float()
    share = F.avg_pool2d(found, 3, 1, 1)
    flat = torch.where(found > 0, flat, F.avg_pool2d(flat * found, 3, 1, 1) / share.clamp(min=0.01))
    physical = flat.reshape(physical.shape)
    distance, others = physical[..., :1, :, :], physical[..., 1:, :, :]
    measured = distance > 0
    if form == "hha":
        height, angle = _height_and_angle(distance[..., 0, :, :], focal, up)
        planes = torch.stack(
            [near / distance[..., 0, :, :].clamp(min=near), height / 3.0, angle / math.pi], -3
        )
        return torch.where(measured, planes, 0.0)
    distance = distance.clamp(min=near)
    nearness = (
        near / distance
        if form == "inverse"
        else 1 - torch.log(distance / near) / math.log(modality.high / near)
    )
    return torch.cat(
        [torch.where(measured, nearness, 0.0), others.clamp(min=0).log1p() / math.log1p(modality.high)], -3
    )


def _height_and_angle(depth: Tensor, focal: float, up) -> tuple[Tensor, Tensor]:
    """Depth (..., H, W) along the axis -> metres above the lowest point of each image, and radians between
    normal and up.
    """
    h, w = depth.shape[-2:]
    if focal <= 0 or len(up) != 3 or not any(up):
        raise ValueError(
            f"focal={focal}, up={up}: expected a focal length above 0 in image widths and a direction (x, y, z)"
        )
    if min(h, w) < 2:
        raise ValueError(
            f"a depth image of {h} x {w} pixels has no surface normals; use form 'inverse' or 'log'"
        )
    up = F.normalize(depth.new_tensor(up), dim=0)
    x = ((torch.arange(w, device=depth.device) + 0.5) - w / 2) / (focal * w)
    y = ((torch.arange(h, device=depth.device) + 0.5) - h / 2) / (focal * w)
    rays = torch.stack([x.expand(h, w), y[:, None].expand(h, w), torch.ones(h, w, device=depth.device)], -1)
    points = depth[..., None] * rays
    height = points @ up
    # The lowest of measured points; a few outliers below the floor (1 %) do not count.
    flat, seen = height.reshape(-1, h * w), (depth > 0).reshape(-1, h * w)
    floors = [
        row[mask].sort().values[mask.sum() // 100] if mask.any() else row.new_zeros(())
        for row, mask in zip(flat, seen)
    ]
    height = height - torch.stack(floors).reshape(*depth.shape[:-2], 1, 1)
    right, down = torch.gradient(points, dim=-2)[0], torch.gradient(points, dim=-3)[0]
    normal = F.normalize(torch.linalg.cross(right, down, dim=-1), dim=-1)
    normal = torch.where((normal * rays).sum(-1, keepdim=True) > 0, -normal, normal)  # towards the camera
    around = F.avg_pool2d(normal.reshape(-1, h, w, 3).permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=False)
    around = F.normalize(around.permute(0, 2, 3, 1).reshape(normal.shape), dim=-1)
    return height, torch.arccos((around @ up).clamp(-1, 1))


def five_crop(image: Tensor, ratio: float = 0.5) -> Tensor:
    """(..., H, W) -> (5, ..., h, w), h and w = ``ratio`` of H and W rounded down: top left, top right, bottom
    left, bottom right, centre.

    With ratio 1/2 the first four tile an image of even size exactly and the centre overlaps a quarter of
    each.

    Raises:
        ValueError: the ratio is not in (0, 1], or a crop would be empty.
    """
    height, width = image.shape[-2:]
    h, w = int(height * ratio), int(width * ratio)
    if not 0 < ratio <= 1 or min(h, w) < 1:
        raise ValueError(
            f"ratio={ratio} of an image of {height} x {width}: expected a share in (0, 1] that leaves at least one pixel"
        )
    bottom, right, top, left = height - h, width - w, round((height - h) / 2), round((width - w) / 2)
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), (top, left))
    return torch.stack([image[..., y : y + h, x : x + w] for y, x in corners])


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N, 3, *size), bilinear; shrunk pictures are low-passed first so that thin
    things do not flicker.
    """
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    return F.interpolate(picture, tuple(size), mode="bilinear", align_corners=False, antialias=True).clamp(
        0, 1
    )


def working_size(native: tuple, size: tuple, crops: int, patch: int, where: str) -> tuple[int, int]:
    """(height, width) of what a backbone sees of an image of size ``native``; raises ValueError unless it is
    made of whole patches.
    """
    if len(size) != 2 or min(size) < 0 or (0 in size and any(size)):
        raise ValueError(
            f"size={size}: expected (height, width) in pixels, or (0, 0) to leave pictures as they are"
        )
    if crops == 5 and min(native) < 2:
        raise ValueError(f"image {where!r} has {native[0]} x {native[1]} pixels, too few for five crops")
    source = (
        f"size={size}" if any(size) else f"image {where!r}" if crops == 1 else f"a crop of image {where!r}"
    )
    h, w = size if any(size) else native if crops == 1 else (native[0] // 2, native[1] // 2)
    down = tuple(max(patch, side // patch * patch) for side in (h, w))
    up = tuple(-(-side // patch) * patch for side in (h, w))
    if (h, w) != down or (h, w) != up:
        problem = "smaller than one patch" if min(h, w) < patch else "not made of whole patches"
        works = f"size={down} works" if down == up else f"size={down} and size={up} work"
        raise ValueError(f"{source}: {h} x {w} pixels are {problem} of {patch} x {patch}; {works}")
    return h, w
