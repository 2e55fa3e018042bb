"""The one image reader: values exactly as stored, and no damaged file passes for a whole one."""

import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_png

from mmlib.data.images import DataError, read_header, read_image, write_image


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    pixels: np.ndarray,
    depth: int = 8,
    palette: bytes = b"",
    transparent: bytes = b"",
    kind: int | None = None,
    rows: int | None = None,
) -> bytes:
    """A PNG written by hand: (H, W, C) values of ``depth`` bits as they are; ``rows``: fewer of them."""
    height, width, channels = pixels.shape
    kind = kind if kind is not None else 3 if palette else {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in pixels]
    else:
        bits = np.unpackbits(pixels.astype(np.uint8)[..., None], -1)[..., 8 - depth :].reshape(height, -1)
        lines = [np.packbits(row).tobytes() for row in bits]
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)),
        (b"PLTE", palette),
        (b"tRNS", transparent),
        (b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines[:rows]))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts if part[1] or part[0] == b"IEND")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torchvision")
@pytest.mark.parametrize("depth, channels", [(8, 1), (8, 2), (8, 3), (8, 4), (16, 1), (16, 3), (16, 4)])
def test_every_plane_of_a_png_comes_out_as_it_is(tmp_path, depth, channels):
    pixels = np.random.default_rng(channels).integers(0, 2**depth, (9, 7, channels)).astype(f"uint{depth}")
    if channels in (2, 4):
        pixels[:4, :, -1] = 0  # fully transparent, if it were opacity: the other planes stay what they are
    path = tmp_path / "a.png"
    path.write_bytes(png(pixels, depth))
    values = read_image(path, f"uint{depth}", channels, (9, 7))
    assert values.dtype == pixels.dtype and np.array_equal(values, pixels)
    decoded = decode_png(torch.tensor(list(path.read_bytes()), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    assert np.array_equal(decoded.numpy().transpose(1, 2, 0), values)  # the same by another library
    with Image.open(path) as image:
        if (depth, channels) == (16, 3):  # the naive way loses the low byte
            assert np.array_equal(np.array(image), pixels >> 8)
        if (depth, channels) == (8, 4):  # and the fourth plane, or, resized, the colours of the others
            assert np.array(image.convert("RGB")).shape[2] == 3
            small = np.array(image.resize((3, 3)))[..., :3]
            assert not np.array_equal(small, np.array(image.convert("RGB").resize((3, 3))))


def test_a_transparent_colour_changes_no_value(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4, (9, 7, 3)).astype(np.uint16)
    for depth, channels in ((8, 1), (8, 3), (16, 1), (16, 3)):
        content = png(pixels[..., :channels], depth, transparent=struct.pack(">H", 1) * channels)
        (tmp_path / "a.png").write_bytes(content)
        assert np.array_equal(read_image(tmp_path / "a.png", f"uint{depth}"), pixels[..., :channels])


def test_values_of_few_bits_are_small_numbers(tmp_path):
    path = tmp_path / "a.png"
    for depth, top in ((1, 255), (2, 85), (4, 17)):
        values = (np.arange(63).reshape(9, 7, 1) % 2**depth).astype(np.uint8)
        path.write_bytes(png(values, depth))
        header, array = read_header(path), read_image(path)
        assert (header.bits, header.dtype) == (depth, "uint8") == (depth, array.dtype)
        assert np.array_equal(array, values)
        with Image.open(path) as image:  # Pillow spreads them over 0 to 255
            assert np.array_equal(np.array(image.convert("L"))[..., None], values * top)
        with pytest.raises(DataError, match=f"expected uint8.*found uint8 of {depth} bits"):
            read_image(path, "uint8", 1)
        colours = bytes(range(255, 255 - 3 * 2**depth, -1))
        path.write_bytes(png(values, depth, palette=colours))
        assert np.array_equal(read_image(path, "uint8", 1, palette=True), values)
        assert read_header(path).palette == colours
        with pytest.raises(DataError, match="expected uint8 with 1 channel, found uint8 .*and a palette"):
            read_image(path, "uint8", 1)
        with Image.open(path) as image:
            assert not np.array_equal(np.array(image.convert("L"))[..., None], values)


def test_interlaced_pngs(tmp_path):
    """Written by hand, as Pillow cannot: pass after pass of 8 bit grey, some passes empty."""
    passes = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
    for height, width in ((9, 7), (1, 1), (3, 2), (16, 21)):
        pixels = np.random.default_rng(width).integers(0, 256, (height, width)).astype(np.uint8)
        parts = [pixels[top::down, left::right] for left, top, right, down in passes]
        rows = [b"\0" + row.tobytes() for part in parts if part.size for row in part]
        for count in (len(rows), len(rows) // 2):
            content = b"\x89PNG\r\n\x1a\n" + chunk(
                b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
            )
            content += chunk(b"IDAT", zlib.compress(b"".join(rows[:count]))) + chunk(b"IEND", b"")
            (tmp_path / "a.png").write_bytes(content)
            if count == len(rows):
                assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], pixels)
            else:
                with pytest.raises(DataError, match="rows are missing"):
                    read_image(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "F", "I", "1", "P"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff(tmp_path, mode, compression):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (9, 7, {"RGB": 3, "RGBA": 4}.get(mode, 1))).squeeze()
    array = values.astype({"I;16": np.uint16, "F": np.float32, "I": np.int32}.get(mode, np.uint8))
    array = array * 200 if mode in ("I;16", "I") else array / np.float32(7) if mode == "F" else array
    image = Image.fromarray(array > 99) if mode == "1" else Image.fromarray(array)
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    array = (array > 99).astype(np.uint8) if mode == "1" else array
    image.save(tmp_path / "a.tif", compression=compression)
    read = read_image(tmp_path / "a.tif", palette=mode == "P")
    assert read.dtype == array.dtype and np.array_equal(read.reshape(array.shape), array)


def test_jpeg_and_wrong_kinds(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    assert np.array_equal(
        read_image(tmp_path / "a.jpg", "uint8", 3, (16, 24)), np.array(Image.open(tmp_path / "a.jpg"))
    )
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(pixels).save(tmp_path / "jpeg.png", "JPEG")
    Image.fromarray(pixels).save(
        tmp_path / "pages.tif", save_all=True, append_images=[Image.fromarray(pixels)]
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    for ending in ("jpg", "png", "tif"):
        Image.fromarray(pixels).save(tmp_path / f"side.{ending}", exif=exif)
    (tmp_path / "grey.png").write_bytes(png(pixels[..., :1]))
    (tmp_path / "deep.png").write_bytes(png(pixels.astype(np.uint16) * 257, 16))
    (tmp_path / "opaque.png").write_bytes(png(pixels[..., :2].astype(np.uint16), 16))
    (tmp_path / "rows.png").write_bytes(png(pixels, rows=12))
    for name, side in (("huge.png", 10**6), ("large.png", 9000)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" + header + png(pixels)[33:])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "text.bmp").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-200])
    for name, arguments, message in [
        ("none.png", ("uint8", 3), "none.png: no such file; expected uint8 with 3 channels"),
        ("a.jpg", ("uint8", 1), "expected uint8 with 1 channel, found uint8 with 3 channels"),
        ("grey.png", ("uint8", 3), "expected uint8 with 3 channels, found uint8 with 1 channel"),
        ("deep.png", ("uint8", 3), "expected uint8 with 3 channels, found uint16"),
        ("a.jpg", ("uint16", 3), "expected uint16 with 3 channels, found uint8"),
        ("a.jpg", ("uint8", (1, 4)), "with 1 or 4 channels, found uint8 with 3"),
        ("a.jpg", ("uint8", 3, (24, 16)), "16 × 24 pixels; expected 24 × 16"),
        ("cmyk.jpg", ("uint8", 4), "image mode CMYK"),
        ("jpeg.png", (), "cannot be read"),
        ("pages.tif", (), "holds 2 images"),
        *((f"side.{ending}", (), "stored on its side") for ending in ("jpg", "png", "tif")),
        ("rows.png", (), "rows are missing"),
        ("huge.png", ("uint8", 3, (16, 24)), "cannot be read .DecompressionBombError"),
        ("huge.png", ("uint8", 3), "cannot be read"),
        ("large.png", ("uint8", 3, (16, 24)), "9000 × 9000 pixels; expected 16 × 24"),
        ("large.png", ("uint8", 3), "cannot be read"),
        ("opaque.png", ("uint16", 2), "PNG of layout LA;16B, which Pillow would change"),
        ("text.png", ("uint8", 3), "cannot be read"),
        ("text.bmp", ("uint8", 3), "unknown ending '.bmp'"),
        ("empty.png", ("uint8", 3), "cannot be read"),
        ("folder.png", ("uint8", 3), "cannot be read"),
        ("cut.jpg", ("uint8", 3), "cannot be read"),
    ]:
        with pytest.raises(DataError, match=message) as error:
            read_image(tmp_path / name, *arguments)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_layouts_that_pillow_would_change(tmp_path):
    """A TIFF of four 4-bit or three 16-bit values, whose modes Pillow calls L and RGB."""
    path = tmp_path / "a.tif"

    def tiff(bits: int, planes: int, data: bytes, photometric: int, extra=()) -> bytes:
        tags = [(256, 3, 4), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
        tags += [(277, 3, planes), (278, 3, 1), (279, 4, len(data)), *extra]
        entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
        return (
            b"II*\0"
            + struct.pack("<I", 8 + len(data))
            + data
            + struct.pack("<H", len(tags))
            + entries
            + bytes(4)
        )

    path.write_bytes(tiff(4, 1, b"\x01\x2f", 1))
    assert read_image(path).ravel().tolist() == [0, 1, 2, 15] and read_header(path).bits == 4
    with pytest.raises(DataError, match="of 4 bits"):
        read_image(path, "uint8", 1)
    path.write_bytes(tiff(8, 1, b"\0\1\2\xff", 0))  # white is zero: Pillow turns the values round
    with pytest.raises(DataError, match="TIFF of layout L;I, which Pillow would change"):
        read_image(path)


def test_no_damaged_png_gives_other_pixels(tmp_path):
    """Every single flipped bit of a label is noticed. Pillow alone does not look at the checksums: it returns
    other pixels, and says nothing.
    """
    path, rng = tmp_path / "a.png", np.random.default_rng(0)
    label = np.kron(rng.integers(0, 9, (4, 5)), np.ones((6, 6), int)).astype(np.uint8)[..., None]
    rows, columns = np.mgrid[:40, :50]
    deep = (rows * 300 + columns).astype(np.uint16)[..., None]
    for pixels, bits in ((label, range(8)), (deep, (0, 3, 6))):
        naive, harmless = 0, 0
        write_image(path, pixels)
        whole = path.read_bytes()
        for place, bit in product(range(len(whole)), bits):
            bad = bytearray(whole)
            bad[place] ^= 1 << bit
            path.write_bytes(bad)
            try:
                assert np.array_equal(read_image(path, pixels.dtype.name, 1), pixels)
                harmless += 1
            except DataError as error:
                assert "a.png: " in str(error)
            try:
                with Image.open(path) as image:
                    naive += not np.array_equal(np.array(image), pixels[..., 0])
            except (OSError, SyntaxError, ValueError):
                pass
        assert naive > 3 and harmless == 0
        for place in range(0, len(whole) - 1, 10):
            path.write_bytes(whole[:place])
            with pytest.raises(DataError, match="a.png"):
                read_image(path, pixels.dtype.name, 1)
        path.write_bytes(whole)
        assert np.array_equal(read_image(path, pixels.dtype.name, 1), pixels)


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_array_runs_code_or_takes_memory_it_does_not_have(tmp_path):
    (tmp_path / "a.npy").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    np.save(tmp_path / "b.npy", np.array([Trap(tmp_path / "sprung")], dtype=object), allow_pickle=True)
    for name in ("c.npy", "sparse.npy"):
        with open(tmp_path / name, "wb") as file:
            shape = (10**4, 10**4) if name == "c.npy" else (10**5, 10**6)
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f8", "fortran_order": False, "shape": shape}
            )
            if name == "sparse.npy":  # all of the 800 GB are there, and take no room on the disk
                file.truncate(file.tell() + 8 * 10**11)
    tracemalloc.start()
    for name, message in (("a", "cannot be read"), ("b", "cannot be read"), ("c", "cannot be read")):
        with pytest.raises(DataError, match=f"{name}.npy: {message}"):
            read_image(tmp_path / f"{name}.npy")
    with pytest.raises(DataError, match="sparse.npy: an image of 800 GB; at most"):
        read_image(tmp_path / "sparse.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not (tmp_path / "sprung").exists() and peak < 10**7  # of the 800 MB that the header claims
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert (tmp_path / "sprung").exists()  # it is a trap


def test_arrays(tmp_path):
    values = np.random.default_rng(0).standard_normal((5, 6))
    for array in (values, values.astype(">f4"), np.asfortranarray(values), (values * 9).astype(np.int16)):
        np.save(tmp_path / "a.npy", array)
        read = read_image(tmp_path / "a.npy", None, 1, (5, 6))
        assert read.dtype == array.dtype.newbyteorder("=") and np.array_equal(read[..., 0], array)
    np.save(tmp_path / "three.npy", np.arange(30.0).reshape(2, 3, 5))
    assert np.array_equal(read_image(tmp_path / "three.npy"), np.arange(30.0).reshape(2, 3, 5))
    np.save(tmp_path / "pickle.npy", np.array([os.system], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "zip.npz", values)
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    np.save(tmp_path / "nan.npy", np.where(values > 1, np.nan, values))
    np.save(tmp_path / "inf.npy", np.where(values > 1, -np.inf, values))
    np.save(tmp_path / "complex.npy", values + 1j)
    np.save(tmp_path / "bool.npy", values > 0)
    np.save(tmp_path / "empty.npy", values[:0])
    np.save(tmp_path / "flat.npy", values.ravel())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "nan.npy").read_bytes()[:-1])
    lies = (("lies", (10**7, 10**6)), ("overflows", (10**30, 10**30)), ("negative", (-3, 5)))
    for name, shape in lies:
        with open(tmp_path / f"{name}.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f8", "fortran_order": False, "shape": shape}
            )
            file.write(values.tobytes())
    (tmp_path / "header.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16)
    for name, arguments, message in [
        ("none", (), "no such file"),
        ("a", (None, 1, (6, 5)), "5 × 6 pixels; expected 6 × 5"),
        ("a", ("float32",), "expected float32, found int16 with 1 channel"),
        ("three", ("float64", 3), "expected float64 with 3 channels, found float64 with 5"),
        ("pickle", (), "cannot be read"),
        ("zip", (), "cannot be read"),
        ("nan", (), "NaN or infinite"),
        ("inf", (), "NaN or infinite"),
        ("empty", (None, 1, (5, 6)), r"empty.npy: .*\(H, W\) or \(H, W, C\)"),
        ("flat", (), r"shape \(30,\); expected numbers \(H, W\) or \(H, W, C\)"),
        ("complex", (), "complex128, .*; expected numbers"),
        ("bool", (), "bool, .*; expected numbers"),
        ("cut", (), "cannot be read"),
        ("lies", (), "cannot be read"),
        ("overflows", (), "cannot be read"),
        ("negative", (), "cannot be read"),
        ("header", (), "cannot be read"),  # numpy's own error is neither a ValueError nor an OSError
    ]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(DataError, match=message) as error:
                read_image(tmp_path / f"{name}.npy", *arguments)
        assert str(tmp_path / f"{name}.npy") in str(error.value)


def test_headers_are_read_without_pixels(tmp_path):
    """A PNG whose data are damaged still has a header; a large one is not decoded for it."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    content = bytearray(png(pixels))
    content[45] ^= 255
    (tmp_path / "a.png").write_bytes(content)
    header = read_header(tmp_path / "a.png")
    assert (header.size, header.channels, header.dtype, header.format) == ((8, 8), 3, "uint8", "PNG")
    with pytest.raises(DataError, match="the checksum of the chunk at byte 33 does not hold"):
        read_image(tmp_path / "a.png")


def test_reading_needs_no_torchvision():
    program = "import sys; sys.modules['torchvision'] = None; import mmlib.data.images, mmlib.data.prepared"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
