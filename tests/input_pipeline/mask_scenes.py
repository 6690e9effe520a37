"""Painted scenes with masks, and batches of them."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from sample_images import encoded

from core.class_colours import IGNORE
from input_pipeline import loader
from input_pipeline.samplers import ShuffledSampler
from input_pipeline.sources.base import Examples, Kind
from input_pipeline.transforms.policy import Augment, TrainTransform

# Colours far apart, so that a pixel tells its class also where JPEG and
# smoothing changed it; black, which comes in from outside, is none of them.
COLOURS = np.uint8([[250, 20, 20], [20, 250, 20], [20, 20, 250]])
NO_COLOUR = {
    "jitter": (0.0, 0.0, 0.0, 0.0),
    "grayscale": 0.0,
}


def scene(row, height=150, width=190):
    """Wavy areas of three classes: uint8 [height, width]."""
    y, x = np.mgrid[:height, :width]
    wave = np.sin(x / 29 + row) + np.cos(y / 23 - row)
    return np.digitize(wave, [-0.5, 0.5]).astype(np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class Scenes(Examples):
    """Painted scenes: the image in colours, the mask in classes."""

    kind: str = "PNG"

    @property
    def kinds(self):
        return {**super().kinds, "mask": Kind.MASK}

    def read(self, row):
        mask = scene(row, 150 + 9 * (row % 3))
        image = COLOURS[mask]
        if self.kind == "pixels":
            return {"image": image, "mask": mask}
        options = {"quality": 95} if self.kind == "JPEG" else {}
        return {
            "image": encoded(image, self.kind, **options),
            "mask": encoded(mask, "PNG"),
        }


def scenes(kind="PNG", count=12):
    return Scenes(
        np.array([f"scene-{row}" for row in range(count)]),
        np.arange(count, dtype=np.int32) % 2,
        kind=kind,
        columns={"person": np.arange(count) + 100},
    )


def seen_classes(image):
    """The class of each pixel by its colour, and whether that is certain."""
    distance = np.abs(image[..., None, :].astype(int) - COLOURS).sum(-1)
    black = image.sum(-1, dtype=int) < 30
    found = np.where(black, IGNORE, distance.argmin(-1))
    return found, black | (distance.min(-1) < 40)


def first_batches(examples, count=3, workers=0, size=64, **changes):
    augment = Augment(**(NO_COLOUR | changes))
    with loader.train_batches(
        examples,
        TrainTransform(augment, size),
        ShuffledSampler(np.arange(len(examples)), 0),
        batch_size=8,
        seed=0,
        workers=workers,
    ) as batches:
        return list(itertools.islice(batches, count))
