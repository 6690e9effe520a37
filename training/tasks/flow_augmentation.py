"""Augmentation as a condition of a generator, so that it does not leak.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
Models", NeurIPS 2022, arXiv 2206.00364, appendix F.2: what was done to a
training image is a condition of the network; sampling asks for images to
which nothing was done.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

# Standard deviations of the changes; the turn is uniform.
LOG2_SCALE, LOG2_ASPECT, SHIFT = 0.2, 0.2, 0.125
MAX_TURN = math.pi / 12  # radians
BRIGHTNESS, LOG2_CONTRAST = 0.2, 0.4


def augment(
    images: Float[Array, "B H W 3"],
    key: Key[Array, ""],
    *,
    prob: float,
    flip: float,
) -> tuple[Float[Array, "B H W 3"], Float[Array, "B 10"]]:
    """Changes images at random, and tells how.

    Args:
      images: `[B, H, W, 3]`, values in -1 to 1.
      key: a random key.
      prob: probability of each change, independent of the others.
      flip: probability of a mirror image.

    Returns:
      The images, and the parameters of what was done to each, in the order
      mirrored, size, turn (cosine - 1, sine), aspect ratio (along and across
      its axis), down, across, brightness, contrast: 0 for an image as it was.
    """
    count = images.shape[0]
    draws = jax.random.normal(key, (count, 8))
    chosen = jax.random.uniform(jax.random.fold_in(key, 1), (count, 7))
    chosen = (chosen < prob).astype(jnp.float32)
    mirrored = jax.random.uniform(jax.random.fold_in(key, 2), (count,)) < flip
    turn = MAX_TURN * (2 * jax.scipy.special.ndtr(draws[:, 1]) - 1)
    scale = LOG2_SCALE * draws[:, 0] * chosen[:, 0]
    turn = turn * chosen[:, 1]
    aspect = LOG2_ASPECT * draws[:, 2] * chosen[:, 2]
    axis = math.pi * jax.scipy.special.ndtr(draws[:, 3])
    down = SHIFT * draws[:, 4] * chosen[:, 3]
    across = SHIFT * draws[:, 5] * chosen[:, 4]
    brightness = BRIGHTNESS * draws[:, 6] * chosen[:, 5]
    contrast = LOG2_CONTRAST * draws[:, 7] * chosen[:, 6]

    images = jnp.where(
        mirrored[:, None, None, None], images[:, :, ::-1], images
    )
    matrices = jax.vmap(_inverse)(scale, turn, aspect, axis)
    shifts = jnp.stack([down, across], -1)
    moved = jax.vmap(_warp)(images, matrices, shifts)
    factor = (2.0**contrast)[:, None, None, None]
    moved = moved * factor + brightness[:, None, None, None]
    parameters = jnp.stack(
        [
            mirrored.astype(jnp.float32),
            scale / LOG2_SCALE,
            jnp.cos(turn) - 1,
            jnp.sin(turn),
            aspect / LOG2_ASPECT * jnp.cos(2 * axis),
            aspect / LOG2_ASPECT * jnp.sin(2 * axis),
            down / SHIFT,
            across / SHIFT,
            brightness / BRIGHTNESS,
            contrast / LOG2_CONTRAST,
        ],
        axis=-1,
    )
    return jnp.clip(moved, -1, 1), parameters


def _inverse(
    scale: jax.Array, turn: jax.Array, aspect: jax.Array, axis: jax.Array
) -> jax.Array:
    """From places in the new image to places in the old one: `[2, 2]`."""
    stretch = _rotation(axis) @ jnp.diag(
        2.0 ** jnp.stack([-aspect - scale, aspect - scale])
    )
    return stretch @ _rotation(-axis) @ _rotation(-turn)


def _rotation(angle: jax.Array) -> jax.Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])


def _warp(image: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    """Bilinear; beyond its edge an image is its own mirror image."""
    height, width, channels = image.shape
    size = jnp.array([height, width], jnp.float32)
    middle = (size - 1) / 2
    rows, columns = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32),
        jnp.arange(width, dtype=jnp.float32),
        indexing="ij",
    )
    places = jnp.stack([rows, columns]) - middle[:, None, None]
    places = places - (shift * size)[:, None, None]
    # Not `@`, which accelerators would round to bfloat16.
    places = (matrix[:, :, None, None] * places[None]).sum(1)
    places = places + middle[:, None, None]
    return jnp.stack(
        [
            jax.scipy.ndimage.map_coordinates(
                image[..., channel], list(places), order=1, mode="mirror"
            )
            for channel in range(channels)
        ],
        axis=-1,
    )
