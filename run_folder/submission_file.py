"""The sample submission: which rows and columns a submission must have.

Training reads it for the images to predict, stacking to fill in the answers.
What one of them could not use, the other refuses as well.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core import csv_table
from core.errors import UserError

# What pandas calls the column of row numbers that it has saved.
_INDEX = re.compile(r"(Unnamed: \d+)?")


@dataclass(frozen=True)
class Options:
    """How a command calls what it knows of the sample, for messages.

    Attributes:
      sample: the option that names the file.
      id_column: the option that names its id column; "" if there is none.
      without: how to do without a sample.
    """

    sample: str
    id_column: str
    without: str


OF_TRAINING = Options(
    "--config.data.sample_submission",
    "--config.data.submission_id_column",
    "--config.data.sample_submission= to predict every test image or pair",
)
OF_STACKING = Options("--sample-submission", "", "--sample-submission=none")


@dataclass(frozen=True)
class Sample:
    """A sample submission, or what stands for one.

    Attributes:
      table: all columns; those that hold no answers stay as they are.
      id_name: header of the ids.
      answers: positions of the columns to fill in: one for a label, or one
        for the probability of each class.
      source: where this is from, for messages.
    """

    table: csv_table.Table
    id_name: str
    answers: tuple[int, ...]
    source: str

    @property
    def ids(self) -> np.ndarray:
        """Str [N], in the order of the rows."""
        return np.array(
            self.table.columns[self.table.header.index(self.id_name)]
        )

    @property
    def holds_probabilities(self) -> bool:
        """Whether it has one column per class."""
        return len(self.answers) > 1


def read_sample(
    path: str | os.PathLike,
    classes: Sequence[str],
    id_column: str,
    target_column: str,
    options: Options,
    expected_ids: np.ndarray | None = None,
) -> Sample:
    """Reads a sample submission and finds what is to be filled in.

    Args:
      path: a csv file. Blanks around fields, the order of the columns, an
        index and further columns do not matter.
      classes: str [C].
      id_column: header of the ids.
      target_column: header of the label, where several may be it.
      options: of the command.
      expected_ids: str [N], by which to know the id column, whatever it is
        called.

    Raises:
      UserError: it is missing or no table, names an id twice, or has neither
        a column for the label nor one per class.
    """
    table = csv_table.read_csv(Path(path), options.sample)
    if expected_ids is not None:
        id_column = _id_by_values(table, id_column, expected_ids)
    ids = table.column(id_column, options.id_column)
    table.check_unique(ids, id_column)
    others = {
        name: position
        for position, name in enumerate(table.header)
        if name != id_column and not _INDEX.fullmatch(name)
    }
    if target_column in others:
        answers = (others[target_column],)
    elif set(others) == set(classes) or len(others) == 1:
        answers = tuple(others.values())
    else:
        odd = sorted(set(others) ^ set(classes))
        detail = f": {odd[0]!r} is in only one of them" if others else ""
        raise UserError(
            f"the sample submission {path} has neither a column "
            f"'{target_column}' nor one column per class{detail}; call the "
            f"column of the answers '{target_column}', or set "
            f"{options.without}"
        )
    return Sample(table, id_column, answers, str(path))


def plain(ids: np.ndarray, id_column: str, target_column: str) -> Sample:
    """Stands for a sample where there is none: ids in their own order."""
    table = csv_table.Table(
        Path(),
        (id_column, target_column),
        (tuple(ids.tolist()), ("",) * len(ids)),
    )
    return Sample(table, id_column, (1,), "the test rows")


def check_pairs(
    sample: Sample,
    ids: np.ndarray,
    where: str,
    options: Options = OF_TRAINING,
) -> None:
    """Refuses a sample that is of other pairs.

    Args:
      sample: of the submission.
      ids: str [P], of the pairs.
      where: they are from.
      options: of the command.

    Raises:
      UserError: which id only one of them has, or there are several columns
        to fill in.
    """
    if sample.holds_probabilities:
        raise UserError(
            f"the sample submission {sample.source} has {len(sample.answers)} "
            "columns beside the ids, and a similarity goes into one; remove "
            "the others"
        )
    own, theirs = set(ids.tolist()), set(sample.ids.tolist())
    if own == theirs:
        return
    lacking, strange = sorted(theirs - own), sorted(own - theirs)
    if {pair.lstrip("0") for pair in own} == {p.lstrip("0") for p in theirs}:
        raise UserError(
            f"{sample.source} has pair '{lacking[0]}' and {where} has "
            f"'{strange[0]}': the zeros at the front are lost in one of them; "
            "write the ids as text"
        )
    found = [
        f"{len(names):,} pairs are only in {place} (for one, '{names[0]}')"
        for names, place in ((lacking, sample.source), (strange, where))
        if names
    ]
    raise UserError(
        f"the sample submission has other pairs: {' and '.join(found)}; make "
        f"the two agree, or set {options.without}"
    )


def with_similarities(
    sample: Sample, ids: np.ndarray, similarity: np.ndarray
) -> str:
    """Returns a submission as csv: the sample's rows and columns, filled in.

    Args:
      sample: of the submission, or `plain`.
      ids: str [P], of the pairs.
      similarity: float [P], finite.

    Raises:
      UserError: the sample is of other pairs.
    """
    check_pairs(sample, ids, "the predictions")
    of_pair = dict(zip(ids.tolist(), similarity.tolist(), strict=True))
    columns = list(sample.table.columns)
    # As many digits as tell float32 apart: a tie would move the score.
    columns[sample.answers[0]] = tuple(
        f"{of_pair[pair]:.9g}" for pair in sample.ids.tolist()
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(sample.table.header)
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()


def _id_by_values(
    table: csv_table.Table, usual: str, expected: np.ndarray
) -> str:
    """The header of the column that holds these ids, or what is likeliest."""
    wanted = set(expected.tolist())
    named = [name for name in table.header if not _INDEX.fullmatch(name)]
    likely = [usual] if usual in named else []
    for name in likely + named:
        if wanted == set(table.columns[table.header.index(name)]):
            return name
    return (likely + named + list(table.header))[0]
