"""The segmenter (Eq. 5): one shared encoder for all modalities, an all-MLP head, predictions averaged over
what is present.

All modalities of a mini-batch are stacked along the batch dimension, so that M sensors cost one forward pass
of M·B images. A missing modality is left out of the stack: it costs no time, and the network never sees
zeros in the place of an image. The other fusion, ``centred``, is what the paper argues against: one sensor
has the main branch, and the features of the others are added to it. Training, scoring, prediction and export
build and load the network here.
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

Tensors = Mapping[str, Tensor]  # name of a modality -> its tensor
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
    """separate: each modality has its own first layer; shared: one first layer for all, as in the paper."""
    fusion: Literal["mean", "centred"] = "mean"
    """mean: the predictions of all sensors are averaged; centred: the first sensor has the main branch, and
    the features of the others are added to its own.
    """
    embed_dim: Annotated[int, AtLeast(0)] = 0
    """Width of the head; 0 = 48 for residual, 256 for pvt_v2."""
    dropout: Annotated[float, Between(0, 1)] = 0.1
    """Probability that a channel is dropped before the classifier."""
    pretrained: bool = False
    """Start pvt_v2 from ImageNet weights, that timm fetches, unchecked, from the Hugging Face hub."""
    checkpointing: bool = False
    """Recompute the activations of pvt_v2 in the backward pass: takes less memory and a third more time."""


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of 8 channels. BatchNorm would compute its statistics over all modalities, so
    that the loss of one sensor would change the output of another.
    """
    return nn.GroupNorm(max(1, channels // 8), channels)


def conv_norm(channels_in: int, channels: int, size: int, stride: int) -> list[nn.Module]:
    """A convolution without bias and its GroupNorm. Padding keeps the size of the image, divided by the
    stride.
    """
    conv = nn.Conv2d(channels_in, channels, size, stride, size // 2, bias=False)
    return [conv, group_norm(channels)]


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, the first of stride 2, with GroupNorm after each and ReLU between them; then the
    projected input is added, and a last ReLU applied.
    """

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        first, second = conv_norm(channels_in, channels, 3, 2), conv_norm(channels, channels, 3, 1)
        self.body = nn.Sequential(*first, nn.ReLU(inplace=True), *second)
        self.shortcut = nn.Sequential(*conv_norm(channels_in, channels, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def residual_stem(channels: int) -> nn.Module:
    """The first layer of the residual encoder, for images of ``channels`` channels."""
    return nn.Sequential(*conv_norm(channels, 16, 5, 2), nn.ReLU(inplace=True))


def pyramid_stem(template: nn.Module, channels: int) -> nn.Module:
    """A copy of the first layer of a pyramid transformer, for images of ``channels`` channels. Its pretrained
    colour filters are adapted to that number by timm's rule.
    """
    from timm.models import adapt_input_conv

    stem = deepcopy(template)
    old = stem.proj
    stem.proj = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    stem.proj.load_state_dict({"weight": adapt_input_conv(channels, old.weight), "bias": old.bias})
    return stem


class Encoder(nn.Module):
    """Turns the output of a stem into features at several scales, fine to coarse.

    ``residual`` has the strides 2 (the output of the stem itself), 4, 8, 16 and 32. timm's ``pvt_v2_b*`` has
    the strides 4, 8, 16 and 32 (Wang et al. 2022).

    Attributes:
        widths: number of channels at each scale.
        smallest: smallest height or width of an image that it can take, in pixels.
        make_stem: function that takes a modality's number of channels and returns a new first layer for it.
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
        self.make_stem = partial(pyramid_stem, model.patch_embed)  # which is copied, and not trained itself
        self.stages = model.stages

    def forward(self, x: Tensor, added: list[Tensor] | None = None) -> list[Tensor]:
        """Features of all scales. ``added``: features of other sensors, one tensor per scale, which are added
        before the next stage is computed.
        """
        features, stages = [], [*self.stages]
        if len(stages) < len(self.widths):  # the output of the stem is the first scale
            stages.insert(0, nn.Identity())
        for j, stage in enumerate(stages):
            x = stage(x) if added is None else stage(x) + added[j]
            features.append(x)
        return features


class MLPHead(nn.Module):
    """SegFormer's all-MLP head with adjacent linear maps folded into one.

    SegFormer maps each scale to E channels, upsamples all of them to stride 4, concatenates them, and maps
    the 4E channels back to E. There is no non-linearity between the two maps, and a 1×1 map commutes with
    upsampling. One map per scale, at the resolution of that scale, therefore computes the same family of
    functions; at E = 256 it takes about a twentieth of the work. From coarse to fine, each sum is upsampled
    and added to the next scale.
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
    """The network: it takes images of any non-empty subset of its modalities and returns class logits.

    Args:
        modalities: name -> Modality; a checkpoint keeps them, with their channels and statistics.
        classes, palette: names and colours of the K classes.
    """

    def __init__(
        self,
        modalities: dict[str, Modality],
        classes: list[str],
        palette,
        config: NetworkConfig = NetworkConfig(),
    ):
        super().__init__()
        check_settings(config)  # timm would also build other encoders, and download some
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
            # Every modality is brought to three channels; one with more than three needs weights for that.
            self.stems = nn.ModuleDict({"shared": self.encoder.make_stem(3)})
            self.adapters = nn.ModuleDict(
                {name: nn.Conv2d(m.channels, 3, 1) for name, m in modalities.items() if m.channels > 3}
            )
        embed_dim = config.embed_dim or (48 if config.encoder == "residual" else 256)
        self.head = MLPHead(self.encoder.widths, embed_dim, len(classes), config.dropout)

    def stem_features(self, images: Tensors) -> Tensor:
        """Outputs of the first layers, all modalities stacked along the batch dimension: (M·B, C, h, w)."""
        features = []
        for name, image in images.items():
            if self.config.stem == "shared":
                if name in self.adapters:
                    image = self.adapters[name](image)
                elif image.shape[1] < 3:  # one channel is repeated; two channels a, b become a, b, a
                    image = image[:, [0, image.shape[1] - 1, 0]]
                name = "shared"
            features.append(self.stems[name](image))
        return torch.cat(features)

    def features(self, images: Tensors) -> list[Tensor]:
        """Features of each scale j, fine to coarse: (M·B, C_j, H_j, W_j), the given modalities stacked along
        the batch dimension; for centred fusion (B, C_j, H_j, W_j).

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
        """Features of the main branch, in the manner of CMNeXt: the other sensors share a second encoder, and
        the largest of their responses at each position is added to the main branch.
        """
        centre, others, added = next(iter(self.modalities)), dict(images), None
        image = others.pop(centre, None)
        if others:
            stacked = self.auxiliary(self.stem_features(others))
            added = [torch.stack(feature.chunk(len(others))).amax(0) for feature in stacked]
        if image is None:  # zeros are the mean of the training images, because inputs are normalised
            first = next(iter(others.values()))
            image = first.new_zeros(len(first), self.modalities[centre].channels, *first.shape[2:])
        return self.encoder(self.stem_features({centre: image}), added)

    def modality_logits(self, images: Tensors) -> Tensors:
        """Logits (B, K, h, w) of each modality alone, at the resolution of the head: h is H/2 for residual
        and H/4 for pvt_v2.

        Raises:
            ValueError: the fusion is centred, so that single modalities have no logits.
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
        """Fused logits (B, K, H, W): the mean over the given modalities.

        Logits are averaged, not probabilities. The argmax of their mean is that of their sum, which is the
        argmax of the product of the sensors' likelihoods. And the mean is linear, so that the prediction of
        every subset is a sum of cached logits.

        With ``fuse=False``, for training, it returns (name -> logits at the resolution of the head, features
        as ``features`` returns them). Centred fusion has one entry, named after the main sensor.
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
    """Write the weights, and all that is needed to rebuild the network, as one safetensors file. The file
    appears whole or not at all.

    ``notes``: JSON values to keep in the header, such as step, scores and provenance.
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
    """The JSON header that ``save_segmenter`` wrote. Reading it runs no code from the file.

    Raises:
        ValueError: the file is missing, damaged, or no segmenter.
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
        ValueError: the file is missing or damaged, or its weights do not fit its own description.
    """
    header = read_header(path)
    with reading(path, "a segmenter that this version can build"):
        config = NetworkConfig(**header["config"] | {"pretrained": False})  # the weights are in the file
        modalities = {m["name"]: Modality(**m) for m in header["modalities"]}
        # Building a description checks the names of classes, the colours and the modalities.
        described = Description("of a checkpoint", header["classes"], header["palette"], modalities)
        segmenter = Segmenter(modalities, described.classes, described.palette, config)
    load_into(segmenter, read_tensors(path), path)
    return segmenter.eval().to(device)
