"""The regions of annotations: pixels of polygons and run lengths, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from core.errors import UserError

# Of pixels without a class, which COCO does not know. No class is made of a
# category with this above it.
IGNORED_CATEGORY = {"name": "ignored", "supercategory": "ignored"}

# How tools call the class that is no object, in any case of letters.
BACKGROUNDS = ("background", "_background_", "bg")

# A polygon that leaves its image by more than this many sides is damaged.
_FARTHEST = 4


class BadAnnotation(Exception):
    """An annotation that means no region; the message says why."""


def pycocotools_mask() -> ModuleType:
    """Returns the module that knows polygons and run lengths.

    Raises:
      UserError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            "COCO files need pycocotools, which is not installed; pip install "
            "pycocotools"
        ) from error
    return mask


def run_lengths(
    region: Bool[np.ndarray, "h w"],
    left: int,
    top: int,
    height: int,
    width: int,
) -> dict[str, Any]:
    """Returns the uncompressed run lengths of a region.

    Column by column: how many pixels are outside, then inside, and so on.

    Args:
      region: its pixels.
      left: its first column in the image.
      top: its first row.
      height: of the image.
      width: of the image.
    """
    steps = np.diff(np.pad(region.T, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    bounds = []
    for step in (1, -1):  # Where runs begin, and where they end.
        columns, rows = np.nonzero(steps == step)
        bounds.append((left + columns) * height + top + rows)
    starts, ends = bounds
    # From the bottom of a column, a run goes on at the top of the next.
    apart = starts[1:] != ends[:-1]
    starts, ends = starts[np.r_[True, apart]], ends[np.r_[apart, True]]
    edges = np.r_[0, np.c_[starts, ends].ravel(), height * width]
    counts = np.diff(edges)
    return {
        "size": [height, width],
        "counts": counts[: len(counts) - (counts[-1] == 0)].tolist(),
    }


def pixels_of(
    annotation: Mapping[str, Any], height: int, width: int
) -> Int64[np.ndarray, " n"]:
    """Returns the pixels of an annotation: numbers, column by column.

    Raises:
      BadAnnotation: it means no region.
    """
    shape = annotation.get("segmentation")
    if isinstance(shape, dict):
        return _decoded(shape, height, width)
    if not isinstance(shape, list) or not shape:
        raise BadAnnotation("it has no segmentation")
    limit = _FARTHEST * max(height, width)
    for polygon in shape:
        if (
            not isinstance(polygon, list)
            or len(polygon) < 6
            or len(polygon) % 2
        ):
            raise BadAnnotation("a polygon is no list of three points or more")
        if not all(_is_number(one) and abs(one) <= limit for one in polygon):
            raise BadAnnotation("a polygon has a point that cannot be")
    tools = pycocotools_mask()
    parts = tools.frPyObjects(
        [[float(one) for one in polygon] for polygon in shape], height, width
    )
    merged = tools.merge(parts)
    counts = merged["counts"].decode("ascii")
    return _decoded({**merged, "counts": counts}, height, width)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _decoded(
    shape: Mapping[str, Any], height: int, width: int
) -> Int64[np.ndarray, " n"]:
    """The pixels of run lengths.

    Not by pycocotools, which trusts them and writes beyond its memory.
    """
    if shape.get("size") != [height, width]:
        raise BadAnnotation(
            f"its run lengths are of size {shape.get('size')}, and the image "
            f"has [{height}, {width}]"
        )
    counts = shape.get("counts")
    if isinstance(counts, str):
        counts = _decompressed(counts)
    fine = isinstance(counts, list) and all(
        type(count) is int and count >= 0 for count in counts
    )
    if not fine or sum(counts) != height * width:
        raise BadAnnotation("its run lengths do not fill the image")
    runs = np.array(counts, np.int64)
    starts, inside = (np.cumsum(runs) - runs)[1::2], runs[1::2]
    before = np.cumsum(inside) - inside
    return np.arange(inside.sum()) + np.repeat(starts - before, inside)


def _decompressed(text: str) -> list[int]:
    """The run lengths in COCO's compressed string.

    Five bits a character, the lowest first; from the fourth number on the
    difference to the number two before.
    """
    counts: list[int] = []
    number = place = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or place > 6:
            raise BadAnnotation("its run lengths are damaged")
        number |= (bits & 31) << 5 * place
        place += 1
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << 5 * place
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = place = 0
    if place:
        raise BadAnnotation("its run lengths are damaged")
    return counts
