"""The runs that a stack was made of, to predict new images with them."""

from __future__ import annotations

import json
from pathlib import Path

from core import paths
from core.errors import UserError
from run_folder import layout

# A probability below this is taken as this, so that it has a logarithm.
LEAST = 1e-30


def member_runs(folder: Path) -> list[list[Path]]:
    """Returns, for each model of a stack in its order, the runs of it.

    A run over all folds is the runs of its folds, whose logits are averaged as
    in its own predictions.

    Args:
      folder: of the stack.

    Raises:
      UserError: `scores.json` cannot be read, or a run is gone.
    """
    path = folder / "scores.json"
    try:
        families = json.loads(path.read_text(encoding="utf-8"))["families"]
        named = [[str(run) for run in one["runs"]] for one in families]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); stack again"
        ) from error
    return [
        [part for run in runs for part in _parts(_found(run, folder))]
        for runs in named
    ]


def _found(run: str, folder: Path) -> Path:
    """A run where it was, or beside the stack if both were moved."""
    places = [paths.make_path(run), folder.parent / Path(run).name]
    for place in places:
        if place.exists():
            return place
    raise UserError(
        f"the stack in {folder} was made of {run}, which is gone; put it back, "
        "or beside the stack"
    )


def _parts(run: Path) -> list[Path]:
    return layout.fold_folders(run) or [run]
