"""One model per fold: k runs, joined into out-of-fold predictions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import reports
from core.errors import UserError
from input_pipeline.folds import how_to_fold
from input_pipeline.sources import open_source
from run_folder import layout
from run_folder.artifacts import ArtifactWriter
from training.cli import Arguments
from training.multihost import comm
from training.tasks import registry


def train_all_folds(
    arguments: Arguments,
    train: Callable[[Arguments, contextlib.ExitStack], int],
) -> int:
    """Trains one model per fold and joins what they predict.

    Folds that are finished are passed over, so that the same command
    continues where it was stopped. To be called in all processes.

    Args:
      arguments: of the command line.
      train: trains one fold and returns an exit code; what it opens is closed
        after each fold.

    Returns:
      The exit code.

    Raises:
      UserError: as `train`, `check` and `join`.
    """
    comm.run_on_primary(lambda: check(arguments))
    for fold in arguments_of(arguments):
        print(f"fold {fold.config.data.fold} of {fold.config.data.folds}")
        with contextlib.ExitStack() as resources:
            code = train(fold, resources)
        if code or arguments.plan:
            return code
    print(comm.run_on_primary(lambda: join(arguments)))
    return 0


def check(arguments: Arguments) -> None:
    """Refuses a folder that holds a run over one fold, and data in no folds.

    Raises:
      UserError: which folder, or that the data say themselves which images
        validate.
    """
    if (arguments.workdir / layout.CONFIG).exists():
        raise UserError(
            f"{arguments.workdir} holds a run over one fold, whose logits "
            "those of all folds would replace; choose another --workdir"
        )
    config = arguments.config
    # Only these may have validation images of their own.
    kinds = ("", "masks", "records") if config.data.root else ("digit_pairs",)
    if config.data.source not in kinds:
        return
    source = open_source(config.data, Path(config.cache_dir).expanduser())
    if source.given_folds is not None:
        raise UserError(
            "--all-folds needs folds, but "
            f"{config.data.root or source.name} says itself which images "
            "validate; leave --all-folds out, or "
            f"{how_to_fold(source)}"
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
            config.data.folds_file = str(arguments.workdir / layout.FOLDS)
        workdir = layout.fold_folder(arguments.workdir, fold)
        yield dataclasses.replace(arguments, config=config, workdir=workdir)


def join(arguments: Arguments) -> str:
    """Joins what the folds have exported, as their task says, and reports.

    Returns:
      A sentence on the out-of-fold score.

    Raises:
      UserError: the folds' files do not belong together; which.
    """
    workdir = arguments.workdir
    task = registry.get(arguments.config.task)
    runs = [fold.workdir for fold in arguments_of(arguments)]
    writer = ArtifactWriter(workdir, step=0)
    writer.begin()
    message = task.join_folds(workdir, runs, writer)
    writer.finish()
    report = reports.run_report(workdir, task.report_sections(workdir))
    return f"{message}, report in {report}"
