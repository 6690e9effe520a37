"""What the values in mask files mean: classes, ignored pixels, colours.

Inside Sextet a mask is uint8 [H, W]: class indices from 0, and `IGNORE` where
no class is known. `MaskFormat` goes from files to that and back.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from core import csv_table
from core.class_colours import IGNORE
from core.errors import UserError
from input_pipeline.decoding import BadImage, decode_mask, open_image

# More classes than this in files without a list of them are no classes: grey
# levels, or what JPEG has made of masks.
MOST_UNLISTED = 40

_COLOUR_COLUMNS = ("r", "g", "b")


@dataclasses.dataclass(frozen=True)
class MaskFormat:
    """How classes are written in mask files.

    Attributes:
      classes: C names.
      values: of each class, what its pixels hold in a file of one channel.
      ignored: values of pixels without a class.
      colours: RGB of each class, then of ignored values; () where masks in
        colour are not understood.
      palette: of the masks that are written, R, G, B for each value; () makes
        them grey.
    """

    classes: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()
    palette: tuple[int, ...] = ()

    def decode(self, data: bytes) -> UInt8[np.ndarray, "H W"]:
        """Decodes a mask to class indices, `IGNORE` where there is no class.

        Raises:
          BadImage: the file cannot be read, its values are not exact, or one
            of them means nothing.
        """
        values = read_values(data, self)
        mask = self._table[values]
        if mask.min() < 0:
            raise BadImage(
                f"its mask holds {values[mask < 0][0]}, which is no class"
            )
        return mask.astype(np.uint8)

    def encode(
        self, mask: UInt8[np.ndarray, "H W"]
    ) -> UInt8[np.ndarray, "H W"]:
        """Returns what a file of one channel holds for classes."""
        table = np.zeros(256, np.uint8)
        table[: len(self.values)] = self.values
        table[IGNORE] = self.ignored[0] if self.ignored else IGNORE
        return table[mask]

    def palette_of_colours(self) -> tuple[int, ...]:
        """Returns R, G, B for each value from the colours; () without any."""
        if not self.colours:
            return ()
        table = np.zeros((256, 3), np.uint8)
        values = (self.values + self.ignored)[: len(self.colours)]
        table[list(values)] = self.colours
        return tuple(table.ravel().tolist())

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """int [256], the class of a value; -1 of one that means nothing."""
        table = np.full(256, -1)
        table[list(self.ignored)] = IGNORE
        table[list(self.values)] = np.arange(len(self.values))
        return table


def read_values(
    data: bytes, form: MaskFormat | None
) -> UInt8[np.ndarray, "H W"]:
    """Returns the values in a mask file; of a colour, its class's value.

    Args:
      data: the file.
      form: whose colours are understood; None understands none.

    Raises:
      BadImage: it cannot be read, its values are not exact, or a colour is
        of no class.
    """
    if form is None or not form.colours:
        return decode_mask(data)
    rgb = decode_mask(data, colours=True)
    if rgb.ndim == 2:
        return rgb
    known = _packed(np.array(form.colours, np.uint8))
    order = np.argsort(known)
    pixels = _packed(rgb)
    at = np.searchsorted(known, pixels, sorter=order)
    at = order[np.minimum(at, len(known) - 1)]
    strange = known[at] != pixels
    if strange.any():
        colour = tuple(rgb[strange][0].tolist())
        raise BadImage(f"its mask holds colour {colour}, which is no class")
    return np.array(form.values + form.ignored, np.uint8)[at]


def _packed(rgb: np.ndarray) -> np.ndarray:
    """One number for each colour."""
    return rgb.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def read_palette(data: bytes) -> tuple[int, ...]:
    """Returns the palette of a mask file, () if it has none."""
    try:
        image = open_image(data)
        palette = image.getpalette("RGB") if image.mode == "P" else None
    except (BadImage, ValueError):
        return ()
    return tuple(palette or ())


def palette_problem(
    data: bytes, counts: Int64[np.ndarray, " 256"], form: MaskFormat | None
) -> str:
    """Returns how a mask's palette contradicts the colours of the classes.

    Programs that sort palettes change the indices and keep the colours.

    Args:
      data: the mask's file.
      counts: its pixels of each value.
      form: whose colours are known; None knows none.

    Returns:
      Why the values cannot be trusted; '' if nothing speaks against them.
    """
    if form is None or not form.colours:
        return ""
    values = (form.values + form.ignored)[: len(form.colours)]
    known = list(zip(form.colours, values, strict=True))
    palette = np.reshape(read_palette(data), (-1, 3)).astype(int).tolist()
    for value in np.flatnonzero(counts[: len(palette)]).tolist():
        colour = tuple(palette[value])
        meant = [one for other, one in known if other == colour]
        if meant and value not in meant:
            return (
                f"its palette shows {value} in the colour {colour} of "
                f"{meant[0]}; save it as RGB, or correct the palette"
            )
    return ""


def read_classes(path: Path) -> MaskFormat:
    """Reads a list of classes: `index,name[,ignore][,r,g,b]`.

    Args:
      path: of the csv. A row with 1 under `ignore` names pixels without a
        class; the classes are the other rows, by index.

    Raises:
      UserError: a column is missing, or a row cannot be.
    """
    table = csv_table.read_csv(path, "--config.data.class_list")
    names = table.column("name", "--config.data.class_list")
    indices = _numbers(table, "index")
    ignore = [0] * len(names)
    if "ignore" in table.header:
        ignore = _numbers(table, "ignore", most=1)
    for what, found in (("index", indices), ("name", names)):
        twice = [one for one in found if list(found).count(one) > 1]
        if twice:
            raise UserError(
                f"{path} has the {what} '{twice[0]}' twice; correct the rows"
            )
    colours: list[tuple[int, ...]] = []
    if set(_COLOUR_COLUMNS) <= set(table.header):
        channels = [_numbers(table, c) for c in _COLOUR_COLUMNS]
        colours = list(zip(*channels, strict=True))
        for colour, aside in zip(colours, ignore, strict=True):
            if not aside and colours.count(colour) > 1:
                raise UserError(
                    f"{path} has the colour {colour} twice; correct the rows"
                )
    order = sorted(range(len(names)), key=lambda row: indices[row])
    classes = [row for row in order if not ignore[row]]
    ignored = [row for row in order if ignore[row]]
    if len(classes) < 2:
        raise UserError(
            f"{path} lists {len(classes)} classes that count, and there is "
            "nothing to tell apart; list the background as a class, too"
        )
    return MaskFormat(
        classes=tuple(names[row] for row in classes),
        values=tuple(indices[row] for row in classes),
        ignored=tuple(indices[row] for row in ignored),
        colours=tuple(colours[row] for row in classes + ignored)
        if colours
        else (),
    )


def _numbers(table: csv_table.Table, column: str, most: int = 255) -> list[int]:
    found = []
    for text in table.column(column, "--config.data.class_list"):
        if not text.isdecimal() or int(text) > most:
            raise UserError(
                f"{table.path} has '{text}' in column '{column}', which is "
                f"not a number from 0 to {most}; correct the row"
            )
        found.append(int(text))
    return found


def from_values(
    text: str, ignore_index: int, listed: MaskFormat | None
) -> MaskFormat:
    """Returns the format that `data.mask_values` describes.

    Args:
      text: the values of the classes in their order, such as '0,255'.
      ignore_index: value of pixels without a class; -1 has none.
      listed: of the list of classes, whose names are kept.

    Raises:
      UserError: it is no list of values, or of another length.
    """
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isdecimal()]
    fits = len(numbers) == len(parts) == len(set(numbers)) >= 2
    if not fits or max(numbers) > 255:
        raise UserError(
            f"data.mask_values is '{text}'; give the value of each class in "
            "its order, such as 0,255"
        )
    names = tuple(map(str, range(len(numbers))))
    if listed is not None:
        names = listed.classes
        if len(names) != len(numbers):
            raise UserError(
                f"data.mask_values has {len(numbers)} values and the list of "
                f"classes {len(names)}; give one for each class"
            )
    ignored, colours = (), ()
    if listed is not None:
        ignored, colours = listed.ignored, listed.colours
    if ignore_index >= 0:
        ignored = (*ignored, ignore_index)
    if set(ignored) & set(numbers):
        raise UserError(
            f"data.mask_values is '{text}', of which "
            f"{min(set(ignored) & set(numbers))} is ignored; a value is a "
            "class or ignored"
        )
    return MaskFormat(names, tuple(numbers), ignored, colours)


def from_found(
    counts: Int64[np.ndarray, " 256"], ignore_index: int, root: Path
) -> MaskFormat:
    """Returns the format of masks without a list of classes.

    Args:
      counts: pixels of each value over all masks.
      ignore_index: value of pixels without a class; -1 has none.
      root: of the data, for the errors.

    Raises:
      UserError: the values cannot be class indices; what to set.
    """
    found = np.flatnonzero(counts)
    found = found[found != ignore_index].tolist()
    listing = f"list the classes in {root / 'classes.csv'} (index,name,ignore)"
    if len(found) < 2 or len(found) > MOST_UNLISTED:
        raise UserError(
            f"the masks in {root} hold {len(found)} different values, which "
            f"are no classes; {listing}, or give masks with class indices"
        )
    if 255 in found and found[-2] < MOST_UNLISTED and len(found) > 2:
        raise UserError(
            f"the masks in {root} hold 255 beside {found[-2] + 1} classes; if "
            "these pixels have no class, set --config.data.ignore_index=255, "
            f"else {listing}"
        )
    if found[-1] > MOST_UNLISTED:
        raise UserError(
            f"the masks in {root} hold the values "
            f"{', '.join(map(str, found))}; if each of them is a class, set "
            f"--config.data.mask_values={','.join(map(str, found))}, else "
            f"{listing}"
        )
    # Values between may be missing by chance: they stay classes.
    values = tuple(v for v in range(found[-1] + 1) if v != ignore_index)
    ignored = (ignore_index,) if ignore_index >= 0 else ()
    return MaskFormat(tuple(map(str, values)), values, ignored)
