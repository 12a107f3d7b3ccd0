"""What all figures share: colours that are safe for the colour-blind, sizes, axes, legends, results as prose."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

OUTSIDE = "#E9EEF3"
REGION_COLOURS = (
    "#EEDD88", "#0072B2", "#66CCEE", "#228833", "#661100", "#CC79A7",
    "#AAAA00", "#6699FF", "#000000", "#332288", "#555555", "#F0E442",
)  # fmt: skip
"""With OUTSIDE, any two differ by 18 CIELAB units, seen with normal vision, protanopia and deuteranopia."""
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
Grid = Sequence[Sequence[Any]]
FONT, WIDTH = 12, 9.5  # points, inches


def in_words(entry: Mapping[str, float | None], percent: bool = True, unit: str = "") -> str:
    """A result with its interval and what n counts: "93.1% (91.2 to 94.8, n = 990)", or "… n = 990 pictures)"."""
    scale, digits = (100, 1) if percent else (1, 3)
    number = {key: f"{scale * entry[key]:.{digits}f}" for key in ("value", "low", "high") if entry[key] is not None}
    about = [f"{number['low']} to {number['high']}"] if "low" in number else []
    about += [] if entry["n"] is None else [f"n = {entry['n']:,} {unit}".rstrip()]
    return number["value"] + ("%" if percent else "") + (f" ({', '.join(about)})" if about else "")


def sheet(height: float, *grid: int, width: float = WIDTH, **options: Any) -> tuple[Figure, Any]:
    """(a figure of this size in inches, its axes: one, or an array as `Figure.subplots` gives it)."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(*grid, **options)


def legend(drawn: Figure | Axes, loc: str = "best", **options: Any) -> None:
    """A legend without a frame, a point smaller than the axes' names."""
    drawn.legend(loc=loc, frameon=False, **{"fontsize": FONT - 1} | options)


def show(ax: Axes, picture: Any, caption: str = "", **options: Any) -> None:
    """A picture without axes, its caption below."""
    ax.imshow(picture, **options)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_xlabel(caption, fontsize=FONT)


def style(ax: Axes, x: str, y: str) -> None:
    """Axes named, at the font size of all figures, without a frame."""
    ax.set_xlabel(x, fontsize=FONT)
    ax.set_ylabel(y, fontsize=FONT)
    ax.tick_params(labelsize=FONT - 1)
    ax.spines[["top", "right"]].set_visible(False)


def wrap(text: str, inches: float) -> str:
    """The text in lines that are no wider, as letters and not as formulas."""
    return "\n".join(textwrap.fill(line, int(inches / 0.095)) for line in literal(text).split("\n"))


def literal(text: Any) -> str:
    """A name as matplotlib is to write it: two dollars in it are no formula."""
    return str(text).replace("$", r"\$")


def spaced(names: Sequence[Any]) -> list[str]:
    """Names of regions and of other things with blanks in place of underscores."""
    return [literal(name).replace("_", " ") for name in names]


def message(text: str) -> Figure:
    """A figure that says why there is nothing to show."""
    figure = Figure((WIDTH, 0.6))
    figure.subplots().set_axis_off()  # a notebook shows no figure without axes
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=FONT)
    return figure
