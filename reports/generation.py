"""Sections on a generator: scores, images over the training, nearest photos."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.errors import UserError
from reports.page import Figure, Section, template
from reports.thumbnails import Pictures
from run_folder import layout, sample_manifest

_TEMPLATE = "generation.html"
_SHOWN = 8  # grids
_LEAST = 480  # pixels that the picture of an evaluation is wide, at least
_ROWS = {
    "generated": "generated",
    "real": "other half of the real images (the floor)",
    "gaussian": "Gaussian in PCA space (the baseline)",
    "blurred": "blurred real images (the ceiling)",
}


def generation_sections(
    workdir: Path, pictures: Pictures | None = None
) -> list[Section]:
    """Returns scores, images over the training, and the nearest photos.

    Args:
      workdir: the run folder.
      pictures: reads training images by id; None shows none.

    Raises:
      UserError: the scores are damaged.
    """
    sections = []
    if manifest := _read(workdir / layout.SAMPLES):
        sections.append(
            Section(
                "Images",
                note=f"{len(manifest['images']):,} in samples/. The training's "
                "command makes them again with "
                f"{sample_manifest.flags(manifest)}",
            )
        )
    scores = _read(workdir / layout.SAMPLE_SCORES)
    if scores is not None:
        sections.append(_scores(scores))
    if grids := _grids(workdir):
        sections.append(
            Section(
                "Images over the training",
                template(_TEMPLATE).grids(grids),
                "Under each evaluation's averaged weights: a row for each of "
                "the first ten classes, in their order, from the same noise "
                "every time.",
            )
        )
    if scores is not None:
        sections.append(_nearest(workdir, scores, pictures))
    return sections


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); run the training's command "
            "again with --export"
        ) from error


def _scores(scores: dict[str, Any]) -> Section:
    judge = scores["judge"]
    rows = [
        {"name": name, **scores["sets"][key]} for key, name in _ROWS.items()
    ]
    made = scores["sets"]["generated"]
    classes = scores["accuracy_of_class"]
    chosen = ""
    if scores.get("filter"):
        chosen = (
            " It also chose the generated ones, those of their class with a "
            f"probability of {scores['filter']:g} or more, so its scores of "
            "them flatter."
        )
    return Section(
        "Scores of the images",
        template(_TEMPLATE).scores(rows, classes),
        f"{scores['images']:,} images of each kind beside as many real ones, "
        f"by features of {judge['model']} in {judge['run']} (step "
        f"{judge['step']}, {judge['fingerprint'][:12]}), which was trained on "
        "the same fold. They compare only within these features: FD is no "
        "FID. The judge is right about "
        f"{scores['held_out_accuracy']:.1%} of the photos held out.{chosen}",
        figures=(
            Figure("KID", f"{made['kid']:.4f}", f"± {made['kid_std']:.4f}"),
            Figure(
                "judge agrees, all images",
                f"{scores['accuracy']:.1%}",
                f"{scores['held_out_accuracy']:.1%} on held-out photos",
            ),
        ),
    )


def _grids(workdir: Path) -> list[dict[str, str]]:
    folder = workdir / layout.GRIDS
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if path.stem.isdigit())
    chosen = np.unique(np.linspace(0, len(paths) - 1, _SHOWN).round())
    return [
        {
            "step": f"{int(paths[int(index)].stem):,}",
            "uri": _uri(paths[int(index)].read_bytes()),
        }
        for index in (chosen if paths else ())
    ]


def _nearest(
    workdir: Path, scores: dict[str, Any], pictures: Pictures | None
) -> Section:
    pairs = scores["nearest"]
    ids = list(dict.fromkeys(pair["id"] for pair in pairs))
    photos: dict[str, np.ndarray] = {}
    # Where the data is gone, the generated images alone are shown.
    with contextlib.suppress(UserError):
        photos = dict(pictures(ids)) if pictures else {}
    rows = []
    for pair in pairs:
        path = workdir / pair["file"]
        photo = photos.get(pair["id"])
        rows.append(
            {
                "sample": _uri(path.read_bytes()) if path.exists() else "",
                "photo": "" if photo is None else _uri(_png(photo)),
                "id": pair["id"],
                "distance": pair["distance"],
            }
        )
    found = scores["memorised"]
    return Section(
        "Nearest training images",
        template(_TEMPLATE).nearest(rows),
        f"{found['share']:.1%} of the generated images are nearer to a "
        "training image than 99 % of the held-out photos are; 1 % would be "
        "those photos' own share. Median distance "
        f"{found['median_distance']:.3f}, of held-out photos "
        f"{found['held_out_median_distance']:.3f}. Below, the nearest pairs.",
    )


def _png(pixels: np.ndarray) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LEAST, _LEAST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
