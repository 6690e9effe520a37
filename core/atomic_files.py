"""Atomic file writes: to a temporary name, which is then renamed.

A file in a bucket is written to a temporary file here and sent whole, which is
atomic. Every package may import this module.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from core import paths
from core.errors import UserError
from core.output import ESCAPE


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


# Once, here: it can only be read by setting it, so that of two threads that
# read it at the same time one would find 0, and leave 0 behind.
_UMASK = _read_umask()

# Temporary files and folders of this process.
_temporaries: set[Path] = set()
_removing = threading.Lock()
_discarded = False


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path; on success it becomes `path` in one step.

    The temporary file lies in the same folder, so the rename is atomic; it is
    flushed to disk first, so a power cut leaves the old file or the new one.
    Parent folders are made. If the block raises, `path` is untouched.

    Args:
      path: on a disk or in a bucket; see `core.paths`.

    Raises:
      UserError: the disk is full, or the folder cannot be written.
    """
    path = paths.make_path(path)
    if paths.is_remote(path):
        try:
            with temporary_folder() as folder:
                yield folder / path.name
                content = (folder / path.name).read_bytes()
        except OSError as error:
            if paths.is_unreachable(error):
                raise
            raise cannot_write(path, error) from error
        path.write_bytes(content)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".part", dir=path.parent
        )
        os.close(descriptor)
        with temporary_path(Path(name)) as temporary:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            # mkstemp makes private files.
            temporary.chmod(mode_of_new(0o666))
            os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error


def mode_of_new(mode: int) -> int:
    """Returns what the umask leaves of the mode of a new file or folder."""
    return mode & ~_UMASK


def cannot_write(path: Path, error: OSError) -> UserError:
    """Returns what tells a user that a file cannot be written."""
    reason = error.strerror or str(error)
    if paths.is_remote(path):
        reason += f" in {tempfile.gettempdir()}, from where it is sent"
    return UserError(
        f"cannot write {path}: {reason}; free some space or choose a folder "
        "that can be written"
    )


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8 to `path` atomically.

    Paths in it that are not UTF-8 are written as the bytes that they are.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", ESCAPE))


@contextlib.contextmanager
def temporary_folder(
    within: str | os.PathLike | None = None, prefix: str = "sextet-"
) -> Iterator[Path]:
    """Yields a new folder that is removed on exit, also after an error.

    Args:
      within: its parent; None takes the system's temporary folder.
      prefix: of its name.

    Raises:
      OSError: it cannot be made.
    """
    name = tempfile.mkdtemp(prefix=prefix, dir=within)
    with temporary_path(Path(name)) as folder:
        yield folder


@contextlib.contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Removes `path`, a file or a folder, on exit, also after an error."""
    _temporaries.add(path)
    try:
        yield path
    finally:
        with _removing:
            _remove(path)
            _temporaries.discard(path)


def remove_temporaries() -> None:
    """Removes all temporary files; for a process that is about to exit.

    Keeps the lock: a thread that is still writing blocks for ever rather than
    fail because its file is gone.
    """
    global _discarded
    if _discarded:  # By another thread, which has the lock.
        return
    _removing.acquire()
    _discarded = True
    for path in list(_temporaries):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        # By another name: what still writes into it finds it gone, and cannot
        # fill it while it is emptied.
        with contextlib.suppress(OSError):
            path = path.rename(path.with_name(f"{path.name}.gone"))
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
