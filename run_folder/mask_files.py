"""Files about the pixels of one image: its mask, and its probabilities.

Probabilities are an `.npz` that `np.load` opens, too:

| array           | what it is                                             |
| --------------- | ------------------------------------------------------ |
| `probabilities` | uint8 [H, W, C] in the image's size; 255 is certain     |
| `classes`       | str [C]                                                |
| `values`        | uint8 [C], what mask files hold for each class         |
| `palette`       | uint8 [P], R, G, B of each value; empty for grey masks |
| `labels`        | uint8 [H, W], validation alone: classes, 255 ignored   |

It is written and read in stripes of few rows: those of a photo of 24 megapixels
in 19 classes are 456 MB.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from core.errors import UserError

# Takes float [rows, W, C], from top to bottom.
AddStripe = Callable[[np.ndarray], None]

_PROBABILITIES, _LABELS = "probabilities", "labels"

# What reading a damaged file raises.
_DAMAGES = (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)

# The fastest: most of the bytes are 0 or 255.
_LEVEL = 1


class MaskStyle(NamedTuple):
    """How masks are written.

    Attributes:
      classes: C names.
      values: of each class, what its pixels hold in a file.
      palette: R, G, B for each value; () makes masks grey.
    """

    classes: tuple[str, ...]
    values: tuple[int, ...]
    palette: tuple[int, ...]

    def encode(
        self, mask: UInt8[np.ndarray, "H W"]
    ) -> UInt8[np.ndarray, "H W"]:
        """Returns what a file holds for classes."""
        return np.array(self.values, np.uint8)[mask]


def save_mask(
    path: Path,
    values: UInt8[np.ndarray, "H W"],
    palette: Sequence[int] = (),
) -> None:
    """Writes a mask to a PNG file.

    Args:
      path: of the file.
      values: what it holds.
      palette: R, G, B for each value; () makes it grey.
    """
    from PIL import Image  # Needed by this function alone.

    picture = Image.fromarray(values)
    if palette:
        # Pillow writes as many bits as the palette needs, not the values.
        lacking = 3 * (int(values.max()) + 1) - len(palette)
        picture.putpalette([*palette, *[0] * lacking])
    picture.save(path, format="png")


@contextlib.contextmanager
def write_probabilities(
    path: Path,
    height: int,
    width: int,
    style: MaskStyle,
    labels: UInt8[np.ndarray, "H W"] | None = None,
) -> Iterator[AddStripe]:
    """Writes the probabilities of an image.

    Args:
      path: of the file.
      height: of the image.
      width: of the image.
      style: of its mask.
      labels: true classes, 255 where ignored; None where unknown.

    Yields:
      What takes the probabilities, float `[rows, width, C]`, stripe by stripe.

    Raises:
      ValueError: other than `height` rows have been given.
    """
    small = {
        "classes": np.array(style.classes),
        "values": np.array(style.values, np.uint8),
        "palette": np.array(style.palette, np.uint8),
    }
    if labels is not None:
        small[_LABELS] = labels
    shape, left = (height, width, len(style.classes)), height
    with zipfile.ZipFile(
        path, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL
    ) as file:
        for name, array in small.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        with file.open(
            f"{_PROBABILITIES}.npy", "w", force_zip64=True
        ) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(member, header)

            def add(stripe: Float[np.ndarray, "rows W C"]) -> None:
                nonlocal left
                left -= len(stripe)
                member.write(np.uint8(stripe * 255 + 0.5).tobytes())

            yield add
    if left:
        raise ValueError(f"{left} of {height} rows of {path} are missing")


class ProbabilityFile:
    """Probabilities of an image, read in stripes.

    Args:
      path: of the file, on a disk or in a bucket.

    Attributes:
      path: of the file.
      style: of the image's mask.
      shape: height, width and number of classes.
      labels: true classes uint8 `[H, W]`, 255 where ignored; None if unknown.

    Raises:
      UserError: it is damaged, or no such file.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._reading():
            # Compressed, it is small; in a bucket, one request.
            self._data = path.read_bytes()
            with np.load(io.BytesIO(self._data), allow_pickle=False) as file:
                self.style = MaskStyle(
                    *(tuple(file[name].tolist()) for name in MaskStyle._fields)
                )
                known = _LABELS in file.files
                self.labels = file[_LABELS] if known else None
            with self._opened() as (_, shape):
                self.shape = shape
            height, width, count = shape
            if count != len(self.style.classes) or (
                known and self.labels.shape != (height, width)
            ):
                raise ValueError("its arrays do not fit each other")

    def stripes(self, rows: int) -> Iterator[UInt8[np.ndarray, "rows W C"]]:
        """Yields the probabilities times 255, `rows` at a time.

        Raises:
          UserError: the file is damaged.
        """
        with self._reading(), self._opened() as (member, shape):
            height, *rest = shape
            for top in range(0, height, rows):
                count = min(rows, height - top)
                data = member.read(count * int(np.prod(rest)))
                yield np.frombuffer(data, np.uint8).reshape(count, *rest)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[io.BufferedIOBase, tuple[int, ...]]]:
        with (
            zipfile.ZipFile(io.BytesIO(self._data)) as file,
            file.open(f"{_PROBABILITIES}.npy") as member,
        ):
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, by_column, dtype = read(member)
            if by_column or dtype != np.uint8 or len(shape) != 3:
                raise ValueError(f"its probabilities are {dtype} {shape}")
            yield member, shape

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(
                f"{self.path} is missing; export the run again with --export "
                "--config.segment.probabilities=True"
            ) from error
        except _DAMAGES as error:
            raise UserError(
                f"{self.path} cannot be read ({error}); export the run again "
                "with --export --config.segment.probabilities=True"
            ) from error
