"""Contrastive pretraining (SimCLR), on the photos without labels.

Two augmented views of a photo are to be more like each other than like any
other view in the batch. What it learns is the encoder; `init_from` of another
run starts with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.loader import Transform
from input_pipeline.samplers import Sampler, TwoViewSampler
from input_pipeline.sources.base import Source
from input_pipeline.transforms import mixing
from input_pipeline.transforms.augmented_views import AugmentedViews
from input_pipeline.transforms.policy import Augment
from jax_models.contrastive import ContrastiveModel
from jax_models.embedding import unit
from metrics import contrastive
from training import runtime
from training.loop.stages import Stage
from training.loop.step import Loss
from training.tasks import metric_losses, probe
from training.tasks.base import Direction, Task
from training.tasks.embedding_batch import (
    Diagnostics,
    Embeddings,
    Labels,
    Weight,
    make_batch,
    mean_of,
    pairwise_cosines,
)
from training.tasks.networks import build_encoder

if TYPE_CHECKING:
    from reports.page import Section
    from run_folder.artifacts import ArtifactWriter
    from training.data import Data

# Standard deviation of the projections, as a share of that of independent
# directions, below which they count as one point.
COLLAPSED = 0.05


class ContrastiveLearning(Task):
    """Photos in two views each; see `Task`.

    Evaluated by the same loss on the validation fold, each photo in two views
    that are the same at every evaluation.
    """

    name: ClassVar[str] = "simclr"
    metrics: ClassVar[Mapping[str, Direction]] = {"val_loss": "min"}

    @classmethod
    def problems(cls, config: ConfigDict) -> Iterator[str]:
        """See `Task.problems`."""
        yield from super().problems(config)
        for index, stage in enumerate(config.stages):
            if stage.batch_size % 2 or stage.batch_size < 4:
                yield (
                    f"stages[{index}].batch_size is {stage.batch_size}: it "
                    "counts views, two of each photo; take an even number "
                    "from 4 on"
                )
            if stage.accumulate > 1:
                yield (
                    f"stages[{index}].accumulate is {stage.accumulate}: the "
                    "loss compares all views of a batch with each other; "
                    "leave it at 1, and set remat to save memory"
                )

    def build(self) -> nnx.Module:
        """Returns the freshly initialised encoder with its projector."""
        config, own = self.config, self.config.simclr
        return ContrastiveModel(
            build_encoder(config, num_classes=1),
            width=own.width,
            outputs=own.outputs,
            dtype=runtime.compute_dtype(config.dtype),
            # Another seed than the encoder's: their draws must not be equal.
            rngs=nnx.Rngs(config.seed + 1),
        )

    def attach(self, data: Data) -> dict[str, Any]:
        """Notes which rows validate; see `Task.attach`."""
        self._rows = data.val_rows.astype(np.int32)
        return {}

    def sampler(self, data: Data, seed: int) -> Sampler:
        """Returns every row twice, as two views; see `Task`."""
        return TwoViewSampler(super().sampler(data, seed))

    @classmethod
    def eval_transform(
        cls, config: ConfigDict, source: Source | None, views: Sequence[str]
    ) -> Transform:
        """Returns what makes two views of a photo; see `Task`."""
        return AugmentedViews(Augment(**config.augment), config.image_size)

    def describe_stage(self, stage: Stage) -> str:
        """Returns what the plan says of the loss."""
        return (
            f"NT-Xent over {stage.config.batch_size // 2} photos in two views "
            f"each, temperature {self.config.simclr.temperature:g}"
        )

    def loss(
        self, stage: Stage, mesh: Mesh, *, shapes_only: bool = False
    ) -> Loss:
        """Returns NT-Xent over the views of the whole batch."""
        temperature = self.config.simclr.temperature

        def prepare(batch, constants, key: jax.Array) -> dict[str, jax.Array]:
            images = mixing.images_of(batch, **constants)
            return {
                "image": jax.lax.optimization_barrier(images),
                "row": batch["row"],
                "weight": batch["weight"],
            }

        def loss(model, batch, constants):
            return compare_views(
                model(batch["image"]),
                batch["row"],
                batch["weight"],
                temperature,
            )

        return Loss(loss, self.statistics.channels, prepare)

    def advice(self, stage: Stage, measured: Mapping[str, float]) -> str:
        """Says when all photos have become one point; see `Task.advice`."""
        width = self.config.simclr.outputs
        std = measured.get("projection_std", math.inf)
        if not std * math.sqrt(width) < COLLAPSED:
            return ""
        return (
            "the projections have collapsed: their standard deviation is "
            f"{std:.2g}, and that of {width} independent directions "
            f"{1 / math.sqrt(width):.2g}; start again with a lower "
            f"stages[{stage.index}].learning_rate or simclr.temperature, or "
            "with stronger augmentation"
        )

    def evaluator(self) -> ContrastiveEvaluator:
        """Returns what compares the views of the validation photos."""
        own = self.config.simclr
        return ContrastiveEvaluator(
            len(self._rows), own.outputs, own.temperature
        )

    @property
    def eval_constants(self) -> dict[str, np.ndarray]:
        """See `Task.eval_constants`."""
        return {**self.statistics.channels, "rows": self._rows}

    def export(
        self,
        data: Data,
        writer: ArtifactWriter,
        params: dict,
        batch_stats: dict,
    ) -> str:
        """Writes `probe.json`: what the encoder knows of the classes.

        Returns:
          A sentence with the scores, and how to go on from here.
        """
        told = probe.write(
            self,
            data,
            writer,
            lambda model, images: model.pooled(images),
            params,
            batch_stats,
        )
        return f"{told}; fine-tune with --config.init_from={writer.workdir}"

    @classmethod
    def report_sections(cls, workdir: Path) -> Sequence[Section]:
        """Returns the scores of the probe."""
        from reports.probe import probe_sections

        return probe_sections(workdir)


def compare_views(
    projections: Embeddings, rows: Labels, weight: Weight, temperature: float
) -> tuple[jax.Array, Diagnostics]:
    """Returns SimCLR's NT-Xent of a batch, and what to log of it.

    A view's positive is the other one of its photo; negatives are the views of
    all other photos in the batch. A photo that is in a batch twice, as where
    two epochs meet, is no negative of itself.

    Args:
      projections: of the views.
      rows: which photo each view is of.
      weight: 0 for photos that could not be read, which take no part.
      temperature: of the softmax.

    Returns:
      The loss, log(2N - 1) by chance for N photos; without gradient
      `projection_std`, of the unit vectors, averaged over directions, 1/sqrt(D)
      where these are independent; and `partner_nearest`, the share of views
      that are most like the other one of their photo.
    """
    batch = make_batch(projections, rows, weight)
    loss = metric_losses.ntxent(batch, temperature)
    vectors, _ = unit(jax.lax.stop_gradient(projections))
    counted = batch.counted[:, None]
    total = jnp.maximum(batch.counted.sum(), 1)
    mean = jnp.where(counted, vectors, 0).sum(0) / total
    square = jnp.where(counted, jnp.square(vectors - mean), 0).sum(0) / total
    cosines = pairwise_cosines(vectors, vectors)
    first = jnp.where(batch.positive | batch.negative, cosines, -2).argmax(1)
    own = jnp.take_along_axis(batch.positive, first[:, None], axis=1)[:, 0]
    return loss, jax.lax.stop_gradient(
        {
            "projection_std": jnp.sqrt(square).mean(),
            "partner_nearest": mean_of(own * 1.0, batch.counted),
        }
    )


class ContrastiveEvaluator:
    """Gathers the projections of all validation photos, on the devices.

    Args:
      count: N, validation photos.
      width: D, of the projections.
      temperature: of the loss.
    """

    def __init__(self, count: int, width: int, temperature: float):
        self._count, self._width = count, width
        self._temperature = temperature

    def init(self) -> dict[str, np.ndarray]:
        """Returns nothing yet, of every photo."""
        return {
            "views": np.zeros((self._count, 2, self._width), np.float32),
            "seen": np.zeros(self._count, bool),
        }

    def update(
        self,
        totals: dict[str, jax.Array],
        model: nnx.Module,
        batch: Mapping[str, jax.Array],
        constants: dict[str, jax.Array],
    ) -> dict[str, jax.Array]:
        """Adds the photos of a batch; see `Evaluator`."""
        photos, views = batch["image"].shape[:2]
        flat = batch["image"].reshape(-1, *batch["image"].shape[2:])
        images = mixing.normalize(flat, constants["mean"], constants["std"])
        found = unit(model(images))[0].reshape(photos, views, -1)
        counted = (batch["weight"] > 0) & ~batch["bad"]
        # Filling has row -1; what lies beyond the end is dropped.
        place = jnp.searchsorted(constants["rows"], batch["row"])
        place = jnp.where(counted, place, self._count)
        return {
            "views": totals["views"].at[place].set(found, mode="drop"),
            "seen": totals["seen"].at[place].set(counted, mode="drop"),
        }

    def compute(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns the loss over the photos that can be read."""
        views = totals["views"][totals["seen"]]
        return {"val_loss": contrastive.ntxent(views, self._temperature)}
