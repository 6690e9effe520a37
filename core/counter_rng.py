"""Random numbers by their place: a hash of a key and a counter.

For what one number each of rows or pixels decides. JAX's own generator is as
good as it gets and costs accordingly: on a CPU it is a loop that XLA compiles
anew wherever it stands. A hash is a few operations that become part of the
loop that uses the number, and a number does not depend on which others are
drawn, so parts of a batch and devices draw what the whole batch would.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# 2^32 over the golden ratio: the finaliser makes 0 of 0.
_START = np.uint32(0x9E3779B9)


@jax.jit
def bits(
    key: jax.Array, places: jax.Array, stream: jax.Array | int = 0
) -> jax.Array:
    """Returns random bits for places.

    MurmurHash3's finaliser, once for every word of the key: every bit of
    place, key and stream changes half of what comes out. There are 2^32
    places; what is numbered beyond begins again.

    Args:
      key: a JAX random key. Keys that were split or folded from another, as
        all are in a training, are independent.
      places: integers of any shape; distinct places never share their bits.
      stream: which of the key's sequences of numbers, an integer.

    Returns:
      uint32 of `places`' shape.
    """
    first, *others = jax.random.key_data(key)
    found = _mixed((places.astype(jnp.uint32) + _START) ^ first)
    # Not before the first round, or streams would be one sequence, shifted.
    found = found ^ _mixed(jnp.uint32(stream) + _START)
    for word in others:
        found = _mixed(found ^ word)
    return found


def uniform(
    key: jax.Array, places: jax.Array, stream: jax.Array | int = 0
) -> jax.Array:
    """Returns numbers in [0, 1), multiples of 2^-24: float32, as `bits`."""
    high = bits(key, places, stream) >> 8
    return high.astype(jnp.float32) * jnp.float32(2**-24)


def uniforms(
    key: jax.Array, rows: int, columns: int, stream: int = 0
) -> jax.Array:
    """Returns `uniform` for a table `[rows, columns]`."""
    places = jnp.arange(rows * columns, dtype=jnp.uint32)
    return uniform(key, places.reshape(rows, columns), stream)


def whole_below(numbers: jax.Array, bound: jax.Array | int) -> jax.Array:
    """Makes of `uniform` numbers whole ones from 0 to below `bound`: int32.

    There are 2^24 numbers, so `bound` should be far below that.
    """
    # The product may round up to the bound itself.
    return jnp.minimum((numbers * bound).astype(jnp.int32), bound - 1)


def _mixed(found: jax.Array) -> jax.Array:
    found = (found ^ (found >> 16)) * jnp.uint32(0x85EBCA6B)
    found = (found ^ (found >> 13)) * jnp.uint32(0xC2B2AE35)
    return found ^ (found >> 16)
