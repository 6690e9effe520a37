"""Where arrays live: the mesh, and the rules that lay arrays out on it.

The mesh has the axes `data`, `fsdp` and `model`. A batch is split by rows
over the first two together, so every device trains on rows of its own.
Parameters are whole on every device, or, with fsdp > 1, the large ones are
split over the devices of an `fsdp` group (ZeRO, Rajbhandari et al. 2020): a
device keeps its part of them, of their optimizer state and of their moving
average, and they are put together for the time of a step. `model` is kept
for splitting the computation itself, and has size 1.

Models know nothing of this: an array's layout follows from its path.
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

AXES = ("data", "fsdp", "model")

# What a batch is split over.
ROWS = PartitionSpec(("data", "fsdp"))

# Arrays of fewer numbers stay whole: sending their parts around would take
# longer than keeping 64 KiB costs.
SMALLEST_SPLIT = 2**14


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
        (count // fsdp, fsdp, 1),
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


def whole(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """A copy on every device."""
    return PartitionSpec()


def split_largest(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Split over `fsdp` along the largest dimension that it divides."""
    parts = mesh.shape["fsdp"]
    dividing = [size for size in shape if size % parts == 0]
    if parts == 1 or math.prod(shape) < SMALLEST_SPLIT or not dividing:
        return PartitionSpec()
    axis = shape.index(max(dividing))
    return PartitionSpec(*[None] * axis, "fsdp")


Rule = Callable[[tuple[int, ...], Mesh], PartitionSpec]

# The first pattern that is found in a path decides; what none is found in
# stays whole. Optimizer state and moving averages of a parameter have paths
# that end with the parameter's own, and so are laid out like it.
RULES: tuple[tuple[str, Rule], ...] = (
    (r"/kernel$", split_largest),
    (r"", whole),
)


def path_of(path: tuple) -> str:
    """Returns a leaf's place in a tree of arrays as text, `stages/0/…`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def with_shardings(shapes: Any, mesh: Mesh) -> Any:
    """Returns the tree with the placement of every array.

    Args:
      shapes: a tree of arrays or of `jax.ShapeDtypeStruct`s.
      mesh: from `make_mesh`.

    Returns:
      The same tree of `jax.ShapeDtypeStruct`s, with shardings by `RULES`.
    """

    def place(path, leaf):
        name = "/" + path_of(path)
        rule = next(rule for found, rule in RULES if re.search(found, name))
        sharding = NamedSharding(mesh, rule(leaf.shape, mesh))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def shardings_of(placed: Any) -> Any:
    """Returns the shardings in a tree from `with_shardings`."""
    return jax.tree.map(lambda leaf: leaf.sharding, placed)


def describe(params: Any, mesh: Mesh) -> list[str]:
    """Returns lines that say how each large parameter is laid out.

    Args:
      params: a tree of arrays or shapes; blocks that are alike share a line.
      mesh: from `make_mesh`.
    """
    groups: dict[tuple, int] = {}
    small = 0
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        with_shardings(params, mesh)
    )
    for path, leaf in leaves:
        if math.prod(leaf.shape) < SMALLEST_SPLIT:
            small += 1
            continue
        name = re.sub(r"/\d+(?=/)", "/*", path_of(path))
        key = (name, leaf.shape, leaf.sharding.shard_shape(leaf.shape))
        groups[key] = groups.get(key, 0) + 1
    lines = [
        f"{count:3} x {_size(shape):<18} "
        + (f"{_size(part):<18} " if part != shape else f"{'whole':<18} ")
        + name
        for (name, shape, part), count in groups.items()
    ]
    return [
        f"{'':3}   {'shape':<18} {'on a device':<18} parameter",
        *lines,
        f"{small:3} of fewer than {SMALLEST_SPLIT:,} numbers, whole",
    ]


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


# ---- Arrays on the mesh ------------------------------------------------------


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the placement of a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def gather_params(params: Any, mesh: Mesh) -> Any:
    """Returns `params` whole on every device, inside a jitted step.

    Left to itself, XLA may send activations around rather than parameters,
    which are smaller.
    """
    if mesh.shape["fsdp"] == 1:
        return params
    return jax.lax.with_sharding_constraint(params, replicated(mesh))


def scatter_grads(grads: Any, mesh: Mesh) -> Any:
    """Returns gradients laid out like their parameters, inside a step."""
    if mesh.shape["fsdp"] == 1:
        return grads
    return jax.lax.with_sharding_constraint(
        grads, shardings_of(with_shardings(grads, mesh))
    )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns which rows of a batch this process's devices hold.

    Args:
      mesh: from `make_mesh`.
      batch_size: rows over all processes.

    Returns:
      int [b], ascending: what `put_batch` takes from this process.
    """
    rows = NamedSharding(mesh, ROWS)
    parts = rows.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(
        np.concatenate([np.arange(batch_size)[index] for index in parts])
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
    rows = NamedSharding(mesh, ROWS)
    return {
        name: jax.make_array_from_process_local_data(rows, array)
        for name, array in batch.items()
    }


def put_constants(constants: Any, mesh: Mesh) -> Any:
    """Moves what every step reads to the devices, once: a whole copy each.

    Args:
      constants: a tree of arrays; what lies on the mesh already, and what is
        only a shape, is left as it is.
      mesh: from `make_mesh`.
    """

    def put(leaf):
        if isinstance(getattr(leaf, "sharding", None), NamedSharding):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jax.device_put(np.asarray(leaf), replicated(mesh))

    return jax.tree.map(put, constants)


def to_host(arrays: Any) -> Any:
    """Returns a tree of global arrays as NumPy, whole in every process."""
    if jax.process_count() == 1:
        return jax.device_get(arrays)
    return multihost_utils.process_allgather(arrays, tiled=True)
