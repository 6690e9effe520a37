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
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.backends import image_backend, pixel_math
from input_pipeline.decoding import (
    check_pixels,
    open_image,
    reduce_jpeg,
    upright_rgb,
    upright_size,
)
from input_pipeline.sources.base import Kind
from input_pipeline.transforms import degradations, operations
from input_pipeline.transforms.operations import Operation

# ColorJitter's steps, in the order of `Augment.jitter`.
JITTER = ("brightness", "contrast", "saturation", "hue")


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


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """An example to what training sees of it.

    Attributes:
      policy: what to do and how strongly.
      size: side of the result in pixels.
    """

    policy: Augment
    size: int

    def spec(
        self, kinds: Mapping[str, Kind]
    ) -> dict[str, tuple[tuple[int, ...], type]]:
        """`image` uint8 `[size, size, 3]`.

        With `policy.device` also what `on_device.apply` is to do with it:
        `operation` uint8 `[S]` and `strength` float32 `[S]`.
        """
        found = {"image": ((self.size, self.size, 3), np.uint8)}
        if self.policy.device:
            slots = (self.policy.device_slots,)
            found |= {
                "operation": (slots, np.uint8),
                "strength": (slots, np.float32),
            }
        return found

    def __call__(
        self, example: Mapping[str, Any], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Decodes and augments an example.

        Args:
          example: `image`, an encoded file or uint8 `[H, W, 3]`.
          rng: the only source of randomness.

        Raises:
          BadImage: the image cannot be read.
        """
        policy, size = self.policy, self.size
        image, crop, box = _random_crop(example["image"], policy, size, rng)
        mirrored = bool(rng.random() < policy.flip)
        cropped = image_backend.resized(image, size, crop, box, mirrored)
        drawn = draw_operations(policy, size, rng)
        found = {}
        if policy.device:
            drawn, left = operations.split(drawn)
            found = operations.encode(left, policy.device_slots)
        done = operations.apply(cropped, drawn)
        return {"image": image_backend.pixels(done), **found}


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
