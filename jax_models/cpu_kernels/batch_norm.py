"""Batch normalisation, the activation behind it included.

The gradients are by hand, for the reasons that norms.py gives; on a CPU with
a compiler, norm and activation are one piece of C++ (batch_norm.cc), which
keeps nothing but the input and the statistics.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jax_models.cpu_kernels import activations, dispatch
from jax_models.cpu_kernels.norms import normalize, widen


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) over all axes but the last.

    The batch is normalised by its biased variance; the running variance is
    updated with the unbiased one, as PyTorch and TensorFlow's fused kernel
    do. `momentum` is the share of the old value that is kept (PyTorch's
    convention is one minus that).

    Args:
      channels: of the last axis.
      epsilon: added to the variance.
      momentum: of the running statistics.
      scale: what the scale starts from.
      activation: what follows: `activations.gelu`, `activations.silu`, or
        None for nothing.
      dtype: of the result.
    """

    def __init__(
        self,
        channels: int,
        *,
        epsilon: float,
        momentum: float,
        scale: float = 1.0,
        activation: activations.Activation | None = None,
        dtype: jnp.dtype,
    ):
        self.scale = nnx.Param(jnp.full((channels,), scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))
        self.epsilon = epsilon
        self.momentum = momentum
        self.activation = activation
        self.dtype = dtype
        # Set by `model.train()` and `model.eval()`.
        self.use_running_average = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, ..., C]` to `[B, ..., C]`; when training, updates."""
        scale, bias = self.scale[...], self.bias[...]
        if self.use_running_average:
            if self.dtype == x.dtype == jnp.float32 and _fills_vectors(x):
                return _known(x, *self.known(), self.activation)
            mean, factor, bias = self.known()
            y = (widen(x) - mean) * factor + bias
            return self._activate(y.astype(self.dtype))
        if _fills_vectors(x):
            y, mean, variance = _native(
                x,
                scale,
                bias,
                self.epsilon,
                activations.NUMBERS[self.activation],
            )
            y = y.astype(self.dtype)
        else:
            y, mean, variance = _plain(x, scale, bias, self.epsilon)
            y = self._activate(y.astype(self.dtype))
        count = math.prod(x.shape[:-1])
        self._update(self.mean, mean)
        self._update(self.var, variance * (count / max(count - 1, 1)))
        return y

    def known(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Mean, factor and bias `[C]`, by the running statistics."""
        factor = lax.rsqrt(self.var[...] + self.epsilon) * self.scale[...]
        return self.mean[...], factor, self.bias[...]

    def _activate(self, x):
        return x if self.activation is None else self.activation(x)

    def _update(self, running, batch):
        kept = self.momentum * running[...]
        new = kept + (1 - self.momentum) * lax.stop_gradient(batch)
        # Not `running[...] = new`, which would write into an array that came
        # from NumPy.
        running.set_value(new)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _plain(x, scale, bias, epsilon):
    return _plain_forward(x, scale, bias, epsilon)[0]


def _plain_forward(x, scale, bias, epsilon):
    axes = tuple(range(x.ndim - 1))
    normal, mean, variance = normalize(x, axes, epsilon)
    statistics = mean.reshape(-1), variance.reshape(-1)
    return (normal * scale + bias, *statistics), (x, scale, *statistics)


def _plain_backward(epsilon, residuals, grads_of):
    # Nothing differentiates through the statistics: they are only stored.
    slope, _, _ = grads_of
    x, scale, mean, variance = residuals
    factor = lax.rsqrt(variance + epsilon)
    normal = (widen(x) - mean) * factor
    axes = tuple(range(x.ndim - 1))
    to_scale = (slope * normal).sum(axes)
    to_bias = slope.sum(axes)
    count = math.prod(x.shape[:-1])
    to_x = slope - (to_bias + normal * to_scale) / count
    return (to_x * (scale * factor)).astype(x.dtype), to_scale, to_bias


_plain.defvjp(_plain_forward, _plain_backward)


def _fills_vectors(x):
    """Whether the C++ can take so many rows of so many channels."""
    if not dispatch.serves(x):
        return False
    lanes, channels = dispatch.library().lanes, x.shape[-1]
    return x.size % math.lcm(lanes, channels) == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _known(x, mean, factor, bias, activation):
    """Where the statistics are; the gradients are those of the plain form."""
    return _native_known(x, factor, bias - mean * factor, activation=activation)


def _known_forward(x, mean, factor, bias, activation):
    def plain(x, mean, factor, bias):
        y = (x - mean) * factor + bias
        return y if activation is None else activation(y)

    return jax.vjp(plain, x, mean, factor, bias)


_known.defvjp(_known_forward, lambda _, back, slope: back(slope))


@functools.partial(jax.jit, static_argnames="activation")  # Traced once.
def _native_known(x, factor, shift, *, activation):
    rows = x.reshape(-1, x.shape[-1])
    y = dispatch.library().call(
        "sextet_batch_norm_known",
        jax.ShapeDtypeStruct(rows.shape, jnp.float32),
        *(rows, factor, shift),
        activation=np.int32(activations.NUMBERS[activation]),
    )
    return y.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _native(x, scale, bias, epsilon, activation):
    return _native_forward(x, scale, bias, epsilon, activation)[0]


def _native_forward(x, scale, bias, epsilon, activation):
    y, *statistics = _call(
        "sextet_batch_norm", x, scale, bias, epsilon=epsilon, then=activation
    )
    return (y, *statistics), (x, scale, bias, *statistics)


def _native_backward(epsilon, activation, residuals, grads_of):
    return tuple(
        _call(
            "sextet_batch_norm_slopes",
            *(*residuals, grads_of[0]),
            epsilon=epsilon,
            then=activation,
        )
    )


_native.defvjp(_native_forward, _native_backward)


# A function of its own is traced once for all norms of a shape.
@functools.partial(jax.jit, static_argnames=("name", "epsilon", "then"))
def _call(name, x, *others, epsilon, then):
    """Gives an array like `x` and two `[C]`; computed in float32."""
    shape, dtype, channels = x.shape, x.dtype, x.shape[-1]
    rows, *others = (
        widen(array).reshape(-1, channels) if array.ndim > 1 else array
        for array in (x, *others)
    )
    of_channels = jax.ShapeDtypeStruct((channels,), jnp.float32)
    likeness = jax.ShapeDtypeStruct(rows.shape, jnp.float32)
    first, *sums = dispatch.library().call(
        name,
        (likeness, of_channels, of_channels),
        *(rows, *others),
        epsilon=np.float32(epsilon),
        activation=np.int32(then),
    )
    return first.reshape(shape).astype(dtype), *sums
