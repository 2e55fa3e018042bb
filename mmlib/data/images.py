"""Images on disk: one reader and one writer for pictures (PNG, JPEG, TIFF) and arrays (.npy).

``read_image`` returns the values exactly as the file stores them, or says what is wrong with the file. The
prepared layout, ``predict`` and the scripts of ``data_scripts/`` read with it.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..runtime import atomic_path

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".npy": "NPY"}
MAX_BYTES = 2**31  # of one decoded image; a header that claims more is taken for damage
# Pillow's modes that hold plain numbers: channels and type of a value.
_MODES = {"1": (1, "uint8"), "L": (1, "uint8"), "P": (1, "uint8"), "LA": (2, "uint8"), "RGB": (3, "uint8")}
_MODES |= {"RGBA": (4, "uint8"), "I": (1, "int32"), "F": (1, "float32")}
_MODES |= dict.fromkeys(("I;16", "I;16L", "I;16B"), (1, "uint16"))
# The seven passes of an interlaced PNG: first column, first row, step of the columns, step of the rows.
_PASSES = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)


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
        few = f" of {self.bits} bits" if self.bits < 8 else ""
        return f"{self.dtype}{few} with {_counted(self.channels)}{' and a palette' if self.palette else ''}"


def _counted(channels) -> str:
    return f"{channels} channel{'' if channels == 1 else 's'}"


@contextlib.contextmanager
def _reading(path: Path, expected: str):
    """Turn the dozen kinds of error that Pillow and numpy raise on damaged files into a DataError that names
    the file.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: not found; {expected}; complete the folder, or run again the command that writes it"
        ) from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{path}: cannot be read ({reason}); {expected}; the file is damaged, or not what its ending says"
        ) from error


def map_npy(path: str | Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped, so that a header which lies about the size fails before memory
    is taken; runs no code from the file.

    Raises:
        DataError: missing, cut short, pickled, an archive of arrays; names the file.
    """
    with _reading(Path(path), "expected an array of numbers (.npy)"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("an archive of arrays")
        return array


def read_header(path: str | Path) -> Header:
    """Size, channels and type of an image, without its pixels.

    Raises:
        DataError: missing, damaged, or an image that could not be read as it is stored: several pages, a
            photograph stored on its side, a kind that Pillow converts in silence; names the file.
    """
    path = Path(path)
    with _reading(path, "expected an image"):
        if path.suffix.lower() == ".npy":
            return _array_header(path, map_npy(path))
        with _opened(path, path) as image:
            return _picture_header(path, image)


def _opened(path: Path, source):
    """``source``, a path or a stream, as a Pillow image of the format that ``path`` ends in."""
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise DataError(f"{path}: unknown ending {ending!r}; expected one of {' '.join(FORMATS)}")
    return Image.open(source, formats=(FORMATS[ending],))


def _array_header(path: Path, array: np.ndarray) -> Header:
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: values of type {array.dtype}; expected numbers")
    if array.ndim not in (2, 3) or not array.size:
        raise DataError(f"{path}: shape {array.shape}; expected (H, W) or (H, W, C), none of them 0")
    channels = array.shape[2] if array.ndim == 3 else 1
    return _bounded(path, Header(array.shape[:2], channels, array.dtype.name, "NPY", 8 * array.itemsize))


def _picture_header(path: Path, image: Image.Image) -> Header:
    # The layout of a value in the file. Pillow tells it beside the mode, into which it would convert.
    layout = image.tile[0][3] if image.tile else ""
    layout = layout if isinstance(layout, str) else str(layout[0])
    mode, bits = image.mode, 8
    if mode not in _MODES:
        raise DataError(f"{path}: image mode {mode}; expected grey or colour, or store it as .npy (H, W, C)")
    channels, dtype = _MODES[mode]
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{path}: holds {image.n_frames} images; store one, or its planes as .npy (H, W, C)")
    # The method of the base class: that of PNG files would decode all pixels first.
    if Image.Image.getexif(image).get(0x0112, 1) != 1:
        raise DataError(f"{path}: stored on its side (EXIF orientation); store it upright, as its labels are")
    few = re.fullmatch("[LP];([124])", layout)
    if few or mode == "1" == layout:
        bits = int(few[1]) if few else 1
    elif image.format == "PNG" and layout in ("RGB;16B", "RGBA;16B"):
        dtype, bits = "uint16", 16
    elif dtype == "uint8" and layout not in (mode, mode[0]):  # the first letter: a TIFF of separate planes
        what = "16-bit grey with opacity" if layout == "LA;16B" else f"{image.format} of layout {layout}"
        raise DataError(
            f"{path}: {what}, which Pillow would change; store it as .npy (H, W, C), or as 8- or 16-bit png"
        )
    elif dtype != "uint8":
        bits = 8 * np.dtype(dtype).itemsize
    palette = bytes(image.getpalette("RGB")) if mode == "P" else b""
    return _bounded(path, Header(image.size[::-1], channels, dtype, image.format, bits, palette))


def _bounded(path: Path, header: Header) -> Header:
    """``header``, unless its image would not fit."""
    size = header.size[0] * header.size[1] * header.channels * np.dtype(header.dtype).itemsize
    if size > MAX_BYTES:
        raise DataError(f"{path}: an image of {size / 1e9:.3g} GB; at most {MAX_BYTES / 1e9:.3g} are read")
    return header


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
    path, allowed = Path(path), (channels,) if isinstance(channels, int) else channels
    expected = f"expected {dtype or 'an image'}"
    if allowed:
        expected += f" with {_counted(' or '.join(map(str, allowed)) if len(allowed) > 1 else allowed[0])}"
    with _reading(path, expected):
        # The header first: an image of another size or type is refused before it takes memory.
        if path.suffix.lower() == ".npy":
            stored = map_npy(path)
            header = _array_header(path, stored)
        else:
            content = path.read_bytes()
            with _opened(path, io.BytesIO(content)) as image:
                header = _picture_header(path, image)
        if size is not None and header.size != tuple(size):
            actual, wanted = (f"{height} × {width} pixels" for height, width in (header.size, size))
            raise DataError(f"{path}: {actual}; expected {wanted}")
        if (
            (dtype and (header.dtype != dtype or header.bits < 8 and not header.palette))
            or (allowed and header.channels not in allowed)
            or (header.palette and not palette)
        ):
            raise DataError(f"{path}: {expected}, found {header}; convert the file")
        if header.format == "NPY":
            array = np.array(stored, header.dtype)  # in the byte order of this machine
        else:
            array = _decoded(path, content, header)
        array = array.reshape(*header.size, header.channels)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{path}: NaN or infinite values; store 0 where nothing was measured")
        return array


def _decoded(path: Path, content: bytes, header: Header) -> np.ndarray:
    """The pixels of a picture, in the header's type."""

    def pixels(layout: str = "") -> np.ndarray:
        with _opened(path, io.BytesIO(content)) as image:
            if layout:
                image.tile = [(*image.tile[0][:3], image.mode + layout)]
            return np.array(image)

    if header.format == "PNG":
        _check_png(content)
    if header.bits == 16 and header.channels > 1:
        # Pillow keeps the high byte of a colour only; told that the bytes are swapped, it keeps the low one.
        # (torchvision reads such files exactly, too, but the process crashes where one is damaged.)
        return pixels(";16B").astype(np.uint16) << 8 | pixels(";16L")
    array = pixels()
    if header.bits < 8 and array.dtype == np.uint8 and not header.palette:
        array //= 255 // (2**header.bits - 1)  # Pillow spreads few levels over 0 to 255
    return array.astype(header.dtype)


def _check_png(content: bytes) -> None:
    """Raise ValueError unless every checksum of a PNG holds and its data are as long as its rows.

    Pillow looks at neither: it returns other pixels, or zeros where rows are missing, and says nothing.
    """
    place, kind, data = 8, b"", []
    while kind != b"IEND":
        # One chunk: the length of its data, its kind, its data, and a checksum of kind and data.
        end = place + 8 + int.from_bytes(content[place : place + 4])
        kind, chunk = content[place + 4 : place + 8], content[place + 4 : end]
        if zlib.crc32(chunk).to_bytes(4) != content[end : end + 4]:
            raise ValueError(f"the checksum of the chunk at byte {place} does not hold")
        if kind == b"IDAT":
            data.append(chunk[4:])
        place = end + 4
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    bits = depth * {2: 3, 4: 2, 6: 4}.get(colour, 1)
    length = 0
    for left, top, right, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            length += rows * (1 + (columns * bits + 7) // 8)  # each row has a byte for its filter
    if len(zlib.decompressobj().decompress(b"".join(data), length)) < length:
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
