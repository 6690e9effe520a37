"""The section on a masked autoencoder: what it painted."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from reports.page import Section, template
from run_folder import layout

_WIDEST = 900  # pixels of the picture in the page


def reconstruction_sections(workdir: Path) -> list[Section]:
    """Returns the pictures that a run has painted; [] before its export.

    Args:
      workdir: the run folder.
    """
    path = workdir / layout.RECONSTRUCTIONS
    if not path.exists():
        return []
    with Image.open(io.BytesIO(path.read_bytes())) as whole:
        picture = whole.convert("RGB")
    picture.thumbnail((_WIDEST, 100 * _WIDEST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    text = base64.b64encode(buffer.getvalue()).decode()
    return [
        Section(
            "Reconstructions, validation",
            template("run.html").picture(
                f"data:image/png;base64,{text}",
                "originals, what was hidden, and what was painted",
                picture.width < _WIDEST / 2,
            ),
            "From left to right: the image, what the model saw of it, and what "
            "it painted where it saw nothing.",
        )
    ]
