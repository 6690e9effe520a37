"""The torchvision operations in numbers: strengths, matrices, tables.

Each gives what torchvision 0.29 gives on a Pillow image with the same
parameters, identical or one grey level off; tests/input_pipeline compares
them with stored answers of torchvision. What touches pixels accordingly is in
pillow_ops.py, and in C++ in native_ops.py.

Where an operation replaces every value by itself, whatever stands beside it,
there is a function that returns its table, uint8 `[256]`, or `[3, 256]` with
one row per channel: operations.py looks several tables up at once.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image

NUM_MAGNITUDE_BINS = 31

# RandAugment's operations and whether the sign of their magnitude is drawn.
RANDAUGMENT = {
    "Identity": False,
    "ShearX": True,
    "ShearY": True,
    "TranslateX": True,
    "TranslateY": True,
    "Rotate": True,
    "Brightness": True,
    "Color": True,
    "Contrast": True,
    "Sharpness": True,
    "Posterize": False,
    "Solarize": False,
    "AutoContrast": False,
    "Equalize": False,
}


@functools.lru_cache(maxsize=4096)
def magnitude(name: str, level: int, width: int, height: int) -> float:
    """The strength of a RandAugment operation at magnitude bin 0 to 30.

    Linear in the bin, in float32 as torch.linspace computes it: translations
    are cut to whole pixels, where a last-bit difference would be one pixel.
    """
    if name in ("Identity", "AutoContrast", "Equalize"):
        return 0.0
    if name == "Posterize":
        return float(8 - round(level / ((NUM_MAGNITUDE_BINS - 1) / 4)))
    if name == "Solarize":
        return _linspace(255.0, 0.0, level)
    end = {
        "ShearX": 0.3,
        "ShearY": 0.3,
        "TranslateX": 150.0 / 331.0 * width,
        "TranslateY": 150.0 / 331.0 * height,
        "Rotate": 30.0,
    }
    return _linspace(0.0, end.get(name, 0.9), level)


def _linspace(start: float, end: float, position: int) -> float:
    """torch.linspace in float32, bit for bit: from the nearer end, fused."""
    last = NUM_MAGNITUDE_BINS - 1
    end = float(np.float32(end))
    step = float(np.float32(end - start) / np.float32(last))
    if position < NUM_MAGNITUDE_BINS // 2:
        return float(np.float32(start + step * position))
    return float(np.float32(end - step * (last - position)))


# Which place of the old image a place of the new one shows: (a, b, c, d, e, f)
# for x = a x' + b y' + c and y = d x' + e y' + f.
Matrix = tuple[float, float, float, float, float, float]


def shear_x(shear: float, width: int, height: int) -> Matrix:
    """Moves every row sideways by `shear` times its height."""
    return (1.0, shear, 0.0, 0.0, 1.0, 0.0)


def shear_y(shear: float, width: int, height: int) -> Matrix:
    """Moves every column upwards by `shear` times its distance from 0."""
    return (1.0, 0.0, 0.0, shear, 1.0, 0.0)


def translate_x(pixels: int, width: int, height: int) -> Matrix:
    """Moves to the right."""
    return (1.0, 0.0, -pixels, 0.0, 1.0, 0.0)


def translate_y(pixels: int, width: int, height: int) -> Matrix:
    """Moves downwards."""
    return (1.0, 0.0, 0.0, 0.0, 1.0, -pixels)


def rotate(degrees: float, width: int, height: int) -> Matrix:
    """Turns about the middle, against the clock, as Pillow rounds it."""
    angle = -math.radians(degrees % 360.0)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return (
        cosine,
        sine,
        cosine * -x + sine * -y + x,
        -sine,
        cosine,
        -sine * -x + cosine * -y + y,
    )


_VALUES = np.arange(256)

# Weights of red, green and blue in Pillow's grey.
LUMINANCE = (0.299, 0.587, 0.114)


def _blend_table(base: float, factor: float) -> np.ndarray:
    """`base + factor * (value - base)` for the 256 values, clipped and cut."""
    values = base + np.float32(factor) * (_VALUES - base).astype(np.float32)
    return _cut(values)


def _cut(values: np.ndarray) -> np.ndarray:
    """To uint8: clipped to 0 to 255, without fractions."""
    return np.minimum(np.maximum(values, 0), 255).astype(np.uint8)


def brightness_table(factor: float) -> np.ndarray:
    """Scales all values by `factor`."""
    return _blend_table(0, factor)


def contrast_table(mean_grey: float, factor: float) -> np.ndarray:
    """Scales the distance from the image's mean grey by `factor`."""
    return _blend_table(int(mean_grey + 0.5), factor)


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


def posterize_table(bits: int) -> np.ndarray:
    """Keeps the uppermost `bits` bits of every value."""
    return (_VALUES & (256 - (1 << (8 - bits)))).astype(np.uint8)


def solarize_table(threshold: float) -> np.ndarray:
    """Inverts the values from `threshold` on."""
    inverted = np.where(threshold > _VALUES, _VALUES, 255 - _VALUES)
    return inverted.astype(np.uint8)


def autocontrast_table(histograms: np.ndarray) -> np.ndarray:
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


def equalize_table(histograms: np.ndarray) -> np.ndarray:
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
