"""Windowed attention in C++ against the same in plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_models import cpu_kernels
from jax_models.cpu_kernels import dispatch

CASES = [
    # batch, height, width, window, heads, depth
    (2, 14, 14, 7, 2, 32),
    (3, 8, 8, 7, 2, 32),
    (20, 4, 4, 14, 3, 32),
    (1, 9, 15, 7, 1, 20),
    (17, 2, 2, 7, 2, 17),
    (1, 3, 16, 5, 4, 3),
    (2, 28, 14, 14, 1, 32),
]


def inputs(case, swin_bias):
    batch, height, width, window, heads, depth = case
    rng = np.random.default_rng(0)
    channels = heads * depth
    entries = (2 * window - 1) ** 2 if swin_bias else window**2
    shapes = (
        (batch, height, width, 3 * channels),
        (3 * channels,),
        (heads, entries),
        (batch, height, width, channels),
    )
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def value_and_grads(case, swin_bias, arrays):
    window = case[3]

    @jax.jit
    def compute(qkv, padding, table, grad):
        def attend(*three):
            return cpu_kernels.window_attention(
                *three,
                window=window,
                swin_bias=swin_bias,
                dtype=qkv.dtype,
            )

        value, back = jax.vjp(attend, qkv, padding, table)
        return value, *back(grad)

    return compute(*arrays)


@pytest.mark.parametrize("swin_bias", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpp_is_exact(case, swin_bias):
    """Float32 in C++ against float64 in JAX, in values and all gradients."""
    arrays = inputs(case, swin_bias)
    found = value_and_grads(case, swin_bias, arrays)
    with jax.enable_x64(True):
        wide = [np.float64(array) for array in arrays]
        expected = value_and_grads(case, swin_bias, wide)
    names = "value", "qkv", "padding", "table"
    for name, one, other in zip(names, found, expected, strict=True):
        assert one.dtype == jnp.float32 and other.dtype == jnp.float64
        room = 3e-6 * max(np.abs(other).max(), 1.0)
        np.testing.assert_allclose(one, other, rtol=0, atol=room, err_msg=name)


def test_it_is_cpp_that_is_tested_where_there_is_a_compiler():
    if dispatch._library() is None:
        pytest.skip("nothing is compiled here")
    arrays = inputs(CASES[0], False)
    text = jax.jit(
        lambda *arrays: value_and_grads(CASES[0], False, arrays)
    ).lower(*arrays)
    assert "sextet_window_attention_grad" in text.as_text()


def test_scores_of_any_size_stay_finite():
    arrays = inputs(CASES[1], False)
    arrays[0] = arrays[0] * 100
    found = value_and_grads(CASES[1], False, arrays)
    with cpu_kernels.without("window_attention"):
        expected = value_and_grads(CASES[1], False, arrays)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=2e-2)
    assert all(np.isfinite(array).all() for array in found)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
def test_what_is_not_finite_comes_out_not_finite(part, value):
    """A step is skipped for it, so it must not be lost."""
    arrays = inputs(CASES[0], False)
    arrays[part][:] = value if part else -3e38
    if not part:
        keys = arrays[0].reshape(-1, 2, 3, 32)[:, :, 1]
        keys[:] = value
    found = value_and_grads(CASES[0], False, arrays)
    with cpu_kernels.without("window_attention"):
        expected = value_and_grads(CASES[0], False, arrays)
    for one, other in zip(found, expected, strict=True):
        assert np.isfinite(one).all() == np.isfinite(other).all()


def test_a_score_beyond_all_numbers_is_not_lost():
    arrays = inputs(CASES[0], False)
    heads = arrays[0].reshape(-1, 2, 3, 32)
    heads[0, 0, 0] = 3e38
    heads[:, 0, 1] = -1e3
    found = value_and_grads(CASES[0], False, arrays)
    assert not np.isfinite(found[0]).all()


def test_the_result_does_not_depend_on_the_division_of_the_batch():
    arrays = inputs(CASES[2], True)
    whole = value_and_grads(CASES[2], True, arrays)[0]
    qkv, padding, table, grad = arrays
    part = value_and_grads(
        CASES[2], True, (qkv[3:5], padding, table, grad[3:5])
    )[0]
    np.testing.assert_array_equal(whole[3:5], part)
