"""Class selectivity of features, on each level of the taxonomy: classes chosen on half A, scored on half B, with nulls.

All of it works on image maxima (n_images, d_sae). Under the null the labels of half B are permuted among its images,
with the class that half A chose kept: a feature's own density and strengths stay, so that z-scores compare like with
like. For AUROC the null's spread is known (Mann-Whitney with ties), but with few images a class its tail is not a
normal one, so that p is counted among permutations.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, rankdata

N_PERMUTATIONS = 199
N_ORDERS = 9999
"""Permutations for the p of AUROC, whose least value is one part in so many and one."""
BLOCK = 512
LEAST_FIRING = 8
"""Images of half B in which a feature must be active, for a test to mean anything: below it is left untested."""
TOP = 16
"""Images of half B whose classes purity and entropy look at."""
MEASURES = ("auroc", "morcos", "information")


def halves(classes: pd.Series) -> np.ndarray:
    """(n,) True for half B: every second image of each class, so that both halves have all classes of two or more.

    Which half has the first image alternates from class to class.
    """
    number, first = pd.factorize(classes)[0], classes.groupby(classes.to_numpy()).cumcount().to_numpy()
    return (first + number) % 2 == 1


def auroc(values: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(classes, d) area under the ROC curve of each feature for each class against the rest; ties count half.

    values: (n, d); member: (classes, n) whether an image is of the class. 0.5 where a class has no or all images.
    Source: Mann & Whitney 1947; equals scikit-learn's roc_auc_score.
    """
    return _auroc(np.float32(rankdata(values, axis=0)), np.float32(member))


def _auroc(ranks: np.ndarray, member: np.ndarray) -> np.ndarray:
    n_in = member.sum(1, keepdims=True)
    pairs = n_in * (member.shape[1] - n_in)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (member @ ranks - n_in * (n_in + 1) / 2) / pairs, 0.5)


def auroc_spread(values: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(classes, d) standard deviation of `auroc` when labels are permuted, exact with ties; 0 where all is tied.

    Source: Lehmann 1975, Nonparametrics, appendix, equation A.18.
    """
    n, n_in = len(values), member.sum(1, keepdims=True)
    n_out = n - n_in
    ordered = np.sort(values, axis=0)
    tied = np.zeros(values.shape[1])
    for j in range(values.shape[1]):
        counts = np.diff(np.flatnonzero(np.append(True, np.append(ordered[1:, j] != ordered[:-1, j], True))))
        tied[j] = (counts.astype(float) ** 3 - counts).sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (n + 1 - tied / (n * (n - 1))) / (12 * n_in * n_out)
    return np.sqrt(np.where(np.isfinite(variance), np.maximum(variance, 0), 0))


def auroc_p(ranks: np.ndarray, n_in: np.ndarray, area: np.ndarray, seed: int = 0) -> np.ndarray:
    """(d,) one-sided p of AUROCs: the share of N_ORDERS permutations of the labels, and of what is seen, as large.

    ranks: (n, d) of the values, ties averaged; n_in: (d,) images in each feature's class; area: (d,) its AUROC.
    Source: Phipson & Smyth 2010, arXiv 1603.05766, equation 2.
    """
    n, p = len(ranks), np.ones(ranks.shape[1])
    order = np.random.default_rng(seed).random((N_ORDERS, n), np.float32).argsort(1)
    for size in np.unique(n_in[(n_in > 0) & (n_in < n)]):
        drawn = np.float32(order < size)
        features = np.flatnonzero(n_in == size)
        for some in np.split(features, range(BLOCK, len(features), BLOCK)):
            sums = area[some] * size * (n - size) + size * (size + 1) / 2
            p[some] = (((drawn @ ranks[:, some]) >= sums - 0.25).sum(0) + 1) / (N_ORDERS + 1)  # sums are halves
    return p


def morcos_index(values: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(classes, d): (m - r) / (m + r), m the mean of the class's images and r that of the others; 0 where both are 0,
    nan for a class without images.

    Source: Morcos et al. 2018, arXiv 1803.06959, section 2.3, with the class given instead of the largest mean.
    """
    n_in, inside = member.sum(1, keepdims=True), member @ values
    outside = (values.sum(0) - inside) / np.maximum(len(values) - n_in, 1)
    inside /= np.maximum(n_in, 1)
    total = inside + outside
    index = np.divide(inside - outside, total, out=np.zeros_like(total), where=total > 0)
    return np.where(member.any(1, keepdims=True), index, np.nan)


def information(fired: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(d,) mutual information of class and firing, as a share of the firing's entropy; 0 where that is 0.

    fired: (n, d) whether a feature is active in an image; member: (classes, n), one class an image.
    """
    n = member.shape[1]
    joint = member @ fired / n
    p_class, p_fired = member.mean(1)[:, None], fired.mean(0)
    shared = _plogp(joint) + _plogp(p_class - joint) - _plogp(p_class)
    entropy = -_plogp(p_fired) - _plogp(1 - p_fired)
    return np.divide(shared.sum(0) + entropy, entropy, out=np.zeros_like(entropy), where=entropy > 1e-9)


def _plogp(p: np.ndarray) -> np.ndarray:
    return p * np.log(np.maximum(p, 1e-12))


def purity_and_entropy(maxima: np.ndarray, labels: np.ndarray, n_classes: int, k: int = TOP) -> tuple:
    """(share of the commonest class, entropy as a share of the largest possible) of each feature's k top images.

    maxima: (n, d); labels: (n,). nan where a feature is active in fewer than k images.
    """
    k = min(k, len(maxima))
    top = labels[np.argsort(-maxima, axis=0, kind="stable")[:k]]  # (k, d)
    shares = np.stack([(top == c).mean(0) for c in range(n_classes)])
    entropy = -_plogp(shares).sum(0) / np.log(max(2, min(k, n_classes)))
    few = (maxima > 0).sum(0) < k
    return np.where(few, np.nan, shares.max(0)), np.where(few, np.nan, entropy)


def selectivity(
    maxima: np.ndarray,
    labels: Mapping[str, tuple[np.ndarray, list[str]]],
    in_b: np.ndarray,
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per feature; for each level (columns level/…) the class it is most selective for, and how much.

    maxima: (n, d) image maxima; labels: level -> ((n,) indices, class names); in_b: (n,) half B.
    class: largest AUROC on half A. On half B: auroc, morcos (of that class against the rest), information (all
    classes); each with _z (in standard deviations of the null), `auroc_p` and auroc_q
    (Benjamini-Hochberg over features and levels); purity, entropy of the top images. z and p are nan for features that
    are active in fewer than LEAST_FIRING images of half B, or whose null has no spread.
    level: the one whose class stands out most on half A (AUROC in standard deviations of its null); placed: that level
    where auroc_q on half B is below 0.05, else "none".
    Raises: ValueError for arrays that do not fit, or a half without images.
    """
    maxima, in_b = np.asarray(maxima, np.float32), np.asarray(in_b, bool)
    if maxima.ndim != 2 or len(in_b) != len(maxima) or in_b.all() or not in_b.any():
        raise ValueError(
            f"maxima must be (n, d) with both halves, got {maxima.shape} and {in_b.sum()} images in half B"
        )
    values, ranks_a = maxima[in_b], np.float32(rankdata(maxima[~in_b], axis=0))
    fired, own = np.float32(values > 0), np.arange(maxima.shape[1])
    enough, table, ranks = fired.sum(0) >= LEAST_FIRING, {}, np.float32(rankdata(values, axis=0))
    for level, (codes, classes) in labels.items():
        member = np.float32(np.asarray(codes) == np.arange(len(classes))[:, None])  # (classes, n)
        area_a = _auroc(ranks_a, member[:, ~in_b])
        chosen = area_a.argmax(0)
        spread = auroc_spread(maxima[~in_b], member[:, ~in_b])[chosen, own]
        z_a = np.divide(area_a[chosen, own] - 0.5, spread, out=np.full(len(own), -np.inf), where=spread > 0)
        ours = member[:, in_b]
        area, spread = _auroc(ranks, ours)[chosen, own], auroc_spread(values, ours)[chosen, own]
        z = {"auroc": np.divide(area - 0.5, spread, out=np.full(len(own), np.nan), where=enough & (spread > 0))}
        real = _drawn(values, fired, ours, chosen)
        rng = np.random.default_rng(seed)
        null = np.stack([
            _drawn(values, fired, ours[:, rng.permutation(ours.shape[1])], chosen) for _ in range(n_permutations)
        ])  # fmt: skip
        mean, spread = null.mean(0), null.std(0)
        drawn = np.divide(real - mean, spread, out=np.full_like(real, np.nan), where=enough & (spread > 1e-6))
        z |= dict(zip(MEASURES[1:], drawn, strict=True))
        purity, entropy = purity_and_entropy(values, np.asarray(codes)[in_b], len(classes))
        row = {"class": np.asarray(classes, object)[chosen], "z_a": z_a, "auroc": area}
        row |= dict(zip(MEASURES[1:], real, strict=True)) | {f"{name}_z": z[name] for name in MEASURES}
        p = np.where(np.isfinite(z["auroc"]), auroc_p(ranks, ours.sum(1)[chosen], area, seed), np.nan)
        row |= {"auroc_p": p, "purity": purity, "entropy": entropy}
        table |= {f"{level}/{name}": column for name, column in row.items()}
    p = np.stack([table[f"{level}/auroc_p"] for level in labels])
    q = np.full(p.shape, np.nan)
    if (tested := np.isfinite(p)).any():
        q[tested] = false_discovery_control(p[tested])
    table |= {f"{level}/auroc_q": row for level, row in zip(labels, q, strict=True)}
    level = np.stack([table.pop(f"{level}/z_a") for level in labels]).argmax(0)
    names = np.asarray(list(labels), object)[level]
    return pd.DataFrame(table | {"level": names, "placed": np.where(q[level, own] < 0.05, names, "none")})


def _drawn(values: np.ndarray, fired: np.ndarray, member: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(2, d): Morcos' index of each feature's chosen class, and its information about all classes."""
    return np.stack([morcos_index(values, member)[chosen, np.arange(len(chosen))], information(fired, member)])
