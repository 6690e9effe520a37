"""Counter-based random numbers: a hash of a key and a counter.

For one random number per row or pixel. JAX's own generator (Threefry) is
stronger and costs accordingly: on a CPU it is a loop that XLA compiles anew at
every call site. A hash is a few operations that fuse into the loop that uses
the number. A number depends on its counter alone, so shards of a batch, on any
number of devices, draw the numbers of the whole batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# 2^32 over the golden ratio: the finaliser maps 0 to 0.
_START = np.uint32(0x9E3779B9)


@jax.jit
def bits(
    key: jax.Array, counters: jax.Array, stream: jax.Array | int = 0
) -> jax.Array:
    """Returns random bits for counters.

    MurmurHash3's finaliser (Appleby 2011), once for every word of the key:
    every bit of counter, key and stream flips half of the output bits.
    Counters are taken modulo 2^32.

    Args:
      key: a JAX random key. Keys split or folded from another are
        independent.
      counters: integers of any shape; distinct counters never share their
        bits.
      stream: which of the key's sequences, an integer.

    Returns:
      uint32 of `counters`' shape.
    """
    first, *others = jax.random.key_data(key)
    hashed = _finalise((counters.astype(jnp.uint32) + _START) ^ first)
    # After the first round: before it, streams would be shifts of each other.
    hashed = hashed ^ _finalise(jnp.uint32(stream) + _START)
    for word in others:
        hashed = _finalise(hashed ^ word)
    return hashed


def uniform(
    key: jax.Array, counters: jax.Array, stream: jax.Array | int = 0
) -> jax.Array:
    """Returns float32 in [0, 1), multiples of 2^-24; arguments as `bits`."""
    high = bits(key, counters, stream) >> 8
    return high.astype(jnp.float32) * jnp.float32(2**-24)


def uniform_table(
    key: jax.Array, rows: int, columns: int, stream: int = 0
) -> jax.Array:
    """Returns `uniform` numbers, float32 `[rows, columns]`."""
    counters = jnp.arange(rows * columns, dtype=jnp.uint32)
    return uniform(key, counters.reshape(rows, columns), stream)


def integers_below(numbers: jax.Array, bound: jax.Array | int) -> jax.Array:
    """Maps `uniform` numbers to integers in [0, bound), int32.

    `uniform` has 2^24 values, so `bound` should be far below that.
    """
    # The product may round up to the bound itself.
    return jnp.minimum((numbers * bound).astype(jnp.int32), bound - 1)


def _finalise(hashed: jax.Array) -> jax.Array:
    hashed = (hashed ^ (hashed >> 16)) * jnp.uint32(0x85EBCA6B)
    hashed = (hashed ^ (hashed >> 13)) * jnp.uint32(0xC2B2AE35)
    return hashed ^ (hashed >> 16)
