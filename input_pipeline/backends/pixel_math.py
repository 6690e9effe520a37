"""Numbers that both back ends compute with: weights, matrices, tables of hues.

Each gives what torchvision 0.29 gives on a Pillow image with the same
parameters, identical or one grey level off; tests/input_pipeline compares
them with stored answers of torchvision.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

# Which point of the old image a point of the new one shows: (a, b, c, d, e, f)
# for x = a x' + b y' + c and y = d x' + e y' + f.
Matrix = tuple[float, float, float, float, float, float]

# Weights of red, green and blue in Pillow's grey.
LUMINANCE = (0.299, 0.587, 0.114)


def saturation_matrix(factor: float) -> list[float]:
    """Scales the distance from the pixel's own grey by `factor`.

    Returns:
      3x4 numbers, row after row, for Pillow's `convert`.
    """
    matrix = []
    for channel in range(3):
        row = [(1 - factor) * weight for weight in LUMINANCE]
        row[channel] += factor
        # Pillow rounds here but cuts when it blends; hence the half.
        matrix += [*row, -0.5]
    return matrix


def sharpness_weights(factor: float) -> tuple[np.float32, np.float32]:
    """Scales the distance from the smoothed image by `factor`.

    Smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; the outermost pixels stay.

    Returns:
      What to multiply the value by, and the sum of the 3x3 values around it,
      the value itself counted five times.
    """
    return np.float32(factor), np.float32((1 - factor) / 13)


def hue_steps(shift: float) -> int:
    """What to add to an 8-bit hue, for -0.5 to 0.5 of the whole circle."""
    return int(shift * 255) % 256


@functools.cache
def hue_tables() -> tuple[np.ndarray, np.ndarray]:
    """How a hue is turned, Pillow's way through 8-bit HSV and back.

    In two table look-ups and a quarter of the time. A pixel's hue follows
    from the order of its channels, the largest minus the smallest (the
    spread), and the middle minus the smallest. What the turned hue takes off
    the largest channel follows from that hue and the spread. Pillow's
    saturation has 8 bits, so that here and there its answer is one grey level
    off the spread's.

    Returns:
      By order of channels, spread, middle: Pillow's 8-bit hue, uint8.
      By spread, hue: what to take off the largest channel to get red, green
      and blue, four bytes in one uint32, the last one 0.
    """
    spread, other = np.indices((256, 256)).astype(np.uint8)
    middle, zero = np.minimum(spread, other), np.zeros_like(spread)
    hues = np.zeros((6, 256, 256), np.uint8)
    # 3 * (green >= blue) + (red >= green) + (red >= blue)
    for order, pixels in enumerate(
        [
            (zero, middle, spread),
            (middle, zero, spread),
            (spread, zero, middle),
            (zero, spread, middle),
            (middle, spread, zero),
            (spread, middle, zero),
        ]
    ):
        image = Image.fromarray(np.stack(pixels, axis=-1))
        hues[order] = np.asarray(image.convert("HSV"))[..., 0]

    position = np.arange(256) * 6 / 255.0  # of the hue, in sixths of a circle
    sixth = position.astype(int) % 6
    falling = position % 1
    none, whole, rising = np.zeros(256), np.ones(256), 1 - falling
    shares = np.stack(
        [
            np.choose(
                (sixth + turn) % 6, [none, falling, whole, whole, rising, none]
            )
            for turn in (0, 4, 2)
        ],
        axis=-1,
    )  # [hue, channel], the share of the spread to take off
    deductions = np.zeros((256, 256, 4), np.uint8)
    deductions[..., :3] = np.round(shares[None] * np.arange(256)[:, None, None])
    return hues.ravel(), deductions.view("<u4").ravel()
