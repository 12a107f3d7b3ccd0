"""Figures of features: heat on pictures, scores beside their nulls, responses to edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from aircraft_sae.view.plots.sae import MARKERS
from aircraft_sae.view.plots.style import BLUE, FONT, GREY, ORANGE, WIDTH, style

COLOURS = (BLUE, ORANGE, GREY, "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")


def heat(picture: Any, values: np.ndarray, top: float, cell: tuple[int, int] | None = None) -> np.ndarray:
    """A picture (h, w, 3) with a map (rows, columns) over it, `top` being the scale's end, and one cell outlined.

    What is 0 stays as it is, paler; stronger cells go from dark to yellow.
    """
    pale = np.asarray(picture, np.float32) * 0.75 + 45
    size = pale.shape[1], pale.shape[0]
    share = np.clip(np.nan_to_num(values) / max(top, 1e-12), 0, 1).astype(np.float32)
    large = np.asarray(Image.fromarray(share).resize(size, Image.Resampling.BILINEAR))
    colour = 255 * colormaps["inferno"](large)[..., :3]
    strength = 0.75 * np.sqrt(large)[..., None]
    made = (pale * (1 - strength) + colour * strength).astype(np.uint8)
    if cell is not None:
        (rows, columns), line = values.shape, max(1, size[0] // 112)
        bounds = [round(at * n / m) for at, n, m in zip((cell[0], cell[0] + 1), size[::-1], (rows, rows), strict=True)]
        sides = [round(at * n / m) for at, n, m in zip((cell[1], cell[1] + 1), size, (columns, columns), strict=True)]
        inner = np.zeros(made.shape[:2], bool)
        inner[bounds[0] : bounds[1], sides[0] : sides[1]] = True
        inner[bounds[0] + line : bounds[1] - line, sides[0] + line : sides[1] - line] = False
        made[inner] = (0, 255, 255)
    return made


def against_null(
    values: np.ndarray, null: np.ndarray, label: str, names: Sequence[str], unit: str = "features"
) -> Figure:
    """Histograms of a score and of the same score where nothing is to be found; names: what the two are of."""
    figure = Figure((WIDTH, 3.4), layout="constrained")
    ax = figure.subplots()
    values, null = np.asarray(values, float), np.asarray(null, float)
    both = np.concatenate([values, null])
    bins = np.linspace(both.min(initial=0), both.max(initial=1e-9), 51)
    ax.hist(values, bins, weights=np.full(len(values), 100 / max(1, len(values))), color=BLUE, label=names[0])
    weights = np.full(len(null), 100 / max(1, len(null)))
    ax.hist(null, bins, weights=weights, histtype="step", linewidth=2, color=ORANGE, label=names[1])
    style(ax, label, f"{unit}, %")
    ax.legend(fontsize=FONT - 1, frameon=False)
    return figure


def scores_by_part(scores: Mapping[str, Mapping[str, float]], label: str, empty: str = "no part masks") -> Figure:
    """For each part one row, with a marker for each kind of score; the first kind is the one that the figure is about.

    scores: kind -> {part: value}. Parts are in the order of the first kind's values.
    """
    first = next(iter(scores.values()))
    parts = sorted(first, key=lambda part: -np.nan_to_num(first[part]))
    figure = Figure((WIDTH, 1.6 + 0.36 * len(parts)), layout="constrained")
    ax = figure.subplots()
    look = zip(cycle(COLOURS), cycle((*MARKERS, "<", ">")))  # 8 and 10: the pairs repeat after 40
    for (kind, values), (colour, marker) in zip(scores.items(), look, strict=False):
        solid = values is first
        ax.plot(
            [values.get(part, np.nan) for part in parts], range(len(parts)), marker, color=colour, label=kind,
            markersize=10 if solid else 7, fillstyle="full" if solid else "none", markeredgewidth=1.6,
        )  # fmt: skip
    ax.set_yticks(range(len(parts)), [part.replace("_", " ") for part in parts])
    ax.set_ylim(len(parts) - 0.5, -0.5)
    ax.grid(axis="y", color=GREY, alpha=0.25)
    style(ax, label, "part")
    figure.legend(loc="outside lower center", ncols=3, fontsize=FONT - 1, frameon=False)
    return figure


def matrix(values: pd.DataFrame, label: str, rows: str, columns: str, low: float = -1.0, high: float = 1.0) -> Figure:
    """A table of numbers as colours, each written in its cell; blank where nan."""
    figure = Figure((WIDTH, 1.8 + 0.34 * len(values)), layout="constrained")
    ax = figure.subplots()
    picture = ax.imshow(values.to_numpy(float), cmap="RdBu_r", vmin=low, vmax=high, aspect="auto")
    for (i, j), value in np.ndenumerate(values.to_numpy(float)):
        if np.isfinite(value):
            dark = abs(2 * (value - low) / (high - low) - 1) > 0.6
            ax.text(
                j, i, f"{value:.2f}", ha="center", va="center", fontsize=FONT - 3, color="white" if dark else "black"
            )
    ax.set_xticks(range(values.shape[1]), [str(c).replace("_", " ") for c in values.columns], rotation=40, ha="right")
    ax.set_yticks(range(len(values)), [str(c).replace("_", " ") for c in values.index])
    style(ax, columns, rows)
    figure.colorbar(picture, ax=ax, label=label, shrink=0.8)
    return figure


def curves(lines: Mapping[str, Sequence[float]], at: Sequence[float], x: str, y: str) -> Figure:
    """A line for each named sequence of values over the same places; the first in blue, the others dashed."""
    figure = Figure((WIDTH, 3.6), layout="constrained")
    ax = figure.subplots()
    for (name, values), colour, marker in zip(lines.items(), cycle((BLUE, ORANGE, GREY, "#009E73")), cycle(MARKERS)):
        ax.plot(at, values, "-" if colour == BLUE else "--", marker=marker, color=colour, label=name)
    ax.axhline(0, color=GREY, linewidth=0.8)
    style(ax, x, y)
    ax.legend(fontsize=FONT - 1, frameon=False)
    return figure


def agreement(first: np.ndarray, second: np.ndarray, names: Sequence[str], diagonal: bool = False) -> Figure:
    """One dot for each pair of effects; names: of the two axes. Lines at 0, or where the two are equal (diagonal)."""
    figure = Figure((WIDTH * 0.62, WIDTH * 0.5), layout="constrained")
    ax = figure.subplots()
    ax.plot(first, second, "o", color=BLUE, alpha=0.6, markersize=6, markeredgewidth=0)
    if diagonal:
        ax.axline((float(np.mean(first)), float(np.mean(first))), slope=1, color=GREY, linewidth=0.8)
    else:
        for line in (ax.axhline, ax.axvline):
            line(0, color=GREY, linewidth=0.8)
    style(ax, *names)
    return figure
