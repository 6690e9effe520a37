"""Multinomial logistic regression on the meta-features.

It corrects the models' mean: without evidence (a strong penalty, few rows for
many classes) the answer is the mean, and not that every class is as likely.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize

from metrics import classification

# Strengths of the L2 penalty to choose from, per row of standardised
# features. A few hundred rows want the upper ones.
PENALTIES = (0.3, 0.03, 0.003)
_ITERATIONS = 60


@dataclass(frozen=True)
class Logistic:
    """A fitted regression.

    Attributes:
      mean, scale: float32 [D], of the features.
      weights: float32 [D, P], bias: float32 [P], over the classes present.
      present: int32 [P], the classes it has seen.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    present: np.ndarray

    def predict(self, features: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Probabilities float32 [N, P] over the classes `present`.

        Args:
          features: float32 [N, D].
          start: float32 [N, C], log-probabilities to be corrected.
        """
        logits = (features - self.mean) / self.scale @ self.weights
        logits += self.bias
        logits += start[:, self.present]
        return np.exp(classification.log_softmax(logits))


def fit(
    features: np.ndarray,
    start: np.ndarray,
    labels: np.ndarray,
    penalty: float,
    row_weights: np.ndarray,
) -> Logistic:
    """Fits by L-BFGS from zero weights; the problem is convex.

    Args:
      features: float32 [N, D].
      start: float32 [N, C], log-probabilities to be corrected.
      labels: int [N].
      penalty: strength of the L2 penalty on the weights, not the bias.
      row_weights: float [N], mean one.
    """
    present, targets = np.unique(labels, return_inverse=True)
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = features.std(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.where(scale > 1e-6, scale, 1).astype(np.float32)
    inputs = (features - mean) / scale
    rows, columns = inputs.shape
    classes = len(present)
    one_hot = np.zeros((rows, classes), np.float32)
    one_hot[np.arange(rows), targets] = 1
    offset = start[:, present]
    share = (row_weights / row_weights.sum()).astype(np.float32)[:, None]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = flat.reshape(columns + 1, classes)
        weights = parameters[:-1]
        logits = inputs @ weights.astype(np.float32)
        logits += parameters[-1].astype(np.float32)
        logits += offset
        logits -= logits.max(axis=1, keepdims=True)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        value = -(share * one_hot * log_probs).sum(dtype=np.float64)
        error = share * (np.exp(log_probs) - one_hot)
        gradient = np.empty_like(parameters)
        gradient[:-1] = inputs.T @ error + penalty * weights
        gradient[-1] = error.sum(axis=0)
        return value + 0.5 * penalty * np.sum(weights**2), gradient.ravel()

    found = optimize.minimize(
        loss,
        np.zeros((columns + 1) * classes),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _ITERATIONS, "ftol": 1e-6},
    )
    parameters = found.x.reshape(columns + 1, classes).astype(np.float32)
    return Logistic(
        mean, scale, parameters[:-1], parameters[-1], present.astype(np.int32)
    )
