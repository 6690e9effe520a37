"""U-Net that generates images: residual blocks, attention on coarse maps.

Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv
2006.11239, with the blocks of Dhariwal & Nichol, arXiv 2105.05233 (the
condition scales and shifts after the second norm; the last convolution of a
block starts at 0). `patch` lets it work on squares of pixels, as DiT does.
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
from jax_models.segmentation import upsample_nearest
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

_EPSILON = 1e-5
_GROUP_WIDTH = 16  # channels


@dataclasses.dataclass(frozen=True)
class Config:
    """What may be overridden.

    Attributes:
      width: channels of the finest map; a multiple of 16.
      multipliers: channels of each level over `width`, fine to coarse.
      blocks: residual blocks of a level, on the way down; one more going up.
      attention: levels with attention, from 0.
      head_width: channels of an attention head.
      patch: side of the square of pixels that a cell of the finest map is.
      dropout: in the residual blocks.
      remat: whether blocks are computed again when going backward.
    """

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (1, 2)
    head_width: int = 32
    patch: int = 1
    dropout: float = 0.1
    remat: bool = False


VARIANTS = {
    "flow_unet": Config(),
    "flow_unet_small": Config(width=32, multipliers=(1, 2, 3), blocks=1),
}


class GroupNorm(nnx.Module):
    """Normalisation over 16 channels and the map (Wu & He 2018)."""

    def __init__(self, channels: int, *, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.groups = channels // _GROUP_WIDTH
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Maps `[B, h, w, C]` to the same."""
        batch, channels = x.shape[0], x.shape[-1]

        def mean_of(x: jax.Array) -> jax.Array:
            # First of each channel: XLA's loops on CPUs are twice as slow
            # over groups of channels and the map at once.
            groups = x.mean(1).reshape(batch, self.groups, _GROUP_WIDTH)
            means = groups.mean(-1, keepdims=True)
            means = jnp.broadcast_to(means, groups.shape)
            return means.reshape(batch, 1, channels)

        flat = x.reshape(batch, -1, channels)
        normal, _, _ = functional.normalize_by(flat, mean_of, _EPSILON)
        y = normal.reshape(x.shape) * self.scale[...] + self.bias[...]
        return y.astype(self.dtype)


class Block(nnx.Module):
    """Two 3x3 convolutions around the condition, and attention if wanted."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        condition: int,
        config: Config,
        attends: bool,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        self.norm1 = GroupNorm(channels_in, dtype=dtype)
        self.conv1 = layers.Conv(
            channels_in, channels, 3, init=TORCH_UNIFORM, **options
        )
        self.condition = layers.Linear(
            condition, 2 * channels, init=ZERO, **options
        )
        self.norm2 = GroupNorm(channels, dtype=dtype)
        self.dropout = layers.Dropout(config.dropout, rngs=rngs)
        self.conv2 = layers.Conv(channels, channels, 3, init=ZERO, **options)
        self.skip = (
            layers.Linear(channels_in, channels, init=TORCH_UNIFORM, **options)
            if channels_in != channels
            else None
        )
        self.norm3 = GroupNorm(channels, dtype=dtype) if attends else None
        heads = max(channels // config.head_width, 1)
        self.attention = (
            SelfAttention(channels, heads, out_init=ZERO, **options)
            if attends
            else None
        )

    def __call__(
        self, x: Float[Array, "B h w _"], condition: Float[Array, "B _"]
    ) -> Float[Array, "B h w _"]:
        """Maps `[B, h, w, channels_in]` to `[B, h, w, channels]`."""
        branch = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = jnp.split(self.condition(condition), 2, axis=-1)
        branch = modulate(self.norm2(branch), scale, shift)
        branch = self.conv2(self.dropout(functional.silu(branch)))
        x = branch + (x if self.skip is None else self.skip(x))
        if self.attention is not None:
            tokens = self.norm3(x).reshape(x.shape[0], -1, x.shape[-1])
            x = x + self.attention(tokens).reshape(x.shape)
        return x


class FlowUNet(VelocityModel):
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
            "flow_unet",
            width=config.width,
            blocks=config.blocks,
            head_width=config.head_width,
            patch=config.patch,
            multipliers=min(config.multipliers, default=0),
        )
        levels = range(len(config.multipliers))
        if beyond := [n for n in config.attention if n not in levels]:
            raise UserError(
                f"flow_unet has attention={tuple(config.attention)} and "
                f"{len(levels)} levels, from 0 on; leave {beyond} out"
            )
        if config.width % _GROUP_WIDTH:
            raise UserError(
                f"flow_unet has width={config.width}; take a multiple of "
                f"{_GROUP_WIDTH}"
            )
        options = dict(dtype=dtype, rngs=rngs)
        self.num_classes, self.patch = num_classes, config.patch
        self.unit = config.patch * 2 ** (len(config.multipliers) - 1)
        self.remat, self.dtype = config.remat, dtype
        widths = [config.width * factor for factor in config.multipliers]
        condition = 4 * config.width
        self.condition = Condition(condition, num_classes, **options)
        pixels = 3 * config.patch**2
        self.stem = layers.Conv(
            pixels, config.width, 3, init=TORCH_UNIFORM, **options
        )

        def block(channels_in: int, level: int) -> Block:
            attends = level in config.attention
            return Block(
                channels_in,
                widths[level],
                condition,
                config,
                attends,
                **options,
            )

        channels, kept = config.width, [config.width]
        down, up = [], []
        for level, width in enumerate(widths):
            if level:
                down.append(
                    layers.Conv(
                        channels,
                        channels,
                        3,
                        2,
                        init=TORCH_UNIFORM,
                        **options,
                    )
                )
                kept.append(channels)
            for _ in range(config.blocks):
                down.append(block(channels, level))
                channels = width
                kept.append(channels)
        last = len(widths) - 1
        self.middle = nnx.List([block(channels, last), block(channels, last)])
        for level in reversed(range(len(widths))):
            for _ in range(config.blocks + 1):
                up.append(block(channels + kept.pop(), level))
                channels = widths[level]
            if level:
                up.append(
                    layers.Conv(
                        channels, channels, 3, init=TORCH_UNIFORM, **options
                    )
                )
        self.down, self.up = nnx.List(down), nnx.List(up)
        self.norm = GroupNorm(channels, dtype=dtype)
        self.paint = layers.Conv(channels, pixels, 3, init=ZERO, **options)

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
        kept = [x]
        for layer in self.down:
            x = self._run(layer, x, condition)
            kept.append(x)
        for layer in self.middle:
            x = self._run(layer, x, condition)
        for layer in self.up:
            if isinstance(layer, Block):
                x = jnp.concatenate([x, kept.pop()], axis=-1)
                x = self._run(layer, x, condition)
            else:
                height, width = x.shape[1:3]
                x = layer(upsample_nearest(x, 2, (2 * height, 2 * width)))
        x = self.paint(functional.silu(self.norm(x)))
        return velocity_to(mae.unpatchify(x, self.patch), noisy, time)

    def _run(
        self, layer: nnx.Module, x: jax.Array, condition: jax.Array
    ) -> jax.Array:
        if not isinstance(layer, Block):
            return layer(x)
        if self.remat:
            return layers.rematerialize(layer, x, condition)
        return layer(x, condition)
