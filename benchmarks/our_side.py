"""Our models at work, for the benchmarks: the steps that train.py runs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jax_models
from configs import common
from core import hardware
from jax_models import (
    convnext,
    cpu_kernels,
    densenet,
    efficientnet,
    efficientnet_lite,
    efficientnetv2,
    mae,
    mobilenetv2,
    resnet,
    tinyvit,
)
from training.loop import optimizer, param_groups, state, step
from training.multihost import sharding
from training.tasks import losses

LOG_EVERY = 20
MAE = " mae"
SMALL = " small"
MASKED = 0.75
UNIT = 32  # pixels that are hidden together
VARIANTS = (
    convnext.VARIANTS
    | tinyvit.VARIANTS
    | efficientnetv2.VARIANTS
    | resnet.VARIANTS
    | efficientnet_lite.VARIANTS
    | efficientnet.VARIANTS
    | mobilenetv2.VARIANTS
    | densenet.VARIANTS
)


class ModelAtWork:
    """A model with what trains it and what asks it.

    Args:
      name: of `jax_models.list_models()`; with " mae" behind it, the masked
        autoencoder around that model, which has no counterpart in timm; with
        " small", the model with its stem for images of 32 px.
      classes: how many.
      dtype: of the activations.

    Attributes:
      drop_path_rate: stochastic depth of the last block.
      dropout: before the classifier.
    """

    def __init__(self, name: str, classes: int, dtype: jnp.dtype = jnp.float32):
        hardware.keep_freed_memory()  # As train.py; it serves PyTorch as well.
        self.name, self.classes = name, classes
        self._paints = name.endswith(MAE)
        network = name.removesuffix(MAE).removesuffix(SMALL)
        stem = {"stem": "small"} if name.endswith(SMALL) else {}
        variant = VARIANTS[network]
        self.drop_path_rate = getattr(variant, "drop_path_rate", 0.0)
        self.dropout = variant.dropout
        self._mesh = sharding.make_mesh()

        def build() -> nnx.Module:
            model = jax_models.create_model(
                network,
                num_classes=classes,
                rngs=nnx.Rngs(0),
                dtype=dtype,
                **stem,
            )
            if not self._paints:
                return model
            del model.head
            return mae.MaskedAutoencoder(model, dtype=dtype, rngs=nnx.Rngs(1))

        self.abstract_model = state.make_abstract_model(build)
        self.weights = state.init_weights(self.abstract_model, self._mesh)

    def train_step(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        learning_rate: float,
        weight_decay: float,
    ) -> Callable[[int], float]:
        """Returns a function that makes some steps and gives the last loss.

        Args:
          images: float [B, H, W, 3].
          targets: float32 [B, C].
          learning_rate: of AdamW.
          weight_decay: on matrices and filters alone.
        """
        stage = common.stage(
            schedule="constant",
            learning_rate=learning_rate,
            weight_decay=weight_decay,
        )

        def loss(model, batch, constants):
            if self._paints:
                hidden = batch["hidden"]
                painted = model(batch["image"], hidden)
                return mae.reconstruction_loss(painted, batch["image"], hidden)
            rows = losses.cross_entropy(
                model(batch["image"]), batch["target"], jnp.ones(self.classes)
            )
            return rows.mean()

        groups = param_groups.assign(
            nnx.to_pure_dict(self.abstract_model.params), stage
        )
        train_step = step.make_train_step(
            self.abstract_model,
            step.Loss(loss, {}),
            stage,
            optimizer.rate_tables(stage, groups, optimizer.TABLE_UNIT, 1),
            self._mesh,
            seed=0,
            log_every_steps=LOG_EVERY,
        )
        copies = jax.tree.map(jnp.copy, self.weights)  # The step takes them.
        now = state.start_stage(0, *copies, stage, self._mesh)
        batch = {"image": images, "target": targets}
        if self._paints:
            units = mae.units_of(images.shape[1:3], UNIT)
            key = jax.random.key(0)
            mask = mae.random_mask(key, len(images), units, MASKED)
            batch["hidden"] = np.asarray(mask)
        batch = sharding.put_batch(batch, self._mesh)

        def advance(steps: int = 1) -> float:
            nonlocal now
            for _ in range(steps):
                now, measured = train_step(now, batch)
            jax.block_until_ready(now)
            return float(measured["loss"])

        return advance

    def inference(self, images: np.ndarray) -> Callable[[], jax.Array]:
        """Returns a function that gives the logits of `images`."""

        @jax.jit
        @cpu_kernels.for_mesh(self._mesh)
        def logits(params, batch_stats, images):
            model = self.abstract_model.merge(params, batch_stats)
            model.eval()
            return model(images)

        batch = sharding.put_batch({"image": images}, self._mesh)["image"]
        return lambda: jax.block_until_ready(logits(*self.weights, batch))
