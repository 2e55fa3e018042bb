"""The encoder that all sensors share: a small residual network, or any network of timm that gives feature
maps, taken apart into first layers, one for each sensor, and stages.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..weights import UNTRAINED, timm_model

# Modules of timm whose transformers compute all their features at one scale; they take images of any size if
# they are told to.
PLAIN = ("vision_transformer", "deit", "eva")


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of 8 channels, where 8 divides their number. BatchNorm would compute its
    statistics over all modalities, so that the loss of one sensor would change the output of another.
    """
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 8)), channels)


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


def adapted_stem(template: nn.Module, channels: int) -> nn.Module:
    """A copy of the first layer of a network of timm, for images of ``channels`` channels. Its colour filters
    are adapted to that number by timm's rule: one channel gets their sum, so that a grey image excites them
    as before; more channels repeat them, scaled by 3 / ``channels``.

    The filters are not scaled to the images, which have a standard deviation of 1, while
    ``tf_efficientnet_lite0`` was trained on about a half. On the street world (4 epochs, batch 2, crops of
    64 × 96, two seeds) filters times 0.47 gave val mIoU of 49.7 and 49.9 with all sensors, instead of 48.6
    and 49.3, and of 44.5 and 44.8 on the mean, instead of 43.4 and 44.4: less than a better learning rate.
    """
    from timm.models import adapt_input_conv

    stem = nn.Sequential(deepcopy(template))
    for path, old in list(stem.named_modules()):
        if isinstance(old, nn.Conv2d) and old.in_channels == 3:
            bias = old.bias is not None
            new = type(old)(channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=bias)
            new.load_state_dict(old.state_dict() | {"weight": adapt_input_conv(channels, old.weight)})
            stem.set_submodule(path, new)
    return stem[0]


class Encoder(nn.Module):
    """Turns the output of a stem into features at several scales, fine to coarse.

    ``residual`` has the strides 2 (the output of the stem itself), 4, 8, 16 and 32. Networks of timm have the
    strides that they name, without those below 4: 4, 8, 16 and 32 for ``pvt_v2_b*`` (Wang et al. 2022), three
    times 16 for a plain vision transformer.

    BatchNorm is frozen in a pretrained network (its running statistics and its scales stay those of the
    pretraining), and a GroupNorm in an untrained one, where fixed statistics would normalise nothing. So no
    sample's output depends on the others in its batch.

    A fusion that feeds something back into the next stage goes through ``steps()``:
    ``for step in encoder.steps(): x = step(x)``.

    Args:
        name: "residual", or a model of timm.
        pretrained: whether it is built for pretrained weights.
        weights: as for ``timm_model``; "random" where there are none, or a checkpoint will bring them.
        checkpointing: recompute activations in the backward pass, block by block where timm offers it, else
            stage by stage.

    Attributes:
        widths: number of channels at each scale.
        smallest: smallest height or width of an image that it can take, in pixels.
        multiple: height and width of an image must be multiples of this.
        make_stem: function that takes a modality's number of channels and returns a new first layer for it.
        stages: what follows the stem; one module for each scale, but for ``residual``, whose first scale is
            the output of the stem; empty where the network can not be taken apart (``whole``).
        source: where its weights come from, as ``timm_model`` says it.

    Raises:
        ValueError: an unknown network, one without feature maps or with a first layer of its own kind, or
            missing weights.
    """

    def __init__(self, name: str, pretrained: bool = False, weights="random", checkpointing: bool = False):
        super().__init__()
        self.multiple, self.whole, self.grad_checkpointing = 1, None, False
        if name != "residual":
            self._take_apart(name, pretrained, weights)
        elif pretrained:
            raise ValueError(
                "--encoder residual has no pretrained weights; give --encoder tf_efficientnet_lite0"
            )
        else:
            self.widths, self.smallest, self.source = [16, 32, 64, 96, 128], 1, UNTRAINED
            self.make_stem = residual_stem
            self.stages = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(self.widths))
        if checkpointing:
            own, *parts = [module for module in self.modules() if hasattr(module, "grad_checkpointing")]
            for module in parts or [own]:
                module.grad_checkpointing = True

    def _take_apart(self, name: str, pretrained: bool, weights) -> None:
        """Build a network of timm and divide it into stem and stages; they compute what it did."""
        import timm  # imported late: it takes seconds, and small runs do not need it

        plain = timm.models.is_model_in_modules(name.partition(".")[0], PLAIN)
        options = {"dynamic_img_size": True} if plain else {}
        body, self.source = timm_model(name, weights, features_only=True, num_classes=0, **options)
        if pretrained:
            body = timm.layers.freeze_batch_norm_2d(body)
        for path, norm in list(body.named_modules()):
            if isinstance(norm, nn.BatchNorm2d):
                new = nn.Sequential(group_norm(norm.num_features), getattr(norm, "act", nn.Identity()))
                body.set_submodule(path, new)
        scales = [scale for scale in body.feature_info.get_dicts() if scale["reduction"] >= 4]
        self.widths, self.smallest = [scale["num_chs"] for scale in scales], scales[-1]["reduction"]
        image = torch.linspace(-2, 2, 12 * self.smallest**2).view(1, 3, 2 * self.smallest, -1)
        try:
            with torch.no_grad():
                expected = body(image)[-len(scales) :]
                stem = self._divide(body, {scale["module"].replace(".", "_") for scale in scales})
                same = all(map(torch.equal, self(stem(image)), expected))
            if not same or [feature.shape[1] for feature in expected] != self.widths:
                raise ValueError("its features are no maps (B, C, H, W), or depend on more than its stages")
        except Exception as error:  # timm's networks raise many kinds
            raise ValueError(
                f"--encoder {name}: cannot be taken apart into a first layer and stages that take images of "
                f"any size ({' '.join(str(error).split())[:200]}); tested are residual, pvt_v2_b0, "
                "tf_efficientnet_lite0, convnext_atto, mobilenetv4_conv_small and vit_tiny_patch16_224"
            ) from error
        self.make_stem = partial(adapted_stem, stem)  # which copies it; it is not trained itself

    def _divide(self, body: nn.Module, ends: set[str]) -> nn.Module:
        """Set ``stages``, or ``whole``; returns the stem.

        Args:
            body: the network, as timm makes it for features.
            ends: the layers that compute the features of a scale.
        """
        layers, self.stages, parts = dict(body.named_children()), nn.ModuleList(), []
        if "blocks" in layers:  # all stages of an EfficientNet or a MobileNet
            layers |= {f"blocks_{j}": block for j, block in enumerate(layers.pop("blocks"))}
        if ends <= layers.keys():
            stem = layers.pop(next(iter(layers)))
            for name, layer in layers.items():
                parts.append(layer)
                if name in ends:
                    self.stages.append(nn.Sequential(*parts) if len(parts) > 1 else layer)
                    parts = []
        else:
            path, stem = next(pair for pair in body.named_modules() if isinstance(pair[1], nn.Conv2d))
            body.set_submodule(path, nn.Identity())
            body.get_submodule(path.rpartition(".")[0]).patch_size = 1, 1  # its pixels are patches now
            self.whole, self.multiple = body, stem.stride[0]
        return stem

    def check_size(self, size: tuple[int, int], where: str) -> None:
        """Raise ValueError, which begins with ``where``, unless it takes images of this height and width."""
        if min(size) < self.smallest or any(side % self.multiple for side in size):
            multiples = f", multiples of {self.multiple}" * (self.multiple > 1)
            raise ValueError(
                f"{where}: images of {size[0]} × {size[1]} pixels; this encoder takes {self.smallest} or "
                f"more a side{multiples}: give another --crop, --window or --size, or images of another size"
            )

    def steps(self) -> list[Callable[[Tensor], Tensor]]:
        """One function for each scale; the first turns the output of a stem into the finest features, each
        other one the features of a scale into those of the next.

        Raises:
            ValueError: the network can not be divided.
        """
        if self.whole:
            raise ValueError(
                "this encoder has no stages, between which sensors could meet; give another --encoder, or "
                "--fusion mean"
            )
        steps = [nn.Identity()] * (len(self.widths) - len(self.stages)) + [*self.stages]
        if self.grad_checkpointing:
            return [partial(checkpoint, step, use_reentrant=False) for step in steps]
        return steps

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of all scales."""
        if self.whole:
            return self.whole(x)
        features = []
        for step in self.steps():
            x = step(x)
            features.append(x)
        return features
