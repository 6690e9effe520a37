"""Each member of the chain does its part."""

from __future__ import annotations

import time

import numpy as np
import pytest
from made_up_runs import made_up
from scipy import special
from sklearn import linear_model
from sklearn.metrics import log_loss

from metrics import classification
from stacking import (
    blend,
    boosters,
    calibration,
    decision_rule,
    features,
    greedy,
    logistic,
    search,
    soft_vote,
)
from stacking.chain import Settings, fit_chain
from stacking.members import make_inputs
from stacking.splits import stratified_folds, subsample


def calibrated(logits, labels):
    temperatures = [calibration.fit_temperature(m, labels) for m in logits]
    return make_inputs(logits, np.array(temperatures))


# Splits.


def test_folds_are_stratified_and_as_large_as_each_other():
    labels = np.repeat(np.arange(4), [41, 20, 7, 2])
    folds = stratified_folds(labels, 5, seed=3)
    assert np.ptp(np.bincount(folds)) <= 1
    for label in range(4):
        per_fold = np.bincount(folds[labels == label], minlength=5)
        assert np.ptp(per_fold) <= 1
    np.testing.assert_array_equal(folds, stratified_folds(labels, 5, seed=3))
    assert (folds != stratified_folds(labels, 5, seed=4)).any()


def test_subsample_keeps_shares_and_rare_classes():
    labels = np.repeat(np.arange(3), [9000, 999, 1])
    rows = subsample(labels, 1000, seed=0)
    assert np.all(np.diff(rows) > 0)
    np.testing.assert_allclose(np.bincount(labels[rows]), [900, 100, 1], atol=1)
    assert len(subsample(labels, 10_000, seed=0)) == 10_000


# Temperatures.


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


# Votes.


def test_soft_vote_is_never_worse_than_its_models_or_their_mean():
    logits, labels = made_up(300, 4, 4, seed=1, noise=1.5)
    probabilities = calibrated(logits, labels).probabilities
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
    probabilities = calibrated(logits, labels).probabilities
    first, second, other = (
        soft_vote.fit_weights(probabilities, labels, 40, seed=seed)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.slow
def test_a_thousand_trials_take_ten_seconds_of_one_core():
    logits, labels = made_up(5000, 16, 6, seed=0)
    probabilities = calibrated(logits, labels).probabilities
    started = time.process_time()
    soft_vote.fit_weights(probabilities, labels, 1000, seed=0)
    assert time.process_time() - started < 10


def test_greedy_is_at_least_as_good_as_the_best_model():
    logits, labels = made_up(300, 4, 4, seed=3, noise=1.5)
    probabilities = calibrated(logits, labels).probabilities
    weights = greedy.select(probabilities, labels)
    assert weights.sum() == pytest.approx(1)
    vote = soft_vote.vote(probabilities, weights).argmax(axis=1)
    best = max(
        classification.macro_f1(labels, model.argmax(axis=1), 4)
        for model in probabilities
    )
    assert classification.macro_f1(labels, vote, 4) >= best


# Features.


def test_features_are_what_their_names_say():
    logits, labels = made_up(20, 4, 3, seed=0)
    inputs = calibrated(logits, labels)
    names = features.feature_names("abc", "wxyz")
    assert inputs.features.shape == (20, len(names)) == (20, 3 * 4 + 3 * 3 + 2)
    column = dict(zip(names, inputs.features.T, strict=True))
    probabilities = inputs.probabilities
    np.testing.assert_allclose(
        column["log p(y) b"], np.log(probabilities[1, :, 2]), rtol=1e-5
    )
    np.testing.assert_allclose(
        column["entropy c"],
        special.entr(probabilities[2]).sum(axis=1),
        rtol=1e-4,
    )
    top = np.sort(probabilities[0], axis=1)
    np.testing.assert_allclose(column["top probability a"], top[:, -1])
    np.testing.assert_allclose(
        column["margin a"], top[:, -1] - top[:, -2], rtol=1e-5
    )
    votes = probabilities.argmax(axis=2)
    agreement = [np.bincount(row).max() / 3 for row in votes.T]
    np.testing.assert_allclose(column["agreement"], agreement, rtol=1e-6)
    assert (column["disagreement in nats"] > -1e-6).all()


# Logistic regression.


def test_regression_is_scikit_learns():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, 6)).astype(np.float32)
    labels = (inputs[:, 0] + 0.5 * rng.normal(size=300) > 0) + 2 * (
        inputs[:, 1] > 0.3
    )
    nothing = np.zeros((300, 4), np.float32)
    ours = logistic.fit(inputs, nothing, labels, 0.03, np.ones(300))
    scaled = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    theirs = linear_model.LogisticRegression(C=1 / (0.03 * 300), tol=1e-8)
    theirs.fit(scaled, labels)
    np.testing.assert_allclose(
        ours.predict(inputs, nothing), theirs.predict_proba(scaled), atol=5e-3
    )


def test_regression_without_evidence_answers_the_mean():
    logits, labels = made_up(60, 4, 3, seed=0)
    inputs = calibrated(logits, labels)
    start = np.log(inputs.base)
    fitted = logistic.fit(inputs.features, start, labels, 1e6, np.ones(60))
    found = fitted.predict(inputs.features, start)
    # The bias is not penalised: it may still shift whole classes.
    agree = found.argmax(axis=1) == inputs.base.argmax(axis=1)
    assert agree.mean() > 0.9
    assert np.abs(fitted.weights).max() < 1e-5


# Boosters.


def booster_on(logits, labels, kind, seeds=1, weights=None, **parameters):
    inputs = calibrated(logits, labels)
    folds = stratified_folds(labels, 3, seed=0)
    tasks = boosters.plan((kind,), folds, seeds, seed=0)
    weights = np.ones(len(labels)) if weights is None else weights
    settings = {**boosters.PARAMETERS[kind], **parameters}
    fits = [
        boosters.fit(
            task,
            inputs.features,
            inputs.base,
            labels,
            folds,
            weights,
            settings,
        )
        for task in tasks
    ]
    booster, out_of_fold = boosters.average(
        tasks, fits, inputs.features, inputs.base, folds, 1
    )
    return booster, out_of_fold, inputs


@pytest.mark.parametrize("kind", boosters.KINDS)
def test_boosters_learn_and_stop(kind):
    logits, labels = made_up(150, 4, 2, seed=0)
    booster, out_of_fold, inputs = booster_on(logits, labels, kind)
    assert len(booster.fits) == 3
    np.testing.assert_allclose(out_of_fold.sum(axis=1), 1, rtol=1e-5)
    assert classification.accuracy(labels, out_of_fold.argmax(axis=1)) > 0.5
    # It knows the rows it was fitted on better than those held out.
    fitted = booster.predict(inputs.features, inputs.base, 1)
    assert log_loss(labels, fitted) < log_loss(labels, out_of_fold)


@pytest.mark.parametrize("kind", boosters.KINDS)
def test_boosters_on_few_rows_are_no_worse_than_the_mean(kind):
    """Forty rows of each class: too few to find the vote by thresholds."""
    logits, labels = made_up(160, 4, 3, seed=0)
    _, out_of_fold, inputs = booster_on(logits, labels, kind)
    mean = log_loss(labels, inputs.base)
    assert log_loss(labels, out_of_fold) < 1.02 * mean
    right = np.mean(out_of_fold.argmax(axis=1) == labels)
    assert right > np.mean(inputs.base.argmax(axis=1) == labels) - 0.02


@pytest.mark.parametrize("kind", boosters.KINDS)
def test_boosters_learn_what_no_mean_can_say(kind):
    """One model confuses two classes: only trees see when to believe it."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 600).astype(np.int32)
    logits = (2 * np.eye(4)[labels] + rng.normal(size=(2, 600, 4))).astype(
        np.float32
    )
    logits[0] = logits[0][:, [0, 1, 3, 2]]
    _, out_of_fold, inputs = booster_on(logits, labels, kind)
    mean = np.mean(inputs.base.argmax(axis=1) == labels)
    right = np.mean(out_of_fold.argmax(axis=1) == labels)
    assert right > mean + 0.05


def test_early_stopping_keeps_the_best_round():
    logits, labels = made_up(120, 4, 2, seed=1, noise=2.0)
    fits = booster_on(logits, labels, "lightgbm", learning_rate=0.5)[0].fits
    rounds = [fit.model.decode().count("Tree=") / 4 for fit in fits]
    assert max(rounds) < 100


@pytest.mark.parametrize("kind", boosters.KINDS)
def test_boosters_survive_classes_absent_from_a_fold(kind):
    logits, labels = made_up(80, 5, 2, seed=2)
    labels = np.where(labels == 4, 0, labels)
    labels[7] = 4
    booster, out_of_fold, inputs = booster_on(logits, labels, kind)
    assert out_of_fold.shape == (80, 5)
    assert (out_of_fold > 0).all()
    np.testing.assert_allclose(out_of_fold.sum(axis=1), 1, rtol=1e-5)
    # The fits that did not see class 4 give it what the models give it.
    blind = [fit for fit in booster.fits if 4 not in fit.present]
    assert blind
    found = blind[0].predict(inputs.features, inputs.base, 1)
    np.testing.assert_allclose(found[:, 4], inputs.base[:, 4], rtol=1e-5)


def test_seeds_are_averaged():
    logits, labels = made_up(90, 4, 2, seed=3)
    booster, _, inputs = booster_on(logits, labels, "lightgbm", seeds=2)
    assert len(booster.fits) == 6
    each = [
        fit.predict(inputs.features, inputs.base, 1) for fit in booster.fits
    ]
    assert (each[0] != each[3]).any()
    np.testing.assert_allclose(
        booster.predict(inputs.features, inputs.base, 1),
        np.mean(each, axis=0),
        rtol=1e-4,
        atol=1e-6,
    )


def test_balanced_class_weights_favour_the_rare_class():
    logits, labels = made_up(
        300, 3, 1, seed=4, skill=1.0, shares=[0.8, 0.15, 0.05]
    )
    recall = {}
    for kind in ("none", "balanced"):
        settings = Settings(
            trials=1, boosters=("lightgbm",), class_weights=kind, threads=1
        )
        chain = fit_chain(logits, labels, settings)
        ((_, found),) = chain.predict(logits)
        hits = found["lightgbm"].argmax(axis=1)[labels == 2] == 2
        recall[kind] = hits.mean()
    assert recall["balanced"] > recall["none"]


# Search over the boosters' parameters.


def test_search_stops_in_time_and_resumes(tmp_path):
    logits, labels = made_up(60, 3, 2, seed=5)
    inputs = calibrated(logits, labels)
    folds = stratified_folds(labels, 3, seed=0)
    lines = []

    def run(seconds, rows=slice(None)):
        return search.best_parameters(
            "lightgbm",
            inputs.features[rows],
            labels[rows],
            inputs.base[rows],
            folds[rows],
            np.ones(len(labels[rows])),
            seconds=seconds,
            storage=tmp_path / "deep" / "search.journal",
            seed=0,
            threads=1,
            progress=lines.append,
        )

    first = run(0.0)
    assert first == boosters.PARAMETERS["lightgbm"] and len(lines) == 1
    # The time is spent: nothing is tried again.
    assert run(0.0) == first and len(lines) == 1
    started = time.monotonic()
    best = run(3.0)
    trials = len(lines)
    assert trials > 1 and "trial 2" in lines[1]
    assert time.monotonic() - started < 30
    assert run(3.0) == best and len(lines) == trials
    # Other rows are another search: it starts from the beginning.
    run(0.0, rows=slice(0, 50))
    assert "trial 1," in lines[-1]


# Blend and decision.


def members(rows, seed, better):
    """Out-of-fold members; "logistic" is better by so much logit."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, rows)
    found = {}
    for name, skill in (("soft_vote", 1.5), ("logistic", 1.5 + better)):
        logits = rng.normal(size=(rows, 4)) + skill * np.eye(4)[labels]
        found[name] = special.softmax(logits, axis=1).astype(np.float32)
    return found, labels, stratified_folds(labels, 3, seed)


def test_auto_blend_takes_what_is_clearly_better():
    found, labels, folds = members(600, 0, better=1.5)
    weights = blend.choose(found, labels, folds, seed=0)
    assert weights["logistic"] > 0.5
    assert sum(weights.values()) == pytest.approx(1)


def test_auto_blend_falls_back_when_the_rest_is_noise():
    found, labels, folds = members(600, 0, better=-1.4)
    assert blend.choose(found, labels, folds, seed=0) == {"soft_vote": 1.0}


def test_preset_is_the_references_or_what_there_is_of_it():
    full = dict.fromkeys(("soft_vote", "logistic", "catboost", "lightgbm"))
    assert blend.preset(full) == {
        "catboost": pytest.approx(0.4),
        "lightgbm": pytest.approx(0.3),
        "soft_vote": pytest.approx(0.3),
    }
    assert blend.preset({"soft_vote": None, "catboost": None}) == {
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
