"""The examples of one run: its source, its folds, its batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import common
from core import paths
from core.errors import UserError
from core.stratified_split import split, split_groups
from input_pipeline import loader, statistics
from input_pipeline.folds import check_given_folds, folds_for
from input_pipeline.samplers import Sampler
from input_pipeline.sources import open_source
from input_pipeline.sources.base import Examples, Kind
from input_pipeline.sources.generated import open_generated
from input_pipeline.sources.upscaled import without_upscaling
from input_pipeline.transforms.policy import Augment, TrainTransform
from metrics.segmentation import class_shares
from run_folder import folds_file, layout
from training import upscaling
from training.loop.stages import Stage
from training.multihost import comm, sharding

if TYPE_CHECKING:
    from training.tasks.base import Task

# Validation images up to this size, masks included, are decoded once and kept.
VALIDATION_BYTES_IN_MEMORY = 2**30


class Data:
    """What every task learns from; constructing it writes nothing.

    Args:
      config: of the run.
      workdir: the run folder; `folds.csv` is kept there unless
        `data.folds_file` says otherwise. Where it exists, it decides; else
        the folds follow from ids, labels, `data.folds` and `data.folds_seed`.
      mesh: devices that share the batches.
      workers: loader processes; 0 loads in this process.
      task: whose features every example must have, and whose transform
        makes the examples of evaluation.

    Attributes:
      source: labelled examples, those to predict, and classes.
      folds: int32 [N], the fold of each labelled row.
      fold: the one that validates; the others train.
      mesh: devices that share the batches.
      generated: images of a generator to train on besides; None without.

    Raises:
      UserError: the data, the folds or a batch size is wrong.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        mesh: Mesh,
        workers: int,
        task: type[Task],
    ):
        self._config, self.mesh, self._workers = config, mesh, workers
        self._task = task
        self._folds_path = _folds_path(config, workdir)
        data = config.data
        cache = Path(config.cache_dir).expanduser()
        found = open_source(data, cache)
        self.source = upscaling.enlarged(found, config, cache)
        _check_features(self.source.labelled, self.source.name, task.features)
        check_given_folds(self.source, data)
        self._folds_notes: list[str] = []
        self.folds = folds_for(
            self.source,
            data.folds,
            data.folds_seed,
            self._folds_path,
            id_column=data.id_column,
            note=self._folds_notes.append,
        )
        self.fold = data.fold
        if not len(self.val_rows) or not len(self.train_rows):
            raise UserError(
                f"fold {data.fold} of {data.folds} leaves "
                f"{len(self.train_rows)} images to train and "
                f"{len(self.val_rows)} to validate; set --config.data.folds "
                "lower or --config.data.fold to another one"
            )
        _check_batches(config, mesh)
        self.generated = None
        if data.generated:
            if not task.takes_generated:
                raise UserError(
                    "data.generated gives images and their classes, on which "
                    f"the {task.name} task cannot train; leave it out"
                )
            self.generated = open_generated(
                data.generated,
                self.source,
                self.val_rows,
                workdir.parent,
                data.fold,
            ).of_classes(
                data.generated_classes, self.source.classes, self._photo_prior
            )
        self._validation: list[dict] | None = None

    @property
    def train_rows(self) -> np.ndarray:
        """int [n], rows of `source.labelled` outside the fold."""
        return np.flatnonzero(self.folds != self.fold)

    @property
    def val_rows(self) -> np.ndarray:
        """int [m], rows of `source.labelled` in the fold."""
        return np.flatnonzero(self.folds == self.fold)

    @property
    def class_prior(self) -> np.ndarray:
        """float [C], each class's share of what is trained on, or of pixels."""
        if self.generated is None:
            return self._photo_prior
        return self.generated.prior(self._photo_prior, self._config.data)

    @property
    def _photo_prior(self) -> np.ndarray:
        """As `class_prior`, of photos alone."""
        if not self.source.classes:
            return np.zeros(0)
        if self.source.mask_pixels is not None:
            return self._pixel_shares[0]
        labels = self.source.labelled.labels[self.train_rows]
        counts = np.bincount(labels, minlength=len(self.source.classes))
        return counts / counts.sum()

    @property
    def class_prior_where_present(self) -> np.ndarray:
        """float [C], share of the pixels of the images that have the class.

        Without masks, a row's class is all of it.
        """
        if self.source.mask_pixels is not None:
            return self._pixel_shares[1]
        return np.sign(self.class_prior)

    @property
    def _pixel_shares(self) -> tuple[np.ndarray, np.ndarray]:
        return class_shares(self.source.mask_pixels[self.train_rows])

    @property
    def folds_hash(self) -> str:
        """Names the division; equal in every run that may be stacked."""
        return folds_file.folds_hash(self.source.labelled.ids, self.folds)

    def halves(self, rows: np.ndarray) -> np.ndarray:
        """Divides labelled rows `[n]` evenly by class; int32 `[n]`, 0 or 1."""
        known, groups = self.source.labelled, self.source.groups
        if groups is not None:
            strata = self.source.strata
            strata = known.labels if strata is None else strata
            return split_groups(groups[rows], strata[rows], 2, seed=1)
        return split(known.ids[rows], known.labels[rows], 2, seed=1)

    def identity(self) -> dict[str, object]:
        """Returns what must not change while the run lives, as JSON.

        `rows_hash` names ids, labels and the columns that the task learns
        from, in their order, and what the masks hold.
        """
        labelled = self.source.labelled
        digest = hashlib.sha256("\n".join(labelled.ids.tolist()).encode())
        digest.update(np.asarray(labelled.labels, np.int32).tobytes())
        for name in sorted(labelled.columns.keys() & self._task.features):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(labelled.columns[name]))
        if self.source.mask_pixels is not None:
            pixels = np.ascontiguousarray(self.source.mask_pixels, np.int64)
            digest.update(pixels.tobytes())
            digest.update(self.source.mask_digests.tobytes())
        generated = self.generated
        return {
            "classes": list(self.source.classes),
            "folds_hash": self.folds_hash,
            "rows_hash": digest.hexdigest()[:16],
            **({"generated": generated.digest} if generated else {}),
        }

    def describe(self) -> dict[str, str]:
        """Returns what the plan says of the data, as {heading: text}."""
        source, config = self.source, self._config.data
        test = f"{len(source.test):,} to predict" if source.test else "no test"
        notes, generated = "; ".join(self._folds_notes), self.generated
        rows_hash = generated and self.identity()["rows_hash"]
        division = f"fold {config.fold} of {config.folds}"
        if source.given_folds is not None:
            division = "as the folders say"
        where = config.root or "inside scikit-learn"
        if source.name.startswith("tfds:"):
            where = config.root or "in tfds' own folder"
        return {
            "data": f"{source.name}, {where}",
            "classes": f"{len(source.classes)}",
            "images": f"{len(self.train_rows):,} to train, "
            f"{len(self.val_rows):,} to validate ({division}), {test}",
            **({"folds": notes} if notes else {}),
            **(generated.describe(config, rows_hash) if generated else {}),
            **source.describe(),
        }

    def prepare(self, cache: Path) -> tuple[np.ndarray, np.ndarray]:
        """Enlarges images, writes the folds file, measures the channels: once.

        To be called once the run folder is ours, in all processes.

        Args:
          cache: folder that keeps channel statistics over runs.

        Returns:
          Mean and standard deviation, float32 [3], of the training rows over
          0..1.
        """

        def prepare() -> list[list[float]]:
            labelled = self.source.labelled
            if not self._folds_path.exists():
                folds_file.write_folds(
                    self._folds_path,
                    labelled.ids,
                    self.folds,
                    self._config.data.folds_seed,
                    self.source.groups,
                )
            measured = statistics.channel_stats(
                labelled,
                self.train_rows,
                cache,
                f"{self.source.fingerprint}-{self.folds_hash}-{self.fold}",
            )
            return [part.tolist() for part in measured]

        upscaling.prepare_everywhere(self.source)
        mean, std = comm.run_on_primary(prepare)
        return np.array(mean, np.float32), np.array(std, np.float32)

    def stage_seed(self, stage: Stage) -> int:
        """Returns the seed of a stage's order and augmentation."""
        # Stages shuffle differently; prime, so that seeds do not meet.
        return self._config.seed + 7919 * stage.index

    def train(self, stage: Stage, step: int, sampler: Sampler) -> Iterator:
        """Returns the endless training batches of `stage`.

        Args:
          stage: of this run.
          step: global step of the first batch wanted.
          sampler: of the task, with `stage_seed`.
        """
        rows = sharding.local_rows(self.mesh, stage.config.batch_size)
        examples = self.source.labelled
        return self._train(examples, stage, step, sampler, rows, self._workers)

    def example(self, stage: Stage, sampler: Sampler) -> dict[str, np.ndarray]:
        """Returns one row of a batch of `stage`, not enlarged: `[1, ...]`.

        Args:
          stage: of this run.
          sampler: of the task, with `stage_seed`.
        """
        raw, first = without_upscaling(self.source.labelled), np.arange(1)
        with self._train(raw, stage, stage.start, sampler, first, 0) as batches:
            return next(batches)

    def _train(
        self,
        examples: Examples,
        stage: Stage,
        step: int,
        sampler: Sampler,
        local_rows: np.ndarray,
        workers: int,
    ) -> loader.Batches:
        augment = common.merged(self._config, stage.config, "augment")
        if self.generated is not None:
            examples, sampler = self.generated.mixed(
                examples, sampler, self._config.data, self.stage_seed(stage)
            )
        return loader.train_batches(
            examples,
            TrainTransform(Augment(**augment), self._config.image_size),
            sampler,
            batch_size=stage.config.batch_size,
            local_rows=local_rows,
            seed=self.stage_seed(stage),
            start_step=step - stage.start,
            workers=workers,
        )

    def validation(self) -> Iterable[dict]:
        """Returns batches of the validation rows, the first view, in order.

        The views are the same every time: decoded once, they spare every
        evaluation the start of its own loader processes.
        """
        if self._validation is not None:
            return self._validation
        rows, views = self.val_rows, self._task.known_views[:1]
        batches = self.rows(self.source.labelled, rows, views)
        transform = self._task.eval_transform(self._config, self.source, views)
        spec = transform.spec(self.source.labelled.kinds)
        row_bytes = sum(
            math.prod(shape) * np.dtype(dtype).itemsize
            for shape, dtype in spec.values()
        )
        if row_bytes * len(rows) > VALIDATION_BYTES_IN_MEMORY:
            return batches
        self._validation = list(batches)
        return self._validation

    def rows(
        self, examples: Examples, rows: np.ndarray, views: Sequence[str]
    ) -> Iterator[dict]:
        """Returns batches of test-time views; see `loader.eval_batches`.

        Args:
          examples: of the source.
          rows: int [N], which of them.
          views: of the task's known ones.
        """
        transform = self._task.eval_transform(self._config, self.source, views)
        return self.batches(examples, rows, transform)

    def batches(
        self, examples: Examples, rows: np.ndarray, transform: loader.Transform
    ) -> loader.Batches:
        """Returns batches of evaluation; see `loader.eval_batches`.

        Args:
          examples: whose `rows` are loaded.
          rows: int [N], which of them.
          transform: makes them what the model is given.
        """
        batch_size = self._config.eval.batch_size
        return loader.eval_batches(
            examples,
            rows,
            transform,
            batch_size=batch_size,
            local_rows=sharding.local_rows(self.mesh, batch_size),
            workers=self._workers,
        )


def _folds_path(config: ConfigDict, workdir: Path) -> Path:
    return paths.make_path(config.data.folds_file or workdir / layout.FOLDS)


def _check_features(
    examples: Examples, source: str, features: Mapping[str, Kind]
) -> None:
    lacking = [
        name
        for name, kind in features.items()
        if examples.kinds.get(name) is not kind
    ]
    if lacking:
        raise UserError(
            f"the task learns from {', '.join(features)}, and data.source "
            f"'{source}' has no {' and no '.join(lacking)}; set "
            "--config.data.source to one that has"
        )


def _check_batches(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses batches that the devices cannot share evenly, all at once."""
    devices, size = mesh.size, config.eval.batch_size
    sizes = {f"eval.batch_size is {size}": (size, 1)}
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
