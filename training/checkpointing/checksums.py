"""Checksums of arrays, independent of their sharding, and hashes of JSON."""

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
    """Returns {name: checksum}, and the names of non-finite arrays.

    The checksum is the sum modulo 2^32 of an array's words, each multiplied by
    2 i + 1 for its flat index i. A flipped bit always changes it, because a
    power of two times an odd factor is not 0 modulo 2^32; the order of
    summation does not, so any sharding gives the same sum. (Orbax itself
    returned flipped bytes without complaint.)

    Args:
      arrays: of 1, 2 or 4 bytes per element.
    """
    names = sorted(arrays)
    scan = _scan_on_host
    if jax.default_backend() != "cpu":
        scan = _scan_on_device
    found = scan([arrays[name] for name in names])
    sums = {name: int(pair[0]) for name, pair in zip(names, found, strict=True)}
    infinite = [
        name for name, pair in zip(names, found, strict=True) if pair[1]
    ]
    return sums, infinite


def _scan_on_device(arrays: Sequence[jax.Array]) -> np.ndarray:
    """Checksum and non-finiteness of each array, uint32 [N, 2].

    Computed on the devices, so that only the results are copied to the host.
    One program per shape, of which even a large model has a few dozen.
    """
    return np.array(jax.device_get([_scan_array(array) for array in arrays]))


@jax.jit
def _scan_array(array: jax.Array) -> jax.Array:
    finite = jnp.array(True)
    if jnp.issubdtype(array.dtype, jnp.floating):
        finite = jnp.isfinite(array).all()
    factor = jnp.uint32(1)
    for axis in range(array.ndim):
        stride = 2 * math.prod(array.shape[axis + 1 :]) % 2**32
        along = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        factor = factor + along * jnp.uint32(stride)
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    kind = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    words = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
    total = (words * factor).sum(dtype=jnp.uint32)
    return jnp.stack([total, (~finite).astype(jnp.uint32)])


def _scan_on_host(arrays: Sequence[jax.Array]) -> np.ndarray:
    """The same for CPU devices, whose arrays are in host memory anyway.

    A process that holds all of an array checks its own copy; of an array that
    is split over processes, each adds up its shards.
    """
    scans = [_scan_shards(array) for array in arrays]
    found = np.array([scan[:2] for scan in scans], np.uint32)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        parts = np.array([scan[2:] for scan in scans], np.uint32)
        gathered = multihost_utils.process_allgather(parts[:, :2])
        total = gathered.sum(axis=0, dtype=np.uint32)
        found = np.where(parts[:, 2:] > 0, found, total)
    return found


def _scan_shards(array: jax.Array) -> tuple[int, ...]:
    """Scans the shards of this process.

    Returns:
      Checksum and non-finiteness of all of them, each part once; the same of
      those that are the first of their replicas anywhere; whether they are
      the whole array.
    """
    whole, first, seen, size = [0, 0], [0, 0], set(), 0
    shards = sorted(array.addressable_shards, key=lambda x: x.replica_id)
    for shard in shards:
        if str(shard.index) in seen:
            continue
        seen.add(str(shard.index))
        values = np.asarray(shard.data)
        products = _words(values) * _factors(shard.index, array.shape)
        scan = [int(products.sum(dtype=np.uint32)), 0]  # Modulo 2^32.
        if np.issubdtype(values.dtype, np.floating):
            scan[1] = int(not np.isfinite(values).all())
        for sums in (whole, first)[: 1 + (shard.replica_id == 0)]:
            sums[0] = (sums[0] + scan[0]) % 2**32
            sums[1] |= scan[1]
        size += values.size
    return (*whole, *first, int(size == array.size))


def _words(values: np.ndarray) -> np.ndarray:
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[values.dtype.itemsize]
    return np.ascontiguousarray(values).view(kind).astype(np.uint32, copy=False)


def _factors(index: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """2 i + 1 for the flat indices i of a shard of an array, uint32."""
    factors = np.ones((), np.uint32)
    for axis, (part, size) in enumerate(zip(index, shape, strict=True)):
        stride = 2 * math.prod(shape[axis + 1 :]) % 2**32
        along = np.arange(*part.indices(size), dtype=np.uint32)
        factors = factors[..., None] + along * np.uint32(stride)
    return factors


def add_hash(content: Any) -> dict[str, Any]:
    """Returns JSON-able `content` with a hash of itself."""
    return {"content": content, "sha256": _hash(content)}


def verify_hash(hashed: Any) -> Any:
    """Returns the content of `add_hash`.

    Raises:
      ValueError: the hash differs.
    """
    if not isinstance(hashed, dict) or set(hashed) != {"content", "sha256"}:
        raise ValueError("its description is missing")
    if _hash(hashed["content"]) != hashed["sha256"]:
        raise ValueError("its description has changed")
    return hashed["content"]


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
