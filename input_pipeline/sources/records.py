"""Photos in a few large files: a folder of ArrayRecord shards.

Millions of small files are slow to copy, to list and to read over a network;
a shard is one file that gives any of its records at once. `python -m
input_pipeline convert` writes the folder:

    records.json                            what it is, and the classes
    labelled.npz                            ids str [N], labels int32 [N], and
                                            what else is known of the rows
    labelled-00000-of-00004.array_record    photos, N over all shards
    labelled_mask-00000-of-00004.array_record          masks, if there are any
    test.npz, test-00000-of-00001.array_record         if there are test rows,
                                            with the pairs of them
    sample_submission.csv                              if there was one

A record is one file, of a photo or a mask, byte for byte; row i is record i of
the shards laid end to end. Rows keep the order of the source that they came
from, so folds and training are the same as with that source.

The source opens in the memory that ids and labels take: photos are read by
row, as they are needed, and each host reads the rows of its own devices.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import zipfile
from typing import Any

import numpy as np
from etils import epath
from grain.python import ArrayRecordDataSource

from core.errors import UserError
from input_pipeline.decoding import BadImage
from input_pipeline.sources.base import Examples, Kind, Source
from input_pipeline.sources.mask_format import MaskFormat
from run_folder.pair_files import PairList

INDEX = "records.json"
VERSION = 1

SAMPLE = "sample_submission.csv"
MASKS = "labelled_mask"  # in the names of their shards

# In the index of labelled rows: fields of `Source`, and `Examples.columns`.
OF_ROWS = (
    *("groups", "strata", "given_folds"),
    *("mask_pixels", "mask_sizes", "mask_digests"),
)
COLUMN = "column:"
# In the index of test rows: fields of their `PairList`.
PAIRS = "pairs:"


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


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedRecordExamples(RecordExamples):
    """Photos with masks.

    Attributes:
      mask_shards: paths, in order; empty for photos to predict.
      format: of the masks.
    """

    mask_shards: tuple[str, ...]
    format: MaskFormat

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of every feature."""
        masks = {"mask": Kind.MASK} if self.mask_shards else {}
        return {**super().kinds, **masks}

    def read(self, row: int) -> dict[str, bytes | np.ndarray]:
        """Returns `image`, the photo's file, and `mask`, uint8 `[H, W]`."""
        features: dict[str, Any] = super().read(row)
        if self.mask_shards:
            features["mask"] = self.mask(row)
        return features

    def mask(self, row: int) -> np.ndarray:
        """Returns a mask as class indices, uint8 `[H, W]`.

        Raises:
          BadImage: it holds what no class has.
        """
        return self.format.decode(self.mask_file(row))

    def mask_file(self, row: int) -> bytes:
        """Returns the bytes of a mask's file."""
        return _records(self.mask_shards)[int(row)]


# Of two splits, photos and masks, and of a teacher's data.
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
    check_name(root)
    about = _about(root)
    form = None
    if described := about.get("mask_format"):
        form = MaskFormat(**{name: _tuple(v) for name, v in described.items()})
    splits, known = {}, {}
    for split, count in about["splits"].items():
        index = _index(root / f"{split}.npz")
        shards = _shards(root, split, about["shards"][split], count)
        columns = {
            name.removeprefix(COLUMN): index.pop(name)
            for name in list(index)
            if name.startswith(COLUMN)
        }
        rows = index.pop("ids"), index.pop("labels"), shards
        if form is None:
            splits[split] = RecordExamples(*rows, columns=columns)
        else:
            masks = ()
            if split == "labelled":
                masks = _shards(root, MASKS, about["shards"][split], count)
            splits[split] = MaskedRecordExamples(
                *rows, masks, form, columns=columns
            )
        if split == "labelled":
            known |= {name: index[name] for name in OF_ROWS if name in index}
        pairs = {
            name.removeprefix(PAIRS): values
            for name, values in index.items()
            if name.startswith(PAIRS)
        }
        if pairs:
            known["test_pairs"] = PairList(**pairs)
    sample = root / SAMPLE if about["sample_submission"] else None
    return Source(
        name="records",
        labelled=splits["labelled"],
        test=splits.get("test"),
        classes=tuple(about["classes"]),
        sample_submission=None if sample is None else str(sample),
        id_column=about["id_column"],
        target_column=about["target_column"],
        fingerprint=about["fingerprint"],
        **known,
    )


def _index(path: epath.Path) -> dict[str, np.ndarray]:
    """What is known of the rows of a split, by name."""
    try:
        with path.open("rb") as file:
            data = io.BytesIO(file.read())
        return dict(np.load(data, allow_pickle=False))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read ({error}); copy it again, or convert anew"
        ) from error


def _shards(
    root: epath.Path, name: str, shards: int, count: int
) -> tuple[str, ...]:
    """The shards of a split's photos or masks, `count` in all.

    Raises:
      UserError: one is missing, or is not whole.
    """
    names = shard_names(name, shards)
    absent = [shard for shard in names if not (root / shard).exists()]
    if absent:
        raise UserError(
            f"{root} lacks {absent[0]}; copy it again, or convert anew"
        )
    paths = tuple(str(root / shard) for shard in names)
    found = len(_records(paths))
    if found != count:
        raise UserError(
            f"the {name} shards in {root} hold {found} records where {count} "
            "were written; copy them again, or convert anew"
        )
    return paths


def _tuple(value: Any) -> Any:
    """What a JSON list was before."""
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


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
        raise no_driver(root, error) from error
    if version != VERSION:
        raise UserError(
            f"{root} was written in version {version} of the format, and "
            f"this reads {VERSION}; convert anew"
        )
    return about


def shard_names(split: str, count: int) -> list[str]:
    """Returns the names of the files of a split, or of its masks."""
    return [
        f"{split}-{index:05d}-of-{count:05d}.array_record"
        for index in range(count)
    ]


def check_name(folder: epath.Path) -> None:
    """Raises UserError for a folder whose name ArrayRecord cannot take."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the name of {folder} is not UTF-8, and ArrayRecord takes no "
            "other; choose another folder for records"
        ) from error


def no_driver(path: epath.Path, error: ImportError) -> UserError:
    """Returns the error about a bucket that nothing here can reach."""
    return UserError(
        f"{path} cannot be reached ({error}); pip install gcsfs, or name a "
        "local folder"
    )
