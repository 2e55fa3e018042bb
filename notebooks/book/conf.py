"""Sphinx's settings of the book; ``python notebooks/book`` builds it."""

import importlib.util
import re
import shutil
from pathlib import Path

project = "Segmentation that does not lean on one sensor"
html_title = "mmlib · the course"
author = "the authors of mmlib"
extensions = ["myst_nb", "sphinx.ext.mathjax"]
exclude_patterns = ["files"]

nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "attrs_inline"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_show_copyright = html_show_sphinx = html_copy_source = False
html_show_sourcelink = html_use_index = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

# Equations are drawn by MathJax from the book's own folder: no page asks another host for anything.
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}


def copy_scripts(app, error):
    """MathJax with its fonts, and plotly for the figures that can be turned, out of their packages."""
    if error or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static/mathjax"
    fonts = "output/chtml/fonts/woff-v2"
    (static / "mathjax").mkdir(exist_ok=True)
    shutil.copy(mathjax / "tex-chtml.js", static / "mathjax")
    shutil.copytree(mathjax / fonts, static / "mathjax" / fonts, dirs_exist_ok=True)
    if any("data-figure=" in page.read_text(encoding="utf-8") for page in Path(app.outdir).glob("*.html")):
        plotly = Path(importlib.util.find_spec("plotly").origin).parent
        shutil.copy(plotly / "package_data/plotly.min.js", static)


# What the theme leaves out for readers who hear the page.
REPAIRS = {
    'role="heading">': 'role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Lessons">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
    '<div id="search-results"></div>': '<h1>Search</h1><div id="search-results"></div>',
}


def repair(app, error):
    if error or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        for old, new in REPAIRS.items():
            page = page.replace(old, new)
        page = re.sub(r"<th[^>]*>(<p></p>)?</th>", "<td></td>", page)
        path.write_text(page, encoding="utf-8")


def setup(app):
    app.connect("build-finished", repair)
    app.connect("build-finished", copy_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
