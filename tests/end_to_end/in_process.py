"""train.py inside this process, a second per run: for tests of many runs.

Compiled steps are shared between runs of one recipe, as they would be if
tracing them took no time; all else is what the command does.
"""

import json
from pathlib import Path
from unittest import mock

import numpy as np
from commands import CACHE, ROOT

import train
from configs import loading
from training.loop import state
from training.tasks import classify

# Two stages of eight steps, four evaluations.
TINY = (
    f"--config={ROOT / 'tests/end_to_end/tiny_recipe.py'}",
    f"--config.cache_dir={CACHE}",
)
_kept = {}


def training(workdir: Path, *arguments: str) -> int:
    """Returns the exit code of `train.py --workdir=<workdir> <arguments>`."""
    steps = mock.patch.object(
        state, "make_train_step", _once(state.make_train_step)
    )
    predictions = mock.patch.object(
        classify, "make_predict_step", _once(classify.make_predict_step)
    )
    with steps, predictions:
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
    return json.dumps(loading.plain(value))
