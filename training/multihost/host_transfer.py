"""Arrays between the memory of process 0 and the devices of all processes.

Checkpoints are process 0's, so what is saved comes together there, and what is
loaded goes out from there: array by array, so that no device ever holds more
than a whole array beside its own parts of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from training.multihost import comm

# As much goes out at a time.
_BYTES_AT_ONCE, _FEWEST_BYTES = 2**26, 2**12


def gather_to_primary(arrays: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Returns copies of arrays in the memory of process 0.

    To be called in all processes, whose devices may be changing the arrays as
    soon as it returns.

    Args:
      arrays: on the mesh, by name.

    Returns:
      The same as NumPy, whole; nothing in the other processes.
    """
    found = {}
    for name, array in arrays.items():
        whole = _copied(array)
        if whole is not None:
            found[name] = whole
    return found


def broadcast_from_primary(
    arrays: Mapping[str, np.ndarray],
    like: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.Array]:
    """Returns arrays of process 0 on the devices of all processes.

    The very bits go out, so also the sign of a zero.

    Args:
      arrays: of the shapes in `like`; read in process 0 alone.
      like: shapes, dtypes and placements, by name.
    """
    placed = {}
    for name, leaf in like.items():
        whole = _sent(arrays.get(name), leaf)
        placed[name] = jax.make_array_from_callback(
            leaf.shape, leaf.sharding, whole.__getitem__
        )
    return placed


def _copied(array: jax.Array) -> np.ndarray | None:
    if not _lies_with_first(array):
        # Waited for, or the others would queue all of them up.
        array = jax.block_until_ready(_replicated(array))
    if not comm.is_primary():
        return None
    whole, seen = np.empty(array.shape, array.dtype), set()
    for shard in array.addressable_shards:
        if str(shard.index) not in seen:
            seen.add(str(shard.index))
            whole[shard.index] = shard.data
    return whole


def _lies_with_first(array: jax.Array) -> bool:
    """Whether the devices of process 0 hold all parts of an array."""
    places = array.sharding.devices_indices_map(array.shape).items()
    own = {str(index) for device, index in places if device.process_index == 0}
    return own == {str(index) for _, index in places}


def _replicated(array: jax.Array) -> jax.Array:
    whole = NamedSharding(array.sharding.mesh, PartitionSpec())
    return jax.jit(_same, out_shardings=whole)(array)


def _same(array: jax.Array) -> jax.Array:
    return array


def _sent(array: np.ndarray | None, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """The array of process 0, in every process."""
    whole = np.empty(leaf.shape, leaf.dtype)
    if comm.is_primary():
        whole[...] = array
    content = whole.reshape(-1).view(np.uint8)
    for start in range(0, len(content), _BYTES_AT_ONCE):
        part = content[start : start + _BYTES_AT_ONCE]
        # Of few sizes, since each is a program.
        size = max(_FEWEST_BYTES, 2 ** math.ceil(math.log2(len(part))))
        chunk = np.zeros(size, np.uint8)
        chunk[: len(part)] = part
        # As integers, which a sum over processes leaves as they are.
        words = multihost_utils.broadcast_one_to_all(chunk.view(np.uint32))
        part[:] = np.asarray(words).view(np.uint8)[: len(part)]
    return whole
