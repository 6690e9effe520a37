"""What a finished run is worth: a score, and where it comes from.

The one place of this package that knows what tasks export. A run that left
predictions of its validation rows has counts per example, from which its
score can be computed for any choice of rows; any other run has the score of
its best evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from core.errors import UserError
from metrics import classification
from reports import curves
from reports.segmentation import read_counts
from run_folder import layout
from run_folder.history import read_histories
from run_folder.predictions import read_logits

# Of a run folder, what `read` needs.
FILES = (
    str(layout.logits_path(Path(), "val")),
    layout.MASK_COUNTS,
    layout.METRICS,
    layout.CONFIG,
)

# Tasks whose exported predictions are scored here; of others a study knows
# evaluations alone, which do not depend on how a run is exported.
SCORED_EXPORTS = frozenset({"classify", "segment"})

# Sums over examples, float [B, ...], to scores [B] or [B, C].
Score = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Results of single validation examples.

    Attributes:
      ids: str [N], sorted.
      counts: float64 [N, ...].
      score: of sums of counts over examples.
      classes: C names; () without scores of classes.
      class_score: of each class, [B, C], NaN where there is none.
    """

    ids: np.ndarray
    counts: np.ndarray
    score: Score
    classes: tuple[str, ...] = ()
    class_score: Score | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run has come to.

    Attributes:
      metric: name of the score.
      value: of the metric.
      sign: 1 where more is better, -1 where less is.
      examples: that make up the value; None where only that is known.
    """

    metric: str
    value: float
    sign: int
    examples: Examples | None


def read(run: Path, metric: str = "") -> Outcome:
    """Returns the outcome of a finished run.

    Args:
      run: its folder, or one with the `FILES` of it.
      metric: its name in evaluations; '' takes the one that ranks
        checkpoints.

    Raises:
      UserError: the run has no such metric.
    """
    histories = read_histories(run)
    config = layout.read_config(run)
    metric = metric or curves.ranking_metric(histories, config)
    best = [h.best for h in histories if h.best is not None]
    sign = 1 if curves.more_is_better(histories, metric, config) else -1
    if (examples := _examples(run, metric)) is not None:
        sums = examples.counts.sum(axis=0)[None]
        return Outcome(metric, float(examples.score(sums)[0]), sign, examples)
    values = [e.values[metric] for e in best if metric in e.values]
    if not values:
        known = sorted({name for e in best for name in e.values})
        raise UserError(
            f"{run} has no metric {metric!r}; choose one of {', '.join(known)} "
            "with --metric"
        )
    return Outcome(metric, float(np.mean(values)), sign, None)


def _examples(run: Path, metric: str) -> Examples | None:
    if (path := layout.logits_path(run, "val")).exists():
        return _of_logits(path, metric)
    if (run / layout.MASK_COUNTS).exists():
        return _of_masks(run, metric)
    return None


def _of_logits(path: Path, metric: str) -> Examples | None:
    found = read_logits(path)
    order = np.argsort(found.ids)
    known = order[found.labels[order] >= 0]
    ids, labels = found.ids[known], found.labels[known]
    logits = found.logits[known]
    if metric == "val_loss":
        log_p = classification.log_softmax(logits)
        rows = -log_p[np.arange(len(labels)), labels]
        return Examples(ids, _with_ones(rows), _mean)
    one_hot = np.eye(logits.shape[1])
    true, predicted = one_hot[labels], one_hot[logits.argmax(axis=1)]
    counts = np.stack([true, predicted, true * predicted], axis=1)
    return _of_counts(ids, counts, tuple(found.classes.tolist()), metric)


def _of_masks(run: Path, metric: str) -> Examples | None:
    found = read_counts(run)
    order = np.argsort(found.ids)
    ids, confusion = found.ids[order], found.confusion[order]
    counts = np.stack(
        [
            confusion.sum(axis=2),
            confusion.sum(axis=1),
            np.diagonal(confusion, axis1=1, axis2=2),
        ],
        axis=1,
    ).astype(np.float64)
    if metric in ("val_image_dice", "val_image_iou"):
        score = _f1 if metric == "val_image_dice" else _iou
        rows = classification.mean_of_present(score(counts))
        seen = counts.sum(axis=(1, 2)) > 0
        return Examples(ids[seen], _with_ones(rows[seen]), _mean)
    return _of_counts(ids, counts, tuple(map(str, found.classes)), metric)


def _of_counts(
    ids: np.ndarray, counts: np.ndarray, classes: tuple[str, ...], metric: str
) -> Examples | None:
    """Of counts [N, 3, C]: true, predicted and both."""
    if metric not in _SCORES:
        return None
    score, class_score = _SCORES[metric]
    return Examples(ids, counts, score, classes, class_score)


def _f1(sums: np.ndarray) -> np.ndarray:
    return classification.f1_from_counts(*np.moveaxis(sums, -2, 0))


def _iou(sums: np.ndarray) -> np.ndarray:
    dice = _f1(sums)
    return dice / (2 - dice)


def _recall(sums: np.ndarray) -> np.ndarray:
    true, _, hits = np.moveaxis(sums, -2, 0)
    return np.divide(
        hits, true, out=np.full(np.shape(true), np.nan), where=true > 0
    )


def _accuracy(sums: np.ndarray) -> np.ndarray:
    true, _, hits = np.moveaxis(sums, -2, 0)
    return hits.sum(axis=-1) / np.maximum(true.sum(axis=-1), 1)


def _mean_f1(sums: np.ndarray) -> np.ndarray:
    return classification.mean_of_present(_f1(sums))


def _mean_iou(sums: np.ndarray) -> np.ndarray:
    return classification.mean_of_present(_iou(sums))


# The score, and what stands for it by class.
_SCORES: dict[str, tuple[Score, Score]] = {
    "val_macro_f1": (_mean_f1, _f1),
    "val_accuracy": (_accuracy, _recall),
    "val_mean_dice": (_mean_f1, _f1),
    "val_mean_iou": (_mean_iou, _iou),
    "val_pixel_accuracy": (_accuracy, _recall),
}


def _with_ones(rows: np.ndarray) -> np.ndarray:
    return np.stack([rows, np.ones(len(rows))], axis=1).astype(np.float64)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / np.maximum(sums[..., 1], 1e-9)
