"""Runs in, one table out: rows aligned by id, or a sentence on why not.

The runs of one seed cover the validation rows in parts, one per fold, or in
one piece where training has joined the folds; their test logits are averaged.
Several seeds are averaged everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import UserError
from run_folder.predictions import Logits
from stacking.oof_checks import check_held_out, groups_of, named
from stacking.runs import (
    SPLITS,
    Family,
    Run,
    by_seed,
    check_parts,
    group,
)


@dataclass(frozen=True)
class Rows:
    """One split, the same rows for every family.

    Attributes:
      ids: str [N].
      logits: float32 [M, N, C].
      labels: int32 [N], -1 where unknown.
      groups: str [N], rows that folds keep together; None without groups.
    """

    ids: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None


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


def make_table(runs: Sequence[Run], splits: Sequence[str] = SPLITS) -> Table:
    """Aligns the runs by id and checks that their rows are the same.

    Raises:
      UserError: runs differ in classes, folds or labels; a row was predicted
        by a model that saw it, twice, or never.
    """
    check_parts(runs)
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
            check_held_out(run)
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


def _val_rows(families: Sequence[Family]) -> Rows:
    """Validation rows, sorted by id, each from a model that held it out."""
    first = families[0]
    ids, labels, fold = _union(first)
    classes = first.runs[0].val.logits.shape[1]
    logits = np.empty((len(families), len(ids), classes), np.float32)
    for index, family in enumerate(families):
        own_ids, own_labels, own_fold = _union(family)
        _check_same_rows(
            (first, ids), (family, own_ids), "val", _fold_hint(fold, own_fold)
        )
        _check_agree(
            f"{family.name} and {first.name}",
            ids,
            (labels, fold),
            (own_labels, own_fold),
        )
        logits[index] = _mean_over_seeds(family, ids, classes)
    runs = itertools.chain.from_iterable(one.runs for one in families)
    return Rows(ids, logits, labels, groups_of(runs, ids))


def _union(family: Family) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, labels, fold) of one family, by id; every seed has all rows."""
    found = None
    for runs in by_seed(family):
        ids = np.concatenate([run.val.ids for run in runs])
        unique, first, count = np.unique(
            ids, return_index=True, return_counts=True
        )
        if (count > 1).any():
            twice = unique[count > 1]
            where = [str(run.path) for run in runs if twice[0] in run.val.ids]
            raise UserError(
                f"{family.name} predicts {named(twice)} twice with one "
                f"seed, in {' and '.join(where)}; keep one of these runs"
            )
        labels = np.concatenate([run.val.labels for run in runs])[first]
        fold = np.concatenate([run.val.fold for run in runs])[first]
        if found is None:
            found = unique, labels, fold
            continue
        if not np.array_equal(found[0], unique):
            missing = np.setxor1d(found[0], unique)
            raise UserError(
                f"{family.name} never predicts {named(missing)} with some "
                "of its seeds; train every seed on the same folds"
            )
        _check_agree(
            f"the seeds of {family.name}", unique, found[1:], (labels, fold)
        )
    return found


def _check_agree(who, ids: np.ndarray, one, other) -> None:
    """`one` and `other` are (labels [N], fold [N]); -1 agrees with all."""
    for what, first, second in zip(("label", "fold"), one, other, strict=True):
        differ = (first != second) & (first >= 0) & (second >= 0)
        if differ.any():
            raise UserError(
                f"{who} disagree on the {what} of {named(ids[differ])}; "
                "train all on the same answers and folds file"
            )


def _check_same_rows(
    one: tuple[Family, np.ndarray],
    two: tuple[Family, np.ndarray],
    split: str,
    hint: str = "train both on the same folds and rows",
) -> None:
    """Both are a family and its ids, sorted or not."""
    for (lacking, own), (other, ids) in ((two, one), (one, two)):
        missing = np.setdiff1d(ids, own)
        if len(missing):
            raise UserError(
                f"{lacking.name} ({lacking.runs[0].path}) never predicts "
                f"{named(missing)} of split {split}, which {other.name} "
                f"does; {hint}"
            )


def _fold_hint(*folds: np.ndarray) -> str:
    """What to do about rows that one family has and the other has not."""
    sets = [np.unique(fold[fold >= 0]).tolist() for fold in folds]
    if not all(sets) or sets[0] == sets[1]:
        return "train both on the same folds and rows"
    one, other = (", ".join(map(str, each)) for each in sets)
    return (
        f"one validates fold {one}, the other fold {other}: train both on "
        "all folds, or give runs of the same single fold"
    )


def _mean_over_seeds(
    family: Family, ids: np.ndarray, classes: int
) -> np.ndarray:
    total = np.zeros((len(ids), classes), np.float32)
    seeds = by_seed(family)
    for run in itertools.chain.from_iterable(seeds):
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
        seeds = by_seed(family)
        # Each seed counts the same, in however many parts its folds come.
        for runs in seeds:
            share = np.float32(1 / (len(seeds) * len(runs)))
            for run in runs:
                alone = Family(family.name, "", (run,))
                _check_same_rows((first, ids), (alone, run.test.ids), "test")
                own = np.argsort(run.test.ids)
                differ = labels[order] != run.test.labels[own]
                if differ.any():
                    raise UserError(
                        f"{run.path} and {first.runs[0].path} disagree on the "
                        f"label of test {named(ids[order][differ])}; predict "
                        "the same images with both"
                    )
                logits[index, order] += share * run.test.logits[own]
    return Rows(ids, logits, labels)
