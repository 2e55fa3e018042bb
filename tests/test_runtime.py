"""What the ground floor promises: one holder of a lock, digests of files, bars that no log sees."""

import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from mmlib import outputs, runtime
from mmlib.data.images import write_image
from mmlib.outputs import check_output
from mmlib.runtime import exclusive, progress_bar, save_tensors, write_json

HOLD = """
import sys, time
from mmlib.runtime import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(path, seconds: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("error", [FileNotFoundError, FileExistsError])
def test_a_temporary_folder_that_is_taken_for_a_stray_is_made_again(tmp_path, monkeypatch, error):
    acquire, tries = runtime.FileLock.acquire, []

    def taken_once(lock, *arguments, **options):
        tries.append(lock)
        if len(tries) == 1:  # another process removes the folder before its lock is held
            raise error(17, "removed meanwhile")
        return acquire(lock, *arguments, **options)

    monkeypatch.setattr(runtime.FileLock, "acquire", taken_once)
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "a.json").exists() and len(tries) == 2


def test_a_second_process_waits_says_so_and_goes_on_when_the_first_is_killed(tmp_path):
    lock = tmp_path / "new" / "world.lock"
    first = holder(lock, 60)
    assert first.stdout.readline() == "held\n"
    second, third = holder(lock, 0), holder(lock, 0)
    said = second.stderr.readline()  # said before it waits
    assert f"process {second.pid} waits for process {first.pid}, which has {lock.parent} since 20" in said
    assert second.poll() is None
    assert "waits" in third.stderr.readline()
    third.send_signal(signal.SIGINT)
    assert third.wait(timeout=30) == -signal.SIGINT, "Ctrl-C ends the waiting"
    time.sleep(0.2)
    assert second.poll() is None
    first.kill()
    assert second.communicate(timeout=30)[0] == "held\n" and second.returncode == 0
    with exclusive(lock):
        pass
    first.communicate()


def test_a_folder_into_which_nothing_was_written_is_gone_also_for_who_waits(tmp_path):
    lock = tmp_path / "new" / "lock"
    with exclusive(lock):
        second = holder(lock, 0)
        assert "waits" in second.stderr.readline()
    assert second.communicate(timeout=30) == ("held\n", "") and second.returncode == 0
    assert not lock.parent.exists()


def test_a_lock_is_free_after_an_error(tmp_path, capsys):
    (tmp_path / "lock").write_text("of an earlier process")
    (tmp_path / "more").touch()
    for _ in range(2):
        with pytest.raises(KeyError), exclusive(tmp_path / "lock"):
            raise KeyError
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}" and capsys.readouterr().err == ""
    (tmp_path / "more").unlink()
    with exclusive(tmp_path / "lock"):
        pass
    assert not tmp_path.exists(), "nothing was written beside it"


@pytest.mark.parametrize("spoil", [lambda path: path.mkdir(), lambda path: path.parent.chmod(0o500)])
def test_a_lock_that_cannot_be_had(tmp_path, spoil):
    (tmp_path / "folder").mkdir()
    lock = tmp_path / "folder" / "lock"
    spoil(lock)
    if os.access(lock.parent, os.W_OK) and not lock.exists():
        pytest.skip("this user may write everywhere")
    with pytest.raises(OSError, match="lock: cannot be locked .*; choose a folder that can be written"):
        with exclusive(lock):
            pass
    lock.parent.chmod(0o700)


def test_what_is_not_ours_is_not_overwritten(tmp_path):
    (tmp_path / "runs").mkdir()
    write_json(tmp_path / "runs/scores.json", {"provenance": runtime.provenance()})
    (tmp_path / "runs/theirs.json").write_text('{"provenance": "of another program"}')
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for mark in outputs.OURS:
        (tmp_path / mark).mkdir()
        (tmp_path / mark / mark).touch()
        check_output(tmp_path / mark)
    for name, folder in (("runs/scores.json", False), ("new", True), ("new", False), ("empty", True)):
        check_output(tmp_path / name, folder=folder, overwrite=True)
    with pytest.raises(ValueError, match="scores.json: is there already; give --overwrite to replace it"):
        check_output(tmp_path / "runs/scores.json", folder=False)
    for name, folder in (("runs", True), ("runs", False), ("runs/scores.json", True), ("pipe", False)):
        with pytest.raises(ValueError, match=f"{name}: is there already, and is no (file|folder) that this"):
            check_output(tmp_path / name, folder=folder, overwrite=True)
    with pytest.raises(ValueError, match="theirs.json: is there already"):
        check_output(tmp_path / "runs/theirs.json", folder=False, overwrite=True)
    (tmp_path / "loop").symlink_to("loop")
    check_output(tmp_path / "new", [tmp_path / "loop"])
    with pytest.raises(OSError, match="loop.*cannot be locked"), outputs.writing(tmp_path / "loop"):
        pass


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
        save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)}, {})
        write_image(tmp_path / "a.png", np.zeros((2, 2, 1), np.uint8))
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o640"}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_is_silent_where_stderr_is_no_terminal(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    for kind, progress, shown in (
        (io.StringIO, True, False),
        (Terminal, False, False),
        (Terminal, True, True),
    ):
        stream = kind()
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(progress_bar(range(3), "count", progress=progress)) == [0, 1, 2]
        assert ("count" in stream.getvalue()) is shown


def test_no_other_bar_is_made():
    """Every bar of the library and of the scripts goes through the one helper."""
    root = os.path.dirname(os.path.dirname(runtime.__file__))
    found = subprocess.run(
        ["grep", "-rlE", "tqdm\\(", "--include=*.py", "mmlib", "data_scripts"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == ["mmlib/runtime.py"]
