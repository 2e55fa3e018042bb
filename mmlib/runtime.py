"""What every other room builds on: seeds, devices, threads, the cache folder, locks, and files that are
written whole or not at all. Nothing here knows of images or networks.
"""

import contextlib
import hashlib
import json
import os
import platform
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from .config import printable


def data_dir() -> Path:
    """Where rendered and prepared data live: $MMLIB_DATA, else ~/.cache/mmlib. Not created here."""
    return Path(os.environ.get("MMLIB_DATA") or Path.home() / ".cache" / "mmlib")


def limit_threads() -> None:
    """Give torch $OMP_NUM_THREADS CPU threads, 1 by default.

    More threads make the small networks of this course slower, and a fixed number keeps results reproducible.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))


def leave_group() -> None:
    """Destroy the process group before the interpreter shuts down: the threads of the group could otherwise
    abort the process.

    After an exception the group is left alone: waiting for the other processes would hide the traceback.
    """
    group = torch.distributed
    if group.is_available() and group.is_initialized() and not hasattr(sys, "last_value"):
        group.destroy_process_group()


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derived_seed(*parts) -> int:
    """A 63-bit seed from any parts with a stable str(): the same on every machine and in every process.

    Randomness that is a function of (run seed, step, sample) instead of a generator's state is what makes a
    resumed run, or one with more workers, identical to an uninterrupted one.
    """
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "little") >> 1


def choose_device(device: str = "auto") -> torch.device:
    """'auto' = a GPU where there is one, else the CPU. Raises ValueError: an unknown device, or one that this
    machine or this build of torch does not have.
    """
    if device == "auto":
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    try:
        return torch.zeros(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(
            f"device {device!r} cannot be used here ({reason}); give auto, cpu, cuda, cuda:1 or mps"
        ) from error


LOCK = ".mmlib.lock"  # in every folder that a command writes
TEMPORARY = ".mmlib.tmp"  # ends the names of folders that hold a file while it is written


@lru_cache(maxsize=None)
def remove_strays(folder: Path) -> None:
    """Delete what processes that were killed left of files they were writing into ``folder``: temporaries
    whose lock nobody holds. Once per process and folder. Locks tell the same in every container.
    """
    for stray in folder.glob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError), FileLock(stray / LOCK, timeout=0):
            shutil.rmtree(stray)


def _own_folder(path: Path) -> tuple[Path, FileLock]:
    """A new folder beside ``path`` for its temporary, and its lock, held by this process."""
    folder = Path(tempfile.mkdtemp(TEMPORARY, f".{path.name[:40]}.", path.parent))
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire()
    except (FileNotFoundError, FileExistsError):  # another process is just taking it for a stray
        return _own_folder(path)
    return folder, lock


@contextlib.contextmanager
def atomic_path(path: str | Path):
    """Yield a temporary path of the same name beside ``path``; move it into place when the block ends well,
    remove it when it does not.

    A reader therefore sees the old file, the whole new file, or none. A full disk raises OSError naming the
    file. The temporary lies in a folder of its own, because some libraries write temporaries of theirs beside
    it; what a killed process leaves there is removed by the next process that writes into ``path``'s folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_strays(path.parent)
    try:
        folder, lock = _own_folder(path)
        try:
            yield folder / path.name
            os.replace(folder / path.name, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()
    except OSError as error:
        if TEMPORARY in str(error.filename or TEMPORARY):
            free = shutil.disk_usage(path.parent).free / 1e6
            reason = f"{error.strerror or error}, {free:.1f} MB free on its disk"
            raise OSError(
                f"{path}: could not be written ({reason}); nothing was written. Make room or choose "
                "another folder"
            ) from error
        raise


@contextlib.contextmanager
def exclusive(path: str | Path):
    """Hold the lock file ``path``. Another process that wants it says who has it and waits, until this one
    has left the block or has ended in whatever way: the system then frees the lock. The file itself stays,
    unless nothing else is in its folder. Raises OSError: the lock cannot be had, whoever holds it, as on a
    disk that can only be read.
    """
    path = Path(path)
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder, since = path.read_text()[:20], datetime.fromtimestamp(path.stat().st_mtime)
            print(
                f"process {os.getpid()} waits for process {holder}, which has {path.parent} since "
                f"{since:%Y-%m-%d %H:%M}; Ctrl-C ends the waiting",
                file=sys.stderr,
            )
            # If the other one has written nothing, it takes the folder away.
            with contextlib.suppress(FileNotFoundError):
                lock.acquire()
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        with contextlib.suppress(OSError):  # a full disk has room for the lock, though not for who has it
            path.write_text(f"{os.getpid()}")
    except OSError as error:
        raise OSError(
            f"{path}: cannot be locked ({error}); choose a folder that can be written, for the cache by "
            "MMLIB_DATA"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if list(path.parent.iterdir()) == [path]:  # nothing was written beside it
                path.unlink()
                path.parent.rmdir()  # refuses where another process has written since
        lock.release(force=True)


@contextlib.contextmanager
def one_line():
    """Around a command: what a user can mend ends it in one line and exit code 1, Ctrl-C in one and 130. Set
    MMLIB_DEBUG=1 for the traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; what --out holds is whole, and the same command goes on from it", file=sys.stderr)
        sys.exit(130)  # as the shell numbers it
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        # Of errors at run time, those of torch's allocators on a GPU and on a CPU.
        gpu = isinstance(error, torch.OutOfMemoryError)
        full = gpu or isinstance(error, MemoryError) or "CPUAllocator" in str(error)
        if os.environ.get("MMLIB_DEBUG") or (isinstance(error, RuntimeError) and not full):
            raise
        if full:
            reason, *_ = str(error).splitlines() or ["no reason given"]
            error = (
                f"the {'GPU' if gpu else 'machine'}'s memory does not suffice ({reason}); halve --batch-size "
                "(and double --accumulate in training), or give --checkpointing or a smaller --crop"
            )
        sys.exit("\n".join(map(printable, f"error: {error}".split("\n"))))


def progress_bar(*arguments, progress: bool = True, **options) -> tqdm:
    """A bar of tqdm, with its arguments; silent without ``progress``, and where neither a terminal nor a
    notebook would show it: in a log every step would be a line.
    """
    visible = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(*arguments, disable=not (progress and visible), **options)


@contextlib.contextmanager
def reading(path: str | Path, what: str, kind: type[ValueError] = ValueError):
    """Whatever a damaged or foreign file makes the block raise becomes one line: a ``kind`` that names
    ``path`` and what was expected. What is neither a file nor a folder is not read: a pipe has no end.
    """
    try:
        if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
            raise TypeError("a pipe or a device")
        yield
    except FileNotFoundError as error:
        raise kind(
            f"{path}: no such file; expected {what}; check the path, or run again the command that writes it"
        ) from error
    except Exception as error:  # libraries raise many kinds on damaged files
        if isinstance(error, kind) and str(error).startswith(str(path)):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise kind(f"{path}: cannot be read ({reason}); it is not {what}, or damaged") from error


def digest_files(root: str | Path, paths: Iterable[Path], limit: int = 2**30) -> str:
    """One digest of files below ``root``: of their names from there and their contents, whatever their order.

    Where the files have more than ``limit`` bytes in total, names, sizes and times of change stand for the
    contents.

    Raises:
        ValueError: a file is missing; names it.
    """
    digest, statuses = hashlib.blake2b(digest_size=16), {}
    for path in paths:
        with reading(path, "a file that this run reads"):
            statuses[path] = path.stat()
    large = sum(status.st_size for status in statuses.values()) > limit
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in statuses):
        if large:
            content = f"{statuses[path].st_size, statuses[path].st_mtime_ns}\0".encode()
        else:
            content = hashlib.blake2b(path.read_bytes()).digest()
        digest.update(os.fsencode(f"{name}\0") + content)
    return digest.hexdigest()


def read_json(path: str | Path, what: str) -> dict:
    """A JSON object; ``what`` says which. Raises ValueError: missing, damaged, or something else; names the
    file.
    """
    with reading(path, what):
        text = Path(path).read_text(encoding="utf-8")
        if re.search(r"\\u00([0189]|7f)", text, re.IGNORECASE):
            raise ValueError("it holds control characters")
        return {**json.loads(text)}  # a list, or a number, raises here


def without_paths(value):
    """A JSON value as others may see it: of an absolute path, also after a flag and "=", the name alone."""
    if isinstance(value, dict):
        return {key: without_paths(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inside) for inside in value]
    if isinstance(value, str):
        start, equals, path = value.rpartition("=")
        return start + equals + Path(path).name if Path(path).is_absolute() else value
    return value


def write_json(path: str | Path, value) -> None:
    """Write a JSON file, atomically, ``without_paths``."""
    with atomic_path(path) as temporary:
        text = json.dumps(without_paths(value), indent=1, ensure_ascii=False)
        temporary.write_text(f"{text}\n", encoding="utf-8")


def save_tensors(path: str | Path, tensors: dict[str, torch.Tensor], header: dict) -> None:
    """Write named tensors and a JSON header, ``without_paths``, as one safetensors file, atomically. Raises
    OSError: the disk is full or the folder cannot be written; names the file.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # Tensors that count are no JSON.
    content = save(tensors, {"mmlib": json.dumps(without_paths(header), default=int)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)  # the library would write a file that nobody else may read


def read_tensor_header(path: str | Path) -> dict:
    """The JSON header of a file written by ``save_tensors``; runs no code from the file. Raises ValueError:
    missing, damaged, or another kind of file; names the file.
    """
    with reading(path, "a file of this library"), safe_open(path, "pt") as file:
        return {**json.loads(file.metadata()["mmlib"])}  # a list, or a number, raises here


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a file by name, .safetensors or written by torch; runs no code from the file. Raises
    ValueError: missing, damaged, another kind of file, or a tensor with NaN or infinite values; names the
    file.
    """
    with reading(path, "a file of tensors"):
        if Path(path).suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            tensors = tensors.get("teacher", tensors)  # a training run of DINOv3 has two networks
        for name, tensor in tensors.items():
            # as float32, for eight bits cannot be asked, and 64 may hold more
            if not tensor.is_floating_point() or name.endswith("bias_mask"):  # NaN in Meta's files of DINOv3
                continue
            if not torch.isfinite(tensor.float()).all():
                raise ValueError(
                    f"{path}: {name} has NaN or infinite values; use another checkpoint, or train again"
                )
    return tensors


def load_into(module: torch.nn.Module, tensors: dict, path: str | Path) -> None:
    """Copy the tensors of ``path`` into ``module``, half precision as float32. Raises ValueError: another set
    of names, another shape, or integers for weights; names the file.
    """
    try:
        for name, own in module.state_dict().items():
            if name in tensors and tensors[name].is_floating_point() != own.is_floating_point():
                raise TypeError(f"{name} holds {tensors[name].dtype}, expected {own.dtype}")
        module.load_state_dict(tensors)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path}: its weights do not fit its description; it is damaged or of another version: train "
            "again, with "
            f"another --out ({' '.join(str(error).split())[:300]})"
        ) from error


def provenance(command: str = "", seed: int | None = None) -> dict:
    """What a result must carry: the command that makes it, seed, versions, machine and date. No host or user
    name.
    """
    return {
        "command": command or " ".join(["python -m mmlib", *without_paths(sys.argv[1:])]),
        "seed": seed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": metadata.version("timm"),  # without importing it, which takes seconds
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} used"
        + (f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
