"""3x3 convolutions of stride 1 by minimal filtering, in C++ (winograd.cc).

Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv
1509.09308: less than half of the products, forward and in both gradients. Where
the images are a map enlarged by two, as in a U-Net, the enlarged map need not
exist, and a quarter of the products are left.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_models.cpu_kernels import dispatch

Pads = tuple[tuple[int, int], tuple[int, int]]

SIZE = 3  # of the kernels.


def supports_winograd(
    images: Float[Array, "B H W I"], kernel: Float[Array, "k l I O"]
) -> bool:
    """Whether the C++ takes a convolution of stride 1."""
    return _in_cpp(images, kernel)


def _in_cpp(images: jax.Array, kernel: jax.Array) -> bool:
    return (
        kernel.shape[:2] == (SIZE, SIZE)
        and images.dtype == kernel.dtype == jnp.float32
        and dispatch.in_cpp("winograd", images, kernel)
    )


def supports_conv_upsampled(
    x: Float[Array, "B h w C"],
    size: tuple[int, int],
    kernel: Float[Array, "k l I O"],
) -> bool:
    """Whether `conv_upsampled` takes a convolution over a map of `size`."""
    return size == (2 * x.shape[1], 2 * x.shape[2]) and _in_cpp(x, kernel)


def conv_upsampled(
    x: Float[Array, "B h w C"],
    skip: Float[Array, "B 2*h 2*w D"] | None,
    kernel: Float[Array, "3 3 I O"],
) -> Float[Array, "B 2*h 2*w O"]:
    """A convolution of `x`, every cell repeated 2x2, beside `skip`.

    Only where `supports_conv_upsampled` holds.

    Args:
      x: the smaller map.
      skip: further channels of the larger one.
      kernel: its inputs I are the C of `x`, then the D of `skip`.
    """
    pads = ((1, 1), (1, 1))
    channels = x.shape[-1]
    of_x, of_skip = jnp.split(kernel, [channels], 2)
    y = winograd_conv(x, of_x, pads, 1, True)
    return y if skip is None else y + winograd_conv(skip, of_skip, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def winograd_conv(
    images: Float[Array, "B H W I"],
    kernel: Float[Array, "3 3 I O"],
    pads: Pads,
    dilation: int = 1,
    repeated: bool = False,
) -> Float[Array, "B h w O"]:
    """A convolution of stride 1. Only where `supports_winograd` holds.

    Args:
      images: channels last.
      kernel: dense.
      pads: zeros above and below, left and right; one each if `repeated`.
      dilation: of the kernel; 1 if `repeated`.
      repeated: convolves images of which every cell is repeated 2x2.
    """
    scale = 2 if repeated else 1
    size = (
        scale * length + low + high - (SIZE - 1) * dilation
        for length, (low, high) in zip(images.shape[1:3], pads, strict=True)
    )
    return _call(
        "sextet_winograd",
        *(images, kernel),
        shape=(images.shape[0], *size, kernel.shape[3]),
        corner=(pads[0][0], pads[1][0]),
        dilation=dilation,
        repeated=repeated,
    )


def _fwd(images, kernel, *options):
    return winograd_conv(images, kernel, *options), (images, kernel)


def _bwd(pads, dilation, repeated, residuals, grad):
    images, kernel = residuals
    reach = (SIZE - 1) * dilation
    options = dict(dilation=dilation, repeated=repeated)
    images_grad = _call(
        "sextet_winograd_images_grad",
        *(grad, kernel),
        shape=images.shape,
        corner=(reach - pads[0][0], reach - pads[1][0]),
        **options,
    )
    kernel_grad = _call(
        "sextet_winograd_kernel_grad",
        *(images, grad),
        shape=kernel.shape,
        corner=(pads[0][0], pads[1][0]),
        **options,
    )
    return images_grad, kernel_grad


winograd_conv.defvjp(_fwd, _bwd)


# Traced once for all layers of a shape.
@functools.partial(
    jax.jit,
    static_argnames=("handler", "shape", "corner", "dilation", "repeated"),
)
def _call(handler, one, other, *, shape, corner, dilation, repeated):
    return dispatch.call(
        handler,
        jax.ShapeDtypeStruct(shape, jnp.float32),
        *(one, other),
        top=corner[0],
        left=corner[1],
        dilation=dilation,
        repeated=repeated,
    )
