"""Changes of colour and sharpness, which leave every pixel where it is.

Each gives what torchvision 0.29 gives on a Pillow image with the same
parameters, identical or one grey level off; tests/input_pipeline compares
them with stored answers of torchvision. Where an operation maps every value by
itself, there is a function that returns its table, uint8 `[256]`, or
`[3, 256]` with one row per channel: `operations.apply` composes tables.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Integer, UInt8

_VALUES = np.arange(256)

Table = UInt8[np.ndarray, "256"]
ChannelTables = UInt8[np.ndarray, "3 256"]
Histograms = Integer[np.ndarray, "3 256"]


def _blend_table(base: float, factor: float) -> np.ndarray:
    """`base + factor * (value - base)` for the 256 values, clipped and cut."""
    values = base + np.float32(factor) * (_VALUES - base).astype(np.float32)
    return _cut(values)


def _cut(values: np.ndarray) -> np.ndarray:
    """To uint8: clipped to 0 to 255, without fractions."""
    return np.minimum(np.maximum(values, 0), 255).astype(np.uint8)


def brightness_table(factor: float) -> Table:
    """Scales all values by `factor`."""
    return _blend_table(0, factor)


def contrast_table(mean_grey: float, factor: float) -> Table:
    """Scales the distance from the image's mean grey by `factor`."""
    return _blend_table(int(mean_grey + 0.5), factor)


def posterize_table(bits: int) -> Table:
    """Keeps the uppermost `bits` bits of every value."""
    return (_VALUES & (256 - (1 << (8 - bits)))).astype(np.uint8)


def solarize_table(threshold: float) -> Table:
    """Inverts the values from `threshold` on."""
    inverted = np.where(threshold > _VALUES, _VALUES, 255 - _VALUES)
    return inverted.astype(np.uint8)


def autocontrast_table(histograms: Histograms) -> ChannelTables:
    """Stretches every channel to the whole range 0 to 255.

    Args:
      histograms: int `[3, 256]`, how often each channel has each value.
    """
    tables = np.empty((3, 256), np.uint8)
    for table, counts in zip(tables, histograms, strict=True):
        low, high = map(int, counts.nonzero()[0][[0, -1]])
        if high > low:
            scale = 255.0 / (high - low)
            table[:] = _cut(_VALUES * scale - low * scale)
        else:
            table[:] = _VALUES
    return tables


def equalize_table(histograms: Histograms) -> ChannelTables:
    """Makes the values of every channel equally frequent, as Pillow does.

    Args:
      histograms: int `[3, 256]`, how often each channel has each value.
    """
    tables = np.empty((3, 256), np.uint8)
    for table, counts in zip(tables, histograms, strict=True):
        below = np.cumsum(counts)
        used = counts.nonzero()[0]
        step = int(below[-1] - counts[used[-1]]) // 255
        if len(used) > 1 and step > 0:
            below -= counts
            table[:] = np.minimum((below + step // 2) // step, 255)
        else:
            table[:] = _VALUES
    return tables


# (value) -> table.
TABLES = {
    "brightness": brightness_table,
    "posterize": posterize_table,
    "solarize": solarize_table,
}

# (back end, image, value) -> table.
TABLES_OF_IMAGE = {
    "contrast": lambda backend, image, factor: contrast_table(
        backend.mean_grey(image), factor
    ),
    "autocontrast": lambda backend, image, _: autocontrast_table(
        backend.histograms(image)
    ),
    "equalize": lambda backend, image, _: equalize_table(
        backend.histograms(image)
    ),
}

# (back end, image, value) -> image.
FILTERS = {
    "saturation": lambda backend, image, by: backend.saturation(image, by),
    "hue": lambda backend, image, shift: backend.hue(image, shift),
    "grayscale": lambda backend, image, _: backend.grayscale(image),
    "sharpness": lambda backend, image, by: backend.sharpness(image, by),
}
