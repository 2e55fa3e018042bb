"""What a run leaves on disk: its history as JSON lines, and one file from which it can be resumed exactly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

from .runtime import atomic_path, read_tensor_header, read_tensors, save_tensors

# Settings that may change between a run and its continuation, because they do not change its result.
FREE = ("out", "data", "workers", "cache", "progress", "save_every", "device")


@dataclass
class Progress:
    """How far a run is; saved with its state."""

    step: int = 0
    best: float = -1.0  # highest mean mIoU on val so far
    skipped: int = 0  # steps without a finite gradient
    seconds: float = 0.0
    guards: dict = field(default_factory=dict)  # what the regulariser left out or capped
    cpu_seconds: float = 0.0  # of the main process: wall time says little on a shared machine


def append(path: Path, entry: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def trim_history(path: Path, step: int) -> None:
    """Drop lines written after the state that the run resumes from, and a line cut short by a kill."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            break
    with atomic_path(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def read_history(path: str | Path) -> tuple[list[dict], list[dict]]:
    """(logged steps, evaluations) of a history.jsonl."""
    lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "val" not in line], [line for line in lines if "val" in line]


def save_state(path: Path, model: nn.Module, optimizer, config, processes: int, progress: Progress) -> None:
    """Model, optimizer and progress in one file: a kill between two files can not leave them out of step."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    save_tensors(path, tensors, {"state": {"config": asdict(config) | {"processes": processes}, "progress": asdict(progress)}})


def resume(out: Path, config, model: nn.Module, optimizer, processes: int) -> Progress:
    """Load ``out/resume.safetensors`` into model and optimizer, if there is one."""
    path = out / "resume.safetensors"
    if not path.exists():
        if (out / "last.safetensors").exists():
            raise ValueError(f"{out}: holds a trained network but no state to resume from; choose another --out")
        return Progress()
    meta = read_tensor_header(path).get("state")
    if meta is None:
        raise ValueError(f"{path}: not a state to resume from; delete it to start anew")
    ours = json.loads(json.dumps(asdict(config) | {"processes": processes}))
    differing = [
        f"{key} was {meta['config'].get(key)!r}, is {value!r}"
        for key, value in ours.items()
        if key not in FREE and meta["config"].get(key) != value
    ]
    if differing:
        raise ValueError(
            f"{out}: holds a run of another configuration ({'; '.join(differing)}); choose another --out, or give its settings to resume it"
        )
    states: dict[int, dict] = {}
    weights = {}
    for name, value in read_tensors(path).items():
        kind, rest = name.split(".", 1)
        if kind == "model":
            weights[rest] = value
        else:
            index, key = rest.split(".")
            states.setdefault(int(index), {})[key] = value
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(**meta["progress"])
