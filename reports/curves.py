"""Training curves of one run, or of the folds of one run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from reports.charts import WHOLE, Line, line_chart
from run_folder.history import Evaluation, History, TrainRecord

Record = TrainRecord | Evaluation

_LOSS = "val_loss"
_FAR = 20  # A loss that falls to less than a twentieth.
# Where the name is not what people write.
_TITLES = {
    "macro_f1": "macro-F1",
    "mean_dice": "mean Dice",
    "mean_iou": "mean IoU",
    "image_dice": "Dice per image",
    "image_iou": "IoU per image",
    "eer": "equal error rate",
    "eer_other": "EER, other identity",
    "eer_one_forged": "EER, one forged",
    "eer_both_forged": "EER, both forged",
    "auc": "AUC",
    "fnmr_at_fmr_10": "FNMR at FMR 10 %",
    "tar_at_far_1": "TAR at FAR 1 %",
}
# Of which less is better.
_ENDS_OF_ERRORS, _ERRORS = ("loss",), ("eer", "fnmr")
# Colour and dash of a chart's lines. With classes of one size macro-F1 and
# accuracy all but coincide: the upper line is dashed.
_LOOKS = (
    ("var(--accent)", False),
    ("var(--second)", True),
    ("var(--faint)", False),
    ("var(--wrong)", True),
    ("var(--accent)", True),
    ("var(--second)", False),
    ("var(--faint)", True),
    ("var(--wrong)", False),
)


@dataclass(frozen=True)
class Chart:
    """A chart with its key.

    Attributes:
      svg: the picture.
      key: one line for each name and look in it.
    """

    svg: Markup
    key: tuple[Line, ...]


def title(metric: str) -> str:
    """Returns what people call a metric: "macro-F1" for "val_macro_f1"."""
    name = metric.removeprefix("val_")
    return _TITLES.get(name, name.replace("_", " "))


def ranking_metric(
    histories: Sequence[History], config: Mapping[str, Any] | None
) -> str:
    """Returns the metric that ranks checkpoints; "" without evaluations.

    Args:
      histories: of the run.
      config: of the run; the first score of an evaluation ranks unless
        `checkpoint.metric` names another.
    """
    chosen = ((config or {}).get("checkpoint") or {}).get("metric")
    names = _names(_evaluations(histories))
    return chosen if chosen in names else next(iter(names), "")


def more_is_better(
    histories: Sequence[History], metric: str, config: Mapping[str, Any] | None
) -> bool:
    """Whether more of a metric is better.

    Args:
      histories: of the run; they say it of the metric that ranks checkpoints.
      metric: its name in evaluations.
      config: as `ranking_metric`.
    """
    if metric == ranking_metric(histories, config):
        for history in histories:
            best = history.best
            value = best.values.get(metric, 0.0) if best else 0.0
            if best and value and best.merit in (value, -value):
                return best.merit == value
    name = metric.removeprefix("val_")
    return not name.endswith(_ENDS_OF_ERRORS) and not name.startswith(_ERRORS)


def incidents(histories: Sequence[History]) -> list[str]:
    """Returns a sentence for each skip and each rollback; mostly none."""
    found = []
    for number, history in enumerate(histories):
        where = f"Fold {number}: " if len(histories) > 1 else ""
        skipped = {}  # The counter begins anew in each stage.
        for record in history.train:
            if record.skipped:
                skipped[record.stage] = record.skipped
        for stage, count in skipped.items():
            found.append(
                f"{where}{count:,} steps of stage {stage + 1} changed nothing, "
                "because their loss or gradients were not finite."
            )
        for record in history.rollbacks:
            found.append(
                f"{where}stage {record.stage + 1} diverged and went back to "
                f"step {record.step:,}, to go on with {record.rate:g} times "
                "its learning rate."
            )
    return found


def loss_chart(
    histories: Sequence[History],
    metric: str = _LOSS,
    size: tuple[int, int] = WHOLE,
) -> list[Chart]:
    """Returns a chart of training and validation loss over epochs.

    Where it falls by far, as of generators, a linear scale would show the
    first steps alone.

    Args:
      histories: of the run.
      metric: whose best evaluations are ringed, if it is the loss.
      size: of the chart.

    Returns:
      One chart; none where nothing was recorded.
    """
    train, evaluations = _train(histories), _evaluations(histories)
    lines = [
        *_lines(train, "loss", "training loss", "var(--faint)"),
        *_lines(evaluations, _LOSS, "validation loss", "var(--second)"),
    ]
    marks = bests(histories, metric) if metric == _LOSS else ()
    losses = np.concatenate([line.y for line in lines] or [np.zeros(1)])
    losses = losses[np.isfinite(losses)]
    log = bool(len(losses)) and 0 < losses.min() < losses.max() / _FAR
    what = "loss, on a logarithmic scale," if log else "loss"
    return _charts(histories, lines, what, size, marks, log=log)


def score_charts(
    histories: Sequence[History],
    metric: str,
    size: tuple[int, int] = WHOLE,
) -> list[Chart]:
    """Returns charts of all validation scores but the loss, over epochs.

    Shares (scores between 0 and 1) have one chart together, every other
    score one of its own.

    Args:
      histories: of the run.
      metric: whose best evaluations are ringed.
      size: of each chart.
    """
    evaluations = _evaluations(histories)
    groups: dict[str, list[str]] = {}
    for name in _names(evaluations):
        if name != _LOSS:
            group = "" if _is_share(evaluations, name) else name
            groups.setdefault(group, []).append(name)
    charts = []
    for group, names in groups.items():
        lines = [
            line
            for name, look in zip(names, itertools.cycle(_LOOKS), strict=False)
            for line in _lines(evaluations, name, title(name), *look)
        ]
        marks = bests(histories, metric) if metric in names else ()
        what = title(group) if group else "validation scores"
        charts += _charts(histories, lines, what, size, marks)
    return charts


def rate_chart(histories: Sequence[History]) -> list[Chart]:
    """Returns a chart of the learning rates over epochs."""
    train, lines = _train(histories), []
    names = [n for n in _names(train) if n.startswith("learning_rate")]
    for number, name in enumerate(names):
        # Parameter groups after the first have dashed lines.
        colour = "var(--accent)" if number else "var(--second)"
        label = name.replace("_", " ")
        dashed = number > 1
        lines += _lines(train, name, label, colour, dashed)
    return _charts(histories, lines, "learning rate", WHOLE)


def gradient_chart(histories: Sequence[History]) -> list[Chart]:
    """Returns a chart of the norm of the gradient over epochs."""
    name = "gradient norm"
    lines = _lines(_train(histories), "grad_norm", name, "var(--faint)")
    return _charts(histories, lines, name, WHOLE)


def value_chart(
    histories: Sequence[History], names: Mapping[str, str], what: str
) -> list[Chart]:
    """Returns a chart of what training steps logged, over epochs.

    Args:
      histories: of the run.
      names: in the log -> in the key; those not logged have no line.
      what: the chart shows.
    """
    train = _train(histories)
    lines = [
        line
        for (name, label), look in zip(
            names.items(), itertools.cycle(_LOOKS), strict=False
        )
        for line in _lines(train, name, label, *look)
    ]
    return _charts(histories, lines, what, WHOLE)


def bests(
    histories: Sequence[History], metric: str
) -> list[tuple[float, float]]:
    """Returns (epoch, score) of what was kept, for each history.

    Args:
      histories: of the run.
      metric: which score.
    """
    kept = [history.best for history in histories if history.best]
    return [
        (best.epoch, best.values[metric])
        for best in kept
        if metric in best.values
    ]


def best_of(histories: Sequence[History], metric: str) -> str:
    """Returns score and epoch of what was kept; "" without evaluations."""
    kept = bests(histories, metric)
    if not kept:
        return ""
    mean = np.mean([value for _, value in kept])
    if len(kept) > 1:
        return f"best {title(metric)} {mean:.4f}, mean of {len(kept)} folds"
    return f"best {title(metric)} {mean:.4f} at epoch {kept[0][0]:.4g}"


def _train(histories: Sequence[History]) -> list[Sequence[TrainRecord]]:
    return [history.train for history in histories]


def _evaluations(histories: Sequence[History]) -> list[Sequence[Evaluation]]:
    return [history.evaluations for history in histories]


def _names(runs: Sequence[Sequence[Record]]) -> list[str]:
    """What the records of some runs measured, in the order of the first."""
    values = (record.values for records in runs for record in records)
    return list(dict.fromkeys(itertools.chain.from_iterable(values)))


def _is_share(runs: Sequence[Sequence[Record]], name: str) -> bool:
    records = itertools.chain.from_iterable(runs)
    return all(0 <= record.values.get(name, 0) <= 1 for record in records)


def _lines(
    runs: Sequence[Sequence[Record]],
    name: str,
    label: str,
    colour: str,
    dashed: bool = False,
) -> list[Line]:
    """One line for each run that recorded `name`."""
    lines = []
    for records in runs:
        found = [record for record in records if name in record.values]
        if found:
            x = np.array([record.epoch for record in found])
            y = np.array([record.values[name] for record in found])
            lines.append(Line(label, x, y, colour, dashed))
    return lines


def _charts(histories, lines, what, size, marks=(), log=False) -> list[Chart]:
    if not lines:
        return []
    svg = line_chart(
        lines,
        f"{what} over epochs",
        size=size,
        # The folds of one run have the same stages.
        verticals=histories[0].stage_starts,
        marks=marks,
        log=log,
    )
    key = {line.name: line for line in lines}
    return [Chart(svg, tuple(key.values()))]
