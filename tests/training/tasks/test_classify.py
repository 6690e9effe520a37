"""The loss against NumPy.

The scores of an evaluation are in tests/training/loop/test_evaluate.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from input_pipeline.transforms import mixing
from training.loop.state import AbstractModel
from training.tasks import classify

MEAN = np.full(3, 0.5, np.float32)
STD = np.full(3, 0.25, np.float32)


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def loss_of(model, batch, classes, teacher=None, prior=None, **fields):
    stage = common.stage(**fields)
    mix = mixing.Mixing(prob=0.0, erase_prob=0.0)
    prior = np.full(classes, 1 / classes) if prior is None else prior
    constants = classify.loss_constants(stage, MEAN, STD, prior, rows=1000)
    if teacher is not None:
        constants["teacher"] = ({}, {})
        constants["teacher_channels"] = {"mean": MEAN, "std": STD / 2}
    prepare = classify.make_prepare(mix)
    batch = prepare(batch, constants, jax.random.key(0))
    return classify.make_loss(stage, teacher)(model, batch, constants)


def batch_of(labels, weight):
    return {
        "image": jnp.zeros((len(labels), 8, 8, 3), jnp.uint8),
        "label": jnp.array(labels, jnp.int32),
        "weight": jnp.array(weight, jnp.float32),
    }


LOGITS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 0, 1], np.int32)
WEIGHT = np.array([1, 1, 0, 1, 1, 1], np.float32)


def answer(images):
    return jnp.array(LOGITS)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_smooths_once_and_leaves_rows_of_weight_0_out(smoothing):
    got = loss_of(
        answer, batch_of(LABELS, WEIGHT), 4, label_smoothing=smoothing
    )
    targets = np.eye(4)[LABELS] * (1 - smoothing) + smoothing / 4
    rows = -(targets * log_softmax(LOGITS)).sum(axis=1)
    assert float(got) == pytest.approx((rows * WEIGHT).sum() / 5, rel=1e-5)


def test_a_stage_chooses_its_loss():
    batch, ones = batch_of(LABELS, np.ones(6)), np.ones(6)
    prior = np.array([0.4, 0.3, 0.2, 0.1])
    log_p = log_softmax(LOGITS)[np.arange(6), LABELS]
    options = {"label_smoothing": 0.0, "prior": prior}

    focal = loss_of(answer, batch, 4, loss="focal", **options)
    expected = -((1 - np.exp(log_p)) ** 2 * log_p).mean()
    assert float(focal) == pytest.approx(expected, rel=1e-5)

    weighted = loss_of(answer, batch, 4, class_weight=1.0, **options)
    weights = (1 / prior) / 4  # the mean row of the prior weighs 1
    expected = -(weights[LABELS] * log_p).sum() / ones.sum()
    assert float(weighted) == pytest.approx(expected, rel=1e-5)

    adjusted = loss_of(answer, batch, 4, logit_adjustment=1.0, **options)
    # Balanced softmax: frequencies multiply the exponentials.
    odds = prior * np.exp(LOGITS)
    share = odds[np.arange(6), LABELS] / odds.sum(axis=1)
    assert float(adjusted) == pytest.approx(-np.log(share).mean(), rel=1e-5)


class Teacher(AbstractModel):
    """An abstract model whose model always answers the same."""

    def merge(self, params, batch_stats):
        return self

    def eval(self):
        pass

    def __call__(self, images):
        return jnp.array(LOGITS[::-1])


def test_distillation_mixes_the_teacher_in():
    batch = batch_of(LABELS, np.ones(6))
    options = {"label_smoothing": 0.0}
    hard = loss_of(answer, batch, 4, **options)
    got = loss_of(answer, batch, 4, teacher=Teacher(*[None] * 5), **options)
    log_q = log_softmax(LOGITS[::-1] / 4.0)
    log_p = log_softmax(LOGITS / 4.0)
    soft = 16 * (np.exp(log_q) * (log_q - log_p)).sum(axis=1).mean()
    expected = 0.3 * float(hard) + 0.7 * soft
    assert float(got) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_teacher_sees_the_mixed_images_as_it_normalises_them():
    """The very pixels that the student sees, erased and mixed."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    batch = batch_of(range(4), np.ones(4)) | {"image": jnp.array(pixels)}
    seen = {}

    class Looks(Teacher):
        def __call__(self, images):
            seen["teacher"] = np.asarray(images)
            return jnp.zeros((4, 4))

    def student(images):
        seen["student"] = np.asarray(images)
        return jnp.zeros((4, 4))

    mix = mixing.Mixing(prob=1.0, mixup_prob=1.0, erase_prob=1.0)
    stage = common.stage(label_smoothing=0.0)
    constants = classify.loss_constants(stage, MEAN, STD, np.ones(4) / 4, 9)
    constants["teacher"] = ({}, {})
    theirs = {"mean": np.float32([0.4, 0.5, 0.6]), "std": STD * 2}
    constants["teacher_channels"] = theirs
    prepared = classify.make_prepare(mix)(batch, constants, jax.random.key(1))
    classify.make_loss(stage, Looks(*[None] * 5))(student, prepared, constants)
    np.testing.assert_array_equal(seen["student"], prepared["image"])
    assert (seen["student"] != (pixels / 255 - MEAN) / STD).any()
    shown = seen["student"] * STD + MEAN  # the pixels, over 0..1
    expected = (shown - theirs["mean"]) / theirs["std"]
    np.testing.assert_allclose(seen["teacher"], expected, atol=1e-5)
    # One that knows them so sees the same to the bit.
    constants["teacher_channels"] = {"mean": MEAN, "std": STD}
    classify.make_loss(stage, Looks(*[None] * 5))(student, prepared, constants)
    np.testing.assert_array_equal(seen["teacher"], seen["student"])


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_the_ends_labels_or_the_teacher_teach_alone(alpha):
    batch, options = batch_of(LABELS, WEIGHT), {"label_smoothing": 0.0}
    got = loss_of(
        answer,
        batch,
        4,
        teacher=Teacher(*[None] * 5),
        distill_alpha=alpha,
        distill_temperature=3.0,
        **options,
    )
    log_q = log_softmax(LOGITS[::-1] / 3.0)
    log_p = log_softmax(LOGITS / 3.0)
    soft = 9 * (np.exp(log_q) * (log_q - log_p)).sum(axis=1)
    hard = -log_softmax(LOGITS)[np.arange(6), LABELS]
    rows = soft if alpha else hard
    assert float(got) == pytest.approx((rows * WEIGHT).sum() / 5, rel=1e-5)


def test_the_model_sees_normalised_images():
    seen = []

    def model(images):
        seen.append(np.asarray(images))
        return jnp.zeros((1, 2))

    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(1, 8, 8, 3)
    loss_of(model, batch_of([0], [1]) | {"image": jnp.array(pixels)}, 2)
    np.testing.assert_allclose(seen[0], (pixels / 255 - 0.5) / 0.25, atol=1e-6)
