"""Regions of pixels as polygons along the edges of their pixels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

# Neighbours that touch at a corner, too.
CORNERS = np.ones((3, 3), int)


def polygons(
    region: Bool[np.ndarray, "H W"], left: int = 0, top: int = 0
) -> list[list[int]]:
    """Returns polygons whose union is a region, `x1, y1, x2, y2, …` each.

    Corners are in pixel-edge coordinates: 0, 0 is the upper left corner of
    the first pixel. A polygon cannot have a hole, so what has one is cut in
    two across it.

    Args:
      region: of any shape, also of several parts.
      left: of the region's first column in the image.
      top: of its first row.
    """
    found, waiting = [], [(region, left, top)]
    while waiting:
        region, left, top = waiting.pop()
        labels, _ = ndimage.label(region)
        for number, (rows, columns) in enumerate(
            ndimage.find_objects(labels), 1
        ):
            piece = labels[rows, columns] == number
            x, y = left + columns.start, top + rows.start
            cut = _cut(piece)
            if cut:
                waiting.append((piece[:, :cut], x, y))
                waiting.append((piece[:, cut:], x + cut, y))
            else:
                corners = _outline(piece) + np.array([x, y])
                found.append(corners.ravel().tolist())
    return found


def _cut(piece: Bool[np.ndarray, "H W"]) -> int:
    """The column of the hole that is nearest to the middle; 0 without one."""
    around, count = ndimage.label(
        np.pad(~piece, 1, constant_values=True), CORNERS
    )
    if count < 2:
        return 0
    columns = np.flatnonzero((around > 1).any(axis=0)) - 1
    return int(columns[np.abs(columns - piece.shape[1] / 2).argmin()])


def _outline(piece: Bool[np.ndarray, "H W"]) -> np.ndarray:
    """int [n, 2], the corners x, y of a connected piece without a hole.

    Clockwise: the piece is to the right of every edge.
    """
    wide = np.pad(piece, 1)
    inside = wide[1:-1, 1:-1]
    # Of each kind of edge: which pixels have it, from which corner of the
    # pixel it starts, and where it leads.
    kinds = (
        (inside & ~wide[:-2, 1:-1], (0, 0), (1, 0)),
        (inside & ~wide[1:-1, 2:], (1, 0), (0, 1)),
        (inside & ~wide[2:, 1:-1], (1, 1), (-1, 0)),
        (inside & ~wide[1:-1, :-2], (0, 1), (0, -1)),
    )
    leading: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for edges, (x, y), step in kinds:
        for row, column in np.argwhere(edges).tolist():
            leading.setdefault((column + x, row + y), []).append(step)
    first = min(leading, key=lambda corner: (corner[1], corner[0]))
    corners, place, direction = [], first, (0, -1)
    while True:
        steps = leading[place]
        # Where two pixels touch at a corner, turning right stays at the own.
        right = -direction[1], direction[0]
        step = right if len(steps) > 1 else steps[0]
        if step != direction:
            corners.append(place)
        place, direction = (place[0] + step[0], place[1] + step[1]), step
        if place == first:
            return np.array(corners)
