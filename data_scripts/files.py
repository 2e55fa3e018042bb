"""Files from outside: a download that goes on where it stopped and is checked, and unpacking that cannot
escape its folder.
"""

import contextlib
import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from mmlib.data.images import DataError
from mmlib.runtime import atomic_path, progress_bar

BLOCK = 1 << 20  # bytes


# ---- archives ----


def unpack(archives: Iterable[Path], target: Path, progress: bool = True) -> Path:
    """Unpack zip or tar archives into ``target``; returns it. Goes on where an earlier call was interrupted.

    All names are looked at before anything is written. ``__MACOSX`` folders, which hold no data, are left
    out. Every file gets the time of its archive: a file of that time and of its size is whole already.

    Raises:
        DataError: no archive, damaged, encrypted, too large for the disk, or a member that is a link or
            device or would land outside.
    """
    for archive in map(Path, archives):
        size, time = archive.stat().st_size, archive.stat().st_mtime_ns
        marker = target / f".{archive.name}.unpacked"
        if marker.exists() and marker.read_text(encoding="utf-8").splitlines()[:1] == [f"{size} {time}"]:
            continue

        def missing(name: str, size: int, time=time) -> bool:
            path = target / name
            return not path.is_file() or (path.stat().st_size, path.stat().st_mtime_ns) != (size, time)

        with contextlib.ExitStack() as stack:
            with _reading(archive):
                zipped = zipfile.is_zipfile(archive)
                if progress and not zipped:
                    print(f"reading the names in {archive}")
                file = zipfile.ZipFile(archive) if zipped else tarfile.open(archive, tarinfo=_Member)
                members = [
                    member for member in _members(stack.enter_context(file), archive) if missing(*member[:2])
                ]
            target.mkdir(parents=True, exist_ok=True)
            _check_room(sum(size for _, size, _ in members), target, f"{archive}", "to unpack")
            for name, size, read in progress_bar(members, f"unpack {archive.name}", progress=progress):
                with atomic_path(target / name) as temporary:
                    with open(temporary, "wb") as copy:
                        copy.writelines(_blocks(read, archive))
                        written = copy.tell()
                    if written != size:
                        raise DataError(
                            f"{archive}: {name} has {written} bytes, {size} are announced; "
                            "fetch the archive again"
                        )
                    os.utime(temporary, ns=(time, time))
        marker.write_text(f"{archive.stat().st_size} {time}\n", encoding="utf-8")
    return target


@contextlib.contextmanager
def _reading(archive: Path):
    """The dozen kinds of error that a damaged archive raises become one; those that name a path of this disk
    stay what they are.
    """
    try:
        yield
    except (DataError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise DataError(
            f"{archive}: cannot be unpacked ({type(error).__name__}: {error}); expected a whole zip, tar or "
            "tar.gz file; fetch it again, or unpack it with another tool and name the folder instead"
        ) from error


def _blocks(read: Callable, archive: Path) -> Iterator[bytes]:
    with _reading(archive), read() as content:
        while block := content.read(BLOCK):
            yield block


class _Member(tarfile.TarInfo):
    """tarfile takes a header that is cut short, missing or garbled for the end of the archive; the end is a
    block of zeros.
    """

    @classmethod
    def fromtarfile(cls, file: tarfile.TarFile):
        try:
            return super().fromtarfile(file)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no member and no end at byte {file.offset}: {error}") from error


def _members(file: zipfile.ZipFile | tarfile.TarFile, archive: Path) -> list[tuple[str, int, Callable]]:
    """(name, bytes, opener) of every regular file; raises where a name or a kind is not safe."""
    if isinstance(file, zipfile.ZipFile):
        entries = [
            # The type of file stands in the upper half, in archives that were made on Unix.
            (m.filename, m.file_size, m.is_dir() or m.filename.endswith("\\"), m.external_attr >> 16, m)
            for m in file.infolist()
        ]
        secret = {m.filename for m in file.infolist() if m.flag_bits & 1}
        opener = file.open
    else:
        entries = [
            (m.name, m.size, m.isdir(), stat.S_IFREG if m.isfile() else stat.S_IFLNK, m)
            for m in file.getmembers()
        ]
        secret, opener = set(), file.extractfile
        while file.fileobj.read(BLOCK):
            pass  # the checksum of a compressed tar stands at its end
    members = {}
    for name, size, folder, mode, member in entries:
        path, problem = PurePosixPath(name.replace("\\", "/")), ""
        drive = name[1:2] == ":"  # C: of Windows
        if path.is_absolute() or ".." in path.parts or drive or any(ord(letter) < 32 for letter in name):
            problem = "would be written outside the target folder"
        elif folder or "__MACOSX" in path.parts:
            continue
        elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            problem = "is a link or a device, not a file"
        elif name in secret:
            problem = "is encrypted; unpack it with its password and name the folder instead"
        elif str(path) in members or not path.parts:
            problem = "is there twice, or has no name"
        if problem:
            raise DataError(f"{archive}: member {name!r} {problem}; nothing was unpacked")
        members[str(path)] = (str(path), size, lambda member=member: opener(member))
    if not members:
        raise DataError(f"{archive}: holds no file")
    return list(members.values())


def _check_room(need: int, folder: Path, what: str, to_do: str) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DataError(
            f"{what}: {need / 1e9:.1f} GB {to_do}, {free / 1e9:.1f} GB free at {folder}; make room"
        )


# ---- downloads ----


def fetch(url: str, path: Path, size: int = 0, sha256: str = "", progress: bool = True) -> Path:
    """Download ``url`` to ``path`` unless it is there; goes on where an earlier call stopped, checks, then
    moves into place.

    It goes on only with the version it began with (same address, and the same ETag or Last-Modified, asked
    for with If-Range): parts of two versions are never joined.

    Raises:
        DataError: no answer, a web page instead of a file, or another size or digest than expected; says how
            to do it by hand.
    """
    path, by_hand = Path(path), f"or download it by hand to {path}"
    if path.exists():
        if (size and path.stat().st_size != size) or (sha256 and digest_of(path) != sha256.lower()):
            raise DataError(
                f"{path}: not the file that {url} gives ({size or 'any number of'} bytes, "
                f"sha256 {sha256 or 'any'}); remove it"
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the part lies what it is a part of: the address, and the version's tag.
    part, state = Path(f"{path}.part"), Path(f"{path}.part.version")
    origin, _, tag = state.read_text().partition("\n") if state.exists() else ("", "", "")
    have = part.stat().st_size if part.exists() and origin == url and tag else 0
    request = urllib.request.Request(
        url, headers={"Range": f"bytes={have}-", "If-Range": tag} if have else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            headers, etag = answer.headers, answer.headers.get("ETag") or "W/"
            # A weak ETag says nothing about the bytes.
            now = headers.get("Last-Modified") or "" if etag.startswith("W/") else etag
            if answer.status != 206:
                have = 0
            elif not headers.get("Content-Range", "").startswith(f"bytes {have}-") or now not in ("", tag):
                raise urllib.error.HTTPError(url, 416, "another version", headers, None)
            total = have + int(headers["Content-Length"]) if headers.get("Content-Length") else size
            problem = ""
            if headers.get_content_type() == "text/html" and path.suffix not in (".html", ".htm"):
                problem = "answered with a web page (it may ask to sign in or to confirm)"
            elif size and total != size:
                problem = f"offers {total} bytes, expected {size}: another file than this script knows"
            elif not (total or sha256 or answer.chunked):
                problem = "does not say how long the file is, so a broken connection would go unnoticed"
            if problem:
                raise DataError(f"{url}: {problem}; open it in a browser, {by_hand} if you trust it")
            _check_room(total - have, path.parent, url, "to fetch")
            bar = progress_bar(
                total=total or None,
                initial=have,
                unit="B",
                unit_scale=True,
                desc=path.name,
                progress=progress,
            )
            with open(part, "ab" if have else "wb") as file, bar:
                if not have:  # only now, that the bytes of another version are gone
                    state.write_text(f"{url}\n{now}")
                while block := answer.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the part belongs to another version, or is longer than the file
            part.unlink()
            return fetch(url, path, size, sha256, progress)
        raise DataError(f"{url}: {error}; try again later, {by_hand}") from error
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "filename", None):
            raise
        raise DataError(f"{url}: {type(error).__name__}: {error}; run again to go on, {by_hand}") from error
    length, digest = part.stat().st_size, digest_of(part) if sha256 else ""
    if length < total:
        raise DataError(f"{url}: the connection ended after {length} of {total} bytes; run again, it goes on")
    if (total and length != total) or digest != sha256.lower():
        part.unlink()
        wanted = (
            f"{total} bytes, got {length}" if total and length != total else f"sha256 {sha256}, got {digest}"
        )
        raise DataError(f"{url}: expected {wanted}; what was fetched is removed; run again, {by_hand}")
    part.replace(path)
    state.unlink(missing_ok=True)
    return path


def digest_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
