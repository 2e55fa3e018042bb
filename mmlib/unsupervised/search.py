"""Hyper-parameters of a label-free method, chosen without labels: Optuna over the settings that the papers
tune, resumable.

The papers give each method 200 trials and let the score on the labelled test split choose among them. Here a
label-free criterion chooses, on training images; ``select_on_labels`` does it the papers' way, and every
report then says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from scipy.stats import spearmanr

from ..config import AtLeast
from ..runtime import derived_seed, progress_bar, provenance, remove_strays, write_json
from .correspondence import Shifts
from .methods import ClusterConfig, Plan, Prepared, prepare
from .training import cluster


@dataclass(frozen=True)
class SearchConfig:
    """Search the hyper-parameters of 'cluster': learning rate, code length, three weights, three shifts and,
    for unim2, λ.
    """

    run: ClusterConfig = field()
    trials: Annotated[int, AtLeast(1)] = 200
    """Trials in all; a search that was stopped goes on where it stood."""
    select_on_labels: bool = False
    """Maximise 0.75 mIoU + 0.25 accuracy on the scored split, as the papers do, instead of the label-free
    criterion.
    """
    search_seed: int = 42
    """Seed of the sampler (TPE)."""
    prune: bool = False
    """Stop a trial that is worse than half of the others at the same step; needs --eval-every."""


def suggest(trial, run: ClusterConfig) -> ClusterConfig:
    """``run`` with the settings of a trial; ranges are those of the papers where they name one."""
    quantiles = tuple(
        trial.suggest_float(f"quantile_{pair}", 0.3, 0.97) for pair in ("self", "knn", "random")
    )
    weights = tuple(trial.suggest_float(f"weight_{pair}", 0.01, 1.0) for pair in ("self", "knn", "random"))
    lambda_x = trial.suggest_float("lambda_x", 0.03, 3.0, log=True) if run.method == "unim2" else run.lambda_x
    return replace(
        run,
        lr=trial.suggest_float("lr", 1e-4, 5e-3, log=True),
        lambda_x=lambda_x,
        network=replace(run.network, dim=trial.suggest_categorical("dim", [16, 32, 70, 128])),
        loss=replace(run.loss, shifts=Shifts("quantile", quantiles), weights=weights),
    )


def flags(found: dict) -> str:
    """The settings of a trial as flags of 'cluster', to the last digit."""
    triples = {
        f"{kind}s": [found[f"{kind}_{pair}"] for pair in ("self", "knn", "random")]
        for kind in ("quantile", "weight")
    }
    single = {name: [found[name]] for name in ("lr", "dim", "lambda_x") if name in found}
    return " ".join(
        f"--{name.replace('_', '-')} {' '.join(map(str, values))}"
        for name, values in (single | triples).items()
    )


def on_scores(miou: float, accuracy: float) -> float:
    """The released search's objective."""
    return 0.75 * miou + 0.25 * accuracy


def objective(report: dict, on_labels: bool) -> float:
    """What the search maximises."""
    if on_labels:
        return on_scores(report["scores"]["miou"]["all"], report["scores"]["accuracy"]["all"])
    return report["criteria"][report["criterion"]]


def search(config: SearchConfig) -> dict:
    """Run or resume a search; returns its report (also ``out/report.json``), with every trial and the best
    settings.

    Writes to ``run.out``: study.db (Optuna's, SQLite), trials/<n>/report.json, best.json (with the flags of
    'cluster'), report.json.

    Raises:
        ValueError: Optuna is not installed, nothing to search, labels asked for where there are none, or an
            ``out`` of another search.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            "the search needs Optuna: pip install 'mmlib[search]' (or pip install optuna)"
        ) from error
    run, out = config.run, Path(config.run.out)
    if run.method in ("kmeans", "eagle"):
        raise ValueError(
            f"--method {run.method} has none of the settings that are searched; search stego or unim2"
        )
    if config.trials < 1:
        raise ValueError(f"--trials {config.trials}: expected 1 or more")
    if config.prune and not run.eval_every:
        raise ValueError(
            "--prune compares trials at the same step: give --eval-every, such as a quarter of --steps"
        )
    # Every trial weighs KNN pairs, whatever the weights of the run: find neighbours.
    shared = prepare(replace(run, loss=replace(run.loss, weights=(1.0, 1.0, 1.0))))
    if config.select_on_labels and not shared[1].scored.labelled:
        raise ValueError(f"{run.data} has no labels, so they cannot choose; leave out --select-on-labels")
    out.mkdir(parents=True, exist_ok=True)
    for folder in out.glob("trials/*"):  # those of trials that were killed are not written to again
        remove_strays(folder)
        for file in folder.glob("*.safetensors"):
            file.unlink(missing_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fixed = {key: value for key, value in asdict(config).items() if key not in ("trials", "run")} | {
        "run": {
            key: value
            for key, value in asdict(run).items()
            if key not in ("out", "data", "device", "progress", "save_every")
        }
    }
    pruner = (
        optuna.pruners.PercentilePruner(50.0, n_startup_trials=5)
        if config.prune
        else optuna.pruners.NopPruner()
    )
    from sqlalchemy.exc import SQLAlchemyError

    try:
        study = optuna.create_study(
            study_name="search",
            storage=f"sqlite:///{out.resolve() / 'study.db'}",
            direction="maximize",
            load_if_exists=True,
            pruner=pruner,
        )
        known = study.user_attrs.get("settings")
    except (SQLAlchemyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{out / 'study.db'}: not Optuna's storage of a search, or damaged ({reason})"
        ) from error
    if known not in (None, json.dumps(fixed)):
        raise ValueError(
            f"{out}: holds a search of other settings; choose another --out, or give its settings to go on "
            "with it"
        )
    study.set_user_attr("settings", json.dumps(fixed))
    over = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    # A trial that failed of itself is done; one that was interrupted is not.
    done = sum(t.state in over or "failed" in t.user_attrs for t in study.trials)
    # A sampler's state is not on disk; one seeded by the number of finished trials makes a search that is
    # stopped repeatable too.
    study.sampler = optuna.samplers.TPESampler(seed=derived_seed(config.search_seed, done) % 2**32)
    with progress_bar(
        total=config.trials, initial=done, desc=f"search {out.name}", progress=run.progress
    ) as bar:

        def one(trial) -> float:
            try:
                report = _trial(trial, config, shared, out)
            except ValueError as error:
                trial.set_user_attr("failed", str(error))
                raise
            trial.set_user_attr("criteria", report["criteria"])
            if report["scores"]:
                trial.set_user_attr(
                    "scores", {key: report["scores"][key]["all"] for key in ("miou", "accuracy")}
                )
            return objective(report, config.select_on_labels)

        def shown(study, trial) -> None:
            bar.update()
            if any(t.state.name == "COMPLETE" for t in study.trials):
                bar.set_postfix(best=f"{study.best_value:.4f}")

        # A trial whose codes collapse has no clusters: a failed trial, not a failed search.
        study.optimize(one, n_trials=max(0, config.trials - done), callbacks=[shown], catch=(ValueError,))
    return _report(study, config, out)


def _trial(trial, config: SearchConfig, shared: tuple[Plan, Prepared], out: Path) -> dict:
    import optuna

    folder = out / "trials" / f"{trial.number:04d}"
    run = suggest(trial, replace(config.run, out=str(folder), save_every=config.run.steps, progress=False))

    def stop(step, evaluation) -> None:
        value = evaluation.criterion
        if config.select_on_labels:
            value = on_scores(evaluation.miou, evaluation.scores.accuracy())
        trial.report(value, step)
        if config.prune and step < run.steps and trial.should_prune():
            raise optuna.TrialPruned()

    try:
        return cluster(run, shared, stop)
    finally:
        for file in folder.glob("*.safetensors"):  # hundreds of trials would fill a disk
            file.unlink()


def _report(study, config: SearchConfig, out: Path) -> dict:
    trials = [
        t for t in study.trials if t.state.name == "COMPLETE"
    ]  # a pruned one has a value too, of an unfinished run
    if not trials:
        raise ValueError(
            f"{out}: every trial failed or was pruned; run one 'cluster' of these settings and look at it"
        )
    rows = [
        {"number": t.number, "value": t.value, "flags": flags(t.params), **t.params, **t.user_attrs}
        for t in trials
    ]
    settings = config.run.evaluation
    what = f"the label-free criterion {settings.criterion!r} on training images"
    if config.select_on_labels:
        what = f"LABELS of the split {settings.split!r}"
    report = {
        "provenance": provenance(seed=config.search_seed),
        "chosen by": what,
        "method": config.run.method,
        "finished": len(trials),
        "pruned or failed": len(study.trials) - len(trials),
        "best": max(rows, key=lambda row: row["value"]),
        "trials": rows,
    }
    scored = [row for row in rows if "scores" in row]
    if len(scored) > 2:  # looked at after the choice: would labels have chosen the same?
        miou = [row["scores"]["miou"] for row in scored]
        report["rank correlation with mIoU"] = {
            name: round(float(spearmanr([row["criteria"][name] for row in scored], miou).statistic), 3)
            for name in scored[0]["criteria"]
            if len({row["criteria"][name] for row in scored}) > 1
        }
        report["best mIoU of any trial"] = max(miou)
    write_json(out / "report.json", report)
    write_json(out / "best.json", report["best"])
    return report
