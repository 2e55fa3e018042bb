"""DINOv3 through timm: the paper's backbone, from the hub or from a file in any of three formats.

``backbone.load_backbone`` builds it. Its weights have a licence of their own and are not part of this
library.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..runtime import reading

DINOV3 = {
    f"dinov3-{size.replace('_', '-')}": f"vit_{size}_patch16_dinov3"
    for size in ("small", "small_plus", "base", "large")
}
NAMES_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")


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
                f"{str(error)[:200]}). Fetch model.safetensors of timm/{model}.lvd1689m, or Meta's .pth "
                "file, where there is a network and give its path as weights, or use descriptors, which "
                "need none"
            ) from error
    state = _read_state(Path(weights).expanduser())
    # The distilled networks have biases that are all zero; timm's plain variant leaves them out.
    biases = [key for key in state if key.endswith((".q_bias", ".v_bias"))]
    if any(state[key].any() for key in biases):
        model += "_qkvb"
    else:
        state = {key: value for key, value in state.items() if key not in biases}
    network = timm.create_model(model, pretrained=False, num_classes=0)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:  # lists the keys and shapes that do not fit
        raise ValueError(
            f"{weights}: not the weights of {name}. Expected a DINOv3 file of that size with the keys of "
            f"timm, of Meta's repository or of Hugging Face Transformers; sizes are {', '.join(DINOV3)}. "
            f"{' '.join(str(error).split())[:400]}"
        ) from error
    return network


def _read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by timm's names, float32, from a file or from a folder that has one; runs no code from it.

    Raises:
        ValueError: no such file, damaged, or something else than tensors by name.
    """
    if path.is_dir():
        path = next((path / file for file in NAMES_IN_FOLDERS if (path / file).exists()), path)
    folder = f"a folder with {' or '.join(NAMES_IN_FOLDERS)}"
    with reading(path, f"a file of weights of DINOv3, or {folder} (descriptors need none)"):
        is_safe = path.suffix == ".safetensors"
        state = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("teacher", "model_ema", "model", "module", "state_dict"):
            state = state[wrapper] if isinstance(state.get(wrapper), dict) else state
        return timm_keys({key: value.float() for key, value in state.items()})


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
    result = {}
    for key, value in renamed.items():
        block = key.rsplit("attn.", 1)[0] + "attn."
        if key.endswith("attn.qkv.bias"):
            result[block + "q_bias"], _, result[block + "v_bias"] = value.chunk(3)
        elif key.endswith(("attn.q_proj.bias", "attn.v_proj.bias")):
            result[key.replace("_proj.bias", "_bias")] = value
        elif key.endswith("attn.q_proj.weight"):
            parts = [renamed.get(f"{block}{part}_proj.weight") for part in "qkv"]
            result[block + "qkv.weight"] = torch.cat([part for part in parts if part is not None])
        elif not key.endswith(("attn.k_proj.weight", "attn.v_proj.weight")):
            result[key.replace(".up_proj.", ".fc1_x." if gated else ".fc1.")] = value
    return result
