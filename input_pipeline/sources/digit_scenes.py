"""Scenes of scikit-learn's digits with exact masks: what segmentation demos."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.sources.base import Examples, Kind, Source, fingerprint
from input_pipeline.sources.digits import open_digits
from input_pipeline.sources.mask_census import digest_of
from input_pipeline.sources.mask_format import MaskFormat

# A test scene for every fourth to learn from; no digit is in both.
TRAIN_SCENES, TEST_SCENES = 800, 200
SIDE = 64
DIGITS = (2, 4)  # in a scene
DIGIT_SIDES = (20, 28)  # pixels
PLACES_TRIED = 10

CLASSES = ("background", *map(str, range(10)))
FORMAT = MaskFormat(CLASSES, tuple(range(len(CLASSES))))


@dataclasses.dataclass(frozen=True, eq=False)
class DigitScenes(Examples):
    """Scenes drawn from single digits, each from its row number alone.

    Attributes:
      digits: uint8 `[N, 8, 8]`, grey, to draw from.
      digit_labels: int `[N]`.
      seed: of the scenes.
      format: of the masks.
    """

    digits: np.ndarray
    digit_labels: np.ndarray
    seed: int
    format: MaskFormat = FORMAT

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of every feature."""
        return {**super().kinds, "mask": Kind.MASK}

    def read(self, row: int) -> dict[str, np.ndarray]:
        """Returns `image` uint8 `[SIDE, SIDE, 3]` and `mask` `[SIDE, SIDE]`."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, int(row)]))
        # A soft, dark gradient with some noise, and bright digits over it.
        slope = rng.uniform(-30, 30, (2, 3))
        y, x = np.mgrid[:SIDE, :SIDE][..., None] / SIDE - 0.5
        image = rng.uniform(30, 90, 3) + slope[0] * y + slope[1] * x
        image = image + rng.normal(0, 8, image.shape)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for _ in range(rng.integers(*DIGITS, endpoint=True)):
            chosen = rng.integers(len(self.digits))
            side = int(rng.integers(*DIGIT_SIDES, endpoint=True))
            alpha = np.asarray(
                Image.fromarray(self.digits[chosen]).resize(
                    (side, side), Image.Resampling.BICUBIC
                )
            )
            for _ in range(PLACES_TRIED):
                top, left = rng.integers(0, SIDE - side, 2, endpoint=True)
                place = np.s_[top : top + side, left : left + side]
                if not mask[place].any():
                    break
            else:
                continue  # There is no room for it.
            share = alpha[..., None] / 255
            colour = rng.uniform(140, 255, 3)
            image[place] = (1 - share) * image[place] + share * colour
            mask[place][alpha > 127] = 1 + self.digit_labels[chosen]
        return {"image": np.uint8(np.clip(image, 0, 255)), "mask": mask}

    def mask(self, row: int) -> np.ndarray:
        """Returns the mask of a scene, uint8 `[SIDE, SIDE]`."""
        return self.read(row)["mask"]


def open_digit_scenes(data: Any) -> Source:
    """Opens the scenes; test scenes are of digits that training never shows.

    Args:
      data: `config.data`; the submission's column names.
    """
    digits = open_digits(data)
    splits = {}
    for seed, (name, source, count) in enumerate(
        (
            ("train", digits.labelled, TRAIN_SCENES),
            ("test", digits.test, TEST_SCENES),
        )
    ):
        splits[name] = DigitScenes(
            ids=np.array([f"{name}-{row:04d}" for row in range(count)]),
            labels=np.zeros(count, np.int32),
            digits=source.pixels[..., 0],
            digit_labels=source.labels,
            seed=seed,
        )
    labelled = splits["train"]
    masks = [labelled.mask(row) for row in range(TRAIN_SCENES)]
    pixels = np.stack(
        [np.bincount(mask.ravel(), minlength=len(CLASSES)) for mask in masks]
    )
    return Source(
        name="digit_scenes",
        labelled=labelled,
        test=splits["test"],
        classes=CLASSES,
        sample_submission=None,
        id_column=data.submission_id_column,
        target_column=data.target_column,
        fingerprint=fingerprint(labelled.ids, labelled.labels, [pixels.sum()]),
        mask_pixels=pixels,
        mask_sizes=np.full((TRAIN_SCENES, 2), SIDE, np.int32),
        mask_digests=np.array([digest_of(mask) for mask in masks]),
    )
