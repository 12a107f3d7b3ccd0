"""What all figures share: colours that are safe for the colour-blind, sizes, axes, legends, results as prose."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.style.use(
    "default"
)  # text set by LaTeX, or white on black, in a person's matplotlibrc would stop or hide it

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
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
    """A legend without a frame, a point smaller than the axes' names; a figure's is of what its first axes show."""
    if isinstance(drawn, Figure):
        options = {"handles": drawn.axes[0].get_legend_handles_labels()[0], "ncols": 3} | options
    drawn.legend(loc=loc, frameon=False, **{"fontsize": FONT - 1} | options)


def style(ax: Axes, x: str, y: str) -> None:
    """Axes named, at the font size of all figures, without a frame."""
    ax.set_xlabel(x, fontsize=FONT)
    ax.set_ylabel(y, fontsize=FONT)
    ax.tick_params(labelsize=FONT - 1)
    ax.spines[["top", "right"]].set_visible(False)


def literal(text: Any) -> str:
    """A name as matplotlib is to write it: two dollars in it are no formula."""
    return str(text).replace("$", r"\$")


def spaced(names: Sequence[Any]) -> list[str]:
    """Names of regions and of other things with blanks in place of underscores."""
    return [literal(name).replace("_", " ") for name in names]
