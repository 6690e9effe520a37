"""The loss against NumPy, and the scores of an evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from input_pipeline import mixing
from training import classify

MEAN = np.full(3, 0.5, np.float32)
STD = np.full(3, 0.25, np.float32)


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_smooths_once_and_leaves_masked_rows_out(smoothing):
    mix = mixing.Mixing(prob=0.0, erase_prob=0.0)
    loss = classify.make_loss(mix, MEAN, STD, 4, smoothing)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 0, 1], np.int32)
    mask = np.array([1, 1, 0, 1, 1, 1], np.float32)
    batch = {
        "image": jnp.zeros((6, 8, 8, 3), jnp.uint8),
        "label": jnp.array(labels),
        "mask": jnp.array(mask),
    }
    got = loss(lambda images: jnp.array(logits), batch, jax.random.key(0))
    targets = np.eye(4)[labels] * (1 - smoothing) + smoothing / 4
    losses = -(targets * log_softmax(logits)).sum(axis=1)
    assert float(got) == pytest.approx((losses * mask).sum() / 5, rel=1e-5)


def test_the_model_sees_normalised_images():
    mix = mixing.Mixing(prob=0.0, erase_prob=0.0)
    loss = classify.make_loss(mix, MEAN, STD, 2, 0.0)
    seen = []

    def model(images):
        seen.append(np.asarray(images))
        return jnp.zeros((1, 2))

    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(1, 8, 8, 3)
    batch = {
        "image": jnp.array(pixels),
        "label": jnp.zeros(1, jnp.int32),
        "mask": jnp.ones(1),
    }
    loss(model, batch, jax.random.key(0))
    np.testing.assert_allclose(seen[0], (pixels / 255 - 0.5) / 0.25, atol=1e-6)


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, 200)
    logits = rng.normal(size=(200, 5)).astype(np.float32)
    logits[np.arange(200), labels] += 1
    found = classify.classification_metrics(labels, logits)
    predicted = logits.argmax(axis=1)
    f1 = f1_score(labels, predicted, average="macro")
    assert found["val_macro_f1"] == pytest.approx(f1)
    assert found["val_accuracy"] == accuracy_score(labels, predicted)
    chosen = log_softmax(logits)[np.arange(200), labels]
    assert found["val_loss"] == pytest.approx(-chosen.mean(), rel=1e-5)
