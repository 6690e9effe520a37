"""A 1x1 convolution between a gate, batch normalisation and a shortcut.

When a model is evaluated, all of it is one pass over the rows on a CPU
(linear.cc): XLA would write and read the map after every step.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jax_models.cpu_kernels import activations, dispatch
from jax_models.cpu_kernels.batch_norm import BatchNorm
from jax_models.cpu_kernels.convolution import product
from jax_models.layers import DropPath, Linear

# The matrix is first copied into another order: with more weights than these
# for each row, that took longer than it saved.
WEIGHTS_PER_ROW = 2500


def pointwise(
    linear: Linear,
    norm: BatchNorm,
    x: jax.Array,
    *,
    gate: jax.Array | None = None,
    shortcut: jax.Array | None = None,
) -> jax.Array:
    """Returns `norm(linear(x * gate)) + shortcut`.

    Args:
      linear: without a bias.
      norm: of what it gives, with an activation or without.
      x: `[B, h, w, inputs]`.
      gate: `[B, 1, 1, inputs]`; None for none.
      shortcut: `[B, h, w, outputs]`; None for none.
    """
    if norm.use_running_average and _is_faster(linear, norm, x):
        return _evaluate(
            *(x, linear.kernel[...], norm.known()),
            *(gate, shortcut, norm.activation),
        )
    y = norm(linear(x if gate is None else x * gate))
    return y if shortcut is None else shortcut + y


def _is_faster(linear, norm, x):
    if not x.dtype == norm.dtype == linear.dtype == jnp.float32:
        return False
    rows, weights = math.prod(x.shape[:-1]), linear.kernel.size
    return rows * WEIGHTS_PER_ROW >= weights and dispatch.serves(x)


def close(
    x: jax.Array,
    linear: Linear,
    norm: BatchNorm,
    branch: jax.Array,
    drop_path: DropPath | None,
    gate: jax.Array | None = None,
) -> jax.Array:
    """Ends a branch by `pointwise`, and joins it to its shortcut `x`.

    Args:
      drop_path: of the branch; None where it has no shortcut.
    """
    if drop_path is not None and drop_path.deterministic:
        return pointwise(linear, norm, branch, gate=gate, shortcut=x)
    return join(x, pointwise(linear, norm, branch, gate=gate), drop_path)


def join(x: jax.Array, branch: jax.Array, drop_path: DropPath | None):
    """Returns a branch, with its shortcut if it has one."""
    return branch if drop_path is None else x + drop_path(branch)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _evaluate(x, kernel, known, gate, shortcut, activation):
    return _native(x, kernel, known, gate, shortcut, activation=activation)


def _forward(*arguments):
    *arrays, activation = arguments
    return jax.vjp(functools.partial(_plain, activation), *arrays)


def _plain(activation, x, kernel, known, gate, shortcut):
    mean, factor, bias = known
    x = x if gate is None else x * gate
    y = product(x.reshape(-1, x.shape[-1]), kernel)
    y = (y - mean) * factor + bias
    y = y if activation is None else activation(y)
    y = y.reshape(*x.shape[:-1], -1)
    return y if shortcut is None else shortcut + y


_evaluate.defvjp(_forward, lambda _, back, slope: back(slope))


@functools.partial(jax.jit, static_argnames="activation")  # Traced once.
def _native(x, kernel, known, gate, shortcut, *, activation):
    mean, factor, bias = known
    rows, none = x.reshape(-1, x.shape[-1]), jnp.zeros((0,), jnp.float32)
    shape = rows.shape[0], kernel.shape[1]
    y = dispatch.library().call(
        "sextet_linear",
        jax.ShapeDtypeStruct(shape, jnp.float32),
        *(rows, kernel, factor, bias - mean * factor),
        none if gate is None else gate.reshape(-1, x.shape[-1]),
        none if shortcut is None else shortcut.reshape(shape),
        activation=np.int32(activations.NUMBERS[activation]),
    )
    return y.reshape(*x.shape[:-1], -1)
