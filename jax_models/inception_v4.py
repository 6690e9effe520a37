"""Inception-v4.

Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual
Connections on Learning", AAAI 2017, arXiv 1602.07261, figures 3 to 9, as in
timm's `inception_v4` (TensorFlow's slim): BatchNorm epsilon 1e-3, momentum
.9, and ReLU behind every convolution, none of which has a bias; means at a
border leave out what lies beyond it. Weights start with He's variance
2 / fan_in (slim). Dropout of .2 before the classifier. Published at 299 px;
images have at least 75.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_models import functional, initializers, layers
from jax_models.model import ImageModel

BN_EPSILON = 1e-3
BN_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Config:
    """The network, and what may be overridden.

    Attributes:
      dropout: before the classifier.
      head_bias: see `layers.Head`.
      remat: see `ImageModel`; index i is the (i + 1)-th block.
    """

    dropout: float = 0.2
    head_bias: float | Sequence[float] | None = 0.0
    remat: bool | tuple[int, ...] = False


VARIANTS = {"inception_v4": Config()}

# A layer: "max" or "mean" of 3x3 cells (with stride 2, without), or a
# convolution's width, height and width of its filters, stride and padding.
Layer = str | tuple


def _c(
    width: int, rows: int, columns: int, stride: int = 1, padding: str = "SAME"
) -> Layer:
    return width, (rows, columns), stride, padding


def _half(width: int) -> Layer:
    return _c(width, 3, 3, 2, "VALID")


# Branches side by side, by timm's names. Their outputs are joined.
MIXED_3A = {"maxpool": ("max",), "conv": (_half(96),)}
MIXED_4A = {
    "branch0": (_c(64, 1, 1), _c(96, 3, 3, 1, "VALID")),
    "branch1": (
        _c(64, 1, 1),
        _c(64, 1, 7),
        _c(64, 7, 1),
        _c(96, 3, 3, 1, "VALID"),
    ),
}
MIXED_5A = {"conv": (_half(192),), "maxpool": ("max",)}
INCEPTION_A = {
    "branch0": (_c(96, 1, 1),),
    "branch1": (_c(64, 1, 1), _c(96, 3, 3)),
    "branch2": (_c(64, 1, 1), _c(96, 3, 3), _c(96, 3, 3)),
    "branch3": ("mean", _c(96, 1, 1)),
}
REDUCTION_A = {
    "branch0": (_half(384),),
    "branch1": (_c(192, 1, 1), _c(224, 3, 3), _half(256)),
    "branch2": ("max",),
}
INCEPTION_B = {
    "branch0": (_c(384, 1, 1),),
    "branch1": (_c(192, 1, 1), _c(224, 1, 7), _c(256, 7, 1)),
    "branch2": (
        _c(192, 1, 1),
        _c(192, 7, 1),
        _c(224, 1, 7),
        _c(224, 7, 1),
        _c(256, 1, 7),
    ),
    "branch3": ("mean", _c(128, 1, 1)),
}
REDUCTION_B = {
    "branch0": (_c(192, 1, 1), _half(192)),
    "branch1": (_c(256, 1, 1), _c(256, 1, 7), _c(320, 7, 1), _half(320)),
    "branch2": ("max",),
}


class Convolution(nnx.Module):
    """A convolution, BatchNorm and ReLU."""

    def __init__(
        self,
        inputs: int,
        width: int,
        kernel_size: tuple[int, int],
        stride: int = 1,
        padding: str = "SAME",
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = layers.Conv(
            inputs,
            width,
            kernel_size,
            stride,
            padding=padding,
            use_bias=False,
            init=initializers.HE_UNIFORM,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = layers.BatchNorm(
            width,
            epsilon=BN_EPSILON,
            momentum=BN_MOMENTUM,
            activation=functional.relu,
            dtype=dtype,
        )

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ _"]:
        """Maps `[B, h, w, inputs]` to `[B, .., .., width]`."""
        return self.bn(self.conv(x))


class Pool(nnx.Module):
    """The largest of 3x3 cells with stride 2, or their mean."""

    def __init__(self, kind: str):
        self.kind = kind

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ C"]:
        """Maps `[B, h, w, C]` to about half the size ("max"), or the same."""
        if self.kind == "max":
            return nnx.max_pool(x, (3, 3), (2, 2), "VALID")
        return nnx.avg_pool(
            x, (3, 3), padding="SAME", count_include_pad=False
        ).astype(x.dtype)


class Mixed(nnx.Module):
    """Branches of one of the tables above, joined."""

    def __init__(
        self,
        inputs: int,
        table: Mapping[str, Sequence[Layer]],
        **options,
    ):
        self.names = tuple(table)
        self.channels = 0
        for name, specs in table.items():
            width, branch = inputs, []
            for spec in specs:
                if isinstance(spec, str):
                    branch.append(Pool(spec))
                else:
                    branch.append(Convolution(width, *spec, **options))
                    width = spec[0]
            # timm has no list around a layer that is alone.
            alone = branch[0] if len(branch) == 1 else nnx.List(branch)
            setattr(self, name, alone)
            self.channels += width

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ _"]:
        """Maps `[B, h, w, inputs]` to `[B, .., .., channels]`."""
        return jnp.concatenate(
            [_apply(getattr(self, name), x) for name in self.names], -1
        )


def _apply(branch: nnx.Module, x: jax.Array) -> jax.Array:
    for layer in branch if isinstance(branch, nnx.List) else (branch,):
        x = layer(x)
    return x


class InceptionC(nnx.Module):
    """The last blocks, two of whose branches fork once more."""

    channels = 1536

    def __init__(self, inputs: int, **options):
        wide, high = (1, 3), (3, 1)

        def conv(inputs, width, kernel_size=(1, 1)):
            return Convolution(inputs, width, kernel_size, **options)

        self.branch0 = conv(inputs, 256)
        self.branch1_0 = conv(inputs, 384)
        self.branch1_1a = conv(384, 256, wide)
        self.branch1_1b = conv(384, 256, high)
        self.branch2_0 = conv(inputs, 384)
        self.branch2_1 = conv(384, 448, high)
        self.branch2_2 = conv(448, 512, wide)
        self.branch2_3a = conv(512, 256, wide)
        self.branch2_3b = conv(512, 256, high)
        self.branch3 = nnx.List([Pool("mean"), conv(inputs, 256)])

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w _"]:
        """Maps `[B, h, w, inputs]` to `[B, h, w, 1536]`."""
        one = self.branch1_0(x)
        two = self.branch2_2(self.branch2_1(self.branch2_0(x)))
        parts = (
            self.branch0(x),
            self.branch1_1a(one),
            self.branch1_1b(one),
            self.branch2_3a(two),
            self.branch2_3b(two),
            _apply(self.branch3, x),
        )
        return jnp.concatenate(parts, -1)


# Behind the first convolution, top to bottom.
BLOCKS = (
    _c(32, 3, 3, 1, "VALID"),
    _c(64, 3, 3),
    MIXED_3A,
    MIXED_4A,
    MIXED_5A,
    *[INCEPTION_A] * 4,
    REDUCTION_A,
    *[INCEPTION_B] * 7,
    REDUCTION_B,
    *[InceptionC] * 3,
)


class InceptionV4(ImageModel):
    """Inception-v4.

    Maps images `[B, H, W, 3]` of at least 75 px to logits `[B, num_classes]`.
    The pyramid has the last map at each stride; convolutions without padding
    take pixels off their borders.
    """

    ALIGNED = False
    counted_at = 299
    TORCH_NAMES = ((r"^blocks\.", "features."), (r"^head\.fc", "last_linear"))

    def __init__(
        self,
        config: Config,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        self.stem_stride = 2
        self.stem_channels = inputs = 32
        self.minimum_size = 75
        self.remat = config.remat
        blocks = [Convolution(3, *_half(inputs), **options)]
        for table in BLOCKS:
            if isinstance(table, tuple):
                block = Convolution(inputs, *table, **options)
                inputs = table[0]
            else:
                block = (
                    Mixed(inputs, table, **options)
                    if isinstance(table, dict)
                    else table(inputs, **options)
                )
                inputs = block.channels
            blocks.append(block)
        self.blocks = nnx.List(blocks)
        self.strides = (2, 4, 8, 16, 32)
        self.taps = (2, 3, 9, 17, 21)
        self.channels = (64, 160, 384, 1024, 1536)
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
        """Maps `[B, H, W, 3]` to `[B, (H - 1) / 2, (W - 1) / 2, 32]`."""
        return self.blocks[0](images)

    def encode(
        self, embedded: Float[Array, "B h w C"]
    ) -> list[Float[Array, "B _ _ _"]]:
        """Maps the stem's output to the last map at each stride."""
        x, maps = embedded, []
        for index, block in enumerate(self.blocks):
            if index:
                x = self.run_block(index - 1, block, x)
            if index in self.taps:
                maps.append(x)
        return maps
