"""Run folders on a disk or in a bucket: one kind of path for both.

A path on a disk is a `pathlib.Path`. One in a bucket (gs://, s3://) is an
`epath.Path`, which has the same methods and reads and writes objects through
fsspec. Every package may import this module; of Sextet it imports only
`core.errors`.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from core.errors import TransientError, UserError

# What reads and writes the objects of a scheme.
_DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}

# How exceptions of the drivers, and the text of TensorStore's, say that a
# bucket refused or did not answer; and that asking again is useless.
_PACKAGES = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "s3fs")
_STATUS = re.compile(
    "UNAVAILABLE|DEADLINE_|ABORTED|EXHAUSTED|CURL|PERMISSION_|UNAUTH"
)
# Of this machine, which a network's errors never are.
_LOCAL = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
)
_PERMANENT = r"Forbidden|.*PERMISSION_|.*UNAUTH|.*\b(400|401|403|404)\b"


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
    valid = scheme in _DRIVERS and len(parts) > 1
    valid &= not {"", ".", ".."} & set(parts)
    # Special in URLs, or in the patterns with which objects are listed.
    if not valid or re.search(r"[*?\[\]#%\x00-\x1f]", rest):
        raise UserError(
            f"{text!r} names no run folder; give a local one, or one in a "
            "bucket such as gs://bucket/runs/tinyvit or s3://bucket/tinyvit, "
            "without any of * ? [ ] # %"
        )
    needed = (_DRIVERS[scheme], "etils")
    missing = [x for x in needed if importlib.util.find_spec(x) is None]
    if missing:
        raise UserError(
            f"{text} cannot be reached without {' and '.join(missing)}; pip "
            f"install {' '.join(missing)}, or name a local folder"
        )
    import fsspec
    from etils import epath

    # Objects come from other processes and from TensorStore, too, so that a
    # listing that is remembered would be out of date.
    options = fsspec.config.conf.setdefault(needed[0].removesuffix("fs"), {})
    options.setdefault("use_listings_cache", False)
    # It logs each failure with a traceback; `reaching` says it in a sentence.
    logging.getLogger(needed[0]).setLevel(logging.CRITICAL)
    return epath.Path(f"{scheme}://{'/'.join(parts)}")


def is_remote(path: PurePath) -> bool:
    """Whether a path lies in a bucket."""
    return not isinstance(path, Path)


def absolute(path: Path) -> Path:
    """Returns the path from the root of its disk; one in a bucket has it."""
    return path if is_remote(path) else path.absolute()


def size(path: Path) -> int:
    """Returns the bytes of a file; an OSError if it is missing."""
    about = path.stat()
    return about.length if is_remote(path) else about.st_size


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
    of_network = (
        isinstance(error, OSError)
        and error.filename is None
        and not isinstance(error, BrokenPipeError)  # stdout's
        and error.errno not in _LOCAL
    )
    return (
        type(error).__module__.partition(".")[0] in _PACKAGES
        or of_network
        or (isinstance(error, ValueError) and bool(_STATUS.search(str(error))))
        or is_unreachable(error.__cause__)
    )


@contextlib.contextmanager
def reaching(names: Iterable[str | os.PathLike]) -> Iterator[None]:
    """Turns the errors of a bucket into one sentence; for the outermost frame.

    The drivers have tried again for half a minute before they raise.

    Args:
      names: of the run folders, or a command's arguments; nothing is done
        if all are on disks.

    Raises:
      TransientError: the bucket does not answer.
      UserError: it refuses.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Each driver has types of its own.
        urls = (re.search(r"\w+://.*", str(name), re.DOTALL) for name in names)
        remote = list(dict.fromkeys(url[0] for url in urls if url))
        missing = isinstance(error, FileNotFoundError) and not error.filename
        if not remote or not (missing or is_unreachable(error)):
            raise
        kind, text = type(error).__name__, (str(error).splitlines() or [""])[0]
        permanent = (
            isinstance(error, (FileNotFoundError, PermissionError))
            or "Credentials" in kind
            or re.match(_PERMANENT, text)
        )
        raise (UserError if permanent else TransientError)(
            f"{' or '.join(remote)} cannot be read or written ({kind}: "
            f"{text[:200]}); see to its name, the right to write there and "
            "the network, and run the same command again"
        ) from error
