"""The network that UniM2 trains: modality-specific networks (MSN), fusion Ψ, head S, cross-modal harmonizers
(CMH). It turns frozen tokens of every modality into one code per location, s = S(Ψ(MSN(f_rgb), MSN(f_X), …))
(paper, section 3.2); ``train`` trains it and ``segment`` applies it.

All parts but CBAM's gates work on each location alone. Where the paper leaves a width or a norm open, the
released code decides: MSN is a bottleneck without a shortcut, and the maps that enter Ψ have unit length at
each location.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise, permutations
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AtLeast, Between, check_settings
from .correspondence import Points

STATIC_FUSIONS = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}  # Table 7


@dataclass(frozen=True)
class ClusterNetConfig:
    """What the trained network is made of."""

    dim: Annotated[int, AtLeast(1, why="the paper uses 70 to 320")] = 70
    """Length D of the code at each location."""
    fusion: Literal["conv", "progressive", "sum", "mean", "max", "cbam", "stitch", "none"] = "conv"
    """conv: the paper's Ψ; progressive: its released form for materials; sum, mean, max: Table 7; cbam,
    stitch: baselines; none: the reference alone is read, others only supervise.
    """
    msn: bool = True
    """A modality-specific network before fusion (Table 5); without it the frozen tokens themselves are fused.
    """
    residual: bool = False
    """Add the frozen tokens to what the modality-specific network returns."""
    normalize: bool = True
    """Scale each modality to unit length per location before fusion: the released code does, the paper does
    not say so.
    """
    dropout: Annotated[float, Between(0, 1, without=(1,))] = 0.1
    """Share of channels that the head drops, drawn anew for each of its two branches."""
    anchor: Literal["rgb", "auxiliary", "both", "none"] = "rgb"
    """Modalities that supervise the code itself, without a harmonizer (Table 6): RGB, all the others, both,
    or none.
    """
    shared_cmh: bool = False
    """One harmonizer for all modalities that need one, as in the released code, instead of one each, as in
    the paper.
    """


pointwise = partial(nn.Conv2d, kernel_size=1)  # a linear map of the channels, the same at every location


def two_layers(channels_in: int, hidden: int, channels: int) -> nn.Sequential:
    """channels_in -> hidden, ReLU, hidden -> channels at each location."""
    return nn.Sequential(pointwise(channels_in, hidden), nn.ReLU(), pointwise(hidden, channels))


class MSN(nn.Module):
    """Modality-specific network: C -> C/2, ReLU, C/2 -> C at each location; ``residual`` adds the input."""

    def __init__(self, channels: int, residual: bool = False):
        super().__init__()
        self.residual = residual
        self.body = two_layers(channels, -(-channels // 2), channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class ConvFusion(nn.Module):
    """Ψ: n maps (B, C, h, w), concatenated, to one: nC -> (n+1)C/2, ReLU, (n+1)C/2 -> C, as in the released
    code for depth and for thermal.

    ``progressive``, its form for classes of materials, which the paper does not mention: nC -> (n-1)C -> … ->
    C -> C with BatchNorm and ReLU between the maps.
    """

    def __init__(self, channels: int, count: int, progressive: bool = False):
        super().__init__()
        if progressive:
            widths = [*range(count * channels, 0, -channels), channels]
            layers = [(pointwise(a, b), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)]
            self.body = nn.Sequential(*chain.from_iterable(layers))[:-2]
        else:
            self.body = two_layers(count * channels, (count + 1) * channels // 2, channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.body(torch.cat(maps, 1))


class CBAMFusion(nn.Module):
    """Channel gate, then spatial gate on the concatenation (Woo et al. 2018), then a linear map to C
    channels.

    Channel gate: σ(MLP(mean) + MLP(max)) over locations, MLP nC -> nC/16 -> nC; spatial gate: σ(7×7
    convolution of mean and maximum over channels). UniM2 names this baseline without its settings; acting on
    the concatenation is our choice.
    """

    def __init__(self, channels: int, count: int):
        super().__init__()
        wide = count * channels
        self.mlp = two_layers(wide, max(1, wide // 16), wide)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        self.project = pointwise(wide, channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = torch.cat(maps, 1)
        x = x * (self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))).sigmoid()
        x = x * self.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        return self.project(x)


class StitchFusion(nn.Module):
    """Small adapters carry each modality's map into each other's; then concatenation and a linear map to C
    channels.

    x_i + Σ_{j≠i} A_{j→i}(x_j), with A: C -> 8 -> 8, GELU, dropout 0.1, 8 -> C, whose last map starts at zero.
    In StitchFusion (Li et al.) such adapters sit inside the frozen backbone, after the attention and after
    the MLP of every block, so that one sensor's intermediate features change what the other attends to. That
    needs gradients through the backbone in every step and tokens that depend on trained weights: they could
    not be cached, and a step would cost as much as the backbone's training. Here the exchange happens once,
    on the backbone's output. The original's depth-wise convolutions and gate behind the fusion are left out
    too, so that this differs from ``conv`` by its adapters and not by looking at neighbours.
    """

    def __init__(self, channels: int, count: int):
        super().__init__()
        self.adapters = nn.ModuleDict()
        for i, j in permutations(range(count), 2):
            first = [pointwise(channels, 8), pointwise(8, 8)]
            adapter = nn.Sequential(*first, nn.GELU(), nn.Dropout(0.1), pointwise(8, channels))
            self.adapters[f"{j}_to_{i}"] = adapter
            for parameter in adapter[-1].parameters():
                nn.init.zeros_(parameter)
        self.project = pointwise(count * channels, channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        stitched = list(maps)
        for i, j in permutations(range(len(maps)), 2):
            stitched[i] = stitched[i] + self.adapters[f"{j}_to_{i}"](maps[j])
        return self.project(torch.cat(stitched, 1))


LEARNED_FUSIONS = {
    "conv": ConvFusion,
    "progressive": partial(ConvFusion, progressive=True),
    "cbam": CBAMFusion,
    "stitch": StitchFusion,
}


class SegmentationHead(nn.Module):
    """S, the head of STEGO: code = L(drop(x)) + N(drop(x)), L: C -> D, N: C -> C, ReLU, C -> D; the two drops
    are independent.
    """

    def __init__(self, channels: int, dim: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.linear = pointwise(channels, dim)
        self.nonlinear = two_layers(channels, channels, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x)) + self.nonlinear(self.dropout(x))


class ClusterNet(nn.Module):
    """Frozen tokens of its modalities -> codes (B, D, h, w), to be clustered by cosine.

    Args:
        channels: C, the backbone's token length, the same for all modalities.
        modalities: their names. The reference is "rgb" where there is one, else the first; the others are
            auxiliary. With a single modality, fusion is the identity (with ``msn=False`` this is STEGO's
            network).

    Raises:
        ValueError: a setting outside its bounds.
    """

    def __init__(
        self, channels: int, modalities: Sequence[str], config: ClusterNetConfig = ClusterNetConfig()
    ):
        super().__init__()
        check_settings(config)
        names = list(modalities)
        self.channels, self.modalities, self.config = channels, names, config
        self.reference = "rgb" if "rgb" in names else names[0]
        self.inputs = [self.reference] if config.fusion == "none" else names
        self.msn = nn.ModuleDict({name: MSN(channels, config.residual) for name in self.inputs if config.msn})
        learned = LEARNED_FUSIONS.get(config.fusion)
        self.fusion = learned(channels, len(self.inputs)) if learned and len(self.inputs) > 1 else None
        self.head = SegmentationHead(channels, config.dim, config.dropout)
        # Table 6: an anchor supervises the code itself, all others, the soft ones, through a harmonizer.
        auxiliary = tuple(name for name in names if name != self.reference)
        soft = {"rgb": auxiliary, "auxiliary": (self.reference,), "both": (), "none": tuple(names)}
        self.soft = soft[config.anchor]
        # CMH (Eq. 7): D -> D, ReLU, D -> D at each location.
        keys = ("shared",) if config.shared_cmh and self.soft else self.soft
        self.harmonizers = nn.ModuleDict({key: two_layers(*[config.dim] * 3) for key in keys})

    def fused(self, tokens: Points) -> Tensor:
        """f_fus (B, C, h, w), what the head reads (paper, Fig. 5)."""
        maps = [self.msn[name](tokens[name]) if self.config.msn else tokens[name] for name in self.inputs]
        if len(maps) == 1:
            return maps[0]
        if self.config.normalize:
            maps = [F.normalize(x, dim=1, eps=1e-10) for x in maps]
        return self.fusion(maps) if self.fusion else STATIC_FUSIONS[self.config.fusion](torch.stack(maps), 0)

    def forward(self, tokens: Points) -> Tensor:
        """The code s (B, D, h, w). No harmonizer takes part: they serve the loss only."""
        return self.head(self.fused(tokens))

    def harmonized(self, code: Tensor, name: str) -> Tensor:
        """The code as modality ``name`` supervises it: Eq. 7, s^X = CMH(s), or s itself where the modality is
        an anchor, or a sum or mean of modalities.
        """
        if name not in self.soft:
            return code
        return self.harmonizers["shared" if self.config.shared_cmh else name](code)
