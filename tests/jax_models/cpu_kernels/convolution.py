"""A convolution and its gradients, written out in NumPy."""

import jax
import numpy as np


def value_and_grads(images, kernel, back, stride=1, padding="SAME", dilation=1):
    """Returns the convolution and what `back` of it gives both arguments.

    Args:
      images: `[B, H, W, C]`.
      kernel: `[k, k, C, D]`.
      back: of the value `[B, h, w, D]`, the gradient of a loss for it.
      stride: of both axes, as is `dilation`.
      padding: "SAME", "VALID" or a pair for each axis.
    """
    images, kernel = np.float64(images), np.float64(kernel)
    size = dilation * (kernel.shape[0] - 1) + 1
    pads = (
        jax.lax.padtype_to_pads(
            images.shape[1:3], (size, size), (stride, stride), padding
        )
        if isinstance(padding, str)
        else padding
    )
    padded = np.pad(images, ((0, 0), *pads, (0, 0)))
    high, wide = ((length - size) // stride + 1 for length in padded.shape[1:3])

    def seen(row, column):
        """The places that one number of the kernel meets."""
        top, left = row * dilation, column * dilation
        return (
            slice(None),
            slice(top, top + stride * (high - 1) + 1, stride),
            slice(left, left + stride * (wide - 1) + 1, stride),
        )

    taps = list(np.ndindex(kernel.shape[:2]))
    value = sum(padded[seen(*tap)] @ kernel[tap] for tap in taps)
    gradient = np.float64(back(value))
    to_images, to_kernel = np.zeros_like(padded), np.zeros_like(kernel)
    for tap in taps:
        to_images[seen(*tap)] += gradient @ kernel[tap].T
        to_kernel[tap] = np.einsum(
            "bhwc,bhwd->cd", padded[seen(*tap)], gradient
        )
    (top, _), (left, _) = pads
    rows, columns = images.shape[1:3]
    to_images = to_images[:, top : top + rows, left : left + columns]
    return value, to_images, to_kernel
