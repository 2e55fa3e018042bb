"""The house: how large it may be, how it is formatted, which room may import which, how things are called."""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mmlib"

# Rooms from the ground up. A room may import the rooms of lower levels, itself, and nothing else of mmlib:
# rooms of the same level (parts A and B) do not know each other.
LEVELS = [
    {"modalities", "runtime", "outputs", "config", "weights", "dinov3"},
    {"theory"},
    {"data"},
    {"world"},
    {"evaluation"},
    {"loop"},
    {"segmentation", "unsupervised"},
    {"figures"},
    {"cli", "recipes", "__main__"},
]
LEVEL = {room: height for height, rooms in enumerate(LEVELS) for room in rooms}
# The ground floor, the figures and the command line are each one room in several files.
SAME_ROOM = [LEVELS[0], LEVELS[-2], LEVELS[-1]]
DATA_SETS = ("nyu", "deliver", "muses", "mcubes", "mfnet")
# Python tokens, so that neither names nor line breaks nor explanations count. A limit only ever goes down.
MAX_TOKENS = {"mmlib": 95_000, "data_scripts": 20_000}
MAX_LINES = 400  # of a file in one of these folders
FOLDERS = ("mmlib", "data_scripts", "notebooks/course")
MAX_UNFORMATTED = 20  # hand-set tables of numbers
PARTICIPLES = {"found", "chosen", "seen", "given", "known", "kept"}


def files(*folders: str) -> dict[str, Path]:
    """Path from the root -> file of every Python file below ``folders``."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path for path in paths}


def dotted(file: str) -> str:
    """Keeps ``.__init__``, so that one dot more names the package."""
    return file.removesuffix(".py").replace("/", ".")


# ---- size and format ----


def tokens(source: str) -> int:
    """Python tokens of ``source`` without comments, docstrings and layout."""
    docstrings = set()  # also those after a field
    for node in ast.walk(ast.parse(source)):
        for child in ast.iter_child_nodes(node):
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                docstrings.update(range(child.lineno, child.end_lineno + 1))
    layout = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
    return sum(
        token.type not in layout and not (token.type == tokenize.STRING and token.start[0] in docstrings)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
    )


def test_tokens_are_counted_without_explanations_and_layout():
    source = '"""About."""\n\n\nclass A:  # a comment\n    x: int = 1\n    """A field."""\n\n    y = "text"\n'
    assert tokens(source) == 3 + 5 + 3  # class A : | x : int = 1 | y = "text"
    assert tokens("f(  # why\n    a,\n    b,\n)\n") == tokens("f(a, b,)\n") == 7


def test_the_library_is_compact():
    sizes = {
        folder: sum(tokens(path.read_text(encoding="utf-8")) for path in files(folder).values())
        for folder in MAX_TOKENS
    }
    assert all(sizes[folder] <= limit for folder, limit in MAX_TOKENS.items()), (
        f"tokens: {sizes}; at most {MAX_TOKENS}"
    )


def test_files_stay_small():
    lines = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files(*FOLDERS).items()
    }
    long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert not long, f"longer than {MAX_LINES} lines: {long}"


def test_everything_is_formatted():
    command = [sys.executable, "-m", "ruff", "format", "--check", "--quiet", "--line-length", "110"]
    done = subprocess.run(
        [*command, "mmlib", "data_scripts", "tests", "notebooks", "conftest.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"run `ruff format`:\n{done.stdout}{done.stderr}"
    marks = {
        name: len(re.findall(r"# fmt: (?:skip|off)", path.read_text(encoding="utf-8")))
        for name, path in files(*FOLDERS).items()
    }
    assert sum(marks.values()) <= MAX_UNFORMATTED, {name: count for name, count in marks.items() if count}


# ---- imports ----


def imported_rooms(source: str, module: str) -> list[tuple[int, str]]:
    """(line, room) for each import of mmlib or of the course in ``source``; ``module`` is its dotted name,
    needed for relative imports.
    """
    rooms = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join(parents + ([base] if base else []))
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "mmlib" else [base]
        else:
            continue
        rooms += [(node.lineno, name.split(".")[1]) for name in names if name.startswith("mmlib.")]
        rooms += [(node.lineno, "course") for name in names if "course" in name.split(".")[:2]]
    return rooms


def upward_imports(source: str, module: str) -> list[str]:
    """One sentence for each import of ``module`` (dotted name) that points up or sideways."""
    room = module.split(".")[1]
    if room not in LEVEL:
        return [f"{module}: say in LEVELS of tests/test_structure.py how high the room {room!r} stands"]
    complaints = []
    for line, other in imported_rooms(source, module):
        if other == room or any({room, other} <= rooms for rooms in SAME_ROOM):
            continue
        if other not in LEVEL:
            complaints.append(f"{module}:{line} imports {other}, which is no room of the library")
        elif LEVEL[other] >= LEVEL[room]:
            complaints.append(f"{module}:{line} imports mmlib.{other}, which does not stand below {room}")
    return complaints


def test_imports_point_down():
    modules = {dotted(name): path.read_text(encoding="utf-8") for name, path in files("mmlib").items()}
    del modules["mmlib.__init__"]
    complaints = [text for module, source in modules.items() for text in upward_imports(source, module)]
    assert not complaints, "\n".join(complaints)


def test_importing_the_package_is_cheap():
    """`python -m mmlib --help` and the notebooks' first cell must not wait for torch."""
    assert imported_rooms((PACKAGE / "__init__.py").read_text(), "mmlib.__init__") == []


def test_the_checker_catches_an_upward_import():
    for module, source, caught in [
        ("mmlib.data.prepared", "from mmlib.modalities import Modality", False),
        ("mmlib.data.prepared", "from mmlib.figures import show", True),
        ("mmlib.data.prepared", "import mmlib.segmentation.network as n", True),
        ("mmlib.data.prepared", "from mmlib import segmentation", True),
        ("mmlib.data.prepared", "from ..segmentation import network", True),
        ("mmlib.data.prepared", "from . import transforms", False),
        ("mmlib.world.__init__", "from .room import x\nfrom ..data.prepared import y", False),
        ("mmlib.data.prepared", "def late():\n    from mmlib.evaluation import iou", True),
        ("mmlib.segmentation.network", "from mmlib.unsupervised.tokens import x", True),
        ("mmlib.unsupervised.tokens", "from mmlib.segmentation.network import x", True),
        ("mmlib.modalities", "from mmlib.runtime import data_dir", False),
        ("mmlib.modalities", "from mmlib.theory import entropy", True),
        ("mmlib.theory.entropy", "from mmlib.nowhere import x", True),
        ("mmlib.newroom", "import numpy", True),
        ("mmlib.cli", "from course.exercises import check", True),
        ("mmlib.cli", "import notebooks.course.panels", True),
    ]:
        assert bool(upward_imports(source, module)) == bool(caught), (module, source)


# ---- the map of the course ----

COURSE = ROOT / "notebooks/course"
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| [^|]{20,} \|$", re.M)


def course_imports(source: str) -> set[str]:
    """Modules of the course that ``source``, a lesson's or a module's, imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = "course" * bool(node.level) + "." * bool(node.level and node.module) + (node.module or "")
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {path.stem for path in COURSE.glob("*.py") if f"course.{path.stem}" in names}


def lessons_of_modules() -> dict[str, list[str]]:
    """Module -> numbers of the lessons that need it."""
    direct = {path.stem: course_imports(path.read_text(encoding="utf-8")) for path in COURSE.glob("*.py")}
    lessons = {module: [] for module in direct}
    for path in sorted(COURSE.parent.glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        waiting, needed = course_imports(code), set()
        while waiting:
            needed |= (one := {waiting.pop()})
            waiting |= set().union(*(direct[module] for module in one)) - needed
        for module in needed:
            lessons[module].append(path.name[:2])
    return lessons


def test_the_map_of_the_course_is_true():
    words = {13: "all", 0: "as files"}
    many = {count: "many" for count in range(7, 13)}
    expected = {
        module: (words | many).get(len(lessons), ", ".join(lessons))
        for module, lessons in lessons_of_modules().items()
        if not module.startswith(("lesson_", "__"))
    }
    rows = dict(ROW.findall((COURSE / "README.md").read_text(encoding="utf-8")))
    assert rows.pop("lesson_NN") == "one each"
    assert rows == expected


# ---- names ----


def named_data_sets(source: str) -> list[str]:
    """Public data sets named in the code or strings of ``source`` (comments and docstrings may cite them)."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)
    }
    words = []
    for node in ast.walk(tree):
        for field in ("id", "attr", "name", "arg"):
            words += [value for value in [getattr(node, field, None)] if isinstance(value, str)]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
            words.append(node.value)
    return sorted(
        {
            name
            for name in DATA_SETS
            for word in words
            if re.search(rf"(?<![a-z]){name}(?![a-uw-z]|v(?!\d))", word.lower())
        }
    )


def test_no_data_set_is_known_by_name():
    names = {name: named_data_sets(path.read_text(encoding="utf-8")) for name, path in files("mmlib").items()}
    assert not any(names.values()), (
        "what is particular to a data set lives in its file under data_scripts/: "
        f"{ {name: sets for name, sets in names.items() if sets} }"
    )


def test_the_checker_catches_a_data_set_by_name():
    for source, names in [
        ('if name == "NYUv2":\n    pass', ["nyu"]),
        ("def read_mfnet(): pass", ["mfnet"]),
        ('"""Settings of DELIVER."""\nx = 1  # MUSES', []),
        ("delivered = musesum = 1", []),
        ('path = root / "deliver"', ["deliver"]),
    ]:
        assert named_data_sets(source) == names, source


def participles(source: str) -> list[tuple[int, str]]:
    """(line, name) of variables, arguments and functions that are called by a participle."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.id))
        elif isinstance(node, ast.arg):
            names.append((node.lineno, node.arg))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append((node.lineno, node.name))
    return [(line, name) for line, name in names if name in PARTICIPLES]


def test_names_say_what_a_thing_is():
    complaints = [
        f"{name}:{line} {word}"
        for name, path in files("mmlib").items()
        for line, word in participles(path.read_text(encoding="utf-8"))
    ]
    assert not complaints, "name the thing (logits, tokens, subset):\n" + "\n".join(complaints)


def test_the_checker_catches_a_participle():
    source = (
        "def f(given, tokens):\n    for seen in tokens:\n        found = seen\n    return x.found, 'kept'"
    )
    assert participles(source) == [(1, "given"), (2, "seen"), (3, "found")]


# ---- the top level ----


def test_top_level_is_as_documented():
    tracked = {
        "notebooks",
        "mmlib",
        "data_scripts",
        "environment.yml",
        "tests",
        "README.md",
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
        "LICENSE",
        "CONTRIBUTING.md",
        ".ci",
        ".gitignore",
        "conftest.py",
    }
    made = {".git", ".venv", "build", "dist", "runs", "mmlib.egg-info", "__pycache__", "shared"}
    present = {path.name for path in ROOT.iterdir()}
    extra = {name for name in present - tracked - made if not name.startswith(".")}
    assert not extra, "a new top-level entry needs a reason"
    assert tracked <= present
