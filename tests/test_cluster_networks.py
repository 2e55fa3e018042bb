"""The trainable part of UniM2: the paper's parameter counts, forward against plain sums, harmonizers and
anchors, fusions, files.
"""

import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlib.runtime import read_tensor_header, read_tensors, save_tensors
from mmlib.unsupervised.clustering import Clustering, load_clustering, save_clustering
from mmlib.unsupervised.networks import (
    MSN,
    CBAMFusion,
    ClusterNet,
    ClusterNetConfig,
    ConvFusion,
    SegmentationHead,
    StitchFusion,
    two_layers,
)

C, D, NAMES = 12, 5, ["rgb", "depth", "thermal"]
FUSIONS = ["conv", "progressive", "sum", "mean", "max", "cbam", "stitch", "none"]


def network(modalities=("rgb", "depth"), channels=C, **options) -> ClusterNet:
    torch.manual_seed(0)
    return ClusterNet(channels, modalities, ClusterNetConfig(**{"dim": D} | options)).eval()


def tokens(modalities=("rgb", "depth"), batch=2, channels=C, grid=(3, 4), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, channels, *grid, generator=generator) for name in modalities}


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def linear(layer, x):
    """A 1×1 convolution written as a sum over channels."""
    return torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]


# ---------------------------------------------------------------- sizes and values


def test_released_parameter_counts():
    """Facts of the released code at ViT-S and two modalities: 1,172,256 trained numbers."""
    net = ClusterNet(384, ["rgb", "depth"])
    assert [size(part) for part in (net.msn, net.fusion, net.head, net.harmonizers)] == [
        296_064,
        664_512,
        201_740,
        9_940,
    ]
    assert size(net) == 1_172_256
    assert net.config == ClusterNetConfig(
        dim=70, fusion="conv", msn=True, residual=False, dropout=0.1, anchor="rgb"
    )


@pytest.mark.parametrize(
    "names, fusion, parameters",
    [
        (["rgb", "aolp"], 443_904, 1_339_648),
        (["rgb", "aolp", "dolp", "nir"], 3_103_872, 4_295_680),
    ],
    ids=["two", "four"],
)
def test_released_parameter_counts_of_mcubes(names, fusion, parameters):
    """Facts of the released code: ViT-S, codes of 320, one harmonizer for all sensors."""
    net = ClusterNet(384, names, ClusterNetConfig(dim=320, fusion="progressive", shared_cmh=True))
    assert (size(net.fusion), size(net)) == (fusion, parameters)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_progressive_fusion(count):
    """nC -> (n-1)C -> … -> C -> C: count by hand, BatchNorm and ReLU between, nothing after the last map."""
    fusion, widths = ConvFusion(C, count, progressive=True), [k * C for k in range(count, 0, -1)] + [C]
    by_hand = sum(a * b + b for a, b in zip(widths, widths[1:])) + sum(2 * b for b in widths[1:-1])
    assert size(fusion) == by_hand
    kinds = [type(layer).__name__ for layer in fusion.body]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * (count - 1) + ["Conv2d"]
    fusion.eval()
    maps = list(tokens([str(i) for i in range(count)]).values())
    x = torch.cat(maps, 1)
    for layer in fusion.body:
        if isinstance(layer, nn.Conv2d):
            x = linear(layer, x)
        elif isinstance(layer, nn.BatchNorm2d):
            x = x / math.sqrt(1 + layer.eps)  # untrained running statistics: mean 0, variance 1
        else:
            x = x.clamp_min(0)
    assert torch.allclose(fusion(maps), x, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_fusion_by_two_maps(count):
    """nC -> (n+1)C/2 -> C for any number of modalities, without a norm."""
    first, relu, second = ConvFusion(C, count).body
    assert (first.in_channels, first.out_channels) == (count * C, (count + 1) * C // 2)
    assert type(relu) is nn.ReLU and (second.in_channels, second.out_channels) == ((count + 1) * C // 2, C)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("msn", [False, True])
def test_forward_is_sums_over_channels(msn, normalize, residual):
    """s = S(Ψ(MSN(f_rgb), MSN(f_X))) written out once more without a convolution."""
    net, batch = network(msn=msn, normalize=normalize, residual=residual), tokens()
    maps = []
    for name in ("rgb", "depth"):
        x = batch[name]
        if msn:
            first, _, second = net.msn[name].body
            x = linear(second, linear(first, x).clamp_min(0)) + (x if residual else 0)
        maps.append(x / x.square().sum(1, keepdim=True).sqrt() if normalize else x)
    first, _, second = net.fusion.body
    fused = linear(second, linear(first, torch.cat(maps, 1)).clamp_min(0))
    assert torch.allclose(net.fused(batch), fused, atol=1e-5)
    a, _, b = net.head.nonlinear
    code = linear(net.head.linear, fused) + linear(b, linear(a, fused).clamp_min(0))
    assert torch.allclose(net(batch), code, atol=1e-5) and code.shape == (2, D, 3, 4)


def test_a_single_modality_is_the_head_alone():
    """STEGO: no fusion, no norm, no harmonizer."""
    net, batch = network(["thermal"], msn=False), tokens(["thermal"])
    assert torch.equal(net(batch), net.head(batch["thermal"]))
    assert size(net) == size(net.head) and net.reference == "thermal" and net.soft == ()


def test_odd_numbers_of_channels():
    for channels in (1, 3, 7):
        assert network(channels=channels)(tokens(channels=channels)).shape == (2, D, 3, 4)


# ---------------------------------------------------------------- harmonizers and anchors


@pytest.mark.parametrize(
    "anchor, soft",
    [
        ("rgb", ["depth", "thermal"]),
        ("auxiliary", ["rgb"]),
        ("both", []),
        ("none", ["rgb", "depth", "thermal"]),
    ],
)
@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]], ids="-".join)
def test_anchor_placement(anchor, soft, order):
    """Table 6: an anchor's loss sees the code itself; the order of the sensors' names changes nothing."""
    net, code = network(order, anchor=anchor), torch.randn(2, D, 3, 4)
    assert sorted(net.harmonizers) == sorted(soft) == sorted(net.soft)
    for name in NAMES:
        values = net.harmonized(code, name)
        if name in soft:
            first, _, second = net.harmonizers[name]
            assert torch.allclose(values, linear(second, linear(first, code).clamp_min(0)), atol=1e-5)
        else:
            assert values is code


def test_harmonizers_are_one_each_or_shared():
    code = torch.randn(1, D, 2, 2)
    own, shared = network(NAMES), network(NAMES, shared_cmh=True)
    one = size(two_layers(D, D, D))
    assert size(own.harmonizers) == 2 * one and size(shared.harmonizers) == one
    assert torch.equal(shared.harmonized(code, "depth"), shared.harmonized(code, "thermal"))
    assert not torch.allclose(own.harmonized(code, "depth"), own.harmonized(code, "thermal"))
    assert not network(NAMES, shared_cmh=True, anchor="both").harmonizers


def test_a_harmonizer_learns_from_its_own_modality_only():
    net, batch = network(NAMES), tokens(NAMES)
    for name in NAMES:
        net.zero_grad()
        net.harmonized(net(batch), name).square().sum().backward()
        touched = {
            key
            for key, module in net.harmonizers.items()
            if any(p.grad is not None for p in module.parameters())
        }
        assert touched == ({name} - {"rgb"})
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0 for p in net.head.parameters()
        )  # every loss reaches the code


@pytest.mark.parametrize("shared", [False, True])
def test_inference_never_uses_a_harmonizer(shared):
    net, batch = network(NAMES, shared_cmh=shared), tokens(NAMES)
    before = net(batch)
    with torch.no_grad():
        for p in net.harmonizers.parameters():
            p.fill_(float("nan"))
    assert torch.equal(net(batch), before) and torch.equal(net.harmonized(before, "rgb"), before)
    del net.harmonizers
    assert torch.equal(net(batch), before)


def test_the_reference_alone_is_read_without_fusion():
    net, batch = network(NAMES, fusion="none"), tokens(NAMES)
    assert torch.equal(net(batch), net({"rgb": batch["rgb"]})) and list(net.msn) == ["rgb"]
    assert net.soft == ("depth", "thermal")  # the others still supervise


# ---------------------------------------------------------------- fusions


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("names", [["rgb"], ["rgb", "depth"], NAMES], ids=len)
def test_every_fusion_of_any_number_of_modalities(fusion, names):
    net, batch = network(names, fusion=fusion), tokens(names)
    assert net(batch).shape == (2, D, 3, 4)
    assert torch.equal(
        net(batch), net(dict(reversed(batch.items())))
    )  # the order within the batch is of no meaning
    alone = torch.cat([net({name: x[i : i + 1] for name, x in batch.items()}) for i in range(2)])
    assert torch.allclose(net(batch), alone, atol=1e-6)  # in eval mode no image touches another
    net.train()(batch).square().sum().backward()
    assert all(p.grad is not None for part in (net.msn, net.head) for p in part.parameters())


@pytest.mark.parametrize(
    "fusion, rule",
    [("sum", lambda x: x.sum(0)), ("mean", lambda x: x.mean(0)), ("max", lambda x: x.max(0)[0])],
)
def test_static_fusions(fusion, rule):
    net, batch = network(NAMES, fusion=fusion, msn=False), tokens(NAMES)
    assert torch.allclose(
        net.fused(batch), rule(torch.stack([F.normalize(x, dim=1) for x in batch.values()])), atol=1e-6
    )
    assert size(net) == size(net.head) + size(net.harmonizers)
    for order in permutations(NAMES):  # symmetric in the modalities
        assert torch.allclose(net.fused(batch), net.fused(dict(zip(order, batch.values()))), atol=1e-6)


@pytest.mark.parametrize("fusion", [f for f in FUSIONS if f != "cbam"])
def test_fusions_work_at_each_location(fusion):
    """Permuting the locations permutes the codes; CBAM looks around and does not obey."""
    net, batch, order = (
        network(NAMES, fusion=fusion),
        tokens(NAMES),
        torch.randperm(12, generator=torch.Generator().manual_seed(3)),
    )
    moved = {name: x.flatten(2)[:, :, order].view_as(x) for name, x in batch.items()}
    assert torch.allclose(net(moved).flatten(2), net(batch).flatten(2)[:, :, order], atol=1e-5)


def test_cbam_gates_by_hand():
    fusion, maps = CBAMFusion(C, 2).eval(), list(tokens().values())
    x = torch.cat(maps, 1)
    channel = torch.empty(2, 2 * C)
    for b in range(2):
        pooled = [x[b].flatten(1).mean(1), x[b].flatten(1).max(1)[0]]
        mlp = [
            fusion.mlp[2].weight[:, :, 0, 0]
            @ (fusion.mlp[0].weight[:, :, 0, 0] @ p + fusion.mlp[0].bias).clamp_min(0)
            for p in pooled
        ]
        channel[b] = 1 / (1 + torch.exp(-(mlp[0] + mlp[1] + 2 * fusion.mlp[2].bias)))
    x = x * channel[:, :, None, None]
    values = F.pad(torch.stack([x.mean(1), x.max(1)[0]], 1), (3, 3, 3, 3))
    spatial = torch.empty(2, 3, 4)
    for i in range(3):
        for j in range(4):
            spatial[:, i, j] = (values[:, :, i : i + 7, j : j + 7] * fusion.spatial.weight[0]).sum(
                (1, 2, 3)
            ) + fusion.spatial.bias
    assert torch.allclose(
        fusion(maps), linear(fusion.project, x * torch.sigmoid(spatial)[:, None]), atol=1e-5
    )


def test_stitching_starts_as_plain_concatenation_and_then_crosses():
    fusion, maps = StitchFusion(C, 3).eval(), list(tokens(NAMES).values())
    assert len(fusion.adapters) == 6
    assert torch.equal(fusion(maps), fusion.project(torch.cat(maps, 1)))
    adapter = fusion.adapters["2_to_0"]
    with torch.no_grad():
        adapter[-1].weight.copy_(torch.randn_like(adapter[-1].weight))
    exchanged = [maps[0] + adapter(maps[2]), maps[1], maps[2]]
    assert torch.allclose(fusion(maps), fusion.project(torch.cat(exchanged, 1)), atol=1e-6)
    fusion(maps).sum().backward()
    assert all(a[-1].bias.grad.abs().sum() > 0 for a in fusion.adapters.values())  # zero, but not stuck there


# ---------------------------------------------------------------- dropout


def test_dropout_is_inactive_in_eval_and_independent_in_training():
    head = SegmentationHead(C, D, 0.5)
    x = torch.randn(4, C, 3, 4)
    assert torch.equal(head.eval()(x), head.eval()(x))
    assert torch.allclose(head(x), head.linear(x) + head.nonlinear(x), atol=1e-6)
    torch.manual_seed(0)
    head.train()
    assert not torch.allclose(head(x), head(x))
    values = []
    head.linear.register_forward_hook(lambda module, inputs, output: values.append(inputs[0]))
    head.nonlinear.register_forward_hook(lambda module, inputs, output: values.append(inputs[0]))
    head(x)
    masks = [(s != 0).flatten(2) for s in values]
    assert all((k.all(2) == k.any(2)).all() for k in masks)  # whole channels
    assert not torch.equal(masks[0], masks[1]) and torch.allclose(
        values[0][values[0] != 0], 2 * x[values[0] != 0]
    )


# ---------------------------------------------------------------- errors and files


@pytest.mark.parametrize(
    "options, words",
    [
        ({"fusion": "concat"}, "--fusion concat: expected one of conv, progressive, sum"),
        ({"anchor": "depth"}, "--anchor depth: expected one of rgb, auxiliary"),
        ({"dim": 0}, "--dim 0: expected 1 or more"),
        ({"dropout": 1.0}, "--dropout 1.0: expected 0 or more and below 1"),
    ],
)
def test_wrong_settings_are_explained(options, words):
    with pytest.raises(ValueError, match=words):
        ClusterNet(C, NAMES, ClusterNetConfig(**options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion": "cbam", "anchor": "none"},
        {"fusion": "stitch", "residual": True, "shared_cmh": True},
        {"fusion": "max", "msn": False},
    ],
    ids=str,
)
def test_round_trip(tmp_path, options):
    net, batch, path = network(NAMES, **options), tokens(NAMES), tmp_path / "net.safetensors"
    net.train()(batch)  # moves the running statistics of BatchNorm, which must travel too
    save_clustering(path, Clustering(torch.ones(2, D), network=net.eval()))
    again = load_clustering(path).network
    assert again.config == net.config and again.modalities == NAMES and not again.training
    assert torch.equal(again(batch), net(batch))
    for name in NAMES:
        assert torch.equal(again.harmonized(net(batch), name), net.harmonized(net(batch), name))


def test_bad_files_are_explained(tmp_path):
    net, path = network(), tmp_path / "clustering.safetensors"
    with pytest.raises(ValueError, match="no such file"):
        load_clustering(path)
    save_clustering(path, Clustering(torch.ones(2, D), network=net))
    header, whole = read_tensor_header(path)["clustering"], path.read_bytes()
    tensors = {name: value.clone() for name, value in read_tensors(path).items()}  # the file will change
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        load_clustering(path)
    save_tensors(path, tensors, {"segmenter": header})
    with pytest.raises(ValueError, match="KeyError: 'clustering'.*not a clustering of"):
        load_clustering(path)
    description = header["network"]
    for wrong in (
        {"channels": C + 2},
        {"modalities": NAMES},
        {"adapters": ["rgb"]},
        {"config": description["config"] | {"dim": D + 1}},
        {"config": description["config"] | {"fusion": "concat"}},
        {"config": {"depth": 3}},
    ):
        save_tensors(path, tensors, {"clustering": header | {"network": description | wrong}})
        with pytest.raises(ValueError, match="do not fit|that this version can build"):
            load_clustering(path)
    broken = dict(tensors)
    del broken["network.head.linear.bias"]
    save_tensors(path, broken, {"clustering": header})
    with pytest.raises(ValueError, match="head.linear.bias"):
        load_clustering(path)


def test_msn_adds_its_input_only_when_told():
    x = torch.randn(1, C, 2, 2)
    torch.manual_seed(0)
    plain = MSN(C)
    torch.manual_seed(0)
    assert torch.allclose(MSN(C, residual=True)(x) - plain(x), x, atol=1e-6)
