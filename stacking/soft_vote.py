"""Soft vote: one weight per model, searched for macro-F1.

Weights lie in [0, 1] and are normalised. Macro-F1 has steps and plateaus, so
the search is Optuna's TPE (Bergstra et al. 2011) and not a gradient.
"""

from __future__ import annotations

import warnings

import numpy as np
import optuna

from stacking.vote_score import VoteScore

# TPE looks at its whole history for each suggestion. Rounds with a short
# memory cost a fifth of one long study and find the same weights.
_ROUND = 125
_CARRIED = 25


def fit_weights(
    probabilities: np.ndarray, labels: np.ndarray, trials: int, seed: int
) -> np.ndarray:
    """Searches the weights whose vote has the best macro-F1.

    Equal weights and each model alone are tried first, so that the result is
    never worse than those on the rows given.

    Args:
      probabilities: float32 [M, N, C], calibrated.
      labels: int [N].
      trials: number of weightings to try.
      seed: of the sampler.

    Returns:
      float64 [M], non-negative, summing to one.
    """
    members = len(probabilities)
    if members == 1:
        return np.ones(1)
    score = VoteScore(probabilities, labels)
    # A model alone is .02 for the rest: exactly 0 would be the edge of TPE's
    # space, and half of all suggestions would be drawn to it.
    starts = [np.full(members, 0.5)]
    starts += list(np.full((members, members), 0.02) + 0.98 * np.eye(members))
    distributions = {
        f"weight_{i}": optuna.distributions.FloatDistribution(0.0, 1.0)
        for i in range(members)
    }
    best: list[optuna.trial.FrozenTrial] = []
    tried = 0
    while tried < trials or tried < len(starts):
        study = _new_study(seed + tried)
        study.add_trials(best)
        if tried == 0:
            for start in starts:
                study.enqueue_trial(
                    dict(zip(distributions, start.tolist(), strict=True))
                )
        wanted = len(starts) if tried == 0 else 0
        for _ in range(min(_ROUND, max(trials - tried, wanted))):
            trial = study.ask(distributions)
            weights = np.array(list(trial.params.values()))
            study.tell(trial, score(weights) if weights.any() else -1.0)
            tried += 1
        best = sorted(study.trials, key=lambda t: -t.value)[:_CARRIED]
    weights = np.array([best[0].params[name] for name in distributions])
    return weights / weights.sum()


def _new_study(seed: int) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            constant_liar=False,
            n_ei_candidates=12,
        )
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            return optuna.create_study(direction="maximize", sampler=sampler)
        finally:
            optuna.logging.set_verbosity(verbosity)


def vote(probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean over members: [M, N, C] and [M] to float32 [N, C]."""
    members, rows, classes = probabilities.shape
    flat = probabilities.reshape(members, rows * classes)
    return (weights.astype(np.float32) @ flat).reshape(rows, classes)
