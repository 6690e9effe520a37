"""`to-coco`: the masks of a source as COCO annotations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from configs import loading
from core import atomic_files, csv_table
from core.class_colours import IGNORE
from core.errors import UserError
from input_pipeline import parallel_scan
from input_pipeline.coco import outlines, regions
from input_pipeline.decoding import BadImage
from input_pipeline.sources import listing, open_source
from input_pipeline.sources.base import Examples, Kind, Source

# The first class of masks without a list of classes is called 0.
BACKGROUNDS = (*regions.BACKGROUNDS, "0")


def run(argv: list[str]) -> None:
    """Writes the masks of a source as COCO annotations.

    Args:
      argv: the command line without the program's name and `to-coco`.
    """
    parser = loading.Parser(
        prog="python -m input_pipeline to-coco",
        description="Writes masks as COCO annotations, a file for each split: "
        "instances_train.json, instances_val.json.",
    )
    parser.add_argument("--out", metavar="FOLDER", required=True)
    parser.add_argument(
        "--polygons", action="store_true", help="instead of run lengths"
    )
    parser.add_argument(
        "--whole-classes",
        action="store_true",
        help="one annotation for a class in an image, not for each of its "
        "connected parts",
    )
    parser.add_argument(
        "--background",
        metavar="CLASS",
        help="the class that is no category, '' for none; the first, if it is "
        f"called {' or '.join(BACKGROUNDS)}",
    )
    known, config = loading.parse(parser, argv)
    source = open_source(config.data)
    if source.labelled.kinds.get("mask") is not Kind.MASK:
        raise UserError(
            f"the source '{source.name}' has no masks; set --config.data.root "
            "to a folder with images and masks"
        )
    background = _background_of(source.classes, known.background)
    style = Style(background, known.polygons, known.whole_classes)
    print(export(source, Path(known.out), style))


def _background_of(classes: Sequence[str], name: str | None) -> int | None:
    """The class that is no category; None if all are."""
    if name is None:
        return 0 if classes[0].lower() in BACKGROUNDS else None
    if not name:
        return None
    if name not in classes:
        raise UserError(
            f"--background is '{name}', which is no class"
            f"{csv_table.did_you_mean(name, classes)}; choose from "
            f"{', '.join(classes)}"
        )
    return classes.index(name)


@dataclasses.dataclass(frozen=True)
class Style:
    """How masks are written.

    Attributes:
      background: index of the class that is no category; None has none.
      polygons: whether regions are polygons, else run lengths.
      whole_classes: whether a class is one region in an image, else each of
        its connected parts.
    """

    background: int | None
    polygons: bool = False
    whole_classes: bool = False


def annotations_of(
    mask: UInt8[np.ndarray, "H W"], classes: int, style: Style
) -> list[dict[str, Any]]:
    """Returns a mask's annotations, without ids.

    The category of class `c` is `c + 1`, that of ignored pixels, which are one
    crowd, `classes + 1`.

    Args:
      mask: class indices and `IGNORE`.
      classes: how many there are.
      style: how to write them.
    """
    tools, found = regions.pycocotools_mask(), []
    for label in (*range(classes), IGNORE):
        if label == style.background:
            continue
        crowd = label == IGNORE
        for window, region in _regions(
            mask == label, style.whole_classes or crowd
        ):
            top, left = window[0].start, window[1].start
            if style.polygons and not crowd:
                shape: Any = outlines.polygons(region, left, top)
            else:
                shape = regions.run_lengths(region, left, top, *mask.shape)
                shape = tools.frPyObjects(shape, *mask.shape)
                # bytes, which JSON has not.
                shape["counts"] = shape["counts"].decode("ascii")
            height, width = region.shape
            found.append(
                {
                    "category_id": min(label, classes) + 1,
                    "segmentation": shape,
                    "area": int(region.sum()),
                    "bbox": [left, top, width, height],
                    "iscrowd": int(crowd),
                }
            )
    return found


def categories_of(classes: Sequence[str], style: Style) -> list[dict[str, Any]]:
    """Returns the categories of classes: the ids are their indices plus 1.

    Args:
      classes: the names.
      style: which of them is the background.
    """
    return [
        {"id": label + 1, "name": name, "supercategory": ""}
        for label, name in enumerate(classes)
        if label != style.background
    ] + [{"id": len(classes) + 1, **regions.IGNORED_CATEGORY}]


def _regions(
    pixels: Bool[np.ndarray, "H W"], whole: bool
) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Yields where a region is, and its pixels there."""
    if whole:
        labels = pixels.astype(np.int32)
    else:
        labels, _ = ndimage.label(pixels, outlines.CORNERS)
    for number, window in enumerate(ndimage.find_objects(labels), 1):
        yield window, labels[window] == number


def export(source: Source, out: Path, style: Style) -> str:
    """Writes `instances_<split>.json` for each split of the labelled rows.

    Args:
      source: with masks.
      out: the folder.
      style: how to write them.

    Returns:
      A sentence on what was written.

    Raises:
      UserError: a mask can no longer be read, or the folder not be written.
    """
    regions.pycocotools_mask()
    classes, examples = source.classes, source.labelled

    def look(examples: Examples, row: int) -> tuple[tuple, list[dict]]:
        try:
            mask = examples.mask(row)
        except BadImage as error:
            raise UserError(
                f"the mask of '{examples.ids[row]}' cannot be read ({error}); "
                "correct the file"
            ) from error
        return mask.shape, annotations_of(mask, len(classes), style)

    background = None
    if style.background is not None:
        background = {
            "id": style.background + 1,
            "name": classes[style.background],
        }
    written, total = [], 0
    splits, names = source.splits, _names(examples, source.splits)
    for split in np.unique(splits).tolist():
        rows = np.flatnonzero(splits == split)
        images, annotations = [], []
        found = parallel_scan.every_image(
            look, examples, rows, f"{split} masks"
        )
        for row, ((height, width), parts) in zip(
            rows.tolist(), found, strict=True
        ):
            name = _file_name(examples, row, names[row])
            image = {"id": row + 1, "file_name": name}
            images.append(image | {"width": width, "height": height})
            annotations += [
                {"id": len(annotations) + index, "image_id": row + 1, **part}
                for index, part in enumerate(parts, 1)
            ]
        content = {
            "info": {"description": source.name, "background": background},
            "images": images,
            "annotations": annotations,
            "categories": categories_of(classes, style),
        }
        path = out / f"instances_{split}.json"
        atomic_files.write_text(path, json.dumps(content) + "\n")
        written.append(str(path))
        total += len(annotations)
    return (
        f"{len(examples):,} masks as {total:,} annotations in "
        f"{' and '.join(written)}"
    )


def _file_name(examples: Examples, row: int, name: str) -> str:
    """The name of an image's file, with the ending that it has on the disk."""
    path = examples.path(row)
    return name + (path.removeprefix(listing.stem(path)) or ".png")


def _names(examples: Examples, splits: np.ndarray) -> list[str]:
    """Each image's path inside the folder of its split, without the ending."""
    ids = examples.ids.tolist()
    # Where splits share names, the ids begin with the split.
    names = [
        name.removeprefix(f"{split}/")
        for name, split in zip(ids, splits.tolist(), strict=True)
    ]
    shared = len(set(names)) < len(names)
    return names if shared else ids
