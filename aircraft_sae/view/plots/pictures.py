"""Pictures: in grids, beside masks of their regions, under heat and maps."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw
from scipy import ndimage

from aircraft_sae.view.plots.style import FONT, GREY, ORANGE, WIDTH, legend, literal, sheet, spaced, style

OUTSIDE = "#E9EEF3"
REGION_COLOURS = (
    "#EEDD88", "#0072B2", "#66CCEE", "#228833", "#661100", "#CC79A7",
    "#AAAA00", "#6699FF", "#000000", "#332288", "#555555", "#F0E442",
)  # fmt: skip
"""With OUTSIDE, any two differ by 18 CIELAB units, seen with normal vision, protanopia and deuteranopia."""
Grid = Sequence[Sequence[Any]]


def picture_grid(
    rows: Grid, captions: Grid | None = None, names: Sequence[str] = (), marks: Grid | None = None, empty: str = ""
) -> Figure:
    """Pictures in rows: names stand left of rows, captions under pictures, marked pixels in orange on a pale picture.

    rows: pictures (h, w, 3) uint8 or PIL; marks: boolean (h, w) or None. For no pictures, `empty` is said.
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
                orange = 255 * np.array(to_rgb(ORANGE))
                picture = np.where(marks[i][j][..., None], orange, pale(picture)).astype(np.uint8)
            show(axes[j], picture, captions[i][j])
        axes[0].set_ylabel(names[i] if names else "", fontsize=FONT)
    for ax in figure.axes:
        ax.axison = bool(ax.images)
    return figure


def contact_sheet(pictures: Sequence[Any], names: Sequence[str], groups: Sequence[str]) -> Figure:
    """A picture for each name under headings of their groups; a group goes into the first row that has room for it."""
    table, n_columns = [], 5
    for group in dict.fromkeys(groups):
        members = [i for i, own in enumerate(groups) if own == group]
        for chunk in (members[i : i + n_columns] for i in range(0, len(members), n_columns)):
            row = next((row for row in table if len(row) + len(chunk) <= n_columns), None)
            table.append(chunk) if row is None else row.extend(chunk)
    figure, grid = sheet(len(table) * (WIDTH / n_columns + 0.5), len(table), n_columns, squeeze=False)
    for row, axes in zip(table, grid, strict=True):
        for ax in axes[len(row) :]:
            ax.axison = False
        for j, i in enumerate(row):
            show(axes[j], pictures[i], wrap(names[i], WIDTH / n_columns))
            first, last = (not 0 <= k < len(row) or groups[row[k]] != groups[i] for k in (j - 1, j + 1))
            axes[j].set_title(literal(groups[i]) if first else " ", fontsize=FONT, fontweight="bold", loc="left")
            line = dict(color="black", linewidth=1.5, clip_on=False, transform=axes[j].transAxes, in_layout=False)
            axes[j].plot([0, 1 if last else 1.1], [1.025, 1.025], **line)
    return figure


def part_masks(
    pictures: Sequence[Any], masks: Sequence[Any], names: Sequence[str], captions: Sequence[str], empty: str
) -> Figure:
    """Pictures above their masks (height, width), 0 outside and i + 1 for names[i]; names stand around the object."""
    if not len(pictures):
        return message(empty)
    side, colours = WIDTH / max(3, len(pictures)), [OUTSIDE, *np.resize(REGION_COLOURS, len(names))]
    figure, axes = sheet(2 * side + 2.2, 2, len(pictures), width=side * len(pictures), squeeze=False)
    figure.get_layout_engine().set(h_pad=0.2)  # room for names beside the masks
    for j, (above, below) in enumerate(axes.T):
        show(above, pictures[j])
        above.set_title(captions[j], fontsize=FONT)
        show(below, masks[j], cmap=ListedColormap(colours), vmin=-0.5, vmax=len(names) + 0.5, interpolation="nearest")
        _name_parts(below, np.asarray(masks[j]), spaced(names))
    named = zip(colours, spaced(["outside", *names]), strict=True)
    keys = [Patch(facecolor=colour, edgecolor=GREY, label=name) for colour, name in named]
    legend(figure, "outside lower center", handles=keys, ncols=min(5, 2 * len(pictures)))
    return figure


def part_shares(shares: Mapping[str, float], seen: Mapping[str, float], empty: str) -> Figure:
    """Bars for each part: its share of the object's pixels, and the share of pictures that show any of it."""
    if not shares:
        return message(empty)
    figure, panels = sheet(0.8 + 0.32 * len(shares), 1, 2, sharey=True)
    labels = {"share of the aircraft's pixels, %": shares, "pictures that show it, %": seen}
    for ax, (label, values) in zip(panels, labels.items(), strict=True):
        widths = [100 * values[part] for part in shares]
        bars = ax.barh(spaced(shares), widths, color=np.resize(REGION_COLOURS, len(shares)), edgecolor=GREY)
        ax.bar_label(bars, fmt="%.1f", padding=3, fontsize=FONT - 1)
        style(ax, label, "part" if values is shares else "")
        ax.margins(x=0.15)
    ax.invert_yaxis()
    return figure


def heat(picture: Any, values: np.ndarray, top: float, cell: tuple[int, int] | None = None) -> np.ndarray:
    """A picture (h, w, 3) with a map (rows, columns) over it, `top` being the scale's end, and one cell outlined.

    What is 0 stays as it is, paler; stronger cells go from dark to yellow.
    """
    paler = np.asarray(picture, np.float32) * 0.75 + 45
    share = np.clip(np.nan_to_num(values) / max(top, 1e-12), 0, 1).astype(np.float32)
    large = resized(share, paler.shape, Image.Resampling.BILINEAR)
    strength = 0.75 * np.sqrt(large)[..., None]
    made = Image.fromarray(
        (paler * (1 - strength) + 255 * colormaps["inferno"](large)[..., :3] * strength).astype(np.uint8)
    )
    if cell is not None:
        down, across = made.height / len(values), made.width / len(values[0])
        y, x = cell
        square = [round(x * across), round(y * down), round((x + 1) * across) - 1, round((y + 1) * down) - 1]
        ImageDraw.Draw(made).rectangle(square, outline=(0, 255, 255), width=max(1, made.width // 112))
    return np.asarray(made)


def heat_maps(
    pictures: Sequence[Any], maps: Mapping[str, np.ndarray], label: str, outlines: Sequence[np.ndarray] | None = None
) -> Figure:
    """Pictures, and below them for each site their maps (n, rows, columns), one scale for each row.

    outlines: boolean (height, width) of each picture, drawn as a line on the maps.
    """
    n, rows = len(pictures), len(maps) + 1
    figure, axes = sheet(rows * WIDTH / (n + 0.5), rows, n, squeeze=False)
    for j, picture in enumerate(pictures):
        show(axes[0, j], picture)
    for row, (site, values) in zip(axes[1:], maps.items(), strict=True):
        for j, ax in enumerate(row):
            show(ax, values[j], cmap="viridis", vmin=0, vmax=values.max(), extent=(0, 1, 1, 0))
            if outlines is not None and outlines[j].any():
                height, width = outlines[j].shape
                places = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
                ax.contour(*places, outlines[j].astype(float), [0.5], colors="white", linewidths=0.8)
            ax.set_aspect(np.divide(*np.asarray(pictures[j]).shape[:2]))
        row[0].set_ylabel(site, fontsize=FONT)
        bar = figure.colorbar(row[0].images[0], ax=list(row), fraction=0.05, pad=0.01)
        bar.set_label(label, fontsize=FONT - 1)
        bar.ax.tick_params(labelsize=FONT - 2)
    return figure


def component_picture(picture: Any, scores: np.ndarray, ends: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """The picture (height, width, 3) uint8, pale and grey, with the cells that are `shown` painted by three components.

    The first is lightness, the second blue to yellow, the third green to red: with any colour vision, two can be seen.
    scores: (rows, columns, 3); ends: (2, 3), lowest and highest of each scale; shown: (rows, columns) bool.
    """
    unit = np.clip((scores - ends[0]) / (ends[1] - ends[0]), 0, 1)
    luma = np.round(unit * [170, 160, 160] + [50, 48, 48]).astype(np.uint8)
    colours, grey = np.asarray(Image.fromarray(luma, "YCbCr").convert("RGB")), pale(picture)
    covered = resized(np.uint8(shown), grey.shape).astype(bool)
    return np.where(covered[..., None], resized(colours, grey.shape), grey).astype(np.uint8)


def resized(values: np.ndarray, shape: Sequence[int], how: Image.Resampling = Image.Resampling.NEAREST) -> np.ndarray:
    """An array (rows, columns) or (rows, columns, 3) as an array with the height and width of `shape`."""
    return np.asarray(Image.fromarray(values).resize((shape[1], shape[0]), how))


def pale(picture: Any) -> np.ndarray:
    """The picture (height, width, 3), pale and grey, float."""
    return 150 + 0.4 * np.asarray(picture).mean(axis=2, keepdims=True).repeat(3, axis=2)


def _name_parts(ax: Axes, mask: np.ndarray, names: Sequence[str]) -> None:
    """Names of the parts of at least 0.1 % of the mask, above and below the object, with lines into them."""
    found = []
    for part in (part for part in np.unique(mask) if part and (mask == part).mean() >= 0.001):
        pieces, _ = ndimage.label(mask == part)
        largest = pieces == np.bincount(pieces[pieces > 0]).argmax()
        y, x = np.unravel_index(ndimage.distance_transform_edt(largest).argmax(), mask.shape)  # its deepest pixel
        found.append((y, x, names[part - 1]))
    found.sort()
    (height, width), rows = mask.shape, np.flatnonzero(mask.any(axis=1)).tolist() or [0]
    half, line = (len(found) + 1) // 2, dict(arrowstyle="-", linewidth=0.7, shrinkA=0, shrinkB=0)
    for named, edge, step in ((found[:half], min(rows), -0.08 * height), (found[half:], max(rows), 0.08 * height)):
        for k, (y, x, name) in enumerate(sorted(named, key=lambda item: item[1])):
            place = ((k + 0.5) / len(named) * width, edge + step * (1.5 + k % 2))  # two heights, lest neighbours meet
            ax.annotate(name, (x, y), place, ha="center", va="center", fontsize=10, arrowprops=line)


def show(ax: Axes, picture: Any, caption: str = "", **options: Any) -> None:
    """A picture without axes, its caption below."""
    ax.imshow(picture, **options)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_xlabel(caption, fontsize=FONT)


def wrap(text: str, inches: float) -> str:
    """The text in lines that are no wider, as letters and not as formulas."""
    return "\n".join(textwrap.fill(line, int(inches / 0.095)) for line in literal(text).split("\n"))


def message(text: str) -> Figure:
    """A figure that says why there is nothing to show."""
    figure, ax = sheet(0.6)
    ax.set_axis_off()  # a notebook shows no figure without axes
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=FONT)
    return figure
