"""What is in all mask files: counted once, kept, and refused where wrong."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core import atomic_files
from input_pipeline import parallel_scan
from input_pipeline.decoding import (
    BadImage,
    open_image,
    upright_rgb,
    upright_size,
)
from input_pipeline.sources import mask_format
from input_pipeline.sources.base import LeftOut, Refused, read_file
from input_pipeline.sources.mask_format import MaskFormat


class Census(NamedTuple):
    """What was found in masks, a row for each.

    Attributes:
      values: int64 [N, 256], pixels of each value in the file.
      sizes: int32 [N, 6], width and height of the mask, of its image the
        right way up, and of its image as it is stored; 0 where unknown.
      reasons: str [N], why a mask cannot be read; '' where it can.
      digests: uint8 [N, 16], hashes of the values.
    """

    values: np.ndarray
    sizes: np.ndarray
    reasons: np.ndarray
    digests: np.ndarray

    def of(self, rows: np.ndarray) -> Census:
        """Returns what was found in some of the masks."""
        return Census(*(field[rows] for field in self))


def take_census(
    paths: Sequence[str],
    mask_paths: Sequence[str],
    form: MaskFormat | None,
    cache: Path | None,
) -> Census:
    """Reads every mask, or what an earlier call has found in them.

    Args:
      paths: of the images.
      mask_paths: of their masks.
      form: for masks in colour; None understands none.
      cache: folder of what was found before; None keeps nothing.
    """
    colours = form.colours if form is not None else ()
    about = [repr((colours, paths, mask_paths))]
    about += [repr(_size_and_time(path)) for path in (*paths, *mask_paths)]
    digest = hashlib.sha256("\n".join(about).encode("utf-8", "replace"))
    kept = None
    if cache is not None:
        kept = cache / f"masks-{digest.hexdigest()[:16]}.npz"
        with (
            contextlib.suppress(
                OSError, ValueError, KeyError, zipfile.BadZipFile
            ),
            np.load(kept, allow_pickle=False) as file,
        ):
            return Census(*(file[name] for name in Census._fields))

    def look(examples: None, row: int) -> tuple:
        try:
            data = read_file(mask_paths[row])
            values = mask_format.read_values(data, form)
        except BadImage as error:
            return np.zeros(256), [0] * 6, str(error), digest_of(np.zeros(0))
        size = [*values.shape[::-1], *_image_sizes(paths[row])]
        counts = np.bincount(values.ravel(), minlength=256)
        problem = mask_format.palette_problem(data, counts, form)
        return counts, size, problem, digest_of(values)

    rows = np.arange(len(mask_paths))
    found = list(parallel_scan.every_image(look, None, rows, "masks"))
    values, sizes, reasons, digests = zip(*found, strict=True)
    census = Census(
        np.array(values, np.int64),
        np.array(sizes, np.int32),
        np.array(reasons),
        np.array(digests),
    )
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_files.atomic_write(kept) as temporary,
            open(temporary, "wb") as file,
        ):
            np.savez_compressed(file, **census._asdict())
    return census


def _image_sizes(path: str) -> list[int]:
    """Width and height upright and as stored; zeros if it cannot be read."""
    try:
        image = open_image(read_file(path))
        stored = image.size
        if image.format == "JPEG":
            return [*upright_size(image), *stored]
        return [*upright_rgb(image).size, *stored]
    except BadImage:  # Told, and left out, where it would be trained on.
        return [0, 0, 0, 0]


def digest_of(mask: np.ndarray) -> np.ndarray:
    """Returns a hash of what a mask holds, uint8 [16]."""
    found = hashlib.blake2b(repr(mask.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(mask))
    return np.frombuffer(found.digest(), np.uint8)


def unreadable(mask_paths: Sequence[str], found: Census) -> Refused | None:
    """Returns the masks that cannot be read; None if all can."""
    bad = np.flatnonzero(found.reasons != "")
    if not len(bad):
        return None
    return Refused(
        f"{len(bad)} of {len(mask_paths)} masks cannot be used: for one, "
        f"{mask_paths[bad[0]]}: {found.reasons[bad[0]]}",
        [
            LeftOut("train", mask_paths[row], "bad mask", found.reasons[row])
            for row in bad
        ],
    )


def of_other_sizes(mask_paths: Sequence[str], found: Census) -> Refused | None:
    """Returns the masks of other sizes than their images; None without any."""
    mask, upright, stored = np.split(found.sizes, 3, axis=1)
    known = upright[:, 0] > 0
    differ = np.flatnonzero(known & (mask != upright).any(axis=1))
    if not len(differ):
        return None
    advice = "make each mask of its image's size"
    if (mask[differ] == stored[differ]).all():
        advice = (
            "the photo's EXIF entry turns it and the mask is not turned: "
            "save the photos upright, or turn the masks"
        )
    details = [
        "has {}x{} pixels and its image {}x{}".format(*mask[row], *upright[row])
        for row in differ
    ]
    return Refused(
        f"{len(differ)} of {len(mask_paths)} masks are of another size than "
        f"their images: for one, {mask_paths[differ[0]]} {details[0]}; "
        f"{advice}",
        [
            LeftOut("train", mask_paths[row], "mask size", detail)
            for row, detail in zip(differ, details, strict=True)
        ],
    )


def of_no_class(
    mask_paths: Sequence[str], found: Census, form: MaskFormat
) -> Refused | None:
    """Returns the masks with values neither of a class nor ignored, or None."""
    strange = found.values.copy()
    strange[:, list(form.values + form.ignored)] = 0
    bad = np.flatnonzero(strange.any(axis=1))
    if not len(bad):
        return None
    unknown = np.flatnonzero(strange.any(axis=0))
    advice = (
        "correct the masks, or name their values in the list of classes or "
        "in --config.data.mask_values"
    )
    if unknown.tolist() == [255]:
        advice = (
            "set --config.data.ignore_index=255 if these pixels have no "
            "class, or --config.data.mask_values to say what they are"
        )
    details = [
        f"holds {', '.join(map(str, np.flatnonzero(strange[row])[:8]))}"
        for row in bad
    ]
    return Refused(
        f"{len(bad)} of {len(mask_paths)} masks hold values that no class "
        f"has: for one, {mask_paths[bad[0]]} {details[0]}; {advice}",
        [
            LeftOut("train", mask_paths[row], "mask values", detail)
            for row, detail in zip(bad, details, strict=True)
        ],
    )


def file_sizes(paths: Sequence[str]) -> list[int]:
    """Returns bytes per file, -1 where nobody can say."""
    return [_size_and_time(path)[0] for path in paths]


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        about = os.stat(path)
    except OSError:
        return -1, 0
    return about.st_size, about.st_mtime_ns
