"""The page of a study: what each change is worth, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reports.charts import Line, interval, line_chart
from reports.page import Figure, Section, template, write_page

_TEMPLATE = "study.html"


@dataclass(frozen=True)
class Plotted:
    """A difference with its 95 % interval.

    Attributes:
      value: of the metric.
      low, high: NaN where there is none.
    """

    value: float
    low: float
    high: float

    @property
    def is_shown(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Effect:
    """What a change does.

    Attributes:
      axis: that the level belongs to; "" for a whole cell.
      level: what is changed to.
      baseline: what it is compared with.
      difference: of the metric, level minus baseline.
      classes: the same by class; {} without.
      seeds: pairs of runs behind it.
      minutes: of training, level minus baseline.
    """

    axis: str
    level: str
    baseline: str
    difference: Plotted
    classes: Mapping[str, Plotted]
    seeds: int
    minutes: float


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      cell: its levels.
      seed: of the run.
      score: its metric.
      seconds: that it trained.
    """

    cell: str
    seed: int
    score: float
    seconds: float


def study_report(
    path: Path,
    title: str,
    metric: str,
    sentences: Sequence[str],
    effects: Sequence[Effect],
    runs: Sequence[Run],
    examples: int,
    notes: Sequence[str] = (),
    *,
    lower_is_better: bool = False,
) -> Path:
    """Writes the page of a study.

    Args:
      path: of the html file.
      title: plain text.
      metric: as people call it.
      sentences: what to use.
      effects: of levels, then of cells.
      runs: that are finished.
      examples: validation images of each run; 0 where nobody counted.
      notes: on what is missing or failed.
      lower_is_better: whether less of the metric is better.

    Returns:
      `path`.
    """
    of_axes = [e for e in effects if e.axis]
    of_cells = [e for e in effects if not e.axis]
    seeds = len({run.seed for run in runs})
    how = (
        f"Difference of {metric} between runs of the same seed"
        + (" on the same validation images" if examples else "")
        + ", with a 95 % interval from a bootstrap over seeds"
        + (" and images." if examples else ".")
    )
    cautions = (
        "The checkpoints were chosen on these validation images, in all arms "
        "alike. Each interval stands for itself: of twenty changes without "
        "any effect, one is expected to leave out zero."
    )
    macros, parts = template(_TEMPLATE), []
    if sentences or notes:
        parts.append(Section("", macros.sentences(sentences, notes)))
    if of_axes:
        body = macros.effects(_rows(of_axes))
        parts.append(Section("Effects", body, f"{how} {cautions}"))
    parts.append(
        Section(
            "Cells",
            macros.cells(_cells(runs), _rows(of_cells)),
            "Each combination over its seeds, and against the first of them.",
        )
    )
    by_class = [e for e in of_axes if e.classes]
    if by_class:
        rows = [
            (name, [e.classes[name] for e in by_class])
            for name in by_class[0].classes
        ]
        heads = [f"{e.level} / {e.baseline}" for e in by_class]
        note = (
            "Difference of the class's own score; its interval below. Bold "
            "where that leaves out zero."
        )
        parts.append(Section("By class", macros.classes(heads, rows), note))
    parts.append(Section("Runs", macros.runs(runs)))
    sign = -1 if lower_is_better else 1
    best = max(_cells(runs), key=lambda row: sign * row["mean"])
    minutes = sum(_training_seconds(runs)) / 60
    figures = [
        Figure("best mean", f"{best['mean']:.4f}", best["name"]),
        Figure("seeds", f"{seeds}", "the same ones in every cell"),
        Figure(
            "validation images",
            f"{examples:,}" if examples else "-",
            "each scored under every seed" if examples else "not counted",
        ),
        Figure("training", f"{minutes:.1f} min", f"{len(runs)} results"),
    ]
    lead = f"What each change is worth in {metric}, and what it costs."
    return write_page(path, title, lead, parts, figures)


def _rows(effects: Sequence[Effect]) -> list[dict]:
    ends = [
        x
        for e in effects
        for x in (e.difference.low, e.difference.high, e.difference.value)
        if math.isfinite(x)
    ]
    start, end = min([0.0, *ends]), max([0.0, *ends])
    rows = []
    for e in effects:
        d = e.difference
        plot = ""
        if math.isfinite(d.low):
            plot = interval(d.value, d.low, d.high, start, end, rule=0.0)
        rows.append({"effect": e, "plot": plot})
    return rows


def _cells(runs: Sequence[Run]) -> list[dict]:
    found = {}
    for run in runs:
        found.setdefault(run.cell, []).append(run)
    return [
        {
            "name": name or "the recipe",
            "mean": float(np.mean([run.score for run in of_cell])),
            "low": min(run.score for run in of_cell),
            "high": max(run.score for run in of_cell),
            "minutes": float(np.mean([run.seconds for run in of_cell])) / 60,
            "seeds": len(of_cell),
        }
        for name, of_cell in found.items()
    ]


def _training_seconds(runs: Sequence[Run]) -> list[float]:
    """Once for each training: cells that share one have its very seconds."""
    return list({(run.seed, run.seconds): run.seconds for run in runs}.values())


@dataclass(frozen=True)
class Curve:
    """A learning-rate range test.

    Attributes:
      rates: float [T], ascending.
      losses: float [T], of single batches.
      smooth: float [T], of their neighbours.
    """

    rates: np.ndarray
    losses: np.ndarray
    smooth: np.ndarray


def lr_range_report(
    path: Path, recipe: str, curve: Curve, steepest: float, lowest: float
) -> Path:
    """Writes the page of a learning-rate range test.

    Args:
      path: of the html file.
      recipe: that was tested.
      curve: what was measured.
      steepest: rate at which the loss falls most steeply.
      lowest: rate at which it is lowest.

    Returns:
      `path`.
    """
    powers = np.log10(curve.rates)
    # What flies off would press all else to the floor.
    top = curve.smooth[0] + 0.3 * np.ptp(curve.smooth[: _until(curve)])
    shown = curve.losses <= top
    lines = [
        Line("batch", powers[shown], curve.losses[shown], "var(--faint)"),
        Line("smoothed", powers, np.minimum(curve.smooth, top)),
    ]
    chart = line_chart(
        lines,
        "loss over the learning rate, by powers of ten",
        verticals=[float(np.log10(steepest)), float(np.log10(lowest))],
        from_zero=False,
    )
    body = template("run.html").training([{"svg": chart, "key": lines}])
    note = (
        "Training loss over the logarithm (base 10) of the learning rate. The "
        "upright lines are the steepest and the lowest point."
    )
    return write_page(
        path,
        "Learning-rate range test",
        f"{recipe}: one short training at ever higher rates.",
        [Section("Loss", body, note)],
        [
            Figure("suggested peak", f"{steepest:.2g}", "steepest fall"),
            Figure("lowest loss", f"{lowest:.2g}", "too high to train with"),
        ],
    )


def _until(curve: Curve) -> int:
    return int(curve.smooth.argmin()) + 1
