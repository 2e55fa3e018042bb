"""What the ground floor promises: one holder of a lock, digests of files, bars that no log sees."""

import io
import os
import shutil
import subprocess
import sys
import time

import pytest

from mmlib import runtime
from mmlib.runtime import digest_files, exclusive, progress_bar

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


def test_a_digest_is_of_names_and_contents_and_moves_with_its_folder(tmp_path):
    for name, content in (("a/1.png", b"one"), ("b/1.png", b"two"), ("index.csv", b"id")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    files = lambda root: [path for path in (tmp_path / root).rglob("*") if path.is_file()]
    digest = digest_files(files("data"))
    assert len(digest) == 64 and digest == digest_files(reversed(files("data")))
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    for path in files("moved"):
        os.utime(path, (1, 1))
    assert digest_files(files("moved")) == digest
    assert digest_files(files("moved")[:-1]) != digest and digest_files([]) != digest
    (tmp_path / "moved/a/1.png").write_bytes(b"two")
    (tmp_path / "moved/b/1.png").write_bytes(b"one")
    assert digest_files(files("moved")) != digest
    with pytest.raises(FileNotFoundError, match="gone.png"):
        digest_files([tmp_path / "data" / "gone.png"])


def test_large_files_are_known_by_size_and_time(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    os.utime(tmp_path / "a", ns=(5, 5))
    digest = digest_files([tmp_path / "a"], limit=4)
    (tmp_path / "a").write_bytes(b"54321")
    os.utime(tmp_path / "a", ns=(5, 5))
    assert digest_files([tmp_path / "a"], limit=4) == digest
    os.utime(tmp_path / "a", ns=(6, 6))
    assert digest_files([tmp_path / "a"], limit=4) != digest
    assert digest_files([tmp_path / "a"], limit=5) != digest_files([tmp_path / "a"], limit=4)


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
