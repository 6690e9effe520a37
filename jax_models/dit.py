"""DiT: a transformer that generates images.

Peebles & Xie, "Scalable Diffusion Models with Transformers", ICCV 2023, arXiv
2212.09748: squares of pixels as tokens, and in every layer scale, shift and
gate from the condition, starting at 0 (adaLN-Zero).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

from core.errors import UserError
from jax_models import functional, layers, mae
from jax_models.velocity import (
    TORCH_UNIFORM,
    ZERO,
    Condition,
    SelfAttention,
    VelocityModel,
    check_counts,
    modulate,
    velocity_to,
)

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Config:
    """What may be overridden.

    Attributes:
      width: of the tokens; a multiple of 4 and of `heads`.
      depth: transformer layers.
      heads: attention heads.
      patch: side of the square of pixels that a token is.
      dropout: behind attention and MLP.
      remat: whether layers are computed again when going backward.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 4
    dropout: float = 0.0
    remat: bool = False


VARIANTS = {
    "dit": Config(),
    "dit_small": Config(width=192, depth=6, heads=3),
}


class Layer(nnx.Module):
    """Attention and MLP, each scaled, shifted and gated by the condition."""

    def __init__(self, config: Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
        options = dict(dtype=dtype, rngs=rngs)
        width = config.width
        self.condition = layers.Linear(width, 6 * width, init=ZERO, **options)
        self.norm1 = layers.LayerNorm(width, epsilon=_EPSILON, dtype=dtype)
        self.attention = SelfAttention(
            width, config.heads, out_init=TORCH_UNIFORM, **options
        )
        self.norm2 = layers.LayerNorm(width, epsilon=_EPSILON, dtype=dtype)
        self.fc1 = layers.Linear(
            width, 4 * width, init=TORCH_UNIFORM, **options
        )
        self.fc2 = layers.Linear(
            4 * width, width, init=TORCH_UNIFORM, **options
        )
        self.dropout = layers.Dropout(config.dropout, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B tokens width"],
        condition: Float[Array, "B width"],
    ) -> Float[Array, "B tokens width"]:
        """Maps `[B, tokens, width]` to the same."""
        parts = jnp.split(self.condition(condition), 6, axis=-1)
        scale1, shift1, gate1, scale2, shift2, gate2 = parts
        branch = self.attention(modulate(self.norm1(x), scale1, shift1))
        x = x + gate1[:, None] * self.dropout(branch)
        branch = modulate(self.norm2(x), scale2, shift2)
        branch = self.fc2(functional.gelu(self.fc1(branch)))
        return x + gate2[:, None] * self.dropout(branch)


class DiT(VelocityModel):
    """The network; see the module and `VelocityModel`."""

    def __init__(
        self,
        config: Config,
        num_classes: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        check_counts(
            "dit",
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            patch=config.patch,
        )
        if config.width % 4:
            raise UserError(
                f"dit has width={config.width}; take a multiple of 4"
            )
        options = dict(dtype=dtype, rngs=rngs)
        width, pixels = config.width, 3 * config.patch**2
        self.num_classes = num_classes
        self.unit = self.patch = config.patch
        self.remat, self.dtype = config.remat, dtype
        self.condition = Condition(width, num_classes, **options)
        self.stem = layers.Linear(pixels, width, init=TORCH_UNIFORM, **options)
        self.layers = nnx.List(
            Layer(config, **options) for _ in range(config.depth)
        )
        self.norm = layers.LayerNorm(width, epsilon=_EPSILON, dtype=dtype)
        self.modulation = layers.Linear(width, 2 * width, init=ZERO, **options)
        self.paint = layers.Linear(width, pixels, init=ZERO, **options)

    def __call__(
        self,
        noisy: Float[Array, "B H W 3"],
        time: Float[Array, " B"],
        label: Int32[Array, " B"],
        augmentation: Float[Array, "B 10"] | None = None,
    ) -> Float[Array, "B H W 3"]:
        """See `VelocityModel.__call__`."""
        self.check_size(*noisy.shape[1:3])
        condition = self.condition(time, label, augmentation)
        x = self.stem(mae.patchify(noisy.astype(self.dtype), self.patch))
        batch, rows, columns, width = x.shape
        x = x + mae.positions(rows, columns, width).astype(x.dtype)
        x = x.reshape(batch, rows * columns, width)
        for layer in self.layers:
            x = self._run(layer, x, condition)
        scale, shift = jnp.split(self.modulation(condition), 2, axis=-1)
        x = self.paint(modulate(self.norm(x), scale, shift))
        x = x.reshape(batch, rows, columns, -1)
        return velocity_to(mae.unpatchify(x, self.patch), noisy, time)

    def _run(
        self, layer: Layer, x: jax.Array, condition: jax.Array
    ) -> jax.Array:
        if self.remat:
            return layers.rematerialize(layer, x, condition)
        return layer(x, condition)
