"""Whose code touches pixels: C++ where it is compiled, else Pillow and NumPy.

Both give the same bits, each for images of its own type, which `resized`
makes. What makes images of one type of the other's is in both as well.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from PIL import Image

from input_pipeline.backends import cpp, pillow

# Of pillow or of cpp.
AnyImage = Image.Image | np.ndarray


def resized(
    image: Image.Image | np.ndarray,
    size: int,
    crop: tuple[int, int, int, int] | None = None,
    box: tuple[float, float, float, float] | None = None,
    mirrored: bool = False,
) -> AnyImage:
    """Shows a part of an image: see `pillow.resized`."""
    small = size <= cpp.LARGEST
    native = small and cpp.available()
    form = cpp if native else pillow
    return form.resized(image, size, crop, box, mirrored)


def of(image: AnyImage) -> ModuleType:
    """The module whose image this is."""
    return pillow if isinstance(image, Image.Image) else cpp


def pixels(image: AnyImage) -> np.ndarray:
    """Returns uint8 `[H, W, 3]`."""
    return of(image).pixels(image)


def prepare() -> None:
    """Compiles, so that processes that are started need not, each of them."""
    cpp.available()
