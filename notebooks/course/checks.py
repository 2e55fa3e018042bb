"""Checks for the notebooks: of the reader's own functions, and of results that may vary within a band."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def _array(value) -> np.ndarray | None:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _equal(found, expected, tolerance: float) -> bool:
    a, b = _array(found), _array(expected)
    if a is None or b is None:
        return found == expected
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True))


def _short(value) -> str:
    array = _array(value)
    if array is not None and array.ndim:
        text = np.array2string(array, precision=4, threshold=12, separator=", ").replace("\n", "")
    else:
        text = f"{float(array):.6g}" if array is not None else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def check(function: Callable, cases: Sequence[tuple[tuple, object]], tolerance: float = 1e-6) -> bool:
    """Call ``function(*arguments)`` for each (arguments, expected) and print one line; on the first
    difference, both values.

    An exercise that still returns None is reported as open, not as wrong.
    """
    name = function.__name__
    for number, (arguments, expected) in enumerate(cases, 1):
        try:
            found = function(*arguments)
        except Exception as error:  # the reader's function may raise anything
            print(f"{name}: case {number} of {len(cases)} raised {type(error).__name__}: {error}")
            return False
        if found is None:
            print(f"{name}: open - it returns None. Case 1 expects {_short(expected)}")
            return False
        if not _equal(found, expected, tolerance):
            print(
                f"{name}: case {number} of {len(cases)} differs\n  expected {_short(expected)}\n  yours    {_short(found)}"
            )
            return False
    print(f"{name}: all {len(cases)} cases agree")
    return True


def within(what: str, value: float, low: float, high: float) -> None:
    """Print that ``value`` lies in [low, high], without the value itself: trained numbers differ between
    processors, verdicts do not.

    Raises:
        AssertionError: it does not; then the value is shown.
    """
    assert low <= value <= high, f"{what}: {value:.4g} is outside [{low:g}, {high:g}]"
    print(f"{what} lies in [{low:g}, {high:g}]: yes")
