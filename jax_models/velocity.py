"""What networks that generate images share: what they are given and return.

Such a network is given noisy images and returns the velocity with which they
move from noise to images (Liu et al., "Flow Straight and Fast", ICLR 2023,
arXiv 2209.03003). Inside, it estimates the image, of which the velocity
follows: noise, unlike images, fills all dimensions of a patch, more than a
narrow network has channels for (Li & He, "Back to Basics: Let Denoising
Generative Models Denoise", arXiv 2511.13720). Time, class and the
augmentation of the training image are its condition: one vector, which scales
and shifts the inner maps.
"""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

from core.errors import UserError
from jax_models import functional, initializers, layers

# Parameters of an augmentation; all are 0 for an image as it is.
AUGMENTATIONS = 10
# Cosine and sine of the time, from 1,000 radians a unit down to a tenth (DiT).
_TIME_FEATURES = 128
_TIME_SCALE = 1000.0
_SLOWEST = 10_000.0
# Below it, an error of the image counts no more in the velocity (Li & He).
_SHORTEST_TIME = 0.05

TORCH_UNIFORM = initializers.Uniform()
ZERO = initializers.Normal(0.0)


class VelocityModel(nnx.Module):
    """Noisy images, times and classes to velocities.

    Attributes:
      TORCH_NAMES: as of `ImageModel`.
      num_classes: C; the label C stands for no class at all.
      unit: height and width of images are multiples of it.
    """

    TORCH_NAMES: ClassVar[tuple[tuple[str, str], ...]] = ()

    num_classes: int
    unit: int

    def __call__(
        self,
        noisy: Float[Array, "B H W 3"],
        time: Float[Array, " B"],
        label: Int32[Array, " B"],
        augmentation: Float[Array, "B 10"] | None = None,
    ) -> Float[Array, "B H W 3"]:
        """Returns the velocity of images.

        Args:
          noisy: `[B, H, W, 3]`, `(1 - time) * image + time * noise`, the
            images in -1 to 1.
          time: `[B]`, 0 (an image) to 1 (noise).
          label: `[B]`, 0 to C - 1, or C for any class.
          augmentation: `[B, 10]`, what was done to the images; None is
            nothing.

        Returns:
          float32 `[B, H, W, 3]`, the estimate of `velocity_to` the image.

        Raises:
          UserError: height or width is no multiple of `unit`.
        """
        raise TypeError(f"{type(self).__name__} must define __call__")

    def check_size(self, height: int, width: int) -> None:
        """Refuses images that the network cannot divide into its cells.

        Raises:
          UserError: height or width is no multiple of `unit`.
        """
        if height % self.unit or width % self.unit:
            raise UserError(
                f"{type(self).__name__} with these options makes images whose "
                f"sides are multiples of {self.unit}, not {height} x {width}; "
                "change --config.image_size or the model's options"
            )


def check_counts(name: str, **counts: int) -> None:
    """Refuses options below 1.

    Args:
      name: of the network.
      counts: options, by name.

    Raises:
      UserError: one is below 1.
    """
    for option, count in counts.items():
        if count < 1:
            raise UserError(f"{name} has {option}={count}; take 1 or more")


class Condition(nnx.Module):
    """Time, class and augmentation to one vector.

    Args:
      width: of the vector.
      num_classes: C.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        self.time = layers.Linear(
            2 * _TIME_FEATURES, width, init=TORCH_UNIFORM, **options
        )
        self.label = initializers.weight(
            rngs, (num_classes + 1, width), initializers.Normal(0.5)
        )
        self.augmentation = layers.Linear(
            AUGMENTATIONS, width, use_bias=False, init=ZERO, **options
        )
        self.fc = layers.Linear(width, width, init=TORCH_UNIFORM, **options)
        self.dtype = dtype

    def __call__(
        self,
        time: Float[Array, " B"],
        label: Int32[Array, " B"],
        augmentation: Float[Array, "B 10"] | None,
    ) -> Float[Array, "B width"]:
        """Maps what `VelocityModel` is given to `[B, width]`."""
        x = self.time(time_features(time).astype(self.dtype))
        x = x + self.label[...][label].astype(self.dtype)
        if augmentation is not None:
            x = x + self.augmentation(augmentation.astype(self.dtype))
        return functional.silu(self.fc(functional.silu(x)))


def time_features(time: Float[Array, " B"]) -> Float[Array, "B features"]:
    """Cosines and sines of the time (Vaswani et al. 2017), float32."""
    steps = jnp.arange(_TIME_FEATURES, dtype=jnp.float32) / _TIME_FEATURES
    frequencies = _TIME_SCALE * jnp.exp(-math.log(_SLOWEST) * steps)
    angles = time.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def modulate(
    x: jax.Array, scale: Float[Array, "B C"], shift: Float[Array, "B C"]
) -> jax.Array:
    """Scales and shifts the channels of `[B, ..., C]` by the condition."""
    middle = (1,) * (x.ndim - 2)
    scale = scale.reshape(scale.shape[0], *middle, -1)
    return x * (1 + scale) + shift.reshape(scale.shape)


def velocity_to(
    image: Float[Array, "B H W 3"],
    noisy: Float[Array, "B H W 3"],
    time: Float[Array, " B"],
) -> Float[Array, "B H W 3"]:
    """The velocity from the estimate of an image, float32.

    Of `noisy = (1 - time) * image + time * noise` it is `noise - image`, and
    smaller in the last twentieth of the way: there errors would count
    without bound. `unshortened` gives it back its length.
    """
    time = jnp.maximum(time, _SHORTEST_TIME)[:, None, None, None]
    return (noisy - functional.at_least_float32(image)) / time


def unshortened(
    velocity: Float[Array, "B H W 3"], time: Float[Array, " B"]
) -> Float[Array, "B H W 3"]:
    """The whole velocity, at a time above 0, from that of `velocity_to`.

    A flow that is followed with the shorter one ends before the image.
    """
    factor = jnp.maximum(_SHORTEST_TIME / time, 1.0)
    return velocity * factor[:, None, None, None]


class SelfAttention(nnx.Module):
    """Attention among tokens, after Vaswani et al. 2017.

    Args:
      width: of the tokens, a multiple of `heads`.
      heads: attention heads.
      out_init: of the last matrix.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        out_init: initializers.Initializer,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise UserError(
                f"attention over {width} channels cannot have {heads} heads; "
                "choose a width that the heads divide"
            )
        options = dict(dtype=dtype, rngs=rngs)
        self.qkv = layers.Linear(
            width, 3 * width, init=TORCH_UNIFORM, **options
        )
        self.proj = layers.Linear(width, width, init=out_init, **options)
        self.heads = heads

    def __call__(
        self, x: Float[Array, "B tokens width"]
    ) -> Float[Array, "B tokens width"]:
        """Maps `[B, tokens, width]` to the same."""
        return self.proj(functional.attention(self.qkv(x), self.heads))
