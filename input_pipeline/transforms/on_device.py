"""Colour and sharpness on the device, inside the training step.

The operations of `operations.ON_DEVICE` by the same formulas as on the host,
on whole batches: which of them an image gets, how strongly and in what order
was drawn on the host and came with the batch. Each is identical to the host's
or, where float32 is rounded elsewhere, one grey level off;
tests/input_pipeline compares them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8

from input_pipeline.backends import pixel_math
from input_pipeline.transforms.operations import ON_DEVICE


def apply(
    images: UInt8[Array, "B H W 3"] | UInt8[np.ndarray, "B H W 3"],
    codes: UInt8[Array, "B S"] | UInt8[np.ndarray, "B S"],
    values: Float32[Array, "B S"] | Float32[np.ndarray, "B S"],
) -> UInt8[Array, "B H W 3"]:
    """Does every image's own operations in its own order.

    In each slot all operations are computed for all images and one is chosen:
    pixels at hand are cheap to compute with, and one pass over memory per slot
    is what is paid for.

    Args:
      images: RGB.
      codes: from `operations.encode`.
      values: the same.
    """

    def slot(images, drawn):
        code, value = drawn
        return _choose(images, code, value), None

    done, _ = jax.lax.scan(slot, images, (codes.T, values.T))
    return done


def _choose(images: jax.Array, code: jax.Array, value: jax.Array) -> jax.Array:
    value = value[:, None, None, None]
    code = code[:, None, None, None]
    result = images
    for number, name in enumerate(ON_DEVICE, start=1):
        changed = _OPERATIONS[name](images, value)
        result = jnp.where(code == number, changed, result)
    return result


def _cut(values: jax.Array) -> jax.Array:
    """To uint8: clipped to 0 to 255, without fractions."""
    return jnp.clip(values, 0, 255).astype(jnp.uint8)


def _blend(images: jax.Array, base: jax.Array | float, factor: jax.Array):
    return _cut(base + factor * (images.astype(jnp.float32) - base))


def _grey(images: jax.Array) -> jax.Array:
    """Pillow's grey, int32 `[B, H, W, 1]`: 16-bit luminance."""
    red, green, blue = _channels(images.astype(jnp.int32))
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _channels(images: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(images[..., channel : channel + 1] for channel in range(3))


def _brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    return _blend(images, 0.0, factor)


def _contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    grey = _grey(images)
    count = grey.shape[1] * grey.shape[2]
    total = grey.sum(axis=(1, 2), keepdims=True)  # int32, up to 2,000 px
    mean = (2 * total + count) // (2 * count)  # to the nearest, halves up
    return _blend(images, mean, factor)


def _saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    return _blend(images, _grey(images), factor)


def _hue(images: jax.Array, shift: jax.Array) -> jax.Array:
    hues, deductions = pixel_math.hue_tables()
    red, green, blue = _channels(images.astype(jnp.int32))
    high = jnp.maximum(jnp.maximum(red, green), blue)
    low = jnp.minimum(jnp.minimum(red, green), blue)
    spread = high - low
    middle = red + green + blue - high - 2 * low
    order = 3 * (green >= blue) + (red >= green) + (red >= blue)
    turned = jnp.asarray(hues)[(order << 16) | (spread << 8) | middle]
    # Towards 0, as on the host.
    turned = (turned + (shift * 255).astype(jnp.int32)) & 255
    taken = jnp.asarray(deductions)[(spread << 8) | turned]
    parts = [(taken >> bits) & 255 for bits in (0, 8, 16)]
    parts = jnp.concatenate(parts, axis=-1).astype(jnp.int32)
    return (high - parts).astype(jnp.uint8)


def _grayscale(images: jax.Array, _: jax.Array) -> jax.Array:
    grey = _grey(images).astype(jnp.uint8)
    return jnp.broadcast_to(grey, images.shape)


def _posterize(images: jax.Array, bits: jax.Array) -> jax.Array:
    lost = (8 - bits.astype(jnp.int32)).astype(jnp.uint8)
    return (images >> lost) << lost


def _solarize(images: jax.Array, threshold: jax.Array) -> jax.Array:
    return jnp.where(images < threshold, images, 255 - images)


def _sharpness(images: jax.Array, factor: jax.Array) -> jax.Array:
    height, width = images.shape[1:3]
    if height < 3 or width < 3:
        return images
    pixels = images.astype(jnp.int32)
    center = pixels[:, 1:-1, 1:-1]
    rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * center
    values = center * factor + total * ((1 - factor) / 13)
    return images.at[:, 1:-1, 1:-1].set(_cut(values))


_OPERATIONS = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
    "grayscale": _grayscale,
    "posterize": _posterize,
    "solarize": _solarize,
    "sharpness": _sharpness,
}
