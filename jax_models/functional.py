"""Functions that layers, and their CPU kernels, are made of.

Their gradients are by hand: JAX would derive the same ones from several times
as many operations and stored arrays, and with tens of norms in a network that
is what its compilation waits for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax_models.target import platform, two_axes

Activation = Callable[[jax.Array], jax.Array]


def at_least_float32(x: jax.Array) -> jax.Array:
    """Returns `x` in float32, or in its own dtype where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@jax.custom_vjp
def gelu(x: Float[Array, ...]) -> Float[Array, ...]:
    """The exact GELU (Hendrycks & Gimpel 2016): `x * P(normal < x)`."""
    # As the matrix products before and after it.
    flat = two_axes(x)
    below = 0.5 + 0.5 * lax.erf(at_least_float32(flat) * math.sqrt(0.5))
    return (flat * below.astype(x.dtype)).reshape(x.shape)


def _gelu_bwd(x: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    # Written with `-x`, or XLA would notice that the forward pass computed
    # the same, and store that, which takes longer than to compute it again.
    wide = at_least_float32(two_axes(x))
    below = 0.5 - 0.5 * lax.erf(wide * -math.sqrt(0.5))
    density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
    factor = (below + wide * density).astype(x.dtype)
    return ((factor * grad.reshape(factor.shape)).reshape(x.shape),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_bwd)


@jax.custom_vjp
def silu(x: Float[Array, ...]) -> Float[Array, ...]:
    """SiLU, or swish (Elfwing et al. 2017): `x * sigmoid(x)`."""
    return x * jax.nn.sigmoid(x)


def _silu_bwd(x: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    wide = at_least_float32(x)
    sigmoid = jax.nn.sigmoid(wide)
    factor = sigmoid * (1 + wide * (1 - sigmoid))
    return (grad * factor.astype(x.dtype),)


silu.defvjp(lambda x: (silu(x), x), _silu_bwd)


def normalize(
    x: jax.Array, axes: int | tuple[int, ...], epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Brings `x` to mean 0 and variance 1 over `axes`, in float32 at least.

    On accelerators, the statistics of bfloat16 come from two sums that do not
    wait for one another: one pass over `x`, which XLA joins to what
    computes it, and one all-reduce. Their difference loses little: bfloat16
    cannot tell a deviation below 2**-8 of the mean from 0, and float32 keeps
    2**-24 of the square.

    Returns:
      The normalised x, and mean and variance with `axes` of length 1.
    """
    in_one_pass = x.dtype == jnp.bfloat16 and platform() != "cpu"
    x = at_least_float32(x)
    mean = x.mean(axes, keepdims=True)
    if in_one_pass:
        variance = jnp.square(x).mean(axes, keepdims=True) - jnp.square(mean)
        variance = jnp.maximum(variance, 0)
    else:
        variance = jnp.square(x - mean).mean(axes, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + epsilon), mean, variance


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*B C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    epsilon: float,
) -> Float[Array, "*B C"]:
    """Layer normalisation (Ba et al. 2016), to float32 at least."""
    return _layer_norm_fwd(x, scale, bias, epsilon)[0]


def _layer_norm_fwd(x, scale, bias, epsilon):
    normal, mean, variance = normalize(x, -1, epsilon)
    return normal * scale + bias, (x, scale, mean, variance)


def _layer_norm_bwd(epsilon, residuals, grad):
    x, scale, mean, variance = residuals
    factor = lax.rsqrt(variance + epsilon)
    normal = (at_least_float32(x) - mean) * factor
    axes = tuple(range(x.ndim - 1))
    scale_grad = (grad * normal).sum(axes)
    bias_grad = grad.sum(axes)
    grad = grad * scale
    # The row's mean and standard deviation absorb these two components.
    shift = grad.mean(-1, keepdims=True)
    stretch = (grad * normal).mean(-1, keepdims=True)
    x_grad = (grad - shift - normal * stretch) * factor
    return x_grad.astype(x.dtype), scale_grad, bias_grad


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def global_response_norm(
    x: Float[Array, "B h w C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    epsilon: float,
) -> Float[Array, "B h w C"]:
    """Competition between channels by their energy over the image.

    Woo et al. 2023, section 4: `x + scale * x * N(G(x)) + bias`, with G the
    L2 norm of a channel over the image and N the division by the mean over
    the channels.
    """
    energy = jnp.square(at_least_float32(x)).sum((1, 2), keepdims=True)
    # The root has no gradient at 0, where a channel is silent.
    silent = energy == 0
    norm = jnp.sqrt(jnp.where(silent, jnp.ones_like(energy), energy))
    norm = jnp.where(silent, jnp.zeros_like(energy), norm)
    share = norm / (norm.mean(-1, keepdims=True) + epsilon)
    return x * (1 + scale * share).astype(x.dtype) + bias.astype(x.dtype)
