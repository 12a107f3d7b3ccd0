"""Which parts of the aircraft features follow, cell by cell: scores on half B beside what place and outline predict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from aircraft_sae.data import AircraftData
from aircraft_sae.features.index import FeatureIndex
from aircraft_sae.hangar.solids import PARTS

FIRST = 2
"""PARTS before it are background."""
LEAST = 0.25
"""Share of a cell that shows a part, or of a part that a cell shows, from which the cell counts as the part's."""


def cell_labels(data: AircraftData, images: Sequence[str], grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """((n, rows, columns, 12) bool whether a cell shows a part, (n, rows, columns) share of aircraft in a cell)."""
    labels, aircraft = [], []
    for image in images:
        coverage = np.moveaxis(data.coverage(image, *grid), 0, 2)
        parts = coverage[..., FIRST:]
        whole = parts.sum((0, 1))
        labels.append((parts >= LEAST) | (parts >= LEAST * np.maximum(whole, 1e-9)))
        aircraft.append(parts.sum(2))
    return np.stack(labels), np.stack(aircraft)


def ranking_scores(values: np.ndarray, member: np.ndarray, n_in: np.ndarray, n_cells: int) -> dict[str, np.ndarray]:
    """Average precision, AUROC and best F1 of a sparse score for several labels at once.

    values: (m,) positive scores of the active cells, all others being 0; member: (m, parts) their labels; n_in:
    (parts,) cells with the label among all n_cells. Returns ap, auroc, f1, threshold, each (parts,); nan where there
    are no such cells. Ties count as in scikit-learn's average_precision_score and roc_auc_score on the dense vector.
    """
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True)) if len(values) else np.zeros(0, int)
    hits = member[order].cumsum(0, dtype=np.float64)[ends] if len(values) else np.zeros((0, len(n_in)))
    hits = np.vstack([hits, n_in])  # the last threshold takes all cells
    taken = np.append(ends + 1.0, n_cells)[:, None]
    n_out = n_cells - n_in
    with np.errstate(invalid="ignore", divide="ignore"):
        gained = np.diff(hits, axis=0, prepend=0)
        wrong = taken - hits
        ap = (gained * hits / taken).sum(0) / n_in
        auroc = 1 - (gained * (wrong - np.diff(wrong, axis=0, prepend=0) / 2)).sum(0) / (n_in * n_out)
        f1 = 2 * hits[:-1] / (taken[:-1] + n_in)
    best = f1.argmax(0) if len(f1) else np.zeros(len(n_in), int)
    levels = values[order][ends] if len(values) else np.array([np.inf])
    top = f1.max(0) if len(f1) else np.zeros(len(n_in))
    absent = n_in == 0
    nan = np.where(absent, np.nan, 0)
    return {"ap": ap + nan, "auroc": auroc + nan, "f1": top + nan, "threshold": levels[best]}


def part_scores(
    index: FeatureIndex, labels: np.ndarray, aircraft: np.ndarray, rows: np.ndarray, in_b: np.ndarray
) -> pd.DataFrame:
    """One row per feature and part: how well the feature's activation finds the part's cells in half B.

    labels: (n, rows, columns, parts), aircraft: (n, rows, columns), both of the pictures `rows`; in_b: (n,).
    ap_a, ap, auroc: on A, on B, on B; f1: on B at the threshold that is best on A; prevalence: share of B's cells that
    show the part; auroc_place: of each cell's share of A's pictures that show the part there; auroc_aircraft: of the
    share of aircraft in a cell; excess: auroc less the larger of the two; auroc_within: among cells that show
    aircraft (0.25 of the cell or more) alone.
    """
    names, cells_per_image = PARTS[FIRST:], index.cells_per_image
    place = labels[~in_b].mean(0)
    halves, baselines = {}, {}
    for half, kept in (("a", ~in_b), ("b", in_b), ("within", in_b)):
        number = np.full(len(index.images) * cells_per_image, -1, np.int64)
        chosen = np.zeros((len(index.images), cells_per_image), bool)
        chosen[rows[kept]] = aircraft[kept].reshape(-1, cells_per_image) >= LEAST if half == "within" else True
        number[chosen.reshape(-1)] = np.arange(chosen.sum())
        own = labels[kept].reshape(-1, len(names))[chosen[rows[kept]].reshape(-1)]
        halves[half] = number, own, own.sum(0)
    own = halves["b"][1]
    for i in range(len(names)):
        if 0 < own[:, i].sum() < len(own):
            scores = np.broadcast_to(place[..., i], (int(in_b.sum()), *index.grid)), aircraft[in_b]
            baselines[i] = [roc_auc_score(own[:, i], score.reshape(-1)) for score in scores]
        else:
            baselines[i] = [np.nan, np.nan]
    tables = []
    for feature_id in range(index.d_sae):
        cells, values = index.firings(feature_id)
        got = {}
        for half, (number, own, n_in) in halves.items():
            at = number[cells]
            got[half] = ranking_scores(values[at >= 0], own[at[at >= 0]], n_in, len(own)), values[at >= 0], at[at >= 0]
        (a, _, _), (b, values_b, at_b) = got["a"], got["b"]
        over = values_b[:, None] >= a["threshold"]
        _, own, n_in = halves["b"]
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = 2 * (over & own[at_b]).sum(0) / (over.sum(0) + n_in)
        tables.append({
            "feature_id": feature_id, "part": names, "ap_a": a["ap"], "ap": b["ap"], "auroc": b["auroc"], "f1": f1,
            "auroc_within": got["within"][0]["auroc"], "threshold": a["threshold"],
        })  # fmt: skip
    table = pd.concat([pd.DataFrame(t) for t in tables], ignore_index=True)
    known = np.tile([baselines[i] for i in range(len(names))], (index.d_sae, 1))
    table["prevalence"] = np.tile(halves["b"][2] / len(halves["b"][1]), index.d_sae)
    table["auroc_place"], table["auroc_aircraft"] = known.T
    table["excess"] = table["auroc"] - known.max(1)
    return table
