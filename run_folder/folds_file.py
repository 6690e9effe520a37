"""The folds file: which example is in which fold, in a csv that people read.

    # seed 42, hash 1f0c9f3a7c0b9e52
    id,fold
    17,0

With a third column, `group`, where examples of one group stay together.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core import atomic_files, paths
from core.errors import UserError

_REMEDY = "fix it, or delete it to have it made again"


class Folds(NamedTuple):
    """The content of a folds file.

    Attributes:
      ids: str `[N]`.
      folds: int32 `[N]`, from 0.
      groups: str `[N]`, or None where the file has none.
    """

    ids: np.ndarray
    folds: np.ndarray
    groups: np.ndarray | None


def folds_hash(ids: np.ndarray, folds: np.ndarray) -> str:
    """A short hash of which id is in which fold, whatever the row order.

    Args:
      ids: str `[N]`.
      folds: int `[N]`.

    Returns:
      The first 16 hexadecimal digits of a SHA-256.
    """
    pairs = sorted(zip(map(str, ids), map(int, folds), strict=True))
    text = "\n".join(f"{fold}\t{image_id}" for image_id, fold in pairs)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_folds(
    path: str | Path,
    ids: np.ndarray,
    folds: np.ndarray,
    seed: int,
    groups: np.ndarray | None = None,
) -> None:
    """Writes a folds file, under a comment with the seed and the hash.

    Args:
      path: of the file.
      ids: str `[N]`.
      folds: int `[N]`.
      seed: that the folds were drawn with.
      groups: str `[N]`, if there are any.
    """
    columns = {"id": map(str, ids), "fold": map(int, folds)}
    if groups is not None:
        columns["group"] = map(str, groups)
    text = io.StringIO()
    text.write(f"# seed {seed}, hash {folds_hash(ids, folds)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    atomic_files.write_text(path, text.getvalue())


def read_folds(path: str | Path) -> Folds:
    """Reads a folds file, also one that a person wrote without the comment.

    Raises:
      UserError: unreadable, malformed, an id twice, a group in two folds, or
        changed by hand so that the hash in its comment no longer holds.
    """
    path = paths.make_path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"cannot read the folds file {path}: {reason}; {_REMEDY}"
        ) from error
    # Not splitlines(), which also cuts at characters an id may hold.
    lines = re.sub("\r\n?", "\n", text).rstrip("\n").split("\n")
    noted_hash = None
    if lines and lines[0].startswith("#"):
        noted_hash = lines[0].rpartition("hash ")[2].strip()
        lines = lines[1:]
    header = lines[0].strip() if lines else ""
    if header not in ("id,fold", "id,fold,group"):
        raise UserError(
            f"the folds file {path} does not have the columns id,fold, and "
            f"perhaps group; {_REMEDY}"
        )
    ids, folds, groups = [], [], []
    try:
        for row in csv.reader(lines[1:]):
            image_id, fold, *group = row
            if len(group) != header.count(",") - 1:
                raise ValueError("another number of columns")
            folds.append(int(fold))
            ids.append(image_id)
            groups += group
    except (ValueError, csv.Error):
        line = len(ids) + 2 + (noted_hash is not None)
        raise UserError(
            f"the folds file {path} has no 'id,number' in line {line}; "
            f"{_REMEDY}"
        ) from None
    if len(set(ids)) < len(ids) or not ids or min(folds) < 0:
        raise UserError(
            f"the folds file {path} is empty, has an id twice or a negative "
            f"fold; {_REMEDY}"
        )
    found = Folds(
        np.array(ids),
        np.array(folds, np.int32),
        np.array(groups) if groups else None,
    )
    if noted_hash is not None and noted_hash != folds_hash(ids, folds):
        raise UserError(
            f"the folds file {path} does not match the hash in its first "
            f"line, so it was changed or cut off; {_REMEDY}"
        )
    if found.groups is not None:
        check_groups(path, found.folds, found.groups)
    return found


def check_groups(
    path: str | Path, folds: np.ndarray, groups: np.ndarray
) -> None:
    """Raises a UserError if examples of a group are in two folds.

    Args:
      path: of the folds file, for the message.
      folds: int `[N]`.
      groups: str `[N]`.
    """
    fold_of: dict[str, int] = {}
    for group, fold in zip(groups.tolist(), folds.tolist(), strict=True):
        first = fold_of.setdefault(group, fold)
        if first != fold:
            raise UserError(
                f"the folds file {path} has group '{group}' in folds {first} "
                f"and {fold}, so a model would be validated on a group that "
                f"it was trained on; {_REMEDY}"
            )
