"""Depthwise convolution that is fast on every backend.

XLA's grouped convolution on CPU is tens of times slower than the machine
allows, so the CPU has forms of its own: C++ where the machine has a compiler
(native.py), and in plain JAX, chosen by the size of the map, a sum of shifted
products, and for small maps one matrix per channel. Other backends use their
library's convolution.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_models.cpu_kernels import dispatch
from jax_models.cpu_kernels.norms import widen

# Sizes and strides that depthwise.cc knows: those of the models.
NATIVE = (3, 1), (3, 2), (7, 1)

# Networks have tens of these in a few shapes. Compiled as functions of their
# own they are traced once per shape; XLA inlines them again.
_trace_once = functools.partial(jax.jit, static_argnames=("stride", "pads"))


def depthwise_conv(
    images: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: str | int = "SAME",
) -> jax.Array:
    """Convolves every channel with its own filter.

    Args:
      images: `[B, H, W, C]`.
      kernel: `[k, k, C]`, of the same dtype.
      stride: the same for both axes.
      padding: "SAME" (TensorFlow's: what is odd goes below and to the right),
        "VALID", or the pixels added on every side.

    Returns:
      `[B, h, w, C]`.
    """
    pads = pads_of(padding, images.shape, kernel.shape[0], stride)
    return _convolve(images, kernel, stride, pads)


def pads_of(
    padding: str | int, shape: tuple[int, ...], size: int, stride: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the zeros that a padding means: (top, bottom), (left, right).

    Args:
      padding: as for `depthwise_conv`.
      shape: of the images, `[B, H, W, C]`.
      size: of the kernel.
      stride: of the convolution.
    """
    if not isinstance(padding, str):
        return (padding, padding), (padding, padding)
    rows, columns = lax.padtype_to_pads(
        shape[1:3], (size, size), (stride, stride), padding
    )
    return tuple(rows), tuple(columns)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(images, kernel, stride, pads):
    if not dispatch.on_cpu():
        form = _grouped
    elif _is_native(images, kernel, stride, pads):
        form = _native
    else:
        form = _matrices if _is_small(images, kernel) else _shifts
    return form(images, kernel, stride=stride, pads=pads)


def _forward(images, kernel, stride, pads):
    return _convolve(images, kernel, stride, pads), (images, kernel)


def _backward(stride, pads, residuals, slope):
    if not dispatch.on_cpu():
        form = functools.partial(_slopes_by_transposition, _grouped)
    elif _is_native(*residuals, stride, pads):
        form = _native_slopes
    elif _is_small(*residuals):
        form = functools.partial(_slopes_by_transposition, _matrices)
    else:
        form = _shifts_slopes
    return form(*residuals, slope, stride=stride, pads=pads)


_convolve.defvjp(_forward, _backward)


def _is_native(images, kernel, stride, pads):
    """Whether there is C++ for it."""
    size, _, channels = kernel.shape
    if (size, stride) not in NATIVE:
        return False
    if not all(0 <= pad < size for pad in np.ravel(pads)):
        return False
    return dispatch.serves(images) and channels >= dispatch.library().lanes


def _is_small(images, kernel):
    """Whether a matrix over the map costs less than shifts by the kernel."""
    return images.shape[1] * images.shape[2] <= 2 * kernel[..., 0].size


def _slopes_by_transposition(form, images, kernel, slope, **options):
    """The gradients of a form that JAX can transpose well by itself."""
    convolve = functools.partial(form, **options)
    return jax.vjp(convolve, images, kernel)[1](slope)


@_trace_once
def _native(images, kernel, *, stride, pads):
    """In C++, computed in float32."""
    size = kernel.shape[0]
    height, width = (
        (length + low + high - size) // stride + 1
        for length, (low, high) in zip(images.shape[1:3], pads, strict=True)
    )
    (top, _), (left, _) = pads
    shape = (images.shape[0], height, width, images.shape[3])
    return _native_convolve(
        images, kernel, shape, stride=stride, top=top, left=left, spread=1
    )


def _native_convolve(images, kernel, shape, *, flip=False, **options):
    convolved = dispatch.library().call(
        "sextet_depthwise",
        jax.ShapeDtypeStruct(shape, jnp.float32),
        widen(images),
        widen(kernel),
        flip=flip,
        **options,
    )
    return convolved.astype(images.dtype)


@_trace_once
def _native_slopes(images, kernel, slope, *, stride, pads):
    """The gradients of `_native`."""
    last = kernel.shape[0] - 1
    (top, _), (left, _) = pads
    to_images = _native_convolve(
        slope,
        kernel,
        images.shape,
        stride=1,
        top=last - top,
        left=last - left,
        spread=stride,
        flip=True,
    )
    to_kernel = dispatch.library().call(
        "sextet_depthwise_kernel_slope",
        jax.ShapeDtypeStruct(kernel.shape, jnp.float32),
        widen(images),
        widen(slope),
        stride=stride,
        top=top,
        left=left,
    )
    return to_images, to_kernel.astype(kernel.dtype)


@_trace_once
def _grouped(images, kernel, *, stride, pads):
    """The convolution of the backend's library."""
    return lax.conv_general_dilated(
        images,
        kernel[:, :, None, :],
        window_strides=(stride, stride),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=kernel.shape[-1],
    )


@_trace_once
def _matrices(images, kernel, *, stride, pads):
    """As one matrix per channel, from all cells of the map to all."""
    batch, height, width, channels = images.shape
    size = kernel.shape[0]
    entries, outputs = _matrix_entries(height, width, size, stride, pads)
    flat = kernel.reshape(size * size, channels).T
    # 0/1 entries and a product, not a gather: the gradient of a gather is a
    # scatter, which is slow.
    matrix = flat @ jnp.asarray(entries, kernel.dtype)
    matrix = matrix.reshape(channels, height * width, -1)
    cells = images.reshape(batch, height * width, channels).transpose(2, 0, 1)
    cells = (cells @ matrix).transpose(1, 2, 0)
    return cells.reshape(batch, *outputs, channels)


@functools.cache
def _matrix_entries(height, width, size, stride, pads):
    """Which weight of the kernel connects which cells.

    Returns:
      0/1 `[k * k, (H * W) * (h * w)]`, and (h, w).
    """
    axes, outputs = [], []
    for length, (low, high) in zip((height, width), pads, strict=True):
        out = (length + low + high - size) // stride + 1
        source = np.arange(length)[:, None]
        first = np.arange(out)[None] * stride - low
        offset = np.arange(size)[:, None, None]
        axes.append(source - first == offset)  # [k, length, out]
        outputs.append(out)
    entries = axes[0][:, None, :, None, :, None] & axes[1][:, None, :, None]
    return entries.reshape(size * size, -1), tuple(outputs)


@_trace_once
def _shifts(images, kernel, *, stride, pads):
    """As the sum of k*k shifted products, which XLA fuses into one loop.

    The batch is taken in a few parts, one after the other: a loop is a wall
    that XLA fuses nothing across. Fused with a LayerNorm that follows, it
    would write each of the k*k shifted maps to memory.
    """
    batch = images.shape[0]
    parts = max(part for part in range(1, 9) if batch % part == 0)
    if parts == 1:
        return _shifts_of_part(images, kernel, stride, pads)
    # Parts are strided, so a batch that is divided over devices stays so.
    split = images.reshape(batch // parts, parts, *images.shape[1:])
    shape = jax.eval_shape(
        lambda part: _shifts_of_part(part, kernel, stride, pads), split[:, 0]
    ).shape

    def convolve_part(index, done):
        part = lax.dynamic_index_in_dim(split, index, 1, keepdims=False)
        part = _shifts_of_part(part, kernel, stride, pads)
        return lax.dynamic_update_index_in_dim(done, part, index, 1)

    done = jnp.zeros((shape[0], parts, *shape[1:]), images.dtype)
    done = lax.fori_loop(0, parts, convolve_part, done)
    return done.reshape(batch, *shape[1:])


def _shifts_of_part(images, kernel, stride, pads):
    size = kernel.shape[0]
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    height, width = (
        (length - size) // stride * stride + 1 for length in padded.shape[1:3]
    )
    total = None
    for row in range(size):
        for column in range(size):
            window = padded[
                :,
                row : row + height : stride,
                column : column + width : stride,
            ]
            term = window * kernel[row, column]
            total = term if total is None else total + term
    return total


@_trace_once
def _shifts_slopes(images, kernel, slope, *, stride, pads):
    """The gradients of `_shifts`."""
    size = kernel.shape[0]
    # To the images: spread the slope by the stride, then convolve with the
    # kernel turned by 180 degrees.
    borders = [(0, 0, 0)]
    for axis, (low, high) in enumerate(pads, start=1):
        reached = (slope.shape[axis] - 1) * stride + size
        unused = images.shape[axis] + low + high - reached
        borders.append((size - 1 - low, size - 1 - high + unused, stride - 1))
    borders.append((0, 0, 0))
    spread = lax.pad(slope, jnp.zeros((), slope.dtype), borders)
    to_images = _shifts(
        spread, kernel[::-1, ::-1], stride=1, pads=((0, 0), (0, 0))
    )
    # To the kernel: every cell of the slope meets the k*k window of the
    # images that it came from. A loop over the rows whose body is one fused
    # expression is several times faster than k*k reductions over everything.
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    batch, _, width, channels = slope.shape

    def add_row(row, total):
        windows = lax.dynamic_slice_in_dim(padded, row * stride, size, 1)
        grads_of = lax.dynamic_slice_in_dim(slope, row, 1, 1)
        for column in range(width):
            left = column * stride
            window = widen(windows[:, :, left : left + size])
            total = total + window * grads_of[:, :, column : column + 1]
        return total

    zeros = widen(jnp.zeros((batch, size, size, channels), images.dtype))
    to_kernel = lax.fori_loop(0, slope.shape[1], add_row, zeros).sum(0)
    return to_images, to_kernel.astype(kernel.dtype)
