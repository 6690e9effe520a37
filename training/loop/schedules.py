"""Learning-rate schedules, in NumPy.

A schedule maps the step inside a stage, 0 to T - 1, to a rate. The first
step uses schedule(0) and the last uses schedule(T - 1), so a stage ends
exactly at its floor. The compiled step reads tables: every operation of JAX
outside of it would be compiled on its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

# A step, or an array of steps, to rates.
Schedule = Callable[[np.ndarray], np.ndarray]


def make_schedule(
    stage: ConfigDict, steps: int, steps_per_epoch: int, rate: float = 1.0
) -> Schedule:
    """Returns the stage's learning rate as a function of its own step.

    one_cycle: Smith & Topin 2018, with cosine annealing both ways as in
    torch's OneCycleLR. cosine and warm_restarts: Loshchilov & Hutter 2017
    (SGDR); a last cycle that the stage would cut is shortened to end at the
    floor. warmup_cosine: a straight line up from peak / warm-up steps, then
    cosine (Goyal et al. 2017). step: times `step_factor` every `step_epochs`.
    time_decay: the peak / (1 + `time_decay` * epochs), always of the peak and
    not, as is easily written, of the rate before.

    Args:
      stage: a `configs.common.stage`.
      steps: length of the stage, T.
      steps_per_epoch: converts `restart_epochs` and `step_epochs` to steps.
      rate: of a parameter group: factor of the peak. one_cycle scales its
        whole curve, as torch's does; the other schedules share the floor, as
        torch's share eta_min.

    Returns:
      A function of a step, or of an array of steps, to rates.
    """
    peak, floor = stage.learning_rate * rate, stage.end_rate
    if stage.schedule == "one_cycle":
        floor *= rate
    if stage.schedule == "constant":
        return lambda step: np.full(np.shape(step), peak)
    if stage.schedule == "cosine":
        return lambda step: _cosine(step, steps - 1, peak, floor)
    if stage.schedule == "warmup_cosine":
        return _warmup_cosine(steps, stage.warmup, peak, floor)
    if stage.schedule == "one_cycle":
        return _one_cycle(
            steps, stage.warmup, peak * stage.start_factor, peak, floor
        )
    if stage.schedule == "step":
        every = max(1, round(stage.step_epochs * steps_per_epoch))
        return lambda step: peak * stage.step_factor ** (step // every)
    if stage.schedule == "time_decay":
        decay = stage.time_decay / steps_per_epoch
        return lambda step: peak / (1 + decay * step)
    if stage.schedule == "warm_restarts":
        first = max(1, round(stage.restart_epochs * steps_per_epoch))
        return _warm_restarts(steps, first, stage.restart_factor, peak, floor)
    raise ValueError(f"no schedule is called {stage.schedule!r}")


def logged_rates(
    stage: ConfigDict, steps: int, steps_per_epoch: int
) -> dict[str, Schedule]:
    """Returns the learning rates that are worth logging, by name.

    `learning_rate` is that of the rate factor 1; a parameter group with
    another one has its own, `learning_rate_head` for the pattern `^head/`.

    Args:
      stage: a `configs.common.stage`.
      steps: length of the stage.
      steps_per_epoch: converts epochs to steps.
    """
    found = {"learning_rate": make_schedule(stage, steps, steps_per_epoch)}
    for row in stage.param_groups:
        if row.frozen or row.rate == 1:
            continue
        name = re.sub(r"\W+", "_", row.match).strip("_")
        found[f"learning_rate_{name}"] = make_schedule(
            stage, steps, steps_per_epoch, row.rate
        )
    return found


def _cosine(step, length: float, start: float, end: float) -> np.ndarray:
    """Half a cosine from `start` at step 0 to `end` at step `length`."""
    done = np.clip(step / max(length, 1), 0.0, 1.0)
    return end + (start - end) * 0.5 * (1 + np.cos(math.pi * done))


def _warmup_cosine(
    steps: int, warmup: float, peak: float, end: float
) -> Schedule:
    rising = round(warmup * steps)  # steps before the peak
    rest = steps - 1 - rising

    def schedule(step):
        up = peak * (step + 1) / (rising + 1)
        down = _cosine(step - rising, rest, peak, end)
        return np.where(step < rising, up, down)

    return schedule


def _one_cycle(
    steps: int, warmup: float, start: float, peak: float, end: float
) -> Schedule:
    top = max(warmup * steps - 1, 1.0)  # step at which the peak is reached
    rest = max(steps - 1 - top, 1.0)

    def schedule(step):
        up = _cosine(step, top, start, peak)
        down = _cosine(step - top, rest, peak, end)
        return np.where(step <= top, up, down)

    return schedule


def _warm_restarts(
    steps: int, first: int, factor: float, peak: float, floor: float
) -> Schedule:
    starts, lengths = [0], [first]
    while starts[-1] + lengths[-1] < steps:
        starts.append(starts[-1] + lengths[-1])
        lengths.append(max(1, round(lengths[-1] * factor)))
    lengths[-1] = steps - starts[-1]

    def schedule(step):
        cycle = np.searchsorted(starts, step, side="right") - 1
        position = step - np.array(starts)[cycle]
        length = np.maximum(np.array(lengths)[cycle] - 1, 1)
        return _cosine(position / length, 1, peak, floor)

    return schedule
