"""A contact sheet: augmented images and mixed batches with their labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core import atomic_files, class_colours
from input_pipeline.decoding import BadImage
from input_pipeline.pair_sheet import pair_lines
from input_pipeline.sources.base import Examples, Kind, Source
from input_pipeline.sources.cleaned import CleanedExamples
from input_pipeline.transforms import geometry
from input_pipeline.transforms.policy import Augment, TrainTransform
from input_pipeline.transforms.views import EvalTransform, WholeTransform

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
    and id (before it, where the source is cleaned, as its file has it); the
    others are what training may make of it. The classes are gone
    through in turn, from a random one on. Below, with `mixing`, are batches
    as the model gets them, erased and mixed, each image under its soft label.
    With masks, each image stands beside itself under its mask; with forgeries,
    a few pairs of each kind come last.

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
    masks = source.labelled.kinds.get("mask") is Kind.MASK
    shown = columns + isinstance(source.labelled, CleanedExamples)
    grid = _Grid(size, shown, aspect=2 if masks else 1)
    if masks:
        grid.legend = source.classes
    for row in chosen:
        text, color = _caption(source, row), _INK
        try:
            looks = _looks(source.labelled, row, augment, size, columns, rng)
            images = [_picture(*look, source) for look in looks]
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
        if masks:
            images = [
                _picture(image, mask, source)
                for image, mask in zip(images, targets, strict=True)
            ]
            grid.add(images, [], _INK)
            continue
        grid.add(images, [_soft_label(source, row) for row in targets], _INK)
    if "forged" in source.labelled.columns:
        for title, images, captions in pair_lines(source, size, columns, seed):
            grid.add([], [title], _INK)
            grid.add(images, captions, _INK)
    with atomic_files.atomic_write(path) as temporary:
        grid.draw().save(temporary, "PNG")
    return chosen


class _Grid:
    """Lines of captioned images, drawn when all are known.

    Args:
      size: height of an image in pixels.
      columns: images of a line.
      aspect: width of an image over its height.

    Attributes:
      legend: classes whose colours are explained at the top.
    """

    def __init__(self, size: int, columns: int, aspect: int = 1):
        self._cell = max(size, _SMALLEST_CELL)
        self._aspect = aspect
        self._columns = columns
        self._lines: list[tuple[list[np.ndarray], list[str], str]] = []
        self.legend: Sequence[str] = ()

    def add(
        self, images: list[np.ndarray], captions: list[str], color: str
    ) -> None:
        """Adds a line: one caption for all of it, or one for each image."""
        self._lines.append((images, captions, color))

    def draw(self) -> Image.Image:
        """The finished sheet, mode RGB."""
        width = self._cell * self._aspect
        step, across = self._cell + _MARGIN, width + _MARGIN
        heights = [
            _TEXT * max((text.count("\n") + 1 for text in captions), default=0)
            + (step if images else 0)
            for images, captions, _ in self._lines
        ]
        font = ImageFont.load_default(_TEXT * 0.7)
        full = self._columns * across + _MARGIN
        legend = _legend(self.legend, font, full)
        sheet = Image.new(
            "RGB",
            (full, legend.height + sum(heights) + _MARGIN),
            _BACKGROUND,
        )
        sheet.paste(legend)
        draw = ImageDraw.Draw(sheet)
        top = legend.height + _MARGIN
        for (images, captions, color), height in zip(
            self._lines, heights, strict=True
        ):
            for column, text in enumerate(captions):
                if len(captions) > 1:
                    text = _fitted(text, font, width)
                corner = (_MARGIN + column * across, top)
                draw.multiline_text(corner, text, color, font, spacing=2)
            for column, pixels in enumerate(images):
                corner = (_MARGIN + column * across, top + height - step)
                sheet.paste(self._enlarged(pixels), corner)
            top += height
        return sheet

    def _enlarged(self, pixels: np.ndarray) -> Image.Image:
        image = Image.fromarray(pixels)
        if image.height < self._cell:
            side = (self._cell * self._aspect, self._cell)
            image = image.resize(side, Image.Resampling.NEAREST)
        return image


def _legend(
    classes: Sequence[str], font: ImageFont.FreeTypeFont, width: int
) -> Image.Image:
    """The colour and the name of each class, in as many lines as it takes."""
    if not classes:
        return Image.new("RGB", (width, 0))
    numbers = np.uint8([*range(len(classes)), 255])
    places, left, line = [], _MARGIN, 0
    for name in (*classes, "ignored"):
        needed = _TEXT + int(font.getlength(name)) + 3 * _MARGIN
        if left + needed > width and left > _MARGIN:
            left, line = _MARGIN, line + 1
        places.append((left, _MARGIN + line * _TEXT))
        left += needed
    height = (line + 1) * _TEXT + _MARGIN
    picture = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for number, name, (left, top) in zip(
        numbers, (*classes, "ignored"), places, strict=True
    ):
        patch = np.full((_TEXT - 4, _TEXT - 4), number)
        colours = class_colours.drawn(patch, len(classes))
        picture.paste(Image.fromarray(colours), (left, top))
        draw.text((left + _TEXT, top), name, _INK, font)
    return picture


def _picture(
    image: np.ndarray, mask: np.ndarray | None, source: Source
) -> np.ndarray:
    """The image; with a mask, beside it the image under the mask."""
    if mask is None:
        return image
    count = len(source.classes)
    return np.concatenate(
        [image, class_colours.overlay(image, mask, count)], axis=1
    )


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
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Image and mask, plain and augmented."""
    example = images.read(row)
    if "mask" in example:
        plain = WholeTransform(size)(example)
        corners = (0, 0, *plain["size"].tolist())
        mask = geometry.resized_mask(
            example["mask"], corners[2:], size, corners
        )
    else:
        plain, mask = EvalTransform(("center",), size)(example), None
    transform = TrainTransform(dataclasses.replace(augment, device=False), size)
    others = [transform(example, rng) for _ in range(columns - 1)]
    before = []
    if isinstance(images, CleanedExamples):
        look = EvalTransform(("center",), size)(images.raw.read(row))
        before = [(look["image"][0], mask)]
    return [
        *before,
        (plain["image"][0], mask),
        *((other["image"], other.get("mask")) for other in others),
    ]


def _batch(
    images: Examples,
    augment: Augment,
    size: int,
    count: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """A batch of random images as the pipeline makes it."""
    rows = rng.choice(len(images), count, replace=count > len(images))
    transform = TrainTransform(dataclasses.replace(augment, device=False), size)
    batch = {
        name: np.zeros((count, *shape), dtype)
        for name, (shape, dtype) in transform.spec(images.kinds).items()
    }
    weight = np.zeros(count, np.float32)
    for slot, row in enumerate(rows):
        try:
            done = transform(images.read(row), rng)
        except BadImage:
            continue
        for name, values in done.items():
            batch[name][slot] = values
        weight[slot] = 1
    return {**batch, "label": images.labels[rows], "weight": weight}


def _mixed(
    batch: dict[str, np.ndarray],
    mixing: Mixing,
    num_classes: int,
    rng: np.random.Generator,
) -> tuple[list[np.ndarray], np.ndarray]:
    """The batch after erasing and mixing.

    Returns:
      Images uint8 `[size, size, 3]`, and soft labels float `[count, C]` or
      masks `[count, size, size]`.
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
    if source.mask_pixels is not None:
        present = np.flatnonzero(source.mask_pixels[row])
        return f"{', '.join(source.classes[one] for one in present)}   {name}"
    label = source.labelled.labels[row]
    forged = source.labelled.columns.get("forged")
    if forged is not None and forged[row]:
        name = f"forged {name}"
    return f"{source.classes[label]}   {name}" if label >= 0 else name
