"""The history of a run as JSON lines, and the event files for TensorBoard that are made from them."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ..state import append, trim_history


def find_tensorboard():
    """torch's ``SummaryWriter``.

    Raises:
        ValueError: the package tensorboard is missing; says how to install it.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            f'--tensorboard needs the package tensorboard ({error}); in this repository: pip install -e ".[logs]"'
        ) from error
    return SummaryWriter


def scalars(entry: dict) -> dict[str, float]:
    """Curves to which a line of history.jsonl adds a point, by tag."""
    if "val" in entry:
        tables = {
            "val": {key: entry["val"][key] for key in ("full", "mean", "min", "std")},
            "val mIoU": entry["miou"],
        }
        tables["information"] = entry.get("information", {})
    else:
        tables = {
            "train": {
                k: v for k, v in entry.items() if isinstance(v, float) and k not in ("epoch", "seconds")
            }
        }
    return {f"{table}/{name}": value for table, values in tables.items() for name, value in values.items()}


class History:
    """history.jsonl of a run that stands at ``step``, after ``seconds`` of training: what lies beyond is
    dropped.

    Event files hold nothing of their own: each process begins a new one with the lines that are kept, so that
    a run that was killed and resumed shows every point once, at its own training time.
    """

    def __init__(self, out: Path, step: int, seconds: float, tensorboard: bool = False):
        self.path, self.writer = out / "history.jsonl", None
        trim_history(self.path, step)
        if tensorboard:
            # Readers forget all points of older files. The files stay: a server that reads one would wait for
            # it for ever.
            self.writer = find_tensorboard()(str(out / "tensorboard"), purge_step=0)
            self.begun, self.seconds = time.time() - seconds, 0.0
            for line in self.path.read_text(encoding="utf-8").splitlines():
                self._show(json.loads(line))
            self.writer.flush()

    def append(self, entry: dict) -> None:
        append(self.path, entry)
        self._show(entry)

    def _show(self, entry: dict) -> None:
        if self.writer:
            self.seconds = entry.get("seconds", self.seconds)
            for tag, value in scalars(entry).items():
                self.writer.add_scalar(tag, value, entry["step"], self.begun + self.seconds)

    def close(self) -> None:
        if self.writer:
            self.writer.close()
