"""Depthwise convolution, one filter for every channel.

XLA's grouped convolution on a CPU is 60 to 125 times slower than oneDNN's, so
the CPU has two implementations of its own: C++ (depthwise.cc), and where that
cannot be, a sum of shifted products in JAX. Other platforms use XLA's.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax_models.cpu_kernels import dispatch
from jax_models.functional import at_least_float32

# Zeros (above, below), (left, right) of the images.
Pads = tuple[tuple[int, int], tuple[int, int]]

# Kernel sizes and strides that depthwise.cc has: those of the models.
CPP_SIZES = (3, 1), (3, 2), (5, 1), (5, 2), (7, 1)
# Of those, the ones that it dilates.
CPP_DILATED = (3, 1), (5, 1)

# Networks have tens of these in a few shapes: jitted to be traced once per
# shape. XLA inlines them again.
_trace_once = functools.partial(
    jax.jit, static_argnames=("stride", "pads", "dilation")
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise_conv(
    images: Float[Array, "B H W C"],
    kernel: Float[Array, "k k 1 C"],
    stride: int,
    pads: Pads,
    dilation: int = 1,
) -> Float[Array, "B h w C"]:
    """Convolves every channel with its own filter, of the same dtype."""
    how = dict(stride=stride, pads=pads, dilation=dilation)
    if not dispatch.for_cpu("depthwise"):
        return _xla_conv(images, kernel, **how)
    if _is_for_cpp(images, kernel, **how):
        return _cpp_conv(images, kernel, **how)
    return _shifted_sum(images, kernel, **how)


def _fwd(images, kernel, stride, pads, dilation):
    y = depthwise_conv(images, kernel, stride, pads, dilation)
    return y, (images, kernel)


def _bwd(stride, pads, dilation, residuals, grad):
    how = dict(stride=stride, pads=pads, dilation=dilation)
    if not dispatch.for_cpu("depthwise"):
        convolve = functools.partial(_xla_conv, **how)
        return jax.vjp(convolve, *residuals)[1](grad)
    if _is_for_cpp(*residuals, **how):
        return _cpp_grads(*residuals, grad, **how)
    return _shifted_sum_grads(*residuals, grad, **how)


depthwise_conv.defvjp(_fwd, _bwd)


def _is_for_cpp(
    images: jax.Array,
    kernel: jax.Array,
    stride: int,
    pads: Pads,
    dilation: int = 1,
) -> bool:
    size, _, _, channels = kernel.shape
    reach = _reach(size, dilation)
    return (
        (size, stride) in (CPP_SIZES if dilation == 1 else CPP_DILATED)
        and all(0 <= pad < reach for pair in pads for pad in pair)
        and dispatch.in_cpp("depthwise", images)
        and channels >= dispatch.lanes()
    )


def _reach(size: int, dilation: int) -> int:
    """From the first to the last cell that a filter sees."""
    return (size - 1) * dilation + 1


@_trace_once
def _xla_conv(images, kernel, *, stride, pads, dilation):
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(stride, stride),
        padding=pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=kernel.shape[-1],
    )


@_trace_once
def _cpp_conv(images, kernel, *, stride, pads, dilation):
    reach = _reach(kernel.shape[0], dilation)
    height, width = (
        (length + low + high - reach) // stride + 1
        for length, (low, high) in zip(images.shape[1:3], pads, strict=True)
    )
    (top, _), (left, _) = pads
    shape = (images.shape[0], height, width, images.shape[3])
    return _call_conv(
        *(images, kernel, shape),
        stride=stride,
        top=top,
        left=left,
        spread=1,
        dilation=dilation,
    )


def _call_conv(images, kernel, shape, *, flip=False, **options):
    convolved = dispatch.call(
        "sextet_depthwise",
        jax.ShapeDtypeStruct(shape, jnp.float32),
        images,
        kernel[:, :, 0],
        flip=flip,
        **options,
    )
    return convolved.astype(images.dtype)


@_trace_once
def _cpp_grads(images, kernel, grad, *, stride, pads, dilation):
    last = (kernel.shape[0] - 1) * dilation
    (top, _), (left, _) = pads
    # To the images: spread the gradient by the stride, then convolve with the
    # kernel turned by 180 degrees.
    images_grad = _call_conv(
        grad,
        kernel,
        images.shape,
        stride=1,
        top=last - top,
        left=last - left,
        spread=stride,
        dilation=dilation,
        flip=True,
    )
    size, _, _, channels = kernel.shape
    kernel_grad = dispatch.call(
        "sextet_depthwise_kernel_grad",
        jax.ShapeDtypeStruct((size, size, channels), jnp.float32),
        images,
        grad,
        stride=stride,
        top=top,
        left=left,
        dilation=dilation,
    )
    return images_grad, kernel_grad[:, :, None].astype(kernel.dtype)


@_trace_once
def _shifted_sum(images, kernel, *, stride, pads, dilation):
    """The sum of k*k shifted products, which XLA fuses into one loop.

    The batch is taken in a few parts, one after the other: XLA fuses nothing
    across a loop. Fused with a LayerNorm that follows, it would write each of
    the k*k shifted maps to memory.
    """
    batch = images.shape[0]
    parts = max(part for part in range(1, 9) if batch % part == 0)
    if parts == 1:
        return _shifted_sum_of_part(images, kernel, stride, pads, dilation)
    # Parts are strided, so a batch that is divided over devices stays so.
    split = images.reshape(batch // parts, parts, *images.shape[1:])
    shape = jax.eval_shape(
        lambda part: _shifted_sum_of_part(part, kernel, stride, pads, dilation),
        split[:, 0],
    ).shape

    def convolve_part(index, done):
        part = lax.dynamic_index_in_dim(split, index, 1, keepdims=False)
        part = _shifted_sum_of_part(part, kernel, stride, pads, dilation)
        return lax.dynamic_update_index_in_dim(done, part, index, 1)

    done = jnp.zeros((shape[0], parts, *shape[1:]), images.dtype)
    done = lax.fori_loop(0, parts, convolve_part, done)
    return done.reshape(batch, *shape[1:])


def _shifted_sum_of_part(images, kernel, stride, pads, dilation):
    size = kernel.shape[0]
    reach = _reach(size, dilation)
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    height, width = (
        (length - reach) // stride * stride + 1 for length in padded.shape[1:3]
    )
    total = None
    for row in range(size):
        for column in range(size):
            top, left = row * dilation, column * dilation
            window = padded[
                :, top : top + height : stride, left : left + width : stride
            ]
            term = window * kernel[row, column, 0]
            total = term if total is None else total + term
    return total


@_trace_once
def _shifted_sum_grads(images, kernel, grad, *, stride, pads, dilation):
    size = kernel.shape[0]
    reach = _reach(size, dilation)
    # To the images: as in C++.
    borders = [(0, 0, 0)]
    for axis, (low, high) in enumerate(pads, start=1):
        reached = (grad.shape[axis] - 1) * stride + reach
        unused = images.shape[axis] + low + high - reached
        borders.append((reach - 1 - low, reach - 1 - high + unused, stride - 1))
    borders.append((0, 0, 0))
    spread = lax.pad(grad, jnp.zeros((), grad.dtype), borders)
    images_grad = _shifted_sum(
        spread,
        kernel[::-1, ::-1],
        stride=1,
        pads=((0, 0), (0, 0)),
        dilation=dilation,
    )
    # To the kernel: every cell of the gradient meets the k*k window of the
    # images that it came from. A loop over the rows whose body is one fused
    # expression is several times faster than k*k reductions over everything.
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    batch, _, width, channels = grad.shape

    def add_row(row, total):
        windows = lax.dynamic_slice_in_dim(padded, row * stride, reach, 1)
        windows = windows[:, ::dilation]
        of_row = lax.dynamic_slice_in_dim(grad, row, 1, 1)
        for column in range(width):
            left = column * stride
            window = windows[:, :, left : left + reach : dilation]
            window = at_least_float32(window)
            total = total + window * of_row[:, :, column : column + 1]
        return total

    zeros = at_least_float32(
        jnp.zeros((batch, size, size, channels), images.dtype)
    )
    kernel_grad = lax.fori_loop(0, grad.shape[1], add_row, zeros).sum(0)
    return images_grad, kernel_grad[:, :, None].astype(kernel.dtype)
