"""The one training loop of both parts: resume, history, TensorBoard, the guard against gradients that are not
finite, and the report.

``segmentation.train`` and ``unsupervised.train`` say how a step is taken and how a state is measured; all
that a run leaves on disk around that is written and read here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

from .runtime import (
    atomic_path,
    load_into,
    progress_bar,
    provenance,
    read_tensor_header,
    read_tensors,
    reading,
    save_tensors,
    write_json,
)

# Settings that may change between a run and its continuation, because they do not change its result.
WITHOUT_EFFECT = ("out", "data", "workers", "cache", "progress", "save_every", "tensorboard", "device")
LOG_EVERY = 20  # steps between lines of the history
PATIENCE = 20  # steps in a row without a finite gradient after which a run ends


@dataclass
class Progress:
    """How far a run is; saved with its state."""

    step: int = 0
    best: float = -1.0  # highest score so far: the mean mIoU on val in part A
    skipped: int = 0  # steps without a finite gradient
    seconds: float = 0.0
    guards: dict = field(default_factory=dict)  # what the regulariser left out or capped
    cpu_seconds: float = 0.0  # of the main process: wall time says little on a shared machine
    samples: int = 0  # at the start: order, schedule and number of steps follow from it
    inputs: dict = field(default_factory=dict)  # digests of the data at the start, by what they are of


def due(done: int, steps: int, every: float) -> bool:
    """Whether something that happens each ``every`` steps, and at the end, happens after step ``done``."""
    return done == steps or (every > 0 and int(done / every) > int((done - 1) / every))


def run_steps(
    config,
    model: nn.Module,
    optimizer,
    progress: Progress,
    steps: int,
    *,
    take_step: Callable[[int], tuple[bool, Callable[[], dict]]],
    measure: Callable[[int], tuple[dict, float]],
    after_measure: Callable[[int, dict, bool], None],
    eval_every: float,
    save_every: float,
    shown: str = "loss",
    main: bool = True,
    processes: int = 1,
) -> None:
    """Take the steps from ``progress.step`` to ``steps``; log, measure and save on the way.

    Args:
        config: the run's settings; saved, and compared when the run is resumed.
        model: the weights that a state holds.
        take_step: step, counted from 0 -> (whether its gradient was finite, function that makes the step's
            line of the history). The line is made on every process, but only for logged steps.
        measure: steps taken -> (line of the history, score, the higher the better).
        after_measure: (steps taken, line, whether its score is the highest so far).
        eval_every, save_every: steps between measurements and saved states; 0 = only at the end.
        shown: entry of a step's line that stands beside the progress bar.
        main: whether this process writes.

    Raises:
        ValueError: too many steps in a row without a finite gradient.
    """
    out, without_gradient = Path(config.out), 0
    # Times of a resumed run go on from those of its state.
    begun, begun_cpu = time.perf_counter() - progress.seconds, time.process_time() - progress.cpu_seconds
    with ExitStack() as stack:
        record = open_history(config, progress, stack) if main else lambda line: None
        bar = progress_bar(
            total=steps,
            initial=progress.step,
            desc=out.name,
            leave=False,
            mininterval=1.0,
            progress=main and config.progress,
        )
        stack.enter_context(bar)
        for step in range(progress.step, steps):
            finite, make_line = take_step(step)
            without_gradient = 0 if finite else without_gradient + 1
            if without_gradient == PATIENCE:
                raise ValueError(
                    f"step {step}: no finite gradient for {PATIENCE} steps; lower --lr, or check the data "
                    "for constant or NaN images"
                )
            done = progress.step = step + 1
            progress.skipped += not finite
            progress.seconds = time.perf_counter() - begun
            progress.cpu_seconds = time.process_time() - begun_cpu
            bar.update()
            if done % LOG_EVERY == 0 or done == steps:
                line = make_line()
                bar.set_postfix({shown: f"{line[shown]:.3f}"}, refresh=False)
                record({"step": done, **line, "seconds": round(progress.seconds, 2)})
            if due(done, steps, eval_every):
                line, score = measure(done)
                record({"step": done, **line})
                better = score > progress.best
                if better:
                    progress.best = score
                after_measure(done, line, better)
            if main and due(done, steps, save_every):
                save_state(out / "resume.safetensors", model, optimizer, config, processes, progress)


def public_settings(config) -> dict:
    """The settings without folders: reports and published files name no machine's paths."""
    hidden = ("out", "data", "tensorboard", "progress", "device")
    settings = {key: value for key, value in asdict(config).items() if key not in hidden}
    return settings | {"data": Path(config.data).name}


def write_report(config, progress: Progress, **entries) -> dict:
    """``out``/report.json: provenance, settings and times, and what the part adds; also returned."""
    report = {
        "provenance": provenance(seed=config.seed),
        "config": public_settings(config),
        "seconds": round(progress.seconds, 1),
        "cpu_seconds": round(progress.cpu_seconds, 1),
        **entries,
    }
    write_json(Path(config.out) / "report.json", report)
    return report


# ---- history ----


def open_history(config, progress: Progress, stack: ExitStack) -> Callable[[dict], None]:
    """Write config.json and drop the lines of history.jsonl that lie beyond ``progress``.

    Returns the function that adds a line.

    TensorBoard's event files hold nothing of their own: each process begins a new one with the lines that
    stay, so that a run that was killed and resumed shows every point once, at its own training time.
    """
    out = Path(config.out)
    path, writer = out / "history.jsonl", None
    write_json(out / "config.json", asdict(config))
    trim_history(path, progress.step)
    begun = time.time() - progress.seconds
    seconds = 0.0

    def add_points(line: dict) -> None:
        nonlocal seconds
        seconds = line.get("seconds", seconds)
        for tag, value in scalars(line).items():
            writer.add_scalar(tag, value, line["step"], begun + seconds)

    if getattr(config, "tensorboard", False):
        # Readers forget all points of older files. The files stay: a server that reads one would wait for it
        # for ever.
        writer = find_tensorboard()(str(out / "tensorboard"), purge_step=0)
        stack.callback(writer.close)
        for _, line in _lines(path):
            add_points(line)
        writer.flush()

    def record(line: dict) -> None:
        append(path, line)
        if writer:
            add_points(line)

    return record


def find_tensorboard():
    """torch's ``SummaryWriter``.

    Raises:
        ValueError: the package tensorboard is missing; says how to install it.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"--tensorboard needs the package tensorboard ({error}); in this repository: "
            'pip install -e ".[logs]"'
        ) from error
    return SummaryWriter


def scalars(line: dict) -> dict[str, float]:
    """Curves to which a line of history.jsonl adds a point, by tag."""
    numbers = lambda table: {name: value for name, value in table.items() if isinstance(value, float)}
    if "val" in line:
        tables = {
            "val": numbers(line["val"]),
            "val mIoU": line.get("miou", {}),
            "information": line.get("information", {}),
        }
    else:
        tables = {"train": {k: v for k, v in numbers(line).items() if k not in ("epoch", "seconds")}}
    return {f"{table}/{name}": value for table, values in tables.items() for name, value in values.items()}


def append(path: Path, line: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _lines(path: str | Path) -> list[tuple[str, dict]]:
    """The lines of a history, as text and read; the last one only if it is whole: a kill, or a writer at
    work, may have cut it short.
    """
    with reading(path, "a history, one JSON object with a step on each line"):
        texts = [line for line in Path(path).read_text(encoding="utf-8").split("\n")[:-1] if line]
        lines = [(text, json.loads(text)) for text in texts]
        if not all(isinstance(line["step"], int) for _, line in lines):
            raise TypeError("a step is not a whole number")
    return lines


def trim_history(path: Path, step: int) -> None:
    """Drop lines written after the state that the run resumes from, and a line cut short by a kill.

    Raises:
        ValueError: a damaged line.
    """
    texts = [text for text, line in (_lines(path) if path.exists() else []) if line["step"] <= step]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(text + "\n" for text in texts), encoding="utf-8")


def read_history(path: str | Path) -> tuple[list[dict], list[dict]]:
    """(logged steps, measurements) of a history.jsonl.

    Raises:
        ValueError: missing or damaged; names the file.
    """
    lines = [line for _, line in _lines(path)]
    return [line for line in lines if "val" not in line], [line for line in lines if "val" in line]


# ---- the state from which a run is resumed ----


def save_state(path: Path, model: nn.Module, optimizer, config, processes: int, progress: Progress) -> None:
    """Model, optimizer and progress in one file: a kill between two files can not leave them out of step."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    settings = asdict(config) | {"processes": processes}
    counts = {name: int(count) for name, count in progress.guards.items()}  # they count on the device
    saved = asdict(progress) | {"guards": counts}
    save_tensors(path, tensors, {"state": {"config": settings, "progress": saved}})


def resume(
    config,
    model: nn.Module,
    optimizer,
    samples: int,
    inputs: dict[str, str] | None = None,
    processes: int = 1,
) -> Progress:
    """Load ``config.out``/resume.safetensors into model and optimizer, if there is one.

    Args:
        samples: number of training samples.
        inputs: digests of the data, by what they are of; None = not compared.

    Raises:
        ValueError: ``config.out`` is a file, or holds another run, one on other data, or a damaged state;
            names it.
    """
    out = Path(config.out)
    path = out / "resume.safetensors"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: a file; --out names the folder to write")
    if not path.exists():
        if (out / "last.safetensors").exists():
            raise ValueError(
                f"{out}: holds a trained network but no state to resume from; choose another --out"
            )
        return Progress(samples=samples, inputs=inputs or {})
    meta = read_tensor_header(path).get("state")
    with reading(path, "a state to resume from"):
        settings, progress = dict(meta["config"]), Progress(**meta["progress"])
        if not (isinstance(progress.step, int) and progress.step >= 0):
            raise ValueError(f"it was saved at step {progress.step!r}")
    _compare_settings(out, settings, json.loads(json.dumps(asdict(config) | {"processes": processes})))
    if progress.samples not in (0, samples):  # 0: saved before this was counted
        raise ValueError(
            f"{out}: was begun on {progress.samples} training samples, and there are {samples} now: the "
            "order and number of its steps would change half-way; choose another --out, or bring the data "
            "back as they were"
        )
    if changed := [
        what for what, digest in (inputs or {}).items() if progress.inputs.get(what, digest) != digest
    ]:
        raise ValueError(
            f"{out}: was begun on other data than there are now (changed: {', '.join(changed)}); choose "
            "another --out, or bring the data back as they were"
        )
    progress.samples, progress.inputs = samples, inputs or progress.inputs
    states: dict[int, dict] = {}
    weights = {}
    with reading(path, "a state to resume from"):
        for name, value in read_tensors(path).items():
            kind, rest = name.split(".", 1)
            if kind == "model":
                weights[rest] = value
            else:
                index, key = rest.split(".")
                states.setdefault(int(index), {})[key] = value
        shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
        keys = {frozenset(state) for state in states.values()}
        if len(keys) > 1 or any(
            v.ndim and v.shape != shapes[i] for i, state in states.items() for v in state.values()
        ):
            raise ValueError("its optimizer state is incomplete, or of another network")
    load_into(model, weights, path)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def _compare_settings(out: Path, saved: dict, now: dict) -> None:
    differing = [
        f"{key} was {saved.get(key)!r}, is {value!r}"
        for key, value in now.items()
        if key not in WITHOUT_EFFECT and saved.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"{out}: holds a run of another configuration ({'; '.join(differing)}); choose another --out, or "
            "give its settings to resume it"
        )


def read_kept(path: Path, step: int) -> tuple[float, dict, int] | None:
    """The best state up to ``step``: its value, weights and step. A later one is found again by the steps
    that are repeated.

    Raises:
        ValueError: damaged, or another kind of file; names it.
    """
    if not path.exists():
        return None
    with reading(path, "the best state of a run"):
        header = read_tensor_header(path)["kept"]
        return (
            (float(header["value"]), read_tensors(path), header["step"]) if header["step"] <= step else None
        )
