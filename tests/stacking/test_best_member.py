"""A stack with weak models in it does not fall below its best one."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_runs import make_calibrated

from metrics import classification
from stacking import best_member, blend, meta_learners
from stacking.calibration import recalibrated
from stacking.stack_model import BLEND, Settings, fit_stack_model
from stacking.stratified import stratified_folds

CLASSES = 6
NEW = 4000

# The same draws each time: what is fitted to few rows is better nearly always,
# not always. Of 600 draws with a strong model, 5 break a bound below.
fixed = functools.partial(settings, derandomize=True, deadline=None)


def models(rows, skills, seed, *, own=0.7, knows=None):
    """(logits float32 [M, N, C], labels int [N]) of models of given skills.

    Args:
      rows: N.
      skills: logits that each model's true class has on top; 0 is noise.
      seed: of everything.
      own: standard deviation of the noise that a model shares with no other.
      knows: of each model the classes that it has skill in; None is all.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    shared = rng.normal(size=(rows, CLASSES))
    found = []
    for number, skill in enumerate(skills):
        logits = own * rng.normal(size=(rows, CLASSES))
        logits += shared * (skill > 0)
        known = True if knows is None else np.isin(labels, knows[number])
        logits[np.arange(rows), labels] += np.where(known, skill, 0)
        found.append(1.5 * logits)
    return np.array(found, np.float32), labels


def f1(labels, probabilities):
    answers = probabilities.argmax(axis=1)
    return classification.macro_f1(labels, answers, CLASSES)


def votes(rows, skills, seed, **options):
    """The soft vote's weights, and its gain over the best model on new rows."""
    logits, labels = models(rows + NEW, skills, seed, **options)
    inputs = make_calibrated(logits[:, :rows], labels[:rows])
    new = make_calibrated(logits[:, rows:], labels[rows:])
    folds = stratified_folds(labels[:rows], 3, seed)
    vote, found = meta_learners.fit_soft_vote(
        inputs, labels[:rows], folds, trials=20, seed=seed
    )
    assert found.shape == inputs.base.shape
    best = max(f1(labels[rows:], one) for one in new.probabilities)
    return vote.weights, f1(labels[rows:], vote.predict(new, 1)) - best


@fixed(max_examples=12)
@given(
    rows=st.integers(60, 400),
    weak=st.lists(st.sampled_from([0.0, 0.2, 0.4]), min_size=1, max_size=4),
    place=st.integers(0, 4),
    seed=st.integers(0, 10_000),
)
def test_weak_models_take_nothing_from_a_strong_one(rows, weak, place, seed):
    skills = [*weak[:place], 2.8, *weak[place:]]
    weights, gain = votes(rows, skills, seed)
    assert weights.argmax() == min(place, len(weak))
    # One photo in two hundred.
    assert gain > -0.005


@fixed(max_examples=8)
@given(
    rows=st.integers(100, 400),
    equal=st.integers(3, 5),
    seed=st.integers(0, 10_000),
)
def test_equal_models_are_better_together(rows, equal, seed):
    weights, gain = votes(rows, [2.2] * equal, seed, own=1.0)
    assert weights.max() < 1
    assert gain > 0.03


@fixed(max_examples=8)
@given(rows=st.integers(100, 400), seed=st.integers(0, 10_000))
def test_models_that_know_other_classes_are_better_together(rows, seed):
    weights, gain = votes(rows, [2.6, 2.6], seed, knows=[[0, 1, 2], [3, 4, 5]])
    assert weights.max() < 1
    assert gain > 0.05


def test_a_model_alone_is_given_exactly():
    logits, labels = models(300, [0.0, 3.0, 0.0], 0)
    inputs = make_calibrated(logits, labels)
    folds = stratified_folds(labels, 3, 0)
    vote, found = meta_learners.fit_soft_vote(inputs, labels, folds, 20, 0)
    np.testing.assert_array_equal(vote.weights, [0, 1, 0])
    for answer in (found, vote.predict(inputs, 1)):
        np.testing.assert_array_equal(answer, inputs.probabilities[1])


def test_boosters_on_few_rows_do_not_pull_the_blend_below_the_best_model():
    """And the fixed blend of the reference is pulled, or this shows nothing."""
    gains = {"guarded": [], "reference": []}
    for seed in range(4):
        logits, labels = models(70 + NEW, [2.6, 0.3], seed)
        new = labels[70:]
        for kind, found in gains.items():
            stack = fit_stack_model(
                logits[:, :70],
                labels[:70],
                Settings(
                    trials=20, boosters=("lightgbm",), blend=kind, threads=1
                ),
            )
            if kind == "reference":
                assert stack.blend_weights == pytest.approx(
                    {"lightgbm": 0.5, "soft_vote": 0.5}
                )
            ((_, answers),) = stack.predict(logits[:, 70:], 1)
            found.append(f1(new, answers[BLEND]) - f1(new, answers[0]))
    assert np.mean(gains["guarded"]) > -0.002
    assert np.mean(gains["reference"]) < np.mean(gains["guarded"]) - 0.002


def test_the_guard_leaves_a_blend_that_is_better():
    logits, labels = models(300, [2.2] * 4, 0, own=1.0)
    inputs = make_calibrated(logits, labels)
    mean, _ = recalibrated(inputs.base, labels)
    found = {"soft_vote": mean, "catboost": mean, "lightgbm": mean}
    assert blend.guarded_weights(
        found, inputs.probabilities, labels
    ) == pytest.approx(blend.REFERENCE)
    noise = np.full_like(mean, 1 / CLASSES)
    found = {"soft_vote": mean, "catboost": noise, "lightgbm": noise}
    noisy = np.random.default_rng(0).permutation(inputs.probabilities, axis=1)
    noisy[0] = np.eye(CLASSES)[labels] * 0.9 + 0.1 / CLASSES
    assert blend.guarded_weights(found, noisy, labels) == {"soft_vote": 1.0}


def test_likelier_by_a_standard_error():
    rng = np.random.default_rng(0)
    labels = np.zeros(400, int)

    def with_true(probability):
        return np.stack([probability, 1 - probability], axis=1).astype("f4")

    base = rng.uniform(0.4, 0.6, 400)
    noise = rng.normal(0, 0.05, 400)
    noise -= noise.mean()
    error = noise.std() / np.sqrt(400)
    assert not best_member.is_likelier(with_true(base), with_true(base), labels)
    for shift, expected in ((3 * error, True), (-3 * error, False)):
        other = base * np.exp(noise + shift)
        assert (
            best_member.is_likelier(with_true(other), with_true(base), labels)
            is expected
        )
