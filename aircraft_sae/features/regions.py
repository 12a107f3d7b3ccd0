"""What features say about test pictures: which class they show, and which regions, cell by cell.

In the hangar and in tables, a region is called a part. Classes and claims are chosen on half A and scored on half B.

Class selectivity works on image maxima (n_images, d_sae). The null permutes the labels of half B and keeps the class
that half A chose, so that each feature is compared with itself. The spread of AUROC under this null is known
(Mann-Whitney with ties). With few images per class its tail is not normal, so p is counted among permutations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import rankdata, tiecorrect

from aircraft_sae.activations import Activations, OnPictures
from aircraft_sae.features.index import TABLE, FeatureIndex, build_index
from aircraft_sae.metrics import q_values
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet

PARTS = "parts.parquet"
LEAST = 0.25  # a cell shows a region that fills this share of the cell, or has this share of its own pixels there
N_PERMUTATIONS, N_AT_ONCE = 9999, 500  # for the p of AUROC, and how many of them are in memory at once


def halves(classes: Sequence) -> np.ndarray:
    """(n,) True for half B: every second image of a class: from the second in one class, the first in the next."""
    number = pd.factorize(np.asarray(classes))[0]
    return (pd.Series(number).groupby(number).cumcount().to_numpy() + number) % 2 == 1


def auroc(ranks: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(area under the ROC curve of each feature for each class against the rest, its z), both (classes, d).

    ranks: (n, d) over images, ties averaged; member: (classes, n) whether an image is of the class.
    z: (area - 0.5) / its exact standard deviation under permuted labels. A class of no images, or all, gets 0.5, nan.
    Source: Mann & Whitney 1947; Lehmann 1975, Nonparametrics, appendix, equation A.18.
    """
    n, n_in = len(ranks), member.sum(1, keepdims=True)
    pairs, untied = n_in * (n - n_in), np.array([tiecorrect(column) for column in ranks.T])
    with np.errstate(invalid="ignore", divide="ignore"):
        area = np.where(pairs > 0, (member @ ranks - n_in * (n_in + 1) / 2) / pairs, 0.5)
        return area, (area - 0.5) / np.sqrt(np.where(pairs > 0, untied * (n + 1) / 12 / pairs, 0))


def auroc_p(ranks: np.ndarray, n_in: np.ndarray, area: np.ndarray) -> np.ndarray:
    """(d,) one-sided p of AUROCs: the share of label permutations, the observed labels included, that reach them.

    ranks: (n, d) over images, ties averaged; n_in: (d,) images in each feature's class; area: (d,) its AUROC.
    Source: Phipson & Smyth 2010, arXiv 1603.05766, equation 2.
    """
    n, n_reached, rng = len(ranks), np.zeros(ranks.shape[1]), np.random.default_rng(0)
    tested = (n_in > 0) & (n_in < n)
    rank_sums = area * n_in * (n - n_in) + n_in * (n_in + 1) / 2  # multiples of a half
    for first in range(0, N_PERMUTATIONS, N_AT_ONCE):
        order = rng.random((min(N_AT_ONCE, N_PERMUTATIONS - first), n), np.float32).argsort(1)
        for size in np.unique(n_in[tested]):
            own = n_in == size
            n_reached[own] += (np.float32(order < size) @ ranks[:, own] >= rank_sums[own] - 0.25).sum(0)
    return np.where(tested, (n_reached + 1) / (N_PERMUTATIONS + 1), 1.0)


def best_aurocs(maxima: np.ndarray, labels: pd.DataFrame) -> pd.Series:
    """By (level, class), the AUROC on half B of the column of maxima (n, d) that is best on half A.

    labels: a row per image, a column per level; nan for a class that is missing from a half.
    """
    in_b, found = halves(labels.iloc[:, 0]), {}
    ranks_a, ranks_b = (rankdata(maxima[half], axis=0) for half in (~in_b, in_b))
    for level in labels:
        table = pd.get_dummies(labels[level], dtype=float).T
        in_a, there = (table.to_numpy()[:, half] for half in (~in_b, in_b))
        on_b = auroc(ranks_b, there)[0][np.arange(len(table)), auroc(ranks_a, in_a)[0].argmax(1)]
        on_b[~(in_a.any(1) & there.any(1))] = np.nan
        found |= {(level, name): value for name, value in zip(table.index, on_b, strict=True)}
    return pd.Series(found)


def selectivity(maxima: np.ndarray, labels: Mapping[str, tuple], in_b: np.ndarray) -> pd.DataFrame:
    """One row per feature: at each level of the taxonomy, the class it is most selective for, and how much.

    maxima: (n, d) image maxima; labels: level -> ((n,) class indices, class names); in_b: (n,) half B.
        <level>/class: the class with the largest AUROC on half A
        <level>/auroc, auroc_z: its AUROC on half B, and the distance from 0.5 in standard deviations of the null
        <level>/auroc_p, auroc_q: one-sided p, and Benjamini-Hochberg's q over features and levels
        level: the level whose class stands out most on half A, in standard deviations
        placed: that level if its auroc_q is below 0.05, else "none"
    z, p and q are nan for features that are active in fewer than 8 images of half B, or whose null has no spread.
    """
    own, values = np.arange(maxima.shape[1]), maxima[in_b]
    ranks_a, ranks_b = (np.float32(rankdata(maxima[half], axis=0)) for half in (~in_b, in_b))
    enough, table, z_a = (values > 0).sum(0) >= 8, {}, []
    for level, (codes, classes) in labels.items():
        member = np.float32(np.asarray(codes) == np.arange(len(classes))[:, None])  # (classes, n)
        area, z = auroc(ranks_a, member[:, ~in_b])
        chosen = area.argmax(0), own
        z_a.append(np.where(np.isfinite(z[chosen]), z[chosen], -np.inf))
        area, z = (each[chosen] for each in auroc(ranks_b, member[:, in_b]))
        tested, p = enough & np.isfinite(z), auroc_p(ranks_b, member[:, in_b].sum(1)[chosen[0]], area)
        table[f"{level}/class"], table[f"{level}/auroc"] = np.asarray(classes, object)[chosen[0]], area
        table[f"{level}/auroc_z"], table[f"{level}/auroc_p"] = (np.where(tested, each, np.nan) for each in (z, p))
    q = q_values(np.stack([table[f"{level}/auroc_p"] for level in labels]))
    table |= {f"{level}/auroc_q": row for level, row in zip(labels, q, strict=True)}
    level = np.argmax(z_a, axis=0)
    names = np.asarray(list(labels), object)[level]
    return pd.DataFrame(table | {"level": names, "placed": np.where(q[level, own] < 0.05, names, "none")})


@dataclass(frozen=True)
class Regions:
    """What the cells of n test pictures show.

    rows: (n,) the pictures' rows in the index; in_b: (n,) half B
    labels: (n, rows, columns, regions) bool, whether a cell shows a region
    shown: (n, rows, columns) share of a cell that any region fills
    classes, families: (n,) codes at the two finest levels or the only one; 0 without any
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
        """The regions in the test pictures of an index, or of activations."""
        rows = index.rows("test")
        images = index.images.iloc[rows]
        codes = [np.int64(pd.Categorical(images[each], pictures.classes(each)).codes) for each in pictures.levels[:2]]
        codes = codes or [np.zeros(len(rows), int)]
        labels, shown = _cell_labels(pictures, tuple(images["image"]), tuple(index.grid))
        return cls(list(pictures.region_names), rows, labels, shown, halves(codes[0]), codes[0], codes[-1])

    @property
    def within(self) -> np.ndarray:
        """(n, rows, columns) bool: cells that show the aircraft, or whatever the regions are parts of."""
        return self.shown >= LEAST


@lru_cache(maxsize=4)  # every dictionary is scored on the same pictures
def _cell_labels(pictures: Pictures, images: tuple[str, ...], grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    coverage = np.stack([np.float64(pictures.regions(image, grid)) for image in images])
    return cell_labels(coverage), coverage.sum(3)


def cell_labels(coverage: np.ndarray) -> np.ndarray:
    """Whether each cell shows each region, from the share of the cell it fills; both (n, rows, columns, regions)."""
    whole = coverage.sum((1, 2), keepdims=True)
    return (coverage >= LEAST) | (coverage >= LEAST * np.maximum(whole, 1e-9))


def average_precisions(codes: csr_array, labels: np.ndarray) -> np.ndarray:
    """(d, parts) average precision of each column of codes (cells, d) for each of labels (cells, parts).

    Equal to scikit-learn's, which would sort all cells for each pair; nan for a label that no cell has.
    """
    codes, n_in, found = codes.tocsc(), labels.sum(0), []
    for start, end in pairwise(codes.indptr):
        values, cells = codes.data[start:end], codes.indices[start:end]
        order = np.argsort(-values, kind="stable")
        ends = np.flatnonzero(np.diff(values[order], append=-1.0))  # the last cell of each value
        hits = labels[cells[order]].cumsum(0, dtype=np.float64)[ends]
        hits, taken = np.vstack([hits, n_in]), np.append(ends + 1.0, len(labels))[:, None]  # all others are tied at 0
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append((np.diff(hits, axis=0, prepend=0) * hits / taken).sum(0) / n_in)
    return np.stack(found)


def part_scores(index: FeatureIndex, regions: Regions) -> pd.DataFrame:
    """A row per feature_id and part: average precision on half A (ap_a) and B (ap), prevalence (share of B's cells)."""
    cells, found = regions.rows[:, None] * index.cells_per_image + np.arange(index.cells_per_image), {}
    for name, half in {"ap_a": ~regions.in_b, "ap": regions.in_b}.items():
        labels = regions.labels[half].reshape(-1, len(regions.names))
        found[name] = average_precisions(index.by_cell[cells[half].ravel()], labels).ravel()
    pairs = pd.MultiIndex.from_product([range(index.d_sae), regions.names], names=["feature_id", "part"])
    return pd.DataFrame(found, pairs).reset_index().assign(prevalence=np.tile(labels.mean(0), index.d_sae))


def guess_maps(regions: Regions, of: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (pictures, rows, columns, parts) for the pictures `of` (n,) from what is known without looking for a part.

    place: how often half A shows the part in that cell; outline: how much of the cell is aircraft
    class: how often half A's pictures of this class show the part; class_outline: the product of the last two
    """
    labels, classes = regions.labels[~regions.in_b], regions.classes[~regions.in_b]
    by_class = pd.DataFrame(labels.any((1, 2))).groupby(classes).mean().reindex(regions.classes[of], fill_value=0)
    share, outline = by_class.to_numpy()[:, None, None], regions.shown[of][..., None]
    made = {"place": labels.mean(0), "outline": outline, "class": share, "class_outline": share * outline}
    return {name: np.broadcast_to(score, regions.labels[of].shape) for name, score in made.items()}


def guess_scores(regions: Regions) -> pd.DataFrame:
    """Average precision on half B of the outline, alone and times other `guess_maps`: guess, part, ap."""
    known, own = guess_maps(regions, regions.in_b), regions.labels[regions.in_b]
    made = {
        "outline": known["outline"], "outline, place": known["outline"] * known["place"],
        "outline, class": known["class_outline"], "outline, place, class": known["class_outline"] * known["place"],
    }  # fmt: skip
    found = [(name, part, average_precision_and_influence(score[..., i], own[..., i])[0])
             for name, score in made.items() for i, part in enumerate(regions.names)]  # fmt: skip
    return pd.DataFrame(found, columns=["guess", "part", "ap"])


def best_parts(scores: pd.DataFrame) -> pd.DataFrame:
    """By feature, the part whose average precision on half A is furthest above prevalence: part, part_ap, …"""
    prevalence = scores["prevalence"]  # in standard deviations, or the most frequent part would win
    beyond = (scores["ap_a"] - prevalence) / np.sqrt(prevalence * (1 - prevalence)).clip(lower=1e-9)
    ranked = scores.assign(beyond=beyond).sort_values(["beyond", "part"], ascending=[False, True])
    chosen = ranked.drop(columns="beyond").drop_duplicates("feature_id").set_index("feature_id").sort_index()
    return chosen.add_prefix("part_").rename(columns={"part_part": "part"})


def best_matches(scores: pd.DataFrame) -> pd.DataFrame:
    """For each part, the feature with the largest average precision on half A, and its scores; ties: the lower id."""
    ranked = scores.sort_values(["ap_a", "feature_id", "part"], ascending=[False, True, True])
    return ranked.drop_duplicates("part").set_index("part")


def average_precision_and_influence(values: np.ndarray, member: np.ndarray) -> tuple[float, np.ndarray]:
    """(average precision of a score, equal to scikit-learn's; each picture's influence on it, (n,)).

    values, member: (n, …) score and label of each picture's cells; nan without positives. A picture's influence is the
    derivative with respect to its weight. Source: the infinitesimal jackknife, Efron & Tibshirani 1993, chapter 21.
    """
    values, member = values.reshape(len(values), -1), np.float64(member.reshape(len(member), -1))
    lowest, (n, n_cells), n_in = values.min(), values.shape, member.sum(1)
    if not n_in.any():
        return np.nan, np.full(n, np.nan)
    order = np.flatnonzero(values > lowest)  # usually few: the others are 0 and come last, unsorted
    order = order[np.argsort(-values.reshape(-1)[order], kind="stable")]
    picture, positive = order // n_cells, member.reshape(-1)[order]
    ends = np.flatnonzero(np.diff(values.reshape(-1)[order], append=lowest) != 0)
    tie = np.searchsorted(ends, np.arange(len(order)))  # the group of equal scores that each belongs to
    hits, taken = np.append(positive.cumsum()[ends], n_in.sum()), np.append(ends + 1, values.size)
    gained, precision = np.diff(hits, prepend=0), hits / taken
    ap = (gained * precision).sum() / hits[-1]
    # a positive cell raises the precision of its own and all later groups, and any cell lowers it
    adds, takes = (np.cumsum((each / taken)[::-1])[::-1] for each in (gained, gained * precision))
    influence = np.bincount(picture, positive * (precision + adds)[tie] - takes[tie], n)
    last_in, last = n_in - np.bincount(picture, positive, n), n_cells - np.bincount(picture, minlength=n)
    influence = influence + last_in * (precision[-1] + adds[-1]) - last * takes[-1]  # += fails on an empty bincount
    return float(ap), (influence - ap * n_in) / hits[-1]


def build_features(
    folder: Path, sae: SparseAutoencoder, acts: Activations, pictures: Pictures, splits: list[str], by_class: bool
) -> None:
    """Run `build_index` on these splits, and add what test pictures say of each feature to features.parquet.

    by_class: add the columns of `selectivity` for each level. Where regions are known, `part_scores` go to
    parts.parquet and the columns of `best_parts` are added too.
    """
    index = build_index(sae, acts, folder, acts.rows(*splits))
    test, levels = index.rows("test"), pictures.levels
    table, images = index.table, index.images.iloc[test]
    if len(images) > 1 and levels and by_class:
        names = {level: pictures.classes(level) for level in levels}
        labels = {level: (pd.Categorical(images[level], names[level]).codes, names[level]) for level in levels}
        table = table.join(selectivity(index.maxima(test), labels, halves(images[levels[0]])))
    if len(images) > 1 and pictures.region_names:
        scores = part_scores(index, Regions.of(index, pictures))
        write_parquet(scores, folder / PARTS)
        table = table.join(best_parts(scores))
    write_parquet(table, folder / TABLE)
