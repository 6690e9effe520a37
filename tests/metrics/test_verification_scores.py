"""Scores of pairs beside scikit-learn, SciPy and sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from metrics import verification

# open-metric-learning's example of FNMR@FMR, as distances.
NEAR = [0, 0, 1, 1, 2, 2, 5, 5, 9, 9]
FAR = [3, 3, 4, 4, 6, 6, 7, 7, 8, 8]


def random_pairs(seed: int, count: int = 300, levels: int = 0):
    """Scores, of `levels` different values where it is not 0."""
    rng = np.random.default_rng(seed)
    positive = rng.random(count) < 0.4
    scores = rng.normal(positive * 1.2, 1.0)
    if levels:
        scores = np.round(scores * levels / 6)
    return scores, positive


# Few values, so that ties are common.
pairs = st.lists(
    st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40
).filter(lambda rows: len({label for _, label in rows}) == 2)


def arrays(rows):
    scores, positive = zip(*rows, strict=True)
    return np.array(scores, np.float64), np.array(positive)


@settings(deadline=None)
@given(pairs)
def test_roc_and_auc_are_scikit_learns(rows):
    scores, positive = arrays(rows)
    fmr, tmr, thresholds = metrics.roc_curve(
        positive, scores, drop_intermediate=False
    )
    curve = verification.roc(scores, positive)
    np.testing.assert_allclose(curve.fmr, fmr)
    np.testing.assert_allclose(1 - curve.fnmr, tmr)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    assert verification.auc(scores, positive) == pytest.approx(
        metrics.roc_auc_score(positive, scores)
    )


@settings(deadline=None)
@given(pairs)
def test_equal_error_rate_is_where_the_interpolated_curve_crosses(rows):
    scores, positive = arrays(rows)
    fmr, tmr, _ = metrics.roc_curve(positive, scores, drop_intermediate=False)

    # Along the polygon of the curve, by length: both rates are continuous.
    along = np.append(0, np.cumsum(np.diff(fmr) + np.diff(tmr)))

    def gap(place):
        return 1 - np.interp(place, along, tmr) - np.interp(place, along, fmr)

    place = brentq(gap, 0, 2)
    expected = np.interp(place, along, fmr)
    found = verification.equal_error_rate(scores, positive)
    assert found == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_only_the_order_of_scores_counts(rows, random):
    scores, positive = arrays(rows)
    found = verification.equal_error_rate(scores, positive)
    monotone = verification.equal_error_rate(np.exp(scores) - 7, positive)
    assert monotone == pytest.approx(found)
    random.shuffle(rows)
    assert verification.equal_error_rate(*arrays(rows)) == pytest.approx(found)
    # Both errors change places.
    mirrored = verification.equal_error_rate(-scores, ~positive)
    assert mirrored == pytest.approx(found)


def test_equal_error_rate_by_hand():
    # FNMR - FMR goes from 2/4 - 1/3 to 1/4 - 2/3 between 3 and 2 (ties).
    scores = np.array([5.0, 4, 3, 2, 2, 1, 0])
    positive = np.array([True, False, True, True, False, True, False])
    before, after = 2 / 4 - 1 / 3, 2 / 3 - 1 / 4
    share = before / (before + after)
    rate, threshold = verification.equal_error(scores, positive)
    assert rate == pytest.approx(1 / 3 + share * 1 / 3)
    assert threshold == 2
    perfect = verification.equal_error(np.array([2.0, 1]), positive[:2])
    assert perfect == (0.0, 2.0)


@pytest.mark.parametrize("value", [0.0, -np.inf, 1e300])
def test_constant_scores_are_chance(value):
    positive = np.array([True, False, True, True])
    scores = np.full(4, value)
    assert verification.equal_error_rate(scores, positive) == 0.5
    assert verification.auc(scores, positive) == 0.5
    assert verification.fnmr_at_fmr(scores, positive) == 1.0


def test_what_has_no_answer_is_nan():
    scores = np.array([1.0, 2.0, 3.0])
    for positive in (np.ones(3, bool), np.zeros(3, bool)):
        found = verification.summary(scores, positive)
        assert np.isnan(list(found.values())).all()
    positive = np.array([True, False, True])
    found = verification.summary(np.array([1.0, np.nan, 2.0]), positive)
    assert np.isnan(list(found.values())).all()
    empty = verification.summary(np.zeros(0), np.zeros(0, bool))
    assert np.isnan(list(empty.values())).all()


def test_fnmr_at_fmr_is_open_metric_learnings_example():
    scores = -np.array(NEAR + FAR, np.float64)
    positive = np.arange(20) < 10
    for fmr, expected in ((0.1, 0.4), (0.5, 0.2)):
        found = verification.fnmr_at_fmr(scores, positive, fmr)
        assert found == pytest.approx(expected)
        accepted = verification.tar_at_far(scores, positive, fmr)
        assert accepted == pytest.approx(1 - expected)


def test_scores_by_kind_are_against_all_positives():
    # Tells persons apart, and no forgery.
    kind = np.repeat(np.arange(4), 50).astype(np.int8)
    rng = np.random.default_rng(0)
    scores = rng.random(200) + 2 * (kind != 1)
    found = verification.summary_by_kind(scores, kind)
    assert list(found) == ["other", "one_forged", "both_forged"]
    assert found["other"]["eer"] == 0
    assert 0.3 < found["one_forged"]["eer"] < 0.7
    kept = kind != 1
    assert list(verification.summary_by_kind(scores[kept], kind[kept])) == [
        "one_forged",
        "both_forged",
    ]


def test_interval_draws_identities():
    """Ten copies of each pair of a person are no further evidence."""
    rng = np.random.default_rng(0)
    people = 40
    own = rng.normal(1.0, 1.0, people)  # One positive pair each,
    other = rng.normal(0.0, 1.0, people)  # and one negative, with itself.
    identity = np.arange(people)
    intervals = []
    for copies in (1, 10):
        scores = np.tile(np.concatenate([own, other]), copies)
        positive = np.tile(np.arange(2 * people) < people, copies)
        who = np.tile(np.concatenate([identity, identity]), copies)
        intervals.append(
            verification.bootstrap_interval(scores, positive, who, who)
        )
        rate = verification.equal_error_rate(scores, positive)
        assert intervals[-1][0] < rate < intervals[-1][1]
    np.testing.assert_allclose(*intervals)


def test_interval_of_a_mean_has_the_width_of_its_standard_error():
    rng = np.random.default_rng(1)
    people, each = 60, 8
    who = np.repeat(np.arange(people), each)
    scores = rng.normal(0, 1, people)[who] + rng.normal(0, 0.1, len(who))
    low, high = verification.bootstrap_interval(
        scores,
        np.ones(len(who), bool),
        who,
        who,
        score=lambda scores, positive: scores.mean(),
    )
    error = scores.reshape(people, each).mean(1).std(ddof=1) / np.sqrt(people)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_pairs_of_two_count_by_both():
    # Two people: a pair of both is drawn only where both are.
    first, second = np.array([0, 1, 0]), np.array([0, 1, 1])
    seen = set()

    def count(scores, positive):
        seen.add(tuple(np.bincount(scores.astype(int), minlength=3).tolist()))
        return 0.0

    verification.bootstrap_interval(
        np.array([0.0, 1, 2]),
        np.array([True, True, False]),
        first,
        second,
        score=count,
        draws=50,
    )
    assert seen == {(2, 0, 0), (0, 2, 0), (1, 1, 1)}


def test_interval_without_a_score_is_nan():
    nothing = np.zeros(0)
    found = verification.bootstrap_interval(
        nothing, nothing > 0, nothing.astype(int), nothing.astype(int)
    )
    assert np.isnan(found).all()


@pytest.mark.parametrize("width", [1, 3])
def test_logistic_is_scikit_learns_on_platts_targets(width):
    scores, positive = random_pairs(2)
    rng = np.random.default_rng(0)
    extra = rng.normal(positive[:, None] * 0.5, 50, (len(scores), width - 1))
    features = np.column_stack([scores, extra])
    found = verification.fit_logistic(features, positive)
    n, m = positive.sum(), (~positive).sum()
    # Soft targets as rows of both labels.
    high, low = (n + 1) / (n + 2), 1 / (m + 2)
    target = np.where(positive, high, low)
    model = LogisticRegression(C=1e8, tol=1e-9, max_iter=10_000).fit(
        np.concatenate([features, features]),
        np.repeat([1, 0], len(features)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    np.testing.assert_allclose(found.weights, model.coef_[0], rtol=1e-3)
    assert found.bias == pytest.approx(float(model.intercept_[0]), rel=1e-3)
    np.testing.assert_allclose(
        found.probabilities(features), expit(found.logits(features))
    )
    # At the optimum the mean probability is the mean target.
    mean = found.probabilities(features).mean()
    assert mean == pytest.approx(target.mean(), rel=1e-6)


def test_calibration_leaves_the_order_and_stays_finite():
    scores, positive = random_pairs(3, levels=5)
    fitted = verification.fit_logistic(scores[:, None], positive)
    probabilities = fitted.probabilities(scores[:, None])
    assert verification.equal_error_rate(
        probabilities, positive
    ) == pytest.approx(verification.equal_error_rate(scores, positive))
    separated = np.array([[0.0], [1.0], [1.1], [-0.2]])
    labels = np.array([False, True, True, False])
    fitted = verification.fit_logistic(separated, labels)
    assert np.isfinite([*fitted.weights, fitted.bias]).all()
    constant = verification.fit_logistic(np.ones((4, 1)), labels)
    np.testing.assert_allclose(constant.probabilities(np.ones((4, 1))), 0.5)
    extreme = fitted.probabilities(np.array([[1e6], [-1e6]]))
    assert extreme.tolist() == [1.0, 0.0]
