"""The submission: the sample's columns and rows, or nothing at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.atomic_files import atomic_write
from core.errors import UserError

FORMATS = ("labels", "probabilities")


@dataclass(frozen=True)
class Template:
    """What a submission must look like.

    Attributes:
      columns: names; the id's first.
      ids: str [N], in the order of the rows.
      source: where this is from, for messages.
    """

    columns: tuple[str, ...]
    ids: np.ndarray
    source: str


def read_sample(path: str | os.PathLike) -> Template:
    """Reads the columns and the row order of a sample submission.

    Raises:
      UserError: it is missing, is no table, or names an id twice.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except FileNotFoundError as error:
        raise UserError(
            f"the sample submission {path} does not exist; name it with "
            "--sample-submission"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"the sample submission {path} cannot be read ({error}); give a "
            "csv file in UTF-8"
        ) from error
    if len(lines) < 2 or len(lines[0]) < 2:
        raise UserError(
            f"the sample submission {path} needs a header of two columns or "
            "more and one row per test image"
        )
    ids = np.array([line[0] for line in lines[1:]])
    unique, count = np.unique(ids, return_counts=True)
    if (count > 1).any():
        raise UserError(
            f"the sample submission {path} names id "
            f"{str(unique[count > 1][0])!r} twice; keep one row per id"
        )
    return Template(tuple(lines[0]), ids, str(path))


def _rows_of(template: Template, ids: np.ndarray) -> np.ndarray:
    """Position in `ids` of each row of the template, int [N]."""
    missing = np.setdiff1d(template.ids, ids)
    if len(missing):
        raise UserError(
            f"{len(missing)} rows of {template.source} have no prediction, "
            f"the first is id {str(missing[0])!r}; predict every test image, "
            "or give the sample that belongs to these images with "
            "--sample-submission, or --sample-submission=none"
        )
    extra = np.setdiff1d(ids, template.ids)
    if len(extra):
        raise UserError(
            f"{len(extra)} predicted rows are not in {template.source}, the "
            f"first is id {str(extra[0])!r}; give the sample that belongs "
            "to these images with --sample-submission, or "
            "--sample-submission=none"
        )
    order = np.argsort(ids)
    return order[np.searchsorted(ids[order], template.ids)]


def make_rows(
    template: Template,
    ids: np.ndarray,
    classes: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    kind: str,
) -> list[list[str]]:
    """Header and rows of the submission, as text.

    Args:
      template: what it must look like.
      ids: str [N], of the predictions.
      classes: str [C], the original label values.
      predicted: int [N], the class decided for.
      probabilities: float32 [N, C].
      kind: "labels" or "probabilities".

    Raises:
      UserError: an id is missing or too many, or the columns do not fit.
    """
    rows = _rows_of(template, ids)
    if kind == "labels":
        if len(template.columns) != 2:
            raise UserError(
                f"{template.source} has {len(template.columns)} columns where "
                "labels need two, the id and the answer; for one column per "
                "class pass --format=probabilities"
            )
        answers = classes[predicted[rows]]
        lines = zip(template.ids.tolist(), answers.tolist(), strict=True)
        return [list(template.columns), *map(list, lines)]
    columns = _class_columns(template, classes.tolist())
    order = [classes.tolist().index(name) for name in columns]
    # As text, a float32 is the shortest number that reads back the same.
    lines = [
        [name, *map(str, row)]
        for name, row in zip(
            template.ids.tolist(), probabilities[rows][:, order], strict=True
        )
    ]
    return [[template.columns[0], *columns], *lines]


def _class_columns(template: Template, classes: list[str]) -> list[str]:
    """The class columns in the sample's order, or in ours if it has none."""
    named = list(template.columns[1:])
    if sorted(named) == sorted(classes):
        return named
    if len(named) == 1:
        return classes
    odd = sorted(set(named) ^ set(classes))
    raise UserError(
        f"{template.source} does not have one column per class: {odd[0]!r} is "
        "in only one of them; give a sample with the classes as columns"
    )


def write_submission(
    path: str | os.PathLike, rows: Sequence[Sequence[str]]
) -> None:
    """Writes header and rows as csv, whole or not at all."""
    with (
        atomic_write(Path(path)) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)
