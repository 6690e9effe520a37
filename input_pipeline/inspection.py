"""Every image of a source decoded once, and what was measured of it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import PIL.Image

from input_pipeline import impulses, near_copies, pair_audit, parallel_scan
from input_pipeline.decoding import (
    REPAIRED,
    BadImage,
    is_transparent,
    open_image,
    orientation,
    upright_rgb,
)
from input_pipeline.findings import Finding
from input_pipeline.sources.base import Examples, Source
from input_pipeline.sources.cleaned import without_cleaning

# Sharpness is compared between images of all sizes at this longer side.
_SHARPNESS_SIDE = 256
_LUMA = np.array([0.299, 0.587, 0.114])
_VALUES = np.arange(256) / 255.0

# Noise is looked for in so many pixels each way: enough to tell its share.
NOISE_SIDE = 256


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Size and hash of an image's pixels, or the reason why it fails.

    `noise` is the share of single black or white pixels in the middle of the
    image, `noise_left` what cleaning leaves of it, `lone` a share by which to
    believe it. `repaired` is what is wrong with the file all the same;
    `turned` whether its EXIF entry turns it to the same size; `thumbnail` is
    for `near_copies`. `means` and `squares` are of the three channels over
    0..1; `sharpness` is the standard deviation of the Laplacian in grey
    levels, of the image reduced to `_SHARPNESS_SIDE` (Pech-Pacheco et al.
    2000).
    """

    reason: str = ""
    width: int = 0
    height: int = 0
    digest: bytes = b""
    transparent: bool = False
    noise: float = 0.0
    noise_left: float = 0.0
    lone: float = 0.0
    repaired: str = ""
    turned: bool = False
    thumbnail: np.ndarray | None = None
    means: np.ndarray | None = None
    squares: np.ndarray | None = None
    sharpness: float = 0.0

    @property
    def brightness(self) -> float:
        """Mean luma (ITU-R BT.601), from 0 to 1."""
        return float(self.means @ _LUMA)


@dataclasses.dataclass(frozen=True)
class Inspected:
    """A row of a source, and what was found when it was decoded.

    `label` is the class, the digest of the mask, or identity and flag: images
    of the same pixels should agree in it.
    """

    split: str
    id: str
    file: str
    label: int | bytes
    decoded: Decoded

    def finding(
        self, problem: str, detail: str, other: Inspected | None = None
    ) -> Finding:
        """Returns a finding about this image."""
        beside = None if other is None else (other.split, other.id)
        return Finding(self.split, self.id, self.file, problem, detail, beside)


def inspect(source: Source) -> list[Inspected]:
    """Decodes every image: the labelled ones, then those to predict."""
    labels = source.labelled.labels.tolist()
    if source.mask_digests is not None:
        labels = [digest.tobytes() for digest in source.mask_digests]
    elif compares_identities(source):
        labels = pair_audit.keys(source)
    images = _decoded(source.labelled, source.splits, labels, "train images")
    if (test := source.test) is not None:
        names = np.full(len(test), "test")
        images += _decoded(test, names, [-1] * len(test), "test images")
    return images


def compares_identities(source: Source) -> bool:
    """Whether it is identities and forgeries that a task learns from it."""
    return "forged" in source.labelled.columns


def _decoded(
    examples: Examples, splits: np.ndarray, labels: Sequence, title: str
) -> list[Inspected]:
    rows = np.arange(len(examples))
    examples = without_cleaning(examples)
    found = parallel_scan.every_image(_inspect, examples, rows, title)
    return [
        Inspected(str(split), str(name), examples.path(row), label, decoded)
        for row, split, name, label, decoded in zip(
            rows.tolist(), splits, examples.ids, labels, found, strict=True
        )
    ]


def _inspect(images: Examples, row: int) -> Decoded:
    try:
        image = open_image(images.read(row)["image"])
        upright = upright_rgb(image)
    except BadImage as error:
        return Decoded(reason=str(error))
    pixels = np.asarray(upright)
    height, width, _ = pixels.shape
    digest = hashlib.blake2b(f"{width} {height} ".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels))
    middle = _middle(pixels)
    # By counting in C, which takes no memory for a large photo.
    shares = np.reshape(upright.histogram(), (3, 256)) / (width * height)
    return Decoded(
        "",
        width,
        height,
        digest.digest(),
        transparent=is_transparent(image),
        noise=float(impulses.find(middle).mean()),
        noise_left=float(impulses.find(impulses.clean(middle)).mean()),
        lone=impulses.lone_share(middle) if min(width, height) >= 16 else 0.0,
        repaired=image.info.get(REPAIRED, ""),
        turned=orientation(image) > 1 and image.size == upright.size,
        thumbnail=near_copies.thumbnail(upright),
        means=shares @ _VALUES,
        squares=shares @ _VALUES**2,
        sharpness=_sharpness(upright),
    )


def _middle(pixels: np.ndarray) -> np.ndarray:
    """At most `NOISE_SIDE` pixels each way, from the middle."""
    top, left = (max(0, n - NOISE_SIDE) // 2 for n in pixels.shape[:2])
    return pixels[top : top + NOISE_SIDE, left : left + NOISE_SIDE]


def _sharpness(image: PIL.Image.Image) -> float:
    """See `Decoded`; 0 for an image without an inside."""
    grey = image.convert("L")
    grey.thumbnail((_SHARPNESS_SIDE, _SHARPNESS_SIDE))
    y = np.asarray(grey, np.float32)
    if min(y.shape) < 3:
        return 0.0
    around = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:]
    return float((around - 4 * y[1:-1, 1:-1]).std())
