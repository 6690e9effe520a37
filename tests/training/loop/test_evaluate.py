"""Scores accumulated on the device equal those over all rows at once."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss

from training.loop import evaluate
from training.multihost import sharding
from training.tasks.classify import ClassificationEvaluator

ROWS = 40  # at most


class LookUp:
    """A model that knows its logits by heart; an image holds its row."""

    def merge(self, params, batch_stats):
        self._logits = params["logits"]
        return self

    def eval(self):
        pass

    def __call__(self, images):
        rows = jnp.round(images[:, 0, 0, 0]).astype(jnp.int32)
        return self._logits[rows]


# Normalised with these, a pixel is its own value.
STATISTICS = {
    "mean": np.zeros(3, np.float32),
    "std": np.full(3, 1 / 255, np.float32),
}


@functools.cache
def prior_of(classes):
    weights = np.arange(1, classes + 1, dtype=np.float32)
    return weights / weights.sum()


@functools.cache
def made(classes):
    """An evaluator and its step, compiled once for each size of a batch."""
    evaluator = ClassificationEvaluator(classes)
    constants = {**STATISTICS, "class_prior": prior_of(classes)}
    mesh = sharding.make_mesh()
    step = evaluate.make_eval_step(LookUp(), evaluator, constants, mesh)
    return evaluator, step, mesh


def batches_of(order, labels, bad, size):
    """What `loader.eval_batches` gives: the last one filled up, two views."""
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        rows = np.pad(rows, (0, size - len(rows)), constant_values=-1)
        unread = (rows >= 0) & np.isin(rows, bad)
        # Neither filling nor a bad image has pixels.
        image = np.zeros((size, 2, 1, 1, 3), np.uint8)
        image[:, 0] = np.where(unread | (rows < 0), 0, rows)[
            :, None, None, None
        ]
        image[:, 1] = 255  # Only the first view counts.
        yield {
            "image": image,
            "label": np.where(rows >= 0, labels[rows], -1).astype(np.int32),
            "row": rows.astype(np.int32),
            "weight": (rows >= 0).astype(np.float32),
            "bad": unread,
        }


def scores_of(logits, labels, order, bad=(), size=7):
    evaluator, step, mesh = made(logits.shape[1])
    table = np.zeros((ROWS, logits.shape[1]), np.float32)
    table[: len(logits)] = logits
    batches = batches_of(np.array(order), labels, list(bad), size)
    params = {"logits": jnp.array(table)}
    return evaluate.evaluate(step, evaluator, params, {}, batches, mesh)


def expected_of(logits, labels, bad):
    """The same by scikit-learn, from all rows at once."""
    classes = logits.shape[1]
    logits = logits.astype(np.float64)
    logits[list(bad)] = np.log(prior_of(classes))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    predicted = logits.argmax(axis=1)
    return {
        "val_macro_f1": f1_score(
            labels, predicted, average="macro", zero_division=0
        ),
        "val_accuracy": accuracy_score(labels, predicted),
        "val_loss": log_loss(
            labels, odds / odds.sum(1, keepdims=True), labels=range(classes)
        ),
    }


@settings(deadline=None, max_examples=60)
@given(
    classes=st.sampled_from([2, 5]),
    size=st.sampled_from([1, 4, 7]),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_scores_are_those_of_all_rows_at_once(classes, size, seed, data):
    """Whatever the batches, their order, filling and unreadable images."""
    order = data.draw(
        st.integers(1, ROWS).flatmap(lambda n: st.permutations(range(n)))
    )
    bad = data.draw(st.sets(st.sampled_from(order)))
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(len(order), classes)).astype(np.float32)
    labels = rng.integers(0, classes, len(order))
    found = scores_of(logits, labels, order, bad, size)
    expected = expected_of(logits, labels, bad)
    # A row that the model is sure of costs less than float32 resolves.
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_two_evaluations_do_not_add_up():
    logits = np.eye(5, dtype=np.float32)
    first = scores_of(logits, np.arange(5), range(5))
    assert first["val_macro_f1"] == first["val_accuracy"] == 1.0
    assert scores_of(logits, np.arange(5), range(5)) == first


def test_no_row_at_all_gives_finite_scores():
    evaluator = ClassificationEvaluator(3)
    found = evaluator.compute(evaluator.init())
    assert all(np.isfinite(value) for value in found.values())
