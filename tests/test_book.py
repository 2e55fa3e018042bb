"""The book (``make book``): built from the stored notebooks without a warning, whole by itself, and usable
with keyboard and screen reader.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "notebooks" / "book"))

import stage  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LESSONS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
# Attributes by which a page loads something by itself; <a href> waits for a click.
LOADS = {"script": ("src",), "link": ("href",), "iframe": ("src",), "object": ("data",), "use": ("href",)}
LOADS |= {tag: ("src", "srcset", "poster") for tag in ("img", "source", "video", "audio", "embed", "input")}


class Page(HTMLParser):
    """What the tests ask of a page: anchors, links, what it loads, headings, pictures without words."""

    def __init__(self, source: str):
        super().__init__()
        self.ids, self.links, self.loads, self.headings, self.undescribed = set(), [], [], [], []
        self.language = ""
        self.feed(source)
        styles = "".join(re.findall(r"<style.*?</style>|style=\"[^\"]*\"", source, re.S))
        self.loads += re.findall(r"url\(['\"]?([^'\")]+)", styles) + re.findall(
            r"@import\s+['\"]([^'\"]+)", styles
        )

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        if tag == "html":
            self.language = attributes.get("lang", "")
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        self.loads += [attributes[key] for key in LOADS.get(tag, ()) if attributes.get(key)]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img" and len(attributes.get("alt") or "") < 8:
            self.undescribed.append(attributes.get("src"))


def is_elsewhere(address: str) -> bool:
    return bool(urlparse(address).netloc) or address.startswith("/")


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("book")
    command = [sys.executable, str(ROOT / "notebooks" / "book"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def pages(book) -> dict[str, Page]:
    return {
        str(path.relative_to(book)): Page(path.read_text(encoding="utf-8"))
        for path in sorted(book.rglob("*.html"))
        if "_static" not in path.parts
    }


def test_every_lesson_and_every_page_is_there(pages):
    wanted = {*LESSONS, "index", "glossary", "results", "data", "contributing", "search", "code/index"}
    assert {f"{name}.html" for name in wanted} <= set(pages)


def test_every_link_inside_leads_to_a_page_and_a_place_on_it(book, pages):
    lost = []
    for name, page in pages.items():
        for link in page.links:
            file, _, anchor = link.partition("#")
            if urlparse(link).scheme:
                continue
            target = os.path.normpath(os.path.join(os.path.dirname(name), unquote(file))) if file else name
            if not (book / target).exists():
                lost.append(f"{name}: {link}")
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids:
                lost.append(f"{name}: no place {link}")
    assert not lost


def test_no_page_loads_anything_from_elsewhere(book, pages):
    for name, page in pages.items():
        for address in page.loads:
            if address.startswith("data:"):
                continue
            assert not is_elsewhere(address), f"{name} loads {address}"
            path = (book / name).parent / unquote(urlparse(address).path)
            assert path.exists(), f"{name} loads {address}, which does not exist"
    for path in book.rglob("*.css"):
        for address in re.findall(r"url\(['\"]?([^'\")]+)", path.read_text(encoding="utf-8")):
            assert address.startswith(("data:", "#")) or not is_elsewhere(address), f"{path.name}: {address}"


def test_headings_are_in_order_and_pictures_have_words(pages):
    for name, page in pages.items():
        assert page.headings.count(1) == 1, f"{name} has {page.headings.count(1)} first headings"
        steps = [b - a for a, b in zip(page.headings, page.headings[1:])]
        assert max(steps, default=0) <= 1, f"{name} leaves out a level: {page.headings}"
        assert not page.undescribed, f"{name}: {page.undescribed} without alt text"
        assert page.language == "en", name


@pytest.mark.parametrize(
    "source, complaint",
    [
        ('<html lang="en"><img src="a.png" alt="x">', lambda p: p.undescribed == ["a.png"]),
        ('<script src="https://cdn.example/x.js"></script>', lambda p: is_elsewhere(p.loads[0])),
        ('<link rel="preload" href="//fonts.example/x.woff">', lambda p: is_elsewhere(p.loads[0])),
        (
            '<style>@import "https://a.example/b.css"; p {background: url(https://a.example/c.png)}</style>',
            lambda p: all(map(is_elsewhere, p.loads)) and len(p.loads) == 2,
        ),
        ("<h1>a</h1><h3>b</h3>", lambda p: p.headings == [1, 3]),
    ],
)
def test_a_bad_page_is_seen_as_one(source, complaint):
    assert complaint(Page(source))


def test_every_equation_of_the_papers_leads_to_its_function(book):
    """An equation with a number has a line below it with links into the code, or the lesson is named here."""
    for name in LESSONS:
        cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        numbered = re.findall(r"\\tag\{[^}]*\d[^}]*\}", source)
        page = (book / f"{name}.html").read_text(encoding="utf-8")
        links = re.findall(
            r'<div class="implemented docutils container">.*?href="(code/[^"]+)".*?</div>', page, re.S
        )
        assert len(links) == len(numbered), f"{name}: {numbered} and {links}"


def test_solutions_are_folded(book):
    for name in LESSONS:
        page = (book / f"{name}.html").read_text(encoding="utf-8")
        assert page.count("<details") == page.count("</details>"), name
        assert not re.search(r"<details[^>]*\bopen\b", page), name


def test_the_glossary_names_functions_that_exist():
    glossary = ROOT / "notebooks" / "glossary.md"
    links = set(re.findall(r"\[`([\w.]+)`\]\(([\w./]+\.py)\)", glossary.read_text(encoding="utf-8")))
    assert len(links) > 40
    for name, file in links:
        path = os.path.relpath((glossary.parent / file).resolve(), ROOT)
        module = stage.module_name(path)
        assert f"{name}.".startswith(f"{module}."), f"{name} is said to stand in {file}"
        things = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        for part in name.removeprefix(module).strip(".").split("."):
            named = [thing for thing in things if part in ("", getattr(thing, "name", None))]
            assert named, f"{file} has no {name}"
            things = getattr(named[0], "body", [])


# ---- the README ----


def test_the_readme_lists_the_lessons_as_they_name_themselves():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert stage.lesson_table() in readme, "run `python notebooks/book/stage.py`"
    for path in stage.lessons():
        title, question, minutes = stage.first_words(path)
        assert title.startswith(path.name[:2]) and question.endswith("?") and minutes, path.name
    assert len(readme) <= 10_000


def test_what_the_badges_open_is_there():
    """Binder builds environment.yml in the root; both open notebooks by their path in the repository."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    opened = re.findall(r"\?urlpath=lab/tree/([^)]+)\)", readme)
    opened += re.findall(r"colab\.research\.google\.com/github/[^/]+/[^/]+/blob/HEAD/([^)]+)\)", readme)
    assert len(opened) == 2
    for path in opened:
        assert (ROOT / path).is_file(), path
    assert "-e .[" in (ROOT / "environment.yml").read_text() and not (ROOT / "binder").exists()


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        if os.environ.get("MMLIB_REQUIRE_BROWSER"):
            pytest.fail("MMLIB_REQUIRE_BROWSER is set and there is no Chromium")
        pytest.skip("no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def violations(page) -> list[str]:
    """What axe-core finds on a page: names, roles, contrast, headings, landmarks, alternatives."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"resultTypes": ["violations"]})
    return [
        f"{rule['id']}: {node['html'][:200]}"
        for rule in found.response["violations"]
        for node in rule["nodes"]
        # MathJax draws with style sheets, which axe takes for nothing; its MathML beside says the equation.
        if not (rule["id"] == "empty-table-header" and page.query_selector(f"{node['target'][0]} math"))
    ]


# Code and equations have thousands of elements, all made alike: these pages show all kinds of them; others are
# read without them.
WHOLE = ("10_choosing_without_labels.html", "code/mmlib.theory.gaussian.html")
THIN = """() => document.querySelectorAll(".highlight, mjx-container").forEach(
    element => element.localName == "mjx-container" ? element.replaceWith("x") : element.remove())"""


@pytest.mark.browser
def test_axe_finds_nothing_and_nothing_is_asked_of_another_host(book, pages, browser):
    """Each page is opened once and fits a screen and a telephone; axe reads all on a screen by day, and four on
    a telephone by night.
    """
    context = browser.new_context()
    page, asked, found = context.new_page(), [], {}
    page.on("request", lambda request: asked.append(request.url))
    for name in pages:
        if name.startswith("code/") and name not in WHOLE:
            continue
        page.goto((book / name).as_uri(), wait_until="load")
        page.evaluate("() => window.MathJax?.startup?.promise")
        assert page.locator("mjx-merror").all_inner_texts() == [], f"{name}: equations"
        for width in (1440, 480):
            page.set_viewport_size({"width": width, "height": 900})
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{name} is {wide} pixels wider than a window of {width}"
        if name not in WHOLE:
            page.evaluate(THIN)
        for scheme, width in (("dark", 480), ("light", 1440)):
            if scheme == "light" or name in (*WHOLE, "index.html", "12_reading_the_tables.html"):
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size({"width": width, "height": 900})
                if problems := violations(page):
                    found[f"{name}, {scheme}"] = problems
    context.close()
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    assert not found, json.dumps(found, indent=1)


@pytest.mark.browser
def test_search_finds_a_term_and_a_figure_opens(book, browser):
    """Both work from the disk: the index is a script, and so is what draws figures to be turned."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto((book / "search.html").as_uri() + "?q=harmonizer", wait_until="load")
    page.wait_for_selector("#search-results a[href*='glossary.html']")
    name = next(name for name in LESSONS if "data-figure=" in (book / f"{name}.html").read_text("utf-8"))
    page.goto((book / f"{name}.html").as_uri(), wait_until="load")
    page.focus("button.turn")
    page.keyboard.press("Enter")
    page.wait_for_selector(".interactive .main-svg")
    page.close()
