"""Which regions of the pictures features follow, cell by cell: scores on half B beside what can be guessed.

A region is whatever the pictures know where to find; tables call it a part, which it is in the hangar. Claims are
chosen on half A of the pictures and scored on half B.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from aircraft_sae.activations import Activations, OnPictures
from aircraft_sae.features.index import TABLE, FeatureIndex, build_index
from aircraft_sae.features.selectivity import halves
from aircraft_sae.features.selectivity import selectivity as class_selectivity
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet

PARTS = "parts.parquet"
LEAST = 0.25  # share of a cell that shows a region, or of a region in a cell, from which the cell is the region's


@dataclass(frozen=True)
class Regions:
    """What the cells of an index's n test pictures show. rows: (n,) in the index; in_b: (n,) bool, half B.

    labels: (n, rows, columns, regions) bool, whether a cell shows a region; shown: (n, rows, columns) share of a cell
    that shows any; classes, families: (n,) codes of the finest level and of the next, 0 where there is none.
    """

    names: list[str]
    rows: np.ndarray
    labels: np.ndarray
    shown: np.ndarray
    in_b: np.ndarray
    classes: np.ndarray
    families: np.ndarray

    @classmethod
    def of(cls, index: OnPictures, pictures: Pictures) -> "Regions":
        """Of the test pictures of an index, or of activations."""
        rows = index.rows("test")
        images = index.images.iloc[rows]
        codes = [np.int64(pd.Categorical(images[each], pictures.classes(each)).codes) for each in pictures.levels[:2]]
        codes = codes or [np.zeros(len(rows), int)]
        labels, shown = _cell_labels(pictures, tuple(images["image"]), tuple(index.grid))
        return cls(list(pictures.region_names), rows, labels, shown, halves(codes[0]), codes[0], codes[-1])

    @property
    def within(self) -> np.ndarray:
        """(n, rows, columns) bool, whether a cell shows enough of any region: background left out."""
        return self.shown >= LEAST


@lru_cache(maxsize=4)  # every dictionary is scored on the same pictures
def _cell_labels(pictures: Pictures, images: tuple[str, ...], grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    coverage = np.stack([np.float64(pictures.regions(image, grid)) for image in images])
    return shows(coverage), coverage.sum(3)


def shows(coverage: np.ndarray) -> np.ndarray:
    """(n, rows, columns, regions) whether a cell shows a region, from the share of its pixels that do."""
    whole = coverage.sum((1, 2), keepdims=True)
    return (coverage >= LEAST) | (coverage >= LEAST * np.maximum(whole, 1e-9))


def ranking_scores(values: np.ndarray, member: np.ndarray, n_in: np.ndarray, n_cells: int) -> dict[str, np.ndarray]:
    """Average precision, AUROC and best F1 of a score that is mostly 0, for several labels at once.

    values: (active,) the scores above 0, of n_cells; member: (active, parts) their labels; n_in: (parts,) cells with
    each label, active or not. Returns ap, auroc, f1 and its threshold, each (parts,); nan where no cell has the label.
    Ties count as in scikit-learn's average_precision_score and roc_auc_score, which sort all cells for each label.
    """
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.diff(values[order], append=-1.0))  # the last of each value
    hits = np.vstack([member[order].cumsum(0, dtype=np.float64)[ends], n_in])  # the last threshold takes all cells
    taken = np.append(ends + 1.0, n_cells)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        gained, wrong = np.diff(hits, axis=0, prepend=0), taken - hits
        ap = (gained * hits / taken).sum(0) / n_in
        auroc = 1 - (gained * (wrong - np.diff(wrong, axis=0, prepend=0) / 2)).sum(0) / (n_in * (n_cells - n_in))
        f1 = np.vstack([2 * hits[:-1] / (taken[:-1] + n_in), np.zeros(len(n_in))])  # to take none has 0
    levels, nan = np.append(values[order][ends], np.inf), np.where(n_in == 0, np.nan, 0)
    return {"ap": ap + nan, "auroc": auroc + nan, "f1": f1.max(0) + nan, "threshold": levels[f1.argmax(0)]}


def part_scores(index: FeatureIndex, regions: Regions) -> pd.DataFrame:
    """One row per feature and part: how well the feature's activation finds the part's cells in half B.

    ap_a, ap, auroc: on A, on B, on B; f1: on B at `threshold`, which is best on A; prevalence: share of B's cells that
    show the part. Among cells of B that are not background alone: auroc_within, and auroc_<guess> of each of `guesses`;
    excess: auroc_within less the largest of these; excess_a: the same on A, to choose by.
    """
    a, b = (np.broadcast_to(half[:, None, None], regions.shown.shape) for half in (~regions.in_b, regions.in_b))
    masks = {"a": a, "b": b, "within_a": a & regions.within, "within": b & regions.within}
    masks = {name: mask.ravel() for name, mask in masks.items()}
    labels, n_cells = regions.labels.reshape(-1, len(regions.names)), {name: mask.sum() for name, mask in masks.items()}
    n_in = {name: labels[mask].sum(0) for name, mask in masks.items()}
    guessed, best_a = _guessed(regions, regions.in_b), _guessed(regions, ~regions.in_b).max(axis=1).to_numpy()
    found = []
    for feature_id in range(index.d_sae):
        cells, values = index.active_in(feature_id, regions.rows)
        own, got = labels[cells], {}
        for name, mask in masks.items():
            active = mask[cells]
            got[name] = ranking_scores(values[active], own[active], n_in[name], n_cells[name])
        over = values[:, None] * masks["b"][cells][:, None] >= got["a"]["threshold"]
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = 2 * (over & own).sum(0) / (over.sum(0) + n_in["b"])
        found.append({
            "ap_a": got["a"]["ap"], "ap": got["b"]["ap"], "auroc": got["b"]["auroc"], "f1": f1,
            "threshold": got["a"]["threshold"], "auroc_within": got["within"]["auroc"],
            "excess_a": got["within_a"]["auroc"] - best_a,
        })  # fmt: skip
    columns = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    pairs = pd.MultiIndex.from_product([range(index.d_sae), regions.names], names=["feature_id", "part"])
    known = guessed.assign(prevalence=n_in["b"] / n_cells["b"])
    table = pd.DataFrame(columns, pairs).reset_index().join(known, on="part")
    return table.assign(excess=table["auroc_within"] - table[list(guessed)].max(axis=1))


def _guessed(regions: Regions, of: np.ndarray) -> pd.DataFrame:
    """A row per part: auroc_<guess> of each of `guesses` in cells that are not background; nan for labels all alike."""
    within = regions.within[of]
    own, table = regions.labels[of][within], {}
    mixed = own.any(0) & ~own.all(0)
    for name, scores in guesses(regions, of).items():
        columns = zip(own.T, scores[within].T, mixed, strict=True)
        table[f"auroc_{name}"] = [roc_auc_score(labels, score) if both else np.nan for labels, score, both in columns]
    return pd.DataFrame(table, regions.names)


def guesses(regions: Regions, of: np.ndarray) -> dict[str, np.ndarray]:
    """What is known of the pictures `of` (n,) without looking for a part: scores (pictures, rows, columns, parts).

    place: how often half A shows the part in that cell; outline: how much of any part is in it; class: how often half
    A's pictures of this class show the part at all; class_outline: the product of these two.
    """
    labels, classes = regions.labels[~regions.in_b], regions.classes[~regions.in_b]
    by_class = pd.DataFrame(labels.any((1, 2))).groupby(classes).mean().reindex(regions.classes[of], fill_value=0)
    share, outline = by_class.to_numpy()[:, None, None], regions.shown[of][..., None]
    made = {"place": labels.mean(0), "outline": outline, "class": share, "class_outline": share * outline}
    return {name: np.broadcast_to(score, regions.labels[of].shape) for name, score in made.items()}


def guess_scores(regions: Regions) -> pd.DataFrame:
    """Average precision on half B of the outline, and of it times other `guesses`: guess, part, ap."""
    known, own = guesses(regions, regions.in_b), regions.labels[regions.in_b]
    made = {
        "outline": known["outline"], "outline, place": known["outline"] * known["place"],
        "outline, class": known["class_outline"], "outline, place, class": known["class_outline"] * known["place"],
    }  # fmt: skip
    found = [
        (name, part, ap_of(score[..., i], own[..., i])[0])
        for name, score in made.items()
        for i, part in enumerate(regions.names)
    ]
    return pd.DataFrame(found, columns=["guess", "part", "ap"])


def best_parts(scores: pd.DataFrame) -> pd.DataFrame:
    """Each feature's part, that of its largest excess on half A: feature_id, part, part_ap, …; features in order."""
    ranked = scores.sort_values(["excess_a", "part"], ascending=[False, True])  # by ap_a: the part most often seen
    chosen = ranked.drop_duplicates("feature_id").sort_values("feature_id", ignore_index=True)
    return chosen.rename(columns={c: f"part_{c}" for c in chosen if c not in ("feature_id", "part")})


def best_matches(scores: pd.DataFrame) -> pd.DataFrame:
    """Each part's feature, that of the largest average precision on half A, with its scores; ties: the lower id."""
    ranked = scores.sort_values(["ap_a", "feature_id", "part"], ascending=[False, True, True])
    return ranked.drop_duplicates("part").set_index("part")


def ap_of(values: np.ndarray, member: np.ndarray) -> tuple[float, np.ndarray]:
    """(average precision of a score, scikit-learn's; each picture's influence on it, (n,)); nan without positives.

    values, member: (n, …) score and label of each picture's cells. The influence is the derivative by the picture's
    weight. Source: the infinitesimal jackknife, Efron & Tibshirani 1993, chapter 21.
    """
    values, member = values.reshape(len(values), -1), np.float64(member.reshape(len(member), -1))
    lowest, (n, n_cells), n_in = values.min(), values.shape, member.sum(1)
    order = np.flatnonzero(values > lowest)  # as a rule few: the others are 0 and come last, unsorted
    order = order[np.argsort(-values.reshape(-1)[order], kind="stable")]
    picture, positive = order // n_cells, member.reshape(-1)[order]
    ends = np.flatnonzero(np.diff(values.reshape(-1)[order], append=lowest) != 0)
    tie = np.searchsorted(ends, np.arange(len(order)))  # which of the groups of equal scores
    hits, taken = np.append(positive.cumsum()[ends], n_in.sum()), np.append(ends + 1, values.size)
    if not n_in.any():
        return np.nan, np.full(n, np.nan)
    gained, precision = np.diff(hits, prepend=0), hits / taken
    ap = (gained * precision).sum() / hits[-1]
    # what a cell adds to the precision of all groups from its own on, if it is a positive; and what it takes from it
    adds, takes = (np.cumsum((each / taken)[::-1])[::-1] for each in (gained, gained * precision))
    influence = np.bincount(picture, positive * (precision + adds)[tie] - takes[tie], n)
    last_in, last = n_in - np.bincount(picture, positive, n), n_cells - np.bincount(picture, minlength=n)
    influence = influence + last_in * (precision[-1] + adds[-1]) - last * takes[-1]  # no += where none is in order
    return float(ap), (influence - ap * n_in) / hits[-1]


def build_features(
    folder: Path, sae: SparseAutoencoder, acts: Activations, pictures: Pictures, splits: list[str], selectivity: bool
) -> None:
    """The index of the pictures of these splits, and in features.parquet what the test pictures say of each feature.

    Columns: those of `build_index`; of `selectivity`, if asked for, on each level that the pictures have; where they
    have regions, those of `best_parts`, as part, part_ap, part_auroc, …; parts.parquet has all features and parts.
    """
    index = build_index(sae, acts, folder, acts.rows(*splits))
    test, levels = index.rows("test"), pictures.levels
    table, images = index.table, index.images.iloc[test]
    if len(images) > 1 and levels and selectivity:
        names = {level: pictures.classes(level) for level in levels}
        labels = {level: (pd.Categorical(images[level], names[level]).codes, names[level]) for level in levels}
        table = table.join(class_selectivity(index.maxima(test), labels, halves(images[levels[0]])))
    if len(images) > 1 and pictures.region_names:
        scores = part_scores(index, Regions.of(index, pictures))
        write_parquet(scores, folder / PARTS)
        table = table.join(best_parts(scores).drop(columns="feature_id"))
    write_parquet(table, folder / TABLE)
