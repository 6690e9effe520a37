"""Masked autoencoding: a network learns images by filling in what is hidden.

He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022,
arXiv 2111.06377, carried over to networks with a feature pyramid as SimMIM
(Xie et al., arXiv 2111.09886) and ConvNeXt V2 (Woo et al., arXiv 2301.00808)
do: the map keeps its shape, and a learned token replaces the pixels that are
hidden. Images are hidden in units of the encoder's output stride (32 pixels),
so that no cell of the last map sees both kinds of pixels directly.

What differs from He et al., because the encoder is no ViT: hidden units go
through the encoder as tokens rather than being left out.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8

from core.errors import UserError
from jax_models import functional, initializers, layers
from jax_models.model import ImageModel

LN_EPSILON = 1e-6
# Keeps a patch without contrast from being divided by nothing.
CONTRAST_EPSILON = 1e-6


class MaskedAutoencoder(nnx.Module):
    """An encoder with a mask token, and a transformer that paints pixels.

    Nothing of a hidden pixel reaches the encoder: hidden pixels are set to
    zero before the patch embedding, and the learned token replaces what the
    embedding made of them. The decoder attends within each image alone. (In
    training mode an encoder with BatchNorm still shares the batch's
    statistics, as it does in classification.)

    Args:
      encoder: any model of `create_model`. Its head is not used.
      width: of the decoder's tokens; a multiple of four and of `heads`.
      depth: transformer layers in the decoder.
      heads: attention heads in each of them.
      mlp_width: width inside their MLPs.
    """

    def __init__(
        self,
        encoder: ImageModel,
        *,
        width: int = 512,
        depth: int = 4,
        heads: int = 8,
        mlp_width: int = 2048,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        encoder.check_as_encoder()
        self.encoder = encoder
        self.unit = encoder.strides[-1]
        options = dict(dtype=dtype, rngs=rngs)
        with initializers.one_draw(rngs):
            shape = (encoder.stem_channels,)
            self.mask_token = initializers.weight(
                rngs, shape, initializers.NORMAL_02
            )
            self.enter = layers.Linear(encoder.channels[-1], width, **options)
            self.layers = nnx.List(
                DecoderLayer(width, heads, mlp_width, **options)
                for _ in range(depth)
            )
            self.norm = layers.LayerNorm(width, epsilon=LN_EPSILON, dtype=dtype)
            self.paint = layers.Linear(width, self.unit**2 * 3, **options)

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        mask: Bool[Array, "B rows columns"],
    ) -> Float[Array, "B rows columns pixels"]:
        """Predicts the pixels of every unit.

        Args:
          images: `[B, H, W, 3]`, height and width multiples of the unit.
          mask: bool `[B, H / unit, W / unit]`, true where hidden.

        Returns:
          float32 `[B, H / unit, W / unit, unit * unit * 3]`, laid out as
          `patchify` does.

        Raises:
          UserError: the unit does not divide the images' size.
        """
        units_of(images.shape[1:3], self.unit)
        self.encoder.check(images)
        x = self.encoder.embed(hide(images, mask))
        hidden = _enlarge(mask, self.unit // self.encoder.stem_stride)
        token = self.mask_token[...].astype(x.dtype)
        x = jnp.where(hidden[..., None], token, x)
        x = self.enter(self.encoder.encode(x)[-1])
        batch, height, width, channels = x.shape
        x = x + positions(height, width, channels).astype(x.dtype)
        x = x.reshape(batch, height * width, channels)
        for layer in self.layers:
            x = layer(x)
        x = self.paint(self.norm(x)).astype(jnp.float32)
        return x.reshape(batch, height, width, -1)


class DecoderLayer(nnx.Module):
    """A pre-norm transformer layer: attention, then an MLP with GELU."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        self.norm1 = layers.LayerNorm(width, epsilon=LN_EPSILON, dtype=dtype)
        self.qkv = layers.Linear(width, 3 * width, **options)
        self.proj = layers.Linear(width, width, **options)
        self.norm2 = layers.LayerNorm(width, epsilon=LN_EPSILON, dtype=dtype)
        self.fc1 = layers.Linear(width, mlp_width, **options)
        self.fc2 = layers.Linear(mlp_width, width, **options)
        self.heads = heads

    def __call__(
        self, x: Float[Array, "B tokens width"]
    ) -> Float[Array, "B tokens width"]:
        """Maps `[B, tokens, width]` to the same, each image on its own."""
        branch = functional.attention(self.qkv(self.norm1(x)), self.heads)
        x = x + self.proj(branch)
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


def units_of(size: tuple[int, int], unit: int) -> tuple[int, int]:
    """How many units an image of `size` (height, width) has, down and across.

    Raises:
      UserError: the unit does not divide the size, or there is only one, of
        which no part can be hidden.
    """
    height, width = size
    rows, columns = height // unit, width // unit
    if height % unit or width % unit or rows * columns < 2:
        raise UserError(
            f"masked autoencoding hides units of {unit} x {unit} pixels, which "
            f"{height} x {width} images do not divide into; use a multiple of "
            f"{unit} such as {max(2, round(height / unit)) * unit}"
        )
    return rows, columns


def random_mask(
    key: jax.Array, batch: int, units: tuple[int, int], ratio: float = 0.75
) -> Bool[Array, "B rows columns"]:
    """Hides the same number of units in every image, at random.

    Args:
      key: a random key.
      batch: number of images.
      units: rows and columns of units in an image.
      ratio: the share that is hidden, rounded to whole units; at least one
        unit is hidden and one is left.

    Returns:
      bool `[batch, rows, columns]`, true where hidden.
    """
    count = math.prod(units)
    hidden = min(max(round(ratio * count), 1), count - 1)
    noise = jax.random.uniform(key, (batch, count))
    ranks = jnp.argsort(jnp.argsort(noise))
    return (ranks < hidden).reshape(batch, *units)


def hide(
    images: Float[Array, "B H W 3"], mask: Bool[Array, "B rows columns"]
) -> Float[Array, "B H W 3"]:
    """Images `[B, H, W, 3]` with the pixels of hidden units set to zero."""
    unit = images.shape[1] // mask.shape[1]
    return jnp.where(_enlarge(mask, unit)[..., None], 0, images)


def patchify(
    images: Float[Array | np.ndarray, "B H W C"], unit: int
) -> Float[Array | np.ndarray, "B rows columns pixels"]:
    """Cuts `[B, H, W, 3]` into `[B, H / unit, W / unit, unit * unit * 3]`."""
    batch, height, width, colours = images.shape
    rows, columns = height // unit, width // unit
    x = images.reshape(batch, rows, unit, columns, unit, colours)
    return x.swapaxes(2, 3).reshape(batch, rows, columns, -1)


def unpatchify(
    patches: Float[Array | np.ndarray, "B rows columns pixels"], unit: int
) -> Float[Array | np.ndarray, "B H W C"]:
    """Joins what `patchify` cut."""
    batch, rows, columns, _ = patches.shape
    x = patches.reshape(batch, rows, columns, unit, unit, -1).swapaxes(2, 3)
    return x.reshape(batch, rows * unit, columns * unit, -1)


def reconstruction_loss(
    predictions: Float[Array, "B rows columns pixels"],
    images: Float[Array, "B H W 3"],
    mask: Bool[Array, "B rows columns"],
    *,
    normalize_targets: bool = False,
    weights: Float[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Mean squared error over the pixels of the hidden units alone.

    Args:
      predictions: what the autoencoder gave.
      images: `[B, H, W, 3]`, whole.
      mask: bool `[B, rows, columns]`, true where hidden.
      normalize_targets: whether each unit's pixels are brought to mean 0 and
        variance 1 first (He et al., section 4.1).
      weights: float `[B]`, what each image counts; 1 each when left out.

    Returns:
      A scalar, float32.
    """
    targets = patchify(images.astype(jnp.float32), _unit(images, mask))
    if normalize_targets:
        mean, contrast = _contrast(targets)
        targets = (targets - mean) / contrast
    errors = jnp.square(predictions - targets).mean(-1)
    counts = mask.astype(jnp.float32)
    if weights is not None:
        counts = counts * weights[:, None, None]
    return (errors * counts).sum() / jnp.maximum(counts.sum(), 1)


def picture(
    images: Float[Array | np.ndarray, "B H W 3"],
    mask: Bool[Array | np.ndarray, "B rows columns"],
    predictions: Float[Array | np.ndarray, "B rows columns pixels"],
    *,
    mean: Float[np.ndarray, " 3"],
    std: Float[np.ndarray, " 3"],
    normalize_targets: bool = False,
) -> UInt8[np.ndarray, "height width 3"]:
    """Original, masked and reconstructed, side by side, one row per image.

    The reconstruction shows the predictions where the image was hidden, and
    the image elsewhere.

    Args:
      images: `[B, H, W, 3]`, as the autoencoder took them.
      mask: bool `[B, rows, columns]`.
      predictions: `[B, rows, columns, unit * unit * 3]`.
      mean: `[3]`, what was subtracted from pixels in 0 .. 1.
      std: `[3]`, what they were divided by.
      normalize_targets: whether the loss had this option.

    Returns:
      uint8 `[B * H, 3 * W, 3]`.
    """
    images, mask = np.asarray(images, np.float32), np.asarray(mask)
    predictions = np.asarray(predictions, np.float32)
    unit = _unit(images, mask)
    if normalize_targets:
        own_mean, contrast = _contrast(patchify(images, unit))
        predictions = predictions * np.asarray(contrast) + np.asarray(own_mean)
    painted = unpatchify(predictions, unit)
    hidden = np.repeat(np.repeat(mask, unit, 1), unit, 2)[..., None]

    def pixels(normal: np.ndarray) -> np.ndarray:
        unit_range = normal * np.asarray(std) + np.asarray(mean)
        return np.clip(np.rint(unit_range * 255), 0, 255).astype(np.uint8)

    original = pixels(images)
    grey = np.uint8(128)
    masked = np.where(hidden, grey, original)
    reconstructed = np.where(hidden, pixels(painted), original)
    rows = np.concatenate([original, masked, reconstructed], 2)
    return rows.reshape(-1, *rows.shape[2:])


def positions(
    height: int, width: int, channels: int
) -> Float[np.ndarray, "height width channels"]:
    """Sines and cosines of a cell's row and column (He et al., appendix A).

    Returns:
      float32 `[height, width, channels]`, a quarter each: sines and cosines
      of the row, sines and cosines of the column.
    """
    frequencies = 10_000.0 ** -(np.arange(channels // 4) / (channels // 4))
    rows = np.arange(height)[:, None, None] * frequencies
    columns = np.arange(width)[None, :, None] * frequencies
    waves = [np.sin(rows), np.cos(rows), np.sin(columns), np.cos(columns)]
    shape = (height, width, channels // 4)
    waves = [np.broadcast_to(wave, shape) for wave in waves]
    return np.concatenate(waves, -1).astype(np.float32)


def _unit(images: Array | np.ndarray, mask: Array | np.ndarray) -> int:
    return images.shape[1] // mask.shape[1]


def _enlarge(mask: Array | np.ndarray, times: int) -> Array:
    return jnp.repeat(jnp.repeat(mask, times, 1), times, 2)


def _contrast(
    patches: Array | np.ndarray,
) -> tuple[Array | np.ndarray, Array | np.ndarray]:
    mean = patches.mean(-1, keepdims=True)
    variance = patches.var(-1, keepdims=True)
    return mean, (variance + CONTRAST_EPSILON) ** 0.5
