"""Grad-CAM finds where the evidence is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_models
from training.tasks import grad_cam


class Spots:
    """A model whose first class is seen in red, its second in green."""

    def features(self, images):
        return images[:, ::4, ::4, :2]

    def head(self, maps):
        return maps.mean(axis=(1, 2)) * jnp.array([1.0, 2.0])


def test_the_heat_is_where_the_class_is_seen():
    images = np.zeros((2, 16, 16, 3), np.float32)
    images[:, 0:4, 0:4, 0] = 1  # Red in one corner,
    images[:, 12:, 12:, 1] = 1  # green in the other.
    found = np.asarray(
        grad_cam.heat(Spots(), jnp.asarray(images), jnp.array([0, 1]))
    )
    assert found.shape == (2, 4, 4)
    expected = np.zeros((2, 4, 4))
    expected[0, 0, 0] = expected[1, 3, 3] = 1
    np.testing.assert_allclose(found, expected)


def test_nothing_speaks_for_a_class_that_is_not_there():
    images = jnp.zeros((1, 16, 16, 3))
    assert not grad_cam.heat(Spots(), images, jnp.array([0])).any()


@pytest.mark.slow
def test_a_real_model():
    model = jax_models.create_model(
        "miniconvnext_demo", num_classes=3, rngs=nnx.Rngs(0)
    )
    model.eval()
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    heat = jax.jit(lambda images, labels: grad_cam.heat(model, images, labels))
    found = heat(images, jnp.array([0, 2]))
    assert found.shape[0] == 2 and 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("size", [(30, 40), (7, 5)])
def test_the_overlay_is_yellow_where_it_is_hot(size):
    image = np.zeros((*size, 3), np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    drawn = grad_cam.overlay(image, heat).astype(int)
    assert drawn.shape == image.shape
    hot, cold = drawn[0, 0], drawn[-1, -1]
    assert hot[0] > hot[2] and cold[2] > cold[0]
    assert hot.sum() > cold.sum()
