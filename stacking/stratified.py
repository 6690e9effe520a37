"""Stratified folds and samples of rows, for any number of rows per class."""

from __future__ import annotations

import numpy as np

from core.stratified_split import split_groups


def stratified_folds(
    labels: np.ndarray, k: int, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Deals the rows to `k` folds, class by class.

    Each class is shuffled and dealt like cards, the next class going on where
    the last one stopped: classes spread evenly, folds differ in size by one
    row at most. A class with fewer than `k` rows is simply absent from some
    folds, so no class is too rare. Groups stay whole, which classes then
    follow as far as they can.

    Args:
      labels: int [N].
      k: number of folds; with fewer groups than that, some are empty.
      seed: of the shuffles.
      groups: str [N], rows that are alike, or None. A single group is dealt
        by rows: there is no other to fit on.

    Returns:
      int32 [N], the fold of each row.
    """
    if groups is not None and len(np.unique(groups)) > 1:
        return split_groups(groups, labels, k, seed)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    folds = np.empty(len(labels), np.int32)
    folds[by_class] = np.arange(len(labels)) % k
    return folds


def subsample(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most about `limit` rows, in order, that keep the class shares.

    Every class keeps at least one row.

    Returns:
      int64 [n], sorted row numbers; all of them when N <= `limit`.
    """
    total = len(labels)
    if total <= limit:
        return np.arange(total)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(total)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    first = np.searchsorted(labels[by_class], labels[by_class], side="left")
    count = np.bincount(labels)[labels[by_class]]
    rank = np.arange(total) - first
    keep = rank < np.maximum(count * (limit / total), 1)
    return np.sort(by_class[keep])
