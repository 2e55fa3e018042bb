"""Exercises of the lessons: the reader's function is called on copies of some inputs, and a verdict says
where it differs and, if the mistake is a known one, which it is.

A lesson's exercises stand in ``lesson_NN.py``::

    from course.exercises import Exercise, check
    EXERCISES = {"gap": Exercise(solution, [(1.0,), (2.0,)], {"The square is missing.": wrong})}

and the notebook has ``from course.lesson_NN import check`` and ``check(gap)``. The verdict is a widget whose
text form never changes, so that a notebook compares equal whether an exercise is solved or open.
"""

from __future__ import annotations

import inspect
import io
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from html import escape

import ipywidgets as widgets
import numpy as np
from IPython import get_ipython
from IPython.display import display


@dataclass(frozen=True)
class Exercise:
    """What a function of the reader is compared with.

    Args:
        solution: the right function; the reader's has its name and its parameters.
        inputs: tuples of arguments.
        mistakes: a sentence that names a mistake -> the function that makes it. It must differ from the
            solution, and from every other mistake, on some input.
        tolerance: relative and absolute, for numbers.
    """

    solution: Callable
    inputs: Sequence[tuple]
    mistakes: Mapping[str, Callable] = field(default_factory=dict)
    tolerance: float = 1e-6


@dataclass(frozen=True)
class Verdict:
    """``kind`` is right, wrong, raised or open; ``rows`` are (name, text) of what a reader is shown."""

    kind: str
    title: str
    rows: tuple[tuple[str, str], ...] = ()

    def text(self) -> str:
        return "\n".join([self.title, *(f"  {name}: {words}" for name, words in self.rows)])

    def html(self) -> str:
        """Dark text on a light card, in light and dark themes alike."""
        colour, card, mark = {
            "right": ("#1B7837", "#EAF5EC", "✔"),
            "wrong": ("#B35806", "#FDF3E7", "✘"),
            "raised": ("#B2182B", "#FBECEC", "✘"),
            "open": ("#555555", "#F2F2F2", "○"),
        }[self.kind]
        rows = ""
        for name, words in self.rows:
            family = "inherit" if name in PROSE else "var(--jp-code-font-family,monospace)"
            rows += (
                '<tr style="background:none"><th scope="row" style="text-align:left;vertical-align:top;'
                f'font-weight:600;padding:1px 12px 1px 0;white-space:nowrap">{escape(name)}</th>'
                f'<td style="text-align:left;padding:1px 0;white-space:pre-wrap;overflow-wrap:anywhere;'
                f'font-family:{family}">{escape(words)}</td></tr>'
            )
        style = "border-collapse:collapse;margin:4px 0 0;color:inherit;font-size:inherit"
        table = f'<table style="{style}">{rows}</table>'
        return (
            f'<div role="status" aria-live="polite" class="exercise-verdict" style="background:{card};'
            f"color:#1A1A1A;border-left:5px solid {colour};padding:6px 10px;box-sizing:border-box;"
            "max-width:860px;line-height:1.45;overflow-wrap:anywhere;"
            f'font-size:13px;font-family:var(--jp-ui-font-family,sans-serif)"><b style="color:{colour}">'
            f'<span aria-hidden="true">{mark} </span>{escape(self.title)}</b>{table if rows else ""}</div>'
        )


PROSE = ("why", "next", "printed", "warned")  # rows that hold words, not values


class VerdictWidget(widgets.HTML):
    """A verdict in a notebook; its text form is all that the file stores."""

    def __repr__(self) -> str:
        return "Exercise check: run this cell in Jupyter"


def check(function: Callable) -> None:
    """Show how ``function`` does in the exercise of its name, among those of the lesson that was imported.

    Raises:
        TypeError: this is no function, but perhaps what one returned.
        ValueError: no exercise has this name.
    """
    if not callable(function):
        raise TypeError(
            f"check takes the function itself, without parentheses: check(name). This is {short(function)}"
        )
    name = getattr(function, "__name__", repr(function))
    lessons = [m for key, m in list(sys.modules.items()) if key.startswith("course.lesson_")]
    known = {key: e for lesson in lessons for key, e in getattr(lesson, "EXERCISES", {}).items()}
    if name not in known:
        raise ValueError(f"no exercise is called {name!r}; expected one of {', '.join(known) or '(none)'}")
    verdict = judge(function, known[name])
    if hasattr(get_ipython(), "kernel"):  # Jupyter; elsewhere there is nobody to draw a widget
        display(VerdictWidget(verdict.html()))
    else:
        print(verdict.text())


def judge(function: Callable, exercise: Exercise) -> Verdict:
    """Compare ``function`` with the solution on every input; the first difference is the verdict's."""
    name, count = exercise.solution.__name__, len(exercise.inputs)
    with _quiet() as said:
        answers = [_answer(function, arguments) for arguments in exercise.inputs]
    with _quiet():
        expected = [_answer(exercise.solution, arguments) for arguments in exercise.inputs]
    notes = tuple(said.items())
    if all(kind == "value" and value is None for kind, value in answers):
        return Verdict(
            "open", f"{name}: still open", (("next", "Write your answer and run the cell again."),)
        )
    complaints = [_complaint(a, e, exercise.tolerance) for a, e in zip(answers, expected)]
    first = next((i for i, complaint in enumerate(complaints) if complaint is not None), None)
    if first is None:
        return Verdict("right", f"{name}: right on all {count} inputs", notes)

    kind, value = answers[first]
    place = "" if count == 1 else f" on input {first + 1} of {count}"
    rows = (("input", call_text(exercise.solution, exercise.inputs[first])),)
    if kind == "raised":
        title = f"{name}: raised {type(value).__name__}{place}"
        rows += (("error", str(value) or type(value).__name__), *_line(function, value))
    else:
        title = f"{name}: not yet right{place}"
        rows += (("expected", short(expected[first][1])), ("yours", short(value)))
    why = _named_mistake(answers, first, exercise) or complaints[first]
    rows += (("why", why),) if why else ()
    return Verdict("raised" if kind == "raised" else "wrong", title, rows + notes)


def _named_mistake(answers: list, first: int, exercise: Exercise) -> str | None:
    """The sentence of the mistake that gives these answers: all of them, or, second best, the one at
    ``first`` and at least one more, where the rest are errors or nan, which are another mistake.
    """
    second_best = None
    for sentence, mistake in exercise.mistakes.items():
        with _quiet():
            wrong = [_answer(mistake, arguments) for arguments in exercise.inputs]
        same = [_complaint(a, w, exercise.tolerance) is None for a, w in zip(answers, wrong)]
        if all(same):
            return sentence
        rest = [answer for answer, equal in zip(answers, same) if not equal]
        if same[first] and sum(same) > 1 and all(map(_void, rest)):
            second_best = second_best or sentence
    return second_best


def _void(answer: tuple) -> bool:
    array = None if answer[0] == "raised" else _array(answer[1])
    return answer[0] == "raised" or array is not None and bool(np.isnan(array).any())


def _answer(function: Callable, arguments: tuple) -> tuple[str, object]:
    """("value", what it returns) or ("raised", the exception), on copies."""
    try:
        return "value", function(*deepcopy(arguments))
    except Exception as error:  # the reader's function may raise anything
        return "raised", error


@contextmanager
def _quiet():
    """Keep what a function prints and warns of, and restore the random states that it moves: the output of
    the cell and the numbers of later cells must not depend on how an exercise was solved.
    """
    said, out = {}, io.StringIO()
    torch = sys.modules.get("torch")
    states = np.random.get_state(), torch and torch.get_rng_state()
    with warnings.catch_warnings(record=True) as warned, redirect_stdout(out), redirect_stderr(out):
        warnings.simplefilter("always")
        yield said
    np.random.set_state(states[0])
    if torch:
        torch.set_rng_state(states[1])
    if printed := out.getvalue().strip():
        said["printed"] = printed if len(printed) <= 400 else printed[:400] + " …"
    if warned:
        said["warned"] = str(warned[0].message)


def _line(function: Callable, error: Exception) -> tuple:
    """The reader's line in which ``error`` was raised."""
    code = getattr(function, "__code__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    return (("line", frames[-1].line),) if frames and frames[-1].line else ()


# ---- comparing ----


def _complaint(answer: tuple, expected: tuple, tolerance: float) -> str | None:
    """None: equal. Else what is wrong in kind, in words; "" if only the values differ."""
    if answer[0] != expected[0]:
        return ""
    if answer[0] == "raised":
        return None if type(answer[1]) is type(expected[1]) else ""
    return difference(answer[1], expected[1], tolerance)


def difference(answer, expected, tolerance: float = 1e-6) -> str | None:
    """None if ``answer`` equals ``expected``; else in what they differ, or "" if only in values.

    Arrays, tensors, numbers and lists of numbers are compared as numbers; whole numbers may stand for
    fractions, but not the other way round. Dictionaries and sequences are compared part by part.
    """
    if answer is None and expected is not None:
        return "Your function returns None here: some path through it ends without a return."
    if isinstance(expected, Mapping):
        if not isinstance(answer, Mapping):
            return f"A dictionary is expected; yours is {_kind(answer)}."
        if missing := [str(key) for key in expected if key not in answer]:
            return f"These keys are missing: {', '.join(missing)}."
        if more := [str(key) for key in answer if key not in expected]:
            return f"These keys do not belong here: {', '.join(more)}."
        parts = {f"entry {key!r}": (answer[key], expected[key]) for key in expected}
        return _first(parts, tolerance)
    a, e = _array(answer), _array(expected)
    if e is None and isinstance(expected, list | tuple) or _is_group(expected):
        if not isinstance(answer, list | tuple) and (a is None or a.ndim == 0):
            return f"{_kind(expected).capitalize()} of {len(expected)} is expected; yours is {_kind(answer)}."
        if len(answer) != len(expected):
            return f"{len(expected)} values are expected; yours are {len(answer)}."
        names = (f"value {i}" for i in range(1, len(expected) + 1))
        return _first(dict(zip(names, zip(answer, expected))), tolerance)
    if e is None:
        return None if type(answer) is type(expected) and answer == expected else ""
    if a is None:
        odd = " that holds more than numbers" if isinstance(answer, list | tuple) else ""
        return f"{_kind(expected).capitalize()} is expected; yours is {_kind(answer)}{odd}."
    if a.shape != e.shape:
        return f"The shape is {_shape(a)}; expected is {_shape(e)}."
    same = bool(np.allclose(a.astype(complex), e.astype(complex), tolerance, tolerance, equal_nan=True))
    order = "biufc"
    if a.dtype.kind != e.dtype.kind and "b" in (a.dtype.kind, e.dtype.kind):
        return f"The values are of type {a.dtype}; expected is {e.dtype}."
    if same and e.dtype.kind in "iu" and order.index(a.dtype.kind) > 2 and e.ndim:
        return f"The values are right, but of type {a.dtype}; whole numbers ({e.dtype}) are expected."
    if not same and e.dtype.kind == "f" and a.dtype.kind in "iu" and e.ndim:
        return f"The values are whole numbers ({a.dtype}); expected is {e.dtype}."
    return None if same else ""


def _first(parts: Mapping[str, tuple], tolerance: float) -> str | None:
    """The complaint about the first part that differs, with the part's name."""
    for name, (answer, expected) in parts.items():
        complaint = difference(answer, expected, tolerance)
        if complaint is not None:
            return f"In {name}: {complaint}" if complaint else f"The difference is in {name}."
    return None


def _array(value) -> np.ndarray | None:
    """Numbers as an array; None for anything else."""
    try:
        array = np.asarray(_without_tensors(value))
    except (TypeError, ValueError):  # ragged
        return None
    return array if array.dtype.kind in "biufc" else None


def _without_tensors(value):
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return [_without_tensors(v) for v in value] if isinstance(value, list | tuple) else value


def _is_group(value) -> bool:
    """A tuple of results, such as (mean, map), as opposed to a list of numbers."""
    return isinstance(value, list | tuple) and any(hasattr(v, "shape") and len(v.shape) for v in value)


def _kind(value) -> str:
    if hasattr(value, "detach"):
        return "a tensor"
    names = {np.ndarray: "an array", tuple: "a tuple", list: "a list", dict: "a dictionary", str: "a text"}
    for kind, words in names.items():
        if isinstance(value, kind):
            return words
    if value is None:
        return "None"
    return "a number" if _array(value) is not None else f"of type {type(value).__name__}"


def _shape(array: np.ndarray) -> str:
    return str(array.shape) if array.ndim else "that of a single number"


# ---- showing ----


def short(value, length: int = 240) -> str:
    """A value in at most ``length`` characters, large arrays with their shape."""
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key!r}: {short(v, 80)}" for key, v in value.items()) + "}"
    elif _is_group(value):
        text = ", ".join(short(v, 120) for v in value)
    elif callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        text = "a function" if name == "<lambda>" else name
    else:
        array = _array(value)
        if array is None or isinstance(value, bool):
            text = repr(value)
        elif array.ndim:
            text = np.array2string(array, precision=4, threshold=24, edgeitems=2, separator=", ")
            text = " ".join(text.split())
            if array.size > 24:
                text = f"shape {' × '.join(map(str, array.shape))}: {text}"
        else:
            text = f"{array.item():.6g}" if array.dtype.kind in "iuf" else str(array.item())
    return text if len(text) <= length else text[: length - 2] + " …"


def call_text(function: Callable, arguments: tuple) -> str:
    """The arguments with their names."""
    names = list(inspect.signature(function).parameters)
    named = [f"{name} = {short(value)}" for name, value in zip(names, arguments)]
    named += [short(value) for value in arguments[len(names) :]]
    return "\n".join(named) if sum(map(len, named)) > 90 else ", ".join(named)
