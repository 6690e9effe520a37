"""Quick ways to run models."""

from __future__ import annotations

import golden_models
import jax
import pytest


@pytest.fixture
def compiled_blocks():
    """See `golden_models.compiled_blocks`."""
    with golden_models.compiled_blocks():
        yield


@pytest.fixture
def quick_compilation():
    """Compiles in half the time, to slower programs with the same numbers."""
    option = "jax_disable_most_optimizations"
    jax.config.update(option, True)
    yield
    jax.config.update(option, False)
