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
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_models import functional, initializers, layers
from jax_models.model import ImageModel

BN_EPSILON = 1e-3
BN_MOMENTUM = 0.99
SQUEEZE = 0.25


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the paper's table 4; every kernel is 3x3.

    Attributes:
      kind: "conv" (convolution alone), "fused" (Fused-MBConv) or "mbconv"
        (MBConv with squeeze-excite).
      depth: number of blocks.
      stride: of the first block.
      expansion: width inside a block over the width of its input.
      channels: output width.
    """

    kind: str
    depth: int
    stride: int
    expansion: int
    channels: int


@dataclasses.dataclass(frozen=True)
class Config:
    """One row of the table of variants, and what may be overridden.

    Attributes:
      stages: the rows of the table, top to bottom.
      stem: width after the first convolution.
      features: width of the last map, which the head pools.
      last_stage: whether the last of `stages` is there.
      se_from_expanded: whether squeeze-excite takes its quarter from the
        width inside the block; the published models take it from the input.
      drop_path_rate: stochastic depth; the last block's is a little less, as
        published: block i of n has i / n of it.
      dropout: before the classifier.
      head_bias: see `layers.Head`.
      remat: see `ImageModel`; index 0 is the first stage after the stem.
    """

    stages: tuple[Stage, ...]
    stem: int = 24
    features: int = 1280
    last_stage: bool = True
    se_from_expanded: bool = False
    drop_path_rate: float = 0.2
    dropout: float = 0.2
    head_bias: float | Sequence[float] | None = 0.0
    remat: bool | tuple[int, ...] = False


VARIANTS = {
    "efficientnetv2_s": Config(
        (
            Stage("conv", 2, 1, 1, 24),
            Stage("fused", 4, 2, 4, 48),
            Stage("fused", 4, 2, 4, 64),
            Stage("mbconv", 6, 2, 4, 128),
            Stage("mbconv", 9, 1, 6, 160),
            Stage("mbconv", 15, 2, 6, 256),
        ),
    ),
    "efficientnetv2_m": Config(
        (
            Stage("conv", 3, 1, 1, 24),
            Stage("fused", 5, 2, 4, 48),
            Stage("fused", 5, 2, 4, 80),
            Stage("mbconv", 7, 2, 4, 160),
            Stage("mbconv", 14, 1, 6, 176),
            Stage("mbconv", 18, 2, 6, 304),
            Stage("mbconv", 5, 1, 6, 512),
        ),
        dropout=0.3,
    ),
    "efficientnetv2_l": Config(
        (
            Stage("conv", 4, 1, 1, 32),
            Stage("fused", 7, 2, 4, 64),
            Stage("fused", 7, 2, 4, 96),
            Stage("mbconv", 10, 2, 4, 192),
            Stage("mbconv", 19, 1, 6, 224),
            Stage("mbconv", 25, 2, 6, 384),
            Stage("mbconv", 7, 1, 6, 640),
        ),
        stem=32,
        dropout=0.4,
    ),
    "efficientnetv2_demo": Config(
        (
            Stage("conv", 1, 1, 1, 16),
            Stage("fused", 1, 2, 2, 24),
            Stage("mbconv", 1, 2, 4, 48),
            Stage("mbconv", 2, 2, 4, 64),
        ),
        stem=16,
        features=256,
        drop_path_rate=0.1,
        dropout=0.1,
    ),
}


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

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B 1 1 C"]:
        """Maps `[B, h, w, C]` to the factors `[B, 1, 1, C]`."""
        mean = functional.at_least_float32(x).mean((1, 2), keepdims=True)
        hidden = functional.silu(self.conv_reduce(mean))
        return jax.nn.sigmoid(self.conv_expand(hidden))


class ConvBlock(nnx.Module):
    """A 3x3 convolution, BatchNorm and SiLU, around a shortcut."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        drop_path_rate: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = _conv(inputs, outputs, stride, dtype, rngs)
        self.bn1 = norm(outputs, dtype, functional.silu)
        self.drop_path = shortcut(inputs, outputs, stride, drop_path_rate, rngs)

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
        outputs: int,
        stride: int,
        expansion: int,
        drop_path_rate: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        inside = inputs * expansion
        self.conv_exp = _conv(inputs, inside, stride, dtype, rngs)
        self.bn1 = norm(inside, dtype, functional.silu)
        self.conv_pwl = pointwise(inside, outputs, dtype, rngs)
        self.bn2 = norm(outputs, dtype)
        self.drop_path = shortcut(inputs, outputs, stride, drop_path_rate, rngs)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / stride, .., outputs]`."""
        branch = self.bn1(self.conv_exp(x))
        branch = self.bn2(self.conv_pwl(branch))
        return add(x, branch, self.drop_path)


class MBConv(nnx.Module):
    """Widen, 3x3 depthwise, squeeze-excite, narrow, around a shortcut."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        expansion: int,
        squeezed: int,
        drop_path_rate: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        inside = inputs * expansion
        self.conv_pw = pointwise(inputs, inside, dtype, rngs)
        self.bn1 = norm(inside, dtype, functional.silu)
        self.conv_dw = layers.Conv(
            inside,
            inside,
            3,
            stride,
            feature_group_count=inside,
            use_bias=False,
            init=initializers.FanOutNormal(depthwise=True),
            dtype=dtype,
            rngs=rngs,
        )
        self.bn2 = norm(inside, dtype, functional.silu)
        self.se = SqueezeExcite(inside, squeezed, dtype=dtype, rngs=rngs)
        self.conv_pwl = pointwise(inside, outputs, dtype, rngs)
        self.bn3 = norm(outputs, dtype)
        self.drop_path = shortcut(inputs, outputs, stride, drop_path_rate, rngs)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / stride, .., outputs]`."""
        branch = self.bn1(self.conv_pw(x))
        branch = self.bn2(self.conv_dw(branch))
        branch = branch * self.se(branch)
        branch = self.bn3(self.conv_pwl(branch))
        return add(x, branch, self.drop_path)


def _conv(
    inputs: int, outputs: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs
) -> layers.Conv:
    return layers.Conv(
        inputs,
        outputs,
        3,
        stride,
        use_bias=False,
        init=initializers.FanOutNormal(),
        dtype=dtype,
        rngs=rngs,
    )


def pointwise(
    inputs: int,
    outputs: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    use_bias: bool = False,
) -> layers.Linear:
    """A 1x1 convolution, as all networks of the family start it."""
    return layers.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        init=initializers.FanOutNormal(),
        torch_conv=True,
        dtype=dtype,
        rngs=rngs,
    )


def norm(
    channels: int,
    dtype: DTypeLike,
    activation: functional.Activation | None = None,
) -> layers.BatchNorm:
    """BatchNorm with the constants of the family."""
    return layers.BatchNorm(
        channels,
        epsilon=BN_EPSILON,
        momentum=BN_MOMENTUM,
        activation=activation,
        dtype=dtype,
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


class EfficientNetV2(ImageModel):
    """EfficientNetV2, by its `Config`.

    Maps images `[B, H, W, 3]` of any size to logits `[B, num_classes]`. The
    pyramid has the last map at each of the strides 2, 4, 8, 16 and 32, sizes
    rounded up; `features` goes on to the 1280 channels that the head pools.
    """

    TORCH_NAMES = ((r"^head\.fc\.", "classifier."),)
    BEHIND_PYRAMID = ("conv_head", "bn2", "head")
    PUBLISHED_MEAN = PUBLISHED_STD = (0.5, 0.5, 0.5)  # Of TensorFlow's family.

    def __init__(
        self,
        config: Config,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.stem_stride = 2
        self.stem_channels = config.stem
        self.minimum_size = 1
        self.remat = config.remat
        self.conv_stem = _conv(3, config.stem, 2, dtype, rngs)
        self.bn1 = norm(config.stem, dtype, functional.silu)
        rows = config.stages if config.last_stage else config.stages[:-1]
        total = sum(stage.depth for stage in rows)
        stages, last_of_stride = [], {}
        inputs, stride, index = config.stem, 2, 0
        for number, stage in enumerate(rows):
            blocks = []
            for position in range(stage.depth):
                step = stage.stride if position == 0 else 1
                blocks.append(
                    _block(
                        stage,
                        inputs,
                        step,
                        config.drop_path_rate * index / total,
                        config.se_from_expanded,
                        dtype,
                        rngs,
                    )
                )
                inputs, stride, index = stage.channels, stride * step, index + 1
            stages.append(nnx.List(blocks))
            last_of_stride[stride] = (number, stage.channels)
        self.blocks = nnx.List(stages)
        self.strides = tuple(last_of_stride)
        self.channels = tuple(width for _, width in last_of_stride.values())
        self.taps = tuple(number for number, _ in last_of_stride.values())
        self.conv_head = pointwise(inputs, config.features, dtype, rngs)
        self.bn2 = norm(config.features, dtype, functional.silu)
        self.head = layers.Head(
            config.features,
            num_classes,
            norm_epsilon=None,
            dropout=config.dropout,
            head_bias=config.head_bias,
            init=initializers.Uniform(fan_out=True),
            dtype=dtype,
            rngs=rngs,
        )

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Maps `[B, H, W, 3]` to `[B, H / 2, W / 2, stem]`, rounded up."""
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
        """Maps the pyramid's last map to 1280 channels."""
        return self.bn2(self.conv_head(last))


def _block(
    stage: Stage,
    inputs: int,
    stride: int,
    drop_path_rate: float,
    se_from_expanded: bool,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> ConvBlock | FusedMBConv | MBConv:
    shape = (inputs, stage.channels, stride)
    options = dict(dtype=dtype, rngs=rngs)
    match stage.kind:
        case "conv":
            return ConvBlock(*shape, drop_path_rate, **options)
        case "fused":
            return FusedMBConv(
                *shape, stage.expansion, drop_path_rate, **options
            )
        case "mbconv":
            width = inputs * (stage.expansion if se_from_expanded else 1)
            squeezed = math.floor(SQUEEZE * width + 0.5)
            return MBConv(
                *shape, stage.expansion, squeezed, drop_path_rate, **options
            )
        case _:
            raise ValueError(f"no kind of stage is called {stage.kind!r}")
