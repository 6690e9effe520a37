"""The competition layout: an answers csv beside folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core import csv_table
from core.errors import UserError
from input_pipeline.sources import labels as labels_lib
from input_pipeline.sources import listing
from input_pipeline.sources.base import (
    FileExamples,
    LeftOut,
    Source,
    fingerprint,
)
from run_folder import submission_file

# The default of config.data.sample_submission, used if it is there.
SAMPLE_SUBMISSION = "sample_submission.csv"

# Lists the classes, where somebody wrote it.
CLASSES = "classes.csv"


def open_csv(data: Any, root: Path) -> Source:
    """Opens the folder `root`.

    Args:
      data: config.data.
      root: the folder, absolute.

    Raises:
      UserError: a missing folder or file, a wrong column, a bad id or label.
    """
    answers = csv_table.read_csv(root / data.answers, "--config.data.answers")
    ids = answers.column(data.id_column, "--config.data.id_column")
    answers.check_ids(ids, data.id_column)
    classes, labels, notes = _labels(answers, ids, data, root / CLASSES)
    groups = _groups(answers, ids, data) if data.group_column else None

    train_folder = listing.Folder(root / data.train_images, "data.train_images")
    names = train_folder.find_all(ids, data.extension, answers.path)
    labelled = FileExamples(
        np.array(ids), labels, str(train_folder.path), names
    )
    sample = _sample(data, root, classes)
    test, test_folder = _open_test(data, root, sample, labelled)
    return Source(
        name="csv",
        labelled=labelled,
        test=test,
        classes=classes,
        sample_submission=None if sample is None else sample.source,
        id_column=data.submission_id_column,
        target_column=data.target_column,
        fingerprint=fingerprint(ids, labels, train_folder.sizes(names)),
        groups=groups,
        left_out=_left_out(
            [answers.path, root / CLASSES, root / data.sample_submission],
            (train_folder, labelled),
            (test_folder, test),
        ),
        notes=notes,
    )


def _labels(
    answers: csv_table.Table, ids: Sequence[str], data: Any, class_list: Path
) -> tuple[tuple[str, ...], np.ndarray, list[str]]:
    """The classes, their index in each row, and how labels were read."""
    _check_one_label_column(answers, data)
    column = data.target_column
    targets = answers.column(column, "--config.data.target_column")
    for image_id, target in zip(ids, targets, strict=True):
        if not target:
            raise UserError(
                f"{answers.path} has no label for id '{image_id}' in column "
                f"'{column}'; fill it in or remove the row"
            )
        if len(target) > csv_table.MAX_ID_LENGTH:
            raise UserError(
                f"{answers.path} has a label of {len(target)} characters for "
                f"id '{image_id}' in column '{column}', which is no class's "
                f"name; shorten it to {csv_table.MAX_ID_LENGTH}"
            )
    targets, note = labels_lib.without_fractions(targets)
    listed = _class_list(class_list, column)
    labels_lib.refuse_doubts(
        targets,
        f"{answers.path}, column '{column}',",
        f" or, where that is right, list all classes in column '{column}' of "
        f"{class_list}",
        listed,
    )
    classes, labels = labels_lib.encode(targets)
    if len(classes) < 2:
        raise UserError(
            f"{answers.path}: every label in column '{column}' is "
            f"'{classes[0]}', so there is nothing to tell apart; set "
            "--config.data.target_column to the column with the classes"
        )
    if listed:
        _check_class_list(listed, class_list, answers.path, column, classes)
    return classes, labels, [note] if note else []


def _listed_groups(path: Path, ids: Sequence[str], data: Any) -> list[str]:
    """The groups in a csv of their own, in the order of `ids`."""
    table = csv_table.read_csv(path, "--config.data.groups_file")
    listed = table.column(data.id_column, "--config.data.id_column")
    groups = table.column(data.group_column, "--config.data.group_column")
    group_of = dict(zip(listed, groups, strict=True))
    if len(group_of) < len(listed):
        table.check_ids(listed, data.id_column)
    if lacking := [name for name in ids if name not in group_of]:
        raise UserError(
            f"{path} has no group for id '{lacking[0]}' "
            f"({len(lacking)} of {len(ids)} are missing); add them, or set "
            "--config.data.group_column= to do without groups"
        )
    return [group_of[name] for name in ids]


def _groups(
    answers: csv_table.Table, ids: Sequence[str], data: Any
) -> np.ndarray:
    """The group of each row, as data.group_column says."""
    path = answers.path
    if getattr(data, "groups_file", ""):  # Older runs lack the field.
        path = path.parent / data.groups_file
        groups = _listed_groups(path, ids, data)
    else:
        groups = answers.column(data.group_column, "--config.data.group_column")
    missing = labels_lib.MISSING | {""}
    for image_id, group in zip(ids, groups, strict=True):
        if group in missing:
            raise UserError(
                f"{path} has no group for id '{image_id}' in column "
                f"'{data.group_column}'"
                + (f", only '{group}'" if group else "")
                + "; fill it in or remove the row"
            )
    return np.array(labels_lib.without_fractions(groups)[0])


def _check_one_label_column(answers: csv_table.Table, data: Any) -> None:
    """Refuses labels that are one column of 0 and 1 for each class."""
    if data.target_column in answers.header:
        return
    columns = {
        name: column
        for name, column in zip(answers.header, answers.columns, strict=True)
        if {"0", "1"}.issuperset(value.removesuffix(".0") for value in column)
    }
    ones = sum(np.array(column, float) for column in columns.values())
    if len(columns) < 2 or not np.all(ones == 1):
        return
    others = [name for name in answers.header if name not in columns]
    raise UserError(
        f"{answers.path} has no column '{data.target_column}' but one for "
        f"each of {len(columns)} classes; write the name of the class into "
        f"one, in pandas with table['{data.target_column}'] = "
        f"table.drop(columns={others}).idxmax(axis=1)"
    )


def _sample(
    data: Any, root: Path, classes: Sequence[str]
) -> submission_file.Sample | None:
    """The sample submission, if there is one."""
    if not data.sample_submission:
        return None
    path = root / data.sample_submission
    if path.is_file():
        return submission_file.read_sample(
            path,
            classes,
            data.submission_id_column,
            data.target_column,
            submission_file.OF_TRAINING,
        )
    if data.sample_submission != SAMPLE_SUBMISSION:
        raise UserError(
            f"data.sample_submission {path} does not exist; correct "
            "--config.data.sample_submission, or leave it empty to predict "
            "every image in data.test_images"
        )
    return None  # The usual name is only a guess.


def _open_test(
    data: Any,
    root: Path,
    sample: submission_file.Sample | None,
    labelled: FileExamples,
) -> tuple[FileExamples | None, listing.Folder | None]:
    """The rows to predict: those of the sample, else every image there is."""
    path = root / data.test_images
    if sample is None and not path.is_dir():
        return None, None
    folder = listing.Folder(path, "data.test_images")
    if sample is None:
        return listing.every_image(folder, labelled), folder
    ids = sample.ids.tolist()
    sample.table.check_ids(ids, sample.id_name)
    names = folder.find_all(ids, data.extension, sample.table.path)
    return listing.unlabelled(ids, folder, names), folder


def _left_out(
    tables: Sequence[Path],
    *splits: tuple[listing.Folder | None, FileExamples | None],
) -> list[LeftOut]:
    """The files of both folders, which may be one, that no split takes."""
    taken = {
        f"{images.folder}/{name}"
        for _, images in splits
        if images is not None
        for name in images.names
    }
    taken.update(map(str, tables))
    found = {
        file.path: file
        for split, (folder, images) in zip(
            ("train", "test"), splits, strict=True
        )
        if folder is not None
        for file in folder.left_out(split, images.names)
        if file.path not in taken
    }
    return list(found.values())


def _class_list(path: Path, column: str) -> frozenset[str]:
    """The classes in `classes.csv`, where there is one."""
    if not path.is_file():
        return frozenset()
    table = csv_table.read_csv(path, "--config.data.root")
    if column not in table.header:
        return frozenset()
    listed = table.column(column, "--config.data.target_column")
    return frozenset(labels_lib.without_fractions(listed)[0])


def _check_class_list(
    listed: frozenset[str],
    path: Path,
    answers: Path,
    column: str,
    classes: Sequence[str],
) -> None:
    """Compares the labels with those listed."""
    for name, here, there in [
        *((name, answers, path) for name in sorted(set(classes) - listed)),
        *((name, path, answers) for name in sorted(listed - set(classes))),
    ]:
        raise UserError(
            f"label '{name}' is in {here} but not in {there}; make the two "
            f"agree in column '{column}'"
        )
