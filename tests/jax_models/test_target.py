"""Layers take the form of the devices that they are traced for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_models import cpu_kernels, functional, target
from training import runtime


def test_without_a_word_it_is_the_default_device():
    assert target.platform() == jax.default_backend()
    with cpu_kernels.for_platform("tpu", 8):
        assert target.platform() == "tpu"
        assert not target.is_single_cpu()
    with cpu_kernels.for_platform("cpu", 1):
        assert target.is_single_cpu()
    assert target.platform() == jax.default_backend()


def test_the_compute_dtype_is_that_of_the_devices():
    with cpu_kernels.for_platform("tpu", 8):
        assert runtime.compute_dtype("auto") == jnp.bfloat16
    with cpu_kernels.for_platform("cpu", 8):
        assert runtime.compute_dtype("auto") == jnp.float32


def test_only_a_cpu_joins_axes():
    maps = jnp.zeros((2, 3, 5, 7))
    with cpu_kernels.for_platform("cpu", 1):
        assert target.two_axes(maps).shape == (30, 7)
        assert target.two_axes(maps[0, 0, 0]).shape == (1, 7)
    with cpu_kernels.for_platform("tpu", 1):
        assert target.two_axes(maps).shape == maps.shape


@pytest.mark.parametrize("apart", [0.0, 1.0, 30.0, 250.0])
def test_one_pass_over_bfloat16_loses_nothing_that_was_there(apart):
    """Also where the mean is as far away as bfloat16 can tell."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(apart, 1.0, (64, 9, 32)), jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    expected = exact - exact.mean((0, 1), keepdims=True)
    variance = np.square(expected).mean((0, 1), keepdims=True)
    expected /= np.sqrt(variance + 1e-5)
    with cpu_kernels.for_platform("tpu", 1):
        normal, _, found = functional.normalize(x, (0, 1), 1e-5)
    np.testing.assert_allclose(found, variance, rtol=2e-2)
    np.testing.assert_allclose(normal, expected, atol=5e-2)


def test_a_constant_has_no_negative_variance():
    x = jnp.full((512, 4), 3.14159, jnp.bfloat16)
    with cpu_kernels.for_platform("tpu", 1):
        normal, _, variance = functional.normalize(x, 0, 1e-5)
    assert (variance >= 0).all() and jnp.isfinite(normal).all()


def test_float32_keeps_two_passes_on_every_platform():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(1000.0, 0.1, (256, 4)), jnp.float32)
    found = {}
    for platform in ("cpu", "gpu", "tpu"):
        with cpu_kernels.for_platform(platform, 1):
            _, _, found[platform] = functional.normalize(x, 0, 1e-5)
    np.testing.assert_array_equal(found["tpu"], found["cpu"])
    np.testing.assert_array_equal(found["gpu"], found["cpu"])


@pytest.mark.parametrize(
    ("platform", "channels", "convolves"),
    [("cpu", 8, False), ("tpu", 3, False), ("gpu", 8, False), ("tpu", 8, True)],
)
def test_patches_are_one_product_where_that_is_faster(
    platform, channels, convolves
):
    def conv(images, kernel):
        return cpu_kernels.conv_general_dilated(
            images,
            kernel,
            (2, 2),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    images = jnp.ones((1, 4, 4, channels))
    kernel = jnp.ones((2, 2, channels, 16))
    with cpu_kernels.for_platform(platform, 1):
        program = str(jax.make_jaxpr(lambda *x: conv(*x))(images, kernel))
    assert ("conv_general_dilated" in program) == convolves


def attention_by_hand(qkv, heads):
    """In float64, [B, tokens, 3 * width] to [B, tokens, width]."""
    found = []
    for query, key, value in zip(*np.split(qkv, 3, -1), strict=True):
        parts = (np.split(x, heads, -1) for x in (query, key, value))
        image = []
        for q, k, v in zip(*parts, strict=True):
            scores = q @ k.T / np.sqrt(q.shape[1])
            weights = np.exp(scores - scores.max(1, keepdims=True))
            image.append(weights / weights.sum(1, keepdims=True) @ v)
        found.append(np.concatenate(image, -1))
    return np.array(found)


@pytest.mark.parametrize(
    ("platform", "dtype", "error"),
    [
        ("cpu", jnp.float32, 1e-6),
        ("cpu", jnp.bfloat16, 1e-2),
        ("tpu", jnp.bfloat16, 1e-2),
    ],
)
def test_attention_is_that_of_the_paper(platform, dtype, error):
    """Also where one score is far above the others."""
    rng = np.random.default_rng(0)
    qkv = jnp.asarray(3 * rng.normal(size=(3, 7, 48)), dtype)
    qkv = qkv.at[0, 0, :8].mul(30)
    wanted = rng.normal(size=(3, 7, 16))

    @jax.jit
    def answer(qkv):
        with cpu_kernels.for_platform(platform, 1):
            found = functional.attention(qkv, 2)
        return (found.astype(jnp.float32) * wanted).sum(), found

    gradient, found = jax.grad(answer, has_aux=True)(qkv)
    assert found.dtype == gradient.dtype == dtype
    exact = attention_by_hand(np.asarray(qkv, np.float64), 2)
    found = np.asarray(found, np.float64)
    assert np.abs(found - exact).max() < error * np.abs(exact).max()
    # Along some direction, from both sides.
    step = 1e-3 * rng.normal(size=qkv.shape)
    sides = [
        (attention_by_hand(np.asarray(qkv, np.float64) + s, 2) * wanted).sum()
        for s in (step, -step)
    ]
    slope = (np.asarray(gradient, np.float64) * step).sum()
    size = np.abs(np.asarray(gradient, np.float64) * step).sum()
    assert abs(slope - (sides[0] - sides[1]) / 2) < max(1e-4, error) * size


def test_attention_keeps_the_digits_of_float64():
    qkv = np.random.default_rng(0).normal(size=(2, 5, 24))
    with jax.enable_x64(True):
        found = np.asarray(functional.attention(jnp.asarray(qkv), 2))
    np.testing.assert_allclose(found, attention_by_hand(qkv, 2), rtol=1e-12)
