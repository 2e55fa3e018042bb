"""The library's rooms: imports point one way, no data set is known by name, files stay small."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mmlib"

# Rooms from the ground up. A room may import the rooms of lower levels, itself, and nothing else of mmlib:
# rooms of the same level (parts A and B) do not know each other.
LEVELS = [
    {"modalities", "runtime", "config", "state", "recipes"},
    {"figures"},
    {"theory"},
    {"data"},
    {"evaluation"},
    {"segmentation", "unsupervised"},
    {"panel"},
    {"predict", "run_figures", "switchboard"},
    {"cli", "__main__"},
]
LEVEL = {room: height for height, rooms in enumerate(LEVELS) for room in rooms}
# The ground floor and the command line are each one room in several files.
SAME_ROOM = [{"modalities", "runtime", "config", "state"}, {"cli", "__main__"}]
DATA_SETS = ("nyu", "deliver", "muses", "mcubes", "mfnet")
MAX_FILE, MAX_PACKAGE = 400, 13500  # two papers with their baselines, and the sensor world, a fifth of it


def imported_rooms(source: str, module: str) -> list[tuple[int, str]]:
    """(line, room) for each import of mmlib in ``source``; ``module`` is its dotted name, needed for relative
    imports.
    """
    found = []
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
        found += [(node.lineno, name.split(".")[1]) for name in names if name.startswith("mmlib.")]
    return found


def upward_imports(source: str, module: str) -> list[str]:
    """One sentence for each import of ``module`` (dotted name) that points up or sideways."""
    room = module.split(".")[1]
    if room not in LEVEL:
        return [
            f"{module}: room {room!r} is not in the list of tests/test_structure.py; say there how high it stands"
        ]
    complaints = []
    for line, other in imported_rooms(source, module):
        if other == room or any({room, other} <= rooms for rooms in SAME_ROOM):
            continue
        if other not in LEVEL:
            complaints.append(f"{module}:{line} imports mmlib.{other}, which is no room")
        elif LEVEL[other] >= LEVEL[room]:
            complaints.append(f"{module}:{line} imports mmlib.{other}, which does not stand below {room}")
    return complaints


def named_data_sets(source: str) -> list[str]:
    """Names of public data sets in the code or strings of ``source`` (comments and docstrings may cite them)."""
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


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts)] = path  # keeps ".__init__", so that one dot more names the package
    return found


MODULES = modules()


@pytest.mark.parametrize("module", [name for name in MODULES if name != "mmlib.__init__"])
def test_imports_point_down(module):
    assert upward_imports(MODULES[module].read_text(), module) == []


@pytest.mark.parametrize("module", MODULES)
def test_no_data_set_is_known_by_name(module):
    names = named_data_sets(MODULES[module].read_text())
    assert not names, (
        f"{module} names {names}; what is particular to a data set lives in its file under data_scripts/"
    )


def test_files_stay_small():
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    scripts = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "data_scripts").glob("*.py")}
    long = {name: count for name, count in (lines | scripts).items() if count > MAX_FILE}
    assert not long, f"longer than {MAX_FILE} lines: {long}"
    assert sum(lines.values()) <= MAX_PACKAGE


def test_importing_the_package_is_cheap():
    """`python -m mmlib --help` and the notebooks' first cell must not wait for torch."""
    assert imported_rooms((PACKAGE / "__init__.py").read_text(), "mmlib.__init__") == []


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
        ".ci",
        ".gitignore",
        "conftest.py",
    }
    made = {".git", ".venv", "build", "dist", "runs", "mmlib.egg-info", "__pycache__", "shared"}
    extra = {path.name for path in ROOT.iterdir()} - tracked - made
    assert not {name for name in extra if not name.startswith(".")}, "a new top-level entry needs a reason"


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("mmlib.data.prepared", "from mmlib.modalities import Modality", False),
        ("mmlib.data.prepared", "from mmlib.switchboard import SwitchboardPanel", True),
        ("mmlib.data.prepared", "import mmlib.segmentation.network as n", True),
        ("mmlib.data.prepared", "from mmlib import segmentation", True),
        ("mmlib.data.prepared", "from .. import switchboard", True),
        ("mmlib.data.prepared", "from . import transforms", False),
        ("mmlib.world.__init__", "from .scene import x\nfrom ..prepared import y", False),
        ("mmlib.data.prepared", "def late():\n    from mmlib.evaluation import iou", True),
        ("mmlib.segmentation.network", "from mmlib.unsupervised.tokens import x", True),
        ("mmlib.unsupervised.tokens", "from mmlib.segmentation.network import x", True),
        ("mmlib.modalities", "from mmlib.runtime import data_dir", False),
        ("mmlib.modalities", "from mmlib.theory import entropy", True),
        ("mmlib.theory.entropy", "from mmlib.nowhere import x", True),
        ("mmlib.newroom", "import numpy", True),
    ],
)
def test_the_checker_catches_an_upward_import(module, source, caught):
    assert bool(upward_imports(source, module)) == caught


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('if name == "NYUv2":\n    pass', ["nyu"]),
        ("def read_mfnet(): pass", ["mfnet"]),
        ('"""Settings of DELIVER."""\nx = 1  # MUSES', []),
        ("delivered = musesum = 1", []),
        ('path = root / "deliver"', ["deliver"]),
    ],
)
def test_the_checker_catches_a_data_set_by_name(source, names):
    assert named_data_sets(source) == names
