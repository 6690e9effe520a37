"""train.py inside this process, a second per run: for tests of many runs.

Compiled steps are shared between runs of one recipe, as they would be if
tracing them took no time; all else is what the command does.
"""

import contextlib
import json
from pathlib import Path
from unittest import mock

import numpy as np
from commands import CACHE, ROOT
from ml_collections import ConfigDict

import train
from configs import loading
from training.loop import evaluate, step
from training.tasks import classify

# Two stages of eight steps, four evaluations.
TINY = (
    f"--config={ROOT / 'tests/end_to_end/tiny_recipe.py'}",
    f"--config.cache_dir={CACHE}",
)
_kept = {}


def training(workdir: Path, *arguments: str) -> int:
    """Returns the exit code of `train.py --workdir=<workdir> <arguments>`."""
    with contextlib.ExitStack() as patches:
        for owner, name in (
            (step, "make_train_step"),
            (evaluate, "make_eval_step"),
            (classify, "make_predict_step"),
        ):
            make = _once(getattr(owner, name))
            patches.enter_context(mock.patch.object(owner, name, make))
        try:
            return train.main([*TINY, f"--workdir={workdir}", *arguments])
        except SystemExit as end:
            return end.code


def _once(make):
    def remembered(abstract_model, *arguments, **named):
        key = repr((make.__name__, _content(arguments), named))
        if key not in _kept:
            _kept[key] = make(abstract_model, *arguments, **named)
        return _kept[key]

    return remembered


def _content(value):
    """What distinguishes one step from another: all but functions."""
    if isinstance(value, (tuple, list)):
        return [_content(item) for item in value]
    if isinstance(value, dict):
        return {key: _content(item) for key, item in value.items()}
    if hasattr(value, "shape"):
        return np.asarray(value).tobytes()
    if callable(value):
        return None
    if isinstance(value, ConfigDict):
        return json.dumps(loading.plain(value))
    if hasattr(value, "__dict__"):  # An evaluator.
        return type(value).__name__, _content(vars(value))
    return value
