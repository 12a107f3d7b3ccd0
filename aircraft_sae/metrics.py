"""Metrics: pure functions on arrays, each with its formula and source.

A metric that takes `counts` can be bootstrapped: counts (draws, n) say how often each draw contains each image, and the
metric returns one value per draw. Without counts it returns one number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, norm


def class_averaged_accuracy(labels, predicted, n_classes: int, counts=None):
    """Recall averaged over classes, FGVC-Aircraft's official metric; classes without images do not count.

    labels, predicted: (n,) class indices.
    Source: Maji et al. 2013, "Fine-Grained Visual Classification of Aircraft", section 3.
    """
    counts = np.ones(len(labels)) if counts is None else counts
    member = np.eye(n_classes)[labels]  # (n, classes) one-hot
    hit = member * np.equal(labels, predicted)[:, None]
    with np.errstate(invalid="ignore"):
        recall = (counts @ hit) / (counts @ member)  # 0 / 0 = nan for a class that was not drawn
    return np.nanmean(recall, axis=-1)


def ratio_of_sums(numerator, denominator, counts=None):
    """The sum of one quantity over images divided by that of another, both (n,); fvu is such a ratio."""
    counts = np.ones(len(numerator)) if counts is None else counts
    return (counts @ np.asarray(numerator, float)) / (counts @ np.asarray(denominator, float))


def bootstrap_counts(n_images: int, n: int, seed: Any = 0) -> np.ndarray:
    """(n, n_images) how often each of n draws with replacement contains each image; seed: a number or a Generator."""
    drawn = np.random.default_rng(seed).integers(n_images, size=(n, n_images)) + n_images * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_images).reshape(n, n_images)


def bootstrap_draws(metric: Callable, *arguments: Any, n: int = 2000, seed: int = 0) -> np.ndarray:
    """(n,) bootstrap values of `metric(*arguments)`; the first argument has one entry per image."""
    rng, n_images = np.random.default_rng(seed), len(arguments[0])
    chunk = max(1, 2**22 // n_images)  # draws at a time: 32 MB of counts
    counts = (bootstrap_counts(n_images, min(chunk, n - start), rng) for start in range(0, n, chunk))
    return np.concatenate([metric(*arguments, counts=each) for each in counts])


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval (low, high) of draws (n,). Source: Efron & Tibshirani 1993, chapter 13."""
    return tuple(np.quantile(draws, [0.025, 0.975]).tolist())


def with_interval(numerator, denominator) -> dict[str, float | None]:
    """A ratio of sums over images as {value, low, high, n} with its 95 % bootstrap interval."""
    draws = bootstrap_draws(ratio_of_sums, numerator, denominator)
    return with_draws(ratio_of_sums(numerator, denominator), draws, len(numerator))


def with_draws(value: float, draws, n: int) -> dict[str, float | None]:
    """A value as {value, low, high, n} with the 95 % interval of its finite draws."""
    finite = np.asarray(draws, float)[np.isfinite(draws)]
    low, high = interval(finite) if len(finite) else (None, None)
    return {"value": float(value), "low": low, "high": high, "n": int(n)}


def point(value: float, n: int) -> dict[str, float | None]:
    """A value as {value, low, high, n} without an interval."""
    return {"value": value if isinstance(value, int) else float(value), "low": None, "high": None, "n": int(n)}


def median(values: np.ndarray) -> dict[str, float | None]:
    """The median as {value, low, high, n} with its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    return with_draws(np.median(values), np.median(values[drawn], axis=1), len(values))


def q_values(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg q-values; a p that is nan stays nan and does not count as a test."""
    q, tested = np.full(p.shape, np.nan), np.isfinite(p)
    q[tested] = false_discovery_control(p[tested])
    return q


MIN_PICTURES = 10  # pictures needed for a p-value


@dataclass
class Estimate:
    """A value and each picture's (or scene's) influence on it, so that tests of a difference are paired.

    influence: indexed by the picture's name; its squares sum to the variance of the value.
    Source: the infinitesimal jackknife, Efron & Tibshirani 1993, chapter 21.
    """

    value: float
    influence: pd.Series

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, self.influence.sub(other.influence, fill_value=0))

    @property
    def error(self) -> float:
        """Standard error."""
        return float(np.sqrt(np.square(self.influence).sum(skipna=False)))

    @property
    def p(self) -> float:
        """One-sided p-value under "the value is at most 0"; nan if not finite or from fewer than MIN_PICTURES."""
        if len(self.influence) < MIN_PICTURES or not np.isfinite([self.value, *self.influence]).all():
            return np.nan
        return float(norm.sf(self.value / self.error)) if self.error else float(self.value <= 0)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval (low, high)."""
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error

    @property
    def entry(self) -> dict[str, float | None]:
        """{value, low, high, n}; no interval if the influence of some picture is unknown."""
        low, high = self.interval if np.isfinite(self.error) else (None, None)
        return {"value": self.value, "low": low, "high": high, "n": len(self.influence)}


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of the finite estimates, all from the same pictures."""
    known = [each for each in estimates if np.isfinite(each.value)]
    influence = pd.concat([each.influence for each in known], axis=1).mean(axis=1)
    return Estimate(float(np.mean([each.value for each in known])), influence)


def ratio(numerator: pd.Series, denominator: pd.Series) -> Estimate:
    """The ratio of two sums over pictures, both indexed by the picture's name; nan if the denominator is 0."""
    total = denominator.sum()
    value = numerator.sum() / total if total else np.nan
    return Estimate(float(value), (numerator - value * denominator) / (total or np.nan))


def stratified_auroc(score, member, strata, groups) -> tuple[float, np.ndarray]:
    """(AUROC over pairs of cells in the same stratum, each picture's influence on it).

    score, member, strata, groups: (n,) each cell's score, whether it is positive, its stratum, and its picture (an
    integer from 0). A stratum with only positives or only negatives does not count; if none counts, the AUROC is nan.
    Source: the Mann-Whitney count summed over strata (van Elteren 1960), all pairs weighted equally; Hajek projection.
    """
    order = np.lexsort((score, strata))
    cells = pd.DataFrame({"score": score, "member": member, "strata": strata, "picture": groups}).iloc[order]
    own, kind = cells.groupby("strata")["score"], cells.groupby(["strata", "member"])["score"]
    below = own.rank() - kind.rank()  # cells of the other kind with a lower score; ties count half
    pairs = own.transform("size") - kind.transform("size")
    won = below.where(cells["member"], pairs - below)
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = won.sum() / pairs.sum()  # both sums count each pair twice
        return float(auroc), np.bincount(cells["picture"], won - auroc * pairs) / (pairs.sum() / 2)
