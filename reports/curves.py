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
    """

    train: Sequence[dict[str, Any]]
    evals: Sequence[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the best macro-F1; the first of equals."""
        scored = [e for e in self.evals if e.get("val_macro_f1") is not None]
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
    train, evals = [], []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            kind = entry.get("kind")
            if kind in ("train", "eval") and "epoch" in entry:
                (train if kind == "train" else evals).append(entry)
    return History(train, evals) if train or evals else None


def _line(name, entries, field, colour, dashed=False) -> Line:
    kept = [e for e in entries if isinstance(e.get(field), (int, float))]
    return Line(
        name,
        np.array([e["epoch"] for e in kept], np.float64),
        np.array([e[field] for e in kept], np.float64),
        colour,
        dashed,
    )


def loss_chart(history: History, size: tuple[int, int] = WHOLE) -> str:
    """Training and validation loss over epochs, with its key."""
    lines = [
        _line("training loss", history.train, "loss", "var(--faint)"),
        _line("validation loss", history.evals, "val_loss", "var(--second)"),
    ]
    return _chart(history, lines, "loss", size)


def score_chart(history: History, size: tuple[int, int] = WHOLE) -> str:
    """Validation macro-F1 and accuracy over epochs; the best one ringed."""
    evals = history.evals
    # With classes of one size the two all but coincide: the upper is dashed.
    lines = [
        _line("macro-F1", evals, "val_macro_f1", "var(--accent)"),
        _line("accuracy", evals, "val_accuracy", "var(--second)", dashed=True),
    ]
    best = history.best
    mark = (best["epoch"], best["val_macro_f1"]) if best else None
    return _chart(history, lines, "validation scores", size, mark)


def rate_chart(history: History) -> str:
    """Learning rate over epochs."""
    line = _line(
        "learning rate", history.train, "learning_rate", "var(--second)"
    )
    return _chart(history, [line], "learning rate", WHOLE)


def gradient_chart(history: History) -> str:
    """Norm of the gradient over epochs."""
    line = _line("gradient norm", history.train, "grad_norm", "var(--faint)")
    return _chart(history, [line], "gradient norm", WHOLE)


def _chart(history, lines, what, size, mark=None) -> str:
    """The chart with its key; empty if nothing of it was recorded."""
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return ""
    chart = line_chart(
        lines,
        f"{what} over epochs",
        size=size,
        verticals=history.stage_starts,
        mark=mark,
    )
    return f"<div>{chart}{key(lines)}</div>"
