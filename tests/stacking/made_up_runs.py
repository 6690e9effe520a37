"""Made-up runs: logits of models that are right more often than not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from run_folder.predictions import Logits, write_logits

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
    encode_error = {
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
                encode_error,
            ),
        )
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder
