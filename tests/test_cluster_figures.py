"""Figures of clustering without labels: pictures and numbers in the axes against loops, numpy and closed
forms.
"""

import json
import runpy

import matplotlib

matplotlib.use("Agg")  # before figures are drawn: no window may open

import numpy as np
import pytest
import torch
from course import record_figures, run_figures
from course import token_figures as figures
from matplotlib import pyplot as plt

pytestmark = pytest.mark.usefixtures("no_figure_stays_open")


def test_components_are_those_of_numpy_with_a_fixed_sign():
    rng = np.random.default_rng(0)
    tokens = [torch.tensor(rng.normal(size=(n, 6, 4, 5)) * np.arange(1, 7)[:, None, None]) for n in (2, 3)]
    mean, axes, low, high = figures.components(tokens)
    rows = np.concatenate([t.permute(0, 2, 3, 1).reshape(-1, 6).numpy() for t in tokens])
    expected = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:3]
    assert np.allclose(mean, rows.mean(0)) and np.allclose(
        np.abs(axes.numpy() @ expected.T), np.eye(3), atol=1e-9
    )
    assert all(axis[axis.abs().argmax()] > 0 for axis in axes), "the largest entry of each axis is positive"
    values = (rows - rows.mean(0)) @ axes.numpy().T
    assert np.allclose(low, np.quantile(values, 0.02, axis=0)) and np.allclose(
        high, np.quantile(values, 0.98, axis=0)
    )
    again = figures.components([-t for t in tokens])[1]
    assert torch.allclose(again, axes), "tokens turned round have the same axes"


def test_one_basis_gives_equal_tokens_equal_colours():
    torch.manual_seed(0)
    tokens = torch.randn(2, 5, 3, 4)
    tokens[1, :, 2, 3] = tokens[0, :, 0, 1]
    basis = figures.components([tokens])
    drawn = figures.token_pictures(tokens, basis)
    assert (
        drawn.shape == (2, 3, 4, 3) and drawn.dtype == np.uint8 and (drawn[1, 2, 3] == drawn[0, 0, 1]).all()
    )
    line = (
        torch.arange(100.0).reshape(1, 1, 10, 10) * torch.tensor([1.0, 0, 0])[:, None, None]
        + torch.randn(1, 3, 10, 10) * 1e-6
    )
    red = figures.token_pictures(line, figures.components([line]))[0, :, :, 0].ravel().astype(int)
    assert red[0] == 0 and red[-1] == 255 and (np.diff(red) >= 0).all()
    with pytest.raises(ValueError, match="expected"):
        figures.components([torch.zeros(1, 5, 2, 2), torch.zeros(1, 6, 2, 2)])
    with pytest.raises(ValueError, match="3 or more"):
        figures.components([torch.zeros(1, 2, 2, 2)])


def test_correspondence_maps_are_cosines():
    torch.manual_seed(0)
    tokens = torch.randn(2, 4, 3, 5)
    maps = figures.correspondence_maps(tokens, (2, 1))
    query = tokens[0, :, 2, 1].double().numpy()
    for b in range(2):
        for y in range(3):
            for x in range(5):
                other = tokens[b, :, y, x].double().numpy()
                assert float(maps[b, y, x]) == pytest.approx(
                    query @ other / np.linalg.norm(query) / np.linalg.norm(other), abs=1e-5
                )
    assert float(maps[0, 2, 1]) == pytest.approx(1)


def test_the_query_is_marked_at_the_centre_of_its_token():
    """A grid of 3 x 4 tokens on 24 x 32 pixels: token (2, 1) covers rows 16 to 23 and columns 8 to 15."""
    picture = [np.zeros((24, 32, 3), np.uint8)] * 2
    fig = figures.correspondence_figure(
        {"a": picture, "b": picture}, {n: torch.randn(2, 5, 3, 4) for n in "ab"}, (2, 1), "t"
    )
    axes = fig.axes[:8]
    for number, axis in enumerate(axes):
        marks = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axis.lines}
        assert marks == ({(11.5, 19.5)} if number % 4 < 2 else set()), "only the first image and its own map"
    assert axes[1].images[0].get_extent() == [-0.5, 31.5, 23.5, -0.5] and axes[1].images[0].get_clim() == (
        -1,
        1,
    )


def entry(counts, low, high, shift, attracted=0.25):
    return {"counts": counts, "low": low, "high": high, "shift": shift, "attracted": attracted}


def test_histograms_are_densities_with_b_where_it_is():
    ax = plt.figure().add_subplot()
    run_figures.shift_histogram(
        {"self": entry([1, 3, 4], -0.6, 0.6, 0.2), "random": entry([2, 2], -1.0, 1.0, None)}, ax, "F'"
    )
    steps = [patch.get_data() for patch in ax.patches]
    assert all(np.sum(s.values * np.diff(s.edges)) == pytest.approx(1) for s in steps)
    assert np.allclose(steps[0].edges, [-0.6, -0.2, 0.2, 0.6]) and np.allclose(
        steps[0].values, np.array([1, 3, 4]) / 8 / 0.4
    )
    assert [float(line.get_xdata()[0]) for line in ax.lines] == [0.2], "an adaptive b has no line"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "self: b 0.20, 25 % above",
        "random: b adaptive",
    ]


COLLAPSE = {
    "effective_rank": 3.5,
    "mean_similarity": 0.2,
    "negative_share": 0.4,
    "use_min": 0.1,
    "use_max": 0.5,
    "inertia": 0.1,
}


def write_run(folder, history, **changes):
    report = {
        "config": {"method": "unim2"},
        "step": 40,
        "split": "val",
        "scores": {"miou": {"all": 21.34}},
        "use": [0.1, 0.6, 0.3],
        "criteria": {"explained": 0.41},
        "collapse": COLLAPSE,
        "histograms": {
            f"{name}/{pair}": entry([1, 2], -1.0, 1.0, 0.1)
            for name in ("rgb", "rgb&depth")
            for pair in ("self", "random")
        },
    } | changes
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    return folder


def titles(fig):
    return [axis.get_title(loc="left") for axis in fig.axes]


def test_run_figure_draws_what_the_history_holds(tmp_path, monkeypatch):
    measured = lambda step, rank: {
        "step": step,
        "val": {"miou": 20.0, "criteria": {}} | COLLAPSE | {"effective_rank": rank},
    }
    history = [
        {"step": 20, "rgb/self": -0.1, "rgb/random": 0.3, "loss": 0.2, "seconds": 1.0},
        measured(20, 9.0),
        {"step": 40, "rgb/self": -0.2, "rgb/random": 0.1, "loss": -0.1, "seconds": 2.0},
        measured(40, 7.0),
    ]
    fig = run_figures.run_figure(write_run(tmp_path / "run", history))
    loss, rank, similarity, use, *histograms = fig.axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in loss.lines}
    assert lines == {
        "rgb/self": ([20, 40], [-0.1, -0.2]),
        "rgb/random": ([20, 40], [0.3, 0.1]),
        "loss": ([20, 40], [0.2, -0.1]),
    }
    assert list(rank.lines[0].get_ydata()) == [9.0, 7.0] and rank.get_ylim()[1] > 9
    assert [list(line.get_ydata()) for line in similarity.lines] == [[0.2, 0.2], [0.4, 0.4]]
    assert [bar.get_height() for bar in use.patches] == pytest.approx([60, 30, 10]), (
        "largest first, in per cent"
    )
    assert [a.get_title(loc="left") for a in histograms] == ["F' of rgb", "F' of rgb&depth"]
    assert "unim2" in fig._suptitle.get_text() and "21.3 %" in fig._suptitle.get_text()
    monkeypatch.setattr("sys.argv", ["run_figures.py", str(tmp_path / "run")])
    runpy.run_path(run_figures.__file__, run_name="__main__")
    assert (tmp_path / "run" / "diagnostics.png").exists()
    assert not plt.get_fignums(), "no figure may stay in pyplot's hands"


def test_run_figure_prefers_what_was_logged_with_the_steps(tmp_path):
    logged = [
        {"step": s, "loss": 0.1, "seconds": 1.0} | COLLAPSE | {"effective_rank": r}
        for s, r in ((20, 8.0), (40, 6.0))
    ]
    history = [*logged, {"step": 40, "val": COLLAPSE}]
    loss, rank, *_ = run_figures.run_figure(write_run(tmp_path / "run", history)).axes
    assert [line.get_label() for line in loss.lines] == ["loss"]
    assert list(rank.lines[0].get_ydata()) == [8.0, 6.0]


def test_run_figure_without_labels_and_without_a_run(tmp_path):
    history = [{"step": 1, "loss": 0.1, "seconds": 1.0}, {"step": 1, "val": COLLAPSE}]
    fig = run_figures.run_figure(write_run(tmp_path / "k", history, scores=None))
    assert "no labels" in fig._suptitle.get_text() and list(fig.axes[1].lines[0].get_ydata()) == [3.5]
    with pytest.raises(ValueError, match=r"report\.json: no such file; expected the report of a finished"):
        run_figures.run_figure(tmp_path / "nothing")


def run(method, seed, miou, scene="room", sensors="RT", **more):
    return {
        "scene": scene,
        "sensors": sensors,
        "method": method,
        "seed": seed,
        "miou": miou,
        "kmeans_sd": 0.5,
    } | more


RECORD = {
    "runs": [
        run("unim2", 1, 12.0, iou={"bed": 3.0}, criteria={"explained": None}),
        run("unim2", 0, 10.0, iou={"bed": 1.0}),
        run("stego", 0, 7.0),
        run("stego", 1, 8.0),
        run("stego", 0, 99.0, scene="street"),
        run("stego", 0, 98.0, sensors="R"),
    ]
}


def test_groups_are_sorted_by_seed_and_filtered():
    groups = record_figures.grouped(RECORD, "room", "RT")
    assert list(groups) == ["unim2", "stego"] and groups["unim2"]["seeds"] == [0, 1]
    summary = groups["unim2"]["summary"]["all"]
    assert (
        summary["miou"] == [10.0, 12.0]
        and summary["iou/bed"] == [1.0, 3.0]
        and "seed" not in summary
        and "scene" not in summary
    )
    difference = record_figures.paired(groups, "unim2", "stego", "miou")
    assert difference.mean == pytest.approx(3.5) and difference.n == 2
    assert record_figures.grouped(RECORD, "room", "RNPA") == {}


def test_method_bars_have_means_and_both_spreads():
    panels = {
        "room": record_figures.grouped(RECORD, "room", "RT"),
        "street": record_figures.grouped(RECORD, "street", "RT"),
    }
    fig = record_figures.method_bars(panels, {"stego": "STEGO", "absent": "?", "unim2": "ours"})
    room, street = fig.axes
    assert [t.get_text() for t in room.get_yticklabels()] == ["STEGO", "ours"]
    assert [bar.get_width() for bar in room.patches] == [7.5, 11.0] and [
        bar.get_width() for bar in street.patches
    ] == [99.0]
    spans = sorted(float(np.ptp(c.get_segments()[0][:, 0])) for c in room.collections)
    assert spans == pytest.approx([1.0, 1.0, 2 * np.std([7, 8], ddof=1), 2 * np.std([10, 12], ddof=1)])
    assert len(street.collections) == 1, "one seed has no spread of training"
    rings = [sorted(line.get_xdata()) for line in room.lines if line.get_marker() == "o"]
    assert [7.0, 8.0] in rings and [10.0, 12.0] in rings
