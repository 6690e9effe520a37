"""Photos in a few large files: a folder of ArrayRecord shards.

Millions of small files are slow to copy, to list and to read over a network;
a shard is one file that gives any of its records at once. `python -m
input_pipeline convert` writes the folder:

    records.json                            what it is, and the classes
    labelled.npz                            ids str [N], labels int32 [N],
                                            perhaps groups str [N]
    labelled-00000-of-00004.array_record    photos, N over all shards
    test.npz, test-00000-of-00001.array_record         if there are test rows
    sample_submission.csv                              if there was one

A record is one photo's file, byte for byte; row i is record i of the shards
laid end to end. Rows keep the order of the source that they came from, so
folds and training are the same as with that source.

The source opens in the memory that ids and labels take: photos are read by
row, as they are needed, and each host reads the rows of its own devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath
from grain.python import ArrayRecordDataSource
from PIL import Image

from core import atomic_files
from core.errors import UserError
from input_pipeline.decoding import BadImage
from input_pipeline.sources.base import Examples, Source

INDEX = "records.json"
VERSION = 1

# Photos in one shard, at the most, by default.
ROWS_PER_SHARD = 10_000

_SAMPLE = "sample_submission.csv"


@dataclasses.dataclass(frozen=True, eq=False)
class RecordExamples(Examples):
    """Photos in the shards of one split.

    Attributes:
      shards: paths, in order.
    """

    shards: tuple[str, ...]

    def read(self, row: int) -> dict[str, bytes]:
        """Returns `image`, the photo's file."""
        photo = _records(self.shards)[int(row)]
        if not photo:
            raise BadImage("it could not be read when it was converted")
        return {"image": photo}


@functools.lru_cache(maxsize=8)
def _records(shards: tuple[str, ...]) -> ArrayRecordDataSource:
    return ArrayRecordDataSource(list(shards))


def open_records(data: Any) -> Source:
    """Opens the folder `data.root`, local or `gs://…`.

    Args:
      data: config.data.

    Raises:
      UserError: it is no such folder, or a part of it is missing.
    """
    root = epath.Path(data.root)
    _check_name(root)
    about = _about(root)
    splits, groups = {}, None
    for split, count in about["splits"].items():
        names = _shard_names(split, about["shards"][split])
        absent = [name for name in names if not (root / name).exists()]
        if absent:
            raise UserError(
                f"{root} lacks {absent[0]}; copy it again, or convert anew"
            )
        with (root / f"{split}.npz").open("rb") as file:
            index = np.load(io.BytesIO(file.read()), allow_pickle=False)
        shards = tuple(str(root / name) for name in names)
        splits[split] = RecordExamples(index["ids"], index["labels"], shards)
        if "groups" in index:
            groups = index["groups"]
        found = len(_records(shards))
        if not found == len(splits[split]) == count:
            raise UserError(
                f"the {split} shards in {root} hold {found} photos where "
                f"{count} were written; copy them again, or convert anew"
            )
    sample = root / _SAMPLE if about["sample_submission"] else None
    return Source(
        name="records",
        labelled=splits["labelled"],
        test=splits.get("test"),
        classes=tuple(about["classes"]),
        sample_submission=None if sample is None else str(sample),
        id_column=about["id_column"],
        target_column=about["target_column"],
        fingerprint=about["fingerprint"],
        groups=groups,
    )


def _about(root: epath.Path) -> dict[str, Any]:
    try:
        about = json.loads((root / INDEX).read_text())
        version = about["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{root / INDEX} cannot be read ({error}); make the folder with "
            "python -m input_pipeline convert, or correct --config.data.root"
        ) from error
    except ImportError as error:
        raise _no_driver(root, error) from error
    if version != VERSION:
        raise UserError(
            f"{root} was written in version {version} of the format, and "
            f"this reads {VERSION}; convert anew"
        )
    return about


def convert(source: Source, out: str, rows_per_shard: int) -> str:
    """Writes a source as a folder of shards.

    Args:
      source: from `open_source`.
      out: the folder, local or `gs://…`; it must hold no records yet.
      rows_per_shard: photos in one shard, at the most.

    Returns:
      A sentence on what was written.

    Raises:
      UserError: the folder has records already, or cannot be written.
    """
    folder = epath.Path(out)
    _check_name(folder)
    try:
        if (folder / INDEX).exists():
            raise UserError(f"{folder} holds records already; choose another")
        folder.mkdir(parents=True, exist_ok=True)
    except ImportError as error:
        raise _no_driver(folder, error) from error
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; choose another "
            "--out"
        ) from error
    splits = {"labelled": source.labelled}
    if source.test is not None:
        splits["test"] = source.test
    shards, size = {}, 0
    for split, examples in splits.items():
        shards[split] = -(-len(examples) // rows_per_shard)
        groups = source.groups if split == "labelled" else None
        size += _write_split(folder, split, examples, shards[split], groups)
    if source.sample_submission:
        text = Path(source.sample_submission).read_bytes()
        with _arriving(folder / _SAMPLE) as path:
            path.write_bytes(text)
    about = {
        "version": VERSION,
        "classes": list(source.classes),
        "splits": {name: len(examples) for name, examples in splits.items()},
        "shards": shards,
        "sample_submission": bool(source.sample_submission),
        "id_column": source.id_column,
        "target_column": source.target_column,
        "fingerprint": source.fingerprint,
    }
    # Last: a folder with this file is whole.
    with _arriving(folder / INDEX) as path:
        path.write_text(json.dumps(about, indent=2) + "\n")
    rows = sum(about["splits"].values())
    return (
        f"{rows:,} photos in {sum(shards.values())} shards, "
        f"{size / 2**20:,.1f} MiB, in {folder}; train with "
        f"--config.data.source=records --config.data.root={folder}"
    )


def _write_split(
    folder: epath.Path,
    split: str,
    examples: Examples,
    shards: int,
    groups: np.ndarray | None,
) -> int:
    """Writes the shards and the index of a split; returns bytes of photos."""
    size = 0
    # Sizes differ by one at the most.
    parts = np.array_split(np.arange(len(examples)), shards)
    for name, rows in zip(_shard_names(split, shards), parts, strict=True):
        with _arriving(folder / name) as path:
            # A group of one: a photo is read without its neighbours.
            writer = array_record_module.ArrayRecordWriter(
                str(path), "group_size:1"
            )
            for row in rows.tolist():
                photo = _encoded(examples, row)
                size += len(photo)
                writer.write(photo)
            writer.close()
        print(f"{name}: {len(rows):,} photos", file=sys.stderr, flush=True)
    index = {
        "ids": np.asarray(examples.ids, np.str_),
        "labels": examples.labels,
    }
    if groups is not None:
        index["groups"] = groups
    with _arriving(folder / f"{split}.npz") as path, open(path, "wb") as file:
        np.savez_compressed(file, **index)
    return size


def _encoded(examples: Examples, row: int) -> bytes:
    """The photo's file; empty where it cannot be read, to keep its row."""
    try:
        photo = examples.read(row)["image"]
    except BadImage:
        return b""
    if isinstance(photo, bytes):
        return photo
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "png")
    return file.getvalue()


def _shard_names(split: str, count: int) -> list[str]:
    return [
        f"{split}-{index:05d}-of-{count:05d}.array_record"
        for index in range(count)
    ]


@contextlib.contextmanager
def _arriving(path: epath.Path) -> Iterator[Path]:
    """Yields a local file that becomes `path`, whole or not at all."""
    if "://" not in str(path):
        with atomic_files.atomic_write(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        yield temporary
        epath.Path(temporary).copy(path, overwrite=True)


def _check_name(folder: epath.Path) -> None:
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the name of {folder} is not UTF-8, and ArrayRecord takes no "
            "other; choose another folder for records"
        ) from error


def _no_driver(path: epath.Path, error: ImportError) -> UserError:
    return UserError(
        f"{path} cannot be reached ({error}); pip install gcsfs, or name a "
        "local folder"
    )
