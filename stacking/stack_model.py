"""The whole stack, from logits to the blend, as one model that is fitted.

    temperatures -> soft vote, greedy vote, regression, boosters
                 -> their temperatures -> blend -> decision

`fit_stack_model` sees the rows it is given and nothing else. So an unbiased
score of every part is one loop (`stacking.nested_cv`): fit on some rows,
predict the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stacking import (
    blend,
    boosters,
    calibration,
    decision_rule,
    meta_learners,
    search,
    search_storage,
)
from stacking.stratified import stratified_folds, subsample
from stacking.thread_pool import thread_pool

INNER_FOLDS = 3
# More rows move the weights by less than their own noise, and cost time.
MAX_ROWS = 25_000
# Rows predicted at once: bounds memory.
_CHUNK = 10_000

BLEND = "blend"


@dataclass(frozen=True)
class Settings:
    """What a person can choose about the stack.

    Attributes:
      seed: of everything random.
      trials: weightings that the soft vote tries.
      boosters: which of `boosters.KINDS` take part.
      booster_seeds: fits per inner fold, averaged.
      class_weights: "none", or "balanced" for rows weighted by the inverse
        of their class's frequency.
      blend: one of `blend.KINDS`.
      decision: one of `decision_rule.RULES`.
      search_seconds: for each search over one booster's parameters; 0 for
        none.
      search_storage: file of the searches, or the URL of a database.
      threads: at most so many for the boosters.
    """

    seed: int = 0
    trials: int = 200
    boosters: tuple[str, ...] = boosters.KINDS
    booster_seeds: int = 1
    class_weights: str = "none"
    blend: str = "guarded"
    decision: str = "argmax"
    search_seconds: float = 0.0
    search_storage: str = ""
    threads: int = 2

    def described(self) -> dict[str, Any]:
        """Returns all of it by name, for files: without a password."""
        storage = search_storage.without_password(self.search_storage)
        return {**dataclasses.asdict(self), "search_storage": storage}


@dataclass(frozen=True)
class StackModel:
    """A fitted stack.

    Attributes:
      temperatures: float64 [M], of the models.
      meta_learners: by name, in the order of the score table.
      meta_learner_temperatures: of each meta-learner's own probabilities.
      blend_weights: meta-learner -> weight, summing to one.
      blend_temperature: of the weighted sum.
      multipliers: float32 [C], see `stacking.decision_rule`.
      booster_parameters: booster -> parameters it was fitted with.
    """

    temperatures: np.ndarray
    meta_learners: Mapping[str, meta_learners.MetaLearner]
    meta_learner_temperatures: Mapping[str, float]
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
          model, keyed by its number, of each meta-learner by its name, and
          of the blend as "blend".
        """
        for start in range(0, logits.shape[1], _CHUNK):
            rows = slice(start, min(start + _CHUNK, logits.shape[1]))
            inputs = meta_learners.make_inputs(
                logits[:, rows], self.temperatures
            )
            found: dict[str | int, np.ndarray] = dict(
                enumerate(inputs.probabilities)
            )
            for name, learner in self.meta_learners.items():
                found[name] = calibration.calibrated(
                    learner.predict(inputs, threads),
                    self.meta_learner_temperatures[name],
                )
            total = blend.weighted(found, self.blend_weights)
            found[BLEND] = calibration.calibrated(total, self.blend_temperature)
            yield rows, found

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """The blend's answer for its probabilities, int [N]."""
        return decision_rule.decide(probabilities, self.multipliers)


def fit_stack_model(
    logits: np.ndarray,
    labels: np.ndarray,
    settings: Settings,
    *,
    groups: np.ndarray | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> StackModel:
    """Fits every part of the stack on the rows given.

    Meta-learners are judged (their temperatures, the blend, the decision) by
    their predictions on inner folds, made without the rows concerned.

    Args:
      logits: float32 [M, N, C].
      labels: int [N].
      settings: what was chosen.
      groups: str [N], rows that inner folds keep together; None without.
      progress: called with a few words before each slow step.
    """
    sample = subsample(labels, MAX_ROWS, settings.seed)
    if len(sample) < len(labels):
        logits, labels = logits[:, sample], labels[sample]
        groups = None if groups is None else groups[sample]
    progress("temperatures")
    temperatures = np.array(
        [calibration.fit_temperature(model, labels) for model in logits]
    )
    inputs = meta_learners.make_inputs(logits, temperatures)
    folds = stratified_folds(labels, INNER_FOLDS, settings.seed + 1, groups)
    row_weights = class_weights(labels, settings.class_weights)
    parameters = {
        kind: _parameters(
            kind, inputs, labels, folds, row_weights, settings, progress
        )
        for kind in settings.boosters
    }
    specs = boosters.fit_specs(
        settings.boosters, folds, settings.booster_seeds, settings.seed
    )

    def fit_booster(spec: boosters.FitSpec) -> boosters.Fit:
        name = f"{spec.kind}, inner fold {spec.fold + 1}/{INNER_FOLDS}"
        return boosters.fit(
            spec,
            inputs.features,
            inputs.base,
            labels,
            folds,
            row_weights,
            parameters[spec.kind],
            progress=lambda rounds: progress(f"{name}, round {rounds}"),
        )

    # One pool for everything: never more than `threads` jobs at once.
    progress("votes and boosters")
    with thread_pool(settings.threads) as pool:
        rows = (inputs, labels, folds)
        others = {
            "soft_vote": pool.submit(
                meta_learners.fit_soft_vote,
                *rows,
                settings.trials,
                settings.seed,
            ),
            "greedy_vote": pool.submit(meta_learners.fit_greedy_vote, *rows),
            "logistic": pool.submit(
                meta_learners.fit_regression, *rows, row_weights, settings.seed
            ),
        }
        fits = list(pool.map(fit_booster, specs))
        fitted = {name: job.result() for name, job in others.items()}
    for kind in settings.boosters:
        own = [index for index, spec in enumerate(specs) if spec.kind == kind]
        booster, out_of_booster = boosters.average(
            [specs[index] for index in own],
            [fits[index] for index in own],
            inputs.features,
            inputs.base,
            folds,
            settings.threads,
        )
        fitted[kind] = meta_learners.Boosted(booster), out_of_booster
    out_of_fold = {name: found for name, (_, found) in fitted.items()}

    progress("blend")
    meta_learner_temperatures = {}
    for name, probabilities in out_of_fold.items():
        out_of_fold[name], meta_learner_temperatures[name] = (
            calibration.recalibrated(probabilities, labels)
        )
    if settings.blend == "auto":
        weights = blend.choose_weights(
            out_of_fold, labels, folds, settings.seed
        )
    elif settings.blend == "guarded":
        weights = blend.guarded_weights(
            out_of_fold, inputs.probabilities, labels
        )
    else:
        weights = blend.reference_weights(out_of_fold)
    total, blend_temperature = calibration.recalibrated(
        blend.weighted(out_of_fold, weights), labels
    )
    return StackModel(
        temperatures=temperatures,
        meta_learners={name: learner for name, (learner, _) in fitted.items()},
        meta_learner_temperatures=meta_learner_temperatures,
        blend_weights=weights,
        blend_temperature=blend_temperature,
        multipliers=decision_rule.fit_multipliers(
            settings.decision,
            total,
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
        storage=settings.search_storage,
        seed=settings.seed,
        threads=settings.threads,
        progress=progress,
    )
