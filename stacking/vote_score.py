"""Macro-F1 of weighted votes, fast enough to be searched over."""

from __future__ import annotations

import numpy as np

from metrics import classification

# Log-loss breaks ties between votes of the same macro-F1. On a few
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
        return self._of_sum(
            weights @ self._flat, weights @ self._true, weights.sum()
        )

    def take(self, total: np.ndarray | None, member: int) -> np.ndarray:
        """The sum [N * C] `total` with one more member in it."""
        own = self._flat[member]
        return own.copy() if total is None else total + own

    def with_each(self, total: np.ndarray | None, counts: np.ndarray):
        """Scores of `total` [N * C], made of `counts` [M], plus each member.

        Returns:
          One score per member, float [M].
        """
        true = counts.astype(np.float32) @ self._true
        members = range(len(self._flat))
        return np.array(
            [
                self._of_sum(
                    self.take(total, member),
                    true + self._true[member],
                    counts.sum() + 1,
                )
                for member in members
            ]
        )

    def _of_sum(self, flat, true, total_weight) -> float:
        vote = flat.reshape(-1, self.num_classes)
        f1 = classification.macro_f1(
            self.labels, vote.argmax(axis=1), self.num_classes
        )
        return f1 - TIE_BREAK * classification.log_loss(true / total_weight)
