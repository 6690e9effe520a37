"""A finished run, opened to be used: its task and its best weights.

The run folder is all that is read: no photo that it was trained on, no cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from core import paths
from run_folder import inference
from training.checkpointing import init_from
from training.tasks import registry
from training.tasks.base import Statistics, Task


class SavedRun(NamedTuple):
    """What predicts.

    Attributes:
      task: of the run, with the statistics of its training rows.
      spec: how to feed it. The views are those of its last export, which may
        be others than its config had.
      weights: (params, batch_stats) of its best checkpoint.
    """

    task: Task
    spec: inference.InferenceSpec
    weights: tuple[dict, dict]


def open_run(folder: Path, mesh: Mesh) -> SavedRun:
    """Opens a run folder; changes nothing in it.

    Args:
      folder: of a run; of a run over all folds, fold 0 is taken.
      mesh: to place the weights on.

    Raises:
      UserError: it is no run folder, or has no evaluated checkpoint.
    """
    folder = paths.absolute(folder)  # A bare name is a folder here, not beside.
    run = init_from.open_run(str(folder), folder, 0, "--run")
    spec = inference.read(run.folder)
    task = registry.get(spec.task)(run.config, spec.classes)
    classes = len(spec.classes)
    task.statistics = Statistics(
        np.array(spec.mean, np.float32),
        np.array(spec.std, np.float32),
        # A photo that cannot be read gets this answer, and is told of.
        np.full(classes, 1 / max(classes, 1)),
    )
    return SavedRun(task, spec, run.weights(task.abstract_model, mesh))
