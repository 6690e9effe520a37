"""Meta-features: what the boosters and the regression see of the models.

Per model its log-probabilities, entropy, top probability and the margin
between its two top probabilities; over all models, how far they agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Log-probabilities below this look alike: a class that is ruled out.
_FLOOR = -12.0


def meta_features(log_probs: np.ndarray) -> np.ndarray:
    """One row of features per image.

    Args:
      log_probs: float32 [M, N, C], calibrated log-probabilities.

    Returns:
      float32 [N, M * C + 3 * M + 2], columns as `feature_names` says.
    """
    members, rows, classes = log_probs.shape
    probs = np.exp(log_probs)
    entropy = -(probs * np.maximum(log_probs, _FLOOR)).sum(axis=2)
    top_two = np.partition(probs, classes - 2, axis=2)[:, :, -2:]
    top, margin = top_two[..., 1], top_two[..., 1] - top_two[..., 0]

    votes = np.zeros((rows, classes), np.float32)
    for member in range(members):
        votes[np.arange(rows), probs[member].argmax(axis=1)] += 1
    mean = probs.mean(axis=0)
    mean_entropy = -(mean * np.log(np.maximum(mean, 1e-7))).sum(axis=1)

    columns = members * classes
    features = np.empty((rows, columns + 3 * members + 2), np.float32)
    for member in range(members):
        features[:, member * classes : (member + 1) * classes] = np.maximum(
            log_probs[member], _FLOOR
        )
    features[:, columns : columns + members] = entropy.T
    features[:, columns + members : columns + 2 * members] = top.T
    features[:, columns + 2 * members : columns + 3 * members] = margin.T
    features[:, -2] = votes.max(axis=1) / members
    features[:, -1] = mean_entropy - entropy.mean(axis=0)
    return features


def feature_names(models: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Names of the columns of `meta_features`, in order."""
    return [
        *(f"log p({c}) {model}" for model in models for c in classes),
        *(f"entropy {model}" for model in models),
        *(f"top probability {model}" for model in models),
        *(f"margin {model}" for model in models),
        "agreement",
        "disagreement in nats",
    ]
