"""Small pictures of single images, inside the page.

They are read through `input_pipeline.sources`, imported only when asked for:
the stacker is useful without the photos.
"""

from __future__ import annotations

import base64
import importlib
import io
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

_SIZE = 160
# Images this small are shown with hard pixels instead of a blur.
_TINY = 48


def thumbnails(
    data: dict[str, Any] | None, ids: Sequence[str]
) -> tuple[dict[str, str], str]:
    """Html `<img>` of each image that can be found.

    Args:
      data: the run's `config.data`; None if it is not known.
      ids: of the images wanted.

    Returns:
      id -> html, and a sentence on why some or all are missing, or "".
    """
    if not ids:
        return {}, ""
    if data is None:
        return {}, "The runs do not say where their images are."
    try:
        sources = importlib.import_module("input_pipeline.sources")
        source = sources.open_source(_namespace(data))
    except Exception as error:
        return {}, f"The images could not be opened: {error}"
    found: dict[str, str] = {}
    problem = ""
    for images in (source.labelled, source.test):
        if images is None:
            continue
        place = {str(name): row for row, name in enumerate(images.ids)}
        for name in ids:
            if name in place and name not in found:
                try:
                    found[name] = _tag(images.read(place[name])["image"])
                except Exception as error:
                    problem = f"Some images could not be read: {error}"
    if len(found) < len(ids) and not problem:
        problem = "Some images are no longer where they were."
    return found, problem


def _namespace(data: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(**data)


def _tag(image: bytes | np.ndarray) -> str:
    """An `<img>` with the image inside, a square cut from its middle."""
    from input_pipeline.decoding import decode  # As training saw it.

    picture = Image.fromarray(decode(image))
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
    return (
        f'<img alt="" loading="lazy"{" class=tiny" if tiny else ""} '
        f'src="data:image/{kind};base64,{text}">'
    )
