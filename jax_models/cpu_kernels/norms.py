"""Layer normalisation, with gradients by hand.

JAX would derive the same gradients, from four times as many operations; with
tens of norms in a network that is what its compilation waits for. Statistics
are computed in float32 at least, whatever the dtype of the input is.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jax_models.cpu_kernels import dispatch


def widen(x: jax.Array) -> jax.Array:
    """`x` in float32, or as it is where that is wider still."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (Ba et al. 2016)."""

    def __init__(self, channels: int, *, epsilon: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., C]` to `[..., C]`."""
        y = layer_norm(x, self.scale[...], self.bias[...], self.epsilon)
        return y.astype(self.dtype)


def normalize(x, axes, epsilon):
    """Gives `x`, widened, mean 0 and variance 1, and what these were."""
    x = widen(x)
    mean = x.mean(axes, keepdims=True)
    variance = jnp.square(x - mean).mean(axes, keepdims=True)
    factor = lax.rsqrt(variance + epsilon)
    return (x - mean) * factor, mean, variance


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    """Normalises `[..., C]`, to float32 at least; scale and bias `[C]`."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
    if not dispatch.serves(x):
        normal, mean, variance = normalize(x, -1, epsilon)
        return normal * scale + bias, (x, scale, mean, variance)
    # The C++ finds the statistics again, in no time.
    y = _native_layer_norm(x, scale, bias, epsilon=epsilon)
    return y, (x, scale, None, None)


def _layer_norm_backward(epsilon, residuals, slope):
    x, scale, mean, variance = residuals
    if mean is None:
        return _native_layer_norm_slopes(x, scale, slope, epsilon=epsilon)
    return _slopes(x, scale, slope, mean, variance, epsilon)


def _slopes(x, scale, slope, mean, variance, epsilon):
    factor = lax.rsqrt(variance + epsilon)
    normal = (widen(x) - mean) * factor
    axes = tuple(range(x.ndim - 1))
    to_scale = (slope * normal).sum(axes)
    to_bias = slope.sum(axes)
    slope = slope * scale
    # What shifting and stretching a row would change has no effect.
    shift = slope.mean(-1, keepdims=True)
    stretch = (slope * normal).mean(-1, keepdims=True)
    to_x = (slope - shift - normal * stretch) * factor
    return to_x.astype(x.dtype), to_scale, to_bias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


# Functions of their own are traced once for all norms of a shape.
_trace_once = functools.partial(jax.jit, static_argnames="epsilon")


@_trace_once
def _native_layer_norm(x, scale, bias, *, epsilon):
    rows = widen(x).reshape(-1, x.shape[-1])
    shape = jax.ShapeDtypeStruct(rows.shape, jnp.float32)
    y = dispatch.library().call(
        "sextet_layer_norm",
        *(shape, rows, scale, bias),
        epsilon=np.float32(epsilon),
    )
    return y.reshape(x.shape)


@_trace_once
def _native_layer_norm_slopes(x, scale, slope, *, epsilon):
    rows = widen(x).reshape(-1, x.shape[-1])
    shapes = tuple(
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (rows.shape, scale.shape, scale.shape)
    )
    to_x, to_scale, to_bias = dispatch.library().call(
        "sextet_layer_norm_slopes",
        *(shapes, rows, scale, slope.reshape(rows.shape)),
        epsilon=np.float32(epsilon),
    )
    return to_x.reshape(x.shape).astype(x.dtype), to_scale, to_bias
