"""What happens to a crop, as a list: drawn first, done afterwards.

An image's operations are drawn before a pixel is touched. So they can be done
in fewer passes than there are operations, and those that a device can do may
be left to it (device_ops.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.backends import image_backend, pixel_math
from input_pipeline.backends.image_backend import AnyImage
from input_pipeline.transforms import degradations


class Operation(NamedTuple):
    """One of the operations below, and how strongly.

    Attributes:
      name: a key of `GEOMETRY`, `TABLES`, `TABLES_OF_IMAGE`, `FILTERS` or
        `DEGRADATIONS`.
      value: its parameter; unused by those that have none.
    """

    name: str
    value: Any = 0.0


# (value, width, height) -> matrix. Pixels move, none changes; what comes in
# from outside is black.
GEOMETRY = {
    "shear_x": pixel_math.shear_x,
    "shear_y": pixel_math.shear_y,
    "translate_x": pixel_math.translate_x,
    "translate_y": pixel_math.translate_y,
    "rotate": pixel_math.rotate,
}

# (value) -> table.
TABLES = {
    "brightness": pixel_math.brightness_table,
    "posterize": pixel_math.posterize_table,
    "solarize": pixel_math.solarize_table,
    "gamma": degradations.gamma_table,
}

# (form, image, value) -> table.
TABLES_OF_IMAGE = {
    "contrast": lambda form, image, factor: pixel_math.contrast_table(
        form.mean_grey(image), factor
    ),
    "autocontrast": lambda form, image, _: pixel_math.autocontrast_table(
        form.histograms(image)
    ),
    "equalize": lambda form, image, _: pixel_math.equalize_table(
        form.histograms(image)
    ),
}

# (form, image, value) -> image.
FILTERS = {
    "saturation": lambda form, image, factor: form.saturation(image, factor),
    "hue": lambda form, image, shift: form.hue(image, shift),
    "grayscale": lambda form, image, _: form.grayscale(image),
    "sharpness": lambda form, image, factor: form.sharpness(image, factor),
}

# (Pillow image, value) -> Pillow image: there is no C++ for these.
DEGRADATIONS = {
    "gaussian_blur": degradations.gaussian_blur,
    "downscale": degradations.downscale,
    "jpeg": degradations.jpeg,
    "coarse_dropout": degradations.coarse_dropout,
}

# What device_ops.py can do; its code for an operation is the place here plus
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


def randaugment(name: str, strength: float) -> Operation | None:
    """One of `ops.RANDAUGMENT` with a (signed) strength; None does nothing."""
    match name:
        case "Identity":
            return None
        case "AutoContrast" | "Equalize":
            return Operation(name.lower())
        case "ShearX" | "ShearY":
            shear = math.tan(math.radians(math.degrees(math.atan(strength))))
            return Operation(f"shear_{name[-1].lower()}", shear)
        case "TranslateX" | "TranslateY":
            return Operation(f"translate_{name[-1].lower()}", int(strength))
        case "Rotate" | "Solarize":
            return Operation(name.lower(), strength)
        case "Posterize":
            return Operation("posterize", int(strength))
        case "Color":
            return Operation("saturation", 1.0 + strength)
        case "Brightness" | "Contrast" | "Sharpness":
            return Operation(name.lower(), 1.0 + strength)
    raise ValueError(f"unknown RandAugment operation {name!r}")


def apply(image: AnyImage, operations: Iterable[Operation]) -> AnyImage:
    """Does `operations` in their order, to the bit as one after the other.

    Tables that follow one another are looked up as one.

    Args:
      image: of either of the forms; the result is of the same.
      operations: of any kind.
    """
    form = image_backend.of(image)
    table = None  # of what is still to be looked up
    for name, value in operations:
        if name in TABLES:
            own = TABLES[name](value)
            table = own if table is None else own[table]
            continue
        if table is not None:
            image, table = form.look_up(image, table), None
        if name in TABLES_OF_IMAGE:
            table = TABLES_OF_IMAGE[name](form, image, value)
        elif name in GEOMETRY:
            matrix = GEOMETRY[name](value, *form.size(image))
            image = form.affine(image, matrix)
        elif name in FILTERS:
            image = FILTERS[name](form, image, value)
        else:
            done = DEGRADATIONS[name](form.to_pillow(image), value)
            image = form.from_pillow(done)
    return image if table is None else form.look_up(image, table)


def geometry_first(operations: Sequence[Operation]) -> list[Operation]:
    """Moves geometry to the front as far as no pixel notices.

    A pixel may be moved before or after its value is replaced by another,
    unless black, which comes in from outside, is replaced as well.
    """
    ordered: list[Operation] = []
    for operation in operations:
        place = len(ordered)
        if operation.name in GEOMETRY:
            while place and _keeps_black(ordered[place - 1]):
                place -= 1
        ordered.insert(place, operation)
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
) -> dict[str, np.ndarray]:
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
