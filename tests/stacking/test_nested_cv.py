"""Scores that can be believed: blind to the rows, blind to luck."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from made_up_runs import made_up
from sklearn.metrics import log_loss

from metrics import classification
from stacking import nested_cv, stack_model
from stacking.nested_cv import out_of_fold, predict_scored
from stacking.stack_model import BLEND, Settings, fit_stack_model
from stacking.stratified import stratified_folds

QUICK = Settings(trials=20, boosters=("lightgbm",), threads=1)
# Everything that is tuned on labels, at once.
TUNED = Settings(
    trials=20,
    boosters=("lightgbm",),
    blend="auto",
    decision="thresholds",
    class_weights="balanced",
    threads=1,
)


@pytest.mark.parametrize(
    ("settings", "weak"),
    [
        (QUICK, False),
        (TUNED, False),
        # Where the best model gets all the weight.
        (dataclasses.replace(QUICK, boosters=()), True),
    ],
)
def test_no_row_is_scored_by_a_stack_that_saw_its_label(
    monkeypatch, settings, weak
):
    logits, labels = made_up(100, 4, 3, seed=0)
    if weak:
        logits[1:] = np.random.default_rng(2).normal(size=logits[1:].shape)
    folds = stratified_folds(labels, 5, 0)
    monkeypatch.setattr(nested_cv, "stratified_folds", lambda *_: folds)
    before = out_of_fold(logits, labels, settings)
    held = folds == 2
    changed = labels.copy()
    changed[held] = np.random.default_rng(1).integers(0, 4, held.sum())
    after = out_of_fold(logits, changed, settings)
    for name, found in before.items():
        for array in ("predicted", "confidence", "top"):
            np.testing.assert_array_equal(
                getattr(found, array)[held], getattr(after[name], array)[held]
            )
    if weak:
        stack = fit_stack_model(logits[:, ~held], labels[~held], settings)
        weights = stack.meta_learners["soft_vote"].weights
        np.testing.assert_array_equal(weights, [1, 0, 0])
    # And the other rows do feel the change: the test is not blind itself.
    assert (before[BLEND].confidence != after[BLEND].confidence)[~held].any()


def test_no_fit_sees_the_group_that_it_is_judged_on(monkeypatch):
    logits, labels = made_up(120, 3, 2, seed=3)
    groups = np.random.default_rng(4).integers(0, 24, 120).astype(str)
    seen = []

    def fold(labels, k, seed, groups):
        folds = stratified_folds(labels, k, seed, groups)
        seen.append((folds, groups))
        return folds

    for module in (nested_cv, stack_model):
        monkeypatch.setattr(module, "stratified_folds", fold)
    settings = Settings(trials=5, boosters=())
    out_of_fold(logits, labels, settings, groups=groups)
    (outer, rows), *inner = seen
    np.testing.assert_array_equal(rows, groups)
    assert len(inner) == len(np.unique(outer)) == 5
    for kept, (folds, rows) in zip(range(5), inner, strict=True):
        np.testing.assert_array_equal(rows, groups[outer != kept])
        assert not set(rows) & set(groups[outer == kept])
        for one in np.unique(folds):
            assert not set(rows[folds == one]) & set(rows[folds != one])


@pytest.mark.parametrize("settings", [QUICK, TUNED])
def test_noise_scores_no_better_than_chance(settings):
    logits, _ = made_up(400, 4, 3, seed=1)
    labels = np.random.default_rng(2).integers(0, 4, 400).astype(np.int32)
    for name, found in out_of_fold(logits, labels, settings).items():
        entry = found.summary(labels, 4)
        # Four classes: a quarter right, give or take two standard errors.
        assert entry["accuracy"] < 0.25 + 2 * np.sqrt(0.25 * 0.75 / 400), name
        assert entry["macro_f1"] < 0.30, name
        assert entry["macro_f1_interval"][0] < 0.25, name
        assert entry["log_loss"] > np.log(4) - 0.02, name


@pytest.mark.parametrize(
    "settings",
    [
        Settings(trials=20, boosters=()),
        pytest.param(QUICK, marks=pytest.mark.slow),
    ],
)
def test_score_lies_within_its_interval_of_the_truth(settings):
    """Six times over: the reported interval holds the score on new rows."""
    inside = 0
    for seed in range(6):
        logits, labels = made_up(3250, 4, 3, seed=10 + seed)
        val, new = slice(0, 250), slice(250, 3250)
        found = out_of_fold(logits[:, val], labels[val], settings)
        low, high = found[BLEND].summary(labels[val], 4)["macro_f1_interval"]
        stack = fit_stack_model(logits[:, val], labels[val], settings)
        truth = predict_scored(stack, logits[:, new], labels[new], 1)
        score = truth[BLEND].summary(labels[new], 4)["macro_f1"]
        inside += low <= score <= high
    assert inside >= 5


def test_blend_of_different_models_beats_each_of_them():
    logits, labels = made_up(300, 4, 4, seed=3, noise=1.5)
    found = out_of_fold(logits, labels, QUICK)
    f1 = {k: v.summary(labels, 4)["macro_f1"] for k, v in found.items()}
    assert f1[BLEND] > max(f1[model] for model in range(4))
    assert f1["soft_vote"] > max(f1[model] for model in range(4))


def test_same_seed_same_numbers_for_any_number_of_threads():
    logits, labels = made_up(80, 4, 2, seed=4)
    one, two = (
        out_of_fold(logits, labels, Settings(trials=10, threads=threads))
        for threads in (1, 2)
    )
    for name in one:
        np.testing.assert_array_equal(one[name].true, two[name].true)


@pytest.mark.parametrize(
    "decision", [pytest.param("argmax", marks=pytest.mark.slow), "thresholds"]
)
def test_classes_of_one_to_three_rows_survive(decision):
    logits, labels = made_up(90, 5, 2, seed=5)
    # Classes 3 and 4 have two rows and one row.
    labels = np.where(labels >= 3, 0, labels)
    labels[[10, 20]], labels[30] = 3, 4
    settings = Settings(trials=10, decision=decision, blend="auto", threads=2)
    found = out_of_fold(logits, labels, settings)
    for name, entry in found.items():
        assert np.isfinite(entry.true).all(), name
        # Absent from the training part, but never ruled out.
        assert (entry.true > 0).all(), name
        assert len(entry.summary(labels, 5)["f1_per_class"]) == 5


def test_summary_agrees_with_the_plain_scores():
    logits, labels = made_up(100, 4, 1, seed=6)
    stack = fit_stack_model(logits, labels, Settings(trials=5, boosters=()))
    ((_, found),) = stack.predict(logits)
    entry = predict_scored(stack, logits, labels, 1)[0].summary(labels, 4)
    predicted = found[0].argmax(axis=1)
    assert entry["macro_f1"] == pytest.approx(
        classification.macro_f1(labels, predicted, 4)
    )
    exact = found[0] / found[0].sum(axis=1, keepdims=True, dtype=float)
    assert entry["log_loss"] == pytest.approx(log_loss(labels, exact), rel=1e-5)
    assert entry["calibration_error"] == pytest.approx(
        classification.expected_calibration_error(
            found[0].max(axis=1), predicted == labels
        ),
        abs=1e-6,
    )
