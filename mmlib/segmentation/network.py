"""The segmenter (Eq. 5): one shared encoder for all modalities, an all-MLP head, predictions averaged over
what is present.

All modalities of a mini-batch are stacked along the batch dimension, so that M sensors cost one forward pass
of M·B images. A missing modality is left out of the stack: it costs no time, and the network never sees
zeros in the place of an image. The other fusions, ``cmx`` and ``centred``, are what the paper argues against:
one sensor has the main branch, and the others a second encoder beside it. Training, scoring, prediction and
export build and load the network here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
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
from .encoder import Encoder, group_norm
from .rectification import Exchange, addition

Tensors = Mapping[str, Tensor]  # name of a modality -> its tensor


@dataclass(frozen=True)
class NetworkConfig:
    """What the network is made of."""

    encoder: str = "residual"
    """residual: 0.5 M parameters, for training from scratch on a CPU; or a network of timm: pvt_v2_b0 to b5
    (the paper's size class), tf_efficientnet_lite0 (its weights come by pip), or another one.
    """
    stem: Literal["separate", "shared"] = "separate"
    """separate: each modality has its own first layer; shared: one first layer for all, as in the paper."""
    fusion: Literal["mean", "cmx", "centred"] = "mean"
    """mean: the predictions of all sensors are averaged. The others give the main branch to the first sensor:
    cmx: its features and those of the others rectify each other and are fused, as in CMX and CMNeXt; centred:
    the features of the others are added to its own.
    """
    embed_dim: Annotated[int, AtLeast(0)] = 0
    """Width of the head; 0 = 48 for residual, 256 for pvt_v2, 128 for others."""
    dropout: Annotated[float, Between(0, 1)] = 0.1
    """Probability that a channel is dropped before the classifier."""
    pretrained: bool = False
    """Start the encoder from ImageNet weights: those of --weights, or of an installed package."""
    weights: str = ""
    """File with pretrained weights of the encoder, or 'hub' to fetch timm's from the Hugging Face hub;
    implies --pretrained.
    """
    checkpointing: bool = False
    """Recompute activations in the backward pass: takes less memory and a third more time."""


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
        config: what it is made of.
        loading: whether a checkpoint will bring all weights, so that pretrained ones are not looked for.

    Raises:
        ValueError: settings that cannot work, or missing weights.
    """

    def __init__(
        self,
        modalities: dict[str, Modality],
        classes: list[str],
        palette,
        config: NetworkConfig = NetworkConfig(),
        loading: bool = False,
    ):
        super().__init__()
        check_settings(config)
        self.modalities, self.classes, self.config = dict(modalities), list(classes), config
        self.palette = [tuple(colour) for colour in palette]
        pretrained = config.pretrained or bool(config.weights)
        weights = config.weights if pretrained and not loading else "random"
        encoder = partial(Encoder, config.encoder, pretrained, weights, config.checkpointing)
        self.encoder = encoder()
        if config.fusion != "mean":
            if config.stem != "separate" or len(modalities) < 2:
                raise ValueError(
                    f"{config.fusion} fusion takes two sensors or more, each with its own stem; use --stem "
                    "separate"
                )
            self.encoder.steps()  # raises where there are none
            self.auxiliary, widths = encoder(), self.encoder.widths
            self.exchanges = [addition] * len(widths)
            if config.fusion == "cmx":
                others = len(modalities) - 1
                self.exchanges = nn.ModuleList(Exchange(width, widths[0], others) for width in widths)
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
        wide = 256 if config.encoder.startswith("pvt_v2") else 128
        embed_dim = config.embed_dim or (48 if config.encoder == "residual" else wide)
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
        the batch dimension; fused in the network, (B, C_j, H_j, W_j).

        Raises:
            ValueError: no modality or an unknown one, wrong channels, or images of different sizes.
        """
        if not images or set(images) - set(self.modalities):
            raise ValueError(
                f"images of {', '.join(images) or 'nothing'}; this network takes {', '.join(self.modalities)}"
            )
        for name, image in images.items():
            shape, channels = image.shape, self.modalities[name].channels
            if len(shape) != 4 or shape[1] != channels:
                raise ValueError(f"{name}: expected (B, {channels}, H, W), got {(*shape,)}")
            self.encoder.check_size(shape[2:], name)
        sizes = {(len(image), *image.shape[2:]) for image in images.values()}
        if len(sizes) > 1:
            raise ValueError(f"modalities differ in batch or image size: {sizes}")
        if self.config.fusion == "mean":
            return self.encoder(self.stem_features(images))
        return self._two_streams(images)

    def _two_streams(self, images: Tensors) -> list[Tensor]:
        """Fused features of two encoders, that of the first sensor and that which all others share; they meet
        at every scale, and what comes of it goes on to the next.

        In the place of a missing image stand zeros, the mean of the training images, for inputs are
        normalised. (An addition needs that of the first sensor only.)
        """
        names, features = list(self.modalities), []
        needed = names if self.config.fusion == "cmx" else names[:1]
        first = next(iter(images.values()))
        zeros = {
            name: first.new_zeros(len(first), self.modalities[name].channels, *first.shape[2:])
            for name in needed
        }
        inputs = zeros | dict(images)
        main, *others = [self.stems[name](inputs[name]) for name in names if name in inputs]
        for step, beside, exchange in zip(self.encoder.steps(), self.auxiliary.steps(), self.exchanges):
            main = step(main)
            if others:
                others = beside(torch.cat(others)).chunk(len(others))
            main, others, fused = exchange(main, others)
            features.append(fused)
        return features

    def modality_logits(self, images: Tensors) -> Tensors:
        """Logits (B, K, h, w) of each modality alone, at the resolution of the head: h is H/2 for residual,
        H/4 for most encoders of timm.

        Raises:
            ValueError: sensors are fused in the network, so that single ones have no logits.
        """
        if self.config.fusion != "mean":
            raise ValueError(
                f"{self.config.fusion} fusion has no logits of single modalities; call the network on each "
                "subset of images"
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
            ValueError: another rule than the mean where the network fuses; windows that do not fit.
        """
        inside = self.config.fusion != "mean"
        if inside and fusion != "mean":
            raise ValueError(
                f"--fusion {fusion}: this network's fusion is {self.config.fusion}; it has no logits of "
                "single sensors; leave the option out"
            )
        if any(stride) and not any(window):
            raise ValueError(
                f"--stride {stride[0]} {stride[1]} without --window; give --window HEIGHT WIDTH too"
            )
        encode = lambda images: self(images, fuse=False)[0]
        if any(window):
            encode = sliding(encode, window, stride)
        if inside:  # what it encodes depends on which sensors are there, so each subset is encoded by itself
            fuse = lambda images: next(iter(encode(images).values()))
            return {"encode": lambda images: images, "fuse": fuse}
        return {"encode": encode, "fuse": None if fusion == "mean" else FUSIONS[fusion]}

    def forward(self, images: Tensors, fuse: bool = True):
        """Fused logits (B, K, H, W): the mean over the given modalities.

        Logits are averaged, not probabilities. The argmax of their mean is that of their sum, which is the
        argmax of the product of the sensors' likelihoods. And the mean is linear, so that the prediction of
        every subset is a sum of cached logits.

        With ``fuse=False``, for training, it returns (name -> logits at the resolution of the head, features
        as ``features`` returns them). Fusion in the network gives one entry, named after the main sensor.
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
        config = NetworkConfig(**header["config"])
        modalities = {m["name"]: Modality(**m) for m in header["modalities"]}
        # Building a description checks the names of classes, the colours and the modalities.
        described = Description("of a checkpoint", header["classes"], header["palette"], modalities)
        segmenter = Segmenter(modalities, described.classes, described.palette, config, loading=True)
    load_into(segmenter, read_tensors(path), path)
    return segmenter.eval().to(device)
