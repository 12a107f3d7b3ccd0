"""Charts: how the classifier learned and errs, what activations and autoencoders are like, scores beside nulls."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.stats import binomtest

from aircraft_sae.view.plots.style import BLUE, FONT, GREY, ORANGE, WIDTH, legend, literal, sheet, spaced, style

COLOURS = (BLUE, ORANGE, GREY, "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
ABOVE = "outside upper center"


def learning_curves(history: pd.DataFrame, n_classes: int) -> Figure:
    """Loss and accuracy over epochs in training and validation (left out where it is nan), and what guessing gives."""
    figure, (left, right) = sheet(3.6, 1, 2)
    for ax, name, scale, chance in ((left, "loss", 1, np.log(n_classes)), (right, "accuracy", 100, 100 / n_classes)):
        for split, colour, marker in (("train", BLUE, "o"), ("val", ORANGE, "s")):
            values = scale * history[f"{split}_{name}"]
            if values.notna().any():
                ax.plot(history["epoch"], values, marker=marker, color=colour, label=split)
        ax.axhline(chance, color=GREY, linestyle=":", label="guessing")
        for epoch in history["epoch"][history["size"].diff().fillna(0) != 0]:
            ax.axvline(epoch - 0.5, color=GREY, linewidth=0.8)  # larger pictures from here on
        style(ax, "epoch", "accuracy, %" if ax is right else "cross-entropy, nats")
        ax.set_ylim(0, 100 if ax is right else 1.05 * ax.get_ylim()[1])
        ax.xaxis.get_major_locator().set_params(integer=True)
    legend(right)
    return figure


def accuracy_by_level(results: Mapping[str, Mapping[str, float]], n_classes: Mapping[str, int]) -> Figure:
    """Class-averaged accuracy with its interval, and what guessing would give; both arguments by level."""
    named = {f"{level} (classes: {n_classes[level]})": entry for level, entry in results.items()}
    figure = dots(named, "class-averaged accuracy and its 95% interval, %", "level", 100)
    ax, chance = figure.axes[0], [100 / n_classes[level] for level in results]
    ax.plot(chance, range(len(chance)), "|", color=ORANGE, markersize=18, markeredgewidth=3, label="guessing")
    ax.set_xlim(0, 103)
    legend(figure, ABOVE)
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
    mistakes = np.where(counts * ~np.eye(n, dtype=bool), counts, "").astype(object) if n <= 40 else False
    names, side = [literal(name) for name in order], float(np.clip(0.25 * n + 2, 5, 20))
    figure, ax = sheet(side, width=side + 1)
    about = {"label": "share of the actual class's pictures, %", "shrink": 0.6}
    sns.heatmap(shares, vmin=0, vmax=100, cmap="Blues", annot=mistakes, fmt="", annot_kws={"size": 9}, square=True,
                xticklabels=names, yticklabels=names, cbar_kws=about, ax=ax)  # fmt: skip
    for depth in range(len(parents)):
        look = dict(color=GREY, linewidth=0.5) if depth else dict(color="black", linewidth=1.2)
        groups = [keys[name][: depth + 1] for name in order]
        for edge in (k for k in range(1, n) if groups[k] != groups[k - 1]):
            ax.axhline(edge, **look), ax.axvline(edge, **look)
    style(ax, "predicted", "actual")
    ax.tick_params("x", rotation=90, labelsize=FONT - 2 if n <= 72 else 8)
    ax.tick_params("y", rotation=0, labelsize=FONT - 2 if n <= 72 else 8)
    return figure


def reliability(confidence: np.ndarray, hit: np.ndarray) -> Figure:
    """Accuracy, from hit (n,), against confidence (n,) in 15 bins, with Wilson intervals; below, images per bin."""
    confidence, hit, edges = 100 * np.asarray(confidence), np.asarray(hit), np.linspace(0, 100, 16)
    bins = np.digitize(confidence, edges[1:-1], right=True)
    figure, (ax, below) = sheet(5, 2, 1, width=0.65 * WIDTH, sharex=True, height_ratios=(3, 1))
    ax.plot([0, 100], [0, 100], color=GREY, linestyle=":", label="confidence = accuracy")
    for m in np.unique(bins):
        x, own = confidence[bins == m].mean(), hit[bins == m]
        ends = 100 * np.array(binomtest(int(own.sum()), len(own)).proportion_ci(method="wilson"))
        ax.plot([x, x], ends, color=BLUE)
        ax.plot(x, 100 * own.mean(), "o", color=BLUE)
    legend(ax)
    below.hist(confidence, edges, color=BLUE)
    style(ax, "", "accuracy, %")
    style(below, "confidence, %", "pictures")
    return figure


def differences(groups: Mapping[str, np.ndarray], label: str) -> Figure:
    """Histograms of positive numbers, one per picture, on a shared logarithmic axis; those below 1e-7 count as that."""
    figure, ax = sheet(3.2)
    for (name, values), colour in zip(groups.items(), COLOURS, strict=False):
        values, edges = np.clip(values, 1e-7, 1), np.geomspace(1e-7, 1, 57)
        ax.hist(values, edges, histtype="stepfilled", color=colour, alpha=0.75, label=name)
    ax.set_xscale("log")
    style(ax, label, "pictures")
    legend(figure, ABOVE)
    return figure


def energy_shares(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """One bar for each site, made of shares that add up to 1, the same names for every site."""
    figure, ax = sheet(1.4 + 0.55 * len(shares))
    table = 100 * pd.DataFrame(shares).T
    table.plot.barh(stacked=True, width=0.8, color=list(COLOURS), edgecolor="white", legend=False, ax=ax)
    for bars in ax.containers:
        words = [f"{width:.1f}" if width >= 5 else "" for width in bars.datavalues]
        ax.bar_label(bars, words, label_type="center", color="white", fontsize=FONT, fontweight="bold")
    ax.set_xlim(0, 100)
    ax.invert_yaxis()
    style(ax, "share of the mean squared length of a cell, %", "site")
    legend(figure, ABOVE)
    return figure


def cumulative_variance(curves: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """For each site a panel: share of variance within the first so many directions, by what they were measured on.

    curves: {site: {name: cumulated shares (d_in,)}}. Every other line is dashed, for those that lie on another.
    """
    figure, panels = sheet(4.2, 1, len(curves), sharey=True, squeeze=False)
    for ax, (site, lines) in zip(panels[0], curves.items(), strict=True):
        for k, (name, values) in enumerate(lines.items()):
            look = dict(color=COLOURS[k], linestyle=("-", "--", "-")[k], linewidth=(3, 2, 2)[k])
            ax.plot(np.arange(1, len(values) + 1), 100 * np.asarray(values), label=name, **look)
        ax.axhline(90, color="black", linestyle=":", linewidth=1)
        ax.set(xscale="log", ylim=(0, 102), title=f"{site}, {len(values)} channels")
        ticks = [t for t in (1, 3, 10, 30, 100, 300, 1000) if t <= len(values)]
        ax.set_xticks(ticks, map(str, ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        style(ax, "number of directions", "share of variance, %")
        ax.label_outer()
    legend(figure, ABOVE)
    return figure


def channel_sparsity(points: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """For each site a panel of dots: share of cells where a direction is positive, and its excess kurtosis.

    points: {site: {name: (shares (n,), excess kurtosis (n,))}}.
    """
    figure, panels = sheet(4.2, 1, len(points), sharey=True, squeeze=False)
    for ax, (site, groups) in zip(panels[0], points.items(), strict=True):
        for k, (name, (positive, kurtosis)) in enumerate(groups.items()):
            look = dict(color=COLOURS[k], marker="o^s"[k], linestyle="", markersize=4, alpha=0.7, zorder=3 - k)
            ax.plot(100 * np.asarray(positive), kurtosis, label=name, **look)
        ax.set(xlim=(0, 100), title=site)
        style(ax, "cells where it is positive, %", "excess kurtosis")
        ax.label_outer()
    legend(figure, ABOVE, markerscale=2)
    return figure


def sae_curves(history: pd.DataFrame) -> Figure:
    """Unexplained variance of the batches and share of dead features over the cells seen in training."""
    figure, (left, right) = sheet(3.4, 1, 2)
    cells, falling = history["n_cells"] / 1000, history["lr"].diff() < 0
    for ax, name, label in ((left, "fvu", "unexplained variance, %"), (right, "dead_share", "dead features, %")):
        ax.plot(cells, 100 * history[name], color=BLUE)
        if falling.any():
            ax.axvspan(cells[falling.idxmax()], cells.iloc[-1], color=GREY, alpha=0.15, linewidth=0)
        ax.set(xlim=(0, None), ylim=(0, max(5.0, 110 * history[name].max()) if ax is right else None))
        style(ax, "cells seen, thousands", label)
    left.annotate("grey: learning rate falls", (0.97, 0.93), xycoords="axes fraction", ha="right", fontsize=FONT - 1)
    return figure


def dots(
    entries: Mapping[str, Mapping[str, float]], label: str, names: str, scale: float = 1.0, line: float | None = None
) -> Figure:
    """A dot with its interval for each named result, the value beside it; `line` marks a value to compare with."""
    figure, ax = sheet(1.0 + 0.42 * len(entries))
    for y, entry in enumerate(entries.values()):
        value = scale * entry["value"]
        low, high = (value if entry[end] is None else scale * entry[end] for end in ("low", "high"))
        ax.plot([low, high], [y, y], color=BLUE, linewidth=2.5)
        ax.plot(value, y, "o", color=BLUE, markersize=8)
        ax.annotate(f"{value:.3g}", (max(high, value), y), (8, 0), textcoords="offset points", va="center")
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
    figure, ax = sheet(5.2)
    for (width, line), colour in zip(sweep.groupby("expansion"), cycle(("#9ECAE1", "#4292C6", "#08306B"))):
        ax.plot(line["l0"], 100 * line["explained_variance"], "o-", color=colour, label=f"autoencoder, {width} x d_in")
    for (name, points), marker in zip(baselines.groupby("name", sort=False), cycle(MARKERS[1:])):
        look = "--" if len(points) > 1 else ""
        ax.plot(points["l0"], 100 * points["explained_variance"], look, marker=marker, color=ORANGE, label=name)
    ax.set_xscale("log", base=2)
    ticks = sorted({1, *sweep["k"]})
    ax.set_xticks(ticks, ticks)
    ax.axhline(0, color=GREY, linewidth=0.8)
    style(ax, "active features (or components) a cell", "explained variance on test pictures, %")
    legend(figure, "outside right center", fontsize=FONT - 2, ncols=1)
    return figure


def density_histogram(density: np.ndarray) -> Figure:
    """Histogram of the share of cells (d_sae,) on which each feature fires; those that never do stand apart, left."""
    alive = np.log10(density[density > 0])
    low = np.floor(alive.min()) if len(alive) else -4.0
    figure, ax = sheet(3.6)
    ax.hist(alive, np.linspace(low, 0, 41), color=BLUE)
    ax.bar(low - 0.5, (density == 0).sum(), 0.2, color=ORANGE)
    ax.axvline(-1, color=GREY, linestyle=":")
    ax.annotate("dense: above 10%", (-1, 0.95), (4, 0), xycoords=("data", "axes fraction"),
                textcoords="offset points", va="top", fontsize=FONT - 1)  # fmt: skip
    powers = np.arange(int(low), 1)
    ax.set_xticks([low - 0.5, *powers], ["never", *(f"{100 * 10.0**p:g}" for p in powers)])
    style(ax, "cells on which a feature fires, % (log scale)", "features")
    return figure


def against_null(values: np.ndarray, null: np.ndarray, label: str, names: Sequence[str]) -> Figure:
    """Histograms of a score and of the same score where nothing is to be found; names: what the two are of."""
    figure, ax = sheet(3.4)
    both = np.concatenate([values, null])
    bins = np.linspace(both.min(initial=0), both.max(initial=1e-9), 51)
    looks = {"color": BLUE}, {"color": ORANGE, "histtype": "step", "linewidth": 2}
    for scores, name, look in zip((values, null), names, looks, strict=True):
        ax.hist(scores, bins, weights=np.full(len(scores), 100 / max(1, len(scores))), label=name, **look)
    style(ax, label, "features, %")
    legend(ax)
    return figure


def scores_by_part(scores: Mapping[str, Mapping[str, float]], label: str) -> Figure:
    """For each part one row, with a marker for each kind of score; the first kind is the one that the figure is about.

    scores: kind -> {part: value}. Parts are in the order of the first kind's values.
    """
    first = next(iter(scores.values()))
    parts = sorted(first, key=lambda part: -np.nan_to_num(first[part]))
    figure, ax = sheet(1.6 + 0.36 * len(parts))
    looks = zip(cycle(COLOURS), cycle((*MARKERS, "<", ">")))  # 8 and 10: the pairs repeat after 40
    for (kind, values), (colour, marker) in zip(scores.items(), looks, strict=False):
        size, filled = (10, "full") if values is first else (7, "none")
        ax.plot([values.get(part, np.nan) for part in parts], range(len(parts)), marker, color=colour, label=kind,
                markersize=size, fillstyle=filled, markeredgewidth=1.6)  # fmt: skip
    ax.set_yticks(range(len(parts)), spaced(parts))
    ax.set_ylim(len(parts) - 0.5, -0.5)
    ax.grid(axis="y", color=GREY, alpha=0.25)
    style(ax, label, "part")
    legend(figure, "outside lower center")
    return figure


def matrix(values: pd.DataFrame, label: str, rows: str, columns: str) -> Figure:
    """A table of numbers from -1 to 1 as colours, each written in its cell; blank where nan."""
    figure, ax = sheet(1.8 + 0.34 * len(values))
    sns.heatmap(values.astype(float), vmin=-1, vmax=1, cmap="RdBu_r", annot=True, fmt=".2f",
                annot_kws={"size": FONT - 3}, cbar_kws={"label": label, "shrink": 0.8}, ax=ax)  # fmt: skip
    ax.set_xticklabels(spaced(values.columns), rotation=40, ha="right")
    ax.set_yticklabels(spaced(values.index), rotation=0)
    style(ax, columns, rows)
    return figure


def curves(lines: Mapping[str, Sequence[float]], at: Sequence[float], x: str, y: str) -> Figure:
    """A line for each named sequence of values over the same places; the first is solid, the others are dashed."""
    figure, ax = sheet(3.6)
    for (name, values), colour, marker in zip(lines.items(), cycle(COLOURS), cycle(MARKERS)):
        ax.plot(at, values, "-" if colour == BLUE else "--", marker=marker, color=colour, label=name)
    ax.axhline(0, color=GREY, linewidth=0.8)
    style(ax, x, y)
    legend(ax)
    return figure


def agreement(first: np.ndarray, second: np.ndarray, names: Sequence[str]) -> Figure:
    """One dot for each pair of effects, and the line on which the two are equal; names: of the two axes."""
    figure, ax = sheet(WIDTH * 0.5, width=WIDTH * 0.62)
    ax.plot(first, second, "o", color=BLUE, alpha=0.6, markersize=6, markeredgewidth=0)
    ax.axline((float(np.mean(first)),) * 2, slope=1, color=GREY, linewidth=0.8)
    style(ax, *names)
    return figure
