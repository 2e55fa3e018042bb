"""The segmenter (Eq. 5): one shared encoder for all modalities, an all-MLP head, predictions averaged over
what is present.

All modalities of a mini-batch are stacked along the batch dimension, so M sensors cost one forward pass of
M·B images. A missing modality is left out of the stack: it costs nothing, and no zeros pretend to be an
image. The other fusion, ``centred``, shows what the paper argues against: one sensor has the main branch, the
others are added to it. Training, scoring, prediction and export build and load it here.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AtLeast, Between, check_settings
from ..data.prepared import Description
from ..evaluation.fusion import FUSIONS
from ..evaluation.windows import sliding
from ..modalities import Modality
from ..runtime import load_into, read_tensor_header, read_tensors, reading, save_tensors

Tensors = Mapping[str, Tensor]  # one of each modality, by name
EncoderName = Literal[
    "residual", "pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b3", "pvt_v2_b4", "pvt_v2_b5"
]


@dataclass(frozen=True)
class NetworkConfig:
    """What the network is made of."""

    encoder: EncoderName = "residual"
    """residual: 0.5 M parameters, for training from scratch on a CPU; pvt_v2_b*: timm's pyramid transformers
    (the paper's size class).
    """
    stem: Literal["separate", "shared"] = "separate"
    """separate: each modality has a first layer of its own; shared: one for all, as in the paper."""
    fusion: Literal["mean", "centred"] = "mean"
    """mean: all sensors alike, predictions averaged; centred: the first sensor's branch, to whose features
    the others' are added.
    """
    embed_dim: Annotated[int, AtLeast(0)] = 0
    """Width of the head; 0 = 48 for residual, 256 for pvt_v2."""
    dropout: Annotated[float, Between(0, 1)] = 0.1
    """Dropout before the classifier."""
    pretrained: bool = False
    """Start pvt_v2 from ImageNet weights, fetched by timm from the Hugging Face hub."""
    checkpointing: bool = False
    """Recompute pvt_v2 activations in the backward pass: less memory, about a third more time."""


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of 8 channels. Not BatchNorm: its statistics would mix modalities, and one sensor's loss would
    change another's output.
    """
    return nn.GroupNorm(max(1, channels // 8), channels)


def conv_norm(channels_in: int, channels: int, size: int, stride: int) -> list[nn.Module]:
    """A convolution without bias, which keeps the image's size but for the stride, and GroupNorm."""
    conv = nn.Conv2d(channels_in, channels, size, stride, size // 2, bias=False)
    return [conv, group_norm(channels)]


class ResidualBlock(nn.Module):
    """conv 3×3 of stride 2, GroupNorm, ReLU, conv 3×3, GroupNorm, plus the projected input, ReLU."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        first, second = conv_norm(channels_in, channels, 3, 2), conv_norm(channels, channels, 3, 1)
        self.body = nn.Sequential(*first, nn.ReLU(inplace=True), *second)
        self.shortcut = nn.Sequential(*conv_norm(channels_in, channels, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def residual_stem(channels: int) -> nn.Module:
    return nn.Sequential(*conv_norm(channels, 16, 5, 2), nn.ReLU(inplace=True))


def pyramid_stem(template: nn.Module, channels: int) -> nn.Module:
    """A copy of a pyramid transformer's first layer for ``channels`` inputs; pretrained colour filters are
    adapted by timm's rule.
    """
    from timm.models import adapt_input_conv

    stem = deepcopy(template)
    old = stem.proj
    stem.proj = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    stem.proj.load_state_dict({"weight": adapt_input_conv(channels, old.weight), "bias": old.bias})
    return stem


class Encoder(nn.Module):
    """What a stem has made of an image -> features of several scales, fine to coarse.

    ``residual`` has strides 2 (the stem's own features), 4, 8, 16 and 32; timm's ``pvt_v2_b*`` strides 4, 8,
    16 and 32 (Wang et al. 2022).

    Attributes:
        widths: channels of each scale.
        smallest: shortest image side, in pixels.
        make_stem: number of channels of a modality -> a new first layer for it.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        if config.encoder == "residual":
            self.widths, self.smallest, self.make_stem = [16, 32, 64, 96, 128], 1, residual_stem
            self.stages = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(self.widths))
            return
        import timm  # imported late: it takes seconds, and small runs do not need it

        model = timm.create_model(config.encoder, pretrained=config.pretrained, num_classes=0)
        model.set_grad_checkpointing(config.checkpointing)
        self.widths = [stage["num_chs"] for stage in model.feature_info]
        self.smallest = 32  # its first attention pools keys over windows of 8 at stride 4
        self.make_stem = partial(pyramid_stem, model.patch_embed)  # a template, no parameter of the encoder
        self.stages = model.stages

    def forward(self, x: Tensor, added: list[Tensor] | None = None) -> list[Tensor]:
        """``added``: features of other sensors, one per scale, added before the next stage sees them."""
        features, stages = [], [*self.stages]
        if len(stages) < len(self.widths):  # the stem's own features are the first scale
            stages.insert(0, nn.Identity())
        for j, stage in enumerate(stages):
            x = stage(x) if added is None else stage(x) + added[j]
            features.append(x)
        return features


class MLPHead(nn.Module):
    """SegFormer's all-MLP head with adjacent linear maps folded into one.

    SegFormer maps each scale to E channels, upsamples, concatenates 4E channels and maps them back to E at
    stride 4. No non-linearity stands between the two maps, and a 1×1 map commutes with upsampling, so one map
    per scale at the scale's own resolution computes the same family of functions for about a twentieth of the
    work at E = 256. Scales are upsampled coarse to fine, each onto the next.
    """

    def __init__(self, widths: list[int], embed_dim: int, classes: int, dropout: float):
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(width, embed_dim, 1) for width in widths)
        self.norm = group_norm(embed_dim)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(embed_dim, classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.project[-1](features[-1])
        for project, feature in zip(reversed(self.project[:-1]), reversed(features[:-1])):
            x = project(feature) + F.interpolate(x, feature.shape[-2:], mode="bilinear")
        return self.classify(self.dropout(F.relu(self.norm(x))))


class Segmenter(nn.Module):
    """Images of any non-empty subset of its modalities -> class logits.

    Args:
        modalities: name -> Modality (channels and statistics travel with the checkpoint).
        classes, palette: K names and colours.
    """

    def __init__(
        self,
        modalities: dict[str, Modality],
        classes: list[str],
        palette,
        config: NetworkConfig = NetworkConfig(),
    ):
        super().__init__()
        check_settings(config)  # timm knows more encoders, and names of some that it would fetch
        self.modalities, self.classes, self.config = dict(modalities), list(classes), config
        self.palette = [tuple(colour) for colour in palette]
        self.encoder = Encoder(config)
        if config.fusion == "centred":
            if config.stem != "separate":
                raise ValueError("centred fusion gives each sensor its own stem; use --stem separate")
            self.auxiliary = Encoder(config)
        if config.stem == "separate":
            self.stems = nn.ModuleDict(
                {name: self.encoder.make_stem(m.channels) for name, m in modalities.items()}
            )
        else:
            # Every modality is brought to three channels; those with more than three need weights for it.
            self.stems = nn.ModuleDict({"shared": self.encoder.make_stem(3)})
            self.adapters = nn.ModuleDict(
                {name: nn.Conv2d(m.channels, 3, 1) for name, m in modalities.items() if m.channels > 3}
            )
        embed_dim = config.embed_dim or (48 if config.encoder == "residual" else 256)
        self.head = MLPHead(self.encoder.widths, embed_dim, len(classes), config.dropout)

    def stem_features(self, images: Tensors) -> Tensor:
        """What the first layers make of the images, stacked along the batch dimension: (M·B, C, h, w)."""
        features = []
        for name, image in images.items():
            if self.config.stem == "shared":
                if name in self.adapters:
                    image = self.adapters[name](image)
                elif image.shape[1] < 3:  # 1 channel: repeated; 2 channels: a, b, a
                    image = image[:, [0, image.shape[1] - 1, 0]]
                name = "shared"
            features.append(self.stems[name](image))
        return torch.cat(features)

    def features(self, images: Tensors) -> list[Tensor]:
        """Multi-scale features, fine to coarse: of all modalities given, stacked, (M·B, C_j, H_j, W_j); of
        centred fusion (B, …).

        Raises:
            ValueError: no modality or an unknown one, wrong channels, or images of different sizes.
        """
        if not images or set(images) - set(self.modalities):
            raise ValueError(
                f"images of {', '.join(images) or 'nothing'}; this network takes {', '.join(self.modalities)}"
            )
        for name, image in images.items():
            shape, least, channels = image.shape, self.encoder.smallest, self.modalities[name].channels
            if len(shape) != 4 or shape[1] != channels or min(shape[2:]) < least:
                raise ValueError(
                    f"{name}: expected (B, {channels}, H, W), {least} pixels or more a side, got {(*shape,)}"
                )
        sizes = {(len(image), *image.shape[2:]) for image in images.values()}
        if len(sizes) > 1:
            raise ValueError(f"modalities differ in batch or image size: {sizes}")
        if self.config.fusion == "centred":
            return self._centred(images)
        return self.encoder(self.stem_features(images))

    def _centred(self, images: Tensors) -> list[Tensor]:
        """In the manner of CMNeXt: auxiliary sensors share an encoder, their strongest response at each place
        joins the main branch.
        """
        centre, others, added = next(iter(self.modalities)), dict(images), None
        image = others.pop(centre, None)
        if others:
            stacked = self.auxiliary(self.stem_features(others))
            added = [torch.stack(feature.chunk(len(others))).amax(0) for feature in stacked]
        if image is None:  # the branch runs on the training mean
            first = next(iter(others.values()))
            image = first.new_zeros(len(first), self.modalities[centre].channels, *first.shape[2:])
        return self.encoder(self.stem_features({centre: image}), added)

    def modality_logits(self, images: Tensors) -> Tensors:
        """Each modality's own logits (B, K, h, w) at the head's resolution; h = H/2 (residual) or H/4
        (pvt_v2).

        Raises:
            ValueError: centred fusion, whose prediction is not a mean of single ones.
        """
        if self.config.fusion == "centred":
            raise ValueError(
                "centred fusion has no logits of single modalities; call the network on each subset of images"
            )
        return self(images, fuse=False)[0]

    def scoring(self, fusion: str = "mean", window=(0, 0), stride=(0, 0)) -> dict:
        """``evaluate_subsets(dataset=…, **network.scoring())``: cached logits where fusion is linear, else
        one fusion per subset.

        Args:
            fusion: a rule of ``mmlib.evaluation.fusion``.
            window, stride: height and width of sliding windows, and of the step between them; 0 0 = whole
                images, two thirds of the window.

        Raises:
            ValueError: another rule than the mean for centred fusion; windows that do not fit.
        """
        centred = self.config.fusion == "centred"
        if centred and fusion != "mean":
            raise ValueError(
                f"--fusion {fusion}: this network's fusion is centred on its first sensor; it has no logits "
                "of single sensors; leave the option out"
            )
        if any(stride) and not any(window):
            raise ValueError(
                f"--stride {stride[0]} {stride[1]} without --window; give --window HEIGHT WIDTH too"
            )
        encode = lambda images: self(images, fuse=False)[0]
        if any(window):
            encode = sliding(encode, window, stride)
        if centred:  # what it encodes depends on which sensors are there, so each subset is encoded by itself
            fuse = lambda images: next(iter(encode(images).values()))
            return {"encode": lambda images: images, "fuse": fuse}
        return {"encode": encode, "fuse": None if fusion == "mean" else FUSIONS[fusion]}

    def forward(self, images: Tensors, fuse: bool = True):
        """Fused logits (B, K, H, W): the mean over the modalities given.

        Mean of logits, not of probabilities: its argmax is that of the sum, i.e. of the product of the
        sensors' likelihoods, it is linear, so that every subset is a sum of cached logits, and it needs no
        softmax.

        ``fuse=False``, for training: (name -> logits at the head's resolution, features as ``features``
        returns them). Centred fusion has one entry, named after the main sensor.
        """
        # Eq. 5: {f_i}, {p_i} = F({x_i}) for all modalities at once; the prediction is p = Mean(p_i)
        features = self.features(images)
        names = list(images) if self.config.fusion == "mean" else [next(iter(self.modalities))]
        logits = self.head(features).chunk(len(names))
        if not fuse:
            return dict(zip(names, logits)), features
        size = next(iter(images.values())).shape[-2:]
        return F.interpolate(torch.stack(logits).mean(0), size, mode="bilinear")


def save_segmenter(segmenter: Segmenter, path: str | Path, **notes) -> None:
    """Write weights and everything needed to rebuild the network as one safetensors file, atomically.

    ``notes`` are JSON values kept in the header (step, scores, provenance).
    """
    header = {
        "config": asdict(segmenter.config),
        "modalities": [asdict(m) for m in segmenter.modalities.values()],
        "classes": segmenter.classes,
        "palette": segmenter.palette,
        "notes": notes,
    }
    save_tensors(path, segmenter.state_dict(), {"segmenter": header})


def read_header(path: str | Path) -> dict:
    """The JSON header written by ``save_segmenter``; runs no code from the file.

    Raises:
        ValueError: missing, damaged, or not a segmenter.
    """
    header = read_tensor_header(path)
    if "segmenter" not in header:
        raise ValueError(
            f"{path}: not a segmenter checkpoint; give a best.safetensors or last.safetensors of "
            "'python -m mmlib train'"
        )
    return header["segmenter"]


def load_segmenter(path: str | Path, device: torch.device | str = "cpu") -> Segmenter:
    """Rebuild a segmenter from its file, in eval mode. Half-precision weights are brought to float32.

    Raises:
        ValueError: the file is missing, damaged, or its weights do not fit its own description.
    """
    header = read_header(path)
    with reading(path, "a segmenter that this version can build"):
        config = NetworkConfig(**header["config"] | {"pretrained": False})  # the weights are in the file
        modalities = {m["name"]: Modality(**m) for m in header["modalities"]}
        # A description checks names, colours and modalities.
        described = Description("of a checkpoint", header["classes"], header["palette"], modalities)
        segmenter = Segmenter(modalities, described.classes, described.palette, config)
    load_into(segmenter, read_tensors(path), path)
    return segmenter.eval().to(device)
