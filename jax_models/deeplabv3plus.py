"""DeepLabV3+: atrous convolutions at several rates, and a light decoder.

Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic
Image Segmentation", ECCV 2018, arXiv 1802.02611. Where
segmentation_models_pytorch's `DeepLabV3Plus` departs from the paper, `wiring`
chooses:

                         paper                     smp
    ASPP's rates         6-12-18 at stride 16,     12-24-36
                         doubled at 8
    3x3 convolutions     two, both after the       one before the upsampling,
                         low-level map is added    one after
    after a depthwise    BatchNorm and ReLU        nothing
    bilinear upsampling  edges stay in place       centres of corners do
    dropout              .1                        .5

At small sizes the outer taps of high rates see nothing but padding: a map of
16 x 16 cells has no use for rates of 24 and 36. Weights start as in PyTorch:
uniform in +-1/sqrt(fan in).
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
from jax_models import functional, initializers, layers
from jax_models.model import ImageModel
from jax_models.segmentation import (
    ConvNormRelu,
    SegmentationHead,
    SegmentationModel,
    norm_relu,
    upsample_bilinear,
)

# Of the low-level map (the paper's table 1), and its width in the decoder.
LOW_STRIDE = 4
LOW_CHANNELS = 48
# At an output stride of 16.
PAPER_RATES = (6, 12, 18)
SMP_RATES = (12, 24, 36)
WIRINGS = ("paper", "smp")


@dataclasses.dataclass(frozen=True)
class Config:
    """What may be overridden.

    Attributes:
      encoder: one of `list_models()`.
      encoder_options: of the encoder's own `Config`.
      wiring: "paper" or "smp"; see above. With "smp" the encoder is dilated
        as there, too.
      output_stride: of the encoder, 8 or 16; None takes 16 where the encoder
        can be dilated, and its own where not.
      rates: of the three atrous convolutions; None takes the wiring's.
      channels: of the decoder.
      separable: whether 3x3 convolutions are depthwise, then 1x1.
      dropout: before the upsampling, of single values; None takes the
        wiring's.
      head_bias: see `SegmentationHead`.
      remat: of the encoder.
    """

    encoder: str = "resnet50"
    encoder_options: tuple[tuple[str, Any], ...] = ()
    wiring: str = "paper"
    output_stride: int | None = None
    rates: tuple[int, int, int] | None = None
    channels: int = 256
    separable: bool = True
    dropout: float | None = None
    head_bias: float | Sequence[float] = 0.0
    remat: bool | tuple[int, ...] = False


VARIANTS = {"deeplabv3plus": Config()}


class SeparableConvNormRelu(nnx.Module):
    """Depthwise 3x3 at some rate, then 1x1, BatchNorm and ReLU.

    Args:
      norm_depthwise: whether BatchNorm and ReLU follow the depthwise one too.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        dilation: int,
        norm_depthwise: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(init=initializers.Uniform(), dtype=dtype, rngs=rngs)
        self.depthwise = layers.Conv(
            inputs,
            inputs,
            3,
            kernel_dilation=dilation,
            feature_group_count=inputs,
            use_bias=False,
            **options,
        )
        self.depthwise_norm = (
            norm_relu(inputs, dtype) if norm_depthwise else None
        )
        self.pointwise = layers.Conv(
            inputs, outputs, 1, use_bias=False, **options
        )
        self.norm = norm_relu(outputs, dtype)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h w outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h, w, outputs]`."""
        x = self.depthwise(x)
        if self.depthwise_norm is not None:
            x = self.depthwise_norm(x)
        return self.norm(self.pointwise(x))


class AtrousSpatialPyramidPooling(nnx.Module):
    """The same map at several scales: 1x1, three atrous 3x3, the mean."""

    def __init__(
        self,
        inputs: int,
        config: Config,
        rates: tuple[int, int, int],
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        outputs = config.channels
        options = dict(dtype=dtype, rngs=rngs)
        self.branches = nnx.List(
            [
                _conv1x1(inputs, outputs, **options),
                *(
                    _conv3x3(
                        inputs,
                        outputs,
                        rate,
                        config.separable,
                        config.wiring,
                        **options,
                    )
                    for rate in rates
                ),
            ]
        )
        self.pooled = _conv1x1(inputs, outputs, **options)
        self.project = _conv1x1(5 * outputs, outputs, **options)
        rate = config.dropout
        if rate is None:
            rate = 0.1 if config.wiring == "paper" else 0.5
        self.dropout = layers.Dropout(rate, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h w outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h, w, outputs]`."""
        scales = [branch(x) for branch in self.branches]
        mean = functional.at_least_float32(x).mean((1, 2), keepdims=True)
        pooled = self.pooled(mean.astype(x.dtype))
        scales.append(jnp.broadcast_to(pooled, scales[0].shape))
        return self.dropout(self.project(jnp.concatenate(scales, -1)))


class Decoder(nnx.Module):
    """ASPP on the last map, refined with a low-level one.

    Args:
      strides: of the encoder's maps, finest first.
      widths: of the same.
    """

    def __init__(
        self,
        strides: Sequence[int],
        widths: Sequence[int],
        config: Config,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        channels, smp = config.channels, config.wiring == "smp"
        # The finest map of at least that stride.
        self.low = next(
            index
            for index, stride in enumerate(strides)
            if stride >= min(LOW_STRIDE, strides[-1])
        )
        self.stride = strides[self.low]
        self.factor = strides[-1] // self.stride
        self.align_corners = smp
        rates = config.rates
        if rates is None:
            scaled = (max(1, 16 * r // strides[-1]) for r in PAPER_RATES)
            rates = SMP_RATES if smp else tuple(scaled)
        self.aspp = AtrousSpatialPyramidPooling(
            widths[-1], config, rates, **options
        )
        self.reduce = _conv1x1(widths[self.low], LOW_CHANNELS, **options)

        def conv3x3(inputs: int) -> ConvNormRelu | SeparableConvNormRelu:
            # smp's option makes only ASPP's convolutions dense.
            separable = config.separable or smp
            return _conv3x3(
                inputs, channels, 1, separable, config.wiring, **options
            )

        self.before = conv3x3(channels) if smp else None
        inputs = [channels + LOW_CHANNELS, channels]
        self.after = nnx.List(map(conv3x3, inputs[:1] if smp else inputs))

    def __call__(
        self, maps: list[Float[Array, "B _ _ _"]]
    ) -> Float[Array, "B h w C"]:
        """Maps the pyramid to `[B, h, w, C]`, of the low-level map's size."""
        low, x = maps[self.low], self.aspp(maps[-1])
        if self.before is not None:
            x = self.before(x)
        x = upsample_bilinear(
            x, self.factor, low.shape[1:3], align_corners=self.align_corners
        )
        x = jnp.concatenate([x, self.reduce(low)], -1)
        for conv in self.after:
            x = conv(x)
        return x


def _conv1x1(
    inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> ConvNormRelu:
    init = initializers.Uniform()
    return ConvNormRelu(inputs, outputs, 1, init=init, dtype=dtype, rngs=rngs)


def _conv3x3(
    inputs: int,
    outputs: int,
    dilation: int,
    separable: bool,
    wiring: str,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> ConvNormRelu | SeparableConvNormRelu:
    options = dict(dilation=dilation, dtype=dtype, rngs=rngs)
    if not separable:
        init = initializers.Uniform()
        return ConvNormRelu(inputs, outputs, 3, init=init, **options)
    return SeparableConvNormRelu(
        inputs, outputs, norm_depthwise=wiring == "paper", **options
    )


class DeepLabV3Plus(SegmentationModel):
    """DeepLabV3+ over any encoder, by its `Config`.

    Maps images `[B, H, W, 3]` of any size to logits `[B, H, W, num_classes]`.
    With smp's wiring over a ResNet it takes and gives the weights of
    segmentation_models_pytorch's `DeepLabV3Plus`.
    """

    TORCH_NAMES = (
        (r"^head\.fc\.", "segmentation_head.0."),
        (r"^decoder\.reduce\.conv\.", "decoder.block1.0."),
        (r"^decoder\.reduce\.norm\.", "decoder.block1.1."),
        (r"^decoder\.before\.norm\.", "decoder.aspp.2."),
        (r"^decoder\.before\.", "decoder.aspp.1."),
        (r"^decoder\.after\.0\.norm\.", "decoder.block2.1."),
        (r"^decoder\.after\.0\.", "decoder.block2.0."),
        (r"^decoder\.aspp\.pooled\.conv\.", "decoder.aspp.0.convs.4.1."),
        (r"^decoder\.aspp\.pooled\.norm\.", "decoder.aspp.0.convs.4.2."),
        (r"^decoder\.aspp\.project\.conv\.", "decoder.aspp.0.project.0."),
        (r"^decoder\.aspp\.project\.norm\.", "decoder.aspp.0.project.1."),
        (r"^decoder\.aspp\.branches\.", "decoder.aspp.0.convs."),
        (r"^(decoder\.aspp\.0\.convs\.\d\.)conv\.", r"\g<1>0."),
        (r"^(decoder\.aspp\.0\.convs\.\d\.)norm\.", r"\g<1>1."),
        (r"^(decoder\.aspp\.0\.convs\.\d\.)([a-z])", r"\g<1>0.\2"),
        (r"^(decoder\..+)\.depthwise\.", r"\1.0."),
        (r"^(decoder\..+)\.pointwise\.", r"\1.1."),
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
        if config.wiring not in WIRINGS:
            raise UserError(
                f"no DeepLabV3+ has wiring={config.wiring!r}; choose one of "
                f"{', '.join(WIRINGS)}"
            )
        stride = encoder.strides[-1]
        if config.output_stride not in (None, stride):
            raise UserError(
                f"{config.encoder} gives DeepLabV3+ a map of stride {stride}, "
                f"not {config.output_stride}; leave output_stride out, or "
                "choose an encoder that can be dilated, such as resnet50"
            )
        super().__init__(encoder)
        options = dict(dtype=dtype, rngs=rngs)
        self.decoder = Decoder(
            encoder.strides, encoder.channels, config, **options
        )
        self.head = SegmentationHead(
            config.channels,
            num_classes,
            1,
            head_bias=config.head_bias,
            init=initializers.Uniform(),
            **options,
        )

    @classmethod
    def encoder_options(cls, config: Config) -> dict[str, Any]:
        """The output stride, and smp's dilation with smp's wiring."""
        smp = config.wiring == "smp"
        return {
            "output_stride": config.output_stride or 16,
            "dilation": "smp" if smp else "torchvision",
        }

    def enlarge(
        self, logits: Float[Array, "B h w num_classes"]
    ) -> Float[Array, "B H W num_classes"]:
        """Interpolates the logits to the size of the images, or larger."""
        return upsample_bilinear(
            logits,
            self.decoder.stride,
            align_corners=self.decoder.align_corners,
        )
