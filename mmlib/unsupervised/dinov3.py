"""DINOv3 through timm: the paper's backbone, from the hub or from a file in any of three formats.

``backbone.load_backbone`` builds it. Its weights have a licence of their own and are not part of this
library.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..runtime import reading

DINOV3 = {
    "dinov3-small": "vit_small_patch16_dinov3",
    "dinov3-small-plus": "vit_small_plus_patch16_dinov3",
    "dinov3-base": "vit_base_patch16_dinov3",
    "dinov3-large": "vit_large_patch16_dinov3",
}
NAMES_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the colours of ImageNet


class DINOv3(nn.Module):
    """Final-norm patch tokens of a DINOv3 vision transformer, without class and register tokens; does the
    ImageNet normalisation.
    """

    patch = 16

    def __init__(self, name: str, weights: str):
        super().__init__()
        self.vit = _load_dinov3(name, weights)
        self.channels = self.vit.num_features

    def forward(self, images: Tensor) -> Tensor:
        from torchvision.transforms import functional  # imported late: small runs do not need it

        images = functional.normalize(images, MEAN, STD)
        return self.vit.forward_intermediates(images, indices=[-1], norm=True, intermediates_only=True)[0]


def _load_dinov3(name: str, weights: str) -> nn.Module:
    import timm

    model = DINOV3[name]
    if weights in ("", "random"):
        advice = (
            "a repository that can be reached from here (fetch its model.safetensors, or Meta's .pth file, "
            "where there is a network and give its path as weights, or use descriptors, which need none)"
        )
        with reading(f"timm/{model}.lvd1689m on the Hugging Face hub", advice):
            return timm.create_model(model, pretrained=not weights, num_classes=0)
    path = Path(weights).expanduser()
    if path.is_dir():
        path = next((path / file for file in NAMES_IN_FOLDERS if (path / file).exists()), path)
    expected = (
        f"weights of {name} with the keys of timm, of Meta's repository or of Hugging Face Transformers, or "
        "a folder with model.safetensors or pytorch_model.bin (descriptors need none)"
    )
    with reading(path, expected):  # no code of the file is run
        is_safe = path.suffix == ".safetensors"
        state = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
        state = timm_keys(state.get("teacher", state))  # a training run of Meta's has two networks
        # The distilled networks have biases that are all zero; timm's plain variant leaves them out.
        biases = [key for key in state if key.endswith((".q_bias", ".v_bias"))]
        if any(state[key].any() for key in biases):
            model += "_qkvb"
        else:
            for key in biases:
                del state[key]
        network = timm.create_model(model, pretrained=False, num_classes=0)
        network.load_state_dict(state)
    return network


# Names in Meta's repository and in Hugging Face Transformers -> in timm. Every name is sent through all of
# them; what ends as "" is left out: rotary frequencies are computed, the mask token and heads serve
# pre-training only, and biases of keys are masked out.
_TIMM_NAMES = (
    (r"^((module|model|backbone|embeddings)\.)+", ""),
    (r"^(mask_token|head.*|local_cls_norm.*|.*rope.*|.*bias_mask|.*k_proj\.bias)$", ""),
    (r"^(storage_tokens|register_tokens)$", "reg_token"),
    (r"^patch_embeddings\.", "patch_embed.proj."),
    (r"^layer\.", "blocks."),
    (r"\.attention\.", ".attn."),
    (r"\.o_proj\.", ".proj."),
    (r"\.([qv])_proj\.bias$", r".\1_bias"),
    (r"\.(?:ls|layer_scale)([12])\.(?:gamma|lambda1)$", r".gamma_\1"),
    (r"\.mlp\.(?:w1|gate_proj)\.", ".mlp.fc1_g."),
    (r"\.mlp\.(?:w3|down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
)


def timm_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A DINOv3 state with the keys of timm, of Meta's repository or of Hugging Face Transformers -> the same
    with timm's.
    """
    gated = any("gate_proj" in key for key in state)
    names = *_TIMM_NAMES, (r"\.up_proj\.", ".fc1_x." if gated else ".fc1.")
    result = {}
    for key, value in state.items():
        for pattern, name in names:
            key = re.sub(pattern, name, key)
        result[key] = value
    result.pop("", None)
    for key in list(result):
        if key.endswith("qkv.bias"):  # Meta's repository has one bias for queries, keys and values
            result[key.replace("qkv.", "q_")], _, result[key.replace("qkv.", "v_")] = result.pop(key).chunk(3)
        elif key.endswith("q_proj.weight"):  # Transformers has a matrix for each
            parts = [result.pop(key.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            result[key.replace("q_proj", "qkv")] = torch.cat(parts)
    return result
