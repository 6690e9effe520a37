"""ResNet, as torchvision has it.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv
1512.03385, table 1. As in torchvision, the bottleneck has its stride in the
3x3 convolution (the "v1.5" of many papers), no convolution has a bias, and
filters start as in He et al., "Delving Deep into Rectifiers", arXiv
1502.01852: normal with variance 2 / fan_out. BatchNorm has epsilon 1e-5 and
momentum .9.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from core.errors import UserError
from jax_models import dilation, functional, initializers, layers
from jax_models.model import ImageModel

BN_EPSILON = 1e-5
BN_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Config:
    """One row of the paper's table 1, and what may be overridden.

    Attributes:
      depths: blocks in each stage.
      block: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1).
      width: of the first stage, inside its blocks; doubled by every further
        stage.
      stem: "imagenet" (7x7 with stride 2, then max-pooling with stride 2) or
        "small" (3x3 without stride or pooling), for images of 32 or 64 px
        (Chen et al., "SimCLR", arXiv 2002.05709, appendix B.9).
      output_stride: of the last map, at most: 32, 16 or 8.
      dilation: how the stages that lose their stride for it are dilated; see
        `dilation.READINGS`.
      drop_path_rate: stochastic depth of the last block.
      dropout: before the classifier.
      head_bias: see `layers.Head`.
      remat: see `ImageModel`.
    """

    depths: tuple[int, ...]
    block: str
    width: int = 64
    stem: str = "imagenet"
    output_stride: int = 32
    dilation: str = "torchvision"
    drop_path_rate: float = 0.0
    dropout: float = 0.0
    head_bias: float | Sequence[float] | None = 0.0
    remat: bool | tuple[int, ...] = False


VARIANTS = {
    "resnet18": Config((2, 2, 2, 2), "basic"),
    "resnet34": Config((3, 4, 6, 3), "basic"),
    "resnet50": Config((3, 4, 6, 3), "bottleneck"),
    "resnet_demo": Config((1, 1, 2, 1), "basic", width=16),
}


def _conv(
    inputs: int,
    outputs: int,
    kernel_size: int,
    stride: int,
    spread: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> layers.Conv:
    """Padded so that the map keeps its size, but for the stride."""
    return layers.Conv(
        inputs,
        outputs,
        kernel_size,
        stride,
        padding=kernel_size // 2 * spread,
        kernel_dilation=spread,
        use_bias=False,
        init=initializers.FanOutNormal(),
        dtype=dtype,
        rngs=rngs,
    )


def _norm(
    channels: int,
    dtype: DTypeLike,
    activation: functional.Activation | None = None,
) -> layers.BatchNorm:
    return layers.BatchNorm(
        channels,
        epsilon=BN_EPSILON,
        momentum=BN_MOMENTUM,
        activation=activation,
        dtype=dtype,
    )


class Downsample(nnx.Module):
    """The shortcut where width or size change: 1x1 convolution, BatchNorm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = _conv(inputs, outputs, 1, stride, 1, dtype, rngs)
        self.norm = _norm(outputs, dtype)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / stride, .., outputs]`."""
        return self.norm(self.conv(x))


def _downsample(
    inputs: int, outputs: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs
) -> Downsample | None:
    if stride == 1 and inputs == outputs:
        return None
    return Downsample(inputs, outputs, stride, dtype=dtype, rngs=rngs)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions around a shortcut.

    Args:
      inputs: channels of the input.
      width: channels inside and of the output.
      stride: of the first convolution.
      dilations: of both convolutions.
    """

    EXPANSION = 1

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        dilations: tuple[int, int],
        drop_path_rate: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        first, second = dilations
        self.conv1 = _conv(inputs, width, 3, stride, first, dtype, rngs)
        self.bn1 = _norm(width, dtype, functional.relu)
        self.conv2 = _conv(width, width, 3, 1, second, dtype, rngs)
        self.bn2 = _norm(width, dtype)
        self.downsample = _downsample(inputs, width, stride, dtype, rngs)
        self.drop_path = layers.DropPath(drop_path_rate, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / stride, .., width]`."""
        branch = self.bn1(self.conv1(x))
        branch = self.bn2(self.conv2(branch))
        shortcut = x if self.downsample is None else self.downsample(x)
        return functional.relu(shortcut + self.drop_path(branch))


class Bottleneck(nnx.Module):
    """Narrow by a 1x1, 3x3, widen by a 1x1 convolution, around a shortcut.

    Args:
      inputs: channels of the input.
      width: channels inside; the output has four times as many.
      stride: of the 3x3 convolution.
      dilations: of the 3x3 convolution, twice.
    """

    EXPANSION = 4

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        dilations: tuple[int, int],
        drop_path_rate: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        outputs = self.EXPANSION * width
        self.conv1 = _conv(inputs, width, 1, 1, 1, dtype, rngs)
        self.bn1 = _norm(width, dtype, functional.relu)
        self.conv2 = _conv(width, width, 3, stride, dilations[0], dtype, rngs)
        self.bn2 = _norm(width, dtype, functional.relu)
        self.conv3 = _conv(width, outputs, 1, 1, 1, dtype, rngs)
        self.bn3 = _norm(outputs, dtype)
        self.downsample = _downsample(inputs, outputs, stride, dtype, rngs)
        self.drop_path = layers.DropPath(drop_path_rate, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / stride, .., 4 * width]`."""
        branch = self.bn1(self.conv1(x))
        branch = self.bn2(self.conv2(branch))
        branch = self.bn3(self.conv3(branch))
        shortcut = x if self.downsample is None else self.downsample(x)
        return functional.relu(shortcut + self.drop_path(branch))


# Kernel size, stride, and whether max-pooling follows.
STEMS = {"imagenet": (7, 2, True), "small": (3, 1, False)}
BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class Stem(nnx.Module):
    """The first convolution, BatchNorm and ReLU."""

    def __init__(
        self,
        width: int,
        kernel_size: int,
        stride: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = _conv(3, width, kernel_size, stride, 1, dtype, rngs)
        self.norm = _norm(width, dtype, functional.relu)

    def __call__(
        self, x: Float[Array, "B H W 3"]
    ) -> Float[Array, "B h w width"]:
        """Maps `[B, H, W, 3]` to `[B, H / stride, .., width]`, rounded up."""
        return self.norm(self.conv(x))


class ResNet(ImageModel):
    """ResNet, by its `Config`.

    Maps images `[B, H, W, 3]` of any size to logits `[B, num_classes]`. The
    pyramid has the last map at each stride, sizes rounded up: the stem's at 2
    (before the pooling), then those of the stages at 4, 8, 16 and 32.
    """

    TORCH_NAMES = (
        (r"^stem\.conv\.", "conv1."),
        (r"^stem\.norm\.", "bn1."),
        (r"^stages\.0\.", "layer1."),
        (r"^stages\.1\.", "layer2."),
        (r"^stages\.2\.", "layer3."),
        (r"^stages\.3\.", "layer4."),
        (r"\.downsample\.conv\.", ".downsample.0."),
        (r"\.downsample\.norm\.", ".downsample.1."),
        (r"^head\.fc\.", "fc."),
    )

    def __init__(
        self,
        config: Config,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        dilation.check(config.output_stride, config.dilation)
        if config.block not in BLOCKS or config.stem not in STEMS:
            raise UserError(
                f"no ResNet has block={config.block!r} and stem="
                f"{config.stem!r}; blocks are {', '.join(BLOCKS)}, stems "
                f"{', '.join(STEMS)}"
            )
        kernel_size, stride, self.pool = STEMS[config.stem]
        self.stem_stride = stride
        self.stem_channels = config.width
        self.minimum_size = 1
        self.remat = config.remat
        options = dict(dtype=dtype, rngs=rngs)
        self.stem = Stem(config.width, kernel_size, stride, **options)
        block_class = BLOCKS[config.block]
        inputs = config.width
        at = 2 * stride if self.pool else stride
        last_of_stride = {stride: (0, inputs)}  # Number of the map, width.
        rates = layers.drop_path_rates(config.drop_path_rate, config.depths)
        plan = dilation.plan(
            (1, *[2] * (len(config.depths) - 1)),
            at,
            config.output_stride,
            config.dilation,
        )
        stages = []
        for number, (step, first, others) in enumerate(plan):
            width = config.width * 2**number
            blocks = []
            for position, rate in enumerate(rates[number]):
                spread = first if position == 0 else others
                # A basic block's second filter lies behind the stride that
                # was given up. mmseg never spreads it.
                second = 1 if config.dilation == "mmseg" else others
                blocks.append(
                    block_class(
                        inputs,
                        width,
                        step if position == 0 else 1,
                        (spread, second),
                        rate,
                        **options,
                    )
                )
                inputs = width * block_class.EXPANSION
            stages.append(nnx.List(blocks))
            at *= step
            last_of_stride[at] = (number + 1, inputs)
        self.stages = nnx.List(stages)
        self.strides = tuple(last_of_stride)
        self.channels = tuple(width for _, width in last_of_stride.values())
        self.taps = tuple(number for number, _ in last_of_stride.values())
        self.head = layers.Head(
            inputs,
            num_classes,
            norm_epsilon=None,
            dropout=config.dropout,
            head_bias=config.head_bias,
            init=initializers.Uniform(),
            **options,
        )

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Maps `[B, H, W, 3]` to `[B, H / 2, W / 2, width]`, rounded up;
        with the small stem to `[B, H, W, width]`."""
        return self.stem(images)

    def encode(
        self, embedded: Float[Array, "B h w C"]
    ) -> list[Float[Array, "B _ _ _"]]:
        """Maps the stem's output to the last map at each stride."""
        maps = [embedded]
        x = functional.max_pool(embedded) if self.pool else embedded
        for index, blocks in enumerate(self.stages):
            for block in blocks:
                x = self.run_block(index, block, x)
            maps.append(x)
        return [maps[number] for number in self.taps]
