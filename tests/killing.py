"""Processes that are killed for real: a server process imports the library once and forks one for every
attempt.
"""

import multiprocessing
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
# There is one server for all tests of a session, so this is all that any of them needs.
SERVER.set_forkserver_preload(
    [
        "pytest",
        "hypothesis",
        "mmlib.cli",
        "mmlib.figures",
        "accelerate",
        "optuna",
        "timm",
        "torch._dynamo",
    ]
)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kill_after(seconds: float, job, *arguments) -> int:
    """Run ``job`` in a process of its own and SIGKILL it so long after it began; its exit code (0: it was
    faster).
    """
    ready, begun = SERVER.Pipe(False)
    process = SERVER.Process(target=_begin, args=(begun, job, *arguments))
    process.start()
    begun.close()
    ready.recv()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def _begin(begun, job, *arguments):
    begun.send(None)
    job(*arguments)
