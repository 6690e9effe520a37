"""Sections on a segmentation: scores by class, confusions, best and worst."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from core import class_colours
from core.errors import UserError
from metrics import segmentation
from reports.heatmap import confusion_heatmap
from reports.page import Figure, Section, template
from run_folder import layout

WORST, BEST = 9, 3
# Longer sides are reduced: four pictures stand beside each other.
_SIDE = 220
_GAP = 6  # between them
_ERROR = np.uint8([230, 40, 60])
_TEMPLATE = "segmentation.html"


class Example(NamedTuple):
    """An image with what it shows and what was predicted.

    Attributes:
      id: of the image.
      image: uint8 [H, W, 3].
      truth: uint8 [H, W], class indices, 255 ignored.
      predicted: uint8 [H, W], class indices.
    """

    id: str
    image: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


# From ids to the examples that can be read, one after the other.
ReadExamples = Callable[[Sequence[str]], Iterable[Example]]


class Counts(NamedTuple):
    """What the export has counted on the validation images.

    Attributes:
      ids: str [N].
      confusion: int64 [N, C, C], pixels of each image.
      boundary: int64 [N, C, 2], see `metrics.segmentation.boundary_counts`.
      classes: str [C].
    """

    ids: np.ndarray
    confusion: np.ndarray
    boundary: np.ndarray
    classes: np.ndarray


def read_counts(workdir: Path) -> Counts | None:
    """Returns the counts of a run; None if it has exported none.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / layout.MASK_COUNTS
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return Counts(*(file[name] for name in Counts._fields))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read ({error}); run the training's command "
            "again with --export"
        ) from error


def segmentation_sections(
    workdir: Path, examples: ReadExamples | None = None
) -> list[Section]:
    """Returns scores, confusions, and the best and worst masks of a run.

    Args:
      workdir: the run folder.
      examples: reads images with their masks; None shows none.

    Raises:
      UserError: the counts are damaged.
    """
    counts = read_counts(workdir)
    if counts is None:
        return []
    classes = counts.classes.tolist()
    total = counts.confusion.sum(axis=0)
    return [
        Section(
            "Classes, validation",
            template(_TEMPLATE).classes(_class_rows(counts)),
            "Over all pixels of the validation images; intervals from "
            "drawing images anew. A class's boundary is what lies within 2 % "
            f"of the image's diagonal of its edge.{_absent(counts)}",
            figures=_figures(counts),
        ),
        Section(
            "Confusions, validation",
            template(_TEMPLATE).confusion(
                confusion_heatmap(total, classes, shares=True)
            ),
            "Rows are true classes, columns are predicted classes: per cent of "
            "the pixels of the row.",
        ),
        _gallery(counts, examples),
    ]


def _figures(counts: Counts) -> tuple[Figure, ...]:
    found = segmentation.scores(counts.confusion)
    edges = float(segmentation.mean_boundary_iou(counts.boundary.sum(0)))
    images = f"{len(counts.ids):,} images not seen in training"
    return (
        Figure(
            "validation mDice",
            f"{found['mean_dice']:.4f}",
            _interval(counts, segmentation.mean_dice_from_confusion),
        ),
        Figure(
            "validation mIoU",
            f"{found['mean_iou']:.4f}",
            _interval(counts, segmentation.mean_iou_from_confusion),
        ),
        Figure(
            "Dice per image", f"{found['image_dice']:.4f}", "over its classes"
        ),
        Figure(
            "IoU per image", f"{found['image_iou']:.4f}", "over its classes"
        ),
        Figure("boundary IoU", f"{edges:.4f}", images),
    )


def _interval(counts: Counts, score) -> str:
    low, high = segmentation.bootstrap_interval(counts.confusion, score)
    return f"95 % interval {low:.3f} to {high:.3f}"


def _class_rows(counts: Counts) -> list[dict]:
    total = counts.confusion.sum(axis=0)
    dice = segmentation.dice_from_confusion(total)
    iou = segmentation.iou_from_confusion(total)
    edges = segmentation.boundary_iou(counts.boundary.sum(axis=0))
    share = total.sum(axis=1) / max(total.sum(), 1)
    predicted = total.sum(axis=0) / max(total.sum(), 1)
    rows = []
    for number, name in enumerate(counts.classes.tolist()):
        if np.isnan(dice[number]):
            continue
        low, high = segmentation.bootstrap_interval(
            counts.confusion,
            lambda c, number=number: segmentation.dice_from_confusion(c)[
                :, number
            ],
        )
        rows.append(
            {
                "name": name,
                "dice": float(dice[number]),
                "low": low,
                "high": high,
                "iou": float(iou[number]),
                "boundary": float(edges[number]),
                "share": float(share[number]),
                "predicted": float(predicted[number]),
                "images": int((counts.confusion[:, number].sum(1) > 0).sum()),
            }
        )
    return sorted(rows, key=lambda row: row["dice"])


def _absent(counts: Counts) -> str:
    """A sentence on the classes that have no score."""
    dice = segmentation.dice_from_confusion(counts.confusion.sum(axis=0))
    names = counts.classes[np.isnan(dice)].tolist()
    if not names:
        return ""
    return f" Neither in labels nor in predictions: {', '.join(names)}."


def _gallery(counts: Counts, examples: ReadExamples | None) -> Section:
    """The worst and the best images by Dice."""
    dice = segmentation.mean_dice_from_confusion(counts.confusion)
    counted = np.flatnonzero(counts.confusion.sum(axis=(1, 2)))
    order = counted[np.argsort(dice[counted], kind="stable")]
    worst = order[:WORST]
    best = order[WORST:][-BEST:][::-1]
    chosen = [*worst.tolist(), *best.tolist()]
    wanted = [str(counts.ids[row]) for row in chosen]
    found, problem = {}, ""
    try:
        for example in examples(wanted) if examples is not None else ():
            found[example.id] = halves(example, len(counts.classes))
    # A report without pictures is better than none, whatever the reason.
    except Exception as error:
        problem = f" The images could not be opened: {error}"
    rows = [
        {"id": name, "dice": float(dice[row]), "halves": found.get(name)}
        for name, row in zip(wanted, chosen, strict=True)
    ]
    colours = [
        {"name": str(name), "colour": "rgb({},{},{})".format(*colour)}
        for name, colour in zip(
            counts.classes.tolist(),
            class_colours.palette(len(counts.classes)).tolist(),
            strict=True,
        )
    ]
    colours.append({"name": "wrong", "colour": "rgb({},{},{})".format(*_ERROR)})
    return Section(
        "Worst and best, validation",
        template(_TEMPLATE).gallery(
            rows[: len(worst)], rows[len(worst) :], colours
        ),
        "By the image's mean Dice over its classes. From left to right: image, "
        "truth, prediction, and what is wrong, in red. Ignored pixels are "
        f"striped.{problem}",
    )


def halves(example: Example, count: int) -> tuple[str, str]:
    """Returns image and truth, prediction and errors, as two data: addresses.

    Two, so that they stand below each other where a page is narrow.

    Args:
      example: the image.
      count: of the classes.
    """
    image, truth, predicted = (
        _sized(part)
        for part in (example.image, example.truth, example.predicted)
    )
    ignored = truth >= count
    pale = 255 - (255 - image.astype(np.uint16)) // 3
    errors = np.where((truth != predicted)[..., None], _ERROR, np.uint8(pale))
    truth = class_colours.drawn(truth, count)
    errors = np.where(ignored[..., None], truth, errors)
    predicted = class_colours.drawn(predicted, count)
    return _beside(image, truth), _beside(predicted, errors)


def _beside(left: np.ndarray, right: np.ndarray) -> str:
    """Two pictures with a clear gap between them, as a data: address."""
    parts = [
        np.concatenate(
            [part, np.full((*part.shape[:2], 1), 255, np.uint8)], axis=2
        )
        for part in (left, right)
    ]
    gap = np.zeros((len(left), _GAP, 4), np.uint8)
    buffer = io.BytesIO()
    whole = Image.fromarray(np.concatenate([parts[0], gap, parts[1]], axis=1))
    whole.save(buffer, "PNG", optimize=True)
    return (
        f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    )


def _sized(pixels: np.ndarray) -> np.ndarray:
    """An image or a mask, reduced, or enlarged to whole multiples."""
    height, width = pixels.shape[:2]
    scale = _SIDE / max(height, width)
    scale = scale if scale < 1 else int(scale)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smooth = pixels.ndim == 3 and scale < 1
    how = Image.Resampling.BOX if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, how))
