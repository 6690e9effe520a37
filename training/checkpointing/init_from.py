"""What a run takes over: an encoder's weights, or another run as a teacher."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from configs import loading
from core import paths
from core.errors import UserError
from run_folder import layout
from training.checkpointing import weight_files
from training.checkpointing.reader import CheckpointReader
from training.checkpointing.run_weights import Run
from training.loop.state import AbstractModel
from training.multihost import comm
from training.tasks import registry

Encoder = Run | weight_files.WeightFile


def open_run(
    name: str,
    workdir: Path,
    fold: int,
    field: str,
    pin: dict[str, Any] | None = None,
) -> Run:
    """Opens a run folder to take weights from; changes nothing in it.

    To be called in all processes, which see the same folder.

    Args:
      name: a path, or the bare name of a run that lies beside `workdir` (or,
        for one fold of a run over all folds, beside the whole of it).
      workdir: this run's folder.
      fold: this run's; of a run over all folds the same one is taken.
      field: of the config that names the folder, for the error.
      pin: `Run.pin` of the weights that were taken before; None takes the
        best ones.

    Raises:
      UserError: it holds no evaluated checkpoint, or not those weights.
    """
    where, plain, identity = comm.run_on_primary(
        lambda: _read(_find(name, workdir, fold), field)
    )
    run, config = paths.make_path(where), loading.from_plain(plain)
    saved = CheckpointReader(run / layout.CHECKPOINTS)
    step = saved.best() if pin is None else pin["step"]
    if step is None:
        raise UserError(
            f"{field} names {run}, which has no evaluated checkpoint yet; "
            "let it train first"
        )
    found = Run(run, config, identity, step, saved)
    if pin is not None and (
        step not in saved.steps() or not _is_pinned(found, pin)
    ):
        raise UserError(
            f"{field} names {run}, and {workdir} has learned from its step "
            f"{step}, which is gone or another one since that run trained on; "
            "restore it from a copy, or choose another --workdir"
        )
    return found


def _is_pinned(found: Encoder, pin: dict[str, Any]) -> bool:
    return all(pin.get(key) == value for key, value in found.pin.items())


def _find(name: str, workdir: Path, fold: int) -> Path:
    run = paths.make_path(name)
    if len(run.parts) == 1 and not run.is_dir():
        beside = paths.absolute(workdir).parent
        near = beside / name
        run = near if near.is_dir() else beside.parent / name
    within = run / f"fold-{fold}"
    return within if within.is_dir() else run


def _read(run: Path, field: str) -> tuple[str, dict, dict]:
    """Where a run lies, its config and its identity, as JSON."""
    try:
        config = json.loads((run / layout.CONFIG).read_text("utf-8"))
        identity = json.loads((run / layout.DATA).read_text("utf-8"))
        # All that is asked of a run later must be there.
        _ = config["task"], config["model"]
        _ = identity["classes"], identity["folds_hash"], identity["rows_hash"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        or_file = ", or a file of weights" if field == "init_from" else ""
        raise UserError(
            f"{field} names {run}, which is no run folder; give the --workdir "
            f"of an earlier run{or_file}"
        ) from error
    return str(run), config, identity


def find_encoder(
    config: ConfigDict,
    workdir: Path,
    identity: dict,
    abstract_model: AbstractModel,
) -> tuple[Encoder | None, dict[str, Any]]:
    """Finds the weights that this run starts from, or has started from.

    A run that has begun needs them no more; if the config names another place
    now, the very same weights must lie there.

    Args:
      config: of this run.
      workdir: this run's folder.
      identity: of this run's data.
      abstract_model: of this run's model.

    Returns:
      What to start from, or None; and `init_from` of the run's identity (what
      names the weights, and the `mean` and `std` that they expect of images),
      or nothing.

    Raises:
      UserError: as `open_encoder`, or the weights are others.
    """

    def begun() -> list[Any]:
        named = (layout.read_config(workdir) or {}).get("init_from", "")
        pin = layout.read_data(workdir).get("init_from")
        return [layout.has_checkpoint(workdir), named, pin]

    has_begun, named, pin = comm.run_on_primary(begun)
    if not config.init_from:
        return None, {}
    if has_begun and named == config.init_from:
        return None, {"init_from": pin}
    found = open_encoder(
        config, workdir, identity, abstract_model, pin if has_begun else None
    )
    if has_begun:
        return None, {"init_from": pin or found.pin}
    return found, {"init_from": {**found.pin, **found.channels}}


def open_encoder(
    config: ConfigDict,
    workdir: Path,
    identity: dict,
    abstract_model: AbstractModel,
    pin: dict[str, Any] | None = None,
) -> Encoder:
    """Opens what `init_from` names, and checks that it may be used.

    Args:
      config: of this run.
      workdir: this run's folder.
      identity: of this run's data.
      abstract_model: of this run's model.
      pin: as `open_run`.

    Raises:
      UserError: it is neither a run nor a file of weights, of another
        architecture, or a classifier that has learned the labels of rows that
        validate here.
    """
    path = weight_files.find(config)
    opened = path and weight_files.open_file(
        path, abstract_model, config.init_names
    )
    if pin and (not _is_pinned(opened, pin) if path else "step" not in pin):
        raise UserError(
            f"init_from names {config.init_from}, and {workdir} has started "
            "from other weights; name those, or choose another --workdir"
        )
    if path:
        _caution(path)
        return opened
    run = open_run(
        config.init_from, workdir, config.data.fold, "init_from", pin
    )
    run = dataclasses.replace(run, renames=config.init_names)
    run.match(
        nnx.to_pure_dict(abstract_model.params),
        nnx.to_pure_dict(abstract_model.batch_stats),
    )
    fold = config.data.fold
    same_rows = run.identity["rows_hash"] == identity["rows_hash"]
    if registry.get(run.config.task).learns_labels:
        if same_rows:
            refuse_leak(run, identity, fold, "init_from")
        else:
            _caution(run.folder)
    elif same_rows and not _same_fold(run, identity, fold):
        print(
            f"note: {run.folder} has seen images that validate here, without "
            "their labels, so scores may be a little too high; a run over the "
            f"same folds with --config.data.fold={fold} has not"
        )
    return run


def _same_fold(run: Run, identity: Mapping[str, Any], fold: int) -> bool:
    same_folds = run.identity["folds_hash"] == identity["folds_hash"]
    return same_folds and run.config.data.fold == fold


def _caution(source: Path) -> None:
    """Says that nobody can tell whether scores are honest."""
    print(
        f"note: if images that validate here were among those that {source} "
        "has learned from, their scores are too high"
    )


def refuse_leak(
    run: Run, identity: Mapping[str, Any], fold: int, field: str
) -> None:
    """Refuses a run that has learned the labels of rows that validate here.

    Args:
      run: the opened run.
      identity: of this run's data.
      fold: this run's.
      field: of the config that names the run.

    Raises:
      UserError: its folds are others.
    """
    if not _same_fold(run, identity, fold):
        raise UserError(
            f"{field} names {run.folder}, which was trained on rows that "
            "validate here, so scores would be too high; take a run over the "
            f"same folds with --config.data.fold={fold}"
        )
