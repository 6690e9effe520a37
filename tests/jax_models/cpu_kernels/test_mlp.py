"""The MLP of a block in one pass is what its layers give one by one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import assert_close, value_and_grads
from flax import nnx

from jax_models import convnext
from jax_models.cpu_kernels import dispatch, mlp

V1, V1_SCALED = dict(grn=False), dict(grn=False, layer_scale=0.3)
V2 = dict(grn=True)


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch):
    monkeypatch.setattr(mlp, "usable_cores", lambda: 1)
    monkeypatch.setattr(mlp, "MIN_ROWS", 1)


def make_block(channels, kind):
    config = convnext.Config((1,), (channels,), **kind)
    block = convnext.Block(
        channels, 0.0, config, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    # Parameters that show, where they are 0 or 1 or tiny at first.
    rng = np.random.default_rng(1)
    for _, param in nnx.iter_graph(block):
        if isinstance(param, nnx.Param):
            noise = rng.standard_normal(param.shape, np.float32)
            scale = 1 if param.ndim < 2 else param.shape[0] ** -0.5
            param.set_value(param[...] + noise * scale)
    block.eval()
    return block


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (V1, (3, 5, 7, 40)),  # Channels that fill no vectors, nor rows tiles.
        (V1, (1, 19, 23, 24)),  # More rows than a thread takes at a time.
        (V1_SCALED, (5, 2, 2, 64)),
        (V2, (3, 5, 7, 40)),
        (V2, (70, 2, 2, 96)),
    ],
    ids=str,
)
def test_in_one_pass_it_is_the_same(kind, shape):
    block = make_block(shape[-1], kind)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    if dispatch._library() is not None:
        assert mlp.supports_residual_mlp(
            jnp.asarray(x), 4 * shape[-1], kind["grn"]
        )
    found = value_and_grads(block, x)
    with dispatch.without("mlp"):
        right = value_and_grads(block, x)
    assert_close(found[0], right[0], 2e-6)
    assert_close(found[1], right[1], 1e-5)


def test_no_energy_is_no_division_by_nothing():
    block = make_block(32, V2)
    for of_fc1 in (block.mlp.fc1.kernel, block.mlp.fc1.bias):
        of_fc1.set_value(jnp.zeros_like(of_fc1[...]))
    x = np.ones((2, 4, 4, 32), np.float32)
    found, grads_of = value_and_grads(block, x)
    assert np.isfinite(found).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads_of))


def test_only_where_it_is_faster(monkeypatch):
    if dispatch._library() is None:
        pytest.skip("nothing is compiled")
    monkeypatch.setattr(mlp, "usable_cores", lambda: 3)
    monkeypatch.setattr(mlp, "MIN_ROWS", 32)
    images = jnp.ones((2, 4, 4, 32))
    assert not mlp.supports_residual_mlp(images[:1], 128, grn=False)
    assert not mlp.supports_residual_mlp(images, 128 * 32, grn=False)
    assert mlp.supports_residual_mlp(images, 128, grn=False)
    assert not mlp.supports_residual_mlp(images, 128, grn=True)
    assert not mlp.supports_residual_mlp(
        images.astype(jnp.bfloat16), 128, grn=False
    )
    assert not mlp.supports_residual_mlp(images, 128 + 1, grn=False)
