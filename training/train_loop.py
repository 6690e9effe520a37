"""One stage of a training: where it starts from, and its steps."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from core import signals
from training.checkpointing import init_from, resume
from training.checkpointing.manager import CheckpointManager
from training.data import Data
from training.loop import evaluate, optimizer, param_groups, schedules
from training.loop import state as state_lib
from training.loop import step as step_lib
from training.loop.recorder import Recorder
from training.loop.stages import Stage
from training.loop.state import TrainState
from training.multihost import comm, sharding
from training.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share.

    Attributes:
      config: of the run.
      task: the learning problem.
      data: its examples.
      stages: all of them, in order.
      mesh: of devices.
      checkpoints: of the run.
      recorder: of steps and evaluations.
      stop: notes signals while a stage runs.
      encoder: weights to start from; None starts from nothing.
      workdir: the run folder.
    """

    config: ConfigDict
    task: Task
    data: Data
    stages: Sequence[Stage]
    mesh: Mesh
    checkpoints: CheckpointManager
    recorder: Recorder
    stop: signals.StopSignals
    encoder: init_from.Encoder | None
    workdir: Path


class Outcome(NamedTuple):
    """How a stage ended.

    Attributes:
      step: global steps that need not be trained any more.
      signal: number of the signal that stopped it; 0 if it ran to its end.
    """

    step: int
    signal: int = 0


def initial_state(run: Run, stage: Stage) -> TrainState:
    """Returns the state before the first step of a stage.

    Three sources, in this order: a later stage starts from the best weights
    of all stages before it; the first starts from freshly drawn weights, of
    which `init_from` then replaces what it has. The optimizer and
    the moving average are always fresh.
    """
    model = run.task.abstract_model
    if stage.index > 0:
        _, params, batch_stats = resume.restore_best_weights(
            run.checkpoints, run.stages, model, run.mesh
        )
        batch_stats = run.task.statistics_of_later_stages(batch_stats)
        weights = params, batch_stats
    else:
        weights = state_lib.init_weights(model, run.mesh)
        if run.encoder is not None:
            *weights, message = run.encoder.encoder_into(*weights)
            print(message)
    return state_lib.start_stage(stage.start, *weights, stage.config, run.mesh)


def make_step(run: Run, stage: Stage) -> step_lib.TrainStep:
    """Returns the jitted training step of a stage."""
    groups = param_groups.assign(
        state_lib.pure_shapes(run.task.abstract_model)[0], stage.config
    )
    return step_lib.make_train_step(
        run.task.abstract_model,
        run.task.loss(stage, run.mesh),
        stage.config,
        optimizer.rate_tables(
            stage.config,
            groups,
            stage.steps,
            stage.steps_per_epoch,
            run.recorder.rate_factor(stage),
        ),
        run.mesh,
        seed=run.config.seed,
        log_every_steps=run.config.log_every_steps,
    )


def run_stage(
    run: Run,
    stage: Stage,
    step: int,
    state: TrainState,
    evaluation: evaluate.EvalStep,
) -> Outcome:
    """Trains a stage from global step `step` to its end, or to a signal.

    Args:
      run: that it belongs to.
      stage: to train.
      step: global steps done so far.
      state: after them; donated.
      evaluation: from `evaluate.make_eval_step`.

    Raises:
      Diverged: loss, gradients or scores are not finite.
      UserError: a checkpoint cannot be written.
    """
    train_step = make_step(run, stage)
    recorder, begin = run.recorder, step
    recorder.start_stage(
        stage,
        schedules.logged_rates(
            stage.config, stage.steps, stage.steps_per_epoch
        ),
        functools.partial(run.task.advice, stage),
    )
    agreed_stop = comm.AgreedMax(run.mesh)
    evaluator = run.task.evaluator()
    sampler = run.task.sampler(run.data, run.data.stage_seed(stage))
    with contextlib.ExitStack() as deferred:
        batches = deferred.enter_context(
            contextlib.closing(run.data.train(stage, step, sampler))
        )
        # Fetched while the step before runs, so the device goes on.
        placed = (sharding.put_batch(batch, run.mesh) for batch in batches)
        compiled = False
        while step < stage.end:
            # All processes learn of a signal at the same step.
            if number := agreed_stop(run.stop.received):
                run.stop.agree(number)
                # Between skipped steps there is nothing good to save.
                if recorder.finish_steps() and step > begin:
                    run.checkpoints.save(step, state, recorder.history(step))
                run.checkpoints.wait()
                return Outcome(step, number)
            batch = recorder.fetch(placed)
            state, measured = train_step(state, batch)
            if not compiled:  # Before, there was nothing to save.
                deferred.enter_context(run.stop)
                compiled = True
            step += 1
            recorder.step(step, measured)
            if not stage.evaluates_at(step):
                continue
            if not recorder.finish_steps() and step < stage.end:
                continue  # The last step was skipped: nothing to evaluate.
            scores = evaluate.evaluate(
                evaluation,
                evaluator,
                *state.weights,
                run.data.validation(),
                run.mesh,
            )
            run.task.after_evaluation(
                step, *state.weights, run.workdir, run.mesh
            )
            merit = run.task.merit(scores, step)
            recorder.evaluation(step, scores, run.task.metric, merit)
            run.checkpoints.save(
                step, state, recorder.history(step), {**scores, "merit": merit}
            )
            if recorder.out_of_patience:
                break  # Early stopping (Prechelt 1998).
        # After this block a signal ends the process at once, unless one was
        # received before: then the run stops in order.
        run.checkpoints.wait()
    # One during the last evaluation: what is done is saved.
    if number := agreed_stop(run.stop.received):
        run.stop.agree(number)
    return Outcome(stage.end, number)
