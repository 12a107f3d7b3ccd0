"""Figures: each function returns a matplotlib Figure and touches no global state; `in_words` is a result as prose.

Sizes are chosen so that a figure of a notebook's width is still readable at half of it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage
from scipy.stats import binomtest

from aircraft_sae.hangar.solids import PARTS

PART_COLOURS = dict(zip(PARTS, (
    "#E9EEF3", "#C9C2B4", "#EEDD88", "#0072B2", "#66CCEE", "#228833", "#661100", "#CC79A7",
    "#AAAA00", "#6699FF", "#000000", "#332288", "#555555", "#F0E442",
), strict=True))  # fmt: skip
"""Chosen by search: any two differ by at least 18 CIELAB units, with normal vision, protanopia and deuteranopia."""
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
Grid = Sequence[Sequence[Any]]
FONT, WIDTH = 12, 9.5  # points, inches


def in_words(entry: Mapping[str, float | None], percent: bool = True) -> str:
    """A result with its interval and number of images: "93.1% (91.2 to 94.8, n = 990)"."""
    scale, digits = (100, 1) if percent else (1, 3)
    number = {key: f"{scale * entry[key]:.{digits}f}" for key in ("value", "low", "high") if entry[key] is not None}
    about = [f"{number['low']} to {number['high']}"] if "low" in number else []
    about += [] if entry["n"] is None else [f"n = {entry['n']:,}"]
    return number["value"] + ("%" if percent else "") + (f" ({', '.join(about)})" if about else "")


def picture_grid(
    rows: Grid, captions: Grid | None = None, names: Sequence[str] = (), marks: Grid | None = None, empty: str = ""
) -> Figure:
    """Pictures in rows: names stand left of rows, captions under pictures, marked pixels in orange on a pale picture.

    rows: pictures (h, w, 3) uint8 or PIL; marks: boolean (h, w) or None. For no pictures, `empty` is said.
    """
    if not any(map(len, rows)):
        return _message(empty or "no pictures")
    n_columns = max(map(len, rows))
    side = min(WIDTH / n_columns, WIDTH / 3)
    shape = np.mean([np.asarray(picture).shape[0] / np.asarray(picture).shape[1] for row in rows for picture in row])
    captions = [[_wrap(text, side) for text in row] for row in captions or [[""] * len(row) for row in rows]]
    n_lines = max(text.count("\n") + bool(text) for row in captions for text in row)
    figure = Figure((side * n_columns, len(rows) * (side * shape + 0.2 * n_lines + 0.05)), layout="constrained")
    for i, axes in enumerate(figure.subplots(len(rows), n_columns, squeeze=False)):
        for j, picture in enumerate(rows[i]):
            picture = _highlight(picture, marks[i][j]) if marks and marks[i][j] is not None else picture
            _show(axes[j], picture, captions[i][j])
        axes[0].set_ylabel(names[i] if names else "", fontsize=FONT)
    for ax in figure.axes:
        ax.axison = bool(ax.images)
    return figure


def contact_sheet(pictures: Sequence[Any], names: Sequence[str], groups: Sequence[str], n_columns: int = 5) -> Figure:
    """A picture for each name under headings of their groups; a group goes into the first row that has room for it."""
    table: list[list[int]] = []
    for group in dict.fromkeys(groups):
        members = [i for i, own in enumerate(groups) if own == group]
        for chunk in (members[i : i + n_columns] for i in range(0, len(members), n_columns)):
            row = next((row for row in table if len(row) + len(chunk) <= n_columns), None)
            table.append(chunk) if row is None else row.extend(chunk)
    figure = Figure((WIDTH, len(table) * (WIDTH / n_columns + 0.5)), layout="constrained")
    for row, axes in zip(table, figure.subplots(len(table), n_columns, squeeze=False), strict=True):
        for ax in axes[len(row) :]:
            ax.axison = False
        for j, i in enumerate(row):
            _show(axes[j], pictures[i], _wrap(names[i], WIDTH / n_columns))
            first, last = (not 0 <= k < len(row) or groups[row[k]] != groups[i] for k in (j - 1, j + 1))
            axes[j].set_title(groups[i] if first else " ", fontsize=FONT, fontweight="bold", loc="left")
            line = dict(color="black", linewidth=1.5, clip_on=False, transform=axes[j].transAxes, in_layout=False)
            axes[j].plot([0, 1 if last else 1.1], [1.025, 1.025], **line)
    return figure


def part_masks(pictures: Sequence[Any], masks: Sequence[Any], captions: Sequence[str], empty: str = "") -> Figure:
    """Pictures above their masks (height, width) of part ids, whose parts are named around the aircraft."""
    if not len(pictures):
        return _message(empty or "no part masks")
    side = WIDTH / max(3, len(pictures))
    figure = Figure((side * len(pictures), 2 * side + 2.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.2)  # room for names beside the masks
    colours = ListedColormap(list(PART_COLOURS.values()))
    for j, (above, below) in enumerate(zip(*figure.subplots(2, len(pictures), squeeze=False), strict=True)):
        _show(above, pictures[j])
        above.set_title(captions[j], fontsize=FONT)
        _show(below, masks[j], cmap=colours, vmin=-0.5, vmax=len(PARTS) - 0.5, interpolation="nearest")
        _name_parts(below, masks[j])
    keys = [Patch(facecolor=c, edgecolor=GREY, label=p.replace("_", " ")) for p, c in PART_COLOURS.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(5, 2 * len(pictures)), fontsize=11, frameon=False)
    return figure


def part_shares(shares: Mapping[str, float], seen: Mapping[str, float], empty: str = "no part masks") -> Figure:
    """Bars for each part: its share of the aircraft's pixels, and the share of pictures that show any of it."""
    if not len(shares):
        return _message(empty)
    figure = Figure((WIDTH, 0.8 + 0.32 * len(shares)), layout="constrained")
    names, colours = [part.replace("_", " ") for part in shares], [PART_COLOURS[part] for part in shares]
    panels = {"share of the aircraft's pixels, %": shares, "pictures that show it, %": seen}
    for ax, (label, values) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        bars = ax.barh(names, [100 * values[part] for part in shares], color=colours, edgecolor=GREY)
        ax.bar_label(bars, fmt="%.1f", padding=3, fontsize=FONT - 1)
        _style(ax, label, "part" if values is shares else "")
        ax.margins(x=0.15)
    ax.invert_yaxis()
    return figure


def learning_curves(history: pd.DataFrame, n_classes: int) -> Figure:
    """Loss and accuracy over epochs in training and validation (left out where it is nan), and what guessing gives."""
    figure = Figure((WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for ax, name, scale, chance in ((left, "loss", 1, np.log(n_classes)), (right, "accuracy", 100, 100 / n_classes)):
        for split, colour, marker in (("train", BLUE, "o"), ("val", ORANGE, "s")):
            if history[f"{split}_{name}"].notna().any():
                values = scale * history[f"{split}_{name}"]
                ax.plot(history["epoch"], values, marker=marker, color=colour, label=split)
        ax.axhline(chance, color=GREY, linestyle=":", label="guessing")
        for epoch in history["epoch"][history["size"].diff().fillna(0) != 0]:
            ax.axvline(epoch - 0.5, color=GREY, linewidth=0.8)  # larger pictures from here on
        _style(ax, "epoch", "accuracy, %" if ax is right else "cross-entropy, nats")
        ax.set_ylim(0, 100 if ax is right else 1.05 * ax.get_ylim()[1])
        ax.xaxis.get_major_locator().set_params(integer=True)
    right.legend(fontsize=FONT - 1, frameon=False)
    return figure


def accuracy_by_level(results: Mapping[str, Mapping[str, float]], n_classes: Mapping[str, int]) -> Figure:
    """Class-averaged accuracy with its interval, and what guessing would give; both arguments by level."""
    figure = Figure((WIDTH, 1 + 0.6 * len(results)), layout="constrained")
    ax = figure.subplots()
    for y, (level, entry) in enumerate(results.items()):
        value, low, high = (100 * entry[key] for key in ("value", "low", "high"))
        ax.plot([low, high], [y, y], color=BLUE, linewidth=2.5)
        point, chance = ("class-averaged accuracy, 95% interval", "guessing") if not y else ("", "")  # one key each
        ax.plot(value, y, "o", color=BLUE, markersize=9, label=point)
        ax.plot(100 / n_classes[level], y, "|", color=ORANGE, markersize=18, markeredgewidth=3, label=chance)
        ax.annotate(f"{value:.1f}", (value, y), (0, 9), textcoords="offset points", ha="center", fontsize=FONT)
    ax.set_yticks(range(len(results)), [f"{level} (classes: {n_classes[level]})" for level in results])
    ax.set(xlim=(0, 103), ylim=(len(results) - 0.5, -0.7))
    _style(ax, "class-averaged accuracy, %", "level")
    figure.legend(loc="outside upper center", ncols=2, fontsize=FONT - 1, frameon=False)
    return figure


def confusion_matrix(confusion: pd.DataFrame, parents: Sequence[Mapping[str, str]] = ()) -> Figure:
    """Shares of each actual class's images (rows) by predicted class, in %, ordered by the levels above.

    confusion: counts with class names as index and columns; parents: group of each class, in their order, coarsest
    level first; lines part groups, thick for the coarsest. Up to 40 classes, mistakes carry their number of images.
    """
    keys = {name: tuple(list(level.values()).index(level[name]) for level in parents) for name in confusion.index}
    order = sorted(confusion.index, key=keys.get)
    n, counts = len(order), confusion.loc[order, order].to_numpy()
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.25 * n + 2, 5, 20))
    figure = Figure((side + 1, side), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for i, j in zip(*np.nonzero(counts * ~np.eye(n, dtype=bool)), strict=True) if n <= 40 else ():
        ax.text(j, i, counts[i, j], ha="center", va="center", size=9, color="white" if shares[i, j] > 55 else "black")
    for depth in range(len(parents)):
        groups = [keys[name][: depth + 1] for name in order]
        for edge in (k - 0.5 for k in range(1, n) if groups[k] != groups[k - 1]):
            look = dict(color=GREY, linewidth=0.5) if depth else dict(color="black", linewidth=1.2)
            ax.axhline(edge, **look), ax.axvline(edge, **look)
    _style(ax, "predicted", "actual")
    size = FONT - 2 if n <= 72 else 8
    ax.set_xticks(range(n), order, rotation=90, fontsize=size)
    ax.set_yticks(range(n), order, fontsize=size)
    figure.colorbar(image, ax=ax, shrink=0.6).set_label("share of the actual class's pictures, %", fontsize=FONT)
    return figure


def reliability(confidence: np.ndarray, hit: np.ndarray, n_bins: int = 15) -> Figure:
    """Accuracy, from hit (n,), against confidence (n,) in equal bins, with Wilson intervals; below, images per bin."""
    confidence, hit = np.asarray(confidence, float), np.asarray(hit, bool)
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    figure = Figure((0.65 * WIDTH, 5), layout="constrained")
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    ax.plot([0, 100], [0, 100], color=GREY, linestyle=":", label="confidence = accuracy")
    for m in np.unique(bins):
        x, right, n = 100 * confidence[bins == m].mean(), int(hit[bins == m].sum()), int((bins == m).sum())
        ax.plot([x, x], 100 * np.array(binomtest(right, n).proportion_ci(method="wilson")), color=BLUE)
        ax.plot(x, 100 * right / n, "o", color=BLUE)
    ax.legend(fontsize=FONT - 1, frameon=False)
    below.hist(100 * confidence, np.linspace(0, 100, n_bins + 1), color=BLUE)
    _style(ax, "", "accuracy, %")
    _style(below, "confidence, %", "pictures")
    return figure


def _show(ax: Axes, picture: Any, caption: str = "", **options: Any) -> None:
    ax.imshow(picture, **options)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_xlabel(caption, fontsize=FONT)


def _wrap(text: str, inches: float) -> str:
    return "\n".join(textwrap.fill(line, int(inches / 0.095)) for line in text.split("\n"))


def _name_parts(ax: Axes, mask: np.ndarray) -> None:
    """Names of the parts of at least 0.1 % of the mask, above and below the aircraft, with lines into them."""
    found = []
    for part in (part for part in np.unique(mask) if part >= 2 and (mask == part).mean() >= 0.001):
        pieces, _ = ndimage.label(mask == part)
        largest = pieces == np.bincount(pieces[pieces > 0]).argmax()
        y, x = np.unravel_index(ndimage.distance_transform_edt(largest).argmax(), mask.shape)  # its deepest pixel
        found.append((y, x, PARTS[part].replace("_", " ")))
    found.sort()
    (height, width), rows = mask.shape, np.flatnonzero((mask >= 2).any(axis=1)).tolist() or [0]
    half, line = (len(found) + 1) // 2, dict(arrowstyle="-", linewidth=0.7, shrinkA=0, shrinkB=0)
    for named, edge, step in ((found[:half], min(rows), -0.08 * height), (found[half:], max(rows), 0.08 * height)):
        for k, (y, x, name) in enumerate(sorted(named, key=lambda item: item[1])):
            place = ((k + 0.5) / len(named) * width, edge + step * (1.5 + k % 2))  # two heights, lest neighbours meet
            ax.annotate(name, (x, y), place, ha="center", va="center", fontsize=10, arrowprops=line)


def _highlight(picture: Any, mark: np.ndarray) -> np.ndarray:
    """The picture pale and grey, with marked pixels in orange."""
    grey = 150 + 0.4 * np.asarray(picture).mean(axis=2, keepdims=True).repeat(3, axis=2)
    return np.where(np.asarray(mark)[..., None], 255 * np.array(to_rgb(ORANGE)), grey).astype(np.uint8)


def _style(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x, fontsize=FONT)
    ax.set_ylabel(y, fontsize=FONT)
    ax.tick_params(labelsize=FONT - 1)
    ax.spines[["top", "right"]].set_visible(False)


def _message(text: str) -> Figure:
    """A figure that says why there is nothing to show."""
    figure = Figure((WIDTH, 0.6))
    figure.subplots().set_axis_off()  # a notebook shows no figure without axes
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=FONT)
    return figure
