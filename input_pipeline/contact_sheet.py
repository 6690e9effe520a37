"""A contact sheet: augmented images and mixed batches with their labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core import atomic_files
from input_pipeline.decoding import BadImage
from input_pipeline.sources.base import Examples, Source
from input_pipeline.transforms.policy import Augment, TrainTransform
from input_pipeline.transforms.views import EvalTransform

if TYPE_CHECKING:  # JAX comes with it, and a sheet may do without.
    from input_pipeline.transforms.mixing import Mixing

_MARGIN = 6
_TEXT = 18
_BACKGROUND, _INK, _BAD = "white", "#222222", "#b00020"

# A cell is never smaller, so that its label can be read.
_SMALLEST_CELL = 96


# Shares below this are left out of a caption.
_SMALLEST_SHARE = 0.005


def write_contact_sheet(
    path: str | Path,
    source: Source,
    augment: Augment,
    *,
    size: int,
    seed: int = 0,
    rows: int = 8,
    columns: int = 8,
    mixing: Mixing | None = None,
    batches: int = 4,
) -> np.ndarray:
    """Writes a grid of images: one per row, then its augmentations.

    The first cell of a row is the image as evaluation sees it, with its label
    and id; the others are what training may make of it. The classes are gone
    through in turn, from a random one on. Below, with `mixing`, are batches
    as the model gets them, erased and mixed, each image under its soft label.

    Args:
      path: the PNG to write.
      source: where images and labels are from.
      augment: the training chain.
      size: side of the images in pixels, as in training.
      seed: of the choice of images and of the augmentations.
      rows: number of images.
      columns: cells per image, the first one included; images per batch.
      mixing: what happens to a batch; None leaves the batches out.
      batches: number of batches.

    Returns:
      int `[rows]`, the chosen rows of `source.labelled`.
    """
    rng = np.random.default_rng(seed)
    chosen = _one_of_each_class(source.labelled, rows, rng)
    grid = _Grid(size, columns)
    for row in chosen:
        text, color = _caption(source, row), _INK
        try:
            images = _looks(source.labelled, row, augment, size, columns, rng)
        except BadImage as error:
            images, text, color = [], f"{text}: {error}", _BAD
        grid.add(images, [text], color)
    for number in range(batches if mixing is not None else 0):
        # Not of the generator above: the upper part stays as it is.
        batch_rng = np.random.default_rng([seed, number])
        batch = _batch(source.labelled, augment, size, columns, batch_rng)
        images, targets = _mixed(batch, mixing, len(source.classes), batch_rng)
        title = f"batch {number + 1} as the model gets it"
        grid.add([], [title], _INK)
        grid.add(images, [_soft_label(source, row) for row in targets], _INK)
    with atomic_files.atomic_write(path) as temporary:
        grid.draw().save(temporary, "PNG")
    return chosen


class _Grid:
    """Lines of captioned images, drawn when all are known."""

    def __init__(self, size: int, columns: int):
        self._cell = max(size, _SMALLEST_CELL)
        self._columns = columns
        self._lines: list[tuple[list[np.ndarray], list[str], str]] = []

    def add(
        self, images: list[np.ndarray], captions: list[str], color: str
    ) -> None:
        """Adds a line: one caption for all of it, or one for each image."""
        self._lines.append((images, captions, color))

    def draw(self) -> Image.Image:
        """The finished sheet, mode RGB."""
        step = self._cell + _MARGIN
        heights = [
            _TEXT * max(text.count("\n") + 1 for text in captions)
            + (step if images else 0)
            for images, captions, _ in self._lines
        ]
        sheet = Image.new(
            "RGB",
            (self._columns * step + _MARGIN, sum(heights) + _MARGIN),
            _BACKGROUND,
        )
        draw = ImageDraw.Draw(sheet)
        font = ImageFont.load_default(_TEXT * 0.7)
        top = _MARGIN
        for (images, captions, color), height in zip(
            self._lines, heights, strict=True
        ):
            for column, text in enumerate(captions):
                if len(captions) > 1:
                    text = _fitted(text, font, self._cell)
                corner = (_MARGIN + column * step, top)
                draw.multiline_text(corner, text, color, font, spacing=2)
            for column, pixels in enumerate(images):
                corner = (_MARGIN + column * step, top + height - step)
                sheet.paste(self._enlarged(pixels), corner)
            top += height
        return sheet

    def _enlarged(self, pixels: np.ndarray) -> Image.Image:
        image = Image.fromarray(pixels)
        if image.width < self._cell:
            side = (self._cell, self._cell)
            image = image.resize(side, Image.Resampling.NEAREST)
        return image


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, each line shortened at its start to fit `width`.

    The end of a line is its share, which must be seen.
    """
    lines = []
    for line in text.split("\n"):
        while font.getlength(line) > width and len(line) > 8:
            line = "…" + line[2:]
        lines.append(line)
    return "\n".join(lines)


def _one_of_each_class(
    images: Examples, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Rows of `count` images, of as many classes as there are."""
    order = rng.permutation(len(images))
    labels = images.labels[order]
    # How many of the same class come before it: first one of each class.
    seen: dict[int, int] = {}
    turn = [seen.setdefault(label, 0) for label in labels.tolist()]
    for index, label in enumerate(labels.tolist()):
        turn[index] = seen[label]
        seen[label] += 1
    return order[np.argsort(turn, kind="stable")[:count]]


def _looks(
    images: Examples,
    row: int,
    augment: Augment,
    size: int,
    columns: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    example = images.read(row)
    center = EvalTransform(("center",), size)(example)["image"][0]
    transform = TrainTransform(dataclasses.replace(augment, device=False), size)
    others = (transform(example, rng)["image"] for _ in range(columns - 1))
    return [center, *others]


def _batch(
    images: Examples,
    augment: Augment,
    size: int,
    count: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """A batch of random images as the pipeline makes it."""
    rows = rng.choice(len(images), count, replace=count > len(images))
    pixels = np.zeros((count, size, size, 3), np.uint8)
    weight = np.zeros(count, np.float32)
    transform = TrainTransform(dataclasses.replace(augment, device=False), size)
    for slot, row in enumerate(rows):
        try:
            pixels[slot] = transform(images.read(row), rng)["image"]
            weight[slot] = 1
        except BadImage:
            continue
    return {"image": pixels, "label": images.labels[rows], "weight": weight}


def _mixed(
    batch: dict[str, np.ndarray],
    mixing: Mixing,
    num_classes: int,
    rng: np.random.Generator,
) -> tuple[list[np.ndarray], np.ndarray]:
    """The batch after erasing and mixing.

    Returns:
      Images uint8 `[size, size, 3]` and soft labels float `[count, C]`.
    """
    from input_pipeline.transforms.mixing import prepare_once

    # Training takes the mean of all its images; here it only tints the noise.
    mean = batch["image"].mean(axis=(0, 1, 2)) / 255
    std = batch["image"].std(axis=(0, 1, 2)) / 255 + 1e-3
    seed = int(rng.integers(2**31))
    images, targets = prepare_once(batch, mixing, mean, std, num_classes, seed)
    pixels = (images * std + mean) * 255
    pixels = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
    return list(pixels), targets


def _soft_label(source: Source, target: np.ndarray) -> str:
    """One line for each class of a soft label, the largest first."""
    order = [
        label
        for label in np.argsort(-target, kind="stable")[:2]
        if target[label] > _SMALLEST_SHARE
    ]
    lines = [f"{source.classes[label]}  {target[label]:.0%}" for label in order]
    return "\n".join([*lines, ""][:2])


def _caption(source: Source, row: int) -> str:
    name = f"(id {source.labelled.ids[row]})"
    label = source.labelled.labels[row]
    return f"{source.classes[label]}   {name}" if label >= 0 else name
