"""The submission: the sample's columns and rows, or nothing at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence

import numpy as np

from core.atomic_files import atomic_write
from core.errors import UserError
from run_folder.submission_file import Sample

FORMATS = ("labels", "probabilities")


def _rows_of(sample: Sample, ids: np.ndarray) -> np.ndarray:
    """Position in `ids` of each row of the sample, int [N]."""
    missing = np.setdiff1d(sample.ids, ids)
    if len(missing):
        raise UserError(
            f"{len(missing)} rows of {sample.source} have no prediction, "
            f"the first is id {str(missing[0])!r}; predict every test image, "
            "or give the sample that belongs to these images with "
            "--sample-submission, or --sample-submission=none"
        )
    extra = np.setdiff1d(ids, sample.ids)
    if len(extra):
        raise UserError(
            f"{len(extra)} predicted rows are not in {sample.source}, the "
            f"first is id {str(extra[0])!r}; give the sample that belongs "
            "to these images with --sample-submission, or "
            "--sample-submission=none"
        )
    order = np.argsort(ids)
    return order[np.searchsorted(ids[order], sample.ids)]


def make_rows(
    sample: Sample,
    ids: np.ndarray,
    classes: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    kind: str | None = None,
) -> list[list[str]]:
    """Header and rows of the submission, as text.

    Args:
      sample: what it must look like; its other columns stay as they are.
      ids: str [N], of the predictions.
      classes: str [C], the original label values.
      predicted: int [N], the class decided for.
      probabilities: float32 [N, C].
      kind: "labels", "probabilities", or None for what the sample holds.

    Raises:
      UserError: an id is missing or too many, or the columns do not fit.
    """
    rows = _rows_of(sample, ids)
    header = sample.table.header
    columns = dict(enumerate(map(list, sample.table.columns)))
    if kind == "labels" and sample.holds_probabilities:
        raise UserError(
            f"{sample.source} has {len(header)} columns where labels need "
            "two, the id and the answer; for one column per class leave out "
            "--format, or pass --format=probabilities"
        )
    if kind == "probabilities" or sample.holds_probabilities:
        # As text, a float32 is the shortest number that reads back the same.
        answers = {
            name: list(map(str, column))
            for name, column in zip(
                classes.tolist(), probabilities[rows].T, strict=True
            )
        }
    else:
        answers = {"": classes[predicted[rows]].tolist()}
    filled: list[tuple[str, list[str]]] = []
    for position, name in enumerate(header):
        if position not in sample.answers:
            filled.append((name, columns[position]))
        elif sample.holds_probabilities:
            filled.append((name, answers[name]))
        else:  # The label, or all classes in our order.
            filled += [(key or name, column) for key, column in answers.items()]
    names, values = zip(*filled, strict=True)
    return [list(names), *map(list, zip(*values, strict=True))]


def write_submission(
    path: str | os.PathLike, rows: Sequence[Sequence[str]]
) -> None:
    """Writes header and rows as csv, whole or not at all."""
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)
