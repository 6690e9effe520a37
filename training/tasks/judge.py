"""A trained classifier that looks at generated images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from core.errors import UserError
from input_pipeline import loader
from input_pipeline.sources.base import ArrayExamples
from input_pipeline.transforms import mixing
from input_pipeline.transforms.views import EvalTransform
from jax_models import cpu_kernels
from jax_models.functional import at_least_float32
from run_folder import inference
from training.checkpointing import init_from
from training.loop.predict import PredictStep, predictions
from training.loop.state import make_abstract_model
from training.multihost import sharding
from training.tasks.networks import build_encoder

_FIELD = "generate.judge"
_BATCH = 64  # on each device


class Opinion(NamedTuple):
    """What the judge makes of images.

    Attributes:
      features: float32 [N, D], its last map, averaged over the image.
      probabilities: float32 [N, C].
    """

    features: np.ndarray
    probabilities: np.ndarray


class Judge:
    """A classifier's run, over the same rows and the same fold.

    Args:
      name: of the run folder.
      workdir: this run's folder, beside which it may lie.
      identity: of this run's data.
      fold: this run's.

    Attributes:
      about: what names the weights, for the scores.

    Raises:
      UserError: it is no classifier, of other classes, has learned from
        generated images, or has seen rows that validate here.
    """

    def __init__(
        self, name: str, workdir: Path, identity: Mapping[str, Any], fold: int
    ):
        run = init_from.open_run(name, workdir, fold, _FIELD)
        if run.config.task != "classify":
            raise UserError(
                f"{_FIELD} names {run.folder}, a run without a classifier; "
                "name one that classifies"
            )
        if run.identity["classes"] != identity["classes"]:
            raise UserError(
                f"{_FIELD} names {run.folder}, which knows other classes; "
                "name a classifier of the same data"
            )
        if run.identity.get("generated"):
            raise UserError(
                f"{_FIELD} names {run.folder}, which learned from generated "
                "images, so its features would flatter such images; name a "
                "classifier that learned from photos alone"
            )
        init_from.refuse_leak(run, identity, fold, _FIELD)
        self._run, self._spec = run, inference.read(run.folder)
        self._model = make_abstract_model(
            lambda: build_encoder(run.config, len(identity["classes"]))
        )
        self._weights: tuple[dict, dict] | None = None
        self._step: PredictStep | None = None
        self.about = {
            "run": run.folder.name,
            "model": run.config.model,
            "step": run.step,
            "fingerprint": run.pin["fingerprint"],
        }

    def look(self, images: np.ndarray, mesh: Mesh) -> Opinion:
        """Returns features and probabilities, each image as a photo.

        Args:
          images: uint8 [N, H, W, 3].
          mesh: of devices.
        """
        count, size = len(images), _BATCH * mesh.size
        rows = np.arange(count)
        examples = ArrayExamples(
            np.array([str(row) for row in rows]),
            np.full(count, -1, np.int32),
            images,
        )
        batches = loader.eval_batches(
            examples,
            rows,
            EvalTransform(("center",), self._spec.image_size),
            batch_size=size,
            local_rows=sharding.local_rows(mesh, size),
        )
        if self._step is None or self._weights is None:
            self._step = self._make_step(mesh)
            self._weights = self._run.weights(self._model, mesh)
        found = predictions(self._step, *self._weights, batches, rows, mesh)
        outputs = np.concatenate([part["outputs"] for part in found])
        classes = len(self._spec.classes)
        return Opinion(outputs[:, :-classes], outputs[:, -classes:])

    def _make_step(self, mesh: Mesh) -> PredictStep:
        spec = self._spec

        @jax.jit
        @cpu_kernels.for_mesh(mesh)
        def step(params, batch_stats, images):
            model = self._model.merge(params, batch_stats)
            model.eval()
            mean, std = (np.array(v, np.float32) for v in (spec.mean, spec.std))
            maps = model.features(mixing.normalize(images[:, 0], mean, std))
            features = at_least_float32(maps).mean((1, 2))
            probabilities = jax.nn.softmax(model.head(maps))
            return jnp.concatenate([features, probabilities], axis=-1)

        return step
