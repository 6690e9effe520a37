"""Runs in, one table out: rows aligned by id, or a sentence on why not.

The runs of one seed cover the validation rows in parts, one per fold; their
test logits are averaged. Several seeds are averaged everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from errors import UserError
from stacking.logits import Logits, logits_path
from stacking.runs import SPLITS, Family, Run, group, seed_of


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
        seeds.setdefault(seed_of(run), []).append(run)
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
        else:
            for mine, other in ((labels, found[1]), (fold, found[2])):
                differ = unique[mine != other]
                if len(differ):
                    raise UserError(
                        f"the seeds of {family.name} do not agree on the "
                        f"label or the fold of {_named(differ)}; train every "
                        "seed on the same answers and folds"
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
    seeds = {seed_of(run) for run in family.runs}
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
