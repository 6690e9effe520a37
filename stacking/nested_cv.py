"""Nested cross-validation: the stack, refitted without the rows it scores.

The rows are dealt to five outer folds, those of one group together. Each fold
is predicted by a stack whose every part (temperatures, vote weights, penalty,
boosters, blend, decision) was fitted on the other four.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from metrics import classification
from stacking.stack_model import BLEND, Settings, StackModel, fit_stack_model
from stacking.stratified import stratified_folds

OUTER_FOLDS = 5


@dataclass(frozen=True)
class Scored:
    """What scoring needs of the predictions for N labelled rows.

    Attributes:
      predicted: int32 [N], the class decided for.
      confidence: float32 [N], the probability of the likeliest class.
      top: int32 [N], that class.
      true: float32 [N], the probability of the true class.
    """

    predicted: np.ndarray
    confidence: np.ndarray
    top: np.ndarray
    true: np.ndarray

    @classmethod
    def empty(cls, rows: int) -> Scored:
        """Room for so many rows."""
        return cls(
            np.zeros(rows, np.int32),
            np.zeros(rows, np.float32),
            np.zeros(rows, np.int32),
            np.zeros(rows, np.float32),
        )

    def fill(self, rows, probabilities, predicted, labels) -> None:
        """Writes the predictions of `rows` in place."""
        self.predicted[rows] = predicted
        self.confidence[rows] = probabilities.max(axis=1)
        self.top[rows] = probabilities.argmax(axis=1)
        self.true[rows] = probabilities[np.arange(len(labels)), labels]

    def summary(self, labels: np.ndarray, num_classes: int) -> dict[str, Any]:
        """Every score of these predictions, ready for JSON."""
        confusion = classification.confusion_matrix(
            labels, self.predicted, num_classes
        )
        accuracy = classification.accuracy_from_confusion
        macro_f1 = classification.macro_f1_from_confusion
        interval = classification.bootstrap_interval
        f1 = classification.f1_from_confusion(confusion)
        return {
            "macro_f1": float(macro_f1(confusion)),
            "macro_f1_interval": interval(confusion, macro_f1),
            "accuracy": float(accuracy(confusion)),
            "accuracy_interval": interval(confusion, accuracy),
            "log_loss": classification.log_loss(self.true),
            "calibration_error": classification.expected_calibration_error(
                self.confidence, self.top == labels
            ),
            "f1_per_class": [
                None if np.isnan(value) else float(value) for value in f1
            ],
        }


def predict_scored(
    stack: StackModel,
    logits: np.ndarray,
    labels: np.ndarray,
    threads: int,
    into: dict[Any, Scored] | None = None,
    rows: np.ndarray | None = None,
) -> dict[Any, Scored]:
    """Predicts labelled rows with every part of the stack.

    Args:
      stack: fitted.
      logits: float32 [M, n, C].
      labels: int [n].
      threads: at most so many.
      into: where to write, for the rows numbered `rows` int [n] of a larger
        whole; a new one by default.
      rows: see `into`.

    Returns:
      Model number, meta-learner name or "blend" -> its `Scored`.
    """
    into = {} if into is None else into
    rows = np.arange(len(labels)) if rows is None else rows
    total = len(rows)
    for chunk, found in stack.predict(logits, threads):
        for name, probabilities in found.items():
            predicted = (
                stack.decide(probabilities)
                if name == BLEND
                else probabilities.argmax(axis=1)
            )
            if name not in into:
                into[name] = Scored.empty(total)
            into[name].fill(
                rows[chunk], probabilities, predicted, labels[chunk]
            )
    return into


def out_of_fold(
    logits: np.ndarray,
    labels: np.ndarray,
    settings: Settings,
    *,
    groups: np.ndarray | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> dict[Any, Scored]:
    """Predicts every row by a stack that was fitted without it.

    Args:
      logits: float32 [M, N, C].
      labels: int [N].
      settings: of the stack.
      groups: str [N]; a row's stack was fitted without its group, too.
      progress: called with a few words before each slow step.

    Returns:
      The predictions, as `predict_scored`.
    """
    folds = stratified_folds(labels, OUTER_FOLDS, settings.seed, groups)
    found: dict[Any, Scored] = {}
    for fold in np.unique(folds):
        kept = np.flatnonzero(folds != fold)
        held = np.flatnonzero(folds == fold)
        name = f"fold {fold + 1}/{OUTER_FOLDS}"
        stack = fit_stack_model(
            logits[:, kept],
            labels[kept],
            settings,
            groups=None if groups is None else groups[kept],
            progress=lambda step, name=name: progress(f"{name}: {step}"),
        )
        if not found:
            keys = [*range(len(logits)), *stack.meta_learners, BLEND]
            found = {key: Scored.empty(len(labels)) for key in keys}
        predict_scored(
            stack,
            logits[:, held],
            labels[held],
            settings.threads,
            found,
            held,
        )
    return found
