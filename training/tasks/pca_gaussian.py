"""The simplest generator of a class: a Gaussian among principal components.

What a network must beat. Each class has a mean of its own; all share the
covariance around it, of which the largest components are kept.
"""

from __future__ import annotations

import numpy as np

COMPONENTS = 64
# Images that the covariance is of, at the most: its time grows as a cube.
LARGEST_FIT = 2_000
# Images that are drawn at a time.
_BLOCK = 1024


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
    known, where = np.unique(labels, return_inverse=True)
    flat = images.reshape(len(images), -1)
    means = np.stack([flat[where == n].mean(0) for n in range(len(known))])
    rng = np.random.default_rng(seed)
    if len(flat) > LARGEST_FIT:
        rows = rng.choice(len(flat), LARGEST_FIT, replace=False)
        flat, where = flat[rows], where[rows]
    around = flat - means[where]
    # Of images, not of pixels: there are fewer.
    values, vectors = np.linalg.eigh(around @ around.T)
    largest = np.argsort(values)[::-1][: min(COMPONENTS, len(flat) - 1)]
    largest = largest[values[largest] > 1e-6 * max(values.max(), 1e-12)]
    # Rows: a component times its standard deviation.
    axes = vectors[:, largest].T @ around / np.sqrt(len(flat))
    draws = rng.standard_normal((len(wanted), len(axes)))
    class_of = np.searchsorted(known, wanted)
    made = np.empty((len(wanted), flat.shape[1]), np.uint8)
    for start in range(0, len(wanted), _BLOCK):
        part = slice(start, start + _BLOCK)
        drawn = means[class_of[part]] + draws[part] @ axes
        made[part] = np.clip(np.rint(drawn), 0, 255)
    return made.reshape(-1, *images.shape[1:])
