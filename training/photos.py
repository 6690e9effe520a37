"""New photos, which belong to no run: loaded, and what is written of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from input_pipeline import loader
from input_pipeline.sources.base import Examples, FileExamples
from input_pipeline.sources.cleaned import cleaned


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
      clean_impulses: as `data.clean_impulses` of the run.

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
        clean_impulses: bool = False,
    ):
        self.mesh, self._batch_size, self._shrinks = mesh, batch_size, shrinks
        unknown = np.full(len(paths), -1, np.int32)
        files = FileExamples(np.array(paths), unknown, folder="/", names=paths)
        self.examples = cleaned(files) if clean_impulses else files
        self.rows = np.arange(len(paths))

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
