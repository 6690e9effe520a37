"""Dense convolution and matrix product with gradients fast on every backend.

XLA's CPU backend takes five times as long for the gradient of the filters as
for the convolution itself: there it is one matrix product per position in the
filter instead. Where nothing asks for gradients, the convolution is in C++
(convolution.cc). Everything else is the backend's own, as is the plain matrix
product but for the way round in which one gradient is computed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_models.cpu_kernels import dispatch


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(
    images: jax.Array,
    kernel: jax.Array,
    stride: int,
    pads: tuple[tuple[int, int], tuple[int, int]],
) -> jax.Array:
    """Convolves images with a dense filter.

    Args:
      images: `[B, H, W, inputs]`.
      kernel: `[k, k, inputs, outputs]`, of the same dtype.
      stride: the same for both axes.
      pads: zeros above and below, left and right.

    Returns:
      `[B, h, w, outputs]`.
    """
    form = _native if _is_native(images, kernel, stride, pads) else _library
    return form(images, kernel, stride, pads)


# The kernel is first copied into another order: with more weights than these
# for each row, that took longer than it saved.
WEIGHTS_PER_ROW = 2500


def _is_native(images, kernel, stride, pads):
    if images.dtype != jnp.float32 or not dispatch.serves(images):
        return False
    batch, height, width, _ = images.shape
    rows = batch * height * width // stride**2
    known = all(0 <= pad < kernel.shape[0] for pad in np.ravel(pads))
    return known and rows * WEIGHTS_PER_ROW >= kernel.size


@functools.partial(jax.jit, static_argnames=("stride", "pads"))  # Traced once.
def _native(images, kernel, stride, pads):
    """In C++: XLA uses one thread for it inside of a larger program."""
    size = kernel.shape[0]
    height, width = (
        max(0, (length + low + high - size) // stride + 1)
        for length, (low, high) in zip(images.shape[1:3], pads, strict=True)
    )
    shape = (images.shape[0], height, width, kernel.shape[3])
    return dispatch.library().call(
        "sextet_conv",
        jax.ShapeDtypeStruct(shape, jnp.float32),
        *(images, kernel),
        stride=stride,
        top=pads[0][0],
        left=pads[1][0],
    )


def _library(images, kernel, stride, pads):
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(stride, stride),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _forward(images, kernel, stride, pads):
    return _library(images, kernel, stride, pads), (images, kernel)


def _backward(stride, pads, residuals, slope):
    images, kernel = residuals
    to_images = jax.vjp(
        lambda images: _library(images, kernel, stride, pads), images
    )[1](slope)[0]
    form = _by_products if dispatch.on_cpu() else _by_library
    return to_images, form(images, kernel, slope, stride=stride, pads=pads)


conv.defvjp(_forward, _backward)


def _by_library(images, kernel, slope, *, stride, pads):
    def convolve(kernel):
        return _library(images, kernel, stride, pads)

    return jax.vjp(convolve, kernel)[1](slope)[0]


def _by_products(images, kernel, slope, *, stride, pads):
    """One product of the shifted images with the slope for each position."""
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    height, width = ((n - 1) * stride + 1 for n in slope.shape[1:3])
    slope = slope.reshape(-1, slope.shape[-1])
    products = []
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            shifted = padded[
                :,
                row : row + height : stride,
                column : column + width : stride,
            ]
            # Behind a wall: a product whose operand XLA slices on the way is
            # no matrix product of its library any more.
            shifted = lax.optimization_barrier(
                shifted.reshape(-1, images.shape[-1])
            )
            products.append(shifted.T @ slope)
    return jnp.stack(products).reshape(kernel.shape)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns `x @ kernel`, `[N, inputs]` times `[inputs, outputs]`."""
    return x @ kernel


def _product_backward(residuals, slope):
    x, kernel = residuals
    # XLA's CPU backend takes nearly twice as long for the gradient of a matrix
    # that narrows: it is better computed the other way round, behind a wall,
    # or the transposition would be undone.
    if dispatch.on_cpu() and kernel.shape[1] < kernel.shape[0]:
        to_kernel = lax.optimization_barrier(slope.T @ x).T
    else:
        to_kernel = x.T @ slope
    return slope @ kernel.T, to_kernel


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)
