"""The blocks of MobileNetV2 and the EfficientNets.

Sandler et al., "MobileNetV2", arXiv 1801.04381: widen by a 1x1 convolution,
convolve each channel alone, narrow by a 1x1 convolution. Modules carry timm's
names. `inverted_bottleneck_net.py` makes networks of them.
"""

from __future__ import annotations

import dataclasses
import math

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_models import functional, initializers, layers


@dataclasses.dataclass(frozen=True)
class Style:
    """What all blocks of a network have in common.

    Attributes:
      activation: behind every BatchNorm but a block's last.
      padding: "SAME" (TensorFlow's), or "symmetric" (PyTorch's).
      epsilon: of BatchNorm.
      momentum: of BatchNorm.
      squeeze: width inside squeeze-excite over the width of the block's
        input; 0 for blocks without.
    """

    activation: functional.Activation
    padding: str = "SAME"
    epsilon: float = 1e-3
    momentum: float = 0.99
    squeeze: float = 0.0

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        stride: int,
        spread: int = 1,
        *,
        depthwise: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> layers.Conv:
        """A convolution; `spread` is its dilation."""
        symmetric = kernel_size // 2 * spread
        return layers.Conv(
            inputs,
            outputs,
            kernel_size,
            stride,
            padding=symmetric if self.padding == "symmetric" else "SAME",
            kernel_dilation=spread,
            feature_group_count=inputs if depthwise else 1,
            use_bias=False,
            init=initializers.FanOutNormal(depthwise=depthwise),
            dtype=dtype,
            rngs=rngs,
        )

    def norm(
        self, channels: int, dtype: DTypeLike, activate: bool = True
    ) -> layers.BatchNorm:
        """BatchNorm, with the activation or without."""
        return layers.BatchNorm(
            channels,
            epsilon=self.epsilon,
            momentum=self.momentum,
            activation=self.activation if activate else None,
            dtype=dtype,
        )


@dataclasses.dataclass(frozen=True)
class Stage:
    """Blocks of one width.

    Attributes:
      depth: number of blocks.
      kernel_size: of the depthwise convolutions.
      stride: of the first block.
      expansion: width inside a block over the width of its input; blocks
        with 1 have no convolution that widens.
      channels: output width.
    """

    depth: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


def pointwise(
    inputs: int,
    outputs: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    use_bias: bool = False,
) -> layers.Linear:
    """A 1x1 convolution."""
    return layers.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        init=initializers.FanOutNormal(),
        torch_conv=True,
        dtype=dtype,
        rngs=rngs,
    )


def shortcut(
    inputs: int,
    outputs: int,
    stride: int,
    drop_path_rate: float,
    rngs: nnx.Rngs,
) -> layers.DropPath | None:
    """A branch's stochastic depth; None where there is no shortcut."""
    if stride != 1 or inputs != outputs:
        return None
    return layers.DropPath(drop_path_rate, rngs=rngs)


def add(
    x: jax.Array, branch: jax.Array, drop_path: layers.DropPath | None
) -> jax.Array:
    """Adds a branch to its shortcut, where it has one."""
    return branch if drop_path is None else x + drop_path(branch)


class SqueezeExcite(nnx.Module):
    """Scales each channel by what the mean of all of them says.

    Hu et al., "Squeeze-and-Excitation Networks", arXiv 1709.01507.
    """

    def __init__(
        self,
        channels: int,
        squeezed: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv_reduce = pointwise(
            channels, squeezed, dtype, rngs, use_bias=True
        )
        self.conv_expand = pointwise(
            squeezed, channels, dtype, rngs, use_bias=True
        )

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Maps `[B, h, w, C]` to the same, scaled."""
        mean = functional.at_least_float32(x).mean((1, 2), keepdims=True)
        hidden = functional.silu(self.conv_reduce(mean))
        return x * jax.nn.sigmoid(self.conv_expand(hidden))


def _squeeze_excite(
    channels: int, inputs: int, style: Style, **options
) -> SqueezeExcite | None:
    """Sized from `inputs`; None where the network has none."""
    squeezed = math.floor(style.squeeze * inputs + 0.5)
    return SqueezeExcite(channels, squeezed, **options) if squeezed else None


class SeparableBlock(nnx.Module):
    """Depthwise convolution, then narrow, around a shortcut.

    What the inverted bottleneck is without its first convolution.
    """

    def __init__(
        self,
        inputs: int,
        stage: Stage,
        stride: int,
        spread: int,
        drop_path_rate: float,
        style: Style,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        outputs = stage.channels
        shape = inputs, inputs, stage.kernel_size, stride, spread
        self.conv_dw = style.conv(*shape, depthwise=True, **options)
        self.bn1 = style.norm(inputs, dtype)
        self.se = _squeeze_excite(inputs, inputs, style, **options)
        self.conv_pw = pointwise(inputs, outputs, **options)
        self.bn2 = style.norm(outputs, dtype, activate=False)
        self.drop_path = shortcut(inputs, outputs, stride, drop_path_rate, rngs)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / stride, .., outputs]`."""
        branch = self.bn1(self.conv_dw(x))
        branch = branch if self.se is None else self.se(branch)
        branch = self.bn2(self.conv_pw(branch))
        return add(x, branch, self.drop_path)


class InvertedBottleneck(nnx.Module):
    """Widen, depthwise convolution, narrow, around a shortcut.

    Args:
      inputs: channels of the input.
      stage: that the block is in.
      stride: of the depthwise convolution.
      spread: its dilation.
      drop_path_rate: of the branch.
      style: of the network.
      squeeze_from: the width that squeeze-excite takes its share of;
        `inputs` when left out.
    """

    def __init__(
        self,
        inputs: int,
        stage: Stage,
        stride: int,
        spread: int,
        drop_path_rate: float,
        style: Style,
        *,
        squeeze_from: int | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        inside, outputs = inputs * stage.expansion, stage.channels
        shape = inside, inside, stage.kernel_size, stride, spread
        self.conv_pw = pointwise(inputs, inside, **options)
        self.bn1 = style.norm(inside, dtype)
        self.conv_dw = style.conv(*shape, depthwise=True, **options)
        self.bn2 = style.norm(inside, dtype)
        self.se = _squeeze_excite(
            inside, squeeze_from or inputs, style, **options
        )
        self.conv_pwl = pointwise(inside, outputs, **options)
        self.bn3 = style.norm(outputs, dtype, activate=False)
        self.drop_path = shortcut(inputs, outputs, stride, drop_path_rate, rngs)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / stride, .., outputs]`."""
        branch = self.bn1(self.conv_pw(x))
        branch = self.bn2(self.conv_dw(branch))
        branch = branch if self.se is None else self.se(branch)
        branch = self.bn3(self.conv_pwl(branch))
        return add(x, branch, self.drop_path)
