"""The exported graph against the network it came from, in onnxruntime; and what may not be exported."""

import copy
import json
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import toy

from mmlib import cli
from mmlib.data.prepared import PreparedDataset
from mmlib.modalities import subsets
from mmlib.segmentation.export import compare
from mmlib.segmentation.network import NetworkConfig, Segmenter, save_segmenter

NAMES = ["rgb", "depth", "aolp"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return PreparedDataset(toy.make(tmp_path_factory.mktemp("export")), "val")


@pytest.fixture(scope="module")
def exported(data, tmp_path_factory):
    """(network, session) of the small residual network, any image size, from the command itself."""
    root, network = tmp_path_factory.mktemp("model"), toy.untrained(data)
    save_segmenter(network, root / "net.safetensors")
    cli.main(["export", str(root / "net.safetensors"), "--out", str(root / "net.onnx")])
    assert sorted(path.name for path in root.iterdir()) == ["net.onnx", "net.safetensors"]
    return network, onnxruntime.InferenceSession(root / "net.onnx", providers=["CPUExecutionProvider"])


def expected(network, images, names):
    with torch.no_grad():
        return network(
            {n: network.modalities[n].to_network(torch.from_numpy(images[n])) for n in names}
        ).numpy()


@pytest.mark.parametrize("names", subsets(NAMES))
def test_every_subset_from_physical_images(exported, data, names):
    """Real frames of the toy, two at a time; what an absent sensor shows, NaN included, changes not one bit."""
    network, session = exported
    images = {n: np.stack([data.physical(i)[0][n].numpy() for i in (0, 1)]) for n in NAMES}
    present = np.float32([n in names for n in NAMES])
    results = []
    for rest in (np.nan, np.inf, 0.0, 12.0):
        given = {n: image if n in names else np.full_like(image, rest) for n, image in images.items()}
        results.append(session.run(None, given | {"present": present}))
    logits, ids = results[0]
    assert all(np.array_equal(logits, other[0]) and np.array_equal(ids, other[1]) for other in results)
    reference = expected(network, images, names)
    assert np.abs(logits - reference).max() < 1e-4 * np.abs(reference).max()
    sure = np.diff(np.sort(reference, 1)[:, -2:], axis=1)[:, 0] > 1e-2
    assert (
        ids.dtype == np.uint8 and sure.mean() > 0.95 and np.array_equal(ids[sure], reference.argmax(1)[sure])
    )
    assert len(np.unique(ids)) > 1


@pytest.mark.parametrize("batch, size", [(1, (32, 48)), (3, (17, 40)), (1, (96, 33))])
def test_any_batch_and_size(exported, batch, size):
    network, session = exported
    rng = np.random.default_rng(0)
    images = {
        n: rng.random((batch, m.channels, *size), dtype=np.float32) for n, m in network.modalities.items()
    }
    logits = session.run(["logits"], images | {"present": np.ones(3, np.float32)})[0]
    reference = expected(network, images, NAMES)
    assert (
        logits.shape == (batch, 3, *size)
        and np.abs(logits - reference).max() < 1e-4 * np.abs(reference).max()
    )


def test_no_sensor_at_all_is_not_a_number(exported):
    network, session = exported
    images = {n: np.zeros((1, m.channels, 32, 32), np.float32) for n, m in network.modalities.items()}
    assert np.isnan(session.run(["logits"], images | {"present": np.zeros(3, np.float32)})[0]).all()


def test_the_model_says_what_its_numbers_mean(exported):
    _, session = exported
    notes = {
        key: json.loads(value)
        for key, value in session.get_modelmeta().custom_metadata_map.items()
        if value.startswith(("[", "{"))
    }
    assert (
        notes["classes"] == toy.CLASSES
        and notes["palette"] == [list(c) for c in toy.PALETTE]
        and notes["present"] == NAMES
    )
    depth = notes["modalities"][1]
    assert (depth["name"], depth["unit"], depth["channels"], depth["scale"]) == (
        "depth",
        "m",
        1,
        toy.MODALITIES["depth"].scale,
    )
    assert [i.name for i in session.get_inputs()] == [*NAMES, "present"] and [
        o.name for o in session.get_outputs()
    ] == ["logits", "ids"]


def test_a_pyramid_transformer_at_a_fixed_size(data, tmp_path, capsys, monkeypatch):
    """With one block in each of its four stages, which has every kind of operation that more blocks have."""
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depths=(1, 1, 1, 1)))
    torch.manual_seed(0)
    network = Segmenter(
        data.modalities, toy.CLASSES, toy.PALETTE, NetworkConfig(encoder="pvt_v2_b0", stem="shared")
    ).eval()
    save_segmenter(network, tmp_path / "net.safetensors")
    out = tmp_path / "models" / "net.onnx"
    cli.main(["export", str(tmp_path / "net.safetensors"), "--out", str(out), "--size", "32", "64"])
    assert (
        "images of 32 × 64" in capsys.readouterr().out and onnx.load(out, load_external_data=False).ir_version
    )
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    images = {n: rng.random((2, m.channels, 32, 64), dtype=np.float32) for n, m in network.modalities.items()}
    found = session.run(["logits"], images | {"present": np.float32([1, 0, 1])})[0]
    assert np.abs(found - expected(network, images, ["rgb", "aolp"])).max() < 1e-4


def test_a_graph_that_computes_something_else_is_not_written(exported, tmp_path, monkeypatch):
    """A checkpoint whose classifier differs by a thousandth, and an exporter that hands out the old graph."""
    network, session = exported
    graph = SimpleNamespace(metadata_props={}, opset_imports={"": 20})
    program = SimpleNamespace(
        model=graph, save=lambda path, external_data: shutil.copy(session._model_path, path)
    )
    monkeypatch.setattr(torch.onnx, "export", lambda *arguments, **options: program)
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.head.classify.weight *= 0.999
    for net, fails in ((network, False), (changed, True)):
        save_segmenter(net, tmp_path / "net.safetensors")
        arguments = ["export", str(tmp_path / "net.safetensors"), "--out", str(tmp_path / f"{fails}.onnx")]
        if not fails:
            cli.main(arguments)
        else:
            with pytest.raises(SystemExit, match="onnxruntime differs from torch by .*; nothing was written"):
                cli.main(arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["False.onnx", "net.safetensors"]
    with torch.no_grad():
        changed.head.classify.weight *= torch.nan
    assert np.isnan(compare(tmp_path / "False.onnx", changed, [(32, 32)])["difference"])


def test_without_the_extra_one_line_says_what_to_install(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit, match=r'ONNX export lacks .*onnxscript.*pip install -e "\.\[export\]"'):
        cli.main(["export", str(tmp_path / "net.safetensors"), "--out", str(tmp_path / "net.onnx")])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--opset", "11"], "--opset 11: expected 18 or more"),
        (["--size", "16", "64"], "--size: images of 16 × 64 pixels; this encoder takes 32 or more a side"),
    ],
)
def test_wrong_options(data, tmp_path, options, message):
    save_segmenter(
        Segmenter(data.modalities, toy.CLASSES, toy.PALETTE, NetworkConfig(encoder="pvt_v2_b0")),
        tmp_path / "net.safetensors",
    )
    with pytest.raises(SystemExit) as end:
        cli.main(["export", str(tmp_path / "net.safetensors"), "--out", str(tmp_path / "net.onnx"), *options])
    assert message in end.value.code and not (tmp_path / "net.onnx").exists()


def test_centred_fusion_has_no_mask(data, tmp_path):
    network = Segmenter(data.modalities, toy.CLASSES, toy.PALETTE, NetworkConfig(fusion="centred"))
    save_segmenter(network, tmp_path / "net.safetensors")
    with pytest.raises(SystemExit, match="its fusion is centred; only the mean can mask"):
        cli.main(["export", str(tmp_path / "net.safetensors"), "--out", str(tmp_path / "net.onnx")])
