"""New photos, which belong to no run: loaded, and what is written of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import common
from input_pipeline import loader
from input_pipeline.sources.base import Examples, FileExamples
from input_pipeline.sources.cleaned import cleaned
from input_pipeline.sources.upscaled import upscaled
from training import upscaling


class PhotoFiles(NamedTuple):
    """What predict.py writes about photos.

    Attributes:
      folder: on a disk or in a bucket.
      names: of each photo, without an ending; unique.
      probabilities: whether those of the pixels are written, too.
    """

    folder: Path
    names: Sequence[str]
    probabilities: bool = False


class Photos:
    """Photos to predict.

    Args:
      paths: absolute, of the files.
      batch_size: of a prediction.
      mesh: devices that share the batches.
      shrinks: whether few rows make a small batch, as where these are all
        the photos; else a last batch is filled up.
      config: of the run, whose steps of the source the photos take:
        `data.clean_impulses` and `data.upscale`. None takes none.

    Attributes:
      examples: of the photos.
      rows: int [N], all of them.
      mesh: devices that share the batches.
    """

    def __init__(
        self,
        paths: Sequence[str],
        batch_size: int,
        mesh: Mesh,
        *,
        shrinks: bool = True,
        config: ConfigDict | None = None,
    ):
        self.mesh, self._batch_size, self._shrinks = mesh, batch_size, shrinks
        unknown = np.full(len(paths), -1, np.int32)
        names = np.array(paths)
        self.examples = FileExamples(names, unknown, folder="/", names=paths)
        if config is not None:
            self._take_steps(config)
        self.rows = np.arange(len(paths))

    def _take_steps(self, config: ConfigDict) -> None:
        # Runs of before have no such fields.
        if config.data.get("clean_impulses", False):
            self.examples = cleaned(self.examples)
        # A run may come from a machine whose cache does not exist here.
        cache = Path(common.CACHE_DIR).expanduser()
        if (step := upscaling.step_of(config, cache)) is not None:
            self.examples = upscaled(self.examples, step)
            upscaling.prepare(self.examples)

    def batches(
        self, examples: Examples, rows: np.ndarray, transform: loader.Transform
    ) -> loader.Batches:
        """Returns batches of evaluation; see `loader.eval_batches`.

        Args:
          examples: the photos, or what they are cut into.
          rows: int [N], which of them.
          transform: makes them what the model is given.
        """
        size = self._batch_size
        if self._shrinks:
            size = min(size, max(len(rows), 1))
        size = -(-size // self.mesh.size) * self.mesh.size  # Shared evenly.
        return loader.eval_batches(examples, rows, transform, batch_size=size)
