"""Trees that look at one model alone give it all of the importance."""

import catboost
import lightgbm
import numpy as np
import pytest

from stacking.boosters import Fit
from stacking.features import meta_features
from stacking.importances import AGREEMENT, importance_of_models

NAMES = ("coin", "expert")


@pytest.fixture(scope="module")
def rows():
    """Features of a model that guesses and one that knows; the labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 3
    coin = rng.normal(size=(400, 3))
    expert = 3 * np.eye(3)[labels] + rng.normal(size=(400, 3)) / 9
    logits = np.stack([coin, expert]).astype(np.float32)
    logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))
    return meta_features(logits), labels


def of_lightgbm(features, labels):
    settings = {"objective": "multiclass", "num_class": 3, "verbosity": -1}
    data = lightgbm.Dataset(features, labels)
    trees = lightgbm.train(settings | {"num_threads": 1}, data, 5)
    return Fit("lightgbm", trees.model_to_string().encode(), np.arange(3))


def of_catboost(features, labels):
    trees = catboost.CatBoostClassifier(
        iterations=5, verbose=0, thread_count=1, allow_writing_files=False
    ).fit(features, labels)
    return Fit("catboost", trees._serialize_model(), np.arange(3))


@pytest.mark.parametrize("make", [of_lightgbm, of_catboost])
def test_the_model_that_knows_is_looked_at(rows, make):
    found = importance_of_models([make(*rows)], NAMES, 3)
    assert list(found) == [*NAMES, AGREEMENT]
    assert found["expert"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


def test_trees_that_never_split_look_at_nothing():
    empty = Fit("catboost", b"", np.arange(1))
    assert importance_of_models([empty], NAMES, 3) == {}
