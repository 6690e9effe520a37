"""Scores of generated images against closed forms and plain loops."""

import numpy as np
import pytest

from core.errors import UserError
from metrics import generation


def gaussian(count, seed, mean=0.0, scale=1.0, width=4):
    rng = np.random.default_rng(seed)
    return mean + scale * rng.standard_normal((count, width))


def exactly(count, mean, covariance, seed=0):
    """Points whose sample mean and covariance are just these."""
    x = gaussian(count, seed, width=len(mean))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(np.asarray(covariance)).T + mean


def test_frechet_distance_of_known_gaussians():
    one = exactly(50, [0.0, 0.0], np.diag([1.0, 4.0]))
    two = exactly(60, [3.0, 4.0], np.diag([9.0, 1.0]), seed=1)
    # 25 + (1 - 3)² + (2 - 1)²
    assert generation.frechet_distance(one, two) == pytest.approx(30)
    assert generation.frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_where_covariances_do_not_commute():
    a = np.array([[2.0, 0.5], [0.5, 1.0]])
    b = np.array([[1.0, -0.3], [-0.3, 3.0]])
    # In two dimensions tr √M = √(tr M + 2 √det M).
    product = a @ b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(a) + np.trace(b) - 2 * root
    found = generation.frechet_distance(
        exactly(40, [1.0, 1.0], a), exactly(40, [1.0, 1.0], b, seed=2)
    )
    assert found == pytest.approx(expected)


def test_frechet_distance_with_fewer_rows_than_features():
    x = gaussian(5, 0, width=30)
    assert generation.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_the_unbiased_estimate():
    x, y = gaussian(6, 0), gaussian(6, 1, mean=0.5)

    def kernel(a, b):
        return (a @ b / 4 + 1) ** 3

    def mean(a, b, same):
        pairs = [
            kernel(a[i], b[j])
            for i in range(6)
            for j in range(6)
            if not (same and i == j)
        ]
        return np.mean(pairs)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    found = generation.kernel_distance(x, y, subsets=3, size=6)
    assert found.mean == pytest.approx(expected)
    assert found.std == pytest.approx(0, abs=1e-9)  # All rows every time.


def test_few_rows_still_have_a_spread():
    found = generation.kernel_distance(gaussian(40, 0), gaussian(40, 1))
    assert found.std > 0.01


def test_kernel_distance_is_zero_on_average_for_one_distribution():
    found = [
        generation.kernel_distance(
            gaussian(100, seed),
            gaussian(100, 1000 + seed),
            subsets=1,
            size=100,
        ).mean
        for seed in range(60)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(60) + 1e-3
    apart = generation.kernel_distance(
        gaussian(300, 0), gaussian(300, 1, mean=1.0), size=100, subsets=20
    )
    assert apart.mean > 20 * np.std(found) and apart.std > 0


def plain_manifold(real, generated):
    def radius(x, k):
        d = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
        return np.sort(d, axis=1)[:, k]

    d = np.sqrt(((real[:, None] - generated[None]) ** 2).sum(-1))
    return (
        (d <= radius(real, 3)[:, None]).any(0).mean(),
        (d <= radius(generated, 3)[None]).any(1).mean(),
        (d <= radius(real, 5)[:, None]).sum() / 5 / len(generated),
        (d <= radius(real, 5)[:, None]).any(1).mean(),
    )


@pytest.mark.parametrize("block", [7, 1024])
def test_manifold_in_blocks_is_that_of_all_distances(monkeypatch, block):
    monkeypatch.setattr(generation, "BLOCK", block)
    real, generated = gaussian(60, 0), gaussian(45, 1, mean=0.7)
    found = generation.manifold(real, generated)
    np.testing.assert_allclose(found, plain_manifold(real, generated))


def test_a_dropped_mode_shows_in_coverage_and_not_in_precision():
    left, right = gaussian(200, 0), gaussian(200, 1, mean=20.0)
    found = generation.manifold(np.concatenate([left, right]), gaussian(400, 2))
    assert found.precision > 0.8
    assert found.coverage < 0.55 and found.recall < 0.55


def test_copies_of_training_images_are_noticed():
    trained, held_out = gaussian(500, 0), gaussian(200, 1)
    copies = trained[[3, 3, 77]] + 1e-4
    fresh = gaussian(97, 2)
    found = generation.memorised(
        trained, np.concatenate([copies, fresh]), held_out
    )
    np.testing.assert_array_equal(found.nearest[:3], [3, 3, 77])
    np.testing.assert_allclose(found.distance[:3], 2e-4, rtol=1e-3)
    assert 0.03 <= found.share < 0.1
    assert generation.memorised(trained, held_out, held_out).share <= 0.01


def test_too_few_images_are_told():
    with pytest.raises(UserError, match="take 6 or more"):
        generation.manifold(gaussian(5, 0), gaussian(9, 0))
    with pytest.raises(UserError, match="1 real and 9 generated"):
        generation.frechet_distance(gaussian(1, 0), gaussian(9, 0))
