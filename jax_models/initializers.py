"""Initial weights, from one draw for a whole network."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Normal:
    """Normal with standard deviation `std`."""

    std: float

    def __call__(
        self,
        uniform: Float[Array, " N"],
        normal: Float[Array, " N"],
        shape: tuple[int, ...],
    ) -> Float[Array, " N"]:
        """Returns a flat weight of `shape`, from as much noise of each kind."""
        del uniform, shape
        return normal * self.std


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Uniform in +-gain/sqrt(fan).

    The fan is the product of all axes but the last (PyTorch's default for
    convolutions), or the last axis where `fan_out`.
    """

    fan_out: bool = False
    gain: float = 1.0

    def __call__(
        self,
        uniform: Float[Array, " N"],
        normal: Float[Array, " N"],
        shape: tuple[int, ...],
    ) -> Float[Array, " N"]:
        """Returns a flat weight of `shape`, from as much noise of each kind."""
        del normal
        fan = shape[-1] if self.fan_out else math.prod(shape[:-1])
        return self.gain * uniform / math.sqrt(fan)


# For layers before a rectifier (He et al., arXiv 1502.01852, section 2.2).
HE_UNIFORM = Uniform(gain=math.sqrt(6))


@dataclasses.dataclass(frozen=True)
class GlorotUniform:
    """Uniform in +-sqrt(6 / (fan in + fan out)) (Glorot & Bengio 2010)."""

    def __call__(
        self,
        uniform: Float[Array, " N"],
        normal: Float[Array, " N"],
        shape: tuple[int, ...],
    ) -> Float[Array, " N"]:
        """Returns a flat weight of `shape`, from as much noise of each kind."""
        del normal
        fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
        return uniform * math.sqrt(6 / fans)


@dataclasses.dataclass(frozen=True)
class FanOutNormal:
    """Normal with variance 2 / (height * width * outputs of a group).

    He et al., "Delving Deep into Rectifiers", arXiv 1502.01852, section 2.2.
    Each group of a `depthwise` convolution has one output.
    """

    depthwise: bool = False

    def __call__(
        self,
        uniform: Float[Array, " N"],
        normal: Float[Array, " N"],
        shape: tuple[int, ...],
    ) -> Float[Array, " N"]:
        """Returns a flat weight of `shape`, from as much noise of each kind."""
        del uniform
        fan = math.prod(shape[:-2]) * (1 if self.depthwise else shape[-1])
        return normal * math.sqrt(2 / fan)


Initializer = Normal | Uniform | GlorotUniform | FanOutNormal

# The published `trunc_normal_(std=.02)` of transformers and ConvNeXt, which
# truncates at +-2 in absolute terms, a hundred deviations away.
NORMAL_02 = Normal(0.02)

_deferred: contextvars.ContextVar[list | None] = contextvars.ContextVar(
    "deferred", default=None
)


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], init: Initializer
) -> nnx.Param:
    """A random parameter of `shape`, float32, drawn now or by `one_draw`."""
    deferred = _deferred.get()
    if deferred is None:
        uniform, normal = _noise(rngs, math.prod(shape))
        value = init(uniform, normal, shape).reshape(shape)
        return nnx.Param(value)
    param = nnx.Param(jnp.zeros(shape, jnp.float32))
    deferred.append((param, init))
    return param


@contextlib.contextmanager
def one_draw(rngs: nnx.Rngs) -> Iterator[None]:
    """Draws all weights made inside the block at once, when it ends.

    A generator for each weight would be compiled for each weight: 20 seconds
    for a network of fifty layers, against less than one for a single draw.
    """
    deferred = []
    token = _deferred.set(deferred)
    try:
        yield
    finally:
        _deferred.reset(token)
    sizes = [math.prod(param.shape) for param, _ in deferred]
    uniform, normal = _noise(rngs, sum(sizes))
    start = 0
    for (param, init), size in zip(deferred, sizes, strict=True):
        cut = slice(start, start + size)
        value = init(uniform[cut], normal[cut], param.shape)
        param.set_value(value.reshape(param.shape))
        start += size


class NoRngs:
    """Given to layers of nnx whose weights `weight` replaces."""

    def params(self) -> None:
        """No key: nothing is drawn."""


def _noise(rngs: nnx.Rngs, size: int) -> tuple[jax.Array, jax.Array]:
    """The same noise twice: uniform in (-1, 1), and standard normal."""
    # NumPy's, as Python's would become float64 where that is allowed.
    low, high = np.nextafter(np.float32(-1), np.float32(0)), np.float32(1)
    uniform = jax.random.uniform(rngs.params(), (size,), jnp.float32, low, high)
    return uniform, math.sqrt(2) * lax.erf_inv(uniform)
