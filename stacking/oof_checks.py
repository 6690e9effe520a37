"""Every validation row was held out, and none of them is missing.

What a run says of itself (`val_fold`, and the fold of each row) is compared
with its predictions, and with the folds file in its folder if there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from core.errors import UserError
from run_folder.folds_file import read_folds
from run_folder.layout import FOLD, logits_path
from run_folder.predictions import Logits
from stacking.runs import Run, held_out_fold


def check_held_out(run: Run) -> None:
    """Checks one run's validation rows.

    Raises:
      UserError: a row has no label, belongs to a fold that the model was
        trained on, or is missing from the fold that it held out.
    """
    logits = run.val
    unlabelled = logits.labels < 0
    if unlabelled.any():
        raise UserError(
            f"{logits_path(run.path, 'val')} has no label for "
            f"{named(logits.ids[unlabelled])}; leave out such rows"
        )
    held_out = held_out_fold(run)
    if held_out is not None:
        seen = (logits.fold >= 0) & (logits.fold != held_out)
        if seen.any():
            raise UserError(
                f"{run.path} was trained on rows that it predicts: it held "
                f"out fold {held_out}, but {named(logits.ids[seen])} belong"
                f"{'' if seen.sum() > 1 else 's'} to fold "
                f"{logits.fold[seen][0]}; export the logits of fold "
                f"{held_out} alone"
            )
    path = _folds_path(run)
    if path is not None:
        _check_against_file(run, logits, held_out, path)


def groups_of(runs: Iterable[Run], ids: np.ndarray) -> np.ndarray | None:
    """Returns the group of each row as str [N]; None where no run knows any.

    Args:
      runs: of one set of folds, checked.
      ids: str [N]; one that no file names is a group of its own.
    """
    for path in filter(None, map(_folds_path, runs)):
        found = read_folds(path)
        if found.groups is not None:
            group_of = dict(
                zip(found.ids.tolist(), found.groups.tolist(), strict=True)
            )
            # An id may be spelled like a group.
            return np.array([group_of.get(i, f"id {i}") for i in ids.tolist()])
    return None


def _folds_path(run: Run) -> Path | None:
    """The folds file of a run that has one and says each row's fold.

    The runs of single folds inside a run over all of them share its file.
    """
    # Without a fold for each row, the run does not claim to be of that file.
    if not len(run.val) or run.val.fold.min() < 0:
        return None
    folders = [run.path]
    if FOLD.match(run.path.name):
        folders.append(run.path.parent)
    paths = (folder / "folds.csv" for folder in folders)
    return next((path for path in paths if path.exists()), None)


def _check_against_file(
    run: Run, logits: Logits, held_out: int | None, path: Path
) -> None:
    found = read_folds(path)
    own = dict(zip(logits.ids.tolist(), logits.fold.tolist(), strict=True))
    # Other tools call the folds as their file does.
    for folds in (found.folds, np.array(found.numbers)[found.folds]):
        fold_of = dict(zip(found.ids.tolist(), folds.tolist(), strict=True))
        moved = [
            name for name, fold in own.items() if fold_of.get(name) != fold
        ]
        if not moved:
            break
    if moved:
        raise UserError(
            f"{path} has another fold than logits/val.npz, or none, for "
            f"{named(moved)}, so the model may have been trained on "
            f"{'them' if len(moved) > 1 else 'it'}; put back the folds file "
            "it was trained with, or train it again"
        )
    expected = {
        name
        for name, fold in fold_of.items()
        if held_out is None or fold == held_out
    }
    missing = sorted(expected.difference(logits.ids.tolist()))
    if missing:
        raise UserError(
            f"{run.path} never predicts {named(missing)}, which {path} "
            "lists as held out; export its logits again"
        )


def named(ids: Sequence[str] | np.ndarray) -> str:
    """Up to three ids in quotes, and how many more there are."""
    shown = ", ".join(repr(str(name)) for name in ids[:3])
    more = f" and {len(ids) - 3:,} more" if len(ids) > 3 else ""
    return f"id{'s' if len(ids) > 1 else ''} {shown}{more}"
