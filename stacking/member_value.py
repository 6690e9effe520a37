"""What each model adds to the others: leave one out, and shared mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np

from metrics import classification
from stacking.calibration import fit_temperature
from stacking.stratified import stratified_folds

_FOLDS = 5
_DRAWS = 200


def leave_one_out(
    logits: np.ndarray, labels: np.ndarray, seed: int = 0
) -> dict[str, Any]:
    """Scores the mean of all models, and the mean without each of them.

    The mean of temperature-calibrated probabilities, not the blend: that would
    be fitted anew for each model. Temperatures are fitted without the rows that
    they are applied to.

    Args:
      logits: float32 [M, N, C].
      labels: int [N].
      seed: of folds and bootstrap.

    Returns:
      As JSON: `macro_f1` of the mean of all; per model `without`, the macro-F1
      of the mean of the others, and `gain_interval`, the 95 % interval of the
      difference over the same drawn rows; `error_correlation` [M, M], Pearson's
      between the models' errors (None where a model has none, or only errors).
      `without` and `gain_interval` are empty for one model alone.
    """
    members, rows, classes = logits.shape
    folds = stratified_folds(labels, _FOLDS, seed)
    total = np.zeros((rows, classes), np.float32)
    probabilities = np.empty_like(logits)
    for member in range(members):
        for fold in np.unique(folds):
            held, kept = folds == fold, folds != fold
            found = fit_temperature(logits[member, kept], labels[kept])
            scaled = classification.log_softmax(logits[member, held], found)
            probabilities[member, held] = np.exp(scaled)
        total += probabilities[member]
    answers = [total.argmax(axis=1)]
    if members > 1:
        answers += [(total - one).argmax(axis=1) for one in probabilities]
    scores = [classification.macro_f1(labels, a, classes) for a in answers]
    drawn = _bootstrap(labels, np.stack(answers), classes, seed)
    gains = drawn[:, :1] - drawn[:, 1:]
    errors = probabilities.argmax(axis=2) != labels
    return {
        "macro_f1": scores[0],
        "without": scores[1:],
        "gain_interval": np.quantile(gains, [0.025, 0.975], axis=0).T.tolist(),
        "error_correlation": _correlation(errors),
    }


def _bootstrap(
    labels: np.ndarray, answers: np.ndarray, classes: int, seed: int
) -> np.ndarray:
    """Macro-F1 [draws, A] of answers [A, N], over the same drawn rows."""
    rng = np.random.default_rng(seed)
    found = np.empty((_DRAWS, len(answers)))
    for draw in range(_DRAWS):
        rows = rng.integers(len(labels), size=len(labels))
        for number, answer in enumerate(answers):
            found[draw, number] = classification.macro_f1(
                labels[rows], answer[rows], classes
            )
    return found


def _correlation(errors: np.ndarray) -> list[list[float | None]]:
    centred = errors - errors.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    return [
        [
            float(one @ other / (a * b)) if a * b else None
            for other, b in zip(centred, norms, strict=True)
        ]
        for one, a in zip(centred, norms, strict=True)
    ]
