"""Self-attention inside windows of a map, where padding costs nothing.

Where a map is not a multiple of the window, TinyViT's published code pads it
with zeros before the attention. All padded cells are then the same token, so
this code never computes them: it gives each partial window one key that
stands for all of its padding. The numbers are the same, and maps smaller than
a window cost what they contain.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_models.cpu_kernels import dispatch
from jax_models.functional import at_least_float32


def window_attention(
    qkv: Float[Array, "B h w C3"],
    padding: Float[Array, " C3"],
    table: Float[Array, "heads N"],
    *,
    window: int,
    swin_bias: bool,
    dtype: DTypeLike,
) -> Float[Array, "B h w C"]:
    """Attends in all windows of a map, those that its edges cut included.

    Args:
      qkv: of each head queries, keys and values, C3 = 3 * C.
      padding: the same for a padded cell.
      table: biases of each head by offset, for `_bias_index`.
      window: side of a window, in cells.
      swin_bias: whether biases belong to signed offsets (Swin, Liu et al.
        2021, N = (2 * window - 1)**2) or to absolute ones (LeViT, Graham et
        al. 2021, N = window**2).
      dtype: of the attention weights.
    """
    if dtype == qkv.dtype == jnp.float32 and dispatch.in_cpp(
        "window_attention", qkv
    ):
        return _cpp_attention(qkv, padding, table, window, swin_bias)
    height, width = qkv.shape[1:3]
    full_height = height // window * window
    full_width = width // window * window
    rows = []
    for top, bottom in ((0, full_height), (full_height, height)):
        row = [
            _attend_in_equal_windows(
                qkv[:, top:bottom, left:right],
                padding,
                table,
                window=window,
                swin_bias=swin_bias,
                dtype=dtype,
            )
            for left, right in ((0, full_width), (full_width, width))
            if top < bottom and left < right
        ]
        if row:
            rows.append(jnp.concatenate(row, 2) if row[1:] else row[0])
    return jnp.concatenate(rows, 1) if rows[1:] else rows[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _cpp_attention(
    qkv: jax.Array,
    padding: jax.Array,
    table: jax.Array,
    window: int,
    swin_bias: bool,
) -> jax.Array:
    return _fwd(qkv, padding, table, window, swin_bias)[0]


def _fwd(qkv, padding, table, window, swin_bias):
    out = _call(
        "sextet_window_attention",
        *(qkv, padding, table),
        window=window,
        swin_bias=swin_bias,
    )
    return out, (qkv, padding, table)


def _bwd(window, swin_bias, residuals, grad):
    return tuple(
        _call(
            "sextet_window_attention_grad",
            *(*residuals, grad),
            window=window,
            swin_bias=swin_bias,
        )
    )


_cpp_attention.defvjp(_fwd, _bwd)


# Blocks of a stage have one shape: jitted to be traced once.
@functools.partial(
    jax.jit, static_argnums=0, static_argnames=("window", "swin_bias")
)
def _call(handler, qkv, padding, table, *grad, window, swin_bias):
    """Calls a handler: for the output, or with its gradient for gradients."""
    if grad:
        result = [
            jax.ShapeDtypeStruct(x.shape, jnp.float32)
            for x in (qkv, padding, table)
        ]
    else:
        shape = (*qkv.shape[:3], qkv.shape[3] // 3)
        result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return dispatch.call(
        handler,
        result,
        *(qkv, padding, table, *grad),
        heads=np.int64(table.shape[0]),
        window=np.int64(window),
        signed=np.bool_(swin_bias),
    )


@functools.partial(jax.jit, static_argnames=("window", "swin_bias", "dtype"))
def _attend_in_equal_windows(qkv, padding, table, *, window, swin_bias, dtype):
    """`window_attention` for a part of the map that equal windows divide.

    Its height and width are multiples of the window, or smaller than it.
    """
    batch, height, width, _ = qkv.shape
    heads = table.shape[0]
    h, w = min(height, window), min(width, window)
    rows, columns = height // h, width // w
    cells = h * w
    qkv = qkv.reshape(batch, rows, h, columns, w, heads, -1)
    qkv = qkv.transpose(0, 1, 3, 5, 2, 4, 6)
    qkv = qkv.reshape(batch, rows, columns, heads, cells, -1)
    query, key, value = jnp.split(qkv, 3, -1)
    depth = query.shape[-1]
    query = query * depth**-0.5
    inside = np.zeros((window, window), bool)
    inside[:h, :w] = True
    inside = inside.ravel()
    index = _bias_index(window, swin_bias)[inside]
    # [B, rows, columns, heads, cells, cells]
    scores = jnp.einsum("...qd,...kd->...qk", query, key)
    scores = at_least_float32(scores) + table[:, index[:, inside]]
    if cells == window**2:
        weights = jax.nn.softmax(scores).astype(dtype)
        x = weights @ value
    else:
        # Padded keys differ in their bias alone, so their exponentials
        # add up to one key whose bias is the log of the sum.
        _, pad_key, pad_value = jnp.split(padding.reshape(heads, -1), 3, -1)
        pad_bias = jax.nn.logsumexp(table[:, index[:, ~inside]], -1)
        pad_score = jnp.einsum("...hqd,hd->...hq", query, pad_key)
        pad_score = at_least_float32(pad_score) + pad_bias
        scores = jnp.concatenate([scores, pad_score[..., None]], -1)
        weights = jax.nn.softmax(scores).astype(dtype)
        x = weights[..., :-1] @ value
        x = x + weights[..., -1:] * pad_value[:, None]
    x = x.reshape(batch, rows, columns, heads, h, w, depth)
    x = x.transpose(0, 1, 4, 2, 5, 3, 6)
    return x.reshape(batch, height, width, heads * depth)


def _bias_index(window: int, signed: bool) -> np.ndarray:
    """Which entry of the bias table belongs to each pair of cells.

    Returns:
      int32 `[window**2, window**2]`.
    """
    cells = np.stack(np.indices((window, window)), -1).reshape(-1, 2)
    offsets = cells[:, None] - cells[None]
    if signed:
        offsets, side = offsets + window - 1, 2 * window - 1
    else:
        offsets, side = np.abs(offsets), window
    return (offsets[..., 0] * side + offsets[..., 1]).astype(np.int32)
