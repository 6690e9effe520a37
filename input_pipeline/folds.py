"""Stratified folds for training and validation, made or read from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core import paths
from core.errors import UserError
from input_pipeline import stratified_split
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
                f"data.group_column has {count} groups, which cannot fill "
                f"{k} folds; lower --config.data.folds, or leave "
                "--config.data.group_column empty"
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


def folds_for(
    source: Source, k: int, seed: int, path: str | Path
) -> np.ndarray:
    """The folds of a source: read from `path` if it is there, else made.

    Args:
      source: its labelled images are divided.
      k: number of folds.
      seed: of the division, used only when `path` does not exist.
      path: the folds file that all runs on this data share; `write_folds`
        in run_folder makes it.

    Returns:
      int32 `[N]` in the order of `source.labelled`.

    Raises:
      UserError: the file is of other images, or has another number of
        folds, a class has too few images, or a group is in two folds.
    """
    path = paths.make_path(path)
    images, groups = source.labelled, source.groups
    if not path.exists():
        return make_folds(
            images.ids, images.labels, k, seed, source.classes, groups
        )
    ids, folds, _ = folds_file.read_folds(path)
    fold_of = dict(zip(ids.tolist(), folds.tolist(), strict=True))
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
    if folds.max() + 1 != k:
        raise UserError(
            f"the folds file {path} has {folds.max() + 1} folds but "
            f"data.folds is {k}; set --config.data.folds={folds.max() + 1} or "
            "delete the file"
        )
    found = np.array([fold_of[image_id] for image_id in own], np.int32)
    if groups is not None:
        folds_file.check_groups(path, found, groups)
    return found
