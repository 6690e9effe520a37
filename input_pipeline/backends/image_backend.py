"""Chooses the back end: C++ where it is compiled, else Pillow and NumPy.

Both give the same bits, each for images of its own type, which `resized`
makes. What makes images of one type of the other's is in both as well.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from PIL import Image

from input_pipeline.backends import cpp, pillow
from input_pipeline.backends.pixel_math import Matrix

# Of pillow or of cpp.
AnyImage = Image.Image | np.ndarray


def resized(
    image: Image.Image | np.ndarray,
    size: int,
    crop: tuple[int, int, int, int] | None = None,
    box: tuple[float, float, float, float] | None = None,
    mirrored: bool = False,
) -> AnyImage:
    """Resizes a part of an image: see `pillow.resized`."""
    return _for_size(size).resized(image, size, crop, box, mirrored)


def resized_mask(
    mask: np.ndarray,
    size: int,
    box: tuple[float, float, float, float],
    mirrored: bool = False,
) -> np.ndarray:
    """Resizes a part of a mask: see `pillow.resized_mask`."""
    return _for_size(size).resized_mask(mask, size, box, mirrored)


def affine_mask(mask: np.ndarray, matrix: Matrix, fill: int) -> np.ndarray:
    """Moves the pixels of a mask: see `pillow.affine_mask`."""
    return _for_size(max(mask.shape)).affine_mask(mask, matrix, fill)


def _for_size(size: int) -> ModuleType:
    """The back end of images that are to have so many pixels a side."""
    return cpp if size <= cpp.LARGEST and cpp.available() else pillow


def of(image: AnyImage) -> ModuleType:
    """The module whose image this is."""
    return pillow if isinstance(image, Image.Image) else cpp


def pixels(image: AnyImage) -> np.ndarray:
    """Returns uint8 `[H, W, 3]`."""
    return of(image).pixels(image)


def prepare() -> None:
    """Compiles, so that processes that are started need not, each of them."""
    cpp.available()
