"""What a model adds is what is lost without it."""

import numpy as np
import pytest

from metrics.classification import macro_f1
from stacking.member_value import leave_one_out


def member(labels, wrong, seed, strength=4.0):
    """Logits that are right but for the rows `wrong`."""
    rng = np.random.default_rng(seed)
    answers = labels.copy()
    answers[wrong] = (answers[wrong] + 1) % 3
    noise = rng.normal(size=(len(labels), 3)) / 4
    return np.float32(strength * np.eye(3)[answers] + noise)


@pytest.fixture
def labels():
    return np.arange(300) % 3


def test_a_model_that_errs_elsewhere_helps_and_a_copy_does_not(labels):
    one = member(labels, np.arange(0, 60), 0)
    two = member(labels, np.arange(60, 120), 1)
    three = member(labels, np.arange(120, 180), 2)
    copy = member(labels, np.arange(0, 60), 3)
    found = leave_one_out(np.stack([one, two, three, copy]), labels)
    gain = found["macro_f1"] - np.array(found["without"])
    assert gain[0] < min(gain[1], gain[2]) and gain[3] < min(gain[1:3])
    correlation = np.array(found["error_correlation"])
    assert correlation[0, 3] > 0.95 and correlation[0, 1] < 0
    np.testing.assert_allclose(correlation, correlation.T)
    for (low, high), value in zip(found["gain_interval"], gain, strict=True):
        assert low - 0.02 <= value <= high + 0.02


def test_the_mean_without_a_model_is_that_of_the_others(labels):
    one = member(labels, np.arange(0, 60), 0)
    two = member(labels, np.arange(60, 90), 1)
    found = leave_one_out(np.stack([one, two]), labels)
    # Without one of two, the other answers alone.
    for score, other in zip(found["without"], (two, one), strict=True):
        expected = macro_f1(labels, other.argmax(axis=1), 3)
        assert score == pytest.approx(expected)


def test_a_model_alone_and_one_without_mistakes(labels):
    right = member(labels, np.arange(0), 0)
    found = leave_one_out(right[None], labels)
    assert found["without"] == [] and found["gain_interval"] == []
    assert found["macro_f1"] == 1.0
    assert found["error_correlation"] == [[None]]
