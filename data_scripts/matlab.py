"""Readers of MATLAB files: version 5, and version 7.3, which is HDF5 with the axes in reverse order."""

from pathlib import Path

import numpy as np
from numpy import ndarray

from mmlib.data.images import DataError


def read_mat(path: Path, name: str) -> ndarray:
    """Array ``name`` of a version-5 .mat file, flat, as int64.

    Raises:
        DataError: damaged, of another kind, or without this array of whole numbers.
    """
    from scipy.io import loadmat

    try:
        array = loadmat(path)[name]
        while array.dtype == object or array.dtype.names:  # a struct: its first field
            array = array.ravel()[0][0] if array.dtype.names else array.ravel()[0]
        numbers = array.ravel().astype(np.int64)
        if not np.array_equal(numbers, array.ravel()):
            raise ValueError("not whole numbers")
    except Exception as error:  # the reader raises anything on a damaged file
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); expected a MATLAB 5 file with {name}"
        ) from error
    return numbers


def open_arrays(path: Path, wanted: dict[str, tuple[tuple, str]], what: str):
    """The HDF5 file, checked; its chunk cache is large enough to unpack each chunk once when frames are read
    in order.

    Args:
        wanted: shape of a frame and dtype by name of the array; all have one number of frames.
        what: the file that is expected.

    Raises:
        DataError: h5py is missing; the file is cut off, of another version, or its arrays are not as
            documented.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(f'{path}: reading it needs h5py; pip install -e ".[data]"') from error
    cache, count = 1 << 20, None
    try:
        with h5py.File(path) as file:
            for name, (shape, dtype) in wanted.items():
                array = file.get(name)
                if not isinstance(array, h5py.Dataset):
                    raise DataError(f"{path}: no array {name!r}; expected {what}")
                count = count or array.shape[0]
                if array.shape != (count, *shape) or array.dtype != dtype:
                    raise DataError(
                        f"{path}: {name} is {array.dtype} {array.shape}; expected {dtype} "
                        f"({count}, {', '.join(map(str, shape))}), MATLAB's axes in reverse order"
                    )
                if array.chunks:  # twice those that lie across one frame, for threads at the border of two
                    across = np.prod([-(-side // part) for side, part in zip(shape, array.chunks[1:])])
                    cache = max(cache, int(2 * across * np.prod(array.chunks) * array.dtype.itemsize))
        return h5py.File(path, rdcc_nbytes=min(cache, 1 << 29), rdcc_nslots=100_003)
    except OSError as error:
        if not path.exists():
            raise
        raise DataError(
            f"{path}: cannot be read ({error}); expected MATLAB 7.3 (HDF5), {what}; fetch it again"
        ) from error


def cells(file, name: str) -> list[str]:
    """Texts of a MATLAB cell array, which HDF5 holds as references to arrays of characters; [] where there is
    no such array.
    """
    try:
        references = file[name][()].ravel() if name in file else []
        return ["".join(map(chr, file[cell][()].ravel())) for cell in references]
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise DataError(
            f"{file.filename}: {name} cannot be read ({error}); expected a cell array of texts; "
            "fetch the file again"
        ) from error
