"""Which pictures are forged: flags in a JSON file, or in a column of a csv."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core import csv_table
from core.errors import UserError
from input_pipeline.sources import listing

USUAL_NAME = "meta.json"

_TEXTS = {
    **dict.fromkeys(("0", "0.0", "false", "real"), 0),
    **dict.fromkeys(("1", "1.0", "true", "forged", "fake"), 1),
}


def read_flags(
    data: Any, root: Path, folder: Path, names: Sequence[str]
) -> tuple[np.ndarray, str]:
    """Reads `data.forgeries`: {path: 1 if forged, 0 if real}.

    Args:
      data: config.data.
      root: the data's folder, which paths start from.
      folder: of the pictures; paths may start there as well.
      names: of the pictures, inside `folder`.

    Returns:
      Flags, int32 [N], and a note on how they were understood. Without a file
      of the usual name, all pictures are real.

    Raises:
      UserError: it is no such file, or flags what is no file.
    """
    zeros = np.zeros(len(names), np.int32)
    path = root / data.forgeries
    if not data.forgeries:
        return zeros, ""
    if not path.is_file():
        if data.forgeries != USUAL_NAME:
            raise UserError(
                f"{path} does not exist; correct --config.data.forgeries, or "
                "leave it empty where no picture is forged"
            )
        return zeros, ""
    flags = _read_json(path)
    row_of = {listing.normal_path(name): n for n, name in enumerate(names)}
    above = ""  # Of pictures elsewhere, paths start at their folder.
    if folder.is_relative_to(root):
        above = folder.relative_to(root).as_posix() + "/"
    forged = np.full(len(names), -1, np.int32)
    strangers, elsewhere = [], 0
    for name, flag in flags.items():
        key = listing.normal_path(name)
        row = row_of.get(key.removeprefix(above), row_of.get(key))
        if row is not None:
            forged[row] = flag
        elif csv_table.id_problem(name) or not (root / name).is_file():
            strangers.append(name)
        else:
            elsewhere += 1
    if strangers:
        raise UserError(
            f"{path} flags {len(strangers):,} of {len(flags):,} paths that "
            f"are no file in {root} (for one, '{strangers[0]}'); write paths "
            "as they are inside that folder, or remove them"
        )
    notes = []
    unknown = int((forged < 0).sum())
    if unknown:
        first = names[int(np.argmax(forged < 0))]
        notes.append(
            f"{unknown:,} pictures are not in {path.name} and count as real "
            f"(first: {first})"
        )
    if elsewhere:
        notes.append(
            f"{elsewhere:,} flags of {path.name} are of files that are not "
            "trained on"
        )
    return np.maximum(forged, 0), "; ".join(notes)


def flags_of_column(
    table: Path, names: Sequence[str], texts: Sequence[str]
) -> np.ndarray:
    """Reads a column of flags: int32 [N].

    Args:
      table: where it stands.
      names: of the pictures.
      texts: of the flags: 0 or 1, false or true, real or forged.

    Raises:
      UserError: one is something else.
    """
    flags = [_TEXTS.get(text.lower(), -1) for text in texts]
    if -1 in flags:
        row = flags.index(-1)
        raise UserError(
            f"{table}, column 'forged' says '{texts[row]}' of '{names[row]}'; "
            "write 1 for a forged picture and 0 for a real one"
        )
    return np.array(flags, np.int32)


def _read_json(path: Path) -> dict[str, int]:
    """The flags in a file, by path."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        for name, flag in pairs:
            if found[name] != flag:
                raise UserError(
                    f"{path} flags '{name}' as {flag} and as {found[name]}; "
                    "keep one of them"
                )
        return found

    try:
        if path.stat().st_size > csv_table.MAX_FILE_BYTES:
            raise UserError(
                f"{path} is larger than {csv_table.MAX_FILE_BYTES >> 20} MB; "
                "set --config.data.forgeries to the flags alone"
            )
        read = json.loads(path.read_bytes(), object_pairs_hook=unique)
    # Of text that is none, and of brackets without end.
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({error}); correct it, or set "
            "--config.data.forgeries= where no picture is forged"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; check its permissions"
        ) from error
    if not isinstance(read, dict):
        raise UserError(
            f"{path} is not one object {{path: 0 or 1}}; write it as one"
        )
    for name, flag in read.items():
        if isinstance(flag, bool | int | float) and flag in (0, 1):
            continue
        raise UserError(
            f"{path} says {json.dumps(flag)[:80]} of '{name}'; write 1 for a "
            "forged picture and 0 for a real one"
        )
    return {name: int(flag) for name, flag in read.items()}
