"""DenseNet: every layer sees the maps of all layers before it.

Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, arXiv
1608.06993: table 1 for ImageNet (torchvision's `densenet121`), section 3 for
32x32 pixels (DenseNet-BC, depth 100, growth 12). BatchNorm has epsilon 1e-5
and momentum .9; convolutions have no bias and start with He's variance
2 / fan_in. The paper trains the small one by SGD from .1, divided by 10 at 50
and 75 % of the epochs, with weight decay 1e-4, and with dropout of .2 where
images are not augmented.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from core.errors import UserError
from jax_models import functional, initializers, layers
from jax_models.model import ImageModel
from jax_models.preactivation import conv, norm


@dataclasses.dataclass(frozen=True)
class Config:
    """One network, and what may be overridden.

    Attributes:
      depths: layers in each block.
      growth: maps that a layer adds.
      stem_width: maps before the first block.
      bottleneck: width of the 1x1 convolution in a layer over `growth`; 0 for
        layers of the 3x3 convolution alone.
      compression: share of the maps that a transition keeps.
      stem: "imagenet" (7x7 with stride 2, then max-pooling with stride 2) or
        "small" (3x3 without stride or pooling), for images of 32 or 64 px.
      stem_norm: whether BatchNorm and ReLU follow the stem.
      dropout: of the maps that a layer adds.
      head_bias: see `layers.Head`.
      remat: see `ImageModel`.
    """

    depths: tuple[int, ...]
    growth: int = 32
    stem_width: int = 64
    bottleneck: int = 4
    compression: float = 0.5
    stem: str = "imagenet"
    stem_norm: bool = True
    dropout: float = 0.0
    head_bias: float | Sequence[float] | None = 0.0
    remat: bool | tuple[int, ...] = False


def _small(layers_each: int, growth: int, **options) -> Config:
    """Three blocks for images of 32 px."""
    return Config(
        (layers_each,) * 3, growth, stem="small", stem_norm=False, **options
    )


VARIANTS = {
    "densenet121": Config((6, 12, 24, 16)),
    "densenet_bc_100_12": _small(16, 12, stem_width=24),
    "densenet_40_12": _small(
        12, 12, stem_width=16, bottleneck=0, compression=1.0
    ),
    "densenet_bc_190_40": _small(31, 40, stem_width=80),
    "densenet_demo": Config((1, 2, 2, 1), growth=8, stem_width=16),
}


class DenseLayer(nnx.Module):
    """BatchNorm, ReLU and convolution; twice with a bottleneck."""

    def __init__(
        self, inputs: int, config: Config, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        growth, inside = config.growth, config.bottleneck * config.growth
        self.norm1 = norm(inputs, dtype)
        if inside:
            self.conv1 = conv(inputs, inside, 1, 1, dtype, rngs)
            self.norm2 = norm(inside, dtype)
            self.conv2 = conv(inside, growth, 3, 1, dtype, rngs)
        else:
            self.conv1 = conv(inputs, growth, 3, 1, dtype, rngs)
            self.norm2 = None
        self.dropout = layers.Dropout(config.dropout, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h w growth"]:
        """Maps all maps so far to the new ones."""
        x = self.conv1(self.norm1(x))
        if self.norm2 is not None:
            x = self.conv2(self.norm2(x))
        return self.dropout(x)


class DenseBlock(nnx.Module):
    """Layers that each see the block's input and all layers before them."""

    def __init__(
        self,
        depth: int,
        inputs: int,
        config: Config,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.layers = nnx.List(
            DenseLayer(
                inputs + index * config.growth, config, dtype=dtype, rngs=rngs
            )
            for index in range(depth)
        )

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h w outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h, w, inputs + depth * growth]`."""
        for layer in self.layers:
            x = jnp.concatenate((x, layer(x)), -1)
        return x


class Transition(nnx.Module):
    """Between blocks: fewer maps, of half the size, rounded down."""

    def __init__(
        self, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.norm = norm(inputs, dtype)
        self.conv = conv(inputs, outputs, 1, 1, dtype, rngs)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / 2, w / 2, outputs]`."""
        # The published order is conv, then mean: the same, at four times the
        # work, as a 1x1 convolution without bias and a mean commute.
        return self.conv(_halve(self.norm(x)))


def _halve(x: jax.Array) -> jax.Array:
    """Means over cells of 2x2."""
    batch, height, width, channels = x.shape
    h, w = height // 2, width // 2
    cells = x[:, : 2 * h, : 2 * w].reshape(batch, h, 2, w, 2, channels)
    return cells.mean((2, 4))


# Kernel size, stride, and whether max-pooling follows.
STEMS = {"imagenet": (7, 2, True), "small": (3, 1, False)}


class DenseNet(ImageModel):
    """DenseNet, by its `Config`.

    Maps images `[B, H, W, 3]` to logits `[B, num_classes]`. The pyramid has
    the outputs of the blocks, and before them the stem's where that is
    larger; sizes are rounded up by the stem, and down between blocks.
    """

    ROUNDS_UP = False
    TORCH_NAMES = (
        (
            r"^blocks\.(\d+)\.layers\.(\d+)\.",
            lambda found: (
                f"features.denseblock{int(found[1]) + 1}."
                f"denselayer{int(found[2]) + 1}."
            ),
        ),
        (
            r"^transitions\.(\d+)\.",
            lambda found: f"features.transition{int(found[1]) + 1}.",
        ),
        (r"^(conv0|norm0|norm5)\.", r"features.\1."),
        (r"^head\.fc\.", "classifier."),
    )

    def __init__(
        self,
        config: Config,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if config.stem not in STEMS:
            raise UserError(
                f"no DenseNet has stem={config.stem!r}; stems are "
                f"{', '.join(STEMS)}"
            )
        kernel_size, stride, self.pool = STEMS[config.stem]
        options = dict(dtype=dtype, rngs=rngs)
        width = config.stem_width
        self.stem_stride = stride
        self.stem_channels = width
        self.counted_at = 224 if self.pool else 32
        self.remat = config.remat
        self.conv0 = conv(3, width, kernel_size, stride, **options)
        self.norm0 = norm(width, dtype) if config.stem_norm else None
        strides, channels = [stride] * self.pool, [width] * self.pool
        at = 2 * stride if self.pool else stride
        # One pixel more than cells of which the last map would have none.
        self.minimum_size = at * (2 ** (len(config.depths) - 1) - 1) + 1
        blocks, transitions = [], []
        for number, depth in enumerate(config.depths):
            if number:
                kept = int(width * config.compression)
                transitions.append(Transition(width, kept, **options))
                width, at = kept, 2 * at
            blocks.append(DenseBlock(depth, width, config, **options))
            width += depth * config.growth
            strides.append(at)
            channels.append(width)
        self.blocks = nnx.List(blocks)
        self.transitions = nnx.List(transitions)
        self.norm5 = norm(width, dtype)
        self.strides, self.channels = tuple(strides), tuple(channels)
        self.head = layers.Head(
            width,
            num_classes,
            norm_epsilon=None,
            dropout=0.0,
            head_bias=config.head_bias,
            init=initializers.Uniform(),
            **options,
        )

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Maps `[B, H, W, 3]` to `[B, H / 2, W / 2, stem]`, rounded up; with
        the small stem to `[B, H, W, stem]`."""
        x = self.conv0(images)
        return x if self.norm0 is None else self.norm0(x)

    def encode(
        self, embedded: Float[Array, "B h w C"]
    ) -> list[Float[Array, "B _ _ _"]]:
        """Maps the stem's output to those of the blocks."""
        x, maps = embedded, []
        if self.pool:
            maps.append(x)
            x = functional.max_pool(x)
        for index, block in enumerate(self.blocks):
            if index:
                x = self.transitions[index - 1](x)
            x = self.run_block(index, block, x)
            maps.append(x)
        maps[-1] = self.norm5(x)
        return maps

    def published_names(
        self, state_dict: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The names in torchvision's older files, turned into today's."""
        return {
            re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", name): value
            for name, value in state_dict.items()
        }
