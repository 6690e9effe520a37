"""Greedy ensemble selection: the baseline that is hard to beat.

Caruana et al. 2004, "Ensemble Selection from Libraries of Models": add, with
replacement, whichever member helps the vote most, and keep the best prefix.
"""

from __future__ import annotations

import numpy as np

from stacking.vote_score import VoteScore

STEPS = 40


def select(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights found by adding one member at a time for macro-F1.

    Args:
      probabilities: float32 [M, N, C], calibrated.
      labels: int [N].

    Returns:
      float64 [M], multiples of 1 / (members taken), summing to one.
    """
    members = len(probabilities)
    score = VoteScore(probabilities, labels)
    counts = np.zeros(members)
    best_counts, best_score = counts, -np.inf
    total = None
    for _ in range(STEPS if members > 1 else 1):
        values = score.with_each(total, counts)
        chosen = int(values.argmax())
        total = score.take(total, chosen)
        counts[chosen] += 1
        if values[chosen] > best_score:
            best_counts, best_score = counts.copy(), values[chosen]
    return best_counts / best_counts.sum()
