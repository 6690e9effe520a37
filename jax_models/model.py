"""What every architecture offers: logits, last features, all features."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from core.errors import UserError
from jax_models import layers

# The name under which every model keeps its classifier, and nothing else.
HEAD = "head"
# What `re.sub` takes as a replacement.
TorchName = str | Callable[[re.Match], str]


class ImageModel(nnx.Module):
    """A classifier over images, in three pieces that can be used alone.

    `embed` is the stem; `encode` takes the stem's output through the stages;
    `head` pools and classifies. Masked autoencoders put their mask token
    between the first two, segmentation reads the pyramid.

    In every model the classifier's parameters are exactly those under the
    top-level name `head` (`HEAD`): the classifying matrix, its bias, and the
    LayerNorm between pooling and matrix where the network has one. All others
    are the encoder's, and `features` needs all of them.

    Attributes:
      TORCH_NAMES: where the modules' names differ from timm's: regular
        expressions and replacements, for `import_torch`.
      BEHIND_PYRAMID: attributes that the pyramid does not need.
      ROUNDS_UP: whether a map has a cell for pixels that fill none.
      ALIGNED: whether cell i of a map lies over pixels from i times its
        stride on, as decoders and masked autoencoders need.
      PUBLISHED_MEAN: of the channels, over 0..1: what published weights expect
        to be subtracted from images; ImageNet's, unless they say otherwise.
      PUBLISHED_STD: what they expect images to be divided by then.
      strides: pixels per cell of each map in the pyramid, finest first.
      channels: width of each map in the pyramid.
      stem_stride: pixels per cell of `embed`'s output.
      stem_channels: width of `embed`'s output.
      minimum_size: the smallest height and width that the model takes.
      counted_at: side of the image whose multiply-adds tables show.
      image_size: the only height and width that the model takes, or None.
      remat: which stages recompute their blocks' inner values when going
        backward (`layers.rematerialize`): a bool for all of them, or their
        indices.
    """

    TORCH_NAMES: ClassVar[tuple[tuple[str, TorchName], ...]] = ()
    BEHIND_PYRAMID: ClassVar[tuple[str, ...]] = (HEAD,)
    ROUNDS_UP: ClassVar[bool] = True
    ALIGNED: ClassVar[bool] = True
    PUBLISHED_MEAN: ClassVar[tuple[float, float, float]] = (0.485, 0.456, 0.406)
    PUBLISHED_STD: ClassVar[tuple[float, float, float]] = (0.229, 0.224, 0.225)

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    stem_stride: int
    stem_channels: int
    minimum_size: int
    counted_at: int = 224
    image_size: tuple[int, int] | None = None
    remat: bool | tuple[int, ...]
    head: layers.Head

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Maps images `[B, H, W, 3]` to the stem's `[B, h, w, C]`."""
        raise TypeError(f"{type(self).__name__} must define embed")

    def encode(
        self, embedded: Float[Array, "B h w C"]
    ) -> list[Float[Array, "B _ _ _"]]:
        """Maps the stem's `[B, h, w, C]` to the maps of every stage."""
        raise TypeError(f"{type(self).__name__} must define encode")

    def feature_pyramid(
        self, images: Float[Array, "B H W 3"]
    ) -> list[Float[Array, "B _ _ _"]]:
        """Maps `[B, H, W, 3]` to a list of `[B, h, w, C]`, finest first.

        The maps' strides and widths are `self.strides`, `self.channels`.

        Raises:
          UserError: the images have a size or shape that the model does not
            take.
        """
        self.check(images)
        return self.encode(self.embed(images))

    def features(
        self, images: Float[Array, "B H W 3"]
    ) -> Float[Array, "B h w C"]:
        """Maps `[B, H, W, 3]` to the last map `[B, h, w, C]`, which the head
        pools.

        Raises:
          UserError: as `feature_pyramid`.
        """
        return self.refine(self.feature_pyramid(images)[-1])

    def refine(self, last: Float[Array, "B h w _"]) -> Float[Array, "B h w C"]:
        """Maps the pyramid's last map to what the head pools: what lies
        between the two, nothing in most networks."""
        return last

    def __call__(
        self, images: Float[Array, "B H W 3"]
    ) -> Float[Array, "B num_classes"]:
        """Maps `[B, H, W, 3]` to logits `[B, num_classes]`, float32.

        Raises:
          UserError: as `feature_pyramid`.
        """
        return self.head(self.features(images))

    def check(self, images: jax.Array) -> None:
        """Refuses what is no batch of colour images of a possible size."""
        if images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(
                f"{type(self).__name__} takes images of shape [batch, height, "
                f"width, 3], not {list(images.shape)}; put the channels last "
                "and repeat a grey channel three times"
            )
        height, width = images.shape[1:3]
        if min(height, width) < self.minimum_size:
            raise UserError(
                f"{type(self).__name__} takes images of at least "
                f"{self.minimum_size} x {self.minimum_size} pixels, not "
                f"{height} x {width}; make the images larger"
            )
        if self.image_size not in (None, (height, width)):
            rows, columns = self.image_size
            raise UserError(
                f"{type(self).__name__} takes images of {rows} x {columns} "
                f"pixels, not {height} x {width}; set image_size, of the "
                "recipe or among its model_options"
            )

    def check_as_encoder(self) -> None:
        """Refuses a network whose maps a decoder cannot place."""
        if not self.ALIGNED:
            raise UserError(
                f"{type(self).__name__} cannot be an encoder: its maps do not "
                "lie over whole cells of the image; choose another network"
            )

    def published_names(
        self, state_dict: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """Brings a state dict of other published code to the names that
        `TORCH_NAMES` gives; names it does not know stay."""
        return state_dict

    def run_block(
        self, stage: int, block: nnx.Module, x: jax.Array
    ) -> jax.Array:
        """Applies one block of a stage, as `remat` says for that stage."""
        if isinstance(self.remat, bool):
            rematerialized = self.remat
        else:
            rematerialized = stage in self.remat
        return layers.rematerialize(block, x) if rematerialized else block(x)
