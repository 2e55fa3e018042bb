"""The panel of label-free clusters: pictures against a palette by hand, numbers in step with the sliders,
files that are not its own.
"""

import base64
import io
import re

import numpy as np
import pytest
from course import cluster_panel
from course.cluster_grid import LAYOUT, attracting, collapse_reason, load_panel, save_panel
from course.cluster_panel import ClusterPanel
from matplotlib import pyplot as plt
from PIL import Image
from test_switchboard_panel import SCRIPT, Tags, html_of

from mmlib.unsupervised.clustering import cluster_palette

PALETTE = [(10, 0, 0), (0, 20, 0), (0, 0, 30)]
GREY, RIGHT, WRONG = (64, 64, 64), (225, 225, 225), (213, 94, 0)
SIZES = {"L": 3, "B": 2, "K": 2, "C": 4, "F": 2, "H": 6, "W": 8, "S": 2, "3": 3}
NOTES = {
    "classes": ["a", "b", "c"],
    "palette": PALETTE,
    "sensors": ["rgb", "thermal"],
    "frames": ["f0", "f1"],
    "conditions": ["day", "<night>"],
    "split": "val",
    "quantiles": [0.6, 0.6, 0.9],
    "provenance": {"command": "none"},
}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shape = {name: tuple(SIZES[axis] for axis in axes) for name, axes in LAYOUT.items()}
    found = {name: rng.random(size).astype(np.float32) for name, size in shape.items()}
    found |= {name: rng.integers(0, 256, shape[name]).astype(np.uint8) for name in ("pictures",)}
    found["lambdas"], found["offsets"], found["clusters"] = (
        np.float32([0, 0.3, 1]),
        np.float32([-0.5, 0]),
        np.int16([3, 4]),
    )
    found["maps"] = rng.integers(0, 3, shape["maps"]).astype(np.uint8)
    found["mapping"] = np.tile(np.int8([2, 0, -1, 1]), (*shape["miou"], 1))
    found["labels"] = rng.integers(0, 3, shape["labels"]).astype(np.uint8)
    found["labels"][:, 0] = 255
    found["miou"] *= 100
    found["rank"] = 3 + 5 * found["rank"]
    found["similarity"] *= 0.5
    for name in ("miou", "accuracy", "explained"):
        found[name][0, 0] = np.nan  # λ 0 with the lowest b collapsed
    found["rank"][0, 0] = found["similarity"][0, 0] = np.nan
    found["maps"][0, 0] = 255
    return found


@pytest.fixture
def file(arrays, tmp_path):
    return save_panel(tmp_path / "panel.npz", arrays, NOTES)


@pytest.fixture
def panel(file):
    return ClusterPanel(file)


def images(panel) -> list[tuple[str, np.ndarray]]:
    """(alt, pixels) of every picture, row by row."""
    found = re.findall(r'<img alt="([^"]*)"[^>]*base64,([^"]+)"', panel.pictures.value)
    return [(alt, np.array(Image.open(io.BytesIO(base64.b64decode(data))))) for alt, data in found]


def test_starts_at_the_usual_settings_and_has_a_constant_text_form(panel):
    assert repr(panel) == "ClusterPanel(sensors=rgb + thermal; 3 lambdas, 2 offsets, 2 clusters)"
    state = panel.state()
    assert (state["weight"], state["offset"], state["clusters"], state["view"], state["error"]) == (
        1.0,
        0.0,
        3,
        "classes",
        "",
    )
    panel.set(weight=0.0)
    assert repr(panel).startswith("ClusterPanel(sensors=rgb + thermal;")


def test_pictures_are_those_of_the_combination(panel, arrays):
    """Colours by hand, pixel by pixel: cluster 2 has no class and is grey, label 255 is grey and neither
    right nor wrong.
    """
    panel.set(weight=0.3, offset=-0.5, clusters=4)
    classes = {0: 2, 1: 0, 2: None, 3: 1}
    for view in ("classes", "errors", "clusters"):
        panel.set(view=view)
        shown = images(panel)
        assert len(shown) == 8, "two frames of two sensors, a result and a label"
        for frame in range(2):
            rgb, thermal, drawn, label = (pixels for _, pixels in shown[4 * frame : 4 * frame + 4])
            assert np.array_equal(rgb, arrays["pictures"][frame, 0]) and np.array_equal(
                thermal, arrays["pictures"][frame, 1]
            )
            for y in range(6):
                for x in range(8):
                    cluster, true = (
                        int(arrays["maps"][1, 0, 1, frame, y, x]),
                        int(arrays["labels"][frame, y, x]),
                    )
                    found = classes[cluster]
                    expected = {
                        "classes": GREY if found is None else PALETTE[found],
                        "clusters": cluster_palette(4)[cluster],
                        "errors": GREY if true == 255 else RIGHT if found == true else WRONG,
                    }[view]
                    assert tuple(drawn[y, x]) == expected
                    assert tuple(label[y, x]) == (GREY if true == 255 else PALETTE[true])


def test_a_cluster_keeps_its_colour_when_their_number_changes(panel, arrays):
    arrays["maps"][:] = 1
    colours = {k: tuple(images_of(panel, arrays, k)[0, 0]) for k in (3, 4)}
    assert colours[3] == colours[4]


def images_of(panel, arrays, clusters):
    panel.arrays["maps"] = arrays["maps"]
    panel.set(clusters=clusters, view="clusters", weight=1.0)
    return images(panel)[2][1]


def test_numbers_and_words_follow_the_sliders(panel, arrays):
    for i, weight in enumerate((0.0, 0.3, 1.0)):
        for j, offset in enumerate((-0.5, 0.0)):
            for k, clusters in enumerate((3, 4)):
                if (i, j) == (0, 0):
                    continue
                state = panel.set(weight, offset, clusters)
                for name in ("miou", "accuracy", "explained"):
                    assert state[name] == pytest.approx(float(arrays[name][i, j, k]))
                assert state["rank"] == pytest.approx(float(arrays["rank"][i, j]))
                assert f"mIoU <b>{arrays['miou'][i, j, k]:.1f} %</b>" in panel.status.value
                highlighted = re.findall(r"outline:[^>]*>([^<]*)<", panel.numbers.value)
                assert highlighted == [f"{arrays['miou'][i, j, k]:.1f}"], (
                    "one cell of the table is marked, the one that is shown"
                )
                share = {-0.5: 90, 0.0: 40}[offset]  # of the levels 0.6 + offset
                words = f"λ {weight:g}, {share} % of the self pairs attract, {clusters} clusters"
                assert words in images(panel)[2][0] and words in panel.status.value
                assert state["share"] == share and not state["collapsed"]


def test_share_of_right_pixels_in_the_words_ignores_unlabelled_ones(panel, arrays):
    panel.set(weight=1.0, offset=0.0, clusters=3)
    table = np.array([2, 0, -1, 1])
    label, found = arrays["labels"][0], table[arrays["maps"][2, 1, 0, 0]]
    right = np.mean([a == b for a, b in zip(found.ravel(), label.ravel()) if b != 255])
    assert f"{100 * right:.0f} % of pixels right" in images(panel)[2][0]


def test_a_slider_moved_by_hand_redraws(panel):
    before = panel.pictures.value
    panel.weight.value = 0.3  # what a browser does when a key is pressed
    assert panel.state()["weight"] == 0.3 and panel.pictures.value != before


def test_a_collapse_is_said_and_nothing_is_drawn_as_a_class(panel):
    state = panel.set(weight=0.0, offset=-0.5)
    assert state["collapsed"] and state["error"] == "" and "fewer directions" in state["reason"]
    assert "Collapsed" in panel.status.value and ">– ✕<" in panel.numbers.value
    assert (images(panel)[2][1] == 64).all()


def test_codes_that_collapsed_but_were_clustered_are_called_collapsed(panel, arrays):
    """k-means found its clusters, and the score looks like one; rank and mean S say what it is."""
    for rank, similarity, reason in ((1.08, 1.0, "mean S 1.00, effective rank 1.1"), (1.4, 0.0, "one line")):
        panel.arrays["rank"][1, 0], panel.arrays["similarity"][1, 0] = rank, similarity
        state = panel.set(weight=0.3, offset=-0.5)
        assert state["collapsed"] and reason in state["reason"] and np.isfinite(state["miou"])
        assert state["reason"] in panel.status.value and "Collapsed" in panel.status.value
        assert f">{arrays['miou'][1, 0, 0]:.1f} ✕<" in panel.numbers.value
    assert not panel.set(offset=0.0)["collapsed"] and "Collapsed" not in panel.status.value
    assert collapse_reason(9.0, 0.1) == "" and "0.85" in collapse_reason(5.0, 0.85)
    assert collapse_reason(float("nan"), 0.1) and attracting((0.6,), 0.35) == 5 and attracting((0.6,), 1) == 1


def test_a_pinned_state_is_compared_with(panel, arrays):
    panel.set(weight=1.0, offset=0.0, clusters=3)
    pinned = panel.pin()["pinned"]
    assert pinned["miou"] == pytest.approx(float(arrays["miou"][2, 1, 0]))
    panel.set(weight=0.3)
    difference = arrays["miou"][1, 1, 0] - arrays["miou"][2, 1, 0]
    assert f"{difference:+.1f} points against the pinned λ 1, 40 %" in panel.status.value
    panel.set(weight=0.0, offset=-0.5)
    assert "no difference" in panel.status.value and "nan" not in panel.status.value


def test_scenario_buttons_set_the_sliders(panel):
    buttons = {b.description: b for b in panel.children[2].children if hasattr(b, "click")}
    assert set(panel.scenarios) | {"pin"} == set(buttons)
    buttons["nearly all attract"].click()
    assert panel.state()["offset"] == -0.5 and panel.state()["weight"] == 1.0
    buttons["second judge off"].click()
    assert panel.state()["offset"] == 0.0 and panel.state()["weight"] == 0.0
    buttons["pin"].click()
    assert panel.state()["pinned"]["words"].startswith("λ 0")


def test_a_legend_says_what_colours_mean(panel):
    assert all(f"</span>{name}</span>" in panel.pictures.value for name in "abc")
    assert "rgb(10,0,0)" in panel.pictures.value
    panel.set(view="errors")
    assert all(word in panel.pictures.value for word in (">right<", ">wrong<", "rgb(213,94,0)"))
    panel.set(view="clusters")
    assert "no label was read" in panel.pictures.value


def test_a_picture_stands_for_the_panel(panel, arrays):
    fig = panel.figure()
    shown = [np.array(axis.images[0].get_array()) for axis in fig.axes]
    assert len(shown) == 8 and np.array_equal(shown[2], images(panel)[2][1])
    assert f"{panel.state()['miou']:.1f} %" in fig._suptitle.get_text()
    data, metadata = panel._repr_mimebundle_()
    assert data["image/png"] and data["text/plain"] == repr(panel)
    assert f"mIoU {panel.state()['miou']:.1f} %" in metadata["image/png"]["alt"]
    plt.close(fig)


def test_every_picture_has_words_and_names_are_escaped(panel):
    assert all(len(alt) > 10 for alt, _ in images(panel))
    assert "<night>" not in panel.pictures.value and "&lt;night&gt;" in panel.pictures.value
    assert 'role="status"' in panel.status.value and all(
        c.tooltip for c in (panel.weight, panel.offset, panel.clusters, panel.view)
    )
    assert all(c.continuous_update for c in (panel.weight, panel.offset, panel.clusters)), (
        "live while dragging"
    )


@pytest.mark.parametrize("wrong", [{"weight": 0.7}, {"offset": 2.0}, {"clusters": 5}, {"view": "beauty"}])
def test_values_that_were_not_computed_are_refused_and_change_nothing(panel, wrong):
    before = panel.state()
    with pytest.raises(ValueError, match="expected one of"):
        panel.set(**wrong)
    assert panel.state() == before


def test_a_callback_never_raises(panel, monkeypatch):
    monkeypatch.setattr(cluster_panel, "image_html", lambda *_: 1 / 0)
    panel.weight.value = 0.0
    assert "ZeroDivisionError" in panel.state()["error"] and "Could not update" in panel.status.value


def test_what_is_saved_comes_back(file, arrays):
    back, notes = load_panel(file)
    assert all(
        np.array_equal(back[name], arrays[name], equal_nan=arrays[name].dtype.kind == "f") for name in LAYOUT
    )
    assert notes["classes"] == NOTES["classes"] and list(file.parent.iterdir()) == [file], (
        "no temporary file is left"
    )


def test_foreign_and_damaged_files_are_refused(tmp_path, file, arrays):
    with pytest.raises(ValueError, match="no such file; make it with python"):
        ClusterPanel(tmp_path / "none.npz")
    for name, content in (("cut.npz", file.read_bytes()[:-400]), ("text.npz", b"hello"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="damaged, or not a panel"):
            load_panel(tmp_path / name)
    damaged = bytearray(file.read_bytes())
    damaged[damaged.index(b"maps.npy") + 60] ^= 255  # in the data of an array
    (tmp_path / "flipped.npz").write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged, or not a panel"):
        load_panel(tmp_path / "flipped.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3), notes=np.array("{}"))
    with pytest.raises(ValueError, match="'lambdas' has shape"):
        load_panel(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="'labels' has 1 along F, the others 2"):
        save_panel(tmp_path / "x.npz", arrays | {"labels": arrays["labels"][:1]}, NOTES)
    with pytest.raises(ValueError, match="'offsets' has shape"):
        save_panel(tmp_path / "x.npz", arrays | {"offsets": arrays["offsets"][:0]}, NOTES)
    with pytest.raises(ValueError, match="9 clusters, and 'mapping' names 4"):
        save_panel(tmp_path / "x.npz", arrays | {"clusters": np.int16([3, 9])}, NOTES)
    assert not (tmp_path / "x.npz").exists()


def test_names_in_the_file_are_text(arrays, tmp_path):
    names = {key: [f"{name} {SCRIPT}" for name in NOTES[key]] for key in ("classes", "sensors", "conditions")}
    path = save_panel(tmp_path / "panel.npz", arrays, NOTES | names | {"split": SCRIPT})
    html = html_of(ClusterPanel(path))
    assert html.count("onerror") > 8
    Tags().feed(html)
