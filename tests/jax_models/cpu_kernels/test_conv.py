"""The dense convolution in C++ is the convolution, also with its gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import assert_close

from jax_models.cpu_kernels import conv, conv_general_dilated, dispatch, without
from tests.jax_models.cpu_kernels import convolution


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(conv, "WEIGHTS_PER_ROW", 1e9)


CASES = [  # batch, height, width, inputs, outputs, size, stride, padding
    (3, 9, 7, 5, 33, 3, 1, "SAME"),
    (2, 8, 8, 3, 24, 3, 2, "SAME"),
    (1, 1, 1, 4, 6, 3, 1, "SAME"),  # Nearly all of it is padding.
    (2, 2, 2, 40, 70, 3, 1, "SAME"),  # Fewer places than the kernel has.
    (3, 5, 3, 8, 9, 3, 2, ((1, 1), (1, 1))),
    (2, 11, 6, 16, 16, 5, 2, ((2, 2), (2, 2))),
    (1, 23, 19, 40, 70, 3, 1, "VALID"),
    (2, 10, 12, 3, 8, 7, 2, ((3, 3), (3, 3))),
    (2, 7, 7, 6, 8, 3, 2, ((0, 1), (0, 1))),  # TensorFlow's.
    (2, 33, 40, 20, 19, 5, 3, ((0, 3), (2, 1))),  # Several parts.
    (2, 13, 12, 8, 9, 2, 3, ((0, 0), (1, 1))),  # Cells that no window sees.
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_convolution_in_float64(case):
    batch, height, width, inputs, outputs, size, stride, padding = case
    rng = np.random.default_rng(0)
    shapes = (batch, height, width, inputs), (size, size, inputs, outputs)
    images, kernel = (
        jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes
    )

    def convolve(images, kernel):
        return conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def loss(images, kernel):
        return jnp.square(convolve(images, kernel)).sum()

    @jax.jit
    def compute(images, kernel):
        grads = jax.grad(loss, argnums=(0, 1))(images, kernel)
        return convolve(images, kernel), *grads

    with without("winograd"):
        found = compute(images, kernel)
        text = compute.lower(images, kernel).as_text()
    if found[0].shape[1] * found[0].shape[2] <= size**2:
        assert "convolution" not in text, "no matrix product was made of it"
    elif dispatch._library() is not None:
        for name in dispatch.KERNELS["conv"]:
            assert name in text, f"{name} was not called"
    right = convolution.value_and_grads(
        images, kernel, lambda value: 2 * value, stride, padding
    )
    assert_close(found, right, 2e-5)


def test_few_rows_and_narrow_types_are_xlas(monkeypatch):
    monkeypatch.setattr(conv, "WEIGHTS_PER_ROW", 1)
    images, kernel = jnp.ones((1, 4, 4, 8)), jnp.ones((3, 3, 8, 8))
    pads = ((1, 1), (1, 1))
    assert not conv._in_cpp(images, kernel, 1, pads)
    monkeypatch.setattr(conv, "WEIGHTS_PER_ROW", 1e9)
    narrow = images.astype(jnp.bfloat16)
    assert not conv._in_cpp(narrow, kernel.astype(jnp.bfloat16), 1, pads)
