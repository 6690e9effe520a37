"""Device meshes, partition rules and placement of arrays.

The mesh has the axes `data` and `fsdp`. A batch is split by rows over both, so
every device trains on rows of its own. Parameters are replicated or, with
fsdp > 1, the large ones are sharded over the devices of an `fsdp` group (ZeRO,
Rajbhandari et al. 2020): a device keeps its shards of them, of their optimizer
state and of their moving average. A step gathers each once, as the forward
pass comes to it, and keeps it until the backward pass has passed it.

Models know nothing of this: an array's sharding follows from its path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from core.errors import UserError

AXES = ("data", "fsdp")

# Of every array of a batch: rows over all devices.
BATCH_SPEC = PartitionSpec(("data", "fsdp"))

# Smaller arrays are replicated: gathering their shards at every step would take
# longer than 64 KiB are worth.
MIN_SHARDED_SIZE = 2**14


def make_mesh(
    fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Returns a mesh of all devices of all processes.

    Args:
      fsdp: devices that share one copy of the parameters; -1 takes all. The
        devices of a group are neighbours, of one host as far as they go.
      devices: only these.

    Raises:
      UserError: the devices do not divide into such groups.
    """
    count = jax.device_count() if devices is None else len(devices)
    fsdp = count if fsdp == -1 else fsdp
    if fsdp < 1 or count % fsdp:
        fitting = [n for n in range(1, count + 1) if count % n == 0]
        raise UserError(
            f"mesh.fsdp is {fsdp}, into which {count} devices do not "
            "divide; set --config.mesh.fsdp to -1 (all) or one of "
            f"{', '.join(map(str, fitting))}"
        )
    # Explicit axes, the default of make_mesh, break grouped convolutions.
    return jax.make_mesh(
        (count // fsdp, fsdp),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices,
    )


def describe_mesh(mesh: Mesh) -> str:
    """Returns the devices in a few words, for people."""
    devices = mesh.devices.ravel()
    text = f"{len(devices)} x {devices[0].device_kind}"
    if mesh.shape["fsdp"] > 1:
        text += f", {mesh.shape['data']} x {mesh.shape['fsdp']} data x fsdp"
    if jax.process_count() > 1:
        text += f", in {jax.process_count()} processes"
    return text


# ---- Rules: from an array's path and shape to its layout --------------------


def replicate(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """A copy on every device."""
    return PartitionSpec()


def shard_largest(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Shards over `fsdp` along the largest dimension that it divides."""
    shards = mesh.shape["fsdp"]
    dividing = [size for size in shape if size % shards == 0]
    if shards == 1 or math.prod(shape) < MIN_SHARDED_SIZE or not dividing:
        return PartitionSpec()
    axis = shape.index(max(dividing))
    return PartitionSpec(*[None] * axis, "fsdp")


Rule = Callable[[tuple[int, ...], Mesh], PartitionSpec]

# The first pattern found in a path decides. Optimizer state and moving averages
# have paths that end with their parameter's own, and so are sharded like it.
PARTITION_RULES: tuple[tuple[str, Rule], ...] = (
    (r"/kernel$", shard_largest),
    (r"", replicate),
)


def path_name(path: tuple) -> str:
    """Returns a tree path as text, `stages/0/…`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def with_shardings(shapes: Any, mesh: Mesh) -> Any:
    """Returns the tree with the sharding of every array.

    Args:
      shapes: a tree of arrays or of `jax.ShapeDtypeStruct`s.
      mesh: from `make_mesh`.

    Returns:
      The same tree of `jax.ShapeDtypeStruct`s, sharded by `PARTITION_RULES`.
    """

    def place(path, leaf):
        name = "/" + path_name(path)
        rule = next(
            rule for found, rule in PARTITION_RULES if re.search(found, name)
        )
        sharding = NamedSharding(mesh, rule(leaf.shape, mesh))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def shardings_of(placed: Any) -> Any:
    """Returns the shardings in a tree from `with_shardings`."""
    return jax.tree.map(lambda leaf: leaf.sharding, placed)


def describe(params: Any, mesh: Mesh) -> list[str]:
    """Returns a table of how each large parameter is sharded.

    Args:
      params: a tree of arrays or shapes; equal blocks share a line.
      mesh: from `make_mesh`.
    """
    groups: dict[tuple, int] = {}
    small = 0
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        with_shardings(params, mesh)
    )
    for path, leaf in leaves:
        if math.prod(leaf.shape) < MIN_SHARDED_SIZE:
            small += 1
            continue
        name = re.sub(r"/\d+(?=/)", "/*", path_name(path))
        key = (name, leaf.shape, leaf.sharding.shard_shape(leaf.shape))
        groups[key] = groups.get(key, 0) + 1
    lines = [
        f"{count:3} x {_size(shape):<18} "
        + (f"{_size(shard):<18} " if shard != shape else f"{'whole':<18} ")
        + name
        for (name, shape, shard), count in groups.items()
    ]
    return [
        f"{'':3}   {'shape':<18} {'on a device':<18} parameter",
        *lines,
        f"{small:3} of fewer than {MIN_SHARDED_SIZE:,} numbers, whole",
    ]


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


# ---- Arrays on the mesh ------------------------------------------------------


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def gather_params(params: Any, mesh: Mesh) -> Any:
    """All-gathers sharded `params`, inside a jitted step.

    Left to itself, XLA may move activations between devices rather than
    parameters, which are smaller. When each is gathered is for XLA to decide:
    the TPU compiler does it layer by layer, in the dtype that the layer
    computes in, and keeps it for the backward pass (docs/scaling.md).
    """
    if mesh.shape["fsdp"] == 1:
        return params
    return jax.lax.with_sharding_constraint(params, replicated(mesh))


def scatter_grads(grads: Any, mesh: Mesh) -> Any:
    """Reduce-scatters gradients to their parameters' shardings, in a step."""
    if mesh.shape["fsdp"] == 1:
        return grads
    return jax.lax.with_sharding_constraint(
        grads, shardings_of(with_shardings(grads, mesh))
    )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns which rows of the global batch this process's devices hold.

    Args:
      mesh: from `make_mesh`.
      batch_size: rows over all processes.

    Returns:
      int [b], ascending: the rows that `put_batch` takes here.
    """
    rows = NamedSharding(mesh, BATCH_SPEC)
    slices = rows.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(
        np.concatenate([np.arange(batch_size)[index] for index in slices])
    )


def put_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
    """Moves a host batch to the devices, split along its first axis.

    Args:
      batch: arrays `[b, ...]`, the rows `local_rows` of the global batch.
      mesh: from `make_mesh`.

    Returns:
      Arrays `[B, ...]`, each device holding its own rows.
    """
    rows = NamedSharding(mesh, BATCH_SPEC)
    return {
        name: jax.make_array_from_process_local_data(rows, array)
        for name, array in batch.items()
    }


def put_constants(constants: Any, mesh: Mesh) -> Any:
    """Replicates arrays that every step reads, once.

    Args:
      constants: a tree of arrays. Arrays on the mesh and abstract shapes are
        returned unchanged.
      mesh: from `make_mesh`.
    """

    def put(leaf):
        if isinstance(getattr(leaf, "sharding", None), NamedSharding):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jax.device_put(np.asarray(leaf), replicated(mesh))

    return jax.tree.map(put, constants)


def abstract(constants: Any, mesh: Mesh) -> Any:
    """Returns shapes for a tree of arrays, replicated over a mesh.

    Args:
      constants: arrays; shapes that have a sharding keep it.
      mesh: whose devices need not be there.
    """

    def shape_of(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        array = np.asarray(leaf)
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        return jax.ShapeDtypeStruct(
            array.shape, dtype, sharding=replicated(mesh)
        )

    return jax.tree.map(shape_of, constants)


def to_host(arrays: Any) -> Any:
    """Returns a tree of global arrays as NumPy, gathered in every process."""
    if jax.process_count() == 1:
        return jax.device_get(arrays)
    return multihost_utils.process_allgather(arrays, tiled=True)
