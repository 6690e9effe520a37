"""Optuna search over the boosters' parameters, bounded in time, resumable.

A search belongs to the exact rows, features and folds it was made on: its
name is their hash. So each outer fold has a search of its own, which never
sees the rows that it will be scored on, and a storage file that holds many
searches cannot mix them up.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna

from stacking import boosters, calibration
from stacking.boosters import PARAMETERS
from stacking.search_storage import open_storage, using
from stacking.thread_pool import thread_pool

_SPENT = "seconds spent"


def best_parameters(
    kind: str,
    features: np.ndarray,
    labels: np.ndarray,
    base: np.ndarray,
    folds: np.ndarray,
    row_weights: np.ndarray,
    *,
    seconds: float,
    storage: str,
    seed: int,
    threads: int,
    progress: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Parameters of the lowest log-loss over the inner folds.

    The defaults are tried first. Time spent in earlier calls on the same
    storage counts, so a stopped search goes on where it was, and a finished
    one costs nothing.

    Args:
      kind: "catboost" or "lightgbm".
      features: float32 [N, D].
      labels: int [N].
      base: float32 [N, C], the models' mean.
      folds: int [N], the inner folds.
      row_weights: float [N], mean one.
      seconds: to spend in all; a trial that has begun is finished.
      storage: file of the searches, made if absent, or the URL of a database.
      seed: of sampler and boosters.
      threads: fits side by side.
      progress: called with a few words after each trial.

    Raises:
      UserError: the storage cannot be used.
    """
    name = _name(kind, (features, base, labels, folds, row_weights), seed)
    with using(storage):
        study = optuna.create_study(
            direction="minimize",
            sampler=optuna.samplers.TPESampler(
                seed=seed, multivariate=True, n_startup_trials=8
            ),
            storage=open_storage(storage),
            study_name=name,
            load_if_exists=True,
        )
    specs = boosters.fit_specs((kind,), folds, 1, seed)

    def loss(parameters: dict[str, Any]) -> float:
        with thread_pool(threads) as pool:
            fits = list(
                pool.map(
                    lambda spec: boosters.fit(
                        spec,
                        features,
                        base,
                        labels,
                        folds,
                        row_weights,
                        parameters,
                    ),
                    specs,
                )
            )
        _, found = boosters.average(specs, fits, features, base, folds, threads)
        return calibration.weighted_log_loss(found, labels, row_weights)

    while True:
        spent = float(study.user_attrs.get(_SPENT, 0.0))
        done = study.get_trials(
            deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)
        )
        if done and spent >= seconds:
            break
        started = time.monotonic()
        with using(storage):
            trial = study.ask()
            parameters = (
                _suggest(kind, trial) if done else dict(PARAMETERS[kind])
            )
            trial.set_user_attr("parameters", parameters)
        value = loss(parameters)
        with using(storage):
            study.tell(trial, value)
            spent += time.monotonic() - started
            study.set_user_attr(_SPENT, spent)
        progress(
            f"{kind} search, trial {len(done) + 1}, log-loss "
            f"{study.best_value:.4f}, {max(seconds - spent, 0):.0f} s left"
        )
    return dict(study.best_trial.user_attrs["parameters"])


def _suggest(kind: str, trial: optuna.Trial) -> dict[str, Any]:
    if kind == "catboost":
        return {
            **PARAMETERS[kind],
            "learning_rate": trial.suggest_float("rate", 0.03, 0.3, log=True),
            "depth": trial.suggest_int("depth", 2, 6),
            "l2_leaf_reg": trial.suggest_float("l2", 1.0, 30.0, log=True),
            "rsm": trial.suggest_float("columns", 0.05, 1.0, log=True),
        }
    return {
        **PARAMETERS[kind],
        "learning_rate": trial.suggest_float("rate", 0.02, 0.2, log=True),
        "max_depth": -1,
        "num_leaves": trial.suggest_int("leaves", 4, 31, log=True),
        "lambda_l2": trial.suggest_float("l2", 0.1, 50.0, log=True),
        "min_data_in_leaf": trial.suggest_int("leaf_rows", 1, 30, log=True),
        "feature_fraction": trial.suggest_float("columns", 0.05, 1.0, log=True),
    }


def _name(kind, arrays, seed) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"{kind} seed {seed} {digest.hexdigest()[:16]}"
