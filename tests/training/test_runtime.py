"""Where and how JAX computes."""

import jax.numpy as jnp
import pytest

from training import runtime


@pytest.mark.parametrize(
    ("backend", "found"),
    [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")],
)
def test_accelerators_compute_in_bfloat16_unless_told(
    backend, found, monkeypatch
):
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    assert runtime.compute_dtype("auto") == jnp.dtype(found)
    assert runtime.compute_dtype("float32") == jnp.float32
    assert runtime.compute_dtype("bfloat16") == jnp.bfloat16
