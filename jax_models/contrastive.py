"""Contrastive pretraining: an encoder, and a projector that is thrown away.

Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations" (SimCLR), ICML 2020, arXiv 2002.05709, section 2.1: h is the
average-pooled output of the encoder, z = W2 relu(W1 h) what the loss sees.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_models import initializers, layers
from jax_models.functional import at_least_float32
from jax_models.model import ImageModel


class Projector(nnx.Module):
    """A layer with ReLU, and one without."""

    def __init__(
        self,
        channels: int,
        width: int,
        outputs: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(init=initializers.Uniform(), dtype=dtype, rngs=rngs)
        self.fc1 = layers.Linear(channels, width, **options)
        self.fc2 = layers.Linear(width, outputs, **options)

    def __call__(self, x: Float[Array, "B C"]) -> Float[Array, "B D"]:
        """Maps `[B, C]` to `[B, D]`."""
        return self.fc2(jax.nn.relu(self.fc1(x)))


class ContrastiveModel(nnx.Module):
    """An encoder whose pooled features a projector maps to what is compared.

    Args:
      encoder: any model of `create_model`. Its head is taken off.
      width: inside the projector.
      outputs: D, of the projector.
    """

    def __init__(
        self,
        encoder: ImageModel,
        *,
        width: int = 512,
        outputs: int = 128,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        channels = encoder.head.fc.in_features
        del encoder.head
        self.encoder = encoder
        # What is pooled is small, and cosines are compared closely.
        dtype = jnp.promote_types(dtype, jnp.float32)
        self.projector = Projector(
            channels, width, outputs, dtype=dtype, rngs=rngs
        )

    def pooled(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B C"]:
        """Maps `[B, H, W, 3]` to what is kept: the encoder's features.

        Raises:
          UserError: the images have a size or shape that the encoder does not
            take.
        """
        return at_least_float32(self.encoder.features(images)).mean((1, 2))

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Maps `[B, H, W, 3]` to the projections, of any length.

        Raises:
          UserError: as `pooled`.
        """
        return self.projector(self.pooled(images))
