"""Sources of the book: the lessons, the glossary and the project's own pages, made ready for Sphinx.

The notebooks stay as they are. Copies of them, with the outputs that they store, get links that lead to pages
of the book, figures as files with their alt text, and below each of the papers' equations a link to the
function that implements it. Nothing is executed.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
# Page of the book -> the project's file. The lessons come by themselves.
PAGES = {
    "index": "README.md",
    "glossary": "notebooks/glossary.md",
    "results": "notebooks/results/README.md",
    "data": "data_scripts/README.md",
    "contributing": "CONTRIBUTING.md",
}
LINK = re.compile(r"(?<!\\)(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")
# A link, or what may look like one: a fenced block, an equation, a span of code.
SPAN = re.compile(rf"```.*?^\s*```|\$\$.*?\$\$|{LINK.pattern}|`[^`\n]+`|\$[^$\n]+\$", re.S | re.M)
BADGE = re.compile(r"^\[!\[.*\n", re.M)
TAG = re.compile(r"\\tag\{([^}]*)\}")
NUMBER = re.compile(r"(?:B )?\d+")
PLOTLY = "application/vnd.plotly.v1+json"
EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg", "image/gif": "gif"}


def text(value) -> str:
    return "".join(value) if isinstance(value, list) else value


def lessons() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def first_words(path: Path) -> tuple[str, str, str]:
    """Title, question and minutes of a lesson, out of its first cell."""
    cell = text(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    title, question = re.match(r"# ([^\n]*)\n\s*\*\*(.*?)\*\*", cell, re.S).groups()
    minutes = re.search(r"\*\*(\d+) minutes\*\*", cell)
    return title, question, minutes[1] if minutes else ""


def lesson_table() -> str:
    """The README's table of the lessons; ``python notebooks/book/stage.py`` writes it there."""
    lines = ["| lesson | question | minutes |", "| --- | --- | --- |"]
    for path in lessons():
        title, question, minutes = first_words(path)
        lines.append(f"| [{title}](notebooks/{path.name}) | {question} | {minutes} |")
    return "\n".join(lines) + "\n"


def module_name(path: str) -> str:
    """mmlib/theory/entropy.py -> mmlib.theory.entropy; notebooks/course/hover.py -> course.hover"""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return ".".join(parts[1:] if parts[0] == "notebooks" else parts)


def label(module: str, name: str) -> str:
    """Labels know no capitals, and some files have a class and a function of one name."""
    return f"{module}.{name}{'-class' if name[0].isupper() else ''}".lower()


def equations(glossary: str) -> dict[str, list[tuple[str, str]]]:
    """Number of an equation ("1", "B 2") -> (function, file) as the glossary has them: below the equation."""
    found = {}
    for entry in glossary.split("\n### "):
        code = re.findall(r"\[`([\w.]+)`\]\(([\w./]+\.py)\)", entry.split("In code:")[-1])
        for tag in TAG.findall(entry):
            for number in NUMBER.findall(tag):
                found.setdefault(number, []).extend(
                    pair for pair in code if pair not in found.get(number, [])
                )
    return found


class Book:
    """A folder of sources for Sphinx."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.modules: dict[str, str] = {}  # module -> file, of every link to code
        self.pages = {file: f"{page}.md" for page, file in PAGES.items()}
        self.pages |= {f"notebooks/{path.name}": path.name for path in lessons()}
        self.equations = equations((ROOT / PAGES["glossary"]).read_text(encoding="utf-8"))

    def write(self, name: str, content: str | bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    # ---- links ----

    def link(self, match: re.Match, file: str) -> str:
        """One Markdown link of the project's ``file`` as a link of the book."""
        image, words, target = match["image"], match["text"], match["target"]
        words = LINK.sub(lambda inner: self.link(inner, file), words)
        if re.match(r"[a-z]+:", target):
            return f"{image}[{words}]({target})"
        path, _, anchor = target.partition("#")
        anchor = re.sub(r"[^\w\- ]", "", unquote(anchor)).lower()
        if not path:
            return f"{image}[{words}](#{anchor})"
        path = os.path.normpath(os.path.join(os.path.dirname(file), unquote(path)))
        if path in self.pages:
            return f"[{words}]({self.pages[path]}{anchor and '#' + anchor})"
        if path.endswith(".py"):
            return f"[{words}](#{self.code(path, words)})"
        if (ROOT / path).is_dir() and (ROOT / path / "README.md").exists():
            return f"[{words}]({self.pages[f'{path}/README.md']})"
        if not (ROOT / path).is_file():
            return words
        self.write(f"files/{path}", (ROOT / path).read_bytes())
        return f"{image}[{words}](files/{path})"

    def code(self, path: str, words: str = "") -> str:
        """The label of the function that ``words`` name in a Python file, else that of the file."""
        module = module_name(path)
        self.modules[module] = path
        name = words.strip("`").removesuffix("()").removeprefix(module).strip(".").split(".")[0]
        names = {item.name for item in definitions((ROOT / path).read_text(encoding="utf-8"))}
        return label(module, name) if name in names else module

    def rewritten(self, source: str, file: str) -> str:
        """Markdown with the links of the book; code and equations are left alone."""
        return SPAN.sub(lambda match: self.link(match, file) if match["target"] else match[0], source)

    def implemented(self, source: str, part: str) -> str:
        """The cell with a line below each equation of the papers: the functions that implement it."""

        def lines(match: re.Match) -> str:
            found = {}
            for number in NUMBER.findall(", ".join(TAG.findall(match[0]))):
                key = number if number[0].isalpha() else f"{part}{number}"
                for name, path in self.equations.get(key, []):
                    target = self.code(os.path.normpath(f"notebooks/{path}"), name)
                    found.setdefault(number, {})[target] = f"[`{name.split('.')[-1]}`](#{target})"
            links = "; ".join(f"Eq. {number}: {', '.join(names.values())}" for number, names in found.items())
            equation = match[0]
            if TAG.search(equation) and "\\\\" in equation:  # Sphinx's environment for lines takes no tag
                equation = f"\\begin{{equation*}}{equation.strip('$')}\\end{{equation*}}"
            code = f"\n\n:::{{container}} implemented\nIn code, {links}\n:::\n" if links else ""
            return equation + code

        return re.sub(r"^\$\$.*?\$\$$", lines, source, flags=re.S | re.M)

    # ---- pages ----

    def lesson(self, path: Path) -> None:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        file, part = f"notebooks/{path.name}", "B " if "08" <= path.name[:2] <= "10" else ""
        notebook["metadata"].pop("widgets", None)
        for number, cell in enumerate(notebook["cells"]):
            source = text(cell["source"])
            if cell["cell_type"] == "markdown":
                source = self.implemented(self.rewritten(source, file), part)
            else:
                if source.startswith(("import ", "from ")) and all(
                    isinstance(node, ast.Import | ast.ImportFrom | ast.Expr | ast.Assign)
                    for node in parsed(source)
                ):
                    cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "hide-input"]
                cell["outputs"] = [
                    shown
                    for count, output in enumerate(cell["outputs"])
                    for shown in self.output(output, f"{path.stem}-{number}-{count}")
                ]
            cell["source"] = source
        self.write(path.name, json.dumps(notebook, ensure_ascii=False))

    def output(self, output: dict, name: str) -> list[dict]:
        """A stored output as the book shows it: a picture as a file with its alt text, no widget."""
        data = output.get("data")
        if data is None:
            return [output]
        shown = []
        words = text(data.get("text/plain", "")).removeprefix("Figure: ").strip()
        kind = next((kind for kind in EXTENSIONS if kind in data), "")
        if kind:
            content = text(data[kind])
            content = content.encode() if "xml" in kind else base64.b64decode(content)
            self.write(f"figures/{name}.{EXTENSIONS[kind]}", content)
            alt = re.sub(r"([\[\]\\*_`$<>])", r"\\\1", " ".join(words.split()))
            shown.append({"text/markdown": f"![{alt}](figures/{name}.{EXTENSIONS[kind]})"})
        if PLOTLY in data:
            figure = json.dumps(data[PLOTLY], ensure_ascii=False).replace("</", "<\\/")
            script = f'<script type="application/json">{figure}</script>'
            shown.append(
                {"text/html": f'<div class="interactive" hidden data-figure="{name}">{script}</div>'}
            )
        if not shown:
            keep = (
                "text/html"
                if "text/html" in data and "<script" not in text(data["text/html"])
                else "text/plain"
            )
            shown.append({keep: text(data.get(keep, ""))})
        return [{"output_type": "display_data", "data": each, "metadata": {}} for each in shown]

    def source(self, module: str, path: str) -> None:
        """A page with the file's code, one section a definition: an equation leads to its function."""
        code = (ROOT / path).read_text(encoding="utf-8")
        lines = code.splitlines()
        page = [f"({module})=", f"# {module}", "", f"The file `{path}`.", ""]
        start = 1
        for item in definitions(code):
            first = min([item.lineno, *(decorator.lineno for decorator in item.decorator_list)])
            page += self.listing(lines, start, first - 1)
            page += [f"({label(module, item.name)})=", f"## {item.name}", ""]
            page += self.listing(lines, first, item.end_lineno)
            start = item.end_lineno + 1
        page += self.listing(lines, start, len(lines))
        self.write(f"code/{module}.md", "\n".join(page))

    @staticmethod
    def listing(lines: list[str], first: int, last: int) -> list[str]:
        while first <= last and not lines[first - 1].strip():
            first += 1
        body = lines[first - 1 : last]
        return (
            ["````{code-block} python", f":lineno-start: {first}", "", *body, "````", ""] if any(body) else []
        )


def definitions(code: str) -> list:
    """The public functions and classes of a file."""
    return [
        node
        for node in ast.parse(code).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_"
    ]


def parsed(source: str) -> list:
    """The statements of a cell; those of IPython's own commands count as none."""
    try:
        return ast.parse(source).body
    except SyntaxError:
        return [None]


def toctree(caption: str, pages: list[str], hidden: bool = True) -> str:
    options = [f":caption: {caption}"] * bool(caption) + [":hidden:"] * hidden + [":maxdepth: 1"]
    return "\n".join(["", "```{toctree}", *options, "", *pages, "```", ""])


def stage(folder: Path) -> None:
    """Write the book's sources into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    book = Book(folder)
    for path in lessons():
        book.lesson(path)
    for page, file in PAGES.items():
        source = BADGE.sub("", (ROOT / file).read_text(encoding="utf-8"))
        source = book.rewritten(source, file)
        if page == "index":
            parts = {"Part A": ("00", "07"), "Part B": ("08", "10"), "Your own data": ("11", "12")}
            for caption, (first, last) in parts.items():
                stems = [path.stem for path in lessons() if first <= path.name[:2] <= last]
                source += toctree(caption, stems + ["data"] * (first == "11"))
            source += toctree("Look up", ["glossary", "results", "contributing", "code/index"])
        book.write(f"{page}.md", source)
    for module, path in book.modules.items():
        book.source(module, path)
    index = "# The code behind the lessons\n\nEvery file that a lesson or an equation links to.\n"
    book.write("code/index.md", index + toctree("", sorted(book.modules), hidden=False))


if __name__ == "__main__":
    readme = ROOT / "README.md"
    page = readme.read_text(encoding="utf-8")
    table = re.compile(r"\| lesson \|.*?\n\n", re.S)
    readme.write_text(table.sub(lambda _: lesson_table() + "\n", page), encoding="utf-8")
