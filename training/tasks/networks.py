"""The network that a config asks for, freshly initialised."""

from __future__ import annotations

from flax import nnx
from ml_collections import ConfigDict

import jax_models
from core.errors import UserError
from training import runtime


def build_encoder(
    config: ConfigDict, num_classes: int
) -> jax_models.ImageModel:
    """Returns the freshly initialised classifier that `config` asks for.

    Args:
      config: see `create_network`.
      num_classes: width of its head.

    Raises:
      UserError: `config.model` is a network for another task.
    """
    model = create_network(config, num_classes)
    if config.model not in jax_models.list_models():
        raise UserError(
            f"model is {config.model}, which the {config.task} task cannot "
            f"train; set --config.model to one of "
            f"{', '.join(jax_models.list_models())}"
        )
    return model


def create_network(config: ConfigDict, num_classes: int) -> nnx.Module:
    """Returns the freshly initialised network that `config` asks for.

    Args:
      config: `model`, `model_options`, `seed`, `dtype`, `remat`.
      num_classes: width of its output, or of what it is asked for.
    """
    return jax_models.create_model(
        config.model,
        num_classes=num_classes,
        rngs=nnx.Rngs(config.seed),
        dtype=runtime.compute_dtype(config.dtype),
        **{"remat": config.remat, **config.model_options},
    )
