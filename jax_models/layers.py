"""Layers that two or more of the architectures share.

All of them take channels last, keep their parameters in float32 and compute
in the `dtype` that they were made with; statistics (means, variances) are
always computed in float32 or wider.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from core import counter_rng
from core.errors import UserError
from jax_models import initializers
from jax_models.cpu_kernels.convolution import conv, product
from jax_models.cpu_kernels.depthwise import depthwise_conv, pads_of
from jax_models.cpu_kernels.norms import LayerNorm, widen


class Linear(nnx.Module):
    """A matrix over the last axis; also what a 1x1 convolution is.

    Args:
      inputs: width of the last axis of the input.
      outputs: width of the last axis of the output.
      torch_conv: whether PyTorch's counterpart is a 1x1 convolution, whose
        weight has two more axes. It changes no number here.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        use_bias: bool = True,
        init: initializers.Initializer = initializers.TRUNC_NORMAL,
        bias_init: float | Sequence[float] = 0.0,
        torch_conv: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.kernel = initializers.weight(rngs, (inputs, outputs), init)
        if use_bias:
            start = jnp.asarray(bias_init, jnp.float32)
            self.bias = nnx.Param(jnp.broadcast_to(start, (outputs,)))
        else:
            self.bias = None
        self.torch_conv = torch_conv
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., inputs]` to `[..., outputs]`."""
        # One plain matrix product: XLA's CPU backend takes twice as long for
        # the gradient of a product with more axes. The bias is added before
        # the axes come back, or XLA's loop over both shapes is not vectorised.
        flat = x.astype(self.dtype).reshape(-1, x.shape[-1])
        flat = product(flat, self.kernel[...].astype(self.dtype))
        if self.bias is not None:
            flat = flat + self.bias[...].astype(self.dtype)
        return flat.reshape(*x.shape[:-1], flat.shape[-1])


class Conv(nnx.Module):
    """A dense two-dimensional convolution.

    Args:
      padding: "SAME" (TensorFlow's: what is odd goes below and to the right),
        "VALID", or the number of pixels added on every side.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: str | int = "SAME",
        use_bias: bool = True,
        init: initializers.Initializer = initializers.TRUNC_NORMAL,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        shape = (size, size, inputs, outputs)
        self.kernel = initializers.weight(rngs, shape, init)
        self.bias = (
            nnx.Param(jnp.zeros((outputs,), jnp.float32)) if use_bias else None
        )
        self.stride = stride
        self.padding = padding
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, inputs]` to `[B, h, w, outputs]`."""
        kernel = self.kernel[...].astype(self.dtype)
        pads = pads_of(self.padding, x.shape, kernel.shape[0], self.stride)
        x = conv(x.astype(self.dtype), kernel, self.stride, pads)
        if self.bias is not None:
            x = x + self.bias[...].astype(self.dtype)
        return x


class PatchConv(nnx.Module):
    """A convolution whose stride is its size: one matrix over every patch.

    Rows and columns left over at the bottom and the right are dropped, as an
    unpadded convolution drops them.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        init: initializers.Initializer = initializers.TRUNC_NORMAL,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        shape = (size, size, inputs, outputs)
        self.kernel = initializers.weight(rngs, shape, init)
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, inputs]` to `[B, H // size, W // size, outputs]`."""
        kernel = self.kernel[...].astype(self.dtype)
        size, _, inputs, outputs = kernel.shape
        batch, height, width, _ = x.shape
        h, w = height // size, width // size
        x = x[:, : h * size, : w * size].astype(self.dtype)
        x = x.reshape(batch, h, size, w, size * inputs).swapaxes(2, 3)
        x = x.reshape(batch * h * w, size * size * inputs)
        x = product(x, kernel.reshape(size * size * inputs, outputs))
        x = x + self.bias[...].astype(self.dtype)
        return x.reshape(batch, h, w, outputs)


class DepthwiseConv(nnx.Module):
    """One filter for every channel.

    Args:
      padding: as for `Conv`.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        stride: int = 1,
        padding: str | int = "SAME",
        use_bias: bool = True,
        init: initializers.Initializer = initializers.TRUNC_NORMAL,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.kernel = initializers.weight(rngs, (size, size, channels), init)
        self.bias = (
            nnx.Param(jnp.zeros((channels,), jnp.float32)) if use_bias else None
        )
        self.stride = stride
        self.padding = padding
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, h, w, C]`."""
        kernel = self.kernel[...].astype(self.dtype)
        x = x.astype(self.dtype)
        x = depthwise_conv(x, kernel, self.stride, self.padding)
        if self.bias is not None:
            x = x + self.bias[...].astype(self.dtype)
        return x


# Which part of a batch the layers see, and of how many parts.
_PART: contextvars.ContextVar[tuple[jax.Array, int] | None] = (
    contextvars.ContextVar("part", default=None)
)


@contextlib.contextmanager
def part_of_batch(index: jax.Array, count: int) -> Iterator[None]:
    """Tells layers that they see rows index, index + count, … of a batch.

    Every row is then dropped as it would be in the whole batch.

    Args:
      index: int32 [], which part; may be traced.
      count: how many parts the batch has.
    """
    token = _PART.set((index, count))
    try:
        yield
    finally:
        _PART.reset(token)


def part_of_rows(rows: jax.Array, index: jax.Array, count: int) -> jax.Array:
    """Rows index, index + count, … of `[B, ...]`: `[B / count, ...]`."""
    rows = rows.reshape(rows.shape[0] // count, count, *rows.shape[1:])
    return lax.dynamic_index_in_dim(rows, index, 1, keepdims=False)


def _places(shape: tuple[int, ...]) -> jax.Array:
    """Numbers the values `[b, ...]` of the rows that are seen: uint32.

    As they are numbered in the whole batch, of which this may be a part.
    """
    index, count = _PART.get() or (0, 1)
    rows = jnp.uint32(index) + count * jnp.arange(shape[0], dtype=jnp.uint32)
    width = math.prod(shape[1:])
    places = rows[:, None] * width + jnp.arange(width, dtype=jnp.uint32)
    return places.reshape(shape)


class Dropout(nnx.Module):
    """Drops values at random when training (Srivastava et al. 2014).

    What is kept is divided by the share kept, so the mean stays. Every
    instance owns a random stream: no two share a mask.

    Args:
      rate: the share that is dropped, in [0, 1).

    Raises:
      UserError: the rate is not in that range.
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        if not 0 <= rate < 1:
            raise UserError(
                f"a model cannot drop a share of {rate:g}; choose a "
                "drop_path_rate and dropout from 0 to below 1"
            )
        self.rate = float(rate)
        # Set by `model.train()` and `model.eval()`.
        self.deterministic = False
        self.stream = rngs["dropout"].fork() if self.rate > 0 else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, ...]` to `[B, ...]`."""
        if self.deterministic or self.stream is None:
            return x
        keep = 1 - self.rate
        numbers = self._draw(self.mask_shape(x.shape))
        return x * ((numbers < keep).astype(x.dtype) / keep)

    def _draw(self, shape: tuple[int, ...]) -> jax.Array:
        """Uniform numbers, others at every call: float32 of `shape`."""
        key, count = self.stream.key, self.stream.count
        numbers = counter_rng.uniform(key[...], _places(shape), count[...])
        # Not `count[...] += 1`, which traces a slice, a sum and a scatter.
        count.set_value(count[...] + 1)
        return numbers

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Every value falls on its own."""
        return shape


class DropPath(Dropout):
    """Stochastic depth (Huang et al. 2016): drops a branch per sample."""

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """All values of a sample fall together."""
        return (shape[0],) + (1,) * (len(shape) - 1)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Linear decay: 0 for the first block, `rate` for the last, per stage."""
    rates = iter(np.linspace(0, rate, sum(depths)).tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


class Head(nnx.Module):
    """Mean over the map, optional LayerNorm, dropout, and the classifier.

    Computed in float32 where the model's `dtype` is narrower.

    Args:
      norm_epsilon: of the LayerNorm between pooling and classifier; None
        leaves the norm out.
      head_bias: what the classifier's bias starts from: a number, one number
        per class (such as the logarithm of the class frequencies), or None
        for a classifier without bias.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        norm_epsilon: float | None,
        dropout: float,
        head_bias: float | Sequence[float] | None,
        init: initializers.Initializer = initializers.TRUNC_NORMAL,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        dtype = jnp.promote_types(dtype, jnp.float32)
        if norm_epsilon is None:
            self.norm = None
        else:
            self.norm = LayerNorm(channels, epsilon=norm_epsilon, dtype=dtype)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.fc = Linear(
            channels,
            num_classes,
            use_bias=head_bias is not None,
            init=init,
            bias_init=0.0 if head_bias is None else head_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.init = init
        self.head_bias = head_bias

    def reset(self, rngs: nnx.Rngs) -> None:
        """Draws the classifier anew, as it was made."""
        kernel = self.fc.kernel
        kernel[...] = initializers.weight(rngs, kernel.shape, self.init)[...]
        if self.fc.bias is not None:
            start = jnp.asarray(self.head_bias, jnp.float32)
            self.fc.bias[...] = jnp.broadcast_to(start, self.fc.bias.shape)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps `[B, h, w, C]` to logits `[B, num_classes]`, float32."""
        x = widen(features).mean((1, 2))
        if self.norm is not None:
            x = self.norm(x)
        return self.fc(self.dropout(x))


def rematerialize(block: nnx.Module, x: jax.Array) -> jax.Array:
    """`block(x)`, whose inner values are computed again when going backward.

    Saves the memory of everything but the block's input, and costs one more
    forward pass through it. Running statistics and random streams move on as
    they would without it, and the numbers are the same.
    """
    graphdef, params, rest = nnx.split(block, nnx.Param, ...)

    @jax.checkpoint
    def apply(params, rest, x):
        module = nnx.merge(graphdef, params, rest, copy=True)
        y = module(x)
        return y, nnx.state(module, nnx.Not(nnx.Param))

    y, rest = apply(params, rest, x)
    nnx.update(block, rest)
    return y
