"""Two augmented views of an image that are the same at every evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from input_pipeline.sources.base import Kind, Spec
from input_pipeline.transforms.policy import Augment, TrainTransform
from input_pipeline.transforms.views import generator_of


@dataclasses.dataclass(frozen=True)
class AugmentedViews:
    """An image to two views, augmented as in training.

    What is drawn follows from the example's id alone.

    Attributes:
      policy: of the training; all of it happens here, none on the device.
      size: side of a view in pixels.
    """

    if_unreadable: ClassVar[str] = "left out of the evaluation"
    policy: Augment
    size: int

    def spec(self, kinds: Mapping[str, Kind]) -> Spec:
        """Returns the shape of what a call returns: `image` uint8
        `[2, size, size, 3]`."""
        return {"image": ((2, self.size, self.size, 3), np.uint8)}

    def __call__(
        self, example: Mapping[str, Any], rng: None = None
    ) -> dict[str, np.ndarray]:
        """Decodes an image and draws its views.

        Args:
          example: `image`, an encoded file or uint8 `[H, W, 3]`, and `id`.
          rng: not needed.

        Raises:
          BadImage: it cannot be read.
        """
        policy = dataclasses.replace(self.policy, device=False)
        transform = TrainTransform(policy, self.size)
        own = generator_of(example["id"])
        image = {"image": example["image"]}
        views = [transform(image, own)["image"] for _ in range(2)]
        return {"image": np.stack(views)}
