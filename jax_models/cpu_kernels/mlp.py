"""LayerNorm and MLP of a block, with its shortcut, in one pass on a CPU.

What lies between the two matrices is four times as wide as what goes in and
comes out. Where nothing asks for gradients, it need not be kept: in C++
(mlp.cc) it is used up while it is near.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from core.hardware import usable_cores
from jax_models.cpu_kernels import activations, dispatch
from jax_models.cpu_kernels.convolution import product
from jax_models.cpu_kernels.norms import layer_norm, widen

# The matrices are first copied into another order: with fewer rows than these,
# or than one for so many weights, that took longer than it saved.
FEWEST_ROWS, WEIGHTS_PER_ROW = 128, 1200

Grn = tuple[jax.Array, jax.Array]


def serves(x: jax.Array, inner: int, grn: bool) -> bool:
    """Whether there is C++ that is faster than the layers one by one.

    Args:
      x: `[B, h, w, C]`.
      inner: width between the matrices.
      grn: whether they have GRN between them, for which one thread takes a
        whole image.
    """
    if x.dtype != jnp.float32 or not dispatch.serves(x):
        return False
    if grn and x.shape[0] < usable_cores():
        return False
    rows, channels = math.prod(x.shape[:-1]), x.shape[-1]
    enough = rows >= max(FEWEST_ROWS, channels * inner / WEIGHTS_PER_ROW)
    return enough and inner % dispatch.library().lanes == 0


def respond(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    """Global response normalisation; see `convnext.GlobalResponseNorm`."""
    energy = jnp.square(widen(x)).sum((1, 2), keepdims=True)
    # The root has no slope at 0, where a channel is silent.
    silent = energy == 0
    norm = jnp.sqrt(jnp.where(silent, jnp.ones_like(energy), energy))
    norm = jnp.where(silent, jnp.zeros_like(energy), norm)
    share = norm / (norm.mean(-1, keepdims=True) + epsilon)
    return x * (1 + scale * share).astype(x.dtype) + bias.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def residual_mlp(
    x: jax.Array,
    shortcut: jax.Array,
    norm: tuple[jax.Array, jax.Array],
    matrices: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    grn: Grn | None,
    epsilon: float,
) -> jax.Array:
    """Returns `shortcut + narrow(GRN(GELU(widen(LayerNorm(x)))))`.

    To be called where it `serves`. Its gradients are those of the plain form,
    which is then what is computed.

    Args:
      x: float32 `[B, h, w, C]`.
      shortcut: of the same shape.
      norm: scale and bias `[C]`.
      matrices: `[C, inner]`, its bias, `[inner, C]`, its bias.
      grn: scale and bias `[inner]`; None for no GRN.
      epsilon: of the norms.
    """
    return _native(x, shortcut, norm, matrices, grn, epsilon=epsilon)


def _forward(*arguments):
    *arrays, epsilon = arguments
    return jax.vjp(functools.partial(_plain, epsilon), *arrays)


def _plain(epsilon, x, shortcut, norm, matrices, grn):
    first, first_bias, second, second_bias = matrices
    y = layer_norm(x, *norm, epsilon).reshape(-1, x.shape[-1])
    y = activations.gelu(product(y, first) + first_bias)
    if grn is not None:
        y = respond(y.reshape(*x.shape[:-1], -1), *grn, epsilon)
        y = y.reshape(-1, y.shape[-1])
    return shortcut + (product(y, second) + second_bias).reshape(x.shape)


residual_mlp.defvjp(_forward, lambda _, back, slope: back(slope))


@functools.partial(jax.jit, static_argnames="epsilon")  # Traced once.
def _native(x, shortcut, norm, matrices, grn, *, epsilon):
    batch, *_, channels = x.shape
    rows = x.reshape(-1, channels)
    y = dispatch.library().call(
        "sextet_mlp",
        jax.ShapeDtypeStruct(rows.shape, jnp.float32),
        *(rows, shortcut.reshape(rows.shape)),
        *(*norm, *matrices, *(grn or ())),
        epsilon=np.float32(epsilon),
        unit=rows.shape[0] // batch,
    )
    return y.reshape(x.shape)
