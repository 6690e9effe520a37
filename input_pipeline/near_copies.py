"""Images that look alike: resized, recompressed, mirrored or turned copies.

Compared are grey thumbnails in all eight orientations of a square, by the
correlation of their cosine transforms. Fine detail weighs more there, since
photos of one kind are often alike in the coarse.

Mirroring a thumbnail only changes signs of its transform, and a quarter turn
transposes it as well. The mean over the eight orientations therefore keeps a
few coefficients alone, and no two images are further apart in these than in
the orientation in which they agree best. That rules out most pairs without
trying any orientation.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from core.hardware import usable_cores
from input_pipeline import parallel_scan

# Of a thumbnail, in pixels. Images with a shorter side hold too little to tell
# copies from images of the same kind.
SIDE = 32

# Correlation from which on two images count as copies. Unrelated photos of
# steel reach .87 and of blood cells .936; half the size at JPEG quality 50
# leaves .936 and more, quality 30 alone .944.
ALIKE = 0.94

# A coefficient counts with its frequency to this power.
DETAIL = 0.5

# Grey levels of standard deviation below which a thumbnail shows nothing.
FLATTEST = 3.0

# Of the earlier images that may look like one, so many are compared in full.
MOST_COMPARED = 256

# Images whose distances to all earlier ones are computed together, as one
# product of matrices.
_BLOCK = 32

# Turns are counter-clockwise.
ORIENTATIONS = (
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
      orientation: of the later one, out of `ORIENTATIONS`.
      correlation: of the two, at most 1.
    """

    row: int
    orientation: str
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
    digests: Sequence[bytes],
) -> list[Match | None]:
    """Returns for each image the earlier one that it looks most like.

    Args:
      thumbnails: of the images.
      groups: of the images, N; those of one group are not compared.
      digests: hashes of their pixels, N; images of the same pixels are not
        compared.
    """
    (_, group), (_, same) = (
        np.unique(np.array(names, object), return_inverse=True)
        for names in (groups, digests)
    )
    index = _index(thumbnails, group, same)
    total = len(thumbnails)
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        blocks = pool.map(
            functools.partial(_matches, index), range(0, total, _BLOCK)
        )
        matches = itertools.chain.from_iterable(blocks)
        return list(parallel_scan.with_progress(matches, total, "near copies"))


class _Index(NamedTuple):
    """What images are compared by.

    Attributes:
      thumbnails: uint8 `[N, SIDE, SIDE]`.
      means: what a mean over the eight orientations leaves of their
        coefficients.
      norms: of the means, squared.
      groups: int `[N]`.
      same: int `[N]`.
    """

    thumbnails: np.ndarray
    means: Float32[np.ndarray, "N M"]
    norms: Float32[np.ndarray, " N"]
    groups: np.ndarray
    same: np.ndarray


def _index(
    thumbnails: np.ndarray, groups: np.ndarray, same: np.ndarray
) -> _Index:
    # Odd frequencies change their sign in some orientation, and transposing
    # exchanges the two of a pair, which count as one.
    row, column = 2 * np.array(np.triu_indices(SIDE // 2))
    scale = np.where(row == column, 0.5, 0.5**0.5).astype(np.float32)
    portions = []
    for part in np.array_split(thumbnails, len(thumbnails) // 4096 + 1):
        found = _coefficients(part).reshape(-1, SIDE, SIDE)
        pairs = found[:, row, column] + found[:, column, row]
        portions.append(pairs * scale)
    means = np.concatenate(portions)
    norms = (means**2).sum(axis=1)
    return _Index(thumbnails, means, norms, groups, same)


def _coefficients(
    thumbnails: UInt8[np.ndarray, "n 32 32"],
) -> Float32[np.ndarray, "n P"]:
    """Weighted cosine transforms of length 1, by row and column frequency."""
    number, place = np.ogrid[:SIDE, :SIDE]
    waves = np.cos(np.pi * number * (2 * place + 1) / (2 * SIDE))
    waves[0] *= 0.5**0.5
    waves = waves.astype(np.float32)
    weight = np.hypot(number, place).astype(np.float32) ** DETAIL
    weight[0, 0] = 0  # The mean grey.
    found = (waves @ thumbnails @ waves.T * weight).reshape(-1, SIDE * SIDE)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _turns(side: int) -> tuple[np.ndarray, np.ndarray]:
    """int and float32 [8, side * side]: of each of `ORIENTATIONS`, where its
    coefficients are taken from, and with which sign."""
    signs = (-1.0) ** np.arange(side)
    found = []
    for mirrored in (False, True):
        place = np.arange(side * side).reshape(side, side)
        sign = np.ones((side, side), np.float32)
        if mirrored:
            sign = sign * signs
        for _ in range(4):
            found.append((place.ravel(), sign.ravel()))
            # A quarter turn transposes, and puts the last row first.
            place, sign = place.T, sign.T * signs[:, None]
    places, factors = zip(*found, strict=True)
    return np.array(places), np.array(factors, np.float32)


_PLACES, _SIGNS = _turns(SIDE)


def _matches(index: _Index, start: int) -> list[Match | None]:
    """What the `_BLOCK` images from `start` on look most like."""
    end = min(start + _BLOCK, len(index.means))
    distances = index.means[start:end] @ index.means[:end].T
    distances *= -2
    distances += index.norms[:end]
    distances += index.norms[start:end, None]
    return [
        _match(index, row, distances[row - start, :row])
        for row in range(start, end)
    ]


def _match(
    index: _Index, row: int, distance: Float32[np.ndarray, " row"]
) -> Match | None:
    """The earlier image that a row looks most like, if there is one.

    `distance` is that of the means to each earlier image, squared.
    """
    # With room for rounding.
    near = np.flatnonzero(distance <= 2 * (1 - ALIKE) + 1e-4)
    near = near[
        (index.groups[near] != index.groups[row])
        & (index.same[near] != index.same[row])
    ]
    if len(near) > MOST_COMPARED:
        near = near[distance[near].argpartition(MOST_COMPARED)[:MOST_COMPARED]]
    if not len(near):
        return None
    *others, own = _coefficients(index.thumbnails[[*near, row]])
    correlation = np.array(others) @ (own[_PLACES] * _SIGNS).T
    best, turn = np.unravel_index(correlation.argmax(), correlation.shape)
    found = float(correlation[best, turn])
    if found < ALIKE:
        return None
    # Turning the later one by this gives the earlier one; say the reverse.
    return Match(int(near[best]), ORIENTATIONS[_INVERSE[turn]], found)


# A turn is undone by the opposite one, a mirror image by itself.
_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
