"""From probabilities to one class per row.

The most probable class is the best guess for accuracy. Macro-F1 counts a
rare class as much as a common one, and may want it named sooner: the
probabilities are multiplied by one number per class first.
"""

from __future__ import annotations

import numpy as np

from metrics import classification

RULES = ("argmax", "prior", "thresholds")
_POWERS = np.linspace(0, 1, 11)
_FACTORS = np.exp(np.linspace(-1.0, 1.0, 9))
_PASSES = 2


def fit_multipliers(
    rule: str,
    probabilities: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
) -> np.ndarray:
    """One multiplier per class, float32 [C].

    The rule is tuned on all folds but one and tried on the one left out;
    unless it helps there, the multipliers are all one.

    Args:
      rule: "argmax" (all one), "prior" (class prior to a negative power,
        after Saerens et al. 2002) or "thresholds" (one by one, by coordinate
        ascent on macro-F1).
      probabilities: float32 [N, C], out-of-fold.
      labels: int [N].
      folds: int [N].
    """
    classes = probabilities.shape[1]
    ones = np.ones(classes, np.float32)
    if rule == "argmax":
        return ones
    tune = _prior if rule == "prior" else _thresholds
    predicted = np.empty(len(labels), np.int64)
    for fold in np.unique(folds):
        kept, held = folds != fold, folds == fold
        multipliers = tune(probabilities[kept], labels[kept])
        predicted[held] = decide(probabilities[held], multipliers)
    plain = probabilities.argmax(axis=1)
    if classification.macro_f1(
        labels, predicted, classes
    ) <= classification.macro_f1(labels, plain, classes):
        return ones
    return tune(probabilities, labels)


def decide(probabilities: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """The class of each row, int [N]."""
    return (probabilities * multipliers).argmax(axis=1)


def _score(probabilities, multipliers, labels) -> float:
    return classification.macro_f1(
        labels, decide(probabilities, multipliers), probabilities.shape[1]
    )


def _prior(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    classes = probabilities.shape[1]
    # One imaginary row per class: a class may be absent here.
    count = np.bincount(labels, minlength=classes) + 1.0
    options = [
        ((count / count.mean()) ** -power).astype(np.float32)
        for power in _POWERS
    ]
    values = [_score(probabilities, option, labels) for option in options]
    return options[int(np.argmax(values))]


def _thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    multipliers = _prior(probabilities, labels)
    best = _score(probabilities, multipliers, labels)
    for _ in range(_PASSES):
        for column in range(len(multipliers)):
            for factor in _FACTORS:
                trial = multipliers.copy()
                trial[column] *= factor
                value = _score(probabilities, trial, labels)
                if value > best:
                    best, multipliers = value, trial
    return multipliers
