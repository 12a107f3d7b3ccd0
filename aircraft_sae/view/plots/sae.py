"""Figures of autoencoders: how they learned, what they reconstruct and at what price, which features live."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from aircraft_sae.view.plots.style import BLUE, FONT, GREY, ORANGE, WIDTH, style

SHADES = ("#9ECAE1", "#4292C6", "#08306B")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


def sae_curves(history: pd.DataFrame) -> Figure:
    """Unexplained variance of the batches and share of dead features over the cells seen in training."""
    figure = Figure((WIDTH, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    cells = history["n_cells"] / 1000
    left.plot(cells, 100 * history["fvu"], color=BLUE)
    right.plot(cells, 100 * history["dead_share"], color=BLUE)
    falling = history["lr"].diff() < 0
    for ax in (left, right):
        if falling.any():
            ax.axvspan(cells[falling.idxmax()], cells.iloc[-1], color=GREY, alpha=0.15, linewidth=0)
        ax.set_xlim(0, None)
    left.annotate("grey: learning rate falls", (0.97, 0.93), xycoords="axes fraction", ha="right", fontsize=FONT - 1)
    left.set_ylim(0, None)
    right.set_ylim(0, max(5.0, 110 * history["dead_share"].max()))
    style(left, "cells seen, thousands", "unexplained variance, %")
    style(right, "cells seen, thousands", "dead features, %")
    return figure


def dots(
    entries: Mapping[str, Mapping[str, float]], label: str, names: str, scale: float = 1.0, line: float | None = None
) -> Figure:
    """A dot with its interval for each named result, the value beside it; `line` marks a value to compare with."""
    figure = Figure((WIDTH, 1.0 + 0.42 * len(entries)), layout="constrained")
    ax = figure.subplots()
    for y, entry in enumerate(entries.values()):
        low, high = (
            scale * entry[key] if entry[key] is not None else scale * entry["value"] for key in ("low", "high")
        )
        ax.plot([low, high], [y, y], color=BLUE, linewidth=2.5)
        ax.plot(scale * entry["value"], y, "o", color=BLUE, markersize=8)
        text = f"{scale * entry['value']:.3g}"
        ax.annotate(text, (max(high, scale * entry["value"]), y), (8, 0), textcoords="offset points", va="center")
    if line is not None:
        ax.axvline(line, color=GREY, linestyle=":")
    ax.set_yticks(range(len(entries)), list(entries))
    ax.set_ylim(len(entries) - 0.5, -0.5)
    ax.margins(x=0.12)
    style(ax, label, names)
    return figure


def sparsity_tradeoff(sweep: pd.DataFrame, baselines: pd.DataFrame) -> Figure:
    """Explained variance against active features a cell: a line for each width, and the baselines.

    sweep: k, l0, explained_variance, expansion; baselines: name, l0, explained_variance, joined by a line where a name
    has several rows.
    """
    figure = Figure((WIDTH, 5.2), layout="constrained")
    ax = figure.subplots()
    for (width, line), colour in zip(sweep.groupby("expansion"), cycle(SHADES)):
        ax.plot(line["l0"], 100 * line["explained_variance"], "o-", color=colour, label=f"autoencoder, {width} x d_in")
    for (name, points), marker in zip(baselines.groupby("name", sort=False), cycle(MARKERS[1:])):
        look = "--" if len(points) > 1 else ""
        ax.plot(points["l0"], 100 * points["explained_variance"], look, marker=marker, color=ORANGE, label=name)
    ax.set_xscale("log", base=2)
    ticks = sorted({1, *sweep["k"]})
    ax.set_xticks(ticks, ticks)
    ax.axhline(0, color=GREY, linewidth=0.8)
    style(ax, "active features (or components) a cell", "explained variance on test pictures, %")
    figure.legend(loc="outside right center", fontsize=FONT - 2, frameon=False)
    return figure


def density_histogram(density: np.ndarray, dense: float = 0.1) -> Figure:
    """Histogram of the share of cells (d_sae,) on which each feature fires; those that never do stand apart, left."""
    density = np.asarray(density, float)
    figure = Figure((WIDTH, 3.6), layout="constrained")
    ax = figure.subplots()
    alive = np.log10(density[density > 0])
    low = np.floor(alive.min()) if len(alive) else -4.0
    ax.hist(alive, np.linspace(low, 0, 41), color=BLUE)
    ax.bar(low - 0.5, (density == 0).sum(), 0.2, color=ORANGE)
    ax.axvline(np.log10(dense), color=GREY, linestyle=":")
    ax.annotate(f"dense: above {dense:.0%}", (np.log10(dense), 0.95), (4, 0), xycoords=("data", "axes fraction"),
                textcoords="offset points", va="top", fontsize=FONT - 1)  # fmt: skip
    powers = np.arange(int(low), 1)
    ax.set_xticks([low - 0.5, *powers], ["never", *(f"{100 * 10.0**p:g}" for p in powers)])
    style(ax, "cells on which a feature fires, % (log scale)", "features")
    return figure
