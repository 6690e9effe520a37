"""The stronger chain: losses of cameras, networks and obstacles.

Gamma, Gaussian blur, downscaling, JPEG compression and coarse dropout, each
as albumentations 2.0.8 defines it with the same parameters (by OpenCV there);
tests/input_pipeline compares them with its stored answers. Pillow image in,
Pillow image out, mode RGB.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

# Ranges that are drawn from.
GAMMAS = (0.8, 1.2)
# As SimCLR (Chen et al. 2020); pixels of the augmented image.
BLUR_SIGMAS = (0.1, 2.0)
DOWNSCALES = (0.25, 0.75)
# As on the web: invisible at 90, at 40 blocks show in flat areas.
JPEG_QUALITIES = (40, 90)
# albumentations' RandomBrightnessContrast: contrast factor 1 +- .2, then
# +- .2 of the full range added, without regard to the image's mean.
CONTRASTS, BRIGHTNESSES = (0.8, 1.2), (-0.2, 0.2)
# Grey levels: variance 10 to 50, GaussNoise of albumentations 1.x.
NOISE_STDS = (10**0.5, 50**0.5)
HOLES = (1, 8)
HOLE_SIDES = (0.1, 0.2)  # shares of height and width


def gamma_table(exponent: float) -> UInt8[np.ndarray, 256]:
    """Raises all values to a power, of the scale 0 to 1: uint8 `[256]`.

    `floor(255 * (value / 255) ** exponent)`. Above 1 it darkens, below 1 it
    brightens; black and white stay.
    """
    table = 255.0 * (np.arange(256) / 255.0) ** exponent
    # 255 * (v / 255) is now and then a last bit below the integer v.
    return (table + 1e-9).astype(np.uint8)


def brightness_contrast_table(
    value: tuple[float, float],
) -> UInt8[np.ndarray, 256]:
    """Returns contrast * v + 255 * brightness for the 256 values, clipped."""
    contrast, brightness = value
    table = contrast * np.arange(256) + 255 * brightness
    return np.clip(table, 0, 255).astype(np.uint8)


def noise(image: Image.Image, value: tuple[float, int]) -> Image.Image:
    """Adds independent normal noise to every channel of every pixel.

    Args:
      image: mode RGB.
      value: standard deviation in grey levels, and a seed.
    """
    std, seed = value
    pixels = np.asarray(image)
    rng = np.random.Generator(np.random.Philox(key=seed))
    noisy = rng.standard_normal(pixels.shape, np.float32) * np.float32(std)
    noisy += pixels
    noisy += np.float32(0.5)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def gaussian_blur(image: Image.Image, sigma: float) -> Image.Image:
    """Convolves with a sampled Gaussian, rows and columns in turn.

    The kernel has `2 * floor(3.5 * sigma) + 1` taps and sums to one; beyond
    its edge the image is mirrored, the outermost pixel not repeated. Rounded
    to the nearest level at the end.

    Args:
      image: mode RGB.
      sigma: standard deviation in pixels; below 2/7 nothing changes.
    """
    radius = int(sigma * 3.5)
    if radius == 0:
        return image
    kernel = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    kernel /= 2 * kernel.sum() - kernel[0]
    weights = kernel.astype(np.float32).tolist()
    pixels = np.asarray(image, np.float32)
    pixels = _convolve(_convolve(pixels, weights, 0), weights, 1)
    pixels += np.float32(0.5)
    return Image.fromarray(pixels.astype(np.uint8))


def _convolve(
    pixels: np.ndarray, weights: list[float], axis: int
) -> np.ndarray:
    """One pass of a symmetric kernel, given from its centre outwards."""
    radius, length = len(weights) - 1, pixels.shape[axis]
    wide = pixels.take(_mirrored(length, radius), axis)
    window = [slice(None)] * 3

    def shifted(by: int) -> np.ndarray:
        window[axis] = slice(radius + by, radius + by + length)
        return wide[tuple(window)]

    total = shifted(0) * weights[0]
    pair = np.empty_like(total)
    for distance in range(1, radius + 1):
        np.add(shifted(distance), shifted(-distance), out=pair)
        pair *= weights[distance]
        total += pair
    return total


@functools.lru_cache(maxsize=64)
def _mirrored(length: int, radius: int) -> np.ndarray:
    """Indices -radius to length + radius - 1, mirrored at both ends."""
    if length == 1:
        return np.zeros(1 + 2 * radius, np.intp)
    period = 2 * (length - 1)
    indices = np.arange(-radius, length + radius) % period
    return np.minimum(indices, period - indices)


def downscale(image: Image.Image, scale: float) -> Image.Image:
    """Keeps every `1 / scale`-th pixel and enlarges it to the old size.

    Nearest neighbour both ways: pixel x of the small image, `round(scale *
    width)` wide, is pixel `floor(x / scale)` of the large one.
    """
    pixels = np.asarray(image)
    rows = _coarse(image.height, scale)
    columns = _coarse(image.width, scale)
    return Image.fromarray(pixels.take(rows, 0).take(columns, 1))


def _coarse(length: int, scale: float) -> np.ndarray:
    """Which old pixel each pixel shows after both resizes: `[length]`."""
    small = max(round(length * scale), 1)
    taken = np.minimum(np.arange(small) / scale, length - 1)
    return taken.astype(np.intp)[np.arange(length) * small // length]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Compresses as JPEG, colours at half resolution (4:2:0), and decodes.

    Args:
      image: mode RGB.
      quality: 1 to 100, libjpeg's scale.
    """
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(buffer, formats=("JPEG",)) as compressed:
        compressed.load()
    # Forget the file behind it: its orientation, its format.
    return compressed.copy()


def coarse_dropout(
    image: Image.Image, holes: Integer[np.ndarray, "n 4"]
) -> Image.Image:
    """Blackens rectangles (DeVries & Taylor 2017, with several holes).

    Args:
      image: mode RGB.
      holes: int `[n, 4]`, left, top, right, bottom in pixels.
    """
    pixels = np.array(image)
    for left, top, right, bottom in holes:
        pixels[top:bottom, left:right] = 0
    return Image.fromarray(pixels)


def sample_holes(
    width: int, height: int, rng: np.random.Generator
) -> Integer[np.ndarray, "n 4"]:
    """Draws the rectangles of `coarse_dropout`.

    `HOLES` in number, each side uniform in `HOLE_SIDES` of the image's, the
    position uniform among those wholly inside.

    Returns:
      int `[n, 4]`, left, top, right, bottom.
    """
    count = int(rng.integers(HOLES[0], HOLES[1], endpoint=True))
    sizes = rng.uniform(*HOLE_SIDES, (count, 2))
    sizes = (sizes * (width, height)).astype(int)
    corners = rng.integers(0, (width, height) - sizes, endpoint=True)
    return np.concatenate([corners, corners + sizes], axis=1)
