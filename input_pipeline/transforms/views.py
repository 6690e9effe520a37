"""The views of an image that evaluation and prediction see."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from core.errors import UserError
from input_pipeline.backends import image_backend
from input_pipeline.backends.image_backend import AnyImage
from input_pipeline.decoding import open_image, upright_rgb
from input_pipeline.sources.base import Kind
from input_pipeline.transforms.policy import random_crop_box

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

    views: Sequence[str]
    size: int

    def __post_init__(self):
        unknown = [view for view in self.views if view not in VIEWS]
        if unknown or not self.views:
            raise UserError(
                f"there is no evaluation view '{', '.join(unknown)}'; choose "
                f"from {', '.join(VIEWS)}"
            )

    def spec(
        self, kinds: Mapping[str, Kind]
    ) -> dict[str, tuple[tuple[int, ...], type]]:
        """`image` uint8 `[V, size, size, 3]`."""
        shape = (len(self.views), self.size, self.size, 3)
        return {"image": (shape, np.uint8)}

    def __call__(
        self, example: Mapping[str, Any], rng: None = None
    ) -> dict[str, np.ndarray]:
        """Decodes an image and cuts its views.

        Args:
          example: `image`, an encoded file or uint8 `[H, W, 3]`, and `id`.
          rng: not needed.

        Raises:
          BadImage: the image cannot be read.
        """
        image = upright_rgb(open_image(example["image"]))
        cuts: dict[str, np.ndarray] = {}
        views = np.empty(self.spec({})["image"][0], np.uint8)
        for index, view in enumerate(self.views):
            base = view.removesuffix("_flip")
            if base not in cuts:
                if base == "center":
                    cut = _center_view(image, self.size)
                else:
                    cut = _crop_view(image, self.size, example["id"])
                cuts[base] = image_backend.pixels(cut)
            pixels = cuts[base]
            views[index] = pixels[:, ::-1] if view != base else pixels
        return {"image": views}


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
    box = random_crop_box(*image.size, CROP_SCALE, (3 / 4, 4 / 3), rng)
    return image_backend.resized(image, size, crop=box)
