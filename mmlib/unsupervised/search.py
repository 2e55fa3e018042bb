"""Search of the hyper-parameters that the papers tune, by Optuna and without labels; ``search`` of the
command line calls it, and a search that was stopped goes on where it stood.

The papers give each method 200 trials and let the score on the labelled test split decide among them. Here a
label-free criterion on training images decides; ``select_on_labels`` does it the papers' way, and every
report then says so.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from ..config import AtLeast, flag, spelled
from ..loop import check_same
from ..outputs import claims
from ..runtime import derived_seed, progress_bar, provenance, reading, without_paths, write_json
from .correspondence import PAIRS, Shifts
from .inference import summary
from .methods import ClusterConfig, Plan, Prepared, prepare
from .train import cluster, count_clusters


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
    suggest_float = trial.suggest_float
    triple = lambda kind, *bounds: tuple(suggest_float(f"{kind}_{pair}", *bounds) for pair in PAIRS)
    quantiles, weights = triple("quantile", 0.3, 0.97), triple("weight", 0.01, 1.0)
    lambda_x = suggest_float("lambda_x", 0.03, 3.0, log=True) if run.method == "unim2" else run.lambda_x
    return replace(
        run,
        lr=suggest_float("lr", 1e-4, 5e-3, log=True),
        lambda_x=lambda_x,
        network=replace(run.network, dim=trial.suggest_categorical("dim", [16, 32, 70, 128])),
        loss=replace(run.loss, shifts=Shifts("quantile", quantiles), weights=weights),
    )


def flags(settings: dict) -> str:
    """The settings of a trial as flags of 'cluster', to the last digit."""
    values = {name: settings[name] for name in ("lr", "dim", "lambda_x") if name in settings}
    for kind in ("quantile", "weight"):
        values[f"{kind}s"] = [settings[f"{kind}_{pair}"] for pair in PAIRS]
    return " ".join(word for name in values for word in (flag(name), *spelled(values[name])))


def objective(report: dict, on_labels: bool) -> float:
    """What the search maximises: a label-free criterion, or what the released search does."""
    if on_labels:
        miou, accuracy = summary(report["scores"]).values()
        return 0.75 * miou + 0.25 * accuracy
    return report["criteria"][report["criterion"]]


@claims("run.data", "run.tokens.backbone_weights", out="run.out")
def search(config: SearchConfig) -> dict:
    """Run or resume a search; returns its report (also ``out/report.json``), with every trial and the best
    settings.

    Writes to ``run.out``: study.db (Optuna's, SQLite), trials/<n>/report.json, best.json (with the flags of
    'cluster'), report.json.

    Raises:
        ValueError: Optuna is not installed, nothing to search, labels asked for where there are none, or an
            ``out`` of another search or of other data.
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
    if config.prune and not run.eval_every:
        raise ValueError(
            "--prune compares trials at the same step: give --eval-every, such as a quarter of --steps"
        )
    # Every trial weighs KNN pairs, whatever the weights of the run: find neighbours.
    shared = prepare(replace(run, loss=replace(run.loss, weights=(1.0, 1.0, 1.0))))
    count_clusters(run, shared[1])  # what no trial could do is refused before the first one
    if config.select_on_labels:
        shared[1].scored.require_labels()
    study = open_study(config, shared[1].inputs, out)
    done = sum(map(is_over, study.trials))
    with progress_bar(
        total=config.trials, initial=done, desc=f"search {out.name}", progress=run.progress
    ) as bar:
        for number in range(done, config.trials):
            # A sampler's state is not on disk. One that is seeded for each trial draws the same whether the
            # search was stopped in between or not.
            study.sampler = optuna.samplers.TPESampler(seed=derived_seed(config.search_seed, number) % 2**32)
            # A trial whose codes collapse has no clusters: a failed trial, not a failed search.
            study.optimize(partial(run_trial, number, config, shared), n_trials=1, catch=ValueError)
            bar.update()
            with suppress(ValueError):  # no trial was completed so far
                bar.set_postfix(best=f"{study.best_value:.4f}")
    return write_search_report(study, config, out)


def is_over(trial) -> bool:
    """Whether a trial counts: it ended, or failed of itself. One that was interrupted is run again."""
    return trial.state.name in ("COMPLETE", "PRUNED") or "failed" in trial.user_attrs


def open_study(config: SearchConfig, inputs: dict[str, str], out: Path):
    """Optuna's study in ``out``, a new one where there is none.

    Raises:
        ValueError: it is damaged, of other settings, or of other data than those with the digests ``inputs``.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial that fails would print its traceback
    out.mkdir(parents=True, exist_ok=True)
    settings = asdict(config)
    settings |= settings.pop("run")
    del settings["trials"]  # a finished search may be asked for more
    text = json.dumps(without_paths(settings))
    with reading(out / "study.db", "Optuna's storage of a search"):
        study = optuna.create_study(
            study_name="search",
            storage=f"sqlite:///{out.resolve() / 'study.db'}",
            direction="maximize",
            load_if_exists=True,
        )  # its pruner compares with the median of the trials at the same step, from the sixth on
        saved = json.loads(study.user_attrs.get("settings", text))
        begun = dict(study.user_attrs.get("inputs", {}))
    check_same(out, saved, settings, begun, inputs)
    study.set_user_attr("settings", text)
    study.set_user_attr("inputs", inputs)
    return study


def run_trial(number: int, config: SearchConfig, shared: tuple[Plan, Prepared], trial) -> float:
    """The objective of one clustering; its weights are deleted, because hundreds of trials would fill a disk.
    Its criteria and scores, or why it failed, are kept with the trial.
    """
    import optuna

    trial.set_user_attr("number", number)
    folder = Path(config.run.out) / "trials" / f"{number:04d}"
    remove_weights(folder)  # of the same trial, which was killed
    run = suggest(trial, replace(config.run, out=str(folder), save_every=config.run.steps, progress=False))

    def stop(step, evaluation):
        trial.report(objective(evaluation.report, config.select_on_labels), step)
        if config.prune and step < run.steps and trial.should_prune():
            raise optuna.TrialPruned()

    try:
        report = cluster(run, shared, stop)
    except ValueError as error:
        trial.set_user_attr("failed", str(error))
        raise
    finally:
        remove_weights(folder)
    trial.set_user_attr("criteria", report["criteria"])
    if report["scores"]:
        trial.set_user_attr("scores", summary(report["scores"]))
    return objective(report, config.select_on_labels)


def remove_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink(missing_ok=True)


def write_search_report(study, config: SearchConfig, out: Path) -> dict:
    """report.json and best.json; raises ValueError where no trial was completed."""
    # a pruned trial has a value too, of an unfinished run
    trials = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if not trials:
        raise ValueError(
            f"{out}: every trial failed or was pruned; run one 'cluster' of these settings and look at it"
        )
    rows = [
        {"value": trial.value, "flags": flags(trial.params)} | trial.params | trial.user_attrs
        for trial in trials
    ]
    settings = config.run.evaluation
    on_labels = f"LABELS of the split {settings.split!r}"
    without = f"the label-free criterion {settings.criterion!r} on training images"
    report = {
        "provenance": provenance(seed=config.search_seed),
        "chosen by": on_labels if config.select_on_labels else without,
        "method": config.run.method,
        "finished": len(trials),
        "pruned or failed": sum(map(is_over, study.trials)) - len(trials),
        "best": max(rows, key=lambda row: row["value"]),
        "trials": rows,
    }
    write_json(out / "report.json", report)
    write_json(out / "best.json", report["best"])
    return report
