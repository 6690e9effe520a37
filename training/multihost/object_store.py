"""A folder in an object store, through fsspec."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from core import atomic_files
from core.errors import TransientError, UserError

# Bugs, not errors of the bucket.
_BUGS = (AssertionError, AttributeError, NameError, TypeError)

# Only from disks, also where the error names no file.
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class Disk(LocalFileSystem):
    """A disk (file://) with atomic writes, as objects have."""

    def put_file(self, path1, path2, callback=None, **options):
        """Copies the file `path1` to `path2`."""
        with atomic_files.atomic_write(
            self._strip_protocol(path2)
        ) as temporary:
            shutil.copyfile(self._strip_protocol(path1), temporary)

    def pipe_file(self, path, value, mode="overwrite", **options):
        """Writes the bytes `value` to `path`."""
        path = Path(self._strip_protocol(path))
        if mode == "create":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)  # Exclusive: one of two succeeds.
        with atomic_files.atomic_write(path) as temporary:
            temporary.write_bytes(value)


class Bucket:
    """A folder in a bucket, whose objects are written atomically.

    Args:
      url: such as gs://bucket/path.

    Raises:
      UserError: there is no driver for it. Every method raises it if the
        bucket refuses, and TransientError if it does not answer.
    """

    def __init__(self, url: str):
        self.url = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{url} cannot be reached ({error}); install what is missing "
                "(gs:// takes pip install gcsfs), or name a local folder"
            ) from error
        if type(self._fs) is LocalFileSystem:
            self._fs = Disk()
        self._root = root.rstrip("/")

    def read(self, name: str) -> dict[str, Any] | None:
        """Returns a JSON object; {} if it is invalid, None if absent."""
        with self._reaching():
            try:
                text = self._fs.cat_file(self._at(name))
            except FileNotFoundError:
                return None
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError):
            return {}

    def write(self, name: str, content: dict[str, Any], new=False) -> None:
        """Writes a JSON file; if `new`, only where there is none.

        Raises:
          FileExistsError: it is not new.
        """
        text = json.dumps(content, indent=2).encode() + b"\n"
        mode = "create" if new else "overwrite"
        with self._reaching(FileExistsError):
            self._fs.pipe_file(self._at(name), text, mode=mode)

    def top(self) -> set[str]:
        """Returns the names of the files and folders at its top."""
        with self._reaching():
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return set()
        return {name.rstrip("/").rpartition("/")[2] for name in found}

    def names(self) -> list[str]:
        """Returns the paths of all files in it."""
        with self._reaching():
            self._fs.invalidate_cache()
            found = self._fs.find(self._root)
        return [name.removeprefix(f"{self._root}/") for name in found]

    def send(self, names: list[str], folder: Path) -> None:
        """Copies files from a local folder."""
        with self._reaching():
            self._fs.put(
                [str(folder / name) for name in names],
                [self._at(name) for name in names],
            )

    def fetch(self, names: list[str], folder: Path) -> None:
        """Copies files to a local folder."""
        with self._reaching(), writing(folder):
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            self._fs.get(
                [self._at(name) for name in names],
                [str(folder / name) for name in names],
            )

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files, or whole folders; some may be gone already."""
        self._fs.invalidate_cache()
        for name in sorted(names):
            with self._reaching(), contextlib.suppress(FileNotFoundError):
                self._fs.rm(self._at(name), recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _reaching(self, *expected: type[Exception]) -> Iterator[None]:
        try:
            yield
        except (UserError, *_BUGS, *expected):
            raise
        except Exception as error:  # Each driver has types of its own.
            reason = (str(error).splitlines() or [""])[0][:200]
            kind = UserError if _is_permanent(error) else TransientError
            raise kind(
                f"{self.url} cannot be read or written "
                f"({type(error).__name__}: {reason}); see to its name, the "
                "right to write there and the network, and run the same "
                "command again"
            ) from error


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns errors of the local disk into one sentence.

    Args:
      folder: what is written; errors that name other files pass through.

    Raises:
      UserError: it cannot.
    """
    try:
        yield
    except OSError as error:
        names = map(Path, map(str, (error.filename, error.filename2)))
        inside = any(name.is_relative_to(folder) for name in names)
        if not inside and error.errno not in _OF_DISKS:
            raise
        raise UserError(
            f"cannot write {folder}: {error.strerror}; free some space or make "
            "it writable, and run the same command again"
        ) from error


def _is_permanent(error: Exception) -> bool:
    """Whether a retry is useless: no bucket, no permission, a bad name."""
    return (
        isinstance(error, (FileNotFoundError, PermissionError, ValueError))
        # gcsfs on 403, on other codes, and without credentials.
        or str(error).startswith("Forbidden")
        or str(getattr(error, "code", "")) in ("400", "401", "403")
        or type(error).__name__ == "DefaultCredentialsError"
    )


def local_copy(url: str, cache_dir: str) -> Path:
    """Returns where the run folder `url` is kept on this machine.

    Args:
      url: such as gs://bucket/path.
      cache_dir: config.cache_dir.

    Raises:
      UserError: it names no folder in a bucket.
    """
    scheme, _, path = url.partition("://")
    parts = path.strip("/").split("/")
    known = re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme)
    if not known or len(parts) < 2 or {"", ".", ".."} & set(parts):
        raise UserError(
            f"--workdir is {url}: name a folder in a bucket, such as "
            "gs://bucket/runs/tinyvit"
        )
    cache = Path(cache_dir).expanduser().absolute()
    return cache.joinpath("runs", scheme, *parts)
