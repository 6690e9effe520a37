"""The views of an image that evaluation and prediction see."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from core.class_colours import IGNORE
from core.errors import UserError
from input_pipeline.backends import image_backend
from input_pipeline.decoding import open_image, upright_rgb
from input_pipeline.sources.base import Kind, Spec
from input_pipeline.transforms import geometry

VIEWS = ("center", "center_flip", "crop", "crop_flip")

# The share of the resized short side that the centre crop keeps.
CENTER_CROP = 224 / 256

# The scale of the random crop among the views.
CROP_SCALE = (0.9, 1.0)


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """An image to its evaluation views.

    `center`: the short side resized to `round(size * 256 / 224)`, the middle
    cut out. `crop`: a RandomResizedCrop of at least 90 % of the area, drawn
    from the example's id alone. With `_flip`: the same, mirrored.

    Attributes:
      views: V names out of `VIEWS`.
      size: side of a view in pixels.

    Raises:
      UserError: there is no such view, or none is named.
    """

    if_unreadable: ClassVar[str] = "keeps its row with the class prior"
    views: Sequence[str]
    size: int

    def __post_init__(self):
        unknown = [view for view in self.views if view not in VIEWS]
        if unknown or not self.views:
            raise UserError(
                f"there is no evaluation view '{', '.join(unknown)}'; choose "
                f"from {', '.join(VIEWS)}"
            )

    def spec(self, kinds: Mapping[str, Kind]) -> Spec:
        """Returns shapes and dtypes of what a call returns.

        `image` uint8 `[V, size, size, 3]`, and `mask` uint8 `[size, size]`,
        of the view `center` alone, if the examples have one.
        """
        side = (self.size, self.size)
        spec: Spec = {"image": ((len(self.views), *side, 3), np.uint8)}
        if kinds.get("mask") is Kind.MASK and "center" in self.views:
            spec["mask"] = side, np.uint8
        return spec

    def __call__(
        self, example: Mapping[str, Any], rng: None = None
    ) -> dict[str, np.ndarray]:
        """Decodes an image and cuts its views.

        Args:
          example: `image`, an encoded file or uint8 `[H, W, 3]`, `id`, and
            perhaps `mask`, an encoded file or uint8 `[H, W]`.
          rng: not needed.

        Raises:
          BadImage: image or mask cannot be read.
        """
        image, size = upright_rgb(open_image(example["image"])), self.size
        center = _center_box(*image.size, size)
        cuts: dict[str, np.ndarray] = {}
        views = []
        for view in self.views:
            base = view.removesuffix("_flip")
            if base not in cuts:
                if base == "center":
                    cut = image_backend.resized(image, size, box=center)
                else:
                    crop = _random_crop(*image.size, example["id"])
                    cut = image_backend.resized(image, size, crop=crop)
                cuts[base] = image_backend.pixels(cut)
            pixels = cuts[base]
            views.append(pixels[:, ::-1] if view != base else pixels)
        features = {"image": np.stack(views)}
        if "mask" in example and "center" in self.views:
            features["mask"] = geometry.resized_mask(
                example["mask"], image.size, size, center
            )
        return features


@dataclasses.dataclass(frozen=True)
class SquareTransform:
    """The largest square in the middle of an image, resized.

    Attributes:
      size: side of the result in pixels.
    """

    if_unreadable: ClassVar[str] = "left out"
    size: int

    def spec(self, kinds: Mapping[str, Kind]) -> Spec:
        """Returns the shape of what a call returns: `image` uint8
        `[1, size, size, 3]`."""
        return {"image": ((1, self.size, self.size, 3), np.uint8)}

    def __call__(
        self, example: Mapping[str, Any], rng: None = None
    ) -> dict[str, np.ndarray]:
        """Decodes, cuts and resizes an image.

        Args:
          example: `image`, an encoded file or uint8 `[H, W, 3]`.
          rng: not needed.

        Raises:
          BadImage: it cannot be read.
        """
        image = upright_rgb(open_image(example["image"]))
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        box = (left, top, left + side, top + side)
        square = image_backend.resized(image, self.size, box=box)
        return {"image": image_backend.pixels(square)[None]}


# Flips of a whole image, by name: left to right, upside down. `whole@0.75` is
# the whole at three quarters of the size.
WHOLE_VIEWS = {
    "whole": (False, False),
    "flip": (True, False),
    "flip_vertical": (False, True),
    "flip_both": (True, True),
}

# Beyond these a network sees nothing that it has learned.
WHOLE_SCALES = (0.25, 4.0)


def parse_whole_view(name: str) -> tuple[tuple[bool, bool], float]:
    """Returns the flips and the scale of a view of a whole image.

    Args:
      name: out of `WHOLE_VIEWS`, perhaps with a scale, as in `flip@1.25`.

    Raises:
      UserError: there is no such view.
    """
    flip, at, factor = name.partition("@")
    try:
        scale = float(factor) if at else 1.0
    except ValueError:
        scale = math.nan
    low, high = WHOLE_SCALES
    if flip in WHOLE_VIEWS and low <= scale <= high:
        return WHOLE_VIEWS[flip], scale
    near = difflib.get_close_matches(flip, WHOLE_VIEWS, 1)
    hint = ""
    if near and flip not in WHOLE_VIEWS:
        hint = f"did you mean {near[0]}{at}{factor}? "
    raise UserError(
        f"there is no view {name!r}; {hint}choose from "
        f"{', '.join(WHOLE_VIEWS)}, each perhaps with a scale from {low:g} to "
        f"{high:g}, as in whole@0.75"
    )


@dataclasses.dataclass(frozen=True)
class WholeTransform:
    """An image in whole, resized to a square, and its mask as it is.

    Attributes:
      size: side of the result in pixels.
      canvas: width and height of the masks' frame. A mask lies in its upper
        left corner; a larger one is reduced to fit, by nearest neighbour.
    """

    if_unreadable: ClassVar[str] = "gets no mask"
    size: int
    canvas: tuple[int, int] = (0, 0)

    def spec(self, kinds: Mapping[str, Kind]) -> Spec:
        """Returns shapes and dtypes of what a call returns.

        `image` uint8 `[1, size, size, 3]`, `size` int32 `[2]`, width and
        height of the original, and with masks and a canvas `mask` uint8
        `[height, width]` of it and `mask_size` int32 `[2]`, what the mask
        fills of it.
        """
        spec: Spec = {
            "image": ((1, self.size, self.size, 3), np.uint8),
            "size": ((2,), np.int32),
        }
        if kinds.get("mask") is Kind.MASK and self.canvas[0]:
            spec["mask"] = self.canvas[::-1], np.uint8
            spec["mask_size"] = (2,), np.int32
        return spec

    def __call__(
        self, example: Mapping[str, Any], rng: None = None
    ) -> dict[str, np.ndarray]:
        """Decodes and resizes an image.

        Args:
          example: `image`, an encoded file or uint8 `[H, W, 3]`, and perhaps
            `mask`, an encoded file or uint8 `[H, W]`.
          rng: not needed.

        Raises:
          BadImage: image or mask cannot be read.
        """
        image = upright_rgb(open_image(example["image"]))
        whole = image_backend.resized(image, self.size, box=(0, 0, *image.size))
        features = {
            "image": image_backend.pixels(whole)[None],
            "size": np.array(image.size, np.int32),
        }
        if "mask" in example and self.canvas[0]:
            mask = geometry.checked_mask(example["mask"], image.size)
            features |= self._framed(mask)
        return features

    def _framed(self, mask: np.ndarray) -> dict[str, np.ndarray]:
        height, width = mask.shape
        scale = min(1, self.canvas[0] / width, self.canvas[1] / height)
        size = max(1, int(width * scale)), max(1, int(height * scale))
        if scale < 1:
            shrunk = Image.fromarray(mask).resize(
                size, Image.Resampling.NEAREST
            )
            mask = np.asarray(shrunk)
        frame = np.full(self.canvas[::-1], IGNORE, np.uint8)
        frame[: size[1], : size[0]] = mask
        return {"mask": frame, "mask_size": np.array(size, np.int32)}


class AlignedTransform(WholeTransform):
    """An aligned picture, which is compared with others as it is."""

    if_unreadable: ClassVar[str] = "is at cosine 0 to all others"


def _center_box(width: int, height: int, size: int) -> geometry.Box:
    """What torchvision's Resize and CenterCrop keep of an image.

    Resizing only that also bounds the memory: the whole of a 2000x3 image at
    this height would be 170,000 pixels wide.
    """
    short = round(size / CENTER_CROP)
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    left = round((new_width - size) / 2.0)
    top = round((new_height - size) / 2.0)
    return (
        left * width / new_width,
        top * height / new_height,
        (left + size) * width / new_width,
        (top + size) * height / new_height,
    )


def _random_crop(
    width: int, height: int, name: str
) -> tuple[int, int, int, int]:
    """A crop drawn from an id."""
    ratio, rng = (3 / 4, 4 / 3), generator_of(name)
    return geometry.random_crop_box(width, height, CROP_SCALE, ratio, rng)


def generator_of(name: str) -> np.random.Generator:
    """Returns a generator that follows from an example's id alone."""
    seed = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return np.random.Generator(
        np.random.Philox(key=int.from_bytes(seed[:16], "little"))
    )
