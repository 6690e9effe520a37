"""The networks of the reference for digits of 32x32 pixels, as a table.

They were written in Keras for a competition of street-view digits with
impulse noise: BatchNorm epsilon 1e-3 and momentum .99, Glorot's uniform
weights. They are here as they were, to compare with; parameter counts, those
of BatchNorm's statistics among them, are the reference's to the last one. What
was wrong with their training is put right in the recipes.

They are no encoders: unpadded convolutions and U-Nets in front of a classifier
leave no map whose cells lie over the image's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from core.errors import UserError
from jax_models import functional, initializers, layers
from jax_models.model import ImageModel

BN_EPSILON = 1e-3
BN_MOMENTUM = 0.99
GLOROT = initializers.GlorotUniform()

# A layer in the tables below: its kind, and what that kind needs.
Op = tuple


def _leaky_relu(x: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(x, 0.3)


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], 1, 1, -1)


BN: Op = ("norm",)
RELU: Op = ("apply", functional.relu)
LEAKY: Op = ("apply", _leaky_relu)
SIGMOID: Op = ("apply", jax.nn.sigmoid)
POOL: Op = ("pool", "max", 2, "VALID")
HALVE: Op = ("pool", "mean", 2, "VALID")
FLATTEN: Op = ("flatten",)


def _conv(
    width: int,
    size: int = 3,
    stride: int = 1,
    padding: str = "SAME",
    bias: bool = True,
    init: initializers.Initializer = GLOROT,
) -> Op:
    return "conv", width, size, stride, padding, bias, init


def _up(width: int, bias: bool = False) -> Op:
    return "up", width, bias


def _dense(width: int) -> Op:
    return "dense", width


def _drop(rate: float) -> Op:
    return ("drop", rate)


def _plus(*ops: Op) -> Op:
    """Adds what the layers make of their input to it."""
    return "plus", *ops


def _beside(*ops: Op) -> Op:
    """Puts what the layers make of their input beside it."""
    return "beside", *ops


def _cnn(*behind_conv: Op, last: tuple[Op, ...]) -> tuple[Op, ...]:
    maps = [
        op
        for width in (16, 32, 64)
        for op in (_conv(width), RELU, *behind_conv, POOL)
    ]
    neck = [
        op for width in (256, 160) for op in (_dense(width), RELU, _drop(0.2))
    ]
    return (*maps, FLATTEN, *neck, _dense(40), RELU, *last)


CNN2 = _cnn(_drop(0.2), BN, last=(_drop(0.2), BN))
CNN3 = _cnn(BN, _drop(0.2), last=(BN, _drop(0.2)))


def _resnet(
    inside: tuple[Op, ...] = (), between: tuple[Op, ...] = ()
) -> tuple[Op, ...]:
    """`inside` follows BatchNorm in blocks, `between` that between them."""
    ops = [_conv(64), BN, RELU]
    for width in (64, 128, 256):
        if width > 64:
            ops += [_conv(width, stride=2), BN, *between, RELU]
        first = (_conv(width), BN, *inside, RELU)
        block = _plus(*first, _conv(width), BN, *inside)
        ops += [block, RELU] * 3
    return (*ops, FLATTEN)


def _unet(
    downs: tuple[int, ...],
    ups: tuple[int, ...],
    norm_first: bool,
    head: tuple[Op, ...],
) -> tuple[Op, ...]:
    """Squeezed to three channels by a sigmoid, then `head`."""
    inner: tuple[Op, ...] = ()
    for index in reversed(range(len(downs))):
        norm = (BN,) if index or norm_first else ()
        conv = _conv(
            downs[index], 4, 2, bias=False, init=initializers.NORMAL_02
        )
        inner = (conv, *norm, _drop(0.5), LEAKY, *inner)
        if index:
            up = _up(ups[len(downs) - 1 - index])
            inner = (_beside(*inner, up, BN, _drop(0.5), RELU),)
    return (*inner, _up(3, bias=True), SIGMOID, *head)


_ACTIVE = (BN, _drop(0.4), RELU)


def _densenet(
    stem: tuple[Op, ...],
    layer: tuple[Op, ...],
    growth: int,
    last: tuple[Op, ...],
) -> tuple[Op, ...]:
    ops, width = [*stem], 64
    for number, depth in enumerate((6, 12, 24, 16)):
        if number:
            width //= 2
            ops += [*_ACTIVE, _conv(width, 1), HALVE]
        ops += [_beside(*layer)] * depth
        width += growth * depth
    return (*ops, *last)


_BOTTLENECK = (*_ACTIVE, _conv(128, 1), *_ACTIVE, _conv(32))
_PLAIN = (*_ACTIVE, _conv(12))
_VALID = (_conv(64, padding="VALID", bias=False),)
_UNET2_HEAD = (
    *(_conv(16), BN, _drop(0.4), POOL),
    *(_conv(32), BN, _drop(0.4), POOL),
    *(_conv(64), BN, _drop(0.4), FLATTEN),
    *(_dense(512), RELU, _drop(0.4)),
    *(_dense(512), RELU, BN, _drop(0.2)),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """One network, and what may be overridden.

    Attributes:
      ops: its layers but the last, which gives the logits.
      image_size: height and width of images, which a network with a flattened
        map is made for.
      dropout: rate of all dropout; None for what the reference had.
      head_bias: see `layers.Head`.
      remat: see `ImageModel`; index i is the (i + 1)-th layer of the table.
    """

    ops: tuple[Op, ...]
    image_size: tuple[int, int] = (32, 32)
    dropout: float | None = None
    head_bias: float | Sequence[float] | None = 0.0
    remat: bool | tuple[int, ...] = False


VARIANTS = {
    "digits_cnn2": Config(CNN2),
    "digits_cnn3": Config(CNN3),
    "digits_resnet1": Config(_resnet()),
    "digits_resnet2": Config(_resnet((_drop(0.5),))),
    "digits_resnet3": Config(_resnet((_drop(0.4),), (_drop(0.4),))),
    "digits_unet1": Config(
        _unet((64, 128, 256, 512), (512, 256, 128), False, CNN3)
    ),
    "digits_unet2": Config(
        _unet((64, 128, 256), (256, 128), True, _UNET2_HEAD)
    ),
    "digits_densenet1": Config(
        _densenet(
            (_conv(64, 7, 2), ("pool", "max", 3, "SAME")), _BOTTLENECK, 32, ()
        )
    ),
    "digits_densenet2": Config(_densenet(_VALID, _PLAIN, 12, (BN, RELU))),
    "digits_densenet22": Config(_densenet(_VALID, _PLAIN, 12, _ACTIVE)),
}


class Apply(nnx.Module):
    """A function without parameters."""

    def __init__(self, function: functional.Activation):
        self.function = function

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ _"]:
        """Maps `[B, h, w, C]` as the function does."""
        return self.function(x)


class Pool(nnx.Module):
    """The largest or the mean of square cells, with stride 2."""

    def __init__(self, kind: str, size: int, padding: str):
        self.kind, self.size, self.padding = kind, size, padding

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ C"]:
        """Maps `[B, h, w, C]` to `[B, h / 2, w / 2, C]`."""
        pool = nnx.max_pool if self.kind == "max" else nnx.avg_pool
        cells = (self.size, self.size)
        return pool(x, cells, (2, 2), self.padding).astype(x.dtype)


class Up(nnx.ConvTranspose):
    """A transposed 4x4 convolution to twice the size."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            inputs,
            outputs,
            (4, 4),
            (2, 2),
            use_bias=bias,
            kernel_init=nnx.initializers.zeros_init(),
            dtype=dtype,
            rngs=initializers.NoRngs(),
        )
        self.kernel = initializers.weight(
            rngs, self.kernel.shape, initializers.NORMAL_02
        )


class Branch(nnx.Module):
    """Layers whose result is added to their input, or put beside it."""

    def __init__(self, kind: str, inside: list[nnx.Module]):
        self.kind = kind
        self.layers = nnx.List(inside)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w _"]:
        """Maps `[B, h, w, C]` to as many channels ("plus"), or more."""
        branch = x
        for layer in self.layers:
            branch = layer(branch)
        if self.kind == "plus":
            return x + branch
        return jnp.concatenate((branch, x), -1)


Shape = tuple[int, int, int]


def _pooled(length: int, size: int, stride: int, padding: str) -> int:
    if padding == "SAME":
        return -(-length // stride)
    return (length - size) // stride + 1


def _make(
    op: Op, shape: Shape, dropout: float | None, **options
) -> tuple[nnx.Module, Shape]:
    """One layer of a table, and the shape of what it gives."""
    height, width, channels = shape
    dtype, rngs = options["dtype"], options["rngs"]
    match op:
        case ("conv", outputs, size, stride, padding, bias, init):
            how = size, stride, padding
            layer = layers.Conv(
                *(channels, outputs, size, stride),
                padding=padding,
                use_bias=bias,
                init=init,
                **options,
            )
            shape = _pooled(height, *how), _pooled(width, *how), outputs
        case ("up", outputs, bias):
            layer = Up(channels, outputs, bias, **options)
            shape = 2 * height, 2 * width, outputs
        case ("dense", outputs):
            layer = layers.Linear(channels, outputs, init=GLOROT, **options)
            shape = height, width, outputs
        case ("norm",):
            layer = layers.BatchNorm(
                channels, epsilon=BN_EPSILON, momentum=BN_MOMENTUM, dtype=dtype
            )
        case ("drop", rate):
            layer = layers.Dropout(
                rate if dropout is None else dropout, rngs=rngs
            )
        case ("apply", function):
            layer = Apply(function)
        case ("pool", kind, size, padding):
            layer = Pool(kind, size, padding)
            how = size, 2, padding
            shape = _pooled(height, *how), _pooled(width, *how), channels
        case ("flatten",):
            layer, shape = Apply(_flatten), (1, 1, height * width * channels)
        case ("plus" | "beside" as kind, *ops):
            inside, made = _make_all(ops, shape, dropout, **options)
            layer = Branch(kind, inside)
            if kind == "beside":
                shape = *made[:2], made[2] + channels
    return layer, shape


def _make_all(
    ops: Sequence[Op], shape: Shape, dropout: float | None, **options
) -> tuple[list[nnx.Module], Shape]:
    made = []
    for op in ops:
        layer, shape = _make(op, shape, dropout, **options)
        if 0 in shape:
            raise UserError("image_size leaves no map; choose a larger one")
        made.append(layer)
    return made, shape


class DigitsReference(ImageModel):
    """A network of the table, by its `Config`.

    Maps images `[B, 32, 32, 3]` to logits `[B, num_classes]`. The pyramid has
    one map, the last: `[B, 1, 1, C]` where the network flattens it.
    """

    ALIGNED = False
    counted_at = 32

    def __init__(
        self,
        config: Config,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        shape = (*config.image_size, 3)
        made, (height, _, channels) = _make_all(
            config.ops, shape, config.dropout, **options
        )
        self.layers = nnx.List(made)
        self.remat = config.remat
        if FLATTEN in config.ops:
            self.image_size = tuple(config.image_size)
        self.minimum_size = min(config.image_size)
        _, self.stem_channels, _, self.stem_stride, *_ = config.ops[0]
        self.strides = (config.image_size[0] // height,)
        self.channels = (channels,)
        self.head = layers.Head(
            channels,
            num_classes,
            norm_epsilon=None,
            dropout=0.0,
            head_bias=config.head_bias,
            init=GLOROT,
            **options,
        )

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Maps `[B, H, W, 3]` to what the first layer gives."""
        return self.layers[0](images)

    def encode(
        self, embedded: Float[Array, "B h w C"]
    ) -> list[Float[Array, "B _ _ _"]]:
        """Maps the first layer's output to the last map."""
        x = embedded
        for index, layer in enumerate(self.layers[1:]):
            x = self.run_block(index, layer, x)
        return [x]
