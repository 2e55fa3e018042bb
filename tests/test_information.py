"""Information of the network: closed forms, finite differences in float64, invariances, and what the fused
reading can not see.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmlib.data.prepared import PreparedDataset
from mmlib.modalities import SENSORS
from mmlib.segmentation import information as info
from mmlib.segmentation.network import NetworkConfig, Segmenter

NAMES = ("rgb", "depth", "event")
MODALITIES = {
    n: replace(SENSORS[n], mean=(0.0,) * SENSORS[n].channels, std=(1.0,) * SENSORS[n].channels) for n in NAMES
}
CLASSES, PALETTE = ["a", "b", "c", "d"], [(i, i, i) for i in range(4)]


def network(**options) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(MODALITIES, CLASSES, PALETTE, NetworkConfig(**options)).double().eval()


def batch(count=2, size=(32, 32), dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    images = {
        n: torch.randn(count, m.channels, *size, generator=generator, dtype=dtype)
        for n, m in MODALITIES.items()
    }
    label = torch.randint(0, 4, (count, *size), generator=generator)
    label[:, :3] = 255
    return images, label


class Linear(nn.Module):
    """Mean fusion of per-pixel linear maps c_i W: everything is known in closed form."""

    def __init__(self, weights: dict[str, float], classes=4, channels=6):
        super().__init__()
        torch.manual_seed(1)
        self.rows = nn.Parameter(
            torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0][:classes]
        )
        self.weights = weights

    def forward(self, images):
        maps = [self.weights[n] * torch.einsum("kc,bchw->bkhw", self.rows, x) for n, x in images.items()]
        return torch.stack(maps).mean(0)


def linear_case(count=3, size=(5, 7)):
    generator = torch.Generator().manual_seed(0)
    images = {n: torch.randn(count, 6, *size, generator=generator, dtype=torch.float64) for n in NAMES}
    return images, torch.randint(0, 4, (count, *size), generator=generator)


def test_linear_network_has_the_ratio_of_squared_weights():
    """Information of a linear network: I_i = σ² c_i² ‖q − y‖² / (M² N f), so I_1 / I_2 = (c_1 / c_2)²."""
    weights = {"rgb": 1.0, "depth": 0.25, "event": 0.5}
    net, (images, label) = Linear(weights), linear_case()
    values, f = info.input_information(net, images, label, sigma=0.2, seed=4)
    z = info.noisy(images, 0.2, 4)
    logits = net(z)
    q = logits.softmax(1) - F.one_hot(label, 4).permute(0, 3, 1, 2)
    pixels = label[0].numel()
    for i, name in enumerate(NAMES):
        expected = 0.2**2 * weights[name] ** 2 * q.square().flatten(1).sum(1) / (9 * pixels * (f + info.EPS))
        assert torch.allclose(values[i], expected, rtol=1e-10)
    assert torch.allclose(values[0] / values[1], torch.full((3,), 16.0, dtype=torch.float64), rtol=1e-10)


@pytest.mark.parametrize(
    "reading, options",
    [
        ("input", {"encoder": "residual"}),
        ("consistency", {"encoder": "residual"}),
        ("input", {"encoder": "pvt_v2_b0"}),
        ("consistency", {"encoder": "pvt_v2_b0"}),
        ("input", {"encoder": "tf_efficientnet_lite0", "pretrained": True}),
        ("input", {"encoder": "convnext_atto"}),
        ("input", {"encoder": "mobilenetv4_conv_small"}),
        ("input", {"encoder": "vit_tiny_patch16_224"}),
    ],
)
def test_input_gradients_agree_with_finite_differences(reading, options):
    """The information itself, and its derivative with respect to a weight of a stem, in float64."""
    # At 32 the first attention of pvt_v2 has a single key.
    net, (images, label) = network(**options), batch(1, (64, 64))
    values, f = info.input_information(
        net, images, label, sigma=0.1, seed=5, reading=reading, create_graph=True
    )
    z = {n: x.detach() for n, x in info.noisy(images, 0.1, 5).items()}
    target = net(images).softmax(1).detach()  # gets no gradient, so it stays what it is while a weight moves

    def loss(depth):
        if reading == "input":
            return info.mean_cross_entropy(net(z | {"depth": depth}), label)[0].sum()
        return info.mean_cross_entropy(net({"depth": depth}), target)[0].sum()

    def information():
        leaf = z["depth"].clone().requires_grad_()
        with info.exact(label.device):
            value = loss(leaf)
            (gradient,) = torch.autograd.grad(value, leaf)
        pixels = int((label != 255).sum()) if reading == "input" else label[0].numel()
        return gradient, 0.1**2 * pixels * float(gradient.square().sum()) / (float(value.detach()) + info.EPS)

    gradient, expected = information()
    generator, step = torch.Generator().manual_seed(0), 1e-8  # small: ReLU has kinks
    direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        slope = float(loss(z["depth"] + step * direction) - loss(z["depth"] - step * direction)) / (2 * step)
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-4)
    assert float(values[1].detach()) == pytest.approx(expected, rel=1e-9)

    parameter = next(net.stems["depth"].parameters())
    (second,) = torch.autograd.grad(values[1].sum(), parameter)
    way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    found = []
    for sign in (1, -1):
        parameter.data.add_(sign * step * way)
        found.append(information()[1])
        parameter.data.sub_(sign * step * way)
    change = (found[0] - found[1]) / (2 * step)
    assert abs(change) > 1e-9 and change == pytest.approx(float((second * way).sum()), rel=1e-4)


def test_samples_do_not_mix():
    net, (images, label) = network(), batch(3)
    together, _ = info.input_information(net, images, label, seed=1)
    z = info.noisy(images, 0.1, 1)
    for b in range(3):  # the same noise: an image that is its own perturbed version, at sigma close to 0
        alone, _ = info.input_information(
            net, {n: x[b : b + 1] for n, x in z.items()}, label[b : b + 1], sigma=1e-9
        )
        assert torch.allclose(alone[:, 0] * 1e18 * 0.01, together[:, b], rtol=1e-5)


def test_tiling_an_image_changes_nothing_and_units_cancel():
    net, (images, label) = Linear(dict.fromkeys(NAMES, 1.0)), linear_case(1)
    plain, f = info.input_information(net, images, label, sigma=1e-6)
    tiled, _ = info.input_information(
        net, {n: x.repeat(1, 1, 2, 3) for n, x in images.items()}, label.repeat(1, 2, 3), sigma=1e-6
    )
    assert torch.allclose(plain, tiled, rtol=1e-4)

    class Rescaled(Linear):  # takes depth in units a hundred times smaller
        def forward(self, images):
            return super().forward(images | {"depth": images["depth"] / 100})

    other = Rescaled(dict.fromkeys(NAMES, 1.0))
    a = info.input_information(other, images | {"depth": images["depth"] * 100}, label, sigma=1e-6)[0]
    b = info.input_information(other, images | {"depth": images["depth"] * 100}, label, sigma=1e-4)[0]
    assert torch.allclose(b[1], plain[1], rtol=1e-4) and torch.allclose(a[1] * 1e4, plain[1], rtol=1e-4)


def test_permuting_modalities_permutes_information():
    net, (images, label) = network(), batch()
    order = ["event", "rgb", "depth"]
    first, _ = info.input_information(net, images, label)
    second, _ = info.input_information(net, {n: images[n] for n in order}, label)
    assert torch.allclose(second, first[[NAMES.index(n) for n in order]], rtol=1e-8)


@pytest.mark.parametrize("classes, expected", [(2, 0.72135), (19, 0.32175), (20, 0.31712), (25, 0.29824)])
def test_logit_information_of_a_uniform_prediction(classes, expected):
    """(1 − 1/K) / ln K."""
    logits = {"rgb": torch.zeros(2, classes, 4, 6, dtype=torch.float64)}
    label = torch.randint(0, classes, (2, 8, 12))
    values = info.logit_information(logits, label)
    assert float(values[0, 0]) == pytest.approx(expected, abs=1e-5)
    assert float(values[0, 0]) == pytest.approx((1 - 1 / classes) / math.log(classes), rel=1e-5)


def test_inverse_logit_information_of_two_classes_has_its_minimum_at_0285():
    """1/I = −ln p / (2 (1 − p)²): 1.22770 at p = 0.284668, 50.2517 at 0.99: it punishes the confident
    modality.
    """

    def inverse(p):
        logits = torch.tensor([math.log(p / (1 - p)), 0.0], dtype=torch.float64).view(1, 2, 1, 1)
        return 1 / float(info.logit_information({"rgb": logits}, torch.zeros(1, 1, 1, dtype=torch.long)))

    assert inverse(0.284668) == pytest.approx(1.22770, abs=1e-4)
    assert inverse(0.99) == pytest.approx(50.2517, rel=1e-3)
    grid = np.linspace(0.05, 0.95, 1801)
    assert grid[np.argmin([inverse(p) for p in grid])] == pytest.approx(0.2847, abs=6e-4)


@given(st.integers(0, 10**6), st.integers(2, 7), st.booleans())
@settings(max_examples=25)
def test_closed_forms_equal_autograd(seed, classes, variance):
    generator = torch.Generator().manual_seed(seed)
    logits = {
        n: torch.randn(2, classes, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for n in NAMES
    }
    label = torch.randint(0, classes, (2, 3, 4), generator=generator)
    label[0, 0] = 255
    pixels = (label != 255).flatten(1).sum(1)
    values = info.logit_information(logits, label, variance=variance)
    for i, value in enumerate(logits.values()):
        loss, _ = info.mean_cross_entropy(value, label)
        (g,) = torch.autograd.grad(loss.sum(), value)
        energy = pixels * g.flatten(1).square().sum(1)
        assert torch.allclose(values[i], energy if variance else energy / (loss + info.EPS), rtol=1e-9)


@pytest.mark.parametrize("reading", ["kl", "ce"])
def test_feature_information_equals_autograd(reading):
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(3 * 2, 5, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    (values,) = info.feature_information([feature], 3, reading=reading)
    stacked = feature.unflatten(0, (3, 2))
    target = stacked.mean(0).detach().softmax(1)
    for i in range(3):
        log_q = stacked[i].log_softmax(1)
        loss = (
            -(target * log_q).sum(1) if reading == "ce" else F.kl_div(log_q, target, reduction="none").sum(1)
        )
        loss = loss.flatten(1).mean(1)
        (g,) = torch.autograd.grad(loss.sum(), feature, retain_graph=True)
        scale = 5 / 2 if reading == "kl" else 1.0
        expected = scale * 12 * g.unflatten(0, (3, 2))[i].flatten(1).square().sum(1) / (loss + info.EPS)
        assert torch.allclose(values[i], expected, rtol=1e-9)


def test_where_features_agree_kl_tends_to_one_and_ce_to_zero():
    """KL: I → 2/C for uniform q, scaled to 1. CE: I → 0, so that its inverse explodes and drives modalities
    apart.
    """
    torch.manual_seed(0)
    small = 3e-2 * torch.randn(2 * 4, 8, 6, 6, dtype=torch.float64)
    kl = info.feature_information([small], 2)[0]
    assert torch.allclose(kl, torch.ones_like(kl), atol=0.03)
    ce = info.feature_information([small], 2, reading="ce")[0]
    assert float((1 / ce).min()) > 1e3
    same = torch.zeros(4, 8, 6, 6, dtype=torch.float64)
    assert torch.isfinite(info.feature_information([same], 2)[0]).all()


def test_decoder_information_agrees_with_finite_differences():
    net, (images, label) = network(), batch(2)
    with torch.no_grad():
        features = net.features(images)
    values = info.decoder_information(net.head, features, label, 3)
    assert len(features) == 5 and [tuple(v.shape) for v in values] == [(3, 2)] * 4

    def loss(changed):
        with torch.no_grad():
            return info.mean_cross_entropy(net.head(changed).unflatten(0, (3, 2)).mean(0), label)[0]

    leaves = [x.clone().requires_grad_() for x in features]
    value = info.mean_cross_entropy(net.head(leaves).unflatten(0, (3, 2)).mean(0), label)[0]
    gradients = torch.autograd.grad(value.sum(), leaves)
    direction = torch.randn_like(features[1])
    step = 1e-5
    slope = (
        loss([*features[:1], features[1] + step * direction, *features[2:]])
        - loss([*features[:1], features[1] - step * direction, *features[2:]])
    ).sum() / (2 * step)
    assert float(slope) == pytest.approx(float((gradients[1] * direction).sum()), rel=1e-5)
    pixels = (label != 255).flatten(1).sum(1)
    for j, (x, g) in enumerate(zip(features[1:], gradients[1:])):
        spread = x.detach().numpy().reshape(3, 2, -1).var(2)
        energy = g.numpy().reshape(3, 2, -1)
        expected = spread * pixels.numpy() * (energy**2).sum(2) / (value.detach().numpy() + info.EPS)
        assert np.allclose(values[j].detach().numpy(), expected, rtol=1e-8)


def test_decoder_information_does_not_grow_when_features_shrink():
    """A head that normalises undoes the scale of its input: the gradient grows as features shrink, the
    information must not.
    """
    net, (images, label) = network(), batch(1)
    with torch.no_grad():
        features = net.features(images)
    first = info.decoder_information(net.head, features, label, 3)
    net.head.project[0].weight.data.mul_(100)  # the same function of features a hundred times smaller
    second = info.decoder_information(net.head, [features[0] / 100, *features[1:]], label, 3)
    for a, b in zip(first, second):
        assert torch.allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("encoder", ["residual", "pvt_v2_b0"])
def test_decoder_information_goes_through_the_head_alone(encoder):
    """Features that hang on the encoder's graph, where fine scales lead to coarse ones, give what free ones
    give; and a gradient.
    """
    net, (images, label) = network(encoder=encoder), batch(1, (64, 64))
    hanging = net.features(images)
    free = info.decoder_information(net.head, [feature.detach() for feature in hanging], label, 3)
    found = info.decoder_information(net.head, hanging, label, 3, create_graph=True)
    for a, b in zip(free, found):
        assert torch.allclose(a, b.detach(), rtol=1e-9)
    sum((1 / value).sum() for value in found).backward()
    gradient = net.stems["rgb"][0].weight.grad if encoder == "residual" else net.stems["rgb"].proj.weight.grad
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_at_the_clean_target_the_gradient_vanishes():
    """CE of a prediction to itself: f is its entropy, above zero, and the gradient by the prediction's input
    is zero.
    """
    net, (images, _) = network(), batch(1)
    leaf = images["rgb"].clone().requires_grad_()
    with torch.no_grad():
        target = net({"rgb": leaf}).softmax(1)
    f, _ = info.mean_cross_entropy(net({"rgb": leaf}), target)
    (g,) = torch.autograd.grad(f.sum(), leaf)
    assert float(f.detach()) > 0.5 and g.abs().max() < 1e-12


def test_gat_is_the_plain_formula_and_needs_a_batch():
    net, (images, _) = network(), batch(2)
    values = info.gat_information(net, images, seed=7)
    noise = {
        n: x.detach()
        for n, x in info.noisy({n: torch.zeros_like(x) for n, x in images.items()}, 1.0, 7).items()
    }
    z = {n: (x + noise[n] * x.std(0)).requires_grad_() for n, x in images.items()}
    loss = -(net(images).softmax(1).detach() * net(z).log_softmax(1)).sum(1).mean()
    gradients = torch.autograd.grad(loss, list(z.values()))
    expected = [float((g**2).sum(1).mean() / loss) for g in gradients]
    assert np.allclose(values[:, 0].detach().numpy(), expected, rtol=1e-9)
    plain = info.gat_information(net, images, seed=7, variance=True)
    assert np.allclose(plain.detach(), values.detach() * float(loss.detach()), rtol=1e-9)
    with pytest.raises(ValueError, match="batch of 2 or more"):
        info.gat_information(net, {n: x[:1] for n, x in images.items()})


def test_bad_input_is_refused_or_marked():
    net, (images, label) = network(), batch(2)
    with pytest.raises(ValueError, match="above 0"):
        info.input_information(net, images, label, sigma=0.0)
    label[1] = 255
    for values in (
        info.input_information(net, images, label)[0],
        info.logit_information(net.modality_logits(images), label),
        info.decoder_information(net.head, net.features(images), label, 3)[0],
    ):
        assert torch.isfinite(values[:, 0]).all() and torch.isnan(values[:, 1]).all()


def test_full_precision_under_autocast():
    net = network().float()
    images, label = batch(2, dtype=torch.float32)
    plain, _ = info.input_information(net, images, label)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = info.input_information(net, images, label)
    assert plain.dtype == inside.dtype == torch.float32 and torch.equal(plain, inside)


def test_checkpointed_activations_give_the_same_second_derivative():
    found = []
    for checkpointing in (False, True):
        net = network(encoder="pvt_v2_b0", checkpointing=checkpointing).train()
        for module in net.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0
        images, label = batch(1, (64, 64))
        values, _ = info.input_information(net, images, label, create_graph=True)
        (1 / values).sum().backward()
        found.append(net.encoder.stages[0].blocks[0].attn.q.weight.grad.clone())
    assert found[0].abs().max() > 0 and torch.allclose(*found, rtol=1e-8)


def test_measured_information_is_the_mean_over_samples(tmp_path):
    import toy

    data = PreparedDataset(toy.make(tmp_path, train=1, val=3), "val")
    net = Segmenter(data.modalities, data.description.classes, data.description.palette).eval()
    measured = info.measure_information(net, data, samples=3)
    assert list(measured) == list(data.modalities) and min(measured.values()) > 0
    assert info.measure_information(net, data, samples=3) == measured
    assert info.fisher_gap(list(measured.values())) == pytest.approx(
        max(measured.values()) / min(measured.values())
    )
