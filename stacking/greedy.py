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
    flat, true = np.float32(0), np.float32(0)
    for step in range(STEPS if members > 1 else 1):
        values = [
            score.of_sum(*score.added(flat, true, member, step))
            for member in range(members)
        ]
        chosen = int(np.argmax(values))
        flat, true = score.added(flat, true, chosen, step)
        counts[chosen] += 1
        if values[chosen] > best_score:
            best_counts, best_score = counts.copy(), values[chosen]
    return best_counts / best_counts.sum()
