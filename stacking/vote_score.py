"""Macro-F1 of weighted votes, fast enough to be searched over."""

from __future__ import annotations

import numpy as np

from reports import scores

# Votes of the same macro-F1 are told apart by their log-loss. On a few
# hundred rows most weights tie, and the likelier vote is the safer one.
TIE_BREAK = 1e-6


class VoteScore:
    """Scores weighted sums of M members' probabilities on N labelled rows.

    Args:
      probabilities: float32 [M, N, C].
      labels: int [N].
    """

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray):
        members, rows, self.num_classes = probabilities.shape
        self.labels = labels
        self._flat = np.ascontiguousarray(probabilities, np.float32).reshape(
            members, rows * self.num_classes
        )
        self._true = self._flat.reshape(probabilities.shape)[
            :, np.arange(rows), labels
        ]

    def __call__(self, weights: np.ndarray) -> float:
        """Macro-F1, less a trace of log-loss, of the vote `weights` [M]."""
        weights = np.asarray(weights, np.float32)
        weights = weights / weights.sum()
        return self.of_sum(weights @ self._flat, weights @ self._true)

    def of_sum(self, flat: np.ndarray, true: np.ndarray) -> float:
        """The same for a sum [N * C] and its true classes' share [N]."""
        vote = flat.reshape(-1, self.num_classes)
        f1 = scores.macro_f1(self.labels, vote.argmax(axis=1), self.num_classes)
        log_loss = -np.log(np.maximum(true, 1e-15)).mean()
        return f1 - TIE_BREAK * float(log_loss)

    def added(self, flat, true, member: int, count: int):
        """The mean of `count` votes `flat`, `true` and one of `member`.

        Returns:
          (flat [N * C], true [N]) of the larger vote.
        """
        share = np.float32(1.0 / (count + 1))
        return (
            flat + (self._flat[member] - flat) * share,
            true + (self._true[member] - true) * share,
        )
