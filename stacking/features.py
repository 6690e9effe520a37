"""Meta-features: what the boosters and the regression see of the models.

Per model its log-probabilities, entropy, top probability and the margin
between its two top probabilities; over all models, how far they agree.
"""

from __future__ import annotations

import numpy as np

# Log-probabilities below this look alike: a class that is ruled out.
_FLOOR = -12.0


def meta_features(log_probs: np.ndarray) -> np.ndarray:
    """One row of features per image.

    Args:
      log_probs: float32 [M, N, C], calibrated log-probabilities.

    Returns:
      float32 [N, M * C + 3 * M + 2]: M * C log-probabilities, M entropies, M
      top probabilities, M margins, agreement, disagreement in nats.
    """
    models, rows, classes = log_probs.shape
    probs = np.exp(log_probs)
    entropy = -(probs * np.maximum(log_probs, _FLOOR)).sum(axis=2)
    top_two = np.partition(probs, classes - 2, axis=2)[:, :, -2:]
    top, margin = top_two[..., 1], top_two[..., 1] - top_two[..., 0]

    votes = np.zeros((rows, classes), np.float32)
    for model in range(models):
        votes[np.arange(rows), probs[model].argmax(axis=1)] += 1
    mean = probs.mean(axis=0)
    mean_entropy = -(mean * np.log(np.maximum(mean, 1e-7))).sum(axis=1)

    columns = models * classes
    features = np.empty((rows, columns + 3 * models + 2), np.float32)
    for model in range(models):
        features[:, model * classes : (model + 1) * classes] = np.maximum(
            log_probs[model], _FLOOR
        )
    features[:, columns : columns + models] = entropy.T
    features[:, columns + models : columns + 2 * models] = top.T
    features[:, columns + 2 * models : columns + 3 * models] = margin.T
    features[:, -2] = votes.max(axis=1) / models
    features[:, -1] = mean_entropy - entropy.mean(axis=0)
    return features
