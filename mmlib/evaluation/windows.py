"""Sliding windows: any ``encode`` run on overlapping pieces of an image, its logits blended into those of the
whole image. ``evaluate``, ``compare`` and ``predict`` use them where a window is asked for.

A network trained on crops of 1024 pixels is run on windows of 1024, whatever the size of the image. The
logits are blended at the head's resolution (every 4th pixel, say), not after upsampling: that takes 16 times
less memory, upsampling does not meet window borders, and the result has the shape that ``encode`` gives for
the whole image, so that fusion and scoring need not know of windows.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from .fusion import Encode

ALIGN = 32  # the coarsest stride of our encoders


def positions(length: int, window: int, stride: int = 0) -> list[int]:
    """Where windows start along one side of an image: 0 to the first multiple of ``ALIGN`` from which the end
    is reached, spread evenly.

    Args:
        length, window: pixels. An image no longer than the window is one piece.
        stride: largest step; 0 = two thirds of the window. Rounded down to a multiple of ``ALIGN``.

    Raises:
        ValueError: a window that is no positive multiple of ``ALIGN``, or a stride outside ``ALIGN`` …
            window.
    """
    if window < ALIGN or window % ALIGN:
        nearest = max(ALIGN, round(window / ALIGN) * ALIGN)
        raise ValueError(
            f"--window {window}: expected a multiple of {ALIGN}, so that windows lie on the network's grid; "
            f"give {nearest}"
        )
    stride = stride or max(ALIGN, 2 * window // 3)
    if not ALIGN <= stride <= window:
        raise ValueError(
            f"--stride {stride}: expected {ALIGN} to {window}; a larger step would leave pixels out"
        )
    if length <= window:
        return [0]
    last = -(-(length - window) // ALIGN)
    steps = -(-last // (stride // ALIGN))
    return [ALIGN * (i * last // steps) for i in range(steps + 1)]


def _tent(cells: int, device) -> Tensor:
    """(n,) distance from each cell's centre to the nearer end of the window: ½, 1½, …, 1½, ½."""
    place = torch.arange(cells, device=device) + 0.5
    return torch.minimum(place, cells - place)


def sliding(encode: Encode, window: tuple[int, int], stride: tuple[int, int] = (0, 0)) -> Encode:
    """``encode`` on overlapping windows: a function of the same kind, for images of any size.

    Logits are averaged with weights that fall linearly from a window's centre to its edges. A pixel at an
    edge lacks its surroundings on one side, and a window that fades out leaves no seam where it ends; equal
    weights do. They need no parameter, and along a side with one window they cancel. A window that reaches
    over the end of the image sees the training mean there, as a convolution's padding does.

    Memory: one float32 map (B, K, ⌈H/s⌉, ⌈W/s⌉) a modality, s the head's stride, and the activations of B
    windows: those at one place of all B images are encoded at a time.

    Args:
        encode: images name -> (B, C, H, W) to logits name -> (B, K, ⌈H/s⌉, ⌈W/s⌉), for an s that divides
            ``ALIGN``; also one that returns fused logits under one name.
        window, stride: (height, width) in pixels; see ``positions``. Images no larger than the window go
            through ``encode`` whole.

    Windows start at multiples of ``ALIGN``, so that the network's grids on every scale are those of the whole
    image.

    Raises:
        ValueError: a window or stride that does not fit; logits of a window that are no grid of a whole
            stride.
    """
    for extent, step in zip(window, stride):
        positions(1, extent, step)  # complains at once, not at the first image

    def encode_windows(images: dict[str, Tensor]) -> dict[str, Tensor]:
        size = next(iter(images.values())).shape[-2:]
        starts = [positions(length, side, step) for length, side, step in zip(size, window, stride)]
        if max(map(len, starts)) == 1:
            return encode(images)
        extent = [min(length, side) for length, side in zip(size, window)]
        below, right = (begin[-1] + side - length for begin, side, length in zip(starts, extent, size))
        padded = {name: F.pad(image, (0, right, 0, below)) for name, image in images.items()}
        blended = {}
        for corner in product(*starts):
            rows, columns = (slice(start, start + side) for start, side in zip(corner, extent))
            for name, logits in encode({n: image[..., rows, columns] for n, image in padded.items()}).items():
                cells = logits.shape[-2:]
                if any(start * n % side for start, n, side in zip(corner, cells, extent)):
                    raise ValueError(
                        f"{name}: logits of {tuple(cells)} for a window of {extent}; expected a stride that "
                        f"divides {ALIGN}"
                    )
                if name not in blended:  # the last plane sums the weights
                    grid = [begin[-1] * n // side + n for begin, side, n in zip(starts, extent, cells)]
                    blended[name] = logits.new_zeros(
                        (len(logits), logits.shape[1] + 1, *grid), dtype=torch.float32
                    )
                weight = torch.outer(*(_tent(n, logits.device) for n in cells))
                top, left = (start * n // side for start, n, side in zip(corner, cells, extent))
                place = blended[name][..., top : top + cells[0], left : left + cells[1]]
                place[:, :-1] += weight * logits.float()
                place[:, -1] += weight
        for name, total in blended.items():
            total[:, :-1] /= total[:, -1:]  # in place: every map only once
            height, width = (-(-length * n // side) for length, n, side in zip(size, cells, extent))
            blended[name] = total[:, :-1, :height, :width]
        return blended

    return encode_windows
