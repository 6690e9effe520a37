"""Learning-rate range test: one short training at ever higher rates.

Smith, "Cyclical Learning Rates for Training Neural Networks", 2017
(arXiv:1506.01186); with a rate that grows exponentially, as in fastai. The
first stage of the recipe is trained so until the loss has left its lowest value
far behind. It is the schedule `step` with a step after every batch, so that
training knows nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core import signals
from core.atomic_files import write_text
from core.errors import UserError
from reports.study import Curve, lr_range_report
from run_folder import layout
from run_folder.history import read_history
from studies import recipe_file, training
from studies.training import End

RECIPE, RUN, PAGE = "range.py", "run", "report.html"

# The loss over its fall so far, at which the test ends.
_BLOWN_UP = 1.5
# Width of the smoothing, as a share of all steps.
_SMOOTHING = 0.03


class Suggestion(NamedTuple):
    """What the curve says.

    Attributes:
      rate: where the loss falls most steeply: a peak to start from.
      lowest: where the loss is lowest: above what can be trained with.
      smooth: the smoothed loss, at each step.
    """

    rate: float
    lowest: float
    smooth: np.ndarray


def run(
    recipe: str,
    overrides: Sequence[str],
    workdir: Path,
    low: float,
    high: float,
    steps: int,
    stop: signals.StopSignals,
) -> Path | None:
    """Trains, and writes a page with the curve.

    Args:
      recipe: path and variant.
      overrides: `--config.a=b`.
      workdir: of the study.
      low: first learning rate.
      high: last learning rate.
      steps: from the one to the other.
      stop: notes signals; entered by the caller.

    Returns:
      Path of the page; None after a signal.

    Raises:
      UserError: the training failed or gives no curve, or the folder holds
        another test.
    """
    folder, path = workdir / RUN, workdir / RECIPE
    earlier = path.read_text("utf-8") if path.exists() else None
    recipe_file.write(
        path,
        f"{recipe}, its first stage as a learning-rate range test.",
        recipe,
        overrides,
        {
            "stages": "config.stages[:1]",
            "stages[0].schedule": "'step'",
            "stages[0].learning_rate": repr(low),
            "stages[0].end_rate": "0.0",
            "stages[0].step_epochs": "1e-9",  # After every step.
            "stages[0].step_factor": repr((high / low) ** (1 / (steps - 1))),
            "stages[0].patience": "0",
            # More than enough: how many steps an epoch has is not known here.
            "stages[0].epochs": repr(float(steps)),
            "epochs": "0.0",
            "eval.every_epochs": repr(float(10 * steps)),
            "log_every_steps": "1",
        },
    )
    began = (folder / layout.METRICS).exists()
    if began and earlier is not None and earlier != path.read_text("utf-8"):
        write_text(path, earlier)
        raise UserError(
            f"{workdir} holds a range test with other fields; give the same "
            "ones, or choose another --workdir"
        )
    with training.claim(folder) as lock:
        if lock is None:
            raise UserError(f"another process is at work in {workdir}")
        if not _is_over(folder, steps):
            ended = training.train(
                folder,
                [f"--config={path}"],
                lock,
                stop,
                lambda: _is_over(folder, steps),
            )
            if ended.how is End.STOPPED:
                return None
            if ended.how is End.FAILED and "diverged" not in ended.reason:
                raise UserError(ended.reason)
    rates, losses = _curve(folder, steps)
    found = suggest(rates, losses)
    print(
        f"the loss falls most steeply at {found.rate:.2g} and is lowest at "
        f"{found.lowest:.2g}: try --config.stages[0].learning_rate="
        f"{found.rate:.2g}"
    )
    return lr_range_report(
        workdir / PAGE,
        recipe,
        Curve(rates, losses, found.smooth),
        found.rate,
        found.lowest,
    )


def suggest(rates: np.ndarray, losses: np.ndarray) -> Suggestion:
    """Reads the curve.

    Args:
      rates: float [T], ascending by a constant factor.
      losses: float [T], of single batches.

    Raises:
      UserError: it is too short, or the loss never falls.
    """
    if len(losses) < 10:
        raise UserError(
            f"there are {len(losses)} losses, too few for a curve; lower "
            "--low, or take more --steps"
        )
    smooth = _smoothed(losses)
    lowest = int(smooth.argmin())
    if lowest < 2:
        raise UserError(
            "the loss rises from the first step on; lower --low, such as to "
            f"{rates[0] / 100:.1g}"
        )
    slope = np.gradient(smooth, np.log(rates))
    steepest = int(slope[: lowest + 1].argmin())
    return Suggestion(float(rates[steepest]), float(rates[lowest]), smooth)


def _smoothed(losses: np.ndarray) -> np.ndarray:
    """A moving average on both sides, so that nothing is shifted."""
    at = np.arange(len(losses))
    width = max(1.0, _SMOOTHING * len(losses))
    weights = np.exp(-0.5 * ((at[:, None] - at) / width) ** 2)
    return weights @ losses / weights.sum(axis=1)


def _curve(folder: Path, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Rates and losses of the first way up, before any rollback."""
    history = read_history(folder)
    rates, losses = [], []
    for record in history.train[:steps] if history else ():
        if rates and record.values["learning_rate"] <= rates[-1]:
            break
        if "loss" not in record.values:
            break
        rates.append(record.values["learning_rate"])
        losses.append(record.values["loss"])
    if not rates:
        raise UserError(
            f"{folder / layout.METRICS} holds no losses; see "
            f"{folder / training.LOG}"
        )
    return np.array(rates), np.array(losses)


def _is_over(folder: Path, steps: int) -> bool:
    """Whether the ramp has ended, or the loss has."""
    history = read_history(folder)
    if history is None or not history.train:
        return False
    if history.rollbacks or history.train[-1].step >= steps:
        return True
    losses = [r.values.get("loss", math.inf) for r in history.train]
    if len(losses) < 10 or not math.isfinite(losses[-1]):
        return len(losses) >= 10
    smooth = _smoothed(np.array(losses))
    fall = smooth[0] - smooth.min()
    return bool(smooth[-1] > smooth.min() + _BLOWN_UP * max(fall, 1e-3))
