"""Resuming: the newest intact checkpoint, and the best weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from core.errors import UserError
from training.checkpointing.manager import CheckpointManager
from training.checkpointing.reader import CorruptCheckpointError
from training.loop import stages
from training.loop.stages import Stage
from training.loop.state import (
    AbstractModel,
    TrainState,
    abstract_state,
    abstract_weights,
)


class ResumePoint(NamedTuple):
    """Where a run resumes.

    Attributes:
      step: global steps that are done.
      history: of the checkpoint (`Recorder.history`); empty at the start.
      state: of a stage that is not finished; None at the start of a stage.
    """

    step: int
    history: dict[str, Any]
    state: TrainState | None


def restore_latest(
    saved: CheckpointManager,
    plan: Sequence[Stage],
    abstract_model: AbstractModel,
    mesh: Mesh,
) -> ResumePoint:
    """Restores the newest intact checkpoint; corrupt ones are quarantined.

    Args:
      saved: the run's checkpoints.
      plan: its stages.
      abstract_model: of its model.
      mesh: to restore the state onto.

    Raises:
      UserError: all checkpoints are corrupt.
    """
    while (step := saved.latest()) is not None:
        try:
            history = saved.history(step)
            resume_step = history["resume_step"]
            stage = stages.stage_after(plan, resume_step)
            if stage is None or resume_step == stage.start:
                return ResumePoint(resume_step, history, None)
            like = abstract_state(abstract_model, stage.config, mesh)
            return ResumePoint(resume_step, history, saved.load(step, like))
        except CorruptCheckpointError as corrupt:
            saved.quarantine(corrupt)
    return ResumePoint(0, {}, None)


def restore_best_weights(
    saved: CheckpointManager,
    plan: Sequence[Stage],
    abstract_model: AbstractModel,
    mesh: Mesh,
) -> tuple[int, dict, dict]:
    """Returns (step, params, batch_stats) of the best checkpoint so far.

    Args:
      saved: the run's checkpoints.
      plan: its stages.
      abstract_model: of its model.
      mesh: to restore the weights onto.

    Raises:
      UserError: no intact checkpoint has an evaluation.
    """
    params, batch_stats = abstract_weights(abstract_model, mesh)
    like = {"params": params, "batch_stats": batch_stats}
    while (step := saved.best()) is not None:
        try:
            if stages.stage_of(plan, step).config.ema_decay > 0:
                weights = saved.load(step, {"ema": like})["ema"]
            else:
                weights = saved.load(step, like)
        except CorruptCheckpointError as corrupt:
            saved.quarantine(corrupt)
        else:
            return step, weights["params"], weights["batch_stats"]
    raise UserError(
        "no good checkpoint with an evaluation is left; restore one from a "
        "copy, or delete the run folder to start over"
    )
