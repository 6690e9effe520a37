"""Embeddings: a classifier without its classes, and a unit vector instead.

Pictures of one identity are to lie close together, and how close two pictures
lie is the cosine of their vectors. Pooling and neck are as common in face
recognition and retrieval: average or generalised-mean pooling (Radenovic et
al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018,
arXiv 1711.02512), a linear layer and BatchNorm (Deng et al., "ArcFace", CVPR
2019, arXiv 1801.07698, its output E), unit length. In aligned pictures a place
in the map is a part of the face: a grid of cells, each pooled, keeps them apart
as ArcFace's linear layer over the whole map does.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from core.errors import UserError
from jax_models import initializers, layers
from jax_models.functional import at_least_float32
from jax_models.model import ImageModel
from jax_models.segmentation import BN_EPSILON, BN_MOMENTUM, norm_relu

# Below it a value counts as this one: GeM takes no power of 0.
GEM_FLOOR = 1e-6
# The shortest vector that is made longer; a shorter one becomes 0.
SHORTEST = 1e-12

POOLINGS = ("avg", "gem")


@dataclasses.dataclass(frozen=True)
class Config:
    """What may be overridden.

    Attributes:
      encoder: one of `list_models()`.
      encoder_options: of the encoder's own `Config`.
      pooling: "avg", or "gem" with a power that is learned, from 3.
      grid: cells on a side of the map, each pooled by itself; 1 forgets where
        in the picture something is. For pictures that are aligned.
      width: of the embedding; 0 takes the pooled features as they are, as
        torchvision's networks without their last layer give them.
      dropout: of the pooled features, before the linear layer.
      forgery_head: whether a second head tells real pictures from forged.
      forgery_width: inside that head.
      memory: rows of earlier batches that the class head keeps for the loss
        (Wang et al., "Cross-Batch Memory", CVPR 2020, arXiv 1912.06798).
      remat: of the encoder.
    """

    encoder: str = "resnet34"
    encoder_options: tuple[tuple[str, Any], ...] = ()
    pooling: str = "avg"
    grid: int = 1
    width: int = 512
    dropout: float = 0.0
    forgery_head: bool = False
    forgery_width: int = 64
    memory: int = 0
    remat: bool | tuple[int, ...] = False


VARIANTS = {"embedding": Config()}


class Embedded(NamedTuple):
    """What is known of some pictures.

    Attributes:
      embedding: float32 `[B, D]`, of unit length.
      norm: float32 `[B]`, its length before.
      real_logit: float32 `[B]`, log-odds of being real; 0 without a head
        that can tell.
    """

    embedding: Float[Array, "B D"]
    norm: Float[Array, " B"]
    real_logit: Float[Array, " B"]


def cell_means(
    x: Float[Array, "B h w C"], grid: int
) -> Float[Array, "B grid grid C"]:
    """Averages `[B, h, w, C]` over `grid` x `grid` cells that cover the map.

    Cell i covers rows floor(i h / grid) to ceil((i + 1) h / grid), as PyTorch's
    AdaptiveAvgPool2d: where h is no multiple of `grid` neighbours share a row.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        x = jnp.stack(
            [
                jax.lax.slice_in_dim(
                    x, i * size // grid, -(-(i + 1) * size // grid), axis=axis
                ).mean(axis)
                for i in range(grid)
            ],
            axis,
        )
    return x


class GeneralizedMean(nnx.Module):
    """`(mean x^p)^(1/p)` of each cell: p is learned; 1 is the mean."""

    def __init__(self, power: float = 3.0):
        self.power = nnx.Param(jnp.full((), power, jnp.float32))

    def __call__(
        self, x: Float[Array, "B h w C"], grid: int = 1
    ) -> Float[Array, "B grid grid C"]:
        """Maps `[B, h, w, C]` to `[B, grid, grid, C]`."""
        power = self.power[...]
        x = jnp.maximum(x, GEM_FLOOR) ** power
        # A high power of a map of zeros underflows, and the root has no
        # gradient at 0.
        means = jnp.maximum(cell_means(x, grid), jnp.finfo(x.dtype).tiny)
        return means ** (1 / power)


class Neck(nnx.Module):
    """A linear layer without bias, and BatchNorm."""

    def __init__(
        self,
        channels: int,
        width: int,
        dropout: float,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.dropout = layers.Dropout(dropout, rngs=rngs)
        self.fc = layers.Linear(
            channels,
            width,
            use_bias=False,
            init=initializers.Uniform(),
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = layers.BatchNorm(
            width, epsilon=BN_EPSILON, momentum=BN_MOMENTUM, dtype=dtype
        )

    def __call__(self, x: Float[Array, "B C"]) -> Float[Array, "B D"]:
        """Maps `[B, C]` to `[B, D]`."""
        return self.norm(self.fc(self.dropout(x)))


class ForgeryHead(nnx.Module):
    """Tells real pictures from forged ones by every map of the pyramid.

    What a blend, a warp or a second compression leaves is fine texture, which
    the last map has forgotten.
    """

    def __init__(
        self, channels: int, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        options = dict(init=initializers.Uniform(), dtype=dtype, rngs=rngs)
        self.scale = layers.BatchNorm(
            channels, epsilon=BN_EPSILON, momentum=BN_MOMENTUM, dtype=dtype
        )
        self.fc1 = layers.Linear(channels, width, use_bias=False, **options)
        self.norm = norm_relu(width, dtype)
        self.fc2 = layers.Linear(width, 1, **options)

    def __call__(
        self, maps: list[Float[Array, "B _ _ _"]]
    ) -> Float[Array, " B"]:
        """Maps the pyramid to the log-odds of a real picture, `[B]`."""
        x = [at_least_float32(each).mean((1, 2)) for each in maps]
        x = self.scale(jnp.concatenate(x, -1))
        return self.fc2(self.norm(self.fc1(x)))[:, 0]


class ClassHead(nnx.Module):
    """Unit vectors of the classes, and what the loss remembers.

    Needed by losses while training; an embedding is used without it.
    """

    def __init__(
        self, width: int, num_classes: int, memory: int, *, rngs: nnx.Rngs
    ):
        # About unit vectors: Adam turns longer ones too slowly.
        self.kernel = (
            initializers.weight(
                rngs, (width, num_classes), initializers.Normal(width**-0.5)
            )
            if num_classes
            else None
        )
        self.memory = Memory(memory, width) if memory else None

    @property
    def weights(self) -> Float[Array, "num_classes D"]:
        """A unit vector for each class."""
        return unit(self.kernel[...].T)[0]

    def __call__(
        self, embedding: Float[Array, "B D"]
    ) -> Float[Array, "B num_classes"]:
        """Maps unit vectors `[B, D]` to cosines `[B, num_classes]`."""
        return embedding @ self.weights.T


class Memory(nnx.Module):
    """Embeddings of earlier batches, oldest overwritten first.

    Of the kind that BatchNorm's statistics are: no gradient, saved with the
    weights.
    """

    def __init__(self, rows: int, width: int):
        self.embeddings = nnx.BatchStat(jnp.zeros((rows, width), jnp.float32))
        # Float, as averages of the weights go over all statistics.
        self.labels = nnx.BatchStat(jnp.zeros((rows,), jnp.float32))
        self.filled = nnx.BatchStat(jnp.zeros((rows,), jnp.float32))
        self.next = nnx.BatchStat(jnp.zeros((), jnp.float32))


class EmbeddingModel(nnx.Module):
    """Unit vectors of pictures over any encoder, by its `Config`.

    Its parameters lie under `encoder`, `pool`, `neck`, `forgery` and `head`;
    `head` holds what belongs to the classes it was trained on.

    Args:
      config: of the network.
      num_classes: of the class head; 0 gives it no class.
      encoder: any model of `create_model`. Its own head is taken off.

    Raises:
      UserError: an option cannot be.
    """

    TORCH_NAMES: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(
        self,
        config: Config,
        num_classes: int,
        *,
        encoder: ImageModel,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if config.pooling not in POOLINGS:
            raise UserError(
                f"no embedding has pooling={config.pooling!r}; choose one of "
                f"{', '.join(POOLINGS)}"
            )
        if (
            min(config.width, config.memory) < 0
            or min(config.forgery_width, config.grid) < 1
        ):
            raise UserError(
                f"no embedding has width={config.width}, memory="
                f"{config.memory}, forgery_width={config.forgery_width} and "
                f"grid={config.grid}; the first two are 0 or more, the others "
                "1 or more"
            )
        channels = encoder.head.fc.in_features * config.grid**2
        del encoder.head
        self.encoder = encoder
        self.grid = config.grid
        self.pool = GeneralizedMean() if config.pooling == "gem" else None
        # What is pooled is small, and cosines are compared closely.
        options = dict(dtype=jnp.promote_types(dtype, jnp.float32), rngs=rngs)
        self.width = config.width or channels
        self.neck = (
            Neck(channels, config.width, config.dropout, **options)
            if config.width
            else None
        )
        self.forgery = (
            ForgeryHead(sum(encoder.channels), config.forgery_width, **options)
            if config.forgery_head
            else None
        )
        self.head = (
            ClassHead(self.width, num_classes, config.memory, rngs=rngs)
            if num_classes or config.memory
            else None
        )

    @classmethod
    def encoder_options(cls, config: Config) -> dict[str, Any]:
        """What the network asks of encoders that have such options."""
        return {}

    def embed(self, images: Float[Array, "B H W 3"]) -> Embedded:
        """Maps `[B, H, W, 3]` to unit vectors, and what else is known.

        Raises:
          UserError: the images have a size or shape that the encoder does not
            take.
        """
        maps = self.encoder.feature_pyramid(images)
        last = at_least_float32(self.encoder.refine(maps[-1]))
        pool = cell_means if self.pool is None else self.pool
        pooled = pool(last, self.grid)  # [B, grid, grid, C]
        # An exported network has a batch of any size: a shape, no number.
        pooled = pooled.reshape(last.shape[0], -1)  # [B, grid² C]
        if self.neck is not None:
            pooled = self.neck(pooled)
        embedding, norm = unit(pooled)
        if self.forgery is None:
            return Embedded(embedding, norm, jnp.zeros_like(norm))
        return Embedded(embedding, norm, self.forgery(maps))

    def __call__(
        self, images: Float[Array, "B H W 3"]
    ) -> Float[Array, "B num_classes"]:
        """Maps `[B, H, W, 3]` to cosines to the classes, float32.

        Raises:
          UserError: as `embed`, or there is no class head.
        """
        embedding = self.embed(images).embedding
        if self.head is None or self.head.kernel is None:
            raise UserError(
                "this embedding was made for 0 classes; call its embed, or "
                "give create_model a num_classes"
            )
        return self.head(embedding)


def unit(
    vectors: Float[Array, "N D"],
) -> tuple[Float[Array, "N D"], Float[Array, " N"]]:
    """Brings vectors to length 1; float32, with their lengths before.

    A vector of length 0 stays, and its gradient is 0: that of a square root
    would be infinite.
    """
    vectors = at_least_float32(vectors)
    squares = jnp.square(vectors).sum(-1)
    norm = jnp.sqrt(jnp.maximum(squares, SHORTEST**2))
    factor = jnp.where(squares > SHORTEST**2, 1 / norm, 0.0)
    return vectors * factor[:, None], norm
