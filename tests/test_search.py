"""The search: chosen without labels unless asked, resumed to the asked number, and no trial can end it."""

import builtins
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy
from small_runs import SMALL, configured, relabelled

from mmlib import cli
from mmlib.unsupervised import search as module
from mmlib.unsupervised.correspondence import CorrespondenceConfig, Shifts
from mmlib.unsupervised.inference import EvaluationConfig
from mmlib.unsupervised.search import SearchConfig, objective, search, suggest
from mmlib.unsupervised.train import cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks/results"))
from reproduce import rank_correlations  # noqa: E402

pytestmark = pytest.mark.usefixtures("own_cache")

ONCE = EvaluationConfig(restarts=2, repeats=1)


def searched(data, out, method="unim2", trials=2, options=(), **changes) -> SearchConfig:
    return SearchConfig(
        configured(data, out, method, **({"steps": 2, "evaluation": ONCE} | changes)),
        trials=trials,
        **dict(options),
    )


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The report of a search that nothing interrupted."""
    return search(searched(data, tmp_path_factory.mktemp("whole"), trials=4))


def values(report) -> list[tuple]:
    return [(row["number"], row["value"], row["lr"], row["dim"]) for row in report["trials"]]


def test_a_search_goes_on_to_the_asked_number_and_keeps_no_weights(data, tmp_path):
    first = search(searched(data, tmp_path, trials=2))
    assert first["finished"] == 2 and first["pruned or failed"] == 0
    report = search(searched(data, tmp_path, trials=4))
    assert report["finished"] == 4 and values(report)[:2] == values(first)
    folders = sorted(p.name for p in (tmp_path / "trials").iterdir())
    assert folders == ["0000", "0001", "0002", "0003"] and not list(tmp_path.rglob("*.safetensors"))
    for row in report["trials"]:
        own = json.loads((tmp_path / "trials" / f"{row['number']:04d}" / "report.json").read_text())
        assert (
            own["criteria"] == row["criteria"]
            and own["config"]["lr"] == row["lr"]
            and own["config"]["network"]["dim"] == row["dim"]
        )
        assert (
            own["config"]["lambda_x"] == row["lambda_x"]
            and own["config"]["loss"]["weights"][2] == row["weight_random"]
        )
        assert own["config"]["loss"]["shifts"]["quantiles"][0] == row["quantile_self"]
        assert row["value"] == own["criteria"]["explained"]
    assert report["best"]["value"] == max(row["value"] for row in report["trials"])
    assert json.loads((tmp_path / "best.json").read_text()) == json.loads(json.dumps(report["best"]))
    assert len({row["lr"] for row in report["trials"]}) == 4
    # Asking for what is there already runs nothing.
    stamp = (tmp_path / "trials" / "0003" / "report.json").stat().st_mtime_ns
    assert values(search(searched(data, tmp_path, trials=4))) == values(report)
    assert (tmp_path / "trials" / "0003" / "report.json").stat().st_mtime_ns == stamp and len(
        list((tmp_path / "trials").iterdir())
    ) == 4


@pytest.mark.parametrize("method", ["unim2", "stego"])
def test_the_flags_of_the_best_trial_repeat_it(data, tmp_path, method):
    best = search(searched(data, tmp_path / "search", method, trials=2))["best"]
    assert ("--lambda-x" in best["flags"]) == ("lambda_x" in best) == (method == "unim2")
    same = "--backbone test_efficientnet --backbone-weights random --size 64 96 --points 12 --negatives 2 "
    same += "--steps 2 --batch-size 4 --neighbours 3 --restarts 2 --repeats 1"
    cli.main(
        [
            "cluster",
            "--data",
            data,
            "--out",
            str(tmp_path / "run"),
            "--method",
            method,
            "--device",
            "cpu",
            "--no-progress",
            *same.split(),
            *best["flags"].split(),
        ]
    )
    assert json.loads((tmp_path / "run" / "report.json").read_text())["criteria"] == best["criteria"]


def test_labels_choose_only_when_asked_to(data, tmp_path):
    rng = np.random.default_rng(0)
    other = relabelled(
        data, tmp_path / "other", lambda label: rng.integers(0, 3, label.shape).astype(np.uint8)
    )
    free = [search(searched(d, tmp_path / n)) for d, n in ((data, "a"), (other, "b"))]
    assert values(free[0]) == values(free[1]) and free[0]["best"]["scores"] != free[1]["best"]["scores"]
    assert free[0]["chosen by"] == "the label-free criterion 'explained' on training images"
    asked = [
        search(searched(d, tmp_path / f"{n}l", options={"select_on_labels": True}))
        for d, n in ((data, "a"), (other, "b"))
    ]
    assert all(report["chosen by"] == "LABELS of the split 'val'" for report in asked)
    assert "LABELS" in json.loads((tmp_path / "al" / "report.json").read_text())["chosen by"]
    assert (
        values(asked[0])[0][2:] == values(free[0])[0][2:]
        and asked[0]["best"]["value"] != asked[1]["best"]["value"]
    )
    for row in asked[0]["trials"]:
        assert row["value"] == pytest.approx(
            0.75 * row["scores"]["miou"] + 0.25 * row["scores"]["accuracy"], abs=1e-3
        )
    none = str(toy.make(tmp_path / "none", labels=False))
    with pytest.raises(ValueError, match="has no labels in its split"):
        search(searched(none, tmp_path / "n", options={"select_on_labels": True}))
    report = search(searched(none, tmp_path / "n"))
    assert values(report) == values(free[0]) and "scores" not in report["best"]


def test_the_criterion_is_the_one_asked_for(data, tmp_path):
    report = search(searched(data, tmp_path, trials=1, evaluation=replace(ONCE, criterion="silhouette")))
    assert (
        report["best"]["value"]
        == report["best"]["criteria"]["silhouette"]
        != report["best"]["criteria"]["explained"]
    )
    fake = {
        "criteria": {"explained": 0.2, "agreement": 0.7},
        "criterion": "agreement",
        "scores": {"miou": {"all": 40.0}, "accuracy": {"all": 80.0}},
    }
    assert objective(fake, False) == 0.7 and objective(fake, True) == 50.0


def test_other_settings_are_refused(data, tmp_path):
    search(searched(data, tmp_path, trials=1))
    for other in (
        searched(data, tmp_path, trials=1, steps=3),
        searched(data, tmp_path, trials=1, options={"select_on_labels": True}),
        searched(data, tmp_path, trials=1, seed=5),
    ):
        with pytest.raises(
            ValueError, match="holds a run of another configuration .* was .*; choose another"
        ):
            search(other)


def test_failed_trials_are_told_and_do_not_end_a_search(data, tmp_path, monkeypatch):
    genuine, calls = cluster, []

    def sometimes(run, *args):
        calls.append(run.out)
        if len(calls) % 2:
            raise ValueError("the codes have 1 distinct directions for 3 clusters")
        return genuine(run, *args)

    monkeypatch.setattr(module, "cluster", sometimes)
    report = search(searched(data, tmp_path / "run", trials=4))
    assert (report["finished"], report["pruned or failed"], len(calls)) == (2, 2, 4)
    assert [row["number"] for row in report["trials"]] == [1, 3]
    search(searched(data, tmp_path / "run", trials=4))
    assert len(calls) == 4  # a trial that collapsed is done; running the command again does not add one
    monkeypatch.setattr(module, "cluster", lambda *args: sometimes(*args) and sometimes(*args))
    with pytest.raises(ValueError, match="every trial failed or was pruned; run one 'cluster'"):
        search(searched(data, tmp_path / "none", trials=1))


class Killed(BaseException):
    """Optuna does not see the end of the trial, as when the process is killed."""


@pytest.mark.parametrize(
    "end, trial, when",
    [
        (KeyboardInterrupt, 0, "before"),
        (Killed, 1, "before"),
        (KeyboardInterrupt, 1, "after"),
        (Killed, 3, "after"),
    ],
)
def test_a_search_that_was_interrupted_equals_one_that_was_not(
    data, tmp_path, monkeypatch, whole, end, trial, when
):
    """The interrupted trial is run again with the same settings, and so are all after it."""
    calls = []

    def interrupted(*args):
        calls.append(args)
        last = len(calls) == trial + 1
        if last and when == "before":
            raise end
        report = cluster(*args)
        if last:
            raise end
        return report

    monkeypatch.setattr(module, "cluster", interrupted)
    with pytest.raises(end):
        search(searched(data, tmp_path, trials=4))
    assert len(calls) == trial + 1
    report = search(searched(data, tmp_path, trials=4))
    assert report["trials"] == whole["trials"] and len(calls) == 5
    assert (report["finished"], report["pruned or failed"]) == (4, 0)
    names = [path.name for path in sorted((tmp_path / "trials").iterdir())]
    assert names == ["0000", "0001", "0002", "0003"] and not list(tmp_path.rglob("*.safetensors"))


def test_a_search_belongs_to_its_data(data, tmp_path):
    """Asked for more trials, or for its report once more, on edited labels: refused, nothing changes."""
    search(searched(data, tmp_path / "run", trials=1))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")}
    other = relabelled(data, tmp_path / "other", lambda label: label[::-1], "val")
    for trials in (1, 2):
        with pytest.raises(ValueError, match=r"was begun on other data .*changed: images of val\)"):
            search(searched(other, tmp_path / "run", trials=trials))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")} == before


def test_what_no_trial_could_do_is_refused_before_the_first(data, tmp_path):
    blank = relabelled(data, tmp_path / "blank", lambda label: np.full_like(label, 255), "val")
    for root, evaluation, message in (
        (blank, ONCE, "has no labels in its split 'val', or all of them are 255"),
        (data, replace(ONCE, clusters=300), "300 clusters: expected 2 to 255"),
        (data, replace(ONCE, guide="sonar"), "--guide sonar: expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            search(searched(root, tmp_path / "run", evaluation=evaluation))
    assert not (tmp_path / "run" / "trials").exists()


def test_the_reference_of_a_trial_is_that_of_a_run(data, tmp_path):
    search(searched(data, tmp_path, trials=1, modalities=("depth", "rgb")))
    settings = json.loads((tmp_path / "trials" / "0000" / "report.json").read_text())
    assert set(settings["shifts"]) == {"rgb", "depth"} and list(settings["shifts"])[0] == "rgb"


def test_a_run_without_knn_pairs_is_searched_with_them(data, tmp_path):
    assert (
        search(searched(data, tmp_path, trials=1, loss=replace(SMALL, weights=(1.0, 0.0, 1.0))))["finished"]
        == 1
    )


class Scripted:
    """A trial whose answers are recorded: the lower end of every range."""

    def __init__(self):
        self.ranges = {}

    def suggest_float(self, name, low, high, log=False):
        self.ranges[name] = (low, high)
        return low

    def suggest_categorical(self, name, choices):
        self.ranges[name] = tuple(choices)
        return choices[0]


def test_what_is_searched():
    trial, run = (
        Scripted(),
        configured("", loss=CorrespondenceConfig(negatives=4, points=9, shifts=Shifts("absolute"))),
    )
    settings = suggest(trial, run)
    pairs = [f"{kind}_{pair}" for kind in ("quantile", "weight") for pair in ("self", "knn", "random")]
    assert set(trial.ranges) == {*pairs, "lambda_x", "lr", "dim"}
    assert (settings.lr, settings.lambda_x, settings.network.dim) == (1e-4, 0.03, 16)
    assert settings.loss == CorrespondenceConfig(
        Shifts("quantile", (0.3,) * 3), (0.01,) * 3, negatives=4, points=9
    )
    assert (
        replace(settings, lr=run.lr, lambda_x=run.lambda_x, network=run.network, loss=run.loss) == run
    )  # nothing else moves
    trial = Scripted()
    assert suggest(trial, configured("", method="stego")).lambda_x == 1.0 and "lambda_x" not in trial.ranges


@pytest.mark.parametrize(
    "method, options, message",
    [
        ("kmeans", {}, "--method kmeans has none of the settings that are searched"),
        ("eagle", {}, "--method eagle has none"),
        ("unim2", {"prune": True}, "--prune compares trials at the same step: give --eval-every"),
    ],
)
def test_searches_that_make_no_sense(data, tmp_path, method, options, message):
    with pytest.raises(ValueError, match=message):
        search(searched(data, tmp_path, method, options=options))


def test_a_bad_trial_is_pruned(data, tmp_path, monkeypatch):
    """Trials whose criterion is dictated: the seventh is worse than all before it and ends at the first
    measurement.
    """
    measured = []

    class Measured:
        def __init__(self, value):
            self.report = {"criteria": {"explained": value}, "criterion": "explained", "scores": None}

    def dictated(run, prepared, stop):
        number = int(Path(run.out).name)
        value = 0.9 - 0.1 * number
        for step in (1, 2):
            measured.append((number, step))
            stop(step, Measured(value))
        return {"criteria": {"explained": value}, "criterion": "explained", "scores": None}

    monkeypatch.setattr(module, "cluster", dictated)
    report = search(searched(data, tmp_path, trials=7, eval_every=1, options={"prune": True}))
    assert report["finished"] == 5 and report["pruned or failed"] == 2 and report["best"]["number"] == 0
    assert [pair for pair in measured if pair[0] >= 5] == [(5, 1), (6, 1)] and (4, 2) in measured
    search(searched(data, tmp_path, trials=7, eval_every=1, options={"prune": True}))
    assert len(measured) == 12  # pruned trials are done


def test_rank_correlations_tell_whether_labels_would_have_agreed():
    trials = [
        {
            "criteria": {"explained": float(number), "agreement": -float(number), "silhouette": 1.0},
            "scores": {"miou": miou, "accuracy": 50.0},
            "number": number,
            "lr": 0.1 * miou,
        }
        for number, miou in enumerate((10.0, 30.0, 20.0, 40.0))
    ]
    # Spearman by hand: 1 - 6 · 2 / (4 · 15)
    assert rank_correlations(trials) == {"explained": 0.8, "agreement": -0.8, "lr": 1.0}


def test_without_optuna_the_message_says_what_to_install(data, tmp_path, monkeypatch):
    genuine = builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] == "optuna":
            raise ImportError("No module named 'optuna'")
        return genuine(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs Optuna: pip install 'mmlib\[search\]'"):
        search(searched(data, tmp_path))
