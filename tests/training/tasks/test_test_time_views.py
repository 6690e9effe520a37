"""The choice of test-time views, and that no row takes part in its own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.common import AUTO
from core.errors import UserError
from core.stratified_split import split
from metrics.classification import macro_f1
from training.loop.predict import Prediction
from training.tasks.test_time_views import average

VIEWS = ("center", "center_flip", "crop_flip")
PRIOR = np.full(4, 0.25)


def noise(rows, seed):
    """Logits of three views that know nothing, labels and halves."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 3, 4)).astype(np.float32)
    labels = rng.integers(0, 4, rows)
    ids = [f"{i}" for i in range(rows)]
    return logits, labels, split(ids, labels, 2, seed=1)


def averaged(logits, labels, halves, tta=(AUTO, *VIEWS)):
    bad = np.zeros(len(logits), bool)
    return average(Prediction(logits, bad), PRIOR, labels, halves, tta)


def score(logits, labels):
    return macro_f1(labels, logits.argmax(1), 4)


def test_named_views_are_averaged_all():
    logits, labels, halves = noise(40, 0)
    found = averaged(logits, labels, halves, VIEWS)
    assert found.views == VIEWS
    np.testing.assert_allclose(found.logits, logits.mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("lower", [True, False])
def test_views_that_lower_the_score_are_told_with_what_drops_them(lower):
    logits, labels, halves = noise(40, 0)
    right = np.eye(4, dtype=np.float32)[labels]
    logits[:, 0] += 3 * right
    logits[:, 1:] += (-9 if lower else 9) * right[:, None]
    told = averaged(logits, labels, halves, VIEWS).told
    assert ("--config.eval.tta=auto --export" in told) == lower


@pytest.mark.parametrize("good", [1, 2, 3])
def test_the_best_number_of_views_is_found(good):
    logits, labels, halves = noise(200, 0)
    right = np.eye(4, dtype=np.float32)[labels]
    logits[:, :good] += right[:, None]
    logits[:, good:] -= 3 * right[:, None]
    found = averaged(logits, labels, halves)
    assert found.views == VIEWS[:good]
    mean = logits[:, :good].mean(axis=1)
    np.testing.assert_allclose(found.logits, mean, rtol=1e-6)
    assert f"{score(mean, labels):.4f}" in found.told


def test_of_equal_views_the_fewest_are_taken():
    logits, labels, halves = noise(40, 0)
    logits[:] = logits[:, :1]
    assert averaged(logits, labels, halves).views == ("center",)


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(0, 1))
def test_no_label_bears_on_the_views_of_its_own_half(seed, rows, half):
    logits, labels, halves = noise(rows, seed)
    before = averaged(logits, labels, halves).logits
    own = halves == half
    changed = np.where(own, np.roll(labels, 1), labels)
    after = averaged(logits, changed, halves).logits
    np.testing.assert_array_equal(after[own], before[own])


def test_choosing_does_not_raise_the_score_of_models_that_know_nothing():
    """The best of three scores on the rows it was chosen on does."""
    honest, naive, one = [], [], []
    for seed in range(300):
        logits, labels, halves = noise(60, seed)
        found = averaged(logits, labels, halves)
        sets = [logits[:, : n + 1].mean(axis=1) for n in range(3)]
        scores = [score(mean, labels) for mean in sets]
        honest.append(score(found.logits, labels))
        naive.append(max(scores))
        one.append(scores[0])
    # Standard error of a mean: .0033.
    assert np.mean(honest) == pytest.approx(np.mean(one), abs=0.01)
    assert np.mean(naive) > np.mean(one) + 0.02


def test_one_row_is_enough():
    found = averaged(*noise(1, 0))
    assert np.isfinite(found.logits).all()


def test_auto_alone_names_no_view():
    with pytest.raises(UserError, match="names no view"):
        averaged(*noise(4, 0), tta=(AUTO,))
