"""What a run takes over from another one: its encoder, or it as a teacher."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from errors import UserError
from jax_models.model import HEAD
from training import sharding
from training.checkpoints import Checkpoints
from training.state import Blueprint, weights_like

# Missing names are told one by one up to this many.
NAMES_TOLD = 12


@dataclasses.dataclass(frozen=True)
class Run:
    """Another run's best weights, on disk.

    Attributes:
      folder: the run folder.
      config: its config.
      identity: its data.json: classes, folds_hash, rows_hash.
      step: of its best checkpoint so far.
    """

    folder: Path
    config: ConfigDict
    identity: dict[str, Any]
    step: int
    _checkpoints: Checkpoints

    def weights(self, blueprint: Blueprint, mesh: Mesh) -> tuple[dict, dict]:
        """Returns all of its (params, batch_stats).

        Args:
          blueprint: of the model that the run trained.
          mesh: to place them on.
        """
        params, batch_stats = weights_like(blueprint, mesh)
        like = {"params": params, "batch_stats": batch_stats}
        if self._averaged:
            loaded = self._checkpoints.load(self.step, {"ema": like})["ema"]
        else:
            loaded = self._checkpoints.load(self.step, like)
        return loaded["params"], loaded["batch_stats"]

    def encoder_into(
        self, params: dict, batch_stats: dict, mesh: Mesh
    ) -> tuple[dict, dict, str]:
        """Replaces what has the same name and shape in this run's encoder.

        Args:
          params: of a freshly initialised model.
          batch_stats: of the same.
          mesh: to place the arrays on.

        Returns:
          params, batch_stats, and a sentence that names every array which
          the other run does not have and which therefore stays as it was.

        Raises:
          UserError: nothing matches.
        """
        ours = {"params": params, "batch_stats": batch_stats}
        leaves, structure = jax.tree_util.tree_flatten_with_path(ours)
        place = sharding.replicated(mesh)
        contents = self._checkpoints.contents(self.step)
        wanted, left = {}, []
        for path, leaf in leaves:
            kind, *names = [str(key.key) for key in path]
            name = "/".join(names)
            theirs = self._path(kind, name)
            if names[0] != HEAD and contents.get(theirs) == leaf.shape:
                wanted[theirs] = jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=place
                )
            else:
                left.append(name)
        if not wanted:
            raise UserError(
                f"nothing in {self.folder} fits this model: that run trained "
                f"{self.config.model}; give --config.init_from a run of the "
                "same architecture"
            )
        found = self._checkpoints.load(self.step, wanted)
        merged = [
            found.get(self._path(str(path[0].key), _name(path[1:])), leaf)
            for path, leaf in leaves
        ]
        merged = jax.tree.unflatten(structure, merged)
        told = f"starts from the encoder in {self.folder}, step {self.step}: "
        told += f"{len(wanted)} of {len(leaves)} arrays"
        if left:
            names = ", ".join(left[:NAMES_TOLD])
            more = len(left) - NAMES_TOLD
            told += f"; initialised anew: {names}"
            told += f" and {more} more" if more > 0 else ""
        return merged["params"], merged["batch_stats"], told

    @property
    def _averaged(self) -> bool:
        contents = self._checkpoints.contents(self.step)
        return any(path.startswith("ema/") for path in contents)

    def _path(self, kind: str, name: str) -> str:
        """Where an array of a classifier lies in this run's checkpoint."""
        if self.config.task == "mae":
            name = f"encoder/{name}"
        return f"{'ema/' if self._averaged else ''}{kind}/{name}"


def open_run(name: str, workdir: Path, fold: int, field: str) -> Run:
    """Opens a run folder to take weights from; changes nothing in it.

    Args:
      name: a path, or the bare name of a run that lies beside `workdir` (or,
        for one fold of a run over all folds, beside the whole of it).
      workdir: this run's folder.
      fold: this run's; of a run over all folds the same one is taken.
      field: of the config that names the folder, for the error.

    Raises:
      UserError: it holds no evaluated checkpoint.
    """
    run = Path(name)
    if len(run.parts) == 1 and not run.is_dir():
        beside = workdir.absolute().parent
        near = beside / name
        run = near if near.is_dir() else beside.parent / name
    if (run / f"fold-{fold}").is_dir():
        run = run / f"fold-{fold}"
    try:
        config = ConfigDict(json.loads((run / "config.json").read_text()))
        identity = json.loads((run / "data.json").read_text())
        metric, _ = config.checkpoint.metric, config.task
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{field} names {run}, which is no run folder; give the --workdir "
            "of an earlier run"
        ) from error
    saved = step = None
    if (run / "checkpoints").is_dir():
        saved = Checkpoints(run / "checkpoints", metric, read_only=True)
        step = saved.best()
    if step is None:
        raise UserError(
            f"{field} names {run}, which has no evaluated checkpoint yet; "
            "let it train first"
        )
    return Run(run, config, identity, step, saved)


def check_teacher(teacher: Run, identity: dict, fold: int) -> None:
    """Refuses a teacher of other classes, or that saw validation rows.

    Args:
      teacher: the opened run.
      identity: of this run's data.
      fold: this run's.

    Raises:
      UserError: what differs.
    """
    if teacher.config.task != "classify":
        raise UserError(
            f"distill_from names {teacher.folder}, a run without a "
            "classifier; name one that classifies"
        )
    if teacher.identity["classes"] != identity["classes"]:
        raise UserError(
            f"the teacher in {teacher.folder} knows other classes; distill "
            "from a run over the same data"
        )
    same_folds = teacher.identity["folds_hash"] == identity["folds_hash"]
    if not same_folds or teacher.config.data.fold != fold:
        raise UserError(
            f"the teacher in {teacher.folder} was trained on rows that "
            "validate here, so scores would be too high; distill from a run "
            f"over the same folds with --config.data.fold={fold}"
        )


def _name(path) -> str:
    return "/".join(str(key.key) for key in path)
