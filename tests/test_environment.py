"""pyproject.toml, constraints.txt and environment.yml describe one environment; they are kept in step here."""

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [
    Requirement(line)
    for line in PROJECT["dependencies"] + [line for extra in EXTRAS.values() for line in extra]
]


def pins(text: str) -> dict[str, str]:
    """Canonical package name -> exact version; raises on any line that is not an exact pin."""
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", line)
        if not match:
            raise ValueError(f"constraints.txt: {line!r} is not of the form name==version")
        if (name := canonicalize_name(match[1])) in found:
            raise ValueError(f"constraints.txt: {name} is pinned twice")
        found[name] = match[2]
    return found


PINS = pins((ROOT / "constraints.txt").read_text())


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_direct_dependency_is_pinned_within_its_bounds(requirement):
    version = PINS.get(canonicalize_name(requirement.name))
    assert version, (
        f"{requirement.name} is in pyproject.toml but not in constraints.txt; run `make constraints`"
    )
    assert version in requirement.specifier, (
        f"constraints.txt pins {requirement.name}=={version}, outside {requirement.specifier}"
    )
    assert any(clause.operator == ">=" for clause in requirement.specifier), (
        f"{requirement} states no lower bound"
    )


@pytest.mark.parametrize(
    "line", ["torch>=2.6", "-e /somewhere/mmlib", "mmlib @ file:///somewhere", "torch==2.14.1\ntorch==2.14.1"]
)
def test_a_line_that_is_no_exact_pin_is_refused(line):
    with pytest.raises(ValueError, match="constraints.txt"):
        pins(line)


def test_the_package_itself_and_the_installer_are_not_pinned():
    assert not {"mmlib", "pip", "setuptools", "wheel"} & set(PINS)


def test_conda_users_get_the_same_environment():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pip == ["-c constraints.txt", f"-e .[{','.join(EXTRAS)}]"], (
        "environment.yml must install what `make lab` installs"
    )
    names = {re.split(r"[=<> ]", item)[0] for item in conda}
    assert names == {"python", "pip"}, "anything else in environment.yml would escape constraints.txt"
    python = next(item for item in conda if item.startswith("python=")).split("=")[1]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)


def test_make_installs_every_extra():
    assert f'-c constraints.txt -e ".[{",".join(EXTRAS)}]"' in (ROOT / "Makefile").read_text()


def test_installed_versions_are_the_pinned_ones_or_named():
    """Other versions may work, but a result got with them is not the tested one: say which differ."""
    from importlib import metadata

    installed = {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy")}
    missing = [name for name in installed if not installed[name]]
    assert not missing
    differ = [f"{n} {v} (tested: {PINS[n]})" for n, v in installed.items() if v.split("+")[0] != PINS[n]]
    if differ:
        pytest.skip("not the tested versions: " + ", ".join(differ))


EXTRAS_SAID = re.compile(r"pip install (.*?)\"\S*\[(.*?)\]")


def test_a_notebook_opened_alone_gets_what_the_lessons_import():
    """From the line for Colab and that of lesson 00. An editable install is not seen by a kernel that runs."""
    start = (ROOT / "notebooks/00_start_here.ipynb").read_text(encoding="utf-8")
    texts = (ROOT / "README.md").read_text(encoding="utf-8"), "".join(json.loads(start)["cells"][0]["source"])
    (options, extras), again = (EXTRAS_SAID.search(text).groups() for text in texts)
    assert "-e" not in options + again[0] and again[1] == extras
    declared = PROJECT["dependencies"] + [line for extra in extras.split(",") for line in EXTRAS[extra]]
    names = {canonicalize_name(Requirement(line).name) for line in declared}

    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("notebooks/course/*.py")]
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    imported = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported.add(node.module.split(".")[0])
    own = {"course", "results", "mmlib", "IPython", *(path.stem for path in ROOT.glob("data_scripts/*.py"))}
    of_module = packages_distributions()
    foreign = imported - set(sys.stdlib_module_names) - own  # ipykernel brings IPython
    missing = [m for m in foreign if not names & {canonicalize_name(d) for d in of_module.get(m, ())}]
    assert "h5py" in foreign and not missing, missing
