"""Small images for the tests of the input pipeline."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photo(height=24, width=32, seed=0):
    """Smooth colours with some noise: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
    smooth = Image.fromarray(small).resize((width, height))
    noise = rng.integers(-12, 13, (height, width, 3))
    return np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)


def encoded(pixels, kind="JPEG", **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
