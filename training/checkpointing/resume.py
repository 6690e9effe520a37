"""Where a run goes on from: the newest good checkpoint, the best weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from core.errors import UserError
from training.checkpointing.manager import Checkpoints
from training.checkpointing.reader import Damaged
from training.loop import stages
from training.loop.stages import Stage
from training.loop.state import Blueprint, TrainState, stage_like, weights_like


class Point(NamedTuple):
    """A point of a run.

    Attributes:
      step: global steps that need not be trained any more.
      history: what the checkpoint remembers (`Recorder.history`); empty at
        the start.
      state: of the stage that is under way; None where one begins.
    """

    step: int
    history: dict[str, Any]
    state: TrainState | None


def newest(
    saved: Checkpoints, plan: Sequence[Stage], blueprint: Blueprint, mesh: Mesh
) -> Point:
    """Returns the newest point that is whole; damaged ones are set aside.

    Args:
      saved: the run's checkpoints.
      plan: its stages.
      blueprint: of its model.
      mesh: to place the state on.

    Raises:
      UserError: there are checkpoints, but no good one.
    """
    while (step := saved.latest()) is not None:
        try:
            history = saved.history(step)
            go_on_from = history["go_on_from"]
            stage = stages.stage_after(plan, go_on_from)
            if stage is None or go_on_from == stage.start:
                return Point(go_on_from, history, None)
            like = stage_like(blueprint, stage.config, mesh)
            return Point(go_on_from, history, saved.load(step, like))
        except Damaged as damaged:
            saved.set_aside(damaged)
    return Point(0, {}, None)


def best_weights(
    saved: Checkpoints, plan: Sequence[Stage], blueprint: Blueprint, mesh: Mesh
) -> tuple[int, dict, dict]:
    """Returns (step, params, batch_stats) of the best checkpoint so far.

    Args:
      saved: the run's checkpoints.
      plan: its stages.
      blueprint: of its model.
      mesh: to place the weights on.

    Raises:
      UserError: no evaluated checkpoint is good.
    """
    params, batch_stats = weights_like(blueprint, mesh)
    like = {"params": params, "batch_stats": batch_stats}
    while (step := saved.best()) is not None:
        try:
            if stages.stage_of(plan, step).config.ema_decay > 0:
                weights = saved.load(step, {"ema": like})["ema"]
            else:
                weights = saved.load(step, like)
        except Damaged as damaged:
            saved.set_aside(damaged)
        else:
            return step, weights["params"], weights["batch_stats"]
    raise UserError(
        "no good checkpoint with an evaluation is left; restore one from a "
        "copy, or delete the run folder to start over"
    )
