"""Batches on the device: normalise, erase, mix.

Pure functions of a key, for use inside a jitted train step. Random erasing
and mixing run here because they are elementwise over whole batches, which a
device does for nothing, and because they make float images of what the host
hands over as bytes.

Each feature is treated by its `Kind`:

    IMAGE   erased pixels become noise, MixUp and CutMix blend
    MASK    erased pixels become the ignore index, CutMix pastes; MixUp, of
            which no single class per pixel comes, is refused
    LABEL   a distribution over classes, blended by the share of pixels
    ID      unchanged
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Key, UInt8

from core import counter_rng
from core.class_colours import IGNORE
from core.errors import UserError
from input_pipeline.sources.base import Kind
from input_pipeline.transforms import on_device

AnyArray = Array | np.ndarray
Features = dict[str, Array]

# RandomErasing gives up on an image after as many rectangles that do not fit.
_ERASE_ATTEMPTS = 10


class _Streams(enum.IntEnum):
    """Independent sequences of one key (core/counter_rng.py)."""

    SHAPES = 0
    CORNERS = 1
    PIXELS = 2
    MIXING = 3


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How batches are erased and mixed; a static argument of a jitted step.

    Attributes:
      prob: probability that a batch is mixed at all.
      mixup_prob: probability of MixUp, else CutMix.
      mixup_alpha: MixUp's lambda is drawn from Beta(alpha, alpha).
      cutmix_alpha: the same for CutMix.
      erase_prob: probability of RandomErasing, per image.
      erase_area: smallest and largest share of the image that is erased.
      erase_ratio: smallest and largest height / width of the rectangle.
    """

    prob: float = 1.0
    mixup_prob: float = 0.5
    mixup_alpha: float = 1.0
    cutmix_alpha: float = 1.0
    erase_prob: float = 0.25
    erase_area: tuple[float, float] = (0.02, 0.2)
    erase_ratio: tuple[float, float] = (0.3, 3.3)


def normalize(
    images: UInt8[AnyArray, "... 3"],
    mean: Float[AnyArray, 3],
    std: Float[AnyArray, 3],
) -> Float32[Array, "... 3"]:
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
    batch: Mapping[str, AnyArray],
    mean: Float[AnyArray, 3],
    std: Float[AnyArray, 3],
) -> Float32[Array, "B H W 3"]:
    """A training batch's images, augmented to the end and normalised.

    Args:
      batch: of `loader.train_batches`.
      mean: `[3]`, of values in 0 to 1.
      std: `[3]`, the same.

    Returns:
      float32 `[B, H, W, 3]`.
    """
    images = batch["image"]
    if "operation" in batch:  # `Augment.device`
        images = on_device.apply(images, batch["operation"], batch["strength"])
    return normalize(images, mean, std)


def erase(
    features: Mapping[str, AnyArray],
    kinds: Mapping[str, Kind],
    mixing: Mixing,
    key: Key[Array, ""],
) -> Features:
    """Fills a random rectangle of some images with noise, masks with `IGNORE`.

    Zhong et al. 2017, normal noise, with torchvision's sampling: area uniform,
    ratio log-uniform, ten attempts to find a rectangle smaller than the image.

    Args:
      features: `image` float32 `[B, H, W, C]`, normalised, and others.
      kinds: of all features.
      mixing: its `erase_…` fields are used.
      key: a JAX random key.

    Returns:
      The features, of the same shapes.
    """
    if mixing.erase_prob == 0:
        return dict(features)
    batch, height, width, _ = features["image"].shape
    top, left, h, w, chosen = _erase_rectangles(
        key, batch, height, width, mixing
    )
    inside = _inside(top, left, top + h, left + w, height, width)
    inside &= chosen[:, None, None]  # [B, H, W]
    erased = dict(features)
    for name, values in features.items():
        if kinds[name] is Kind.IMAGE:
            noise = _normal(key, values.shape)
            erased[name] = jnp.where(inside[..., None], noise, values)
        elif kinds[name] is Kind.MASK:
            erased[name] = jnp.where(inside, IGNORE, values)
    return erased


def _normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Normal noise, float32 of `shape`."""
    counters = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    bits = counter_rng.bits(key, counters, _Streams.PIXELS)
    # 23 bits and a half: strictly between -1 and 1, so never infinite.
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-22 - 1.0
    return jax.lax.erf_inv(uniform) * math.sqrt(2.0)


def _erase_rectangles(
    key: Key[Array, ""], batch: int, height: int, width: int, mixing: Mixing
) -> tuple[Array, ...]:
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
        key, batch, 3, _Streams.CORNERS
    ).T
    top = counter_rng.integers_below(top, height - h + 1)
    left = counter_rng.integers_below(left, width - w + 1)
    return top, left, h, w, chosen < mixing.erase_prob


def _erase_sizes(
    area: Float[AnyArray, "B attempts"],
    ratio: Float[AnyArray, "B attempts"],
    height: int,
    width: int,
) -> tuple[Int32[Array, " B"], Int32[Array, " B"]]:
    """Height and width of the first rectangle that fits."""
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
    features: Mapping[str, AnyArray],
    kinds: Mapping[str, Kind],
    mixing: Mixing,
    key: Key[Array, ""],
    weight: Float[AnyArray, " B"],
) -> tuple[Features, Float[AnyArray, " B"]]:
    """MixUp (Zhang et al. 2017) or CutMix (Yun et al. 2019).

    An example's partner is its neighbour in the batch, a random one as batches
    are shuffled. Every pixel is a weighted mean of the two, and lambda is the
    image's own share of the pixels: for CutMix one minus the area of the box
    after clipping. Labels are mixed by lambda and the weights in the loss.

    Args:
      features: `image` float32 `[B, H, W, C]`, and perhaps masks int
        `[B, H, W]` and labels float `[B, num_classes]`, each a distribution.
      kinds: of all features.
      mixing: what to draw.
      key: a JAX random key.
      weight: of the examples in the loss; where it or its partner's is 0, one
        is left unmixed: an unreadable image leaves no trace in a label.

    Returns:
      The features, of the same shapes, and what each weighs, float `[B]`.

    Raises:
      UserError: MixUp of masks.
    """
    if mixing.prob == 0:
        return dict(features), weight
    if Kind.MASK in (kinds[name] for name in features) and mixing.mixup_prob:
        raise UserError(
            f"mixing.mixup_prob is {mixing.mixup_prob}, but MixUp leaves no "
            "single class per pixel of a mask; set "
            "--config.mixing.mixup_prob=0, which is CutMix alone, or "
            "--config.mixing.prob=0"
        )
    _, height, width, _ = features["image"].shape
    # [1] each, for the whole batch.
    which, whether, mixup, cutmix, row, column = counter_rng.uniform_table(
        key, 1, 6, _Streams.MIXING
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
    own = jnp.where(use_mixup, share, box_share)  # [1], lambda
    pixels = jnp.where(
        use_mixup[:, None, None], share[:, None, None], ~box
    )  # [1, H, W], the image's own weight at each pixel
    partner_weight = jnp.roll(weight, 1)
    mixed = (whether < mixing.prob) & (weight > 0) & (partner_weight > 0)
    own = jnp.where(mixed, own, 1.0)  # [B]
    # So written, equal weights stay as they are to the bit.
    total = weight + (1.0 - own) * (partner_weight - weight)
    own = jnp.where(mixed, own * weight / total, 1.0)[:, None]
    pixels = jnp.where(mixed[:, None, None], pixels, 1.0)
    result = dict(features)
    for name, values in features.items():
        partner = jnp.roll(values, 1, axis=0)
        if kinds[name] is Kind.IMAGE:
            by = pixels[..., None]
            result[name] = by * values + (1.0 - by) * partner
        elif kinds[name] is Kind.MASK:
            result[name] = jnp.where(pixels > 0.5, values, partner)
        elif kinds[name] is Kind.LABEL:
            result[name] = own * values + (1.0 - own) * partner
    return result, total


def _lambda(
    key: Key[Array, ""], uniform: Float[Array, " draws"], alpha: float
) -> Float[Array, " draws"]:
    """Beta(alpha, alpha).

    Args:
      key: what it is drawn with.
      uniform: numbers in [0, 1), `[draws]`, which Beta(1, 1) is: a sampler
        takes seconds to compile.
      alpha: of the distribution.
    """
    if alpha == 1:
        return uniform
    return jax.random.beta(key, alpha, alpha, uniform.shape)


def _cutmix_box(
    share: Float[Array, " draws"],
    row: Int32[Array, " draws"],
    column: Int32[Array, " draws"],
    height: int,
    width: int,
) -> tuple[Bool[Array, "draws {height} {width}"], Float[Array, " draws"]]:
    """Pixels of the box, and the share outside it.

    Args:
      share: of the pixels that is to be outside before clipping.
      row, column: of the middle.
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
    top: Int32[Array, " B"],
    left: Int32[Array, " B"],
    bottom: Int32[Array, " B"],
    right: Int32[Array, " B"],
    height: int,
    width: int,
) -> Bool[Array, "B {height} {width}"]:
    """Which pixels are in the rectangle of each image."""
    y, x = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None]
    top, left, bottom, right = (
        edge[:, None, None] for edge in (top, left, bottom, right)
    )
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def prepare_train(
    batch: Mapping[str, AnyArray],
    mixing: Mixing,
    mean: Float[AnyArray, 3],
    std: Float[AnyArray, 3],
    num_classes: int,
    key: Key[Array, ""],
) -> tuple[
    Float32[Array, "B H W 3"], Float32[Array, "B C"], Float32[Array, " B"]
]:
    """From a batch of the loader to what a classifier's loss is computed on.

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
      images float32 `[B, H, W, 3]`, targets float32 `[B, C]`, and what each
      weighs, float32 `[B]` (0 for images that could not be read).
    """
    kinds = {"image": Kind.IMAGE, "label": Kind.LABEL}
    features = {
        "image": images_of(batch, mean, std),
        "label": jax.nn.one_hot(batch["label"], num_classes),
    }
    weights = jnp.asarray(batch["weight"], jnp.float32)
    features = erase(features, kinds, mixing, key)
    features, weights = mix(features, kinds, mixing, key, weights)
    return features["image"], features["label"], weights


def prepare_once(
    batch: Mapping[str, AnyArray],
    mixing: Mixing,
    mean: Float[AnyArray, 3],
    std: Float[AnyArray, 3],
    num_classes: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """As `prepare_train`, outside a train step; a seed for the key.

    Returns:
      images float32 `[B, H, W, 3]`, and targets float32 `[B, C]`; of a batch
      with masks these, `[B, H, W]`.
    """
    key = jax.random.key(seed)
    if "mask" not in batch:
        prepare = jax.jit(prepare_train, static_argnums=(1, 4))
        found = prepare(batch, mixing, mean, std, num_classes, key)
        return np.asarray(found[0]), np.asarray(found[1])
    kinds = {"image": Kind.IMAGE, "mask": Kind.MASK}
    features = {"image": images_of(batch, mean, std), "mask": batch["mask"]}
    features = erase(features, kinds, mixing, key)
    features, _ = mix(features, kinds, mixing, key, batch["weight"])
    return np.asarray(features["image"]), np.asarray(features["mask"])
