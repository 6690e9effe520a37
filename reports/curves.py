"""Training curves of one run, from its `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reports.charts import WHOLE, Line, key, line_chart


@dataclass(frozen=True)
class History:
    """What a run recorded.

    Attributes:
      train: one dict per logged step.
      evals: one dict per evaluation.
      rollbacks: one dict per return to an earlier checkpoint.
    """

    train: Sequence[dict[str, Any]]
    evals: Sequence[dict[str, Any]]
    rollbacks: Sequence[dict[str, Any]] = ()

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation whose checkpoint was kept: the last marked best.

        By whatever metric the run was told to keep. Without marks, the first
        with the highest macro-F1.
        """
        scored = [e for e in self.evals if e.get("val_macro_f1") is not None]
        marked = [entry for entry in scored if entry.get("best")]
        if marked:
            return marked[-1]
        return max(scored, key=lambda e: e["val_macro_f1"], default=None)

    @property
    def stage_starts(self) -> list[float]:
        """Epochs at which a stage after the first begins."""
        starts, previous = [], None
        for entry in self.train:
            stage = entry.get("stage", 0)
            if previous is not None and stage != previous["stage"]:
                starts.append(previous["epoch"])
            previous = {"stage": stage, "epoch": entry.get("epoch", 0.0)}
        return starts


def read_history(run: Path) -> History | None:
    """The run's history; None where it has none that can be read.

    A last line that was cut short, as by a crash, is passed over.
    """
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return None
    kinds: dict[str, list] = {"train": [], "eval": [], "rollback": []}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            kind = entry.get("kind")
            if kind in kinds and "epoch" in entry:
                kinds[kind].append(entry)
    history = History(*kinds.values())
    return history if history.train or history.evals else None


def read_histories(run: Path) -> list[History]:
    """The run's own history, or those of the folds inside it, in order."""
    folds = sorted(run.glob("fold-*"), key=lambda path: (len(path.name), path))
    own = read_history(run)
    found = [own] if own else [read_history(fold) for fold in folds]
    return [history for history in found if history is not None]


def troubles(histories: Sequence[History]) -> list[str]:
    """A sentence for each skip and each rollback; mostly none."""
    told = []
    for number, history in enumerate(histories):
        where = f"Fold {number}: " if len(histories) > 1 else ""
        skipped = {}  # The counter begins anew in each stage.
        for entry in history.train:
            if entry.get("skipped"):
                skipped[entry.get("stage", 0)] = entry["skipped"]
        for stage, count in skipped.items():
            told.append(
                f"{where}{count:,} steps of stage {stage + 1} changed nothing, "
                "because their loss or gradients were not finite."
            )
        for entry in history.rollbacks:
            told.append(
                f"{where}stage {entry.get('stage', 0) + 1} diverged and went "
                f"back to step {entry.get('step', 0):,}, to go on with "
                f"{entry.get('rate', 1):g} times its learning rate."
            )
    return told


def _line(name, entries, field, colour, dashed=False) -> Line:
    kept = [e for e in entries if isinstance(e.get(field), (int, float))]
    return Line(
        name,
        np.array([e["epoch"] for e in kept], np.float64),
        np.array([e[field] for e in kept], np.float64),
        colour,
        dashed,
    )


def loss_chart(
    histories: Sequence[History], size: tuple[int, int] = WHOLE
) -> str:
    """Training and validation loss over epochs, with its key."""
    lines = [
        _line("training loss", history.train, "loss", "var(--faint)")
        for history in histories
    ]
    lines += [
        _line("validation loss", history.evals, "val_loss", "var(--second)")
        for history in histories
    ]
    return _chart(histories, lines, "loss", size)


def score_chart(
    histories: Sequence[History], size: tuple[int, int] = WHOLE
) -> str:
    """Validation macro-F1 and accuracy over epochs; the best ones ringed."""
    lines = [
        _line("macro-F1", history.evals, "val_macro_f1", "var(--accent)")
        for history in histories
    ]
    # With classes of one size the two all but coincide: the upper is dashed.
    lines += [
        _line("accuracy", history.evals, "val_accuracy", "var(--second)", True)
        for history in histories
    ]
    bests = [history.best for history in histories if history.best]
    marks = [(best["epoch"], best["val_macro_f1"]) for best in bests]
    return _chart(histories, lines, "validation scores", size, marks)


def rate_chart(histories: Sequence[History]) -> str:
    """Learning rate over epochs; the head's too, where it has its own."""
    lines = [
        _line("learning rate", history.train, "learning_rate", "var(--second)")
        for history in histories
    ]
    lines += [
        _line("head's", history.train, "head_learning_rate", "var(--accent)")
        for history in histories
    ]
    return _chart(histories, lines, "learning rate", WHOLE)


def gradient_chart(histories: Sequence[History]) -> str:
    """Norm of the gradient over epochs."""
    lines = [
        _line("gradient norm", history.train, "grad_norm", "var(--faint)")
        for history in histories
    ]
    return _chart(histories, lines, "gradient norm", WHOLE)


def best_of(histories: Sequence[History]) -> str:
    """Macro-F1 and epoch of what was kept; "" without evaluations."""
    bests = [history.best for history in histories if history.best]
    if not bests:
        return ""
    values = [best["val_macro_f1"] for best in bests]
    if len(bests) > 1:
        return (
            f"best macro-F1 {np.mean(values):.4f}, mean of {len(bests)} folds"
        )
    return f"best macro-F1 {values[0]:.4f} at epoch {bests[0]['epoch']:.4g}"


def _chart(histories, lines, what, size, marks=()) -> str:
    """The chart with its key; empty if nothing of it was recorded."""
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return ""
    chart = line_chart(
        lines,
        f"{what} over epochs",
        size=size,
        # The folds of one run have the same stages.
        verticals=histories[0].stage_starts,
        marks=marks,
    )
    return f"<div>{chart}{key(lines)}</div>"
