"""Class selectivity of features, on each level of the taxonomy: classes chosen on half A, scored on half B, with nulls.

All of it works on image maxima (n_images, d_sae). The null permutes the labels of half B among its images, with the
class that half A chose kept: a feature's own density and strengths stay, so that z-scores compare like with like.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, rankdata

N_PERMUTATIONS = 999
TOP = 16
"""Images of half B whose classes purity and entropy look at."""
MEASURES = ("auroc", "morcos", "information")


def halves(classes: pd.Series) -> np.ndarray:
    """(n,) True for half B: every second image of each class, so that both halves have all classes."""
    return (classes.groupby(classes.to_numpy()).cumcount() % 2 == 1).to_numpy()


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


def morcos_index(values: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(classes, d): (m - r) / (m + r), m the mean of the class's images and r that of the others; 0 where both are 0.

    Source: Morcos et al. 2018, arXiv 1803.06959, section 2.3, with the class given instead of the largest mean.
    """
    inside, outside = (kind / np.maximum(kind.sum(1, keepdims=True), 1) @ values for kind in (member, 1 - member))
    total = inside + outside
    return np.divide(inside - outside, total, out=np.zeros_like(total), where=total > 0)


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
    classes); each with _z (in standard deviations of the null), auroc_p (one-sided, (b + 1) / (m + 1), Phipson & Smyth
    2010) and auroc_q (Benjamini-Hochberg over features); purity, entropy of the top images.
    placed: the level whose auroc_z is largest among those with auroc_q < 0.05, else "none".
    Raises: ValueError for arrays that do not fit, or a half without images.
    """
    maxima, in_b = np.asarray(maxima, np.float32), np.asarray(in_b, bool)
    if maxima.ndim != 2 or len(in_b) != len(maxima) or in_b.all() or not in_b.any():
        raise ValueError(
            f"maxima must be (n, d) with both halves, got {maxima.shape} and {in_b.sum()} images in half B"
        )
    table, ranks = {}, {half: np.float32(rankdata(maxima[in_b == half], axis=0)) for half in (False, True)}
    values = maxima[in_b]
    fired = np.float32(values > 0)
    for level, (codes, classes) in labels.items():
        member = np.float32(np.asarray(codes) == np.arange(len(classes))[:, None])  # (classes, n)
        chosen = _auroc(ranks[False], member[:, ~in_b]).argmax(0)
        own = np.arange(len(chosen))
        ours = member[:, in_b]

        def measure(of, chosen=chosen, own=own):
            return np.stack([
                _auroc(ranks[True], of)[chosen, own], morcos_index(values, of)[chosen, own], information(fired, of)
            ])  # fmt: skip

        real, rng = measure(ours), np.random.default_rng(seed)
        total, squares, above = (np.zeros_like(real, np.float64) for _ in range(3))
        for _ in range(n_permutations):
            null = measure(ours[:, rng.permutation(ours.shape[1])])
            total += null
            squares += np.square(null, dtype=np.float64)
            above += null >= real - 1e-6
        mean = total / n_permutations
        spread = np.sqrt(np.maximum(squares / n_permutations - mean**2, 1e-12))
        purity, entropy = purity_and_entropy(values, np.asarray(codes)[in_b], len(classes))
        p = (above[0] + 1) / (n_permutations + 1)
        row = {"class": np.asarray(classes, object)[chosen]} | dict(zip(MEASURES, real, strict=True))
        row |= {f"{name}_z": (real[i] - mean[i]) / spread[i] for i, name in enumerate(MEASURES)}
        row |= {"auroc_p": p, "auroc_q": false_discovery_control(p), "purity": purity, "entropy": entropy}
        table |= {f"{level}/{name}": column for name, column in row.items()}
    z = np.stack([np.where(table[f"{level}/auroc_q"] < 0.05, table[f"{level}/auroc_z"], -np.inf) for level in labels])
    names = np.asarray(list(labels), object)[z.argmax(0)]
    return pd.DataFrame(table | {"placed": np.where(np.isfinite(z.max(0)), names, "none")})
