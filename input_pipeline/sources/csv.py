"""The competition layout: an answers csv beside folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from input_pipeline.sources import csv_table, listing
from input_pipeline.sources.base import (
    Examples,
    FileExamples,
    Source,
    encode_labels,
    fingerprint,
)

# The default of config.data.sample_submission, used if it is there.
SAMPLE_SUBMISSION = "sample_submission.csv"


def open_csv(data: Any, root: Path) -> Source:
    """Opens the folder `root`.

    Args:
      data: config.data.
      root: the folder, absolute.

    Raises:
      UserError: a missing folder or file, a wrong column, a bad id or label.
    """
    answers = csv_table.read_csv(root / data.answers, "data.answers")
    ids = answers.column(data.id_column, "data.id_column")
    targets = answers.column(data.target_column, "data.target_column")
    answers.check_ids(ids, data.id_column)
    for row, target in enumerate(targets):
        if not target:
            raise UserError(
                f"{answers.path} has no label for id '{ids[row]}' in column "
                f"'{data.target_column}'; fill it in or remove the row"
            )
        if len(target) > csv_table.MAX_ID_LENGTH:
            raise UserError(
                f"{answers.path} has a label of {len(target)} characters for "
                f"id '{ids[row]}' in column '{data.target_column}', which is "
                f"no class's name; shorten it to {csv_table.MAX_ID_LENGTH}"
            )
    groups = None
    if data.group_column:
        groups = answers.column(data.group_column, "data.group_column")
        if "" in groups:
            raise UserError(
                f"{answers.path} has no group for id "
                f"'{ids[groups.index('')]}' in column '{data.group_column}'; "
                "fill it in or remove the row"
            )
    classes, labels = encode_labels(targets)
    if len(classes) < 2:
        raise UserError(
            f"{answers.path}: every label in column '{data.target_column}' is "
            f"'{classes[0]}', so there is nothing to tell apart; set "
            "--config.data.target_column to the column with the classes"
        )
    _check_class_list(
        root / "classes.csv", answers.path, data.target_column, classes
    )

    train_folder = listing.Folder(root / data.train_images, "data.train_images")
    names = train_folder.find_all(ids, data.extension, answers.path)
    labelled = FileExamples(
        np.array(ids), labels, str(train_folder.path), names
    )

    sample = root / data.sample_submission if data.sample_submission else None
    if sample is not None and not sample.is_file():
        if data.sample_submission != SAMPLE_SUBMISSION:
            raise UserError(
                f"data.sample_submission {sample} does not exist; correct "
                "--config.data.sample_submission, or leave it empty to predict "
                "every image in data.test_images"
            )
        sample = None  # The usual name is only a guess.
    test = _open_test(data, root, sample)
    return Source(
        name="csv",
        labelled=labelled,
        test=test,
        classes=classes,
        sample_submission=None if sample is None else str(sample),
        id_column=data.submission_id_column,
        target_column=data.target_column,
        fingerprint=fingerprint(ids, labels, train_folder.sizes(names)),
        groups=None if groups is None else np.array(groups),
    )


def _open_test(data: Any, root: Path, sample: Path | None) -> Examples | None:
    """The rows to predict: those of the sample, else every image there is."""
    path = root / data.test_images
    if sample is None and not path.is_dir():
        return None
    folder = listing.Folder(path, "data.test_images")
    if sample is None:
        return listing.every_image(folder)
    table = csv_table.read_csv(sample, "data.sample_submission")
    ids = table.column(data.submission_id_column, "data.submission_id_column")
    table.column(data.target_column, "data.target_column")
    table.check_ids(ids, data.submission_id_column)
    names = folder.find_all(ids, data.extension, sample)
    return listing.unlabelled(ids, folder, names)


def _check_class_list(
    path: Path, answers: Path, column: str, classes: Sequence[str]
) -> None:
    """Compares the labels with `classes.csv`, where there is one."""
    if not path.is_file():
        return
    table = csv_table.read_csv(path, "data.root")
    if column not in table.header:
        return
    listed = set(table.column(column, "data.target_column"))
    for name, here, there in [
        *((name, answers, path) for name in sorted(set(classes) - listed)),
        *((name, path, answers) for name in sorted(listed - set(classes))),
    ]:
        raise UserError(
            f"label '{name}' is in {here} but not in {there}; make the two "
            f"agree in column '{column}'"
        )
