"""What a model must know of the rows that it was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from training.data import Data


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of the training rows; saved with the run.

    Attributes:
      mean: float32 [3], channel means over 0..1 values.
      std: float32 [3], channel standard deviations.
      class_prior: float [C], the share of each class among rows, or among
        pixels where there are masks; empty without classes.
      class_prior_where_present: float [C], the share of a class among the
        pixels of the images that have it; 1 without masks.
      rows: number of training rows; 0 in a saved run, which trains no more.
    """

    mean: np.ndarray
    std: np.ndarray
    class_prior: np.ndarray
    class_prior_where_present: np.ndarray
    rows: int = 0

    @classmethod
    def of(cls, data: Data, mean: np.ndarray, std: np.ndarray) -> Statistics:
        """Returns the statistics of a run's training rows.

        Args:
          data: of the run.
          mean: float32 [3], of the channels.
          std: float32 [3], of the channels.
        """
        shares = data.class_prior, data.class_prior_where_present
        return cls(mean, std, *shares, len(data.train_rows))

    @classmethod
    def unknown(cls, data: Data) -> Statistics:
        """Returns statistics for a plan, which reads no image."""
        return cls.of(data, np.zeros(3, np.float32), np.ones(3, np.float32))

    def with_channels(self, given: Mapping[str, Any]) -> Statistics:
        """Returns the same for images normalised otherwise.

        Args:
          given: `mean` and `std`, three numbers each; without them nothing
            changes.
        """
        channels = {
            name: np.array(given[name], np.float32)
            for name in ("mean", "std")
            if name in given
        }
        return dataclasses.replace(self, **channels)

    @property
    def channels(self) -> dict[str, np.ndarray]:
        """`mean` and `std` by name, as constants of a jitted step."""
        return {"mean": self.mean, "std": self.std}
