"""Figures that open no window, stay readable at half a notebook's width, and use colours safe for the colour-blind."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
COLOURS = (BLUE, ORANGE, GREY, "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
FIVE = [COLOURS[i] for i in (0, 1, 3, 6, 5)]  # any two differ by at least 24 CIELAB units, in each vision named below
WIDTH = 9.5  # inches
OUTSIDE = "#E9EEF3"
REGION_COLOURS = (
    "#EEDD88", "#0072B2", "#66CCEE", "#228833", "#661100", "#CC79A7",
    "#AAAA00", "#6699FF", "#000000", "#332288", "#555555", "#F0E442",
)  # fmt: skip
"""Any two, OUTSIDE included, differ by at least 18 CIELAB units in normal vision, protanopia and deuteranopia."""
Grid = Sequence[Sequence[Any]]

# "default": a user's matplotlibrc with LaTeX text or a black background would stop or hide a figure
matplotlib.style.use(["default", {
    "axes.prop_cycle": cycler(color=COLOURS), "axes.spines.top": False, "axes.spines.right": False, "font.size": 11,
    "axes.labelsize": 12, "axes.titlesize": 12, "legend.frameon": False, "figure.constrained_layout.use": True,
}])  # fmt: skip


def in_words(entry: Mapping[str, float | None], percent: bool = True, unit: str = "") -> str:
    """A result as text: "93.1% (91.2 to 94.8, n = 990)", where a unit for n may follow."""
    scale, size = (100, 10.0) if percent else (1, abs(entry["value"]))
    digits = next((i for i, least in enumerate((100, 10, 0.1, 0.01)) if size >= least), 4)  # 0.0046 keeps two
    number = {key: f"{scale * entry[key]:.{digits}f}" for key in ("value", "low", "high") if entry[key] is not None}
    about = [f"{number['low']} to {number['high']}"] if "low" in number else []
    about += [] if entry["n"] is None else [f"n = {entry['n']:,} {unit}".rstrip()]
    return number["value"] + ("%" if percent else "") + (f" ({', '.join(about)})" if about else "")


def sheet(height: float, *grid: int, width: float = WIDTH, **options: Any) -> tuple[Figure, Any]:
    """(a figure of this size in inches, its axes as from `Figure.subplots`)."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(*grid, **options)


def dots(
    entries: Mapping[str, Mapping[str, float]], label: str, names: str, scale: float = 1.0, line: float | None = None
) -> Figure:
    """A labelled dot with its interval for each result; `line` marks a value to compare with."""
    figure, ax = sheet(1.0 + 0.42 * len(entries))
    for y, entry in enumerate(entries.values()):
        value = scale * entry["value"]
        low, high = (value if entry[end] is None else scale * entry[end] for end in ("low", "high"))
        ax.plot([low, high], [y, y], color=BLUE, linewidth=2.5)
        ax.plot(value, y, "o", color=BLUE, markersize=8)
        end, away, side = (min(low, value), -8, "right") if value < 0 else (max(high, value), 8, "left")
        text = f"{value:.1f}" if scale == 100 else f"{value:.2f}"
        ax.annotate(text, (end, y), (away, 0), textcoords="offset points", va="center", ha=side)
    if line is not None:
        ax.axvline(line, color=GREY, linestyle=":")
    ax.set_yticks(range(len(entries)), list(entries))
    ax.set(xlabel=label, ylabel=names, ylim=(len(entries) - 0.5, -0.5))
    ax.margins(x=0.14)
    return figure


def scores_by_part(
    kinds: Mapping[str, Mapping[str, float]], intervals: Mapping[str, tuple[float, float]] | None = None
) -> Figure:
    """Average precision of each part, with a marker for each kind; the first kind gives the order and has intervals."""
    table = pd.DataFrame({name: dict(scores) for name, scores in kinds.items()})
    table = table.sort_values(table.columns[0], na_position="first")
    order, table = table.index, table.rename(lambda part: part.replace("_", " "))
    (figure, ax), y = sheet(1.6 + 0.36 * len(table)), np.arange(len(table))
    for i, (kind, marker, colour) in enumerate(zip(table, cycle("oDs^vX"), cycle(FIVE), strict=False)):
        lower = 0.5 * ((i + 0.5) / len(kinds) - 0.5)  # equal scores stay visible
        ax.plot(table[kind], y - lower, marker, color=colour, markersize=8, label=kind)
        if not i and intervals:
            spans = np.array([intervals.get(part, (np.nan, np.nan)) for part in order])
            ax.hlines(y - lower, *spans.T, color=colour, linewidth=2)
    ax.grid(axis="y", color=OUTSIDE)
    ax.set(xlabel="average precision on half B", ylabel="part", yticks=y, yticklabels=table.index, axisbelow=True)
    ax.set_xlim(left=-0.02)
    figure.legend(loc="outside lower center", ncols=min(5, len(kinds)))
    return figure


def profiles(panels: Mapping[str, pd.DataFrame], label: str, line: float) -> Figure:
    """Dots with intervals for each title's table (network, factor, value, low, high), and a `line` to compare with."""
    factors = list(next(iter(panels.values()))["factor"].unique())
    figure, axes = sheet(1.4 + 0.55 * len(factors), 1, len(panels), sharex=True, sharey=True, squeeze=False)
    for ax, (title, table) in zip(axes[0], panels.items(), strict=True):
        groups = table.groupby("network", sort=False)
        for i, (marker, (network, own)) in enumerate(zip(cycle("osD^v*"), groups, strict=False)):
            y = own["factor"].map(factors.index) + 0.8 * ((i + 0.5) / len(groups) - 0.5)
            ax.hlines(y, own["low"], own["high"], color=COLOURS[i % len(COLOURS)], linewidth=2)
            ax.plot(own["value"], y, marker, color=COLOURS[i % len(COLOURS)], markersize=6, label=network)
        ax.axvline(line, color=GREY, linestyle=":")
        ax.hlines(np.arange(len(factors) - 1) + 0.5, 0, 1, transform=ax.get_yaxis_transform(), color=OUTSIDE)
        ax.set(title=title, yticks=range(len(factors)), yticklabels=factors, ylim=(len(factors) - 0.5, -0.5))
    # the label is the legend's title, since a title of the whole x axis would lie under the legend
    found = axes[0, 0].get_legend_handles_labels()
    figure.legend(*found, loc="outside lower center", ncols=6, title=label, title_fontsize=12)
    return figure


def rosettes(families: Mapping[str, np.ndarray], marks: Mapping[str, Sequence[float]] | None = None) -> Figure:
    """Each family's tuning curves (m, angles) around a circle, coloured by their peaks; marks: angles on its rim."""
    figure, axes = sheet(3.6, 1, len(families), squeeze=False, subplot_kw={"projection": "polar"})
    for ax, (name, curves) in zip(axes[0], families.items(), strict=True):
        angles = np.linspace(0, 2 * np.pi, curves.shape[1] + 1)
        for curve in curves:
            colour = colormaps["twilight"](0.1 + 0.8 * curve.argmax() / len(curve))
            ax.fill(angles, np.append(curve, curve[0]), facecolor=(*colour[:3], 0.15), edgecolor=colour, linewidth=1.8)
        for label, own in (marks or {}).items():
            ax.plot(np.radians(own), np.full(len(own), 1.08), "v", color=GREY, markersize=5, label=label)
        ax.set(xticks=np.radians(range(0, 360, 45)), yticks=[0.5, 1], yticklabels=[], ylim=(0, 1.15), title=" ")
        ax.set_xlabel(wrap(name + f" ({len(curves)})" * (len(curves) != 1), WIDTH / len(families)), size=12)
    if marks:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center")
    return figure


def picture_grid(
    rows: Grid, captions: Grid | None = None, names: Sequence[str] = (), marks: Grid | None = None, empty: str = ""
) -> Figure:
    """Rows of pictures with names to their left and captions below; `empty` is shown where there are no pictures.

    rows: pictures (h, w, 3) uint8 or PIL; marks: boolean (h, w), orange on a pale picture, or None.
    """
    if not any(map(len, rows)):
        return message(empty)
    n_columns = max(map(len, rows))
    side = min(WIDTH / n_columns, WIDTH / 3)
    shape = np.mean([np.divide(*np.asarray(picture).shape[:2]) for row in rows for picture in row])
    captions = [[wrap(text, side) for text in row] for row in captions or [[""] * len(row) for row in rows]]
    n_lines = max(text.count("\n") + bool(text) for row in captions for text in row)
    height = len(rows) * (side * shape + 0.2 * n_lines + 0.05)
    figure, grid = sheet(height, len(rows), n_columns, width=side * n_columns, squeeze=False)
    for i, axes in enumerate(grid):
        for j, picture in enumerate(rows[i]):
            if marks and marks[i][j] is not None:
                pale = 150 + 0.4 * np.asarray(picture).mean(axis=2, keepdims=True)
                picture = np.where(marks[i][j][..., None], 255 * np.array(to_rgb(ORANGE)), pale).astype(np.uint8)
            show(axes[j], picture, captions[i][j])
        axes[0].set_ylabel(names[i] if names else "", rotation=0, ha="right", va="center")
    for ax in figure.axes:
        ax.axison = bool(ax.images)
    return figure


def part_masks(
    pictures: Sequence[Any], masks: Sequence[Any], names: Sequence[str], captions: Sequence[str], empty: str
) -> Figure:
    """Pictures above their masks (height, width), which are 0 outside and i + 1 at names[i]."""
    if not len(pictures):
        return message(empty)
    side, colours = WIDTH / max(3, len(pictures)), [OUTSIDE, *np.resize(REGION_COLOURS, len(names))]
    figure, axes = sheet(2 * side + 1.4, 2, len(pictures), width=side * len(pictures), squeeze=False)
    for j, (above, below) in enumerate(axes.T):
        show(above, pictures[j], captions[j])
        show(below, masks[j], cmap=ListedColormap(colours), vmin=-0.5, vmax=len(names) + 0.5, interpolation="nearest")
    named = zip(colours, [literal(name).replace("_", " ") for name in ("outside", *names)], strict=True)
    keys = [Patch(facecolor=colour, edgecolor=GREY, label=name) for colour, name in named]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(5, 2 * len(pictures)))
    return figure


def heat(picture: Any, values: np.ndarray, top: float, cell: tuple[int, int] | None = None) -> np.ndarray:
    """A picture (h, w, 3) under a map (rows, columns): pale at 0, dark to yellow at `top`; `cell` is outlined."""
    paler = np.asarray(picture, np.float32) * 0.75 + 45
    share = np.clip(np.nan_to_num(values) / max(top, 1e-12), 0, 1).astype(np.float32)
    large = np.asarray(Image.fromarray(share).resize(paler.shape[1::-1], Image.Resampling.BILINEAR))
    strength = 0.75 * np.sqrt(large)[..., None]
    mixed = paler * (1 - strength) + 255 * colormaps["inferno"](large)[..., :3] * strength
    made = Image.fromarray(mixed.astype(np.uint8))
    if cell is not None:
        (y, x), down, across = cell, made.height / len(values), made.width / len(values[0])
        square = [round(x * across), round(y * down), round((x + 1) * across) - 1, round((y + 1) * down) - 1]
        ImageDraw.Draw(made).rectangle(square, outline=(0, 255, 255), width=max(1, made.width // 112))
    return np.asarray(made)


def show(ax: Axes, picture: Any, caption: str = "", **options: Any) -> None:
    """Draw a picture without axes, and its caption below."""
    ax.imshow(picture, **options)
    ax.set(xticks=[], yticks=[], xlabel=caption)
    ax.spines[:].set_visible(False)


def wrap(text: str, inches: float) -> str:
    """Break text into lines of this width, with `literal` dollar signs."""
    return "\n".join(textwrap.fill(line, int(inches / 0.095)) for line in literal(text).split("\n"))


def message(text: str) -> Figure:
    """A figure that says why there is nothing to show."""
    figure, ax = sheet(0.6)
    ax.set_axis_off()  # hidden: without axes, nothing is shown
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=12)
    return figure


def literal(text: Any) -> str:
    """Escape dollar signs, which matplotlib would read as formulas."""
    return str(text).replace("$", r"\$")


def titled(figure: Figure, question: str) -> Figure:
    """The figure under a title that states its question."""
    figure.suptitle(question, size=13)
    return figure
