"""Metrics against values by hand, scikit-learn and slow loops."""

import time

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from aircraft_sae.metrics import (
    bootstrap_draws,
    class_averaged_accuracy,
    expected_calibration_error,
    interval,
    ratio_of_sums,
    top_k_accuracy,
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


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_top_k_accuracy(made, k):
    labels, predicted, probabilities = made
    want = top_k_accuracy_score(labels, probabilities, k=k, labels=range(7)) if k < 7 else 1
    assert top_k_accuracy(labels, probabilities, k) == pytest.approx(want)
    if k == 1:
        assert top_k_accuracy(labels, probabilities) == pytest.approx((labels == predicted).mean())
    assert top_k_accuracy([0, 0, 2], np.ones((3, 3)), 1) == pytest.approx(2 / 3)  # ties go to the first class
    assert top_k_accuracy([0, 1], np.array([[9, 0], [0, 9]], np.uint8), 1) == 1  # where -0 > -9 wraps around


def test_expected_calibration_error(made):
    by_hand = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])  # bins (0.8, 1], (0.4, 0.6], (0.4, 0.6]
    want = 2 / 4 * abs(0.5 - 0.9) + 2 / 4 * abs(0.5 - 0.55)
    assert expected_calibration_error(by_hand, [0, 1, 0, 0], n_bins=5) == pytest.approx(want)
    labels, predicted, probabilities = made
    slow, confidence = 0, probabilities.max(axis=1)
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            slow += inside.mean() * abs((labels == predicted)[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(probabilities, labels) == pytest.approx(slow)


@pytest.mark.parametrize("metric", [class_averaged_accuracy, top_k_accuracy, expected_calibration_error])
def test_counts_are_repeated_images(made, metric):
    labels, predicted, probabilities = made
    rows = {
        class_averaged_accuracy: (labels, predicted),
        top_k_accuracy: (labels, probabilities),
        expected_calibration_error: (probabilities, labels),
    }[metric]
    rest = (7,) if metric is class_averaged_accuracy else ()
    rng = np.random.default_rng(1)
    drawn = rng.integers(20, size=(30, 20))  # small, so that classes go without a draw
    rows = tuple(values[:20] for values in rows)
    counts = np.stack([np.bincount(draw, minlength=20) for draw in drawn])
    slow = [metric(*(values[draw] for values in rows), *rest) for draw in drawn]
    np.testing.assert_allclose(metric(*rows, *rest, counts=counts), slow, rtol=1e-5, atol=1e-6)
    assert len({len(set(labels[:20][draw])) for draw in drawn}) > 1


def test_the_interval_of_draws(made):
    labels, predicted, probabilities = made
    low, high = interval(bootstrap_draws(top_k_accuracy, labels, probabilities))
    p = top_k_accuracy(labels, probabilities)
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
