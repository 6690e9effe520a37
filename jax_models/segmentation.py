"""What networks for semantic segmentation share: an encoder, any image size.

Such a network is an encoder with a feature pyramid (any classifier of the
zoo, without what lies behind its pyramid), a decoder, and a head that gives a
logit per class and cell. Its parameters lie under the top-level names
`encoder`, `decoder` and `head`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from core.errors import UserError
from jax_models import functional, initializers, layers
from jax_models.model import ImageModel

# The name under which every network keeps its encoder.
ENCODER = "encoder"
# PyTorch's defaults, with which decoders are published.
BN_EPSILON = 1e-5
BN_MOMENTUM = 0.9


class SegmentationModel(nnx.Module):
    """A logit for each class and pixel.

    Args:
      encoder: any model of `create_model` with a feature pyramid. What lies
        behind the pyramid is taken off.

    Attributes:
      TORCH_NAMES: as `ImageModel`'s, for decoder and head.
    """

    TORCH_NAMES: ClassVar[tuple[tuple[str, str], ...]] = ()

    decoder: nnx.Module
    head: SegmentationHead

    def __init__(self, encoder: ImageModel):
        encoder.check_as_encoder()
        for name in encoder.BEHIND_PYRAMID:
            delattr(encoder, name)
        self.encoder = encoder

    @classmethod
    def encoder_options(cls, config: Any) -> dict[str, Any]:
        """What the network asks of encoders that have such options.

        Args:
          config: of the network.
        """
        return {}

    def feature_pyramid(
        self, images: Float[Array, "B H W 3"]
    ) -> list[Float[Array, "B _ _ _"]]:
        """Maps `[B, H, W, 3]` to the encoder's maps, finest first.

        Raises:
          UserError: the images are no batch of colour images.
        """
        return self.encoder.feature_pyramid(self._pad(images))

    def features(
        self, images: Float[Array, "B H W 3"]
    ) -> Float[Array, "B h w C"]:
        """Maps `[B, H, W, 3]` to the decoder's `[B, h, w, C]`, which the head
        takes.

        Raises:
          UserError: as `feature_pyramid`.
        """
        images = self._pad(images)
        maps = self.encoder.feature_pyramid(images)
        return self.decoder(maps, images.shape[1:3])

    def __call__(
        self, images: Float[Array, "B H W 3"]
    ) -> Float[Array, "B H W num_classes"]:
        """Maps `[B, H, W, 3]` of any size to logits `[B, H, W, num_classes]`,
        float32.

        Raises:
          UserError: as `feature_pyramid`.
        """
        logits = self.enlarge(self.head(self.features(images)))
        return logits[:, : images.shape[1], : images.shape[2]]

    def enlarge(
        self, logits: Float[Array, "B h w num_classes"]
    ) -> Float[Array, "B H W num_classes"]:
        """Brings the head's logits to the size of the images, or larger."""
        return logits

    def _pad(self, images: jax.Array) -> jax.Array:
        """Adds zeros below and to the right, for an encoder that would drop
        the pixels there which fill no cell."""
        if self.encoder.ROUNDS_UP or images.ndim != 4:
            return images
        unit = self.encoder.strides[-1]
        rows, columns = (-length % unit for length in images.shape[1:3])
        return jnp.pad(images, ((0, 0), (0, rows), (0, columns), (0, 0)))

    def load_encoder(self, classifier: ImageModel) -> None:
        """Copies the weights and statistics of a classifier's encoder.

        Args:
          classifier: of the same name and options as the encoder; dilation
            and dropout may differ.

        Raises:
          UserError: it has not all that the encoder has; nothing is copied.
        """
        kinds = nnx.Any(nnx.Param, nnx.BatchStat)
        theirs = dict(nnx.to_flat_state(nnx.state(classifier, kinds)))
        ours = dict(nnx.to_flat_state(nnx.state(self.encoder, kinds)))
        lacking = [
            "/".join(map(str, path))
            for path, variable in ours.items()
            if path not in theirs or theirs[path].shape != variable.shape
        ]
        if lacking:
            raise UserError(
                f"this {type(classifier).__name__} is not the encoder of this "
                f"{type(self).__name__}: it lacks {len(lacking)} of "
                f"{len(ours)} arrays, or has them in other shapes, such as "
                f"{lacking[0]}; make both with the same name and options"
            )
        copied = {path: jnp.copy(theirs[path][...]) for path in ours}
        nnx.update(self.encoder, nnx.traversals.unflatten_mapping(copied))


class SegmentationHead(nnx.Module):
    """One convolution to a logit per class and cell, in float32 at least.

    Args:
      channels: of the decoder's map.
      num_classes: width of the logits.
      kernel_size: of the convolution.
      head_bias: what its bias starts from: a number, or one for each class,
        such as the logarithm of the classes' shares of pixels; None leaves
        the bias out.
      init: of its filters.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        kernel_size: int,
        *,
        head_bias: float | Sequence[float] | None,
        init: initializers.Initializer,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.fc = layers.Conv(
            channels,
            num_classes,
            kernel_size,
            use_bias=head_bias is not None,
            bias_init=0.0 if head_bias is None else head_bias,
            init=init,
            dtype=jnp.promote_types(dtype, jnp.float32),
            rngs=rngs,
        )
        self.init = init
        self.head_bias = head_bias

    def reset(self, rngs: nnx.Rngs) -> None:
        """Draws the convolution anew, as it was made."""
        layers.reset_classifier(self.fc, self.init, self.head_bias, rngs)

    def __call__(
        self, features: Float[Array, "B h w C"]
    ) -> Float[Array, "B h w num_classes"]:
        """Maps `[B, h, w, C]` to logits `[B, h, w, num_classes]`."""
        return self.fc(functional.at_least_float32(features))


class ConvNormRelu(nnx.Module):
    """A convolution, BatchNorm and ReLU; the map keeps its size."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        *,
        dilation: int = 1,
        init: initializers.Initializer,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = layers.Conv(
            inputs,
            outputs,
            kernel_size,
            kernel_dilation=dilation,
            use_bias=False,
            init=init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = norm_relu(outputs, dtype)

    def __call__(
        self, x: Float[Array, "B h w inputs"]
    ) -> Float[Array, "B h w outputs"]:
        """Maps `[B, h, w, inputs]` to `[B, h, w, outputs]`."""
        return self.norm(self.conv(x))


def norm_relu(channels: int, dtype: DTypeLike) -> layers.BatchNorm:
    """BatchNorm with PyTorch's constants, and ReLU."""
    return layers.BatchNorm(
        channels,
        epsilon=BN_EPSILON,
        momentum=BN_MOMENTUM,
        activation=functional.relu,
        dtype=dtype,
    )


def upsample_nearest(
    x: Float[Array, "B h w C"], factor: int, size: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """Repeats every cell `factor` times down and across, cut to `size`.

    A map with a cell for every `factor` pixels of `size`, rounded up, so
    becomes what PyTorch's interpolation to `size` gives.
    """
    x = jnp.repeat(jnp.repeat(x, factor, 1), factor, 2)
    return x[:, : size[0], : size[1]]


def upsample_bilinear(
    x: Float[Array, "B h w C"],
    factor: int,
    size: tuple[int, int] | None = None,
    *,
    align_corners: bool = False,
) -> Float[Array, "B H W C"]:
    """Interpolates to `factor` times the size, cut to `size`.

    Args:
      x: the map.
      factor: how many cells it gets for one, down and across.
      size: what is kept of the result; all of it when left out.
      align_corners: whether the centres of the outermost cells stay where
        they are, as in some of PyTorch's networks; otherwise the edges do.
    """
    height, width = size or (factor * x.shape[1], factor * x.shape[2])
    wide = functional.at_least_float32(x)
    # Across first, while there are fewer rows.
    for axis, length in ((2, width), (1, height)):
        matrix = _interpolation(x.shape[axis], factor, align_corners)
        matrix = matrix[:length].astype(wide.dtype)
        subscripts = "Ww,bhwc->bhWc" if axis == 2 else "Hh,bhwc->bHwc"
        wide = jnp.einsum(
            subscripts, matrix, wide, precision=lax.Precision.HIGHEST
        )
    return wide.astype(x.dtype)


def _interpolation(
    length: int, factor: int, align_corners: bool
) -> Float[np.ndarray, "outputs inputs"]:
    """What each of `factor * length` cells takes from each of `length`."""
    places = np.arange(factor * length)
    if align_corners:
        places = places * (length - 1) / max(factor * length - 1, 1)
    else:
        places = np.clip((places + 0.5) / factor - 0.5, 0, length - 1)
    distance = np.abs(places[:, None] - np.arange(length))
    return np.maximum(1 - distance, 0)
