"""Windows of an image: cut with overlap, each resized to what a model sees.

A window shows as many pixels per cell as a training crop did, as in nnU-Net
(Isensee et al. 2021), which brings images to the training's spacing, and in
mmsegmentation's `mode='slide'`, which cuts windows out of an image resized as
in training. Here a training crop is a share of its image's area, so a window
is one, too. It is a square, where the whole image would be squeezed into one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int
from PIL import Image

from input_pipeline.backends import image_backend
from input_pipeline.decoding import (
    BadImage,
    open_image,
    upright_rgb,
    upright_size,
)
from input_pipeline.sources.base import Examples, Kind, Spec, read_file

# Along the longer side there is room for so many windows beside each other, at
# most: a ruler's photo would else be cut into thousands.
MOST_ALONG = 64

# A PNG without them is not turned: the names of what Pillow looks into.
_TURNS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where the windows of one image lie.

    Attributes:
      width: of the image at the windows' scale, in pixels.
      height: the same.
      lefts: of the windows' columns, ascending, in those pixels.
      tops: of their rows.
    """

    width: int
    height: int
    lefts: tuple[int, ...]
    tops: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lefts) * len(self.tops)


@dataclasses.dataclass(frozen=True)
class Windows:
    """How images are cut into windows.

    Attributes:
      size: side of a window in pixels, as the model sees it.
      overlap: least share of a window's side that the next one shows, too.
      share: of an image's area that a window shows, at scale 1.
      scale: of the image; larger shows less of it in a window.
    """

    size: int
    overlap: float
    share: float
    scale: float = 1.0

    def grid(self, width: int, height: int) -> Grid:
        """Returns where the windows of an image of this size lie.

        A window is not larger than the image at scale 1; at a smaller one it
        may be, and the image is filled up to the right and below.
        """
        side = min(math.sqrt(self.share * width * height), width, height)
        side = max(side, max(width, height) / MOST_ALONG) / self.scale
        across, down = (
            max(1, round(length * self.size / side))
            for length in (width, height)
        )
        return Grid(across, down, self._starts(across), self._starts(down))

    def boxes(self, width: int, height: int) -> list[Box]:
        """Returns left, top, right and bottom of the windows in the image.

        Row by row; beyond the image where a window is larger than it.
        """
        grid, boxes = self.grid(width, height), []
        across, down = width / grid.width, height / grid.height
        for top in grid.tops:
            for left in grid.lefts:
                right, bottom = left + self.size, top + self.size
                boxes.append(
                    (left * across, top * down, right * across, bottom * down)
                )
        return boxes

    def _starts(self, length: int) -> tuple[int, ...]:
        """Evenly spaced, the last one at the end, as in nnU-Net."""
        room = length - self.size
        if room <= 0:
            return (0,)
        count = 1 + math.ceil(room / (self.size * (1 - self.overlap)) - 1e-9)
        return tuple(np.linspace(0, room, count).round().astype(int).tolist())


@dataclasses.dataclass(frozen=True, eq=False)
class WindowedExamples(Examples):
    """The windows of images, one example each; ids are those of the images.

    Attributes:
      images: that are cut.
      image_rows: int `[N]`, which image a window is of.
      boxes: float64 `[N, 4]`, left, top, right and bottom in it.
    """

    images: Examples
    image_rows: np.ndarray
    boxes: np.ndarray

    def path(self, row: int) -> str:
        """The absolute path of the image's file; empty where it has none."""
        return self.images.path(int(self.image_rows[row]))

    def read(self, row: int) -> dict[str, bytes | np.ndarray]:
        """Returns `image` and `box`."""
        image = _read_image(self.images, int(self.image_rows[row]))
        return {"image": image, "box": self.boxes[row]}


def cut(
    images: Examples,
    rows: Int[np.ndarray, " N"],
    sizes: Int[np.ndarray, "N 2"],
    windows: Windows,
) -> WindowedExamples:
    """Returns the windows of images, in order.

    Args:
      images: that are cut.
      rows: which of them.
      sizes: width and height of each; (0, 0) of one that cannot be read,
        which gets a single window that cannot be read, either.
      windows: how to cut.
    """
    boxes = [
        windows.boxes(*size) if min(size) > 0 else [(0.0, 0.0, 1.0, 1.0)]
        for size in sizes.tolist()
    ]
    image_rows = np.repeat(rows, [len(found) for found in boxes])
    return WindowedExamples(
        ids=images.ids[image_rows],
        labels=images.labels[image_rows],
        images=images,
        image_rows=image_rows,
        boxes=np.concatenate(boxes) if boxes else np.zeros((0, 4)),
    )


def image_size(images: Examples, row: int) -> tuple[int, int]:
    """Returns an image's upright width and height; (0, 0) if unreadable."""
    try:
        data = _read_image(images, row)
        image = open_image(data)
        if image.format in (None, "JPEG"):
            return upright_size(image)
        if image.format == "PNG" and not any(mark in data for mark in _TURNS):
            return image.size
        # The entry may lie behind the pixels.
        return upright_rgb(image).size
    except BadImage:
        return 0, 0


def _read_image(images: Examples, row: int) -> bytes | np.ndarray:
    """Without what else an example has, such as a mask."""
    path = images.path(row)
    return read_file(path) if path else images.read(row)["image"]


@dataclasses.dataclass(eq=False)
class WindowTransform:
    """Cuts a window out of an image, and resizes it.

    Attributes:
      size: side of the result in pixels.
      fill: red, green and blue of what lies beyond the image.
    """

    if_unreadable: ClassVar[str] = "gets no mask"
    size: int
    fill: tuple[int, int, int]
    # The image of the last call: its windows come one after the other.
    _last: tuple[str, np.ndarray | BadImage] | None = None

    def spec(self, kinds: Mapping[str, Kind]) -> Spec:
        """Returns shape and dtype: `image` uint8 `[1, size, size, 3]`."""
        return {"image": ((1, self.size, self.size, 3), np.uint8)}

    def __call__(
        self, example: Mapping[str, Any], rng: None = None
    ) -> dict[str, np.ndarray]:
        """Decodes an image, unless it is that of the last call, and cuts.

        Args:
          example: `image`, an encoded file or uint8 `[H, W, 3]`, its `id`,
            and `box` float `[4]`.
          rng: not needed.

        Raises:
          BadImage: the image cannot be read.
        """
        if self._last is None or self._last[0] != example["id"]:
            self._last = example["id"], _decoded(example["image"])
        pixels = self._last[1]
        if isinstance(pixels, BadImage):
            raise pixels
        shown = _resized(pixels, example["box"].tolist(), self.size, self.fill)
        return {"image": shown[None]}


def _resized(
    pixels: np.ndarray, box: Sequence[float], size: int, fill: tuple
) -> np.ndarray:
    """uint8 [size, size, 3], what a box shows of an image."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    inside = left, top, min(right, width), min(bottom, height)
    # How many cells of the window lie in the image.
    across = round(size * (inside[2] - left) / (right - left))
    down = round(size * (inside[3] - top) / (bottom - top))
    # What the window's border is smoothed with: two cells, and a pixel.
    margin = [2 * (right - left) / size + 1, 2 * (bottom - top) / size + 1]
    crop = (
        max(0, math.floor(left - margin[0])),
        max(0, math.floor(top - margin[1])),
        min(width, math.ceil(right + margin[0])),
        min(height, math.ceil(bottom + margin[1])),
    )
    offset = np.array([*crop[:2], *crop[:2]])
    inside = tuple((np.array(inside) - offset).tolist())
    if (across, down) == (size, size):
        done = image_backend.resized(pixels, size, crop, inside)
        return image_backend.pixels(done)
    # Enlarged beyond the image it would not fit into the memory.
    part = Image.fromarray(pixels[crop[1] : crop[3], crop[0] : crop[2]])
    shown = Image.new("RGB", (size, size), fill)
    cells = max(across, 1), max(down, 1)
    shown.paste(part.resize(cells, Image.Resampling.BILINEAR, inside))
    return np.asarray(shown)


def _decoded(data: bytes | np.ndarray) -> np.ndarray | BadImage:
    try:
        return np.asarray(upright_rgb(open_image(data)))
    except BadImage as error:
        return error
