"""Batch normalisation in C++ against JAX in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_models import functional, layers
from jax_models.cpu_kernels import dispatch
from jax_models.cpu_kernels.batch_norm import _is_for_cpp


@pytest.mark.parametrize("rows", [(2, 3, 4), (17, 30, 20)], ids=str)
@pytest.mark.parametrize("channels", [8, 24, 64])
@pytest.mark.parametrize("activation", [None, "gelu", "silu", "relu", "relu6"])
def test_batch_norm_in_cpp_equals_the_plain_one_in_float64(
    rows, channels, activation
):
    """Also where the rows are of several parts, the last of them smaller."""
    rng = np.random.default_rng(0)
    x, grad = rng.standard_normal((2, *rows, channels), np.float32)
    x = x * 2 + 5
    scale, bias = rng.uniform(0.5, 2, (2, channels)).astype(np.float32)
    if dispatch._library() is not None:
        assert _is_for_cpp(jnp.asarray(x))

    def apply(x, scale, bias):
        norm = layers.BatchNorm(
            channels,
            epsilon=1e-3,
            momentum=0.5,
            activation=activation and getattr(functional, activation),
            dtype=x.dtype,
        )
        norm.scale = nnx.Param(scale)
        norm.bias = nnx.Param(bias)
        return norm(x), (norm.mean[...], norm.var[...])

    @jax.jit
    def value_and_grads(grad, *inputs):
        value, back, statistics = jax.vjp(apply, *inputs, has_aux=True)
        return value, *statistics, *back(grad)

    inputs = grad, x, scale, bias
    found = value_and_grads(*inputs)
    with jax.enable_x64(True):
        right = value_and_grads(*(np.float64(array) for array in inputs))
    for one, other in zip(found, right, strict=True):
        assert one.dtype == jnp.float32
        assert other.dtype == jnp.float64
        room = 2e-6 * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=room)
