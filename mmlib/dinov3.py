"""Names of the tensors of DINOv3 vision transformers in Meta's repository and in Hugging Face Transformers,
which ``weights`` reads beside timm's.
"""

import re

import torch
from torch import Tensor

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


def timm_keys(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """A DINOv3 state with the keys of timm, of Meta's repository or of Hugging Face Transformers -> the same
    with timm's.

    Args:
        name: timm's of the network. Only networks whose names have "qkvb" have biases of queries and values;
            Meta's files without say so by zeros.

    Raises:
        ValueError: biases that the network of this name does not have.
    """
    gated = any("gate_proj" in key for key in state)
    names = *_TIMM_NAMES, (r"\.up_proj\.", ".fc1_x." if gated else ".fc1.")
    result = {}
    for key, value in state.items():
        for pattern, own in names:
            key = re.sub(pattern, own, key)
        result[key] = value
    result.pop("", None)
    for key in list(result):
        if key.endswith("qkv.bias"):  # Meta's repository has one bias for queries, keys and values
            result[key.replace("qkv.", "q_")], _, result[key.replace("qkv.", "v_")] = result.pop(key).chunk(3)
        elif key.endswith("q_proj.weight"):  # Transformers has a matrix for each
            parts = [result.pop(key.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            result[key.replace("q_proj", "qkv")] = torch.cat(parts)
    if "qkvb" not in name:
        for key in [key for key in result if key.endswith((".q_bias", ".v_bias"))]:
            if result.pop(key).any():
                raise ValueError(
                    f"it has biases of queries and values: the name of its network ends in _qkvb, not {name}"
                )
    return result
