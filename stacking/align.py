"""Runs in, one table out: rows aligned by id, or a sentence on why not.

A *family* is one model: its seeds and its folds are several runs. A seed that
was trained once per fold covers the validation rows in parts; its runs' test
logits are averaged. Several seeds are averaged everywhere.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError
from stacking.logits import Logits, logits_path, read_logits

SPLITS = ("val", "test")
# Fields of config.json that tell the seeds and folds of one model apart, or
# say where and how fast it ran.
_PER_RUN = (
    "seed",
    "data.fold",
    "data.folds_file",
    "workdir",
    "workers",
    "cache_dir",
    "log_every_steps",
    "eval.batch_size",
)


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


@dataclass(frozen=True)
class Rows:
    """One split, the same rows for every family.

    Attributes:
      ids: str [N].
      logits: float32 [M, N, C].
      labels: int32 [N], -1 where unknown.
    """

    ids: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Table:
    """Everything that stacking works on.

    Attributes:
      families: the M models.
      classes: str [C].
      val: labelled rows, sorted by id; None when only predicting.
      test: rows of the submission, in their own order; None without them.
      folds_hash: of the folds all runs share.
    """

    families: tuple[Family, ...]
    classes: np.ndarray
    val: Rows | None
    test: Rows | None
    folds_hash: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the M families."""
        return tuple(family.name for family in self.families)


def find_runs(
    patterns: Sequence[str],
    out: str | os.PathLike | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Run folders named by `patterns`, which may be globs.

    Folders without logits are passed over with a note (a glob names them
    too), `out` and other stacks silently.

    Raises:
      UserError: nothing is there, or the only folder named has no logits.
    """
    named: list[Path] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern)) or [pattern]
        named += [Path(path) for path in found if Path(path) not in named]
    own = Path(out).resolve() if out is not None else None
    runs = []
    for path in named:
        if path.resolve() == own or (path / "stack.json").exists():
            continue
        if any(logits_path(path, split).exists() for split in SPLITS):
            runs.append(path)
        elif not path.exists():
            raise UserError(
                f"--runs names {path}, which does not exist; train it first "
                "or correct the name"
            )
        elif path.is_dir():
            note(f"{path} has no logits yet and is left out")
    if not runs:
        raise UserError(
            f"no folder in --runs {' '.join(patterns)} holds "
            "logits/val.npz; train a model to its end first"
        )
    return runs


def read_runs(paths: Sequence[Path], splits: Sequence[str]) -> list[Run]:
    """Reads the logits of each run folder; see `read_logits`."""
    runs = []
    for path in paths:
        found = {
            split: read_logits(logits_path(path, split))
            for split in splits
            if logits_path(path, split).exists()
        }
        if not found:
            raise UserError(
                f"{path} has no logits/{splits[0]}.npz; let its training "
                "finish or leave it out of --runs"
            )
        runs.append(Run(path, found.get("val"), found.get("test")))
    return runs


def group(runs: Sequence[Run]) -> tuple[Family, ...]:
    """Sorts runs into families.

    One family is: the same `family` in the metadata; or else a `config.json`
    that differs in seed, fold and folder alone; or else, without that file,
    the same `model` and `config_hash`.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_family_key(run), []).append(run)
    models = [str(members[0].metadata["model"]) for members in groups.values()]
    families = []
    taken: set[str] = set()
    for model, members in zip(models, groups.values(), strict=True):
        name = members[0].metadata.get("family") or model
        if models.count(model) > 1 and "family" not in members[0].metadata:
            name = members[0].path.name
        while name in taken:
            name += "'"
        taken.add(name)
        families.append(Family(str(name), model, tuple(members)))
    return tuple(families)


def _family_key(run: Run) -> str:
    model = str(run.metadata["model"])
    if "family" in run.metadata:
        return f"family {run.metadata['family']}"
    try:
        config = json.loads((run.path / "config.json").read_text())
    except (OSError, ValueError):
        return f"{model} {run.metadata['config_hash']}"
    for name in _PER_RUN:
        *parents, last = name.split(".")
        inside = config
        for parent in parents:
            inside = inside.get(parent, {})
        inside.pop(last, None)
    text = json.dumps(config, sort_keys=True)
    return f"{model} {hashlib.sha256(text.encode()).hexdigest()}"


def make_table(runs: Sequence[Run], splits: Sequence[str] = SPLITS) -> Table:
    """Aligns the runs by id and checks that they speak of the same rows.

    Raises:
      UserError: runs differ in classes, folds or labels; a row was predicted
        by a model that saw it, twice, or never.
    """
    for split in splits:
        for run in runs:
            logits = getattr(run, split)
            if logits is not None:
                _check_classes(runs[0], run, logits)
    families = group(runs)
    val = test = None
    if "val" in splits:
        _check_all_have("val", runs)
        for run in runs[1:]:
            _check_folds_hash(runs[0], run)
        for run in runs:
            _check_held_out(run)
        val = _val_rows(families)
    if "test" in splits and any(run.test is not None for run in runs):
        _check_all_have("test", runs)
        test = _test_rows(families)
    return Table(
        families=families,
        classes=_any(runs[0]).classes,
        val=val,
        test=test,
        folds_hash=str(runs[0].metadata["folds_hash"]),
    )


def _any(run: Run) -> Logits:
    return run.val if run.val is not None else run.test


def _named(ids: np.ndarray) -> str:
    """Up to three ids in quotes, and how many more there are."""
    shown = ", ".join(repr(str(name)) for name in ids[:3])
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return f"id{'s' if len(ids) > 1 else ''} {shown}{more}"


def _check_all_have(split: str, runs: Sequence[Run]) -> None:
    for run in runs:
        if getattr(run, split) is None:
            raise UserError(
                f"{run.path} has no logits/{split}.npz, which the others "
                "have; let its training finish or leave it out of --runs"
            )


def _check_classes(first: Run, run: Run, logits: Logits) -> None:
    expected, found = _any(first).classes, logits.classes
    if np.array_equal(expected, found):
        return
    differing = sorted(set(expected.tolist()) ^ set(found.tolist()))
    detail = (
        f"class {differing[0]!r} is in only one of them"
        if differing
        else "they are in another order"
    )
    raise UserError(
        f"{run.path} has other classes than {first.path}: {detail}; stack "
        "only runs trained on the same labels"
    )


def _check_folds_hash(first: Run, run: Run) -> None:
    expected = first.metadata["folds_hash"]
    found = run.metadata["folds_hash"]
    if found != expected:
        raise UserError(
            f"{run.path} was trained on other folds than {first.path} "
            f"(folds_hash {found}, not {expected}), so the rows of one may "
            "have been seen by the other; train all runs on one folds file"
        )


def _check_held_out(run: Run) -> None:
    """No row of `val` may be one that the run's model was trained on."""
    logits = run.val
    unlabelled = logits.labels < 0
    if unlabelled.any():
        raise UserError(
            f"{logits_path(run.path, 'val')} has no label for "
            f"{_named(logits.ids[unlabelled])}; leave out such rows"
        )
    held_out = run.metadata.get("val_fold")
    if held_out is None:
        return
    seen = (logits.fold >= 0) & (logits.fold != held_out)
    if seen.any():
        raise UserError(
            f"{run.path} was trained on rows that it predicts: it held out "
            f"fold {held_out}, but {_named(logits.ids[seen])} belong"
            f"{'' if seen.sum() > 1 else 's'} to fold "
            f"{logits.fold[seen][0]}; export the logits of fold {held_out} "
            "alone"
        )


def _seed(run: Run) -> str:
    if "seed" in run.metadata:
        return str(run.metadata["seed"])
    try:
        config = json.loads((run.path / "config.json").read_text())
        return str(config.get("seed", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _val_rows(families: Sequence[Family]) -> Rows:
    """Validation rows, sorted by id, each from a model that held it out."""
    first = families[0]
    ids, labels, fold = _union(first)
    classes = first.runs[0].val.logits.shape[1]
    logits = np.empty((len(families), len(ids), classes), np.float32)
    for index, family in enumerate(families):
        own_ids, own_labels, own_fold = _union(family)
        _check_same_rows(first, ids, family, own_ids, "val")
        for what, known, own in (
            ("label", labels, own_labels),
            ("fold", fold, own_fold),
        ):
            if what == "fold":
                differ = (known != own) & (known >= 0) & (own >= 0)
            else:
                differ = known != own
            if differ.any():
                raise UserError(
                    f"{family.name} and {first.name} disagree on the {what} "
                    f"of {_named(ids[differ])}; train both on the same "
                    "answers and folds file"
                )
        logits[index] = _mean_over_seeds(family, ids, classes)
    return Rows(ids, logits, labels)


def _union(family: Family) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, labels, fold) of one family, by id; every seed has all rows."""
    seeds: dict[str, list[Run]] = {}
    for run in family.runs:
        seeds.setdefault(_seed(run), []).append(run)
    found = None
    for runs in seeds.values():
        ids = np.concatenate([run.val.ids for run in runs])
        unique, first, count = np.unique(
            ids, return_index=True, return_counts=True
        )
        if (count > 1).any():
            twice = unique[count > 1]
            where = [str(run.path) for run in runs if twice[0] in run.val.ids]
            raise UserError(
                f"{family.name} predicts {_named(twice)} twice with one "
                f"seed, in {' and '.join(where)}; keep one of these runs"
            )
        labels = np.concatenate([run.val.labels for run in runs])[first]
        fold = np.concatenate([run.val.fold for run in runs])[first]
        if found is None:
            found = unique, labels, fold
        elif not np.array_equal(found[0], unique):
            missing = np.setxor1d(found[0], unique)
            raise UserError(
                f"{family.name} never predicts {_named(missing)} with some "
                "of its seeds; train every seed on the same folds"
            )
    return found


def _check_same_rows(
    first: Family, ids: np.ndarray, family: Family, own: np.ndarray, split: str
) -> None:
    for lacking, other, missing in (
        (family, first, np.setdiff1d(ids, own)),
        (first, family, np.setdiff1d(own, ids)),
    ):
        if len(missing):
            raise UserError(
                f"{lacking.name} ({lacking.runs[0].path}) never predicts "
                f"{_named(missing)} of split {split}, which {other.name} "
                "does; train both on the same folds and rows"
            )


def _mean_over_seeds(
    family: Family, ids: np.ndarray, classes: int
) -> np.ndarray:
    total = np.zeros((len(ids), classes), np.float32)
    seeds = {_seed(run) for run in family.runs}
    for run in sorted(family.runs, key=lambda run: str(run.path)):
        total[np.searchsorted(ids, run.val.ids)] += run.val.logits
    return total / np.float32(len(seeds))


def _test_rows(families: Sequence[Family]) -> Rows:
    """Test rows in the first run's order, averaged over each family."""
    first = families[0]
    reference = first.runs[0].test
    ids, labels = reference.ids, reference.labels
    order = np.argsort(ids)
    classes = reference.logits.shape[1]
    logits = np.zeros((len(families), len(ids), classes), np.float32)
    for index, family in enumerate(families):
        runs = sorted(family.runs, key=lambda run: str(run.path))
        for run in runs:
            _check_same_rows(
                first,
                ids,
                Family(family.name, "", (run,)),
                run.test.ids,
                "test",
            )
            own = np.argsort(run.test.ids)
            differ = labels[order] != run.test.labels[own]
            if differ.any():
                raise UserError(
                    f"{run.path} and {first.runs[0].path} disagree on the "
                    f"label of test {_named(ids[order][differ])}; predict "
                    "the same images with both"
                )
            logits[index, order] += run.test.logits[own]
        logits[index] /= np.float32(len(runs))
    return Rows(ids, logits, labels)
