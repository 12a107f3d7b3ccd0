"""Figures of pictures and part masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage

from aircraft_sae.hangar.solids import PARTS
from aircraft_sae.view.plots.style import (
    FONT,
    GREY,
    ORANGE,
    PART_COLOURS,
    WIDTH,
    Grid,
    literal,
    message,
    show,
    style,
    wrap,
)


def picture_grid(
    rows: Grid, captions: Grid | None = None, names: Sequence[str] = (), marks: Grid | None = None, empty: str = ""
) -> Figure:
    """Pictures in rows: names stand left of rows, captions under pictures, marked pixels in orange on a pale picture.

    rows: pictures (h, w, 3) uint8 or PIL; marks: boolean (h, w) or None. For no pictures, `empty` is said.
    """
    if not any(map(len, rows)):
        return message(empty or "no pictures")
    n_columns = max(map(len, rows))
    side = min(WIDTH / n_columns, WIDTH / 3)
    shape = np.mean([np.asarray(picture).shape[0] / np.asarray(picture).shape[1] for row in rows for picture in row])
    captions = [[wrap(text, side) for text in row] for row in captions or [[""] * len(row) for row in rows]]
    n_lines = max(text.count("\n") + bool(text) for row in captions for text in row)
    figure = Figure((side * n_columns, len(rows) * (side * shape + 0.2 * n_lines + 0.05)), layout="constrained")
    for i, axes in enumerate(figure.subplots(len(rows), n_columns, squeeze=False)):
        for j, picture in enumerate(rows[i]):
            picture = _highlight(picture, marks[i][j]) if marks and marks[i][j] is not None else picture
            show(axes[j], picture, captions[i][j])
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
            show(axes[j], pictures[i], wrap(names[i], WIDTH / n_columns))
            first, last = (not 0 <= k < len(row) or groups[row[k]] != groups[i] for k in (j - 1, j + 1))
            axes[j].set_title(literal(groups[i]) if first else " ", fontsize=FONT, fontweight="bold", loc="left")
            line = dict(color="black", linewidth=1.5, clip_on=False, transform=axes[j].transAxes, in_layout=False)
            axes[j].plot([0, 1 if last else 1.1], [1.025, 1.025], **line)
    return figure


def part_masks(pictures: Sequence[Any], masks: Sequence[Any], captions: Sequence[str], empty: str = "") -> Figure:
    """Pictures above their masks (height, width) of part ids, whose parts are named around the aircraft."""
    if not len(pictures):
        return message(empty or "no part masks")
    side = WIDTH / max(3, len(pictures))
    figure = Figure((side * len(pictures), 2 * side + 2.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.2)  # room for names beside the masks
    colours = ListedColormap(list(PART_COLOURS.values()))
    for j, (above, below) in enumerate(zip(*figure.subplots(2, len(pictures), squeeze=False), strict=True)):
        show(above, pictures[j])
        above.set_title(captions[j], fontsize=FONT)
        show(below, masks[j], cmap=colours, vmin=-0.5, vmax=len(PARTS) - 0.5, interpolation="nearest")
        _name_parts(below, masks[j])
    keys = [Patch(facecolor=c, edgecolor=GREY, label=p.replace("_", " ")) for p, c in PART_COLOURS.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(5, 2 * len(pictures)), fontsize=11, frameon=False)
    return figure


def part_shares(shares: Mapping[str, float], seen: Mapping[str, float], empty: str = "no part masks") -> Figure:
    """Bars for each part: its share of the aircraft's pixels, and the share of pictures that show any of it."""
    if not len(shares):
        return message(empty)
    figure = Figure((WIDTH, 0.8 + 0.32 * len(shares)), layout="constrained")
    names, colours = [part.replace("_", " ") for part in shares], [PART_COLOURS[part] for part in shares]
    panels = {"share of the aircraft's pixels, %": shares, "pictures that show it, %": seen}
    for ax, (label, values) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        bars = ax.barh(names, [100 * values[part] for part in shares], color=colours, edgecolor=GREY)
        ax.bar_label(bars, fmt="%.1f", padding=3, fontsize=FONT - 1)
        style(ax, label, "part" if values is shares else "")
        ax.margins(x=0.15)
    ax.invert_yaxis()
    return figure


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
