"""CMX's modules against the formulas of the papers, written out stream by stream in float64; the number of
their parameters; and the network that they make of two encoders.
"""

import math

import pytest
import torch

from mmlib.segmentation.rectification import Exchange, Fusion, Rectification, addition

WIDTHS = [64, 128, 320, 512]  # of the encoder of CMX-B2 and CMNeXt-B2, whose heads are 1, 2, 5 and 8


def random_(module: torch.nn.Module) -> torch.nn.Module:
    """The module in float64, its parameters drawn anew, so that no weight is 1 and no bias 0."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.double().parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def streams(count: int, channels: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, 5, 7, generator=generator, dtype=torch.float64) for _ in range(count)]


def linear(layer, tokens, stream=None):
    """Tokens (N, C) through a 1×1 convolution, or through the part of a grouped one for one stream."""
    weight, bias = layer.weight.flatten(1), layer.bias
    if stream is not None:
        rows = slice(stream * len(weight) // 2, (stream + 1) * len(weight) // 2)
        weight, bias = weight[rows], None if bias is None else bias[rows]
    return tokens @ weight.T + (0 if bias is None else bias)


def rectified(module, x1, x2):
    """FRM: channel and position weights of both streams, λ = ½ each, and the other's features added."""
    out1, out2 = torch.empty_like(x1), torch.empty_like(x2)
    width = x1.shape[1]
    for b in range(len(x1)):
        pooled = torch.cat(
            [x.flatten(1).mean(1) for x in (x1[b], x2[b])]
            + [x.flatten(1).max(1).values for x in (x1[b], x2[b])]
        )
        channel = torch.sigmoid(linear(module.channels[2], torch.relu(linear(module.channels[0], pooled))))
        for i in range(x1.shape[2]):
            for j in range(x1.shape[3]):
                both = torch.cat([x1[b, :, i, j], x2[b, :, i, j]])
                spatial = torch.sigmoid(
                    linear(module.positions[2], torch.relu(linear(module.positions[0], both)))
                )
                a, c = x1[b, :, i, j], x2[b, :, i, j]
                out1[b, :, i, j] = a + 0.5 * channel[width:] * c + 0.5 * spatial[1] * c
                out2[b, :, i, j] = c + 0.5 * channel[:width] * a + 0.5 * spatial[0] * a
    return out1, out2


def normalised(tokens, weight, bias):
    """LayerNorm of each token (N, C)."""
    centred = tokens - tokens.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight + bias


def grouped(norm, image):
    """GroupNorm of one image (C, H, W), group by group."""
    parts = []
    for part in image.chunk(norm.num_groups):
        parts.append((part - part.mean()) / (part.var(unbiased=False) + 1e-5).sqrt())
    return torch.cat(parts) * norm.weight[:, None, None] + norm.bias[:, None, None]


def fused(module, x1, x2, heads):
    """FFM, one image and one head at a time."""
    out = []
    for images in zip(x1, x2):
        width, height, across = images[0].shape
        tokens = [image.flatten(1).T for image in images]  # (N, C)
        rest, u = zip(*(torch.relu(linear(module.enter, x, s)).chunk(2, 1) for s, x in enumerate(tokens)))
        contexts = []
        for s in range(2):
            keys, values = linear(module.attend, u[s], s).chunk(2, 1)
            size = width // heads
            contexts.append([])
            for h in range(heads):
                k, v = (z[:, h * size : (h + 1) * size] for z in (keys, values))
                contexts[s].append(torch.softmax(k.T @ v / math.sqrt(size), dim=0))
        both = []
        for s, x in enumerate(tokens):
            parts = [q @ g for q, g in zip(u[s].chunk(heads, 1), contexts[1 - s])]
            attended = torch.cat([rest[s], *parts], 1)
            own = slice(s * width, (s + 1) * width)
            norm = module.normalise
            both.append(normalised(x + linear(module.leave, attended, s), norm.weight[own], norm.bias[own]))
        merged = torch.cat(both, 1)  # (N, 2C)
        one = linear(module.embed[0], merged).T.unflatten(1, (height, across))
        kernel, padded = module.embed[1], torch.nn.functional.pad(one, (1, 1, 1, 1))
        deep = torch.empty_like(one)
        for i in range(height):
            for j in range(across):
                window = padded[:, i : i + 3, j : j + 3]
                deep[:, i, j] = (window * kernel.weight[:, 0]).sum((1, 2)) + kernel.bias
        two = linear(module.embed[3], torch.relu(deep).flatten(1).T).T.unflatten(1, (height, across))
        residual = linear(module.residual, merged).T.unflatten(1, (height, across))
        out.append(grouped(module.norm, residual + grouped(module.embed[4], two)))
    return torch.stack(out)


def test_rectification_is_the_papers():
    module, (x, y) = random_(Rectification(6)), streams(2, 6)
    with torch.no_grad():
        found = module(torch.cat([x, y], 1))
        assert torch.allclose(found, torch.cat(rectified(module, x, y), 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_fusion_is_the_papers(heads):
    module, (x, y) = random_(Fusion(16, heads)), streams(2, 16)
    with torch.no_grad():
        found = module(torch.cat([x, y], 1))
        assert torch.allclose(found, fused(module, x, y, heads), rtol=0, atol=1e-10)
        flat = module(torch.cat([x, y], 1).to(memory_format=torch.channels_last))
        assert torch.allclose(flat, found, rtol=0, atol=1e-10)


def test_several_auxiliary_sensors_meet_in_the_hub():
    module, (main, *others) = random_(Exchange(8, 8, 3)), streams(4, 8)
    with torch.no_grad():
        found_main, on, found = module(main, others)
        weighted = []
        for net, x in zip(module.scores, others):
            score = torch.sigmoid(net[1](net[0](x)))
            weighted.append(x + score * x)
        largest = torch.maximum(torch.maximum(weighted[0], weighted[1]), weighted[2])
        main, hub = rectified(module.rectify, main, largest)
        assert torch.allclose(found_main, main, rtol=0, atol=1e-10)
        assert torch.allclose(found, fused(module.fuse, main, hub, 1), rtol=0, atol=1e-10)
        for x, y in zip(weighted, on):
            assert torch.allclose(y, x + hub, rtol=0, atol=1e-10)


def test_two_sensors_are_cmx():
    module, (x, y) = random_(Exchange(8, 4, 1)), streams(2, 8)
    assert not module.scores
    with torch.no_grad():
        main, (on,), found = module(x, [y])
        expected = rectified(module.rectify, x, y)
        assert torch.allclose(main, expected[0], rtol=0, atol=1e-10)
        assert torch.allclose(on, expected[1], rtol=0, atol=1e-10)
        assert torch.allclose(found, fused(module.fuse, *expected, heads=2), rtol=0, atol=1e-10)


def test_derivatives_of_first_and_second_order_are_those_of_differences():
    """The information at the input differentiates the gradient."""
    module = random_(Exchange(4, 2, 2))
    images = [x[:1, :, :3, :2].clone().requires_grad_() for x in streams(3, 4)]
    function = lambda main, *others: module(main, list(others))[2]
    assert torch.autograd.gradcheck(function, images)
    assert torch.autograd.gradgradcheck(function, images, atol=1e-4)


def test_an_addition_takes_the_largest_response():
    main, x, y = streams(3, 4)
    found, on, fused = addition(main, [x, y])
    assert torch.equal(found, main + torch.maximum(x, y)) and fused is found and on == [x, y]
    assert addition(main, [])[0] is main


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_are_as_many_as_released():
    """Layer by layer, as the released modules have them, with C channels:

    rectification: linear maps 4C→4C and 4C→2C, 1×1 convolutions 2C→C and C→2, all with biases.
    fusion: for each of two streams a map C→2C, one for keys and values C→2C without bias, one 2C→C, and a
    LayerNorm; convolutions 2C→C without bias, 2C→C, depth-wise 3×3, C→C; two norms.
    hub: for each auxiliary sensor a depth-wise 3×3 and a 1×1 convolution to one score.
    """
    total = 0
    for c, heads in zip(WIDTHS, (1, 2, 5, 8)):
        frm = 4 * c * (4 * c + 1) + 2 * c * (4 * c + 1) + c * (2 * c + 1) + 2 * (c + 1)
        path = 2 * c * (c + 1) + 2 * c * c + c * (2 * c + 1) + 2 * c
        ffm = 2 * path + 2 * c * c + c * (2 * c + 1) + 10 * c + c * (c + 1) + 2 * 2 * c
        hub = 3 * (10 * c + c + 1)
        exchange = Exchange(c, WIDTHS[0], 3)
        assert count(exchange.rectify) == frm == 26 * c**2 + 9 * c + 2
        assert count(exchange.fuse) == ffm == 17 * c**2 + 26 * c
        assert count(exchange.scores) == hub and exchange.fuse.heads == heads
        total += frm + ffm
    assert (
        total == 16_591_880
    )  # of CMX-B2's 66.6 M; two encoders of 24.2 M and the head of 1.6 M are the rest
