"""A task that nobody else knows of: an image to its mean colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from core.errors import UserError
from input_pipeline.transforms import mixing
from training.loop.step import Loss
from training.multihost import comm
from training.tasks import registry
from training.tasks.base import Task


class Network(nnx.Module):
    """Convolution, dropout, mean, matrix: `[B, H, W, 3]` to `[B, 3]`."""

    def __init__(self, width: int, seed: int):
        rngs = nnx.Rngs(seed)
        self.conv = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(self.conv(images)).mean((1, 2))
        return self.head(self.dropout(hidden))


@registry.register
class MeanColour(Task):
    """Regression of three numbers, by mean squared error."""

    name = "mean_colour"
    metrics = {"val_error": "min"}  # noqa: RUF012 (as a task is written)

    def build(self) -> nnx.Module:
        return Network(self.config.mean_colour.width, self.config.seed)

    def loss(self, stage, mesh, *, shapes_only=False) -> Loss:
        def prepare(batch, constants, key):
            images = mixing.images_of(batch, **constants)
            return {"image": images, "weight": batch["weight"]}

        def loss(model, batch, constants):
            images, weight = batch["image"], batch["weight"]
            errors = jnp.square(model(images) - images.mean((1, 2))).mean(-1)
            return (errors * weight).sum() / jnp.maximum(weight.sum(), 1.0)

        return Loss(loss, self.statistics.channels, prepare)

    def evaluator(self):
        return SquaredError()

    def export(self, data, writer, params, batch_stats) -> str:
        predicted = self._predict(data.validation(), params, batch_stats)
        ids = data.source.labelled.ids[data.val_rows]
        comm.run_on_primary(
            lambda: str(writer.array("colours.npz", ids=ids, colour=predicted))
        )
        return f"colours of {len(ids)} images"

    def predict(self, photos, params, batch_stats, files=None):
        transform = self.eval_transform(self.config, None, self.views)
        batches = photos.batches(photos.examples, photos.rows, transform)
        colours = self._predict(batches, params, batch_stats)
        return [{"colour": colour.tolist()} for colour in colours]

    def _predict(self, batches, params, batch_stats) -> np.ndarray:
        @jax.jit
        def step(params, batch_stats, images, constants):
            model = self.abstract_model.merge(params, batch_stats)
            model.eval()
            return model(mixing.normalize(images, **constants))

        found = []
        for batch in batches:
            colours = step(
                params,
                batch_stats,
                batch["image"][:, 0],
                self.statistics.channels,
            )
            found.append(np.asarray(colours)[batch["weight"] > 0])
        return np.concatenate(found)

    @classmethod
    def report_sections(cls, workdir: Path) -> Sequence:
        from reports.page import Section

        if not (workdir / "colours.npz").exists():  # A run over all folds.
            return ()
        count = len(np.load(workdir / "colours.npz")["ids"])
        return [Section("Colours", f"of {count} images")]

    @classmethod
    def problems(cls, config):
        yield from super().problems(config)
        if config.mean_colour.width % 2:
            yield f"mean_colour.width is {config.mean_colour.width}: it is odd"


class SquaredError:
    """Sums squared errors of mean colours."""

    def init(self):
        zero = np.zeros((), np.float32)
        return {"error": zero, "rows": zero}

    def update(self, totals, model, batch, constants):
        images = mixing.normalize(
            batch["image"][:, 0], constants["mean"], constants["std"]
        )
        errors = jnp.square(model(images) - images.mean((1, 2))).mean(-1)
        weight = batch["weight"] * ~batch["bad"]
        return {
            "error": totals["error"] + (errors * weight).sum(),
            "rows": totals["rows"] + weight.sum(),
        }

    def compute(self, totals):
        if not totals["rows"]:
            raise UserError("no validation image can be read; check the data")
        return {"val_error": float(totals["error"] / totals["rows"])}
