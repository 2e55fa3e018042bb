"""The trainer of clusters: what each method reads and matches, that labels choose nothing, and exact
resumption.
"""

import itertools
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st
from small_runs import QUICK, SENSORS, SMALL, configured, lines, relabelled, same

from mmlib import loop
from mmlib.data.prepared import Description, Writer
from mmlib.evaluation.counts import score_clusters
from mmlib.loop import read_history
from mmlib.unsupervised import train
from mmlib.unsupervised.clustering import load_clustering
from mmlib.unsupervised.correspondence import CorrespondenceConfig, Shifts
from mmlib.unsupervised.inference import codes_of
from mmlib.unsupervised.methods import EAGLE_LOSS, on_grid, prepare, resolve_method
from mmlib.unsupervised.networks import ClusterNet, ClusterNetConfig
from mmlib.unsupervised.train import Model, cluster, entries, step_loss

pytestmark = pytest.mark.usefixtures("own_cache")

METHODS = ("unim2", "kmeans", "stego", "eagle", "depthg", "coral", "mmd", "cosine")


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize(
    "method, changes, read, targets",
    [
        ("unim2", {}, SENSORS, SENSORS),
        ("kmeans", {}, SENSORS, ["rgb&depth&aolp"]),
        ("stego", {}, SENSORS, ["rgb&depth&aolp"]),
        ("eagle", {}, SENSORS, ["rgb&depth&aolp"]),
        ("stego", {"combine": "image"}, ["rgb+depth+aolp"], ["rgb+depth+aolp"]),
        ("kmeans", {"combine": "feature"}, ["rgb&depth&aolp"], ["rgb&depth&aolp"]),
        ("depthg", {}, ["rgb"], ["rgb"]),
        ("coral", {}, SENSORS, ["rgb"]),
        ("mmd", {}, SENSORS, ["rgb"]),
        ("cosine", {}, SENSORS, ["rgb"]),
    ],
)
def test_what_is_read_and_what_supervises(method, changes, read, targets):
    plan = resolve_method(configured("", method=method, **changes), SENSORS)
    assert (list(plan.read), list(plan.targets), list(plan.sensors)) == (read, targets, SENSORS)
    parts = {part for name in (*read, *targets) for part in name.split("&")}
    assert set(plan.extracted) == parts and len(plan.extracted) == len(parts)
    # Only UniM2 has harmonizers; only UniM2 and distillation have modality-specific networks.
    assert plan.network.anchor == ("rgb" if method == "unim2" else "both")
    assert plan.network.msn == (method in ("unim2", "coral", "mmd", "cosine"))
    if method in ("kmeans", "stego", "eagle") and not changes:
        alone = resolve_method(configured("", method=method), ["aolp"])
        assert alone.read == alone.targets == ("aolp",)


@pytest.mark.parametrize(
    "method, sensors, changes, message",
    [
        *(
            (method, ["rgb"], {}, f"--method {method} needs two sensors")
            for method in ("unim2", "depthg", "coral", "mmd", "cosine")
        ),
        ("depthg", ["rgb", "aolp"], {}, "'depth' among its sensors, got rgb, aolp"),
        *(
            (method, SENSORS, {"combine": "image"}, "--combine image is for kmeans")
            for method in ("unim2", "depthg", "coral")
        ),
        ("stego", ["rgb"], {"combine": "feature"}, "on 1"),
        *(
            (
                "stego",
                SENSORS,
                {"network": ClusterNetConfig(**{k: v})},
                f"--{k.replace('_', '-')}: stego has no such part; leave it out",
            )
            for k, v in (("anchor", "both"), ("shared_cmh", True), ("msn", False))
        ),
        (
            "kmeans",
            SENSORS,
            {"network": ClusterNetConfig(fusion="mean")},
            "--fusion: kmeans has no such part",
        ),
        ("eagle", SENSORS, {"lambda_x": 0.5}, "λ: eagle has no such part"),
        ("coral", SENSORS, {"loss": replace(SMALL, lambdas={"depth": 2.0})}, "λ: coral has no such part"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(method, sensors, changes, message):
    with pytest.raises(ValueError) as error:
        resolve_method(configured("", method=method, **changes), sensors)
    assert message in str(error.value)


def test_lambda_of_every_auxiliary_and_of_single_ones():
    assert resolve_method(configured("", lambda_x=0.3), SENSORS).loss.lambdas == {"depth": 0.3, "aolp": 0.3}
    plan = resolve_method(
        configured("", lambda_x=0.3, loss=replace(SMALL, lambdas={"aolp": 2.0, "rgb": 0.5})), SENSORS
    )
    assert plan.loss == replace(SMALL, lambdas={"rgb": 0.5, "depth": 0.3, "aolp": 2.0})


def test_eagle_has_its_own_loss_unless_another_is_asked_for():
    assert (
        resolve_method(configured("", method="eagle", loss=CorrespondenceConfig()), SENSORS).loss
        == EAGLE_LOSS
    )
    assert EAGLE_LOSS.shifts.rule == "adaptive" and EAGLE_LOSS.stabilize
    assert EAGLE_LOSS.pairs("any") == {"knn": 0.25, "random": 0.63}  # of the second view, and of others
    assert resolve_method(configured("", method="eagle"), SENSORS).loss == SMALL
    assert (
        resolve_method(configured("", method="stego", loss=CorrespondenceConfig()), SENSORS).loss
        == CorrespondenceConfig()
    )


def test_the_reference_comes_first_however_sensors_are_named(data):
    plan, prepared = prepare(configured(data, modalities=("aolp", "depth", "rgb")))
    assert plan.sensors == ("rgb", "aolp", "depth") and plan.loss.lambdas == {"aolp": 1.0, "depth": 1.0}
    assert list(prepared.scored.modalities) == ["rgb", "aolp", "depth"]
    plan, _ = prepare(configured(data, modalities=("depth", "aolp")))
    assert plan.sensors == ("depth", "aolp") and Model(configured(data), plan, 8, 3).net.soft == ("aolp",)
    with pytest.raises(ValueError, match="unknown modality 'sonar'"):
        prepare(configured(data, modalities=("rgb", "sonar")))


def test_shared_tokens_do_not_bring_another_run_s_settings(data, tmp_path):
    """Tokens are prepared for one configuration; a run of another on them is what it is without sharing."""
    shared = prepare(configured(data, modalities=("rgb", "depth")))
    changes = dict(
        modalities=("rgb", "depth"),
        lambda_x=0.0,
        network=ClusterNetConfig(dim=8, anchor="both", fusion="mean"),
    )
    cluster(configured(data, tmp_path / "shared", **changes), shared)
    cluster(configured(data, tmp_path / "own", **changes))
    assert same(tmp_path / "shared", tmp_path / "own")
    guided = configured(data, tmp_path / "guided", method="depthg", modalities=("rgb", "depth"))
    assert (
        cluster(guided, shared)["scores"]
        == cluster(replace(guided, out=str(tmp_path / "own guided")))["scores"]
    )
    with pytest.raises(ValueError, match=r"unknown modality 'rgb\+depth'"):
        cluster(
            configured(data, tmp_path / "no", method="stego", combine="image", modalities=("rgb", "depth")),
            shared,
        )


# ---------------------------------------------------------------- one step


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 3))
def test_entries_cover_each_epoch_once_and_depend_on_seed_and_step_alone(count, batch, seed):
    config = configured("", batch_size=batch, seed=seed)
    batch = min(batch, count)
    per_epoch = count // batch
    for epoch in (0, 3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        order = np.concatenate([entries(config, count, step) for step in steps])
        assert len(order) == per_epoch * batch == len(set(order)) and set(order) <= set(range(count))
    assert np.array_equal(entries(config, count, 7), entries(config, count, 7))
    seeds = [configured("", batch_size=20, seed=s) for s in (0, 1)]
    wide = [tuple(entries(config, 40, step)) for config in seeds for step in (0, 1, 2)]
    assert len(set(wide)) == 6


def one_step(shared, method="unim2", step=0, change=lambda model: None, **changes):
    config = configured("", method=method, **changes)
    _, prepared = shared(method)
    plan = resolve_method(config, SENSORS)
    torch.manual_seed(0)
    model = Model(config, plan, prepared.tokens.channels, 3)
    change(model)
    loss = train.measure_shifts(model, prepared)
    torch.manual_seed(1)  # dropout
    total, parts = step_loss(model, prepared, loss, step)
    total.backward()
    return model, parts, loss


def reaches(module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def test_with_lambda_0_no_gradient_reaches_a_harmonizer(shared):
    for lambda_x, reached in ((0.0, False), (1.0, True)):
        model, parts, _ = one_step(shared, lambda_x=lambda_x)
        assert set(model.net.harmonizers) == {"depth", "aolp"}
        assert all(reaches(cmh) == reached for cmh in model.net.harmonizers.values())
        assert (
            ("depth/self" in parts) == reached and reaches(model.net.head) and reaches(model.net.msn["aolp"])
        )  # still read


def test_the_loss_of_the_reference_does_not_see_the_harmonizers(shared):
    def disturbed(model):
        with torch.no_grad():
            for p in model.net.harmonizers.parameters():
                p.copy_(torch.randn_like(p))

    _, before, _ = one_step(shared)
    _, after, _ = one_step(shared, change=disturbed)
    for pair in ("self", "knn", "random"):
        assert (
            before[f"rgb/{pair}"] == after[f"rgb/{pair}"]
            and before[f"depth/{pair}"] != after[f"depth/{pair}"]
        )


def test_inference_does_not_need_the_harmonizers(shared):
    model, _, _ = one_step(shared)
    plan, prepared = shared()
    before = codes_of(model.net, plan.read, prepared.tokens)
    model.net.harmonizers = torch.nn.ModuleDict()
    assert torch.equal(before, codes_of(model.net, plan.read, prepared.tokens)) and not model.net.training


def test_the_loss_is_the_weighted_sum_of_its_terms(shared):
    """Eq. 9 from the logged terms, which stand before λ and weights; the baselines add what they say they
    add.
    """
    loss = replace(SMALL, weights=(0.5, 0.25, 2.0), lambdas={"aolp": 3.0})
    _, parts, _ = one_step(shared, lambda_x=0.3, loss=loss)
    weights = dict(zip(("self", "knn", "random"), loss.weights))
    expected = sum(
        lam * w * parts[f"{n}/{p}"]
        for n, lam in (("rgb", 1), ("depth", 0.3), ("aolp", 3))
        for p, w in weights.items()
    )
    assert (
        parts["loss"] == pytest.approx(expected, rel=1e-5) and len({round(v, 5) for v in parts.values()}) > 6
    )
    plain = replace(loss, lambdas={})
    for method, target in (
        ("depthg", "rgb"),
        ("coral", "rgb"),
        ("mmd", "rgb"),
        ("cosine", "rgb"),
        ("stego", "rgb&depth&aolp"),
    ):
        _, parts, _ = one_step(shared, method, loss=plain)
        expected = sum(w * parts[f"{target}/{p}"] for p, w in weights.items())
        added = {"depthg": ("depth", 0.5), "stego": ("", 0)}.get(method, ("distillation", 1.0))
        assert parts["loss"] == pytest.approx(expected + added[1] * parts.get(added[0], 0), rel=1e-5)
        assert added[0] in ("", *parts) and parts.get(added[0], 1) != 0


def test_sampled_tokens_are_all_that_is_computed(shared, monkeypatch):
    """Every token drawn once is every token; fewer drawn are fewer seen by the network, whichever way they
    are interpolated.
    """
    weights, sizes = (1.0, 1.0, 0.0), []  # random pairs would be drawn anew
    genuine = ClusterNet.forward
    monkeypatch.setattr(
        ClusterNet,
        "forward",
        lambda self, tokens: (sizes.append(tokens["rgb"].shape[2:]), genuine(self, tokens))[1],
    )
    for method in ("unim2", "coral"):
        every, sampled = (
            one_step(shared, method, loss=replace(SMALL, weights=weights, points=points))[1]
            for points in (0, 24)
        )
        assert [every[name] for name in every if "/" in name] == pytest.approx(
            [sampled[name] for name in every if "/" in name], abs=1e-5
        )
        assert len({round(value, 4) for value in every.values()}) > 2
    assert sizes.count((4, 6)) == 2 and sizes.count((24, 1)) == 2
    for changes, size in (({"points": 7}, (7, 1)), ({"points": 7, "sampling": "bilinear"}, (4, 6))):
        sizes.clear()
        one_step(shared, loss=replace(SMALL, **changes))
        assert sizes == [size]
    sizes.clear()
    one_step(shared, network=ClusterNetConfig(dim=8, fusion="cbam"))
    one_step(shared, "depthg")
    assert sizes == [(4, 6)] * 2  # these look at whole maps


@pytest.mark.parametrize(
    "anchor, soft",
    [("rgb", ("depth", "aolp")), ("auxiliary", ("rgb",)), ("both", ()), ("none", tuple(SENSORS))],
)
def test_anchors_reach_the_network(shared, anchor, soft):
    model, _, _ = one_step(shared, network=ClusterNetConfig(dim=8, anchor=anchor))
    assert model.net.soft == soft == tuple(model.net.harmonizers) and all(
        map(reaches, model.net.harmonizers.values())
    )
    model, _, _ = one_step(shared, network=ClusterNetConfig(dim=8, anchor=anchor, shared_cmh=True))
    assert list(model.net.harmonizers) == (["shared"] if soft else [])


@pytest.mark.parametrize("method", ["unim2", "stego"])
@pytest.mark.parametrize("fusion", ["conv", "progressive", "sum", "mean", "max", "cbam", "stitch", "none"])
def test_fusions_reach_the_network(shared, method, fusion):
    model, parts, _ = one_step(shared, method, network=ClusterNetConfig(dim=8, fusion=fusion))
    learned = {
        "conv": "ConvFusion",
        "progressive": "ConvFusion",
        "cbam": "CBAMFusion",
        "stitch": "StitchFusion",
    }.get(fusion, "NoneType")
    assert type(model.net.fusion).__name__ == learned and model.net.config.fusion == fusion
    assert not model.net.fusion or reaches(model.net.fusion)
    assert ("aolp/self" in parts) == (method == "unim2")  # none: what is not read still supervises
    tokens = shared(method)[1].tokens.batch([0], SENSORS)
    model.eval()
    codes = [model.net(x) for x in (tokens, tokens | {"aolp": -tokens["aolp"]})]
    assert torch.equal(*codes) == (fusion == "none")


def test_the_object_loss_of_eagle_waits_for_its_turn(shared):
    # for 200 steps of 10,000, as released, and as long a part of any other training
    for steps, step, reached in ((10_000, 200, False), (10_000, 201, True), (100, 2, False), (100, 3, True)):
        model, parts, _ = one_step(shared, "eagle", step=step, steps=steps)
        assert reaches(model.eagle.project) == reached and parts["objects"] > 0
        assert bool(model.eagle.centres.grad.any()) and reaches(model.net)
    _, prepared = shared("eagle")
    rgb = prepared.data.physical(2)[0]["rgb"].unflatten(1, (-1, 8)).unflatten(3, (-1, 8)).mean((2, 4))
    torch.testing.assert_close(on_grid(prepared.data, "rgb", 1, (4, 6))[2], rgb, atol=0.1, rtol=0)


def test_the_views_of_eagle_are_one_image_under_two_dropouts(shared, monkeypatch):
    """Its second view stands where the KNN partner does, and what the loss sees lacks a tenth of the
    channels, as released; without dropout both views are equal.
    """
    seen, genuine = [], train.Eagle.forward

    def recorded(self, codes, tokens, rgb):
        terms = genuine(self, codes, tokens, rgb)
        seen.append((codes, tokens, [float(term.detach()) for term in terms]))
        return terms

    monkeypatch.setattr(train.Eagle, "forward", recorded)
    loss = replace(EAGLE_LOSS, points=0)
    model, parts, _ = one_step(shared, "eagle", loss=loss, steps=100, step=50)
    (codes, tokens, (objects, lookup)), whole = seen[0], shared("eagle")[1].tokens
    pairs = 0.25 * parts["rgb&depth&aolp/knn"] + 0.63 * parts["rgb&depth&aolp/random"]
    assert parts["loss"] == pytest.approx(0.1 * pairs + 0.9 * objects + lookup, rel=1e-5)
    index = entries(model.config, len(whole), 50)
    raw = whole.batch(index, ["rgb&depth&aolp"])["rgb&depth&aolp"]
    for view in tokens:
        dropped = (view == 0).all(3).all(2)
        assert 0 < dropped.float().mean() < 0.25
        torch.testing.assert_close(view[~dropped], raw[~dropped] / 0.9)
    assert not torch.equal(*codes) and not torch.equal(*tokens)
    monkeypatch.setattr(train.F, "dropout2d", lambda x, *_: x)
    one_step(shared, "eagle", loss=loss, network=ClusterNetConfig(dim=8, dropout=0.0), steps=100, step=50)
    codes, tokens, _ = seen[1]
    assert torch.equal(*codes) and torch.equal(*tokens)


def test_clusters_are_learned_at_rates_of_their_own(data, tmp_path, monkeypatch):
    rates, genuine = {}, torch.optim.Adam

    def recorded(groups):
        rates.update({tuple(group["params"].shape): group["lr"] for group in groups})
        return genuine(groups)

    monkeypatch.setattr(torch.optim, "Adam", recorded)
    cluster(configured(data, tmp_path, "eagle", steps=1, lr=0.01))
    assert rates.pop((3, 8)) == 5e-3 and rates.pop((2, 32, 3)) == 5e-5 and set(rates.values()) == {0.01}


def test_depth_guidance_looks_at_metres_and_reads_no_depth(shared):
    model, _, _ = one_step(shared, "depthg")
    plan, prepared = shared("depthg")
    assert model.net.modalities == ["rgb"] and list(prepared.tokens.arrays) == ["rgb"]
    depth = prepared.data.physical(5)[0]["depth"][0].double().numpy()
    for i, j in itertools.product(range(4), range(6)):
        cell = depth[8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
        expected = (
            cell[cell > 0].mean() if (cell > 0).any() else 0.0
        )  # the sky was not measured: no zero enters a mean
        assert float(on_grid(prepared.data, "depth", 1, (4, 6))[5, 0, i, j]) == pytest.approx(
            expected, abs=1e-4
        )


@pytest.mark.parametrize("kind", ["coral", "mmd", "cosine"])
def test_what_is_distilled_is_what_the_network_reads(shared, monkeypatch, kind):
    """The teacher is the reference's tokens, the students come from the MSN of the other sensors."""
    seen, genuine = [], train.distillation_loss
    monkeypatch.setattr(
        train, "distillation_loss", lambda *args, **rest: (seen.append(args), genuine(*args, **rest))[1]
    )
    model, parts, _ = one_step(shared, kind, loss=replace(SMALL, sampling="bilinear"))
    assert list(model.net.msn) == SENSORS and all(map(reaches, model.net.msn.values()))
    (teacher, students, divergence), whole = seen[0], shared(kind)[1].tokens
    tokens = whole.batch(entries(model.config, len(whole), 0), SENSORS)
    assert divergence == kind and torch.equal(teacher, tokens["rgb"]) and len(students) == 2
    for name, student in zip(("depth", "aolp"), students):
        torch.testing.assert_close(student, model.net.msn[name](tokens[name]))


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_leaves_a_complete_record(data, tmp_path, monkeypatch, method):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    report = cluster(configured(data, tmp_path, method, evaluation=replace(QUICK, maps=2)))
    files = {"config.json", "report.json", "clustering.safetensors", "resume.safetensors", "history.jsonl"}
    if method != "kmeans":
        steps, evaluations = read_history(tmp_path / "history.jsonl")
        assert [line["step"] for line in steps] == [1, 2, 3, 4] and [
            line["step"] for line in evaluations
        ] == [4]
        assert all(math.isfinite(value) for line in steps for value in line.values())
        plan = resolve_method(configured(data, method=method), SENSORS)
        assert set(report["histograms"]) == {
            f"{name}/{pair}" for name in plan.targets for pair in ("self", "random")
        }
        assert set(report["shifts"]) == set(plan.targets)
    assert {p.name for p in tmp_path.glob("[!.]*")} == files | {"maps"}
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == ["ids.json", "val_000.png", "val_001.png"]
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["config"]["method"] == method and again["split"] == "val" and "nothing" in again["chosen by"]
    assert (
        set(report["scores"]["miou"]) == {"all", "condition=day", "condition=night"}
        and len(report["kmeans"]) == 2
    )
    assert np.sum(report["scores"]["counts"]["all"]) == 5 * (32 * 48 - 1) and str(tmp_path) not in json.dumps(
        again["config"]
    )
    saved = load_clustering(tmp_path / "clustering.safetensors")
    assert (
        saved.mapping == report["scores"]["mapping"]
        and len(saved.centroids) == 3
        and saved.classes == toy.CLASSES
    )


def test_training_lowers_the_loss_and_does_not_collapse(data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    report = cluster(configured(data, tmp_path, steps=60))
    loss = [line["loss"] for line in read_history(tmp_path / "history.jsonl")[0]]
    assert np.mean(loss[-10:]) < np.mean(loss[:5]) - 0.01
    assert report["collapse"]["effective_rank"] > 2 and report["criteria"]["explained"] > 0.6


def test_shifts_are_quantiles_of_what_training_sees(data, tmp_path):
    shifts = Shifts("quantile", (0.3, 0.5, 0.8))
    report = cluster(configured(data, tmp_path, loss=replace(SMALL, points=0, shifts=shifts), steps=1))
    for name in SENSORS:
        assert report["histograms"][f"{name}/self"]["attracted"] == pytest.approx(0.7, abs=0.07)
        assert report["histograms"][f"{name}/random"]["attracted"] == pytest.approx(0.2, abs=0.07)
        assert report["histograms"][f"{name}/random"]["shift"] == pytest.approx(
            report["shifts"][name][2], abs=1e-4
        )


def test_labels_never_influence_a_run(data, tmp_path):
    rng = np.random.default_rng(0)
    other = relabelled(
        data, tmp_path / "other", lambda label: rng.integers(0, 3, label.shape).astype(np.uint8)
    )
    settings = dict(steps=6, eval_every=2, select="criterion", save_every=3)
    true, random = (cluster(configured(d, tmp_path / n, **settings)) for d, n in ((data, "a"), (other, "b")))
    assert same(tmp_path / "a", tmp_path / "b")
    assert true["scores"]["counts"] != random["scores"]["counts"]  # the test can fail
    for key in ("criteria", "collapse", "step", "use", "shifts", "histograms"):
        assert true[key] == random[key]
    assert [e["inertia"] for e in true["kmeans"]] == [e["inertia"] for e in random["kmeans"]]
    drop = lambda line: (
        {k: v for k, v in line.items() if k not in ("miou", "accuracy")}
        | {"val": line.get("val", {}).get("criteria")}
    )
    assert [drop(line) for line in lines(tmp_path / "a")] == [drop(line) for line in lines(tmp_path / "b")]
    none = str(toy.make(tmp_path / "none", labels=False))
    assert cluster(configured(none, tmp_path / "c", **settings))["scores"] is None and same(
        tmp_path / "a", tmp_path / "c", part="network."
    )


def dictated(monkeypatch, criterion: dict, quality: dict):
    """Replace what is measured after a step: the label-free criterion, and the share of pixels on their
    class.
    """
    now, genuine_step, genuine = [0], train.step_loss, train.evaluate_clustering

    def stepped(*args):
        now[0] = args[-1] + 1
        return genuine_step(*args)

    def measured(*args):
        evaluation, right = genuine(*args), quality.get(now[0], 10)
        counts = np.full((3, 3), (100 - right) // 2) + np.diag([right - (100 - right) // 2] * 3)
        miou, config = score_clusters(counts, toy.CLASSES)["miou"]["all"], args[4]
        evaluation.score = miou if config.select == "labels" else criterion.get(now[0], 0.1)
        return evaluation

    monkeypatch.setattr(train, "step_loss", stepped)
    monkeypatch.setattr(train, "evaluate_clustering", measured)


@pytest.mark.parametrize(
    "select, step, stamp",
    [
        ("last", 6, "nothing"),
        ("criterion", 2, "label-free criterion on training"),
        ("labels", 4, "LABELS of the split 'val', which is also"),
    ],
)
def test_the_state_that_is_kept(data, tmp_path, monkeypatch, select, step, stamp):
    reference = configured(data, tmp_path / "short", steps=step)
    cluster(reference)
    nan = float("nan")
    dictated(monkeypatch, {1: nan, 2: 0.9, 5: nan}, {4: 90})
    settings = dict(steps=6, eval_every=1, save_every=2, select=select)
    report = cluster(configured(data, tmp_path / "run", **settings))
    assert (
        report["step"] == step
        and stamp in report["chosen by"]
        and stamp in (tmp_path / "run" / "report.json").read_text()
    )
    assert same(tmp_path / "run", tmp_path / "short")

    class Killed(Exception):
        pass

    def die(step, evaluation):
        if step == 5:
            raise Killed

    cut = configured(data, tmp_path / "cut", **settings)
    with pytest.raises(Killed):
        cluster(cut, stop=die)
    assert cluster(cut)["step"] == step and same(
        tmp_path / "cut", tmp_path / "short"
    )  # also where the best came before the kill
    assert cluster(cut)["step"] == step and same(
        tmp_path / "cut", tmp_path / "short"
    )  # and when a finished run is asked for again


@pytest.mark.parametrize("method", ["unim2", "eagle", "coral", "depthg"])
def test_a_run_killed_between_states_ends_in_the_same_bits(data, tmp_path, monkeypatch, method):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    settings = dict(steps=7, eval_every=3, save_every=2)
    whole = cluster(configured(data, tmp_path / "whole", method, **settings))
    genuine, calls = train.step_loss, []

    class Killed(BaseException):
        pass

    def dying(*args):
        calls.append(args[-1])
        if args[-1] == 5:  # one step after the second state was saved
            raise Killed
        return genuine(*args)

    cut = configured(data, tmp_path / "cut", method, **settings)
    monkeypatch.setattr(train, "step_loss", dying)
    with pytest.raises(Killed):
        cluster(cut)
    monkeypatch.setattr(train, "step_loss", lambda *args: (calls.append(args[-1]), genuine(*args))[1])
    resumed = cluster(cut)
    assert calls == [0, 1, 2, 3, 4, 5, 4, 5, 6]  # from the saved state, not from the start
    assert same(tmp_path / "whole", tmp_path / "cut") and same(
        tmp_path / "whole", tmp_path / "cut", "resume.safetensors"
    )
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut") and resumed["scores"] == whole["scores"]
    steps, evaluations = read_history(tmp_path / "cut" / "history.jsonl")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6, 7] and [
        line["step"] for line in evaluations
    ] == [3, 6, 7]


def test_a_folder_of_other_settings_is_refused(data, tmp_path):
    config = configured(data, tmp_path / "run")
    cluster(config)
    before = (tmp_path / "run" / "report.json").read_bytes()
    for other, message in (
        (replace(config, lr=0.1), "lr was 0.001, is 0.1"),
        (replace(config, method="stego"), "method was 'unim2'"),
    ):
        with pytest.raises(ValueError, match=f"another configuration .*{message}"):
            cluster(other)
    with pytest.raises(ValueError, match="another configuration"):
        cluster(replace(config, method="kmeans"))
    with pytest.raises(
        ValueError, match="was begun on other data .*changed: .*index of train, images of train"
    ):
        cluster(replace(config, data=str(toy.make(tmp_path / "fewer", train=9))))
    turned = relabelled(data, tmp_path / "turned", lambda label: label[::-1])
    with pytest.raises(ValueError, match="was begun on other data .*changed: images of train, images of val"):
        cluster(replace(config, data=turned))
    assert (tmp_path / "run" / "report.json").read_bytes() == before


def test_one_seed_is_one_result_and_prepared_tokens_are_shared(data, tmp_path, shared):
    first = configured(data, tmp_path / "a")
    cluster(first)
    cluster(replace(first, out=str(tmp_path / "b")), shared())
    cluster(replace(first, out=str(tmp_path / "c"), seed=1))
    assert same(tmp_path / "a", tmp_path / "b") and not same(tmp_path / "a", tmp_path / "c", part="network.")


def renamed(data, root) -> str:
    """A copy of the data set with another name for its last class."""
    shutil.copytree(data, root)
    description = json.loads((root / "dataset.json").read_text())
    description["classes"][-1] = "another"
    (root / "dataset.json").write_text(json.dumps(description))
    return str(root)


@pytest.mark.parametrize("method", ["unim2", "kmeans"])
@pytest.mark.parametrize("steps", [4, 2], ids=["finished", "unfinished"])
def test_a_run_belongs_to_its_data(data, tmp_path, monkeypatch, method, steps):
    """Resumed or reported again, on edited labels or with other class names: refused, nothing changes."""
    config = configured(data, tmp_path / "run", method, save_every=2)
    if steps < config.steps:  # killed after its first saved state; k-means before its clusters
        kill = lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
        genuine = train.step_loss
        monkeypatch.setattr(train, "step_loss", lambda *args: (kill if args[-1] >= steps else genuine)(*args))
        if method == "kmeans":
            monkeypatch.setattr(train, "evaluate_clustering", kill)
        with pytest.raises(KeyboardInterrupt):
            cluster(config)
    else:
        cluster(config)
    content = lambda: {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    before = content()
    for other, changed in (
        (relabelled(data, tmp_path / "turned", lambda label: label[::-1], "val"), "images of val"),
        (renamed(data, tmp_path / "renamed"), "classes of train, classes of val"),
    ):
        with pytest.raises(ValueError, match=f"was begun on other data than .*changed: {changed}\\)"):
            cluster(replace(config, data=other))
    assert content() == before


@pytest.mark.parametrize("method", ["unim2", "kmeans"])
def test_labels_that_are_all_ignored_are_refused_before_training(data, tmp_path, monkeypatch, method):
    monkeypatch.setattr(train.loop, "run_steps", None)  # would fail if it were called
    blank = relabelled(data, tmp_path / "blank", lambda label: np.full_like(label, 255), "val")
    with pytest.raises(ValueError, match="has no labels in its split 'val', or all of them are 255"):
        cluster(configured(blank, tmp_path / "run", method))
    blank = relabelled(data, tmp_path / "train", lambda label: np.full_like(label, 255), "train")
    probe = replace(QUICK, linear_steps=5)
    with pytest.raises(ValueError, match="has no labels in its split 'train', or all of them are 255"):
        cluster(configured(blank, tmp_path / "run", method, evaluation=probe))
    assert not (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize("method", ["unim2", "kmeans"])
def test_twenty_sensors_are_clustered_like_two(tmp_path, method):
    """Nothing grows with the number of subsets, so that there is nothing to refuse."""
    names = [f"s{i}" for i in range(20)]
    description = Description(
        "many",
        toy.CLASSES,
        toy.PALETTE,
        {name: replace(toy.MODALITIES["rgb"], name=name, symbol=chr(65 + i)) for i, name in enumerate(names)},
    )
    rng = np.random.default_rng(0)
    with Writer(tmp_path / "many", description) as writer:
        for i in range(6):
            shape, label = (16, 24, 3), toy.sample(i, (16, 24))[1]
            images = {name: rng.integers(0, 255, shape).astype(np.uint8) for name in names}
            writer.add(f"f{i}", "train" if i < 4 else "val", images, label)
    changes = dict(steps=2, neighbours=1, evaluation=replace(QUICK, maps=1))
    if method == "unim2":
        changes["network"] = ClusterNetConfig(dim=8, fusion="mean")
    report = cluster(configured(tmp_path / "many", tmp_path / "run", method, **changes))
    assert report["plan"]["sensors"] == tuple(names) and report["scores"]["miou"]["all"] > 0
