from __future__ import annotations

import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from core import native_build
from jax_models.cpu_kernels import (
    activations,
    batch_norm,
    convolution,
    depthwise,
    dispatch,
    norms,
)

SHAPES = [
    # batch, height, width, channels, kernel, stride, padding
    (5, 9, 11, 24, 3, 1, 1),
    (3, 9, 10, 40, 3, 2, "SAME"),
    (2, 8, 8, 16, 3, 2, 1),
    (2, 12, 13, 33, 3, 1, "VALID"),
    (2, 7, 6, 17, 3, 2, "SAME"),
    (9, 10, 19, 48, 7, 1, "SAME"),
    (2, 9, 9, 32, 7, 1, "VALID"),
    (1, 1, 2, 16, 7, 1, 3),
]


def test_there_is_compiled_code_where_there_is_a_compiler():
    assert (dispatch.library() is None) == (shutil.which("c++") is None)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_depthwise_in_cpp_equals_the_librarys_convolution(shape):
    *image, size, stride, padding = shape
    rng = np.random.default_rng(0)
    images = rng.standard_normal(image, np.float32)
    kernel = rng.standard_normal((size, size, image[-1]), np.float32)
    pads = (
        lax.padtype_to_pads(image[1:3], (size, size), (stride,) * 2, padding)
        if isinstance(padding, str)
        else ((padding, padding),) * 2
    )
    pads = tuple(map(tuple, pads))
    if dispatch.library() is not None:
        assert depthwise._is_native(images, kernel, stride, pads)

    def expected(images, kernel):
        return depthwise._grouped(images, kernel, stride=stride, pads=pads)

    def found(images, kernel):
        return depthwise.depthwise_conv(images, kernel, stride, padding)

    def value_and_slopes(function):
        value, back = jax.vjp(function, images, kernel)
        slope = rng_slope.standard_normal(value.shape, np.float32)
        return value, *back(slope)

    rng_slope = np.random.default_rng(1)
    right = jax.jit(lambda: value_and_slopes(expected))()
    rng_slope = np.random.default_rng(1)
    mine = jax.jit(lambda: value_and_slopes(found))()
    for one, other in zip(mine, right, strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize(
    ("image", "outputs", "size", "stride", "pads"),
    [
        ((3, 9, 11, 24), 40, 3, 1, ((1, 1), (1, 1))),
        ((5, 10, 7, 3), 24, 3, 2, ((0, 1), (1, 1))),
        ((2, 5, 6, 8), 70, 3, 1, ((0, 0), (0, 0))),
        ((4, 1, 2, 16), 16, 3, 2, ((1, 1), (0, 1))),
        ((2, 8, 8, 20), 50, 1, 1, ((0, 0), (0, 0))),
    ],
    ids=str,
)
def test_convolution_in_cpp_equals_the_librarys(
    image, outputs, size, stride, pads
):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal(image, np.float32))
    shape = (size, size, image[-1], outputs)
    kernel = jnp.asarray(rng.standard_normal(shape, np.float32))
    if dispatch.library() is not None:
        assert convolution._is_native(images, kernel, stride, pads)
    found = convolution.conv(images, kernel, stride, pads)
    right = convolution._library(images, kernel, stride, pads)
    room = 2e-6 * np.abs(right).max()
    np.testing.assert_allclose(found, right, rtol=0, atol=room)


@pytest.mark.parametrize("channels", [8, 16, 40, 96])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_in_cpp_equals_the_plain_one(channels, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 + 2 * rng.standard_normal((3, 10, 11, channels)), dtype)
    scale, bias = rng.standard_normal((2, channels), np.float32)
    slope = rng.standard_normal(x.shape, np.float32)

    def mine(x, scale, bias):
        return norms.layer_norm(x, scale, bias, 1e-6)

    def plain(x, scale, bias):
        return norms.normalize(x, -1, 1e-6)[0] * scale + bias

    def value_and_slopes(function):
        value, back = jax.vjp(function, x, scale, bias)
        return value, *back(slope)

    found = jax.jit(lambda: value_and_slopes(mine))()
    right = jax.jit(lambda: value_and_slopes(plain))()
    for one, other in zip(found, right, strict=True):
        assert one.dtype == other.dtype
        one, other = (np.asarray(value, np.float32) for value in (one, other))
        narrow = dtype == jnp.bfloat16
        np.testing.assert_allclose(
            one, other, rtol=1e-2 if narrow else 1e-5, atol=2e-5
        )


@pytest.mark.parametrize("rows", [(2, 3, 4), (17, 30, 20)], ids=str)
@pytest.mark.parametrize("channels", [8, 24, 64])
@pytest.mark.parametrize("activation", [None, "gelu", "silu"])
def test_batch_norm_in_cpp_equals_the_plain_one_in_float64(
    rows, channels, activation
):
    """Also where the rows are of several parts, the last of them smaller."""
    rng = np.random.default_rng(0)
    x, slope = rng.standard_normal((2, *rows, channels), np.float32)
    x = x * 2 + 5
    scale, bias = rng.uniform(0.5, 2, (2, channels)).astype(np.float32)
    if dispatch.library() is not None:
        assert batch_norm._fills_vectors(x)

    def apply(x, scale, bias):
        norm = batch_norm.BatchNorm(
            channels,
            epsilon=1e-3,
            momentum=0.5,
            activation=activation and getattr(activations, activation),
            dtype=x.dtype,
        )
        norm.scale = nnx.Param(scale)
        norm.bias = nnx.Param(bias)
        return norm(x), (norm.mean[...], norm.var[...])

    @jax.jit
    def value_and_slopes(slope, *inputs):
        value, back, statistics = jax.vjp(apply, *inputs, has_aux=True)
        return value, *statistics, *back(slope)

    inputs = slope, x, scale, bias
    found = value_and_slopes(*inputs)
    with jax.enable_x64(True):
        right = value_and_slopes(*(np.float64(array) for array in inputs))
    for one, other in zip(found, right, strict=True):
        assert one.dtype == jnp.float32
        assert other.dtype == jnp.float64
        room = 2e-6 * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=room)


def test_without_a_compiler_everything_works_and_nothing_is_said(tmp_path):
    code = (
        "from jax_models.cpu_kernels import dispatch;"
        "assert dispatch.library() is None;"
        "import jax.numpy as jnp;"
        "from jax_models.cpu_kernels.depthwise import *;"
        "print(depthwise_conv(jnp.ones((1, 4, 4, 16)), jnp.ones((3, 3, 16)))"
        "[0, 1, 1, 0])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "9.0\n"
    assert ran.stderr == ""


def test_what_does_not_compile_is_left_alone(tmp_path, monkeypatch):
    broken = tmp_path / "broken.cc"
    broken.write_text("this is no C++\n")
    monkeypatch.setattr(
        dispatch, "CODE", native_build.Library("broken", [broken])
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert dispatch.library.__wrapped__() is None
    assert list((tmp_path / "sextet" / "native").iterdir()) == []
