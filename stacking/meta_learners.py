"""Meta-learners: each turns the base models' outputs into one answer.

Every one is fitted together with its out-of-fold rows: probabilities for each
row from a fit that left the row's inner fold out. By these the
meta-learner is calibrated and chosen, never by rows it was fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics import classification
from stacking import (
    best_member,
    boosters,
    calibration,
    greedy,
    logistic,
    soft_vote,
)
from stacking.features import meta_features
from stacking.stratified import subsample

# Multiply-adds that one step of the regression may take.
_REGRESSION_WORK = 300_000_000


@dataclass(frozen=True)
class Inputs:
    """What the meta-learners see of some rows.

    Attributes:
      probabilities: float32 [M, N, C], calibrated.
      base: float32 [N, C], their mean.
      features: float32 [N, D].
    """

    probabilities: np.ndarray
    base: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class Vote:
    """A meta-learner that weighs the models, float64 [M]."""

    weights: np.ndarray

    def predict(self, inputs: Inputs, threads: int) -> np.ndarray:
        """Probabilities float32 [N, C]."""
        del threads
        return soft_vote.vote(inputs.probabilities, self.weights)


@dataclass(frozen=True)
class Regression:
    """A meta-learner that is a logistic regression on the features."""

    model: logistic.Logistic

    def predict(self, inputs: Inputs, threads: int) -> np.ndarray:
        """Probabilities float32 [N, C]."""
        del threads
        start = calibration.log_probabilities(inputs.base)
        found = self.model.predict(inputs.features, start)
        return boosters.fill_absent_classes(
            found, self.model.present, inputs.base
        )


@dataclass(frozen=True)
class Boosted:
    """A meta-learner that is a booster on the features."""

    model: boosters.Booster

    def predict(self, inputs: Inputs, threads: int) -> np.ndarray:
        """Probabilities float32 [N, C]."""
        return self.model.predict(inputs.features, inputs.base, threads)


MetaLearner = Vote | Regression | Boosted


def make_inputs(logits: np.ndarray, temperatures: np.ndarray) -> Inputs:
    """Calibrates logits float32 [M, N, C] and derives the features."""
    log_probs = np.empty(logits.shape, np.float32)
    for model, temperature in enumerate(temperatures):
        log_probs[model] = classification.log_softmax(
            logits[model], temperature
        )
    probabilities = np.exp(log_probs)
    return Inputs(
        probabilities, probabilities.mean(axis=0), meta_features(log_probs)
    )


def fit_soft_vote(
    inputs: Inputs,
    labels: np.ndarray,
    folds: np.ndarray,
    trials: int,
    seed: int,
) -> tuple[Vote, np.ndarray]:
    """The searched vote, and its out-of-fold rows float32 [N, C].

    Each inner fold's weights get their share of the trials. The best model
    gets all weight where it alone is likelier than the vote on these rows.
    """

    def search(probabilities, labels, share):
        count = max(1, round(trials * share))
        return soft_vote.fit_weights(probabilities, labels, count, seed)

    def alone(probabilities, labels, share):
        del share
        best = best_member.best_member(probabilities, labels)
        return np.eye(len(probabilities))[best]

    searched, found = _fit_vote(inputs, labels, folds, search)
    single, alone_found = _fit_vote(inputs, labels, folds, alone)
    calibrated, _ = calibration.recalibrated(found, labels)
    if best_member.is_likelier(alone_found, calibrated, labels):
        return single, alone_found
    return searched, found


def fit_greedy_vote(
    inputs: Inputs, labels: np.ndarray, folds: np.ndarray
) -> tuple[Vote, np.ndarray]:
    """The greedily chosen vote, and its out-of-fold rows float32 [N, C]."""

    def select(probabilities, labels, share):
        del share
        return greedy.select(probabilities, labels)

    return _fit_vote(inputs, labels, folds, select)


def _fit_vote(inputs, labels, folds, fit) -> tuple[Vote, np.ndarray]:
    """A vote's weights from all rows, and its out-of-fold probabilities.

    `fit` takes probabilities, labels and the share of the trials to spend.
    """
    out_of_fold = np.zeros_like(inputs.base)
    inner = np.unique(folds)
    for fold in inner:
        kept, held = folds != fold, folds == fold
        weights = fit(
            inputs.probabilities[:, kept], labels[kept], 1 / len(inner)
        )
        out_of_fold[held] = soft_vote.vote(
            inputs.probabilities[:, held], weights
        )
    return Vote(fit(inputs.probabilities, labels, 1.0)), out_of_fold


def fit_regression(
    inputs: Inputs,
    labels: np.ndarray,
    folds: np.ndarray,
    row_weights: np.ndarray,
    seed: int,
) -> tuple[Regression, np.ndarray]:
    """The regression, and its out-of-fold rows float32 [N, C].

    With the penalty of the lowest out-of-fold log-loss. On very many rows,
    columns and classes it is fitted on a sample of the rows.
    """
    work = inputs.features.shape[1] * inputs.base.shape[1]
    used = np.zeros(len(labels), bool)
    used[subsample(labels, _REGRESSION_WORK // work, seed)] = True

    start = calibration.log_probabilities(inputs.base)

    def fit(rows, penalty):
        return Regression(
            logistic.fit(
                inputs.features[rows],
                start[rows],
                labels[rows],
                penalty,
                row_weights[rows],
            )
        )

    best_loss, best_penalty, best_oof = np.inf, 0.0, None
    for penalty in logistic.PENALTIES:
        out_of_fold = np.zeros_like(inputs.base)
        for fold in np.unique(folds):
            held = folds == fold
            out_of_fold[held] = fit(used & ~held, penalty).predict(
                _rows(inputs, held), 1
            )
        loss = calibration.weighted_log_loss(out_of_fold, labels, row_weights)
        if loss >= best_loss:
            break  # From strong to weak: it only gets worse from here.
        best_loss, best_penalty, best_oof = loss, penalty, out_of_fold
    return fit(used, best_penalty), best_oof


def _rows(inputs: Inputs, rows: np.ndarray) -> Inputs:
    return Inputs(
        inputs.probabilities[:, rows], inputs.base[rows], inputs.features[rows]
    )
