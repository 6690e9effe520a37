"""Arrays between host memory of the primary and devices of all processes.

The primary alone reads and writes checkpoints, so arrays are gathered there to
be saved, and broadcast from there when loaded: one at a time, so that a device
never holds more than one unsharded array beside its own shards of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from training.multihost import comm

# Largest and smallest message of a broadcast.
_MAX_BYTES, _MIN_BYTES = 2**26, 2**12


def gather_to_primary(arrays: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Gathers copies of arrays in the memory of the primary.

    A collective. The arrays may be donated as soon as it returns.

    Args:
      arrays: on the mesh, by name.

    Returns:
      The same as NumPy, unsharded; {} in the other processes.
    """
    found = {}
    for name, array in arrays.items():
        whole = _gather(array)
        if whole is not None:
            found[name] = whole
    return found


def broadcast_from_primary(
    arrays: Mapping[str, np.ndarray],
    like: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.Array]:
    """Broadcasts arrays of the primary to the devices of all processes.

    A collective, bit-exact: also for NaN and the sign of a zero.

    Args:
      arrays: of the shapes in `like`; read in the primary alone.
      like: shapes, dtypes and shardings, by name.
    """
    placed = {}
    for name, leaf in like.items():
        whole = _broadcast(arrays.get(name), leaf)
        placed[name] = jax.make_array_from_callback(
            leaf.shape, leaf.sharding, whole.__getitem__
        )
    return placed


def _gather(array: jax.Array) -> np.ndarray | None:
    if not _is_on_primary(array):
        # Blocks, or the other processes would replicate all arrays at once.
        array = jax.block_until_ready(_replicate(array))
    if not comm.is_primary():
        return None
    whole, seen = np.empty(array.shape, array.dtype), set()
    for shard in array.addressable_shards:
        if str(shard.index) not in seen:
            seen.add(str(shard.index))
            whole[shard.index] = shard.data
    return whole


def _is_on_primary(array: jax.Array) -> bool:
    """Whether the devices of the primary hold all shards of an array."""
    places = array.sharding.devices_indices_map(array.shape).items()
    own = {str(index) for device, index in places if device.process_index == 0}
    return own == {str(index) for _, index in places}


def _replicate(array: jax.Array) -> jax.Array:
    whole = NamedSharding(array.sharding.mesh, PartitionSpec())
    return jax.jit(_identity, out_shardings=whole)(array)


def _identity(array: jax.Array) -> jax.Array:
    return array


def _broadcast(
    array: np.ndarray | None, leaf: jax.ShapeDtypeStruct
) -> np.ndarray:
    """Returns the primary's array in every process."""
    whole = np.empty(leaf.shape, leaf.dtype)
    if comm.is_primary():
        whole[...] = array
    content = whole.reshape(-1).view(np.uint8)
    for start in range(0, len(content), _MAX_BYTES):
        part = content[start : start + _MAX_BYTES]
        # Few sizes, because each is a program to compile.
        size = max(_MIN_BYTES, 2 ** math.ceil(math.log2(len(part))))
        chunk = np.zeros(size, np.uint8)
        chunk[: len(part)] = part
        # As integers, which the sum over processes does not change.
        words = multihost_utils.broadcast_one_to_all(chunk.view(np.uint32))
        part[:] = np.asarray(words).view(np.uint8)[: len(part)]
    return whole
