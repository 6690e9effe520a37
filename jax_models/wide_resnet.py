"""Wide residual networks, for images of 32 px.

Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146,
table 1, as in the authors' PyTorch code: BatchNorm and ReLU before each
convolution; where the width changes the shortcut is a 1x1 convolution of what
the first ReLU gives. `wide_resnet_28_10` has 28 layers, ten times as wide as
the first ResNets for CIFAR. No convolution has a bias; weights start with He's
variance 2 / fan_in. The paper's dropout between the convolutions (.3 for
CIFAR, .4 for SVHN) is off, as in that code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from core.errors import UserError
from jax_models import initializers, layers
from jax_models.model import ImageModel
from jax_models.preactivation import conv, norm


@dataclasses.dataclass(frozen=True)
class Config:
    """One network, and what may be overridden.

    Attributes:
      depth: number of convolutions, 4 more than a multiple of 6.
      width: factor of the widths 16, 32 and 64.
      dropout: between the two convolutions of a block.
      head_bias: see `layers.Head`.
      remat: see `ImageModel`.
    """

    depth: int
    width: int
    dropout: float = 0.0
    head_bias: float | Sequence[float] | None = 0.0
    remat: bool | tuple[int, ...] = False


VARIANTS = {
    "wide_resnet_28_10": Config(28, 10),
    "wide_resnet_16_8": Config(16, 8),
    "wide_resnet_16_4": Config(16, 4),
    "wide_resnet_40_4": Config(40, 4),
    "wide_resnet_demo": Config(10, 1),
}


class Block(nnx.Module):
    """Twice BatchNorm, ReLU and a 3x3 convolution, around a shortcut."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        dropout: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.bn0 = norm(inputs, dtype)
        self.conv0 = conv(inputs, outputs, 3, stride, dtype, rngs)
        self.bn1 = norm(outputs, dtype)
        self.dropout = layers.Dropout(dropout, rngs=rngs)
        self.conv1 = conv(outputs, outputs, 3, 1, dtype, rngs)
        self.convdim = (
            None
            if inputs == outputs
            else conv(inputs, outputs, 1, stride, dtype, rngs)
        )

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / stride, .., outputs]`."""
        active = self.bn0(x)
        branch = self.dropout(self.bn1(self.conv0(active)))
        shortcut = x if self.convdim is None else self.convdim(active)
        return shortcut + self.conv1(branch)


class WideResNet(ImageModel):
    """A wide ResNet, by its `Config`.

    Maps images `[B, H, W, 3]` of any size to logits `[B, num_classes]`. The
    pyramid has the outputs of the three groups, at strides 1, 2 and 4, sizes
    rounded up.
    """

    counted_at = 32
    TORCH_NAMES = (
        (r"^groups\.(\d+)\.(\d+)\.", r"group\1.block\2."),
        (r"(conv0|conv1|convdim)\.weight$", r"\1"),
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
        depth, rest = divmod(config.depth - 4, 6)
        if rest or depth < 1:
            raise UserError(
                f"no wide ResNet has depth={config.depth}; choose 4 more than "
                "a multiple of 6, such as 16, 22 or 28"
            )
        options = dict(dtype=dtype, rngs=rngs)
        self.stem_stride = 1
        self.stem_channels = inputs = 16
        self.minimum_size = 1
        self.remat = config.remat
        self.strides = (1, 2, 4)
        self.channels = tuple(16 * config.width * step for step in self.strides)
        self.conv0 = conv(3, inputs, 3, 1, **options)
        groups = []
        for number, outputs in enumerate(self.channels):
            blocks = []
            for position in range(depth):
                stride = 2 if number and position == 0 else 1
                shape = inputs, outputs, stride, config.dropout
                blocks.append(Block(*shape, **options))
                inputs = outputs
            groups.append(nnx.List(blocks))
        self.groups = nnx.List(groups)
        self.bn = norm(inputs, dtype)
        self.head = layers.Head(
            inputs,
            num_classes,
            norm_epsilon=None,
            dropout=0.0,
            head_bias=config.head_bias,
            init=initializers.HE_UNIFORM,
            **options,
        )

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Maps `[B, H, W, 3]` to `[B, H, W, 16]`."""
        return self.conv0(images)

    def encode(
        self, embedded: Float[Array, "B h w C"]
    ) -> list[Float[Array, "B _ _ _"]]:
        """Maps the stem's output to those of the groups."""
        x, maps = embedded, []
        for index, blocks in enumerate(self.groups):
            for block in blocks:
                x = self.run_block(index, block, x)
            maps.append(x)
        maps[-1] = self.bn(x)
        return maps
