"""Where arrays live: the mesh, and the placements that the step uses."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """Returns a mesh of all devices along one axis, `data`."""
    # Explicit axes, the default of make_mesh, break grouped convolutions.
    return jax.make_mesh(
        (jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the placement of parameters: a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
    """Moves a host batch to the devices, split along its first axis.

    Args:
      batch: arrays `[b, ...]`, this process's part of the global batch.
      mesh: a mesh with the axis `data`.

    Returns:
      Arrays `[b * processes, ...]`, each device holding its own rows.
    """
    rows = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(rows, array)
        for name, array in batch.items()
    }
