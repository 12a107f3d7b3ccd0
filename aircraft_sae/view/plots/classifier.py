"""Figures of the classifier: how it learned, how often it is right, what it confuses, how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest

from aircraft_sae.view.plots.style import BLUE, FONT, GREY, ORANGE, WIDTH, literal, style


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
        style(ax, "epoch", "accuracy, %" if ax is right else "cross-entropy, nats")
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
    style(ax, "class-averaged accuracy, %", "level")
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
    style(ax, "predicted", "actual")
    size = FONT - 2 if n <= 72 else 8
    names = [literal(name) for name in order]
    ax.set_xticks(range(n), names, rotation=90, fontsize=size)
    ax.set_yticks(range(n), names, fontsize=size)
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
    style(ax, "", "accuracy, %")
    style(below, "confidence, %", "pictures")
    return figure
