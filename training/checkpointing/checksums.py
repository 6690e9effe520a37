"""Checksums that tell whether a checkpoint is the one that was saved."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def checksum_arrays(
    arrays: Mapping[str, jax.Array],
) -> tuple[dict[str, int], list[str]]:
    """Returns {name: checksum}, and the names of arrays that are not finite.

    The checksum is the sum of an array's words, each times an odd number that
    follows from its place, modulo 2^32. One flipped bit always changes it,
    since an odd factor keeps a power of two from vanishing; the order of
    summation never does, so the shards of any layout add up to the same.
    (Orbax itself returned flipped bytes without complaint.)

    Args:
      arrays: of 1, 2 or 4 bytes per element.
    """
    names = sorted(arrays)
    look = _look_on_host
    if jax.default_backend() != "cpu":
        look = _look_on_device
    found = look([arrays[name] for name in names])
    sums = {name: int(pair[0]) for name, pair in zip(names, found, strict=True)}
    infinite = [
        name for name, pair in zip(names, found, strict=True) if pair[1]
    ]
    return sums, infinite


def _look_on_device(arrays: Sequence[jax.Array]) -> np.ndarray:
    """Sum and wrongness of each array, uint32 [N, 2].

    Each where it lies, so that the sums alone travel to the host. A program
    for each shape, of which even a large model has a few dozen.
    """
    return np.array(jax.device_get([_sum_up(array) for array in arrays]))


@jax.jit
def _sum_up(array: jax.Array) -> jax.Array:
    finite = jnp.array(True)
    if jnp.issubdtype(array.dtype, jnp.floating):
        finite = jnp.isfinite(array).all()
    place = jnp.uint32(1)
    for axis in range(array.ndim):
        stride = 2 * math.prod(array.shape[axis + 1 :]) % 2**32
        along = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        place = place + along * jnp.uint32(stride)
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    kind = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    words = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
    total = (words * place).sum(dtype=jnp.uint32)
    return jnp.stack([total, (~finite).astype(jnp.uint32)])


def _look_on_host(arrays: Sequence[jax.Array]) -> np.ndarray:
    """The same, of arrays that lie in the host's memory anyway."""
    found = np.array([_look_at(array) for array in arrays], np.uint32)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        gather_params = multihost_utils.process_allgather(found)
        found = gather_params.sum(axis=0, dtype=np.uint32)
    return found


def _look_at(array: jax.Array) -> tuple[np.uint32, bool]:
    """This process's part of the sum, each shard once; whether it is wrong."""
    total, infinite = np.uint32(0), False
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            values = np.asarray(shard.data)
            products = _words(values) * _places(shard.index, array.shape)
            with np.errstate(over="ignore"):  # Modulo 2^32, as it should be.
                total += products.sum(dtype=np.uint32)
            if np.issubdtype(values.dtype, np.floating):
                infinite |= not np.isfinite(values).all()
    return total, infinite


def _words(values: np.ndarray) -> np.ndarray:
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[values.dtype.itemsize]
    return np.ascontiguousarray(values).view(kind).astype(np.uint32, copy=False)


def _places(index: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Twice the flat position plus one, uint32, of a shard of an array."""
    place = np.ones((), np.uint32)
    for axis, (part, size) in enumerate(zip(index, shape, strict=True)):
        stride = 2 * math.prod(shape[axis + 1 :]) % 2**32
        along = np.arange(*part.indices(size), dtype=np.uint32)
        place = place[..., None] + along * np.uint32(stride)
    return place


def add_hash(content: Any) -> dict[str, Any]:
    """Returns JSON-able `content` with a hash of itself."""
    return {"content": content, "sha256": _hash(content)}


def verify_hash(sealed: Any) -> Any:
    """Returns the content of `add_hash`.

    Raises:
      ValueError: it is not what was sealed.
    """
    if not isinstance(sealed, dict) or set(sealed) != {"content", "sha256"}:
        raise ValueError("its description is missing")
    if _hash(sealed["content"]) != sealed["sha256"]:
        raise ValueError("its description has changed")
    return sealed["content"]


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
