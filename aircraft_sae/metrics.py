"""Metrics: pure functions on arrays, each with its formula and source.

Those that `bootstrap_interval` can resample take `counts` (draws, images): how often each image was drawn.
Without `counts` they return one float, with it one value per draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd


def class_averaged_accuracy(labels, predicted, n_classes: int, counts=None):
    """Mean over classes of the share of a class's images that are recognised: FGVC-Aircraft's official metric.

    labels, predicted: (n,) class indices. A class without images, in the set or in a draw, is left out of the mean.
    Without counts it equals `sklearn.metrics.balanced_accuracy_score`, which cannot resample.
    Source: Maji et al. 2013, "Fine-Grained Visual Classification of Aircraft", section 3.
    Raises: ValueError for arrays of other lengths, no images, or classes outside 0 .. n_classes - 1.
    """
    labels, predicted = _classes(labels, n_classes), _classes(predicted, n_classes)
    _same_length(labels, predicted)
    member = np.zeros((len(labels), n_classes), np.float32)  # (n, classes) one-hot
    member[np.arange(len(labels)), labels] = 1
    hit = member * (labels == predicted)[:, None]
    weights = _weights(counts, len(labels))  # (draws, n)
    n_images = weights @ member  # (draws, classes); whole numbers, exact in float32
    with np.errstate(invalid="ignore"):
        recall = (weights @ hit).astype(np.float64) / n_images  # 0 / 0 is nan: a class that was not drawn
    return _result(np.nanmean(recall, axis=1), counts)


def top_k_accuracy(labels, probabilities, k: int = 1, counts=None):
    """Share of images whose class is among the k most probable; equal probabilities rank by class index.

    labels: (n,); probabilities: (n, classes), any scores that rank. Equals `sklearn.metrics.top_k_accuracy_score`
    but for ties, which there go to the last class and here, as in argmax, to the first.
    Raises: ValueError for arrays of other lengths, no images, unknown classes, scores that are not finite, k below 1.
    """
    probabilities = _scores(probabilities)
    labels = _classes(labels, probabilities.shape[1])
    _same_length(labels, probabilities)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    hit = (ranked == labels[:, None]).any(axis=1).astype(np.float32)
    return _result((_weights(counts, len(labels)) @ hit) / len(labels), counts)


def expected_calibration_error(probabilities, labels, n_bins: int = 15, counts=None):
    """How far confidence is from accuracy: sum over bins of |accuracy - confidence| weighted by the bin's share.

    probabilities: (n, classes); labels: (n,). Bins are ((m-1)/M, m/M] of the largest probability, the first closed.
    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
    Raises: ValueError for arrays of other lengths, no images, unknown classes, values outside 0 .. 1, no bins.
    """
    probabilities = _scores(probabilities)
    labels = _classes(labels, probabilities.shape[1])
    _same_length(labels, probabilities)
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}")
    if probabilities.min() < -1e-6 or probabilities.max() > 1 + 1e-6:
        raise ValueError(f"probabilities must lie in 0 .. 1, got {probabilities.min()} .. {probabilities.max()}")
    confidence = probabilities.max(axis=1)
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    gap = np.zeros((len(labels), n_bins))  # |B|/n |acc - conf| = |sum over B of (hit - confidence)| / n
    gap[np.arange(len(labels)), bins] = (probabilities.argmax(axis=1) == labels) - confidence
    return _result(np.abs(_weights(counts, len(labels)) @ gap).sum(axis=1) / len(labels), counts)


def bootstrap_interval(
    statistic: Callable, *arguments: Any, n: int = 2000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """(low, high) percentile interval of `statistic(*arguments)` when images are drawn anew with replacement.

    `statistic` is a metric of this module; its first argument has one entry per image, as in
    `bootstrap_interval(class_averaged_accuracy, labels, predicted, n_classes)`. The same seed gives the same interval.
    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    Raises: ValueError for n below 1, a confidence outside (0, 1), or what the statistic refuses.
    """
    if n < 1 or not 0 < confidence < 1:
        raise ValueError(f"n must be at least 1 and confidence in (0, 1), got {n} and {confidence}")
    return interval(bootstrap_draws(statistic, *arguments, n=n, seed=seed), confidence)


def bootstrap_draws(statistic: Callable, *arguments: Any, n: int = 2000, seed: int = 0) -> np.ndarray:
    """(n,) values of `statistic(*arguments)`, each for images drawn anew with replacement: see `bootstrap_interval`."""
    n_images = len(arguments[0])
    statistic(*arguments)  # refuses bad arguments before the draws
    rng = np.random.default_rng(seed)
    values = []
    chunk = max(1, 2**24 // n_images)  # draws at a time: about 128 MB of drawn indices
    for start in range(0, n, chunk):
        counts = bootstrap_counts(n_images, min(chunk, n - start), rng)
        values.append(statistic(*arguments, counts=counts))
    return np.concatenate(values)


def bootstrap_counts(n_images: int, n: int, seed: Any = 0) -> np.ndarray:
    """(n, n_images) how often each image is in each of n draws with replacement; seed: a number, or a Generator."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(n_images, size=(n, n_images)) + n_images * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_images).reshape(n, n_images)


def interval(draws: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) percentiles of draws (n,) that hold this share of them."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def with_interval(numerator, denominator) -> dict[str, float | None]:
    """A ratio of sums over images as {value, low, high, n}, with its 95 % bootstrap interval."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    low, high = bootstrap_interval(ratio_of_sums, numerator, denominator)
    return {"value": ratio_of_sums(numerator, denominator), "low": low, "high": high, "n": len(numerator)}


def with_draws(value: float, draws, n: int) -> dict[str, float | None]:
    """A value as {value, low, high, n} with the 95 % interval of draws of it, those that are no number left out."""
    draws = np.asarray(draws, float)
    seen = draws[np.isfinite(draws)]
    low, high = interval(seen) if len(seen) else (None, None)
    return {"value": float(value), "low": low, "high": high, "n": int(n)}


def fvu_by_definition(acts, recon, mean) -> dict[str, float]:
    """Unexplained variance of the same reconstructions as different libraries define it; all in float64.

    acts, recon: (n, d_in) cells in the units of the network; mean: (d_in,) of the training cells. "this project":
    squared error by squared distance from `mean`, as saev evaluates; "sparsify, SAELens": from the mean of these cells;
    "dictionary_learning": variance of the error by variance of the acts, which forgives a constant error;
    "overcomplete": distance from one scalar mean of all channels; "mean of cells' ratios": SAELens' legacy, SAEBench's
    paper, ViT-Prisma; "OpenAI": mean of each cell's squared error by its squared length.
    Raises: ValueError for arrays that do not fit, or are not finite.
    """
    acts, recon, mean = (np.asarray(values, np.float64) for values in (acts, recon, mean))
    if acts.ndim != 2 or acts.shape != recon.shape or mean.shape != acts.shape[1:]:
        raise ValueError(
            f"acts and recon must be (n, d_in) and mean (d_in,), got {acts.shape, recon.shape, mean.shape}"
        )
    if not all(np.isfinite(values).all() for values in (acts, recon, mean)):
        raise ValueError("fvu needs finite numbers: acts, recon or mean hold nan or infinity")
    error = np.square(recon - acts)
    return {
        "this project": error.sum() / np.square(acts - mean).sum(),
        "sparsify, SAELens": error.sum() / np.square(acts - acts.mean(0)).sum(),
        "dictionary_learning": (recon - acts).var(0).sum() / acts.var(0).sum(),
        "overcomplete": error.sum() / np.square(acts - acts.mean()).sum(),
        "mean of cells' ratios": (error.sum(1) / np.square(acts - mean).sum(1)).mean(),
        "OpenAI": (error.sum(1) / np.square(acts).sum(1)).mean(),
    }


def ratio_of_sums(numerator, denominator, counts=None):
    """Sum of one quantity over images by the sum of another: fvu from squared errors and squared distances, or a mean.

    numerator, denominator: (n,) per image. Sums are of float64.
    Raises: ValueError for arrays of other lengths, no images, numbers that are not finite, a denominator of sum 0.
    """
    numerator, denominator = (np.asarray(values, np.float64) for values in (numerator, denominator))
    _same_length(numerator, denominator)
    if not len(numerator) or not (np.isfinite(numerator).all() and np.isfinite(denominator).all()):
        raise ValueError(f"a ratio needs finite numbers for at least one image, got {len(numerator)} images")
    if counts is None and denominator.sum() == 0:
        raise ValueError("the denominator's sum is 0: there is nothing to take a share of")
    weights = np.ones((1, len(numerator))) if counts is None else np.asarray(counts, np.float64)
    return _result((weights @ numerator) / (weights @ denominator), counts)


def auroc_difference(first, second, member, groups) -> tuple[float, float]:
    """(AUROC of one score less that of another on the same cells, its standard error with pictures as units).

    first, second, member, groups: (n,) two scores, whether a cell is positive, the picture it is in. (nan, nan) where
    no or all cells are positive. Source: Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data",
    equations 4 to 7: DeLong's placements, summed over each picture.
    Raises: ValueError for arrays of other lengths.
    """
    first, second, member = np.asarray(first, float), np.asarray(second, float), np.asarray(member, bool)
    if len({len(first), len(second), len(member), len(groups)}) > 1:
        lengths = ", ".join(str(len(values)) for values in (first, second, member, groups))
        raise ValueError(f"one entry per cell: got first, second, member, groups of lengths {lengths}")
    numbers, groups = np.unique(groups, return_inverse=True)
    if member.all() or not member.any():
        return np.nan, np.nan
    inside, outside = (a - b for a, b in zip(_placements(first, member), _placements(second, member), strict=True))
    difference = inside.mean()
    sums = np.bincount(groups[member], (inside - difference) / len(inside), len(numbers))
    sums += np.bincount(groups[~member], (outside - difference) / len(outside), len(numbers))
    return float(difference), float(np.sqrt(len(numbers) / max(1, len(numbers) - 1) * np.square(sums).sum()))


def _placements(score: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(share of negatives that each positive outranks, share of positives that outrank each negative); ties half."""
    inside, outside = np.sort(score[member]), np.sort(score[~member])

    def below(values: np.ndarray, of: np.ndarray) -> np.ndarray:
        return (np.searchsorted(of, values, "left") + np.searchsorted(of, values, "right")) / (2 * len(of))

    return below(score[member], outside), 1 - below(score[~member], inside)


def most_confused(confusion, classes: list[str], n: int = 10) -> pd.DataFrame:
    """The n largest off-diagonal cells: actual, predicted, n_images, share of the actual class's images.

    confusion: (classes, classes) counts, rows actual, as `sklearn.metrics.confusion_matrix` gives. Ties by class order.
    Raises: ValueError where the matrix does not fit the classes.
    """
    confusion = np.asarray(confusion)
    if confusion.shape != (len(classes), len(classes)):
        raise ValueError(f"confusion must be ({len(classes)}, {len(classes)}) for these classes, got {confusion.shape}")
    wrong = confusion * ~np.eye(len(classes), dtype=bool)
    order = np.argsort(-wrong.ravel(), kind="stable")[:n]
    actual, predicted = np.unravel_index(order[wrong.ravel()[order] > 0], wrong.shape)
    names = np.asarray(classes, dtype=object)
    n_images = confusion[actual, predicted]
    return pd.DataFrame(
        {
            "actual": names[actual],
            "predicted": names[predicted],
            "n_images": n_images,
            "share": n_images / confusion.sum(axis=1)[actual],
        }
    )


def roll_up(probabilities, parent_index, n_parents: int | None = None) -> np.ndarray:
    """(n, parents): the probability of each family (or manufacturer) as the sum over its variants.

    probabilities: (n, classes); parent_index: (classes,) parent of each class.
    Raises: ValueError where the two do not fit.
    """
    probabilities, parent_index = np.asarray(probabilities), np.asarray(parent_index)
    if probabilities.ndim != 2 or parent_index.shape != probabilities.shape[1:]:
        raise ValueError(f"one parent per class: got {parent_index.shape} for probabilities {probabilities.shape}")
    n_parents = int(parent_index.max()) + 1 if n_parents is None else n_parents
    _classes(parent_index, n_parents)
    member = np.zeros((len(parent_index), n_parents), probabilities.dtype)
    member[np.arange(len(parent_index)), parent_index] = 1
    return probabilities @ member


def _weights(counts, n_images: int) -> np.ndarray:
    """(draws, n) float32; one draw of every image once where there are no counts."""
    if counts is None:
        return np.ones((1, n_images), np.float32)
    return np.asarray(counts, np.float32)


def _result(values: np.ndarray, counts):
    return float(values[0]) if counts is None else values


def _classes(indices, n_classes: int) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.ndim != 1 or not len(indices) or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"class indices must be whole numbers, one per image, got {indices.dtype} {indices.shape}")
    if indices.min() < 0 or indices.max() >= n_classes:
        raise ValueError(f"class indices must lie in 0 .. {n_classes - 1}, got {indices.min()} .. {indices.max()}")
    return indices


def _scores(probabilities) -> np.ndarray:
    probabilities = np.asarray(probabilities, np.float64)  # a negated uint8 would wrap around
    if probabilities.ndim != 2 or not probabilities.size or not np.isfinite(probabilities).all():
        raise ValueError(f"probabilities must be finite numbers (images, classes), got shape {probabilities.shape}")
    return probabilities


def _same_length(labels: np.ndarray, other: np.ndarray) -> None:
    if len(labels) != len(other):
        raise ValueError(f"one entry per image: got {len(labels)} labels and {len(other)} predictions")
