"""The photos of one run, as batches to train on and rows to look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from core.errors import UserError
from input_pipeline import folds as folds_lib
from input_pipeline import loader
from input_pipeline.samplers import BalancedSampler
from input_pipeline.sources.base import Examples
from input_pipeline.transforms.policy import Augment, TrainTransform
from input_pipeline.transforms.views import EvalTransform
from training import dataset
from training.loop.stages import Stage
from training.multihost import comm, sharding

# Validation images up to this size are decoded once and kept.
VALIDATION_BYTES_IN_MEMORY = 2**30


class Feed:
    """What every task over photos reads; constructing it writes nothing.

    Args:
      config: of the run.
      workdir: the run folder; `folds.csv` is kept there unless
        `data.folds_file` says otherwise.
      mesh: devices that share the batches.
      workers: loader processes; 0 loads in this process.

    Attributes:
      data: the source with its folds.
      mean: float [3], channel means over 0..1; 0 before `prepare`.
      std: float [3], their standard deviations; 1 before `prepare`.

    Raises:
      UserError: the data or a batch size is wrong.
    """

    def __init__(
        self, config: ConfigDict, workdir: Path, mesh: Mesh, workers: int
    ):
        self._config, self._mesh, self._workers = config, mesh, workers
        self._folds_path = _folds_path(config, workdir)
        self.data = dataset.load(config.data, self._folds_path)
        _check_batches(config, mesh)
        self._validation: list[dict] | None = None
        self.mean, self.std = np.zeros(3, np.float32), np.ones(3, np.float32)

    def identity(self) -> dict[str, object]:
        """Returns what must not change while the run lives, as JSON."""
        return {
            "classes": list(self.data.source.classes),
            "folds_hash": self.data.folds_hash,
            "rows_hash": self.data.rows_hash,
        }

    def describe(self) -> dict[str, str]:
        """Returns what the plan says of the data, as {heading: text}."""
        source, config = self.data.source, self._config.data
        test = f"{len(source.test):,} to predict" if source.test else "no test"
        where = config.root or "inside scikit-learn"
        if source.name.startswith("tfds:"):
            where = config.root or "in tfds' own folder"
        return {
            "data": f"{source.name}, {where}",
            "classes": f"{self.data.num_classes}",
            "images": f"{len(self.data.train_rows):,} to train, "
            f"{len(self.data.val_rows):,} to validate (fold {config.fold} of "
            f"{config.folds}), {test}",
        }

    def prepare(self, cache: Path) -> None:
        """Does what must be done once the run folder is ours.

        Args:
          cache: folder that keeps channel means over runs.
        """

        def prepare() -> list[list[float]]:
            if not self._folds_path.exists():
                labelled = self.data.source.labelled
                folds_lib.write_folds(
                    self._folds_path,
                    labelled.ids,
                    self.data.folds,
                    self._config.data.folds_seed,
                )
            return [part.tolist() for part in self.data.channel_stats(cache)]

        told = comm.run_on_primary(prepare)
        self.mean, self.std = (np.array(part, np.float32) for part in told)

    def train(self, stage: Stage, step: int) -> Iterator[dict]:
        """Returns the endless training batches of `stage`.

        Args:
          stage: of this run.
          step: global step of the first batch wanted.
        """
        config, rows = self._config, self.data.train_rows
        labelled = self.data.source.labelled
        policy = Augment(**{**config.augment, **stage.config.augment})
        # Stages shuffle differently; prime, so that seeds do not meet.
        seed = config.seed + 7919 * stage.index
        return loader.train_batches(
            labelled,
            TrainTransform(policy, config.image_size),
            BalancedSampler(
                rows, labelled.labels[rows], seed, config.data.balance
            ),
            batch_size=stage.config.batch_size,
            local_rows=sharding.local_rows(
                self._mesh, stage.config.batch_size
            ),
            seed=seed,
            start_step=step - stage.start,
            workers=self._workers,
        )

    def validation(self) -> Iterable[dict]:
        """Returns batches of the validation rows, centre crops, in order.

        The views are the same every time: decoded once, they spare every
        evaluation the start of its own loader processes.
        """
        if self._validation is not None:
            return self._validation
        rows = self.data.val_rows
        batches = self.rows(self.data.source.labelled, rows, ("center",))
        pixels = 3 * self._config.image_size**2 * len(rows)
        if pixels > VALIDATION_BYTES_IN_MEMORY:
            return batches
        self._validation = list(batches)
        return self._validation

    def rows(self, examples: Examples, rows, views) -> Iterator[dict]:
        """Returns batches of test-time views; see `loader.eval_batches`.

        Args:
          examples: of the source.
          rows: int [N], which of them.
          views: names out of `views.VIEWS`.
        """
        return loader.eval_batches(
            examples,
            rows,
            EvalTransform(views, self._config.image_size),
            batch_size=self._config.eval.batch_size,
            local_rows=sharding.local_rows(
                self._mesh, self._config.eval.batch_size
            ),
            workers=self._workers,
        )


def share_folds(config: ConfigDict, workdir: Path) -> None:
    """Gives all processes the folds file that process 0 has, if any.

    Args:
      config: of the run.
      workdir: the run folder.
    """
    comm.broadcast_file(_folds_path(config, workdir))


def _folds_path(config: ConfigDict, workdir: Path) -> Path:
    own = workdir / "folds.csv"
    if not comm.is_primary():  # A copy of process 0's, for this run alone.
        return own
    return Path(config.data.folds_file or own)


def _check_batches(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses batches that the devices cannot share evenly, all at once."""
    devices = mesh.size
    sizes = {
        f"eval.batch_size is {config.eval.batch_size}": (
            config.eval.batch_size,
            1,
        )
    }
    for i, stage in enumerate(config.stages):
        name = f"stages[{i}].batch_size is {stage.batch_size}"
        if stage.accumulate > 1:
            name += f" in {stage.accumulate} parts"
        sizes[name] = stage.batch_size, stage.accumulate
    wrong = [
        f"{name} (take a multiple of {parts * devices})"
        for name, (size, parts) in sizes.items()
        if size % (parts * devices)
    ]
    if wrong:
        raise UserError(
            f"{devices} devices cannot share these batches evenly: "
            + ", ".join(wrong)
        )
