"""What happens between two encoders, scale by scale, where one sensor has the main branch: CMX's
rectification and fusion, or a plain addition.

CMX: Zhang et al., "CMX: Cross-Modal Fusion for RGB-X Semantic Segmentation With Transformers", IEEE T-ITS
2023. CMNeXt, for several auxiliary sensors: Zhang et al., "Delivering Arbitrary-Modal Semantic Segmentation",
CVPR 2023. The modules are those of the papers and have as many parameters as the released ones. What differs:
GroupNorm stands in the place of BatchNorm, so that no sample depends on the others in its batch; and the
auxiliary branch has the encoder's own stages, as in CMX, after which the hub selects (CMNeXt's selects before
them, and its stages are blocks of parallel pooling).

Both streams are one tensor (B, 2C, H, W), the main branch first: convolutions with two groups have weights of
their own for each.
"""

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import group_norm


def gates(channels_in: int, hidden: int, channels: int) -> nn.Module:
    """A perceptron of two layers at every position, whose outputs lie between 0 and 1."""
    first, second = nn.Conv2d(channels_in, hidden, 1), nn.Conv2d(hidden, channels, 1)
    return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.Sigmoid())


class Rectification(nn.Module):
    """CMX's feature rectification: each stream receives the features of the other one, weighted by channel
    and by position.

    x̂₁ = x₁ + λ_C w₂ᶜ x₂ + λ_S w₂ˢ x₂, and the same with 1 and 2 exchanged; λ_C = λ_S = ½. The weights of the
    channels, wᶜ, come from the mean and the maximum of both streams over the image, those of the positions,
    wˢ, from both streams at that position.
    """

    def __init__(self, width: int):
        super().__init__()
        self.channels = gates(4 * width, 4 * width, 2 * width)
        self.positions = gates(2 * width, width, 2)

    def forward(self, both: Tensor) -> Tensor:
        """Features (B, 2C, H, W), rectified."""
        pooled = torch.cat([both.mean((2, 3), keepdim=True), both.amax((2, 3), keepdim=True)], 1)
        streams = both.unflatten(1, (2, -1))
        weights = self.channels(pooled).unflatten(1, (2, -1)) + self.positions(both).unsqueeze(2)
        return (streams + (weights / 2 * streams).flip(1)).flatten(1, 2)


class Fusion(nn.Module):
    """CMX's feature fusion: the streams exchange information by cross-attention, and are merged.

    Each stream is mapped to a residual part and an attended part u. That part gives keys and values, and they
    a global context G = softmax(KᵀV / √d) for each head of d channels; its size does not depend on the number
    of positions. Each stream reads the context of the other one, u₁ G₂. With the residual part it is mapped
    back to C channels, added to the input, and normalised at every position. Then both streams are embedded
    into C channels: 1×1, depth-wise 3×3 and 1×1 convolutions, beside a 1×1 convolution as the residual path.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, double = heads, 2 * width
        self.enter = nn.Conv2d(double, 2 * double, 1, groups=2)
        self.attend = nn.Conv2d(double, 2 * double, 1, groups=2, bias=False)
        self.leave = nn.Conv2d(2 * double, double, 1, groups=2)
        self.normalise = nn.GroupNorm(2, double)  # of single positions: LayerNorm, one for each stream
        self.residual = nn.Conv2d(double, width, 1, bias=False)
        self.embed = nn.Sequential(
            nn.Conv2d(double, width, 1),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
            group_norm(width),
        )
        self.norm = group_norm(width)

    def forward(self, both: Tensor) -> Tensor:
        """Features of both streams (B, 2C, H, W) to fused ones (B, C, H, W)."""
        halves = lambda x: x.unflatten(1, (2, 2, -1)).unbind(2)  # (B, 4C, H, W) to two of (B, 2, C, H, W)
        split = lambda x: x.unflatten(2, (self.heads, -1)).flatten(4)  # to (B, 2, heads, d, HW)
        rest, u = halves(F.relu(self.enter(both)))
        keys, values = map(split, halves(self.attend(u.flatten(1, 2))))
        context = (keys @ values.mT / keys.shape[3] ** 0.5).softmax(3)
        attended = context.flip(1).mT @ split(u)
        x = both + self.leave(torch.cat([rest, attended.view_as(rest)], 2).flatten(1, 2))
        at_positions = x.movedim(1, 3)
        x = self.normalise(at_positions.flatten(0, 2)).view(at_positions.shape).movedim(3, 1)
        return self.norm(self.residual(x) + self.embed(x))


class Exchange(nn.Module):
    """What CMX, or CMNeXt where there are several auxiliary sensors, does at one scale.

    CMNeXt's self-query hub gives each auxiliary sensor a score s at every position, x ← x + s x, and takes
    the largest response of all of them into the exchange with the main branch. What comes back from there is
    added to each.

    Args:
        width: number of channels C.
        head: number of channels of an attention head, as far as it divides C.
        auxiliaries: number of auxiliary sensors.
    """

    def __init__(self, width: int, head: int, auxiliaries: int):
        super().__init__()
        score = lambda: nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, 1, 1), nn.Sigmoid()
        )
        self.scores = nn.ModuleList(score() for _ in range(auxiliaries) if auxiliaries > 1)
        self.rectify = Rectification(width)
        self.fuse = Fusion(width, gcd(width, max(1, width // head)))

    def forward(self, main: Tensor, others: list[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Features of the main branch and of each auxiliary sensor (B, C, H, W), to those that go on to the
        next stage, and the fused ones, for the head.
        """
        if self.scores:
            others = [x + score(x) * x for score, x in zip(self.scores, others)]
        both = self.rectify(torch.cat([main, torch.stack(others).amax(0)], 1))
        main, hub = both.chunk(2, 1)
        return main, [x + hub for x in others] if self.scores else [hub], self.fuse(both)


def addition(main: Tensor, others: list[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
    """As ``Exchange``, but the largest response is only added to the main branch; sensors may be missing."""
    main = main + torch.stack(others).amax(0) if others else main
    return main, others, main
