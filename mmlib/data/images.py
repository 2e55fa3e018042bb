"""Images on disk: one reader and one writer for pictures (PNG, JPEG, TIFF) and arrays (.npy).

``read_image`` returns the values exactly as the file stores them, or says what is wrong with the file. The
prepared layout, ``predict`` and the scripts of ``data_scripts/`` read with it.
"""

import io
import os
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from ..runtime import atomic_path, reading

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".npy": "NPY"}
MAX_GIGABYTES = 2**31 / 1e9  # of one decoded image; a header that claims more is taken for damage
# Pillow's modes that hold plain numbers, and the type of a value.
_MODES = {"I": "int32", "F": "float32", "I;16": "uint16", "I;16L": "uint16", "I;16B": "uint16"}
_MODES |= dict.fromkeys(("1", "L", "P", "LA", "RGB", "RGBA"), "uint8")
# numpy has Python's parser read the header of an array. Two threads in it at once can make Python 3.11 fail
# on a sound file ("AST constructor recursion depth mismatch", CPython's issue 106905), so they take turns.
_PARSER = Lock()


class DataError(ValueError):
    """Data on disk that cannot be used. The message names the file, what was expected and what to do."""


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels are decoded.

    Attributes:
        size: (height, width).
        channels: numbers a pixel.
        dtype: type of the array that ``read_image`` returns, such as "uint8".
        format: "PNG", "JPEG", "TIFF" or "NPY".
        bits: of one stored value; below 8 for grey and palettes of few levels.
        palette: red, green, blue, red, ... of the colours that the values number; empty = the values are
            measurements.
    """

    size: tuple[int, int]
    channels: int
    dtype: str
    format: str
    bits: int = 8
    palette: bytes = b""

    def __str__(self) -> str:
        few = f" of {self.bits} bits" * (self.bits < 8)
        return f"{self.dtype}{few} with {_counted(self.channels)}{' and a palette' * bool(self.palette)}"


def _counted(*channels: int) -> str:
    return f"{' or '.join(map(str, channels))} channel{'s' * (channels != (1,))}"


def map_npy(path: str | Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped, so that a header which lies about the size fails before memory
    is taken; runs no code from the file.

    Raises:
        DataError: missing, cut short, pickled, an archive of arrays; names the file.
    """
    with _PARSER, reading(path, "an array of numbers (.npy)", DataError):
        return np.lib.format.open_memmap(path, "r")


def read_header(path: str | Path) -> Header:
    """Size, channels and type of an image, without its pixels.

    Raises:
        DataError: missing, damaged, or an image that could not be read as it is stored: several pages, a
            photograph stored on its side, a kind that Pillow converts in silence; names the file.
    """
    with reading(path, "an image", DataError), open(path, "rb") as file:
        return _opened(Path(path), file)[0]


def _opened(path: Path, file) -> tuple[Header, np.ndarray | Image.Image]:
    """The header of ``path``, open as ``file``, and the mapped array or the picture whose pixels are not
    decoded yet.
    """
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise DataError(f"{path}: unknown ending {ending!r}; expected one of {' '.join(FORMATS)}")
    if ending == ".npy":
        stored = map_npy(path)
        if stored.dtype.kind not in "fiu" or stored.ndim not in (2, 3) or not stored.size:
            raise DataError(
                f"{path}: values of type {stored.dtype}, shape {stored.shape}; expected numbers (H, W) or "
                "(H, W, C), none of these 0"
            )
        header = Header(stored.shape[:2], stored[0, 0].size, stored.dtype.name, "NPY", 8 * stored.itemsize)
    else:
        stored = Image.open(file, formats=(FORMATS[ending],))
        header = _picture_header(path, stored)
    decoded = np.prod((*header.size, header.channels, max(8, header.bits)), dtype=float) / 8
    gigabytes = max(decoded, os.fstat(file.fileno()).st_size) / 1e9
    if gigabytes > MAX_GIGABYTES:
        raise DataError(f"{path}: an image of {gigabytes:.3g} GB; at most {MAX_GIGABYTES:.3g} are read")
    return header, stored


def _picture_header(path: Path, image: Image.Image) -> Header:
    # The layout of a value in the file. Pillow tells it beside the mode, into which it would convert.
    layout = image.tile[0][3] if image.tile else ""
    layout = layout if isinstance(layout, str) else str(layout[0])
    mode = image.mode
    if mode not in _MODES:
        raise DataError(f"{path}: image mode {mode}; expected grey or colour, or store it as .npy (H, W, C)")
    dtype = _MODES[mode]
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{path}: holds {image.n_frames} images; store one, or its planes as .npy (H, W, C)")
    # The method of the base class: that of PNG files would decode all pixels first.
    if Image.Image.getexif(image).get(0x0112, 1) != 1:
        raise DataError(f"{path}: stored on its side (EXIF orientation); store it upright, as its labels are")
    few = re.fullmatch("(?:[LP];)?([124])", layout)
    if image.format == "PNG" and layout in ("RGB;16B", "RGBA;16B"):
        dtype = "uint16"
    elif dtype == "uint8" and not few and layout not in (mode, mode[0]):  # mode[0]: a TIFF of separate planes
        raise DataError(
            f"{path}: {image.format} of layout {layout}, which Pillow would change; store it as .npy "
            "(H, W, C), or as 8- or 16-bit png"
        )
    bits = int(few[1]) if few else 8 * np.dtype(dtype).itemsize
    palette = bytes(image.getpalette("RGB")) if mode == "P" else b""
    return Header(image.size[::-1], len(image.getbands()), dtype, image.format, bits, palette)


def read_image(
    path: str | Path,
    dtype: str | None = None,
    channels: int | tuple[int, ...] | None = None,
    size: tuple[int, int] | None = None,
    palette: bool = False,
) -> np.ndarray:
    """An image as it is stored, (H, W, C): no value scaled, no channel converted, dropped or premultiplied.

    Reads PNG of 1 to 16 bits, JPEG, TIFF of one plane or of 8 bits, and .npy, by the ending. Grey values of
    1, 2 or 4 bits stay small numbers. Every checksum and every row of a PNG must be there.

    Args:
        dtype: expected type, such as "uint8"; None = any. Fewer bits than it has are refused.
        channels: expected number of channels, or several that are allowed; None = any.
        size: expected (height, width); None = any.
        palette: whether the file may have a palette, whose numbers are then returned: 1 channel.

    Raises:
        DataError: missing, damaged, too large, NaN or infinite values, or another image than expected; names
            the file.
    """
    path, expected = Path(path), dtype or "an image"
    allowed = (channels,) if isinstance(channels, int) else channels
    if allowed:
        expected += f" with {_counted(*allowed)}"
    with reading(path, expected, DataError), open(path, "rb") as file:
        # The header first: an image of another size or type is refused before it takes memory.
        header, stored = _opened(path, file)
        if size and header.size != tuple(size):
            shape = "%d × %d"
            raise DataError(f"{path}: {shape % header.size} pixels; expected {shape % tuple(size)}")
        if (
            (dtype and (header.dtype != dtype or header.bits < 8 and not header.palette))
            or (allowed and header.channels not in allowed)
            or (header.palette and not palette)
        ):
            raise DataError(f"{path}: expected {expected}, found {header}; convert the file")
        if header.format == "PNG":
            file.seek(0)
            _check_png(file.read())
        if header.bits == 16 and header.channels > 1 and header.format == "PNG":
            # Pillow keeps the high byte of a colour only; told that the bytes are swapped, it keeps the low
            # one. (torchvision reads such files exactly, too, but the process crashes where one is damaged.)
            planes = []
            for layout in (";16B", ";16L"):
                stored = _opened(path, file)[1]
                stored.tile = [(*stored.tile[0][:3], stored.mode + layout)]
                planes.append(np.array(stored, np.uint16))
            array = planes[0] << 8 | planes[1]
        else:
            array = np.array(stored)
        if header.bits < 8 and array.dtype == np.uint8 and not header.palette:
            array //= 255 // (2**header.bits - 1)  # Pillow spreads few levels over 0 to 255
        # In the byte order of this machine.
        array = array.astype(header.dtype, copy=False).reshape(*header.size, header.channels)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{path}: NaN or infinite values; store 0 where nothing was measured")
        return array


def _check_png(content: bytes) -> None:
    """Raise ValueError unless every checksum of a PNG holds and its data are as long as its rows, or, where
    it is interlaced, as its pixels at the least.

    Pillow looks at neither: it returns other pixels, or zeros where rows are missing, and says nothing.
    """
    place, kind, data = 8, b"", bytearray()
    while kind != b"IEND":
        # One chunk: the length of its data, its kind, its data, and a checksum of kind and data.
        end = place + 8 + int.from_bytes(content[place : place + 4])
        chunk = content[place + 4 : end]
        if zlib.crc32(chunk).to_bytes(4) != content[end : end + 4]:
            raise ValueError(f"the checksum of the chunk at byte {place} does not hold")
        kind = chunk[:4]
        if kind == b"IDAT":
            data += chunk[4:]
        place = end + 4
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    bits = depth * {2: 3, 4: 2, 6: 4}.get(colour, 1)
    # Each row has a byte for its filter; those of an interlaced image lie in seven parts.
    length = height * width * bits // 8 if interlaced else height * (1 + (width * bits + 7) // 8)
    if len(zlib.decompressobj().decompress(data, length)) < length:
        raise ValueError("rows are missing")


def write_image(path: Path, array: np.ndarray) -> None:
    """Write (H, W, C) as PNG, or an array of any shape as .npy, by the path's ending, atomically."""
    with atomic_path(path) as temporary:
        if path.suffix == ".png":
            picture = array[..., 0] if array.shape[-1] == 1 else array
            Image.fromarray(picture).save(temporary, compress_level=3)
        else:
            # numpy does not notice that a full disk cuts off the last buffer of a file; Python's write does.
            content = io.BytesIO()
            np.save(content, array)
            temporary.write_bytes(content.getbuffer())
