"""Reading csv files that people made, and saying what is wrong with them."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from core import paths
from core.errors import UserError

# File names cannot be longer than this either.
MAX_ID_LENGTH = 255

MAX_FIELD_LENGTH = 1 << 17

# Ten million rows of ids and labels; more would not fit into memory.
MAX_FILE_BYTES = 1 << 28


@dataclasses.dataclass(frozen=True)
class Table:
    """A csv file in memory, all fields as stripped text.

    Attributes:
      path: where it was read.
      header: column names.
      columns: as many lists as columns, all of one length.
    """

    path: Path
    header: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]

    def column(self, name: str, flag: str) -> tuple[str, ...]:
        """One column's fields.

        Args:
          name: its header.
          flag: the option that holds this name.

        Raises:
          UserError: there is no such column.
        """
        if name not in self.header:
            guess = did_you_mean(name, self.header)
            raise UserError(
                f"{self.path} has no column '{name}', only "
                f"{', '.join(repr(column) for column in self.header)}; set "
                f"{flag}{guess}"
            )
        return self.columns[self.header.index(name)]

    def check_ids(self, ids: Sequence[str], column: str) -> None:
        """Raises UserError unless the ids are usable, unique and contained."""
        for row, image_id in enumerate(ids):
            problem = id_problem(image_id)
            if problem:
                shown = image_id if len(image_id) < 80 else image_id[:77] + "…"
                raise UserError(
                    f"{self.path}, data row {row + 1}, column '{column}': id "
                    f"{shown!r} {problem}; correct it or remove the row"
                )
        self.check_unique(ids, column)

    def check_unique(self, ids: Sequence[str], column: str) -> None:
        """Raises UserError if an id stands twice."""
        if len(set(ids)) < len(ids):
            seen: set[str] = set()
            for image_id in ids:
                if image_id in seen:
                    break
                seen.add(image_id)
            count = ids.count(image_id)
            raise UserError(
                f"{self.path} has id '{image_id}' {count} times in column "
                f"'{column}'; keep one row per image"
            )


def id_problem(image_id: str) -> str | None:
    """Returns why an id cannot be a file's name inside a folder, or None."""
    if not image_id:
        return "is empty"
    if len(image_id) > MAX_ID_LENGTH:
        return f"is longer than {MAX_ID_LENGTH} characters"
    if image_id.isalnum():
        return None
    if any(ord(character) < 32 for character in image_id):
        return "has a control character"
    parts = image_id.replace("\\", "/").split("/")
    if ".." in parts or not parts[0]:
        return "points out of the image folder"
    return None


def read_csv(
    path: Path, flag: str, *, skip_lines: int = 0, strip: bool = True
) -> Table:
    """Reads a csv file with a header, comma-separated, UTF-8 (a BOM is fine).

    Args:
      path: the file.
      flag: the option that names it.
      skip_lines: lines above the header.
      strip: whether blanks around fields are removed.

    Raises:
      UserError: missing, unreadable, empty, ragged, separated by something
        else, or larger than `MAX_FILE_BYTES`.
    """
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        near = did_you_mean(
            path.name,
            [entry.name for entry in path.parent.glob("*.csv")]
            if path.parent.is_dir()
            else [],
        )
        raise UserError(f"{path} {problem}; set {flag}{near}")
    size = paths.size(path)
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"{path} has {size >> 20} MB, more than the {MAX_FILE_BYTES >> 20} "
            f"that a list of images can have; set {flag} to the csv "
            "with ids and labels alone"
        )
    csv.field_size_limit(MAX_FIELD_LENGTH)
    line = 0
    try:
        file = io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")
        for _ in range(skip_lines):
            next(file, None)
        reader = csv.reader(file)
        header = tuple(name.strip() for name in next(reader, []))
        _check_separator(path, header)
        rows = []
        for row in reader:
            line = reader.line_num + skip_lines
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {line} has {len(row)} fields but the "
                    f"header has {len(header)}; correct the line"
                )
            rows.append(row)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line + 1} cannot be read as csv ({error}); "
            "correct the line"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; check its permissions"
        ) from error
    if not header or not rows:
        what = "rows under its header" if header else "content"
        raise UserError(f"{path} has no {what}; fill it or set {flag}")
    named = [name for name in header if name]  # An index has no name.
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise UserError(f"{path} has two columns '{twice}'; rename one of them")
    columns = tuple(
        tuple(field.strip() for field in column) if strip else column
        for column in zip(*rows, strict=True)
    )
    return Table(path, header, columns)


def _check_separator(path: Path, header: Sequence[str]) -> None:
    found = [mark for mark in ";\t|" if mark in "".join(header)]
    if len(header) == 1 and found:
        shown = "tabs" if found[0] == "\t" else f"'{found[0]}'"
        raise UserError(
            f"{path} separates its columns by {shown}; save it with commas"
        )


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """`' (did you mean …?)'` for the nearest candidate, or nothing."""
    folded = {candidate.lower(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return f" (did you mean '{folded[near[0]]}'?)" if near else ""
