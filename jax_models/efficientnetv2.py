"""EfficientNetV2: fused inverted bottlenecks early, squeeze-excite late.

Tan & Le, "EfficientNetV2: Smaller Models and Faster Training", ICML 2021,
arXiv 2104.00298; the S network in its table 4, M and L from the authors'
code. As published (timm's `tf_efficientnetv2_*`): TensorFlow's "SAME"
padding, BatchNorm epsilon 1e-3 and momentum .99, squeeze-excite sized from
the block's input. Initialisation as the authors': normal with variance
2 / fan_out for convolutions, uniform in +-1/sqrt(classes) for the classifier.
Dropout of .2, .3 and .4 for S, M and L and stochastic depth that keeps .8 of
the last block, as in the authors' configurations (google/automl).
"""

from __future__ import annotations

import dataclasses

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_models import (
    functional,
    inverted_bottleneck,
    inverted_bottleneck_net,
)
from jax_models.inverted_bottleneck import (
    InvertedBottleneck,
    Style,
    add,
    pointwise,
    shortcut,
)
from jax_models.inverted_bottleneck_net import InvertedBottleneckNet


@dataclasses.dataclass(frozen=True)
class Stage(inverted_bottleneck.Stage):
    """One row of the paper's table 4.

    Attributes:
      kind: "conv" (convolution alone), "fused" (Fused-MBConv) or "mbconv"
        (MBConv with squeeze-excite).
    """

    kind: str = "mbconv"


@dataclasses.dataclass(frozen=True)
class Config(inverted_bottleneck_net.Config):
    """One row of the table of variants, and what may be overridden.

    Attributes:
      last_stage: whether the last of `stages` is there.
      se_from_expanded: whether squeeze-excite takes its quarter from the
        width inside the block; the published models take it from the input.
    """

    stem_width: int = 24
    last_stage: bool = True
    se_from_expanded: bool = False


def _stage(
    kind: str, depth: int, stride: int, expansion: int, channels: int
) -> Stage:
    """Every kernel is 3x3."""
    return Stage(depth, 3, stride, expansion, channels, kind)


VARIANTS = {
    "efficientnetv2_s": Config(
        (
            _stage("conv", 2, 1, 1, 24),
            _stage("fused", 4, 2, 4, 48),
            _stage("fused", 4, 2, 4, 64),
            _stage("mbconv", 6, 2, 4, 128),
            _stage("mbconv", 9, 1, 6, 160),
            _stage("mbconv", 15, 2, 6, 256),
        ),
    ),
    "efficientnetv2_m": Config(
        (
            _stage("conv", 3, 1, 1, 24),
            _stage("fused", 5, 2, 4, 48),
            _stage("fused", 5, 2, 4, 80),
            _stage("mbconv", 7, 2, 4, 160),
            _stage("mbconv", 14, 1, 6, 176),
            _stage("mbconv", 18, 2, 6, 304),
            _stage("mbconv", 5, 1, 6, 512),
        ),
        dropout=0.3,
    ),
    "efficientnetv2_l": Config(
        (
            _stage("conv", 4, 1, 1, 32),
            _stage("fused", 7, 2, 4, 64),
            _stage("fused", 7, 2, 4, 96),
            _stage("mbconv", 10, 2, 4, 192),
            _stage("mbconv", 19, 1, 6, 224),
            _stage("mbconv", 25, 2, 6, 384),
            _stage("mbconv", 7, 1, 6, 640),
        ),
        stem_width=32,
        dropout=0.4,
    ),
    "efficientnetv2_demo": Config(
        (
            _stage("conv", 1, 1, 1, 16),
            _stage("fused", 1, 2, 2, 24),
            _stage("mbconv", 1, 2, 4, 48),
            _stage("mbconv", 2, 2, 4, 64),
        ),
        stem_width=16,
        features=256,
        drop_path_rate=0.1,
        dropout=0.1,
    ),
}


class ConvBlock(nnx.Module):
    """A 3x3 convolution, BatchNorm and SiLU, around a shortcut."""

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
        shape = inputs, stage.channels, stage.kernel_size, stride, spread
        self.conv = style.conv(*shape, dtype=dtype, rngs=rngs)
        self.bn1 = style.norm(stage.channels, dtype)
        self.drop_path = shortcut(
            inputs, stage.channels, stride, drop_path_rate, rngs
        )

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / stride, .., outputs]`."""
        return add(x, self.bn1(self.conv(x)), self.drop_path)


class FusedMBConv(nnx.Module):
    """Widen by a 3x3 convolution, narrow by a 1x1, around a shortcut."""

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
        inside, outputs = inputs * stage.expansion, stage.channels
        shape = inputs, inside, stage.kernel_size, stride, spread
        self.conv_exp = style.conv(*shape, dtype=dtype, rngs=rngs)
        self.bn1 = style.norm(inside, dtype)
        self.conv_pwl = pointwise(inside, outputs, dtype, rngs)
        self.bn2 = style.norm(outputs, dtype, activate=False)
        self.drop_path = shortcut(inputs, outputs, stride, drop_path_rate, rngs)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / stride, .., outputs]`."""
        branch = self.bn1(self.conv_exp(x))
        branch = self.bn2(self.conv_pwl(branch))
        return add(x, branch, self.drop_path)


class EfficientNetV2(InvertedBottleneckNet):
    """EfficientNetV2, by its `Config`."""

    PUBLISHED_MEAN = PUBLISHED_STD = (0.5, 0.5, 0.5)  # Of TensorFlow's family.
    STYLE = Style(functional.silu, squeeze=0.25)

    def stages(self, config: Config) -> tuple[Stage, ...]:
        """The rows of the table that a config asks for."""
        return config.stages if config.last_stage else config.stages[:-1]

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
        """One block, of its stage's kind."""
        shape = inputs, stage, stride, spread, drop_path_rate, self.STYLE
        options = dict(dtype=dtype, rngs=rngs)
        match stage.kind:
            case "conv":
                return ConvBlock(*shape, **options)
            case "fused":
                return FusedMBConv(*shape, **options)
            case "mbconv":
                width = stage.expansion if config.se_from_expanded else 1
                return InvertedBottleneck(
                    *shape, squeeze_from=inputs * width, **options
                )
            case _:
                raise ValueError(f"no kind of stage is called {stage.kind!r}")
