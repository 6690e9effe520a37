"""From two embeddings to one answer: how alike, and whether both are real."""

from __future__ import annotations

import dataclasses

import numpy as np

from metrics import verification


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Log-odds that two pictures show one identity and both are real.

    A logistic regression of the cosine and, where something looks for
    forgeries, of log p(first is real) + log p(second is real).

    Attributes:
      cosine: weight of the cosine, above 0.
      log_real: weight of the other, 0 or above.
      bias: what is added.
    """

    cosine: float = 1.0
    log_real: float = 0.0
    bias: float = 0.0

    def __call__(self, cosine: np.ndarray, log_real: np.ndarray) -> np.ndarray:
        """Returns float64 `[P]`.

        Args:
          cosine: float `[P]`.
          log_real: float `[P]`, or `[0]` where nothing looks for forgeries.
        """
        found = self.cosine * cosine.astype(np.float64) + self.bias
        return found + self.log_real * log_real if len(log_real) else found


def fit(
    cosine: np.ndarray, log_real: np.ndarray, positive: np.ndarray
) -> Similarity:
    """Fits the weights to pairs of known kind.

    More alike must mean more similar, and more real, too: a weight that comes
    out below 0, as a network that has learned nothing may give, is not used.

    Args:
      cosine: float `[P]`.
      log_real: float `[P]`, or `[0]`.
      positive: bool `[P]`.
    """
    if positive.all() or not positive.any():
        return Similarity()
    if len(log_real):
        found = verification.fit_logistic(
            np.stack([cosine, log_real], axis=1), positive
        )
        if found.weights.min() > 0:
            return Similarity(*map(float, found.weights), found.bias)
    found = verification.fit_logistic(cosine[:, None], positive)
    if found.weights[0] > 0:
        return Similarity(float(found.weights[0]), 0.0, found.bias)
    return Similarity()


def cross_fitted(
    cosine: np.ndarray,
    log_real: np.ndarray,
    positive: np.ndarray,
    folds: np.ndarray,
) -> np.ndarray:
    """Returns similarities by weights that saw neither identity of a pair.

    Where nothing is left to fit some of them to, all pairs are fitted.

    Args:
      cosine: float `[P]`.
      log_real: float `[P]`, or `[0]`.
      positive: bool `[P]`.
      folds: int `[P, 2]`, of the first and of the second identity.

    Returns:
      float64 `[P]`.
    """

    def some(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return cosine[rows], log_real[rows] if len(log_real) else log_real

    found = np.zeros(len(cosine))
    for seen, answered in verification.held_out_parts(folds):
        if len(np.unique(positive[seen])) < 2:
            return fit(cosine, log_real, positive)(cosine, log_real)
        how = fit(*some(seen), positive[seen])
        found[answered] = how(*some(answered))
    return found


def log_sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns log(1 / (1 + exp(-x))) without overflow."""
    return -np.logaddexp(0.0, -logits.astype(np.float64))
