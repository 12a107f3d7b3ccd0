"""Metrics against values by hand, scikit-learn, scipy and slow loops."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from aircraft_sae.metrics import (
    Estimate,
    bootstrap_draws,
    class_averaged_accuracy,
    interval,
    ratio,
    ratio_of_sums,
    stratified_auroc,
    with_draws,
    with_interval,
)


@pytest.fixture(scope="module")
def labels_and_predictions():
    """200 images in 7 classes of unequal size."""
    rng = np.random.default_rng(0)
    labels = rng.choice(7, 200, p=np.arange(1, 8) / 28)
    return labels, np.where(rng.random(200) < 0.6, labels, rng.integers(7, size=200))


def test_class_averaged_accuracy(labels_and_predictions):
    assert class_averaged_accuracy([0, 0, 0, 1], [0, 0, 1, 1], 2) == pytest.approx((2 / 3 + 1) / 2)
    assert class_averaged_accuracy([0, 0, 2], [0, 1, 2], 3) == pytest.approx(0.75)  # class 1 has no image
    expected = balanced_accuracy_score(*labels_and_predictions)
    assert class_averaged_accuracy(*labels_and_predictions, 7) == pytest.approx(expected)


def test_counts_repeat_images(labels_and_predictions):
    labels, predicted = (values[:20] for values in labels_and_predictions)
    drawn = np.random.default_rng(1).integers(20, size=(30, 20))  # few, so that draws miss classes
    counts = np.stack([np.bincount(draw, minlength=20) for draw in drawn])
    slow = [class_averaged_accuracy(labels[draw], predicted[draw], 7) for draw in drawn]
    np.testing.assert_allclose(class_averaged_accuracy(labels, predicted, 7, counts=counts), slow)
    assert len({len(set(labels[draw])) for draw in drawn}) > 1


def test_intervals_of_known_cases(labels_and_predictions):
    labels, predicted = labels_and_predictions
    right = labels == predicted
    p = right.mean()
    normal = p + np.array([-1, 1]) * 1.96 * np.sqrt(p * (1 - p) / 200)  # a mean of 200 coin tosses
    assert interval(bootstrap_draws(ratio_of_sums, right, np.ones(200))) == pytest.approx(tuple(normal), abs=0.02)
    again = [interval(bootstrap_draws(class_averaged_accuracy, labels, predicted, 7, seed=seed)) for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]
    assert interval(bootstrap_draws(class_averaged_accuracy, labels, labels, 7)) == (1, 1)
    rare = np.array([0] * 99 + [1])  # a third of the draws have no image of class 1
    assert interval(bootstrap_draws(class_averaged_accuracy, rare, np.zeros(100, int), 2)) == (0.5, 1)
    assert with_interval([3], [4]) == {"value": 0.75, "low": 0.75, "high": 0.75, "n": 1}


def test_bootstrap_draws_equal_scipys():
    numerator, denominator = np.random.default_rng(2).random((2, 300))
    theirs = scipy.stats.bootstrap(
        (numerator, denominator), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, method="percentile",
        n_resamples=2000, rng=np.random.default_rng(0),
    )  # fmt: skip
    ours = bootstrap_draws(ratio_of_sums, numerator, denominator)
    np.testing.assert_allclose(ours, theirs.bootstrap_distribution)
    assert interval(ours) == pytest.approx(theirs.confidence_interval)


def test_many_images_are_drawn_in_chunks():
    seen = []
    bootstrap_draws(lambda values, counts: seen.append(counts) or counts.sum(1), np.arange(20_000), n=1000)
    assert sum(map(len, seen)) == 1000 and len(seen) > 1
    assert all((counts.sum(axis=1) == 20_000).all() for counts in seen) and not np.array_equal(seen[0][0], seen[1][0])


def test_draws_that_are_not_finite_do_not_count():
    draws = np.append(np.arange(1001.0), np.nan)
    assert with_draws(3, draws, 7) == pytest.approx({"value": 3.0, "low": 25.0, "high": 975.0, "n": 7})
    assert with_draws(3, [np.nan], 7) == {"value": 3.0, "low": None, "high": None, "n": 7}


def test_the_error_of_a_ratio_is_that_of_the_bootstrap():
    numerator, denominator = (pd.Series(values) for values in np.random.default_rng(3).random((2, 400)))
    found = ratio(numerator, denominator)
    assert found.error == pytest.approx(bootstrap_draws(ratio_of_sums, numerator, denominator).std(), rel=0.1)
    assert (found - found).error == 0 and (found - found).p == 1
    assert np.isnan(Estimate(1.0, pd.Series([0.1] * 9)).p), "fewer than ten pictures"


def test_stratified_auroc_compares_cells_of_one_stratum(labels_and_predictions):
    rng = np.random.default_rng(4)
    score, member, groups = rng.integers(9, size=300), rng.random(300) < 0.3, np.repeat(np.arange(60), 5)
    one = stratified_auroc(score, member, np.zeros(300, int), groups)
    assert one[0] == pytest.approx(roc_auc_score(member, score)) and one[1].sum() == pytest.approx(0)
    strata = rng.integers(3, size=300)
    weights = [np.prod(np.bincount(member[strata == s])) for s in range(3)]
    each = [roc_auc_score(member[strata == s], score[strata == s]) for s in range(3)]
    assert stratified_auroc(score + 100 * strata, member, strata, groups)[0] == pytest.approx(
        np.average(each, weights=weights)
    )
