"""Batch normalisation together with the activation that follows it.

On a CPU both are one piece of C++ (batch_norm.cc), which keeps nothing but
the input and the statistics for the backward pass.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jax_models.cpu_kernels import dispatch
from jax_models.functional import (
    Activation,
    at_least_float32,
    gelu,
    normalize,
    relu,
    relu6,
    silu,
)

# Their numbers in activations.h.
ACTIVATIONS = {None: 0, gelu: 1, silu: 2, relu: 3, relu6: 4}


def batch_norm(
    x: Float[Array, "*B C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    epsilon: float,
    activation: Activation | None,
) -> tuple[Float[Array, "*B C"], Float[Array, " C"], Float[Array, " C"]]:
    """Normalises by the batch's own statistics, then applies `activation`.

    Gradients do not flow through the statistics that are returned.

    Returns:
      The result, in the dtype of `x`; mean and biased variance.
    """
    if activation in ACTIVATIONS and _is_for_cpp(x):
        return _cpp_batch_norm(x, scale, bias, epsilon, ACTIVATIONS[activation])
    y, mean, variance = _plain(x, scale, bias, epsilon)
    y = y.astype(x.dtype)
    return y if activation is None else activation(y), mean, variance


def _is_for_cpp(x: jax.Array) -> bool:
    """Whether whole vectors divide so many rows of so many channels."""
    return (
        dispatch.in_cpp("batch_norm", x)
        and x.size % math.lcm(dispatch.lanes(), x.shape[-1]) == 0
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _plain(x, scale, bias, epsilon):
    return _plain_fwd(x, scale, bias, epsilon)[0]


def _plain_fwd(x, scale, bias, epsilon):
    axes = tuple(range(x.ndim - 1))
    normal, mean, variance = normalize(x, axes, epsilon)
    statistics = mean.reshape(-1), variance.reshape(-1)
    return (normal * scale + bias, *statistics), (x, scale, *statistics)


def _plain_bwd(epsilon, residuals, grads):
    grad, _, _ = grads
    x, scale, mean, variance = residuals
    factor = lax.rsqrt(variance + epsilon)
    normal = (at_least_float32(x) - mean) * factor
    axes = tuple(range(x.ndim - 1))
    scale_grad = (grad * normal).sum(axes)
    bias_grad = grad.sum(axes)
    count = math.prod(x.shape[:-1])
    x_grad = grad - (bias_grad + normal * scale_grad) / count
    return (x_grad * (scale * factor)).astype(x.dtype), scale_grad, bias_grad


_plain.defvjp(_plain_fwd, _plain_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _cpp_batch_norm(x, scale, bias, epsilon, activation):
    return _cpp_fwd(x, scale, bias, epsilon, activation)[0]


def _cpp_fwd(x, scale, bias, epsilon, activation):
    y, *statistics = _call(
        "sextet_batch_norm",
        *(x, scale, bias),
        epsilon=epsilon,
        activation=activation,
    )
    return (y, *statistics), (x, scale, bias, *statistics)


def _cpp_bwd(epsilon, activation, residuals, grads):
    return _call(
        "sextet_batch_norm_grad",
        *(*residuals, grads[0]),
        epsilon=epsilon,
        activation=activation,
    )


_cpp_batch_norm.defvjp(_cpp_fwd, _cpp_bwd)


# Jitted to be traced once for all norms of a shape.
@functools.partial(
    jax.jit, static_argnames=("handler", "epsilon", "activation")
)
def _call(handler, x, *others, epsilon, activation):
    """Returns an array like `x` and two `[C]`."""
    rows, *others = (
        array.reshape(-1, x.shape[-1]) if array.ndim > 1 else array
        for array in (x, *others)
    )
    of_channels = jax.ShapeDtypeStruct((x.shape[-1],), jnp.float32)
    like_rows = jax.ShapeDtypeStruct(rows.shape, jnp.float32)
    first, *sums = dispatch.call(
        handler,
        (like_rows, of_channels, of_channels),
        *(rows, *others),
        epsilon=np.float32(epsilon),
        activation=np.int32(activation),
    )
    return first.reshape(x.shape).astype(x.dtype), *sums
