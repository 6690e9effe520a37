"""Scores of an image's pixels, from top to bottom in stripes of few rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from input_pipeline.transforms.windows import Grid

# Pixels of a photo that are brought to its size at once.
STRIPE_PIXELS = 1 << 17

# Rows of a window, or of a whole image's outputs, that are widened at once.
_ROWS = 32

# Keeps logarithms finite.
TINY = 1e-30

# Of a window's side: how far from its middle a normal curve has sunk to .61, as
# `sigma_scale` of nnU-Net's compute_gaussian.
SIGMA_SHARE = 1 / 8

Stripes = Iterator[Float[np.ndarray, "rows width C"]]


def softmax(
    scores: Float[np.ndarray, "*batch C"],
) -> Float[np.ndarray, "*batch C"]:
    """Returns probabilities."""
    found = np.exp(scores - scores.max(-1, keepdims=True))
    return found / found.sum(-1, keepdims=True)


def enlarged(
    outputs: Float[np.ndarray, "h w C"], width: int, height: int
) -> Stripes:
    """Yields the logarithms of a whole image's outputs, at its own size.

    The same resizing as `segmentation_evaluator.resized_to_canvas`.
    """
    rows = (
        np.log(np.maximum(outputs[top : top + _ROWS], TINY))
        for top in range(0, len(outputs), _ROWS)
    )
    return resized(rows, *outputs.shape[1::-1], width, height)


def joined_windows(
    outputs: Iterator[Float[np.ndarray, "size size C"]],
    grid: Grid,
    size: int,
) -> Stripes:
    """Yields the logarithms of an image's outputs, `grid.width` wide.

    A pixel's probabilities are the mean over the windows that show it, weighted
    by a normal curve around the middle of each. The sum is kept for one row of
    windows, and passed on as far as no further row of them reaches.

    Args:
      outputs: of the windows, row by row.
      grid: where they lie.
      size: side of a window.
    """
    away = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    curve = np.exp(-0.5 * np.square(away / SIGMA_SHARE))
    weight = (curve[:, None] * curve)[..., None]
    total = weights = None
    for top, following in itertools.pairwise((*grid.tops, grid.height)):
        for left in grid.lefts:
            found = next(outputs)
            if total is None:
                shape = size, max(size, grid.width)
                total = np.zeros((*shape, found.shape[-1]), np.float32)
                weights = np.zeros((*shape, 1), np.float32)
            total[:, left : left + size] += weight * found
            weights[:, left : left + size] += weight
        done = following - top
        for start in range(0, done, _ROWS):
            part = slice(start, min(start + _ROWS, done)), slice(grid.width)
            yield np.log(np.maximum(total[part] / weights[part], TINY))
        for kept in (total, weights):
            kept[: size - done] = kept[done:]
            kept[size - done :] = 0


def resized(
    rows: Stripes, columns: int, lines: int, width: int, height: int
) -> Stripes:
    """Resizes stripes of any height, bilinear with half-pixel centres.

    Args:
      rows: float32 `[_, columns, C]`, from top to bottom, `lines` in all.
      columns: their width.
      lines: their height.
      width: of the result.
      height: of the result.

    Yields:
      float32 `[_, width, C]`, `height` rows in all, in stripes whose heights
      follow from `width` alone.
    """
    left, right, across = _neighbours(columns, width)
    above, below, down = _neighbours(lines, height)
    held, first = None, 0  # Widened rows, and which line is the first of them.
    step = max(1, STRIPE_PIXELS // width)
    for top in range(0, height, step):
        part = slice(top, min(top + step, height))
        low, high = above[part][0], below[part][-1]
        waiting = [] if held is None else [held]
        count = sum(map(len, waiting))
        while first + count <= high:
            row = next(rows)
            if columns != width:
                row = _mixed(row[:, left], row[:, right], across[:, None])
            waiting.append(row)
            count += len(row)
        held = np.concatenate(waiting)[low - first :]
        first = low
        yield _mixed(
            held[above[part] - first],
            held[below[part] - first],
            down[part, None, None],
        )


def _mixed(one: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    """What lies at `share` of the way from `one`, which it overwrites."""
    other -= one
    other *= share
    one += other
    return one


def _neighbours(
    length: int, wanted: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `wanted` cells its two neighbours of `length`, and how far
    it lies from the first to the second."""
    where = (np.arange(wanted) + 0.5) * (length / wanted) - 0.5
    where = np.clip(where, 0, length - 1)
    first = np.minimum(where.astype(int), max(length - 2, 0))
    second = np.minimum(first + 1, length - 1)
    return first, second, (where - first).astype(np.float32)
