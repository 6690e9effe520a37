"""Parts of a batch: what is random in them, and where there are none.

That losses do not depend on the number of parts is in test_layouts.py.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import common
from core.errors import UserError
from jax_models import layers
from training.loop import grad_accumulation


def test_a_row_is_dropped_alike_in_a_part_and_in_the_whole():
    def masks(parts):
        drop = layers.DropPath(0.5, rngs=nnx.Rngs(0))
        rows = jnp.ones((12, 3))
        if parts == 1:
            return np.asarray(drop(rows))
        found = np.zeros((12, 3))
        for index in range(parts):
            drop = layers.DropPath(0.5, rngs=nnx.Rngs(0))
            with layers.microbatch(jnp.int32(index), parts):
                found[index::parts] = drop(rows[index::parts])
        return found

    whole = masks(1)
    assert 0 < (whole == 0).mean() < 1
    np.testing.assert_array_equal(masks(3), whole)
    np.testing.assert_array_equal(masks(4), whole)


def test_batch_norm_and_parts_of_batches_are_refused_with_a_way_out():
    config = common.base()
    config.stages = (common.stage(accumulate=2),)
    grad_accumulation.check(config, {})
    with pytest.raises(UserError, match=r"stages\[0\].*--config.remat=True"):
        grad_accumulation.check(config, {"mean": jnp.zeros(3)})
