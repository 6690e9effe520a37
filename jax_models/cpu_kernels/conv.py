"""Convolutions, as nnx.Conv calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

from jax_models import target
from jax_models.cpu_kernels.depthwise import depthwise_conv


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
    regular = (
        height == width
        and len(set(window_strides)) == 1
        and all(step == 1 for step in (*lhs_dilation, *rhs_dilation))
    )
    if regular and group == 1 and feature_group_count == outputs > 1:
        return depthwise_conv(images, kernel, stride, pads)
    if (
        regular
        and feature_group_count == 1
        and stride == height
        and pads == ((0, 0), (0, 0))
        and (target.platform() != "tpu" or group == 3)
    ):
        return _conv_by_patches(images, kernel)
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
