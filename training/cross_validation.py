"""One model per fold: k runs, joined into out-of-fold predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import reports
from core.errors import UserError
from metrics import classification
from run_folder.layout import logits_path
from run_folder.predictions import (
    Logits,
    read_logits,
    write_logits,
)
from training.config import Arguments


def check(arguments: Arguments) -> None:
    """Refuses a folder that holds a run over one fold.

    Raises:
      UserError: which folder.
    """
    if (arguments.workdir / "config.json").exists():
        raise UserError(
            f"{arguments.workdir} holds a run over one fold, whose logits "
            "those of all folds would replace; choose another --workdir"
        )


def arguments_of(arguments: Arguments) -> Iterator[Arguments]:
    """Yields the command line of each fold's run, in `<workdir>/fold-<k>`.

    All of them read one folds file, `<workdir>/folds.csv` unless
    `data.folds_file` names another.
    """
    for fold in range(arguments.config.data.folds):
        config = arguments.config.copy_and_resolve_references()
        config.data.fold = fold
        if not config.data.folds_file:
            config.data.folds_file = str(arguments.workdir / "folds.csv")
        workdir = arguments.workdir / f"fold-{fold}"
        yield dataclasses.replace(arguments, config=config, workdir=workdir)


def join(arguments: Arguments) -> str:
    """Writes the logits of all folds together, and a report on them.

    `<workdir>/logits/val.npz` has every labelled row once, predicted by the
    model that did not see it; `test.npz` has the mean over the models.
    Nothing is written for a task without logits.

    Returns:
      A sentence on the out-of-fold score.

    Raises:
      UserError: the folds' files do not belong together; which.
      RuntimeError: a row came twice; a bug, never a higher score.
    """
    workdir = arguments.workdir
    runs = [fold.workdir for fold in arguments_of(arguments)]
    if arguments.config.task == "mae":
        return f"{len(runs)} encoders in {workdir}"
    parts = [read_logits(logits_path(run, "val")) for run in runs]
    _check_alike(runs, parts)
    ids = np.concatenate([part.ids for part in parts])
    if len(np.unique(ids)) < len(ids):
        raise RuntimeError("a row was held out by two folds")
    whole = Logits(
        ids=ids,
        logits=np.concatenate([part.logits for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        classes=parts[0].classes,
        fold=np.concatenate([part.fold for part in parts]),
        metadata=_metadata(parts[0], runs),
    )
    write_logits(logits_path(workdir, "val"), whole)
    if logits_path(runs[0], "test").exists():
        parts = [read_logits(logits_path(run, "test")) for run in runs]
        _check_alike(runs, parts)
        mean = np.mean([part.logits for part in parts], axis=0)
        metadata = _metadata(parts[0], runs)
        write_logits(
            logits_path(workdir, "test"),
            dataclasses.replace(parts[0], logits=mean, metadata=metadata),
        )
    score = classification.macro_f1(
        whole.labels, whole.logits.argmax(1), len(whole.classes)
    )
    return (
        f"out-of-fold macro-F1 {score:.4f} over {len(ids):,} rows; logits in "
        f"{workdir / 'logits'}, report in {reports.run_report(workdir)}"
    )


def _metadata(part: Logits, runs: list[Path]) -> dict:
    metadata = {k: v for k, v in part.metadata.items() if k != "val_fold"}
    return {**metadata, "fold_runs": [run.name for run in runs]}


def _check_alike(runs: list[Path], parts: list[Logits]) -> None:
    first = parts[0]
    for run, part in zip(runs, parts, strict=True):
        same = np.array_equal(part.classes, first.classes)
        for key in ("model", "folds_hash", "tta_views"):
            same &= part.metadata[key] == first.metadata[key]
        if part.fold.max() < 0:  # Test rows: the same ones in each.
            same &= np.array_equal(part.ids, first.ids)
        if not same:
            raise UserError(
                f"the logits in {run} and {runs[0]} are of different classes, "
                "folds, models or rows; delete the one that is out of date "
                "and run the same command again"
            )
