"""Seeds, devices, threads and the two file habits on which everything relies: one cache folder, atomic writes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import random
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


def data_dir() -> Path:
    """Where rendered and prepared data live: $MMLIB_DATA, else ~/.cache/mmlib. Not created here."""
    return Path(os.environ.get("MMLIB_DATA") or Path.home() / ".cache" / "mmlib")


def limit_threads(threads: int | None = None) -> int:
    """Give torch ``threads`` CPU threads ($OMP_NUM_THREADS, else 1, by default) and return the number.

    More threads make the small networks of this course slower, and a fixed number keeps results reproducible.
    """
    threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 1)
    torch.set_num_threads(threads)
    return threads


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derived_seed(*parts) -> int:
    """A 63-bit seed from any parts with a stable str(): the same on every machine and in every process.

    Randomness that is a function of (run seed, step, sample) instead of a generator's state is what makes a resumed
    run, or one with more workers, identical to an uninterrupted one.
    """
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "little") >> 1


def choose_device(device: str = "auto") -> torch.device:
    """'auto' = a GPU where there is one, else the CPU.

    Raises:
        ValueError: an unknown device, or one that this machine or this build of torch does not have.
    """
    if device != "auto":
        try:
            return torch.zeros(0, device=device).device
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0][:120]
            raise ValueError(f"device {device!r} cannot be used here ({reason}); give auto, cpu, cuda, cuda:1 or mps") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextlib.contextmanager
def atomic_path(path: str | Path):
    """Yield a temporary path beside ``path``; move it into place when the block ends well, remove it when it does not.

    A reader therefore sees the old file, the whole new file, or none. A full disk raises OSError naming the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            free = shutil.disk_usage(path.parent).free / 1e6
            reason = f"{error.strerror or error}, {free:.1f} MB free on its disk"
            raise OSError(f"{path}: could not be written ({reason}); nothing was written. Make room or choose another folder") from error
        raise


def write_json(path: str | Path, value) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")


def save_tensors(path: str | Path, tensors: dict[str, torch.Tensor], header: dict) -> None:
    """Write named tensors and a JSON header as one safetensors file, atomically.

    Raises:
        OSError: the disk is full or the folder cannot be written; names the file.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, {"mmlib": json.dumps(header)})
        except SafetensorError as error:  # the library's own type hides that it is an input/output error
            raise OSError(errno.EIO, str(error)) from error


def read_tensor_header(path: str | Path) -> dict:
    """The JSON header of a file written by ``save_tensors``; runs no code from the file.

    Raises:
        ValueError: missing, damaged, or another kind of file; names the file.
    """
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["mmlib"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a file of this library, or damaged ({type(error).__name__}: {error})") from error


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def provenance(command: str = "", seed: int | None = None) -> dict:
    """What a result must carry: the command that makes it, seed, versions, machine and date. No host or user name."""
    import timm

    return {
        "command": command or " ".join(["python -m mmlib", *sys.argv[1:]]),
        "seed": seed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} used"
        + (f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
