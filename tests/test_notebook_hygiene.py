"""What every committed notebook must be, so that strict comparison means something and readers lose nothing.

Each check takes a notebook and returns complaints; each is shown to catch a bad notebook below.
"""

import copy
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import refresh_notebooks
from matplotlib import rc_params_from_file

from mmlib.figures import STYLE

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 1_000_000
ALLOWED_TAGS = {
    "raises-exception",
    "nbval-ignore-output",
}  # any other tag that starts with nbval- would hide a cell from the comparison
PLOTLY = "application/vnd.plotly.v1+json"
COLOURS = rc_params_from_file(STYLE, use_default_template=False)["axes.prop_cycle"].by_key()["color"]
MACHINE_PATH = re.compile(
    r"(?<![\w.~$])/(?:home|Users|root|work|tmp|private|var|mnt|opt|workspace|content)/[\w.-]+|[A-Za-z]:\\\\?Users"
)


def text(value) -> str:
    return "".join(value) if isinstance(value, list) else value


def code_cells(notebook):
    return [(number, cell) for number, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code"]


def markdown(notebook):
    """(cell number, text without code spans and fences) of each Markdown cell."""
    strip = re.compile(r"```.*?```|`[^`\n]*`", re.S)
    return [
        (number, strip.sub("", text(cell["source"])))
        for number, cell in enumerate(notebook["cells"])
        if cell["cell_type"] == "markdown"
    ]


def outputs(notebook):
    return [(number, cell, output) for number, cell in code_cells(notebook) for output in cell["outputs"]]


def tags(cell) -> set[str]:
    return set(cell["metadata"].get("tags", []))


def check_run_in_order(notebook, path):
    """Run once, top to bottom: a cell with no count would be run by nbval but never compared."""
    counts = [cell["execution_count"] for _, cell in code_cells(notebook)]
    return (
        []
        if counts == list(range(1, len(counts) + 1))
        else [f"execution counts {counts}; run `make notebooks`"]
    )


def check_kernel(notebook, path):
    name = notebook["metadata"].get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"kernelspec {name!r}; expected 'python3'"]


def check_no_stderr(notebook, path):
    return [
        f"cell {n} stores stderr: {text(o['text'])[:80]!r}"
        for n, _, o in outputs(notebook)
        if o.get("name") == "stderr"
    ]


def check_no_errors(notebook, path):
    return [
        f"cell {n} stores {o['ename']} without the tag raises-exception"
        for n, cell, o in outputs(notebook)
        if o["output_type"] == "error" and "raises-exception" not in tags(cell)
    ]


def check_no_machine_paths(notebook, path):
    found = []
    for number, cell in enumerate(notebook["cells"]):
        kept = {key: cell.get(key) for key in ("source", "outputs")}
        for output in kept["outputs"] or []:
            if "data" in output:
                kinds = {k: v for k, v in output["data"].items() if k not in ("image/png", "image/jpeg")}
                output = {**output, "data": kinds}
            if match := MACHINE_PATH.search(json.dumps(output, ensure_ascii=False)):
                found.append(f"cell {number} prints the path {match[0]!r}")
        if match := MACHINE_PATH.search(text(cell["source"])):
            found.append(f"cell {number} holds the path {match[0]!r}")
    return found


def check_no_widget_state(notebook, path):
    """Saved widget state can keep GitHub from showing the notebook at all; timestamps change each run."""
    found = ["metadata.widgets is stored; run `make notebooks`"] if "widgets" in notebook["metadata"] else []
    kind = "application/vnd.jupyter.widget-view+json"
    found += [f"cell {n} stores a widget id" for n, _, o in outputs(notebook) if kind in o.get("data", {})]
    return found + [
        f"cell {n} stores timestamps" for n, cell in code_cells(notebook) if "execution" in cell["metadata"]
    ]


def check_images_have_alt_text(notebook, path):
    found = []
    for number, source in markdown(notebook):
        found += [
            f"cell {number}: image {m[2]} without alt text"
            for m in re.finditer(r"!\[([^\]]*)\]\(([^)]*)\)", source)
            if len(m[1].strip()) < 8
        ]
        found += [
            f"cell {number}: <img> without alt text"
            for m in re.finditer(r"<img\b[^>]*>", source)
            if not re.search(r'alt="[^"]{8,}"', m[0])
        ]
    return found


def check_figures_go_through_show(notebook, path):
    """``charts.show`` and ``hover.show_interactive`` write a sentence as text and as the picture's alt text,
    and so does a panel with the picture that stands for it where nothing moves. A plotly figure has a JPEG
    beside it (PNG otherwise), no array as bytes, and the course's template instead of plotly's.
    """
    found = []
    for number, _, output in outputs(notebook):
        data, plotly = output.get("data", {}), output.get("data", {}).get(PLOTLY)
        pictures, kind = [k for k in data if k.startswith("image/")], "image/jpeg" if plotly else "image/png"
        if not pictures and plotly is None:
            continue
        words = text(data.get("text/plain", ""))
        alt = output.get("metadata", {}).get(kind, {}).get("alt")
        # A panel's picture shows numbers of trained networks, which its compared text must not hold.
        said = bool(alt) if re.match(r"\w+Panel\(", words) else words == f"Figure: {alt}"
        if pictures != [kind] or not said:
            found.append(
                f"cell {number} draws a figure without show(fig, alt=…) of course.charts, or "
                f"show_interactive of course.hover; its text form is {words[:60]!r}"
            )
        if plotly is not None:
            colours = plotly["layout"].get("template", {}).get("layout", {}).get("colorway")
            if '"bdata"' in json.dumps(plotly) or colours != COLOURS:
                found.append(f"cell {number} stores a plotly figure that is not show_interactive's")
    return found


def check_outputs_are_stable(notebook, path):
    """Memory addresses, and the Output widget (ipywidgets.interact), whose content strict nbval cannot
    compare.
    """
    found = []
    for number, cell, output in outputs(notebook):
        if "nbval-ignore-output" in tags(cell):
            continue
        words = text(output.get("data", {}).get("text/plain", output.get("text", "")))
        if re.search(r"\bat 0x[0-9a-f]{6,}", words):
            found.append(f"cell {number} prints a memory address")
        if re.search(r"\b(interactive|Output)\(", words):
            found.append(
                f"cell {number} shows an Output widget; build it from widgets that own their content "
                "(course.panel)"
            )
    return found


def heading_anchors(notebook) -> set[str]:
    lines = [
        line
        for _, source in [(0, text(c["source"])) for c in notebook["cells"] if c["cell_type"] == "markdown"]
        for line in source.splitlines()
    ]
    names = [re.sub(r"^#+\s*", "", line).strip() for line in lines if re.match(r"#{1,6}\s", line)]
    return {name.replace(" ", "-") for name in names} | {
        re.sub(r"[^\w\- ]", "", name).replace(" ", "-").lower() for name in names
    }


def check_links_resolve(notebook, path):
    found = []
    for number, source in markdown(notebook):
        targets = re.findall(r"\]\(\s*<?([^)\s>]+)", source) + re.findall(
            r"(?:href|src)=\"([^\"]+)\"", source
        )
        for target in targets:
            if re.match(r"(https?|mailto):", target):
                continue
            file, _, anchor = target.partition("#")
            if file and not (path.parent / unquote(file)).exists():
                found.append(f"cell {number} links to {file}, which does not exist")
            elif not file and unquote(anchor) not in heading_anchors(notebook):
                found.append(f"cell {number} links to #{anchor}, and no heading has that name")
            elif file.startswith("/"):
                found.append(f"cell {number} links to the absolute path {file}")
    return found


def check_size(notebook, path):
    size = len(json.dumps(notebook, indent=1, ensure_ascii=False).encode())
    return [] if size <= MAX_BYTES else [f"{size / 1e6:.1f} MB; at most {MAX_BYTES / 1e6:.0f} MB"]


def check_nothing_hides_from_comparison(notebook, path):
    found, ignored = [], 0
    for number, cell in code_cells(notebook):
        hiding = {tag for tag in tags(cell) if tag.lower().startswith("nbval")} - ALLOWED_TAGS
        comments = re.findall(r"^\s*#\s*((?:NBVAL|PYTEST_VALIDATE)_\w+)", text(cell["source"]), re.M)
        found += [f"cell {number} has {mark}" for mark in sorted(hiding) + comments]
        ignored += "nbval-ignore-output" in tags(cell)
    return found + (
        [f"{ignored} cells are tagged nbval-ignore-output; at most one (versions, device, times)"]
        if ignored > 1
        else []
    )


def check_first_cell_names_the_module(notebook, path):
    first = notebook["cells"][0]
    if (
        first["cell_type"] == "markdown"
        and re.match(r"# \S", text(first["source"]))
        and re.search(r"`(mmlib|course)[\w./]*`", text(first["source"]))
    ):
        return []
    return ["the first cell must be a Markdown title that names the module it teaches, as in `mmlib.theory`"]


def check_cell_ids_are_stable(notebook, path):
    expected = refresh_notebooks.cell_ids(notebook)
    return (
        []
        if [cell.get("id") for cell in notebook["cells"]] == expected
        else ["cell ids are not the deterministic ones; run `make notebooks`"]
    )


CHECKS = [check for name, check in sorted(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook(path, check):
    assert check(json.loads(path.read_text(encoding="utf-8")), path) == []


# ---- negative controls ----


def good() -> dict:
    png = {
        "output_type": "display_data",
        "metadata": {"image/png": {"alt": "RGB fails at night."}},
        "data": {"image/png": "iVBORw0KGgo=", "text/plain": "Figure: RGB fails at night."},
    }
    return {
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
        "cells": [
            {
                "cell_type": "markdown",
                "id": "cell-00",
                "metadata": {},
                "source": ["# A title\n", "Teaches `mmlib.theory`; see [below](#What-to-remember)."],
            },
            {
                "cell_type": "code",
                "id": "cell-01",
                "metadata": {},
                "execution_count": 1,
                "source": ["show(fig, alt='RGB fails at night.')"],
                "outputs": [png],
            },
            {
                "cell_type": "code",
                "id": "cell-02",
                "metadata": {"tags": ["nbval-ignore-output"]},
                "execution_count": 2,
                "source": ["print(1)"],
                "outputs": [{"output_type": "stream", "name": "stdout", "text": ["1\n"]}],
            },
            {
                "cell_type": "markdown",
                "id": "cell-03",
                "metadata": {},
                "source": ["## What to remember\n", "1/2 of `/dev/null` is [here](../README.md)."],
            },
        ],
    }


def swap(number, **changes):
    return lambda notebook: notebook["cells"][number].update(changes)


def output(**changes):
    return lambda notebook: notebook["cells"][2]["outputs"][0].update(changes)


def figure(**data):
    return lambda notebook: notebook["cells"][1]["outputs"][0]["data"].update(data)


def interactive(**parts):
    plotly = {"data": [], "layout": {"template": {"layout": {"colorway": COLOURS}}}} | parts
    data = {PLOTLY: plotly, "image/jpeg": "/9j/4A==", "text/plain": "Figure: RGB fails at night."}
    metadata = {"image/jpeg": {"alt": "RGB fails at night."}}
    return lambda notebook: notebook["cells"][1]["outputs"][0].update(data=data, metadata=metadata)


ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
BAD = [
    (check_run_in_order, swap(2, execution_count=None)),
    (check_run_in_order, swap(2, execution_count=3)),
    (check_run_in_order, swap(1, execution_count=2)),
    (check_kernel, lambda n: n["metadata"]["kernelspec"].update(name="conda_env")),
    (check_kernel, lambda n: n["metadata"].pop("kernelspec")),
    (check_no_stderr, output(name="stderr")),
    (check_no_errors, swap(2, outputs=[ERROR])),
    (check_no_machine_paths, output(text=["saved to /home/someone/x.png\n"])),
    (check_no_machine_paths, swap(1, source=["open('/Users/someone/data')"])),
    (check_no_machine_paths, output(text=["C:\\Users\\someone\n"])),
    (check_no_widget_state, lambda n: n["metadata"].update(widgets={})),
    (check_no_widget_state, swap(2, metadata={"execution": {"iopub.status.busy": "2026"}})),
    (check_no_widget_state, figure(**{"application/vnd.jupyter.widget-view+json": {"model_id": "3f"}})),
    (check_images_have_alt_text, swap(3, source=["![](../README.md)"])),
    (check_images_have_alt_text, swap(3, source=['<img src="../README.md" alt="">'])),
    (check_figures_go_through_show, figure(**{"text/plain": "<Figure size 640x480 with 1 Axes>"})),
    (check_figures_go_through_show, lambda n: n["cells"][1]["outputs"][0].update(metadata={})),
    (check_figures_go_through_show, figure(**{"image/svg+xml": "<svg/>"})),
    (check_figures_go_through_show, figure(**{PLOTLY: {"data": [], "layout": {}}})),
    (check_figures_go_through_show, interactive(layout={"template": {}})),
    (check_figures_go_through_show, interactive(data=[{"z": {"bdata": "AAAA"}}])),
    (check_outputs_are_stable, figure(**{"text/plain": "<Thing at 0x7f12ab34cd>"})),
    (check_outputs_are_stable, figure(**{"text/plain": "interactive(children=())"})),
    (check_links_resolve, swap(3, source=["[gone](09_no_such_notebook.ipynb)"])),
    (check_links_resolve, swap(0, source=["# T `mmlib`\n[gone](#No-such-heading)"])),
    (check_size, figure(**{"image/png": "A" * 1_100_000})),
    (check_nothing_hides_from_comparison, swap(1, metadata={"tags": ["nbval-skip"]})),
    (check_nothing_hides_from_comparison, swap(1, metadata={"tags": ["nbval-ignore-output"]})),
    (check_nothing_hides_from_comparison, swap(1, source=["# NBVAL_SKIP\n", "show(fig)"])),
    (check_first_cell_names_the_module, swap(0, source=["# A title that names nothing"])),
    (check_first_cell_names_the_module, swap(0, source=["Teaches `mmlib.theory`, without a title."])),
    (check_cell_ids_are_stable, swap(2, id="f3a9c1d2")),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_good_notebook_passes(check):
    assert check(good(), ROOT / "notebooks" / "x.ipynb") == []


@pytest.mark.parametrize(
    ("check", "spoil"), BAD, ids=[f"{i}-{check.__name__}" for i, (check, _) in enumerate(BAD)]
)
def test_a_bad_notebook_is_caught(check, spoil):
    notebook = copy.deepcopy(good())
    spoil(notebook)
    assert check(notebook, ROOT / "notebooks" / "x.ipynb"), f"{check.__name__} lets a bad notebook pass"


def test_every_check_has_a_negative_control():
    assert {check for check, _ in BAD} == set(CHECKS)


def test_a_plotly_figure_with_its_picture_is_allowed():
    notebook = good()
    interactive()(notebook)
    assert check_figures_go_through_show(notebook, ROOT) == []


def test_a_tagged_error_is_allowed():
    notebook = good()
    notebook["cells"][2].update(outputs=[ERROR], metadata={"tags": ["raises-exception"]})
    assert check_no_errors(notebook, ROOT) == []


def test_cleaning_makes_a_notebook_clean():
    dirty = good()
    dirty["metadata"] |= {"widgets": {"state": {}}, "language_info": {"version": "3.11.7", "name": "python"}}
    dirty["metadata"]["kernelspec"] = {"name": "conda_env", "display_name": "conda", "language": "python"}
    for cell in dirty["cells"]:
        cell["id"] = "random"
        cell["metadata"] |= {"execution": {"iopub.status.busy": "2026"}, "collapsed": True}
    cleaned = refresh_notebooks.clean(dirty)
    assert [check.__name__ for check in CHECKS if check(cleaned, ROOT / "notebooks" / "x.ipynb")] == []
    assert cleaned == refresh_notebooks.clean(copy.deepcopy(cleaned)), "cleaning twice changes nothing"
    assert "version" not in cleaned["metadata"]["language_info"]


def test_cleaning_joins_printed_pieces_and_nothing_else():
    def printed(name, text):
        return {"output_type": "stream", "name": name, "text": text}

    figure = {"output_type": "display_data", "data": {}, "metadata": {}}
    pieces = [
        printed("stdout", "a\n"),
        printed("stdout", "b\n"),
        figure,
        printed("stdout", "c\n"),
        printed("stderr", "d\n"),
    ]
    whole = [printed("stdout", "a\nb\n"), figure, printed("stdout", "c\n"), printed("stderr", "d\n")]
    assert refresh_notebooks.merged(copy.deepcopy(pieces)) == whole
