"""Execute notebooks in place and clean them, so that a rerun changes nothing but what really changed.

    python tests/refresh_notebooks.py                      # every notebook
    python tests/refresh_notebooks.py 05                   # those whose name starts so
    python tests/refresh_notebooks.py --clean-only

A notebook is written only when all of its cells ran; progress bars and warnings (stderr) are reported as
errors.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # as in the tests: the kernels inherit it

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def cell_ids(notebook) -> list[str]:
    """cell-00, cell-01, …: by position, so that two people who execute a notebook write the same file."""
    return [f"cell-{number:02d}" for number in range(len(notebook["cells"]))]


def merged(outputs: list) -> list:
    """Printed text that arrived in several pieces, as one: where it was cut depends on timing alone."""
    kept = []
    for output in outputs:
        if (
            kept
            and output["output_type"] == kept[-1]["output_type"] == "stream"
            and output["name"] == kept[-1]["name"]
        ):
            kept[-1]["text"] += output["text"]
        else:
            kept.append(output)
    return kept


def clean(notebook):
    """Drop what changes from run to run or machine to machine: widget state, timestamps, versions, random
    ids, cuts in what was printed.
    """
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {
            "name": "python",
            "file_extension": ".py",
            "mimetype": "text/x-python",
            "pygments_lexer": "ipython3",
        },
    }
    for cell, name in zip(notebook["cells"], cell_ids(notebook)):
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        cell["id"] = name
        if "outputs" in cell:
            cell["outputs"] = merged(cell["outputs"])
        for output in cell.get("outputs", []):
            # A widget's random id points to state that is not stored; without it, viewers show the panel's
            # text form instead of an error.
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
            if "metadata" in output:  # of pictures it says their size and what they show
                output["metadata"] = {k: v for k, v in output["metadata"].items() if k.startswith("image/")}
    return notebook


def refresh(path: Path, execute: bool = True, timeout: int = 300) -> None:
    """Execute (unless told not to), clean and write one notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the file is left as it was.
        ValueError: a cell wrote to stderr.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    if execute:
        NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
        ).execute()
        for number, cell in enumerate(notebook.cells):
            for output in cell.get("outputs", []):
                if output.get("name") == "stderr":
                    raise ValueError(
                        f"{path.name}, cell {number} wrote to stderr: {output['text'].strip()[-300:]}"
                    )
    clean(notebook)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    temporary.replace(path)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="beginnings of notebook names; all when none is given")
    parser.add_argument("--clean-only", action="store_true", help="do not execute")
    options = parser.parse_args(arguments)
    paths = [
        path
        for path in sorted(NOTEBOOKS.glob("*.ipynb"))
        if not options.names or path.name.startswith(tuple(options.names))
    ]
    if not paths:
        print(
            f"no notebook in {NOTEBOOKS.name}/ starts with {' or '.join(options.names) or 'anything'}",
            file=sys.stderr,
        )
        return 1
    failed = 0
    for path in paths:
        start = time.perf_counter()
        try:
            refresh(path, execute=not options.clean_only)
            print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)
        except Exception as error:  # report every notebook's failure, not only the first
            print(f"{path.name}: {type(error).__name__}: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
