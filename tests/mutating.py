"""Break one expression of the library and run tests or a notebook on it, in a process that has torch loaded.

A server process imports the slow libraries once (``killing.SERVER``). Each attempt is a fork of it that
imports mmlib anew, with one module changed while it is imported; no file is written. Used by
test_mutations.py.
"""

import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import re
import sys
import traceback
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from killing import SERVER

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300  # an attempt that takes longer is stopped


@dataclass(frozen=True)
class Mutation:
    """In the function ``where``, ``old`` becomes ``new``; then each of ``tests`` and ``notebook`` must fail.

    old, new: one Python expression or statement each, compared as syntax: layout, quotes and comments do not
        matter. ANY, ANY1, ANY2 … stand for any expression, and in ``new`` for what they matched in ``old``.
    where: name of the function; ``old`` must stand exactly once in all functions of that name.
    tests: "file::name" ids, each of which must fail on its own.
    notebook: its path, or "" where no notebook computes what is broken.
    """

    name: str
    where: str
    old: str
    new: str
    tests: tuple[str, ...]
    notebook: str = ""


@dataclass
class Outcome:
    """What became of one attempt: full ids of tests, and what was printed."""

    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    printed: str = ""


# ---- the change, on the syntax tree ----


def parsed(code: str) -> ast.AST:
    """The one expression or statement that ``code`` holds."""
    (statement,) = ast.parse(code).body
    return statement.value if isinstance(statement, ast.Expr) else statement


def is_placeholder(node) -> bool:
    return isinstance(node, ast.Name) and re.fullmatch(r"ANY\d*", node.id) is not None


def matches(pattern, node, bound: dict) -> bool:
    """Whether ``node`` is ``pattern``; what the placeholders stand for is noted in ``bound``."""
    if is_placeholder(pattern):
        if pattern.id in bound:
            return matches(bound[pattern.id], node, bound)
        bound[pattern.id] = node
        return isinstance(node, ast.expr)
    if isinstance(pattern, list):
        return (
            isinstance(node, list)
            and len(pattern) == len(node)
            and all(matches(p, n, bound) for p, n in zip(pattern, node))
        )
    if not isinstance(pattern, ast.AST):
        return type(pattern) is type(node) and pattern == node
    return type(pattern) is type(node) and all(
        matches(getattr(pattern, name, None), getattr(node, name, None), bound)
        for name in pattern._fields
        if name not in ("ctx", "kind", "type_comment")
    )


class Replace(ast.NodeTransformer):
    """Puts ``new`` in the place of one node, with the placeholders filled in."""

    def __init__(self, target: ast.AST, new: ast.AST, bound: dict):
        self.target, self.new, self.bound = target, new, bound

    def visit(self, node):
        if node is self.target:
            return ast.copy_location(Replace(None, None, self.bound).visit(self.new), node)
        if self.target is None and is_placeholder(node):
            return self.bound[node.id]
        return self.generic_visit(node)


@cache
def functions(name: str) -> list[tuple[str, int]]:
    """(module, line) of every function of this name in mmlib and in the course."""
    return [(module, line) for module, other, line in _all_functions() if other == name]


@cache
def _all_functions() -> list[tuple[str, str, int]]:
    return [
        (module, node.name, node.lineno)
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the library and of the course."""
    names = {}
    for root, package in ((ROOT, "mmlib"), (ROOT / "notebooks", "course")):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def mutate(where: str, old: str, new: str) -> tuple[str, ast.Module]:
    """(module, its changed syntax tree). ValueError unless ``old`` stands exactly once in ``where``."""
    pattern, hits = parsed(old), []
    for module, line in functions(where):
        tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
        (function,) = [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.FunctionDef) and (n.name, n.lineno) == (where, line)
        ]
        for node in ast.walk(function):
            bound = {}
            if matches(pattern, node, bound):
                hits.append((module, tree, node, bound))
    if len(hits) != 1:
        places = ", ".join(f"{module}:{line}" for module, line in functions(where)) or "no such function"
        raise ValueError(
            f"{old!r} stands {len(hits)} times in {where}() ({places}): "
            "say in tests/test_mutations.py what is to be broken there now"
        )
    module, tree, node, bound = hits[0]
    return module, ast.fix_missing_locations(Replace(node, parsed(new), bound).visit(tree))


# ---- in a fork of the server ----


class Mutated(importlib.abc.MetaPathFinder):
    """Finds one module, and compiles the changed tree in place of its file."""

    def __init__(self, name: str, tree: ast.Module):
        self.name, self.tree = name, tree

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        file, tree = modules()[name], self.tree

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname):
                return compile(tree, str(file), "exec", dont_inherit=True)

        return importlib.util.spec_from_file_location(
            name,
            file,
            loader=Loader(name, str(file)),
            submodule_search_locations=[str(file.parent)] if file.name == "__init__.py" else None,
        )


def import_anew(changed: tuple[str, ast.Module] | None) -> None:
    """Forget what the server may have imported of ours, and have one module imported as it is changed."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("mmlib", "course")]:
        del sys.modules[name]
    if changed is not None:
        sys.meta_path.insert(0, Mutated(*changed))


class Recorder:
    """A plugin of pytest: notes what passed and what failed, and skips a test of which a case has failed."""

    def __init__(self, outcome: Outcome):
        self.outcome = outcome

    def pytest_sessionstart(self):
        from hypothesis import Phase, settings

        # No example of a broken library is kept for later runs, nor made as small as possible.
        phases = [Phase.explicit, Phase.generate]
        settings.register_profile("mutation", settings.default, database=None, phases=phases)
        settings.load_profile("mutation")

    def pytest_runtest_setup(self, item):
        import pytest

        if any(name.split("[")[0] == item.nodeid.split("[")[0] for name in self.outcome.failed):
            pytest.skip("another case of it has failed")

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.outcome.failed.add(report.nodeid)
        elif report.when == "call" and report.passed:
            self.outcome.passed.add(report.nodeid)


def run_tests(outcome: Outcome, tests: tuple[str, ...]) -> None:
    import pytest

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed, and each takes time to load
    # The last of these searches all objects for garbage, five times at the end.
    switched_off = ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    pytest.main(
        ["-q", "--tb=no", "-rfE", *switched_off, "--override-ini=addopts=", f"--rootdir={ROOT}"]
        + [str(ROOT / test) for test in tests],
        plugins=[Recorder(outcome)],
    )


def notebook_cells(path: str):
    """Run a notebook's code cells in one namespace, as a kernel would; yields (cell number, what is wrong).

    What is wrong: how the printed output differs from the stored one, or the error; "" = nothing. Figures are
    compared by what they say. Cells that train a network are left out: no later cell needs theirs before it
    would notice a mutation, and in the whole notebook nbval runs them. Much cheaper than a kernel for each
    mutation.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sys.path.insert(0, str(ROOT / "notebooks"))  # as in a kernel
    from course import charts, exercises, hover

    def show(fig, alt):
        plt.close(fig)
        print("Figure: " + " ".join(alt.split()))

    charts.show = show
    hover.show_interactive = lambda figure, static, alt: show(static, alt)
    # Verdicts are widgets, as in a kernel; without one, display() prints their text form.
    exercises.get_ipython = lambda: SimpleNamespace(kernel=None)
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    os.chdir(ROOT / "notebooks")
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "TrainConfig(" in source:
            continue
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                exec(compile(source, f"cell {number}", "exec"), names)
        except Exception as error:
            yield number, f"cell {number}: {type(error).__name__}: {error}"
            continue
        kinds = [o for o in cell["outputs"] if o["output_type"] in ("stream", "display_data")]
        stored = "\n".join(
            "".join(o["text"] if "text" in o else o["data"]["text/plain"]).strip() for o in kinds
        )
        printed = output.getvalue().strip()
        same = printed == stored.strip()
        yield number, "" if same else f"cell {number} differs\nstored:  {stored}\nprinted: {printed}"


def _tests_attempt(answer, changed, tests: tuple[str, ...]) -> None:
    outcome, printed = Outcome(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            import_anew(changed)
            os.chdir(ROOT)
            run_tests(outcome, tests)
    except BaseException:
        printed.write(traceback.format_exc())
    outcome.printed = printed.getvalue()
    answer.send(outcome)


def attempt(change: tuple[str, str, str] | None, tests: tuple[str, ...]) -> Outcome:
    """Run ``tests`` on the library with a change (where, old, new), or without one."""
    changed = None if change is None else mutate(*change)
    receiver, sender = SERVER.Pipe(False)
    process = SERVER.Process(target=_tests_attempt, args=(sender, changed, tests))
    process.start()
    sender.close()
    try:
        if not receiver.poll(SECONDS):
            raise TimeoutError(f"the tests took longer than {SECONDS} s")
        return receiver.recv()
    finally:
        process.kill()
        process.join()


def _notebook_attempt(pipe, changed, path: str) -> None:
    import_anew(changed)
    for number, wrong in notebook_cells(path):
        pipe.send((number, wrong))
        pipe.recv()  # the next cell is wanted
    pipe.send(None)


class Notebook:
    """A notebook on the library with a change (where, old, new) or without; it runs as far as it is asked."""

    def __init__(self, change: tuple[str, str, str] | None, path: str | Path):
        self.pipe, other = SERVER.Pipe()
        changed = None if change is None else mutate(*change)
        self.process = SERVER.Process(target=_notebook_attempt, args=(other, changed, str(ROOT / path)))
        self.process.start()
        other.close()
        self.cell, self.wrong = -1, ""

    def run(self, last: float = float("inf")) -> str:
        """What is wrong in the first cell, up to number ``last``, in which anything is; "" = nothing."""
        while not self.wrong and self.cell < last:
            if self.cell >= 0:
                self.pipe.send(None)
            if not self.pipe.poll(SECONDS):
                raise TimeoutError(f"a cell after {self.cell} took longer than {SECONDS} s")
            if (answer := self.pipe.recv()) is None:
                break
            self.cell, self.wrong = answer
        return self.wrong

    def close(self) -> None:
        self.process.kill()
        self.process.join()
