"""Blend and decision rule change only what they can prove."""

import numpy as np
import pytest
from scipy import special

from metrics import classification
from stacking import (
    blend,
    decision_rule,
)
from stacking.stratified import stratified_folds


def out_of_fold(rows, seed, better):
    """Out-of-fold rows; "logistic" is better by so much logit."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, rows)
    found = {}
    for name, skill in (("soft_vote", 1.5), ("logistic", 1.5 + better)):
        logits = rng.normal(size=(rows, 4)) + skill * np.eye(4)[labels]
        found[name] = special.softmax(logits, axis=1).astype(np.float32)
    return found, labels, stratified_folds(labels, 3, seed)


def test_auto_blend_takes_what_is_clearly_better():
    found, labels, folds = out_of_fold(600, 0, better=1.5)
    weights = blend.choose_weights(found, labels, folds, seed=0)
    assert weights["logistic"] > 0.5
    assert sum(weights.values()) == pytest.approx(1)


def test_auto_blend_falls_back_when_the_rest_is_noise():
    found, labels, folds = out_of_fold(600, 0, better=-1.4)
    assert blend.choose_weights(found, labels, folds, seed=0) == {
        "soft_vote": 1.0
    }


def test_reference_weights_are_over_what_there_is():
    full = dict.fromkeys(("soft_vote", "logistic", "catboost", "lightgbm"))
    assert blend.reference_weights(full) == {
        "catboost": pytest.approx(0.4),
        "lightgbm": pytest.approx(0.3),
        "soft_vote": pytest.approx(0.3),
    }
    assert blend.reference_weights({"soft_vote": None, "catboost": None}) == {
        "catboost": pytest.approx(4 / 7),
        "soft_vote": pytest.approx(3 / 7),
    }


def rare_class(rows, seed):
    """Calibrated probabilities where the rare class is seldom likeliest."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, rows, p=[0.85, 0.1, 0.05])
    logits = rng.normal(size=(rows, 3)) + 1.2 * np.eye(3)[labels]
    posterior = 1.2 * logits + np.log([0.85, 0.1, 0.05])
    return special.softmax(posterior, axis=1).astype(np.float32), labels


@pytest.mark.parametrize("rule", ["prior", "thresholds"])
def test_decisions_raise_macro_f1_on_new_rows(rule):
    probabilities, labels = rare_class(3000, 0)
    folds = stratified_folds(labels, 3, 0)
    multipliers = decision_rule.fit_multipliers(
        rule, probabilities, labels, folds
    )
    assert multipliers[2] > multipliers[0]
    probabilities, labels = rare_class(20_000, 1)
    plain = classification.macro_f1(labels, probabilities.argmax(axis=1), 3)
    better = classification.macro_f1(
        labels, decision_rule.decide(probabilities, multipliers), 3
    )
    assert better > plain + 0.02


def test_decisions_leave_noise_alone():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4) * 5, 60).astype(np.float32)
    probabilities[np.arange(60), np.arange(60) % 4] += 1
    labels = np.arange(60) % 4
    folds = stratified_folds(labels, 3, 0)
    for rule in decision_rule.RULES:
        np.testing.assert_array_equal(
            decision_rule.fit_multipliers(rule, probabilities, labels, folds),
            np.ones(4, np.float32),
        )
