"""What a study shows: effects, a table of runs, and what to use."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

from core.atomic_files import write_text
from core.errors import UserError
from reports import curves
from reports.study import Effect, Plotted, Run, study_report
from studies import outcomes
from studies.axes import Axis
from studies.effects import Contrast, Estimate, Scores
from studies.grid import Failure, Grid

CSV, RUNS_CSV, PAGE = "effects.csv", "runs.csv", "report.html"

_COLUMNS = (
    "axis",
    "level",
    "baseline",
    "metric",
    "class",
    "difference",
    "low",
    "high",
    "seeds",
    "minutes",
)


@dataclasses.dataclass(frozen=True)
class Findings:
    """What is known of a grid so far.

    Attributes:
      sentences: what to use, or that nothing is shown; one for each axis.
      effects: of the levels of each axis, then of each cell.
      page: path of the page.
    """

    sentences: list[str]
    effects: list[Effect]
    page: Path


def write(
    grid: Grid,
    axes: Sequence[Axis],
    title: str,
    metric: str = "",
    failures: Sequence[Failure] = (),
) -> Findings:
    """Reads all results that are there, and writes a page and two csv files.

    Args:
      grid: of the study.
      axes: that its cells are made of.
      title: of the page.
      metric: as `outcomes.read`.
      failures: to tell of.

    Raises:
      UserError: no run is finished, or the runs cannot be paired.
    """
    found, seconds = {}, {}
    for number, cell in enumerate(grid.cells):
        for seed in grid.seeds:
            note = grid.read(cell, seed)
            if note is not None:
                folder = grid.result(cell, seed)
                found[number, seed] = outcomes.read(folder, metric)
                seconds[number, seed] = note["seconds"]
    if not found:
        why = f": {failures[0].reason}" if failures else ""
        raise UserError(f"no run of {grid.workdir} is finished{why}")
    first = next(iter(found.values()))
    scores = Scores(found)
    about = _About(grid, scores, seconds, curves.title(first.metric))
    effects, sentences = [], []
    for place, axis in enumerate(axes):
        of_axis = about.levels(place, axis)
        effects += of_axis
        sentences += _advice(axis, of_axis, first.sign)
    effects += about.cells()
    runs = [
        Run(cell.name, seed, scores.value((i, seed)), seconds[i, seed])
        for i, cell in enumerate(grid.cells)
        for seed in grid.seeds
        if (i, seed) in found
    ]
    missing = len(grid.cells) * len(grid.seeds) - len(found)
    notes = [f"{one.name} failed: {one.reason}" for one in failures]
    if missing:
        notes.insert(0, f"{missing} results are still missing.")
    if len(grid.seeds) == 1:
        notes.append(
            "There is one seed, so the intervals leave out what another seed "
            "would change; take --seeds 3 or more."
        )
    if not scores.examples:
        notes.append(
            "These runs keep no results of single examples: the intervals "
            "are over seeds alone."
        )
    _write_csv(grid.workdir / CSV, first.metric, effects)
    _write_runs(grid.workdir / RUNS_CSV, first.metric, runs)
    page = study_report(
        grid.workdir / PAGE,
        title,
        curves.title(first.metric),
        sentences,
        effects,
        runs,
        scores.examples,
        notes,
        lower_is_better=first.sign < 0,
    )
    return Findings(sentences, effects, page)


@dataclasses.dataclass(frozen=True)
class _About:
    """Makes effects out of cells."""

    grid: Grid
    scores: Scores
    seconds: dict[tuple[int, int], float]
    metric: str

    def levels(self, place: int, axis: Axis) -> list[Effect]:
        """Each level of an axis against its first, over all else."""
        cells = self.grid.cells
        found = []
        for level in axis.levels[1:]:
            pairs = []
            for i, cell in enumerate(cells):
                if cell.levels[place].name != level.name:
                    continue
                other = list(cell.levels)
                other[place] = axis.levels[0]
                names = [one.name for one in other]
                j = next(
                    j
                    for j, one in enumerate(cells)
                    if [x.name for x in one.levels] == names
                )
                pairs.append((i, j))
            baseline = axis.levels[0].name
            found += self._effect(axis.name, level.name, baseline, pairs)
        return found

    def cells(self) -> list[Effect]:
        """Each cell against the first; none where an axis says the same."""
        if len(self.grid.cells[0].levels) < 2:
            return []
        baseline = self.grid.cells[0].name
        return [
            effect
            for i, cell in enumerate(self.grid.cells)
            if i
            for effect in self._effect("", cell.name, baseline, [(i, 0)])
        ]

    def _effect(
        self, axis: str, level: str, baseline: str, pairs: list
    ) -> list[Effect]:
        found: Contrast | None = self.scores.contrast(pairs, self.grid.seeds)
        if found is None:
            return []
        costs = [
            self.seconds[a, s] - self.seconds[b, s]
            for a, b in pairs
            for s in self.grid.seeds
            if (a, s) in self.seconds and (b, s) in self.seconds
        ]
        return [
            Effect(
                axis,
                level,
                baseline,
                _plotted(found.estimate),
                {n: _plotted(e) for n, e in found.classes.items()},
                found.seeds,
                sum(costs) / len(costs) / 60,
            )
        ]


def _plotted(estimate: Estimate) -> Plotted:
    return Plotted(estimate.value, estimate.low, estimate.high)


def _advice(axis: Axis, effects: Sequence[Effect], sign: int) -> list[str]:
    """A sentence on what to use of an axis."""
    if not effects:
        return []

    def gain(effect: Effect) -> float:
        return sign * effect.difference.value

    def told(effect: Effect) -> str:
        d = effect.difference
        if not math.isfinite(d.low):
            return f"{d.value:+.4f} (no interval from so few runs)"
        return f"{d.value:+.4f} ({d.low:+.4f} to {d.high:+.4f})"

    shown = [e for e in effects if e.difference.is_shown]
    better = [e for e in shown if gain(e) > 0]
    worse = [e for e in shown if gain(e) < 0]
    unclear = [e for e in effects if not e.difference.is_shown]
    baseline, parts = axis.levels[0].name, []
    if better:
        best = max(better, key=gain)
        cost = _cost(best.minutes)
        parts.append(
            f"{axis.name}: use {best.level} rather than {baseline}, "
            f"{told(best)}{cost}"
        )
        others = [e for e in better if e is not best]
        if others:
            names = ", ".join(f"{e.level} {told(e)}" for e in others)
            parts.append(f"better than {baseline}, too: {names}")
    elif worse and not unclear:
        parts.append(f"{axis.name}: use {baseline}")
    else:
        parts.append(
            f"{axis.name}: keep {baseline}, nothing tried is shown to be better"
        )
    if worse:
        names = ", ".join(f"{e.level} {told(e)}" for e in worse)
        parts.append(f"worse: {names}")
    if unclear:
        names = ", ".join(
            f"{e.level} {told(e)}{_cost(e.minutes)}" for e in unclear
        )
        parts.append(f"too close to tell: {names}")
    return ["; ".join(parts) + "."]


def _cost(minutes: float) -> str:
    if not math.isfinite(minutes) or abs(minutes) < 0.05:
        return ""
    return f" for {abs(minutes):.1f} min {'more' if minutes > 0 else 'less'}"


def _write_csv(path: Path, metric: str, effects: Sequence[Effect]) -> None:
    rows = [_COLUMNS]
    for e in effects:
        entries = {"": e.difference, **e.classes}
        for name, d in entries.items():
            numbers = [f"{x:.6f}" for x in (d.value, d.low, d.high)]
            cost = [e.seeds, f"{e.minutes:.2f}"]
            names = [e.axis, e.level, e.baseline, metric, name]
            rows.append([*names, *numbers, *cost])
    _write_rows(path, rows)


def _write_runs(path: Path, metric: str, runs: Sequence[Run]) -> None:
    rows = [["cell", "seed", metric, "minutes"]]
    for run in runs:
        minutes = f"{run.seconds / 60:.2f}"
        rows.append([run.cell, run.seed, f"{run.score:.6f}", minutes])
    _write_rows(path, rows)


def _write_rows(path: Path, rows: Sequence[Sequence]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
