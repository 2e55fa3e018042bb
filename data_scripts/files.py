"""Files from outside: a download that goes on where it stopped and is checked, unpacking that cannot escape
its folder, and HDF5 files that lead to no other file.
"""

import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from mmlib.data.images import DataError
from mmlib.runtime import atomic_path, progress_bar, reading

BLOCK = 1 << 20  # bytes
ARCHIVE = (
    "a whole zip, tar or tar.gz file (fetch it again, or unpack it with another tool and name the folder)"
)


# ---- archives ----


def unpack(archives: Iterable[Path], target: Path, progress: bool = True, gigabytes: float = 200.0) -> Path:
    """Unpack zip or tar archives into ``target``; returns it. Goes on where an earlier call was interrupted.

    All names are looked at before anything is written. ``__MACOSX`` folders, which hold no data, are left
    out. Every file gets the time of its archive: a file of that time and of its size is whole already.

    Raises:
        DataError: no archive, damaged, encrypted, larger than ``gigabytes`` when it is unpacked or too large
            for the disk, or a member that is a link or device or would land outside.
    """
    for archive in map(Path, archives):
        time = archive.stat().st_mtime_ns
        marker, stamp = target / f".{archive.name}.unpacked", f"{archive.stat().st_size} {time}\n"
        if marker.exists() and marker.read_text().startswith(stamp):
            continue
        with reading(archive, ARCHIVE, DataError):
            zipped = zipfile.is_zipfile(archive)
            file = zipfile.ZipFile(archive) if zipped else tarfile.open(archive, tarinfo=_Member)
        with file:
            waiting = []
            for name, size, member in _members(file, zipped, archive, gigabytes):
                status = (target / name).stat() if (target / name).is_file() else None
                if not status or (status.st_size, status.st_mtime_ns) != (size, time):
                    waiting.append((name, size, member))
            target.mkdir(parents=True, exist_ok=True)
            _check_room(sum(size for _, size, _ in waiting), target, f"{archive}", "to unpack")
            opener = file.open if zipped else file.extractfile
            for name, size, member in progress_bar(waiting, f"unpack {archive.name}", progress=progress):
                with atomic_path(target / name) as temporary:
                    with open(temporary, "wb") as copy:
                        copy.writelines(_blocks(opener, member, archive))
                    if temporary.stat().st_size != size:
                        raise DataError(
                            f"{archive}: {name} has not the {size} bytes announced; fetch the archive again"
                        )
                    os.utime(temporary, ns=(time, time))
        marker.write_text(stamp)
    return target


def _blocks(opener: Callable, member, archive: Path) -> Iterator[bytes]:
    """The content of a member. A generator: what fails while its blocks are written is not the archive's
    fault.
    """
    with reading(archive, ARCHIVE, DataError), opener(member) as content:
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


def _members(file, zipped: bool, archive: Path, gigabytes: float) -> list[tuple]:
    """(name, bytes, member) of every regular file of an open archive; raises where a name, a kind or the size
    of all is not safe, of a tar as soon as it is read that far.
    """
    members, total = {}, 0
    with reading(archive, ARCHIVE, DataError):
        if zipped:
            entries = (
                # The type of file stands in the upper half, in archives that were made on Unix.
                (m.filename, m.file_size, m.is_dir(), stat.S_IFMT(m.external_attr >> 16), m.flag_bits & 1, m)
                for m in file.infolist()
            )
        else:
            entries = ((m.name, m.size, m.isdir(), 0 if m.isfile() else stat.S_IFLNK, 0, m) for m in file)
        for name, size, folder, kind, encrypted, member in entries:
            path, problem, total = PurePosixPath(name.replace("\\", "/")), "", total + size
            drive = name[1:2] == ":"  # C: of Windows
            if path.is_absolute() or ".." in path.parts or drive or any(ord(letter) < 32 for letter in name):
                problem = "would be written outside the target folder"
            elif folder or name.endswith("\\") or "__MACOSX" in path.parts:
                continue
            elif kind not in (0, stat.S_IFREG):
                problem = "is a link or a device, not a file"
            elif encrypted:
                problem = "is encrypted; unpack it with its password and name the folder instead"
            elif str(path) in members or not path.parts:
                problem = "is there twice, or has no name"
            elif total > 1e9 * gigabytes:
                problem = f"makes it larger than --unpacked-gb {gigabytes:g}; give more if you trust it"
            if problem:
                raise DataError(f"{archive}: member {name!r} {problem}; nothing was unpacked")
            members[str(path)] = (str(path), size, member)
        while not zipped and file.fileobj.read(BLOCK):
            pass  # the checksum of a compressed tar stands at its end
    if not members:
        raise DataError(f"{archive}: holds no file")
    return list(members.values())


def check_alone(file):
    """Raise ValueError where an open HDF5 file leads to other files, by a link or by where an array lies:
    what they hold would be copied into the data set.
    """

    def outside(name: str, link):  # what is not None ends the visit
        item = None if hasattr(link, "path") else file[name]
        if not item or getattr(item, "external", None) or getattr(item, "is_virtual", False):
            return name

    if name := file.visititems_links(outside):
        raise ValueError(f"{name} leads out of the file")


def _check_room(need: int, folder: Path, what: str, to_do: str):
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DataError(
            f"{what}: {need / 1e9:.1f} GB {to_do}, {free / 1e9:.1f} GB free at {folder}; make room"
        )


# ---- downloads ----


def fetch(url: str, path: Path, size: int = 0, sha256: str = "", progress: bool = True) -> Path:
    """Download ``url`` to ``path`` unless it is there, check it, then move it into place.

    Where ``sha256`` is known, it goes on where an earlier call stopped: should the file on the server have
    changed meanwhile, the digest tells, and nothing of either version stays.

    Raises:
        DataError: no answer, a web page instead of a file, or another size or digest than expected; says how
            to do it by hand.
    """
    advice = f"run again, or download it by hand to {path}"
    if path.exists():
        if _differs(path, size, sha256):
            raise DataError(f"{path}: not the file that {url} gives, of {size} bytes; remove it")
        return path
    if not sha256:
        print(
            f"{url}: no sha256 of it is known, so nothing tells whether the file that comes is the original"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(f"{path}.part")
    have = part.stat().st_size if sha256 and part.exists() else 0
    if have and not _differs(part, size, sha256):  # killed when it was whole and not yet in its place
        return part.replace(path)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            have *= answer.status == 206  # another answer holds the whole file
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else size
            page = answer.headers.get_content_type() == "text/html" and path.suffix != ".html"
            # Without any length or digest a broken connection would go unnoticed.
            if page or size and total != size or not (total or sha256 or answer.chunked):
                raise DataError(
                    f"{url}: answers with {'a web page' if page else 'a file'} of {total or 'unknown'} "
                    f"bytes; expected a file of {size or 'known'} bytes; open it in a browser (it may ask to "
                    f"sign in or to confirm), and if you trust it download it by hand to {path}"
                )
            _check_room(total - have, path.parent, url, "to fetch")
            unit = {"unit": "B", "unit_scale": True, "desc": path.name, "progress": progress}
            with (
                open(part, "ab" if have else "wb") as file,
                progress_bar(total=total or None, initial=have, **unit) as bar,
            ):
                while block := answer.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
    except (OSError, http.client.HTTPException) as error:
        if have and getattr(error, "code", 0) == 416:  # the part is as long as the file, or longer
            part.unlink()
            return fetch(url, path, size, sha256, progress)
        raise DataError(f"{url}: {type(error).__name__}: {error}; {advice}") from error
    length = part.stat().st_size
    if length < total:
        raise DataError(f"{url}: the connection ended after {length} of {total} bytes; {advice}")
    if _differs(part, size or total, sha256):
        part.unlink()
        raise DataError(
            f"{url}: {length} bytes, expected {size or total or 'any number'} of sha256 {sha256 or 'any'}; "
            f"what was fetched is removed; {advice}"
        )
    return part.replace(path)


def _differs(path: Path, size: int, sha256: str) -> bool:
    """Whether a file has another size than ``size`` or another sha256; 0 and "" = any."""
    if sha256:
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256.lower():
                return True
    return size not in (0, path.stat().st_size)
