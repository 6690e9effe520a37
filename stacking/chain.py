"""The whole chain, from logits to the blend, as one thing that is fitted.

    temperatures -> soft vote, greedy vote, regression, boosters
                 -> their temperatures -> blend -> decision

`fit_chain` sees the rows it is given and nothing else. So the honest score of
every number in the chain is one loop (`stacking.nested_cv`): fit on some rows,
predict the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stacking import (
    blend,
    boosters,
    calibration,
    decision_rule,
    members,
    search,
)
from stacking.splits import stratified_folds, subsample
from stacking.workers import workers

INNER_FOLDS = 3
# More rows move the weights by less than their own noise, and cost time.
MAX_ROWS = 25_000
# Rows predicted at once: bounds memory.
_CHUNK = 10_000

BLEND = "blend"


@dataclass(frozen=True)
class Settings:
    """What a person can choose about the chain.

    Attributes:
      seed: of everything random.
      trials: weightings that the soft vote tries.
      boosters: which of `boosters.KINDS` take part.
      booster_seeds: fits per inner fold, averaged.
      class_weights: "none", or "balanced" for rows weighted by the inverse
        of their class's frequency.
      blend: "reference" or "auto".
      decision: one of `decide.RULES`.
      search_seconds: for each search over one booster's parameters; 0 for
        none.
      search_storage: file of the searches.
      threads: at most so many for the boosters.
    """

    seed: int = 0
    trials: int = 200
    boosters: tuple[str, ...] = boosters.KINDS
    booster_seeds: int = 1
    class_weights: str = "none"
    blend: str = "reference"
    decision: str = "argmax"
    search_seconds: float = 0.0
    search_storage: str = ""
    threads: int = 2


@dataclass(frozen=True)
class Chain:
    """A fitted chain.

    Attributes:
      temperatures: float64 [M], of the models.
      members: by name, in the order of the score table.
      member_temperatures: of each member's own probabilities.
      blend_weights: member -> weight, summing to one.
      blend_temperature: of the weighted sum.
      multipliers: float32 [C], see `stacking.decision_rule`.
      booster_parameters: booster -> parameters it was fitted with.
    """

    temperatures: np.ndarray
    members: Mapping[str, members.Member]
    member_temperatures: Mapping[str, float]
    blend_weights: Mapping[str, float]
    blend_temperature: float
    multipliers: np.ndarray
    booster_parameters: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )

    def predict(
        self, logits: np.ndarray, threads: int = 2
    ) -> Iterator[tuple[slice, dict[str | int, np.ndarray]]]:
        """Predicts a chunk of rows at a time.

        Args:
          logits: float32 [M, N, C].
          threads: at most so many for the boosters.

        Yields:
          (rows, probabilities): the probabilities float32 [n, C] of each
          model, keyed by its number, of each member by its name, and of the
          blend as "blend".
        """
        for start in range(0, logits.shape[1], _CHUNK):
            rows = slice(start, min(start + _CHUNK, logits.shape[1]))
            inputs = members.make_inputs(logits[:, rows], self.temperatures)
            found: dict[str | int, np.ndarray] = dict(
                enumerate(inputs.probabilities)
            )
            for name, member in self.members.items():
                found[name] = calibration.calibrated(
                    member.predict(inputs, threads),
                    self.member_temperatures[name],
                )
            total = weighted(found, self.blend_weights)
            found[BLEND] = calibration.calibrated(total, self.blend_temperature)
            yield rows, found

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """The blend's answer for its probabilities, int [N]."""
        return decision_rule.decide(probabilities, self.multipliers)


def weighted(
    probabilities: Mapping[Any, np.ndarray], weights: Mapping[str, float]
) -> np.ndarray:
    """The weighted sum of members' probabilities, float32 [N, C]."""
    terms = [
        probabilities[name] * np.float32(weight)
        for name, weight in weights.items()
    ]
    return sum(terms[1:], start=terms[0])


def fit_chain(
    logits: np.ndarray,
    labels: np.ndarray,
    settings: Settings,
    *,
    progress: Callable[[str], None] = lambda step: None,
) -> Chain:
    """Fits every part of the chain on the rows given.

    Members are judged (their temperatures, the blend, the decision) by their
    predictions on inner folds, which they make without the rows concerned.

    Args:
      logits: float32 [M, N, C].
      labels: int [N].
      settings: what was chosen.
      progress: called with a few words before each slow step.
    """
    sample = subsample(labels, MAX_ROWS, settings.seed)
    if len(sample) < len(labels):
        logits, labels = logits[:, sample], labels[sample]
    progress("temperatures")
    temperatures = np.array(
        [calibration.fit_temperature(model, labels) for model in logits]
    )
    inputs = members.make_inputs(logits, temperatures)
    folds = stratified_folds(labels, INNER_FOLDS, settings.seed + 1)
    row_weights = class_weights(labels, settings.class_weights)
    parameters = {
        kind: _parameters(
            kind, inputs, labels, folds, row_weights, settings, progress
        )
        for kind in settings.boosters
    }
    tasks = boosters.plan(
        settings.boosters, folds, settings.booster_seeds, settings.seed
    )

    def fit_booster(task: boosters.Task) -> boosters.Fit:
        name = f"{task.kind}, inner fold {task.fold + 1}/{INNER_FOLDS}"
        return boosters.fit(
            task,
            inputs.features,
            inputs.base,
            labels,
            folds,
            row_weights,
            parameters[task.kind],
            watch=lambda rounds: progress(f"{name}, round {rounds}"),
        )

    # One pool for everything: never more than `threads` jobs at once.
    progress("votes and boosters")
    with workers(settings.threads) as pool:
        rows = (inputs, labels, folds)
        others = {
            "soft_vote": pool.submit(
                members.fit_soft_vote, *rows, settings.trials, settings.seed
            ),
            "greedy_vote": pool.submit(members.fit_greedy_vote, *rows),
            "logistic": pool.submit(
                members.fit_regression, *rows, row_weights, settings.seed
            ),
        }
        fits = list(pool.map(fit_booster, tasks))
        fitted = {name: job.result() for name, job in others.items()}
    for kind in settings.boosters:
        own = [index for index, task in enumerate(tasks) if task.kind == kind]
        booster, out_of_booster = boosters.average(
            [tasks[index] for index in own],
            [fits[index] for index in own],
            inputs.features,
            inputs.base,
            folds,
            settings.threads,
        )
        fitted[kind] = members.Boosted(booster), out_of_booster
    out_of_fold = {name: found for name, (_, found) in fitted.items()}

    progress("blend")
    member_temperatures = {}
    for name, probabilities in out_of_fold.items():
        member_temperatures[name] = calibration.fit_temperature(
            calibration.log_probabilities(probabilities), labels
        )
        out_of_fold[name] = calibration.calibrated(
            probabilities, member_temperatures[name]
        )
    if settings.blend == "auto":
        weights = blend.choose(out_of_fold, labels, folds, settings.seed)
    else:
        weights = blend.preset(fitted)
    total = weighted(out_of_fold, weights)
    blend_temperature = calibration.fit_temperature(
        calibration.log_probabilities(total), labels
    )
    return Chain(
        temperatures=temperatures,
        members={name: member for name, (member, _) in fitted.items()},
        member_temperatures=member_temperatures,
        blend_weights=weights,
        blend_temperature=blend_temperature,
        multipliers=decision_rule.fit_multipliers(
            settings.decision,
            calibration.calibrated(total, blend_temperature),
            labels,
            folds,
        ),
        booster_parameters=parameters,
    )


def class_weights(labels: np.ndarray, kind: str) -> np.ndarray:
    """Row weights float64 [N] with mean one: equal, or "balanced"."""
    weights = np.ones(len(labels))
    if kind == "balanced":
        weights /= np.bincount(labels)[labels]
    return weights / weights.mean()


def _parameters(
    kind, inputs, labels, folds, row_weights, settings, progress
) -> dict[str, Any]:
    """A booster's parameters: the defaults, or those of a search."""
    if not settings.search_seconds:
        return dict(boosters.PARAMETERS[kind])
    return search.best_parameters(
        kind,
        inputs.features,
        labels,
        inputs.base,
        folds,
        row_weights,
        seconds=settings.search_seconds,
        storage=Path(settings.search_storage),
        seed=settings.seed,
        threads=settings.threads,
        progress=progress,
    )
