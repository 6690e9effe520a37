"""What MobileNetV2 and the EfficientNets share beside their blocks.

A stem, stages of inverted bottlenecks, one more 1x1 convolution, and the
classifier, in timm's names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from core.errors import UserError
from jax_models import dilation, initializers, layers
from jax_models.inverted_bottleneck import (
    InvertedBottleneck,
    SeparableBlock,
    Stage,
    Style,
    pointwise,
)
from jax_models.model import ImageModel


@dataclasses.dataclass(frozen=True)
class Config:
    """One network, and what may be overridden.

    Attributes:
      stages: of blocks, top to bottom.
      stem_width: after the first convolution.
      features: width of the last map, which the head pools.
      stem: "imagenet", or "small" for images of 32 or 64 px, without the
        network's first stride (MobileNetV2's first two).
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
    stem_width: int = 32
    features: int = 1280
    stem: str = "imagenet"
    output_stride: int = 32
    dilation: str = "torchvision"
    drop_path_rate: float = 0.2
    dropout: float = 0.2
    head_bias: float | Sequence[float] | None = 0.0
    remat: bool | tuple[int, ...] = False


class InvertedBottleneckNet(ImageModel):
    """Such a network, by its `Config`; subclasses give its `STYLE`.

    Maps images `[B, H, W, 3]` of any size to logits `[B, num_classes]`. The
    pyramid has the last map at each stride (2, 4, 8, 16 and 32, unless
    changed), sizes rounded up; `features` goes on to the channels that the
    head pools.

    Attributes:
      STYLE: of its blocks.
      SMALL_DROPS: how many strides the small stem leaves out.
    """

    TORCH_NAMES = ((r"^head\.fc\.", "classifier."),)
    BEHIND_PYRAMID = ("conv_head", "bn2", "head")

    STYLE: ClassVar[Style]
    SMALL_DROPS: ClassVar[int] = 1

    def __init__(
        self,
        config: Config,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        dilation.check(config.output_stride, config.dilation)
        style, options = self.STYLE, dict(dtype=dtype, rngs=rngs)
        stride, *strides = self._strides(config)
        self.stem_stride = stride
        self.stem_channels = config.stem_width
        self.minimum_size = 1
        self.remat = config.remat
        self.conv_stem = style.conv(3, config.stem_width, 3, stride, **options)
        self.bn1 = style.norm(config.stem_width, dtype)
        plan = dilation.plan(
            strides, stride, config.output_stride, config.dilation
        )
        rows = self.stages(config)
        total = sum(stage.depth for stage in rows)
        stages, last_of_stride = [], {}
        inputs, index = config.stem_width, 0
        for number, (stage, (step, first, others)) in enumerate(
            zip(rows, plan, strict=True)
        ):
            blocks = []
            for position in range(stage.depth):
                blocks.append(
                    self.make_block(
                        config,
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
            stride *= step
            last_of_stride[stride] = (number, inputs)
        self.blocks = nnx.List(stages)
        self.strides = tuple(last_of_stride)
        self.channels = tuple(width for _, width in last_of_stride.values())
        self.taps = tuple(number for number, _ in last_of_stride.values())
        self.conv_head = pointwise(inputs, config.features, **options)
        self.bn2 = style.norm(config.features, dtype)
        self.head = layers.Head(
            config.features,
            num_classes,
            norm_epsilon=None,
            dropout=config.dropout,
            head_bias=config.head_bias,
            init=initializers.Uniform(fan_out=True),
            **options,
        )

    def stages(self, config: Config) -> tuple[Stage, ...]:
        """The stages that a config asks for."""
        return config.stages

    def _strides(self, config: Config) -> list[int]:
        """Of the stem and the stages."""
        strides = [2, *(stage.stride for stage in self.stages(config))]
        if config.stem not in ("imagenet", "small"):
            raise UserError(
                f"{type(self).__name__} has no stem={config.stem!r}; choose "
                "imagenet or small"
            )
        if config.stem == "small":
            for _ in range(self.SMALL_DROPS):
                strides[strides.index(2)] = 1
        return strides

    def make_block(
        self,
        config: Config,
        inputs: int,
        stage: Stage,
        stride: int,
        spread: int,
        drop_path_rate: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> nnx.Module:
        """One block of a stage."""
        kind = SeparableBlock if stage.expansion == 1 else InvertedBottleneck
        return kind(
            *(inputs, stage, stride, spread, drop_path_rate, self.STYLE),
            dtype=dtype,
            rngs=rngs,
        )

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Maps `[B, H, W, 3]` to the stem's `[B, h, w, stem_channels]`, of
        half the size, rounded up; of the same size with the small stem."""
        return self.bn1(self.conv_stem(images))

    def encode(
        self, embedded: Float[Array, "B h w C"]
    ) -> list[Float[Array, "B _ _ _"]]:
        """Maps the stem's output to the last map at each stride."""
        x, maps = embedded, []
        for index, blocks in enumerate(self.blocks):
            for block in blocks:
                x = self.run_block(index, block, x)
            if index in self.taps:
                maps.append(x)
        return maps

    def refine(self, last: Float[Array, "B h w _"]) -> Float[Array, "B h w C"]:
        """Maps the pyramid's last map to those that the head pools: one more
        1x1 convolution."""
        return self.bn2(self.conv_head(last))
