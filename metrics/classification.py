"""Scores of a classifier, in NumPy alone.

Labels and predictions are integers in [0, C), probabilities float [N, C] with
rows that sum to one. Both the training loop and the stacker score with these
functions, so that their numbers can be compared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Smallest probability that log-loss sees: a model that is sure and wrong
# costs 34 nats, not infinity.
_TINY = 1e-15


def confusion_matrix(labels, predictions, num_classes: int) -> np.ndarray:
    """Counts, int64 [C, C]: row = true class, column = predicted class."""
    labels = np.asarray(labels, np.int64)
    predictions = np.asarray(predictions, np.int64)
    cells = np.bincount(
        labels * num_classes + predictions, minlength=num_classes**2
    )
    return cells.reshape(num_classes, num_classes)


def f1_from_confusion(confusion: np.ndarray) -> np.ndarray:
    """F1 of each class, float64 [..., C], from confusions [..., C, C].

    2 TP / (2 TP + FP + FN). NaN for a class that is neither among the labels
    nor among the predictions; 0 for one that is never right.
    """
    true = confusion.sum(axis=-1)
    predicted = confusion.sum(axis=-2)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    total = (true + predicted).astype(np.float64)
    return np.divide(
        2.0 * hits, total, out=np.full(total.shape, np.nan), where=total > 0
    )


def f1_per_class(labels, predictions, num_classes: int) -> np.ndarray:
    """F1 of each class, float64 [C]; see `f1_from_confusion` for NaN."""
    return f1_from_confusion(confusion_matrix(labels, predictions, num_classes))


def macro_f1(labels, predictions, num_classes: int) -> float:
    """Mean F1 over the classes that occur in labels or predictions.

    The same number as scikit-learn's `f1_score(average="macro",
    zero_division=0)`. 0 when there are no rows.
    """
    f1 = f1_per_class(labels, predictions, num_classes)
    return float(np.nanmean(f1)) if np.isfinite(f1).any() else 0.0


def accuracy(labels, predictions) -> float:
    """Share of rows predicted right; 0 when there are no rows."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    return float(np.mean(labels == predictions)) if labels.size else 0.0


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """log softmax(logits / temperature) over the last axis, float32."""
    scaled = logits.astype(np.float32) / np.float32(temperature)
    scaled -= scaled.max(axis=-1, keepdims=True)
    scaled -= np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    return scaled


def likelihood_loss(true: np.ndarray) -> float:
    """Log-loss in nats from the true classes' probabilities, float [N]."""
    if not len(true):
        return 0.0
    return float(-np.log(np.maximum(true, _TINY), dtype=np.float64).mean())


def log_loss(labels, probabilities) -> float:
    """Mean negative log-likelihood in nats; 0 when there are no rows."""
    labels = np.asarray(labels, np.int64)
    return likelihood_loss(
        np.asarray(probabilities)[np.arange(len(labels)), labels]
    )


def calibration_gap(
    confidence: np.ndarray, right: np.ndarray, num_bins: int = 15
) -> float:
    """ECE from each row's top probability and whether that class is right.

    Args:
      confidence: float [N], in [0, 1].
      right: bool [N].
      num_bins: of equal width.
    """
    if not len(right):
        return 0.0
    confidence = np.asarray(confidence, np.float64)
    bins = np.ceil(confidence * num_bins).astype(int) - 1
    gap = np.bincount(
        np.clip(bins, 0, num_bins - 1),
        weights=np.asarray(right, np.float64) - confidence,
        minlength=num_bins,
    )
    return float(np.abs(gap).sum() / len(right))


def expected_calibration_error(
    labels, probabilities, num_bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins.

    ECE of Guo et al. 2017, "On Calibration of Modern Neural Networks", over
    the top probability. 0 when there are no rows.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if not labels.size:
        return 0.0
    return calibration_gap(
        probabilities.max(axis=1),
        probabilities.argmax(axis=1) == labels,
        num_bins,
    )


def mean_f1(confusion: np.ndarray) -> np.ndarray:
    """Macro-F1 of each confusion matrix in [..., C, C], float64 [...]."""
    f1 = f1_from_confusion(confusion)
    known = np.isfinite(f1)
    total = np.where(known, f1, 0.0).sum(axis=-1)
    return total / np.maximum(known.sum(axis=-1), 1)


def mean_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Accuracy of each confusion matrix in [..., C, C], float64 [...]."""
    hits = np.trace(confusion, axis1=-2, axis2=-1).astype(np.float64)
    return hits / np.maximum(confusion.sum(axis=(-2, -1)), 1)


def bootstrap_interval(
    confusion: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray] = mean_f1,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a score of one confusion matrix.

    Drawing N rows with replacement is drawing the cells of the confusion
    matrix from a multinomial, so the cost does not depend on N.

    Args:
      confusion: int [C, C], counts.
      score: maps [B, C, C] to [B]; `mean_f1` or `mean_accuracy`.
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
