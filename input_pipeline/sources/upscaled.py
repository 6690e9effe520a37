"""Small photos enlarged before they are augmented, in training and prediction.

A photo whose shorter side is below `Upscaling.side` gets that length, by one
of Pillow's filters, or by a network that doubles it as often as it takes,
whose result is then reduced. Filters work where a photo is read. The network
has done so before, once for each photo (`fill`): what it made is kept in a
folder, by the content of the photo, and read from there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from core.atomic_files import atomic_write
from core.errors import UserError
from input_pipeline import parallel_scan
from input_pipeline.decoding import BadImage, decode, open_image
from input_pipeline.sources.base import Examples, Kind, Source
from input_pipeline.sources.wrapped import WrappedExamples

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# Longer side / shorter side of what is enlarged: a strip would become huge.
LONGEST = 16

# What a network does: uint8 [H, W, 3] -> [2H, 2W, 3].
Double = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Upscaling:
    """How photos are enlarged.

    Attributes:
      method: one of `FILTERS`, or the name of a network.
      side: what the shorter side is to have, in pixels.
      folder: of what networks have made.
    """

    method: str
    side: int
    folder: Path

    @property
    def by_network(self) -> bool:
        """Whether photos are read only after `fill`."""
        return self.method not in FILTERS

    def is_small(self, data: bytes | np.ndarray) -> bool:
        """Whether a photo is enlarged at all.

        Args:
          data: an encoded file, or pixels uint8 `[H, W, 3]`.

        Raises:
          BadImage: it cannot be read.
        """
        shorter, longer = sorted(open_image(data).size)
        return shorter < self.side and longer <= LONGEST * shorter

    def read(self, data: bytes | np.ndarray) -> bytes | np.ndarray:
        """Returns a small photo enlarged: a file, or pixels.

        Raises:
          BadImage: it cannot be read.
          UserError: what a network made of it is gone.
        """
        if not self.by_network:
            return self._resized(decode(data), FILTERS[self.method])
        path = self._path(data)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise UserError(
                f"{path} is gone from the cache; run the same command again"
            ) from None

    def lacks(self, data: bytes | np.ndarray) -> bool:
        """Whether `make` has not yet enlarged a small photo."""
        return not self._path(data).exists()

    def make(self, data: bytes | np.ndarray, double: Double) -> None:
        """Enlarges a small photo with a network, and keeps it.

        Raises:
          BadImage: it cannot be read.
          UserError: the result cannot be written.
        """
        pixels = decode(data)
        while min(pixels.shape[:2]) < self.side:
            pixels = double(pixels)
        pixels = self._resized(pixels, Image.Resampling.LANCZOS)
        with atomic_write(self._path(data)) as path:
            Image.fromarray(pixels).save(path, "PNG", compress_level=1)

    def _path(self, data: bytes | np.ndarray) -> Path:
        if isinstance(data, np.ndarray):
            data = str(data.shape).encode() + data.tobytes()
        name = hashlib.blake2b(data, digest_size=16).hexdigest()
        folder = self.folder / f"{self.method}-{self.side}" / name[:2]
        return folder / f"{name}.png"

    def _resized(
        self, pixels: np.ndarray, kind: Image.Resampling
    ) -> np.ndarray:
        height, width, _ = pixels.shape
        scale = self.side / min(height, width)
        size = round(width * scale), round(height * scale)
        return np.asarray(Image.fromarray(pixels).resize(size, kind))


@dataclasses.dataclass(frozen=True, eq=False)
class UpscaledExamples(WrappedExamples):
    """Examples whose images are read enlarged.

    Attributes:
      step: how.
    """

    step: Upscaling

    def read(self, row: int) -> dict[str, bytes | np.ndarray]:
        """Returns the features; `image` is large enough."""
        example = self.raw.read(row)
        if self.step.is_small(example["image"]):
            example["image"] = self.step.read(example["image"])
        return example


def upscaled(examples: Examples, step: Upscaling) -> UpscaledExamples:
    """The examples with small images enlarged."""
    return UpscaledExamples(
        examples.ids, examples.labels, examples, step, columns=examples.columns
    )


def without_upscaling(examples: Examples) -> Examples:
    """The examples as they are before this step."""
    return examples.raw if isinstance(examples, UpscaledExamples) else examples


def upscaled_source(source: Source, step: Upscaling) -> Source:
    """The source with small images enlarged, with a fingerprint of its own.

    Raises:
      UserError: it has masks, which would no longer fit.
    """
    if Kind.MASK in source.labelled.kinds.values():
        raise UserError(
            f"data.upscale is {step.method!r}, and {source.name} has masks, "
            "which are not enlarged with their images; leave it empty"
        )
    test = source.test
    return dataclasses.replace(
        source,
        labelled=upscaled(source.labelled, step),
        test=None if test is None else upscaled(test, step),
        fingerprint=f"{source.fingerprint}-{step.method}-{step.side}",
        notes=(
            *source.notes,
            f"images of under {step.side} px are enlarged: {step.method}",
        ),
    )


def lacking(examples: UpscaledExamples, rows: np.ndarray) -> np.ndarray:
    """Returns those of the rows that `fill` has yet to enlarge.

    Images that cannot be read are none of them.
    """
    found = parallel_scan.every_image(
        _lacks, examples, rows, "looking for small images"
    )
    return rows[np.fromiter(found, bool, len(rows))]


def fill(examples: UpscaledExamples, rows: np.ndarray, double: Double) -> None:
    """Enlarges images with a network, with progress on stderr.

    Stopped at any point, it goes on there the next time.

    Args:
      examples: whose step is by a network.
      rows: int `[N]`, as `lacking` returns them.
      double: the network.

    Raises:
      UserError: the cache cannot be written.
    """
    make = functools.partial(_make, double)
    for _ in parallel_scan.every_image(
        make, examples, rows, f"enlarging with {examples.step.method}"
    ):
        pass


def _lacks(examples: UpscaledExamples, row: int) -> bool:
    step = examples.step
    try:
        data = examples.raw.read(row)["image"]
        return step.is_small(data) and step.lacks(data)
    except BadImage:
        return False


def _make(double: Double, examples: UpscaledExamples, row: int) -> None:
    data = examples.raw.read(row)["image"]
    try:
        if examples.step.lacks(data):  # No copy of it has come before.
            examples.step.make(data, double)
    except BadImage:
        return  # Told where it is read for the model.
