"""Convolutions, as nnx.Conv calls them.

XLA's CPU backend uses one thread for a dense convolution inside of a larger
program; here it is in C++: conv.cc, and winograd.py where that applies. A map
of fewer places than the kernel has XLA takes for the kernel, and convolves
fifty times slower than the matrix product that it is here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jax_models import target
from jax_models.cpu_kernels import dispatch
from jax_models.cpu_kernels.depthwise import depthwise_conv
from jax_models.cpu_kernels.winograd import (
    Pads,
    supports_winograd,
    winograd_conv,
)

# The kernel is first copied into another order: with more weights than these
# for each row of the result, that took longer than it saved.
WEIGHTS_PER_ROW = 2500


def conv_general_dilated(
    images: Float[Array, "B H W C"],
    kernel: Float[Array, "k l I O"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    feature_group_count: int = 1,
    **options: Any,
) -> Float[Array, "B h w O"]:
    """What `lax.conv_general_dilated` does, for `nnx.Conv`.

    Args:
      images: channels last.
      kernel: I is the number of channels in a group.
      window_strides: of both axes.
      padding: "SAME", "VALID", or zeros above and below, left and right.
      lhs_dilation: of the images.
      rhs_dilation: of the kernel.
      feature_group_count: how many groups of channels.
      **options: further ones of `lax.conv_general_dilated`.
    """
    *size, group, outputs = kernel.shape
    height, width = size
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(
            images.shape[1:3],
            [
                (n - 1) * step + 1
                for n, step in zip(size, rhs_dilation, strict=True)
            ],
            window_strides,
            padding,
        )
    pads = tuple((int(low), int(high)) for low, high in padding)
    stride = window_strides[0]
    dilation = rhs_dilation[0]
    regular = (
        height == width
        and len(set(window_strides)) == len(set(rhs_dilation)) == 1
        and all(step == 1 for step in lhs_dilation)
    )
    if regular and group == 1 and feature_group_count == outputs > 1:
        return depthwise_conv(images, kernel, stride, pads, dilation)
    if regular and feature_group_count == 1:
        in_patches = target.platform() != "tpu" or group == 3
        if in_patches and pads == ((0, 0), (0, 0)):
            if height == 1:
                # What a stride leaves out need not be convolved.
                return _conv_by_patches(images[:, ::stride, ::stride], kernel)
            if stride == height and dilation == 1:
                return _conv_by_patches(images, kernel)
        how = stride, pads, dilation
        rows, columns = _output_size(images, kernel, *how)
        if dispatch.for_cpu("conv") and 0 < rows * columns <= height * width:
            return _conv_by_windows(images, kernel, *how)
        if stride == 1 and supports_winograd(images, kernel):
            return winograd_conv(images, kernel, pads, dilation)
        if dilation == 1 and _in_cpp(images, kernel, stride, pads):
            return _dense_conv(images, kernel, stride, pads)
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides,
        pads,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        feature_group_count=feature_group_count,
        **options,
    )


def _conv_by_patches(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution whose stride is its size: one matrix over all patches.

    A TPU takes ten times as long to bring the patches together as for their
    product, except of three channels.

    Rows and columns left over at the bottom and the right are dropped.
    """
    size, _, inputs, outputs = kernel.shape
    batch, height, width, _ = images.shape
    h, w = height // size, width // size
    x = images[:, : h * size, : w * size]
    x = x.reshape(batch, h, size, w, size * inputs).swapaxes(2, 3)
    x = x.reshape(batch * h * w, size * size * inputs)  # [B h w, patch]
    x = x @ kernel.reshape(-1, outputs)
    return x.reshape(batch, h, w, outputs)


def _conv_by_windows(
    images: jax.Array,
    kernel: jax.Array,
    stride: int,
    pads: Pads,
    dilation: int,
) -> jax.Array:
    """One matrix over all windows, which are copied side by side."""
    size, _, inputs, outputs = kernel.shape
    height, width = _output_size(images, kernel, stride, pads, dilation)
    x = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    shifted = [
        x[
            :,
            row : row + (height - 1) * stride + 1 : stride,
            column : column + (width - 1) * stride + 1 : stride,
        ]
        for row in range(0, size * dilation, dilation)
        for column in range(0, size * dilation, dilation)
    ]
    x = jnp.concatenate(shifted, -1)  # [B, h, w, k k I]
    x = x.reshape(-1, size * size * inputs) @ kernel.reshape(-1, outputs)
    return x.reshape(-1, height, width, outputs)


def _output_size(
    images: jax.Array,
    kernel: jax.Array,
    stride: int,
    pads: Pads,
    dilation: int = 1,
) -> tuple[int, int]:
    reach = (kernel.shape[0] - 1) * dilation + 1
    height, width = (
        max(0, (length + low + high - reach) // stride + 1)
        for length, (low, high) in zip(images.shape[1:3], pads, strict=True)
    )
    return height, width


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense_conv(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> jax.Array:
    """A dense convolution with a square kernel. Only where `_in_cpp` holds."""
    size = _output_size(images, kernel, stride, pads)
    return _call(
        "sextet_conv",
        *(images, kernel),
        shape=(images.shape[0], *size, kernel.shape[3]),
        stride=stride,
        pads=pads,
    )


def _dense_conv_bwd(stride, pads, residuals, grad):
    images, kernel = residuals
    options = dict(stride=stride, pads=pads)
    return (
        _call(
            "sextet_conv_images_grad",
            *(grad, kernel),
            shape=images.shape,
            **options,
        ),
        _call(
            "sextet_conv_kernel_grad",
            *(images, grad),
            shape=kernel.shape,
            **options,
        ),
    )


_dense_conv.defvjp(
    lambda images, kernel, *options: (
        _dense_conv(images, kernel, *options),
        (images, kernel),
    ),
    _dense_conv_bwd,
)


def _in_cpp(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> bool:
    if images.dtype != jnp.float32 or not dispatch.in_cpp("conv", images):
        return False
    batch, height, width, _ = images.shape
    rows = batch * height * width // stride**2
    known = all(0 <= pad < kernel.shape[0] for pair in pads for pad in pair)
    return known and rows * WEIGHTS_PER_ROW >= kernel.size


# Traced once for all layers of a shape.
@functools.partial(
    jax.jit, static_argnames=("handler", "shape", "stride", "pads")
)
def _call(handler, one, other, *, shape, stride, pads):
    return dispatch.call(
        handler,
        jax.ShapeDtypeStruct(shape, jnp.float32),
        *(one, other),
        stride=stride,
        top=pads[0][0],
        left=pads[1][0],
    )
