"""Where pixels go: crops and affine maps, on images and masks alike.

Everything is drawn once per example. An image is resized bilinearly, a mask by
nearest neighbour from its own pixels, to the same grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from input_pipeline.backends import image_backend
from input_pipeline.backends.image_backend import AnyImage
from input_pipeline.backends.pixel_math import Matrix
from input_pipeline.decoding import (
    BadImage,
    check_pixels,
    decode_mask,
    open_image,
    reduce_jpeg,
    upright_rgb,
    upright_size,
)

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


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


def turn_and_zoom(
    value: tuple[float, float], width: int, height: int
) -> Matrix:
    """Turns by degrees against the clock and enlarges, about the middle."""
    degrees, zoom = value
    angle = -math.radians(degrees)
    cosine, sine = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = width / 2, height / 2
    return (
        cosine,
        sine,
        x - cosine * x - sine * y,
        -sine,
        cosine,
        y + sine * x - cosine * y,
    )


# (value, width, height) -> matrix.
MATRICES: dict[str, Callable[..., Matrix]] = {
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "turn_and_zoom": turn_and_zoom,
}

# Of these, the image is interpolated. The others belong to RandAugment, which
# takes the nearest pixel.
SMOOTH = ("turn_and_zoom",)


def random_crop_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draws a crop as RandomResizedCrop does (Szegedy et al. 2015).

    Area uniform in `scale`, aspect ratio log-uniform in `ratio`; after ten
    crops that do not fit, the largest centred one of an allowed ratio.

    Returns:
      left, top, right, bottom in pixels.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def open_sized(
    data: bytes | np.ndarray,
) -> tuple[Image.Image | np.ndarray, int, int]:
    """Opens an image as far as its size must be known.

    Args:
      data: an encoded file, or pixels uint8 `[H, W, 3]`.

    Returns:
      The image, a JPEG not decoded yet, and its width and height once it is
      the right way up.

    Raises:
      BadImage: the data cannot be read.
    """
    if isinstance(data, np.ndarray):
        check_pixels(data)
        height, width, _ = data.shape
        return data, width, height
    image = open_image(data)
    if image.format == "JPEG":
        return image, *upright_size(image)
    image = upright_rgb(image)  # MPO files, too, are decoded in full.
    return image, *image.size


def resized_crop(
    image: Image.Image | np.ndarray,
    size: int,
    crop: tuple[int, int, int, int],
    mirrored: bool,
) -> AnyImage:
    """Crops and resizes what `open_sized` opened.

    Of a JPEG whose crop has at least twice as many pixels a side as are
    asked for, no more are decoded than that takes, which for photos of
    megapixels halves the time. The result is half a grey level off on average
    (a photo that is both turned and of a size that the factor does not divide
    is off by a part of a pixel more).

    Args:
      image: from `open_sized`.
      size: side of the result in pixels.
      crop: left, top, right, bottom, of the image in full.
      mirrored: whether it is flipped left to right.

    Raises:
      BadImage: the pixel data is damaged or cut off.
    """
    box: Box | None = None
    if isinstance(image, Image.Image) and image.format == "JPEG":
        shorter = min(crop[2] - crop[0], crop[3] - crop[1])
        factor = next((f for f in (8, 4, 2) if shorter >= f * size), 1)
        factor = reduce_jpeg(image, factor)
        image = upright_rgb(image)
        if factor > 1:
            box = tuple(edge / factor for edge in crop)
    if box is not None:
        return image_backend.resized(image, size, None, box, mirrored)
    # Not as a box: it would let pixels outside the crop into its border,
    # which torchvision does not.
    return image_backend.resized(image, size, crop, None, mirrored)


def resized_mask(
    data: bytes | np.ndarray,
    image_size: tuple[int, int],
    size: int,
    box: Box,
    mirrored: bool = False,
) -> UInt8[np.ndarray, "size size"]:
    """Decodes, crops and resizes a mask as its image is.

    Args:
      data: an encoded file, or uint8 `[H, W]`.
      image_size: width and height of the image, the right way up.
      size: side of the result in pixels.
      box: what is shown.
      mirrored: whether it is flipped left to right.

    Raises:
      BadImage: the mask cannot be read, or is of another size than its image.
    """
    mask = checked_mask(data, image_size)
    return image_backend.resized_mask(mask, size, box, mirrored)


def checked_mask(
    data: bytes | np.ndarray, image_size: tuple[int, int]
) -> UInt8[np.ndarray, "H W"]:
    """Decodes a mask that must be of its image's size.

    Args:
      data: an encoded file, or uint8 `[H, W]`.
      image_size: width and height of the image, the right way up.

    Raises:
      BadImage: the mask cannot be read, or is of another size.
    """
    mask = decode_mask(data)
    if mask.shape[1::-1] != image_size:
        width, height = image_size
        raise BadImage(
            f"the mask has {mask.shape[1]}x{mask.shape[0]} pixels and its "
            f"image {width}x{height}"
        )
    return mask
