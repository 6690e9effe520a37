"""Made-up runs: logits of models that are right more often than not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from run_folder.predictions import Logits, write_logits
from stacking.align import make_table
from stacking.calibration import fit_temperature
from stacking.meta_learners import make_inputs
from stacking.runs import find_runs, read_runs

CLASSES = ("10", "11", "13", "20")


def made_up(rows, classes, models, seed, *, skill=2.0, noise=1.0, shares=None):
    """(logits float32 [M, N, C], labels int32 [N]) of fair models.

    The models share what makes a row hard, and each adds noise of its own.
    """
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, rows, p=shares).astype(np.int32)
    shared = rng.normal(size=(rows, classes))
    shared[np.arange(rows), labels] += skill
    own = rng.normal(size=(models, rows, classes)) * noise
    return (1.5 * (shared + own)).astype(np.float32), labels


def make_calibrated(logits, labels):
    """What meta-learners see of calibrated logits [M, N, C]."""
    temperatures = [fit_temperature(model, labels) for model in logits]
    return make_inputs(logits, np.array(temperatures))


def write_run(
    folder: Path,
    val,
    test=None,
    *,
    classes=CLASSES,
    ids=None,
    fold=None,
    config=None,
    **metadata,
):
    """Writes one run; `val` and `test` are (logits [N, C], labels [N])."""
    metadata_of_run = {
        "model": folder.name,
        "config_hash": f"hash of {folder.name}",
        "folds_hash": "folds",
        "tta_views": ["center"],
        "seed": 0,
        **metadata,
    }
    for split, given in (("val", val), ("test", test)):
        if given is None:
            continue
        logits, labels = given
        own = ids if ids is not None and split == "val" else None
        if own is None:
            own = np.array([f"{split}-{i:05}" for i in range(len(labels))])
        folds = np.full(len(labels), -1)
        if split == "val" and fold is not None:
            folds = np.broadcast_to(fold, len(labels))
        write_logits(
            folder / "logits" / f"{split}.npz",
            Logits(
                np.asarray(own),
                logits,
                labels,
                np.array(classes),
                folds,
                metadata_of_run,
            ),
        )
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_folds_of(folder, seed, logits, labels, test, *, join=False):
    """Three runs in `folder`/fold-<k>; with `join`, also their whole."""
    ids = np.array([f"{i:03}" for i in range(len(labels))])
    fold = np.arange(len(labels)) % 3
    shared = {"model": "vit", "seed": seed}
    for k in range(3):
        rows = fold == k
        write_run(
            folder / f"fold-{k}",
            (logits[rows], labels[rows]),
            (test[k], np.full(len(test[k]), -1, np.int32)),
            ids=ids[rows],
            fold=k,
            val_fold=k,
            config_hash=f"{seed} {k}",
            config={"model": "vit", "seed": seed, "data": {"fold": k}},
            **shared,
        )
    if join:
        write_run(
            folder,
            (logits, labels),
            (test.mean(axis=0), np.full(len(test[0]), -1, np.int32)),
            ids=ids,
            fold=fold,
            config_hash=f"{seed} 0",
            fold_runs=["fold-0", "fold-1", "fold-2"],
            **shared,
        )
        lines = [f"{name},{k}" for name, k in zip(ids, fold, strict=True)]
        (folder / "folds.csv").write_text("id,fold\n" + "\n".join(lines) + "\n")


def table_of(folder, splits=("val", "test")):
    """The aligned rows of all runs in a folder."""
    return make_table(read_runs(find_runs([f"{folder}/*"]), splits))


def refused(folder, message):
    """Asserts that a folder of runs is refused, in one sentence."""
    with pytest.raises(UserError, match=message) as caught:
        table_of(folder)
    assert "\n" not in str(caught.value)
