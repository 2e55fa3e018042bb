"""Pictures of sensors and labels, and the figures made of them."""

import base64
import io
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")  # before figures are drawn: no window may open

import numpy as np
import pytest
import stub_world
import torch
from course import charts
from course.world_source import physical_images
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from mmlib import figures
from mmlib.modalities import SENSORS

pytestmark = pytest.mark.usefixtures("no_figure_stays_open")


@pytest.fixture
def sample():
    frame = stub_world.render_frame(seed=3)
    return physical_images(frame), frame.label


@pytest.fixture
def displayed(monkeypatch):
    calls = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: calls.append((data, options)))
    return calls


def test_show_puts_the_sentence_into_the_text_that_notebooks_compare(displayed):
    fig = charts.bars({"R": 40.0, "D": 50.0})
    charts.show(fig, alt="Depth scores higher\n  than RGB.")
    data, options = displayed[0]
    assert data["text/plain"] == "Figure: Depth scores higher than RGB."
    image = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert options["raw"] and abs(options["metadata"]["image/png"]["width"] * 1.5 - image.width) < 2
    assert not plt.get_fignums(), "an open figure would be drawn a second time at the end of the cell"


@pytest.mark.parametrize("alt", ["", "   ", "plot", "figure 1"])
def test_show_refuses_a_figure_without_a_sentence(alt, displayed):
    with pytest.raises(ValueError, match="one sentence"):
        charts.show(charts.bars({"R": 1.0}), alt=alt)
    assert not displayed and not plt.get_fignums()


def test_a_noisy_figure_is_kept_small(displayed):
    noise = np.random.default_rng(0).integers(0, 255, (150, 200, 3), dtype=np.uint8)
    charts.show(figures.picture_grid([{"noise": noise}]), alt="A picture of pure noise.")
    assert len(displayed[0][0]["image/png"]) < 900_000


def test_a_small_figure_keeps_white_paper_and_rare_hues():
    image = np.full((300, 400, 3), 255, np.uint8)
    image[:200, :300] = np.random.default_rng(0).integers((90, 20, 0), (255, 140, 60), (200, 300, 3))
    image[250:262, :20] = np.linspace((0, 0, 90), (0, 60, 250), 20).round()  # a colour bar's blue end
    before, after = io.BytesIO(), io.BytesIO()
    Image.fromarray(image).save(before, "PNG")
    after.write(charts.small_png(before.getvalue()))
    assert len(after.getvalue()) < len(before.getvalue()) / 2
    drawn = np.asarray(Image.open(after).convert("RGB"))
    assert (drawn[200:250] == 255).all() and (drawn[:, 300:] == 255).all()
    assert np.abs(drawn.astype(int) - image).max() <= 32


@pytest.mark.parametrize("name", SENSORS)
def test_every_sensor_has_a_picture(name, sample):
    images, label = sample
    seen = figures.picture(SENSORS[name], images[name])
    assert seen.shape == (*label.shape, 3) and seen.dtype == np.uint8 and seen.std() > 0
    assert np.array_equal(seen, figures.picture(SENSORS[name], torch.from_numpy(images[name])))


def test_pictures_mean_what_they_say():
    distance = np.full((1, 9, 9), 5.0, np.float32)
    distance[0, :, 4:] = 60
    distance[0, 0, 0], distance[0, 0, 1], distance[0, 0, 2] = 0, np.inf, np.nan
    seen = figures.picture(SENSORS["depth"], distance).astype(int)
    assert (seen[0, :3] == 0).all() and seen[4, 0].sum() > seen[4, 8].sum() > 0, (
        "holes black, near brighter than far"
    )

    point = np.zeros((3, 9, 9), np.float32)
    point[0, 4, 4] = 10
    assert (figures.picture(SENSORS["lidar"], point).any(-1)).sum() == 5, (
        "a lone LiDAR point is drawn as a small cross"
    )

    events = np.zeros((2, 1, 3), np.float32)
    events[0, 0, 1] = events[1, 0, 2] = 6
    seen = figures.picture(SENSORS["event"], events)[0]
    assert seen.tolist() == [[255, 255, 255], list(figures.BRIGHTER), list(figures.DARKER)]

    angles = np.linspace(0, np.pi, 7)  # the polarisation angle; 0 and 180 degrees are the same orientation
    wave = np.stack([np.cos(2 * angles), np.sin(2 * angles)])[:, None].astype(np.float32)
    seen = figures.picture(SENSORS["aolp"], wave)[0].astype(int)
    assert abs(seen[0] - seen[-1]).max() <= 3 and abs(seen[0] - seen[3]).max() > 50
    assert figures.picture(SENSORS["aolp"], 0 * wave)[0, 0].tolist() == [128, 128, 128], (
        "no polarisation is grey"
    )

    cold, hot = figures.picture(SENSORS["thermal"], np.array([[[-5.0, 45.0]]]))[0].astype(int)
    assert hot.sum() > cold.sum() + 300


@pytest.mark.parametrize("shape", [(64, 64), (1, 8, 8), (8, 8, 3)])
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"rgb: expected physical values of shape \(3, H, W\)"):
        figures.picture(SENSORS["rgb"], np.zeros(shape))


def test_an_unknown_kind_of_picture_is_named():
    with pytest.raises(ValueError, match="picture sonar: expected one of colour, grey"):
        figures.picture(replace(SENSORS["nir"], picture="sonar"), np.zeros((1, 4, 4)))


def test_labels_overlays_and_errors():
    label = np.array([[0, 1], [2, 255]])
    colours = figures.label_picture(label, stub_world.PALETTE)
    assert colours[0, 1].tolist() == [128, 64, 128] and colours[1, 1].tolist() == list(figures.IGNORE_COLOUR)
    photo = np.full((2, 2, 3), 100, np.uint8)
    mixed = figures.overlay(photo, label, stub_world.PALETTE)
    assert mixed[0, 1].tolist() == [114, 82, 114] and mixed[1, 1].tolist() == [100, 100, 100]
    errors = figures.error_picture(np.array([[0, 0], [2, 0]]), label)
    assert errors[0, 1].tolist() == list(figures.DARKER) and errors[1, 1].tolist() == list(
        figures.IGNORE_COLOUR
    )
    with pytest.raises(ValueError, match="label has id 7; the palette has 4"):
        figures.label_picture(np.array([[7]]), stub_world.PALETTE)


def texts(fig) -> str:
    return " ".join(text.get_text() for text in fig.findobj(matplotlib.text.Text))


def test_the_contact_sheet_names_sensors_and_the_classes_that_occur(sample):
    images, label = sample
    label = np.where(label == 3, 255, label)
    fig = charts.sample_figure(
        images, label, stub_world.PALETTE, classes=stub_world.CLASSES, title="What each sensor sees"
    )
    written = texts(fig)
    for word in ["What each sensor sees", "R rgb", "A aolp", "label", "road", "ignored"]:
        assert word in written
    assert "car" not in written
    assert fig.get_figwidth() == figures.WIDTH


def test_names_are_drawn_as_they_are_written_and_cut_to_their_place(tmp_path):
    names, white = ["$x_1$", "$\\frac{", "n" * 50_000], np.full((8, 8, 3), 255, np.uint8)
    figure = figures.picture_grid([{"$\\frac{": white}] * 3, names, "$\\sqrt{")
    figures.class_legend(figure, names, [(1, 2, 3)] * 3)
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert {"$x_1$", "$\\frac{", "$\\sqrt{", "n" * 60} <= texts
    figures.save_figure(figure, tmp_path / "a.png")  # a formula that is none would raise
    assert max(Image.open(tmp_path / "a.png").size) < 4000


def test_a_grid_leaves_a_gap_where_a_row_has_no_picture(sample):
    grey = np.full((8, 8, 3), 128, np.uint8)
    fig = figures.picture_grid([{"R rgb": grey, "label": grey}, {"label": grey}], ["day", "night"])
    assert [len(axis.images) for axis in fig.axes] == [1, 1, 0, 1]
    assert "night" in texts(fig)


def test_bars_show_every_seed_and_the_sensors_colours():
    fig = charts.bars({"R": [40, 44], "RD": 60.0, "depth": 30.0, "gone": np.nan}, title="t")
    axis = fig.axes[0]
    colours = [matplotlib.colors.to_hex(patch.get_facecolor()).upper() for patch in axis.patches]
    assert (
        colours[0] == SENSORS["rgb"].colour
        and colours[1] == figures.FUSED
        and colours[2] == SENSORS["depth"].colour
    )
    assert axis.patches[0].get_height() == 42 and axis.get_ylabel() == "mIoU (%)"
    assert any(len(line.get_xdata()) == 2 and sorted(line.get_ydata()) == [40, 44] for line in axis.lines)


def test_subset_bars_mark_who_is_present():
    fig = charts.subset_bars({"R": 40.0, "D": 42.0, "RD": 55.0}, "Both help")
    dots = fig.axes[1].collections
    pale = matplotlib.colors.to_rgba(figures.PALE)
    present = [[tuple(colour) != pale for colour in row.get_facecolors()] for row in dots]
    assert present == [[True, False, True], [False, True, True]]
    assert "R rgb" in texts(fig) and "D depth" in texts(fig)


def test_curves_are_named_at_their_end():
    fig = charts.curves({"R": ([0, 1], [1.0, 0.5]), "total": ([0, 1], [2.0, 1.0])}, "Loss falls")
    assert fig.axes[0].lines[0].get_color() == SENSORS["rgb"].colour
    assert {"R", "total", "step", "loss"} <= set(texts(fig).split())


def test_the_style_reads_at_notebook_width():
    with matplotlib.rc_context():
        figures.use_style()
        assert plt.rcParams["font.size"] >= 9 and plt.rcParams["figure.figsize"][0] == figures.WIDTH


def test_modality_colours_differ_and_are_not_the_grey_of_fused_results():
    colours = [m.colour for m in SENSORS.values()]
    assert len(set(colours)) == len(colours) and figures.FUSED not in colours
    assert charts.modality_colour("RD") == figures.FUSED
    assert charts.modality_colour("D") == charts.modality_colour("depth")


def contrast_on_white(colour) -> float:
    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 1.05 / (0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05)


@pytest.mark.parametrize("name", SENSORS)
def test_words_in_a_sensors_colour_read_on_white(name):
    assert contrast_on_white(figures.text_colour(SENSORS[name])) >= 4.5  # WCAG 2, AA


@pytest.mark.parametrize("line, words", charts.READABLE.items())
def test_words_in_the_colour_of_a_line_are_darkened(displayed, line, words):
    assert contrast_on_white(line) < 4.5 <= contrast_on_white(words)
    fig, axis = plt.subplots()
    text = axis.text(0, 0, "better", color=line)
    axis.plot([0, 1], color=line)
    charts.show(fig, "One line rises from left to right.")
    assert (text.get_color(), axis.lines[0].get_color()) == (words, line)
