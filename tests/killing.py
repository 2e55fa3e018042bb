"""Processes that are killed for real: a server process imports the library once and forks one for every
attempt.
"""

import gc
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


class _Fork(SERVER.Process):
    """What the server has loaded is never garbage. To look through all of it at every collection would take
    most of the time of a short attempt.
    """

    def run(self):
        gc.freeze()
        super().run()


SERVER.Process = _Fork


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def in_a_process(job, *arguments):
    """What ``job`` returns in a process of its own, or the text of the ValueError or OSError it raises."""
    receiver, sender = SERVER.Pipe(False)
    process = SERVER.Process(target=_answer, args=(sender, job, *arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _answer(sender, job, *arguments):
    try:
        sender.send(job(*arguments))
    except (ValueError, OSError) as error:
        sender.send(str(error))


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
