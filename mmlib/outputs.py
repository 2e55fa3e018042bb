"""What a command may write: never over a user's files, and never two processes into one folder.

A command states with ``claims`` which of its settings name what it reads and writes.
"""

import contextlib
import os
from collections.abc import Iterable
from functools import wraps
from operator import attrgetter
from pathlib import Path

from .config import check_settings, spelled
from .runtime import LOCK, exclusive, limit_threads

# A folder of ours has one of these; the others are of versions that had no lock.
OURS = LOCK, ".journal.jsonl", "dataset.json", "history.jsonl", "study.db", "classes.json", "ids.json"
# A file of ours holds one of these: the command that made it, or the head of a table of scores.
MARKS = b'"command": "python -m mmlib', b"table,row,column,value"


def check_output(
    out: str | Path, inputs: Iterable = (), folder: bool = True, overwrite: bool = False
) -> None:
    """Raise ValueError where writing ``out`` could replace a user's file, before anything is written.

    Args:
        out: the folder that a command writes, or with ``folder=False`` the file.
        inputs: files and folders that it reads, none of which ``out`` may be, hold or lie in; "" is none.
        overwrite: whether a file that this program made may be replaced. A folder of ours is gone on with.
    """
    target, kind = Path(os.path.realpath(out)), "folder" if folder else "file"
    for name in filter(None, spelled(list(inputs))):
        source = Path(os.path.realpath(name))  # which a loop of links does not stop
        if target == source or target in source.parents or source in target.parents:
            raise ValueError(
                f"--out {out}: is, holds or lies in the input {name}, whose files would be mixed with what "
                f"is written, or replaced by it; choose a {kind} beside it"
            )
    if folder:
        empty = target.is_dir() and not any(target.glob("[!.]*"))
        ours = empty or any((target / name).exists() for name in OURS)
    else:
        ours = target.is_file() and any(mark in target.read_bytes() for mark in MARKS)
    if target.exists() and not ours:
        raise ValueError(
            f"--out {out}: is there already, and is no {kind} that this program made; choose another {kind} "
            "to write, or move it away"
        )
    if target.is_file() and not overwrite:
        raise ValueError(f"--out {out}: is there already; give --overwrite to replace it, or another file")


@contextlib.contextmanager
def writing(out: str | Path, inputs: Iterable = (), folder: bool = True, overwrite: bool = False):
    """``check_output``, and a folder is this process's alone until the block is left. Of several processes of
    one training, the first does this.
    """
    alone = out and os.environ.get("RANK", "0") == "0"
    if alone:
        check_output(out, inputs, folder, overwrite)
    with exclusive(Path(out) / LOCK) if alone and folder else contextlib.nullcontext():
        yield


def claims(*inputs: str, out: str = "out", folder: bool = True):
    """For a command that takes a configuration: its settings are checked, threads limited, then ``writing``,
    with those that name what it writes and reads.
    """

    def decorate(command):
        @wraps(command)
        def claimed(config, *arguments, **named):
            check_settings(config)
            limit_threads()
            reads = [attrgetter(name)(config) for name in inputs]
            overwrite = getattr(config, "overwrite", False)
            with writing(attrgetter(out)(config), reads, folder, overwrite):
                return command(config, *arguments, **named)

        return claimed

    return decorate
