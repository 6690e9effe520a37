"""The augmentation of a training example: strengths, draws, the transform.

On the host, uint8 to uint8, all randomness from the generator that is given.
The chain is torchvision 0.29's RandomResizedCrop, RandomHorizontalFlip,
RandAugment, ColorJitter and RandomGrayscale, in that order, then, where a
recipe asks for them, gamma, blur, downscaling, JPEG compression and coarse
dropout, and for masks turns, zoom and crops of more than one class. The end
of it may be left to the device; RandomErasing and mixing follow there, in
mixing.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from core.class_colours import IGNORE
from input_pipeline.backends import image_backend
from input_pipeline.sources.base import Kind, Spec
from input_pipeline.transforms import degradations, geometry, operations
from input_pipeline.transforms.operations import Operation

# How often a crop of one class alone is drawn anew (mmseg's RandomCrop).
CROP_DRAWS = 10

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
      flip_vertical: probability of a picture upside down.
      transpose: probability that rows and columns are exchanged; with both
        flips, all eight positions of a square.
      rotate: largest turn in degrees, either way; 0 leaves it out.
      zoom: smallest and largest enlargement; below 1 the picture shrinks.
        As with turns, what comes in from outside is black, and ignored in a
        mask.
      crop_max_share: of a crop's pixels, the most that one class may have;
        up to ten crops are drawn. 1 takes the first.
      brightness_contrast: probability of a linear change of all values.
      noise: probability of Gaussian noise.
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
    flip_vertical: float = 0.0
    transpose: float = 0.0
    rotate: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    crop_max_share: float = 1.0
    brightness_contrast: float = 0.0
    noise: float = 0.0
    device: bool = False

    @property
    def device_slots(self) -> int:
        """How many operations of one image the device may be left with."""
        return self.randaugment_ops + len(JITTER) + 1


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Augments an example: geometry image and mask alike, colour the image.

    Attributes:
      policy: what to do and how strongly.
      size: side of the result in pixels.
    """

    if_unreadable: ClassVar[str] = "left out of training"
    policy: Augment
    size: int

    def spec(self, kinds: Mapping[str, Kind]) -> Spec:
        """Returns shapes and dtypes of what a call returns.

        `image` uint8 `[size, size, 3]`; `mask` uint8 `[size, size]` if the
        examples have one; with `policy.device` also what `on_device.apply` is
        to do, `operation` uint8 `[S]` and `strength` float32 `[S]`.
        """
        spec: Spec = {"image": ((self.size, self.size, 3), np.uint8)}
        if kinds.get("mask") is Kind.MASK:
            spec["mask"] = (self.size, self.size), np.uint8
        if self.policy.device:
            slots = (self.policy.device_slots,)
            spec["operation"] = slots, np.uint8
            spec["strength"] = slots, np.float32
        return spec

    def __call__(
        self, example: Mapping[str, Any], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Decodes and augments an example.

        Args:
          example: `image`, an encoded file or uint8 `[H, W, 3]`, and perhaps
            `mask`, an encoded file or uint8 `[H, W]`.
          rng: the only source of randomness.

        Raises:
          BadImage: image or mask cannot be read.
        """
        policy, size = self.policy, self.size
        image, *full = geometry.open_sized(example["image"])
        crop = self._draw_crop(full, example.get("mask"), rng)
        mirrored = bool(rng.random() < policy.flip)
        drawn = draw_operations(policy, size, rng)
        upside_down = bool(rng.random() < policy.flip_vertical)
        transposed = bool(rng.random() < policy.transpose)
        features = {}
        if "mask" in example:
            mask = geometry.resized_mask(
                example["mask"], tuple(full), size, crop, mirrored
            )
            features["mask"] = operations.apply_to_mask(mask, drawn, IGNORE)
        if policy.device:
            drawn, left = operations.split(drawn)
            features |= operations.encode(left, policy.device_slots)
        done = geometry.resized_crop(image, size, crop, mirrored)
        done = operations.apply(done, drawn)
        features["image"] = image_backend.pixels(done)
        # Last: they commute with all that looks at a pixel's neighbours alike.
        for name in ("image", "mask"):
            if name in features and (upside_down or transposed):
                turned = features[name][:: -1 if upside_down else 1]
                features[name] = turned.swapaxes(0, 1) if transposed else turned
        return features

    def _draw_crop(
        self, full: list[int], mask: Any, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        policy = self.policy
        limit = policy.crop_max_share
        choosy = limit < 1 and isinstance(mask, np.ndarray)
        for _ in range(CROP_DRAWS if choosy else 1):
            crop = geometry.random_crop_box(
                *full, policy.crop_scale, policy.crop_ratio, rng
            )
            if not choosy:
                break
            left, top, right, bottom = crop
            counts = np.bincount(
                mask[top:bottom, left:right].ravel(), minlength=256
            )
            counts[IGNORE] = 0
            if 0 < counts.max() <= limit * counts.sum():
                break
        return crop


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


def randaugment(name: str, strength: float) -> Operation | None:
    """One of `RANDAUGMENT` with a (signed) strength; None does nothing."""
    match name:
        case "Identity":
            return None
        case "AutoContrast" | "Equalize":
            return Operation(name.lower())
        case "ShearX" | "ShearY":
            shear = math.tan(math.radians(math.degrees(math.atan(strength))))
            return Operation(f"shear_{name[-1].lower()}", shear)
        case "TranslateX" | "TranslateY":
            return Operation(f"translate_{name[-1].lower()}", int(strength))
        case "Rotate" | "Solarize":
            return Operation(name.lower(), strength)
        case "Posterize":
            return Operation("posterize", int(strength))
        case "Color":
            return Operation("saturation", 1.0 + strength)
        case "Brightness" | "Contrast" | "Sharpness":
            return Operation(name.lower(), 1.0 + strength)
    raise ValueError(f"unknown RandAugment operation {name!r}")


def _draw_randaugment(
    augment: Augment, size: int, rng: np.random.Generator
) -> list[Operation]:
    """RandAugment (Cubuk et al. 2019): operations drawn with replacement."""
    names, drawn = tuple(RANDAUGMENT), []
    for _ in range(augment.randaugment_ops):
        name = names[rng.integers(len(names))]
        strength = magnitude(name, augment.randaugment_magnitude, size, size)
        if RANDAUGMENT[name] and rng.random() < 0.5:
            strength = -strength
        operation = randaugment(name, strength)
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
    if rng.random() < augment.brightness_contrast:
        contrast = rng.uniform(*degradations.CONTRASTS)
        brightness = rng.uniform(*degradations.BRIGHTNESSES)
        add("brightness_contrast", (contrast, brightness))
    if rng.random() < augment.noise:
        std = rng.uniform(*degradations.NOISE_STDS)
        add("noise", (std, int(rng.integers(1 << 62))))
    if augment.rotate or augment.zoom != (1.0, 1.0):
        degrees = rng.uniform(-augment.rotate, augment.rotate)
        low, high = map(math.log, augment.zoom)
        value = degrees, math.exp(rng.uniform(low, high))
        # First: blur, blocks and noise do not turn with the scene.
        drawn.insert(0, Operation("turn_and_zoom", value))
    return drawn
