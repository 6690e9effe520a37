"""Small pictures of single images, inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

_SIZE = 160
# Images this small are shown with hard pixels instead of a blur.
_TINY = 48

# From ids to (id, pixels uint8 [H, W, 3]) of those that can be read, one after
# the other: all of them together may not fit in memory.
Pictures = Callable[[Sequence[str]], Iterable[tuple[str, np.ndarray]]]


@dataclass(frozen=True)
class Thumbnail:
    """A square cut from the middle of an image.

    Attributes:
      uri: a data: address with the encoded image inside.
      tiny: whether its pixels shall be seen as such.
    """

    uri: str
    tiny: bool


def thumbnails(
    pictures: Pictures | None, ids: Sequence[str]
) -> tuple[dict[str, Thumbnail], str]:
    """Returns id -> thumbnail, and why some or all are missing, or "".

    Args:
      pictures: reads them; None where nothing says where they are.
      ids: of the images wanted.
    """
    if not ids:
        return {}, ""
    if pictures is None:
        return {}, "The runs do not say where their images are."
    found: dict[str, Thumbnail] = {}
    try:
        for name, pixels in pictures(ids):
            found[name] = thumbnail(pixels)
    # A report without pictures is better than none, whatever the reason.
    except Exception as error:
        return found, f"The images could not be opened: {error}"
    if len(found) < len(ids):
        return found, "Some images are gone or cannot be read."
    return found, ""


def thumbnail(pixels: np.ndarray) -> Thumbnail:
    """Returns the middle of an image, uint8 [H, W, 3], reduced."""
    picture = Image.fromarray(pixels)
    side = min(picture.size)
    left = (picture.width - side) // 2
    top = (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    tiny = side <= _TINY
    if side > _SIZE:
        picture = picture.resize((_SIZE, _SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if tiny:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=82, optimize=True)
    kind = "png" if tiny else "jpeg"
    text = base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(f"data:image/{kind};base64,{text}", tiny)
