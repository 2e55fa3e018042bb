"""Pretrained weights: one network from each source, nothing fetched unasked, and what is said without any."""

import hashlib
import socket
from importlib import metadata
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from mmlib import weights
from mmlib.runtime import read_tensors
from mmlib.weights import MODEL, PACKAGE, SHA256, UNTRAINED, timm_model

FILE = Path(metadata.distribution(PACKAGE).locate_file(weights.FILE))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(metadata, "distributions", lambda **_: iter(()))


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_package_holds_the_tensors_of_timm_in_order():
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == SHA256
    state, (network, source) = read_tensors(FILE), timm_model(MODEL)
    assert source == {"weights": f"package {PACKAGE} 0.1.0", "licence": "Apache-2.0", "sha256": SHA256}
    own = network.state_dict()
    assert len(state) == len(own) == 296
    assert all(torch.equal(a, b) for a, b in zip(state.values(), own.values()))


@torch.no_grad()
def test_the_weights_are_at_their_places():
    """A drawn ball and a drawn clock are what they are for the network, so the tensors' order is right."""
    rows, columns = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
    away = lambda row, column: ((rows - row) ** 2 + (columns - column) ** 2).sqrt()
    shade = (1.1 - 0.45 * away(90, 90) / 75).clamp(0, 1)
    colour = torch.tensor([1, 0.6, 0.05])[:, None, None]
    ball = torch.where(away(112, 112) < 75, shade * colour, 0.9)

    clock, hour = torch.full((224, 224), 0.7), torch.atan2(rows - 112, columns - 112) * 6 / torch.pi
    clock[away(112, 112) < 95], clock[away(112, 112) < 88] = 0.1, 0.95
    marks = ((hour - hour.round()).abs() < 0.05) & (away(112, 112) > 70) & (away(112, 112) < 85)
    hands = (rows - 112).abs() < 3, (columns - 112).abs() < 3
    hands = hands[0] & (columns > 108) & (columns < 165) | hands[1] & (rows < 116) & (rows > 40)
    clock[marks | hands] = 0.05

    network, _ = timm_model(MODEL)
    pictures = torch.stack([ball, clock.expand(3, -1, -1)])
    values, classes = network.eval()((255 * pictures - 127) / 128).softmax(1).max(1)
    assert classes.tolist() == [722, 409] and (values > 0.5).all()  # "ping-pong ball", "analog clock"


@pytest.mark.parametrize("keys, ending", [("timm", "pth"), ("timm", "safetensors"), ("package", "pth")])
def test_a_file_is_as_good_as_the_package(tmp_path, no_package, keys, ending):
    state = {key: value.contiguous() for key, value in read_tensors(FILE).items()}
    if keys == "timm":
        state = dict(zip(timm.create_model(MODEL).state_dict(), state.values()))
        del state["classifier.weight"], state["classifier.bias"]
    path = tmp_path / f"weights.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    network, source = timm_model(MODEL, path, features_only=True)
    assert source["weights"] == f"file weights.{ending}" and len(source["sha256"]) == 64
    tensors = list(read_tensors(FILE).values())
    own = list(network.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(own, tensors)) and len(own) < len(tensors)


@pytest.mark.parametrize(
    "name, options",
    [
        ("convnext_atto", {}),  # stem.0 becomes stem_0
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}),  # everything is below model.
        ("mobilenetv4_conv_small", {}),
    ],
)
def test_feature_networks_of_every_kind_take_a_file(tmp_path, name, options):
    torch.manual_seed(3)
    whole = timm.create_model(name, **options).state_dict()
    torch.save(whole, tmp_path / "whole.pth")
    network, _ = timm_model(name, tmp_path / "whole.pth", features_only=True, **options)
    own = network.state_dict()
    renamed = {key.replace(".", "_"): value for key, value in whole.items()}
    assert equal(own, {key: renamed[key.removeprefix("model.").replace(".", "_")] for key in own})


def test_an_untrained_network_follows_the_seed_and_needs_nothing(no_package):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        network, source = timm_model(MODEL, "random", features_only=True)
        states.append(network.state_dict())
        assert source == UNTRAINED
    assert equal(states[0], states[1]) and not equal(states[0], states[2])


def test_without_the_package_one_message_says_the_three_ways(no_package):
    with pytest.raises(ValueError) as error:
        timm_model(MODEL)
    (line,) = str(error.value).splitlines()
    for word in ("a file", f"pip install {PACKAGE}", "'hub'", "untrained"):
        assert word in line
    with pytest.raises(ValueError, match=f"convnext_atto: .*file.*those of {MODEL}.*'hub'"):
        timm_model("convnext_atto")


def test_the_hub_is_asked_only_by_its_name(tmp_path, monkeypatch):
    asked = []

    def fetch(*where):
        asked.append(where)
        return str(FILE)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    timm_model(MODEL)
    assert asked == []
    _, source = timm_model(MODEL, "hub")
    assert asked == [("timm/tf_efficientnet_lite0.in1k", "model.safetensors")]
    assert source["weights"] == "hub timm/tf_efficientnet_lite0.in1k" and source["sha256"] == SHA256

    def offline(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(ValueError, match="no route.*model.safetensors"):
        timm_model(MODEL, "hub")


def test_names_that_timm_does_not_have_are_refused():
    with pytest.raises(ValueError, match="close to it: .*tf_efficientnet_lite4"):
        timm_model("tf_efficientnet_lit", "random")
    with pytest.raises(ValueError, match="no model of timm"):
        timm_model("hf-hub:timm/resnet18.a1_in1k", "random")
    with pytest.raises(ValueError, match="Invalid pretrained tag.*choose another"):
        timm_model("resnet18.nonsense", "random")


def test_weights_of_something_else_are_refused(tmp_path, monkeypatch):
    def refused(state, match, name=MODEL):
        path = tmp_path / "weights.pth"
        torch.save(state, path)
        with pytest.raises(ValueError, match=match) as error:
            timm_model(name, path, features_only=True)
        assert str(error.value).startswith(str(path))

    whole = dict(zip(timm.create_model(MODEL).state_dict(), read_tensors(FILE).values()))
    lacking = {key: value for key, value in whole.items() if key != "blocks.0.0.conv_pw.weight"}
    refused(lacking, "not weights of tf_efficientnet_lite0")
    # A deeper network of the same widths has all names of the shallower one, and more.
    refused(timm.create_model("pvt_v2_b2").state_dict(), "another network's", "pvt_v2_b1")
    refused(whole | {"conv_stem.weight": torch.zeros(32, 4, 3, 3)}, "size mismatch for conv_stem.weight")
    refused(whole | {"bn1.bias": torch.full((32,), torch.nan)}, "bn1.bias has NaN")
    refused([1, 2], "not a file of tensors")
    monkeypatch.setattr(weights, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="sha256.*install that package again"):
        timm_model(MODEL)
