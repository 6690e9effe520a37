"""Impulse noise: single pixels that are exactly black or exactly white.

Found in the picture as it is and filled in one pass, so that no filled pixel
is read again. Areas that are black or white (a frame, an overexposed sky) are
no noise and stay to their borders.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, UInt8

# Share of a pixel's neighbours that must have its colour for the pixel to be
# the inside of an area: 6 of 8. Noise on 15 % of the pixels, half black and
# half white, does so by chance in 4 of a million, away from the border.
INSIDE = 6 / 8


def find(pixels: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "H W"]:
    """Marks the pixels that are noise.

    A black or white pixel is one, unless it lies inside an area of its colour
    (`INSIDE`) or beside such a pixel of its colour.
    """
    noise = np.zeros(pixels.shape[:2], bool)
    for value in (0, 255):
        same = (pixels == value).all(-1)
        if not same.any():
            continue
        neighbours = _around(np.ones_like(same)) - 1
        alike = _around(same) - same
        inside = same & (alike >= INSIDE * neighbours)
        noise |= same & (_around(inside) == 0)
    return noise


def clean(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Gives noisy pixels the mean of their neighbours that are not.

    A pixel with none stays. Returns the given array where there is no noise.
    """
    noise = find(pixels)
    if not noise.any():
        return pixels
    known = ~noise
    count = _around(known)
    filled = noise & (count > 0)
    total = _around(pixels * known[..., None])
    mean = total[filled] / count[filled][:, None]
    cleaned = pixels.copy()
    cleaned[filled] = np.floor(mean + 0.5).astype(np.uint8)
    return cleaned


def lone_share(pixels: UInt8[np.ndarray, "H W 3"]) -> float:
    """Share of pixels that stand alone in black or in white, the smaller one.

    Beside such a pixel there is none of its colour. Strokes of a drawing, too
    thin to be areas, leave few alone, and few in both colours.
    """
    shares = []
    for value in (0, 255):
        same = (pixels == value).all(-1)
        shares.append((same & (_around(same) == 1)).mean())
    return float(min(shares))


def _around(values: np.ndarray) -> np.ndarray:
    """Sums over 3x3 cells; beyond the border there is nothing.

    Of bool as uint8, of uint8 as uint16, as photos may be large.
    """
    values = values.astype(np.uint8 if values.dtype == bool else np.uint16)
    for axis in (0, 1):
        total = values.copy()
        lower, upper = [slice(None)] * 2, [slice(None)] * 2
        lower[axis], upper[axis] = slice(1, None), slice(None, -1)
        total[tuple(upper)] += values[tuple(lower)]
        total[tuple(lower)] += values[tuple(upper)]
        values = total
    return values
