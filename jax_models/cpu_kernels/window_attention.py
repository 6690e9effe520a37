"""Self-attention inside windows, where padding costs nothing.

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
from flax import nnx

from jax_models import initializers, layers
from jax_models.cpu_kernels import dispatch, norms

LN_EPSILON = 1e-5


class WindowAttention(nnx.Module):
    """Self-attention inside windows, with a learned bias per offset.

    The bias depends on the absolute offset between two cells (LeViT, Graham
    et al. 2021) and starts at zero. With `swin_bias` it depends on the signed
    offset (Swin, Liu et al. 2021) and starts normal with deviation .02.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        swin_bias: bool,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.norm = norms.LayerNorm(channels, epsilon=LN_EPSILON, dtype=dtype)
        # For each head its queries, keys and values, then the next head's.
        self.qkv = layers.Linear(channels, 3 * channels, dtype=dtype, rngs=rngs)
        self.proj = layers.Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.heads = heads
        self.window = window
        self.swin_bias = swin_bias
        self.dtype = dtype
        if swin_bias:
            shape = (heads, (2 * window - 1) ** 2)
            table = initializers.weight(rngs, shape, initializers.TRUNC_NORMAL)
        else:
            table = nnx.Param(jnp.zeros((heads, window**2), jnp.float32))
        self.attention_biases = table

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, h, w, C]` to `[B, h, w, C]`."""
        qkv = self.qkv(self.norm(x))
        # What a padded cell becomes: normalising zeros leaves the bias.
        zero = self.norm.bias[...]
        padding = self.qkv(zero)
        table = self.attention_biases[...]
        x = attend(
            qkv,
            padding,
            table,
            window=self.window,
            swin_bias=self.swin_bias,
            heads=self.heads,
            dtype=self.dtype,
        )
        return self.proj(x)


def attend(
    qkv: jax.Array,
    padding: jax.Array,
    table: jax.Array,
    *,
    window: int,
    swin_bias: bool,
    heads: int,
    dtype: jnp.dtype,
) -> jax.Array:
    """Attention in all windows of a map, those that it cuts short included.

    Args:
      qkv: `[B, h, w, 3C]`; of each head queries, keys and values.
      padding: `[3C]`, the same of a padded cell.
      table: float32 `[heads, N]`, the biases.
      window: side of a window, in cells.
      swin_bias: whether biases belong to signed offsets.
      heads: attention heads.
      dtype: of the attention weights.

    Returns:
      `[B, h, w, C]`.
    """
    options = dict(window=window, swin_bias=swin_bias, heads=heads)
    if dtype == qkv.dtype == jnp.float32 and dispatch.serves(qkv):
        return _attend_natively(qkv, padding, table, *options.values())
    height, width = qkv.shape[1:3]
    full_height = height // window * window
    full_width = width // window * window
    rows = []
    for top, bottom in ((0, full_height), (full_height, height)):
        row = [
            _attend(
                qkv[:, top:bottom, left:right],
                padding,
                table,
                dtype=dtype,
                **options,
            )
            for left, right in ((0, full_width), (full_width, width))
            if top < bottom and left < right
        ]
        if row:
            rows.append(jnp.concatenate(row, 2) if row[1:] else row[0])
    return jnp.concatenate(rows, 1) if rows[1:] else rows[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend_natively(qkv, padding, table, window, swin_bias, heads):
    return _forward(qkv, padding, table, window, swin_bias, heads)[0]


def _forward(qkv, padding, table, window, swin_bias, heads):
    out = _call(
        "sextet_window_attention",
        *(qkv, padding, table),
        settings=(window, swin_bias, heads),
    )
    return out, (qkv, padding, table)


def _backward(window, swin_bias, heads, residuals, slope):
    return _call(
        "sextet_window_attention_slopes",
        *(*residuals, slope),
        settings=(window, swin_bias, heads),
    )


_attend_natively.defvjp(_forward, _backward)


# Blocks of a stage have one shape: as a function of its own it is traced once.
@functools.partial(jax.jit, static_argnums=0, static_argnames="settings")
def _call(name, qkv, padding, table, *slope, settings):
    """Calls the handler: for the output, or with its slope for gradients."""
    window, swin_bias, heads = settings
    out = (*qkv.shape[:3], qkv.shape[3] // 3)
    shapes = [a.shape for a in (qkv, padding, table)] if slope else out
    return dispatch.library().call(
        name,
        jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
            shapes,
            is_leaf=lambda node: isinstance(node, tuple),
        ),
        *(qkv, padding, table, *slope),
        heads=np.int64(heads),
        window=np.int64(window),
        signed=np.bool_(swin_bias),
    )


# Blocks of a stage have one shape: as a function of its own it is traced once.
@functools.partial(
    jax.jit, static_argnames=("window", "swin_bias", "heads", "dtype")
)
def _attend(qkv, padding, table, *, window, swin_bias, heads, dtype):
    """Attention over one part of the map, cut into equal windows.

    Args:
      qkv: `[B, h, w, 3C]`; h and w are multiples of the window or
        smaller than it.
      padding: `[3C]`, the same of a padded cell.
      table: `[heads, N]`, the biases that `_bias_index` chooses from.
      window: side of the window, in cells.
      swin_bias: as of `_bias_index`.
      heads: attention heads.
      dtype: of the attention weights.

    Returns:
      `[B, h, w, C]`.
    """
    batch, height, width, _ = qkv.shape
    h, w = min(height, window), min(width, window)
    rows, columns = height // h, width // w
    cells = h * w
    # -> [B, rows, columns, heads, cells, 3 * D]
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
    scores = jnp.einsum("...qd,...kd->...qk", query, key)
    scores = norms.widen(scores) + table[:, index[:, inside]]
    if cells == window**2:
        weights = jax.nn.softmax(scores).astype(dtype)
        x = weights @ value
    else:
        # Padded keys differ in their bias alone, so their exponentials
        # add up to one key whose bias is the log of the sum.
        _, pad_key, pad_value = jnp.split(padding.reshape(heads, -1), 3, -1)
        pad_bias = jax.nn.logsumexp(table[:, index[:, ~inside]], -1)
        pad_score = jnp.einsum("...hqd,hd->...hq", query, pad_key)
        pad_score = norms.widen(pad_score) + pad_bias
        scores = jnp.concatenate([scores, pad_score[..., None]], -1)
        weights = jax.nn.softmax(scores).astype(dtype)
        x = weights[..., :-1] @ value
        x = x + weights[..., -1:] * pad_value[:, None]
    x = x.reshape(batch, rows, columns, heads, h, w, depth)
    x = x.transpose(0, 1, 4, 2, 5, 3, 6)
    return x.reshape(batch, height, width, heads * depth)


def _bias_index(window, signed):
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
