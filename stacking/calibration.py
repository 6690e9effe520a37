"""Temperature scaling: one number per model calibrates its probabilities.

Guo et al. 2017, "On Calibration of Modern Neural Networks": probabilities =
softmax(logits / T). It changes no ranking within a row, but a blend only means
something when 0.8 means the same in each of its parts.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize

from metrics import classification

# Probabilities below this count as this when their logarithm is taken.
TINY = 1e-7


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the log-loss of `logits`.

    The targets keep a share of 1 / (N + 2) for the uniform distribution, as
    Platt (1999) did for two classes: where every row is right, a plain fit
    would run to T = 0 and be ruined by the first mistake.

    Args:
      logits: float [N, C]; log-probabilities will do.
      labels: int [N].

    Returns:
      T in [0.05, 20].
    """
    rows = np.arange(len(labels))
    uniform = 1.0 / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        logp = classification.log_softmax(logits, np.exp(log_temperature))
        true = logp[rows, labels].mean(dtype=np.float64)
        return float(
            -(1 - uniform) * true - uniform * logp.mean(dtype=np.float64)
        )

    bounds = (np.log(0.05), np.log(20.0))
    found = optimize.minimize_scalar(
        loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}
    )
    return float(np.exp(found.x))


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, float32, floored at `TINY`."""
    return np.log(np.maximum(probabilities, TINY), dtype=np.float32)


def weighted_log_loss(
    probabilities: np.ndarray, labels: np.ndarray, row_weights: np.ndarray
) -> float:
    """The log-loss of probabilities [N, C] under row weights of mean one."""
    true = probabilities[np.arange(len(labels)), labels]
    return float(-(row_weights * np.log(np.maximum(true, TINY))).mean())


def calibrated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities float32 [N, C] at another temperature."""
    return np.exp(
        classification.log_softmax(
            log_probabilities(probabilities), temperature
        )
    )


def recalibrated(
    probabilities: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, float]:
    """Probabilities float32 [N, C] at the temperature that suits `labels`.

    Returns:
      These probabilities, and the temperature.
    """
    temperature = fit_temperature(log_probabilities(probabilities), labels)
    return calibrated(probabilities, temperature), temperature
