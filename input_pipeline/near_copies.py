"""Images that look alike: resized, recompressed, mirrored or turned copies.

Compared are grey thumbnails of zero mean and unit variance, in all eight
positions of a square. Their mean over the eight positions tells most pairs
apart without trying any: it is never further apart than the thumbnails are in
the position in which they agree best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from input_pipeline import parallel_scan

# Of a thumbnail, in pixels. Images with a shorter side hold too little to tell
# copies from images of the same kind.
SIDE = 32

# Correlation of two thumbnails from which on they count as copies.
ALIKE = 0.98

# Grey levels of standard deviation below which a thumbnail shows nothing.
FLATTEST = 3.0

# Of the earlier images that may look like one, so many are compared in full.
MOST_COMPARED = 256

POSITIONS = (
    "",
    "turned by 90°",
    "turned by 180°",
    "turned by 270°",
    "mirrored",
    "mirrored and turned by 90°",
    "mirrored and turned by 180°",
    "mirrored and turned by 270°",
)


class Match(NamedTuple):
    """An earlier image that one looks like.

    Attributes:
      row: of the earlier image.
      position: of the later one, out of `POSITIONS`.
      correlation: of the thumbnails.
    """

    row: int
    position: str
    correlation: float


def thumbnail(image: Image.Image) -> UInt8[np.ndarray, "32 32"] | None:
    """Returns the grey thumbnail of an image; None if it shows too little.

    Args:
      image: mode RGB, upright.
    """
    if min(image.size) < SIDE:
        return None
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small)
    return pixels if pixels.std() >= FLATTEST else None


def find(
    thumbnails: UInt8[np.ndarray, "N 32 32"],
    groups: Sequence[str],
    copies: Sequence[bytes],
) -> list[Match | None]:
    """Returns for each image the earlier one that it looks most like.

    Args:
      thumbnails: of the images.
      groups: of the images, N; those of one group are not compared.
      copies: names of their pixels, N; those that are the same are not
        compared.
    """
    (_, group), (_, same) = (
        np.unique(np.array(names, object), return_inverse=True)
        for names in (groups, copies)
    )
    index = _index(thumbnails, group, same)
    rows = np.arange(len(thumbnails))
    return list(parallel_scan.every_image(_match, index, rows, "near copies"))


class _Index(NamedTuple):
    """What images are compared by.

    Attributes:
      pixels: normalised, `[N, SIDE * SIDE]`.
      means: of each over its eight positions.
      norms: of the means, squared.
      groups: int `[N]`.
      same: int `[N]`.
    """

    pixels: Float32[np.ndarray, "N P"]
    means: Float32[np.ndarray, "N M"]
    norms: Float32[np.ndarray, " N"]
    groups: np.ndarray
    same: np.ndarray


def _index(
    thumbnails: np.ndarray, groups: np.ndarray, same: np.ndarray
) -> _Index:
    pixels = thumbnails.reshape(-1, SIDE * SIDE).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    # Scaled such that the product of two is their correlation.
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    # Halved, for speed. The factor keeps squared distances a lower bound.
    half = SIDE // 2
    small = pixels.reshape(-1, half, 2, half, 2).mean(axis=(2, 4)) * 2
    small = small.reshape(len(small), half * half)
    small = np.mean([small[:, turn] for turn in _positions(half)], axis=0)
    # Of equal pixels one is enough, times the root of how many there are.
    _, first, count = np.unique(
        _positions(half).min(axis=0),
        return_index=True,
        return_counts=True,
    )
    means = small[:, first] * np.sqrt(count).astype(np.float32)
    return _Index(pixels, means, (means**2).sum(axis=1), groups, same)


def _positions(side: int) -> np.ndarray:
    """int [8, side * side]: where each pixel comes from, in `POSITIONS`."""
    square = np.arange(side * side).reshape(side, side)
    return np.array(
        [
            np.rot90(one, turns).ravel()
            for one in (square, square[:, ::-1])
            for turns in range(4)
        ]
    )


_TURNS = _positions(SIDE)


def _match(index: _Index, row: int) -> Match | None:
    """The earlier image that a row looks most like, if there is one."""
    farthest = 2 * (1 - ALIKE) + 1e-4  # Squared, with room for rounding.
    distance = index.norms[:row] + index.norms[row]
    distance -= 2 * (index.means[:row] @ index.means[row])
    near = np.flatnonzero(
        (distance <= farthest)
        & (index.groups[:row] != index.groups[row])
        & (index.same[:row] != index.same[row])
    )
    if len(near) > MOST_COMPARED:
        near = near[distance[near].argpartition(MOST_COMPARED)[:MOST_COMPARED]]
    if not len(near):
        return None
    correlation = index.pixels[near] @ index.pixels[row][_TURNS].T
    best, turn = np.unravel_index(correlation.argmax(), correlation.shape)
    found = float(correlation[best, turn])
    if found < ALIKE:
        return None
    # Turning the later one by this gives the earlier one; say the reverse.
    return Match(int(near[best]), POSITIONS[_INVERSE[turn]], found)


# A turn is undone by the opposite one, a mirror image by itself.
_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
