"""Operations on pixels by Pillow and NumPy: available everywhere.

Pillow image in, Pillow image out, mode RGB, never in place; masks are arrays.
cpp.py has the same functions in C++, with the same result to the bit;
image_backend.py chooses.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from input_pipeline.backends import pixel_math


def resized(
    image: Image.Image | np.ndarray,
    size: int,
    crop: tuple[int, int, int, int] | None = None,
    box: tuple[float, float, float, float] | None = None,
    mirrored: bool = False,
) -> Image.Image:
    """Resizes a part of an image, smoothed where it becomes smaller.

    Args:
      image: mode RGB, or uint8 `[H, W, 3]`.
      size: side of the result in pixels.
      crop: left, top, right, bottom of what is used; None: everything.
      box: the same of what is shown, in pixels of the crop; None: all of it.
        Pixels of the crop beyond it are smoothed into its border.
      mirrored: whether it is flipped left to right.
    """
    if isinstance(image, np.ndarray):
        left, top, right, bottom = crop or (0, 0, *image.shape[1::-1])
        image = np.ascontiguousarray(image[top:bottom, left:right])
        image = Image.fromarray(image)
    elif crop not in (None, (0, 0, *image.size)):
        image = image.crop(crop)
    if box is not None or image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR, box)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def resized_mask(
    mask: np.ndarray,
    size: int,
    box: tuple[float, float, float, float],
    mirrored: bool = False,
) -> np.ndarray:
    """Resizes a part of a mask by nearest neighbour.

    Args:
      mask: uint8 `[H, W]`.
      size: side of the result in pixels.
      box: left, top, right, bottom of what is shown.
      mirrored: whether it is flipped left to right.
    """
    image = Image.fromarray(mask)
    image = image.resize((size, size), Image.Resampling.NEAREST, box)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def affine_mask(
    mask: np.ndarray, matrix: pixel_math.Matrix, fill: int
) -> np.ndarray:
    """Moves the pixels of a mask as `affine` those of an image.

    Args:
      mask: uint8 `[H, W]`.
      matrix: from new to old pixels.
      fill: what comes in from outside.
    """
    image = Image.fromarray(mask)
    return np.asarray(
        image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix,
            Image.Resampling.NEAREST,
            fillcolor=fill,
        )
    )


def size(image: Image.Image) -> tuple[int, int]:
    """Returns width and height."""
    return image.size


def pixels(image: Image.Image) -> np.ndarray:
    """Returns uint8 `[H, W, 3]`."""
    return np.asarray(image)


def to_pillow(image: Image.Image) -> Image.Image:
    """Returns it as it is."""
    return image


def from_pillow(image: Image.Image) -> Image.Image:
    """Returns it as it is."""
    return image


def affine(image: Image.Image, matrix: pixel_math.Matrix) -> Image.Image:
    """Moves pixels, nearest neighbour, black outside."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST
    )


def affine_bilinear(
    image: Image.Image, matrix: pixel_math.Matrix
) -> Image.Image:
    """Moves pixels, interpolated, black outside."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )


def look_up(image: Image.Image, table: np.ndarray) -> Image.Image:
    """Reindices every value by the table's, uint8 `[256]` or `[3, 256]`."""
    values = table.ravel().tolist()
    if table.ndim == 1:
        values *= 3
    # What Image.point() does after spending 55 us on rounding a list of
    # integers; on a 64 px image that is five times the work itself.
    return image._new(image.im.point(values, None))


def mean_grey(image: Image.Image) -> float:
    """Returns the mean of the pixels' grey."""
    grey = _band(image.convert("L"), "L")
    return int(np.add.reduce(grey, dtype=np.int64)) / len(grey)


def histograms(image: Image.Image) -> np.ndarray:
    """Returns how often each channel has each value: int `[3, 256]`."""
    return np.array(image.histogram()).reshape(3, 256)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """See `pixel_math.saturation_matrix`."""
    return image.convert("RGB", pixel_math.saturation_matrix(factor))


def grayscale(image: Image.Image) -> Image.Image:
    """Luminance in all three channels."""
    return image.convert("L").convert("RGB")


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """See `pixel_math.sharpness_weights`."""
    height, width = image.height, image.width
    if height < 3 or width < 3:
        return image
    to_center, to_around = pixel_math.sharpness_weights(factor)
    pixels = np.array(image).reshape(height, width * 3)
    wide = pixels.astype(np.uint16)
    center = wide[1:-1, 3:-3]
    columns = wide[:-2] + wide[1:-1]
    columns += wide[2:]
    total = columns[:, :-6] + columns[:, 3:-3]
    total += columns[:, 6:]
    total += center * np.uint16(4)
    values = center * to_center
    values += total * to_around
    np.maximum(values, 0, out=values)
    np.minimum(values, 255, out=values)
    pixels[1:-1, 3:-3] = values
    return Image.fromarray(pixels.reshape(height, width, 3))


def hue(image: Image.Image, shift: float) -> Image.Image:
    """See `pixel_math.hue_tables`."""
    hues, deductions = pixel_math.hue_tables()
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

    # Bytes of an integer, written one by one, are an index at no cost.
    index = np.zeros((len(red), 8), np.uint8)
    indices = index.view("<i8").ravel()
    index[:, 0], index[:, 1], index[:, 2] = middle, high - low, order
    turned = hues.take(indices)
    turned += np.uint8(pixel_math.hue_steps(shift))
    index[:, 0], index[:, 2] = turned, 0
    # Four bytes at once; none borrows, as the spread is never above high.
    pixels = high * np.uint32(0x01010101)
    pixels -= deductions.take(indices)
    return Image.frombytes("RGB", image.size, pixels, "raw", "RGBX")


def _band(image: Image.Image, name: str) -> np.ndarray:
    """One channel, uint8 `[H * W]`, without a copy of the others."""
    return np.frombuffer(image.tobytes("raw", name), np.uint8)
