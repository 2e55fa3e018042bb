"""Files from outside: download that resumes and checks, unpacking that cannot escape its folder, readers that
change no value.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from mmlib.data.prepared import DataError
from mmlib.runtime import atomic_path, progress_bar

BLOCK = 1 << 20  # bytes


def unpack(archives: Iterable[Path], target: Path, progress: bool = True) -> Path:
    """Unpack zip or tar archives into ``target``; returns it. Goes on where an earlier call was interrupted.

    All names are looked at before anything is written. ``__MACOSX`` folders, which hold no data, are left
    out.

    Raises:
        DataError: no archive, damaged, encrypted, too large for the disk, or a member that is a link or
            device or would land outside.
    """
    for archive in map(Path, archives):
        done, journal = (target / f".{archive.name}.{state}" for state in ("unpacked", "unpacking"))
        stamp = f"{archive.stat().st_size} {archive.stat().st_mtime_ns}"
        if done.exists() and done.read_text(encoding="utf-8").partition("\n")[0] == stamp:
            continue
        # The journal names the members that are whole. A line counts only with its end: a kill may cut the
        # last one short.
        lines = journal.read_text(encoding="utf-8").split("\n")[:-1] if journal.exists() else []
        finished = (
            {name for name in lines[1:] if (target / name).is_file()} if lines[:1] == [stamp] else set()
        )
        with contextlib.ExitStack() as stack:
            with _reading(archive):
                is_zip = zipfile.is_zipfile(archive)
                if progress and not is_zip:
                    print(f"reading the names in {archive}")
                file = stack.enter_context(
                    zipfile.ZipFile(archive) if is_zip else tarfile.open(archive, tarinfo=_Member)
                )
                members = [member for member in _members(file, archive) if member[0] not in finished]
            target.mkdir(parents=True, exist_ok=True)
            free, need = shutil.disk_usage(target).free, sum(size for _, size, _ in members)
            if need > free:
                raise DataError(
                    f"{archive}: {need / 1e9:.1f} GB to unpack, {free / 1e9:.1f} GB free at {target}; make room"
                )
            with atomic_path(journal) as temporary:
                temporary.write_text(
                    "".join(f"{line}\n" for line in (stamp, *sorted(finished))), encoding="utf-8"
                )
            written = stack.enter_context(open(journal, "a", encoding="utf-8"))
            for name, size, read in progress_bar(members, f"unpack {archive.name}", progress=progress):
                with atomic_path(target / name) as temporary, open(temporary, "wb") as copy:
                    for block in _blocks(read, archive):
                        copy.write(block)
                    if copy.tell() != size:
                        raise DataError(
                            f"{archive}: {name} has {copy.tell()} bytes, {size} are announced; fetch the archive again"
                        )
                written.write(f"{name}\n")
                written.flush()
        journal.replace(done)
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
        reason = f"{type(error).__name__}: {error}"
        advice = "fetch it again, or unpack it with another tool and name the folder instead"
        raise DataError(
            f"{archive}: cannot be unpacked ({reason}); expected a whole zip, tar or tar.gz file; {advice}"
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
            raise tarfile.ReadError(
                f"no member and no end of the archive at byte {file.offset}: {error}"
            ) from error


def _members(file: zipfile.ZipFile | tarfile.TarFile, archive: Path) -> list[tuple[str, int, Callable]]:
    """(name, bytes, opener) of every regular file; raises where a name or a kind is not safe."""
    found = {}
    for member in file.infolist() if isinstance(file, zipfile.ZipFile) else file.getmembers():
        tar = isinstance(member, tarfile.TarInfo)
        name = member.name if tar else member.filename
        path = PurePosixPath(name.replace("\\", "/"))
        drive = name[1:2] == ":"  # C: of Windows
        if path.is_absolute() or ".." in path.parts or drive or any(ord(letter) < 32 for letter in name):
            raise DataError(
                f"{archive}: member {name!r} would be written outside the target folder; nothing was unpacked"
            )
        if (member.isdir() if tar else name.endswith(("/", "\\"))) or "__MACOSX" in path.parts:
            continue
        if not member.isfile() if tar else (member.external_attr >> 16) & 0o170000 not in (0, 0o100000):
            raise DataError(
                f"{archive}: member {name!r} is a link or a device, not a file; nothing was unpacked"
            )
        if not tar and member.flag_bits & 1:
            raise DataError(
                f"{archive}: member {name!r} is encrypted; unpack it with its password and name the folder instead"
            )
        if str(path) in found or not path.parts:
            raise DataError(
                f"{archive}: member {name!r} is there twice, or has no name; nothing was unpacked"
            )
        opener = (lambda m=member: file.extractfile(m)) if tar else (lambda m=member: file.open(m))
        found[str(path)] = (str(path), member.size if tar else member.file_size, opener)
    while isinstance(file, tarfile.TarFile) and file.fileobj.read(BLOCK):
        pass  # the checksum of a compressed tar stands at its end
    if not found:
        raise DataError(f"{archive}: holds no file")
    return list(found.values())


def fetch(url: str, path: Path, size: int = 0, sha256: str = "", progress: bool = True) -> Path:
    """Download ``url`` to ``path`` unless it is there; goes on where an earlier call stopped, checks, then
    moves into place.

    It goes on only with the version it began with (same address, and ETag or Last-Modified, asked for with
    If-Range, or a known sha256): parts of two versions are never joined.

    Raises:
        DataError: no answer, a web page instead of a file, or another size or digest than expected; says how
            to do it by hand.
    """
    path, part, state, sha256 = Path(path), Path(f"{path}.part"), Path(f"{path}.part.version"), sha256.lower()
    if path.exists():
        if (size and path.stat().st_size != size) or (sha256 and digest_of(path) != sha256):
            raise DataError(
                f"{path}: not the file that {url} gives ({size or 'any number of'} bytes, sha256 {sha256 or 'any'}); remove it"
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    version, total, origin = ((state.read_text().split("\n") if state.exists() else []) + [""] * 3)[:3]
    have = part.stat().st_size if part.exists() and origin == url and (version or sha256) else 0
    by_hand = f"or download it by hand to {path}"
    if not have or str(have) != total:
        headers = {"Range": f"bytes={have}-"} | ({"If-Range": version} if version else {}) if have else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
                total = _receive(answer, url, path, have, version, size, sha256, progress)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not have:  # 416: the file is no longer than the part
                raise DataError(f"{url}: {error}; try again later, {by_hand}") from error
            total = None
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, DataError) or getattr(error, "filename", None):
                raise
            raise DataError(
                f"{url}: {type(error).__name__}: {error}; run again to go on, {by_hand}"
            ) from error
        if total is None:  # what is there belongs to another version
            part.unlink()
            return fetch(url, path, size, sha256, progress)
    found, announced = part.stat().st_size, size or int(total or 0)
    if found < announced:
        raise DataError(
            f"{url}: the connection ended after {found} of {announced} bytes; run again, it goes on"
        )
    digest = digest_of(part) if sha256 else ""
    if (announced and found != announced) or digest != sha256:
        part.unlink()
        expected, got = (
            (f"{announced} bytes", found)
            if announced and found != announced
            else (f"sha256 {sha256}", digest)
        )
        raise DataError(
            f"{url}: expected {expected}, got {got}; what was fetched is removed; run again, {by_hand}"
        )
    part.replace(path)
    state.unlink(missing_ok=True)
    return path


def _receive(
    answer, url: str, path: Path, have: int, version: str, size: int, sha256: str, progress: bool
) -> int | str | None:
    """Write the body behind the ``have`` bytes of the part; returns the length of the whole file, "" = not
    known, None = start over.
    """
    headers, part = answer.headers, Path(f"{path}.part")
    etag = headers.get("ETag") or ""
    now = (
        etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or ""
    )  # a weak ETag says nothing about bytes
    resumed = answer.status == 206
    if answer.status != 200 and not (resumed and have):
        raise DataError(f"{url}: answered with status {answer.status}; try again later")
    if resumed and (
        not headers.get("Content-Range", "").startswith(f"bytes {have}-")
        or (version and now not in ("", version))
    ):
        return None
    have = have if resumed else 0
    total = have + int(headers["Content-Length"]) if headers.get("Content-Length") else ""
    by_hand = f"open the address in a browser and save the file as {path}"
    if headers.get_content_type() == "text/html" and path.suffix not in (".html", ".htm"):
        raise DataError(f"{url}: answered with a web page (it may ask to sign in or to confirm); {by_hand}")
    if size and total and total != size:
        raise DataError(
            f"{url}: offers {total} bytes, expected {size}: another file than this script knows; {by_hand} if you trust it"
        )
    if not (total or size or sha256 or answer.chunked):
        raise DataError(
            f"{url}: does not say how long the file is, so a broken connection would go unnoticed; {by_hand}"
        )
    free = shutil.disk_usage(path.parent).free
    if (total or 0) - have > free:
        raise DataError(
            f"{url}: {(total - have) / 1e9:.1f} GB to fetch, {free / 1e9:.1f} GB free at {path.parent}; make room"
        )
    with (
        open(part, "ab" if resumed else "wb") as file,
        progress_bar(
            total=total or None,
            initial=have,
            unit="B",
            unit_scale=True,
            desc=f"fetch {path.name}",
            progress=progress,
        ) as bar,
    ):
        if not resumed:  # only now, that the bytes of another version are gone
            Path(f"{part}.version").write_text(f"{now}\n{total}\n{url}")
        while block := answer.read(BLOCK):
            file.write(block)
            bar.update(len(block))
    return total


def digest_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
