"""Stratified folds for training and validation, in one readable file."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core import atomic_files
from core.errors import UserError
from input_pipeline import stratified_split
from input_pipeline.sources.base import Source

# Below this, some fold would train without ever seeing the class.
MIN_PER_CLASS = 2


def make_folds(
    ids: np.ndarray,
    labels: np.ndarray,
    k: int,
    seed: int,
    classes: Sequence[str] | None = None,
) -> np.ndarray:
    """Divides the images of each class evenly over `k` folds.

    See `stratified_split.split`.

    Args:
      ids: str `[N]`, unique.
      labels: int `[N]`, class indices.
      k: number of folds, at least 2.
      seed: another seed gives another division.
      classes: names for the error message.

    Returns:
      int32 `[N]`, values 0 to k-1.

    Raises:
      UserError: fewer than two folds, or a class with fewer than two images.
    """
    if k < 2:
        raise UserError(
            f"data.folds is {k}, but a split needs at least 2 folds; set "
            "--config.data.folds=5"
        )
    ids = np.asarray(ids)
    labels = np.asarray(labels)
    values, counts = np.unique(labels, return_counts=True)
    for value, count in zip(values, counts, strict=True):
        if count < MIN_PER_CLASS:
            name = classes[value] if classes is not None else value
            raise UserError(
                f"class '{name}' has {count} image, and a stratified split "
                f"needs at least {MIN_PER_CLASS}; add images of this class or "
                "leave it out"
            )
    return stratified_split.split(ids, labels, k, seed)


def folds_hash(ids: np.ndarray, folds: np.ndarray) -> str:
    """A short hash of which id is in which fold, whatever the row order.

    Returns:
      The first 16 hexadecimal digits of a SHA-256.
    """
    pairs = sorted(zip(map(str, ids), map(int, folds), strict=True))
    text = "\n".join(f"{fold}\t{image_id}" for image_id, fold in pairs)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_folds(
    path: str | Path, ids: np.ndarray, folds: np.ndarray, seed: int
) -> None:
    """Writes `id,fold` lines, under a comment with the seed and the hash."""
    text = io.StringIO()
    text.write(f"# seed {seed}, hash {folds_hash(ids, folds)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "fold"])
    writer.writerows(zip(map(str, ids), map(int, folds), strict=True))
    atomic_files.write_text(path, text.getvalue())


def read_folds(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a folds file, also one that a person wrote without the comment.

    Returns:
      ids str `[N]` and folds int32 `[N]`.

    Raises:
      UserError: unreadable, malformed, an id twice, or changed by hand so
        that the hash in its comment no longer holds.
    """
    path = Path(path)
    remedy = "fix it, or delete it to have it made again"
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Not splitlines(), which also cuts at characters an id may hold.
        lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"cannot read the folds file {path}: {reason}; {remedy}"
        ) from error
    noted_hash = None
    if lines and lines[0].startswith("#"):
        noted_hash = lines[0].rpartition("hash ")[2].strip()
        lines = lines[1:]
    if not lines or lines[0].strip() != "id,fold":
        raise UserError(
            f"the folds file {path} does not have the columns id,fold; {remedy}"
        )
    ids, folds = [], []
    try:
        for row in csv.reader(lines[1:]):
            image_id, fold = row
            folds.append(int(fold))
            ids.append(image_id)
    except (ValueError, csv.Error):
        line = len(ids) + 2 + (noted_hash is not None)
        raise UserError(
            f"the folds file {path} has no 'id,number' in line {line}; {remedy}"
        ) from None
    if len(set(ids)) < len(ids) or not ids or min(folds) < 0:
        raise UserError(
            f"the folds file {path} is empty, has an id twice or a negative "
            f"fold; {remedy}"
        )
    ids, folds = np.array(ids), np.array(folds, np.int32)
    if noted_hash is not None and noted_hash != folds_hash(ids, folds):
        raise UserError(
            f"the folds file {path} does not match the hash in its first "
            f"line, so it was changed or cut off; {remedy}"
        )
    return ids, folds


def folds_for(
    source: Source, k: int, seed: int, path: str | Path
) -> np.ndarray:
    """The folds of a source: read from `path` if it is there, else made.

    Args:
      source: its labelled images are divided.
      k: number of folds.
      seed: of the division, used only when `path` does not exist.
      path: the folds file that all runs on this data share; `write_folds`
        makes it.

    Returns:
      int32 `[N]` in the order of `source.labelled`.

    Raises:
      UserError: the file is about other images, or has another number of
        folds, or a class has too few images.
    """
    path = Path(path)
    images = source.labelled
    if not path.exists():
        return make_folds(images.ids, images.labels, k, seed, source.classes)
    ids, folds = read_folds(path)
    fold_of = dict(zip(ids.tolist(), folds.tolist(), strict=True))
    own = images.ids.tolist()
    missing = [image_id for image_id in own if image_id not in fold_of]
    if missing or len(own) != len(fold_of):
        strangers = set(fold_of) - set(own)
        culprit = missing[0] if missing else min(strangers)
        where = "is not in it" if missing else "is only in it"
        raise UserError(
            f"the folds file {path} was made for other images (for one, id "
            f"'{culprit}' {where}); delete it to have it made again, or point "
            "--config.data.folds_file elsewhere"
        )
    if folds.max() + 1 != k:
        raise UserError(
            f"the folds file {path} has {folds.max() + 1} folds but "
            f"data.folds is {k}; set --config.data.folds={folds.max() + 1} or "
            "delete the file"
        )
    return np.array([fold_of[image_id] for image_id in own], np.int32)
