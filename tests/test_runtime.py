"""What the ground floor promises: one holder of a lock, digests of files, bars that no log sees."""

import io
import os
import subprocess
import sys
import time

import pytest

from mmlib import runtime
from mmlib.runtime import exclusive, progress_bar

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


def test_a_second_process_waits_says_so_and_goes_on_when_the_first_is_killed(tmp_path):
    lock = tmp_path / "new" / "world.lock"
    first = holder(lock, 60)
    assert first.stdout.readline() == "held\n"
    second = holder(lock, 0)
    said = second.stderr.readline()  # said before it waits
    assert str(lock) in said and f"process {second.pid} waits" in said and second.poll() is None
    time.sleep(0.2)
    assert second.poll() is None
    first.kill()
    assert second.communicate(timeout=30)[0] == "held\n" and second.returncode == 0
    with exclusive(lock):
        pass
    first.communicate()


def test_a_lock_is_free_after_an_error_and_a_file_with_content_will_do(tmp_path, capsys):
    (tmp_path / "lock").write_text("of something else")
    for _ in range(2):
        with pytest.raises(KeyError), exclusive(tmp_path / "lock"):
            raise KeyError
    assert (tmp_path / "lock").read_text() == "of something else" and capsys.readouterr().err == ""


@pytest.mark.parametrize("spoil", [lambda path: path.mkdir(), lambda path: path.parent.chmod(0o500)])
def test_a_lock_that_cannot_be_had(tmp_path, spoil):
    (tmp_path / "folder").mkdir()
    lock = tmp_path / "folder" / "lock"
    spoil(lock)
    if os.access(lock.parent, os.W_OK) and not lock.exists():
        pytest.skip("this user may write everywhere")
    with pytest.raises(OSError, match="lock: cannot be locked .*; delete it, or set MMLIB_DATA"):
        with exclusive(lock):
            pass
    lock.parent.chmod(0o700)


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
        ["grep", "-rlE", "tqdm", "--include=*.py", "mmlib", "data_scripts"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == ["mmlib/runtime.py"]
