"""Scores agree with scikit-learn, and with sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from metrics import classification


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    # Class 6 never occurs; some classes are rare or never predicted.
    labels = rng.choice(7, 60, p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.02, 0])
    predictions = np.where(rng.random(60) < 0.6, labels, rng.integers(0, 4, 60))
    expected = metrics.f1_score(
        labels, predictions, average="macro", zero_division=0
    )
    assert classification.macro_f1(labels, predictions, 7) == pytest.approx(
        expected
    )
    assert classification.accuracy(labels, predictions) == pytest.approx(
        metrics.accuracy_score(labels, predictions)
    )
    np.testing.assert_array_equal(
        classification.confusion_matrix(labels, predictions, 7),
        metrics.confusion_matrix(labels, predictions, labels=range(7)),
    )


def test_macro_f1_of_a_class_that_is_only_predicted_counts_as_zero():
    labels, predictions = np.array([0, 0]), np.array([0, 1])
    assert classification.macro_f1(labels, predictions, 3) == pytest.approx(
        (2 / 3 + 0) / 2
    )


def test_log_loss_is_scikit_learns():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 50)
    labels = rng.integers(0, 4, 50)
    true = probabilities[np.arange(50), labels]
    assert classification.log_loss(true) == pytest.approx(
        metrics.log_loss(labels, probabilities, labels=range(4))
    )


def test_log_loss_of_a_sure_mistake_is_finite():
    assert 30 < classification.log_loss(np.array([0.0])) < 40


def test_calibration_error_by_hand():
    # Confidence .8 twice, right once: gap .6 over two of three rows.
    assert classification.expected_calibration_error(
        np.array([0.8, 0.8, 1.0]), np.array([True, False, True])
    ) == pytest.approx(0.6 / 3)


def test_no_rows_score_zero():
    labels, none = np.zeros(0, int), np.zeros(0)
    assert classification.macro_f1(labels, labels, 3) == 0
    assert classification.accuracy(labels, labels) == 0
    assert classification.log_loss(none) == 0
    assert (
        classification.expected_calibration_error(none, labels.astype(bool))
        == 0
    )
    confusion = np.zeros((3, 3), int)
    assert classification.accuracy_from_confusion(confusion) == 0
    assert classification.bootstrap_interval(confusion) == (0, 0)


def test_interval_is_that_of_resampled_rows():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 200)
    predictions = np.where(
        rng.random(200) < 0.7, labels, rng.integers(0, 3, 200)
    )
    draws = []
    for _ in range(2000):
        rows = rng.integers(0, 200, 200)
        draws.append(
            classification.macro_f1(labels[rows], predictions[rows], 3)
        )
    expected = np.quantile(draws, [0.025, 0.975])
    found = classification.bootstrap_interval(
        classification.confusion_matrix(labels, predictions, 3), draws=2000
    )
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_interval_of_accuracy_has_the_binomial_width():
    confusion = np.array([[300, 100], [0, 0]])
    low, high = classification.bootstrap_interval(
        confusion, classification.accuracy_from_confusion
    )
    width = 2 * 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert high - low == pytest.approx(width, rel=0.1)


def test_same_seed_same_interval():
    confusion = np.array([[30, 10], [5, 40]])
    assert classification.bootstrap_interval(
        confusion
    ) == classification.bootstrap_interval(confusion)
