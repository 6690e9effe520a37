"""The simplest generator of a class: a Gaussian among principal components.

What a network must beat. Each class has a mean of its own; all share the
covariance around it, of which the largest components are kept.
"""

from __future__ import annotations

import numpy as np

COMPONENTS = 64


def sample(
    images: np.ndarray, labels: np.ndarray, wanted: np.ndarray, seed: int
) -> np.ndarray:
    """Returns images drawn from the Gaussians of their classes.

    Args:
      images: uint8 [N, H, W, 3], to fit.
      labels: int [N], their classes.
      wanted: int [M], a class of `labels` for each image to draw.
      seed: of the draw.

    Returns:
      uint8 [M, H, W, 3].
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    known, where = np.unique(labels, return_inverse=True)
    means = np.stack([flat[labels == label].mean(0) for label in known])
    around = flat - means[where]
    # Through the smaller of the two products, images or pixels.
    values, vectors = np.linalg.eigh(around @ around.T)
    largest = np.argsort(values)[::-1][: min(COMPONENTS, len(flat) - 1)]
    largest = largest[values[largest] > 1e-6 * max(values.max(), 1e-12)]
    # Rows: a component times its standard deviation.
    axes = vectors[:, largest].T @ around / np.sqrt(len(flat))
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((len(wanted), len(axes)))
    made = means[np.searchsorted(known, wanted)] + draws @ axes
    made = np.clip(np.rint(made), 0, 255).astype(np.uint8)
    return made.reshape(-1, *images.shape[1:])
