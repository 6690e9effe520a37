"""Where searches of Optuna are kept: a journal file, or a database."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.storages.journal._file import get_lock_file

from core.errors import UserError

# How every journal of Optuna's begins.
_JOURNAL = b'{"op_code":'


def check_storage(storage: str) -> None:
    """Opens a storage once, before hours of work are lost.

    Args:
      storage: as `open_storage`.

    Raises:
      UserError: it cannot be used.
    """
    with using(storage):
        optuna.get_all_study_names(open_storage(storage))


def without_password(storage: str) -> str:
    """Returns a storage's name as people may read it."""
    return re.sub(r"(//[^/:@]*):[^@]*@", r"\1:***@", storage)


@contextlib.contextmanager
def using(storage: str) -> Iterator[None]:
    """Turns what goes wrong with a storage into a UserError."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", optuna.exceptions.ExperimentalWarning
            )
            yield
    except UserError:  # Of something else.
        raise
    # Files, databases and their drivers fail each in its own way.
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"the search storage {without_password(storage)} cannot be used "
            f"({without_password(reason)}); name another file, or a database "
            "that Optuna takes, such as sqlite:///search.db"
        ) from error


def open_storage(storage: str) -> BaseStorage:
    """Opens a storage, to be called within `using`.

    Args:
      storage: file of a journal, made if absent, or the URL of a database.
    """
    if "://" in storage:
        return optuna.storages.get_storage(storage)
    path = Path(storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    backend = JournalFileBackend(storage)
    _drop_cut_line(path)
    return JournalStorage(backend)


def _drop_cut_line(path: Path) -> None:
    """Removes the end of a line that a killed process left in a journal.

    Optuna would write the next line behind it, and lose both and the file.
    """
    with (
        open(path, "rb+") as file,
        get_lock_file(JournalFileSymlinkLock(str(path))),
    ):
        lines = file.read()
        end = lines.rfind(b"\n") + 1
        if end < len(lines) and lines.startswith(_JOURNAL[: len(lines)]):
            file.truncate(end)
