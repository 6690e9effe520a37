"""What happens to one image: the training chain and the evaluation views.

On the host, uint8 to uint8, all randomness from the generator that is handed
in; decoded by Pillow, then by whatever forms.py chooses. The chain is
torchvision 0.29's RandomResizedCrop, RandomHorizontalFlip, RandAugment,
ColorJitter and RandomGrayscale, in that order, then, where a recipe asks for
them, gamma, blur, downscaling, JPEG compression and coarse dropout: a photo's
what stands before it. The end of it may be left to the device, and
RandomErasing and everything between images follow there, in mixing.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from input_pipeline.backends import image_backend, pixel_math
from input_pipeline.backends.image_backend import AnyImage
from input_pipeline.decoding import (
    BadImage,
    check_pixels,
    decode,
    open_image,
    reduce_jpeg,
    upright_rgb,
    upright_size,
)
from input_pipeline.transforms import degradations, operations
from input_pipeline.transforms.operations import Operation

__all__ = ["VIEWS", "Augment", "BadImage", "decode", "eval_image"]
__all__ += ["prepared_train_image", "random_crop_box", "train_image"]

VIEWS = ("center", "center_flip", "crop", "crop_flip")

# The share of the resized short side that the centre crop keeps.
CENTER_CROP = 224 / 256

# ColorJitter's steps, in the order of `Augment.jitter`.
JITTER = ("brightness", "contrast", "saturation", "hue")

# The scale of the random crop among the evaluation views.
VIEW_CROP_SCALE = (0.9, 1.0)


@dataclasses.dataclass(frozen=True)
class Augment:
    """The strength of each step of the training chain.

    Attributes:
      crop_scale: smallest and largest share of the area that a crop keeps.
      crop_ratio: narrowest and widest aspect ratio of a crop.
      flip: probability of a mirror image.
      randaugment_ops: operations per image; 0 leaves RandAugment out.
      randaugment_magnitude: their strength, bin 0 to 30.
      jitter: largest change of brightness, contrast, saturation (factors
        around 1) and hue (share of the circle); 0 leaves one out.
      jitter_prob: probability that an image is jittered at all.
      grayscale: probability that an image loses its colours.
      gamma: probability of a gamma of 0.8 to 1.2.
      blur: probability of a Gaussian blur of 0.1 to 2 pixels.
      downscale: probability of a loss of resolution to 25 to 75 %.
      jpeg: probability of JPEG compression at quality 40 to 90.
      coarse_dropout: probability of 1 to 8 black rectangles with sides of 10
        to 20 % of the image's.
      device: whether the device does what it can of colour and sharpness,
        inside the training step: the same operations, drawn from the same
        numbers. Spares the host about a quarter of its work.
    """

    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    flip: float = 0.5
    randaugment_ops: int = 2
    randaugment_magnitude: int = 9
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_prob: float = 1.0
    grayscale: float = 0.0
    gamma: float = 0.0
    blur: float = 0.0
    downscale: float = 0.0
    jpeg: float = 0.0
    coarse_dropout: float = 0.0
    device: bool = False

    @property
    def device_slots(self) -> int:
        """How many operations of one image the device may be left with."""
        return self.randaugment_ops + len(JITTER) + 1


def train_image(
    data: bytes | np.ndarray,
    augment: Augment,
    size: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Decodes and augments one image.

    Args:
      data: an encoded file, or pixels uint8 `[H, W, 3]`.
      augment: what to do and how strongly.
      size: side of the result in pixels.
      rng: the only source of randomness.

    Returns:
      uint8 `[size, size, 3]`.

    Raises:
      BadImage: the data cannot be read.
    """
    image, drawn = _cropped(data, augment, size, rng)
    return image_backend.pixels(operations.apply(image, drawn))


def prepared_train_image(
    data: bytes | np.ndarray,
    augment: Augment,
    size: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[Operation]]:
    """As `train_image`, as far as the host must go.

    Returns:
      uint8 `[size, size, 3]`, and what is left for the device: nothing,
      unless `augment.device`.
    """
    image, drawn = _cropped(data, augment, size, rng)
    left: list[Operation] = []
    if augment.device:
        drawn, left = operations.split(drawn)
    return image_backend.pixels(operations.apply(image, drawn)), left


def _cropped(
    data: bytes | np.ndarray,
    augment: Augment,
    size: int,
    rng: np.random.Generator,
) -> tuple[AnyImage, list[Operation]]:
    """The crop, mirrored or not, and what is to happen to it."""
    image, crop, box = _random_crop(data, augment, size, rng)
    mirrored = bool(rng.random() < augment.flip)
    cropped = image_backend.resized(image, size, crop, box, mirrored)
    return cropped, draw_operations(augment, size, rng)


def _random_crop(
    data: bytes | np.ndarray,
    augment: Augment,
    size: int,
    rng: np.random.Generator,
) -> tuple[Image.Image | np.ndarray, tuple | None, tuple | None]:
    """What RandomResizedCrop is to resize, for an image not decoded yet.

    Of a JPEG whose crop has at least twice as many pixels a side as are
    asked for, no more are decoded than that takes, which for photos of
    megapixels halves the time. The result is half a grey level off on average
    (a photo that is both turned and of a size that the factor does not divide
    is off by a part of a pixel more).

    Returns:
      The decoded image, and `forms.resized`'s crop and box. It is the crop
      where all was decoded: a box would let pixels outside it into its
      border, which torchvision does not.
    """

    def drawn(width: int, height: int) -> tuple[int, int, int, int]:
        scale, ratio = augment.crop_scale, augment.crop_ratio
        return random_crop_box(width, height, scale, ratio, rng)

    if isinstance(data, np.ndarray):
        check_pixels(data)
        height, width, _ = data.shape
        return data, drawn(width, height), None
    image = open_image(data)
    if image.format != "JPEG":  # MPO files, too, are decoded in full.
        image = upright_rgb(image)
        return image, drawn(*image.size), None
    crop = drawn(*upright_size(image))
    shorter = min(crop[2] - crop[0], crop[3] - crop[1])
    factor = next((f for f in (8, 4, 2) if shorter >= f * size), 1)
    factor = reduce_jpeg(image, factor)
    image = upright_rgb(image)
    if factor == 1:
        return image, crop, None
    return image, None, tuple(edge / factor for edge in crop)


def draw_operations(
    augment: Augment, size: int, rng: np.random.Generator
) -> list[Operation]:
    """Draws what happens to a crop.

    Args:
      augment: how strongly.
      size: side of the crop in pixels.
      rng: the only source of randomness.
    """
    drawn = _draw_randaugment(augment, size, rng)
    if rng.random() < augment.jitter_prob:
        drawn += _draw_jitter(augment.jitter, rng)
    if rng.random() < augment.grayscale:
        drawn.append(Operation("grayscale"))
    return drawn + _draw_degradations(augment, size, rng)


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


def _draw_randaugment(
    augment: Augment, size: int, rng: np.random.Generator
) -> list[Operation]:
    """RandAugment (Cubuk et al. 2019): operations drawn with replacement."""
    names, drawn = tuple(pixel_math.RANDAUGMENT), []
    for _ in range(augment.randaugment_ops):
        name = names[rng.integers(len(names))]
        strength = pixel_math.magnitude(
            name, augment.randaugment_magnitude, size, size
        )
        if pixel_math.RANDAUGMENT[name] and rng.random() < 0.5:
            strength = -strength
        operation = operations.randaugment(name, strength)
        if operation is not None:
            drawn.append(operation)
    return drawn


def _draw_jitter(
    jitter: tuple[float, float, float, float], rng: np.random.Generator
) -> list[Operation]:
    """Brightness, contrast, saturation and hue in a random order."""
    drawn = []
    for step in rng.permutation(4):
        amount = jitter[step]
        if amount == 0:
            continue
        if JITTER[step] == "hue":
            value = rng.uniform(-amount, amount)
        else:
            value = rng.uniform(max(0.0, 1 - amount), 1 + amount)
        drawn.append(Operation(JITTER[step], value))
    return drawn


def _draw_degradations(
    augment: Augment, size: int, rng: np.random.Generator
) -> list[Operation]:
    """The stronger chain, see degradations.py.

    It comes last and draws last: with all of it off, an image is to the bit
    what it was before there was any.
    """
    drawn = []

    def add(name: str, value: object) -> None:
        drawn.append(Operation(name, value))

    if rng.random() < augment.gamma:
        add("gamma", rng.uniform(*degradations.GAMMAS))
    if rng.random() < augment.blur:
        add("gaussian_blur", rng.uniform(*degradations.BLUR_SIGMAS))
    if rng.random() < augment.downscale:
        add("downscale", rng.uniform(*degradations.DOWNSCALES))
    if rng.random() < augment.jpeg:
        qualities = degradations.JPEG_QUALITIES
        add("jpeg", int(rng.integers(*qualities, endpoint=True)))
    if rng.random() < augment.coarse_dropout:
        add("coarse_dropout", degradations.sample_holes(size, size, rng))
    return drawn


def eval_image(
    data: bytes | np.ndarray,
    views: Sequence[str],
    size: int,
    image_id: str,
) -> np.ndarray:
    """Decodes one image and cuts its evaluation views.

    `center`: the short side resized to `round(size * 256 / 224)`, the middle
    cut out. `crop`: a RandomResizedCrop of at least 90 % of the area, drawn
    from the image's id alone. With `_flip`: the same, mirrored.

    Args:
      data: an encoded file, or pixels uint8 `[H, W, 3]`.
      views: names out of `VIEWS`.
      size: side of a view in pixels.
      image_id: what `crop` is drawn from.

    Returns:
      uint8 `[len(views), size, size, 3]`.

    Raises:
      BadImage: the data cannot be read.
    """
    image = upright_rgb(open_image(data))
    cuts: dict[str, np.ndarray] = {}
    result = np.empty((len(views), size, size, 3), np.uint8)
    for position, view in enumerate(views):
        base = view.removesuffix("_flip")
        if base not in cuts:
            if base == "center":
                cut = _center_view(image, size)
            else:
                cut = _crop_view(image, size, image_id)
            cuts[base] = image_backend.pixels(cut)
        pixels = cuts[base]
        result[position] = pixels[:, ::-1] if view != base else pixels
    return result


def _center_view(image: Image.Image, size: int) -> AnyImage:
    """torchvision's Resize and CenterCrop in one call.

    Resizing only what the crop keeps also bounds the memory: the whole of a
    2000x3 image at this height would be 170,000 pixels wide.
    """
    width, height = image.size
    short = round(size / CENTER_CROP)
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    left = round((new_width - size) / 2.0)
    top = round((new_height - size) / 2.0)
    box = (
        left * width / new_width,
        top * height / new_height,
        (left + size) * width / new_width,
        (top + size) * height / new_height,
    )
    return image_backend.resized(image, size, box=box)


def _crop_view(image: Image.Image, size: int, image_id: str) -> AnyImage:
    seed = hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest()
    rng = np.random.Generator(
        np.random.Philox(key=int.from_bytes(seed[:16], "little"))
    )
    box = random_crop_box(*image.size, VIEW_CROP_SCALE, (3 / 4, 4 / 3), rng)
    return image_backend.resized(image, size, crop=box)
