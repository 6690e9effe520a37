"""Gradient-boosted trees on the meta-features: CatBoost and LightGBM.

Each booster is an average of several fits. One fit leaves out one inner fold
and stops when that fold's log-loss stops falling, so every row of the fold
gets a prediction from trees that never saw it: these serve calibration and
the choice of the blend.

Trees begin at the models' mean, calibrated, and learn what to change in it. To
find the vote itself, one threshold after the other, takes them hundreds of
rounds and more rows than there are: on a few hundred rows they would end far
behind the mean they were given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from core.atomic_files import temporary_folder
from metrics import classification
from stacking import calibration

KINDS = ("catboost", "lightgbm")
_ITERATIONS = 500
_PATIENCE = 40
# Without a row to stop on, about where the stopped ones end.
_ITERATIONS_UNSTOPPED = 30
# Rounds between two calls of `progress`.
_PROGRESS_EVERY = 10

# Names are those of each library. The reference solution's 500 trees of depth
# 4 at rate .05, but with a stop; CatBoost, which was still learning after 500,
# goes twice as fast. 32 borders are plenty for columns that are nearly
# monotone in the answer.
PARAMETERS: dict[str, dict[str, Any]] = {
    "catboost": {
        "learning_rate": 0.1,
        "depth": 4,
        "l2_leaf_reg": 3.0,
        "border_count": 32,
    },
    "lightgbm": {
        "learning_rate": 0.05,
        "max_depth": 4,
        "num_leaves": 15,
        "lambda_l2": 10.0,
        "min_data_in_leaf": 5,
        "max_bin": 63,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
    },
}


def column_share(columns: int) -> float:
    """The share of the columns that a tree may use.

    Meta-features repeat each other. Trees that see few of them differ more,
    average better, and take a fraction of the time: of 1,238 columns, a share
    of .03 gave a lower log-loss than .1 in half the time.
    """
    return min(1.0, max(0.03, 16 / columns))


@dataclass(frozen=True)
class Fit:
    """One fitted booster.

    Attributes:
      kind: "catboost" or "lightgbm".
      model: the library's own serialised form; empty if there was but one
        class to learn.
      present: int32 [P], the classes it has seen.
      temperature: of the models' mean, where the trees begin.
    """

    kind: str
    model: bytes
    present: np.ndarray
    temperature: float = 1.0

    def predict(
        self, features: np.ndarray, base: np.ndarray, threads: int
    ) -> np.ndarray:
        """Probabilities float32 [N, C].

        Args:
          features: float32 [N, D].
          base: float32 [N, C], the models' mean.
          threads: at most so many.
        """
        if not self.model:
            return base
        raw = _raw_scores(self.kind, self.model, features, threads)
        raw += _start(base[:, self.present], self.temperature)
        found = np.exp(classification.log_softmax(raw))
        return fill_absent_classes(found, self.present, base)


@dataclass(frozen=True)
class Booster:
    """The average of several fits."""

    fits: tuple[Fit, ...]

    def predict(
        self, features: np.ndarray, base: np.ndarray, threads: int
    ) -> np.ndarray:
        """Probabilities float32 [N, C]; see `Fit.predict` for `base`."""
        total = self.fits[0].predict(features, base, threads)
        for fit in self.fits[1:]:
            total = total + fit.predict(features, base, threads)
        return total / np.float32(len(self.fits))


def fill_absent_classes(
    found: np.ndarray, present: np.ndarray, base: np.ndarray
) -> np.ndarray:
    """Spreads probabilities over the classes present to all classes.

    Classes that a fit never saw keep their share of `base`: knowing nothing
    of a class is no reason to rule it out.

    Args:
      found: float32 [N, P].
      present: int32 [P].
      base: float32 [N, C].

    Returns:
      float32 [N, C].
    """
    if len(present) == base.shape[1]:
        return found
    spread = base.copy()
    share = base[:, present].sum(axis=1, keepdims=True)
    spread[:, present] = found * share
    return spread


def _start(base: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities float32 [N, P] of the calibrated mean [N, P]."""
    return classification.log_softmax(
        calibration.log_probabilities(base), temperature
    )


@dataclass(frozen=True)
class FitSpec:
    """One fit to be done.

    Attributes:
      kind: "catboost" or "lightgbm".
      fold: the inner fold that is left out and stopped on.
      seed: of the library.
    """

    kind: str
    fold: int
    seed: int


def fit_specs(
    kinds: Sequence[str], folds: np.ndarray, seeds: int, seed: int
) -> list[FitSpec]:
    """One fit per booster, seed and inner fold; `folds` is int [N]."""
    return [
        FitSpec(kind, int(fold), seed + 1000 * repeat + int(fold))
        for kind in kinds
        for repeat in range(seeds)
        for fold in np.unique(folds)
    ]


def fit(
    spec: FitSpec,
    features: np.ndarray,
    base: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    row_weights: np.ndarray,
    parameters: Mapping[str, Any],
    progress: Callable[[int], None] = lambda rounds: None,
) -> Fit:
    """Fits once, on one thread.

    Threads of one fit would wait for each other at every node of every small
    tree. Fits side by side lose nothing, and no answer depends on the number
    of threads.

    Args:
      spec: what to fit.
      features: float32 [N, D].
      base: float32 [N, C], the models' mean.
      labels: int [N].
      folds: int [N], the inner folds.
      row_weights: float [N], mean one.
      parameters: the library's own names; see `PARAMETERS`.
      progress: called now and then with the number of rounds done.
    """
    kept = np.flatnonzero(folds != spec.fold)
    present, targets = np.unique(labels[kept], return_inverse=True)
    present = present.astype(np.int32)
    if len(present) < 2:
        return Fit(spec.kind, b"", present)
    # Neither library can score a class that it has no rows of.
    held = np.flatnonzero((folds == spec.fold) & np.isin(labels, present))
    temperature = calibration.fit_temperature(
        calibration.log_probabilities(base[kept][:, present]), targets
    )

    def rows(chosen: np.ndarray) -> _Rows:
        return _Rows(
            features[chosen],
            np.searchsorted(present, labels[chosen]),
            row_weights[chosen],
            _start(base[chosen][:, present], temperature),
        )

    library = _fit_catboost if spec.kind == "catboost" else _fit_lightgbm
    train, stop, callback = rows(kept), rows(held), _Callback(progress)
    model = library(train, stop, len(present), parameters, spec.seed, callback)
    return Fit(spec.kind, model, present, temperature)


def average(
    specs: Sequence[FitSpec],
    fits: Sequence[Fit],
    features: np.ndarray,
    base: np.ndarray,
    folds: np.ndarray,
    threads: int,
) -> tuple[Booster, np.ndarray]:
    """The booster of all fits of one kind, and its out-of-fold rows.

    Returns:
      The booster, and float32 [N, C]: each row's probabilities from the fits
      that left its fold out.
    """
    out_of_fold = np.zeros_like(base)
    count = np.zeros((len(base), 1), np.float32)
    for spec, fitted in zip(specs, fits, strict=True):
        held = folds == spec.fold
        out_of_fold[held] += fitted.predict(features[held], base[held], threads)
        count[held] += 1
    return Booster(tuple(fits)), out_of_fold / count


# The libraries are imported where they are used: together they take seconds,
# and a refused command line should not.


@dataclass(frozen=True)
class _Callback:
    """Reports every few rounds; each library calls it in its own way."""

    progress: Callable[[int], None]

    def __call__(self, state) -> None:
        """LightGBM's way."""
        self._done(state.iteration + 1)

    def after_iteration(self, state) -> bool:
        """CatBoost's way; true for going on."""
        self._done(state.iteration)
        return True

    def _done(self, rounds: int) -> None:
        if rounds % _PROGRESS_EVERY == 0:
            self.progress(rounds)


class _Rows(NamedTuple):
    """What a library is given: of the rows to learn from, or to stop on."""

    features: np.ndarray  # float32 [n, D]
    targets: np.ndarray  # int [n], index into the classes present
    weights: np.ndarray  # float [n]
    start: np.ndarray  # float32 [n, P], log-probabilities


def _fit_catboost(train, stop, classes, parameters, seed, callback) -> bytes:
    import catboost

    settings = {
        "loss_function": "MultiClass",
        "classes_count": classes,
        "random_seed": seed,
        "thread_count": 1,
        "verbose": False,
        "allow_writing_files": False,
        "rsm": column_share(train.features.shape[1]),
        **parameters,
    }
    model = catboost.CatBoost(settings)

    def pool(rows: _Rows) -> catboost.Pool:
        return catboost.Pool(
            rows.features,
            rows.targets,
            weight=rows.weights,
            baseline=rows.start,
        )

    if len(stop.targets):
        model.set_params(
            iterations=_ITERATIONS, od_type="Iter", od_wait=_PATIENCE
        )
        model.fit(
            pool(train),
            eval_set=pool(stop),
            use_best_model=True,
            callbacks=[callback],
        )
    else:
        model.set_params(iterations=_ITERATIONS_UNSTOPPED)
        model.fit(pool(train), callbacks=[callback])
    with temporary_folder() as folder:
        path = folder / "model.cbm"
        model.save_model(str(path))
        return path.read_bytes()


def _fit_lightgbm(train, stop, classes, parameters, seed, callback) -> bytes:
    import lightgbm

    settings = {
        "objective": "multiclass",
        "num_class": classes,
        "seed": seed,
        "num_threads": 1,
        "verbose": -1,
        "deterministic": True,
        "force_row_wise": True,
        "feature_fraction": column_share(train.features.shape[1]),
        **parameters,
    }
    data = lightgbm.Dataset(
        train.features,
        train.targets,
        weight=train.weights,
        init_score=train.start,
        params=settings,
    )
    if len(stop.targets):
        held = data.create_valid(
            stop.features,
            stop.targets,
            weight=stop.weights,
            init_score=stop.start,
        )
        model = lightgbm.train(
            settings,
            data,
            _ITERATIONS,
            valid_sets=[held],
            callbacks=[
                lightgbm.early_stopping(_PATIENCE, verbose=False),
                callback,
            ],
        )
    else:
        model = lightgbm.train(
            settings,
            data,
            _ITERATIONS_UNSTOPPED,
            callbacks=[callback],
        )
    text = model.model_to_string(num_iteration=model.best_iteration)
    return text.encode()


@functools.lru_cache(maxsize=32)
def load_trees(kind: str, model: bytes):
    """Returns the library's own model of a `Fit`."""
    if kind == "catboost":
        import catboost

        return catboost.CatBoost().load_model(blob=model)
    import lightgbm

    return lightgbm.Booster(model_str=model.decode())


def _raw_scores(kind, model: bytes, features, threads: int) -> np.ndarray:
    """What the trees add to the start, float32 [N, P]."""
    # From the serialised form: fitted and loaded trees predict the same bits.
    trees = load_trees(kind, model)
    if kind == "catboost":
        import catboost

        found = trees.predict(
            catboost.Pool(features), "RawFormulaVal", thread_count=threads
        )
    else:
        found = trees.predict(features, raw_score=True, num_threads=threads)
    return np.asarray(found, np.float32)
