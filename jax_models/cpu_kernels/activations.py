"""GELU and SiLU, with gradients by hand.

They keep nothing but their input, and take half the time that derived
gradients take; on a CPU with a compiler they are in C++ (activations.cc).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jax_models.cpu_kernels import dispatch
from jax_models.cpu_kernels.norms import widen

Activation = Callable[[jax.Array], jax.Array]


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU (Hendrycks & Gimpel 2016): `x * P(normal < x)`."""
    if dispatch.serves(x):
        return _native("sextet_gelu", x)
    # On two axes, as the matrix products before and after it: XLA's loop over
    # both shapes at once is not vectorised.
    flat = _flat(x)
    below = 0.5 + 0.5 * lax.erf(widen(flat) * math.sqrt(0.5))
    return (flat * below.astype(x.dtype)).reshape(x.shape)


def _gelu_backward(x, slope):
    """Written with `-x`, or XLA would notice that the forward pass computed
    the same, and store that, which takes longer than to compute it again.
    """
    if dispatch.serves(x):
        return (_native("sextet_gelu_slope", x, slope),)
    wide = widen(_flat(x))
    below = 0.5 - 0.5 * lax.erf(wide * -math.sqrt(0.5))
    density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
    factor = (below + wide * density).astype(x.dtype)
    return ((factor * slope.reshape(factor.shape)).reshape(x.shape),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.custom_vjp
def silu(x: jax.Array) -> jax.Array:
    """SiLU, or swish (Elfwing et al. 2017): `x * sigmoid(x)`."""
    if dispatch.serves(x):
        return _native("sextet_silu", x)
    return x * jax.nn.sigmoid(x)


def _silu_backward(x, slope):
    if dispatch.serves(x):
        return (_native("sextet_silu_slope", x, slope),)
    wide = widen(x)
    share = jax.nn.sigmoid(wide)
    factor = share * (1 + wide * (1 - share))
    return (slope * factor.astype(x.dtype),)


silu.defvjp(lambda x: (silu(x), x), _silu_backward)


# Their numbers in activations.h.
NUMBERS = {None: 0, gelu: 1, silu: 2}


@jax.jit(static_argnums=0)  # Traced once for all of a shape.
def _native(name, *arrays):
    """In C++, computed in float32."""
    x = arrays[0]
    flat = [widen(array).reshape(-1) for array in arrays]
    result = jax.ShapeDtypeStruct(flat[0].shape, jnp.float32)
    y = dispatch.library().call(name, result, *flat)
    return y.reshape(x.shape).astype(x.dtype)


def _flat(x):
    return x if x.ndim < 3 else x.reshape(-1, x.shape[-1])
