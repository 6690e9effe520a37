"""Temperature scaling finds the temperature, and stays finite."""

import numpy as np
import pytest
from made_up_runs import made_up
from scipy import special

from metrics import classification
from stacking import (
    calibration,
)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(true_temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 5)) * 2
    probabilities = special.softmax(logits, axis=1)
    labels = (probabilities.cumsum(axis=1) < rng.random((20_000, 1))).sum(1)
    found = calibration.fit_temperature(logits * true_temperature, labels)
    assert found == pytest.approx(true_temperature, rel=0.05)


def test_temperature_of_a_faultless_model_stays_finite():
    labels = np.arange(40) % 4
    logits = np.eye(4, dtype=np.float32)[labels] * 5
    temperature = calibration.fit_temperature(logits, labels)
    top = classification.log_softmax(logits, temperature).max(axis=1)
    # Forty of forty right is evidence for 97 % or so, not for certainty.
    assert 0.9 < np.exp(top).mean() < 0.995


def test_calibration_lowers_the_calibration_error():
    logits, labels = made_up(4000, 4, 1, seed=0)
    half = slice(0, 2000), slice(2000, 4000)
    temperature = calibration.fit_temperature(
        logits[0, half[0]] * 4, labels[half[0]]
    )
    tested, answers = logits[0, half[1]] * 4, labels[half[1]]
    raw, better = (
        classification.expected_calibration_error(
            np.exp(classification.log_softmax(tested, t)).max(axis=1),
            tested.argmax(axis=1) == answers,
        )
        for t in (1.0, temperature)
    )
    assert better < 0.05 < raw
