"""How well two views of an image find each other among those of others."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

# Images that are compared with each other: about a batch.
GROUP = 256


def ntxent(views: Float[np.ndarray, "N 2 D"], temperature: float) -> float:
    """Returns the NT-Xent loss of SimCLR over images with two views each.

    The cross-entropy of a view's partner among all other views, by softmax
    over cosine / temperature, averaged over the 2N views (Chen et al. 2020,
    eq. 1). Of more than `GROUP` images, each is compared with those of its
    group alone, so that the value hardly depends on how many there are: of
    n images it is log(2n - 1) by chance.

    Args:
      views: of unit length.
      temperature: of the softmax.
    """
    if not len(views):
        return 0.0
    groups = np.array_split(views, -(-len(views) // GROUP))
    return sum(_ntxent(group, temperature) for group in groups) / len(views)


def _ntxent(views: np.ndarray, temperature: float) -> float:
    """The sum over images of the mean over their two views."""
    count, _, width = views.shape
    flat = views.reshape(2 * count, width).astype(np.float64)
    logits = flat @ flat.T / temperature
    np.fill_diagonal(logits, -np.inf)  # A view is no candidate to itself.
    own = np.arange(2 * count)
    partner = logits[own, own ^ 1]
    top = logits.max(axis=1)
    others = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float((others - partner).sum() / 2)
