"""Similarities, classes of the loss, and what an evaluation gathers."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import loading
from core.errors import UserError
from jax_models.embedding import Embedded
from metrics import verification
from run_folder.pair_files import PairList
from training import train_loop
from training.tasks import similarity, verification_loss
from training.tasks.verification_evaluator import (
    ValidationPairs,
    VerificationEvaluator,
)
from training.tasks.verify import Verification

# ---- Similarity -------------------------------------------------------------


def made_up(count=400, seed=0):
    """Cosines and forgery scores that both tell something."""
    rng = np.random.default_rng(seed)
    positive = rng.random(count) < 0.5
    cosine = rng.normal(0.5 * positive, 0.3)
    log_real = rng.normal(-3 + 2 * positive, 1.0)
    return cosine, log_real, positive


def test_both_scores_together_err_less_than_either():
    cosine, log_real, positive = made_up()
    how = similarity.fit(cosine, log_real, positive)
    error = verification.equal_error_rate(how(cosine, log_real), positive)
    for alone in (cosine, log_real):
        assert error < verification.equal_error_rate(alone, positive)
    # Of a probability, the mean is the share of positives.
    p = np.exp(similarity.log_sigmoid(how(cosine, log_real)))
    assert p.mean() == pytest.approx(positive.mean(), abs=0.01)


def test_a_score_that_says_the_contrary_is_not_used():
    cosine, log_real, positive = made_up()
    how = similarity.fit(cosine, -log_real, positive)
    assert how.log_real == 0 and how.cosine > 0
    assert similarity.fit(-cosine, -log_real, positive).cosine == 1


def test_without_a_head_the_order_is_that_of_the_cosines():
    cosine, _, positive = made_up()
    how = similarity.fit(cosine, np.zeros(0), positive)
    found = how(cosine, np.zeros(0))
    np.testing.assert_array_equal(np.argsort(found), np.argsort(cosine))


def test_a_pair_is_answered_by_what_saw_neither_identity():
    cosine, log_real, positive = made_up()
    folds = np.random.default_rng(1).integers(0, 5, (len(cosine), 2))
    found = similarity.cross_fitted(cosine, log_real, positive, folds)
    for number in range(5):
        # Other answers about a fold change nothing there.
        touched = (folds == number).any(axis=1)
        again = similarity.cross_fitted(
            cosine, log_real, np.where(touched, ~positive, positive), folds
        )
        np.testing.assert_array_equal(found[touched], again[touched])
        assert (found[~touched] != again[~touched]).all()


@given(st.floats(-1e4, 1e4))
def test_log_sigmoid_is_finite_and_below_0(logit):
    found = float(similarity.log_sigmoid(np.array([logit]))[0])
    assert np.isfinite(found) and found <= 0
    other = float(similarity.log_sigmoid(np.array([-logit]))[0])
    assert found - other == pytest.approx(logit, abs=1e-6)


# ---- Classes ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("forgeries", "expected", "used"),
    [
        # Identity 1 validates; 2 has no forgery.
        ("class", [0, -1, 1, 2, -1, -1], [0, 2, 3]),
        ("class+head", [0, -1, 1, 2, -1, -1], [0, 2, 3]),
        ("head", [0, -1, 1, -1, -1, -1], [0, 2]),
        ("none", [0, -1, 1, -1, -1, -1], [0, 2]),
    ],
)
def test_only_what_trains_is_a_class(forgeries, expected, used):
    class_of, kept = verification_loss.classes_of(
        np.array([0, 0, 2, 2]), np.array([0, 1, 0, 0]), 3, forgeries
    )
    assert class_of.tolist() == expected
    assert kept.tolist() == used


# ---- Evaluation -------------------------------------------------------------


class Model:
    """Its embedding of a picture is the picture's first two values."""

    def embed(self, images):
        vectors = images[:, 0, 0, :2]
        return Embedded(vectors, jnp.ones(len(images)), images[:, 0, 0, 2])


def pairs_of(first, second, kind, rows, head=True):
    ids = np.array([str(n) for n in range(len(first))])
    return ValidationPairs(
        np.array(rows),
        PairList(
            ids,
            np.array(first, np.int32),
            np.array(second, np.int32),
            np.array(kind, np.int8),
        ),
        np.array(rows) // 2,
        head,
    )


def batch_of(pixels, rows, **fields):
    pixels = np.array(pixels, np.uint8)
    count = len(rows)
    return {
        "image": pixels.reshape(count, 1, 1, 1, 3),
        "row": np.array(rows, np.int32),
        "weight": np.float32(np.array(rows) >= 0),
        "bad": np.zeros(count, bool),
        **fields,
    }


CHANNELS = {"mean": np.zeros(3, np.float32), "std": np.ones(3, np.float32)}


def test_embeddings_land_in_their_rows_whatever_the_batches():
    pairs = pairs_of([4, 4], [5, 8], [0, 1], [4, 5, 8, 9])
    evaluator = VerificationEvaluator(pairs, 2)
    constants = {**CHANNELS, "rows": pairs.rows.astype(np.int32)}
    totals = jax.tree.map(jnp.asarray, evaluator.init())
    for batch in (
        batch_of([[255, 0, 51], [0, 255, 102]], [4, 8]),
        # Filling overwrites nothing.
        batch_of([[255, 0, 0], [9, 9, 9]], [5, -1]),
        batch_of([[7, 7, 7]], [9], bad=np.array([True])),
    ):
        totals = evaluator.update(totals, Model(), batch, constants)
    np.testing.assert_allclose(
        totals["embedding"], [[1, 0], [1, 0], [0, 1], [0, 0]], atol=1e-6
    )
    np.testing.assert_allclose(
        totals["real_logit"], [0.2, 0, 0.4, 0], atol=1e-6
    )
    assert np.asarray(totals["seen"]).tolist() == [True, True, True, False]
    scores = evaluator.compute({k: np.asarray(v) for k, v in totals.items()})
    assert scores["val_eer"] == scores["val_eer_other"] == 0
    assert "val_eer_one_forged" not in scores


def test_pairs_of_a_picture_that_cannot_be_read_are_not_scored():
    pairs = pairs_of([0, 0, 0], [1, 2, 3], [0, 1, 1], [0, 1, 2, 3], head=False)
    evaluator = VerificationEvaluator(pairs, 2)
    totals = evaluator.init()
    totals["embedding"] = np.float32([[1, 0], [1, 0], [0, 1], [1, 0]])
    totals["seen"] = np.array([True, True, True, False])
    assert evaluator.compute(totals)["val_eer"] == 0
    kept = pairs.without(~totals["seen"])
    assert kept.pairs.ids.tolist() == ["0", "1"]
    assert kept.pairs.kind.tolist() == [0, 1]
    totals["seen"][:] = True
    assert evaluator.compute(totals)["val_eer"] > 0


def test_what_has_nothing_to_be_fitted_to_is_fitted_to_all():
    cosine, log_real, positive = made_up()
    folds = np.random.default_rng(1).integers(0, 2, (len(cosine), 2))
    found = similarity.cross_fitted(cosine, log_real, positive, folds)
    how = similarity.fit(cosine, log_real, positive)
    np.testing.assert_array_equal(found, how(cosine, log_real))


def test_few_identities_are_not_divided():
    pairs = pairs_of([0, 0], [1, 2], [0, 1], [0, 1, 2, 3])
    cosine, log_real = np.array([0.9, 0.1]), np.array([-1.0, -2.0])
    how = similarity.fit(cosine, log_real, pairs.positive)
    np.testing.assert_array_equal(
        pairs.similarity(cosine, log_real), how(cosine, log_real)
    )


# ---- Messages ---------------------------------------------------------------


def test_a_collapse_is_told_in_one_sentence():
    task = object.__new__(Verification)
    task.config = loading.load("configs/verify_resnet34.py")
    stage = SimpleNamespace(config=task.config.stages[0], index=0)
    assert task.advice(stage, {"negative_distance": 1.2}) == ""
    assert task.advice(stage, {"loss": 1.0}) == ""
    told = task.advice(stage, {"negative_distance": 0.001})
    # Its miner, semi_hard, takes no triplet of a single point.
    assert "have collapsed" in told and "(the loss of which is 0)" in told
    assert "\n" not in told
    task.config.verify.miner = "all"
    told = task.advice(stage, {"negative_distance": 0.001})
    assert "(the loss of which is 0.2)" in told


def test_a_later_stage_begins_with_an_empty_memory(monkeypatch):
    """A moving average of places and classes would be none of either."""
    task = object.__new__(Verification)
    task.abstract_model = None
    memory = {
        "embeddings": jnp.full((4, 2), 0.3),
        "labels": jnp.full(4, 5.5),
        "filled": jnp.full(4, 0.7),
        "next": jnp.float32(2.4),
    }
    mean = {"mean": jnp.ones(3)}
    stats = {"neck": mean, "head": {"memory": memory}}
    monkeypatch.setattr(
        train_loop.resume, "restore_best_weights", lambda *_: (7, {}, stats)
    )
    begun = []
    monkeypatch.setattr(
        train_loop.state_lib, "start_stage", lambda *given: begun.append(given)
    )
    run = SimpleNamespace(task=task, checkpoints=None, stages=(), mesh=None)
    stage = SimpleNamespace(index=1, start=9, config=None)
    train_loop.initial_state(run, stage)
    ((start, _, found, _, _),) = begun
    assert start == 9 and found["neck"] is mean
    for name, array in found["head"]["memory"].items():
        assert array.shape == memory[name].shape and not array.any(), name
    assert stats["head"]["memory"]["next"] == jnp.float32(2.4)
    assert task.statistics_of_later_stages({"neck": mean}) == {"neck": mean}


def test_cosines_are_no_probabilities_until_an_export_has_fitted_them():
    task = object.__new__(Verification)
    task.similarity = None
    assert task.similarity_weights == ()
    with pytest.raises(UserError, match="has not come to its end"):
        task.probability(*np.zeros((3, 1)))


def test_a_range_of_negatives_beyond_the_batch_is_refused():
    config = loading.load("configs/verify_resnet34.py")
    config.verify.miner = "n_hard"
    own = config.verify
    count = (own.identities - 1) * own.pictures
    own.hard_negatives = (count, count)
    assert not list(verification_loss.problems(config))
    own.hard_negatives = (count + 1, count + 3)
    own.hard_positives = (own.pictures, own.pictures)
    both = list(verification_loss.problems(config))
    assert [told.partition(" is ")[0] for told in both] == [
        "verify.hard_positives",
        "verify.hard_negatives",
    ]
    assert f"has {count} of them at the most" in both[1]


def test_a_memory_may_be_looked_at_by_one_stage_alone():
    config = loading.load("configs/verify_resnet34.py")
    config.verify.memory = 320
    first, second = (
        config.stages[0].copy_and_resolve_references() for _ in range(2)
    )
    first.loss, config.stages = "cosface", (first, second)
    assert not list(verification_loss.problems(config))
    second.loss = "arcface"
    (told,) = verification_loss.problems(config)
    assert "cosface, arcface with verify.miner=semi_hard looks at no" in told
