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
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from core import counter_rng
from core.errors import UserError
from jax_models import cpu_kernels, initializers
from jax_models.functional import Activation, at_least_float32, layer_norm
from jax_models.target import platform, two_axes


class Linear(nnx.Linear):
    """A matrix over the last axis; also what a 1x1 convolution is.

    Args:
      in_features: width of the last axis of the input.
      out_features: width of the last axis of the output.
      init: of the matrix.
      bias_init: start value of the bias, one for all or one for each output.
      torch_conv: whether PyTorch's counterpart is a 1x1 convolution, whose
        weight has two more axes. It changes no number here.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        init: initializers.Initializer = initializers.NORMAL_02,
        bias_init: float | Sequence[float] = 0.0,
        torch_conv: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_features,
            out_features,
            use_bias=use_bias,
            kernel_init=nnx.initializers.zeros_init(),
            dtype=dtype,
            rngs=initializers.NoRngs(),
        )
        self.kernel = initializers.weight(rngs, self.kernel.shape, init)
        if use_bias:
            self.bias = initializers.bias(bias_init, out_features)
        self.torch_conv = torch_conv

    def __call__(
        self, x: Float[Array, "*B in_features"]
    ) -> Float[Array, "*B out_features"]:
        """Maps `[..., in_features]` to `[..., out_features]`."""
        return super().__call__(two_axes(x)).reshape(*x.shape[:-1], -1)


class Conv(nnx.Conv):
    """A two-dimensional convolution.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: height and width of the filters; one number for both.
      strides: the same for both axes.
      padding: "SAME" (TensorFlow's: an odd pixel goes below and to the right),
        "VALID", or the number of pixels added on every side.
      kernel_dilation: distance between the pixels that a filter sees.
      feature_group_count: as of `nnx.Conv`; `in_features` for a depthwise
        convolution, which has one filter for each channel.
      init: of the filters.
      bias_init: start value of the bias, one for all or one for each output.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, int],
        strides: int = 1,
        *,
        padding: str | int = "SAME",
        kernel_dilation: int = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        init: initializers.Initializer = initializers.NORMAL_02,
        bias_init: float | Sequence[float] = 0.0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        size = kernel_size
        if isinstance(size, int):
            size = (size, size)
        super().__init__(
            in_features,
            out_features,
            size,
            strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            use_bias=use_bias,
            kernel_init=nnx.initializers.zeros_init(),
            dtype=dtype,
            conv_general_dilated=cpu_kernels.conv_general_dilated,
            rngs=initializers.NoRngs(),
        )
        self.kernel = initializers.weight(rngs, self.kernel.shape, init)
        if use_bias:
            self.bias = initializers.bias(bias_init, out_features)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (Ba et al. 2016).

    Unlike `nnx.LayerNorm`'s, its gradient keeps nothing but its input and the
    statistics, and compiles in a quarter of the time.
    """

    def __init__(self, channels: int, *, epsilon: float, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        """Maps `[..., C]` to `[..., C]`."""
        y = layer_norm(x, self.scale[...], self.bias[...], self.epsilon)
        return y.astype(self.dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) over all axes but the last.

    The batch is normalised by its biased variance; the running variance is
    updated with the unbiased one, as PyTorch and TensorFlow's fused kernel
    do and nnx.BatchNorm does not. `momentum` is the share of the old value
    that is kept (PyTorch's convention is one minus that).

    Args:
      channels: of the last axis.
      epsilon: added to the variance.
      momentum: of the running statistics.
      scale: start value of the scale.
      activation: `functional.gelu`, `functional.silu` or None, applied to the
        result. It belongs to the norm because both are one kernel on a CPU.
      dtype: of the result.
    """

    def __init__(
        self,
        channels: int,
        *,
        epsilon: float,
        momentum: float,
        scale: float = 1.0,
        activation: Activation | None = None,
        dtype: DTypeLike,
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

    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        """Maps `[B, ..., C]` to `[B, ..., C]`; when training, updates."""
        if self.use_running_average:
            factor = lax.rsqrt(self.var[...] + self.epsilon) * self.scale[...]
            y = (at_least_float32(x) - self.mean[...]) * factor
            y = (y + self.bias[...]).astype(self.dtype)
            return y if self.activation is None else self.activation(y)
        y, mean, variance = cpu_kernels.batch_norm(
            x.astype(self.dtype),
            self.scale[...],
            self.bias[...],
            self.epsilon,
            self.activation,
        )
        count = math.prod(x.shape[:-1])
        self._update(self.mean, mean)
        self._update(self.var, variance * (count / max(count - 1, 1)))
        return y

    def _update(self, running: nnx.BatchStat, batch: jax.Array) -> None:
        kept = self.momentum * running[...]
        new = kept + (1 - self.momentum) * lax.stop_gradient(batch)
        # Not `running[...] = new`, which would write into an array that came
        # from NumPy.
        running.set_value(new)


# Index and number of the microbatch that layers see; None for a whole batch.
_MICROBATCH: contextvars.ContextVar[tuple[jax.Array, int] | None] = (
    contextvars.ContextVar("microbatch", default=None)
)


@contextlib.contextmanager
def microbatch(index: jax.Array, count: int) -> Iterator[None]:
    """Layers drop rows index, index + count, … as in the whole batch.

    Args:
      index: int32 [], of the microbatch that they see; may be traced.
      count: of the batch's microbatches.
    """
    token = _MICROBATCH.set((index, count))
    try:
        yield
    finally:
        _MICROBATCH.reset(token)


def take_microbatch(rows: jax.Array, index: jax.Array, count: int) -> jax.Array:
    """Rows index, index + count, … of `[B, ...]`: `[B / count, ...]`."""
    rows = rows.reshape(rows.shape[0] // count, count, *rows.shape[1:])
    return lax.dynamic_index_in_dim(rows, index, 1, keepdims=False)


def _indices(shape: tuple[int, ...]) -> jax.Array:
    """Index of each value `[b, ...]` in the whole batch, flat: uint32."""
    index, count = _MICROBATCH.get() or (0, 1)
    rows = jnp.uint32(index) + count * jnp.arange(shape[0], dtype=jnp.uint32)
    width = math.prod(shape[1:])
    indices = rows[:, None] * width + jnp.arange(width, dtype=jnp.uint32)
    return indices.reshape(shape)


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

    def __call__(self, x: Float[Array, " *B"]) -> Float[Array, " *B"]:
        """Maps `[B, ...]` to `[B, ...]`."""
        if self.deterministic or self.stream is None:
            return x
        keep = 1 - self.rate
        numbers = self._draw(self.mask_shape(x.shape))
        return x * ((numbers < keep).astype(x.dtype) / keep)

    def _draw(self, shape: tuple[int, ...]) -> jax.Array:
        """Uniform numbers, others at every call: float32 of `shape`."""
        key, count = self.stream.key, self.stream.count
        numbers = counter_rng.uniform(key[...], _indices(shape), count[...])
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
        init: initializers.Initializer = initializers.NORMAL_02,
        dtype: DTypeLike,
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
        reset_classifier(self.fc, self.init, self.head_bias, rngs)

    def __call__(
        self, features: Float[Array, "B h w C"]
    ) -> Float[Array, "B num_classes"]:
        """Maps `[B, h, w, C]` to logits `[B, num_classes]`, float32."""
        if features.dtype.itemsize < 4 and platform() == "cpu":
            # jaxlib 0.11.2 fuses a sum of two convolutions, ReLU and this
            # mean in bfloat16, and gets NaN.
            features = lax.optimization_barrier(features)
        x = at_least_float32(features).mean((1, 2))
        if self.norm is not None:
            x = self.norm(x)
        return self.fc(self.dropout(x))


def reset_classifier(
    layer: Linear | Conv,
    init: initializers.Initializer,
    bias_init: float | Sequence[float] | None,
    rngs: nnx.Rngs,
) -> None:
    """Draws a layer's weights anew."""
    kernel, bias = layer.kernel, layer.bias
    kernel[...] = initializers.weight(rngs, kernel.shape, init)[...]
    if bias is not None:
        bias[...] = initializers.bias(bias_init, bias.size)[...]


def rematerialize(block: nnx.Module, *inputs: jax.Array) -> jax.Array:
    """`block(*inputs)`, its inner values computed again when going backward.

    Saves the memory of everything but the block's inputs, and costs one more
    forward pass through it. Running statistics and random streams move on as
    they would without it, and the numbers are the same.
    """
    graphdef, params, rest = nnx.split(block, nnx.Param, ...)

    @jax.checkpoint
    def apply(params, rest, inputs):
        module = nnx.merge(graphdef, params, rest, copy=True)
        y = module(*inputs)
        return y, nnx.state(module, nnx.Not(nnx.Param))

    y, rest = apply(params, rest, inputs)
    nnx.update(block, rest)
    return y
