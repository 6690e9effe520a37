"""Examples by row number, and all that is known of a data folder.

Examples hold ids, labels and file names, no pixels (the digits aside), so that
they are cheap to send to a worker process.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import enum
import hashlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline.decoding import BadImage
from run_folder.pair_files import PairList

# A larger file is not a photo; reading one would only exhaust the memory.
MAX_FILE_BYTES = 1 << 28


class Kind(enum.Enum):
    """What a feature is, which decides what transforms and mixing do to it."""

    # Pixels uint8 [H, W, 3]: resized bilinearly, changed in colour.
    IMAGE = "image"
    # A class per pixel, uint8 [H, W]: moves with the image, by nearest
    # neighbour; pixels from outside get the ignore index.
    MASK = "mask"
    # A class per example, int32; -1 unknown.
    LABEL = "label"
    # Any other value per example, such as an identity: travels unchanged.
    ID = "id"


# Shape and dtype of each feature that a transform makes of one example.
Spec = dict[str, tuple[tuple[int, ...], type]]


@dataclasses.dataclass(frozen=True, eq=False)
class Examples(abc.ABC):
    """Examples by row number.

    Attributes:
      ids: str `[N]`, unique.
      labels: int32 `[N]`, index into the source's classes; -1 unknown.
      columns: further features, `[N, …]` each; batches hold them unchanged.
    """

    ids: np.ndarray
    labels: np.ndarray
    columns: Mapping[str, np.ndarray] = dataclasses.field(
        default_factory=dict, kw_only=True
    )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of every feature, those of `read` and of `row_features`."""
        columns = dict.fromkeys(self.columns, Kind.ID)
        return {"image": Kind.IMAGE, "label": Kind.LABEL, **columns}

    @property
    def row_features(self) -> dict[str, np.ndarray]:
        """The features that are at hand without reading: `[N, …]` each."""
        return {"label": self.labels, **self.columns}

    def path(self, row: int) -> str:
        """The absolute path of a row's file; empty where it has none."""
        return ""

    def weights(self, rows: np.ndarray) -> np.ndarray:
        """What rows count in a loss: float32 `[n]` for int `[n]`."""
        return np.ones(len(rows), np.float32)

    @abc.abstractmethod
    def read(self, row: int) -> dict[str, bytes | np.ndarray]:
        """Returns the features that are made of pixels, by name.

        An encoded file each, or uint8 `[H, W, 3]` (IMAGE), `[H, W]` (MASK).

        Raises:
          BadImage: there is nothing to read (a folder, a lost file).
        """


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayExamples(Examples):
    """Images that are in memory already.

    Attributes:
      pixels: uint8 `[N, H, W, 3]`.
    """

    pixels: np.ndarray

    def read(self, row: int) -> dict[str, np.ndarray]:
        """Returns `image`, uint8 `[H, W, 3]`."""
        return {"image": self.pixels[row]}


@dataclasses.dataclass(frozen=True, eq=False)
class FileExamples(Examples):
    """Image files in one folder.

    No name leads out of the folder (`csv_table.Table.check_ids`). Symbolic
    links inside it are followed, wherever they lead, as a folder of links is a
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

    def read(self, row: int) -> dict[str, bytes]:
        """Returns `image`, the file's bytes."""
        return {"image": read_file(self.path(row))}


def read_file(path: str) -> bytes:
    """Returns the bytes of a regular file.

    Raises:
      BadImage: it is none, cannot be read, or has over `MAX_FILE_BYTES`.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for ever.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
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


# What of a folder is not taken, and what that means.
LEFT_OUT = {
    "no decoder": "cannot be decoded: save it as JPEG or PNG",
    "no row": "is named by no row of the csv: not used",
    "no class": "lies in no class's folder: not used",
    "no pair": "lies in no pair's folder: not used",
    "half pair": "does not hold two pictures: training refuses",
    # Training refuses all of these at once; an audit lists them one by one.
    "no mask": "has no mask: training refuses",
    "no photo": "is a mask without an image: training refuses",
    "two files": "has the name of another one: training refuses",
    "bad mask": "is a mask that cannot be read: training refuses",
    "mask size": "is a mask of another size than its image: training refuses",
    "mask values": "is a mask with values of no class: training refuses",
    "no image": "is a file of another kind: ignored",
}


class LeftOut(NamedTuple):
    """A file in the folders of a source that it does not take.

    Attributes:
      split: `train`, `val` or `test`.
      path: of the file.
      problem: a key of `LEFT_OUT`.
      detail: the reason, where the problem does not say it all.
    """

    split: str
    path: str
    problem: str
    detail: str = ""


class Refused(NamedTuple):
    """Files that cannot be trained on as they are.

    Attributes:
      sentence: how many there are, one of them, and what to do.
      files: all of them.
    """

    sentence: str
    files: list[LeftOut]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Everything known about one data folder before an image is decoded.

    Attributes:
      name: `digits`, `digit_scenes`, `digit_pairs`, `csv`, `folders`,
        `masks`, `pairs`, `records` or `tfds:<name>`.
      labelled: the examples that the folds divide.
      test: the examples to predict, or None; labels only where the source
        knows them (digits), for scoring and nothing else.
      classes: the original label values as text; in numeric order when all
        are integers.
      sample_submission: absolute path of the sample, or None.
      id_column: of a submission written without a sample.
      target_column: the same.
      fingerprint: hash of ids, labels and file sizes; keys the caches.
      groups: str `[N]` of the labelled rows, such as a person's name, of
        which none may be in two folds; None where rows are independent.
      strata: int32 `[N]`, what folds have alike shares of; None takes the
        labels.
      test_pairs: pairs of `test` to compare, or None.
      left_out: files in its folders that it does not take.
      notes: sentences on how labels and folders were understood.
      given_folds: int32 `[N]`, 0 for rows that the data itself sets apart to
        validate and 1 for the others; None where folds are to be made.
      mask_pixels: int64 `[N, C]`, pixels of each class in the masks of the
        labelled rows; None without masks.
      mask_sizes: int32 `[N, 2]`, width and height of those masks.
      mask_digests: uint8 `[N, 16]`, hashes of what those masks hold.
    """

    name: str
    labelled: Examples
    test: Examples | None
    classes: tuple[str, ...]
    sample_submission: str | None
    id_column: str
    target_column: str
    fingerprint: str
    groups: np.ndarray | None = None
    strata: np.ndarray | None = None
    test_pairs: PairList | None = None
    left_out: Sequence[LeftOut] = ()
    notes: Sequence[str] = ()
    given_folds: np.ndarray | None = None
    mask_pixels: np.ndarray | None = None
    mask_sizes: np.ndarray | None = None
    mask_digests: np.ndarray | None = None

    @property
    def splits(self) -> np.ndarray:
        """`train` or `val` of each labelled row, str `[N]`.

        `val` are those that the data themselves set apart to validate.
        """
        splits = np.full(len(self.labelled), "train")
        if self.given_folds is not None:
            splits[self.given_folds == 0] = "val"
        return splits

    def describe(self) -> dict[str, str]:
        """What it left out and how it understood the rest: {heading: text}."""
        found = {"notes": "; ".join(self.notes)}
        first: dict[str, str] = {}
        for file in self.left_out:
            first.setdefault(file.problem, file.path)
        counts = collections.Counter(file.problem for file in self.left_out)
        found["left out"] = "; ".join(
            f"{counts[problem]:,} × {problem} (first: {first[problem]})"
            for problem in LEFT_OUT
            if problem in first
        )
        return {heading: text for heading, text in found.items() if text}


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
