"""Frozen backbones: one network in every file format gives one set of tokens, descriptors follow from their
definition.
"""

import json
import math
import os
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.signal import correlate2d
from timm.models.eva import checkpoint_filter_fn

from mmlib.runtime import read_tensor_header, read_tensors
from mmlib.unsupervised import backbone
from mmlib.unsupervised.backbone import SHIPPED, BackboneName, PatchViT, load_backbone
from mmlib.unsupervised.dinov3 import DINOV3, timm_keys

create = timm.create_model


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
    [("dinov3-small", 0.0), ("dinov3-small", 0.3), ("dinov3-small-plus", 0.3), ("dinov3-base", 0.0)],
)
def test_one_network_in_every_format_gives_one_set_of_tokens(tiny, tmp_path, name, bias):
    model = DINOV3[name] + ("_qkvb" if bias else "")
    network = scrambled(model, bias)
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
    folder = tmp_path / "folder"
    folder.mkdir()
    save(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": model, "pretrained_cfg": {}}))
    files = [
        save(state, tmp_path / "timm.safetensors"),
        save(state, tmp_path / "timm.pth"),
        str(folder),
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
        theirs = checkpoint_filter_fn(meta(state), network)
        ours = timm_keys(meta(state))
        assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)


def test_keys_depend_on_the_version_and_not_on_words(monkeypatch, tmp_path):
    """Finished runs and cached tokens stay usable when a docstring changes."""
    key = load_backbone("descriptors").key
    source = Path(backbone.__file__).read_text(encoding="utf-8")
    reworded = tmp_path / "reworded.py"
    reworded.write_text(source.replace('"""Hand-made descriptors', '"""Descriptors'), encoding="utf-8")
    assert reworded.read_text(encoding="utf-8") != source
    module = ModuleType("mmlib.unsupervised.reworded")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.__package__, module.__file__ = "mmlib.unsupervised", str(reworded)
    exec(compile(reworded.read_text(encoding="utf-8"), str(reworded), "exec"), vars(module))
    assert module.load_backbone("descriptors").key == key
    monkeypatch.setattr(backbone, "VERSION", backbone.VERSION + 1)
    assert load_backbone("descriptors").key != key


def test_the_real_small_network():
    made = load_backbone("dinov3-small", "random")
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
    assert load_backbone("dinov3-small", "random").key == made.key and torch.equal(
        state, torch.get_rng_state()
    )


def test_weights_that_do_not_fit_are_refused(tiny, tmp_path, monkeypatch):
    state = scrambled("vit_small_patch16_dinov3").state_dict()
    file = save(state, tmp_path / "small.pth")
    with pytest.raises(
        ValueError,
        match=r"small.pth: .*Missing key.*blocks.0.mlp.fc1_g.weight.*not weights of dinov3-small-plus",
    ):
        load_backbone("dinov3-small-plus", file)
    wide = {
        key: torch.zeros(*value.shape[:-1], 64) if key == "cls_token" else value
        for key, value in state.items()
    }
    with pytest.raises(ValueError, match=r"size mismatch for cls_token.*1, 1, 64"):
        load_backbone("dinov3-small", save(wide, tmp_path / "wide.safetensors"))
    without = {key: value for key, value in transformers(state).items() if "k_proj" not in key}
    with pytest.raises(
        ValueError, match="half.bin: .*blocks.0.attn.k_proj.weight.*not weights of dinov3-small"
    ):
        load_backbone("dinov3-small", save(without, tmp_path / "half.bin"))
    with pytest.raises(ValueError, match="nowhere.pth: no such file.*descriptors"):
        load_backbone("dinov3-small", tmp_path / "nowhere.pth")
    for broken in ("broken.pth", "broken.safetensors"):
        (tmp_path / broken).write_bytes(b"not weights")
        with pytest.raises(ValueError, match=f"{broken}: cannot be read .*not weights of dinov3-small"):
            load_backbone("dinov3-small", tmp_path / broken)
    with pytest.raises(ValueError, match="list.pth: cannot be read .*not weights of dinov3-small"):
        load_backbone("dinov3-small", save([1, 2], tmp_path / "list.pth"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: cannot be read .*a folder with model.safetensors"):
        load_backbone("dinov3-small", tmp_path / "empty")

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    with pytest.raises(ValueError, match="not weights of dinov3-small.*or damaged"):
        load_backbone("dinov3-small", save({"cls_token": Trap()}, tmp_path / "trap.pth"))
    assert not (tmp_path / "sprung").exists()


def test_without_a_network_the_message_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"timm/vit_small_patch16_dinov3.lvd1689m on the Hugging Face hub: .*Meta's .pth file.*descriptors",
    ):
        load_backbone("dinov3-small")


def test_unknown_names_and_needless_weights():
    with pytest.raises(ValueError, match="backbone dino: expected one of descriptors, descriptors"):
        load_backbone("dino")
    with pytest.raises(ValueError, match="made by hand"):
        load_backbone("descriptors", "random")


@pytest.mark.parametrize("name", get_args(BackboneName))
def test_sizes_and_values_that_are_refused(tiny, name):
    made = load_backbone(name, "" if name == "descriptors" else "random")
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


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_any_size_that_fits_and_every_picture_by_itself(h, w, seed):
    images = torch.rand(3, 3, 8 * h, 8 * w, generator=torch.Generator().manual_seed(seed))
    for name in ("descriptors", "descriptors+vit"):
        made = load_backbone(name, "" if name == "descriptors" else "random")
        tokens = made.extract(images.double())
        assert (
            tokens.shape == (3, made.channels, h, w)
            and tokens.dtype == torch.float32
            and torch.isfinite(tokens).all()
        )
        torch.testing.assert_close(made.extract(images[1:2]), tokens[1:2], rtol=1e-4, atol=1e-4)


# Where the channels of a descriptor lie: textures in groups of four directions, raw then locally normalised.
MEAN, DEVIATION, RELATIVE = slice(0, 3), slice(3, 6), slice(6, 8)
AMPLITUDE = {0: slice(8, 12), 1: slice(24, 28), 2: slice(32, 36)}  # of the raw intensity, by scale
SPREAD = slice(16, 24)


def describe(images) -> torch.Tensor:
    return load_backbone("descriptors").extract(images)


def test_a_constant_picture_has_a_colour_and_nothing_else():
    colour = torch.tensor([0.2, 0.5, 0.9])
    found = describe(colour[None, :, None, None].expand(1, 3, 32, 40))
    assert found.shape == (1, 40, 4, 5) and torch.allclose(found, found[..., :1, :1], atol=0.02)
    r, g, b = colour.tolist()
    opponent = [(r + g + b) / math.sqrt(3), (r - g) / math.sqrt(2), (r + g - 2 * b) / math.sqrt(6)]
    torch.testing.assert_close(found[0, MEAN, 0, 0], torch.tensor(opponent))
    torch.testing.assert_close(found[0, RELATIVE, 0, 0], torch.tensor(opponent[1:]) / (opponent[0] + 0.05))
    assert found[0, DEVIATION].abs().max() < 1e-6 and found[0, SPREAD].abs().max() < 0.02
    texture = torch.cat([found[0, 8:16], found[0, 24:]])
    torch.testing.assert_close(texture, torch.full_like(texture, math.log(1e-2)), atol=0.02, rtol=0)


@pytest.mark.parametrize("scale", [0, 1, 2])
@pytest.mark.parametrize("direction", [0, 1, 2, 3])
def test_a_grating_answers_at_its_scale_and_direction(scale, direction):
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    angle = math.pi * direction / 4
    wave = 0.5 + 0.4 * torch.sin(2 * math.pi / (4 * 2**scale) * (math.cos(angle) * x + math.sin(angle) * y))
    found = describe(wave.expand(1, 3, 96, 96))[0, :, 4:8, 4:8]
    answers = torch.stack([found[AMPLITUDE[s]].mean((1, 2)) for s in range(3)])
    assert answers.argmax() == scale * 4 + direction
    others = torch.cat(
        [answers.flatten()[: scale * 4 + direction], answers.flatten()[scale * 4 + direction + 1 :]]
    )
    assert answers.max() > others.max() + 0.3


def test_descriptors_follow_from_their_definition():
    """Statistics and the finest amplitudes of an inner patch, by loops and scipy."""
    images = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(3))
    found = describe(images)[0, :, 2, 2].double().numpy()
    red, green, blue = images[0].double().numpy()
    opponent = np.stack(
        [(red + green + blue) / 3**0.5, (red - green) / 2**0.5, (red + green - 2 * blue) / 6**0.5]
    )
    patch = opponent[:, 16:24, 16:24].reshape(3, -1)
    np.testing.assert_allclose(found[MEAN], patch.mean(1), atol=1e-5)
    np.testing.assert_allclose(found[DEVIATION], patch.std(1), atol=1e-5)
    grey, axis = (red + green + blue) / 3, np.arange(-4, 5)
    window = np.exp(-0.5 * (axis[:, None] ** 2 + axis**2) / 2.0**2)
    for k in range(4):
        phase = np.pi / 2 * (np.cos(k * np.pi / 4) * axis + np.sin(k * np.pi / 4) * axis[:, None])
        even = window * np.cos(phase)
        even -= window * even.sum() / window.sum()
        odd = window * np.sin(phase)
        answers = [correlate2d(grey, f / np.sqrt((f**2).sum()), "same")[16:24, 16:24] for f in (even, odd)]
        amplitude = np.hypot(*answers)
        assert found[AMPLITUDE[0]][k] == pytest.approx(np.log(amplitude.mean() + 1e-2), abs=1e-4)
        assert found[SPREAD][k] == pytest.approx(amplitude.std() / (amplitude.mean() + 1e-2), abs=1e-4)


def test_a_quarter_turn_of_the_picture_turns_the_directions():
    images = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(4))
    images = F.avg_pool2d(images, 3, 1, 1)
    plain, turned = describe(images), describe(images.rot90(1, (2, 3)))
    expected = plain.rot90(1, (2, 3)).clone()
    for first in range(8, 40, 4):  # 0, 45, 90, 135 degrees become 90, 135, 0, 45
        expected[:, first : first + 4] = expected[:, [first + 2, first + 3, first, first + 1]]
    torch.testing.assert_close(turned, expected, atol=2e-3, rtol=0)


def test_normalised_texture_outlives_the_dark():
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(5))
    day, night = describe(images), describe(0.3 * images)
    change = (day - night).abs().mean((0, 2, 3))
    raw, normalised = [[i for s in (8, 24, 32) for i in range(s + o, s + o + 4)] for o in (0, 4)]
    assert change[raw].min() > 0.55 * math.log(1 / 0.3) and change[normalised].max() < 0.25 * math.log(
        1 / 0.3
    )
    assert change[RELATIVE].max() < 0.1


def test_joined_tokens_are_those_of_the_parts():
    images = torch.rand(2, 3, 16, 24)
    joined = load_backbone("descriptors+vit")
    parts = [load_backbone("descriptors"), load_backbone("vit")]
    assert joined.channels == sum(part.channels for part in parts) and joined.key not in {
        part.key for part in parts
    }
    torch.testing.assert_close(joined.extract(images), torch.cat([part.extract(images) for part in parts], 1))


def test_the_shipped_weights_are_small_documented_and_trained():
    assert SHIPPED.stat().st_size < 2e6
    header, state = read_tensor_header(SHIPPED), read_tensors(SHIPPED)
    assert {value.dtype for value in state.values()} == {torch.float16}
    recipe = header["recipe"]
    assert (
        recipe["provenance"]["command"].startswith("python -m mmlib pretrain")
        and recipe["steps"] == recipe["config"]["steps"] > 100
    )
    assert recipe["last"]["usage"] > 0.5 and recipe["last"]["rank"] > 3  # no collapse
    assert load_backbone("vit").key != load_backbone("vit", "random").key


def test_weights_of_the_small_transformer_are_checked(tmp_path):
    other = save(PatchViT(48, 1, 3).state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="plain.safetensors: .*not a file of this library"):
        load_backbone("vit", other)
    state = {key: value for key, value in read_tensors(SHIPPED).items() if key != "norm.bias"}
    for header, message in (
        ({"segmenter": {}}, "KeyError: 'vit'.*not weights of the small transformer"),
        ({"vit": {"channels": 96, "depth": 4, "heads": 3}}, "do not fit its description"),
    ):
        save_file(state, tmp_path / "vit.safetensors", {"mmlib": json.dumps(header)})
        with pytest.raises(ValueError, match=message):
            load_backbone("descriptors+vit", tmp_path / "vit.safetensors")


def test_names_are_those_of_timm():
    assert (
        all(timm.is_model(model) for model in DINOV3.values()) and get_args(BackboneName)[0] == "descriptors"
    )
