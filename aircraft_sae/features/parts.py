"""Which parts of the aircraft features follow, cell by cell: scores on half B beside what can be guessed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from aircraft_sae.features.index import FeatureIndex
from aircraft_sae.hangar.solids import PARTS
from aircraft_sae.metrics import auroc_difference
from aircraft_sae.pictures import AircraftData

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
    index: FeatureIndex,
    labels: np.ndarray,
    aircraft: np.ndarray,
    rows: np.ndarray,
    in_b: np.ndarray,
    classes: np.ndarray,
) -> pd.DataFrame:
    """One row per feature and part: how well the feature's activation finds the part's cells in half B.

    labels: (n, rows, columns, parts), aircraft: (n, rows, columns), classes: (n,) codes, all of the pictures `rows`;
    in_b: (n,). ap_a, ap, auroc: on A, on B, on B; f1: on B at the threshold that is best on A; prevalence: share of B's
    cells that show the part. Among cells of B that show aircraft (0.25 of the cell or more) alone: auroc_within, and
    auroc_<guess> of each of `guesses`; excess: auroc_within less the largest of these; excess_a: the same on A, to
    choose by.
    """
    names, cells_per_image = PARTS[FIRST:], index.cells_per_image
    whole = np.ones((len(rows), cells_per_image), bool)
    within = aircraft.reshape(whole.shape) >= LEAST
    halves, known = {}, {}
    for half, kept, shown in (
        ("a", ~in_b, whole),
        ("b", in_b, whole),
        ("within_a", ~in_b, within),
        ("within", in_b, within),
    ):
        number = np.full(len(index.images) * cells_per_image, -1, np.int64)
        chosen = np.zeros((len(index.images), cells_per_image), bool)
        chosen[rows[kept]] = shown[kept]
        number[chosen.reshape(-1)] = np.arange(chosen.sum())
        own = labels[kept].reshape(-1, len(names))[shown[kept].reshape(-1)]
        halves[half] = number, own, own.sum(0)
        if shown is within:
            known[half] = _guessed(guesses(labels, aircraft, in_b, classes, kept), own, shown[kept])
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
            "excess_a": got["within_a"][0]["auroc"] - known["within_a"].max(axis=1),
        })  # fmt: skip
    table = pd.concat([pd.DataFrame(t) for t in tables], ignore_index=True)
    table["prevalence"] = np.tile(halves["b"][2] / len(halves["b"][1]), index.d_sae)
    for name, column in known["within"].items():
        table[f"auroc_{name}"] = np.tile(column, index.d_sae)
    table["excess"] = table["auroc_within"] - np.tile(known["within"].max(axis=1), index.d_sae)
    return table


def _guessed(scores: dict[str, np.ndarray], own: np.ndarray, shown: np.ndarray) -> pd.DataFrame:
    """AUROC of each guess among the cells shown, a row per part; nan where all or none show it."""
    table = pd.DataFrame(np.nan, range(own.shape[1]), list(scores))
    for name, score in scores.items():
        for i in np.flatnonzero(own.any(0) & ~own.all(0)):
            table.loc[i, name] = roc_auc_score(own[:, i], score[..., i].reshape(shown.shape)[shown])
    return table


def guesses(
    labels: np.ndarray, aircraft: np.ndarray, in_b: np.ndarray, classes: np.ndarray, of: np.ndarray
) -> dict[str, np.ndarray]:
    """What is known of the pictures `of` (n,) without looking for a part: scores (pictures, rows, columns, parts).

    place: how often half A shows the part in that cell; aircraft: how much aircraft is in it; class: how often half A's
    pictures of this class show the part at all; class_aircraft: the product of these two.
    """
    shape, n_classes = labels[of].shape, int(classes.max()) + 1
    member = np.float64(classes[~in_b] == np.arange(n_classes)[:, None])
    share = member @ labels[~in_b].any((1, 2)) / np.maximum(member.sum(1, keepdims=True), 1)
    share, aircraft = share[classes[of]][:, None, None], aircraft[of][..., None]
    made = {
        "place": labels[~in_b].mean(0), "aircraft": aircraft, "class": share, "class_aircraft": share * aircraft,
    }  # fmt: skip
    return {name: np.broadcast_to(score, shape) for name, score in made.items()}


def guess_scores(labels: np.ndarray, aircraft: np.ndarray, in_b: np.ndarray, classes: np.ndarray) -> pd.DataFrame:
    """Average precision on half B of guesses that know the true outline: guess, part, ap. Arguments as `part_scores`.

    Beside the outline alone, it is multiplied by the guesses of place, of class, and of both.
    """
    known, table = guesses(labels, aircraft, in_b, classes, in_b), []
    outline = known["aircraft"]
    made = {
        "outline": outline, "outline, place": outline * known["place"], "outline, class": known["class_aircraft"],
        "outline, place, class": known["class_aircraft"] * known["place"],
    }  # fmt: skip
    for name, score in made.items():
        for i, part in enumerate(PARTS[FIRST:]):
            own = labels[in_b][..., i].ravel()
            ap = average_precision_score(own, score[..., i].ravel()) if own.any() else np.nan
            table.append({"guess": name, "part": part, "ap": ap})
    return pd.DataFrame(table)


def ap_draws(values: np.ndarray, member: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(draws,) average precision of a score when pictures are drawn anew.

    values, member: (n, cells) score and label of each picture's cells; counts: (draws, n) how often each is drawn.
    """
    order = np.argsort(-values, axis=None, kind="stable")
    picture, positive = order // values.shape[1], np.float64(member.reshape(-1)[order])
    ends = np.flatnonzero(np.append(np.diff(values.reshape(-1)[order]) != 0, True))
    found = np.empty(len(counts))
    for i, count in enumerate(counts):
        weight = count[picture]
        hits, taken = (weight * positive).cumsum()[ends], weight.cumsum()[ends]
        precision = np.divide(hits, taken, out=np.zeros(len(ends)), where=taken > 0)
        found[i] = (np.diff(hits, prepend=0) * precision).sum() / hits[-1] if hits[-1] else np.nan
    return found


def excess_tests(
    index: FeatureIndex, labels: np.ndarray, aircraft: np.ndarray, rows: np.ndarray, in_b: np.ndarray, classes, claims
) -> pd.DataFrame:
    """Is a feature's AUROC among half B's aircraft cells above those of all `guesses`? One row a claim.

    claims: pairs (feature_id, part); the rest as in `part_scores`. excess, excess_low, excess_high: the least of the
    differences with its 95 % interval; excess_p: the largest of the one-sided p; n: pictures of B in which the feature
    is active. Pictures are the units.
    """
    within, names, found = aircraft[in_b] >= LEAST, PARTS[FIRST:], []
    known = guesses(labels, aircraft, in_b, classes, in_b).values()
    groups = np.broadcast_to(np.arange(in_b.sum())[:, None, None], within.shape)[within]
    for feature_id, part in claims:
        i, maps = names.index(part), index.maps(int(feature_id), rows[in_b])
        member = labels[in_b][..., i][within]
        tests = [auroc_difference(maps[within], guess[..., i][within], member, groups) for guess in known]
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
