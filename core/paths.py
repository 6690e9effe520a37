"""Run folders on a disk or in a bucket: one kind of path for both.

A path on a disk is a `pathlib.Path`. One in a bucket (gs://, s3://) is an
`epath.Path`, which has the same methods and reads and writes objects through
fsspec. Every package may import this module; of Sextet it imports only
`core.errors`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from core.errors import TransientError, UserError

# What reads and writes the objects of a scheme.
_DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}

# Packages whose exceptions say that a bucket refused, or did not answer.
_PACKAGES = frozenset(
    ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "s3fs")
)

# Status codes with which TensorStore says the same.
_STATUS = re.compile(
    "UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|ABORTED"
    "|RESOURCE_EXHAUSTED|CURL"
)


def make_path(name: str | os.PathLike) -> Path:
    """Returns the path of a run folder: local, `file://`, `gs://` or `s3://`.

    Raises:
      UserError: it names no folder in a bucket, or the driver is missing.
    """
    text = os.fspath(name)
    scheme, separator, rest = text.partition("://")
    if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        return Path(text)
    if scheme == "file":
        return Path(rest)
    parts = rest.rstrip("/").split("/")
    if (
        scheme not in _DRIVERS
        or len(parts) < 2
        or {"", ".", ".."} & set(parts)
        # Special in URLs, or in the patterns with which objects are listed.
        or re.search(r"[*?\[\]#%\x00-\x1f]", rest)
    ):
        raise UserError(
            f"{text!r} names no run folder; give a local one, or one in a "
            "bucket such as gs://bucket/runs/tinyvit or s3://bucket/tinyvit, "
            "without any of * ? [ ] # %"
        )
    driver = _DRIVERS[scheme]
    if missing := [
        package
        for package in (driver, "etils")
        if importlib.util.find_spec(package) is None
    ]:
        raise UserError(
            f"{text} cannot be reached without {' and '.join(missing)}; pip "
            f"install {' '.join(missing)}, or name a local folder"
        )
    import fsspec
    from etils import epath

    # Objects come from other processes and from TensorStore, too, so that a
    # listing that is remembered would be out of date.
    options = fsspec.config.conf.setdefault(driver.removesuffix("fs"), {})
    options.setdefault("use_listings_cache", False)
    return epath.Path(f"{scheme}://{'/'.join(parts)}")


def is_remote(path: PurePath) -> bool:
    """Whether a path lies in a bucket."""
    return not isinstance(path, Path)


def absolute(path: Path) -> Path:
    """Returns the path from the root of its disk; one in a bucket has it."""
    return path if is_remote(path) else path.absolute()


def size(path: Path) -> int:
    """Returns the bytes of a file.

    Raises:
      OSError: it cannot be read, or is missing.
    """
    about = path.stat()
    return about.length if is_remote(path) else about.st_size


def write_object(path: Path, content: bytes) -> None:
    """Writes a file in a bucket, in one request: whole or not at all."""
    import fsspec

    files, name = fsspec.core.url_to_fs(str(path))
    files.pipe_file(name, content)


def remove_tree(path: Path) -> None:
    """Removes a folder with all that it holds, if it is there.

    Raises:
      OSError: it cannot be removed.
    """
    if is_remote(path):
        path.rmtree(missing_ok=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)


def move_tree(source: Path, target: Path) -> None:
    """Renames a folder; in a bucket, copies and deletes its objects.

    Raises:
      OSError: it cannot be written.
    """
    if is_remote(source):
        import fsspec

        files, _ = fsspec.core.url_to_fs(str(source))
        files.copy(str(source), str(target), recursive=True)
        files.rm(str(source), recursive=True)
    else:
        target.parent.mkdir(exist_ok=True)
        source.rename(target)


def require_utf8(path: Path, what: str) -> None:
    """Refuses a path that Orbax and TensorStore cannot be given.

    Args:
      path: of a run folder.
      what: names it in the error, such as "--workdir".

    Raises:
      UserError: its bytes, or those of a folder above it, are not UTF-8.
    """
    name = str(absolute(path))
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} is {name!a}, which is not UTF-8, so that no "
            "checkpoint can be kept there; rename the folder or choose "
            "another one"
        ) from error


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error says that a bucket refused or did not answer.

    What is missing there, or damaged, has been answered.
    """
    if error is None or isinstance(error, FileNotFoundError):
        return False
    package = type(error).__module__.partition(".")[0]
    of_driver = package in _PACKAGES
    of_network = isinstance(error, OSError) and error.filename is None
    of_network &= not isinstance(error, BrokenPipeError)  # That is stdout.
    of_tensorstore = isinstance(error, ValueError) and _STATUS.search(
        str(error)
    )
    return bool(
        of_driver
        or of_network
        or isinstance(error, TimeoutError)
        or of_tensorstore
        or is_unreachable(error.__cause__)
    )


@contextlib.contextmanager
def reaching(names: Iterable[str | os.PathLike]) -> Iterator[None]:
    """Turns the errors of a bucket into one sentence; for the outermost frame.

    The drivers have tried again for half a minute before they raise.

    Args:
      names: of the run folders; nothing is done if all are on disks.

    Raises:
      TransientError: the bucket does not answer.
      UserError: it refuses.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Each driver has types of its own.
        remote = [text for text in map(str, names) if "://" in text]
        missing = isinstance(error, FileNotFoundError) and not error.filename
        if not remote or not (missing or is_unreachable(error)):
            raise
        reason = (str(error).splitlines() or [""])[0][:200]
        kind = UserError if _is_permanent(error) else TransientError
        raise kind(
            f"{remote[0]} cannot be read or written ({type(error).__name__}: "
            f"{reason}); see to its name, the right to write there and the "
            "network, and run the same command again"
        ) from error


def _is_permanent(error: BaseException) -> bool:
    """Whether a retry is useless: no bucket, no permission, a bad name."""
    return (
        isinstance(error, (FileNotFoundError, PermissionError))
        # gcsfs on 403, on other codes, and without credentials.
        or re.match("Forbidden|.*(PERMISSION_DENIED|UNAUTH)", str(error))
        is not None
        or str(getattr(error, "code", "")) in ("400", "401", "403", "404")
        or type(error).__name__
        in ("DefaultCredentialsError", "NoCredentialsError")
    )
