"""Depthwise convolutions on a CPU are those of XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jax_models.cpu_kernels import depthwise, dispatch

SHAPES = [
    # batch, height, width, channels, kernel, stride, padding, dilation
    (5, 9, 11, 24, 3, 1, 1, 1),
    (3, 9, 10, 40, 3, 2, "SAME", 1),
    (2, 8, 8, 16, 3, 2, 1, 1),
    (2, 12, 13, 33, 3, 1, "VALID", 1),
    (2, 7, 6, 17, 3, 2, "SAME", 1),
    (9, 10, 19, 48, 7, 1, "SAME", 1),
    (2, 9, 9, 32, 7, 1, "VALID", 1),
    (1, 1, 2, 16, 7, 1, 3, 1),
    (5, 9, 11, 24, 5, 1, "SAME", 1),
    (3, 9, 10, 40, 5, 2, "SAME", 1),
    (2, 8, 7, 17, 5, 2, 2, 1),
    (5, 9, 12, 24, 3, 1, "SAME", 2),
    (2, 12, 9, 33, 3, 1, "VALID", 4),
    (2, 4, 5, 48, 3, 1, 12, 12),
    (3, 9, 10, 24, 5, 1, "SAME", 2),
]


def pads_of(image, size, stride, padding, dilation):
    if isinstance(padding, str):
        reach = (size - 1) * dilation + 1
        padding = lax.padtype_to_pads(
            image[1:3], (reach, reach), (stride,) * 2, padding
        )
        return tuple(map(tuple, padding))
    return ((padding, padding),) * 2


@pytest.mark.parametrize("library", ["C++", "JAX"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_equals_the_convolution_of_xla(shape, library, monkeypatch):
    *image, size, stride, padding, dilation = shape
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal(image, np.float32))
    shape = (size, size, 1, image[-1])
    kernel = jnp.asarray(rng.standard_normal(shape, np.float32))
    pads = pads_of(image, size, stride, padding, dilation)
    if library == "JAX":
        monkeypatch.setattr(dispatch, "_library", lambda: None)
    elif dispatch._library() is None:
        pytest.skip("nothing is compiled here")
    how = stride, pads, dilation
    is_for_cpp = depthwise._is_for_cpp(images, kernel, *how)
    assert is_for_cpp == (library == "C++")

    def values_and_grads():
        value, vjp = jax.vjp(
            lambda *arrays: depthwise.depthwise_conv(*arrays, *how),
            *(images, kernel),
        )
        grad = np.random.default_rng(1).standard_normal(value.shape)
        return value, *vjp(grad.astype(np.float32))

    found = jax.jit(values_and_grads)()
    with dispatch.without("depthwise"):
        expected = jax.jit(lambda: values_and_grads())()
    for one, other in zip(found, expected, strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-6 * scale)
