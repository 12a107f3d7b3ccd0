"""Class selectivity of features, on each level of the taxonomy: classes chosen on half A, scored on half B, with nulls.

All of it works on image maxima (n_images, d_sae). Under the null the labels of half B are permuted among its images,
with the class that half A chose kept: a feature's own density and strengths stay, so that z-scores compare like with
like. The spread of AUROC is then known (Mann-Whitney with ties), but with few images a class its tail is not a normal
one, so that p is counted among permutations.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata, tiecorrect

from aircraft_sae.metrics import adjusted

N_ORDERS = 9999  # permutations for the p of AUROC


def halves(classes: Sequence) -> np.ndarray:
    """(n,) True for half B: every second image of each class, starting with the first or second from class to class."""
    number = pd.factorize(np.asarray(classes))[0]
    return (pd.Series(number).groupby(number).cumcount().to_numpy() + number) % 2 == 1


def auroc(ranks: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(area under the ROC curve of each feature for each class against the rest, its spread), both (classes, d).

    ranks: (n, d) of the images, ties averaged; member: (classes, n) whether an image is of the class. spread: the exact
    standard deviation when labels are permuted. 0.5 and 0 where a class has no or all images.
    Source: Mann & Whitney 1947; Lehmann 1975, Nonparametrics, appendix, equation A.18.
    """
    n, n_in = len(ranks), member.sum(1, keepdims=True)
    pairs, untied = n_in * (n - n_in), np.array([tiecorrect(column) for column in ranks.T])
    with np.errstate(invalid="ignore", divide="ignore"):
        area = np.where(pairs > 0, (member @ ranks - n_in * (n_in + 1) / 2) / pairs, 0.5)
        return area, np.sqrt(np.where(pairs > 0, untied * (n + 1) / 12 / pairs, 0))


def best_aurocs(maxima: np.ndarray, labels: pd.DataFrame) -> pd.Series:
    """AUROC on half B, by (level, class), of the feature that ranks the class's images highest on half A.

    nan where a half has none of them. maxima: (n, d); labels: a row an image, a column a level, finest first.
    """
    in_b, found = halves(labels.iloc[:, 0]), {}
    ranks_a, ranks_b = (rankdata(maxima[half], axis=0) for half in (~in_b, in_b))
    for level in labels:
        table = pd.get_dummies(labels[level], dtype=float).T
        (in_a, there), names = (table.to_numpy()[:, half] for half in (~in_b, in_b)), table.index
        on_b = auroc(ranks_b, there)[0][np.arange(len(names)), auroc(ranks_a, in_a)[0].argmax(1)]
        on_b[~(in_a.any(1) & there.any(1))] = np.nan
        found |= dict(zip([(level, name) for name in names], on_b, strict=True))
    return pd.Series(found)


def auroc_p(ranks: np.ndarray, n_in: np.ndarray, area: np.ndarray) -> np.ndarray:
    """(d,) one-sided p of AUROCs: the share of N_ORDERS permutations of the labels, and of what is seen, as large.

    ranks: (n, d) of the values, ties averaged; n_in: (d,) images in each feature's class; area: (d,) its AUROC.
    Source: Phipson & Smyth 2010, arXiv 1603.05766, equation 2.
    """
    n, p = len(ranks), np.ones(ranks.shape[1])
    order = np.random.default_rng(0).random((N_ORDERS, n), np.float32).argsort(1)
    for size in np.unique(n_in[(n_in > 0) & (n_in < n)]):
        own = n_in == size
        sums = area[own] * size * (n - size) + size * (size + 1) / 2  # of ranks: multiples of a half
        p[own] = ((np.float32(order < size) @ ranks[:, own] >= sums - 0.25).sum(0) + 1) / (N_ORDERS + 1)
    return p


def selectivity(maxima: np.ndarray, labels: Mapping[str, tuple], in_b: np.ndarray) -> pd.DataFrame:
    """One row per feature; for each level (columns level/…) the class it is most selective for, and how much.

    maxima: (n, d) image maxima; labels: level -> ((n,) indices, class names); in_b: (n,) half B.
    class: largest AUROC on half A. On half B, of that class against the rest: auroc, auroc_z (in standard deviations of
    the null), auroc_p, auroc_q (Benjamini-Hochberg over features and levels). z, p and q are nan for features
    that are active in fewer than 8 images of half B, or whose null has no spread.
    level: the one whose class stands out most on half A (AUROC in standard deviations of its null); placed: that level
    where auroc_q on half B is below 0.05, else "none".
    """
    own, values = np.arange(maxima.shape[1]), maxima[in_b]
    ranks_a, ranks_b = (np.float32(rankdata(maxima[half], axis=0)) for half in (~in_b, in_b))
    enough, table, z_a = (values > 0).sum(0) >= 8, {}, []
    for level, (codes, classes) in labels.items():
        member = np.float32(np.asarray(codes) == np.arange(len(classes))[:, None])  # (classes, n)
        area, spread = auroc(ranks_a, member[:, ~in_b])
        chosen = area.argmax(0), own
        area, spread = area[chosen], spread[chosen]
        z_a.append(np.divide(area - 0.5, spread, out=np.full(len(own), -np.inf), where=spread > 0))
        ours = member[:, in_b]
        area, spread = (each[chosen] for each in auroc(ranks_b, ours))
        tested = enough & (spread > 0)
        found = {
            "class": np.asarray(classes, object)[chosen[0]], "auroc": area,
            "auroc_z": np.divide(area - 0.5, spread, out=np.full(len(own), np.nan), where=tested),
            "auroc_p": np.where(tested, auroc_p(ranks_b, ours.sum(1)[chosen[0]], area), np.nan),
        }  # fmt: skip
        table |= {f"{level}/{name}": column for name, column in found.items()}
    q = adjusted(np.stack([table[f"{level}/auroc_p"] for level in labels]))
    table |= {f"{level}/auroc_q": row for level, row in zip(labels, q, strict=True)}
    level = np.argmax(z_a, axis=0)
    names = np.asarray(list(labels), object)[level]
    return pd.DataFrame(table | {"level": names, "placed": np.where(q[level, own] < 0.05, names, "none")})
