"""What a run leaves on disk: its history as JSON lines, and one file from which it can be resumed exactly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

from .runtime import atomic_path, read_tensor_header, read_tensors, reading, save_tensors

# Settings that may change between a run and its continuation, because they do not change its result.
FREE = ("out", "data", "workers", "cache", "progress", "save_every", "tensorboard", "device")


@dataclass
class Progress:
    """How far a run is; saved with its state."""

    step: int = 0
    best: float = -1.0  # highest mean mIoU on val so far
    skipped: int = 0  # steps without a finite gradient
    seconds: float = 0.0
    guards: dict = field(default_factory=dict)  # what the regulariser left out or capped
    cpu_seconds: float = 0.0  # of the main process: wall time says little on a shared machine
    samples: int = 0  # to train on, at the begin: order, schedule and number of steps follow from it


def append(path: Path, entry: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


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
    ValueError: a damaged line.
    """
    kept = [text for text, line in (_lines(path) if path.exists() else []) if line["step"] <= step]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(text + "\n" for text in kept), encoding="utf-8")


def read_history(path: str | Path) -> tuple[list[dict], list[dict]]:
    """(logged steps, evaluations) of a history.jsonl. ValueError: missing or damaged; names the file."""
    lines = [line for _, line in _lines(path)]
    return [line for line in lines if "val" not in line], [line for line in lines if "val" in line]


def load_into(module: nn.Module, tensors: dict, path: str | Path) -> None:
    """Copy the tensors of ``path`` into ``module``, half precision as float32.

    Raises:
        ValueError: another set of names, another shape, or integers for weights; names the file.
    """
    try:
        for name, own in module.state_dict().items():
            if name in tensors and tensors[name].is_floating_point() != own.is_floating_point():
                raise TypeError(f"{name} holds {tensors[name].dtype}, expected {own.dtype}")
        module.load_state_dict(tensors)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path}: its weights do not fit its description: {' '.join(str(error).split())[:300]}"
        ) from error


def save_state(path: Path, model: nn.Module, optimizer, config, processes: int, progress: Progress) -> None:
    """Model, optimizer and progress in one file: a kill between two files can not leave them out of step."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    save_tensors(
        path,
        tensors,
        {"state": {"config": asdict(config) | {"processes": processes}, "progress": asdict(progress)}},
    )


def resume(out: Path, config, model: nn.Module, optimizer, processes: int, samples: int) -> Progress:
    """Load ``out/resume.safetensors`` into model and optimizer, if there is one.

    Raises:
        ValueError: ``out`` is a file, or holds another run, one on another number of samples, or a damaged
            state; names it.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: a file; --out names the folder to write")
    path = out / "resume.safetensors"
    if not path.exists():
        if (out / "last.safetensors").exists():
            raise ValueError(
                f"{out}: holds a trained network but no state to resume from; choose another --out"
            )
        return Progress(samples=samples)
    meta = read_tensor_header(path).get("state")
    with reading(path, "a state to resume from"):
        theirs, progress = dict(meta["config"]), Progress(**meta["progress"])
        if not (isinstance(progress.step, int) and progress.step >= 0):
            raise ValueError(f"it was saved at step {progress.step!r}")
    ours = json.loads(json.dumps(asdict(config) | {"processes": processes}))
    differing = [
        f"{key} was {theirs.get(key)!r}, is {value!r}"
        for key, value in ours.items()
        if key not in FREE and theirs.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"{out}: holds a run of another configuration ({'; '.join(differing)}); choose another --out, or give its settings to resume it"
        )
    if progress.samples not in (0, samples):  # 0: saved before this was counted
        raise ValueError(
            f"{out}: was begun on {progress.samples} training samples, and there are {samples} now: the order and number of its steps "
            "would change half-way; choose another --out, or bring the data back as they were"
        )
    progress.samples = samples
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


def read_kept(path: Path, step: int) -> tuple[float, dict, int] | None:
    """The best state up to ``step``: its value, weights and step. A later one is found again by the steps
    that are repeated.

    Raises:
        ValueError: damaged, or another kind of file; names it.
    """
    if not path.exists():
        return None
    with reading(path, "the best state of a run"):
        kept = read_tensor_header(path)["kept"]
        return (float(kept["value"]), read_tensors(path), kept["step"]) if kept["step"] <= step else None
