"""What happens to a batch, on the device: normalise, erase, mix.

Pure functions of a key, for use inside a jitted train step. Random erasing
and mixing run here because they are elementwise over whole batches, which a
device does for nothing, and because they make float images of what the host
hands over as bytes.
"""

from __future__ import annotations

import dataclasses
import enum
import math

import jax
import jax.numpy as jnp

from core import counter_rng
from input_pipeline.transforms import on_device

# RandomErasing gives up on an image after as many rectangles that do not fit.
_ERASE_ATTEMPTS = 10


class _Streams(enum.IntEnum):
    """What the numbers of a key are for (core/counter_rng.py)."""

    SHAPES = 0
    PLACES = 1
    PIXELS = 2
    MIXING = 3


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How batches are mixed; hashable, a static argument of a jitted step.

    Attributes:
      mixup_prob: probability of MixUp, else CutMix.
      prob: probability that anything is mixed at all.
      mixup_alpha: MixUp's lambda is drawn from Beta(alpha, alpha); 0 turns
        MixUp off.
      cutmix_alpha: the same for CutMix.
      per_element: draw all of this for each image instead of once a batch.
      erase_prob: probability of RandomErasing, per image.
      erase_area: smallest and largest share of the image that is erased.
      erase_ratio: smallest and largest height / width of the rectangle.
    """

    mixup_prob: float = 0.5
    prob: float = 1.0
    mixup_alpha: float = 1.0
    cutmix_alpha: float = 1.0
    per_element: bool = False
    erase_prob: float = 0.25
    erase_area: tuple[float, float] = (0.02, 0.2)
    erase_ratio: tuple[float, float] = (0.3, 3.3)


def normalize(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Bytes to zero mean and unit variance per channel.

    Args:
      images: uint8 `[..., 3]`.
      mean: `[3]`, of values in 0 to 1.
      std: `[3]`, the same.

    Returns:
      float32 of the same shape.
    """
    scale = 1.0 / (255.0 * jnp.asarray(std, jnp.float32))
    offset = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return images.astype(jnp.float32) * scale - offset


def images_of(
    batch: dict[str, jax.Array], mean: jax.Array, std: jax.Array
) -> jax.Array:
    """A training batch's images, augmented to the end and normalised.

    Args:
      batch: of `loader.train_batches`.
      mean: `[3]`, of values in 0 to 1.
      std: `[3]`, the same.

    Returns:
      float32 `[B, H, W, 3]`.
    """
    images = batch["image"]
    if "operation" in batch:  # augment.device
        images = on_device.apply(images, batch["operation"], batch["strength"])
    return normalize(images, mean, std)


def random_erasing(
    images: jax.Array, mixing: Mixing, key: jax.Array
) -> jax.Array:
    """Fills a random rectangle of some images with normal noise.

    Zhong et al. 2017, with torchvision's sampling: area uniform, aspect ratio
    log-uniform, ten attempts to find a rectangle smaller than the image.

    Args:
      images: float32 `[B, H, W, C]`, normalised.
      mixing: its `erase_…` fields are used.
      key: a JAX random key.

    Returns:
      float32 `[B, H, W, C]`.
    """
    if mixing.erase_prob == 0:
        return images
    batch, height, width, _ = images.shape
    top, left, h, w, chosen = _erase_rectangles(
        key, batch, height, width, mixing
    )
    inside = _inside(top, left, top + h, left + w, height, width)
    inside &= chosen[:, None, None]  # [B, H, W]
    return jnp.where(inside[..., None], _normal(key, images.shape), images)


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal noise, float32 of `shape`."""
    places = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    bits = counter_rng.bits(key, places, _Streams.PIXELS)
    # 23 bits and a half: strictly between -1 and 1, so never infinite.
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-22 - 1.0
    return jax.lax.erf_inv(uniform) * math.sqrt(2.0)


def _erase_rectangles(
    key: jax.Array, batch: int, height: int, width: int, mixing: Mixing
) -> tuple[jax.Array, ...]:
    """Top, left, height, width, each int32 `[B]`, and whether to: bool `[B]`.

    Height and width are 0 where no rectangle fits.
    """
    shapes = counter_rng.uniform_table(
        key, batch, 2 * _ERASE_ATTEMPTS, _Streams.SHAPES
    )
    area, ratio = jnp.split(shapes, 2, axis=1)
    low, high = mixing.erase_area
    area = low + (high - low) * area
    low, high = (math.log(ratio) for ratio in mixing.erase_ratio)
    ratio = low + (high - low) * ratio
    h, w = _erase_sizes(area, jnp.exp(ratio), height, width)
    top, left, chosen = counter_rng.uniform_table(
        key, batch, 3, _Streams.PLACES
    ).T
    top = counter_rng.integers_below(top, height - h + 1)
    left = counter_rng.integers_below(left, width - w + 1)
    return top, left, h, w, chosen < mixing.erase_prob


def _erase_sizes(
    area: jax.Array, ratio: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """The first rectangle that fits, out of `[B, attempts]`: int32 `[B]`."""
    area = area * (height * width)
    h = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    found = fits.any(axis=1)
    h = jnp.where(found, jnp.take_along_axis(h, first, axis=1)[:, 0], 0)
    w = jnp.where(found, jnp.take_along_axis(w, first, axis=1)[:, 0], 0)
    return h, w


def mix(
    images: jax.Array,
    targets: jax.Array,
    mixing: Mixing,
    key: jax.Array,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """MixUp (Zhang et al. 2017) or CutMix (Yun et al. 2019).

    An image's partner is its neighbour in the batch, which is a random one as
    batches are shuffled. Every pixel is a weighted mean of the two, and the
    label's lambda is the image's own share of the pixels: for CutMix one minus
    the area of the box after clipping.

    Args:
      images: float32 `[B, H, W, C]`.
      targets: float `[B, num_classes]`, each row a distribution.
      mixing: what to draw.
      key: a JAX random key.
      mask: `[B]`; a row is left unmixed where its own or its partner's mask
        is 0, so that no label stands for an image that is not there.

    Returns:
      images float32 `[B, H, W, C]` and targets float `[B, num_classes]`.
    """
    if mixing.prob == 0:
        return images, targets
    batch, height, width, _ = images.shape
    draws = batch if mixing.per_element else 1
    which, whether, mixup, cutmix, row, column = counter_rng.uniform_table(
        key, draws, 6, _Streams.MIXING
    ).T
    mixup_key, cutmix_key = jax.random.split(key)
    share = _lambda(mixup_key, mixup, mixing.mixup_alpha)
    box, box_share = _cutmix_box(
        _lambda(cutmix_key, cutmix, mixing.cutmix_alpha),
        counter_rng.integers_below(row, height),
        counter_rng.integers_below(column, width),
        height,
        width,
    )
    use_mixup = which < mixing.mixup_prob
    own = jnp.where(use_mixup, share, box_share)  # [draws], lambda
    pixels = jnp.where(
        use_mixup[:, None, None], share[:, None, None], ~box
    )  # [draws, H, W], the image's own weight at each pixel
    mixed = whether < mixing.prob
    if mask is not None:
        mixed = mixed & (mask > 0) & (jnp.roll(mask, 1) > 0)
    own = jnp.where(mixed, own, 1.0)[:, None]
    pixels = jnp.where(mixed[:, None, None], pixels, 1.0)[..., None]
    partner = jnp.roll(images, 1, axis=0)
    images = pixels * images + (1.0 - pixels) * partner
    targets = own * targets + (1.0 - own) * jnp.roll(targets, 1, axis=0)
    return images, targets


def _lambda(key: jax.Array, uniform: jax.Array, alpha: float) -> jax.Array:
    """Beta(alpha, alpha), float32 `[draws]`; ones where alpha is 0.

    Args:
      key: what it is drawn with.
      uniform: numbers in [0, 1), `[draws]`, which Beta(1, 1) is: a sampler
        takes seconds to compile.
      alpha: of the distribution.
    """
    if alpha == 0:
        return jnp.ones_like(uniform)
    if alpha == 1:
        return uniform
    return jax.random.beta(key, alpha, alpha, uniform.shape)


def _cutmix_box(
    share: jax.Array, row: jax.Array, column: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Pixels of the box, bool `[draws, H, W]`, and the share outside it.

    Args:
      share: which is to be outside before clipping, float32 `[draws]`.
      row, column: of the middle, int32 `[draws]`.
      height, width: of the image.
    """
    side = jnp.sqrt(1.0 - share)
    half_h = jnp.floor(side * height).astype(jnp.int32) // 2
    half_w = jnp.floor(side * width).astype(jnp.int32) // 2
    top = jnp.clip(row - half_h, 0, height)
    left = jnp.clip(column - half_w, 0, width)
    bottom = jnp.clip(row + half_h, 0, height)
    right = jnp.clip(column + half_w, 0, width)
    area = (bottom - top) * (right - left)
    share = 1.0 - area / (height * width)
    return _inside(top, left, bottom, right, height, width), share


def _inside(
    top: jax.Array,
    left: jax.Array,
    bottom: jax.Array,
    right: jax.Array,
    height: int,
    width: int,
) -> jax.Array:
    """Which pixels lie in rectangles `[B]`: bool `[B, H, W]`."""
    y = jnp.arange(height)[None, :, None]
    x = jnp.arange(width)[None, None, :]
    top, left, bottom, right = (
        edge[:, None, None] for edge in (top, left, bottom, right)
    )
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def prepare_train(
    batch: dict[str, jax.Array],
    mixing: Mixing,
    mean: jax.Array,
    std: jax.Array,
    num_classes: int,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """From a batch of the pipeline to what the loss is computed on.

    Label smoothing is not applied here; the loss does it, once.

    Args:
      batch: of `loader.train_batches`: `image` uint8 `[B, H, W, 3]`, `label`
        int32 `[B]`, `weight` `[B]`; perhaps `operation` and `strength`.
      mixing: erasing and mixing.
      mean: `[3]`, of values in 0 to 1.
      std: `[3]`, the same.
      num_classes: C.
      key: a JAX random key, another one each step.

    Returns:
      images float32 `[B, H, W, 3]`, targets float32 `[B, C]`, weights float32
      `[B]` (0 for images that could not be read).
    """
    images = images_of(batch, mean, std)
    images = random_erasing(images, mixing, key)
    targets = jax.nn.one_hot(batch["label"], num_classes)
    weights = batch["weight"].astype(jnp.float32)
    images, targets = mix(images, targets, mixing, key, weights)
    return images, targets, weights
