"""Images by row number: lists of ids with random access to encoded files.

They hold names, no pixels (the digits aside), so that a worker process can be
handed one cheaply.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence

import numpy as np

from input_pipeline.decoding import BadImage

# A larger file is not a photo; reading one would only exhaust the memory.
MAX_FILE_BYTES = 1 << 28


@dataclasses.dataclass(frozen=True, eq=False)
class Images(abc.ABC):
    """Images by row number.

    Attributes:
      ids: str `[N]`, unique.
      labels: int32 `[N]`, index into the source's classes; -1 unknown.
    """

    ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, row: int) -> str:
        """The absolute path of a row's file; empty where it has none."""
        return ""

    @abc.abstractmethod
    def read(self, row: int) -> bytes | np.ndarray:
        """Returns the encoded file, or pixels uint8 `[H, W, 3]`.

        Raises:
          BadImage: there is nothing to read (a folder, a lost file).
        """


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayImages(Images):
    """Images that are in memory already.

    Attributes:
      pixels: uint8 `[N, H, W, 3]`.
    """

    pixels: np.ndarray

    def read(self, row: int) -> np.ndarray:
        """Returns uint8 `[H, W, 3]`."""
        return self.pixels[row]


@dataclasses.dataclass(frozen=True, eq=False)
class FileImages(Images):
    """Image files in one folder.

    No name leads out of the folder (`tables.Table.check_ids`). Symbolic links
    inside it are followed, wherever they lead, as a folder of links is a
    common way to choose among photos: whoever can put a link there can put a
    copy there. Only regular files are read, so a link to a device or a pipe
    is a bad image.

    Attributes:
      folder: absolute path.
      names: per row the path inside `folder`.
    """

    folder: str
    names: Sequence[str]

    def path(self, row: int) -> str:
        """The absolute path of a row's file."""
        return os.path.join(self.folder, self.names[row])

    def read(self, row: int) -> bytes:
        """Returns the file's bytes."""
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for ever.
            file = os.open(self.path(row), os.O_RDONLY | os.O_NONBLOCK)
            try:
                about = os.fstat(file)
                if stat.S_ISDIR(about.st_mode):
                    raise BadImage("a folder, not a file")
                if not stat.S_ISREG(about.st_mode):
                    raise BadImage("not a regular file")
                if about.st_size > MAX_FILE_BYTES:
                    raise BadImage(f"larger than {MAX_FILE_BYTES >> 20} MB")
                with os.fdopen(os.dup(file), "rb") as stream:
                    return stream.read()
            finally:
                os.close(file)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from error


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Everything known about one data folder before an image is decoded.

    Attributes:
      name: `digits`, `csv`, `folders`, `records` or `tfds:<name>`.
      labelled: what the folds divide.
      test: the rows to predict, or None; labels only where the source knows
        them (digits), for scoring and nothing else.
      classes: the original label values as text; in numeric order when all
        are integers.
      sample_submission: absolute path of the sample, or None.
      id_column: of a submission written without a sample.
      target_column: the same.
      fingerprint: hash of ids, labels and file sizes; keys the caches.
    """

    name: str
    labelled: Images
    test: Images | None
    classes: tuple[str, ...]
    sample_submission: str | None
    id_column: str
    target_column: str
    fingerprint: str


def fingerprint(
    ids: Iterable[str], labels: np.ndarray, sizes: Iterable[int]
) -> str:
    """A short hash of what a source holds; keys the caches.

    Args:
      ids: of all images.
      labels: int `[N]`.
      sizes: bytes per file.
    """
    digest = hashlib.sha256()
    digest.update("\n".join(ids).encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(labels, "<i4").tobytes())
    digest.update(np.array(list(sizes), "<i8").tobytes())
    return digest.hexdigest()[:16]
