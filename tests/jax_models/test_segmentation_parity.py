"""The same weights and images give the numbers of published networks.

The goldens are what segmentation_models_pytorch 0.6.0, torchvision 0.29 and
timm 1.0.31 gave on torch 2.13 (tools/make_segmentation_goldens.py), in
float32 in evaluation mode and in float64 in training mode.
"""

from __future__ import annotations

from pathlib import Path

import golden_models
import golden_recipe as recipe
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_timm_parity import LOGITS_TOLERANCE, assert_close, compare

import jax_models

pytestmark = pytest.mark.usefixtures("quick_compilation")

GOLDENS = Path(__file__).parent / "goldens"


def golden_of(name):
    return np.load(GOLDENS / f"{name}.npz")


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe.SEGMENTATION)
def test_logits(name, compiled_blocks):
    golden = golden_of(name)
    model = golden_models.load_segmentation(name)
    model.eval()
    network, _ = recipe.SEGMENTATION[name]
    for size in recipe.SEGMENTATION_SIZES[network]:
        logits = model(jnp.asarray(recipe.images(1, *size, 3)))
        assert logits.shape == (1, *size, recipe.PIXEL_CLASSES)
        expected = golden["logits {}x{}".format(*size)]
        assert np.abs(expected).max() > 0.1  # Not by both being nothing.
        np.testing.assert_allclose(
            recipe.sample(logits, 2048),
            expected,
            rtol=0,
            atol=LOGITS_TOLERANCE,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe.SEGMENTATION)
def test_training_step(name):
    """Loss, gradients and BatchNorm's updates, all in float64."""
    with jax.enable_x64(True):
        found = golden_models.training_step(
            golden_models.load_segmentation(name, jnp.float64)
        )
    compare(found, golden_of(name), 1e-9)


@pytest.mark.parametrize(
    ("kind", "reading", "output_stride"),
    [
        pytest.param(
            *(kind, reading, stride),
            marks=[] if (kind, stride) == ("basic", 16) else pytest.mark.slow,
        )
        for kind, reading in recipe.READINGS
        for stride in recipe.OUTPUT_STRIDES
    ],
)
def test_dilated_encoders(kind, reading, output_stride, compiled_blocks):
    name, options = recipe.DILATED[kind]
    model = golden_models.fill(
        lambda dtype: jax_models.create_model(
            name,
            1000,
            dtype=dtype,
            output_stride=output_stride,
            dilation=reading,
            **options,
        )
    )
    model.eval()
    assert model.strides[-1] == output_stride
    last = model.feature_pyramid(jnp.asarray(recipe.images(1, 64, 96, 3)))[-1]
    golden = np.load(GOLDENS / "dilations.npz")
    key = f"{kind} {reading} {output_stride}"
    assert_close(recipe.sample(last, 512), golden[key], 1e-5, key)


def test_the_readings_differ():
    """Or the goldens would not tell them apart."""
    golden = np.load(GOLDENS / "dilations.npz")
    for kind, readings in (
        ("basic", ("smp", "mmseg")),
        ("bottleneck", ("smp", "torchvision")),
        ("lite", ("smp", "torchvision")),
    ):
        for stride in recipe.OUTPUT_STRIDES:
            one, other = (golden[f"{kind} {r} {stride}"] for r in readings)
            assert np.abs(one - other).max() > 0.1
