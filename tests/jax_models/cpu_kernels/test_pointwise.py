"""Blocks of EfficientNetV2 are, evaluated in few passes, what they were."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import assert_close, value_and_slopes
from flax import nnx

from jax_models import efficientnetv2
from jax_models import cpu_kernels

# With a shortcut and without, channels that fill vectors and that do not, rows
# that fill tiles and that do not, and more than one thread takes at a time.
BLOCKS = {
    "fused": (efficientnetv2.FusedMBConv, (24, 40, 2, 2), (4, 7, 7, 24)),
    "mbconv": (efficientnetv2.MBConv, (40, 40, 1, 4, 10), (5, 3, 3, 40)),
    "wide": (efficientnetv2.MBConv, (64, 96, 2, 2, 16), (9, 16, 16, 64)),
}


def made_up(block, rng):
    """Running statistics and factors that show."""
    for _, value in nnx.iter_graph(block):
        if isinstance(value, nnx.Param | nnx.BatchStat) and value.ndim == 1:
            value.set_value(jnp.asarray(rng.uniform(0.5, 2, value.shape)))
    block.eval()


@pytest.mark.parametrize("kind", BLOCKS)
def test_in_few_passes_it_is_the_same(kind):
    make, sizes, shape = BLOCKS[kind]
    block = make(*sizes, 0.1, dtype=jnp.float32, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    made_up(block, rng)
    x = rng.standard_normal(shape, np.float32)
    found = value_and_slopes(block, x)
    with cpu_kernels.xla_only():
        right = value_and_slopes(block, x)
    assert_close(found, right, 1e-5)
    assert_close(found[0], right[0], 3e-6)
    text = str(jax.make_jaxpr(lambda x: block(x))(x))
    assert ("sextet_" in text) == (dispatch.library() is not None)
