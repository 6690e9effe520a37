"""The folds file: which example is in which fold, in a csv that people read.

    # seed 42, hash 1f0c9f3a7c0b9e52
    id,fold
    17,0

With a third column, `group`, where examples of one group stay together. Files
of other tools have more columns, and number their folds in their own way.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core import atomic_files, csv_table, paths
from core.errors import UserError

_REMEDY = "fix it, or delete it to have it made again"


class Folds(NamedTuple):
    """The content of a folds file.

    Attributes:
      ids: str `[N]`.
      folds: int32 `[N]`, from 0.
      groups: str `[N]`, or None where the file has none.
      numbers: what the file calls each fold.
    """

    ids: np.ndarray
    folds: np.ndarray
    groups: np.ndarray | None
    numbers: tuple[int, ...]

    @property
    def note(self) -> str:
        """How its folds are called here; "" if as in the file."""
        if self.numbers == tuple(range(len(self.numbers))):
            return ""
        theirs = ", ".join(map(str, self.numbers))
        return f"folds {theirs} of the file are 0 to {len(self.numbers) - 1}"


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


def read_folds(path: str | Path, id_column: str = "id") -> Folds:
    """Reads a folds file, also one that a person or another tool wrote.

    Then folds may be numbered from 1 or with gaps, and be written as `fold_1`
    or `1.0`: in their order, they are 0, 1, …

    Args:
      path: of the file.
      id_column: header of the ids where there is no `id`.

    Raises:
      UserError: unreadable, malformed, an id twice, a group in two folds, or
        changed by hand so that the hash in its comment no longer holds.
    """
    path = paths.make_path(path)
    comment, noted_hash = _comment(path)
    is_ours = noted_hash is not None
    table = csv_table.read_csv(
        path,
        "--config.data.folds_file",
        skip_lines=int(bool(comment)),
        strip=not is_ours,
    )
    columns = dict(zip(table.header, table.columns, strict=True))
    ids = columns.get("id", columns.get(id_column))
    if ids is None or "fold" not in columns:
        raise UserError(
            f"the folds file {path} does not have the columns id,fold, and "
            f"perhaps group; {_REMEDY}"
        )
    table.check_unique(ids, "id" if "id" in columns else id_column)
    numbers = _numbers(path, columns["fold"], 2 + bool(comment))
    if noted_hash not in (None, folds_hash(ids, numbers)):
        raise UserError(
            f"the folds file {path} does not match the hash in its first "
            f"line, so it was changed or cut off; {_REMEDY}"
        )
    names, folds = np.unique(numbers, return_inverse=True)
    if is_ours:  # A fold may be empty.
        names, folds = np.arange(max(numbers) + 1), numbers
    groups = columns.get("group")
    found = Folds(
        np.array(ids),
        np.asarray(folds, np.int32),
        None if groups is None else np.array(groups),
        tuple(names.tolist()),
    )
    if found.groups is not None:
        check_groups(path, found.folds, found.groups)
    return found


def _comment(path: Path) -> tuple[str, str | None]:
    """The comment on top, "" if there is none, and the hash in it."""
    try:
        with path.open("rb") as file:
            line = file.read(1000).decode("utf-8-sig", "replace")
    except OSError:
        line = ""  # Reading the file will say why.
    line = re.split("[\r\n]", line)[0]
    if not line.startswith("#"):
        return "", None
    _, hashed, rest = line.rpartition("hash ")
    return line, rest.strip() if hashed else None


def _numbers(path: Path, texts: Sequence[str], first_line: int) -> list[int]:
    """The number in each of `1`, `1.0` or `fold_1`."""
    found = [re.fullmatch(r"(.*?)(\d{1,9})(\.0*)?", text) for text in texts]
    before = found[0].group(1) if found[0] else ""
    for row, match in enumerate(found):
        # A minus alone is a sign.
        if not match or match.group(1) != before or before.strip() == "-":
            raise UserError(
                f"the folds file {path} has '{texts[row]}' for a fold in line "
                f"{first_line + row}; number the folds 0, 1, 2, … in column "
                "'fold', or delete the file to have it made again"
            )
    return [int(match.group(2)) for match in found]


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
