"""Weights of several segmentations, found on a sample of pixels.

mDice over a data set is the macro-F1 of its pixels, so the weights are searched
as those of the classifiers' soft vote. A sample of the pixels does: each image
gives the same share of its own, so that classes keep theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core.class_colours import IGNORE
from stacking.mask_members import Picture
from stacking.soft_vote import fit_weights

# Of all images together.
SAMPLE_PIXELS = 1 << 18

OUTER_FOLDS = 5


class Sample(NamedTuple):
    """Pixels of one image.

    Attributes:
      probabilities: float16 `[M, n, C]`, of the members.
      labels: uint8 `[n]`.
    """

    probabilities: np.ndarray
    labels: np.ndarray


def draw(picture: Picture, share: float, seed: Sequence[int]) -> Sample:
    """Draws pixels of an image that have a class.

    Args:
      picture: the image.
      share: of these pixels that is drawn, at least one.
      seed: of the draw.
    """
    counted = np.flatnonzero(picture.labels != IGNORE)
    number = min(len(counted), max(1, round(share * len(counted))))
    rng = np.random.default_rng(list(seed))
    chosen = np.sort(rng.choice(counted, number, replace=False, shuffle=False))
    parts, start = [], 0
    for stripe in picture.stripes():
        flat = stripe.reshape(len(stripe), -1, stripe.shape[-1])
        end = start + flat.shape[1]
        inside = chosen[(chosen >= start) & (chosen < end)] - start
        parts.append(flat[:, inside].astype(np.float16))
        start = end
    labels = picture.labels.ravel()[chosen]
    return Sample(np.concatenate(parts, axis=1), labels)


def search(
    samples: Sequence[Sample], trials: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Searches weights for all images, and for each without those of its fold.

    Args:
      samples: of N images.
      trials: weightings to try, in each search.
      seed: of the searches and of the folds.

    Returns:
      Weights float64 `[M]`; those of each fold `[F, M]`, found on the images
      outside it; and the fold of each image, int `[N]`.
    """
    folds = np.arange(len(samples)) % min(OUTER_FOLDS, len(samples))
    folds = np.random.default_rng(seed).permutation(folds)

    def fit(kept: np.ndarray) -> np.ndarray:
        chosen = [samples[index] for index in np.flatnonzero(kept)]
        return fit_weights(
            np.concatenate(
                [one.probabilities for one in chosen], axis=1, dtype=np.float32
            ),
            np.concatenate([one.labels for one in chosen]).astype(np.int32),
            trials,
            seed,
        )

    nested = [fit(folds != fold) for fold in range(folds.max() + 1)]
    return fit(np.ones(len(samples), bool)), np.stack(nested), folds
