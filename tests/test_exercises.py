"""Exercises of the lessons: the checker tells right, wrong, open and broken answers apart; and every exercise
stands in its notebook with a stub that is open, a solution that is right, and mistakes that are recognised.
"""

import ast
import importlib
import json
import re
import subprocess
import sys
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from course import exercises
from course.exercises import Exercise, VerdictWidget, check, difference, judge, short

NAN = float("nan")
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
LESSONS = sorted(path.name[:2] for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
EXPECTED = re.compile(r"^### Exercise (\d) (●○○|●●○|●●●) · (\d+) minutes?$", re.M)


def jensen(f, nu):
    return f**2 * nu


EXERCISE = Exercise(
    jensen, [(1.0, 2.0), (3.0, 2.0), (-1.0, 1.0)], {"The square is missing.": lambda f, nu: f * nu}
)


# ---- the verdicts ----


def test_right():
    verdict = judge(lambda f, nu: f * f * nu, EXERCISE)
    assert verdict.kind == "right" and "all 3 inputs" in verdict.title


def test_open_reveals_nothing():
    verdict = judge(lambda f, nu: None, EXERCISE)
    assert verdict.kind == "open" and not re.search(r"\d", verdict.text()) and "square" not in verdict.text()


def test_wrong_names_input_expected_yours_and_nothing_it_does_not_know():
    verdict = judge(lambda f, nu: f * f * nu if f < 2 else 17.0, EXERCISE)
    assert verdict.kind == "wrong" and verdict.title.endswith("on input 2 of 3")
    assert verdict.rows == (("input", "f = 3, nu = 2"), ("expected", "18"), ("yours", "17"))


def test_a_known_mistake_is_named():
    verdict = judge(lambda f, nu: nu * f, EXERCISE)
    assert dict(verdict.rows)["why"] == "The square is missing."


def test_a_known_mistake_is_named_beside_a_second_one():
    verdict = judge(lambda f, nu: nu * f if f > 0 else NAN, EXERCISE)
    assert verdict.title.endswith("input 2 of 3")
    assert judge(lambda f, nu: nu * f if f > 0 else 1 / 0, EXERCISE).rows[-1][1] == "The square is missing."
    assert verdict.rows[-1][1] == "The square is missing."
    # An answer of another kind is not this mistake.
    assert "why" not in dict(judge(lambda f, nu: nu * f if f > 0 else 17.0, EXERCISE).rows)


def test_none_on_a_later_input_is_not_open():
    verdict = judge(lambda f, nu: f**2 * nu if f > 0 else None, EXERCISE)
    assert verdict.kind == "wrong" and "input 3 of 3" in verdict.title
    assert "returns None here" in dict(verdict.rows)["why"]


def test_raised_says_what_and_where():
    def broken(f, nu):
        return f**2 * nu / bool(nu - 1)

    verdict = judge(broken, EXERCISE)
    rows = dict(verdict.rows)
    assert verdict.kind == "raised" and "ZeroDivisionError on input 3 of 3" in verdict.title
    assert rows["error"] == "float division by zero" and rows["line"] == "return f**2 * nu / bool(nu - 1)"
    assert judge(lambda f: f, EXERCISE).kind == "raised"  # one parameter too few


def test_an_answer_that_changes_its_inputs_spoils_nothing():
    exercise = Exercise(sum, [([3.0, 1.0],), ([5.0],)], {"The first is missing.": lambda v: sum(v[1:])})
    before = deepcopy(exercise.inputs)

    def pops(values):
        return values.pop() + (values.pop() if values else 0)

    assert judge(pops, exercise).kind == "right" and exercise.inputs == before


def test_printing_warning_and_seeding_leave_no_trace(capfd):
    def noisy(f, nu):
        print("here")
        np.random.seed(0), torch.manual_seed(0)
        np.log(np.zeros(1))
        return f**2 * nu

    numbers, drawn = np.random.get_state()[1].copy(), torch.get_rng_state()
    verdict = judge(noisy, EXERCISE)
    assert capfd.readouterr() == ("", "")
    assert "here" in dict(verdict.rows)["printed"] and "divide by zero" in dict(verdict.rows)["warned"]
    assert (np.random.get_state()[1] == numbers).all() and (torch.get_rng_state() == drawn).all()


def test_the_text_form_is_one_and_html_is_escaped(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(exercises, "display", shown.append)
    monkeypatch.setattr(exercises, "get_ipython", lambda: SimpleNamespace(kernel=None))
    lesson = ModuleType("course.lesson_test")
    lesson.EXERCISES = {"jensen": EXERCISE}
    monkeypatch.setitem(sys.modules, "course.lesson_test", lesson)
    for answer in (jensen, lambda f, nu: f * nu, lambda f, nu: "<b>", lambda f, nu: None, lambda: 0):
        answer.__name__ = "jensen"
        check(answer)
    assert len(shown) == 5 and {repr(widget) for widget in shown} == {repr(VerdictWidget())}
    assert all('role="status" aria-live="polite"' in widget.value for widget in shown)
    assert "<b>'" not in shown[2].value and "&lt;b&gt;" in shown[2].value
    assert "text/plain" in shown[0]._repr_mimebundle_()
    # Outside Jupyter there is no widget: the words are printed.
    monkeypatch.setattr(exercises, "get_ipython", lambda: None)
    check(jensen)
    assert capsys.readouterr().out == "jensen: right on all 3 inputs\n" and len(shown) == 5
    jensen.__name__ = "renamed"
    with pytest.raises(ValueError, match="'renamed'; expected one of .*jensen"):
        check(jensen)
    jensen.__name__ = "jensen"
    with pytest.raises(TypeError, match="the function itself, without parentheses.* 18"):
        check(jensen(3, 2))


ROWS = np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("answer", "expected", "complaint"),
    [
        (2, 2.0, None),
        (np.float32(0.1), 0.1, None),
        (torch.tensor(0.1, requires_grad=True), 0.1, None),
        (2.1, 2.0, ""),
        (NAN, NAN, None),
        (0.0, NAN, ""),
        (True, 1.0, "type bool; expected is float"),
        ((1, 2), [1.0, 2.0], None),
        ([torch.tensor(1.0, requires_grad=True), 2], np.array([1.0, 2.0]), None),
        (torch.tensor([1.0, 2.0]), np.array([1.0, 2.0]), None),
        (torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([1.0, 2.0]), None),
        (ROWS.T, ROWS, "shape is (3, 2); expected is (2, 3)"),
        (3.0, ROWS, "shape is that of a single number"),
        (ROWS.astype(bool), ROWS, "type bool"),
        (np.array([1.0, 2.0]), np.array([1, 2]), "whole numbers (int64) are expected"),
        (np.array([1, 2]), np.array([1.0, 2.5]), "are whole numbers (int64)"),
        ("RD", "RD", None),
        ("R", "D", ""),
        (["R", "D"], ("R", "D"), None),
        (["R"], ["R", "D"], "2 values are expected; yours are 1"),
        ({"R", "D"}, {"D", "R"}, None),
        ((1.0, ROWS), (1.0, ROWS), None),
        ((1.0, ROWS + 1), (1.0, ROWS), "in value 2"),
        ((1.0, ROWS.T), (1.0, ROWS), "In value 2: The shape"),
        (1.0, (1.0, ROWS), "tuple of 2 is expected; yours is a number"),
        ({"R": 1.0}, {"R": 1}, None),
        ({"R": 1.0}, {"R": 1.0, "D": 2.0}, "keys are missing: D"),
        ({"R": 1.0, "D": 2.0}, {"R": 1.0}, "do not belong here: D"),
        ({"R": 1.0, "D": 3.0}, {"R": 1.0, "D": 2.0}, "entry 'D'"),
        ([1.0], {"R": 1.0}, "dictionary is expected; yours is a list"),
        ({"R": 1.0}, ROWS, "array is expected; yours is a dictionary"),
        ([1.0, None], np.array([1.0, 2.0]), "a list that holds more than numbers"),
        ("2", 2.0, "number is expected; yours is a text"),
        (None, 2.0, "returns None"),
        ({"R": None}, {"R": 2.0}, "In entry 'R': Your function returns None"),
        (None, None, None),
    ],
)
def test_difference(answer, expected, complaint):
    found = difference(answer, expected)
    assert (found is None) == (complaint is None) and (complaint or "") in (found or ""), found


def test_values_are_shown_short():
    assert short(np.ones((40, 60))).startswith("shape 40 × 60: [[1., 1., ")
    assert short([1.0, 2.5]) == "[1. , 2.5]" and short("RD") == "'RD'" and short(lambda: 0) == "a function"
    assert len(short("x" * 1000)) <= 240 and short(torch.tensor(2.0)) == "2"
    assert short((1.0, ROWS)) == "1, [[0., 1., 2.], [3., 4., 5.]]"


# ---- the lessons ----


def lesson(number: str):
    """The module with the exercises of a lesson."""
    return importlib.import_module(f"course.lesson_{number}")


def source(cell) -> str:
    return "".join(cell["source"])


def found_exercises(number: str) -> list[SimpleNamespace]:
    """What stands in the notebook: each exercise's title, stub, name, hint, solution, and the code before."""
    path = next(NOTEBOOKS.glob(f"{number}_*.ipynb"))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found, before = [], []
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            if call := re.search(r"^check\((\w+)\)$", source(cell), re.M):
                found.append(
                    SimpleNamespace(
                        name=call[1],
                        title=source(cells[i - 1]),
                        stub=source(cell),
                        after=source(cells[i + 1]),
                        before=list(before),
                    )
                )
            before.append(source(cell))
    return found


def define(code: str, names: dict) -> None:
    """Run the imports and definitions of a cell, not its experiments."""
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
            with suppress(NameError):  # a default value that an experiment made
                exec(compile(ast.Module([node], []), "<cell>", "exec"), names)


def solution_code(exercise) -> str:
    return re.search(r"<summary>Solution</summary>.*?```python\n(.*?)```.*?</details>", exercise.after, re.S)[
        1
    ]


@pytest.fixture(params=LESSONS)
def course_lesson(request):
    return SimpleNamespace(
        number=request.param,
        table=lesson(request.param).EXERCISES,
        found=found_exercises(request.param),
    )


def test_notebook_and_table_have_the_same_exercises(course_lesson):
    assert [e.name for e in course_lesson.found] == list(course_lesson.table)
    assert all(name == e.solution.__name__ for name, e in course_lesson.table.items())
    assert len(course_lesson.table) >= 3


def test_form(course_lesson):
    for i, exercise in enumerate(course_lesson.found, 1):
        titles = EXPECTED.findall(exercise.title)
        assert [title[0] for title in titles] == [str(i)], (exercise.name, exercise.title[:80])
        assert exercise.stub.rstrip().splitlines()[-1] == f"check({exercise.name})", exercise.name
        assert "# your code" in exercise.stub, exercise.name
        assert exercise.after.count("<details>") == exercise.after.count("</details>") == 2, exercise.name
        assert "<summary>Hint</summary>" in exercise.after and solution_code(exercise), exercise.name


def test_a_solution_defines_and_prints_nothing(course_lesson):
    """Pasted over its stub, it leaves the output of the cell as it is."""
    for exercise in course_lesson.found:
        kinds = {type(node) for node in ast.parse(solution_code(exercise)).body}
        assert kinds <= {ast.FunctionDef, ast.Import, ast.ImportFrom}, exercise.name


def test_stubs_are_open_and_solutions_are_right(course_lesson):
    names: dict = {}
    done = 0
    for exercise in course_lesson.found:
        for code in exercise.before[done:]:
            if not re.search(r"^check\(", code, re.M):
                define(code, names)
        done = len(exercise.before)
        table = course_lesson.table[exercise.name]
        stub = dict(names)
        define(exercise.stub, stub)
        assert judge(stub[exercise.name], table).kind == "open", exercise.name
        exec(compile(solution_code(exercise), f"<solution of {exercise.name}>", "exec"), names)
        verdict = judge(names[exercise.name], table)
        assert verdict.kind == "right", verdict.text()
        assert list(ast_parameters(exercise.stub, exercise.name)) == list(
            ast_parameters(solution_code(exercise), exercise.name)
        ), f"{exercise.name}: stub and solution have other parameters"


def ast_parameters(code: str, name: str) -> list[str]:
    function = next(n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef) and n.name == name)
    return [a.arg for a in function.args.args]


def test_every_mistake_is_recognised(course_lesson):
    for name, exercise in course_lesson.table.items():
        assert judge(exercise.solution, exercise).kind == "right", name
        assert exercise.mistakes, f"{name} names no mistake"
        for sentence, mistake in exercise.mistakes.items():
            verdict = judge(mistake, exercise)
            assert verdict.kind in ("wrong", "raised"), f"{name}: {sentence!r} is judged {verdict.kind}"
            assert dict(verdict.rows).get("why") == sentence, f"{name}: {sentence!r}: {verdict.text()}"
            assert re.match(r"[A-Z].*\.$", sentence), f"{name}: {sentence!r} is no sentence"


def test_no_solution_changes_its_inputs(course_lesson):
    for name, exercise in course_lesson.table.items():
        for arguments in exercise.inputs:
            given = deepcopy(arguments)
            exercise.solution(*given)
            kept = zip(given, arguments)
            assert all(a is b or callable(b) or difference(a, b, 0) is None for a, b in kept), name


def test_names_are_of_one_lesson():
    names = [name for number in LESSONS for name in lesson(number).EXERCISES]
    assert len(names) == len(set(names))


def test_a_solved_notebook_still_compares_equal(tmp_path):
    """Lesson 00's exercise, open in the file and run solved, wrong and open."""
    exercise = found_exercises("00")[0]
    wrong = exercise.stub.replace("# your code", "\n    return -1")
    path = next(NOTEBOOKS.glob("00_*.ipynb"))
    notebook = json.loads(path.read_text(encoding="utf-8"))
    stored = next(c["outputs"] for c in notebook["cells"] if source(c) == exercise.stub)
    notebook["cells"] = []
    solved = f"{solution_code(exercise)}\ncheck({exercise.name})"
    for count, code in enumerate((solved, wrong, exercise.stub), 1):
        code = f"from course.lesson_00 import check\n{code}"
        cell = {"cell_type": "code", "id": f"cell-{count}", "metadata": {}, "execution_count": count}
        notebook["cells"].append(cell | {"source": code, "outputs": stored})
    (tmp_path / "solved.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
        + ["--rootdir", str(tmp_path), str(tmp_path / "solved.ipynb")],
        capture_output=True,
        text=True,
    )
    assert "3 passed" in run.stdout, run.stdout[-3000:]
