"""Which parts of the aircraft features follow, cell by cell: scores on half B beside what place and outline predict."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from aircraft_sae.data import AircraftData
from aircraft_sae.features.index import FeatureIndex
from aircraft_sae.hangar.solids import PARTS
from aircraft_sae.metrics import auroc_difference
from aircraft_sae.sae import SparseAutoencoder

FIRST = 2
"""PARTS before it are background."""
LEAST = 0.25
"""Share of a cell that shows a part, or of a part that a cell shows, from which the cell counts as the part's."""


def cell_labels(data: AircraftData, images: Sequence[str], grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """((n, rows, columns, 12) bool whether a cell shows a part, (n, rows, columns) share of aircraft in a cell).

    Both are read-only: the last few are kept, since every dictionary is scored on the same pictures.
    """
    return _cell_labels(data, tuple(images), tuple(grid))


@lru_cache(maxsize=4)
def _cell_labels(data: AircraftData, images: tuple[str, ...], grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    labels, aircraft = [], []
    for image in images:
        coverage = np.moveaxis(data.coverage(image, *grid), 0, 2)
        parts = coverage[..., FIRST:]
        whole = parts.sum((0, 1))
        labels.append((parts >= LEAST) | (parts >= LEAST * np.maximum(whole, 1e-9)))
        aircraft.append(parts.sum(2))
    made = np.stack(labels), np.stack(aircraft)
    for array in made:
        array.flags.writeable = False
    return made


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
    show the part. Among cells of B that show aircraft (0.25 of the cell or more) alone: auroc_within; auroc_place: of
    each cell's share of A's pictures that show the part there; auroc_aircraft: of the share of aircraft in a cell;
    excess: auroc_within less the larger of the two.
    """
    names, cells_per_image = PARTS[FIRST:], index.cells_per_image
    halves, baselines = {}, place_and_outline(labels, aircraft, in_b)
    for half, kept in (("a", ~in_b), ("b", in_b), ("within", in_b)):
        number = np.full(len(index.images) * cells_per_image, -1, np.int64)
        chosen = np.zeros((len(index.images), cells_per_image), bool)
        chosen[rows[kept]] = aircraft[kept].reshape(-1, cells_per_image) >= LEAST if half == "within" else True
        number[chosen.reshape(-1)] = np.arange(chosen.sum())
        own = labels[kept].reshape(-1, len(names))[chosen[rows[kept]].reshape(-1)]
        halves[half] = number, own, own.sum(0)
    own, within = halves["within"][1], aircraft[in_b] >= LEAST
    known = np.full((len(names), 2), np.nan)
    for i in range(len(names)):
        if 0 < own[:, i].sum() < len(own):
            known[i] = [roc_auc_score(own[:, i], score[..., i][within]) for score in baselines]
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
    table["prevalence"] = np.tile(halves["b"][2] / len(halves["b"][1]), index.d_sae)
    table["auroc_place"], table["auroc_aircraft"] = np.tile(known, (index.d_sae, 1)).T
    table["excess"] = table["auroc_within"] - table[["auroc_place", "auroc_aircraft"]].max(axis=1)
    return table


def place_and_outline(labels: np.ndarray, aircraft: np.ndarray, in_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is known of half B without looking for a part: two scores (n in B, rows, columns, parts).

    How often half A shows the part in that place of the picture, and how much aircraft is in the cell.
    """
    place = np.broadcast_to(labels[~in_b].mean(0), labels[in_b].shape)
    return place, np.broadcast_to(aircraft[in_b][..., None], labels[in_b].shape)


def excess_tests(
    index: FeatureIndex, labels: np.ndarray, aircraft: np.ndarray, rows: np.ndarray, in_b: np.ndarray, claims
) -> pd.DataFrame:
    """Is a feature's AUROC among half B's aircraft cells above those of place and outline? One row a claim.

    claims: pairs (feature_id, part); the rest as in `part_scores`. excess, excess_low, excess_high: the smaller of the
    two differences with its 95 % interval; excess_p: the larger of the two one-sided p; n: pictures of B in which the
    feature is active. Pictures are the units.
    """
    within, names, found = aircraft[in_b] >= LEAST, PARTS[FIRST:], []
    baselines = place_and_outline(labels, aircraft, in_b)
    groups = np.broadcast_to(np.arange(in_b.sum())[:, None, None], within.shape)[within]
    for feature_id, part in claims:
        i, maps = names.index(part), index.maps(int(feature_id), rows[in_b])
        member = labels[in_b][..., i][within]
        tests = [auroc_difference(maps[within], baseline[..., i][within], member, groups) for baseline in baselines]
        difference, error = min(tests, key=lambda test: test[0])
        found.append({
            "feature_id": int(feature_id), "part": part, "excess": difference, "excess_low": difference - 1.96 * error,
            "excess_high": difference + 1.96 * error, "n": int((maps.max((1, 2)) > 0).sum()),
            "excess_p": max(_one_sided(*test) for test in tests),
        })  # fmt: skip
    return pd.DataFrame(found)


def _one_sided(difference: float, error: float) -> float:
    """p of a difference that is not above 0; nan stays nan."""
    return float(norm.sf(difference / error)) if not error == 0 else float(difference <= 0)


def fit_probes(acts: np.ndarray, labels: np.ndarray, ridge: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """(directions (parts, d_in), biases (parts,)): a cell is said to show part i where acts . direction + bias >= 0.

    acts: (n, rows, columns, d_in) of labelled pictures. Linear regression of the labels on standardised channels, with
    `ridge` times the cells as penalty; the bias has the best F1 on these pictures. No direction where all or no cells
    show the part: zeros.
    """
    x = np.float64(acts).reshape(-1, acts.shape[-1])
    mean, spread = x.mean(0), x.std(0) + 1e-9
    x, own = (x - mean) / spread, labels.reshape(len(x), -1)
    weights = np.linalg.solve(x.T @ x + ridge * len(x) * np.eye(x.shape[1]), x.T @ (own - own.mean(0)))
    bias, scores = np.zeros(own.shape[1]), x @ weights
    for i in range(own.shape[1]):
        least = scores[:, i].min() - 1  # ranking_scores takes what is active, and so positive
        bias[i] = -least - ranking_scores(scores[:, i] - least, own[:, [i]], own[:, [i]].sum(0), len(x))["threshold"][0]
    weights = np.where(own.any(0) & ~own.all(0), weights, 0) / spread[:, None]
    return weights.T, bias - mean @ weights


def probe_scores(acts: np.ndarray, labels: np.ndarray, in_b: np.ndarray) -> pd.DataFrame:
    """What one direction of the activations could do for each part: part, ap, f1 on half B, fitted on half A.

    acts: (n, rows, columns, d_in) of the labelled pictures. Trained with labels, as no feature was: a ceiling.
    """
    directions, biases = fit_probes(acts[~in_b], labels[~in_b])
    scores = np.float64(acts[in_b]) @ directions.T + biases
    table = []
    for i, part in enumerate(PARTS[FIRST : FIRST + len(biases)]):
        own, score = labels[in_b][..., i].ravel(), scores[..., i].ravel()
        ap, f1 = np.nan, np.nan
        if own.any() and directions[i].any():
            ap, f1 = average_precision_score(own, score), f1_score(own, score >= -1e-9)
        table.append({"part": part, "ap": ap, "f1": f1})
    return pd.DataFrame(table)


def matching_pursuit(
    index: FeatureIndex, scores: pd.DataFrame, labels: np.ndarray, rows: np.ndarray, in_b: np.ndarray, most: int = 3
) -> pd.DataFrame:
    """Several features for a part: part, features (ids), f1 on half B of "any of them above its threshold".

    On half A, of the 40 features with the largest ap_a the one whose firings have the best F_0.5 for the part's cells
    not yet found is added, until `most` or until F1 grows no more; thresholds are those of `part_scores`.
    Source: feature-based matching pursuit, arXiv 2606.24716.
    """
    table = []
    for i, part in enumerate(PARTS[FIRST:]):
        own_a, own_b = (labels[kept][..., i].reshape(-1) for kept in (~in_b, in_b))
        if not own_a.any() or not own_b.any():
            table.append({"part": part, "features": [], "f1": np.nan})
            continue
        candidates = scores[scores["part"] == part].nlargest(40, "ap_a")
        maps = [index.maps(int(j), rows) >= t for j, t in candidates[["feature_id", "threshold"]].to_numpy()]
        firing = np.stack([m[~in_b].reshape(-1) for m in maps])
        chosen, any_a, best = [], np.zeros(len(own_a), bool), 0.0
        while len(chosen) < most:
            left = own_a & ~any_a
            hits, wrong = (firing & left).sum(1), (firing & ~own_a & ~any_a).sum(1)
            j = int((1.25 * hits / np.maximum(1.25 * hits + 0.25 * (left.sum() - hits) + wrong, 1e-9)).argmax())
            together = any_a | firing[j]
            f1 = 2 * (together & own_a).sum() / (together.sum() + own_a.sum())
            if f1 <= best:
                break
            chosen, any_a, best = [*chosen, j], together, f1
        any_b = np.any([maps[j][in_b].reshape(-1) for j in chosen] or [np.zeros(len(own_b), bool)], axis=0)
        f1 = 2 * (any_b & own_b).sum() / (any_b.sum() + own_b.sum())
        table.append({"part": part, "features": candidates["feature_id"].iloc[chosen].tolist(), "f1": f1})
    return pd.DataFrame(table)


def absorption(
    index: FeatureIndex,
    sae: SparseAutoencoder,
    acts: np.ndarray,
    labels: np.ndarray,
    pursuit: pd.DataFrame,
    directions: np.ndarray,
    biases: np.ndarray,
    rows: np.ndarray,
) -> pd.DataFrame:
    """How often another feature speaks where a part's own are silent: part, n, silent, absorbed.

    acts: (n, rows, columns, d_in) and labels of pictures of half B, whose rows in the index are `rows`; pursuit: of
    `matching_pursuit`; directions, biases: of `fit_probes` on half A. Of the n cells that show the part and that the
    probe finds: the share in which all the part's own features are silent, and that in which, besides, one other
    feature with cosine 0.025 or more to the probe supplies 0.4 or more of what lies along it.
    Source: Chanin et al. 2024, arXiv 2409.14507, as SAEBench computes it.
    """
    table, W_dec, b_dec = [], sae.W_dec.detach().numpy(), sae.b_dec.detach().numpy()
    for i, (part, own, _) in enumerate(pursuit[["part", "features", "f1"]].itertuples(index=False)):
        found = labels[..., i] & (acts @ directions[i] + biases[i] >= 0)
        if not own or not found.any():
            table.append({"part": part, "n": int(found.sum()), "silent": np.nan, "absorbed": np.nan})
            continue
        codes = np.concatenate([index.image(row)[cells] for row, cells in zip(rows, found, strict=True) if cells.any()])
        probe = directions[i] / np.linalg.norm(directions[i])
        along = W_dec @ probe
        able = along / np.maximum(np.linalg.norm(W_dec, axis=1), 1e-12) >= 0.025
        able[own] = False
        supplied = (codes[:, able] * along[able]).max(1, initial=0)
        total = (np.float32(acts[found]) - b_dec) @ probe
        silent = (codes[:, own] == 0).all(1)
        absorbed = silent & (total > 0) & (supplied >= 0.4 * total)
        table.append({"part": part, "n": len(codes), "silent": silent.mean(), "absorbed": absorbed.mean()})
    return pd.DataFrame(table)
