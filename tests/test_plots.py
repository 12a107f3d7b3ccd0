"""Figures: what they show for small inputs made by hand, and what they say where there is nothing to show."""

import io
import itertools
import os
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from aircraft_sae.view import plots
from aircraft_sae.view.plots import OUTSIDE, REGION_COLOURS

PARTS = ("wing", "fuselage", "nose_gear", "main_gear", "window", "strut")
RNG = np.random.default_rng(0)
GREY_PICTURE = np.full((20, 30, 3), 100, np.uint8)
ENTRY = {"value": 0.9, "low": 0.85, "high": 0.94, "n": 1200}


def pictures(n):
    return [RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8) for _ in range(n)]


def mask_of(**boxes):
    """A mask with each part in a box (top, bottom, left, right)."""
    mask = np.zeros((100, 100), np.uint8)
    for part, (top, bottom, left, right) in boxes.items():
        mask[top:bottom, left:right] = 1 + PARTS.index(part)
    return mask


def texts(figure):
    """All words in a figure that can be seen."""
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_visible()]
    return [text for text in found if text.strip()]


def shown(figure):
    return [ax.images[0].get_array() for ax in figure.axes if ax.images]


CHARTS = {
    "dots": lambda: plots.dots({"a": ENTRY}, "share, %", "names", 100),
}  # fmt: skip


@pytest.mark.parametrize("make", CHARTS.values(), ids=CHARTS)
def test_every_chart_has_labelled_axes_and_leaves_no_trace(make):
    settings = dict(matplotlib.rcParams)
    figure = make()
    assert isinstance(figure, Figure) and texts(figure)
    for ax in figure.axes:  # an axis may be named on the one that it is shared with
        assert any(other.get_ylabel() for other in ax.get_shared_y_axes().get_siblings(ax))
        assert any(other.get_xlabel() for other in ax.get_shared_x_axes().get_siblings(ax)) or ax.get_label()
    assert not plt.get_fignums() and dict(matplotlib.rcParams) == settings


def test_a_grid_has_its_captions_names_and_a_gap_in_a_short_row():
    figure = plots.picture_grid([pictures(3), pictures(2)], [["a", "b", "c"], ["d\nd", "e"]], ["upper", "lower"])
    assert sorted(texts(figure)) == ["a", "b", "c", "d\nd", "e", "lower", "upper"]
    assert len(shown(figure)) == 5 and not figure.axes[5].axison


def test_long_captions_are_broken_lest_they_meet():
    caption = "Northrop P-61 Black Widow\nsaid North American P51 Mustang"
    figure = plots.picture_grid([pictures(5)], [[caption] * 5])
    figure.savefig(io.BytesIO(), format="png")
    boxes = [ax.xaxis.label.get_window_extent() for ax in figure.axes]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_marked_pixels_are_orange_and_others_grey():
    mark = np.zeros((20, 30), bool)
    mark[3:6, 4:9] = True
    plain, marked = shown(plots.picture_grid([[GREY_PICTURE], [GREY_PICTURE]], marks=[[None], [mark]]))
    assert (plain == GREY_PICTURE).all()
    coloured = np.ptp(marked.astype(int), axis=2) > 50
    assert (coloured == mark).all() and (marked[~mark] == 190).all()


@pytest.mark.parametrize("figure", [
    plots.picture_grid([], empty="no mistakes"), plots.picture_grid([[], []], [[], []], empty="no mistakes"),
    plots.part_masks([], [], [], [], empty="no mistakes"),
])  # fmt: skip
def test_where_nothing_is_to_be_shown_the_figure_says_so(figure):
    assert texts(figure) == ["no mistakes"]


def test_part_masks_stand_below_their_pictures_with_a_colour_for_each_part():
    mask = mask_of(fuselage=(40, 60, 10, 90), main_gear=(60, 70, 45, 50))
    figure = plots.part_masks([GREY_PICTURE] * 2, [mask, mask_of()], PARTS, ["it", "sky"], "")
    above, alone, below, empty = shown(figure)
    assert (above == GREY_PICTURE).all() and (alone == GREY_PICTURE).all()
    assert (below == mask).all() and not empty.any() and {"it", "sky"} <= set(texts(figure))
    keys = {text.get_text() for text in figure.legends[0].get_texts()}
    assert keys == {"outside"} | {part.replace("_", " ") for part in PARTS}


def lab(colours, matrix):
    """CIELAB (n, 3) of sRGB colours as seen through a matrix on linear light."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.clip(linear @ np.array(matrix).T, 0, 1) @ np.array(xyz).T / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("matrix", [  # Machado et al. 2009, severity 1
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
], ids=["normal", "protanopia", "deuteranopia"])  # fmt: skip
def test_part_colours_can_be_told_apart(matrix):
    seen = lab(np.array([matplotlib.colors.to_rgb(c) for c in (OUTSIDE, *REGION_COLOURS)]), matrix)
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=2) + 999 * np.eye(len(seen))
    assert distance.min() > 18


def test_results_in_words():
    assert plots.in_words(ENTRY) == "90.0% (85.0 to 94.0, n = 1,200)"
    assert plots.in_words(ENTRY | {"n": None}) == "90.0% (85.0 to 94.0)"
    assert plots.in_words({"value": 0.1234, "low": None, "high": None, "n": None}, percent=False) == "0.123"


def test_dots_show_value_and_interval_on_the_scale_that_is_asked_for():
    ax = plots.dots({"a": ENTRY, "b": dict.fromkeys(ENTRY) | {"value": 0.5}}, "share, %", "", 100, line=60).axes[0]
    assert ax.lines[0].get_xdata().tolist() == [85, 94] and ax.lines[2].get_xdata().tolist() == [50, 50]
    assert [text.get_text() for text in ax.texts] == ["90.0", "50.0"] and len(ax.lines) == 5


def test_heat_marks_strong_cells_and_the_picked_one():
    picture, values = np.full((28, 28, 3), 100, np.uint8), np.zeros((7, 7))
    values[2, 3] = 2.0
    plain, hot = plots.heat(picture, 0 * values, 2.0), plots.heat(picture, values, 2.0)
    assert plain.shape == (28, 28, 3) and (plain == plain[0, 0]).all()
    changed = np.abs(hot.astype(int) - plain).sum(2)
    assert np.unravel_index(changed.argmax(), changed.shape)[0] // 4 == 2 and changed[-4:].max() == 0
    weak = plots.heat(picture, values / 10, 2.0)  # one scale for the feature, not for the picture
    assert np.abs(weak.astype(int) - plain).max() < np.abs(hot.astype(int) - plain).max()
    marked = plots.heat(picture, 0 * values, 2.0, (6, 0))
    assert (marked[24, 0] == (0, 255, 255)).all() and (marked[26, 2] == plain[0, 0]).all()


def test_a_person_s_own_settings_stop_no_figure(tmp_path):
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


def test_scores_of_parts_are_two_markers_and_a_bar_that_the_largest_other_names():
    figure = plots.scores_by_part(
        {
            "best feature": {"fin": 0.4, "main_gear": 0.1},
            "probe": {"main_gear": 0.7, "fin": 0.8},
            "PCA": {"main_gear": 0.2, "fin": 0.1},
            "untrained": {"main_gear": 0.1, "fin": 0.3},
        }
    )
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["main gear", "fin"]
    drawn = {line.get_label(): (line.get_marker(), list(line.get_xdata())) for line in ax.lines}
    assert drawn == {"best feature": ("o", [0.1, 0.4]), "probe": ("D", [0.7, 0.8])}
    assert [bar.get_width() for bar in ax.patches] == [0.2, 0.3]
    assert [text.get_text() for text in ax.texts] == ["PCA", "untrained"]
