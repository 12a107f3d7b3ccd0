"""Figures: what they show for small inputs made by hand, and what they say when there is nothing to show."""

import io
import itertools
import os
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from aircraft_sae.view import plots

PARTS = ("wing", "fuselage", "nose_gear", "main_gear", "window", "strut")
GREY_PICTURE = np.full((20, 30, 3), 100, np.uint8)
ENTRY = {"value": 0.9, "low": 0.85, "high": 0.94, "n": 1200}


def texts(figure):
    """All visible words in a figure."""
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_visible()]
    return [text for text in found if text.strip()]


def shown(figure):
    return [ax.images[0].get_array() for ax in figure.axes if ax.images]


def test_a_grid_has_its_captions_names_and_a_gap_in_a_short_row():
    rows = [[GREY_PICTURE] * 3, [GREY_PICTURE] * 2]
    figure = plots.picture_grid(rows, [["a", "b", "c"], ["d\nd", "e"]], ["upper", "lower"])
    assert sorted(texts(figure)) == ["a", "b", "c", "d\nd", "e", "lower", "upper"]
    assert len(shown(figure)) == 5 and not figure.axes[5].axison


def test_long_captions_do_not_touch():
    caption = "Northrop P-61 Black Widow\nsaid North American P51 Mustang"
    figure = plots.picture_grid([[GREY_PICTURE] * 5], [[caption] * 5])
    figure.savefig(io.BytesIO(), format="png")
    boxes = [ax.xaxis.label.get_window_extent() for ax in figure.axes]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_marked_pixels_are_orange_and_others_grey():
    mark = np.zeros((20, 30), bool)
    mark[3:6, 4:9] = True
    plain, marked = shown(plots.picture_grid([[GREY_PICTURE], [GREY_PICTURE]], marks=[[None], [mark]]))
    assert (plain == GREY_PICTURE).all()
    assert ((np.ptp(marked.astype(int), axis=2) > 50) == mark).all() and (marked[~mark] == 190).all()


@pytest.mark.parametrize("figure", [
    plots.picture_grid([], empty="no mistakes"), plots.picture_grid([[], []], [[], []], empty="no mistakes"),
    plots.part_masks([], [], [], [], empty="no mistakes"),
])  # fmt: skip
def test_a_figure_says_when_there_is_nothing_to_show(figure):
    assert texts(figure) == ["no mistakes"]


def test_part_masks_stand_below_their_pictures_with_a_colour_for_each_part():
    mask = np.zeros((100, 100), np.uint8)
    mask[40:60, 10:90], mask[60:70, 45:50] = 2, 4
    figure = plots.part_masks([GREY_PICTURE] * 2, [mask, 0 * mask], PARTS, ["it", "sky"], "")
    above, alone, below, empty = shown(figure)
    assert (above == GREY_PICTURE).all() and (alone == GREY_PICTURE).all()
    assert (below == mask).all() and not empty.any() and {"it", "sky"} <= set(texts(figure))
    keys = {text.get_text() for text in figure.legends[0].get_texts()}
    assert keys == {"outside"} | {part.replace("_", " ") for part in PARTS}


def lab(colours, matrix):
    """CIELAB (n, 3) of sRGB colours, seen through a matrix on linear light."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.clip(linear @ np.array(matrix).T, 0, 1) @ np.array(xyz).T / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize(("colours", "least"), [((plots.OUTSIDE, *plots.REGION_COLOURS), 18), (plots.FIVE, 24)])
@pytest.mark.parametrize("matrix", [  # Machado et al. 2009, severity 1
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
], ids=["normal", "protanopia", "deuteranopia"])  # fmt: skip
def test_colours_can_be_told_apart(colours, least, matrix):
    seen = lab(np.array([matplotlib.colors.to_rgb(colour) for colour in colours]), matrix)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > least


def test_results_in_words():
    assert plots.in_words(ENTRY, unit="cells") == "90.0% (85.0 to 94.0, n = 1,200 cells)"
    assert plots.in_words(ENTRY | {"n": None}) == "90.0% (85.0 to 94.0)"
    assert plots.in_words({"value": 0.1234, "low": None, "high": None, "n": None}, percent=False) == "0.12"


def test_dots_show_values_and_intervals_to_scale_and_labels_stay_off_the_zero_line():
    entries = {"a": ENTRY, "b": dict.fromkeys(ENTRY) | {"value": -0.01}, "c": ENTRY | {"value": -0.1, "low": -0.2}}
    figure = plots.dots(entries, "share, %", "names", 100, line=0)
    (ax,) = figure.axes
    assert ax.lines[0].get_xdata().tolist() == [85, 94] and ax.lines[2].get_xdata().tolist() == [-1, -1]
    assert {"90.0", "-1.0", "-10.0", "share, %", "names", "a", "b", "c"} <= set(texts(figure))
    zero, boxes = ax.transData.transform((0, 0))[0], [text.get_window_extent() for text in ax.texts]
    assert boxes[0].x0 > zero and max(box.x1 for box in boxes[1:]) < zero and min(box.x0 for box in boxes) > ax.bbox.x0


def test_scores_of_parts_are_a_marker_for_each_kind():
    kinds = {
        "best feature": {"fin": 0.4, "main_gear": 0.1, "float": np.nan}, "probe": {"main_gear": 0.7, "fin": 0.8},
        "best null": {"main_gear": 0.2, "fin": 0.1}, "best guess": {"main_gear": 0.1, "fin": 0.3}, "chance": {"fin": 0},
    }  # fmt: skip
    figure = plots.scores_by_part(kinds, {"fin": (0.3, 0.5), "main_gear": (0.0, 0.2)})
    (ax,) = figure.axes
    spans = [each[:, 0].tolist() for each in ax.collections[0].get_segments() if len(each)]
    assert spans == [[0.0, 0.2], [0.3, 0.5]]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["float", "main gear", "fin"]
    assert {line.get_label(): list(line.get_xdata())[1:] for line in ax.lines[:4]} == {
        "best feature": [0.1, 0.4], "probe": [0.7, 0.8], "best null": [0.2, 0.1], "best guess": [0.1, 0.3]
    }  # fmt: skip
    assert all(len({getattr(line, f"get_{look}")() for line in ax.lines}) == 5 for look in ("marker", "color"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(kinds)


def test_heat_marks_strong_cells_and_the_picked_one():
    picture, values = np.full((28, 28, 3), 100, np.uint8), np.zeros((7, 7))
    values[2, 3] = 2.0
    plain, hot = plots.heat(picture, 0 * values, 2.0), plots.heat(picture, values, 2.0)
    assert plain.shape == (28, 28, 3) and (plain == plain[0, 0]).all()
    changed = np.abs(hot.astype(int) - plain).sum(2)
    assert np.unravel_index(changed.argmax(), changed.shape)[0] // 4 == 2 and changed[-4:].max() == 0
    weak = plots.heat(picture, values / 10, 2.0)  # the scale is the feature's, not the picture's
    assert np.abs(weak.astype(int) - plain).max() < np.abs(hot.astype(int) - plain).max()
    marked = plots.heat(picture, 0 * values, 2.0, (6, 0))
    assert (marked[24, 0] == (0, 255, 255)).all() and (marked[26, 2] == plain[0, 0]).all()


def test_a_user_s_own_settings_stop_no_figure_and_none_opens_a_window(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: no-such-font\nfigure.facecolor: black\n")
    script = (
        "import sys; from aircraft_sae.view import plots\n"
        "figure = plots.dots({'a': {'value': 1, 'low': 0, 'high': 2, 'n': 3}}, 'x, %', 'y')\n"
        "figure.savefig(sys.argv[1])"
    )
    environment = os.environ | {"MATPLOTLIBRC": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "a.png"], env=environment, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    assert np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))[0, 0].tolist() == [255, 255, 255]
    plots.dots({"a": ENTRY}, "x", "y")
    assert not plt.get_fignums()
