"""TinyViT: convolutions where maps are large, window attention after that.

Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision
Transformers", ECCV 2022, arXiv 2207.10666; sizes in its appendix, and with
stochastic depth of 0, .1 and .2 in the authors' configurations for training
from scratch (microsoft/Cream, TinyViT/configs/1k).

As published; padded windows are computed otherwise, with the same result
(cpu_kernels/window_attention.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_models import cpu_kernels, functional, initializers, layers
from jax_models.model import ImageModel

LN_EPSILON = 1e-5
BN_EPSILON = 1e-5
BN_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Config:
    """One row of the table of variants, and what may be overridden.

    Attributes:
      dims: width of each stage.
      depths: blocks in each stage; the first has convolutions alone.
      heads: attention heads in each stage.
      windows: side of the attention window in each stage, in cells. The
        published models for 384 px have 12, 12, 24, 12, for 512 px 16, 16,
        32, 16: `import_torch` resizes the bias tables when windows differ.
      swin_bias: bias tables over signed offsets, as Swin has them, in place
        of one over absolute offsets.
      mlp_norm: the LayerNorm before each MLP.
      drop_path_rate: stochastic depth of the last block.
      dropout: before the classifier; published models have none.
      head_bias: see `layers.Head`.
      remat: see `ImageModel`.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...] = (7, 7, 14, 7)
    swin_bias: bool = False
    mlp_norm: bool = True
    drop_path_rate: float = 0.0
    dropout: float = 0.0
    head_bias: float | Sequence[float] | None = 0.0
    remat: bool | tuple[int, ...] = False


VARIANTS = {
    "tinyvit_5m": Config(
        (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), drop_path_rate=0.0
    ),
    "tinyvit_11m": Config(
        (64, 128, 256, 448), (2, 2, 6, 2), (2, 4, 8, 14), drop_path_rate=0.1
    ),
    "tinyvit_21m": Config(
        (96, 192, 384, 576), (2, 2, 6, 2), (3, 6, 12, 18), drop_path_rate=0.2
    ),
    "tinyvit_demo": Config(
        (32, 48, 64, 96), (1, 1, 2, 1), (1, 2, 2, 3), (4, 4, 4, 4)
    ),
}


class ConvNorm(nnx.Module):
    """A dense convolution without bias, BatchNorm, an activation or none."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        scale: float = 1.0,
        activation: functional.Activation | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(
            use_bias=False, init=initializers.Uniform(), dtype=dtype, rngs=rngs
        )
        if size == 1:
            self.conv = layers.Linear(
                inputs, outputs, torch_conv=True, **options
            )
        else:
            self.conv = layers.Conv(
                inputs,
                outputs,
                size,
                stride,
                padding=size // 2,
                **options,
            )
        self.bn = _batch_norm(outputs, scale, activation, dtype)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, ceil(h / stride), ..., outputs]`."""
        return self.bn(self.conv(x))


class DepthwiseConvNorm(nnx.Module):
    """The same with a 3x3 depthwise convolution."""

    def __init__(
        self,
        channels: int,
        *,
        stride: int = 1,
        activation: functional.Activation | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = layers.Conv(
            channels,
            channels,
            3,
            stride,
            padding=1,
            feature_group_count=channels,
            use_bias=False,
            init=initializers.Uniform(),
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = _batch_norm(channels, 1.0, activation, dtype)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C"]:
        """Maps `[B, h, w, C]` to `[B, ceil(h / stride), ..., C]`."""
        return self.bn(self.conv(x))


def _batch_norm(
    channels: int,
    scale: float,
    activation: functional.Activation | None,
    dtype: DTypeLike,
) -> layers.BatchNorm:
    return layers.BatchNorm(
        channels,
        epsilon=BN_EPSILON,
        momentum=BN_MOMENTUM,
        scale=scale,
        activation=activation,
        dtype=dtype,
    )


class PatchEmbed(nnx.Module):
    """Two 3x3 convolutions with stride 2, GELU between them."""

    def __init__(self, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        options = dict(stride=2, dtype=dtype, rngs=rngs)
        self.conv1 = ConvNorm(
            3, outputs // 2, 3, activation=functional.gelu, **options
        )
        self.conv2 = ConvNorm(outputs // 2, outputs, 3, **options)

    def __call__(
        self, x: Float[Array, "B H W 3"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, H, W, 3]` to `[B, H / 4, W / 4, outputs]`, rounded up."""
        return self.conv2(self.conv1(x))


class MBConv(nnx.Module):
    """Widen four times, 3x3 depthwise, narrow; GELU also after the sum."""

    def __init__(
        self,
        channels: int,
        drop_path_rate: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        bent = dict(activation=functional.gelu, **options)
        self.conv1 = ConvNorm(channels, 4 * channels, 1, **bent)
        self.conv2 = DepthwiseConvNorm(4 * channels, **bent)
        # The branch starts at zero.
        self.conv3 = ConvNorm(4 * channels, channels, 1, scale=0.0, **options)
        self.drop_path = layers.DropPath(drop_path_rate, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Maps `[B, h, w, C]` to `[B, h, w, C]`."""
        branch = self.conv3(self.conv2(self.conv1(x)))
        return functional.gelu(x + self.drop_path(branch))


class PatchMerging(nnx.Module):
    """1x1, 3x3 depthwise with stride 2, 1x1: halves the map, rounded up."""

    def __init__(
        self, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        options = dict(dtype=dtype, rngs=rngs)
        bent = dict(activation=functional.gelu, **options)
        self.conv1 = ConvNorm(inputs, outputs, 1, **bent)
        self.conv2 = DepthwiseConvNorm(outputs, stride=2, **bent)
        self.conv3 = ConvNorm(outputs, outputs, 1, **options)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h / 2, w / 2, outputs]`."""
        return self.conv3(self.conv2(self.conv1(x)))


class WindowAttention(nnx.Module):
    """Self-attention inside windows, with a learned bias per offset.

    The bias depends on the absolute offset between two cells (LeViT, Graham
    et al. 2021) and starts at zero. With `swin_bias` it depends on the signed
    offset (Swin, Liu et al. 2021) and starts normal with deviation .02.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        swin_bias: bool,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.norm = layers.LayerNorm(channels, epsilon=LN_EPSILON, dtype=dtype)
        # For each head its queries, keys and values, then the next head's.
        self.qkv = layers.Linear(channels, 3 * channels, dtype=dtype, rngs=rngs)
        self.proj = layers.Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.window = window
        self.swin_bias = swin_bias
        self.dtype = dtype
        if swin_bias:
            shape = (heads, (2 * window - 1) ** 2)
            table = initializers.weight(rngs, shape, initializers.NORMAL_02)
        else:
            table = nnx.Param(jnp.zeros((heads, window**2), jnp.float32))
        self.attention_biases = table

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Maps `[B, h, w, C]` to `[B, h, w, C]`."""
        qkv = self.qkv(self.norm(x))
        # Of a padded cell: normalising zeros leaves the bias.
        padding = self.qkv(self.norm.bias[...])
        x = cpu_kernels.window_attention(
            qkv,
            padding,
            self.attention_biases[...],
            window=self.window,
            swin_bias=self.swin_bias,
            dtype=self.dtype,
        )
        return self.proj(x)


class Mlp(nnx.Module):
    """LayerNorm, widen four times, GELU, narrow."""

    def __init__(
        self, channels: int, norm: bool, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        options = dict(dtype=dtype, rngs=rngs)
        if norm:
            self.norm = layers.LayerNorm(
                channels, epsilon=LN_EPSILON, dtype=dtype
            )
        else:
            self.norm = None
        self.fc1 = layers.Linear(channels, 4 * channels, **options)
        self.fc2 = layers.Linear(4 * channels, channels, **options)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Maps `[B, h, w, C]` to `[B, h, w, C]`."""
        if self.norm is not None:
            x = self.norm(x)
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nnx.Module):
    """Window attention, 3x3 depthwise convolution, MLP."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        drop_path_rate: float,
        config: Config,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        self.attn = WindowAttention(
            channels, heads, window, config.swin_bias, **options
        )
        self.drop_path1 = layers.DropPath(drop_path_rate, rngs=rngs)
        self.local_conv = DepthwiseConvNorm(channels, **options)
        self.mlp = Mlp(channels, config.mlp_norm, **options)
        self.drop_path2 = layers.DropPath(drop_path_rate, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Maps `[B, h, w, C]` to `[B, h, w, C]`."""
        x = x + self.drop_path1(self.attn(x))
        x = self.local_conv(x)
        return x + self.drop_path2(self.mlp(x))


class Stage(nnx.Module):
    """Halves the map (not in the first stage), then applies its blocks."""

    def __init__(
        self,
        index: int,
        drop_path_rates: Sequence[float],
        config: Config,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        channels = config.dims[index]
        options = dict(dtype=dtype, rngs=rngs)
        if index == 0:
            self.downsample = None
            self.blocks = nnx.List(
                MBConv(channels, rate, **options) for rate in drop_path_rates
            )
        else:
            self.downsample = PatchMerging(
                config.dims[index - 1], channels, **options
            )
            self.blocks = nnx.List(
                Block(
                    channels,
                    config.heads[index],
                    config.windows[index],
                    rate,
                    config,
                    **options,
                )
                for rate in drop_path_rates
            )


class TinyViT(ImageModel):
    """TinyViT, by its `Config`.

    Maps images `[B, H, W, 3]` of any size to logits `[B, num_classes]`. The
    pyramid has one map per stage, at the strides 4, 8, 16 and 32, sizes
    rounded up. Initialisation is as published: matrices normal with deviation
    .02, the last BatchNorm scale of each MBConv 0, attention biases 0,
    convolutions as PyTorch's default.
    """

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
        self.minimum_size = 1
        self.remat = config.remat
        self.patch_embed = PatchEmbed(config.dims[0], dtype=dtype, rngs=rngs)
        rates = layers.drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List(
            Stage(index, stage_rates, config, dtype=dtype, rngs=rngs)
            for index, stage_rates in enumerate(rates)
        )
        self.head = layers.Head(
            config.dims[-1],
            num_classes,
            norm_epsilon=LN_EPSILON,
            dropout=config.dropout,
            head_bias=config.head_bias,
            dtype=dtype,
            rngs=rngs,
        )

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Maps `[B, H, W, 3]` to `[B, H / 4, W / 4, dims[0]]`, rounded up."""
        return self.patch_embed(images)

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
