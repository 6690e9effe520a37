"""What a run recorded while it trained: `metrics.jsonl`, read.

One JSON object per line: `kind` ("train", "eval" or "rollback"), `step`,
`stage`, `epoch`, and what was measured. There is no clock in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_folder import layout


@dataclass(frozen=True)
class TrainRecord:
    """A logged training step.

    Attributes:
      step: steps done, over all stages.
      stage: from 0.
      epoch: epochs done, over all stages.
      values: `loss`, `learning_rate`, `grad_norm` and the like; what was not
        finite is left out.
      skipped: steps of the stage so far that were not finite and changed
        nothing.
    """

    step: int
    stage: int
    epoch: float
    values: Mapping[str, float]
    skipped: int = 0


@dataclass(frozen=True)
class Evaluation:
    """An evaluation on the validation rows.

    Attributes:
      step, stage, epoch: as in `TrainRecord`.
      values: the scores, such as `val_loss`.
      best: whether its checkpoint was the best so far.
      merit: the score that ranks checkpoints, its sign changed where less is
        better; None in runs that did not write it.
    """

    step: int
    stage: int
    epoch: float
    values: Mapping[str, float]
    best: bool = False
    merit: float | None = None


@dataclass(frozen=True)
class Rollback:
    """A return to an earlier checkpoint.

    Attributes:
      step, stage, epoch: of that checkpoint.
      rate: what the learning rate is multiplied by from there on.
    """

    step: int
    stage: int
    epoch: float
    rate: float = 1.0


@dataclass(frozen=True)
class History:
    """All records of one run, in their order."""

    train: tuple[TrainRecord, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    rollbacks: tuple[Rollback, ...] = ()

    @property
    def best(self) -> Evaluation | None:
        """The evaluation whose checkpoint was kept: the last marked best."""
        marked = [entry for entry in self.evaluations if entry.best]
        return marked[-1] if marked else None

    @property
    def last(self) -> TrainRecord | Evaluation | None:
        """The furthest record: not every step is logged, but the end is."""
        ends = [part[-1] for part in (self.train, self.evaluations) if part]
        return max(ends, key=lambda entry: entry.step, default=None)

    @property
    def stage_starts(self) -> list[float]:
        """Epochs at which a stage after the first begins."""
        pairs = zip(self.train[:-1], self.train[1:], strict=True)
        return [one.epoch for one, next_ in pairs if one.stage != next_.stage]


def read_history(run: Path) -> History | None:
    """Returns the run's history; None where nothing was recorded.

    A line that is not a record, as a last one cut short by a crash, is passed
    over.
    """
    try:
        text = (run / layout.METRICS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    train, evaluations, rollbacks = [], [], []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            kind = entry.pop("kind")
            step, stage = int(entry.pop("step")), int(entry.pop("stage"))
            where = step, stage, float(entry.pop("epoch"))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if kind == "train":
            skipped = int(entry.pop("skipped", 0))
            train.append(TrainRecord(*where, _numbers(entry), skipped))
        elif kind == "eval":
            best = bool(entry.pop("best", False))
            merit = _numbers({"merit": entry.pop("merit", None)}).get("merit")
            evaluations.append(Evaluation(*where, _numbers(entry), best, merit))
        elif kind == "rollback":
            rate = float(entry.get("rate", 1.0))
            rollbacks.append(Rollback(*where, rate))
    if not train and not evaluations:
        return None
    return History(tuple(train), tuple(evaluations), tuple(rollbacks))


def read_histories(run: Path) -> list[History]:
    """Returns the run's own history, or those of the folds inside it."""
    own = read_history(run)
    if own is not None:
        return [own]
    found = [read_history(fold) for fold in layout.fold_folders(run)]
    return [history for history in found if history is not None]


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in entry.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
