"""Run folders to be stacked, and the families that they form.

A *family* is one model: its seeds and its folds are several runs.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.paths import is_remote, make_path
from run_folder import identity, layout
from run_folder.layout import logits_path
from run_folder.predictions import Logits, read_logits

SPLITS = ("val", "test")


@dataclass(frozen=True)
class Run:
    """One run folder and what it predicted.

    Attributes:
      path: the folder.
      val, test: its logits; None where it has no such file.
    """

    path: Path
    val: Logits | None
    test: Logits | None

    @property
    def metadata(self) -> dict[str, Any]:
        """Of its validation logits, or else of its test logits."""
        return (self.val or self.test).metadata


@dataclass(frozen=True)
class Family:
    """The runs of one model, and the name it has in every table."""

    name: str
    model: str
    runs: tuple[Run, ...]

    @property
    def config_hashes(self) -> list[str]:
        """Of its runs, sorted."""
        return sorted({str(run.metadata["config_hash"]) for run in self.runs})


def find_runs(
    patterns: Sequence[str],
    out: str | os.PathLike | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Run folders named by `patterns`, which may be globs.

    Folders without logits are passed over with a note (a glob names them
    too), `out` and other stacks silently. In a bucket, only the last part of
    a name may be a glob.

    Raises:
      UserError: nothing is there, or the only folder named has no logits.
    """
    named = expand(patterns)
    own = Path(out).resolve() if out is not None else None
    runs = []
    for path in named:
        if resolved(path) == own or (path / "stack.json").exists():
            continue
        if any(logits_path(path, split).exists() for split in SPLITS):
            runs.append(path)
        elif not path.exists():
            raise UserError(
                f"--runs names {path}, which does not exist; train it first "
                "or correct the name"
            )
        elif path.is_dir():
            note(
                f"{path} has no logits and is left out: it predicts no "
                "classes, or has not ended"
            )
    if not runs and any((path / layout.MASK_COUNTS).exists() for path in named):
        raise UserError(
            f"the runs in --runs {' '.join(patterns)} have masks and no "
            "logits; python -m stacking.masks averages those"
        )
    if not runs and any(
        layout.pairs_path(path, "val").exists() for path in named
    ):
        raise UserError(
            f"the runs in --runs {' '.join(patterns)} compare pairs and have "
            "no logits; python -m stacking.pairs fuses those"
        )
    if not runs:
        raise UserError(
            f"no folder in --runs {' '.join(patterns)} holds "
            "logits/val.npz; train a model to its end first"
        )
    return runs


def expand(patterns: Sequence[str]) -> list[Path]:
    """The paths that patterns name, each once; a pattern that names none,
    itself.

    Args:
      patterns: paths or globs. In a bucket, only the last part may be a glob.
    """
    found = (path for pattern in patterns for path in _expand(pattern))
    return list(dict.fromkeys(found))


def _expand(pattern: str) -> list[Path]:
    if "://" in pattern:
        parent, _, last = pattern.rstrip("/").rpartition("/")
        if not set(last) & set("*?["):
            return [make_path(pattern)]
        found = make_path(parent).iterdir()
        return sorted(path for path in found if fnmatch(path.name, last))
    # As far as it exists it is a name, whatever characters that has.
    known = Path(pattern)
    while not os.path.exists(known) and known != known.parent:
        known = known.parent
    rest = Path(pattern).relative_to(known)
    found = glob.glob(os.path.join(glob.escape(str(known)), rest))
    return sorted(map(Path, found)) or [Path(pattern)]


def resolved(path: Path) -> Path:
    """Returns the one path of a folder that has several names."""
    return path if is_remote(path) else path.resolve()


def read_runs(paths: Sequence[Path], splits: Sequence[str]) -> list[Run]:
    """Reads the logits of each run folder; see `read_logits`."""
    runs = []
    for path in paths:
        found = {
            split: read_logits(logits_path(path, split))
            for split in splits
            if logits_path(path, split).exists()
        }
        found = {
            split: logits for split, logits in found.items() if len(logits)
        }
        if not found:
            raise UserError(
                f"{path} has no logits/{splits[0]}.npz; let its training "
                "finish or leave it out of --runs"
            )
        runs.append(Run(path, found.get("val"), found.get("test")))
    return runs


def held_out_fold(run: Run) -> int | None:
    """The one fold that it validates; None for joined folds or none known.

    Raises:
      UserError: `val_fold` in the metadata is no number.
    """
    fold = run.metadata.get("val_fold")
    if fold is None or isinstance(fold, int):
        return None if fold is None or fold < 0 else fold
    raise UserError(
        f"the metadata of {logits_path(run.path, 'val')} has val_fold "
        f"{fold!r}; write the number of the fold, or -1 for folds joined"
    )


def check_parts(runs: Sequence[Run]) -> None:
    """Refuses a run together with one of its own folds.

    A run over all folds keeps them as `fold-0`, `fold-1`, … inside itself.
    """
    wholes = {resolved(run.path): run for run in runs}
    for run in runs:
        whole = wholes.get(resolved(run.path).parent)
        if whole is not None:
            raise UserError(
                f"{run.path} is a part of {whole.path}, whose logits join "
                "all its folds already; leave one of the two out of --runs"
            )


def group(runs: Sequence[Run]) -> tuple[Family, ...]:
    """Sorts runs into families.

    One family is: the same `family` in the metadata; or else the same
    `family_hash`, which is that of all seeds and folds of a model, wherever
    their data and folders lie (`run_folder.identity`), in the metadata or of
    `config.json`; or else, without either, the same `model` and `config_hash`.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_family_key(run), []).append(run)
    models = [str(own[0].metadata["model"]) for own in groups.values()]
    families = []
    taken = set(TABLE_ROWS)
    for model, own in zip(models, groups.values(), strict=True):
        name = own[0].metadata.get("family") or model
        if models.count(model) > 1 and "family" not in own[0].metadata:
            name = own[0].path.name
        while name in taken:
            name += "'"
        taken.add(name)
        families.append(Family(str(name), model, tuple(own)))
    return tuple(families)


# What the score table calls its own rows; no family may be called so.
TABLE_ROWS = (
    "soft_vote",
    "greedy_vote",
    "logistic",
    "catboost",
    "lightgbm",
    "blend",
)


def _family_key(run: Run) -> str:
    model = str(run.metadata["model"])
    if "family" in run.metadata:
        return f"family {run.metadata['family']}"
    found = run.metadata.get("family_hash")
    if found is None and (config := layout.read_config(run.path)) is not None:
        found = identity.family_hash(config, layout.read_data(run.path))
    return f"{model} {found or run.metadata['config_hash']}"


def seed_of(run: Run) -> str:
    """The seed it was trained with, as text; "" if nothing says."""
    if "seed" in run.metadata:
        return str(run.metadata["seed"])
    return str((layout.read_config(run.path) or {}).get("seed", ""))


def by_seed(family: Family) -> list[list[Run]]:
    """Its runs, seed by seed: those of one seed differ in the fold."""
    seeds: dict[str, list[Run]] = {}
    for run in sorted(family.runs, key=lambda run: str(run.path)):
        seeds.setdefault(seed_of(run), []).append(run)
    return list(seeds.values())
