"""The exercise checker must tell right, wrong, open and broken answers apart."""

import math

import pytest
from course.checks import check, within

CASES = [((1.0, 2.0), 3.0), ((2.0, 2.5), 4.5)]


def test_right(capsys):
    assert check(lambda a, b: a + b, CASES)
    assert "all 2 cases agree" in capsys.readouterr().out


def test_wrong_shows_both_values(capsys):
    assert not check(lambda a, b: 3.0, CASES)
    out = capsys.readouterr().out
    assert "case 2 of 2 differs" in out and "expected 4.5" in out and "yours    3" in out


def test_open_and_raising(capsys):
    assert not check(lambda a, b: None, CASES)
    assert "open" in capsys.readouterr().out
    assert not check(lambda a, b: 1 / 0, CASES)
    assert "raised ZeroDivisionError" in capsys.readouterr().out


def test_an_answer_that_changes_its_arguments_spoils_nothing():
    values = [3.0, 1.0]
    cases = [((values,), 4.0), ((values,), 4.0)]
    assert check(lambda v: v.pop() + v.pop(), cases) and values == [3.0, 1.0]


def test_an_open_case_is_named_by_its_number(capsys):
    check(lambda a, b: 3.0 if a == 1 else None, CASES)
    assert "open - it returns None. Case 2 expects 4.5" in capsys.readouterr().out


def test_shapes_lists_strings_and_nan():
    assert check(lambda: [1, 2], [((), (1.0, 2.0))]) and not check(lambda: [1, 2, 3], [((), [1, 2])])
    assert check(lambda: ["R", "D"], [((), ["R", "D"])]) and not check(lambda: "R", [((), "D")])
    assert check(lambda: math.nan, [((), math.nan)]) and not check(lambda: 0.0, [((), math.nan)])


def test_within(capsys):
    within("mIoU", 0.5, 0.4, 0.6)
    assert capsys.readouterr().out == "mIoU lies in [0.4, 0.6]: yes\n"
    with pytest.raises(AssertionError, match="0.7 is outside"):
        within("mIoU", 0.7, 0.4, 0.6)
    with pytest.raises(AssertionError):
        within("mIoU", math.nan, 0, 1)
