"""Two processes of one training on this machine, without a launcher: forks of a server that has torch loaded.

They get the environment that torchrun gives, find each other through gloo, and end with their process group.
"""

import atexit
import os
import pickle
import socket
import sys
import time
import traceback
from multiprocessing.connection import wait

from killing import SERVER

SECONDS = 120  # a pair that takes longer is stopped


class Pair:
    """``job(rank, *arguments)`` in two processes; ``job`` is a function of a test module.

    nodes: 1 = both on one machine, 2 = as if each was the only process of its machine.
    """

    def __init__(self, job, *arguments, nodes: int = 1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.receivers, self.processes = [], []
        for rank in range(2):
            receiver, sender = SERVER.Pipe(False)
            process = SERVER.Process(target=_member, args=(sender, rank, port, nodes, job, arguments))
            process.start()
            sender.close()
            self.receivers.append(receiver)
            self.processes.append(process)

    def join(self) -> list[int]:
        """The two exit codes. As under torchrun, the other process ends when one has failed."""
        deadline = time.monotonic() + SECONDS
        while any(process.is_alive() for process in self.processes):
            left = max(0.0, deadline - time.monotonic())
            wait([process.sentinel for process in self.processes if process.is_alive()], left)
            if any(process.exitcode not in (None, 0) for process in self.processes) or not left:
                for process in self.processes:
                    process.terminate()
                    process.join(10)
                    process.kill()
        return [process.exitcode for process in self.processes]

    def results(self) -> list:
        """What ``job`` returned in each process; fails where one of them raised."""
        answers = []
        for receiver in self.receivers:
            try:
                answers.append(pickle.loads(receiver.recv_bytes()) if receiver.poll(SECONDS) else "no answer")
            except EOFError:
                answers.append("died without an answer")
        self.join()
        errors = [answer for answer in answers if isinstance(answer, str)]
        assert not errors, "\n".join(errors)
        return [answer[0] for answer in answers]


def together(job, *arguments, nodes: int = 1) -> list:
    """[result of rank 0, of rank 1] of ``job(rank, *arguments)``, run in two processes at once."""
    return Pair(job, *arguments, nodes=nodes).results()


def _member(answer, rank: int, port: int, nodes: int, job, arguments) -> None:
    local = 0 if nodes == 2 else rank
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(2 // nodes),
        "GROUP_RANK": str(rank - local),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    try:
        result = (job(rank, *arguments),)
    except BaseException:
        answer.send_bytes(pickle.dumps(traceback.format_exc()))
        os._exit(1)
    # As at the end of an interpreter: the library leaves the process group.
    atexit._run_exitfuncs()
    # Not ``send``: torch would hand over tensors by memory that ends with this process.
    answer.send_bytes(pickle.dumps(result))
    sys.stdout.flush()
    # A thread of gloo that still holds the last exchange's tensors would abort a process that ends normally.
    os._exit(0)
