"""What networks share that normalise before they convolve.

DenseNet and wide ResNet: BatchNorm with ReLU, epsilon 1e-5 and momentum .9, in
front of convolutions without a bias, which start with He's variance 2 / fan_in.
"""

from __future__ import annotations

from flax import nnx
from jax.typing import DTypeLike

from jax_models import functional, initializers, layers


def conv(
    inputs: int,
    outputs: int,
    kernel_size: int,
    stride: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> layers.Conv:
    """Returns a convolution with padding on all sides."""
    return layers.Conv(
        inputs,
        outputs,
        kernel_size,
        stride,
        padding=kernel_size // 2,
        use_bias=False,
        init=initializers.HE_UNIFORM,
        dtype=dtype,
        rngs=rngs,
    )


def norm(channels: int, dtype: DTypeLike) -> layers.BatchNorm:
    """Returns BatchNorm with ReLU behind it."""
    return layers.BatchNorm(
        channels,
        epsilon=1e-5,
        momentum=0.9,
        activation=functional.relu,
        dtype=dtype,
    )
