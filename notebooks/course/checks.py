"""Checks for the notebooks: of the reader's own functions, and of results that may vary within a band.

Every notebook calls ``check`` in its exercises and ``within`` beside numbers that a training produced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import numpy as np


def _array(value) -> np.ndarray | None:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _equal(answer, expected, tolerance: float) -> bool:
    a, b = _array(answer), _array(expected)
    if a is None or b is None:
        return answer == expected
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True))


def _short(value) -> str:
    """A value in at most 100 characters."""
    array = _array(value)
    if array is None:
        text = repr(value)
    elif array.ndim:
        text = np.array2string(array, precision=4, threshold=12, separator=", ").replace("\n", "")
    else:
        text = f"{float(array):.6g}"
    return text if len(text) <= 100 else text[:97] + "..."


def check(function: Callable, cases: Sequence[tuple[tuple, object]], tolerance: float = 1e-6) -> bool:
    """Call ``function(*arguments)`` for each (arguments, expected) and print one line; on the first
    difference, both values.

    The function gets copies, so that one that changes its arguments spoils no later case and no solution. An
    exercise that still returns None is reported as open, not as wrong.
    """
    name = function.__name__
    for number, (arguments, expected) in enumerate(cases, 1):
        try:
            answer = function(*deepcopy(arguments))
        except Exception as error:  # the reader's function may raise anything
            print(f"{name}: case {number} of {len(cases)} raised {type(error).__name__}: {error}")
            return False
        if answer is None:
            print(f"{name}: open - it returns None. Case {number} expects {_short(expected)}")
            return False
        if not _equal(answer, expected, tolerance):
            print(
                f"{name}: case {number} of {len(cases)} differs\n"
                f"  expected {_short(expected)}\n  yours    {_short(answer)}"
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
