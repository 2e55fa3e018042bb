"""The one training loop of both parts: resume, history, TensorBoard, the guard against gradients that are not
finite, and the report.

``segmentation.train`` and ``unsupervised.train`` say how a step is taken and how a state is measured; all
that a run leaves on disk around that is written and read here.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from torch import nn

from .config import AtLeast, check_settings
from .runtime import (
    atomic_path,
    load_into,
    progress_bar,
    provenance,
    read_tensor_header,
    read_tensors,
    reading,
    save_tensors,
    without_paths,
    write_json,
)

# Settings that may change between a run and its continuation, because they do not change its result.
WITHOUT_EFFECT = ("out", "data", "workers", "cache", "progress", "save_every", "tensorboard", "device")
LOG_EVERY = 20  # steps between lines of the history
# A run ends after so many steps in a row without a finite gradient, or as soon as more than this share of all
# its steps were without one; it warns of a smaller share.
PATIENCE, MOST_SKIPPED, MANY_SKIPPED = 20, 0.1, 0.01


@dataclass
class Progress:
    """How far a run is; saved with its state."""

    step: Annotated[int, AtLeast(0)] = 0
    best: float = -1.0  # highest score so far: the mean mIoU on val in part A
    skipped: int = 0  # steps without a finite gradient
    seconds: float = 0.0
    guards: dict[str, int] = field(default_factory=dict)  # what the regulariser left out or capped
    probed: dict = field(default_factory=dict)  # entries of its latest probe in the history
    cpu_seconds: float = 0.0  # of the main process: wall time says little on a shared machine
    inputs: dict[str, str] = field(default_factory=dict)  # digests of the data, by what they are of


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
    take_step: Callable,
    measure: Callable,
    after_measure: Callable,
    epoch: float = 1.0,
    shown: str = "loss",
    main: bool = True,
    processes: int = 1,
) -> None:
    """Take the steps from ``progress.step`` to ``steps``; log, measure and save on the way.

    Args:
        config: the run's settings; saved, and compared when the run is resumed. Its ``eval_every`` and
            ``save_every`` say how many epochs lie between measurements and between saved states; 0 = only at
            the end.
        model: the weights that a state holds.
        take_step: step, counted from 0 -> (whether its gradient was finite, function that makes the step's
            line of the history). The line is made on every process, but only for logged steps.
        measure: number of steps taken -> (line of the history, score, the higher the better).
        after_measure: takes (number of steps taken, line, whether its score is the highest so far).
        epoch: number of steps in which the intervals of ``config`` are counted.
        shown: entry of a step's line that stands beside the progress bar.
        main: whether this process writes.

    Raises:
        ValueError: too many steps without a finite gradient.
    """
    out, without_gradient = Path(config.out), 0
    # Times of a resumed run go on from those of its state.
    begun, begun_cpu = time.perf_counter() - progress.seconds, time.process_time() - progress.cpu_seconds
    history = open_history(config, progress) if main else nullcontext(lambda line: None)
    options = {"leave": False, "progress": main and config.progress}
    bar = progress_bar(total=steps, initial=progress.step, desc=out.name, **options)
    skips = lambda: (
        f"{out}: {progress.skipped} of {progress.step} steps had no finite gradient and were skipped; "
        "lower --lr, or look for constant images and for values that are out of range"
    )
    with history as record, bar:
        for step in range(progress.step, steps):
            finite, make_line = take_step(step)
            done = progress.step = step + 1
            without_gradient = 0 if finite else without_gradient + 1
            progress.skipped += not finite
            if without_gradient == PATIENCE or progress.skipped > MOST_SKIPPED * steps:
                raise ValueError(skips())
            progress.seconds = time.perf_counter() - begun
            progress.cpu_seconds = time.process_time() - begun_cpu
            bar.update()
            if done % LOG_EVERY == 0 or done == steps:
                line = make_line()
                bar.set_postfix({shown: f"{line[shown]:.3f}"}, refresh=False)
                record({"step": done, **line, "seconds": round(progress.seconds, 2)})
            if due(done, steps, config.eval_every * epoch):
                line, score = measure(done)
                record({"step": done, **line})
                better = score > progress.best
                progress.best = max(progress.best, score)
                after_measure(done, line, better)
            if main and due(done, steps, config.save_every * epoch):
                save_state(out / "resume.safetensors", model, optimizer, config, processes, progress)
    if main and progress.skipped > MANY_SKIPPED * steps:
        print(f"warning: {skips()}", file=sys.stderr)


def write_report(config, progress: Progress, **entries) -> dict:
    """``out``/report.json: provenance, settings and times, and what the part adds; also returned."""
    settings = {key: value for key, value in asdict(config).items() if key not in WITHOUT_EFFECT}
    report = {
        "provenance": provenance(seed=config.seed),
        "config": settings | {"data": Path(config.data).name},
        "seconds": round(progress.seconds, 1),
        "cpu_seconds": round(progress.cpu_seconds, 1),
        "inputs": progress.inputs,
        **entries,
    }
    write_json(Path(config.out) / "report.json", report)
    return report


# ---- history ----


@contextmanager
def open_history(config, progress: Progress) -> Iterator[Callable[[dict], None]]:
    """Write config.json, and open history.jsonl without the lines that lie beyond ``progress``; gives the
    function that adds a line.

    TensorBoard's event files hold nothing of their own: each process begins a new one with the lines that
    stay, so that a run that was killed and resumed shows every point once, at its own training time.
    """
    out = Path(config.out)
    path, writer = out / "history.jsonl", None
    if getattr(config, "tensorboard", False):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                f"--tensorboard needs the package tensorboard ({error}); in this repository: "
                'pip install -e ".[logs]"'
            ) from error
        # Readers forget all points of older files. The files stay: a server that reads one would wait for it
        # for ever.
        writer = SummaryWriter(str(out / "tensorboard"), purge_step=0)
    write_json(out / "config.json", asdict(config))
    lines = [line for line in read_lines(path) if line["step"] <= progress.step] if path.exists() else []
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    begun, seconds = time.time() - progress.seconds, 0.0

    def show(line):
        nonlocal seconds
        seconds = line.get("seconds", seconds)
        for tag, value in scalars(line).items() if writer else ():
            writer.add_scalar(tag, value, line["step"], begun + seconds)

    def record(line):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        show(line)

    with writer or nullcontext():
        for line in lines:
            show(line)
        yield record


def scalars(line: dict) -> dict[str, float]:
    """Curves to which a line of history.jsonl adds a point, by tag."""
    tables = {"train": line}
    if "val" in line:
        tables = {"val": line["val"], "val mIoU": line["miou"], "information": line["information"]}
    return {
        f"{table}/{name}": value
        for table, values in tables.items()
        for name, value in values.items()
        if isinstance(value, float) and name not in ("epoch", "seconds")
    }


def read_lines(path: str | Path) -> list[dict]:
    """The lines of a history; the last one only if it is whole: a kill, or a writer at work, may have cut it
    short.
    """
    with reading(path, "a history, one JSON object with a step on each line"):
        lines = [json.loads(text) for text in Path(path).read_text(encoding="utf-8").split("\n")[:-1] if text]
        if not all(isinstance(line["step"], int) and isinstance(line.get("val", {}), dict) for line in lines):
            raise TypeError("a step is no whole number, or what was measured is no object")
    return lines


def read_history(path: str | Path) -> tuple[list[dict], list[dict]]:
    """(logged steps, measurements) of a history.jsonl.

    Raises:
        ValueError: missing or damaged; names the file.
    """
    lines = read_lines(path)
    return [line for line in lines if "val" not in line], [line for line in lines if "val" in line]


# ---- the state from which a run is resumed ----


def save_state(path: Path, model: nn.Module, optimizer, config, processes: int, progress: Progress) -> None:
    """Model, optimizer and progress in one file: a kill between two files can not leave them out of step."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    settings = asdict(config) | {"processes": processes}
    save_tensors(path, tensors, {"state": {"config": settings, "progress": asdict(progress)}})


def resume(config, model: nn.Module, optimizer, inputs: dict[str, str], processes: int = 1) -> Progress:
    """Load ``config.out``/resume.safetensors into model and optimizer, if there is one.

    Args:
        inputs: digests of the data, by what they are of; those that are missing are not compared.

    Raises:
        ValueError: ``config.out`` is a file, or holds another run, one on other data, or a damaged state;
            names it.
    """
    out = Path(config.out)
    path = out / "resume.safetensors"
    if not path.exists():
        if (out / "last.safetensors").exists():
            raise ValueError(
                f"{out}: holds a trained network but no state to resume from; choose another --out"
            )
        return Progress(inputs=inputs)
    meta = read_tensor_header(path).get("state")
    with reading(path, "a state to resume from"):
        settings, saved = dict(meta["config"]), dict(meta["progress"])
        saved.pop("samples", 0)  # earlier versions also kept the number of samples
        progress = Progress(**saved)
        check_settings(progress, "its ")
    check_same(out, settings, asdict(config) | {"processes": processes}, progress.inputs, inputs)
    progress.inputs = inputs or progress.inputs
    states, weights = {}, {}
    with reading(path, "a state to resume from"):
        for name, value in read_tensors(path).items():
            kind, rest = name.split(".", 1)
            if kind == "model":
                weights[rest] = value
            else:
                index, key = rest.split(".")
                states.setdefault(int(index), {})[key] = value
        shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
        fits = all(
            v.shape in ((), shapes[i]) and v.dtype == torch.float32
            for i, state in states.items()
            for v in state.values()
        )
        if not fits or len(set(map(frozenset, states.values()))) > 1:
            raise ValueError("its optimizer state is incomplete, or of another network")
    load_into(model, weights, path)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def check_same(
    out: Path, settings: dict, config: dict, begun: dict[str, str], inputs: dict[str, str]
) -> None:
    """Raise ValueError, which says what differs, unless the run in ``out`` was begun with the settings
    ``config`` and on data of the digests ``inputs``: its own are ``settings`` and ``begun``. Digests that
    either lacks are not compared; of absolute paths the names are.
    """
    settings = without_paths(settings)  # those of an earlier version have them
    for name, value in without_paths(config).items():
        if name not in WITHOUT_EFFECT and settings.get(name) != value:
            raise ValueError(
                f"{out}: holds a run of another configuration ({name} was {settings.get(name)!r}, is "
                f"{value!r}); choose another --out, or give its settings to resume it"
            )
    # Of other samples, the order and number of steps would change half-way.
    changed = [what for what, digest in inputs.items() if begun.get(what, digest) != digest]
    if changed:
        raise ValueError(
            f"{out}: was begun on other data than there are now (changed: {', '.join(changed)}); choose "
            "another --out, or bring the data back as they were"
        )
