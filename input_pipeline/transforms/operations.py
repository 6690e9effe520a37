"""A crop's operations as a list, drawn before any pixel is touched.

So they take fewer passes over the pixels than there are operations, a mask
follows its image, and those that a device can do may be left to it
(on_device.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from input_pipeline.backends import image_backend, pillow
from input_pipeline.backends.image_backend import AnyImage
from input_pipeline.transforms import color, degradations
from input_pipeline.transforms.geometry import MATRICES, SMOOTH


class Operation(NamedTuple):
    """One of the operations below, and how strongly.

    Attributes:
      name: a key of `geometry.MATRICES` (pixels move, none changes; those
        from outside are black), of `color.TABLES`, `TABLES_OF_IMAGE` or
        `FILTERS`, of `DEGRADATIONS`, `gamma` or `brightness_contrast`.
      value: its parameter; unused by those that have none.
    """

    name: str
    value: Any = 0.0


# (value) -> table.
_TABLES = color.TABLES | {
    "gamma": degradations.gamma_table,
    "brightness_contrast": degradations.brightness_contrast_table,
}

# (Pillow image, value) -> Pillow image: there is no C++ for these.
DEGRADATIONS = {
    "gaussian_blur": degradations.gaussian_blur,
    "downscale": degradations.downscale,
    "jpeg": degradations.jpeg,
    "coarse_dropout": degradations.coarse_dropout,
    "noise": degradations.noise,
}

# What on_device.py can do; its code for an operation is the index here plus
# one, 0 does nothing.
ON_DEVICE = (
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "grayscale",
    "posterize",
    "solarize",
    "sharpness",
)

# Look at one pixel alone and leave black black (a threshold above 0 given).
_KEEP_BLACK = {"brightness", "saturation", "hue", "grayscale", "posterize"}


def apply(image: AnyImage, operations: Iterable[Operation]) -> AnyImage:
    """Does `operations` in their order, to the bit as one after the other.

    Tables that follow one another are looked up as one.

    Args:
      image: of either back end; the result is of the same.
      operations: of any kind.
    """
    backend = image_backend.of(image)
    table = None  # of what is still to be looked up
    for name, value in operations:
        if name in _TABLES:
            own = _TABLES[name](value)
            table = own if table is None else own[table]
            continue
        if table is not None:
            image, table = backend.look_up(image, table), None
        if name in color.TABLES_OF_IMAGE:
            table = color.TABLES_OF_IMAGE[name](backend, image, value)
        elif name in SMOOTH:
            matrix = MATRICES[name](value, *backend.size(image))
            moved = pillow.affine_bilinear(backend.to_pillow(image), matrix)
            image = backend.from_pillow(moved)
        elif name in MATRICES:
            matrix = MATRICES[name](value, *backend.size(image))
            image = backend.affine(image, matrix)
        elif name in color.FILTERS:
            image = color.FILTERS[name](backend, image, value)
        else:
            done = DEGRADATIONS[name](backend.to_pillow(image), value)
            image = backend.from_pillow(done)
    return image if table is None else backend.look_up(image, table)


def apply_to_mask(
    mask: UInt8[np.ndarray, "H W"],
    operations: Iterable[Operation],
    ignore_index: int,
) -> UInt8[np.ndarray, "H W"]:
    """Moves a mask's pixels as `apply` moves the image's.

    Args:
      mask: a class per pixel.
      operations: of any kind; those that move no pixel are passed over.
      ignore_index: what comes in from outside.
    """
    for name, value in operations:
        if name in MATRICES:
            matrix = MATRICES[name](value, *mask.shape[1::-1])
            mask = image_backend.affine_mask(mask, matrix, ignore_index)
    return mask


def geometry_first(operations: Sequence[Operation]) -> list[Operation]:
    """Moves geometry to the front as far as no pixel notices.

    A pixel may be moved before or after its value is replaced by another,
    unless black, which comes in from outside, is replaced as well. What
    interpolates stays where it is.
    """
    ordered: list[Operation] = []
    for operation in operations:
        index = len(ordered)
        if operation.name in MATRICES and operation.name not in SMOOTH:
            while index and _keeps_black(ordered[index - 1]):
                index -= 1
        ordered.insert(index, operation)
    return ordered


def _keeps_black(operation: Operation) -> bool:
    name, value = operation
    return name in _KEEP_BLACK or (name == "solarize" and value > 0)


def split(
    operations: Sequence[Operation],
) -> tuple[list[Operation], list[Operation]]:
    """What the host must do, and what comes after it, left to the device."""
    operations = geometry_first(operations)
    host = len(operations)
    while host and operations[host - 1].name in ON_DEVICE:
        host -= 1
    return operations[:host], operations[host:]


def encode(
    operations: Sequence[Operation], slots: int
) -> dict[str, UInt8[np.ndarray, " S"] | Float32[np.ndarray, " S"]]:
    """What is left for the device, as arrays for `on_device.apply`.

    Args:
      operations: of one image, out of `ON_DEVICE`, at most `slots`.
      slots: S; those beyond the operations do nothing.

    Returns:
      `operation` uint8 `[S]` and `strength` float32 `[S]`.
    """
    codes = np.zeros(slots, np.uint8)
    values = np.zeros(slots, np.float32)
    for slot, (name, value) in enumerate(operations):
        codes[slot] = ON_DEVICE.index(name) + 1
        values[slot] = value
    return {"operation": codes, "strength": values}
