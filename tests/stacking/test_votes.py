"""Votes are no worse than what they are made of."""

import time

import numpy as np
import pytest
from made_up_runs import made_up, make_calibrated

from metrics import classification
from stacking import (
    greedy,
    soft_vote,
)


def test_soft_vote_is_never_worse_than_its_models_or_their_mean():
    logits, labels = made_up(300, 4, 4, seed=1, noise=1.5)
    probabilities = make_calibrated(logits, labels).probabilities
    weights = soft_vote.fit_weights(probabilities, labels, 40, seed=0)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)

    def f1(weights):
        vote = soft_vote.vote(probabilities, np.asarray(weights))
        return classification.macro_f1(labels, vote.argmax(axis=1), 4)

    assert f1(weights) >= f1(np.full(4, 0.25))
    for model in range(4):
        assert f1(weights) >= f1(np.eye(4)[model] * 0.98 + 0.005) - 1e-9


def test_soft_vote_finds_the_one_model_that_knows():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    probabilities = rng.dirichlet(np.ones(4), (5, 400)).astype(np.float32)
    good = 0.25 * probabilities[2] + 0.75 * np.eye(4)[labels] * 0.5
    probabilities[2] = good / good.sum(axis=1, keepdims=True)
    for weights in (
        soft_vote.fit_weights(probabilities, labels, 60, seed=0),
        greedy.select(probabilities, labels),
    ):
        assert weights.argmax() == 2 and weights[2] > 0.5


def test_soft_vote_is_seeded():
    logits, labels = made_up(200, 4, 3, seed=2)
    probabilities = make_calibrated(logits, labels).probabilities
    first, second, other = (
        soft_vote.fit_weights(probabilities, labels, 40, seed=seed)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.slow
def test_a_thousand_trials_take_ten_seconds_of_one_core():
    logits, labels = made_up(5000, 16, 6, seed=0)
    probabilities = make_calibrated(logits, labels).probabilities
    started = time.process_time()
    soft_vote.fit_weights(probabilities, labels, 1000, seed=0)
    assert time.process_time() - started < 10


def test_greedy_is_at_least_as_good_as_the_best_model():
    logits, labels = made_up(300, 4, 4, seed=3, noise=1.5)
    probabilities = make_calibrated(logits, labels).probabilities
    weights = greedy.select(probabilities, labels)
    assert weights.sum() == pytest.approx(1)
    vote = soft_vote.vote(probabilities, weights).argmax(axis=1)
    best = max(
        classification.macro_f1(labels, model.argmax(axis=1), 4)
        for model in probabilities
    )
    assert classification.macro_f1(labels, vote, 4) >= best
