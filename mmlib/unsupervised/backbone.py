"""Frozen feature extractors: DINOv3 through timm, and two that need no download.

All turn pictures (N, 3, H, W) in [0, 1] into raw tokens (N, C, H/patch, W/patch), which ``tokens``
standardises, smooths and centres.

* ``dinov3-small``, ``-small-plus``, ``-base``, ``-large``: the paper's backbone. Its weights have a licence
  of their own and are not part of this library; they come from the Hugging Face hub or from a file.
* ``descriptors``: colour statistics and oriented energy of 8 × 8 patches, made by hand. Works everywhere,
    learns nothing.
* ``descriptors+vit``: the same beside the tokens of ``vit``, a small transformer that
  ``notebooks/results/pretrain.py`` trains without labels on the sensor world, and whose weights come with the
  library. A stand-in to learn with, in no way a match for DINOv3.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from zipfile import BadZipFile

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..runtime import derived_seed, load_into, read_tensor_header, read_tensors, reading

DINOV3 = {
    f"dinov3-{size.replace('_', '-')}": f"vit_{size}_patch16_dinov3"
    for size in ("small", "small_plus", "base", "large")
}
NAMES = ("descriptors", "descriptors+vit", "vit", *DINOV3)
# Part of every backbone's key, on which cached tokens and finished runs depend. Raise it when a network of this
# file, or the normalisation before it, returns other tokens than before for the same picture and weights;
# names, comments and speed do not count.
VERSION = 1
SHIPPED = Path(__file__).with_name("vit_world.safetensors")


@dataclass(frozen=True)
class Backbone:
    """A frozen feature extractor.

    Attributes:
        name: one of ``NAMES``.
        channels: C, the length of a token.
        patch: side of the square of pixels that a token stands for.
        key: hex digest of name, ``VERSION`` and weights; equal keys mean equal tokens.
        network: module (N, 3, H, W) -> (N, C, H/patch, W/patch), in eval mode.
    """

    name: str
    channels: int
    patch: int
    key: str
    network: nn.Module

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> raw tokens (N, C, H/patch, W/patch), float32, on the backbone's
        device.

        Raises:
            ValueError: another shape, values outside [0, 1] or not finite, or a size that the patch does not
                divide.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not len(images) or not images.is_floating_point():
            raise ValueError(
                f"pictures are {tuple(images.shape)} {images.dtype}; {self.name} expects floats of shape (N, 3, H, W)"
            )
        height, width = images.shape[-2:]
        if height < self.patch or width < self.patch or height % self.patch or width % self.patch:
            near = " × ".join(str(max(1, round(side / self.patch)) * self.patch) for side in (height, width))
            raise ValueError(
                f"pictures of {height} × {width} pixels: {self.name} has patches of {self.patch} × {self.patch} pixels and "
                f"takes multiples of {self.patch}; resize to {near}"
            )
        low, high = (float(v) for v in torch.aminmax(images))
        if not (-1e-4 <= low and high <= 1 + 1e-4):  # false for NaN, too
            raise ValueError(
                f"pictures have values from {low:g} to {high:g}; expected [0, 1]: divide bytes by 255, send sensors "
                "through pictures.as_picture"
            )
        device = next(chain(self.network.parameters(), self.network.buffers())).device
        return self.network(images.to(device, torch.float32))


def load_backbone(name: str, weights: str | Path = "", device: torch.device | str = "cpu") -> Backbone:
    """Build a frozen backbone.

    Args:
        name: one of ``NAMES``.
        weights: "" = those that belong to the name (DINOv3: from the Hugging Face hub, by timm; vit: shipped
            with the library); a file (DINOv3: .safetensors, .pth or .bin with the keys of timm, of Meta's
            repository or of Hugging Face Transformers; vit: written by
            ``notebooks/results/pretrain.py``); a folder
            with config.json and model.safetensors (DINOv3); or "random" for an untrained network, the same
            one on every call.
        device: where the network lives.

    Raises:
        ValueError: unknown name; weights that are missing, out of reach, damaged, of another size or another
            network.
    """
    if name not in NAMES:
        raise ValueError(f"backbone {name!r}: expected one of {', '.join(NAMES)}")
    if name == "descriptors" and weights:
        raise ValueError(
            f"weights {str(weights)!r}: 'descriptors' are made by hand and have none; leave the weights empty"
        )
    with torch.random.fork_rng(
        devices=[]
    ):  # networks start from random numbers, not to be taken from the caller
        torch.manual_seed(derived_seed("random", name))
        if name in DINOV3:
            network = DINOv3(name, str(weights))
        else:
            parts = [
                Descriptors() if part == "descriptors" else _load_vit(weights) for part in name.split("+")
            ]
            network = Beside(*parts) if len(parts) > 1 else parts[0]
    network = network.eval().requires_grad_(False).to(device)
    return Backbone(name, network.channels, network.patch, _digest(name, network), network)


def _digest(name: str, network: nn.Module) -> str:
    """Hash of the name, ``VERSION`` and all weights."""
    digest = hashlib.sha256(f"{name} {VERSION}".encode())
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)}".encode())
        digest.update(value.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class Beside(nn.Module):
    """Tokens of several networks of one patch size, joined along the channels."""

    def __init__(self, *parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.channels, self.patch = sum(part.channels for part in parts), parts[0].patch

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([part(images) for part in self.parts], 1)


class Descriptors(nn.Module):
    """Hand-made descriptors of 8 × 8 patches: what colour a patch has, how much it varies, and at which
    scales and directions.

    Per patch: mean and standard deviation of three opponent colours; mean of the two colour differences
    relative to the intensity (a dark picture keeps those); the logarithm of the mean amplitude of a pyramid
    of Gabor filters (3 scales × 4 directions) on the intensity and on the locally normalised intensity, where
    a weak texture in the shade counts as much as one in the sun; and the relative variation of the finest
    amplitudes within the patch, which tells an even texture from a single edge.
    """

    patch, scales, directions, channels = 8, 3, 4, 3 + 3 + 2 + 2 * 3 * 4 + 2 * 4
    opponent = ((3**-0.5, 3**-0.5, 3**-0.5), (2**-0.5, -(2**-0.5), 0.0), (6**-0.5, 6**-0.5, -2 * 6**-0.5))

    def __init__(self):
        super().__init__()
        grid = torch.arange(-4.0, 5.0, dtype=torch.float64)
        window = torch.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / 8)
        filters = []
        for k in range(self.directions):
            angle = math.pi * k / self.directions
            phase = (math.cos(angle) * grid[None] + math.sin(angle) * grid[:, None]) * (
                math.pi / 2
            )  # a wavelength of 4 pixels
            even, odd = window * phase.cos(), window * phase.sin()
            even -= window * (even.sum() / window.sum())  # no answer to a constant
            filters += [
                even / even.norm(),
                odd / odd.norm(),
            ]  # unit norm: white noise answers alike in every direction
        self.register_buffer("filters", torch.stack(filters)[:, None].float(), persistent=False)
        self.register_buffer("colours", torch.tensor(self.opponent), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        colours = torch.einsum("oc,nchw->nohw", self.colours, images)
        deviation, mean = torch.std_mean(
            colours.unflatten(2, (-1, 8)).unflatten(4, (-1, 8)), (3, 5), correction=0
        )
        relative = mean[:, 1:] / (mean[:, :1] + 0.05)
        grey = colours[:, :1] / 3**0.5
        around = partial(F.avg_pool2d, kernel_size=17, stride=1, padding=8, count_include_pad=False)
        local = grey - around(grey)
        level = torch.cat([grey, local / (around(local**2).sqrt() + 0.02)])
        texture = []
        for scale in range(self.scales):
            side = 8 >> scale  # of a patch at this level of the pyramid
            even, odd = (
                F.conv2d(F.pad(level, (4, 4, 4, 4), mode="replicate"), self.filters)
                .unflatten(1, (-1, 2))
                .unbind(2)
            )
            amplitude = (even**2 + odd**2).sqrt()
            pooled = F.avg_pool2d(amplitude, side) + 1e-2
            texture.append(pooled.log())
            if scale == 0:
                texture.append(
                    amplitude.unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).std((3, 5), correction=0) / pooled
                )
            level = F.avg_pool2d(level, 2)
        texture = torch.cat([torch.cat(part.chunk(2), 1) for part in texture], 1)
        return torch.cat([mean, deviation, relative, texture], 1)


class PatchViT(nn.Module):
    """A small vision transformer on 8 × 8 patches: three strided convolutions, ``depth`` blocks, no class
    token.

    Positions enter through one depthwise convolution only: it works at any size, and equal things at
    different places stay alike.
    """

    patch = 8

    def __init__(self, channels: int = 96, depth: int = 4, heads: int = 3):
        from timm.models.vision_transformer import Block

        super().__init__()
        self.channels = channels
        widths = (3, channels // 4, channels // 2, channels)
        layers = [nn.Conv2d(widths[0], widths[1], 3, 2, 1)]
        for before, after in zip(widths[1:], widths[2:]):
            layers += [nn.GroupNorm(1, before), nn.GELU(), nn.Conv2d(before, after, 3, 2, 1)]
        self.stem = nn.Sequential(*layers)
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.blocks = nn.Sequential(*(Block(channels, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels)
        self.mask_token = nn.Parameter(torch.zeros(channels))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, C, H/8, W/8); where ``mask`` (N, H/8, W/8) is true, the token starts
        from the mask token.
        """
        tokens = self.stem(images * 4 - 2)
        if mask is not None:
            tokens = torch.where(mask[:, None], self.mask_token[:, None, None], tokens)
        tokens = tokens + self.position(tokens)
        rows = self.norm(self.blocks(tokens.flatten(2).transpose(1, 2)))
        return rows.transpose(1, 2).reshape(tokens.shape)


def _load_vit(weights: str | Path) -> PatchViT:
    if str(weights) == "random":
        return PatchViT()
    path = Path(weights or SHIPPED)
    header = read_tensor_header(path)
    if "vit" not in header:
        raise ValueError(
            f"{path}: not weights of the small transformer; give a vit.safetensors of notebooks/results/pretrain.py"
        )
    with reading(path, "weights of a transformer that this version can build"):
        network = PatchViT(**header["vit"])
    load_into(network, read_tensors(path), path)
    return network


class DINOv3(nn.Module):
    """Final-norm patch tokens of a DINOv3 vision transformer, without class and register tokens; does the
    ImageNet normalisation.
    """

    patch = 16

    def __init__(self, name: str, weights: str = ""):
        super().__init__()
        self.vit = _load_dinov3(name, weights)
        self.channels = self.vit.num_features
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406))[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225))[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        options = dict(indices=[-1], norm=True, intermediates_only=True, output_fmt="NCHW")
        return self.vit.forward_intermediates((images - self.mean) / self.std, **options)[0]


def _load_dinov3(name: str, weights: str) -> nn.Module:
    import timm

    model = DINOV3[name]
    if weights in ("", "random"):
        try:
            return timm.create_model(model, pretrained=not weights, num_classes=0)
        except Exception as error:  # the hub's client raises many kinds, its HTTP library more
            raise ValueError(
                f"{name}: its weights could not be had from the Hugging Face hub ({type(error).__name__}: "
                f"{str(error)[:200]}). Fetch model.safetensors of timm/{model}.lvd1689m, or Meta's .pth file, where there "
                "is a network and give its path as weights, or use descriptors, which need none"
            ) from error
    state = timm_keys(_read_state(Path(weights).expanduser(), name))
    biases = {key: value for key, value in state.items() if key.endswith((".q_bias", ".v_bias"))}
    if any(value.any() for value in biases.values()):
        model += "_qkvb"
    else:  # the distilled networks have biases that are all zero; timm's plain variant leaves them out
        state = {key: value for key, value in state.items() if key not in biases}
    network = timm.create_model(model, pretrained=False, num_classes=0)
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if found != expected:
        wrong = {
            "missing": expected.keys() - found.keys(),
            "unknown": found.keys() - expected.keys(),
            "of another shape": {
                key for key in expected.keys() & found.keys() if expected[key] != found[key]
            },
        }
        listed = "; ".join(
            f"{len(keys)} {what}, such as {min(keys)} {found.get(min(keys), '')}"
            for what, keys in wrong.items()
            if keys
        )
        raise ValueError(
            f"{weights}: not the weights of {name}: {listed}. Expected a DINOv3 file of that size with the keys of timm, of "
            f"Meta's repository or of Hugging Face Transformers; sizes are {', '.join(DINOV3)}"
        )
    network.load_state_dict(state)
    return network


def _read_state(path: Path, name: str) -> dict[str, Tensor]:
    """Tensors by name, float32, from a file or from a folder with config.json; runs no code from the file."""
    if path.is_dir():
        try:
            made_for = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architecture", "")
        except (OSError, ValueError, AttributeError):
            made_for = ""
        if made_for and made_for.split(".")[0].removesuffix("_qkvb") != DINOV3[name]:
            raise ValueError(
                f"{path}: its config.json is of {made_for}, not of {DINOV3[name]}; choose the backbone that fits"
            )
        inside = [
            path / file for file in ("model.safetensors", "pytorch_model.bin") if (path / file).exists()
        ]
        if not inside:
            raise ValueError(
                f"{path}: has no model.safetensors or pytorch_model.bin; give the file itself, or a folder that has one"
            )
        path = inside[0]
    if not path.exists():
        raise ValueError(
            f"{path}: no such file. Give the path of DINOv3 weights, or use descriptors, which need none"
        )
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (
        SafetensorError,
        pickle.UnpicklingError,
        BadZipFile,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        EOFError,
        OSError,
    ) as error:
        raise ValueError(
            f"{path}: damaged, or not a file of weights ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    for wrapper in ("teacher", "model_ema", "model", "module", "state_dict"):
        state = state[wrapper] if isinstance(state, dict) and isinstance(state.get(wrapper), dict) else state
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ValueError(f"{path}: holds a {type(state).__name__}, not a dictionary of tensors by name")
    return {key: value.float() for key, value in state.items()}


# Names of one layer in Meta's repository and in Hugging Face Transformers -> in timm. Every name is sent
# through all of them.
_TIMM_NAMES = (
    (r"^((module|model|backbone|embeddings)\.)+", ""),
    (r"^(storage_tokens|register_tokens)$", "reg_token"),
    (r"^patch_embeddings\.", "patch_embed.proj."),
    (r"^layer\.", "blocks."),
    (r"\.attention\.", ".attn."),
    (r"\.o_proj\.", ".proj."),
    (r"\.(?:ls|layer_scale)([12])\.(?:gamma|lambda1)$", r".gamma_\1"),
    (r"\.mlp\.(?:w1|gate_proj)\.", ".mlp.fc1_g."),
    (r"\.mlp\.(?:w3|down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
)


def timm_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A DINOv3 state with the keys of timm, of Meta's repository or of Hugging Face Transformers -> the same
    with timm's.
    """
    renamed = {}
    for key, value in state.items():
        for pattern, name in _TIMM_NAMES:
            key = re.sub(pattern, name, key)
        # Rotary frequencies are computed; the mask token and heads serve pre-training only; key biases are
        # masked out.
        if not re.search(r"rope|bias_mask$|^mask_token$|^head|k_proj\.bias$|^local_cls_norm", key):
            renamed[key] = value
    gated = any(".fc1_g." in key for key in renamed)
    found = {}
    for key, value in renamed.items():
        block = key.rsplit("attn.", 1)[0] + "attn."
        if key.endswith("attn.qkv.bias"):
            found[block + "q_bias"], _, found[block + "v_bias"] = value.chunk(3)
        elif key.endswith(("attn.q_proj.bias", "attn.v_proj.bias")):
            found[key.replace("_proj.bias", "_bias")] = value
        elif key.endswith("attn.q_proj.weight"):
            parts = [renamed.get(f"{block}{part}_proj.weight") for part in "qkv"]
            found[block + "qkv.weight"] = torch.cat([part for part in parts if part is not None])
        elif not key.endswith(("attn.k_proj.weight", "attn.v_proj.weight")):
            found[key.replace(".up_proj.", ".fc1_x." if gated else ".fc1.")] = value
    return found
