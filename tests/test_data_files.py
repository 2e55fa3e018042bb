"""Files from outside: archives and downloads that are whole or named, readers that change no value."""

import hashlib
import io
import os
import random
import shutil
import struct
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from killing import contents, kill_after

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))
import files  # noqa: E402

from mmlib.data.prepared import DataError  # noqa: E402

# ---- archives ----

TREE = {
    f"set/{kind}/{i:02d}.bin": random.Random(i).randbytes(97 * i * i)
    for i, kind in enumerate(["a", "b"] * 12)
}


def pack(path: Path, tree=TREE) -> Path:
    """``tree`` as zip, tar or tar.gz, by the suffix."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("set/", "")  # a folder of its own
            for name, content in tree.items():
                file.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
            for name, content in tree.items():
                add(file, name, content)
    return path


def add(file: tarfile.TarFile, name: str, content: bytes = b"", **attributes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    file.addfile(member, io.BytesIO(content))


def seen(folder: Path) -> dict[str, bytes]:
    return {
        name: content
        for name, content in contents(folder).items()
        if "." not in (part[0] for part in Path(name).parts)
    }


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_archives_come_out_as_they_went_in(tmp_path, suffix):
    archive, target = (
        pack(tmp_path / f"set{suffix}", TREE | {"__MACOSX/set/a/00.bin": b"no data"}),
        tmp_path / "out",
    )
    assert files.unpack([archive], target, False) == target and seen(target) == TREE
    (target / "set/a/10.bin").write_bytes(b"edited by its owner")
    files.unpack([archive], target, False)  # nothing to do
    assert (target / "set/a/10.bin").read_bytes() == b"edited by its owner"
    other = {
        name: content[::-1] for name, content in TREE.items()
    }  # another archive of that name, its files of equal size
    os.utime(pack(archive, other), ns=(1, 1))
    files.unpack([archive], target, False)
    assert seen(target) == other


def evil(path: Path, name: str) -> Path:
    """A harmless file, then one of this name."""
    return pack(path, {"fine.txt": b"fine", name: b"evil"})


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/evil", "..\\evil", "\\evil", "C:\\evil", "C:evil", "a/..", "new\nline"],
)
def test_no_member_leaves_the_folder(tmp_path, suffix, name):
    with pytest.raises(DataError, match="outside the target folder; nothing was unpacked") as error:
        files.unpack([evil(tmp_path / f"evil{suffix}", name)], tmp_path / "out" / "deep", False)
    assert str(tmp_path / "evil") in str(error.value)
    assert set(contents(tmp_path)) == {f"evil{suffix}"}  # not even the harmless one


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
    ids="symlink link char block fifo".split(),
)
def test_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        add(file, "fine.txt", b"fine")
        add(file, "odd", type=kind, linkname="/etc")
    with pytest.raises(DataError, match="'odd' is a link or a device"):
        files.unpack([tmp_path / "a.tar"], tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        link = zipfile.ZipInfo("odd")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc")
    with pytest.raises(DataError, match="link or a device"):
        files.unpack([tmp_path / "a.zip"], tmp_path / "out", False)


def test_encrypted_twice_named_and_empty_archives(tmp_path):
    archive = pack(tmp_path / "a.zip", {"secret.bin": b"1234"})
    content = bytearray(archive.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(b"secret.bin", content.index(magic)) - {6: 30, 8: 46}[offset] + offset] |= (
            1  # the flag "encrypted"
        )
    archive.write_bytes(content)
    with pytest.raises(DataError, match="'secret.bin' is encrypted; unpack it with its password"):
        files.unpack([archive], tmp_path / "out", False)
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        warnings.simplefilter("ignore")
        file.writestr("x/y", "1")
        file.writestr("x//y", "2")
    with pytest.raises(DataError, match="'x//y' is there twice"):
        files.unpack([tmp_path / "b.zip"], tmp_path / "out", False)
    with pytest.raises(DataError, match="holds no file"):
        files.unpack([pack(tmp_path / "c.zip", {})], tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_an_archive_that_grows_too_large_is_refused_before_anything_is_written(tmp_path, suffix):
    bomb = pack(tmp_path / f"bomb{suffix}", {"a.bin": bytes(10**7), "b.bin": bytes(10**7)})
    assert bomb.stat().st_size < 10**5
    with pytest.raises(DataError, match="bomb.*: member 'b.bin' makes it larger than --unpacked-gb 0.015"):
        files.unpack([bomb], tmp_path / "out", False, 0.015)
    assert not (tmp_path / "out").exists()
    files.unpack([bomb], tmp_path / "out", False, 0.02)
    assert (tmp_path / "out" / "b.bin").stat().st_size == 10**7


def test_what_is_no_archive_is_named(tmp_path):
    for name, content in (
        ("a.zip", b""),
        ("b.tar", b"hello" * 1000),
        ("c.tar.gz", b"\x1f\x8b" + bytes(99)),
        ("d.zip", b"PK\x03\x04" + bytes(99)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: (cannot be read|holds no file)"):
            files.unpack([tmp_path / name], tmp_path / "out", False)


def test_a_tar_that_ends_early_is_damaged(tmp_path):
    """Python's tarfile takes an archive cut between two members, or inside a header, for a whole one."""
    whole = pack(tmp_path / "whole.tar").read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # behind the last block that is not all zero
    with tarfile.open(tmp_path / "whole.tar") as file:
        starts = [member.offset for member in file.getmembers()][1:]
    silent = 0
    for cut in sorted({*starts, *(start + 200 for start in starts), *range(1, end, 4999), end}):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(DataError, match="cut.tar: cannot be read"):
            files.unpack([tmp_path / "cut.tar"], tmp_path / "out", False)
        try:
            with tarfile.open(tmp_path / "cut.tar") as file:
                silent += len(file.getmembers()) < len(TREE)
        except tarfile.TarError:
            pass
    assert silent >= 2 * len(starts)  # the naive reader noticed nothing
    (tmp_path / "cut.tar").write_bytes(
        whole[: end + 512]
    )  # the padding behind the first block of zeros says nothing
    assert seen(files.unpack([tmp_path / "cut.tar"], tmp_path / "out", False)) == TREE


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_damage_anywhere_is_noticed_or_harmless(tmp_path, suffix):
    tree = {"a/1.txt": b"one " * 40, "a/2.bin": bytes(range(256))}
    whole, rng, errors = pack(tmp_path / f"a{suffix}", tree).read_bytes(), random.Random(0), 0
    for i in range(300):
        bad = bytearray(whole)
        if i % 3:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        else:
            del bad[rng.randrange(len(bad)) :]
        (tmp_path / f"bad{suffix}").write_bytes(bad)
        target = tmp_path / f"out{i}"
        try:
            files.unpack([tmp_path / f"bad{suffix}"], target, False)
        except DataError as error:
            assert f"bad{suffix}" in str(error)
            errors += 1
        else:
            assert seen(target) == tree, i
        assert not [name for name in (contents(target) if target.exists() else {}) if ".tmp" in name]
    assert errors > 200


def test_a_header_that_lies_about_the_size(tmp_path):
    archive = pack(tmp_path / "a.zip", {"x.bin": bytes(1000)})
    content = archive.read_bytes()
    entry = content.rindex(b"PK\x01\x02")
    for claimed in (10, 999, 1001, 4 * 10**9):  # uncompressed bytes, as the directory tells
        archive.write_bytes(content[: entry + 24] + struct.pack("<I", claimed) + content[entry + 28 :])
        with pytest.raises(DataError, match="a.zip"):
            files.unpack([archive], tmp_path / "out", False)
        assert not seen(tmp_path / "out")


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.zip")
    room = shutil._ntuple_diskusage(0, 0, sum(map(len, TREE.values())) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    with pytest.raises(DataError, match=r"a.zip: 0.0 GB to unpack, 0.0 GB free at .*; make room"):
        files.unpack([archive], tmp_path / "out", False)
    assert not seen(tmp_path / "out")


def _unpack_without_room(archive, target, said):
    """The process may not write files larger than 10,000 bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        files.unpack([archive], target, False)
    except OSError as error:
        said.write_text(str(error))


def test_a_disk_that_fills_up_is_not_called_a_damaged_archive(tmp_path):
    archive, target, said = pack(tmp_path / "a.zip"), tmp_path / "out", tmp_path / "said"
    assert kill_after(60, _unpack_without_room, archive, target, said) == 0
    assert "nothing was written" in said.read_text() and "cannot be read" not in said.read_text()
    there = seen(target)
    assert (
        there
        and all(TREE[name] == content for name, content in there.items())
        and not list(target.rglob("*.tmp*"))
    )
    assert seen(files.unpack([archive], target, False)) == TREE  # with room, the same call goes on


def _unpack_slowly(archive, target):
    """At least 0.2 s on any machine."""
    blocks, files.BLOCK = files._blocks, 2048
    files._blocks = lambda *arguments: (time.sleep(0.001) or block for block in blocks(*arguments))
    files.unpack([archive], target, False)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_unpacking_killed_at_random_moments(tmp_path, suffix):
    archive, target = pack(tmp_path / f"set{suffix}"), tmp_path / "out"
    rng, kills, went_on = random.Random(suffix), 0, 0
    for _ in range(10):
        before = set(seen(target)) if target.exists() else set()
        kills += kill_after(rng.uniform(0, 0.1), _unpack_slowly, archive, target) != 0
        after = seen(target) if target.exists() else {}
        assert before <= set(after) and all(
            TREE[name] == content for name, content in after.items()
        )  # what is there is whole
        went_on += 0 < len(before) < len(TREE)
    assert kills >= 3 and went_on >= 1, "the moments were badly chosen"
    assert seen(files.unpack([archive], target, False)) == TREE
    assert set(contents(target)) - set(TREE) == {
        f".set{suffix}.unpacked"
    }  # no journal and no temporary file is left


def test_a_file_of_another_origin_is_not_believed(tmp_path):
    """It has the size of a member, but not the time of the archive; nor has one of another archive."""
    tree = {"a/1": b"first", "a/12": b"second"}
    archive, target = pack(tmp_path / "a.zip", tree), tmp_path / "out"
    (target / "a").mkdir(parents=True)
    for time_of_file in (None, archive.stat().st_mtime_ns + 10**9, 1):
        (target / "a" / "1").write_bytes(b"WRONG")
        if time_of_file:
            os.utime(target / "a" / "1", ns=(time_of_file, time_of_file))
        (target / ".a.zip.unpacked").unlink(missing_ok=True)
        assert seen(files.unpack([archive], target, False)) == tree


# ---- downloads ----


@dataclass
class Plan:
    """What the server does; ``asked``: the headers of every request."""

    content: bytes = random.Random(1).randbytes(300_000)
    ranges: bool = True
    length: bool = True
    chunked: bool = False
    kind: str = "application/zip"
    status: int = 200
    cuts: list = field(default_factory=list)  # bytes after which each request's connection breaks
    pause: float = 0.0
    asked: list = field(default_factory=list)

    @property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        plan = self.server.plan
        plan.asked.append(dict(self.headers))
        begin, wanted = 0, self.headers.get("Range")
        if plan.status != 200:
            return self.send_error(plan.status)
        if wanted and plan.ranges:
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(plan.content):
                return self.send_error(416)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Type", plan.kind)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(plan.content) - 1}/{len(plan.content)}")
        if plan.length:
            self.send_header("Content-Length", str(len(plan.content) - begin))
        if plan.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        cut = plan.cuts.pop(0) if plan.cuts else len(plan.content)
        for start in range(begin, min(len(plan.content), begin + cut), 10_000):
            block = plan.content[start : min(start + 10_000, begin + cut)]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if plan.chunked else block)
            time.sleep(plan.pause)
        if plan.chunked and begin + cut >= len(plan.content):
            self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.plan, server.url = Plan(), f"http://127.0.0.1:{server.server_port}/set.zip"
        server.handle_error = lambda *arguments: None  # whoever asked was killed, or had heard enough
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_download_is_the_file(server, tmp_path):
    plan, path = server.plan, tmp_path / "new" / "set.zip"
    assert files.fetch(server.url, path, len(plan.content), plan.sha256.upper(), False) == path
    assert path.read_bytes() == plan.content and left(path.parent) == {"set.zip"}
    files.fetch(server.url, path, len(plan.content), plan.sha256, False)
    assert len(plan.asked) == 1  # it is there: nobody is asked
    for wrong in ({"size": 7}, {"sha256": "0" * 64}):
        with pytest.raises(DataError, match="set.zip: not the file that"):
            files.fetch(server.url, path, progress=False, **wrong)
    assert path.read_bytes() == plan.content


def test_a_download_that_cannot_be_checked_says_so(server, tmp_path, capsys):
    files.fetch(server.url, tmp_path / "a.zip", 0, server.plan.sha256, False)
    assert "sha256" not in capsys.readouterr().out
    files.fetch(server.url, tmp_path / "b.zip", progress=False)
    assert f"{server.url}: no sha256 of it is known" in capsys.readouterr().out


def test_a_broken_download_goes_on(server, tmp_path):
    plan = server.plan = Plan(cuts=[70_001, 1, 0, 100_000])
    for got in (70_001, 70_002, 70_002, 170_002):
        with pytest.raises(
            DataError, match=rf"the connection ended after {got} of 300000 bytes; run again, or download it"
        ):
            files.fetch(server.url, tmp_path / "set.zip", sha256=plan.sha256, progress=False)
        assert not (tmp_path / "set.zip").exists()
    files.fetch(server.url, tmp_path / "set.zip", sha256=plan.sha256, progress=False)
    assert (tmp_path / "set.zip").read_bytes() == plan.content and left(tmp_path) == {"set.zip"}
    assert [headers.get("Range") for headers in plan.asked] == [
        None,
        "bytes=70001-",
        "bytes=70002-",
        "bytes=70002-",
        "bytes=170002-",
    ]


def test_a_server_without_ranges_begins_anew(server, tmp_path):
    plan = server.plan = Plan(ranges=False, cuts=[70_000])
    for _ in range(2):
        try:
            files.fetch(server.url, tmp_path / "set.zip", progress=False)
        except DataError:
            pass
    assert (tmp_path / "set.zip").read_bytes() == plan.content and len(plan.asked) == 2


NEW = random.Random(2).randbytes(300_000)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "server_is", [{}, {"ranges": False}, {"content": NEW[:60_000]}, {"content": NEW[:70_000]}]
)
def test_two_versions_are_never_glued_together(server, tmp_path, server_is, known):
    """With a digest the mixture is noticed and removed; without one every download begins anew."""
    old = server.plan = Plan(cuts=[70_000])
    with pytest.raises(DataError, match="the connection ended"):
        files.fetch(server.url, tmp_path / "set.zip", sha256=old.sha256 * known, progress=False)
    assert (tmp_path / "set.zip.part").read_bytes() == old.content[:70_000]
    new = server.plan = Plan(**({"content": NEW} | server_is))
    for _ in range(2):
        try:
            files.fetch(server.url, tmp_path / "set.zip", sha256=new.sha256 * known, progress=False)
        except DataError as error:
            assert known and "what was fetched is removed" in str(error) and not left(tmp_path)
    assert (tmp_path / "set.zip").read_bytes() == new.content and left(tmp_path) == {"set.zip"}
    assert known or not any("Range" in headers for headers in new.asked)


def test_a_file_that_changed_on_the_server_is_noticed(server, tmp_path):
    """Whatever the size: the digest is the one that this script knows."""
    server.plan = Plan(content=NEW)
    with pytest.raises(DataError, match="expected 300000 of sha256 .*; what was fetched is removed"):
        files.fetch(server.url, tmp_path / "set.zip", 300_000, Plan().sha256, False)
    assert not left(tmp_path)


@pytest.mark.parametrize(
    "server_is, expected, message",
    [
        ({}, {"size": 299_999}, "answers with a file of 300000 bytes; expected a file of 299999 bytes"),
        (
            {},
            {"sha256": "0" * 64},
            "300000 bytes, expected 300000 of sha256 0000.*; what was fetched is removed",
        ),
        ({"length": False}, {"size": 299_999}, "300000 bytes, expected 299999 of"),
        ({"length": False}, {"size": 300_001}, "the connection ended after 300000 of 300001 bytes"),
        ({"length": False}, {}, "a file of unknown bytes; expected a file of known bytes"),
        ({"length": False, "chunked": True, "cuts": [50_000]}, {}, "IncompleteRead|the connection ended"),
        (
            {"length": False, "cuts": [50_000]},
            {"sha256": Plan().sha256},
            "50000 bytes, expected any number of sha256",
        ),
        ({"kind": "text/html; charset=utf-8"}, {}, "answers with a web page"),
        (
            {"status": 404},
            {},
            "HTTP Error 404: Not Found; run again, or download it by hand to .*set.zip",
        ),
        ({"status": 416}, {}, "HTTP Error 416"),
        ({"status": 503}, {}, "HTTP Error 503"),
    ],
)
def test_no_bad_download_looks_whole(server, tmp_path, server_is, expected, message):
    server.plan = Plan(**server_is)
    Handler.protocol_version = "HTTP/1.1" if server.plan.chunked else "HTTP/1.0"
    with pytest.raises(DataError, match=message) as error:
        files.fetch(server.url, tmp_path / "set.zip", progress=False, **expected)
    assert server.url in str(error.value) and not (tmp_path / "set.zip").exists()


def test_chunks_with_their_end_are_a_whole_file(server, tmp_path, monkeypatch):
    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1")
    server.plan = Plan(length=False, chunked=True)
    assert files.fetch(server.url, tmp_path / "set.zip", progress=False).read_bytes() == server.plan.content


def test_no_server_and_no_room(server, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="127.0.0.1:9/x: URLError.*run again, or download it by hand to .*x"):
        files.fetch("http://127.0.0.1:9/x", tmp_path / "x", progress=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 299_999))
    with pytest.raises(DataError, match="GB to fetch, .* make room"):
        files.fetch(server.url, tmp_path / "set.zip", progress=False)
    assert not left(tmp_path)


def _fetch(url, path):
    files.BLOCK = 4096
    files.fetch(url, path, sha256=Plan().sha256, progress=False)


def test_a_download_killed_at_random_moments(server, tmp_path):
    plan, rng, kills, sizes = server.plan, random.Random(3), 0, []
    plan.pause = 0.004  # 30 blocks: 0.12 s
    for attempt in range(16):  # longer and longer, so that some come to something on a busy machine too
        moment = rng.uniform(0, 0.06 * 1.2**attempt)
        kills += kill_after(moment, _fetch, server.url, tmp_path / "set.zip") != 0
        if (tmp_path / "set.zip").exists():
            break
        sizes.append(
            (tmp_path / "set.zip.part").stat().st_size if (tmp_path / "set.zip.part").exists() else 0
        )
    assert kills >= 3 and sizes == sorted(sizes) and len(set(sizes)) > 2
    files.fetch(server.url, tmp_path / "set.zip", sha256=plan.sha256, progress=False)
    assert (tmp_path / "set.zip").read_bytes() == plan.content and left(tmp_path) == {"set.zip"}
