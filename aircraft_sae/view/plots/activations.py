"""Figures of activations: what is stored, where it is far from the mean, and along how many directions it varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from PIL import Image

from aircraft_sae.view.plots.style import BLUE, FONT, GREY, ORANGE, WIDTH, show, style

COLOURS = (BLUE, ORANGE, GREY)


def differences(groups: Mapping[str, np.ndarray], label: str, least: float = 1e-7) -> Figure:
    """Histograms of positive numbers, one per picture, on a shared logarithmic axis; smaller ones count as `least`."""
    edges = np.geomspace(least, 1, 57)
    figure = Figure((WIDTH, 3.2), layout="constrained")
    ax = figure.subplots()
    for (name, values), colour in zip(groups.items(), COLOURS, strict=False):
        ax.hist(np.clip(values, least, 1), edges, histtype="stepfilled", color=colour, alpha=0.75, label=name)
    ax.set_xscale("log")
    style(ax, label, "pictures")
    figure.legend(loc="outside upper center", ncols=3, fontsize=FONT - 1, frameon=False)
    return figure


def energy_shares(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """One bar for each site, made of shares that add up to 1; at most three, the same names for every site."""
    figure = Figure((WIDTH, 1.4 + 0.55 * len(shares)), layout="constrained")
    ax = figure.subplots()
    left = np.zeros(len(shares))
    for name, colour in zip(next(iter(shares.values())), COLOURS, strict=False):
        widths = np.array([100 * own[name] for own in shares.values()])
        bars = ax.barh(list(shares), widths, left=left, color=colour, edgecolor="white", label=name)
        words = [f"{width:.1f}" if width >= 5 else "" for width in widths]
        ax.bar_label(bars, words, label_type="center", color="white", fontsize=FONT, fontweight="bold")
        left += widths
    ax.set_xlim(0, 100)
    ax.invert_yaxis()
    style(ax, "share of the mean squared length of a cell, %", "site")
    figure.legend(loc="outside upper center", ncols=3, fontsize=FONT - 1, frameon=False)
    return figure


def heat_maps(
    pictures: Sequence[Any], maps: Mapping[str, np.ndarray], label: str, outlines: Sequence[np.ndarray] | None = None
) -> Figure:
    """Pictures, and below them for each site their maps (n, rows, columns), one scale for each row.

    outlines: boolean (height, width) of each picture, drawn as a line on the maps.
    """
    n, rows = len(pictures), len(maps) + 1
    figure = Figure((WIDTH, rows * WIDTH / (n + 0.5)), layout="constrained")
    axes = figure.subplots(rows, n, squeeze=False)
    for j, picture in enumerate(pictures):
        show(axes[0, j], picture)
    for i, (site, values) in enumerate(maps.items(), 1):
        for j in range(n):
            show(axes[i, j], values[j], cmap="viridis", vmin=0, vmax=values.max(), extent=(0, 1, 1, 0))
            if outlines is not None and outlines[j].any():
                height, width = outlines[j].shape
                places = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
                axes[i, j].contour(*places, outlines[j].astype(float), [0.5], colors="white", linewidths=0.8)
            axes[i, j].set_aspect(np.asarray(pictures[j]).shape[0] / np.asarray(pictures[j]).shape[1])
        axes[i, 0].set_ylabel(site, fontsize=FONT)
        bar = figure.colorbar(axes[i, 0].images[0], ax=list(axes[i]), fraction=0.05, pad=0.01)
        bar.set_label(label, fontsize=FONT - 1)
        bar.ax.tick_params(labelsize=FONT - 2)
    return figure


def component_picture(picture: Any, scores: np.ndarray, ends: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """The picture (height, width, 3) uint8, pale and grey, with the cells that are `shown` painted by three components.

    The first is lightness, the second blue to yellow, the third green to red: with any colour vision, two can be seen.
    scores: (rows, columns, 3); ends: (2, 3), lowest and highest of each scale; shown: (rows, columns) bool.
    """
    pale = 150 + 0.4 * np.asarray(picture).mean(axis=2, keepdims=True).repeat(3, axis=2)
    unit = np.clip((scores - ends[0]) / (ends[1] - ends[0]), 0, 1)
    luma = np.round(unit * [170, 160, 160] + [50, 48, 48]).astype(np.uint8)
    size, nearest = pale.shape[1::-1], Image.Resampling.NEAREST
    colours = np.asarray(Image.fromarray(luma, "YCbCr").convert("RGB").resize(size, nearest))
    covered = np.asarray(Image.fromarray(np.uint8(shown)).resize(size, nearest), bool)
    return np.where(covered[..., None], colours, pale).astype(np.uint8)


def cumulative_variance(curves: Mapping[str, Mapping[str, np.ndarray]], level: float = 0.9) -> Figure:
    """For each site a panel: share of variance within the first so many directions, by what they were measured on.

    curves: {site: {name: cumulated shares (d_in,)}}. Every other line is dashed, for those that lie on another.
    """
    figure = Figure((WIDTH, 4.2), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for ax, (site, lines) in zip(panels, curves.items(), strict=True):
        for k, ((name, values), colour) in enumerate(zip(lines.items(), COLOURS, strict=False)):
            look = dict(color=colour, linestyle=("-", "--", "-")[k], linewidth=(3, 2, 2)[k])
            label = name if ax is figure.axes[0] else None
            ax.plot(np.arange(1, len(values) + 1), 100 * np.asarray(values), label=label, **look)
        ax.axhline(100 * level, color="black", linestyle=":", linewidth=1)
        ax.set(xscale="log", ylim=(0, 102), title=f"{site}, {len(values)} channels")
        ticks = [t for t in (1, 3, 10, 30, 100, 300, 1000) if t <= len(values)]
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(ticks, map(str, ticks))
        style(ax, "number of directions", "" if label is None else "share of variance, %")
    figure.legend(loc="outside upper center", ncols=3, fontsize=FONT - 1, frameon=False)
    return figure


def channel_sparsity(points: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """For each site a panel of dots: share of cells where a direction is positive, and its excess kurtosis.

    points: {site: {name: (shares (n,), excess kurtosis (n,))}}.
    """
    figure = Figure((WIDTH, 4.2), layout="constrained")
    panels = figure.subplots(1, len(points), sharey=True, squeeze=False)[0]
    for ax, (site, groups) in zip(panels, points.items(), strict=True):
        for k, (name, (positive, kurtosis)) in enumerate(groups.items()):
            look = dict(color=COLOURS[k], marker="o^s"[k], linestyle="", markersize=4, alpha=0.7, zorder=3 - k)
            label = name if ax is figure.axes[0] else None
            ax.plot(100 * np.asarray(positive), kurtosis, label=label, **look)
        ax.set(xlim=(0, 100), title=site)
        style(ax, "cells where it is positive, %", "" if label is None else "excess kurtosis")
    figure.legend(loc="outside upper center", ncols=3, fontsize=FONT - 1, frameon=False, markerscale=2)
    return figure
