"""Masks in memory, and the colours of their classes in pictures.

A mask is uint8 [H, W]: class indices from 0, and `IGNORE` where no class is
known.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

# Of pixels without a class, in memory.
IGNORE = 255

_FIRST = 40, 44, 52
# Pixels without a class: stripes, which no class has.
_STRIPES = np.uint8([[235, 235, 235], [150, 150, 150]])
_STRIPE_WIDTH = 3
_OPACITY = 0.55


def palette(count: int) -> UInt8[np.ndarray, "C 3"]:
    """Returns a colour for each class: the first is dark, the others bright.

    Args:
      count: of the classes, C.
    """
    order = np.arange(count)
    # By trial: of 20 classes no two are alike, and of 254 no two the same.
    hues = (order * 0.347) % 1.0
    channels = (hues[:, None] + np.array([0, 2 / 3, 1 / 3])) % 1.0
    values = np.clip(np.abs(channels * 6 - 3) - 1, 0, 1)
    low = np.where(order // 6 % 2, 90, 30)[:, None]
    high = np.where(order // 3 % 2, 170, 250)[:, None]
    colours = np.uint8(low + (high - low) * values)
    colours[:1] = _FIRST
    return colours


def drawn(
    mask: UInt8[np.ndarray, "H W"], count: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a mask in colours, striped where it has no class.

    Args:
      mask: classes from 0 to `count` - 1; any other value is none.
      count: of the classes.
    """
    y, x = np.indices(mask.shape)
    picture = _STRIPES[(x + y) // _STRIPE_WIDTH % 2]
    known = mask < count
    picture[known] = palette(count)[mask[known]]
    return picture


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    mask: UInt8[np.ndarray, "H W"],
    count: int,
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns an image with its mask drawn over it, half transparent.

    Args:
      image: in colour or grey.
      mask: see `drawn`.
      count: of the classes.
    """
    mixed = _OPACITY * drawn(mask, count) + (1 - _OPACITY) * image
    return np.uint8(mixed + 0.5)
