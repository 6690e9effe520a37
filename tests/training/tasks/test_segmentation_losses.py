"""Losses over pixels beside plain NumPy and PyTorch's own answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from training.tasks import segmentation_losses as losses

B, H, W, C = 3, 5, 4, 4


@pytest.fixture
def pixels():
    """Logits, labels without class 3, which pixels count, and weights."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((B, H, W, C), np.float32)
    labels = rng.integers(0, C - 1, (B, H, W))
    counted = (rng.random((B, H, W)) < 0.7).astype(np.float32)
    weights = np.float32([0.5, 1.0, 3.0, 2.0])
    return logits, labels, counted, weights


def probabilities(logits):
    exps = np.exp(np.float64(logits) - logits.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


def flat(pixels):
    """The counted pixels alone: p [N, C], y [N], and weights [C]."""
    logits, labels, counted, weights = pixels
    keep = counted.ravel() > 0
    return (
        probabilities(logits).reshape(-1, C)[keep],
        labels.ravel()[keep],
        np.float64(weights),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_weighted_mean(pixels, smoothing):
    p, y, w = flat(pixels)
    rows = np.arange(len(y))
    total = w[y].sum()
    plain = -(w[y] * np.log(p[rows, y])).sum() / total
    spread = -(w * np.log(p)).sum() / total / C
    expected = (1 - smoothing) * plain + smoothing * spread
    found = losses.cross_entropy(*map(jnp.asarray, pixels), smoothing)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_and_smoothing_are_pytorchs():
    # torch 2.13.0: F.cross_entropy(logits, labels, weight, ignore_index=255,
    # label_smoothing=.1) for these numbers.
    logits = jnp.array([[[[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]]]])
    labels = jnp.array([[[0, 2]]])
    weights = jnp.array([0.1, 1.2, 1.2])
    both = jnp.ones((1, 1, 2))
    first = jnp.array([[[1.0, 0.0]]])
    for counted, smoothing, expected in (
        (both, 0.0, 3.7919390),
        (both, 0.1, 3.6877759),
        (first, 0.1, 2.2746348),
    ):
        found = losses.cross_entropy(
            logits, labels, counted, weights, smoothing
        )
        assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_by_hand(pixels, gamma):
    p, y, w = flat(pixels)
    own = p[np.arange(len(y)), y]
    expected = -(w[y] * (1 - own) ** gamma * np.log(own)).sum() / w[y].sum()
    found = losses.focal(*map(jnp.asarray, pixels), gamma)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_dice_is_over_the_classes_that_labels_have(pixels):
    p, y, _ = flat(pixels)
    ratios = []
    for number in sorted(set(y.tolist())):
        truth = y == number
        hits = (p[:, number] * truth).sum()
        ratios.append(2 * hits / (p[:, number].sum() + truth.sum()))
    found = losses.dice(*map(jnp.asarray, pixels[:3]))
    assert len(ratios) == 3
    assert float(found) == pytest.approx(1 - np.mean(ratios), rel=1e-5)


def test_lovasz_is_the_published_algorithm(pixels):
    p, y, _ = flat(pixels)
    found = losses.lovasz(*map(jnp.asarray, pixels[:3]))
    expected = []
    for number in sorted(set(y.tolist())):
        truth = (y == number).astype(float)
        errors = np.abs(truth - p[:, number])
        order = np.argsort(-errors)
        truth = truth[order]
        intersection = truth.sum() - truth.cumsum()
        union = truth.sum() + (1 - truth).cumsum()
        jaccard = 1 - intersection / union
        jaccard[1:] = jaccard[1:] - jaccard[:-1]
        expected.append(errors[order] @ jaccard)
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


def test_lovasz_of_a_hard_answer_is_one_minus_the_mean_iou():
    labels = jnp.array([[[0, 0, 1, 1, 1, 2]]])
    answer = np.array([[[0, 1, 1, 1, 0, 2]]])
    logits = 1e3 * np.eye(3, dtype=np.float32)[answer]
    found = losses.lovasz(jnp.asarray(logits), labels, jnp.ones((1, 1, 6)))
    assert float(found) == pytest.approx(1 - np.mean([1 / 3, 2 / 4, 1]), 1e-4)


@pytest.mark.parametrize("name", losses.TERMS)
def test_without_counted_pixels_loss_and_gradient_are_zero(pixels, name):
    logits, labels, counted, weights = map(jnp.asarray, pixels)
    loss = losses.make_loss(common.stage(loss=name))
    value, grad = jax.value_and_grad(loss)(
        logits, labels, jnp.zeros_like(counted), weights
    )
    assert float(value) == 0.0
    assert not np.asarray(grad).any()


@pytest.mark.parametrize("name", losses.TERMS)
def test_ignored_pixels_have_no_gradient_and_others_do(pixels, name):
    logits, labels, counted, weights = map(jnp.asarray, pixels)
    loss = losses.make_loss(common.stage(loss=name))
    grad = np.asarray(jax.grad(loss)(logits, labels, counted, weights))
    assert np.isfinite(grad).all()
    assert not grad[pixels[2] == 0].any()
    moved = np.abs(grad[pixels[2] > 0]).sum(-1) > 0
    assert moved.mean() > 0.9


@pytest.mark.parametrize("name", losses.TERMS)
def test_a_sure_mistake_is_finite(name):
    logits = jnp.array([[[[1e4, -1e4]]]])
    labels, counted = jnp.array([[[1]]]), jnp.ones((1, 1, 1))
    loss = losses.make_loss(common.stage(loss=name))
    value, grad = jax.value_and_grad(loss)(logits, labels, counted, jnp.ones(2))
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_a_sum_of_losses_is_their_sum(pixels):
    arrays = tuple(map(jnp.asarray, pixels))
    both = losses.make_loss(common.stage(loss="cross_entropy + dice"))
    parts = [
        losses.make_loss(common.stage(loss=name))(*arrays)
        for name in ("cross_entropy", "dice")
    ]
    assert float(both(*arrays)) == pytest.approx(float(sum(parts)))
