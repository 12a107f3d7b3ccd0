"""Metrics: pure functions on arrays, each with its formula and source.

A metric with `counts` can be resampled: counts (draws, n) say how often each image was drawn, and the metric returns
one value per draw. Without counts it returns one number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, norm


def class_averaged_accuracy(labels, predicted, n_classes: int, counts=None):
    """Mean over classes of the share of a class's images that are recognised: FGVC-Aircraft's official metric.

    labels, predicted: (n,) class indices. A class without images, in the set or in a draw, is left out of the mean.
    Source: Maji et al. 2013, "Fine-Grained Visual Classification of Aircraft", section 3.
    """
    counts = np.ones(len(labels)) if counts is None else counts
    member = np.eye(n_classes)[labels]  # (n, classes) one-hot
    hit = member * np.equal(labels, predicted)[:, None]
    with np.errstate(invalid="ignore"):
        recall = (counts @ hit) / (counts @ member)  # 0 / 0 is nan: a class that was not drawn
    return np.nanmean(recall, axis=-1)


def ratio_of_sums(numerator, denominator, counts=None):
    """Sum of one quantity over images by the sum of another, both (n,): fvu from squared errors and distances."""
    counts = np.ones(len(numerator)) if counts is None else counts
    return (counts @ np.asarray(numerator, float)) / (counts @ np.asarray(denominator, float))


def bootstrap_counts(n_images: int, n: int, seed: Any = 0) -> np.ndarray:
    """(n, n_images) how often each image is in each of n draws with replacement; seed: a number, or a Generator."""
    drawn = np.random.default_rng(seed).integers(n_images, size=(n, n_images)) + n_images * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_images).reshape(n, n_images)


def bootstrap_draws(metric: Callable, *arguments: Any, n: int = 2000, seed: int = 0) -> np.ndarray:
    """(n,) values of `metric(*arguments)`, each for images drawn anew; the first argument has one entry per image."""
    rng, n_images = np.random.default_rng(seed), len(arguments[0])
    chunk = max(1, 2**22 // n_images)  # draws at a time: about 32 MB of counts
    counts = (bootstrap_counts(n_images, min(chunk, n - start), rng) for start in range(0, n, chunk))
    return np.concatenate([metric(*arguments, counts=each) for each in counts])


def interval(draws: np.ndarray) -> tuple[float, float]:
    """(low, high) percentiles of draws (n,) that hold 95 % of them. Source: Efron & Tibshirani 1993, chapter 13."""
    return tuple(np.quantile(draws, [0.025, 0.975]).tolist())


def with_interval(numerator, denominator) -> dict[str, float | None]:
    """A ratio of sums over images as {value, low, high, n}, with its 95 % bootstrap interval."""
    draws = bootstrap_draws(ratio_of_sums, numerator, denominator)
    return with_draws(ratio_of_sums(numerator, denominator), draws, len(numerator))


def with_draws(value: float, draws, n: int) -> dict[str, float | None]:
    """A value as {value, low, high, n} with the 95 % interval of draws of it, those that are no number left out."""
    seen = np.asarray(draws, float)[np.isfinite(draws)]
    low, high = interval(seen) if len(seen) else (None, None)
    return {"value": float(value), "low": low, "high": high, "n": int(n)}


def point(value: float, n: int) -> dict[str, float | None]:
    """A result without an interval."""
    return {"value": value if isinstance(value, int) else float(value), "low": None, "high": None, "n": int(n)}


def median(values: np.ndarray) -> dict[str, float | None]:
    """The median as a result, with the 95 % interval by drawing the values anew."""
    drawn = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    return with_draws(np.median(values), np.median(values[drawn], axis=1), len(values))


def adjusted(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg's q of the tests that could be made; nan for the others."""
    q, made = np.full(p.shape, np.nan), np.isfinite(p)
    q[made] = false_discovery_control(p[made])
    return q


FEWEST = 10


@dataclass
class Estimate:
    """A value and what each picture (or scene) has to do with it, so that differences are tested pair by pair.

    influence: by the picture's name; its squares add up to the variance. Source: the infinitesimal jackknife, Efron &
    Tibshirani 1993, chapter 21.
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
        """One-sided p of "this is not above 0"; nan for no value, and where it rests on fewer than FEWEST pictures."""
        if len(self.influence) < FEWEST or not np.isfinite([self.value, *self.influence]).all():
            return np.nan
        return float(norm.sf(self.value / self.error)) if self.error else float(self.value <= 0)

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high) of 95 %."""
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error

    @property
    def entry(self) -> dict[str, float | None]:
        """{value, low, high, n}, as a result; no interval where some pictures' influence is not known."""
        low, high = self.interval if np.isfinite(self.error) else (None, None)
        return {"value": self.value, "low": low, "high": high, "n": len(self.influence)}


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of those that are numbers, of the same pictures."""
    known = [each for each in estimates if np.isfinite(each.value)]
    influence = pd.concat([each.influence for each in known], axis=1).mean(axis=1)
    return Estimate(float(np.mean([each.value for each in known])), influence)


def ratio(numerator: pd.Series, denominator: pd.Series) -> Estimate:
    """The ratio of two sums over pictures, each by the picture's name; nan where the denominator is 0."""
    total = denominator.sum()
    value = numerator.sum() / total if total else np.nan
    return Estimate(float(value), (numerator - value * denominator) / (total or np.nan))


def stratified_auroc(score, member, strata, groups) -> tuple[float, np.ndarray]:
    """(AUROC over pairs of cells of one stratum, each picture's influence on it).

    score, member, strata, groups: (n,) a score, whether a cell is positive, its stratum and its picture, whole numbers
    from 0. Strata of one kind drop out; (nan, …) where all do.
    Source: the Mann-Whitney count of each stratum, summed (van Elteren 1960 with weights of pairs); Hajek projection.
    """
    order = np.lexsort((score, strata))
    cells = pd.DataFrame({"score": score, "member": member, "strata": strata, "picture": groups}).iloc[order]
    own, kind = cells.groupby("strata")["score"], cells.groupby(["strata", "member"])["score"]
    below = own.rank() - kind.rank()  # cells of the other kind, ties by half
    pairs = own.transform("size") - kind.transform("size")
    won = below.where(cells["member"], pairs - below)
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = won.sum() / pairs.sum()  # each pair is counted twice, for either of its cells
        return float(auroc), np.bincount(cells["picture"], won - auroc * pairs) / (pairs.sum() / 2)
