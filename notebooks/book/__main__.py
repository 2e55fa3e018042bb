"""Build the book from the stored notebooks: ``python notebooks/book [FOLDER]``, by default build/book."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from sphinx.cmd.build import build_main

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from stage import ROOT, stage  # noqa: E402


def build(out: Path) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        sources = Path(scratch) / "sources"
        stage(sources)
        options = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(HERE), "-d", f"{scratch}/doctrees"]
        return build_main([*options, str(sources), str(out)])


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "book"
    status = build(out)
    if not status:
        print(f"the book's first page: {out / 'index.html'}")
    sys.exit(status)
