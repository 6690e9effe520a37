"""U-Net: a decoder that adds the encoder's maps back, coarse to fine.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image
Segmentation", MICCAI 2015, arXiv 1505.04597, in the form that became common
with pretrained encoders (segmentation_models_pytorch's `Unet`): 3x3
convolutions with padding and BatchNorm, nearest-neighbour upsampling in place
of transposed convolutions. Filters start as in He et al. (uniform), the
head's as in Glorot & Bengio.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from core.errors import UserError
from jax_models import cpu_kernels, initializers
from jax_models.model import ImageModel
from jax_models.segmentation import (
    ConvNormRelu,
    SegmentationHead,
    SegmentationModel,
    upsample_nearest,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What may be overridden.

    Attributes:
      encoder: one of `list_models()`.
      encoder_options: of the encoder's own `Config`.
      channels: of the decoder's blocks, coarse to fine. There is a block for
        each halving of the stride down to 1; an encoder that needs fewer
        takes the last ones.
      head_bias: see `SegmentationHead`.
      remat: of the encoder.
    """

    encoder: str = "resnet34"
    encoder_options: tuple[tuple[str, Any], ...] = ()
    channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    head_bias: float | Sequence[float] | None = 0.0
    remat: bool | tuple[int, ...] = False


VARIANTS = {"unet": Config()}


class Block(nnx.Module):
    """Doubles the map, adds the encoder's channels, two 3x3 convolutions."""

    def __init__(
        self,
        inputs: int,
        skipped: int,
        outputs: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(init=initializers.HE_UNIFORM, dtype=dtype, rngs=rngs)
        self.conv1 = ConvNormRelu(inputs + skipped, outputs, 3, **options)
        self.conv2 = ConvNormRelu(outputs, outputs, 3, **options)

    def __call__(
        self,
        x: Float[Array, "B h w inputs"],
        skip: Float[Array, "B h2 w2 skipped"] | None,
        size: tuple[int, int],
    ) -> Float[Array, "B h2 w2 outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h2, w2, outputs]`.

        Args:
          x: from the block before.
          skip: the encoder's map of half the stride, where it has one.
          size: h2 and w2.
        """
        kernel = self.conv1.conv.kernel[...]
        if cpu_kernels.supports_conv_upsampled(x, size, kernel):
            y = cpu_kernels.conv_upsampled(x, skip, kernel)
            return self.conv2(self.conv1.norm(y))
        x = upsample_nearest(x, 2, size)
        if skip is not None:
            x = jnp.concatenate([x, skip], -1)
        return self.conv2(self.conv1(x))


class Decoder(nnx.Module):
    """From the coarsest map to one at stride 1.

    Args:
      strides: of the encoder's maps, finest first.
      widths: of the same.
      channels: of the blocks.

    Raises:
      UserError: there are fewer channels than blocks.
    """

    def __init__(
        self,
        strides: Sequence[int],
        widths: Sequence[int],
        channels: Sequence[int],
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        count = strides[-1].bit_length() - 1  # Strides are powers of two.
        if count > len(channels):
            raise UserError(
                f"a U-Net over an encoder of stride {strides[-1]} has {count} "
                f"blocks, but channels is {tuple(channels)}; give {count} "
                "numbers"
            )
        self.strides = tuple(strides[-1] >> n for n in range(1, count + 1))
        self.skips = tuple(
            strides.index(stride) if stride in strides else None
            for stride in self.strides
        )
        blocks, inputs = [], widths[-1]
        for skip, outputs in zip(
            self.skips, channels[len(channels) - count :], strict=True
        ):
            skipped = 0 if skip is None else widths[skip]
            blocks.append(
                Block(inputs, skipped, outputs, dtype=dtype, rngs=rngs)
            )
            inputs = outputs
        self.blocks = nnx.List(blocks)
        self.channels = inputs

    def __call__(
        self, maps: list[Float[Array, "B _ _ _"]], size: tuple[int, int]
    ) -> Float[Array, "B H W C"]:
        """Maps the pyramid of images of `size` to `[B, *size, C]`."""
        x = maps[-1]
        for block, skip, stride in zip(
            self.blocks, self.skips, self.strides, strict=True
        ):
            cells = tuple(-(-length // stride) for length in size)
            x = block(x, None if skip is None else maps[skip], cells)
        return x


class UNet(SegmentationModel):
    """U-Net over any encoder, by its `Config`.

    Maps images `[B, H, W, 3]` of any size to logits `[B, H, W, num_classes]`.
    Over a ResNet it takes and gives the weights of
    segmentation_models_pytorch's `Unet`.
    """

    TORCH_NAMES = (
        (r"^(decoder\.blocks\.\d\.conv\d\.)conv\.", r"\g<1>0."),
        (r"^(decoder\.blocks\.\d\.conv\d\.)norm\.", r"\g<1>1."),
        (r"^head\.fc\.", "segmentation_head.0."),
    )

    def __init__(
        self,
        config: Config,
        num_classes: int,
        *,
        encoder: ImageModel,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(encoder)
        options = dict(dtype=dtype, rngs=rngs)
        self.decoder = Decoder(
            encoder.strides, encoder.channels, config.channels, **options
        )
        self.head = SegmentationHead(
            self.decoder.channels,
            num_classes,
            3,
            head_bias=config.head_bias,
            init=initializers.GlorotUniform(),
            **options,
        )
