"""EfficientNet-Lite: EfficientNet for small processors.

Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow
blog, 16 March 2020 (google/automl, efficientnetv1/lite): EfficientNet (Tan &
Le, arXiv 1905.11946) without squeeze-excite, with ReLU6 in place of SiLU, and
with stem and head of one width in all sizes. As published (timm's
`tf_efficientnet_lite*`): TensorFlow's "SAME" padding, BatchNorm epsilon 1e-3
and momentum .99, weights started as in EfficientNetV2. Stochastic depth that
keeps .8 of the last block; dropout of .2, .2 and .3 for Lite0, 1 and 2.

Pretrained weights expect (pixel - 127.5) / 127.5, not ImageNet's mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_models import dilation, functional, initializers, layers
from jax_models.efficientnetv2 import (
    EfficientNetV2,
    add,
    norm,
    pointwise,
    shortcut,
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


@dataclasses.dataclass(frozen=True)
class Config:
    """One size, and what may be overridden.

    Attributes:
      stages: of blocks, top to bottom.
      stem: width after the first convolution.
      features: width of the last map, which the head pools.
      output_stride: of the pyramid's last map, at most: 32, 16 or 8.
      dilation: how the stages that lose their stride for it are dilated; see
        `dilation.READINGS`.
      drop_path_rate: stochastic depth; the last block's is a little less, as
        published: block i of n has i / n of it.
      dropout: before the classifier.
      head_bias: see `layers.Head`.
      remat: see `ImageModel`; index 0 is the first stage after the stem.
    """

    stages: tuple[Stage, ...]
    stem: int = 32
    features: int = 1280
    output_stride: int = 32
    dilation: str = "torchvision"
    drop_path_rate: float = 0.2
    dropout: float = 0.2
    head_bias: float | Sequence[float] | None = 0.0
    remat: bool | tuple[int, ...] = False


def _published(depths: tuple[int, ...], widths: tuple[int, ...]) -> tuple:
    kernel_sizes = (3, 3, 5, 3, 5, 5, 3)
    strides = (1, 2, 2, 2, 1, 2, 1)
    expansions = (1, 6, 6, 6, 6, 6, 6)
    rows = zip(depths, kernel_sizes, strides, expansions, widths, strict=True)
    return tuple(Stage(*row) for row in rows)


VARIANTS = {
    "efficientnet_lite0": Config(
        _published((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320))
    ),
    "efficientnet_lite1": Config(
        _published((1, 3, 3, 4, 4, 5, 1), (16, 24, 40, 80, 112, 192, 320))
    ),
    "efficientnet_lite2": Config(
        _published((1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352)),
        dropout=0.3,
    ),
    "efficientnet_lite_demo": Config(
        (
            Stage(1, 3, 1, 1, 16),
            Stage(1, 3, 2, 2, 24),
            Stage(2, 5, 2, 3, 40),
            Stage(1, 3, 2, 4, 48),
            Stage(1, 5, 2, 4, 64),
        ),
        stem=16,
        features=256,
        drop_path_rate=0.1,
        dropout=0.1,
    ),
}


def _depthwise(
    channels: int,
    stage: Stage,
    stride: int,
    spread: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> layers.Conv:
    return layers.Conv(
        channels,
        channels,
        stage.kernel_size,
        stride,
        kernel_dilation=spread,
        feature_group_count=channels,
        use_bias=False,
        init=initializers.FanOutNormal(depthwise=True),
        dtype=dtype,
        rngs=rngs,
    )


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
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        outputs = stage.channels
        self.conv_dw = _depthwise(inputs, stage, stride, spread, dtype, rngs)
        self.bn1 = norm(inputs, dtype, functional.relu6)
        self.conv_pw = pointwise(inputs, outputs, dtype, rngs)
        self.bn2 = norm(outputs, dtype)
        self.drop_path = shortcut(inputs, outputs, stride, drop_path_rate, rngs)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / stride, .., outputs]`."""
        branch = self.bn1(self.conv_dw(x))
        branch = self.bn2(self.conv_pw(branch))
        return add(x, branch, self.drop_path)


class InvertedBottleneck(nnx.Module):
    """Widen, depthwise convolution, narrow, around a shortcut.

    Sandler et al., "MobileNetV2", arXiv 1801.04381.
    """

    def __init__(
        self,
        inputs: int,
        stage: Stage,
        stride: int,
        spread: int,
        drop_path_rate: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        inside, outputs = inputs * stage.expansion, stage.channels
        self.conv_pw = pointwise(inputs, inside, dtype, rngs)
        self.bn1 = norm(inside, dtype, functional.relu6)
        self.conv_dw = _depthwise(inside, stage, stride, spread, dtype, rngs)
        self.bn2 = norm(inside, dtype, functional.relu6)
        self.conv_pwl = pointwise(inside, outputs, dtype, rngs)
        self.bn3 = norm(outputs, dtype)
        self.drop_path = shortcut(inputs, outputs, stride, drop_path_rate, rngs)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / stride, .., outputs]`."""
        branch = self.bn1(self.conv_pw(x))
        branch = self.bn2(self.conv_dw(branch))
        branch = self.bn3(self.conv_pwl(branch))
        return add(x, branch, self.drop_path)


class EfficientNetLite(EfficientNetV2):
    """EfficientNet-Lite, by its `Config`.

    Stem, stages, and what follows them are arranged as in EfficientNetV2.
    """

    def __init__(
        self,
        config: Config,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        dilation.check(config.output_stride, config.dilation)
        self.stem_stride = 2
        self.stem_channels = config.stem
        self.minimum_size = 1
        self.remat = config.remat
        options = dict(dtype=dtype, rngs=rngs)
        self.conv_stem = layers.Conv(
            3,
            config.stem,
            3,
            2,
            use_bias=False,
            init=initializers.FanOutNormal(),
            **options,
        )
        self.bn1 = norm(config.stem, dtype, functional.relu6)
        plan = dilation.plan(
            [stage.stride for stage in config.stages],
            self.stem_stride,
            config.output_stride,
            config.dilation,
        )
        total = sum(stage.depth for stage in config.stages)
        stages, last_of_stride = [], {}
        inputs, at, index = config.stem, self.stem_stride, 0
        for number, (stage, (step, first, others)) in enumerate(
            zip(config.stages, plan, strict=True)
        ):
            block_class = (
                SeparableBlock if stage.expansion == 1 else InvertedBottleneck
            )
            blocks = []
            for position in range(stage.depth):
                blocks.append(
                    block_class(
                        inputs,
                        stage,
                        step if position == 0 else 1,
                        first if position == 0 else others,
                        config.drop_path_rate * index / total,
                        **options,
                    )
                )
                inputs, index = stage.channels, index + 1
            stages.append(nnx.List(blocks))
            at *= step
            last_of_stride[at] = (number, inputs)
        self.blocks = nnx.List(stages)
        self.strides = tuple(last_of_stride)
        self.channels = tuple(width for _, width in last_of_stride.values())
        self.taps = tuple(number for number, _ in last_of_stride.values())
        self.conv_head = pointwise(inputs, config.features, dtype, rngs)
        self.bn2 = norm(config.features, dtype, functional.relu6)
        self.head = layers.Head(
            config.features,
            num_classes,
            norm_epsilon=None,
            dropout=config.dropout,
            head_bias=config.head_bias,
            init=initializers.Uniform(fan_out=True),
            **options,
        )
