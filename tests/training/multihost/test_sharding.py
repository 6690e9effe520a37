"""Shapes of constants on a mesh whose devices need not be there."""

import jax
import jax.numpy as jnp
import numpy as np

from training.multihost import sharding


def test_constants_become_replicated_shapes():
    mesh = sharding.make_mesh()
    kept = jax.ShapeDtypeStruct((3,), jnp.bfloat16)
    found = sharding.abstract(
        {"mean": np.zeros(3), "count": 7, "teacher": kept}, mesh
    )
    assert found["teacher"] is kept
    assert found["mean"].shape == (3,)
    # What JAX makes of it when it is put on a device.
    assert found["mean"].dtype == jnp.float32
    assert found["count"].dtype == jnp.asarray(7).dtype
    for name in ("mean", "count"):
        assert found[name].sharding == sharding.replicated(mesh)
