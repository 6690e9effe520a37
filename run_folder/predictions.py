"""The logits file: all that stacking reads of a trained model.

One `.npz` per run and split, `<run>/logits/<split>.npz`. Split `val` holds
labelled rows, each predicted by a model that never saw it; `test` holds the
rows of the submission. Any tool that writes this layout can be stacked;
docs/stacking.md shows how in ten lines of NumPy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from core import paths
from core.atomic_files import atomic_write
from core.errors import UserError
from run_folder import layout

ARRAYS = ("ids", "logits", "labels", "classes", "fold", "metadata")
# How to save each of them without Python objects.
_AS_ARRAY = {
    "ids": "ids.astype(str)",
    "logits": "logits.astype('float32')",
    "labels": "labels.astype(int)",
    "classes": "classes.astype(str)",
    "fold": "fold.astype(int)",
    "metadata": "json.dumps(metadata)",
}
REQUIRED_METADATA = ("model", "config_hash", "folds_hash", "tta_views")


@dataclass(frozen=True)
class Logits:
    """Predictions of one run for one split.

    Attributes:
      ids: str [N], the rows' names, each at most once.
      logits: float32 [N, C], finite; the mean over test-time views.
      labels: int32 [N], index into `classes`; -1 where unknown.
      classes: str [C], the original label values, in column order.
      fold: int32 [N], the fold in which the row was held out; -1 for none.
      metadata: JSON-able. `model`, `config_hash`, `folds_hash` and
        `tta_views` always; `seed`, `val_fold`, `sample_submission`,
        `id_column`, `target_column`, `source` and `data` where known.
    """

    ids: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    fold: np.ndarray
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of rows, N."""
        return len(self.ids)


def write_logits(path: str | os.PathLike, logits: Logits) -> None:
    """Writes `logits` to `path`, whole or not at all.

    Raises:
      UserError: the arrays do not fit together (see `read_logits`), or the
        folder cannot be written.
    """
    with atomic_write(path) as temporary:
        save_logits(temporary, logits, path)


def save_logits(temporary: Path, logits: Logits, path: Path) -> None:
    """Writes `logits` to a temporary file that is to become `path`.

    Raises:
      UserError: the arrays do not fit together (see `read_logits`).
    """
    logits = _checked(path, logits)
    with open(temporary, "wb") as file:
        np.savez(
            file,
            ids=logits.ids,
            logits=logits.logits,
            labels=logits.labels,
            classes=logits.classes,
            fold=logits.fold,
            metadata=np.array(json.dumps(logits.metadata, sort_keys=True)),
        )


def read_logits(path: str | os.PathLike) -> Logits:
    """Reads and checks one logits file.

    Integer ids and classes, float64 or float16 logits, wider integers, and
    whole numbers that are floats are accepted and converted, as other tools
    write them.

    Raises:
      UserError: the file is missing or is no such archive, an array is
        absent or has the wrong shape, a logit is not finite, an id stands
        twice, or a label lies outside the classes.
    """
    try:
        arrays = _arrays(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; let the training finish, which writes it"
        ) from error
    except _ObjectArray as error:
        raise UserError(
            f"{path} cannot be read as a logits file: {error} was saved as "
            "Python objects, which are not loaded as they could run code; save "
            f"{_AS_ARRAY[str(error)]}"
        ) from None
    # A damaged archive fails in dozens of ways, in zipfile, zlib and NumPy.
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as a logits file ({error}); write it "
            "again with run_folder.predictions.write_logits"
        ) from error
    absent = [name for name in ARRAYS if name not in arrays]
    if absent:
        raise UserError(
            f"{path} has no array {absent[0]!r}; a logits file holds "
            f"{', '.join(ARRAYS)} (see docs/stacking.md)"
        )
    try:
        metadata = json.loads(str(arrays.pop("metadata")))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: metadata is not JSON ({error}); store one JSON object "
            "as a string"
        ) from error
    return _checked(path, Logits(metadata=metadata, **arrays))


def join_folds(runs: Sequence[Path]) -> tuple[Logits, Logits | None]:
    """Joins the logits of runs over the single folds of one division.

    Args:
      runs: a run folder per fold.

    Returns:
      Every labelled row once, predicted by the model that did not see it, and
      the mean of the models over the test rows; None without any.

    Raises:
      UserError: the folds' files do not belong together; which.
      RuntimeError: a row came twice; a bug, never a higher score.
    """
    parts = [read_logits(layout.logits_path(run, "val")) for run in runs]
    _check_same_data(runs, parts)
    ids = np.concatenate([part.ids for part in parts])
    if len(np.unique(ids)) < len(ids):
        raise RuntimeError("a row was held out by two folds")
    metadata = dict(parts[0].metadata)
    for of_one_fold in ("val_fold", "views"):
        metadata.pop(of_one_fold, None)
    metadata["fold_runs"] = [run.name for run in runs]
    whole = Logits(
        ids=ids,
        logits=np.concatenate([part.logits for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        classes=parts[0].classes,
        fold=np.concatenate([part.fold for part in parts]),
        metadata=metadata,
    )
    if not layout.logits_path(runs[0], "test").exists():
        return whole, None
    parts = [read_logits(layout.logits_path(run, "test")) for run in runs]
    _check_same_data(runs, parts)
    mean = np.mean([part.logits for part in parts], axis=0)
    test_metadata = {**parts[0].metadata, "fold_runs": metadata["fold_runs"]}
    for of_one_fold in ("val_fold", "views"):
        test_metadata.pop(of_one_fold, None)
    return whole, replace(parts[0], logits=mean, metadata=test_metadata)


def _check_same_data(runs: Sequence[Path], parts: Sequence[Logits]) -> None:
    first = parts[0]
    for run, part in zip(runs, parts, strict=True):
        same = np.array_equal(part.classes, first.classes)
        for key in ("model", "folds_hash", "tta_views"):
            same &= part.metadata[key] == first.metadata[key]
        if part.fold.max() < 0:  # Test rows: the same ones in each.
            same &= np.array_equal(part.ids, first.ids)
        if not same:
            raise UserError(
                f"the logits in {run} and {runs[0]} are of different classes, "
                "folds, models or rows; delete the one that is out of date "
                "and run the same command again"
            )


class _ObjectArray(ValueError):
    """An array of Python objects in an archive."""


def _arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Those of `ARRAYS` that the archive at `path` has."""
    with paths.make_path(path).open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is one array, not an archive of several")
        found = {}
        for name in ARRAYS:
            try:
                if name in archive:
                    found[name] = archive[name]
            except ValueError as error:
                if "allow_pickle" in str(error):
                    raise _ObjectArray(name) from None
                raise
        return found


def _as_text(array: np.ndarray) -> np.ndarray:
    """Text or whole numbers as text; anything else is a ValueError."""
    if array.dtype.kind == "O" and all(isinstance(x, str) for x in array.flat):
        return array.astype(str)  # What pandas has in its columns.
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8")
    array = _without_fractions(array)
    if array.dtype.kind not in "Uiu":
        raise ValueError(f"{array.dtype}, not text or integers")
    text = array.astype(str)
    "".join(text.tolist()).encode()  # Half a surrogate pair is no text.
    return text


def _without_fractions(array: np.ndarray) -> np.ndarray:
    """Floats as integers, where all of them are whole numbers."""
    if array.dtype.kind == "f" and np.all(np.isfinite(array)):
        whole = np.rint(array)
        if np.array_equal(whole, array) and np.all(np.abs(array) < 2**53):
            return whole.astype(np.int64)
    return array


def _checked(path: str | os.PathLike, given: Logits) -> Logits:
    """The same rows in the contract's dtypes, or a UserError."""
    ids, classes = np.asarray(given.ids), np.asarray(given.classes)
    logits = np.asarray(given.logits)
    labels = _without_fractions(np.asarray(given.labels))
    fold = _without_fractions(np.asarray(given.fold))

    def wrong(what: str) -> UserError:
        return UserError(f"{path}: {what}; write the file again without it")

    if logits.ndim != 2 or logits.shape[1] < 2:
        raise wrong(f"logits have shape {list(logits.shape)}, not [N, C]")
    rows, columns = logits.shape
    expected = {"ids": rows, "labels": rows, "classes": columns, "fold": rows}
    for name, length in expected.items():
        shape = np.shape(getattr(given, name))
        if shape != (length,):
            raise wrong(
                f"{name} has shape {list(shape)} where logits "
                f"{list(logits.shape)} need [{length}]"
            )
    if not np.issubdtype(logits.dtype, np.floating):
        raise wrong(f"logits are {logits.dtype}, not floating point")
    for name, array in (("labels", labels), ("fold", fold)):
        if not np.issubdtype(array.dtype, np.integer):
            unknown = array.dtype.kind == "f" and np.isnan(array).any()
            raise wrong(
                f"{name} are {array.dtype}, not integers"
                + " (-1 is how an unknown one is written)" * bool(unknown)
            )
        if len(array) and np.abs(array.astype(np.float64)).max() >= 2**31:
            raise wrong(f"{name} do not fit into 32 bits")
    try:
        ids, classes = _as_text(ids), _as_text(classes)
    except ValueError as error:
        raise wrong(f"ids or classes are no text ({error})") from error
    with np.errstate(over="ignore"):
        logits = np.ascontiguousarray(logits, np.float32)
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise wrong(
            f"{np.sum(~finite)} rows have logits that are not finite, the "
            f"first is id {str(ids[~finite][0])!r}"
        )
    for name, values in (("id", ids), ("class", classes)):
        unique, count = np.unique(values, return_counts=True)
        if len(unique) < len(values):
            raise wrong(f"{name} {str(unique[count > 1][0])!r} occurs twice")
    outside = (labels < -1) | (labels >= columns)
    if outside.any():
        raise wrong(
            f"id {str(ids[outside][0])!r} has label {labels[outside][0]}, "
            f"outside -1..{columns - 1}"
        )
    metadata = given.metadata
    if not isinstance(metadata, dict):
        raise wrong("metadata is not a JSON object")
    absent = [key for key in REQUIRED_METADATA if key not in metadata]
    if absent:
        raise wrong(f"metadata has no {absent[0]!r}")
    return Logits(
        ids=ids,
        logits=logits,
        labels=labels.astype(np.int32),
        classes=classes,
        fold=fold.astype(np.int32),
        metadata=metadata,
    )
