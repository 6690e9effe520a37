"""ConvNeXt V2, and a small ConvNeXt in the style of V1.

ConvNeXt: Liu et al., "A ConvNet for the 2020s", CVPR 2022, arXiv 2201.03545.
ConvNeXt V2: Woo et al., "ConvNeXt V2: Co-designing and Scaling ConvNets with
Masked Autoencoders", CVPR 2023, arXiv 2301.00808; sizes in its appendix A
and in the authors' code (facebookresearch/ConvNeXt-V2).

V2 differs from V1 in the block alone: global response normalisation (GRN)
after the activation, and no layer scale. `convnextv2_small` (depths 3-3-27-3
with the widths of the tiny model) is not a size of the paper; it is V1's
"small" with V2's blocks. Everything else here is as published.

Stochastic depth is what V1's authors trained from scratch with: .1, .4, .5 and
.5 for tiny, small, base and large (facebookresearch/ConvNeXt), and .1 for the
sizes below. V2's authors publish rates for fine-tuning after their masked
pretraining alone: .1 for atto, .2 for tiny, .1 for base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_models import cpu_kernels, functional, initializers, layers
from jax_models.model import ImageModel

EPSILON = 1e-6  # of every LayerNorm, and of GRN


@dataclasses.dataclass(frozen=True)
class Config:
    """One row of the table of variants, and what may be overridden.

    Attributes:
      depths: blocks in each stage.
      dims: width of each stage.
      grn: whether the blocks have global response normalisation (V2).
      layer_scale: start value of V1's per-channel scale of each branch;
        None leaves it out, as V2 does.
      torch_conv: whether timm's counterpart writes the blocks' matrices as
        1x1 convolutions; it changes only the shapes of exported weights.
      init: of filters and matrices, the classifier's apart.
      drop_path_rate: stochastic depth of the last block.
      dropout: before the classifier; published models have none.
      head_bias: see `layers.Head`.
      remat: see `ImageModel`.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    grn: bool = True
    layer_scale: float | None = None
    torch_conv: bool = False
    init: initializers.Initializer = initializers.NORMAL_02
    drop_path_rate: float = 0.0
    dropout: float = 0.0
    head_bias: float | Sequence[float] | None = 0.0
    remat: bool | tuple[int, ...] = False


def _narrow(depth: int, width: int, **options: Any) -> Config:
    return Config(
        (2, 2, depth, 2), _doubling(width), torch_conv=True, **options
    )


def _wide(depth: int, width: int, **options: Any) -> Config:
    return Config((3, 3, depth, 3), _doubling(width), **options)


def _doubling(width: int) -> tuple[int, ...]:
    return width, 2 * width, 4 * width, 8 * width


def _mini(depths: tuple[int, ...], dims: tuple[int, ...]) -> Config:
    # Narrow layers: deviations of .02 would start far below 1/sqrt(fan), and
    # a short training would spend itself on growing them.
    return Config(depths, dims, grn=False, init=initializers.Uniform())


VARIANTS = {
    "miniconvnext": _mini((2, 2, 2), (64, 128, 256)),
    "miniconvnext_demo": _mini((1, 1, 2), (32, 64, 96)),
    "convnextv2_atto": _narrow(6, 40, drop_path_rate=0.1),
    "convnextv2_femto": _narrow(6, 48, drop_path_rate=0.1),
    "convnextv2_pico": _narrow(6, 64, drop_path_rate=0.1),
    "convnextv2_nano": _narrow(8, 80, drop_path_rate=0.1),
    "convnextv2_tiny": _wide(9, 96, drop_path_rate=0.1),
    "convnextv2_small": _wide(27, 96, drop_path_rate=0.4),
    "convnextv2_base": _wide(27, 128, drop_path_rate=0.5),
    "convnextv2_large": _wide(27, 192, drop_path_rate=0.5),
    "convnextv2_demo": Config(
        (1, 1, 2, 1), (16, 32, 64, 96), drop_path_rate=0.1
    ),
}


class GlobalResponseNorm(nnx.Module):
    """Global response normalisation (Woo et al. 2023, section 4).

    Starts as the identity; see `functional.global_response_norm`.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Maps `[B, h, w, C]` to `[B, h, w, C]`."""
        return functional.global_response_norm(
            x, self.scale[...], self.bias[...], EPSILON
        )


class Mlp(nnx.Module):
    """Widen four times, GELU (exact), optional GRN, narrow."""

    def __init__(
        self,
        channels: int,
        config: Config,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(
            torch_conv=config.torch_conv,
            init=config.init,
            dtype=dtype,
            rngs=rngs,
        )
        self.fc1 = layers.Linear(channels, 4 * channels, **options)
        if config.grn:
            self.grn = GlobalResponseNorm(4 * channels, dtype=dtype)
        else:
            self.grn = None
        self.fc2 = layers.Linear(4 * channels, channels, **options)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Maps `[B, h, w, C]` to `[B, h, w, C]`."""
        x = functional.gelu(self.fc1(x))
        if self.grn is not None:
            x = self.grn(x)
        return self.fc2(x)


class Block(nnx.Module):
    """7x7 depthwise convolution, LayerNorm, MLP, around a shortcut."""

    def __init__(
        self,
        channels: int,
        drop_path_rate: float,
        config: Config,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv_dw = layers.Conv(
            channels,
            channels,
            7,
            feature_group_count=channels,
            init=config.init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = layers.LayerNorm(channels, epsilon=EPSILON, dtype=dtype)
        self.mlp = Mlp(channels, config, dtype=dtype, rngs=rngs)
        if config.layer_scale is None:
            self.gamma = None
        else:
            self.gamma = nnx.Param(
                jnp.full((channels,), config.layer_scale, jnp.float32)
            )
        self.drop_path = layers.DropPath(drop_path_rate, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Maps `[B, h, w, C]` to `[B, h, w, C]`."""
        branch = self.conv_dw(x)
        if self.drop_path.deterministic and cpu_kernels.supports_residual_mlp(
            branch, self.mlp.fc1.out_features, self.mlp.grn is not None
        ):
            return self._fused_mlp(branch, x)
        branch = self.mlp(self.norm(branch))
        if self.gamma is not None:
            branch = branch * self.gamma[...].astype(branch.dtype)
        return x + self.drop_path(branch)

    def _fused_mlp(
        self, x: Float[Array, "B h w C"], shortcut: Float[Array, "B h w C"]
    ) -> Float[Array, "B h w C"]:
        """Everything after the depthwise convolution, in evaluation mode."""
        fc1, grn, fc2 = self.mlp.fc1, self.mlp.grn, self.mlp.fc2
        matrix, bias = fc2.kernel[...], fc2.bias[...]
        if self.gamma is not None:
            matrix, bias = matrix * self.gamma[...], bias * self.gamma[...]
        return cpu_kernels.residual_mlp(
            x,
            shortcut,
            (self.norm.scale[...], self.norm.bias[...]),
            (fc1.kernel[...], fc1.bias[...], matrix, bias),
            None if grn is None else (grn.scale[...], grn.bias[...]),
            EPSILON,
        )


class Downsample(nnx.Module):
    """LayerNorm, then a convolution that halves height and width."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: Config,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.norm = layers.LayerNorm(inputs, epsilon=EPSILON, dtype=dtype)
        self.conv = layers.Conv(
            inputs,
            outputs,
            2,
            2,
            padding="VALID",
            init=config.init,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h // 2, w // 2, outputs]`."""
        return self.conv(self.norm(x))


class Stem(nnx.Module):
    """A matrix over patches of 4x4 pixels, then LayerNorm."""

    def __init__(self, config: Config, *, dtype: DTypeLike, rngs: nnx.Rngs):
        outputs = config.dims[0]
        self.conv = layers.Conv(
            3,
            outputs,
            4,
            4,
            padding="VALID",
            init=config.init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = layers.LayerNorm(outputs, epsilon=EPSILON, dtype=dtype)

    def __call__(
        self, x: Float[Array, "B H W 3"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, H, W, 3]` to `[B, H // 4, W // 4, outputs]`."""
        return self.norm(self.conv(x))


class Stage(nnx.Module):
    """Halves the map (not in the first stage), then applies its blocks."""

    def __init__(
        self,
        inputs: int | None,
        outputs: int,
        drop_path_rates: Sequence[float],
        config: Config,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if inputs is None:
            self.downsample = None
        else:
            self.downsample = Downsample(
                inputs, outputs, config, dtype=dtype, rngs=rngs
            )
        self.blocks = nnx.List(
            Block(outputs, rate, config, dtype=dtype, rngs=rngs)
            for rate in drop_path_rates
        )


class ConvNeXt(ImageModel):
    """ConvNeXt V1-style or V2, by its `Config`.

    Maps images `[B, H, W, 3]` of at least 32x32 pixels (three stages: 16x16)
    to logits `[B, num_classes]`. The pyramid has one map per stage, at the
    strides 4, 8, 16 and 32; sizes that these do not divide lose the rest at
    the bottom and the right, as in the published code. Initialisation is as
    published: matrices and filters normal with deviation .02, biases 0, GRN 0;
    in MiniConvNeXt, which nobody published, uniform in +-1/sqrt(fan).
    """

    TORCH_NAMES = (
        (r"^stem\.conv\.", "stem.0."),
        (r"^stem\.norm\.", "stem.1."),
        (r"\.downsample\.norm\.", ".downsample.0."),
        (r"\.downsample\.conv\.", ".downsample.1."),
    )
    ROUNDS_UP = False

    def __init__(
        self,
        config: Config,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.channels = tuple(config.dims)
        self.strides = tuple(4 * 2**i for i in range(len(config.dims)))
        self.stem_stride = 4
        self.stem_channels = config.dims[0]
        self.minimum_size = self.strides[-1]
        self.remat = config.remat
        self.stem = Stem(config, dtype=dtype, rngs=rngs)
        rates = layers.drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List(
            Stage(inputs, outputs, stage_rates, config, dtype=dtype, rngs=rngs)
            for inputs, outputs, stage_rates in zip(
                (None, *config.dims[:-1]), config.dims, rates, strict=True
            )
        )
        self.head = layers.Head(
            config.dims[-1],
            num_classes,
            norm_epsilon=EPSILON,
            dropout=config.dropout,
            head_bias=config.head_bias,
            dtype=dtype,
            rngs=rngs,
        )

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Maps `[B, H, W, 3]` to `[B, H // 4, W // 4, dims[0]]`."""
        return self.stem(images)

    def encode(
        self, embedded: Float[Array, "B h w C"]
    ) -> list[Float[Array, "B _ _ _"]]:
        """Maps the stem's output to the maps of every stage."""
        x, maps = embedded, []
        for index, stage in enumerate(self.stages):
            if stage.downsample is not None:
                x = self.run_block(index, stage.downsample, x)
            for block in stage.blocks:
                x = self.run_block(index, block, x)
            maps.append(x)
        return maps
