"""Folds and samples keep the shares of the classes."""

import numpy as np

from stacking.stratified import stratified_folds, subsample


def test_folds_are_stratified_and_as_large_as_each_other():
    labels = np.repeat(np.arange(4), [41, 20, 7, 2])
    folds = stratified_folds(labels, 5, seed=3)
    assert np.ptp(np.bincount(folds)) <= 1
    for label in range(4):
        per_fold = np.bincount(folds[labels == label], minlength=5)
        assert np.ptp(per_fold) <= 1
    np.testing.assert_array_equal(folds, stratified_folds(labels, 5, seed=3))
    assert (folds != stratified_folds(labels, 5, seed=4)).any()


def test_groups_stay_whole_and_classes_follow():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 400).astype(str)
    labels = rng.integers(0, 4, 400)
    folds = stratified_folds(labels, 5, seed=0, groups=groups)
    for group in np.unique(groups):
        assert len(np.unique(folds[groups == group])) == 1, group
    assert np.ptp(np.bincount(folds)) < 20
    assert np.bincount(folds * 4 + labels, minlength=20).min() > 10


def test_a_single_group_is_dealt_by_rows():
    labels = np.arange(20) % 2
    np.testing.assert_array_equal(
        stratified_folds(labels, 5, 0, groups=np.full(20, "all")),
        stratified_folds(labels, 5, 0),
    )


def test_subsample_keeps_shares_and_rare_classes():
    labels = np.repeat(np.arange(3), [9000, 999, 1])
    rows = subsample(labels, 1000, seed=0)
    assert np.all(np.diff(rows) > 0)
    np.testing.assert_allclose(np.bincount(labels[rows]), [900, 100, 1], atol=1)
    assert len(subsample(labels, 10_000, seed=0)) == 10_000
