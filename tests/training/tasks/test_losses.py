"""Losses against their limits and against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from training.tasks import losses

RNG = np.random.default_rng(3)
LOGITS = jnp.array(RNG.normal(size=(5, 4)) * 3, jnp.float32)
TARGETS = jnp.array(RNG.dirichlet(np.ones(4), 5), jnp.float32)
ONES = jnp.ones(4)


def test_focal_at_gamma_zero_is_the_cross_entropy():
    np.testing.assert_allclose(
        losses.focal(LOGITS, TARGETS, ONES, 0.0),
        losses.cross_entropy(LOGITS, TARGETS, ONES),
        rtol=1e-6,
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_has_the_gradient_of_its_differences(gamma):
    check_grads(
        lambda x: losses.focal(jnp.asarray(x), TARGETS, ONES, gamma).sum(),
        (LOGITS,),
        order=1,
        modes=["rev"],
        atol=1e-2,
        rtol=1e-2,
    )


def test_focal_stays_finite_where_the_model_is_sure():
    logits = jnp.array([[200.0, 0.0], [-200.0, 0.0]])
    targets = jnp.array([[1.0, 0.0], [1.0, 0.0]])

    def total(x):
        return losses.focal(x, targets, jnp.ones(2), 0.5).sum()

    value, slope = jax.value_and_grad(total)(logits)
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    def total(x):
        return losses.distillation(x, LOGITS, 4.0).sum()

    value, slope = jax.value_and_grad(total)(LOGITS)
    assert float(value) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    assert (losses.distillation(-LOGITS, LOGITS, 4.0) > 0).all()


def test_distillation_keeps_the_gradients_size_over_temperatures():
    # Hinton et al.: T^2 cancels the 1/T^2 of the gradient for large T.
    def slope(temperature):
        return jax.grad(
            lambda x: losses.distillation(x, LOGITS, temperature).sum()
        )(-LOGITS)

    sizes = [float(jnp.linalg.norm(slope(t))) for t in (50.0, 100.0)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_class_weights_weigh_the_mean_row_one_and_absent_classes_nothing():
    prior = np.array([0.6, 0.3, 0.1, 0.0])
    for power in (0.0, 0.5, 1.0):
        weights = losses.class_weights(prior, power)
        assert (weights * prior).sum() == pytest.approx(1)
        assert weights[3] == 0
    weights = losses.class_weights(prior, 1.0)
    np.testing.assert_allclose(weights[:3] * prior[:3], 1 / 3, rtol=1e-6)


def test_effective_numbers_weigh_between_all_alike_and_inversely():
    counts = np.array([1000, 100, 10, 0])
    prior, rows = counts / counts.sum(), int(counts.sum())

    def weights(beta):
        return losses.effective_number_weights(prior, rows, beta)

    # Cui et al. 2019, equation 2, class by class.
    expected = np.array([(1 - 0.99) / (1 - 0.99**n) for n in (1000, 100, 10)])
    got = weights(0.99)
    np.testing.assert_allclose(got[:3] / got[0], expected / expected[0], 1e-5)
    assert got[3] == 0 and got.dtype == np.float32
    assert (got * prior).sum() == pytest.approx(1)
    np.testing.assert_allclose(weights(1e-9)[:3], 1, rtol=1e-5)
    inverse = losses.class_weights(prior, 1.0)
    np.testing.assert_allclose(weights(1 - 1e-9), inverse, rtol=1e-4)
