"""A probe finds what lies in features, and no more."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from metrics import retrieval
from training.tasks import probe


def features(count, classes=3, width=6, apart=3.0, seed=0):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(9).normal(size=(classes, width))
    labels = np.arange(count) % classes
    values = apart * centers[labels] + rng.normal(size=(count, width))
    # Scales that only a standardised regression does not mind.
    values *= 10.0 ** np.arange(-2, width - 2)
    return probe.Features(values.astype(np.float32), labels.astype(np.int32))


@pytest.mark.parametrize("k", [1, 20, 500])
def test_votes_are_those_of_scikit_learn(k):
    known, asked = features(90, apart=1.0), features(40, apart=1.0, seed=1)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    other = KNeighborsClassifier(
        min(k, 90), weights=lambda d: np.exp((1 - d**2 / 2) / 0.07)
    )
    other.fit(unit(known.values), known.labels)
    found = retrieval.vote(asked.values, known.values, known.labels, 3, k)
    expected = other.predict_proba(unit(asked.values))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_a_class_that_no_neighbour_has_gets_no_vote():
    gallery = np.eye(3, dtype=np.float32)
    labels = np.array([0, 1, 1])
    found = retrieval.vote(gallery[:1], gallery, labels, 4, k=1)
    np.testing.assert_array_equal(found, [[1, 0, 0, 0]])


def halves_of(known):
    return np.arange(len(known.labels)) // 3 % 2


def test_classes_that_lie_apart_are_found_and_the_interval_holds_the_score():
    known, asked = features(240), features(90, seed=1)
    found = probe.scores(known, asked, halves_of(known), 3)
    assert found["fitted_on"] == 240 and found["scored_on"] == 90
    linear = found["linear"]
    assert linear["accuracy"] > 0.9 and linear["C"] in probe.PENALTIES
    assert linear["macro_f1"] == pytest.approx(linear["accuracy"], abs=0.05)
    for name in ("linear", "knn"):
        low, high = found[name]["accuracy_interval"]
        assert low <= found[name]["accuracy"] <= high
    assert found["most_frequent_class"] == pytest.approx(1 / 3)
    assert "a linear probe gets" in probe._told(found)


def test_noise_says_nothing():
    rng = np.random.default_rng(0)
    known, asked = (
        features(count, seed=seed)._replace(
            values=rng.normal(size=(count, 6)).astype(np.float32)
        )
        for count, seed in ((240, 0), (300, 1))
    )
    found = probe.scores(known, asked, halves_of(known), 3)
    for name in ("linear", "knn"):
        low, high = found[name]["accuracy_interval"]
        assert low < 1 / 3 + 0.05 and high > 1 / 3 - 0.05


def test_noise_wants_a_strong_penalty():
    """Of features that say little, the chosen C is none of the largest."""
    rng = np.random.default_rng(1)
    known = features(120)._replace(
        values=rng.normal(size=(120, 60)).astype(np.float32)
    )
    scored = [_right(known, penalty) for penalty in (probe.PENALTIES[-1],)]
    chosen = probe.choose_penalty(known, halves_of(known))
    assert _right(known, chosen) >= scored[0]


def _right(known, penalty):
    """Rows that a regression of the other half gets right."""
    right, halves = 0, halves_of(known)
    for half in (0, 1):
        own, other = halves == half, halves != half
        fitted = probe._regression(
            probe.Features(known.values[own], known.labels[own]), penalty
        )
        answers = fitted.predict(known.values[other])
        right += (answers == known.labels[other]).sum()
    return right


def test_a_half_of_one_class_alone_is_no_error():
    known = features(40, classes=2)
    halves = known.labels  # The worst division that there is.
    assert probe.choose_penalty(known, halves) == probe.PENALTIES[0]
