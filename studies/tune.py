"""Searches fields of a recipe with Optuna: TPE, pruned by the median.

    <workdir>/search.journal     the search, also a database by --storage
    <workdir>/trials/0007/       run folders of train.py
    <workdir>/best.py            the best config so far, as a recipe

Several processes with one workdir share a search. A trial whose process died
is resumed by the next one: train.py goes on with its run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import optuna
from ml_collections import ConfigDict
from optuna.trial import TrialState

from configs import loading
from core import signals
from core.durations import duration
from core.errors import UserError
from run_folder import artifacts
from run_folder.history import read_histories
from stacking.search_storage import open_storage, using
from studies import recipe_file, training
from studies.space import Parameter, value_of
from studies.training import End

JOURNAL, TRIALS, BEST = "search.journal", "trials", "best.py"
_SECONDS_BETWEEN_LINES = 30.0
_CONFIG = "config"  # Of the search: recipe and overrides, so none is mixed up.


@dataclasses.dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
      recipe: path and variant.
      overrides: `--config.a=b` of all trials.
      config: that comes of both.
      parameters: that are searched.
      workdir: of the study.
      storage: as `open_storage`.
      trials: how many in all.
      problems: what cannot work in a config.
    """

    recipe: str
    overrides: Sequence[str]
    config: ConfigDict
    parameters: Sequence[Parameter]
    workdir: Path
    storage: str
    trials: int
    problems: Callable[[ConfigDict], Iterable[str]]


def run(search: Search, stop: signals.StopSignals) -> optuna.Study:
    """Runs trials until there are enough, or a signal comes.

    Args:
      search: of the study.
      stop: notes signals; entered by the caller.

    Raises:
      UserError: the storage cannot be used, or holds another search.
    """
    study = _open(search)
    failures = 0
    while not stop.received:
        taken = _take(search, study)
        if taken is None:
            if not _others_at_work(search, study):
                break
            time.sleep(2.0)
            continue
        trial, claim = taken
        with claim as lock:
            if lock is None:
                continue
            ended = _try(search, study, trial, lock, stop)
        # The first to fail shows a mistake in the recipe or in the space.
        failures = failures + 1 if ended.how is End.FAILED else 0
        if failures == 3:
            raise UserError(
                f"three trials in a row failed, the last one: {ended.reason}"
            )
        if ended.how is End.DONE:
            write_best(search, study)
    return study


def write_best(search: Search, study: optuna.Study) -> Path | None:
    """Writes the best config so far as a recipe; None before there is one."""
    with using(search.storage):
        if not _count(study, TrialState.COMPLETE):
            return None
        best = study.best_trial
    words = best.user_attrs["words"]
    metric, value = best.user_attrs["score"]
    return recipe_file.write(
        search.workdir / BEST,
        f"{search.recipe}, tuned: {metric} {value:.4f} in trial {best.number}.",
        search.recipe,
        [*search.overrides, *words],
    )


def _open(search: Search) -> optuna.Study:
    with using(search.storage):
        study = optuna.create_study(
            direction="maximize",  # Of the merit.
            sampler=optuna.samplers.TPESampler(
                # A resumed search draws on, and does not draw the same again.
                seed=None,
                multivariate=True,
                constant_liar=True,  # For trials that run side by side.
                n_startup_trials=8,
            ),
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=4, n_warmup_steps=0
            ),
            storage=open_storage(search.storage),
            study_name="studies tune",
            load_if_exists=True,
        )
        told = [search.recipe, *search.overrides] + [
            str(parameter) for parameter in search.parameters
        ]
        earlier = study.user_attrs.get(_CONFIG, told)
        study.set_user_attr(_CONFIG, earlier)
        if not study.trials and (own := _own_values(search)):
            study.enqueue_trial(own, skip_if_exists=True)
    if earlier != told:
        raise UserError(
            f"{search.storage} holds a search with other fields; give the same "
            "--config, overrides and --search, or choose another --workdir"
        )
    return study


def _own_values(search: Search) -> dict[str, Any]:
    """The recipe's own values, where all of them lie in the space."""
    found = {}
    for one in search.parameters:
        value = value_of(search.config, one.field)
        if one.choices:
            if str(value) not in one.choices:
                return {}
            value = str(value)
        elif not isinstance(value, (int, float)) or not (
            one.low <= value <= one.high
        ):
            return {}
        found[one.field] = value
    return found


def _folder(search: Search, number: int) -> Path:
    return search.workdir / TRIALS / f"{number:04d}"


def _take(search: Search, study: optuna.Study) -> tuple | None:
    """A trial that nobody is at: one that was left, or a new one."""
    with using(search.storage):
        trials = study.get_trials(deepcopy=False)
    for frozen in trials:
        if frozen.state is TrialState.RUNNING and "words" in frozen.user_attrs:
            claim = training.claim(_folder(search, frozen.number))
            with claim as lock:
                free = lock is not None
            if free:
                trial = optuna.Trial(study, frozen._trial_id)
                return trial, training.claim(_folder(search, frozen.number))
    counted = [t for t in trials if t.state is not TrialState.WAITING]
    if len(counted) >= search.trials:
        return None
    with using(search.storage):
        trial = study.ask()
    return trial, training.claim(_folder(search, trial.number))


def _others_at_work(search: Search, study: optuna.Study) -> bool:
    with using(search.storage):
        trials = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
    for trial in trials:
        with training.claim(_folder(search, trial.number)) as lock:
            if lock is None:
                return True
    return False


def _try(
    search: Search,
    study: optuna.Study,
    trial: optuna.Trial,
    lock: IO,
    stop: signals.StopSignals,
) -> training.Ended:
    folder = _folder(search, trial.number)
    with using(search.storage):
        words = [
            f"--config.{one.field}={one.suggest(trial)}"
            for one in search.parameters
        ]
        trial.set_user_attr("words", words)
        before = study.get_trials(deepcopy=False)[trial.number]
    print(
        f"trial {trial.number} ({search.trials} in all): "
        + ", ".join(word.removeprefix("--config.") for word in words),
        flush=True,
    )
    watch = _Watch(search, trial, folder, len(before.intermediate_values))
    problems = _problems(search, words)
    if problems:
        ended = training.Ended(End.FAILED, problems)
    else:
        line = [f"--config={search.recipe}", *search.overrides, *words]
        ended = training.train(folder, line, lock, stop, watch)
    if ended.how is End.STOPPED:
        return ended  # Stays "running": the next process goes on with it.
    if ended.how is End.DONE and not artifacts.is_complete(folder):
        ended = training.Ended(End.FAILED, f"nothing exported in {folder}")
    spent = duration(training.seconds(folder))
    with using(search.storage):
        if ended.how is End.FAILED:
            study.tell(trial, state=TrialState.FAIL)
            print(f"  failed: {ended.reason}", flush=True)
            return ended
        metric, value, merit = watch.best()
        trial.set_user_attr("score", [metric, value])
        if ended.how is End.CUT:
            study.tell(trial, state=TrialState.PRUNED)
            print(f"  pruned at {metric} {value:.4f}, {spent}", flush=True)
            return ended
        study.tell(trial, merit)
        best = study.best_trial
    print(
        f"  {metric} {value:.4f} in {spent}; best "
        f"{best.user_attrs['score'][1]:.4f} in trial {best.number}",
        flush=True,
    )
    return ended


def _problems(search: Search, words: Sequence[str]) -> str:
    config = loading.load(search.recipe)
    given = [*search.overrides, *words]
    found = [
        *loading.apply_overrides(config, given),
        *search.problems(config),
    ]
    return "; ".join(found)


class _Watch:
    """Reports the evaluations of a run, and says when it is not worth it."""

    def __init__(
        self, search: Search, trial: optuna.Trial, folder: Path, told: int
    ):
        self._search, self._trial, self._folder = search, trial, folder
        self._looked = self._spoke = time.monotonic()
        self._told = told  # evaluations that the search knows already

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._looked < 1.0:
            return False
        self._looked = now
        if now - self._spoke > _SECONDS_BETWEEN_LINES:
            self._spoke = now
            print(f"  {training.last_line(self._folder)}", flush=True)
        evaluations = self._evaluations()
        if len(evaluations) <= self._told:
            return False
        with using(self._search.storage):
            for index in range(self._told, len(evaluations)):
                self._trial.report(evaluations[index].merit, index)
            self._told = len(evaluations)
            return self._trial.should_prune()

    def best(self) -> tuple[str, float, float]:
        """Returns the metric's name, its best value, and the merit of it."""
        evaluations = self._evaluations()
        if not evaluations:
            raise UserError(f"{self._folder} has no evaluation to go by")
        best = max(evaluations, key=lambda e: e.merit)
        for metric, value in best.values.items():
            if value in (best.merit, -best.merit):
                return metric, value, best.merit
        raise UserError(
            "no score ranks the checkpoints of this task, so there is nothing "
            "to search by; compare what it exports by hand"
        )

    def _evaluations(self) -> list:
        found = read_histories(self._folder)
        entries = found[0].evaluations if found else ()
        return [entry for entry in entries if entry.merit is not None]


def _count(study: optuna.Study, *states: TrialState) -> int:
    return len(study.get_trials(deepcopy=False, states=states))
