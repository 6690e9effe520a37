"""Small images for the tests of the input pipeline."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from input_pipeline.transforms.policy import TrainTransform
from input_pipeline.transforms.views import EvalTransform


def photo(height=24, width=32, seed=0):
    """Smooth colours with some noise: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
    smooth = Image.fromarray(small).resize((width, height))
    noise = rng.integers(-12, 13, (height, width, 3))
    return np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)


def train_image(data, augment, size, rng):
    """What training sees of an image: uint8 [size, size, 3]."""
    return TrainTransform(augment, size)({"image": data}, rng)["image"]


def eval_image(data, views, size, name="name"):
    """Evaluation views of an image: uint8 [V, size, size, 3]."""
    example = {"image": data, "id": name}
    return EvalTransform(views, size)(example)["image"]


def encoded(pixels, kind="JPEG", **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
