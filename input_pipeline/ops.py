"""The torchvision operations on one image: Pillow image in, Pillow image out.

Each gives what torchvision 0.29 gives on a Pillow image with the same
parameters, identical or one grey level off; tests/input_pipeline compares
them with stored answers of torchvision. Images are mode RGB throughout.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

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
    last = NUM_MAGNITUDE_BINS - 1
    start, end = np.float32(start), np.float32(end)
    step = (end - start) / np.float32(last)
    if position < NUM_MAGNITUDE_BINS // 2:
        return float(start + step * np.float32(position))
    return float(end - step * np.float32(last - position))


def randaugment_op(
    image: Image.Image, name: str, strength: float
) -> Image.Image:
    """Applies one of `RANDAUGMENT` with a (signed) strength."""
    match name:
        case "Identity":
            return image
        case "ShearX":
            shear = math.tan(math.radians(math.degrees(math.atan(strength))))
            return _affine(image, (1.0, shear, 0.0, 0.0, 1.0, 0.0))
        case "ShearY":
            shear = math.tan(math.radians(math.degrees(math.atan(strength))))
            return _affine(image, (1.0, 0.0, 0.0, shear, 1.0, 0.0))
        case "TranslateX":
            return _affine(image, (1.0, 0.0, -int(strength), 0.0, 1.0, 0.0))
        case "TranslateY":
            return _affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, -int(strength)))
        case "Rotate":
            return image.rotate(strength, Image.Resampling.NEAREST)
        case "Brightness":
            return brightness(image, 1.0 + strength)
        case "Color":
            return saturation(image, 1.0 + strength)
        case "Contrast":
            return contrast(image, 1.0 + strength)
        case "Sharpness":
            return sharpness(image, 1.0 + strength)
        case "Posterize":
            return ImageOps.posterize(image, int(strength))
        case "Solarize":
            return ImageOps.solarize(image, strength)
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
    raise ValueError(f"unknown RandAugment operation {name!r}")


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Maps output to input pixels, nearest neighbour, black outside."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST
    )


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Scales all values by `factor`."""
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Scales the distance from the mean grey by `factor`."""
    return ImageEnhance.Contrast(image).enhance(factor)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """Scales the distance from the pixel's own grey by `factor`."""
    return ImageEnhance.Color(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Scales the distance from the smoothed image by `factor`."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def hue(image: Image.Image, shift: float) -> Image.Image:
    """Turns the hue by `shift`, -0.5 to 0.5 of the whole circle."""
    h, s, v = image.convert("HSV").split()
    step = int(shift * 255) % 256
    h = h.point([(value + step) % 256 for value in range(256)])
    return Image.merge("HSV", (h, s, v)).convert("RGB")


def grayscale(image: Image.Image) -> Image.Image:
    """Luminance in all three channels."""
    return image.convert("L").convert("RGB")
