"""A picture of what training sees: augmented images with their labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import files
from input_pipeline.augment import (
    Augment,
    BadImage,
    eval_image,
    train_image,
)
from input_pipeline.images import Images, Source

_MARGIN = 6
_TEXT = 18
_BACKGROUND, _INK, _BAD = "white", "#222222", "#b00020"

# A cell is never smaller, so that its label can be read.
_SMALLEST_CELL = 96


def write_contact_sheet(
    path: str | Path,
    source: Source,
    augment: Augment,
    *,
    size: int,
    seed: int = 0,
    rows: int = 8,
    columns: int = 8,
) -> np.ndarray:
    """Writes a grid of images: one per row, then its augmentations.

    The first cell of a row is the image as evaluation sees it, with its label
    and id; the others are what training may make of it. The classes are gone
    through in turn, from a random one on.

    Args:
      path: the PNG to write.
      source: where images and labels are from.
      augment: the training chain.
      size: side of the images in pixels, as in training.
      seed: of the choice of images and of the augmentations.
      rows: number of images.
      columns: cells per image, the first one included.

    Returns:
      int `[rows]`, the chosen rows of `source.labelled`.
    """
    rng = np.random.default_rng(seed)
    chosen = _one_of_each_class(source.labelled, rows, rng)
    cell = max(size, _SMALLEST_CELL)
    step = cell + _MARGIN
    sheet = Image.new(
        "RGB",
        (columns * step + _MARGIN, len(chosen) * (step + _TEXT) + _MARGIN),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT * 0.7)
    for line, row in enumerate(chosen):
        top = _MARGIN + line * (step + _TEXT)
        text, color = _caption(source, row), _INK
        try:
            images = _looks(source.labelled, row, augment, size, columns, rng)
        except BadImage as error:
            images, text, color = [], f"{text}: {error}", _BAD
        draw.text((_MARGIN, top), text, color, font)
        for column, pixels in enumerate(images):
            image = Image.fromarray(pixels)
            if size < cell:
                image = image.resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(image, (_MARGIN + column * step, top + _TEXT))
    with files.replacing(path) as temporary:
        sheet.save(temporary, "PNG")
    return chosen


def _one_of_each_class(
    images: Images, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Rows of `count` images, of as many classes as there are."""
    order = rng.permutation(len(images))
    labels = images.labels[order]
    # How many of the same class come before it: first one of each class.
    seen: dict[int, int] = {}
    turn = [seen.setdefault(label, 0) for label in labels.tolist()]
    for place, label in enumerate(labels.tolist()):
        turn[place] = seen[label]
        seen[label] += 1
    return order[np.argsort(turn, kind="stable")[:count]]


def _looks(
    images: Images,
    row: int,
    augment: Augment,
    size: int,
    columns: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    data = images.read(row)
    center = eval_image(data, ("center",), size, str(images.ids[row]))[0]
    return [
        center,
        *(train_image(data, augment, size, rng) for _ in range(columns - 1)),
    ]


def _caption(source: Source, row: int) -> str:
    label = source.classes[source.labelled.labels[row]]
    return f"{label}   (id {source.labelled.ids[row]})"
