"""The files of a stack appear together, or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from core.atomic_files import temporary_folder
from core.errors import UserError

# In this order: while `stack.json` is gone the folder is no stack, and the
# report is the last, so that whoever finds it finds all of them.
FILES = ("stack.npz", "submission.csv", "scores.json", "stack.json")
REPORT = "report.html"
_BOOSTERS = ("catboost_*.cbm", "lightgbm_*.txt")


def check_writable(folder: Path, flag: str) -> None:
    """Tries to write, and leaves nothing, before hours of work are lost.

    Raises:
      UserError: `folder`, given as `flag`, is a file or cannot be written.
    """
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if os.path.lexists(place) and not place.is_dir():
        raise UserError(
            f"{flag} {folder}: {place} is a file; name a folder instead"
        )
    try:
        with temporary_folder(place, ".stack-"):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {folder} cannot be written ({error.strerror}); choose "
            "a folder that can"
        ) from error


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yields a folder to write to; its files then become those of `folder`.

    What an earlier stack has left and this one does not write is removed. If
    the block raises, `folder` stays as it was.

    Raises:
      UserError: `folder` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder, ".stack-") as new:
            yield new
            _install(new, folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; free some "
            "space or choose a folder that can be written"
        ) from error


def _install(new: Path, folder: Path) -> None:
    if (folder / "stack.json").exists():  # Else the files are not ours.
        (folder / "stack.json").unlink()
        (folder / "submission.csv").unlink(missing_ok=True)
        for pattern in _BOOSTERS:
            for path in (folder / "boosters").glob(pattern):
                path.unlink()
    if (new / "boosters").exists():
        (folder / "boosters").mkdir(exist_ok=True)
        for path in (new / "boosters").iterdir():
            os.replace(path, folder / "boosters" / path.name)
    with contextlib.suppress(OSError):
        (folder / "boosters").rmdir()  # If it is empty.
    for name in (*FILES, REPORT):
        if (new / name).exists():
            os.replace(new / name, folder / name)
