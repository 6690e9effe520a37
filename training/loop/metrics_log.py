"""metrics.jsonl on a disk, to which lines are appended, or in a bucket."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from core import paths
from core.errors import UserError
from training.multihost import comm


class MetricsLog:
    """Appends lines to a file; in the primary process alone.

    An object in a bucket cannot be appended to. It is small, and written anew
    by each `sync`.

    Args:
      path: of the file; made if absent.

    Raises:
      UserError: the file cannot be written; by every method.
    """

    def __init__(self, path: Path):
        self._path, self._file, self._content = path, None, bytearray()
        self._remote = paths.is_remote(path)
        if not comm.is_primary():
            return
        if self._remote:
            with contextlib.suppress(FileNotFoundError):
                self._content += path.read_bytes()
            return
        try:
            # Unbuffered: what fails is not tried again when it is closed.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (close)
        except OSError as error:
            raise self._cannot_write(error) from error

    def size(self) -> int:
        """Returns the length in bytes; only the primary's counts."""
        if self._file is None:
            return len(self._content)
        return os.fstat(self._file.fileno()).st_size

    def truncate(self, size: int) -> None:
        """Forgets what comes after `size` bytes."""
        del self._content[size:]
        if self._file is None:
            return
        try:
            self._file.truncate(min(size, self.size()))
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._cannot_write(error) from error

    def append(self, line: bytes) -> None:
        """Appends a line, whole or not at all."""
        if not comm.is_primary():
            return
        if self._file is None:
            self._content += line
            return
        whole = self.size()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(whole)
            raise self._cannot_write(error) from error

    def sync(self) -> None:
        """Returns when all lines are on the disk, or in the bucket."""
        if self._remote and comm.is_primary():
            self._path.write_bytes(bytes(self._content))
        if self._file is None:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._cannot_write(error) from error

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _cannot_write(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self._path}: {error.strerror}; free some space or "
            "choose a --workdir that can be written, and run the same command "
            "again to continue"
        )
