"""The torchvision operations on one image: Pillow image in, Pillow image out.

Each gives what torchvision 0.29 gives on a Pillow image with the same
parameters, identical or one grey level off; tests/input_pipeline compares
them with stored answers of torchvision. Images are mode RGB throughout.

Where an operation replaces every value by itself, whatever stands beside it,
there is a function that returns its table, uint8 `[256]`, or `[3, 256]` with
one row per channel: operations.py looks several tables up at once.
"""

from __future__ import annotations

import functools

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


def shear_x(image: Image.Image, shear: float) -> Image.Image:
    """Moves every row sideways by `shear` times its height."""
    return _affine(image, (1.0, shear, 0.0, 0.0, 1.0, 0.0))


def shear_y(image: Image.Image, shear: float) -> Image.Image:
    """Moves every column upwards by `shear` times its distance from 0."""
    return _affine(image, (1.0, 0.0, 0.0, shear, 1.0, 0.0))


def translate_x(image: Image.Image, pixels: int) -> Image.Image:
    """Moves to the right."""
    return _affine(image, (1.0, 0.0, -pixels, 0.0, 1.0, 0.0))


def translate_y(image: Image.Image, pixels: int) -> Image.Image:
    """Moves downwards."""
    return _affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, -pixels))


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Turns about the middle, against the clock."""
    return image.rotate(degrees, Image.Resampling.NEAREST)


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Maps output to input pixels, nearest neighbour, black outside."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST
    )


_VALUES = np.arange(256)

# Weights of red, green and blue in Pillow's grey.
LUMINANCE = (0.299, 0.587, 0.114)


def look_up(image: Image.Image, table: np.ndarray) -> Image.Image:
    """Replaces every value by the table's, uint8 `[256]` or `[3, 256]`."""
    values = table.ravel().tolist()
    if table.ndim == 1:
        values *= 3
    # What Image.point() does after spending 55 us on rounding a list of
    # integers; on a 64 px image that is five times the work itself.
    return image._new(image.im.point(values, None))


def _band(image: Image.Image, name: str) -> np.ndarray:
    """One channel, uint8 `[H * W]`, without a copy of the others."""
    return np.frombuffer(image.tobytes("raw", name), np.uint8)


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


def contrast_table(image: Image.Image, factor: float) -> np.ndarray:
    """Scales the distance from the image's mean grey by `factor`."""
    grey = _band(image.convert("L"), "L")
    mean = int(np.add.reduce(grey, dtype=np.int64) / len(grey) + 0.5)
    return _blend_table(mean, factor)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """Scales the distance from the pixel's own grey by `factor`."""
    matrix = []
    for channel in range(3):
        row = [(1 - factor) * weight for weight in LUMINANCE]
        row[channel] += factor
        # Pillow rounds here but cuts when it blends; hence the half.
        matrix += [*row, -0.5]
    return image.convert("RGB", matrix)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Scales the distance from the smoothed image by `factor`.

    Smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; the outermost pixels stay.
    """
    height, width = image.height, image.width
    if height < 3 or width < 3:
        return image
    pixels = np.array(image).reshape(height, width * 3)
    wide = pixels.astype(np.uint16)
    center = wide[1:-1, 3:-3]
    columns = wide[:-2] + wide[1:-1]
    columns += wide[2:]
    total = columns[:, :-6] + columns[:, 3:-3]
    total += columns[:, 6:]
    total += center * np.uint16(4)
    values = center * np.float32(factor)
    values += total * np.float32((1 - factor) / 13)
    np.maximum(values, 0, out=values)
    np.minimum(values, 255, out=values)
    pixels[1:-1, 3:-3] = values
    return Image.fromarray(pixels.reshape(height, width, 3))


def posterize_table(bits: int) -> np.ndarray:
    """Keeps the uppermost `bits` bits of every value."""
    return (_VALUES & (256 - (1 << (8 - bits)))).astype(np.uint8)


def solarize_table(threshold: float) -> np.ndarray:
    """Inverts the values from `threshold` on."""
    inverted = np.where(threshold > _VALUES, _VALUES, 255 - _VALUES)
    return inverted.astype(np.uint8)


def autocontrast_table(image: Image.Image) -> np.ndarray:
    """Stretches every channel to the whole range 0 to 255."""
    tables = np.empty((3, 256), np.uint8)
    for table, (low, high) in zip(tables, image.getextrema(), strict=True):
        if high > low:
            scale = 255.0 / (high - low)
            table[:] = _cut(_VALUES * scale - low * scale)
        else:
            table[:] = _VALUES
    return tables


def equalize_table(image: Image.Image) -> np.ndarray:
    """Makes the values of every channel equally frequent, as Pillow does."""
    tables = np.empty((3, 256), np.uint8)
    histograms = np.array(image.histogram()).reshape(3, 256)
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


def grayscale(image: Image.Image) -> Image.Image:
    """Luminance in all three channels."""
    return image.convert("L").convert("RGB")


def hue(image: Image.Image, shift: float) -> Image.Image:
    """Turns the hue by `shift`, -0.5 to 0.5 of the whole circle.

    Pillow's way through 8-bit HSV and back, in two table look-ups and a
    quarter of the time. A pixel's hue follows from the order of its channels,
    the largest minus the smallest (the spread), and the middle minus the
    smallest. What the turned hue takes off the largest channel follows from
    that hue and the spread. Pillow's saturation has 8 bits, so that here and
    there its answer is one grey level off the spread's.
    """
    hues, deductions = hue_tables()
    red, green, blue = (_band(image, name) for name in "RGB")
    high = np.maximum(np.maximum(red, green), blue)
    low = np.minimum(np.minimum(red, green), blue)
    middle = red + green  # Modulo 256, like everything here.
    middle += blue
    middle -= high
    middle -= low
    middle -= low
    order = (green >= blue).view(np.uint8) * np.uint8(3)
    order += (red >= green).view(np.uint8)
    order += (red >= blue).view(np.uint8)

    # Bytes written into the places of an integer are an index at no cost.
    index = np.zeros((len(red), 8), np.uint8)
    places = index.view("<i8").ravel()
    index[:, 0], index[:, 1], index[:, 2] = middle, high - low, order
    turned = hues.take(places)
    turned += np.uint8(int(shift * 255) % 256)
    index[:, 0], index[:, 2] = turned, 0
    # Four bytes at once; none borrows, as the spread is never above high.
    pixels = high * np.uint32(0x01010101)
    pixels -= deductions.take(places)
    return Image.frombytes("RGB", image.size, pixels, "raw", "RGBX")


@functools.cache
def hue_tables() -> tuple[np.ndarray, np.ndarray]:
    """What `hue` looks up.

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
