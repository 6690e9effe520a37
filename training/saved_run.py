"""A finished run, opened to be used: its task and its best weights.

The run folder is all that is read: no photo that it was trained on, no cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from core import paths
from run_folder import inference
from training.checkpointing import init_from
from training.tasks import registry
from training.tasks.base import Task


class SavedRun(NamedTuple):
    """What predicts.

    Attributes:
      task: of the run, with the statistics of its training rows. The views
        are those of its last export, which may be others than its config had.
      weights: (params, batch_stats) of its best checkpoint.
      spec: what the run says of itself.
    """

    task: Task
    weights: tuple[dict, dict]
    spec: inference.InferenceSpec


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
    task.restore(spec)
    return SavedRun(task, run.weights(task.abstract_model, mesh), spec)
