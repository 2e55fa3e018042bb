"""The base of the slider panels: ``switchboard``, ``bound_panel`` and ``cluster_panel``.

A panel redraws once for several changes, says in words what it shows, and never raises inside a callback:
what went wrong is written where the result would stand. It is built from widgets that own their content, so
that it can be tested without a browser and compares stably in a notebook. Beside the widget its output holds
a picture of it (``figure``), for pages where nothing runs.

Sliders report while they are dragged: the browser sends one value, waits until it is drawn, and then sends
the latest, so that a slow redraw skips values and queues none up.
"""

import base64
import io
import re
from collections.abc import Mapping
from html import escape, unescape

import ipywidgets as widgets
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from mmlib.figures import WIDTH, as_written, put_picture

from .charts import png_of

WARNING = "#B34700"  # words about what fails: an orange that reads on white
FAMILY = "font-family:var(--jp-ui-font-family,sans-serif);font-size:13px;line-height:1.35"

# ipywidgets gives the handle of a slider no name. This names every control by its tooltip, which says whose
# it is. The first seconds are enough: views are made then.
NAME_CONTROLS = """<script>
for (let wait = 0; wait < 6000; wait += 300) setTimeout(() => {
  for (const control of document.querySelectorAll(".widget-inline-hbox :is([role=slider], select)")) {
    const box = control.closest(".widget-inline-hbox"), label = box.querySelector("label");
    const name = label?.title || control.title || label?.textContent;
    if (name) control.setAttribute("aria-label", name);
  }
}, wait);
</script>"""


def image_html(image: np.ndarray, alt: str, caption: str = "", lines: int = 3) -> str:
    """An <img> of a picture (H, W, 3) that fills its place without smoothing. Its size is stated, so that the
    page does not jump when it changes. ``caption``, of that many lines, is HTML; what it takes from data is
    escaped by the caller.
    """
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG", compress_level=1)
    data = base64.b64encode(png.getvalue()).decode()
    height, width = image.shape[:2]
    style = f"{FAMILY};text-align:center;min-height:{1.35 * lines}em"
    below = f'<div style="{style}">{caption}</div>' if caption else ""
    return (
        f'<img alt="{escape(alt)}" width="{width}" height="{height}" src="data:image/png;base64,{data}" '
        'style="width:100%;height:auto;max-width:none;image-rendering:pixelated;display:block;'
        f'border:1px solid #d9d9d9">{below}'
    )


def change(now: float | None, before: float | None) -> str:
    """ "+3.1" or "−3.1"; nothing where a number is missing or both are the same."""
    return "" if None in (now, before) or now == before else f"{now - before:+.1f}".replace("-", "−")


def bar_table(
    caption: str,
    rows: Mapping[str, tuple[str, list]],
    width: int,
    heads: tuple = (),
    unit: str = "",
    changes: Mapping[str, list[str]] | None = None,
) -> str:
    """Bars and numbers as a table that screen readers can read.

    Args:
        rows: name -> (colour, per cent for each column; None = no number).
        width: of all bars together, in per cent of the table.
        heads: titles of the columns; none if there is one column.
        changes: name -> what to write behind each number, if anything.
    """
    left = "text-align:left;font-weight:normal;padding:0 4px"
    titles = "".join(
        f'<th colspan="2" scope="col" style="text-align:left;padding:0 4px">{escape(head)}</th>'
        for head in heads
    )
    html = f"<tr><td></td>{titles}</tr>" if heads else ""
    for name, (colour, shares) in rows.items():
        html += f'<tr><th scope="row" style="{left}">{escape(name)}</th>'
        for column, share in enumerate(shares):
            bar = f"background:{escape(colour)};height:8px;width:{share or 0:.0f}%"
            fill = f'<div style="{bar};box-shadow:inset 0 0 0 1px #888"></div>'  # seen on black and on white
            number = "–" if share is None else f"{share:.0f}{unit}"
            behind = f" ({changes[name][column]})" if changes and changes[name][column] else ""
            html += (
                f'<td style="width:{width / len(shares):.0f}%;padding:0 4px">'
                f'<div style="border:1px solid #8886;background:#8882">{fill}</div></td>'
                '<td style="width:1%;white-space:nowrap;text-align:right;padding:0 4px">'
                f"{number}{behind}</td>"
            )
        html += "</tr>"
    caption = f'<caption style="caption-side:top;text-align:left">{escape(caption)}</caption>'
    return f'<table style="{FAMILY};width:100%;border-collapse:collapse;margin:0">{caption}{html}</table>'


def legend(colours: Mapping[str, str]) -> str:
    """Name -> colour, as swatches with their names."""
    swatch = "display:inline-block;width:12px;height:12px;border:1px solid #888;margin-right:4px"
    items = "".join(
        f'<span style="white-space:nowrap;margin-right:12px">'
        f'<span style="{swatch};background:{escape(colour)}"></span>{escape(name)}</span> '
        for name, colour in colours.items()
    )
    return f'<div style="{FAMILY};text-align:center">{items}</div>'


def control(kind: type, description: str, tooltip: str, flex: str = "0 0 auto", **options) -> widgets.Widget:
    """A control with its name and, in words, what it does; ``flex``: CSS, how it shares a row with others."""
    style = {"description_width": "46px"}
    layout = {"flex": flex, "width": "auto", "min_width": "0", "margin": "0 2px"}
    return kind(description=description, tooltip=tooltip, style=style, layout=layout, **options)


def grid(children: list, least: int) -> widgets.GridBox:
    """Children side by side, as many in a row as have room for ``least`` pixels each."""
    columns = f"repeat(auto-fit, minmax(min(100%, {least}px), 1fr))"
    layout = {"grid_template_columns": columns, "grid_gap": "10px", "align_items": "flex-start"}
    return widgets.GridBox(children, layout=layout)


def row(children: list) -> widgets.HBox:
    """Controls in a row that breaks where it is too long."""
    return widgets.HBox(children, layout={"flex_flow": "row wrap", "align_items": "center"})


@as_written
def still(rows: list[Mapping[str, tuple[np.ndarray, str]]], title: str) -> plt.Figure:
    """Rows of pictures, {title: ((H, W, 3), what to write below it)}, as a panel shows them."""
    shapes = [next(iter(row.values()))[0].shape for row in rows]
    tall = [WIDTH / len(row) * shape[0] / shape[1] + 0.5 for row, shape in zip(rows, shapes)]
    fig = plt.figure(figsize=(WIDTH, sum(tall) + 1.0), layout="constrained")
    for part, row in zip(fig.subfigures(len(rows), 1, height_ratios=tall, squeeze=False)[:, 0], rows):
        for axis, (name, (image, below)) in zip(part.subplots(1, len(row), squeeze=False)[0], row.items()):
            put_picture(axis, image, name)
            axis.set(xticks=[], yticks=[], xlabel=below)
    fig.suptitle(title, x=0.01, ha="left", fontsize=10)
    return fig


class Panel(widgets.VBox):
    """A subclass makes its controls, gives those that redraw to ``_follow``, and fills ``_state`` and its
    widgets in ``_refresh``.
    """

    def __init__(self, max_width: str):
        self._state, self._named, self._quiet, self.status = {}, {}, False, widgets.HTML()
        script = {"output_type": "display_data", "data": {"text/html": NAME_CONTROLS}, "metadata": {}}
        self._namer = widgets.Output(outputs=(script,), layout={"height": "0", "margin": "0"})
        super().__init__(layout={"width": "100%", "max_width": max_width})

    def figure(self) -> plt.Figure | None:
        """What the panel shows now as a still picture; None where a subclass has none."""

    def _repr_mimebundle_(self, **options):
        """The widget, its text form, and the picture that a page without a kernel shows instead."""
        if self._namer not in self.children:
            self.children = (*self.children, self._namer)
        data, metadata = super()._repr_mimebundle_(**options), {}
        if figure := self.figure():
            data["image/png"], width = png_of(figure)
            words = unescape(re.sub("<[^>]*>", "", self.status.value))
            metadata["image/png"] = {"width": width, "alt": words}
        return data, metadata

    def _follow(self, **controls: widgets.Widget) -> None:
        """Redraw whenever one of these changes; ``set`` knows them by these names."""
        self._named |= controls
        for control in controls.values():
            control.observe(lambda change: None if self._quiet else self.refresh(), "value")

    def set(self, **values) -> dict:
        """Set the controls that are named, redraw once and return ``state()``.

        Raises:
            ValueError: a name that no control has.
        """
        if unknown := values.keys() - self._named:
            names = ", ".join(self._named)
            raise ValueError(f"no control {', '.join(sorted(unknown))}; expected some of {names}")
        self._quiet = True
        try:
            for name, value in values.items():
                self._named[name].value = value
        finally:
            self._quiet = False
        self.refresh()
        return self.state()

    def refresh(self) -> None:
        """Bring every picture and number in step with the controls."""
        try:
            self._refresh()
        except Exception as error:
            # If the callback raised, the old picture would stay beside the new sliders.
            self._state["error"] = f"{type(error).__name__}: {error}"
            self._say(f"Could not update: {escape(self._state['error'])}", "#B00020")

    def state(self) -> dict:
        """What is shown now; the panel's own text says which keys."""
        return dict(self._state)

    def _say(self, html: str, colour: str = "inherit") -> None:
        """Write the line of the status, which screen readers speak."""
        style = f"{FAMILY};color:{colour};min-height:1.6em;padding:4px 2px"
        self.status.value = f'<div role="status" aria-live="polite" style="{style}">{html}</div>'
