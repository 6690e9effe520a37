"""Scores of a classifier.

Labels and predictions are integers in [0, C), confusion matrices have true
classes as rows and predictions as columns. Training and stacking score with
these functions, so that their numbers can be compared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64, Integer, Real

# Smallest probability that log-loss sees: a model that is sure and wrong
# costs 34 nats, not infinity.
_TINY = 1e-15


def confusion_matrix(
    labels: Integer[np.ndarray, " N"],
    predictions: Integer[np.ndarray, " N"],
    num_classes: int,
) -> Int64[np.ndarray, "C C"]:
    """Returns counts: row = true class, column = predicted class."""
    cells = np.bincount(
        labels.astype(np.int64) * num_classes + predictions,
        minlength=num_classes**2,
    )
    return cells.reshape(num_classes, num_classes)


def f1_from_confusion(
    confusion: Real[np.ndarray, "*batch C C"],
) -> Float64[np.ndarray, "*batch C"]:
    """Returns F1 of each class: 2 TP / (2 TP + FP + FN).

    NaN for a class that is neither among the labels nor among the
    predictions; 0 for one that is never right.
    """
    true = confusion.sum(axis=-1)
    predicted = confusion.sum(axis=-2)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return f1_from_counts(true, predicted, hits)


def f1_from_counts(
    true: Real[np.ndarray, "*batch C"],
    predicted: Real[np.ndarray, "*batch C"],
    hits: Real[np.ndarray, "*batch C"],
) -> Float64[np.ndarray, "*batch C"]:
    """Returns F1 of each class, as `f1_from_confusion`.

    Args:
      true: rows of the class.
      predicted: rows that are taken for it.
      hits: rows that are both.
    """
    total = (true + predicted).astype(np.float64)
    return np.divide(
        2.0 * hits, total, out=np.full(total.shape, np.nan), where=total > 0
    )


def macro_f1_from_confusion(
    confusion: Real[np.ndarray, "*batch C C"],
) -> Float64[np.ndarray, "*batch"]:
    """Returns the mean F1 over the classes that occur; 0 without rows."""
    return mean_of_present(f1_from_confusion(confusion))


def mean_of_present(
    values: Float[np.ndarray, "*batch C"],
) -> Float64[np.ndarray, "*batch"]:
    """Returns the mean over the last axis without NaN; 0 where all are."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.asarray(total / np.maximum(known.sum(axis=-1), 1))


def accuracy_from_confusion(
    confusion: Real[np.ndarray, "*batch C C"],
) -> Float64[np.ndarray, "*batch"]:
    """Returns the share of rows predicted right; 0 without rows."""
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    rows = confusion.sum(axis=(-2, -1))
    return np.asarray(hits / np.maximum(rows, 1), np.float64)


def macro_f1(
    labels: Int[np.ndarray, " N"],
    predictions: Int[np.ndarray, " N"],
    num_classes: int,
) -> float:
    """Returns the mean F1 over the classes in labels or predictions.

    The same number as scikit-learn's `f1_score(average="macro",
    zero_division=0)`. 0 when there are no rows.
    """
    confusion = confusion_matrix(labels, predictions, num_classes)
    return float(macro_f1_from_confusion(confusion))


def accuracy(
    labels: Int[np.ndarray, " N"], predictions: Int[np.ndarray, " N"]
) -> float:
    """Returns the share of rows predicted right; 0 when there are no rows."""
    return float(np.mean(labels == predictions)) if labels.size else 0.0


def log_softmax(
    logits: Float[np.ndarray, "*batch C"], temperature: float = 1.0
) -> Float32[np.ndarray, "*batch C"]:
    """Returns log softmax(logits / temperature) over the last axis."""
    scaled = logits.astype(np.float32) / np.float32(temperature)
    scaled -= scaled.max(axis=-1, keepdims=True)
    scaled -= np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    return scaled


def log_loss(true: Float[np.ndarray, " N"]) -> float:
    """Returns the mean negative log-likelihood in nats; 0 without rows.

    Args:
      true: probability of each row's true class.
    """
    if not len(true):
        return 0.0
    return float(-np.log(np.maximum(true, _TINY), dtype=np.float64).mean())


def expected_calibration_error(
    confidence: Float[np.ndarray, " N"],
    correct: Bool[np.ndarray, " N"],
    num_bins: int = 15,
) -> float:
    """Returns the mean gap between confidence and accuracy; 0 without rows.

    ECE of Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Args:
      confidence: each row's top probability.
      correct: whether that class is the true one.
      num_bins: of equal width.
    """
    if not len(correct):
        return 0.0
    confidence = confidence.astype(np.float64)
    bins = np.ceil(confidence * num_bins).astype(int) - 1
    gap = np.bincount(
        np.clip(bins, 0, num_bins - 1),
        weights=correct.astype(np.float64) - confidence,
        minlength=num_bins,
    )
    return float(np.abs(gap).sum() / len(correct))


def bootstrap_interval(
    confusion: Int[np.ndarray, "C C"],
    score: Callable[[np.ndarray], np.ndarray] = macro_f1_from_confusion,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a score.

    Drawing N rows with replacement is drawing the cells of the confusion
    matrix from a multinomial, so the cost does not depend on N.

    Args:
      confusion: counts.
      score: maps [B, C, C] to [B], such as `accuracy_from_confusion`.
      level: share of the draws inside the interval.
      draws: number of resamples, B.
      seed: of the resampling.

    Returns:
      (low, high); (0, 0) when there are no rows.
    """
    rows = int(confusion.sum())
    if rows == 0:
        return 0.0, 0.0
    rng = np.random.default_rng(seed)
    filled = np.flatnonzero(confusion)
    share = confusion.ravel()[filled] / rows
    values = []
    # A few draws at a time: 1000 matrices of 1000 classes are 8 GB.
    block = max(1, min(draws, 4_000_000 // confusion.size))
    for start in range(0, draws, block):
        count = min(block, draws - start)
        cells = np.zeros((count, confusion.size), np.int64)
        cells[:, filled] = rng.multinomial(rows, share, size=count)
        values.append(score(cells.reshape(count, *confusion.shape)))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(values), [tail, 1 - tail])
    return float(low), float(high)
