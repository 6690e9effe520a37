"""The runs of a grid: each cell under each seed, one process after the other.

    <workdir>/runs/<cell>/seed-42/       run folders of train.py
    <workdir>/results/<cell>/seed-42/    what is kept of a finished run

Cells that differ only in how a run is exported, such as test-time views, share
a run. Several studies with one workdir share the work: each takes runs that no
other has claimed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core import signals, weight_packages
from core.atomic_files import atomic_write, write_text
from core.durations import duration
from core.errors import UserError
from run_folder import artifacts
from studies import outcomes, training
from studies.axes import Cell, slug
from studies.training import End

_RESULT = "result.json"
_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_TRIES = 5.0  # to claim what another study has claimed


@dataclasses.dataclass(frozen=True)
class Grid:
    """What is to be run.

    Attributes:
      cells: all of them, the baseline first.
      seeds: of `config.seed`.
      workdir: of the study.
      flags: of train.py, such as --all-folds.
    """

    cells: Sequence[Cell]
    seeds: Sequence[int]
    workdir: Path
    flags: Sequence[str] = ()

    def trainings(self) -> list[Training]:
        """Returns the runs, seed by seed, so that pairs are whole early."""
        groups: dict[str, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(cell.training, []).append(cell)
        return [
            Training(self, tuple(cells), seed)
            for seed in self.seeds
            for cells in groups.values()
        ]

    def check(self) -> None:
        """Refuses cells whose difference a study does not see.

        Raises:
          UserError: two differ in how a run is exported, and no export of
            their task is scored.
        """
        for one in self.trainings():
            task = one.cells[0].config.task
            if len(one.cells) > 1 and task not in outcomes.SCORED_EXPORTS:
                first, second, *_ = one.cells
                raise UserError(
                    f"{first.name} and {second.name} differ only in what a "
                    "finished run exports, which studies do not score for "
                    f"the {task} task; leave one out"
                )

    def check_weights(self) -> None:
        """Looks for the weights of all runs, before hours of the first ones.

        Raises:
          UserError: a package is not installed.
        """
        for name in sorted(set().union(*map(_packages, self.cells))):
            weight_packages.path_of(name)

    def result(self, cell: Cell, seed: int) -> Path:
        """Returns the folder of what is kept of a finished run."""
        return self.workdir / "results" / cell.folder / f"seed-{seed}"

    def read(self, cell: Cell, seed: int) -> dict[str, Any] | None:
        """Returns what is noted of a finished run; None before.

        Raises:
          UserError: it is of another config.
        """
        path = self.result(cell, seed) / _RESULT
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        if found["config"] != cell.digest or found["flags"] != [*self.flags]:
            raise UserError(
                f"{path.parent} is of a study with other fields; give the same "
                "ones to go on with it, or choose another --workdir"
            )
        return found


def _packages(cell: Cell) -> set[str]:
    """The weights out of packages that a cell needs."""
    config = cell.config
    found = {config.data.upscale} & {weight_packages.WAIFU2X}
    if config.init_from == weight_packages.IMAGENET:
        encoder = config.model_options.get("encoder", config.model)
        found |= {encoder} & weight_packages.PACKAGES.keys()
    return found


@dataclasses.dataclass(frozen=True)
class Training:
    """A run of train.py, and the cells that it is exported for.

    Attributes:
      grid: that it belongs to.
      cells: one, or several that differ in their export.
      seed: of the run.
    """

    grid: Grid
    cells: tuple[Cell, ...]
    seed: int

    @property
    def folder(self) -> Path:
        """The run folder."""
        name = self.cells[0].folder
        if len(self.cells) > 1:  # The levels by which they differ from others.
            own, all_ = _levels(self.cells), _levels(self.grid.cells)
            told = [
                "~".join(names)
                for names, every in zip(own, all_, strict=True)
                if len(names) == 1 or names != every
            ]
            name = slug("+".join(told) or "run")
        return self.grid.workdir / "runs" / name / f"seed-{self.seed}"

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.cells[0].name or 'the recipe'}, seed {self.seed}"

    def missing(self) -> list[Cell]:
        """Returns the cells without a result."""
        return [c for c in self.cells if self.grid.read(c, self.seed) is None]

    def words(self, cell: Cell) -> list[str]:
        """Returns the command line of train.py, but for the folder."""
        return [
            f"--config={cell.recipe}",
            *cell.overrides,
            f"--config.seed={self.seed}",
            *self.grid.flags,
        ]

    def keep(self, cell: Cell, seconds: float) -> None:
        """Keeps what is needed of the run, and notes that it is finished."""
        kept = self.grid.result(cell, self.seed)
        for source in sorted(self.folder.rglob("*")):
            name = source.relative_to(self.folder)
            inner = str(Path(*name.parts[1:]))
            in_fold = name.parts[0].startswith("fold-")
            if str(name) in outcomes.FILES or (
                in_fold and inner in outcomes.FILES
            ):
                with atomic_write(kept / name) as temporary:
                    shutil.copyfile(source, temporary)
        note = {
            "config": cell.digest,
            "flags": [*self.grid.flags],
            "seconds": round(seconds, 1),
        }
        write_text(kept / _RESULT, json.dumps(note) + "\n")


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that failed.

    Attributes:
      name: of the run.
      reason: in a sentence.
    """

    name: str
    reason: str


def run(grid: Grid, stop: signals.StopSignals) -> list[Failure]:
    """Trains all that is missing; a signal stops it between two steps.

    Args:
      grid: of the study.
      stop: notes signals; entered by the caller.

    Returns:
      What failed; the others went on.

    Raises:
      UserError: the workdir belongs to another study.
    """
    pending = [t for t in grid.trainings() if t.missing()]
    everything = len(grid.trainings())
    progress = _Progress(everything, everything - len(pending))
    failures = []
    while pending and not stop.received:
        busy = []
        for one in pending:
            if stop.received:
                break
            with training.claim(one.folder) as lock:
                if lock is None:
                    busy.append(one)
                    continue
                # Another study may have finished it since.
                for cell in one.missing():
                    ended = _run_cell(one, cell, lock, stop, progress)
                    if ended.how is End.FAILED:
                        print(f"  failed: {ended.reason}", flush=True)
                        failures.append(Failure(one.name, ended.reason))
                    if ended.how is not End.DONE:
                        break
                else:
                    progress.finished(training.seconds(one.folder))
        pending = busy
        if busy and not stop.received:
            progress.waiting(busy[0].name)
            time.sleep(_SECONDS_BETWEEN_TRIES)
    return failures


def _run_cell(
    one: Training,
    cell: Cell,
    lock: Any,
    stop: signals.StopSignals,
    progress: _Progress,
) -> training.Ended:
    words, folder = one.words(cell), one.folder
    trained = folder / "trained.json"
    again = trained.exists() and artifacts.is_complete(folder)
    if again:  # Of other views, perhaps.
        words.append("--export")
        print(f"  exporting it for {cell.name}", flush=True)
    else:
        progress.begins(one)
    ended = training.train(
        folder, words, lock, stop, lambda: progress.look(folder)
    )
    if ended.how is End.DONE:
        if not again:
            write_text(trained, json.dumps(training.seconds(folder)) + "\n")
        one.keep(cell, float(json.loads(trained.read_text("utf-8"))))
    return ended


class _Progress:
    """Says which run it is, and how long the study has to go."""

    def __init__(self, total: int, done: int):
        self._total, self._done, self._begun = total, done, done
        self._taken: list[float] = []
        self._spoke = 0.0
        self._waited = False
        if done:
            print(f"{done} of {total} runs are finished already", flush=True)

    def begins(self, one: Training) -> None:
        """Tells of a run that starts or goes on."""
        self._begun = min(self._begun + 1, self._total)
        self._spoke = time.monotonic()
        print(f"run {self._begun} of {self._total}: {one.name}", flush=True)

    def look(self, folder: Path) -> bool:
        """Prints a line now and then; never ends the run."""
        now = time.monotonic()
        if now - self._spoke < _SECONDS_BETWEEN_LINES:
            return False
        self._spoke = now
        share = training.share_done(folder)
        spent = training.seconds(folder)
        whole = self._mean() or (spent / share if share else 0.0)
        left = ""
        if whole:
            more = (self._total - self._done - 1) * whole
            more += max(whole - spent, 0.0)
            left = f"  (the study: about {duration(more)} to go)"
        print(f"  {training.last_line(folder)}{left}", flush=True)
        return False

    def finished(self, seconds: float) -> None:
        """Tells of a run that has come to its end."""
        self._done += 1
        self._taken.append(seconds)
        told = f"  finished in {duration(seconds)}"
        if left := self._total - self._done:
            told += f"; {left} to go, about {duration(left * self._mean())}"
        print(told, flush=True)

    def waiting(self, name: str) -> None:
        """Tells once of runs that other processes are at."""
        if not self._waited:
            self._waited = True
            print(f"waiting for another process to finish: {name}", flush=True)

    def _mean(self) -> float:
        return sum(self._taken) / len(self._taken) if self._taken else 0.0


def _levels(cells: Sequence[Cell]) -> list[list[str]]:
    """The names of the levels that cells have, axis by axis."""
    rows = zip(*(cell.levels for cell in cells), strict=True)
    return [list(dict.fromkeys(level.name for level in row)) for row in rows]
