"""From codes to numbers: honest counts, the spread of k-means, criteria by hand, probes, crops, and data that
are odd.
"""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import toy
from PIL import Image
from safetensors.torch import save_file
from small_runs import QUICK, SENSORS, SMALL, TINY, configured, relabelled, same, written

from mmlib.data.prepared import PreparedDataset
from mmlib.runtime import derived_seed
from mmlib.unsupervised import diagnostics, inference, train
from mmlib.unsupervised.backbone import load_backbone
from mmlib.unsupervised.clustering import load_clustering
from mmlib.unsupervised.correspondence import Shifts
from mmlib.unsupervised.inference import codes_of, evaluate_clustering
from mmlib.unsupervised.methods import on_grid, prepare
from mmlib.unsupervised.pictures import as_picture, resize_picture
from mmlib.unsupervised.tokens import Tokens
from mmlib.unsupervised.train import Model, cluster

pytestmark = pytest.mark.usefixtures("own_cache")


# ---------------------------------------------------------------- evaluation


def bilinear(grid: np.ndarray, size) -> np.ndarray:
    """(D, h, w) -> (D, H, W): samples at pixel centres, the border repeated."""
    found = grid
    for axis, length in ((1, size[0]), (2, size[1])):
        n = found.shape[axis]
        at = np.clip((np.arange(length) + 0.5) * n / length - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), n - 1)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        found = (
            np.take(found, low, axis) * (1 - share) + np.take(found, np.minimum(low + 1, n - 1), axis) * share
        )
    return found


@pytest.mark.parametrize(
    "method, combine",
    [("unim2", "network"), ("coral", "network"), ("stego", "feature"), ("kmeans", "network")],
)
def test_counts_are_those_of_the_saved_files(data, tmp_path, method, combine):
    """From pictures to counts by hand: standardise, smooth, centre, network, pixels; nothing but the saved
    files is used.
    """
    report = cluster(configured(data, tmp_path, method, combine=combine))
    backbone, counts = load_backbone("test_efficientnet", "random"), np.zeros((3, 3), int)

    def raw(split):
        images = PreparedDataset(data, split)
        seen = [
            {
                n: resize_picture(as_picture(images.modalities[n], x)[None], (64, 96))
                for n, x in images.physical(i)[0].items()
            }
            for i in range(len(images))
        ]
        return {
            n: torch.cat([backbone.extract(s[n]) for s in seen]).half().double().numpy() for n in SENSORS
        }, images

    train, (val, images) = raw("train")[0], raw("val")
    tokens, saved = {}, load_clustering(tmp_path / "clustering.safetensors")
    for name, x in val.items():
        mean, std = (getattr(train[name], f)((0, 2, 3))[:, None, None] for f in ("mean", "std"))
        np.testing.assert_allclose(saved.chain.statistics[name][0], mean[:, 0, 0], rtol=1e-4, atol=1e-5)
        x = np.clip((x - mean) / np.where(std > 1e-6, std, 1), -3, 3)
        padded, smooth = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan), np.empty_like(x)
        for i, j in itertools.product(range(4), range(6)):
            smooth[:, :, i, j] = np.nanmean(padded[:, :, i : i + 3, j : j + 3], (2, 3))
        tokens[name] = torch.from_numpy(smooth - smooth.mean((2, 3), keepdims=True)).float()
    if method == "kmeans":
        codes = torch.cat([F.normalize(tokens[n], dim=1) for n in SENSORS], 1)
    else:
        net = saved.network
        with torch.no_grad():
            codes = net({"rgb&depth&aolp": sum(tokens.values())} if combine == "feature" else tokens)
    centroids = saved.centroids.numpy()
    for i, code in enumerate(codes.numpy()):
        assignment = np.tensordot(centroids, bilinear(code, (32, 48)), 1).argmax(0)
        label = images.stored(i)[1]
        np.add.at(counts, (label[label < 255], assignment[label < 255]), 1)
    assert counts.sum() == np.sum(report["scores"]["counts"]["all"])
    assert (
        np.abs(counts - np.array(report["scores"]["counts"]["all"])).sum() <= 16
    )  # pixels on the border of two clusters


def captured(monkeypatch) -> list:
    """Every call of k-means in an evaluation: (points, seed, result)."""
    calls, genuine = [], inference.kmeans

    def kmeans(points, clusters, **options):
        calls.append((points, options["seed"], genuine(points, clusters, **options)))
        return calls[-1][2]

    monkeypatch.setattr(inference, "kmeans", kmeans)
    return calls


def test_the_spread_of_kmeans_is_apart_from_that_of_training(data, tmp_path, monkeypatch, shared):
    calls, seeds = captured(monkeypatch), {}
    for name, seed, kmeans_seed in (("a", 0, 0), ("b", 0, 1), ("c", 1, 0)):
        settings = replace(QUICK, repeats=3, kmeans_points=100, kmeans_seed=kmeans_seed)
        report = cluster(configured(data, tmp_path / name, seed=seed, evaluation=settings), shared())
        runs, seeds[name] = calls[-3:], [call[1] for call in calls[-3:]]
        assert len(calls) == 3 and all(len(points) == 100 for points, _, _ in runs)
        best = min(report["kmeans"], key=lambda entry: entry["inertia"])
        assert report["scores"]["miou"]["all"] == pytest.approx(best["miou"], abs=1e-4)
        assert [entry["inertia"] for entry in report["kmeans"]] == [min(run.inertia) for _, _, run in runs]
        calls.clear()
    assert seeds["a"] == seeds["c"] != seeds["b"] and len({*seeds["a"], *seeds["b"]}) == 6
    assert same(tmp_path / "a", tmp_path / "b", part="network.")
    assert not same(tmp_path / "a", tmp_path / "b", part="centroids")


def test_criteria_are_what_they_are_called(tmp_path, monkeypatch):
    """On two training images each pair is the two images, so a correlation by hand needs no random choice."""
    root = str(toy.make(tmp_path / "two", train=2, val=2))
    config = configured(root, neighbours=1, method="kmeans")
    found, prepared = prepare(config)
    calls = captured(monkeypatch)
    evaluation = evaluate_clustering(None, found, prepared, 3, config)
    criteria = evaluation.report["criteria"]
    codes = codes_of(None, found.read, prepared.tokens)
    flat = codes.movedim(1, -1).reshape(2, -1, codes.shape[1])
    best = min((run for _, _, run in calls), key=lambda run: min(run.inertia))
    ids = (F.normalize(flat, dim=2) @ best.centroids.T).argmax(2)
    assert criteria["silhouette"] == pytest.approx(
        diagnostics.silhouette(flat.flatten(0, 1), best.centroids), abs=2e-5
    )
    clusterings = [(F.normalize(flat, dim=2) @ c.T).argmax(2) for _, _, run in calls for c in run.restarts]
    assert len(clusterings) == 4 and criteria["agreement"] == pytest.approx(
        diagnostics.agreement(clusterings), abs=2e-5
    )
    explained = []
    for name, tokens in prepared.tokens.batch([0, 1]).items():
        unit = F.normalize(tokens.double().flatten(2), dim=1)
        cosines = torch.stack([unit[0].T @ unit[1], unit[1].T @ unit[0]])
        values = (cosines - cosines.mean(2, keepdim=True)).flatten()
        together = torch.stack([ids[0][:, None] == ids[1], ids[1][:, None] == ids[0]]).flatten()
        explained.append(np.corrcoef(values.numpy(), together.numpy())[0, 1])
        assert criteria[f"explained/{name}"] == pytest.approx(explained[-1], abs=2e-5)
    assert (
        criteria["explained"] == pytest.approx(np.mean(explained), abs=2e-5)
        and evaluation.score == criteria["explained"]
    )


def test_points_are_drawn_from_all_codes_and_no_more_are_kept(data, monkeypatch, shared):
    """Codes of all crops of a large data set do not fit into memory."""
    plan, prepared = shared(method="kmeans", tokens=replace(TINY, crops=5))
    config = configured(data, method="kmeans", evaluation=replace(QUICK, kmeans_points=200, kmeans_seed=3))
    codes = codes_of(None, plan.read, prepared.tokens)
    rows = codes.movedim(1, -1).flatten(0, -2)
    rng = np.random.default_rng(derived_seed(3, "points"))
    calls, sizes = captured(monkeypatch), []
    genuine = inference.codes_of
    monkeypatch.setattr(inference, "codes_of", lambda *a: sizes.append(len(a[2])) or genuine(*a))
    evaluate_clustering(None, plan, prepared, 3, config)
    assert torch.equal(calls[0][0], rows[torch.from_numpy(rng.permutation(len(rows))[:200])])
    assert sizes == [5]  # only the scored split, which is written image by image
    drawn, whole = inference.sample_codes(None, plan.read, prepared.tokens, 10**6, [2, 7, 40], 0)
    assert len(drawn) == len(rows) and torch.equal(whole, codes[[2, 7, 40]])


@pytest.mark.parametrize("crops", [1, 5])
def test_random_pairs_of_the_histogram_are_two_images(crops):
    """Every image has tokens of a direction of its own: a pair of one image has cosine 1, any other 0."""
    image = np.repeat(np.arange(8), crops)
    tokens = Tokens({"rgb": np.eye(8, dtype=np.float32)[image][:, :, None, None]}, crops)
    plan = SimpleNamespace(targets=["rgb"])
    loss = SimpleNamespace(shifts=SimpleNamespace(numbers={"rgb": (0.5, 0.5, 0.5)}), centre=False)
    result = inference.histograms(tokens, plan, loss)
    assert (result["rgb/self"]["attracted"], result["rgb/random"]["attracted"]) == (1, 0)
    assert sum(result["rgb/random"]["counts"]) == 8


def test_the_histogram_counts_every_pair_and_marks_the_shift():
    arrays = {"rgb": np.random.default_rng(0).normal(size=(3, 4, 2, 3)).astype(np.float32)}
    tokens, plan = Tokens(arrays), SimpleNamespace(targets=["rgb"])
    unit = arrays["rgb"].reshape(3, 4, 6) / np.linalg.norm(arrays["rgb"].reshape(3, 4, 6), axis=1)[:, None]
    values = np.concatenate([(unit[k].T @ unit[k - 1]).ravel() for k in range(3)])
    for numbers, shift, attracted in (({"rgb": (9, 9, 0.1)}, 0.1, (values > 0.1).mean()), ({}, None, 0)):
        loss = SimpleNamespace(shifts=SimpleNamespace(numbers=numbers), centre=False)
        result = inference.histograms(tokens, plan, loss)["rgb/random"]
        assert sum(result["counts"]) == 3 * 36 and result["shift"] == shift
        assert result["attracted"] == pytest.approx(attracted, abs=1e-4)
        edges = np.linspace(result["low"], result["high"], 41)
        assert (result["low"], result["high"]) == pytest.approx((values.min(), values.max()), abs=1e-4)
        for count, low, high in zip(result["counts"], edges, edges[1:]):
            inside = sum(low + 2e-4 <= v < high - 2e-4 for v in values)
            assert inside <= count <= sum(low - 2e-4 <= v <= high + 2e-4 for v in values)


def test_a_linear_probe_learns_from_the_training_split_and_is_not_matched(data, tmp_path):
    turned = relabelled(
        data, tmp_path / "turned", lambda x: np.where(x < 255, (x + 1) % 3, x).astype(np.uint8), split="train"
    )
    settings = replace(QUICK, linear_steps=150)
    found = [
        cluster(configured(d, tmp_path / n, "kmeans", evaluation=settings))
        for d, n in ((data, "a"), (turned, "b"))
    ]
    assert found[0]["linear_probe"]["accuracy"] > 75 and found[1]["linear_probe"]["accuracy"] < 20
    assert found[0]["scores"] == found[1]["scores"]
    for crops, root, message in (
        (5, data, "linear probe .*needs whole training images: give --crops 1"),
        (1, str(toy.make(tmp_path / "none", labels=False)), "has no labels in its split 'train'"),
    ):
        with pytest.raises(ValueError, match=message):
            cluster(configured(root, tmp_path / "c", tokens=replace(TINY, crops=crops), evaluation=settings))


def test_five_crops_to_train_on_and_whole_images_to_score(data, tmp_path):
    config = configured(data, tmp_path, tokens=replace(TINY, crops=5), method="depthg")
    found, prepared = prepare(config)
    assert (
        len(prepared.tokens) == 60
        and prepared.tokens.grid == (4, 6)
        and on_grid(prepared.data, "depth", 5, (4, 6)).shape == (60, 1, 4, 6)
    )
    assert len(prepared.scored_tokens) == 5 and prepared.scored_tokens.grid == (4, 6)
    image = np.arange(60) // 5
    assert not (image[prepared.neighbours.numpy()] == image[:, None]).any()
    _, loose = prepare(replace(config, same_image=True))
    assert (image[loose.neighbours.numpy()] == image[:, None]).any()
    report = cluster(config, (found, prepared))
    assert np.sum(report["scores"]["counts"]["all"]) == 5 * (32 * 48 - 1)
    sized = replace(config, tokens=replace(TINY, crops=5, size=(48, 48), eval_size=(96, 128)))
    _, prepared = prepare(sized)
    assert (
        prepared.tokens.grid == (3, 3)
        and prepared.scored_tokens.grid == (6, 8)
        and on_grid(prepared.data, "depth", 5, (3, 3)).shape == (60, 1, 3, 3)
    )


def test_neighbours_are_judged_by_the_reference_or_by_all(data):
    own, every = (prepare(configured(data, knn=knn))[1].neighbours for knn in ("reference", "all"))
    alone = prepare(configured(data, method="stego", modalities=("rgb",)))[1].neighbours
    assert torch.equal(own, alone) and not torch.equal(own, every)


# ---------------------------------------------------------------- odd data


def test_without_labels_there_are_maps_and_no_scores(tmp_path):
    root = toy.make(tmp_path / "toy", labels=False)
    report = cluster(configured(root, tmp_path / "run", evaluation=replace(QUICK, clusters=4)))
    assert (
        report["scores"] is None
        and "many_to_one" not in report
        and all(set(entry) == {"inertia"} for entry in report["kmeans"])
    )
    listed = json.loads((tmp_path / "run" / "maps" / "ids.json").read_text())
    assert [entry["name"] for entry in listed] == [f"cluster {k}" for k in range(4)]
    seen = set()
    for k in range(5):
        image = Image.open(tmp_path / "run" / "maps" / f"val_{k:03d}.png")
        ids, colours = np.array(image), np.array(image.convert("RGB"))
        assert image.mode == "P" and ids.shape == (32, 48) and ids.max() < 4
        seen |= set(ids.flat)
        for entry in listed:
            assert (colours[ids == entry["id"]] == entry["colour"]).all()
    assert len(seen) > 1 and load_clustering(tmp_path / "run" / "clustering.safetensors").mapping is None
    with pytest.raises(ValueError, match="has no labels in its split"):
        cluster(configured(root, tmp_path / "x", select="labels", eval_every=2))


def test_few_images(tmp_path):
    two = str(toy.make(tmp_path / "two", train=2, val=1))
    assert (
        cluster(configured(two, tmp_path / "a", neighbours=1))["scores"]["rule"] == "hungarian"
    )  # three clusters of two images
    with pytest.raises(ValueError, match="--neighbours 3: 2 entries leave 1 outside"):
        cluster(configured(two, tmp_path / "b"))
    one = str(toy.make(tmp_path / "one", train=1, val=1))
    assert cluster(configured(one, tmp_path / "c", "kmeans"))["scores"]["accuracy"]["all"] > 30
    with pytest.raises(ValueError, match="--neighbours 3: 1 entries leave 0 outside"):
        cluster(configured(one, tmp_path / "d"))
    with pytest.raises(
        ValueError, match="random pairs need another image, and the batch size is 1; use two images or more"
    ):
        cluster(configured(one, tmp_path / "d", loss=replace(SMALL, weights=(1, 0, 1))))


@pytest.mark.parametrize("flat, named", [(("rgb", "depth"), "rgb|depth"), (("depth",), "depth")])
def test_a_sensor_that_shows_nothing_is_named(tmp_path, flat, named):
    """Its tokens are rounding noise; divided by its own spread, that would be clustered as if it meant
    something.
    """
    frames = []
    for i in range(6):
        images, label = toy.sample(i, (32, 32))
        frames.append(
            (
                "val" if i == 5 else "train",
                images | {name: np.full_like(images[name], 90) for name in flat},
                label,
            )
        )
    root = written(tmp_path / "flat", frames)
    for method in ("kmeans", "unim2"):
        with pytest.raises(
            ValueError, match=f"^({named}): its images have constant features; leave it out with --modalities"
        ):
            cluster(configured(root, tmp_path / method, method))


def test_collapsed_codes_are_named(shared):
    found, prepared = shared()
    config = configured("")
    model = Model(config, found, prepared.tokens.channels, 3)
    with torch.no_grad():
        for p in model.net.head.parameters():
            p.fill_(1.0 if p.ndim == 1 else 0.0)
    with pytest.raises(
        ValueError, match="1 distinct directions for 3 clusters: constant features or a collapsed network"
    ):
        evaluate_clustering(model, found, prepared, 3, config)


@pytest.mark.parametrize(
    "size, message",
    [
        ((6, 40), "whole patches of 16 x 16; resize to 16 x 32"),
        ((30, 44), "not made of whole patches of 16 x 16"),
    ],
)
def test_sizes_that_do_not_fit_the_patches(tmp_path, size, message):
    rng = np.random.default_rng(0)
    images = [{"rgb": rng.integers(0, 255, (*size, 3), np.uint8)} for _ in range(6)]
    frames = [
        ("val" if i == 5 else "train", image, (image["rgb"][..., 0] // 100)) for i, image in enumerate(images)
    ]
    root = written(tmp_path / "odd", frames, modalities=("rgb",))
    with pytest.raises(ValueError, match=message):
        cluster(configured(root, tmp_path / "run", "stego", tokens=replace(TINY, size=size)))
    report = cluster(configured(root, tmp_path / "run", "stego"))
    assert np.sum(report["scores"]["counts"]["all"]) == size[0] * size[1]  # scored at the labels' own size


def test_a_class_that_never_occurs_is_not_counted(tmp_path):
    frames = [("val" if i > 7 else "train", *toy.sample(i)) for i in range(10)]
    root = written(tmp_path / "ghost", frames, [*toy.CLASSES, "ghost"], SENSORS)
    scores = cluster(configured(root, tmp_path / "run"))["scores"]
    assert scores["iou"]["all"]["ghost"] is None and np.shape(scores["counts"]["all"]) == (4, 4)
    assert scores["miou"]["all"] == pytest.approx(
        np.mean([scores["iou"]["all"][name] for name in toy.CLASSES]), abs=1e-3
    )


def test_tokens_of_other_weights_are_not_reused(data, tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        save_file(timm.create_model("test_vit").state_dict(), tmp_path / f"{name}.safetensors")
    raw = replace(TINY, backbone="test_vit", standardize="off", smooth="off", centre_images=0.0)
    weights = lambda name: replace(raw, backbone_weights=str(tmp_path / f"{name}.safetensors"))
    config = lambda name: configured(data, "unused", "kmeans", tokens=weights(name))
    found = [prepare(config(name))[1] for name in ("a", "b", "a")]
    arrays = [np.array(each.tokens.arrays["rgb"]) for each in found]
    assert found[0].backbone.key == found[2].backbone.key != found[1].backbone.key
    assert np.array_equal(arrays[0], arrays[2]) and not np.array_equal(arrays[0], arrays[1])
    picture = as_picture(found[1].data.modalities["rgb"], found[1].data.physical(3)[0]["rgb"])[None]
    picture = resize_picture(picture, (64, 96))
    torch.testing.assert_close(
        torch.from_numpy(arrays[1][3]).float(), found[1].backbone.extract(picture)[0], atol=5e-3, rtol=5e-3
    )


def test_one_sensor_without_colour_by_every_method_of_one_sensor(data, tmp_path):
    for method in ("kmeans", "stego", "eagle"):
        report = cluster(configured(data, tmp_path / method, method, modalities=("depth",), steps=2))
        assert report["config"]["modalities"] == ("depth",) and report["scores"]["miou"]["all"] > 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "--steps 0: expected 1 or more"),
        ({"batch_size": 1}, "--batch-size 1: expected 2 or more"),
        ({"save_every": 0}, "--save-every 0: expected 1 or more"),
        ({"evaluation": replace(QUICK, clusters=1)}, "1 clusters: expected 2 to 255"),
        ({"evaluation": replace(QUICK, clusters=256)}, "256 clusters: expected 2 to 255"),
        ({"evaluation": replace(QUICK, repeats=0)}, "--repeats 0: expected 1 or more"),
        (
            {"evaluation": replace(QUICK, repeats=1, restarts=1, criterion="agreement")},
            "agreement compares two",
        ),
        ({"evaluation": replace(QUICK, guide="sonar")}, "--guide sonar: expected one of rgb, depth, aolp"),
        ({"evaluation": replace(QUICK, split="dusk")}, "no sample in split 'dusk'"),
        ({"select": "criterion"}, "give --eval-every"),
        ({"lr": -1.0}, "--lr -1.0: expected above 0"),
        ({"select": "criterion", "eval_every": 1, "method": "kmeans"}, "--select last"),
        ({"loss": replace(SMALL, lambdas={"sonar": 1.0})}, "sonar"),
        ({"loss": replace(SMALL, shifts=Shifts("absolute"))}, "no numbers for modality 'rgb'"),
        (
            {"tokens": replace(TINY, depth_form="nonsense")},
            "--depth-form nonsense: expected one of inverse",
        ),
    ],
)
def test_bad_settings_are_named_before_training(data, tmp_path, changes, message):
    with pytest.raises(ValueError) as error:
        cluster(configured(data, tmp_path, **changes))
    assert message in str(error.value) and not (tmp_path / "clustering.safetensors").exists()


def test_steps_of_infinite_losses_are_skipped_and_end_the_run_where_they_are_many(
    data, tmp_path, monkeypatch, capsys
):
    genuine, nan = train.step_loss, float("nan")

    def spoilt(*args):
        total, parts = genuine(*args)
        return (total * nan, {"loss": nan}) if args[-1] in broken else (total, parts)

    monkeypatch.setattr(train, "step_loss", spoilt)
    broken = [3]
    cluster(configured(data, tmp_path / "few", steps=20))
    assert "warning: " in (error := capsys.readouterr().err) and "1 of 20 steps had no finite" in error
    broken = range(2, 20)
    with pytest.raises(ValueError, match="3 of 5 steps had no finite gradient"):
        cluster(configured(data, tmp_path / "many", steps=20))
