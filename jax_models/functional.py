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


@jax.custom_vjp
def relu(x: Float[Array, ...]) -> Float[Array, ...]:
    """The rectifier (Nair & Hinton 2010): `max(x, 0)`."""
    return jnp.maximum(x, 0)


def _relu_fwd(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The result is kept, not `x`: the layer behind it keeps that anyway.
    y = relu(x)
    return y, y


relu.defvjp(_relu_fwd, lambda y, grad: (jnp.where(y > 0, grad, 0),))


@jax.custom_vjp
def relu6(x: Float[Array, ...]) -> Float[Array, ...]:
    """A rectifier with a ceiling (Krizhevsky 2010): `min(max(x, 0), 6)`.

    Its gradient is 0 at 0 and at 6, as PyTorch's is.
    """
    return jnp.clip(x, 0, 6)


def _relu6_fwd(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = relu6(x)
    return y, y


def _relu6_bwd(y: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    return (jnp.where((y > 0) & (y < 6), grad, 0),)


relu6.defvjp(_relu6_fwd, _relu6_bwd)


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
    return normalize_by(x, lambda x: x.mean(axes, keepdims=True), epsilon)


def normalize_by(
    x: jax.Array, mean_of: Callable[[jax.Array], jax.Array], epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same as `normalize` by means that are taken in another way."""
    in_one_pass = x.dtype == jnp.bfloat16 and platform() != "cpu"
    x = at_least_float32(x)
    mean = mean_of(x)
    if in_one_pass:
        variance = mean_of(jnp.square(x)) - jnp.square(mean)
        variance = jnp.maximum(variance, 0)
    else:
        variance = mean_of(jnp.square(x - mean))
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


def attention(
    qkv: Float[Array, "B tokens channels"], heads: int
) -> Float[Array, "B tokens width"]:
    """Attention among the tokens of an image, after Vaswani et al. 2017.

    Scores and sums are in float32 at least.

    Args:
      qkv: queries, keys and values one after the other, each of all heads;
        `channels` is three times `width`.
      heads: a divisor of `width`.
    """
    batch, tokens, channels = qkv.shape
    depth = channels // (3 * heads)
    qkv = qkv.reshape(batch, tokens, 3, heads, depth)
    if platform() != "cpu":
        # Its gradients are products of bfloat16, too, not of float32.
        found = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))
        return found.reshape(batch, tokens, -1)
    # The same, but for the order of axes and where the weights' sum is
    # divided by: half the time on CPUs.
    query, key, value = qkv.transpose(2, 0, 3, 1, 4)
    wide = jnp.promote_types(qkv.dtype, jnp.float32)
    scores = jnp.matmul(query, key.mT, preferred_element_type=wide)
    scores = scores * depth**-0.5
    highest = lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    found = jnp.matmul(
        weights.astype(value.dtype), value, preferred_element_type=wide
    ) / weights.sum(-1, keepdims=True)
    found = found.astype(value.dtype).swapaxes(1, 2)
    return found.reshape(batch, tokens, -1)


@jax.custom_vjp
def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """The largest of 3x3 cells, with stride 2; sizes are rounded up.

    The gradient goes to the first of equal cells. It takes CPUs a tenth of
    the time of JAX's, a scatter.
    """
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )


def _max_pool_fwd(x: jax.Array) -> tuple[jax.Array, tuple]:
    y = max_pool(x)
    height, width = (2 * cells for cells in y.shape[1:3])
    borders = [(0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)]
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), borders)
    # Which of the nine cells is the largest, row by row.
    largest = padded[:, 0 : height - 1 : 2, 0 : width - 1 : 2]
    place = jnp.zeros(y.shape, jnp.int8)
    for index in range(1, 9):
        top, left = divmod(index, 3)
        cell = padded[
            :, top : top + height - 1 : 2, left : left + width - 1 : 2
        ]
        place = jnp.where(cell > largest, jnp.int8(index), place)
        largest = jnp.maximum(cell, largest)
    return y, (place, x.shape[1:3])


def _max_pool_bwd(residuals: tuple, grad: jax.Array) -> tuple[jax.Array]:
    place, (height, width) = residuals

    def to(index: int, rows: int = 0, columns: int = 0) -> jax.Array:
        """From windows so many further down and across."""
        part = jnp.where(place == index, grad, 0)[:, rows:, columns:]
        return jnp.pad(part, ((0, 0), (0, rows), (0, columns), (0, 0)))

    # Cells in even rows and columns lie in the middle of one window, those
    # in odd ones on the edges of two, or the corners of four.
    even = to(4), to(5) + to(3, columns=1)
    odd = (
        to(7) + to(1, rows=1),
        to(8) + to(6, columns=1) + to(2, rows=1) + to(0, rows=1, columns=1),
    )
    batch, h, w, channels = grad.shape
    cells = jnp.stack([jnp.stack(even, 3), jnp.stack(odd, 3)], 2)
    x_grad = cells.reshape(batch, 2 * h, 2 * w, channels)
    return (x_grad[:, :height, :width],)


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
