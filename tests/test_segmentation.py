"""The segmenter and its objective: fusion, independence of sensors, folded head, exact marginal, files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlib.modalities import SENSORS, Modality, subsets
from mmlib.runtime import save_tensors
from mmlib.segmentation.encoder import Encoder
from mmlib.segmentation.network import (
    MLPHead,
    NetworkConfig,
    Segmenter,
    load_segmenter,
    read_header,
    save_segmenter,
)
from mmlib.segmentation.objective import (
    ObjectiveConfig,
    draw_subset,
    pixel_grid,
    resample,
    subset_cross_entropy,
)

NAMES = ["rgb", "depth", "event", "lidar"]
MODALITIES = {
    name: replace(SENSORS[name], mean=(0.0,) * SENSORS[name].channels, std=(1.0,) * SENSORS[name].channels)
    for name in NAMES
}
CLASSES, PALETTE = ["a", "b", "c", "d", "e"], [(i, i, i) for i in range(5)]


def network(modalities=MODALITIES, **options) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(modalities, CLASSES, PALETTE, NetworkConfig(**options)).eval()


def images(batch=2, size=(32, 48), modalities=MODALITIES):
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(batch, m.channels, *size, generator=generator) for name, m in modalities.items()
    }


CONFIGS = [dict(), dict(stem="shared"), dict(encoder="pvt_v2_b0"), dict(encoder="pvt_v2_b0", stem="shared")]


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_fusion_is_the_mean_of_single_predictions(options):
    net, batch = network(**options), images()
    with torch.no_grad():
        alone = [net({name: image}) for name, image in batch.items()]
        for subset in subsets(NAMES):
            fused = net({name: batch[name] for name in subset})
            assert torch.allclose(
                fused, sum(alone[NAMES.index(name)] for name in subset) / len(subset), atol=2e-5
            )


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_no_sensor_changes_anothers_logits(options):
    net, batch = network(**options).train(), images()
    net.head.dropout.p = 0.0
    with torch.no_grad():
        before = net.modality_logits(batch)["rgb"]
        after = net.modality_logits(batch | {"depth": torch.randn_like(batch["depth"]) * 50})["rgb"]
    assert torch.allclose(before, after, atol=1e-5)  # batch normalisation would fail here


@pytest.mark.parametrize(
    "encoder, stride, size",
    [
        ("residual", 2, (32, 48)),
        ("residual", 2, (17, 19)),
        ("residual", 2, (3, 2)),
        ("pvt_v2_b0", 4, (32, 48)),
        ("pvt_v2_b0", 4, (33, 50)),
    ],
)
def test_any_image_size(encoder, stride, size):
    net, batch = network(encoder=encoder), images(1, size)
    with torch.no_grad():
        assert net(batch).shape == (1, 5, *size)
        assert net.modality_logits(batch)["rgb"].shape[-2:] == tuple(-(-length // stride) for length in size)


def test_images_too_small_for_the_encoder_are_explained():
    with pytest.raises(ValueError, match="rgb: images of 17 × 48 pixels; .* 32 or more a side: give"):
        network(encoder="pvt_v2_b0")(images(1, (17, 48)))


@pytest.mark.parametrize("stem", ["separate", "shared"])
def test_any_number_of_channels(stem):
    modalities = {
        f"sensor{c}": Modality(f"sensor{c}", "ABCDEFG"[c], c, mean=(0.0,) * c, std=(1.0,) * c)
        for c in (1, 2, 3, 5)
    }
    net = network(modalities, stem=stem)
    assert net(images(modalities=modalities)).shape == (2, 5, 32, 48)
    if stem == "shared":
        assert list(net.adapters) == ["sensor5"] and len(net.stems) == 1


def test_a_stem_sees_every_channel_of_its_sensor():
    for stem in ("separate", "shared"):
        net, batch = network(stem=stem), images()
        for name, image in batch.items():
            for channel in range(image.shape[1]):
                changed = image.clone()
                changed[:, channel] += 1
                with torch.no_grad():
                    assert not torch.allclose(net({name: image}), net({name: changed})), (stem, name, channel)


def test_pretrained_colour_filters_fit_any_channel_count():
    encoder = Encoder("pvt_v2_b0")
    (template,) = encoder.make_stem.args
    grey = encoder.make_stem(1).proj.weight
    assert torch.allclose(
        grey, template.proj.weight.sum(1, keepdim=True)
    )  # a grey image excites them as before
    assert encoder.make_stem(2).proj.weight.shape[1] == 2 and encoder.make_stem(3) is not template


def test_folded_head_equals_segformers_two_linear_maps():
    """map(concat(up(linear_j(f_j)))) = sum_j up((map_j . linear_j)(f_j)), for any upsampling that is linear
    per channel.
    """
    torch.manual_seed(0)
    widths, embed = (8, 12), 6
    features = [torch.randn(2, 8, 8, 8).double(), torch.randn(2, 12, 4, 4).double()]
    linear = nn.ModuleList(nn.Conv2d(w, embed, 1) for w in widths).double()
    mix = nn.Conv2d(embed * 2, embed, 1).double()
    up = lambda x: F.interpolate(x, (8, 8), mode="bilinear", align_corners=False)  # noqa: E731
    expected = mix(torch.cat([up(layer(f)) for layer, f in zip(linear, features)], 1))
    head = MLPHead(widths, embed, 3, 0.0).double()
    head.norm = nn.Identity()
    head.classify = nn.Identity()
    with torch.no_grad():
        for j, (project, layer) in enumerate(zip(head.project, linear)):
            block = mix.weight[:, embed * j : embed * (j + 1), 0, 0]
            project.weight.copy_((block @ layer.weight[:, :, 0, 0])[..., None, None])
            project.bias.copy_(block @ layer.bias + (mix.bias if j == 0 else 0))
        assert torch.allclose(head(features), F.relu(expected))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda b: {}, "images of nothing; this network takes rgb"),
        (
            lambda b: b | {"radar": b["rgb"]},
            "lidar, radar; this network takes rgb, depth, event, lidar",
        ),
        (lambda b: b | {"rgb": b["rgb"][:, :2]}, r"rgb: expected \(B, 3, H, W\)"),
        (lambda b: b | {"rgb": b["rgb"][..., :-1]}, "differ in batch or image size"),
        (lambda b: b | {"rgb": b["rgb"][0]}, r"rgb: expected \(B, 3, H, W\)"),
    ],
)
def test_wrong_inputs_are_explained(change, message):
    with pytest.raises(ValueError, match=message):
        network()(change(images()))


def test_a_checkpoint_rebuilds_the_network(tmp_path):
    for i, options in enumerate(CONFIGS):
        net, batch = network(**options), images()
        save_segmenter(net, tmp_path / f"{i}.safetensors", step=3)
        again = load_segmenter(tmp_path / f"{i}.safetensors")
        with torch.no_grad():
            assert torch.equal(net(batch), again(batch)) and not again.training
        assert again.modalities == net.modalities and again.palette == net.palette
        assert read_header(tmp_path / f"{i}.safetensors")["notes"] == {"step": 3}


def test_wrong_checkpoints_are_explained(tmp_path):
    path = tmp_path / "net.safetensors"
    save_segmenter(network(), path)
    with pytest.raises(ValueError, match="no such file"):
        load_segmenter(tmp_path / "none.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="damaged"):
        load_segmenter(path)
    torch.save({"a": 1}, path)  # a pickle: refused, never executed
    with pytest.raises(ValueError, match="damaged"):
        load_segmenter(path)
    save_tensors(path, {"x": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="not a segmenter checkpoint"):
        load_segmenter(path)


def logits_and_label(batch=2, modalities=3, size=(12, 16)):
    torch.manual_seed(3)
    logits = {
        name: torch.randn(batch, 5, size[0] // 2, size[1] // 2, dtype=torch.double, requires_grad=True)
        for name in NAMES[:modalities]
    }
    label = torch.randint(0, 5, (batch, *size))
    label[:, 0] = 255
    return logits, label


def brute_force(logits, label, subset, reduce):
    up = [F.interpolate(logits[n], label.shape[-2:], mode="bilinear", align_corners=False) for n in subset]
    log_p = F.log_softmax(reduce(torch.stack(up), 0), 1)
    values = [
        -log_p[b, label[b, y, x], y, x]
        for b in range(len(label))
        for y in range(label.shape[1])
        for x in range(label.shape[2])
        if label[b, y, x] != 255
    ]
    return torch.stack(values).mean()


def test_all_subsets_is_the_weighted_mean_of_every_subsets_cross_entropy():
    logits, label = logits_and_label()
    found = subset_cross_entropy(
        logits, label, ObjectiveConfig(pixels=1, full_weight=4), (label != 255).sum(), None
    )
    every = subsets(NAMES[:3])
    weights = [1.0] * 6 + [4.0]
    expected = sum(w * brute_force(logits, label, s, torch.sum) for w, s in zip(weights, every)) / sum(
        weights
    )
    assert torch.allclose(found["supervised"], expected, atol=1e-6)
    assert torch.allclose(found["full"], brute_force(logits, label, every[-1], torch.mean), atol=1e-6)


@pytest.mark.parametrize("kind", ["full", "dropout"])
def test_the_papers_objective_is_the_cross_entropy_of_the_mean(kind):
    logits, label = logits_and_label()
    found = subset_cross_entropy(
        logits, label, ObjectiveConfig(subsets=kind, pixels=1), (label != 255).sum(), None
    )
    assert torch.allclose(found["supervised"], brute_force(logits, label, NAMES[:3], torch.mean), atol=1e-6)


def test_pixel_sampling_is_unbiased():
    logits, label = logits_and_label()
    config = ObjectiveConfig(subsets="full", pixels=0.25)
    draws = [
        subset_cross_entropy(logits, label, config, (label != 255).sum(), np.random.default_rng(s))[
            "supervised"
        ].item()
        for s in range(600)
    ]
    exact = subset_cross_entropy(logits, label, replace(config, pixels=1), (label != 255).sum(), None)[
        "supervised"
    ].item()
    assert abs(np.mean(draws) - exact) < 4 * np.std(draws) / 600**0.5 and np.std(draws) > 0


def test_micro_batches_add_up_to_the_large_batch():
    logits, label = logits_and_label(batch=4)
    label[:2, :8] = 255  # halves with different numbers of labelled pixels
    valid, config = (label != 255).sum(), ObjectiveConfig(pixels=1)
    whole = subset_cross_entropy(logits, label, config, valid, None)["supervised"]
    halves = [
        subset_cross_entropy({n: v[h] for n, v in logits.items()}, label[h], config, valid, None)[
            "supervised"
        ]
        for h in (slice(0, 2), slice(2, 4))
    ]
    assert torch.allclose(whole, sum(halves))


def test_an_unlabelled_batch_costs_nothing_and_gives_no_nan():
    logits, label = logits_and_label()
    found = subset_cross_entropy(
        logits,
        torch.full_like(label, 255),
        ObjectiveConfig(),
        torch.tensor(0).clamp_min(1),
        np.random.default_rng(0),
    )
    found["supervised"].backward()
    assert found["supervised"] == 0 and all(bool((v.grad == 0).all()) for v in logits.values())


@pytest.mark.parametrize(
    "low, high", [((6, 8), (12, 16)), ((5, 7), (23, 17)), ((4, 4), (4, 4)), ((8, 8), (4, 6))]
)
def test_resample_is_bilinear_interpolation_at_some_pixels(low, high):
    x = torch.randn(2, 3, *low, dtype=torch.double, requires_grad=True)
    rows, columns = pixel_grid(high, 0.5, np.random.default_rng(0))
    found = resample(x, high, rows, columns)
    expected = F.interpolate(x, high, mode="bilinear", align_corners=False)[:, :, rows][:, :, :, columns]
    assert torch.allclose(found, expected, atol=1e-6)
    grad, reference = (torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected))
    assert torch.allclose(grad, reference, atol=1e-5)


def test_every_subset_is_drawn_equally_often():
    rng = np.random.default_rng(0)
    drawn = [tuple(draw_subset(NAMES, rng)) for _ in range(15 * 200)]
    counts = [drawn.count(subset) for subset in subsets(NAMES)]
    assert sum(counts) == len(drawn) and min(counts) > 140 and max(counts) < 260


def plain_logits(modalities=4, classes=5, batch=2, size=(6, 8)):
    generator = torch.Generator().manual_seed(0)
    logits = {f"m{i}": torch.randn(batch, classes, *size, generator=generator) for i in range(modalities)}
    label = torch.randint(0, classes, (batch, *size), generator=generator)
    return logits, label, torch.tensor(label.numel())


def supervised(logits, label, valid, seed=0, **options):
    config = ObjectiveConfig(**{"pixels": 1.0} | options)
    return float(
        subset_cross_entropy(logits, label, config, valid, np.random.default_rng(seed))["supervised"]
    )


def test_singles_are_every_sensor_alone_and_the_full_set():
    logits, label, valid = plain_logits()
    alone = [float(F.cross_entropy(z, label)) for z in logits.values()]
    full = float(F.cross_entropy(torch.stack(list(logits.values())).mean(0), label))
    found = supervised(logits, label, valid, subsets="singles", evidence="mean", full_weight=3.0)
    assert found == pytest.approx((sum(alone) + 3 * full) / 7, rel=1e-5)


def test_averaged_and_summed_evidence():
    logits, label, valid = plain_logits(3)
    for evidence in ("sum", "mean"):
        terms = []
        for subset in subsets(list(logits)):
            fused = sum(logits[name] for name in subset) / (len(subset) if evidence == "mean" else 1)
            terms.append(float(F.cross_entropy(fused, label)))
        expected = (sum(terms[:-1]) + 4 * terms[-1]) / 10
        assert supervised(logits, label, valid, evidence=evidence) == pytest.approx(expected, rel=1e-5)


def test_a_sample_of_subsets_is_unbiased():
    logits, label, valid = plain_logits(4)
    whole = supervised(logits, label, valid)
    drawn = [supervised(logits, label, valid, seed=s, subset_sample=3) for s in range(300)]
    assert np.std(drawn) > 0  # it is a draw
    assert abs(np.mean(drawn) - whole) < 4 * np.std(drawn) / 300**0.5
    assert supervised(logits, label, valid, subset_sample=14) == pytest.approx(whole, rel=1e-6)


def magic_pixel_by_pixel(stacked, label):
    """L_M + L_S + L_C in float64: no tensor holds more than one pixel."""
    sensors, batch, _, height, width = stacked.shape
    valid = [(i, j) for i in range(height) for j in range(width)]
    total = 0.0
    for b in range(batch):
        p = stacked[:, b].softmax(1)
        whole = stacked[:, b].mean(0)
        cosine = lambda x, y: float(x @ y / (x.norm() * y.norm()))
        likeness = [
            np.mean([cosine(p[m, :, i, j], whole.softmax(0)[:, i, j]) for i, j in valid])
            for m in range(sensors)
        ]
        first, *rest, last = sorted(range(sensors), key=likeness.__getitem__)
        selected = (stacked[first, b] + stacked[last, b]) / 2
        for i, j in valid:
            y = int(label[b, i, j])
            if y == 255:
                continue
            total -= float(whole.log_softmax(0)[y, i, j])
            if int(whole[:, i, j].argmax()) == y:
                total -= float(selected.log_softmax(0)[y, i, j])
            c = [cosine(p[m, :, i, j], selected.softmax(0)[:, i, j]) for m in rest]
            total += sum(x * np.log(x / np.mean(c)) for x in c)
    return total / int((label != 255).sum())


@pytest.mark.parametrize("sensors", [2, 3, 4, 5])
def test_selection_is_magics_written_pixel_by_pixel(sensors):
    generator = torch.Generator().manual_seed(sensors)
    stacked = 2 * torch.randn(sensors, 3, 4, 3, 5, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 4, (3, 3, 5), generator=generator)
    label[0, 1] = 255
    logits = {f"m{i}": z.requires_grad_() for i, z in enumerate(stacked.unbind())}
    valid = (label != 255).sum()
    config = ObjectiveConfig(subsets="selection", pixels=1.0)
    terms = subset_cross_entropy(logits, label, config, valid, np.random.default_rng(0))
    assert terms["supervised"].item() == pytest.approx(magic_pixel_by_pixel(stacked, label), rel=1e-12)
    whole = F.cross_entropy(stacked.mean(0), label, ignore_index=255)
    assert float(terms["full"]) == pytest.approx(float(whole), rel=1e-6)
    terms["supervised"].backward()
    assert all(z.grad.isfinite().all() and z.grad.any() for z in logits.values())


ENCODERS = ["residual", "pvt_v2_b0", "tf_efficientnet_lite0"]


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("fusion", ["centred", "cmx"])
def test_two_encoders_give_the_first_sensor_the_main_branch(fusion, encoder, tmp_path):
    """Any subset runs; zeros stand for a missing image; the logits are no mean, and it says so."""
    net, batch = network(encoder=encoder, fusion=fusion), images()
    zeros = {name: torch.zeros_like(image) for name, image in batch.items()}
    with torch.no_grad():
        for subset in subsets(NAMES):
            given = {name: batch[name] for name in subset}
            found = net(given)
            assert found.shape == (2, 5, 32, 48)
            instead = zeros | given if fusion == "cmx" else {"rgb": zeros["rgb"]} | given
            assert torch.allclose(found, net(instead), atol=1e-6)
            backwards = dict(reversed(given.items()))
            assert torch.allclose(found, net(backwards), atol=1e-5)
        assert not torch.allclose(net(batch), net({"rgb": batch["rgb"]}), atol=1e-3)
        assert all(f.shape[0] == 2 for f in net.features(batch))
        if fusion == "centred":
            plain = net.encoder(net.stems["rgb"](batch["rgb"]))
            alone = net.features({"rgb": batch["rgb"]})
            assert all(torch.equal(a, b) for a, b in zip(plain, alone))
        # A sample does not depend on the others in its batch, in training mode either.
        net.train().head.dropout.p = 0.0
        for module in net.modules():
            if type(module).__name__ == "DropPath":
                module.drop_prob = 0.0
        single = net({name: image[:1] for name, image in batch.items()})
        assert torch.allclose(single, net(batch)[:1], atol=1e-5)
        net.eval()
    logits, features = net(batch, fuse=False)
    assert list(logits) == ["rgb"] and len(features[0]) == 2
    with pytest.raises(ValueError, match=f"{fusion} fusion has no logits.*each subset"):
        net.modality_logits(batch)
    save_segmenter(net, tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.allclose(load_segmenter(tmp_path / "net.safetensors")(batch), net(batch))


def test_two_encoders_take_two_sensors_with_stems_of_their_own():
    for options in dict(stem="shared"), dict(modalities={"rgb": MODALITIES["rgb"]}):
        with pytest.raises(ValueError, match="takes two sensors or more, each with its own stem"):
            network(fusion="cmx", **options)


def test_cmx_is_two_encoders_whose_rectified_features_go_on():
    """Written out for three sensors: at each scale the auxiliary ones select, exchange, and receive."""
    names = NAMES[:3]
    net = network({name: MODALITIES[name] for name in names}, fusion="cmx")
    batch = {name: image for name, image in images().items() if name in names}
    with torch.no_grad():
        main, depth, event = (net.stems[name](batch[name]) for name in names)
        expected = []
        for j, exchange in enumerate(net.exchanges):
            if j > 0:
                main, depth, event = (
                    net.encoder.stages[j - 1](main),
                    *map(net.auxiliary.stages[j - 1], (depth, event)),
                )
            main, (depth, event), fused = exchange(main, [depth, event])
            expected.append(fused)
        assert all(
            torch.allclose(a, b, atol=1e-5) for a, b in zip(net.features(batch), expected, strict=True)
        )


def test_cmx_with_checkpoints_has_the_same_gradients():
    found = []
    for checkpointing in (False, True):
        net = network(encoder="tf_efficientnet_lite0", fusion="cmx", checkpointing=checkpointing)
        net(images()).square().mean().backward()
        found.append([parameter.grad for parameter in net.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
