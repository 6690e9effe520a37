"""Writes a source as a folder of ArrayRecord shards; see `records`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from array_record.python import array_record_module
from etils import epath
from PIL import Image

from core import atomic_files
from core.errors import UserError
from input_pipeline import parallel_scan
from input_pipeline.decoding import BadImage
from input_pipeline.sources import records
from input_pipeline.sources.base import Examples, Kind, Source

# Photos in one shard, at the most, by default.
ROWS_PER_SHARD = 10_000


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
    records.check_name(folder)
    try:
        if (folder / records.INDEX).exists():
            raise UserError(f"{folder} holds records already; choose another")
        folder.mkdir(parents=True, exist_ok=True)
    except ImportError as error:
        raise records.no_driver(folder, error) from error
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
        index = {
            "ids": np.asarray(examples.ids, np.str_),
            "labels": examples.labels,
            **{
                records.COLUMN + name: v for name, v in examples.columns.items()
            },
        }
        if split == "labelled":
            known = {name: getattr(source, name) for name in records.OF_ROWS}
            index |= {k: v for k, v in known.items() if v is not None}
        elif source.test_pairs is not None:
            index |= {
                records.PAIRS + name: values
                for name, values in vars(source.test_pairs).items()
                if values is not None
            }
        size += _write_shards(
            folder, split, examples, shards[split], _photo, "photos"
        )
        if examples.kinds.get("mask") is Kind.MASK:
            size += _write_shards(
                folder, records.MASKS, examples, shards[split], _mask, "masks"
            )
        with (
            _arriving(folder / f"{split}.npz") as path,
            open(path, "wb") as file,
        ):
            np.savez_compressed(file, **index)
    if source.sample_submission:
        text = Path(source.sample_submission).read_bytes()
        with _arriving(folder / records.SAMPLE) as path:
            path.write_bytes(text)
    about = {
        "version": records.VERSION,
        "classes": list(source.classes),
        "splits": {name: len(examples) for name, examples in splits.items()},
        "shards": shards,
        "sample_submission": bool(source.sample_submission),
        "id_column": source.id_column,
        "target_column": source.target_column,
        "fingerprint": source.fingerprint,
    }
    if source.mask_pixels is not None:
        about["mask_format"] = dataclasses.asdict(source.labelled.format)
    # Last: a folder with this file is whole.
    with _arriving(folder / records.INDEX) as path:
        path.write_text(json.dumps(about, indent=2) + "\n")
    rows = sum(about["splits"].values())
    return (
        f"{rows:,} photos in {sum(shards.values())} shards, "
        f"{size / 2**20:,.1f} MiB, in {folder}; train with "
        f"--config.data.source=records --config.data.root={folder}"
    )


def _write_shards(
    folder: epath.Path,
    name: str,
    examples: Examples,
    shards: int,
    encoded: Callable[[Examples, int], bytes],
    what: str,
) -> int:
    """Writes a file of every row into shards; returns how many bytes."""
    size = 0
    rows = np.arange(len(examples))
    # One after the other: the disk is what takes time, and memory is bounded.
    files = parallel_scan.with_progress(
        (encoded(examples, row) for row in rows.tolist()), len(rows), what
    )
    # Sizes differ by one at the most.
    parts = np.array_split(rows, shards)
    for shard, part in zip(
        records.shard_names(name, shards), parts, strict=True
    ):
        with _arriving(folder / shard) as path:
            # A group of one: a photo is read without its neighbours.
            writer = array_record_module.ArrayRecordWriter(
                str(path), "group_size:1"
            )
            for _ in part:
                file = next(files)
                size += len(file)
                writer.write(file)
            writer.close()
        print(f"{shard}: {len(part):,} {what}", file=sys.stderr, flush=True)
    return size


def _photo(examples: Examples, row: int) -> bytes:
    """The photo's file; empty where it cannot be read, to keep its row."""
    try:
        return _encoded(examples.read(row)["image"])
    except BadImage:
        return b""


def _mask(examples: Examples, row: int) -> bytes:
    """The mask's file."""
    if not hasattr(examples, "mask_file"):  # Drawn, not read.
        return _encoded(examples.format.encode(examples.mask(row)))
    try:
        return examples.mask_file(row)
    except BadImage as error:
        raise UserError(
            f"the mask of '{examples.ids[row]}' can no longer be read "
            f"({error}); see to the file, and convert again"
        ) from error


def _encoded(pixels: bytes | np.ndarray) -> bytes:
    if isinstance(pixels, bytes):
        return pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


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
