"""Figures for hovering: what is stored is the same everywhere, with a picture and the course's template."""

import base64
import json

import numpy as np
import plotly.graph_objects as go
import pytest
from course import hover
from matplotlib import pyplot as plt

pytestmark = pytest.mark.usefixtures("no_figure_stays_open")


@pytest.fixture
def shown(monkeypatch):
    """Shows a plotly figure and returns (data, metadata) of its output."""
    outputs = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, raw, metadata: outputs.append((data, metadata))
    )

    def show(figure, alt="A line that climbs from 1 to 2."):
        static, axis = plt.subplots()
        axis.plot([1, 2])
        hover.show_interactive(figure, static, alt)
        return outputs.pop()

    return show


def test_last_bits_do_not_reach_what_is_stored(shown):
    z = np.array([[1 / 3, 2.0, np.nan], [1e-7 / 3, -0.0, 12345.678]])
    figures = [go.Figure(go.Surface(z=z * factor, x=np.arange(3))) for factor in (1, 1 + 1e-15)]
    one, other = (json.dumps(shown(figure)[0][hover.MIME], allow_nan=False) for figure in figures)
    assert one == other and "bdata" not in one
    (trace,) = json.loads(one)["data"]
    assert trace["z"] == [[0.3333, 2, None], [3.333e-08, 0, 12350]] and trace["x"] == [0, 1, 2]


def test_the_picture_and_the_sentence_stand_beside_it(shown):
    data, metadata = shown(go.Figure(go.Scatter(y=[1, 2])))
    assert base64.b64decode(data["image/jpeg"]).startswith(b"\xff\xd8\xff") and plt.get_fignums() == []
    assert data["text/plain"] == "Figure: A line that climbs from 1 to 2."
    assert "image/png" not in data, "JupyterLab would show it in place of the figure"
    assert metadata["image/jpeg"]["alt"] == "A line that climbs from 1 to 2."
    with pytest.raises(ValueError, match="say in one sentence"):
        shown(go.Figure(), alt="plot")


def test_it_has_the_course_s_template_and_not_plotly_s(shown):
    figure = go.Figure(go.Scatter(y=[1, 2]), layout={"title": {"text": "Two"}, "height": 300})
    layout = shown(figure)[0][hover.MIME]["layout"]
    style = layout["template"]["layout"]
    assert style["colorway"][:2] == ["#0072B2", "#D55E00"] and "bar" not in layout["template"]["data"]
    assert layout["height"] == 300 and layout["title"]["text"] == "Two", "what the figure says itself stays"
    assert figure.layout.template != hover.template(), "the caller's figure is left as it was"
