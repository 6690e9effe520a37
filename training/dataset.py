"""Which rows train, which validate, and which are predicted."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from core.errors import UserError
from input_pipeline import folds as folds_lib
from input_pipeline import statistics
from input_pipeline.sources import open_source
from input_pipeline.sources.base import Source


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A source with its rows divided into folds.

    Attributes:
      source: images, labels and classes.
      folds: int32 [N], the fold of each labelled row.
      fold: the one that validates; the others train.
    """

    source: Source
    folds: np.ndarray
    fold: int

    @property
    def train_rows(self) -> np.ndarray:
        """int [n], rows of `source.labelled` outside the fold."""
        return np.flatnonzero(self.folds != self.fold)

    @property
    def val_rows(self) -> np.ndarray:
        """int [m], rows of `source.labelled` in the fold."""
        return np.flatnonzero(self.folds == self.fold)

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.source.classes)

    @property
    def class_prior(self) -> np.ndarray:
        """float [C], the share of each class among the training rows."""
        labels = self.source.labelled.labels[self.train_rows]
        counts = np.bincount(labels, minlength=self.num_classes)
        return counts / counts.sum()

    @property
    def folds_hash(self) -> str:
        """Names the division; equal in every run that may be stacked."""
        return folds_lib.folds_hash(self.source.labelled.ids, self.folds)

    @property
    def rows_hash(self) -> str:
        """Names ids and labels in their order, which training depends on."""
        labelled = self.source.labelled
        digest = hashlib.sha256("\n".join(labelled.ids.tolist()).encode())
        digest.update(np.asarray(labelled.labels, np.int32).tobytes())
        return digest.hexdigest()[:16]

    def channel_stats(self, cache: Path) -> tuple[np.ndarray, np.ndarray]:
        """Returns (mean, std), float [3], of the training rows, over 0..1."""
        return statistics.channel_stats(
            self.source.labelled,
            self.train_rows,
            cache,
            f"{self.source.fingerprint}-{self.folds_hash}-{self.fold}",
        )


def load(data: ConfigDict, path: Path) -> Dataset:
    """Opens the data and divides it; writes nothing.

    Args:
      data: config.data.
      path: the folds file. Read if it is there; else the folds follow from
        ids, labels, `data.folds` and `data.folds_seed` alone.

    Raises:
      UserError: whatever is wrong with the folder, the csv or the folds.
    """
    source = open_source(data)
    folds = folds_lib.folds_for(source, data.folds, data.folds_seed, path)
    dataset = Dataset(source, folds, data.fold)
    if not len(dataset.val_rows) or not len(dataset.train_rows):
        raise UserError(
            f"fold {data.fold} of {data.folds} leaves "
            f"{len(dataset.train_rows)} images to train and "
            f"{len(dataset.val_rows)} to validate; set --config.data.folds "
            "lower or --config.data.fold to another one"
        )
    return dataset
