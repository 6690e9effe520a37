"""The stages of a run laid end to end on one axis of global steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict

from configs import common
from training import config as config_lib
from training.loop import schedules

# Patterns of parameter groups that have a name.
_NAMES = {common.HEAD: "head", common.ENCODER: "encoder"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage with its place in the run.

    Attributes:
      index: 0-based.
      config: a `configs.common.stage`.
      start: global step before its first step.
      steps: its length.
      steps_per_epoch: batches that make up one pass over the training rows.
      eval_every: steps between evaluations; the last step always has one.
    """

    index: int
    config: ConfigDict
    start: int
    steps: int
    steps_per_epoch: int
    eval_every: int

    @property
    def end(self) -> int:
        """Global step after its last step."""
        return self.start + self.steps

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation follows global step `step`."""
        done = step - self.start
        return done % self.eval_every == 0 or step == self.end

    def describe(self) -> str:
        """Returns the stage in one line, for people."""
        c = self.config
        rates = f"{c.learning_rate:.2g}"
        if c.schedule == "one_cycle":
            rates = f"{c.learning_rate * c.start_factor:.2g} -> {rates}"
        if c.schedule not in ("constant", "step"):
            rates += f" -> {c.end_rate:.2g}"
        words = [
            f"{c.epochs:g} epochs = {self.steps:,} steps of {c.batch_size}",
            f"{c.schedule} lr {rates}",
            f"weight decay {c.weight_decay:g}",
        ]
        for row in c.param_groups:
            kind = "frozen" if row.frozen else f"at {row.rate:g} times the rate"
            words.append(f"{_NAMES.get(row.match, row.match)} {kind}")
        if c.layer_decay != 1:
            words.append(f"layer decay {c.layer_decay:g}")
        if c.patience:
            words.append(f"patience {c.patience}")
        return ", ".join(words)


def plan_stages(config: ConfigDict, num_train: int) -> list[Stage]:
    """Returns the stages of `config` for `num_train` training rows.

    An epoch is floor(rows / batch) steps, at least one; batches run on over
    epoch edges, so no row is left out by that.
    """
    stages, start = [], 0
    for index, stage in enumerate(config_lib.scaled_stages(config)):
        per_epoch = max(1, num_train // stage.batch_size)
        steps = max(1, round(stage.epochs * per_epoch))
        every = max(1, round(config.eval.every_epochs * per_epoch))
        stages.append(Stage(index, stage, start, steps, per_epoch, every))
        start += steps
    return stages


def stage_after(stages: Sequence[Stage], step: int) -> Stage | None:
    """Returns the stage that trains global step `step + 1`; None at the end."""
    return next((stage for stage in stages if step < stage.end), None)


def stage_of(stages: Sequence[Stage], step: int) -> Stage:
    """Returns the stage that trained global step `step`, 1 or later."""
    return next(stage for stage in stages if step <= stage.end)


def rates_over(stages: Sequence[Stage], points: int = 400) -> list[dict]:
    """Returns the learning rates of a run at `points` steps or fewer.

    Each dict has `epoch`, `stage` and the rates that a run logs; the first
    and the last step of every stage are among them.
    """
    every = max(1, stages[-1].end // points)
    found, epochs = [], 0.0
    for stage in stages:
        rates = schedules.logged_rates(
            stage.config, stage.steps, stage.steps_per_epoch
        )
        for step in sorted({*range(0, stage.steps, every), stage.steps - 1}):
            found.append(
                {
                    "epoch": epochs + step / stage.steps_per_epoch,
                    "stage": stage.index,
                    **{name: float(at(step)) for name, at in rates.items()},
                }
            )
        epochs += stage.steps / stage.steps_per_epoch
    return found


def images_until(stages: Sequence[Stage], step: int) -> int:
    """Returns how many images the first `step` steps train on."""
    return sum(
        min(max(step - stage.start, 0), stage.steps) * stage.config.batch_size
        for stage in stages
    )
