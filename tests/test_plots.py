"""Figures: what they show for small inputs made by hand, and what they say where there is nothing to show."""

import io
import itertools
import os
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from aircraft_sae.view import plots
from aircraft_sae.view.plots.pictures import OUTSIDE, REGION_COLOURS

PARTS = ("wing", "fuselage", "nose_gear", "main_gear", "window", "strut")
RNG = np.random.default_rng(0)
GREY_PICTURE = np.full((20, 30, 3), 100, np.uint8)
BOTH = {"variant": 4, "family": 2}
HISTORY = pd.DataFrame({
    "epoch": [1, 2, 3], "size": [64, 64, 128], "train_loss": [2.0, 1.5, 1.0], "train_accuracy": [0.2, 0.5, 0.7],
    "val_loss": [1.8, 1.2, 0.9], "val_accuracy": [0.3, 0.6, 0.8],
})  # fmt: skip
UNWATCHED = HISTORY.assign(val_loss=np.nan, val_accuracy=np.nan)
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
    "learning_curves": lambda: plots.learning_curves(HISTORY, 4),
    "learning_curves without val": lambda: plots.learning_curves(UNWATCHED, 4),
    "accuracy_by_level": lambda: plots.accuracy_by_level(dict.fromkeys(BOTH, ENTRY), BOTH),
    "accuracy_by_level of one class": lambda: plots.accuracy_by_level({"variant": ENTRY}, {"variant": 1}),
    "confusion_matrix": lambda: plots.confusion_matrix(pd.DataFrame([[3, 1], [0, 4]], ["a", "b"], ["a", "b"])),
    "confusion_matrix of one class": lambda: plots.confusion_matrix(pd.DataFrame([[3]], ["a"], ["a"])),
    "part_shares": lambda: plots.part_shares({"wing": 0.4, "fin": 0.0}, {"wing": 1.0, "fin": 0.0}, ""),
    "reliability": lambda: plots.reliability(RNG.random(50), RNG.random(50) > 0.5),
    "reliability of one picture": lambda: plots.reliability([1.0], [True]),
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
    for figure in (
        plots.picture_grid([pictures(5)], [[caption] * 5]),
        plots.contact_sheet(pictures(5), [caption] * 5, "AAAAA"),
    ):
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
    plots.part_masks([], [], [], [], empty="no mistakes"), plots.part_shares({}, {}, empty="no mistakes"),
])  # fmt: skip
def test_where_nothing_is_to_be_shown_the_figure_says_so(figure):
    assert texts(figure) == ["no mistakes"]


def test_groups_share_rows_of_a_contact_sheet_and_large_ones_go_on_below():
    groups = ["A"] * 3 + ["B"] * 3 + ["C"] * 2 + ["D"] * 2 + ["E"] * 6
    names = [f"{group}{i}" for i, group in enumerate(groups)]
    figure = plots.contact_sheet(pictures(len(names)), names, groups)
    labels = np.array([ax.get_xlabel() for ax in figure.axes]).reshape(-1, 5).tolist()
    assert labels == [
        ["A0", "A1", "A2", "C6", "C7"], ["B3", "B4", "B5", "D8", "D9"],
        ["E10", "E11", "E12", "E13", "E14"], ["E15", "", "", "", ""],
    ]  # fmt: skip
    headings = [ax.get_title(loc="left").strip() for ax in figure.axes]
    assert [heading for heading in headings if heading] == ["A", "C", "B", "D", "E", "E"]
    lines = [ax.lines[0].get_xdata()[1] for ax in figure.axes[:5]]
    assert lines == [1.1, 1.1, 1, 1.1, 1], "the line ends with its group"


def test_parts_are_named_unless_they_are_specks():
    mask = mask_of(fuselage=(40, 60, 10, 90), main_gear=(60, 70, 45, 50), window=(45, 48, 20, 23))
    mask[30, 30] = 1 + PARTS.index("strut")
    figure = plots.part_masks([GREY_PICTURE], [mask], PARTS, ["it"], "")
    named = {text.get_text(): text.xy for ax in figure.axes for text in ax.texts}
    assert set(named) == {"fuselage"} | {"main gear"}, "nine pixels of 10,000 are a speck"
    assert all(PARTS[mask[y, x] - 1] == name.replace(" ", "_") for name, (x, y) in named.items())
    keys = {text.get_text() for text in figure.legends[0].get_texts()}
    assert keys == {"outside"} | {part.replace("_", " ") for part in PARTS}


def test_a_mask_without_aircraft_is_shown_without_names():
    figure = plots.part_masks([GREY_PICTURE], [mask_of()], PARTS, ["sky"], "")
    assert len(shown(figure)) == 2 and not figure.axes[1].texts


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


def test_part_shares_are_drawn_in_percent():
    left, right = plots.part_shares({"wing": 0.4, "fin": 0.1}, {"wing": 1.0, "fin": 0.7}, "").axes
    assert [bar.get_width() for bar in left.patches] == [40, 10]
    assert [bar.get_width() for bar in right.patches] == [100, 70]
    assert left.yaxis_inverted(), "first part on top"


def test_learning_curves_show_chance_validation_and_where_pictures_grow():
    loss, accuracy = plots.learning_curves(HISTORY, 4).axes
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in accuracy.lines}
    assert lines["val"].tolist() == [30, 60, 80] and lines["guessing"].tolist() == [25, 25]
    assert np.isclose(loss.lines[2].get_ydata(), np.log(4)).all()
    assert list(accuracy.lines[-1].get_xdata()) == [2.5, 2.5]
    assert loss.get_ylim()[1] > 2
    words = texts(plots.learning_curves(UNWATCHED, 4))
    assert "val" not in words and "train" in words


def test_levels_show_value_interval_and_chance():
    ax = plots.accuracy_by_level(dict.fromkeys(BOTH, ENTRY), BOTH).axes[0]
    interval, point, *_, chance = ax.lines
    assert list(interval.get_xdata()) == [85, 94] and list(point.get_xdata()) == [90]
    assert list(chance.get_xdata()) == [25, 50] and [text.get_text() for text in ax.texts] == ["90", "90"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["variant (classes: 4)", "family (classes: 2)"]


def test_confusion_is_ordered_by_the_levels_above_and_counts_mistakes():
    classes = ["x", "y", "z", "unseen"]
    counts = pd.DataFrame([[2, 0, 3, 0], [0, 5, 0, 0], [1, 0, 3, 0], [0, 0, 0, 0]], classes, classes)
    maker, family = {"x": "B", "y": "A", "z": "B", "unseen": "B"}, {"x": "b1", "y": "a", "z": "b1", "unseen": "b2"}
    ax = plots.confusion_matrix(counts, [maker, family]).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "z", "unseen", "y"]
    shares = ax.collections[0].get_array()
    assert shares[0].tolist() == [40, 60, 0, 0] and shares[2].tolist() == [0, 0, 0, 0]
    written = {text.get_position(): text.get_text() for text in ax.texts if text.get_text()}
    assert written == {(1.5, 0.5): "3", (0.5, 1.5): "1"}
    edges = [(line.get_ydata()[0], line.get_linewidth()) for line in ax.lines[::2]]
    assert edges == [(3, 1.2), (2, 0.5), (3, 0.5)]


def test_confusion_without_mistakes_or_with_many_classes_has_no_counts():
    many = [f"c{i}" for i in range(41)]
    for counts in (np.eye(41, dtype=int), np.ones((41, 41), int)):
        assert not plots.confusion_matrix(pd.DataFrame(counts, many, many)).axes[0].texts
    few = pd.DataFrame(np.diag([3, 4]), ["a", "b"], ["a", "b"])
    assert not any(text.get_text() for text in plots.confusion_matrix(few).axes[0].texts)


def test_reliability_puts_each_bin_at_its_mean_confidence_and_accuracy():
    ax, below = plots.reliability([0.62, 0.64, 0.9, 1.0], [True, False, True, True]).axes
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "o"]
    assert np.allclose(points, [(63, 50), (90, 100), (100, 100)])
    low, high = ax.lines[1].get_ydata()
    assert 0 < low < 50 < high < 100
    assert sum(bar.get_height() for bar in below.patches) == 4


def test_results_in_words():
    assert plots.in_words(ENTRY) == "90.0% (85.0 to 94.0, n = 1,200)"
    assert plots.in_words(ENTRY | {"n": None}) == "90.0% (85.0 to 94.0)"
    assert plots.in_words({"value": 0.1234, "low": None, "high": None, "n": None}, percent=False) == "0.123"


SITE = np.linspace(0.01, 1, 40)
ACTIVATIONS = {
    "differences": lambda: plots.differences({"stage4": 1e-5 * SITE, "another": SITE}, "change"),
    "differences that are 0": lambda: plots.differences({"stage4": np.zeros(3)}, "change"),
    "energy_shares": lambda: plots.energy_shares({"a": {"mean": 0.6, "rest": 0.4}, "b": {"mean": 0.02, "rest": 0.98}}),
    "cumulative_variance": lambda: plots.cumulative_variance({"a": {"test": SITE}, "b": {"test": SITE, "null": SITE}}),
    "cumulative_variance of one site": lambda: plots.cumulative_variance({"a": {"test": SITE[:2]}}),
    "channel_sparsity": lambda: plots.channel_sparsity({site: {"channels": (SITE, SITE)} for site in "ab"}),
}  # fmt: skip


@pytest.mark.parametrize("make", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_every_chart_of_activations_has_labelled_axes(make):
    test_every_chart_has_labelled_axes_and_leaves_no_trace(make)


def test_differences_below_the_axis_are_counted_at_its_end():
    ax = plots.differences({"a": np.array([0.0, 1e-9, 0.5])}, "change").axes[0]
    assert ax.get_xscale() == "log" and ax.patches[0].get_xy()[:, 1].max() == 2


def test_shares_are_stacked_to_100_percent():
    ax = plots.energy_shares({"a": {"mean": 0.6, "rest": 0.4}, "b": {"mean": 0.02, "rest": 0.98}}).axes[0]
    ends = {(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches}
    assert {(round(a), round(b)) for a, b in ends} == {(0, 60), (60, 100), (0, 2), (2, 100)}
    assert "2.0" not in texts(ax.figure), "no room for the number"


@pytest.mark.parametrize("outlined", [True, False])
def test_heat_maps_share_a_scale_in_each_row(outlined):
    maps = {"stage3": np.arange(12.0).reshape(3, 2, 2), "stage4": np.ones((3, 1, 1))}
    outlines = [mask_of(wing=(40, 60, 10, 90)) > 0] * 3 if outlined else None
    figure = plots.heat_maps(pictures(3), maps, "distance from mean", outlines)
    assert {"stage3", "stage4", "distance from mean"} <= set(texts(figure))
    rows = [ax for ax in figure.axes[3:9] if ax.images]
    assert [ax.images[0].get_clim() for ax in rows] == [(0, 11)] * 3 + [(0, 1)] * 3
    assert all(bool(ax.collections) == outlined for ax in rows)


def test_a_component_picture_paints_shown_cells_alone():
    scores, shown = np.zeros((1, 2, 3)), np.array([[True, False]])
    scores[0, 0] = [1, 0.5, 0.5]
    painted = plots.component_picture(GREY_PICTURE, scores, np.array([[0, 0, 0], [1, 1, 1]]), shown)
    assert painted.shape == GREY_PICTURE.shape and (painted[:, 15:] == 190).all()
    assert np.ptp(painted[:, :15], axis=2).max() <= 2 and painted[:, :15].min() > 210, "light, and no hue"
    for component, rising in ((1, 2), (2, 0)):  # to blue, to red
        scores[0, 0] = [0.5, 0.5, 0.5]
        scores[0, 0, component] = 1
        painted = plots.component_picture(GREY_PICTURE, scores, np.array([[0, 0, 0], [1, 1, 1]]), shown)
        assert painted[0, 0].argmax() == rising


def test_cumulative_variance_and_sparsity_are_in_percent():
    ax = plots.cumulative_variance({"a": {"test": np.array([0.5, 0.8, 1])}}).axes[0]
    assert ax.lines[0].get_ydata().tolist() == [50, 80, 100] and ax.lines[0].get_xdata().tolist() == [1, 2, 3]
    dots = plots.channel_sparsity({"a": {"channels": ([0.25], [3.0])}}).axes[0].lines[0]
    assert (dots.get_xdata()[0], dots.get_ydata()[0]) == (25, 3)


def test_curves_of_an_autoencoder_mark_where_the_learning_rate_falls():
    history = pd.DataFrame({"n_cells": [1000, 2000, 3000], "fvu": [0.9, 0.5, 0.4], "dead_share": [0, 0.1, 0.05]})
    left, right = plots.sae_curves(history.assign(lr=[1e-3, 1e-3, 5e-4])).axes
    assert left.lines[0].get_ydata().tolist() == [90, 50, 40] and right.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert len(left.patches) == len(right.patches) == 1 and left.patches[0].get_x() == 3
    assert not plots.sae_curves(history.assign(lr=1e-3)).axes[0].patches


def test_dots_show_value_and_interval_on_the_scale_that_is_asked_for():
    ax = plots.dots({"a": ENTRY, "b": dict.fromkeys(ENTRY) | {"value": 0.5}}, "share, %", "", 100, line=60).axes[0]
    assert ax.lines[0].get_xdata().tolist() == [85, 94] and ax.lines[2].get_xdata().tolist() == [50, 50]
    assert [text.get_text() for text in ax.texts] == ["90", "50"] and len(ax.lines) == 5


def test_the_sparsity_tradeoff_has_a_line_a_width_and_a_mark_a_baseline():
    sweep = pd.DataFrame({"expansion": [2, 2, 4], "k": [8, 16, 8], "l0": [8.1, 16.0, 7.9], "explained_variance": 0.7})
    baselines = pd.DataFrame({"name": ["PCA", "PCA", "k-means"], "l0": [8, 16, 1], "explained_variance": 0.2})
    figure = plots.sparsity_tradeoff(sweep, baselines)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["autoencoder, 2 x d_in", "autoencoder, 4 x d_in", "PCA", "k-means"]
    assert [len(line.get_xdata()) for line in figure.axes[0].lines[:4]] == [2, 1, 2, 1]


def test_features_that_never_fire_stand_apart_in_the_histogram():
    ax = plots.density_histogram(np.array([0, 0, 0, 0.001, 0.01, 0.01, 0.5])).axes[0]
    heights = [bar.get_height() for bar in ax.patches]
    assert heights[-1] == 3 and sum(heights[:-1]) == 4
    assert plots.density_histogram(np.zeros(3)).axes[0].patches[-1].get_height() == 3


def test_a_score_is_counted_beside_its_null_in_shares_of_each():
    ax = plots.against_null(np.array([0.9, 0.95, 0.2]), np.array([0.1, 0.15]), "score", ("real", "null")).axes[0]
    solid = [bar.get_height() for bar in ax.patches if hasattr(bar, "get_height")]
    assert sum(solid) == pytest.approx(100)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["real", "null"]
    plots.against_null(np.zeros(0), np.zeros(0), "score", ("real", "null"))  # nothing was tested


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


def test_parts_are_sorted_by_the_first_score():
    figure = plots.scores_by_part({"best": {"wing": 0.2, "fin": 0.5}, "chance": {"fin": 0.1}}, "AP")
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["fin", "wing"]
    assert ax.lines[0].get_xdata().tolist() == [0.5, 0.2] and np.isnan(ax.lines[1].get_xdata()[1])
    many = plots.scores_by_part({str(i): {"fin": i} for i in range(12)}, "AP").axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in many}) == 12  # no two look alike


def test_a_matrix_writes_its_numbers_and_leaves_nan_blank():
    table = pd.DataFrame([[0.5, np.nan]], ["nose_gear"], ["a", "b"])
    ax = plots.matrix(table, "R", "rows", "columns").axes[0]
    assert [text.get_text() for text in ax.texts] == ["0.50"] and ax.get_yticklabels()[0].get_text() == "nose gear"


def test_curves_and_agreement_show_their_points():
    ax = plots.curves({"a": [0, 1], "b": [0, 2]}, [0, 4], "x", "y").axes[0]
    assert [list(line.get_ydata()) for line in ax.lines[:2]] == [[0, 1], [0, 2]]
    assert plots.agreement(np.array([1.0]), np.array([2.0]), ("x", "y")).axes[0].lines[0].get_ydata()[0] == 2


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
