"""The log of a run: metrics.jsonl for programs, progress lines for people."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from core.durations import duration
from core.errors import UserError
from training.loop import stages
from training.loop.input_stall import InputStallMonitor
from training.loop.metrics_log import MetricsLog
from training.loop.stages import Stage
from training.loop.telemetry import Listener
from training.loop.throughput import Throughput

SECONDS_BETWEEN_LINES = 5.0

# So many steps in a row without a finite loss and gradient are a divergence.
STEPS_TO_DIVERGE = 10

# The stage that diverged goes on at this share of its learning rate.
RATE_AFTER_ROLLBACK = 0.3


class Diverged(UserError):
    """The loss or the gradients are not finite any more."""


class Recorder:
    """Logs steps and evaluations, keeps the best score, estimates the time.

    `metrics.jsonl` holds one JSON object per logged step or evaluation and no
    clock, so a run that was stopped and continued leaves the very bytes of
    one that was not. Console lines are plain, so that they read the same in a
    terminal, a log file and a notebook.

    Args:
      path: metrics.jsonl; made if absent.
      history: of the checkpoint from which the run goes on, `{}` for a new
        run. What was logged after it will be logged again, so it is cut off.
      plan: all stages.
      every_steps: of which steps metrics.jsonl tells.
      remedy: what to change when the device waits for images.
      listeners: hear of every entry, and beside them of the speed; closed
        with the file.

    Raises:
      UserError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        history: dict[str, Any],
        plan: Sequence[Stage],
        every_steps: int,
        remedy: str = "",
        listeners: Sequence[Listener] = (),
    ):
        self._listeners, self._began = listeners, time.perf_counter()
        self._input_stall = InputStallMonitor(remedy)
        self._every = every_steps
        # Index of the stage that goes on at a lower rate; once in a run.
        self._rolled_back = history.get("rolled_back")
        self._plan = plan
        self._spoke = -math.inf
        self._log = MetricsLog(path)
        self._go_back_to(history)

    def _go_back_to(self, history: dict[str, Any]) -> None:
        """Forgets what came after a checkpoint."""
        self._best = history.get("best")
        # Evaluations of this stage since the best one.
        self._stale = history.get("stale", {"stage": -1, "evaluations": 0})
        self._last: tuple[int, dict[str, jax.Array]] | None = None
        self._pending = False  # whether the last step is still to be logged
        self._clock = Throughput()
        self._log.truncate(history.get("log_bytes", 0))

    def start_stage(
        self,
        stage: Stage,
        rates: dict[str, optax.Schedule],
        advice: Callable[[dict[str, float]], str] = lambda measured: "",
    ) -> None:
        """Tells that the following steps are of `stage`.

        Args:
          stage: of the plan.
          rates: its learning rates by name, functions of the step inside
            the stage; lines for people print the first.
          advice: what a logged step's numbers make the task say; '' says
            nothing. Printed once a stage.
        """
        self._stage, self._rates, self._advice = stage, rates, advice
        self._clock = Throughput()  # Compilation is not what the steps take.
        self._input_stall.pause()
        if self._stale["stage"] != stage.index:
            self._stale = {"stage": stage.index, "evaluations": 0}
        print(
            f"stage {stage.index + 1} of {len(self._plan)}: compiling the step "
            "(kept, so the next start is faster)",
            flush=True,
        )

    def fetch(self, batches: Iterator[Any]) -> Any:
        """Returns the next batch, noting whether the device waits for it."""
        return self._input_stall.fetch(batches)

    def step(self, step: int, measured: dict[str, jax.Array]) -> None:
        """Notes that a step was dispatched.

        Args:
          step: global number of the step.
          measured: by the train step, scalars on the device. Fetched one
            step later, so that the device never waits for the host.

        Raises:
          Diverged: too many steps in a row were not finite.
        """
        self._input_stall.dispatched(measured)
        self._report()
        if self._last is not None:
            # At most one step waits behind the one that runs: a stop then
            # takes two steps, and batches do not pile up on the device.
            # A divergence between two logged steps would go unnoticed.
            self._check(*self._last)
        self._clock.start()
        self._last = (step, measured)
        self._pending = step % self._every == 0

    def finish_steps(self) -> bool:
        """Waits for the steps so far; call before evaluating or saving.

        Returns:
          Whether the last step was finite. In the middle of skipped steps
          there is nothing new to evaluate, and nothing good to go back to.

        Raises:
          Diverged: too many steps in a row were not finite.
        """
        self._report()
        finite = True
        if self._last is not None:
            finite = self._fetch_last()[1]["skipped_in_a_row"] == 0
        self._clock.stop()
        self._input_stall.pause()
        return finite

    def evaluation(
        self, step: int, scores: dict[str, float], metric: str, merit: float
    ) -> None:
        """Logs an evaluation and says whether it is the best so far.

        Args:
          step: after which it was made.
          scores: by name.
          metric: name of the score that ranks checkpoints.
          merit: that score, with its sign changed where less is better.

        Raises:
          Diverged: a score is not finite.
        """
        if not all(math.isfinite(value) for value in scores.values()):
            raise self._diverged(step, f"the evaluation gave {scores}")
        best = self._best is None or merit > self._best["merit"]
        self._stale["evaluations"] += 1
        if best:
            value = scores[metric]
            self._best = {"step": step, "merit": merit, "value": value}
            self._stale["evaluations"] = 0
        self._write("eval", step, {**scores, "merit": merit, "best": best})
        self._tell_speed(step, None)
        listed = "  ".join(f"{name} {v:.4f}" for name, v in scores.items())
        remark = (
            "best so far"
            if best
            else f"best {self._best['value']:.4f} at step {self._best['step']}"
        )
        print(f"{self._where(step)}  {listed}  ({remark})", flush=True)

    def roll_back(
        self, stage: Stage, step: int, history: dict[str, Any], why: Diverged
    ) -> None:
        """Goes back to a checkpoint, from which `stage` learns more slowly.

        Args:
          stage: the one that diverged.
          step: global step of the checkpoint, 0 for the start of the run.
          history: of the checkpoint.
          why: what happened.

        Raises:
          Diverged: there was a rollback already; `why` itself.
        """
        if self._rolled_back is not None:
            raise why
        self._go_back_to(history)
        self._stage, self._rolled_back = stage, stage.index
        self._write("rollback", step, {"rate": RATE_AFTER_ROLLBACK})
        print(
            f"{str(why).partition(';')[0]}; going back to step {step:,}, "
            f"once, with {RATE_AFTER_ROLLBACK:g} times the learning rate",
            flush=True,
        )

    def rate_factor(self, stage: Stage) -> float:
        """Returns what the learning rates of `stage` are multiplied by."""
        rolled_back = self._rolled_back == stage.index
        return RATE_AFTER_ROLLBACK if rolled_back else 1.0

    @property
    def out_of_patience(self) -> bool:
        """Whether early stopping ends the stage here (Prechelt 1998)."""
        patience = self._stage.config.patience
        return 0 < patience <= self._stale["evaluations"]

    def history(self, step: int) -> dict[str, Any]:
        """Returns what a checkpoint must remember; the log is on disk then.

        Args:
          step: after which the checkpoint is taken.

        Raises:
          UserError: the log cannot be written to the disk.
        """
        self._log.sync()
        return {
            "log_bytes": self._log.size(),
            "best": self._best,
            "stale": dict(self._stale),
            "rolled_back": self._rolled_back,
            # Early stopping leaves the rest of a stage out.
            "resume_step": self._stage.end if self.out_of_patience else step,
        }

    def close(self) -> None:
        """Closes the file, and then what may fail to be closed."""
        self._input_stall.close()
        self._log.close()
        for listener in self._listeners:
            listener.close()

    def _report(self) -> None:
        if not self._pending:
            return
        self._pending = False
        step, measured = self._fetch_last()
        done = step - 1 - self._stage.start
        factor = self.rate_factor(self._stage)
        rates = {
            name: factor * float(rate(done))
            for name, rate in self._rates.items()
        }
        skipped = measured.pop("skipped")
        del measured["skipped_in_a_row"]
        first = {"loss": measured.pop("loss"), **rates}
        first["grad_norm"] = measured.pop("grad_norm")
        measured = {**first, **measured}  # Then what the loss tells.
        if skipped:
            measured["skipped"] = int(skipped)
        self._write("train", step, measured)
        if advice := self._advice(measured):
            print(advice, flush=True)
            self._advice = lambda measured: ""
        images = stages.images_until(self._plan, step)
        speed = self._clock.advance(images)
        self._tell_speed(step, speed)
        if complaint := self._input_stall.complaint():
            print(complaint, flush=True)
        if speed is None or self._clock.now - self._spoke < (
            SECONDS_BETWEEN_LINES
        ):
            return
        left = stages.images_until(self._plan, self._plan[-1].end) - images
        if self._spoke < 0:
            print(
                f"estimated time: {duration(left / speed)} for the "
                f"{self._plan[-1].end - step:,} steps to go, evaluations "
                "not counted",
                flush=True,
            )
        self._spoke = self._clock.now
        print(
            f"{self._where(step)}  loss {measured['loss']:.4f}  "
            f"lr {next(iter(rates.values())):.2e}  {speed:,.0f} img/s  "
            f"eta {duration(left / speed)}{self._input_stall.remark()}"
            + (f"  {skipped:.0f} steps skipped, not finite" if skipped else ""),
            flush=True,
        )

    def _fetch_last(self) -> tuple[int, dict[str, float]]:
        step, measured = self._last
        self._check(step, measured)
        return step, {k: float(v) for k, v in jax.device_get(measured).items()}

    def _check(self, step: int, measured: dict[str, jax.Array]) -> None:
        """Waits for `step`, and for an end to what is not finite any more."""
        count = int(measured["skipped_in_a_row"])
        if count >= STEPS_TO_DIVERGE:
            raise self._diverged(step, f"{count} steps in a row not finite")

    def _diverged(self, step: int, what: str) -> Diverged:
        return Diverged(
            f"the training diverged by step {step} ({what}); lower "
            f"stages[{self._stage.index}].learning_rate or set its clip_norm "
            "to 1.0, in a new --workdir"
        )

    def _epoch(self, step: int) -> float:
        """Epochs done over all stages."""
        return sum(
            min(max(step - stage.start, 0), stage.steps) / stage.steps_per_epoch
            for stage in self._plan
        )

    def _where(self, step: int) -> str:
        total = self._plan[-1].end
        width = len(str(total))
        epochs = f"{self._epoch(total):.1f}".removesuffix(".0")
        return (
            f"step {step:{width}}/{total}  epoch {self._epoch(step):.1f}"
            f"/{epochs}"
        )

    def _write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        record = {
            "kind": kind,
            "step": step,
            "stage": self._stage.index,
            "epoch": round(self._epoch(step), 4),
            # JSON has no NaN: all steps since the last line were skipped.
            **{k: None if v != v else v for k, v in values.items()},
        }
        self._log.append(json.dumps(record).encode() + b"\n")
        for listener in self._listeners:
            listener.record(record)

    def _tell_speed(self, step: int, speed: float | None) -> None:
        """Tells the listeners what metrics.jsonl must not depend on."""
        entry = {
            "kind": "speed",
            "step": step,
            "epoch": round(self._epoch(step), 4),
            "seconds": round(time.perf_counter() - self._began, 3),
            "images_per_second": speed and round(speed, 3),
            "waiting": self._input_stall.share,
        }
        for listener in self._listeners:
            listener.record(entry)
