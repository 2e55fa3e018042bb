"""Figures of a comparison record: differences against scipy and by hand, rows that are missing, what lies
where in the axes.
"""

import matplotlib

matplotlib.use("Agg")  # before figures are drawn: no window may open

import numpy as np
import pytest
from course import record_figures as info
from matplotlib.colors import to_hex
from scipy import stats

from mmlib.evaluation.statistics import estimate
from mmlib.modalities import SENSORS

pytestmark = pytest.mark.usefixtures("no_figure_stays_open")


def group(full, seeds=(0, 1, 2), **subsets):
    return {"seeds": list(seeds), "summary": {"all": {"full": list(full)}}, "miou": {"all": subsets}}


GROUPS = {
    "reference": group([50.0, 52.0, 51.0], R=[30.0, 31.0, 32.0]),
    "better": group(
        [55.1, 53.0, 54.2], seeds=(1, 0, 2)
    ),  # the order of the seeds is not that of the reference
    "worse": group([40.0, 42.1, 41.0]),
    "open": group([49.0, 54.0, 50.0]),
    "single": group([60.0], seeds=[1]),
}


def test_differences_are_paired_by_seed_and_not_by_place():
    d = info.paired(GROUPS, "better", "reference", "full")
    by_hand = [53.0 - 50.0, 55.1 - 52.0, 54.2 - 51.0]
    low, high = stats.ttest_rel([53.0, 55.1, 54.2], [50.0, 52.0, 51.0]).confidence_interval()
    assert d.mean == pytest.approx(np.mean(by_hand)) and (d.low, d.high) == pytest.approx((low, high))
    assert info.paired(GROUPS, "single", "reference", "full").mean == pytest.approx(60 - 52)  # seed 1 of both
    assert info.per_seed(GROUPS["reference"], "R") == [30.0, 31.0, 32.0]
    with pytest.raises(ValueError, match="share no seed"):
        info.paired({"a": group([1.0], seeds=[0]), "b": group([1.0], seeds=[5])}, "a", "b", "full")


def test_verdicts_follow_the_interval():
    assert info.verdict(estimate([1.0, 1.1, 0.9])) == "clear gain"
    assert info.verdict(estimate([-1.0, -1.1, -0.9]), "up", "down") == "down"
    assert info.verdict(estimate([1.0, -0.5, 2.0])) == "smaller than its spread"
    assert info.verdict(estimate([9.0])) == "one seed: no spread"


def test_reference_dots_leave_missing_rows_out_and_colour_by_verdict():
    rows = {"reference": "ours", "better": "B", "absent": "?", "worse": "W", "open": "O", "single": "S"}
    fig = info.reference_dots(
        GROUPS, rows, "reference", {"full": "All sensors"}, headings={"worse": "Others", "absent": "none"}
    )
    axis = fig.axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["ours", "B", "W", "O", "S"]
    dots = {round(float(line.get_ydata()[0]), 2): line for line in axis.lines if line.get_markersize() == 6.5}
    places = sorted(dots)
    assert [float(dots[p].get_xdata()[0]) for p in places] == pytest.approx(
        [51, np.mean([55.1, 53, 54.2]), np.mean([40, 42.1, 41]), 51, 60]
    )
    expected = (info.INK, info.UP, info.DOWN, info.OPEN, info.OPEN)
    assert [to_hex(dots[p].get_color()) for p in places] == [c.lower() for c in expected]
    texts = [t.get_text() for t in axis.texts]
    assert (
        texts[0] == "reference" and texts[2].startswith("-10.0") and "Others" in texts and "none" not in texts
    )
    assert "±" not in texts[4]  # one seed has no interval
    assert np.diff(places)[1] > np.diff(places)[0]  # a heading opens a space


def test_information_panels_shade_from_least_to_most():
    curve = lambda factor: [
        {"epoch": e, "information": {"rgb": 4.0 * factor * e, "depth": 1.0 * factor, "event": 2.0 * factor}}
        for e in (1.0, 2.0)
    ]
    groups = {"a": {"curves": [curve(1.0), curve(4.0)]}, "b": {"curves": [curve(1.0)]}}
    fig = info.information_panels(groups, {"a": "without", "b": "with"})
    left = fig.axes[0]
    bold = [line for line in left.lines if line.get_label().startswith(("R ", "D ", "E "))]
    assert [line.get_label() for line in bold] == ["R rgb", "D depth", "E event"]
    assert np.allclose(bold[0].get_ydata(), [8.0, 16.0])  # geometric mean of 4 and 16
    assert to_hex(bold[1].get_color()) == SENSORS["depth"].colour.lower()
    band = left.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(2.0) and band.max() == pytest.approx(16.0)
    title = left.get_title("left") + left.get_title(
        "center"
    )  # where it stands depends on the style, which other tests may have set
    assert title.endswith("8.0") and left.get_yscale() == "log"


def test_subset_dots_show_means_and_ranges():
    series = {"one": {"R": [10.0, 20.0], "RD": [30.0, 32.0]}, "two": {"R": [5.0], "RD": [6.0]}}
    fig = info.subset_dots(series, "t")
    top, below = fig.axes
    assert (
        not top.patches and not top.texts and top.get_ylim()[0] > 0
    )  # nothing left of the bars whose layout is used
    assert np.allclose(top.lines[0].get_ydata(), [15.0, 31.0]) and np.allclose(
        top.lines[1].get_ydata(), [5.0, 6.0]
    )
    assert [t.get_text() for t in below.get_yticklabels()] == ["R rgb", "D depth"]
    spans = [segment[:, 1].tolist() for segment in top.collections[0].get_segments()]
    assert spans == [[10.0, 20.0], [30.0, 32.0]]
    assert top.lines[0].get_xdata()[0] < top.lines[1].get_xdata()[0]
    assert to_hex(below.collections[1].get_facecolors()[0]) == info.PALE.lower()  # depth is absent from "R"
