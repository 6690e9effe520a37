"""The pretraining task: masked autoencoding, on the photos without labels.

What it learns is the encoder; `init_from` of another run starts with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from core.atomic_files import atomic_write
from core.errors import UserError
from input_pipeline.transforms import mixing
from jax_models import mae
from training import runtime
from training.feed import Feed
from training.loop import grad_accumulation, param_groups
from training.loop.stages import Stage
from training.loop.state import Loss, make_abstract_model
from training.multihost import comm, sharding
from training.tasks.classify import build_classifier

# Rows of the picture of reconstructions.
PICTURED = 8


class MaskedAutoencoding:
    """Photos to themselves: three quarters hidden, painted from the rest.

    Evaluated by the loss on the validation fold, each image under a mask that
    is the same at every evaluation.

    Args:
      config: of the run; `config.mae` builds the decoder.
      workdir: the run folder.
      mesh: devices to lay batches out on.
      workers: loader processes; 0 loads in this process.

    Attributes:
      data: the source with its folds.
      abstract_model: the autoencoder without its numbers.

    Raises:
      UserError: the data, an image size that the hidden units do not divide,
        or a field that names a model or a metric is wrong.
    """

    def __init__(
        self, config: ConfigDict, workdir: Path, mesh: Mesh, workers: int
    ):
        self._config, self._mesh = config, mesh
        _check(config)
        self._feed = Feed(config, workdir, mesh, workers)
        self.data = self._feed.data
        self.identity = self._feed.identity()
        self.abstract_model = make_abstract_model(self.build)
        side = config.image_size
        unit = nnx.eval_shape(self.build).unit
        self._units = mae.units_of((side, side), unit)
        shapes = nnx.to_pure_dict(self.abstract_model.params)
        grad_accumulation.check(config, self.abstract_model.batch_stats)
        for stage in config.stages:
            param_groups.check(shapes, stage.frozen)

    @property
    def num_train(self) -> int:
        """Images in one epoch."""
        return len(self.data.train_rows)

    def build(self) -> nnx.Module:
        """Returns the freshly initialised autoencoder."""
        config = self._config
        encoder = build_classifier(config, num_classes=1)
        del encoder.head  # There is nothing to classify.
        return mae.MaskedAutoencoder(
            encoder,
            width=config.mae.decoder_width,
            depth=config.mae.decoder_depth,
            heads=config.mae.decoder_heads,
            mlp_width=config.mae.decoder_mlp_width,
            dtype=runtime.compute_dtype(config.dtype),
            # Another seed than the encoder's: their draws must not be equal.
            rngs=nnx.Rngs(config.seed + 1),
        )

    def describe(self) -> dict[str, str]:
        """Returns what the plan says of the data, as {heading: text}."""
        rows, columns = self._units
        return {
            **self._feed.describe(),
            "hidden": f"{self._config.mae.mask_ratio:.0%} of {rows} x "
            f"{columns} units",
        }

    def describe_stage(self, stage: Stage) -> str:
        """Returns what the plan says of the loss."""
        normal = self._config.mae.normalize_targets
        kind = "normalised pixels" if normal else "pixels"
        return f"mean squared error of hidden {kind}"

    def open_teachers(self, workdir: Path) -> None:
        """Opens nothing: here, photos are all there is to learn from.

        Args:
          workdir: this run's folder.
        """

    def prepare(self, cache: Path) -> None:
        """Does what must be done once the run folder is ours.

        Args:
          cache: folder that keeps channel means over runs.
        """
        self._feed.prepare(cache)
        config, units = self._config.mae, self._units
        seed = self._config.seed

        @jax.jit
        def reconstruct(params, batch_stats, images, number, constants):
            key = jax.random.fold_in(jax.random.key(seed), number)
            model = self.abstract_model.merge(params, batch_stats)
            model.eval()
            images = mixing.normalize(images, **constants)
            mask = mae.random_mask(key, len(images), units, config.mask_ratio)
            return images, mask, model(images, mask)

        @jax.jit
        def errors(images, mask, predictions, weights):
            loss = mae.reconstruction_loss(
                predictions,
                images,
                mask,
                normalize_targets=config.normalize_targets,
                weights=weights,
            )
            return loss * weights.sum(), weights.sum()

        self._reconstruct, self._errors = reconstruct, errors

    def batches(self, stage: Stage, step: int) -> Iterator[dict]:
        """Returns the training batches of `stage`; see `Feed.train`."""
        return self._feed.train(stage, step)

    def loss(self, stage: Stage, *, shapes_only: bool = False) -> Loss:
        """Returns the mean squared error over hidden pixels.

        Args:
          stage: of this run.
          shapes_only: makes no difference here; see `Classification.loss`.
        """
        config, units = self._config.mae, self._units

        def prepare(batch, constants, key: jax.Array) -> dict[str, jax.Array]:
            images = mixing.images_of(batch, **constants)
            hidden = mae.random_mask(key, len(images), units, config.mask_ratio)
            weight = batch["weight"]
            return {"image": images, "hidden": hidden, "weight": weight}

        def loss(model, batch, constants) -> jax.Array:
            images, hidden = batch["image"], batch["hidden"]
            return mae.reconstruction_loss(
                model(images, hidden),
                images,
                hidden,
                normalize_targets=config.normalize_targets,
                weights=batch["weight"],
            )

        return Loss(loss, self._channels, prepare)

    def evaluate(self, params: dict, batch_stats: dict) -> dict[str, float]:
        """Returns `val_loss`, over the validation rows that can be read."""
        total, count = 0.0, 0.0
        for number, batch in enumerate(self._feed.validation()):
            weights = batch["weight"] * ~batch["bad"]
            found = self._look(params, batch_stats, batch, number)
            put = sharding.put_batch({"weights": weights}, self._mesh)
            sums = jax.device_get(self._errors(*found, put["weights"]))
            total, count = total + float(sums[0]), count + float(sums[1])
        return {"val_loss": total / max(count, 1.0)}

    def export(self, workdir: Path, params: dict, batch_stats: dict) -> str:
        """Writes `reconstructions.png`: original, hidden, painted.

        Returns:
          A sentence that says how to go on from here.
        """
        batch = next(iter(self._feed.validation()))
        found = self._look(params, batch_stats, batch, 0)
        images, mask, predictions = (
            array[:PICTURED] for array in sharding.to_host(found)
        )
        picture = mae.picture(
            images,
            mask,
            predictions,
            mean=self._feed.mean,
            std=self._feed.std,
            normalize_targets=self._config.mae.normalize_targets,
        )

        def write() -> None:
            with atomic_write(workdir / "reconstructions.png") as path:
                Image.fromarray(picture).save(path, format="png")

        comm.run_on_primary(write)
        return (
            f"reconstructions in {workdir / 'reconstructions.png'}; fine-tune "
            f"with --config.init_from={workdir}"
        )

    def is_exported(self, workdir: Path) -> bool:
        """Whether `export` and the report have written all their files."""
        names = ("reconstructions.png", "report.html")
        return all((workdir / name).exists() for name in names)

    @property
    def _channels(self) -> dict[str, np.ndarray]:
        return {"mean": self._feed.mean, "std": self._feed.std}

    def _look(self, params, batch_stats, batch, number: int):
        """(images, mask, predictions) of a validation batch's centre crops."""
        views = {"image": batch["image"][:, 0]}
        images = sharding.put_batch(views, self._mesh)["image"]
        return self._reconstruct(
            params, batch_stats, images, np.int32(number), self._channels
        )


def _check(config: ConfigDict) -> None:
    if config.checkpoint.metric != "val_loss":
        raise UserError(
            f"checkpoint.metric is {config.checkpoint.metric!r}; the mae task "
            "has val_loss alone"
        )
    width, heads = config.mae.decoder_width, config.mae.decoder_heads
    if width < 4 or width % 4 or heads < 1 or width % heads:
        raise UserError(
            f"mae.decoder_width is {width}: it must be a multiple of 4 and of "
            f"mae.decoder_heads, {heads}"
        )
    if not 0 < config.mae.mask_ratio < 1:
        raise UserError(
            f"mae.mask_ratio is {config.mae.mask_ratio}: it must lie between "
            "0 and 1"
        )
