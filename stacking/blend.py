"""The last step: a few meta-learners, one weight each.

All of them give temperature-calibrated probabilities, so that the weights
mean what they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from metrics import classification
from stacking import best_member, calibration, greedy
from stacking.soft_vote import vote

KINDS = ("guarded", "reference", "auto")

# The competition's winning blend.
REFERENCE = {"catboost": 0.4, "lightgbm": 0.3, "soft_vote": 0.3}
FALLBACK = "soft_vote"
# A blend must beat the soft vote in this share of resampled row sets: by one
# standard error, the rule of Breiman et al. 1984.
_CONFIDENCE = 0.84
_DRAWS = 1000


def reference_weights(fitted: Mapping[str, object]) -> dict[str, float]:
    """The reference blend over those of its meta-learners that exist."""
    weights = {k: w for k, w in REFERENCE.items() if k in fitted}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def weighted(
    probabilities: Mapping[Any, np.ndarray], weights: Mapping[str, float]
) -> np.ndarray:
    """The weighted sum of meta-learners' probabilities, float32 [N, C]."""
    terms = [
        probabilities[name] * np.float32(weight)
        for name, weight in weights.items()
    ]
    return sum(terms[1:], start=terms[0])


def guarded_weights(
    out_of_fold: Mapping[str, np.ndarray],
    models: np.ndarray,
    labels: np.ndarray,
) -> dict[str, float]:
    """The reference blend, or the soft vote where one model beats the blend.

    The soft vote has that guard itself, so it is the better of the two.

    Args:
      out_of_fold: meta-learner -> calibrated float32 [N, C].
      models: calibrated probabilities float32 [M, N, C].
      labels: int [N].
    """
    weights = reference_weights(out_of_fold)
    blended, _ = calibration.recalibrated(
        weighted(out_of_fold, weights), labels
    )
    alone = models[best_member.best_member(models, labels)]
    if best_member.is_likelier(alone, blended, labels):
        return {FALLBACK: 1.0}
    return weights


def choose_weights(
    out_of_fold: Mapping[str, np.ndarray],
    labels: np.ndarray,
    folds: np.ndarray,
    seed: int,
) -> dict[str, float]:
    """Chooses meta-learners and weights, or falls back to the soft vote.

    Weights are found by greedy selection on all folds but one and tried on
    the one left out, so the comparison with the soft vote is made on rows
    that no weight has seen. Only where the blend wins by a standard error of
    the rows (bootstrap) is it taken, with weights from all folds.

    Args:
      out_of_fold: meta-learner -> calibrated float32 [N, C]; has "soft_vote".
      labels: int [N].
      folds: int [N].
      seed: of the resamples.
    """
    names = list(out_of_fold)
    stacked = np.stack([out_of_fold[name] for name in names])
    predicted = np.empty(len(labels), np.int64)
    for fold in np.unique(folds):
        kept, held = folds != fold, folds == fold
        weights = greedy.select(stacked[:, kept], labels[kept])
        predicted[held] = vote(stacked[:, held], weights).argmax(axis=1)
    plain = out_of_fold[FALLBACK].argmax(axis=1)
    if not beats(predicted, plain, labels, stacked.shape[2], seed):
        return {FALLBACK: 1.0}
    weights = greedy.select(stacked, labels)
    return {
        name: float(weight)
        for name, weight in zip(names, weights, strict=True)
        if weight > 0
    }


def beats(
    predicted: np.ndarray,
    rival: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    seed: int,
) -> bool:
    """Whether macro-F1 is better by more than the noise of the rows.

    Paired bootstrap: both predictions on the same resampled rows.
    """
    if classification.macro_f1(
        labels, predicted, num_classes
    ) <= classification.macro_f1(labels, rival, num_classes):
        return False
    rng = np.random.default_rng(seed)
    wins = 0
    for _ in range(_DRAWS):
        rows = rng.integers(0, len(labels), len(labels))
        drawn = labels[rows]
        wins += classification.macro_f1(
            drawn, predicted[rows], num_classes
        ) > classification.macro_f1(drawn, rival[rows], num_classes)
    return wins >= _CONFIDENCE * _DRAWS
