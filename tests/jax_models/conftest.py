"""Models with weights from the golden recipe, and quick ways to run them."""

from __future__ import annotations

import functools

import golden_recipe as recipe
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jax_models
from jax_models.model import ImageModel


@pytest.fixture(scope="session")
def golden_model():
    """`golden_model(name)`: the model that the goldens were made with.

    Without drop path and dropout, so that its training mode is exact too.
    `golden_model(name, jnp.float64)` computes in that type.
    """

    def shapes_alone(name, dtype):
        # Not drawn, only shaped: every value comes from the recipe.
        return nnx.eval_shape(
            lambda: jax_models.create_model(
                name,
                recipe.CLASSES,
                dtype=dtype,
                drop_path_rate=0.0,
                dropout=0.0,
            )
        )

    @functools.cache
    def split(name):
        graphdef, state = nnx.split(shapes_alone(name, jnp.float32))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), state)
        model = nnx.merge(graphdef, zeros)
        shapes = {
            key: value.shape
            for key, value in jax_models.export_torch(model).items()
        }
        jax_models.import_torch(model, recipe.state_dict(shapes))
        return nnx.split(model)

    def merge(name, dtype=jnp.float32):
        graphdef, state = split(name)
        if dtype != jnp.float32:
            graphdef = nnx.graphdef(shapes_alone(name, dtype))
            state = jax.tree.map(lambda leaf: leaf.astype(dtype), state)
        return nnx.merge(graphdef, state, copy=True)

    return merge


@functools.partial(jax.jit, static_argnums=0)
def _run_block(graphdef, state, x):
    return nnx.merge(graphdef, state)(x)


@pytest.fixture
def compiled_blocks(monkeypatch):
    """Compiles block by block, in evaluation mode.

    Blocks of a stage have the same program, so each is compiled once, where
    compiling the whole network would compile every block.
    """

    def run_block(self, stage, block, x):
        return _run_block(*nnx.split(block), x)

    monkeypatch.setattr(ImageModel, "run_block", run_block)


@pytest.fixture
def quick_compilation():
    """Compiles in half the time, to slower programs with the same numbers."""
    option = "jax_disable_most_optimizations"
    jax.config.update(option, True)
    yield
    jax.config.update(option, False)
