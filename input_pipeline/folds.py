"""Stratified folds for training and validation, made or read from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core import paths, stratified_split
from core.errors import UserError
from input_pipeline.sources.base import Source
from run_folder import folds_file

# Below this, some fold would train without ever seeing the class.
MIN_PER_CLASS = 2


def make_folds(
    ids: np.ndarray,
    labels: np.ndarray,
    k: int,
    seed: int,
    classes: Sequence[str] | None = None,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Divides the examples of each class evenly over `k` folds.

    See `stratified_split.split`, and `split_groups` where there are groups.

    Args:
      ids: str `[N]`, unique.
      labels: int `[N]`, class indices.
      k: number of folds, at least 2.
      seed: another seed gives another division.
      classes: names for the error message.
      groups: str `[N]`; examples of one group get one fold.

    Returns:
      int32 `[N]`, values 0 to k-1.

    Raises:
      UserError: fewer than two folds, or without groups a class with fewer
        than two images, or with them fewer groups than folds.
    """
    if k < 2:
        raise UserError(
            f"data.folds is {k}, but a split needs at least 2 folds; set "
            "--config.data.folds=5"
        )
    ids, labels = np.asarray(ids), np.asarray(labels)
    if groups is not None:
        count = len(np.unique(groups))
        if count < k:
            raise UserError(
                f"the images are of {count} groups, which cannot fill {k} "
                "folds; lower --config.data.folds (groups are what "
                "data.group_column says, and identities of pairs)"
            )
        return stratified_split.split_groups(groups, labels, k, seed)
    values, counts = np.unique(labels, return_counts=True)
    for value, count in zip(values, counts, strict=True):
        if count < MIN_PER_CLASS:
            name = classes[value] if classes is not None else value
            raise UserError(
                f"class '{name}' has {count} image, and a stratified split "
                f"needs at least {MIN_PER_CLASS}; add images of this class or "
                "leave it out"
            )
    return stratified_split.split(ids, labels, k, seed)


def check_given_folds(source: Source, data: Any) -> None:
    """Refuses folds for data that say themselves which images validate.

    Args:
      source: of the data.
      data: config.data.

    Raises:
      UserError: `data.fold` or `data.folds_file` is set all the same.
    """
    if source.given_folds is None:
        return
    problem = remedy = ""
    if data.fold:
        problem = f"data.fold is {data.fold}"
        remedy = "leave data.fold at 0"
    elif data.folds_file:
        problem, remedy = "data.folds_file is set", "leave it empty"
    if problem:
        raise UserError(
            f"{problem}, but {data.root or source.name} says itself which "
            f"images validate; {remedy}, or {how_to_fold(source)}"
        )


def how_to_fold(source: Source) -> str:
    """Returns what makes folds of data that say which images validate."""
    if source.name == "digit_pairs":
        return "train on data of your own"
    how = "convert again with" if source.name == "records" else "set"
    return f"{how} --config.data.val_images= to fold the training images alone"


def folds_for(
    source: Source,
    k: int,
    seed: int,
    path: str | Path,
    *,
    id_column: str = "id",
    note: Callable[[str], None] = lambda line: None,
) -> np.ndarray:
    """The folds of a source: its own, those in `path`, or made.

    Args:
      source: its labelled images are divided.
      k: number of folds.
      seed: of the division, used only when `path` does not exist.
      path: the folds file that all runs on this data share; `write_folds`
        in run_folder makes it.
      id_column: header of its ids where there is no `id`.
      note: called with how its folds are called here, where it has other
        names for them.

    Returns:
      int32 `[N]` in the order of `source.labelled`.

    Raises:
      UserError: the file is of other images, or has another number of
        folds, a class has too few images, or a group is in two folds.
    """
    if source.given_folds is not None:
        return source.given_folds
    path = paths.make_path(path)
    images, groups = source.labelled, source.groups
    if not path.exists():
        strata = images.labels if source.strata is None else source.strata
        return make_folds(images.ids, strata, k, seed, source.classes, groups)
    read = folds_file.read_folds(path, id_column)
    if read.note:
        note(read.note)
    fold_of = dict(zip(read.ids.tolist(), read.folds.tolist(), strict=True))
    own = images.ids.tolist()
    missing = [image_id for image_id in own if image_id not in fold_of]
    if missing or len(own) != len(fold_of):
        strangers = set(fold_of) - set(own)
        culprit = missing[0] if missing else min(strangers)
        where = "is not in it" if missing else "is only in it"
        raise UserError(
            f"the folds file {path} was made for other images (for one, id "
            f"'{culprit}' {where}); delete it to have it made again, or point "
            "--config.data.folds_file elsewhere"
        )
    count = len(read.numbers)
    if count < 2:
        raise UserError(
            f"the folds file {path} puts all images into one fold; give them "
            "at least two, or delete the file to have it made again"
        )
    if count != k:
        raise UserError(
            f"the folds file {path} has {count} folds but data.folds is {k}; "
            f"set --config.data.folds={count} or delete the file"
        )
    found = np.array([fold_of[image_id] for image_id in own], np.int32)
    if groups is not None:
        folds_file.check_groups(path, found, groups)
    return found
