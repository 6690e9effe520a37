"""Quick ways to run models."""

from __future__ import annotations

import functools

import jax
import pytest
from flax import nnx

from jax_models.model import ImageModel


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
