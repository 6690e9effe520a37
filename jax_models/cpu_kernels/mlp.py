"""LayerNorm and MLP of a ConvNeXt block, with its shortcut, in one pass.

What lies between the two matrices is four times as wide as what goes in and
comes out. Where nothing asks for gradients it need not be kept, and the C++
(mlp.cc) uses it up while it is in cache.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from core.hardware import usable_cores
from jax_models.cpu_kernels import dispatch
from jax_models.functional import gelu, global_response_norm, layer_norm

# The matrices are first copied into another order: with fewer rows than these,
# or than one for so many weights, that took longer than it saved.
MIN_ROWS, WEIGHTS_PER_ROW = 128, 1200

Grn = tuple[Float[Array, " inner"], Float[Array, " inner"]]


def supports_residual_mlp(
    x: Float[Array, "B h w C"], inner: int, grn: bool
) -> bool:
    """Whether `residual_mlp` is faster than one layer after the other.

    Args:
      x: its input.
      inner: width between the matrices.
      grn: whether there is global response normalisation, for which one
        thread takes a whole image.
    """
    if x.dtype != jnp.float32 or not dispatch.in_cpp("mlp", x):
        return False
    if grn and x.shape[0] < usable_cores():
        return False
    rows, channels = math.prod(x.shape[:-1]), x.shape[-1]
    enough = rows >= max(MIN_ROWS, channels * inner / WEIGHTS_PER_ROW)
    return enough and inner % dispatch.lanes() == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def residual_mlp(
    x: Float[Array, "B h w C"],
    shortcut: Float[Array, "B h w C"],
    norm: tuple[Float[Array, " C"], Float[Array, " C"]],
    matrices: tuple[
        Float[Array, "C inner"],
        Float[Array, " inner"],
        Float[Array, "inner C"],
        Float[Array, " C"],
    ],
    grn: Grn | None,
    epsilon: float,
) -> Float[Array, "B h w C"]:
    """Returns `shortcut + fc2(GRN(GELU(fc1(LayerNorm(x)))))`, in float32.

    Only where `supports_residual_mlp` holds. Where gradients are asked for,
    the plain implementation is computed.

    Args:
      x: the branch's input.
      shortcut: added to the result.
      norm: scale and bias of LayerNorm.
      matrices: of fc1 and its bias, of fc2 and its bias.
      grn: scale and bias; None for no GRN.
      epsilon: of LayerNorm and GRN.
    """
    return _cpp(x, shortcut, norm, matrices, grn, epsilon=epsilon)


def _plain(epsilon, x, shortcut, norm, matrices, grn):
    fc1, fc1_bias, fc2, fc2_bias = matrices
    y = gelu(layer_norm(x, *norm, epsilon) @ fc1 + fc1_bias)
    if grn is not None:
        y = global_response_norm(y, *grn, epsilon)
    return shortcut + (y @ fc2 + fc2_bias)


def _fwd(*arguments):
    *arrays, epsilon = arguments
    return jax.vjp(functools.partial(_plain, epsilon), *arrays)


residual_mlp.defvjp(_fwd, lambda _, vjp, grad: vjp(grad))


@functools.partial(jax.jit, static_argnames="epsilon")  # Traced once.
def _cpp(x, shortcut, norm, matrices, grn, *, epsilon):
    rows = x.reshape(-1, x.shape[-1])
    y = dispatch.call(
        "sextet_mlp",
        jax.ShapeDtypeStruct(rows.shape, jnp.float32),
        *(rows, shortcut.reshape(rows.shape)),
        *(*norm, *matrices, *(grn or ())),
        epsilon=np.float32(epsilon),
        rows_per_image=rows.shape[0] // x.shape[0],
    )
    return y.reshape(x.shape)
