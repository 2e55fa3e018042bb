"""Figures that a reader turns, zooms and asks by hovering (plotly).

GitHub and the strict comparison of notebooks shape what is stored: a picture beside the plotly figure, a
template of our own instead of plotly's, and numbers of four digits. The picture is a JPEG, because JupyterLab
shows a PNG in place of the figure until the pointer enters it.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import plotly.graph_objects as go
from matplotlib import rc_params_from_file
from matplotlib.figure import Figure
from PIL import Image

from mmlib.figures import INK, PALE, STYLE

from .charts import png_of, sentence

MIME = "application/vnd.plotly.v1+json"
# No bar of buttons, which would lie over the title on a narrow screen: a double click undoes what was zoomed.
CONFIG = {"displayModeBar": False, "responsive": True, "scrollZoom": False, "plotlyServerURL": ""}


def template() -> go.layout.Template:
    """The style of ``mmlib/figures.mplstyle``, said to plotly."""
    style = rc_params_from_file(STYLE, use_default_template=False)
    grid = f"#{style['grid.color'].lstrip('#')}"
    axis = {"color": INK, "gridcolor": grid, "linecolor": INK, "zerolinecolor": PALE}
    flat = axis | {"showline": True, "ticks": "outside", "tickcolor": INK, "automargin": True}
    space = axis | {"showbackground": False}
    one_hue = [{"colorscale": "Cividis"}]  # reads in grey, too
    return go.layout.Template(
        data={"surface": one_hue, "heatmap": one_hue, "contour": one_hue},
        layout={
            "autosize": True,
            "colorway": style["axes.prop_cycle"].by_key()["color"],
            "font": {"family": "DejaVu Sans, Verdana, sans-serif", "size": 13, "color": INK},
            "title": {"x": 0.01, "xanchor": "left", "font": {"size": 15, "weight": "bold"}},
            "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "hoverlabel": {"bgcolor": "white", "font": {"color": INK}},
            "legend": {"bgcolor": "rgba(255,255,255,0.8)"},
            "xaxis": flat | {"showgrid": False},
            "yaxis": flat,
            "scene": {"xaxis": space, "yaxis": space, "zaxis": space},
        },
    )


def plain(value):
    """JSON that is the same on every processor: lists, floats of four digits, null for what is not finite."""
    if isinstance(value, dict) and "bdata" in value:  # how plotly stores an array
        array = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
        shape = [int(n) for n in str(value.get("shape", len(array))).split(",")]
        return plain(array.reshape(shape))
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        short = float(f"{value:.4g}") + 0.0  # and no -0.0
        return (int(short) if short.is_integer() else short) if np.isfinite(value) else None
    return value


def menu(buttons: list[dict], y: float, **options) -> dict:
    """A menu above the left end of a figure."""
    return {"buttons": buttons, "x": 0, "xanchor": "left", "y": y} | options


def button_of_traces(label: str, visible: list[bool]) -> dict:
    """An entry of a menu that shows some of a figure's traces."""
    return {"label": label, "method": "update", "args": [{"visible": visible}]}


def show_interactive(figure: go.Figure, static: Figure, alt: str) -> None:
    """Display a plotly figure; where none can be drawn, ``static``, whose text form is ``Figure: <alt>``.

    Its numbers are compared digit by digit: draw closed forms and records, not what a training produced.

    Raises:
        ValueError: ``alt`` is empty or not a sentence.
    """
    from IPython.display import display

    alt = sentence(static, alt)
    png, width = png_of(static)
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").save(jpeg, "JPEG", quality=90, subsampling=0)
    figure = go.Figure(figure).update_layout(template=template(), height=figure.layout.height or 420)
    data = {
        MIME: plain(figure.to_plotly_json()) | {"config": CONFIG},
        "image/jpeg": base64.b64encode(jpeg.getvalue()).decode(),
        "text/plain": f"Figure: {alt}",
    }
    display(data, raw=True, metadata={"image/jpeg": {"width": width, "alt": alt}})
