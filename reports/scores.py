"""Scores of a run with their intervals, from whatever it has predicted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError
from metrics import classification, segmentation, verification
from reports import curves
from reports.probe import KINDS, read_probe
from reports.segmentation import read_counts
from reports.verification import error_interval
from run_folder import layout
from run_folder.history import read_histories
from run_folder.pair_files import read_pair_scores
from run_folder.predictions import read_logits


class Score(NamedTuple):
    """A score of the validation rows.

    Attributes:
      value: of all rows.
      low, high: its 95 % interval; None where only the mean is known.
      sign: 1 where more is better, -1 where less is.
    """

    value: float
    low: float | None = None
    high: float | None = None
    sign: int = 1

    @property
    def merit(self) -> float:
        """More is better."""
        return self.sign * self.value

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.value:.4f}"
        return f"{self.value:.4f} ({self.low:.3f} to {self.high:.3f})"


def logits_scores(run: Path) -> dict[str, Score]:
    """Returns macro-F1 and accuracy; {} for a run without logits."""
    path = layout.logits_path(run, "val")
    if not path.exists():
        return {}
    logits = read_logits(path)
    known = logits.labels >= 0
    labels = logits.labels[known]
    predicted = logits.logits[known].argmax(axis=1)
    confusion = classification.confusion_matrix(
        labels, predicted, len(logits.classes)
    )
    found = {}
    for name, score in (
        ("macro-F1", classification.macro_f1_from_confusion),
        ("accuracy", classification.accuracy_from_confusion),
    ):
        interval = classification.bootstrap_interval(confusion, score)
        found[name] = Score(float(score(confusion)), *interval)
    return found


def mask_scores(run: Path) -> dict[str, Score]:
    """Returns mDice and mIoU; {} for a run without masks."""
    counts = read_counts(run)
    if counts is None:
        return {}
    total, found = counts.confusion.sum(axis=0), {}
    for name, score in (
        ("mDice", segmentation.mean_dice_from_confusion),
        ("mIoU", segmentation.mean_iou_from_confusion),
    ):
        interval = segmentation.bootstrap_interval(counts.confusion, score)
        found[name] = Score(float(score(total)), *interval)
    return found


def probe_scores(run: Path) -> dict[str, Score]:
    """Returns macro-F1 of the probes; {} for a run without them."""
    found = read_probe(run)
    if found is None:
        return {}
    return {
        f"{title} macro-F1": Score(
            found[name]["macro_f1"], *found[name]["macro_f1_interval"]
        )
        for name, title in KINDS.items()
    }


def pair_scores(run: Path) -> dict[str, Score]:
    """Returns the equal error rate and AUC; {} for a run without pairs."""
    path = layout.pairs_path(run, "val")
    if not path.exists():
        return {}
    pairs = read_pair_scores(path)
    positive = pairs.kind == verification.POSITIVE
    found = verification.summary(pairs.similarity, positive)
    interval = error_interval(pairs)
    return {
        curves.title("eer"): Score(found["eer"], *interval, sign=-1),
        curves.title("auc"): Score(found["auc"]),
    }


# One for each kind of predictions; each gives {} where a run has none of it.
READERS: tuple[Callable[[Path], dict[str, Score]], ...] = (
    logits_scores,
    mask_scores,
    probe_scores,
    pair_scores,
)


def read_scores(run: Path) -> tuple[dict[str, Score], str]:
    """Returns the scores of a run, and what is wrong with them, or "".

    A run that has predicted nothing has the score that ranks its checkpoints,
    from its evaluations.

    Args:
      run: the run folder.
    """
    found: dict[str, Score] = {}
    for reader in READERS:
        try:
            found |= reader(run)
        except UserError as error:
            return {}, str(error)
    if found:
        return found, ""
    histories = read_histories(run)
    config = layout.read_config(run)
    metric = curves.ranking_metric(histories, config)
    values = [value for _, value in curves.bests(histories, metric)]
    if not values:
        return {}, ""
    sign = 1 if curves.more_is_better(histories, metric, config) else -1
    score = Score(sum(values) / len(values), sign=sign)
    return {curves.title(metric): score}, "scores while training"
