"""Metrics against values by hand, scikit-learn and slow loops."""

import time

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import balanced_accuracy_score

from aircraft_sae.metrics import (
    bootstrap_draws,
    class_averaged_accuracy,
    interval,
    ratio_of_sums,
    with_draws,
    with_interval,
)


@pytest.fixture(scope="module")
def made():
    """Labels, predictions and probabilities of 200 images in 7 classes of unequal size."""
    rng = np.random.default_rng(0)
    labels = rng.choice(7, 200, p=np.arange(1, 8) / 28)
    probabilities = rng.dirichlet(np.ones(7), 200)
    probabilities[np.arange(200), labels] += rng.uniform(0, 0.6, 200)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return labels, probabilities.argmax(axis=1), probabilities


def test_class_averaged_accuracy(made):
    labels, predicted, _ = made
    assert class_averaged_accuracy([0, 0, 0, 1], [0, 0, 1, 1], 2) == pytest.approx((2 / 3 + 1) / 2)
    assert class_averaged_accuracy([0, 0, 2], [0, 1, 2], 3) == pytest.approx(0.75)  # class 1 has no image
    assert class_averaged_accuracy(labels, predicted, 7) == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_counts_are_repeated_images(made):
    labels, predicted, _ = (values[:20] for values in made)
    drawn = np.random.default_rng(1).integers(20, size=(30, 20))  # small, so that classes go without a draw
    counts = np.stack([np.bincount(draw, minlength=20) for draw in drawn])
    slow = [class_averaged_accuracy(labels[draw], predicted[draw], 7) for draw in drawn]
    np.testing.assert_allclose(class_averaged_accuracy(labels, predicted, 7, counts=counts), slow)
    assert len({len(set(labels[draw])) for draw in drawn}) > 1


def test_the_interval_of_draws(made):
    labels, predicted, _ = made
    right = labels == predicted
    low, high = interval(bootstrap_draws(ratio_of_sums, right, np.ones(200)))
    p = right.mean()
    normal = 1.96 * np.sqrt(p * (1 - p) / 200)  # a mean of 200 coin throws
    assert low == pytest.approx(p - normal, abs=0.02) and high == pytest.approx(p + normal, abs=0.02)
    assert low < p < high
    again = [interval(bootstrap_draws(class_averaged_accuracy, labels, predicted, 7, seed=seed)) for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]
    assert interval(bootstrap_draws(class_averaged_accuracy, labels, labels, 7)) == (1, 1)
    rare = np.array([0] * 99 + [1])  # a third of the draws have no image of class 1
    assert interval(bootstrap_draws(class_averaged_accuracy, rare, np.zeros(100, int), 2)) == (0.5, 1)


def test_ratio_of_sums():
    assert ratio_of_sums([1, 2], [2, 4]) == 0.5
    assert ratio_of_sums([1, 3], [2, 4], [[2, 0], [1, 1]]).tolist() == [0.5, 4 / 6]


def test_draws_are_those_of_scipy_and_of_one_image_too():
    numerator, denominator = np.random.default_rng(2).random((2, 300))
    theirs = scipy.stats.bootstrap(
        (numerator, denominator), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, method="percentile",
        n_resamples=2000, rng=np.random.default_rng(0),
    )  # fmt: skip
    np.testing.assert_allclose(bootstrap_draws(ratio_of_sums, numerator, denominator), theirs.bootstrap_distribution)
    assert interval(bootstrap_draws(ratio_of_sums, numerator, denominator)) == pytest.approx(theirs.confidence_interval)
    assert with_interval([3], [4]) == {"value": 0.75, "low": 0.75, "high": 0.75, "n": 1}


def test_a_class_averaged_interval_is_quick():
    labels = np.random.default_rng(0).integers(30, size=1000)
    began = time.process_time()
    bootstrap_draws(class_averaged_accuracy, labels, labels[::-1], 30)  # 0.04 s
    assert time.process_time() - began < 1


def test_bootstrap_draws_many_images_in_chunks():
    labels = np.arange(20_000) % 2
    low, high = interval(bootstrap_draws(class_averaged_accuracy, labels, np.zeros(20_000, int), 2, n=1000))
    assert low == high == 0.5  # all of one class right, none of the other, however many of each
    seen = []
    bootstrap_draws(
        lambda values, counts=None: 0 if counts is None else seen.append(counts) or counts.sum(1), labels, n=1000
    )
    assert sum(map(len, seen)) == 1000 and len(seen) > 1
    assert all((counts.sum(axis=1) == 20_000).all() for counts in seen) and not np.array_equal(seen[0][0], seen[1][0])


def test_a_value_with_draws_leaves_out_what_is_no_number():
    draws = np.append(np.arange(1001.0), np.nan)
    assert with_draws(3, draws, 7) == pytest.approx({"value": 3.0, "low": 25.0, "high": 975.0, "n": 7})
    assert with_draws(3, [np.nan], 7) == {"value": 3.0, "low": None, "high": None, "n": 7}
