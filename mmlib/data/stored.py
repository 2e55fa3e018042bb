"""One image on disk: PNG or NPY of exactly the dtype, channels and values that a modality or a label may
have.
"""

from __future__ import annotations

import math
from numbers import Real
from pathlib import Path

import numpy as np
from PIL import Image

from ..modalities import IGNORE_INDEX, Modality
from ..runtime import atomic_path

PICTURES = ("colour", "grey", "heat", "range", "events", "angle")


class DataError(ValueError):
    """Data on disk that breaks the prepared layout. The message names the file, what was expected and what to
    do.
    """


def check_modality(modality: Modality) -> None:
    """Raise ValueError for a modality that no image could be stored, normalised or pictured as."""
    where, channels = f"modality {modality.name!r}", modality.channels
    if modality.name == "label":
        raise ValueError(f"{where}: the folder label/ holds the labels; choose another name")
    if isinstance(channels, bool) or not isinstance(channels, int):
        raise ValueError(f"{where}: {channels!r} channels; expected an integer")
    if modality.picture not in PICTURES:
        raise ValueError(f"{where}: picture {modality.picture!r}; expected one of {', '.join(PICTURES)}")
    for name in ("scale", "offset", "low", "high", "mean", "std"):
        value = getattr(modality, name)
        if not all(
            isinstance(v, Real) and math.isfinite(v)
            for v in (value if isinstance(value, tuple) else (value,))
        ):
            raise ValueError(f"{where}: {name} {value!r}; expected finite numbers")
    if not modality.scale or not modality.low < modality.high:
        raise ValueError(
            f"{where}: scale {modality.scale}, low {modality.low}, high {modality.high}; expected scale not 0, low below high"
        )
    if not set(modality.flip_negates) <= set(range(channels)):
        raise ValueError(
            f"{where}: flip_negates {modality.flip_negates} names a channel outside 0 to {channels - 1}"
        )


def write_array(path: Path, array: np.ndarray) -> None:
    """Write (H, W, C) as PNG or NPY by the path's suffix, atomically."""
    with atomic_path(path) as temporary:
        if path.suffix == ".png":
            Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(
                temporary, compress_level=3
            )
        else:
            np.save(temporary, array)


def map_npy(path: Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped, so that a header which lies about the size fails before memory
    is taken; runs no code.

    Raises:
        OSError: it cannot be opened, or is cut short. ValueError: anything else that makes it no array.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        raise
    except Exception as error:  # numpy raises a dozen kinds on damaged headers, tokenize.TokenError for one
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("an archive of arrays")
    return array


def read_array(path: Path, dtype: str, channels: int) -> np.ndarray:
    """Read (H, W, C) of exactly this dtype and number of channels.

    Raises:
        DataError: missing, truncated, or of another type; names the file.
    """
    expected = f"expected {dtype} with {channels} channel{'s' * (channels > 1)}"
    try:
        if path.suffix == ".npy":
            array = np.array(map_npy(path))
        else:
            with open(path, "rb") as file:
                head = file.read(25)
            with Image.open(path) as image:
                mode = {"L": ("uint8", 1), "RGB": ("uint8", 3), "I;16": ("uint16", 1)}.get(
                    image.mode, (image.mode, "unknown")
                )
                if image.format != "PNG":  # a JPEG by that name would have other values than were written
                    raise DataError(f"{path}: {expected} as PNG, found {image.format}")
                if mode != (dtype, channels):
                    raise DataError(
                        f"{path}: {expected}, found image mode {image.mode} ({mode[0]}, {mode[1]} channels)"
                    )
                if (
                    head[24] != 8 * np.dtype(dtype).itemsize
                ):  # Pillow would scale the values, or keep their high bytes
                    raise DataError(f"{path}: {expected}, found {head[24]} bits a channel")
                array = np.array(image)
            array = array.reshape(*array.shape[:2], channels)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: not found, though index.csv lists it; prepare the data set again"
        ) from error
    except (
        OSError,
        ValueError,
        ArithmeticError,
        EOFError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); {expected}; the file is damaged or of another kind"
        ) from error
    if array.dtype != np.dtype(dtype) or array.ndim != 3 or array.shape[2] != channels or not array.size:
        raise DataError(f"{path}: {expected} as (H, W, C), found {array.dtype} of shape {array.shape}")
    return array


def check_label(label: np.ndarray, classes: int, where: str) -> None:
    """Raise DataError unless every id is below ``classes`` or 255. ``label`` is any uint8 array."""
    bad = np.unique(label[(label >= classes) & (label != IGNORE_INDEX)])
    if bad.size:
        listed = ", ".join(map(str, bad[:8]))
        raise DataError(
            f"{where}: label id {listed} out of range; expected 0 to {classes - 1}, or {IGNORE_INDEX} for ignore"
        )


def check_values(modality: Modality, stored: np.ndarray, where: str) -> None:
    """Raise DataError for values that are not finite, or a negative distance: both would be trained on in
    silence.
    """
    if stored.dtype.kind == "f" and not np.isfinite(modality.to_physical(stored)).all():
        raise DataError(
            f"{where}: {modality.name} has NaN or infinite values; replace them (sparse sensor: 0 = no measurement)"
        )
    if (
        modality.picture == "range"
        and modality.to_physical(np.array([stored[..., 0].min(), stored[..., 0].max()])).min() < 0
    ):
        raise DataError(
            f"{where}: {modality.name} has a negative range; expected distances above 0, and 0 where nothing was measured"
        )
