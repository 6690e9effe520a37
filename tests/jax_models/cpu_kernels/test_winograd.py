"""Minimal filtering in C++ is the convolution, also with its gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import assert_close

from jax_models.cpu_kernels import (
    conv_general_dilated,
    conv_upsampled,
    dispatch,
    without,
)
from jax_models.cpu_kernels.winograd import (
    supports_conv_upsampled,
    supports_winograd,
)
from tests.jax_models.cpu_kernels import convolution

pytestmark = pytest.mark.skipif(
    dispatch._library() is None, reason="there is no C++ compiler"
)

# Tiles are taken by 8 at least, kernels of more than 2 MiB once for 64, and
# gradients in parts of 256 tiles and chunks of 64 inputs.
CASES = [  # batch, height, width, inputs, outputs, padding, dilation
    (3, 9, 7, 5, 33, "SAME", 1),
    (1, 4, 4, 16, 16, "SAME", 1),
    (2, 11, 6, 20, 3, ((2, 0), (0, 1)), 1),
    (1, 5, 23, 3, 17, "VALID", 1),
    (2, 6, 6, 4, 8, ((4, 3), (0, 5)), 1),  # Windows of nothing but padding.
    (2, 41, 57, 17, 8, "SAME", 1),  # Several parts.
    (2, 10, 18, 200, 210, "SAME", 1),  # A large kernel, several chunks.
    (2, 12, 13, 40, 3, "SAME", 2),
    (1, 13, 9, 130, 7, ((3, 3), (3, 3)), 3),
    (1, 6, 5, 8, 8, "SAME", 12),  # Outer taps see padding alone.
]


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in shapes]


def cosines(value):
    """The gradient that a value is given."""
    return np.cos(np.arange(value.size)).reshape(value.shape)


def results(function, inputs):
    """The value and the gradients of all inputs, found in C++."""
    inputs = [jnp.asarray(each, jnp.float32) for each in inputs]
    assert "sextet_winograd" in jax.jit(function).lower(*inputs).as_text()

    @jax.jit
    def compute(*inputs):
        value, back = jax.vjp(function, *inputs)
        return value, *back(jnp.asarray(cosines(value), jnp.float32))

    return compute(*inputs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_convolution_in_float64(case):
    batch, height, width, inputs, outputs, padding, dilation = case

    def convolve(images, kernel):
        return conv_general_dilated(
            images,
            kernel,
            (1, 1),
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    given = arrays((batch, height, width, inputs), (3, 3, inputs, outputs))
    found = results(convolve, given)
    right = convolution.value_and_grads(
        *given, cosines, padding=padding, dilation=dilation
    )
    assert_close(found, right, 2e-6)


@pytest.mark.parametrize(
    ("batch", "height", "width", "inputs", "skipped", "outputs"),
    [
        (2, 4, 5, 16, 16, 16),
        (2, 7, 3, 20, 5, 33),
        (1, 9, 8, 256, 0, 210),
    ],
)
def test_an_upsampled_map_need_not_exist(
    batch, height, width, inputs, skipped, outputs
):
    size = 2 * height, 2 * width

    def short(x, skip, kernel):
        return conv_upsampled(x, skip if skipped else None, kernel)

    given = arrays(
        (batch, height, width, inputs),
        (batch, *size, skipped),
        (3, 3, inputs + skipped, outputs),
    )
    found, to_x, to_skip, to_kernel = results(short, given)
    x, skip, kernel = given
    long = np.concatenate([x.repeat(2, 1).repeat(2, 2), skip], -1)
    right, to_long, *to_kernels = convolution.value_and_grads(
        long, kernel, cosines
    )
    cells = to_long[..., :inputs].reshape(batch, height, 2, width, 2, inputs)
    assert_close(
        (found, to_x, to_kernel), (right, cells.sum((2, 4)), *to_kernels), 2e-6
    )
    if skipped:
        assert_close(to_skip, to_long[..., inputs:], 2e-6)
    x, _, kernel = map(jnp.float32, given)
    assert supports_conv_upsampled(x, size, kernel)
    assert not supports_conv_upsampled(x, (size[0] - 1, size[1]), kernel)


def test_an_image_is_the_same_in_any_batch():
    images, kernel = arrays((5, 12, 12, 24), (3, 3, 24, 40))
    images, kernel = jnp.float32(images), jnp.float32(kernel)

    def convolve(images):
        return conv_general_dilated(
            images,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    np.testing.assert_array_equal(convolve(images)[2:3], convolve(images[2:3]))


def test_other_types_and_kernels_are_xlas():
    images, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    assert supports_winograd(images, kernel)
    assert not supports_winograd(images.astype(jnp.bfloat16), kernel)
    assert not supports_winograd(images, kernel[:2, :2])
    with without("winograd"):
        assert not supports_winograd(images, kernel)


def test_shapes_that_do_not_fit_are_refused():
    images, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 5, 4))
    with pytest.raises(Exception, match="kernel is not of the shape"):
        dispatch.call(
            "sextet_winograd",
            jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32),
            *(images, kernel),
            top=1,
            left=1,
            dilation=1,
            repeated=False,
        )
