"""The pretraining task: masked autoencoding, on the photos without labels.

What it learns is the encoder; `init_from` of another run starts with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.transforms import mixing
from jax_models import cpu_kernels, mae
from jax_models.functional import at_least_float32
from run_folder import layout
from training import runtime
from training.loop.stages import Stage
from training.loop.step import Loss
from training.multihost import comm, sharding
from training.tasks import probe
from training.tasks.base import Direction, Task
from training.tasks.networks import build_encoder

if TYPE_CHECKING:
    from reports.page import Section
    from run_folder.artifacts import ArtifactWriter
    from training.data import Data

# Rows of the picture of reconstructions.
PICTURED = 8


class MaskedAutoencoding(Task):
    """Photos to themselves: most of each hidden, painted from the rest.

    Evaluated by the loss on the validation fold, each image under a mask that
    is the same at every evaluation.
    """

    name: ClassVar[str] = "mae"
    metrics: ClassVar[Mapping[str, Direction]] = {"val_loss": "min"}
    takes_generated: ClassVar[bool] = True

    @classmethod
    def problems(cls, config: ConfigDict) -> Iterator[str]:
        """See `Task.problems`."""
        yield from super().problems(config)
        width, heads = config.mae.decoder_width, config.mae.decoder_heads
        if width % 4 or width % heads:
            yield (
                f"mae.decoder_width is {width}: it must be a multiple of 4 "
                f"and of mae.decoder_heads, {heads}"
            )

    def build(self) -> nnx.Module:
        """Returns the freshly initialised autoencoder."""
        config = self.config
        encoder = build_encoder(config, num_classes=1)
        del encoder.head  # There is nothing to classify.
        model = mae.MaskedAutoencoder(
            encoder,
            width=config.mae.decoder_width,
            depth=config.mae.decoder_depth,
            heads=config.mae.decoder_heads,
            mlp_width=config.mae.decoder_mlp_width,
            dtype=runtime.compute_dtype(config.dtype),
            # Another seed than the encoder's: their draws must not be equal.
            rngs=nnx.Rngs(config.seed + 1),
        )
        side = config.image_size
        self._units = mae.units_of((side, side), model.unit)
        return model

    def describe(self) -> dict[str, str]:
        """Returns what the plan says of the masks, as {heading: text}."""
        rows, columns = self._units
        return {
            "hidden": f"{self.config.mae.mask_ratio:.0%} of {rows} x "
            f"{columns} units"
        }

    def describe_stage(self, stage: Stage) -> str:
        """Returns what the plan says of the loss."""
        normal = self.config.mae.normalize_targets
        kind = "normalised pixels" if normal else "pixels"
        return f"mean squared error of hidden {kind}"

    def loss(
        self, stage: Stage, mesh: Mesh, *, shapes_only: bool = False
    ) -> Loss:
        """Returns the mean squared error over hidden pixels."""
        config, units = self.config.mae, self._units

        def prepare(batch, constants, key: jax.Array) -> dict[str, jax.Array]:
            images = mixing.images_of(batch, **constants)
            hidden = mae.random_mask(key, len(images), units, config.mask_ratio)
            return {
                "image": images,
                "hidden": hidden,
                "weight": batch["weight"],
            }

        def loss(model, batch, constants) -> jax.Array:
            images, hidden = batch["image"], batch["hidden"]
            return mae.reconstruction_loss(
                model(images, hidden),
                images,
                hidden,
                normalize_targets=config.normalize_targets,
                weights=batch["weight"],
            )

        return Loss(loss, self.statistics.channels, prepare)

    def evaluator(self) -> ReconstructionEvaluator:
        """Returns what averages the loss."""
        return ReconstructionEvaluator(self.config, self._units)

    def export(
        self,
        data: Data,
        writer: ArtifactWriter,
        params: dict,
        batch_stats: dict,
    ) -> str:
        """Writes `reconstructions.png`: original, hidden, painted; a probe.

        Returns:
          A sentence that says how to go on from here.
        """
        batch = next(iter(data.validation()))
        views = {"image": batch["image"][:, 0], "row": batch["row"]}
        placed = sharding.put_batch(views, data.mesh)
        painting = ReconstructionEvaluator(self.config, self._units).paint

        @jax.jit
        @cpu_kernels.for_mesh(data.mesh)
        def paint(params, batch_stats, images, rows, constants):
            model = self.abstract_model.merge(params, batch_stats)
            model.eval()
            return painting(model, images, rows, constants)

        found = paint(
            params,
            batch_stats,
            placed["image"],
            placed["row"],
            self.statistics.channels,
        )
        images, mask, predictions = (
            array[:PICTURED] for array in sharding.to_host(found)
        )
        picture = mae.picture(
            images,
            mask,
            predictions,
            mean=self.statistics.mean,
            std=self.statistics.std,
            normalize_targets=self.config.mae.normalize_targets,
        )
        path = comm.run_on_primary(
            lambda: str(writer.image(layout.RECONSTRUCTIONS, picture))
        )

        def pooled(model, images: jax.Array) -> jax.Array:
            # The last map: what a network has behind it was not trained.
            maps = model.encoder.feature_pyramid(images)
            return at_least_float32(maps[-1]).mean((1, 2))

        told = probe.write(self, data, writer, pooled, params, batch_stats)
        return (
            f"reconstructions in {path}; {told}; fine-tune with "
            f"--config.init_from={writer.workdir}"
        )

    @classmethod
    def report_sections(cls, workdir: Path) -> Sequence[Section]:
        """Returns the pictures that it painted, and the scores of the probe."""
        from reports.probe import probe_sections
        from reports.reconstruction import reconstruction_sections

        return [*reconstruction_sections(workdir), *probe_sections(workdir)]


class ReconstructionEvaluator:
    """Sums the loss over images, batch by batch.

    Args:
      config: of the run.
      units: rows and columns of what is hidden together.
    """

    def __init__(self, config: ConfigDict, units: tuple[int, int]):
        self._config, self._units = config, units

    def init(self) -> dict[str, np.ndarray]:
        """Returns the sums over no image."""
        zero = np.zeros((), np.float32)
        return {"loss": zero, "rows": zero}

    def paint(
        self,
        model: nnx.Module,
        images: jax.Array,
        rows: jax.Array,
        constants: dict[str, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns normalised images, what is hidden, and the predictions.

        Args:
          model: the autoencoder.
          images: uint8 [B, H, W, 3].
          rows: int32 [B]. An image's mask follows from its row alone, so
            scores do not depend on how rows are divided into batches.
          constants: `mean` and `std`.
        """
        images = mixing.normalize(images, constants["mean"], constants["std"])
        ratio = self._config.mae.mask_ratio

        def mask_of(row: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(self._config.seed), row)
            return mae.random_mask(key, 1, self._units, ratio)[0]

        mask = jax.vmap(mask_of)(rows)
        return images, mask, model(images, mask)

    def update(
        self,
        totals: dict[str, jax.Array],
        model: nnx.Module,
        batch: Mapping[str, jax.Array],
        constants: dict[str, jax.Array],
    ) -> dict[str, jax.Array]:
        """Adds the first views of a batch; see `Evaluator`."""
        weights = batch["weight"] * ~batch["bad"]
        images, mask, predictions = self.paint(
            model, batch["image"][:, 0], batch["row"], constants
        )
        loss = mae.reconstruction_loss(
            predictions,
            images,
            mask,
            normalize_targets=self._config.mae.normalize_targets,
            weights=weights,
        )
        return {
            "loss": totals["loss"] + loss * weights.sum(),
            "rows": totals["rows"] + weights.sum(),
        }

    def compute(self, totals: dict[str, Any]) -> dict[str, float]:
        """Returns the mean loss over the images that can be read."""
        return {"val_loss": float(totals["loss"] / max(totals["rows"], 1.0))}
